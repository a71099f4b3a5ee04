"""One timer for many things that want a look now and then, in place of one for each.

A leaf. Not here: what a look finds (the idle client of `client_connection`, the silent stream of `relay`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Sweep:
    """Calls each of its looks every `interval` seconds, the first time within one; a timer runs only while there are
    any. No look may block or raise."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._looks: set[Callable[[], None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, look: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Until `discard`, which whoever adds it owes."""
        self._looks.add(look)
        if self._timer is None:
            self._timer = loop.call_later(self._interval, self._sweep, loop)

    def discard(self, look: Callable[[], None]) -> None:
        self._looks.discard(look)
        if not self._looks and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval, self._sweep, loop)
        for look in list(self._looks):
            if look in self._looks:  # a look before it may have ended it
                look()
