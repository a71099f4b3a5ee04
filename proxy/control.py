"""The control plane: what is known of the backends, and everything that finds it out.

A gateway of one process has it beside the data plane. Of several processes the parent has it whole, and each worker a
part: workers follow the launchers, whose leases are a process's own, and are told the rest (`workers`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from proxy.ask import Asker
from proxy.health import HealthLoop
from proxy.launched import Launch, Launched, Revive
from proxy.launcher_client import Address, LauncherError
from proxy.local import LocalDiscovery
from proxy.registry import Registry, Sharing
from proxy.settings import Settings

log = logging.getLogger("illm")

FIRST_ROUND: Final = 0.6  # seconds that the start waits for the first findings; later ones arrive while serving


class Control:
    """Nothing runs before `start`. Whoever calls that calls `close`. `looks`: ask configured backends, and look for
    local ones; False where another process does. `launch`: see `begin_launcher`; None: there can be no launcher."""

    def __init__(
        self,
        settings: Settings,
        *,
        own_port: int,
        launchers: Sequence[Address],
        revive: Revive | None,
        launch: Launch | None = None,
        sharing: Sharing | None = None,
        looks: bool = True,
    ) -> None:
        self.registry = registry = Registry(settings, sharing)
        self._asker = Asker()
        self.health = health = HealthLoop(registry, self._asker)
        self.launched = [Launched(one, registry, health, revive if one.own else None) for one in launchers]
        self._launch = launch
        self._looks = looks
        local = settings.discovery.local
        if local is None:
            local = not (settings.backends or launchers)
        self._finder = (
            LocalDiscovery(registry, health, self._asker, own_port=own_port, demo=settings.demo)
            if looks and local
            else None
        )

    async def start(self) -> None:
        """Until the first findings are there, a second or two at most (more where a demo engine must be started)."""
        for one in self.launched:
            one.start()
        if self._looks:
            self.health.start()
        await asyncio.gather(*(one.first_round(FIRST_ROUND) for one in self.launched))
        if self._finder is not None:
            await self._finder.first_round()
            self._finder.start()
        if self._looks:
            await self.health.first_round(FIRST_ROUND)
        for one in self.launched:
            one.telling = True

    def follow(self, address: Address, revive: Revive | None = None) -> Launched:
        """One more launcher, from now on."""
        one = Launched(address, self.registry, self.health, revive)
        self.launched.append(one)
        one.telling = True
        one.start()
        return one

    async def begin_launcher(self, settings: Settings) -> None:
        """Where these settings have engines and there is no launcher for them yet: start it, and follow it."""
        if not settings.engines or self._launch is None or any(one.address.own for one in self.launched):
            return
        try:
            address, revive = await asyncio.to_thread(self._launch, settings)
        except LauncherError as exc:
            log.error("the engines can't be started: %s", exc)
            return
        await self.follow(address, revive).first_round(FIRST_ROUND)

    async def close(self) -> None:
        """When no request is under way."""
        if self._finder is not None:
            await self._finder.close()
        for one in self.launched:
            await one.close()
        await self.health.close()
        self._asker.close()
