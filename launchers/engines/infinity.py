"""Infinity: `infinity_emb v2`, for embeddings and rerank.

Its paths have no `/v1`. It trusts a model's own code unless told not to, so it is told either way. It folds its log to
the width of a terminal, which is made wide enough for a line to be found.
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
    words,
)
from launchers.spec import EngineSpec


def command(spec: EngineSpec, place: Place) -> Command:
    options = words(
        ("--model-id", spec.model),
        ("--served-model-name", spec.public),
        ("--host", place.host),
        ("--port", place.port),
        ("--device", spec.device),
        ("--dtype", spec.dtype),
        ("--trust-remote-code" if spec.trust_remote_code else "--no-trust-remote-code", True),
    )
    env = {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "COLUMNS": "200"}
    if spec.api_key is not None:
        env["INFINITY_API_KEY"] = spec.api_key
    return Command((*place.program, *options), env)


ENGINE: Final = Engine(
    kind="infinity",
    title="Infinity",
    program=("infinity_emb", "v2"),
    options=frozenset(("dtype", "trust_remote_code", "embedding", "api_key")),
    command=command,
    ready=lambda spec: Ready("/health", "/models"),
    install=Install("pip install 'infinity-emb[torch,server]'", ("infinity-emb[torch,server]",)),
    image=Image(
        ("v2",),
        caches=("illm-huggingface:/app/.cache/huggingface",),
        env={"HF_HOME": "/app/.cache/huggingface"},
    ),
    phases=(
        *HUB_DOWNLOAD,
        Phase(re.compile(r"Creating \d+ engines|model=`.*` selected|Load pretrained"), LOADING),
        Phase(re.compile(r"Getting timings|warmed up"), WARMING),
    ),
)
