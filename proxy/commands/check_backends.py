"""What `illm check` finds out about backends: it asks each, as the gateway does, and says in sentences what to fix.

Here: asking, and judging what was said. Engines that are to be launched are in `check_engines`, how it looks in
`check`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.ask import Asker, Unanswered, asking
from proxy.dialects.base import EngineKind
from proxy.discovery import LOCAL_PORTS, probe
from proxy.engine_answers import Probe
from proxy.settings import BackendSettings, Settings

SHOWN: Final = 8  # names of models in a sentence
TIMED: Final = 5.0  # seconds for the answer whose time is told

# A part of what a look says -> what to do about it.
_ADVICE: Final = (
    ("connection refused", "Start it, or correct its base_url."),
    ("host name not found", "Correct its base_url, or start it: a container's name is known only while it runs."),
    ("no answer within", "It may be busy, or not be reachable from here: try again, and look at the network."),
    ("api_key", "Set its api_key (ILLM_BACKENDS__NAME__API_KEY) as the engine has it."),
    ("this is an illm gateway", "Take it out of backends: requests could run in a circle."),
    ("but not as an engine does", "Correct its base_url: it must be the engine's own address."),
)


_OTHER: Final = ("answered 404", "what it answers")  # how the answers of another kind of engine look


@dataclass(frozen=True, slots=True)
class Look:
    """What one backend said. `local`: not in the settings, found on a usual port. `ms`: milliseconds for one answer.
    `really`: the kind that it is, where it isn't the one that the settings say."""

    name: str
    root: str
    told: Probe
    ms: float | None = None
    local: bool = False
    really: EngineKind | None = None


async def look_at_all(settings: Settings) -> list[Look]:
    """Every backend at once, and the usual ports of this machine where the gateway would look there. Takes about the
    settings' `health.timeout` at most."""
    local = settings.discovery.local
    if local is None:
        local = not (settings.backends or settings.engines or settings.launchers)
    known = {backend.root.replace("//localhost:", "//127.0.0.1:") for backend in settings.backends.values()}
    ports = [root for port in LOCAL_PORTS if (root := f"http://127.0.0.1:{port}") not in known] if local else []
    with asking() as asker:
        looks = await asyncio.gather(
            *(_look(asker, name, backend, settings.health.timeout) for name, backend in settings.backends.items()),
            *(_local(asker, root, settings.health.timeout) for root in ports),
        )
    return [look for look in looks if look is not None]


async def _look(asker: Asker, name: str, backend: BackendSettings, limit: float) -> Look:
    key = backend.api_key.get_secret_value() if backend.api_key else None
    told = await probe(asker, backend.root, backend.kind, key, limit)
    really = None
    if backend.kind not in (None, "openai") and (told.state == "ready" or told.detail.startswith(_OTHER)):
        found = (await probe(asker, backend.root, None, key, limit)).kind
        really = found if found != "openai" else None  # which says only that it is none of the others, or hides it
    return Look(name, backend.root, told, await _time(asker, backend.root, told), really=really)


async def _local(asker: Asker, root: str, limit: float) -> Look | None:
    told = await probe(asker, root, None, None, limit)
    if told.kind is None or told.state == "down" or told.gateway:
        return None
    return Look(told.kind, root, told, await _time(asker, root, told), local=True)


async def _time(asker: Asker, root: str, told: Probe) -> float | None:
    """Milliseconds for one answer on a connection of its own."""
    if told.state == "down":
        return None
    began = time.perf_counter()
    try:
        async with asyncio.timeout(TIMED):
            await asker.ask(root, f"{told.prefix}/models", None)
    except (TimeoutError, Unanswered):
        return None
    return (time.perf_counter() - began) * 1000


# --- what to fix ---------------------------------------------------------------------------------------------------


def backend_problems(settings: Settings, looks: Sequence[Look], elsewhere: frozenset[str]) -> Iterator[str]:
    """A sentence for each. `elsewhere`: public names that engines under a launcher have."""
    by_name = {look.name: look for look in looks if not look.local}
    for name, look in by_name.items():
        yield from _of_backend(name, settings.backends[name], look)
    yield from _of_models(settings, by_name, elsewhere)
    served = _served(settings, looks) | elsewhere
    unsure = any(look.told.state != "ready" for look in looks)
    for setting in ("model", "embedding_model"):
        wanted = getattr(settings, setting)
        if wanted is not None and wanted not in served and not unsure:
            yield f"`{setting}` is {wanted!r}, which nobody serves. There are: {_names(sorted(served))}"


def _of_backend(name: str, backend: BackendSettings, look: Look) -> Iterator[str]:
    told = look.told
    if look.really is not None and look.really != backend.kind:
        yield f"Backend '{name}' at {look.root} is {look.really}, not {backend.kind}. Correct its kind or leave it out."
    elif told.state == "loading":
        yield f"Backend '{name}' at {look.root} is {told.detail}. Wait until it is ready."
    elif told.state == "down":
        advice = next((words for part, words in _ADVICE if part in told.detail), "Look at its log.")
        yield f"Backend '{name}' at {look.root}: {told.detail}. {advice}"
    else:
        listed = [model.id for model in told.models]
        for wanted in dict.fromkeys((*([backend.model] if backend.model else []), *backend.models)):
            if listed and wanted not in listed:
                yield f"Backend '{name}' does not list {wanted!r}. It has: {_names(listed)}"


def _of_models(settings: Settings, looks: Mapping[str, Look], elsewhere: frozenset[str]) -> Iterator[str]:
    """Entries of `models` that point to nothing."""
    for public, model in settings.models.items():
        for replica in model.replicas:
            look = looks.get(replica.backend)
            if look is None or look.told.state != "ready" or not look.told.models:
                continue
            listed = [each.id for each in look.told.models]
            pinned = {*settings.backends[replica.backend].models, settings.backends[replica.backend].model}
            wanted = replica.model or (listed[0] if len(listed) == 1 else public)
            if wanted not in listed and wanted not in pinned:
                there = f"backend '{replica.backend}' does not list {wanted!r}. It has: {_names(listed)}"
                yield f"Model '{public}': {there}"
        ready = all(look.told.state == "ready" for look in looks.values())
        if not model.replicas and ready and public not in elsewhere | _listed(looks.values()):
            yield f"Model '{public}' has no replicas, and no backend lists it by that name. Say which: replicas: [...]"


def _listed(looks: Iterable[Look]) -> frozenset[str]:
    return frozenset(model.id for look in looks for model in look.told.models)


def _served(settings: Settings, looks: Sequence[Look]) -> frozenset[str]:
    """Every name that requests may use."""
    own = set(settings.models) | {alias for model in settings.models.values() for alias in model.aliases}
    pinned = {
        name for backend in settings.backends.values() for name in (backend.model, *backend.models) if name is not None
    }
    return frozenset(own | pinned) | _listed(looks)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "") or "none"
