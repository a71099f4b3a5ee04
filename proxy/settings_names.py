"""Whether the names in the settings fit together: what refers to something finds it, and no name means two things.

Pure. What a single value may look like is in its section.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy.settings_file import Place

if TYPE_CHECKING:
    from proxy.settings import Settings

_Problems = Iterator[tuple[Place, str]]


def problems_with_names(settings: Settings) -> _Problems:
    """(place, what is wrong there), in no particular order."""
    yield from _unknown_backends(settings)
    yield from _taken_names(settings)
    yield from _engine_names(settings)
    yield from _public_names(settings)


def _unknown_backends(settings: Settings) -> _Problems:
    known = ", ".join((*settings.backends, *settings.engines)) or "none"
    for name, model in settings.models.items():
        for index, replica in enumerate(model.replicas):
            # launchers elsewhere have engines that only they know
            if replica.backend in settings.backends or replica.backend in settings.engines or settings.launchers:
                continue
            place = ("models", name, "replicas", index, "backend")
            yield place, f"there is no backend {replica.backend!r}; known backends: {known}"


def _taken_names(settings: Settings) -> _Problems:
    taken = {name: f"the name of models.{name}" for name in settings.models}
    for name, model in settings.models.items():
        for index, alias in enumerate(model.aliases):
            place = ("models", name, "aliases", index)
            if alias in taken:
                yield place, f"{alias!r} is already {taken[alias]}; public names must differ"
            taken.setdefault(alias, f"an alias of models.{name}")


def _engine_names(settings: Settings) -> _Problems:
    for name in settings.engines:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            yield (
                ("engines", name),
                "an engine's name here also names its log: up to 64 letters, digits, '.', '_' and '-'; the one that "
                "clients use is `name`, and may be any",
            )
        if name in settings.backends:
            yield ("engines", name), f"a backend is called {name!r} too; choose another name"


def _public_names(settings: Settings) -> _Problems:
    """An engine's public name that a model's entry takes away from it."""
    aliases = {alias: name for name, model in settings.models.items() for alias in model.aliases}
    for key, engine in settings.engines.items():
        public = engine.public(key)
        entry = aliases.get(public) or (public if public in settings.models else None)
        if entry is None:
            continue
        model = settings.models[entry]
        if not model.replicas and public == entry:
            continue  # served by whoever has it by this name
        if not any(replica.backend == key for replica in model.replicas):
            yield (
                ("engines", key),
                f"its public name {public!r} is that of models.{entry}, which it does not serve; give the engine "
                f"another `name`, or add {key!r} to models.{entry}.replicas",
            )
