"""SGLang: `python3 -m sglang.launch_server`.

It takes its key from no environment variable, so a key stands in its command line, where others on the machine can read
it: leave `api_key` out, as it listens on loopback.
"""

from __future__ import annotations

import re
from typing import Final

from launchers.engines.base import (
    HUB_DOWNLOAD,
    LOADING,
    WARMING,
    Command,
    Engine,
    Image,
    Install,
    Phase,
    Place,
    Ready,
    split_over,
    words,
)
from launchers.spec import EngineSpec

SHARE: Final = 0.9  # of a GPU, about: it works its own out from the GPU where nothing is said


def command(spec: EngineSpec, place: Place) -> Command:
    options = words(
        ("--model-path", spec.model),
        ("--served-model-name", spec.public),
        ("--host", place.host),
        ("--port", place.port),
        ("--dtype", spec.dtype),
        ("--context-length", spec.max_model_len),
        ("--tp-size", split_over(spec)),
        ("--mem-fraction-static", spec.gpu_memory),
        ("--trust-remote-code", spec.trust_remote_code),
        ("--is-embedding", spec.embedding),
        ("--device", spec.device),
        ("--api-key", spec.api_key),
    )
    return Command((*place.program, *options))


def need(spec: EngineSpec, total: int | None) -> int | None:
    return None if total is None else int(total * (spec.gpu_memory or SHARE))


ENGINE: Final = Engine(
    kind="sglang",
    title="SGLang",
    program=("python3", "-m", "sglang.launch_server"),
    options=frozenset(
        ("dtype", "max_model_len", "tensor_parallel", "gpu_memory", "trust_remote_code", "embedding", "api_key")
    ),
    command=command,
    ready=lambda spec: Ready("/health", "/v1/models"),
    install=Install("pip install 'sglang[all]'", ("sglang[all]",)),
    image=Image(
        ("python3", "-m", "sglang.launch_server"),
        shared_memory=True,
        gpus=True,
        caches=("illm-huggingface:/root/.cache/huggingface",),
    ),
    phases=(
        *HUB_DOWNLOAD,
        Phase(re.compile(r"checkpoint shards: +(?P<percent>\d+)% Completed"), LOADING),
        Phase(re.compile(r"loading shards: +(?P<percent>\d+)%"), LOADING),
        Phase(re.compile(r"Load weight begin"), LOADING),
        Phase(re.compile(r"Capturing batches\b[^%]*?(?P<percent>\d+)%"), "capturing CUDA graphs"),
        Phase(re.compile(r"Capture .*graph begin"), "capturing CUDA graphs"),
        Phase(re.compile(r"Load weight end|Capture .*graph end"), WARMING),
    ),
    need=need,
)
