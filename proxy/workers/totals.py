"""What all workers have counted, added up: a scrape of one is a scrape of all, and no counter ever goes back.

A worker tells its counters when it is asked and a few times a second, always as sums since its start. Those of one that
has ended are kept. One that doesn't answer in time counts with what it told last.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection
from typing import Final

from proxy import __version__
from proxy.metrics import Metrics
from proxy.registry import Registry
from proxy.status import gauges
from proxy.transport import Origin
from proxy.workers.member import Member

PATIENCE: Final = 4.0  # seconds that workers have for an answer; Prometheus waits for ten


class Totals:
    """The parent's. `members`: the workers that there are, a view that changes."""

    def __init__(self, registry: Registry, members: Collection[Member], started: float) -> None:
        self._registry = registry
        self._members = members
        self._started = started
        self._past = self._metrics()  # of workers that are no more
        self._numbers = itertools.count()

    def keep(self, member: Member) -> None:
        """It has ended."""
        self._past.add(member.ended())

    async def text(self) -> bytes:
        """The metrics of now, as Prometheus reads them. `PATIENCE` at most."""
        number = next(self._numbers)
        asked = [member.ask(number) for member in self._members if member.serving]
        if asked:
            await asyncio.wait(asked, timeout=PATIENCE)
        for member in self._members:
            member.asked.pop(number, None)
        return self._render()

    def _render(self) -> bytes:
        whole = self._metrics()
        for counted in (self._past.counted(), *(member.counted() for member in self._members)):
            whole.add(counted)

        def open_to(origin: Origin) -> int:
            return sum(member.connections.get(origin, 0) for member in self._members)

        return whole.render(gauges(self._registry, open_to))

    def _metrics(self) -> Metrics:
        return Metrics(version=__version__, started=self._started)
