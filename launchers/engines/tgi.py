"""Text Generation Inference: `text-generation-launcher`. Every option of it is an environment variable too.

It can't be told a public name: it lists its model by what it was given, and ignores the name in a request. It reads
HOSTNAME, which containers have, as the address to listen on, so that is always told. The socket of its shards must not
be another instance's, nor the port of its second metrics server (older versions always take 9000: a second one fails).
"""

from __future__ import annotations

import re
from typing import Final

from launchers.engines.base import (
    DOWNLOADING,
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

SHARE: Final = 0.95  # of what it may use: its warm-up fills that with cache


def command(spec: EngineSpec, place: Place) -> Command:
    options = words(
        ("--model-id", spec.model),
        ("--hostname", place.host),
        ("--port", place.port),
        ("--shard-uds-path", f"/tmp/text-generation-server-{place.port}"),  # noqa: S108 - its default, told apart
        ("--dtype", spec.dtype),
        ("--max-total-tokens", spec.max_model_len),
        ("--num-shard", split_over(spec)),
        ("--cuda-memory-fraction", spec.gpu_memory),
        ("--trust-remote-code", spec.trust_remote_code),
    )
    env = {"USAGE_STATS": "off", "PROMETHEUS_PORT": "0"}
    if spec.api_key is not None:
        env["API_KEY"] = spec.api_key
    return Command((*place.program, *options), env)


def need(spec: EngineSpec, total: int | None) -> int | None:
    return None if total is None else int(total * (spec.gpu_memory or 1.0) * SHARE)


ENGINE: Final = Engine(
    kind="tgi",
    title="TGI",
    program=("text-generation-launcher",),
    options=frozenset(("dtype", "max_model_len", "tensor_parallel", "gpu_memory", "trust_remote_code", "api_key")),
    command=command,
    ready=lambda spec: Ready("/health", "/info", ("model_id",)),
    install=Install(
        "it is made for its container: set `image: ghcr.io/huggingface/text-generation-inference:3.3.5`, or build it "
        "from https://github.com/huggingface/text-generation-inference"
    ),
    image=Image(
        shared_memory=True,
        gpus=True,
        caches=("illm-huggingface:/data",),
        env={"HUGGINGFACE_HUB_CACHE": "/data/hub"},  # as the other engines lay that volume out
    ),
    devices=frozenset(("cpu", "cuda")),
    phases=(
        Phase(re.compile(r"Download: \[(?P<done>\d+)/(?P<total>\d+)\]"), DOWNLOADING),
        Phase(re.compile(r"Download file:|Starting (?:check and )?download process"), DOWNLOADING),
        Phase(re.compile(r"Starting shard|Waiting for shard"), LOADING),
        Phase(re.compile(r"Shard ready|Starting Webserver|Warming up model"), WARMING),
    ),
    listed=lambda spec: spec.model,
    need=need,
)
