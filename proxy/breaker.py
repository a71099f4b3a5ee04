"""The passive side of health: what requests themselves teach about a backend.

A strike counts for a while and then lapses, which needs no half-open state: after the time a backend is simply tried
again. Only a backend that couldn't be reached or broke off earns one; a 4xx is the client's, a client that left is
nobody's, and slowness is no crime. The clock is the caller's.
Beside the strikes it keeps the one number in which probes and requests meet: an answer starts the count of failed
probes again.
"""

from __future__ import annotations

from typing import Final

STRIKES: Final = 3
LAPSE: Final = 10.0  # seconds


class Breaker:
    """Strikes of one backend."""

    __slots__ = ("_strikes", "failures")

    def __init__(self) -> None:
        self._strikes: list[float] = []
        self.failures = 0  # probes in a row that failed, with no request answered in between

    def strike(self, now: float) -> None:
        self._strikes = [*(s for s in self._strikes if now - s < LAPSE), now][-STRIKES:]

    def clear(self) -> None:
        """It answered."""
        self.failures = 0
        if self._strikes:
            self._strikes = []

    def open(self, now: float) -> bool:
        """Should other replicas be preferred?"""
        return len(self._strikes) >= STRIKES and now - self._strikes[0] < LAPSE
