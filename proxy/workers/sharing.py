"""What makes one process's backends the same as the other processes': shared places, shared strikes.

A strike that one worker counts, all know at once, since it is in memory that they share; so is the count of failed
probes, which the parent keeps and an answered request in any worker starts again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic
from typing import Final

from proxy.breaker import LAPSE, STRIKES, Breaker
from proxy.pool import Backend
from proxy.workers.places import SharedPlaces
from proxy.workers.table import Bells, Row, Table

log = logging.getLogger("illm")

KEPT: Final = 900.0  # seconds for which a row outlives its backend: a request may still be on its way to it

assert STRIKES == 3  # as many as a row has cells


class SharedBreaker(Breaker):
    """The strikes of all workers. `counts`: the failed probes are everybody's too, and not only this process's."""

    __slots__ = ("_counts", "_failures", "_row")

    def __init__(self, row: Row, *, counts: bool) -> None:
        self._row = row
        self._counts = counts
        self._failures = 0

    @property
    def failures(self) -> int:
        return self._row.failures[0] if self._counts else self._failures

    @failures.setter
    def failures(self, count: int) -> None:
        self._failures = count
        if self._counts and self._row.failures[0] != count:
            self._row.failures[0] = count

    def strike(self, now: float) -> None:
        with self._row.turn:
            cells = self._row.strikes
            cells[0], cells[1], cells[2] = cells[1], cells[2], now

    def clear(self) -> None:
        self.failures = 0
        if self._row.strikes[STRIKES - 1]:
            with self._row.turn:
                for at in range(STRIKES):
                    self._row.strikes[at] = 0.0

    def open(self, now: float) -> bool:
        first = self._row.strikes[0]
        return bool(first) and now - first < LAPSE


class Sharing:
    """Of one process; the registry tells it which backends there are."""

    def __init__(self, table: Table, bells: Bells) -> None:
        self.table = table
        self.bells = bells
        self._there: dict[str, SharedPlaces] = {}
        self._gone: dict[str, float] = {}  # those without a backend, and since when

    def keep(self, backends: Iterable[Backend]) -> None:
        """These there are, and no others. What is new must have nothing under way."""
        used = set()
        for backend in backends:
            if isinstance(backend.places, SharedPlaces):
                used.add(backend.places)
            elif (places := self._join(backend)) is not None:
                used.add(places)
        now = monotonic()
        self._gone = {name: self._gone.get(name, now) for name, places in self._there.items() if places not in used}
        for name, since in self._gone.items():
            if now - since > KEPT and not self._there[name].held:
                self.table.release(self._there.pop(name).row)

    def serve(self) -> None:
        """Give free places to those here who wait."""
        for places in self._there.values():
            places.serve()

    def _join(self, backend: Backend) -> SharedPlaces | None:
        name = _name(backend)
        places = self._there.get(name)
        if places is None:
            row = self.table.claim(name)
            if row is None:
                log.warning("too many backends: each worker counts the requests to '%s' by itself", backend.name)
                return None
            places = self._there[name] = SharedPlaces(row, self.bells, self.table.me)
        backend.places = places
        # A launched engine is probed by each process, which counts for itself.
        backend.breaker = SharedBreaker(places.row, counts=backend.engine is None)
        return places


def _name(backend: Backend) -> str:
    """The same in every process."""
    engine = backend.engine
    return f"{backend.name} {backend.settings.root}" if engine is None else f"{engine.launcher}/{engine.name}"
