"""Taking changed settings over while requests are under way: none is lost, none is sent elsewhere than where it began.

Backends, models, defaults and probes change at once. What a running gateway can't change is said in the log and waits
for its next start. Launchers are told to read their settings as well; where the first engines have come, `launch`
starts one. Not here: reading the file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from proxy.health import HealthLoop
from proxy.launched import Launched
from proxy.pool import Backend
from proxy.registry import Registry
from proxy.settings import Defaults, Settings

log = logging.getLogger("illm")

PATIENCE: Final = 2.0  # seconds that new backends have for saying who they are before the routes change
# What is put together once, at the start: section, and the members of it where only some are.
FIXED: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("server", ()),
    ("upstream", ()),
    ("images", ()),
    ("discovery", ("local",)),
    ("demo", ()),
    ("launchers", ()),
)


class Adopts(Protocol):
    """Somebody who keeps defaults."""

    def adopt(self, defaults: Defaults) -> None: ...


class Reload:
    """Call it with new settings. Several at a time take turns."""

    def __init__(
        self,
        registry: Registry,
        health: HealthLoop,
        launched: Sequence[Launched],
        endpoints: Iterable[Adopts],
        launch: Callable[[Settings], Awaitable[None]],
    ) -> None:
        self._registry = registry
        self._health = health
        self._launched = launched
        self._endpoints = tuple(endpoints)
        self._launch = launch
        self._started = registry.settings  # what is fixed is as it was then
        self._turn = asyncio.Lock()

    async def __call__(self, settings: Settings) -> None:
        """Until they hold. New backends are asked who they are first, so that no model is missing in between."""
        async with self._turn:
            await self._adopt(settings)
            for line in fixed(self._started, settings):
                log.warning("%s", line)
            await asyncio.gather(*(one.reload() for one in self._launched))
            await self._launch(settings)

    async def _adopt(self, settings: Settings) -> None:
        registry = self._registry
        planned = registry.planned(settings)
        new = [backend for name, backend in planned.items() if registry.backends.get(name) is not backend]
        if new:
            looks = [asyncio.create_task(self._health.look(backend)) for backend in new]
            _, late = await asyncio.wait(looks, timeout=PATIENCE)
            for look in late:
                look.cancel()
        for backend in self.swap(settings, planned):
            self._health.forget(backend.name)
        for backend in new:
            self._health.watch(backend, asked=backend.state != "unknown")
        log.info(
            "the settings were read anew: %s", ", ".join(f"'{name}'" for name in registry.backends) or "no backends"
        )

    def swap(self, settings: Settings, planned: dict[str, Backend]) -> list[Backend]:
        """The settings, and the backends that `Registry.planned` made of them, in one step. Returns those that are no
        more."""
        for one in self._launched:
            one.make_room(settings.backends)
        gone = self._registry.adopt(settings, planned)
        for one in self._launched:
            one.refill()
        for endpoint in self._endpoints:
            endpoint.adopt(settings.defaults)
        return gone


def fixed(old: Settings, new: Settings) -> list[str]:
    """A line for each setting that has changed but can't while running."""
    lines = []
    for section, members in FIXED:
        before, after = getattr(old, section), getattr(new, section)
        pairs = [(f"{section}.{m}", getattr(before, m), getattr(after, m)) for m in members]
        for name, was, is_now in pairs or [(section, before, after)]:
            if was != is_now:
                lines.append(f"{name}: the change takes effect at the next start")
    return lines
