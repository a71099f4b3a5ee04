"""Any program that serves a model over HTTP: its command line, with {port}, {host}, {model} and {name} (the public
name) filled in there and in `env`; {api_key} in `env` alone, where others on the machine can't read it.

It is ready when its list of models answers, unless `health` names another path. Other braces stay as they are.
"""

from __future__ import annotations

import re
from typing import Final

from launchers.engines.base import Command, Engine, Install, Place, Ready
from launchers.spec import EngineSpec, SpecError

_HOLE: Final = re.compile(r"\{(port|host|model|name|api_key)\}")


def command(spec: EngineSpec, place: Place) -> Command:
    told = (*spec.command, *spec.args, *spec.env.values())
    if spec.port is None and not any("{port}" in text for text in told):
        raise SpecError(
            f"{spec.name}: nothing tells the program where to listen; write {{port}} into its command, or set `port` "
            f"to where it always listens.",
            option="command",
        )
    values = {"port": str(place.port), "host": place.host, "name": spec.public}
    if spec.model is not None:
        values["model"] = spec.model
    argv = tuple(_filled(spec, word, values) for word in (*spec.command, *spec.args))
    if spec.api_key is not None:
        values["api_key"] = spec.api_key
    return Command(argv, {name: _filled(spec, text, values) for name, text in spec.env.items()})


def _filled(spec: EngineSpec, text: str, values: dict[str, str]) -> str:
    """In one pass, so that braces within a value stay."""
    for hole in _HOLE.findall(text):
        if hole not in values:
            secret = hole == "api_key" and spec.api_key is not None
            why = (
                "stands where others could read it; put it into `env`" if secret else f"is used, but no `{hole}` is set"
            )
            raise SpecError(f"{spec.name}: {{{hole}}} {why}.")
    return _HOLE.sub(lambda hole: values[hole[1]], text)


ENGINE: Final = Engine(
    kind="command",
    title="the command",
    program=(),
    options=frozenset(("api_key",)),
    command=command,
    ready=lambda spec: Ready("/v1/models"),
    install=Install("install it, or correct the first word of `command`"),
    listed=lambda spec: None,
)
