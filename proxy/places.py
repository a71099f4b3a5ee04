"""The places at one backend: how many requests it has, and the line before it where only so many may be there.

`Places` is what a backend asks of them. `OwnPlaces` are those of a gateway of one process, a counter and a queue; those
that several processes share are in `workers/places`. Not here: what the limits are, and what a client is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class Full(Exception):
    """So many are waiting already that no more may."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} are waiting")
        self.waiting = waiting


class Places(Protocol):
    """First come, first served. A `limit` of None is none. One thread."""

    held: int  # by this process

    @property
    def total(self) -> int:
        """Held by all processes."""

    def take(self, limit: int | None) -> bool:
        """A place at once, if one is free and nobody waits for it. Whoever gets one must give it back."""

    async def wait(self, limit: int, most: int) -> None:
        """Until there is a place, which is taken then. Raises `Full` where `most` are waiting."""

    def give_back(self, limit: int | None) -> None:
        """The next in line gets it."""


class OwnPlaces:
    """`Places` of one process."""

    __slots__ = ("held", "queue")

    def __init__(self) -> None:
        self.held = 0
        self.queue: deque[asyncio.Future[None]] = deque()

    @property
    def total(self) -> int:
        return self.held

    def take(self, limit: int | None) -> bool:
        if limit is None or (self.held < limit and not self.queue):
            self.held += 1
            return True
        return False

    async def wait(self, limit: int, most: int) -> None:
        if len(self.queue) >= most:
            raise Full(len(self.queue))
        place = asyncio.get_running_loop().create_future()
        self.queue.append(place)
        try:
            await place  # `give_back` has counted us then
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # the place was given in the same turn: pass it on
                self.give_back(limit)
            elif place in self.queue:  # `give_back` in the same turn has thrown it out already
                self.queue.remove(place)
            raise

    def give_back(self, limit: int | None) -> None:
        self.held -= 1
        while self.queue:
            place = self.queue.popleft()
            if not place.done():
                self.held += 1
                place.set_result(None)
                return
