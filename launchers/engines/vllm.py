"""vLLM: `vllm serve`, or its server module named by `command`.

The flags were checked on 0.32, which has no `--device`: the build decides. Only `/v1` asks for the key, and
it is taken from the environment. `unload: sleep` needs its development routes, which ask for no key: one more reason to
keep engines on loopback.
"""

from __future__ import annotations

import re
from typing import Final

from launchers.engines.base import (
    HUB_DOWNLOAD,
    LISTENING,
    LOADING,
    WARMING,
    Command,
    Engine,
    Image,
    Install,
    Phase,
    Place,
    Ready,
    Sleep,
    split_over,
    words,
)
from launchers.spec import EngineSpec, SpecError

SHARE: Final = 0.92  # of a GPU, which it takes where nothing is said; older versions take 0.9


def command(spec: EngineSpec, place: Place) -> Command:
    sleeps = spec.unload == "sleep"
    if sleeps and spec.device == "cpu":
        raise SpecError(
            f"{spec.name}: vLLM sleeps only on a GPU; leave out `unload: sleep`, or `device: cpu`.", option="unload"
        )
    module = any("vllm.entrypoints" in word for word in place.program)
    argv = (
        *place.program,
        *(("--model",) if module else ()),
        str(spec.model),
        *words(
            ("--served-model-name", spec.public),
            ("--host", place.host),
            ("--port", place.port),
            ("--dtype", spec.dtype),
            ("--max-model-len", spec.max_model_len),
            ("--tensor-parallel-size", split_over(spec)),
            ("--gpu-memory-utilization", spec.gpu_memory),
            ("--trust-remote-code", spec.trust_remote_code),
            ("--runner", "pooling" if spec.embedding else None),
            ("--enable-sleep-mode", sleeps),
        ),
    )
    env = {"VLLM_NO_USAGE_STATS": "1"}
    if spec.api_key is not None:
        env["VLLM_API_KEY"] = spec.api_key
    if sleeps:
        env["VLLM_SERVER_DEV_MODE"] = "1"
    return Command(argv, env)


def need(spec: EngineSpec, total: int | None) -> int | None:
    """It takes its share whatever the model is, and doesn't start where less is free."""
    return None if total is None else int(total * (spec.gpu_memory or SHARE))


ENGINE: Final = Engine(
    kind="vllm",
    title="vLLM",
    program=("vllm", "serve"),
    options=frozenset(
        (
            "dtype",
            "max_model_len",
            "tensor_parallel",
            "gpu_memory",
            "trust_remote_code",
            "embedding",
            "api_key",
            "sleep",
        )
    ),
    command=command,
    ready=lambda spec: Ready("/health", "/v1/models"),
    install=Install("pip install vllm", ("vllm",)),
    image=Image(
        ("serve",),
        entrypoint="vllm",
        shared_memory=True,
        gpus=True,
        caches=("illm-huggingface:/root/.cache/huggingface",),
    ),
    devices=frozenset(("cpu", "cuda")),
    phases=(
        *HUB_DOWNLOAD,
        Phase(re.compile(r"Loading \w+ checkpoint shards: +(?P<percent>\d+)% Completed"), LOADING),
        Phase(re.compile(r"Starting to load model|Loading safetensors using"), LOADING),
        Phase(re.compile(r"Capturing CUDA graphs?\b[^%]*?(?P<percent>\d+)%"), "capturing CUDA graphs"),
        Phase(
            re.compile(r"for vLLM's torch\.compile|Dynamo bytecode transform|Compiling a graph|for the compilation"),
            "compiling",
        ),
        Phase(re.compile(r"Loading weights took|Model loading took|init engine \(profile"), WARMING),
        Phase(re.compile(r"Starting vLLM server on"), LISTENING),
    ),
    need=need,
    sleep=Sleep("/sleep?level=1", "/wake_up"),
)
