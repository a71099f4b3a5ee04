"""`transformers serve`, told its model at the start, so that it is loaded by the time it listens and never unloaded.

It can't be told a public name, refuses requests that name another model than the one it was given, and lists none: what
it was given is what requests must name. It has no keys.
"""

from __future__ import annotations

import re
from typing import Final

from launchers.engines.base import HUB_DOWNLOAD, LOADING, Command, Engine, Image, Install, Phase, Place, Ready, words
from launchers.spec import EngineSpec


def command(spec: EngineSpec, place: Place) -> Command:
    options = words(
        ("--host", place.host),
        ("--port", place.port),
        ("--device", spec.device),
        ("--dtype", spec.dtype),
        ("--trust-remote-code", spec.trust_remote_code),
    )
    return Command((*place.program, str(spec.model), *options))


ENGINE: Final = Engine(
    kind="transformers",
    title="transformers serve",
    program=("transformers", "serve"),
    options=frozenset(("dtype", "trust_remote_code")),
    command=command,
    ready=lambda spec: Ready("/health"),
    install=Install("pip install 'transformers[serving]' requests", ("transformers[serving]", "requests")),
    image=Image(
        ("transformers", "serve"),
        caches=("illm-transformers:/root/.cache/huggingface",),  # its own: what is in there is what it lists
    ),
    phases=(
        *HUB_DOWNLOAD,
        Phase(re.compile(r"Loading weights: +(?P<percent>\d+)%"), LOADING),
        Phase(re.compile(r"\[transformers\] Loading "), LOADING),
    ),
    listed=lambda spec: spec.model,
)
