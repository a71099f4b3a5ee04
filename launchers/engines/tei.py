"""Text Embeddings Inference: `text-embeddings-router`. Every option of it is an environment variable too.

What only newer versions have as an option (the served name) is told by the environment, which older ones ignore. It
lists its model by what it was given. It reads HOSTNAME, which containers have, as the address to listen on, so that is
always told. It has no option for the device: its build decides.
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
    words,
)
from launchers.spec import EngineSpec


def command(spec: EngineSpec, place: Place) -> Command:
    options = words(
        ("--model-id", spec.model),
        ("--hostname", place.host),
        ("--port", place.port),
        ("--uds-path", f"/tmp/text-embeddings-inference-server-{place.port}"),  # noqa: S108 - its default, told apart
        ("--dtype", spec.dtype),
    )
    env = {"SERVED_MODEL_NAME": spec.public}
    if spec.api_key is not None:
        env["API_KEY"] = spec.api_key
    return Command((*place.program, *options), env)


ENGINE: Final = Engine(
    kind="tei",
    title="TEI",
    program=("text-embeddings-router",),
    options=frozenset(("dtype", "embedding", "api_key")),
    command=command,
    ready=lambda spec: Ready("/health", "/info", ("model_id",)),
    install=Install(
        "`brew install text-embeddings-inference`, or set `image: "
        "ghcr.io/huggingface/text-embeddings-inference:cpu-1.8` (see its documentation for the tag of your GPU)"
    ),
    image=Image(caches=("illm-huggingface:/data",), env={"HUGGINGFACE_HUB_CACHE": "/data/hub"}),
    phases=(
        Phase(re.compile(r"Starting download|Downloading `"), DOWNLOADING),
        Phase(re.compile(r"Starting model backend|Starting \w+ model on"), LOADING),
        Phase(re.compile(r"Warming up model"), WARMING),
    ),
    listed=lambda spec: spec.model,
)
