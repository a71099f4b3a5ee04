"""What a reload has to do: two documents in, a list of names for each kind of change out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Final

from launchers.spec import EngineSpec, LauncherSpec

LIVE: Final = ("budget", "auto_install", "linger", "watch")  # of the launcher's own settings: heeded at once


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of engines. `update`: what the launcher does with it changed, the running process needn't know. And of the
    launcher's own settings: those that it takes over, those that it is `left` with until it starts anew."""

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    update: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, list[str]]:
        return {word: list(names) for word, names in asdict(self).items()}

    def __str__(self) -> str:
        return "; ".join(f"{word} {', '.join(names)}" for word, names in self.as_dict().items() if names) or "nothing"


def changes(old: Iterable[EngineSpec], new: Iterable[EngineSpec], fingerprint: Callable[[EngineSpec], str]) -> Changes:
    """`fingerprint` tells what an engine would be launched with: where it is the same, the process stays."""
    before = {spec.name: spec for spec in old}
    after = {spec.name: spec for spec in new}
    found: dict[str, list[str]] = {"restart": [], "update": [], "keep": []}
    for name in (name for name in after if name in before):
        if fingerprint(before[name]) != fingerprint(after[name]):
            found["restart"].append(name)
        else:
            found["keep" if before[name] == after[name] else "update"].append(name)
    return Changes(
        start=tuple(name for name in after if name not in before),
        stop=tuple(name for name in before if name not in after),
        **{word: tuple(names) for word, names in found.items()},
    )


def settled(old: LauncherSpec, new: LauncherSpec) -> tuple[LauncherSpec, tuple[str, ...], tuple[str, ...]]:
    """What of the launcher's own settings holds from now on, the names of those that it takes over, and of those that
    would need it to start anew: a socket and its key, and what running engines were started with."""
    changed = [one.name for one in fields(LauncherSpec) if getattr(old, one.name) != getattr(new, one.name)]
    taken = tuple(name for name in changed if name in LIVE)
    left = tuple(name for name in changed if name not in LIVE)
    return replace(old, **{name: getattr(new, name) for name in taken}), taken, left
