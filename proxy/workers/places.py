"""A backend's places, shared by all workers: the limit and the queue hold over them together, first come first served.

What is taken is the sum over the workers' own cells, so there is nothing to lose: a dead worker's cells are struck out.
Who waits has a ticket; each worker shows that of its first. Whoever gives a place back wakes the worker whose ticket
is the lowest, and that one looks for itself. Without a limit a request costs two writes into memory, with one a lock
(two system calls, 3 µs) besides.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from proxy.places import Full
from proxy.workers.table import Bells, Row


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    place: asyncio.Future[None]
    ticket: int
    limit: int


class SharedPlaces:
    """`places.Places` of one worker. Its owner calls `serve` when its bell rings, and now and then: a worker that was
    woken may have died."""

    __slots__ = ("_bells", "_me", "held", "queue", "row")

    def __init__(self, row: Row, bells: Bells, me: int) -> None:
        self.row = row
        self.held = 0
        self.queue: deque[_Waiter] = deque()
        self._bells = bells
        self._me = me

    @property
    def total(self) -> int:
        return sum(self.row.held)

    def take(self, limit: int | None) -> bool:
        if limit is None:
            self._hold(1)
            return True
        with self.row.turn:
            return self._take(limit)

    async def wait(self, limit: int, most: int) -> None:
        row, me = self.row, self._me
        with row.turn:
            if self._take(limit):  # it became free since it was asked for
                return
            waiting = sum(row.waiting)
            if waiting >= most:
                raise Full(waiting)
            row.ticket[0] += 1
            waiter = _Waiter(asyncio.get_running_loop().create_future(), row.ticket[0], limit)
            self.queue.append(waiter)
            self._show()
        self.serve()  # whoever gave a place back meanwhile has not seen that somebody waits
        try:
            await waiter.place
        except asyncio.CancelledError:
            if waiter in self.queue:
                with row.turn:
                    self.queue.remove(waiter)
                    self._show()
                    heir = self._first()
                if heir is not None and heir != me:
                    self._bells.ring(heir)
            elif not waiter.place.cancelled():  # the place was given in the same turn: pass it on
                self.give_back(limit)
            raise

    def give_back(self, limit: int | None) -> None:
        self._hold(-1)  # before the look at who waits; who comes to wait says so before the look at what is held
        heir = self._first() if any(self.row.heads) else None
        if heir == self._me:
            self.serve()
        elif heir is not None:
            self._bells.ring(heir)

    def serve(self) -> None:
        """Give what is free to those of us whose turn it is."""
        if not self.queue:
            return
        row = self.row
        with row.turn:
            while self.queue:
                waiter = self.queue[0]
                if waiter.place.done():  # given up in this turn of the loop
                    self.queue.popleft()
                elif self._first() == self._me and sum(row.held) < waiter.limit:
                    self.queue.popleft()
                    self._hold(1)
                    waiter.place.set_result(None)
                else:
                    break
                self._show()
            heir = self._first()
        if heir is not None and heir != self._me:
            self._bells.ring(heir)

    # -- inside ------------------------------------------------------------------------------------------------

    def _take(self, limit: int) -> bool:
        """In the row's turn only."""
        if any(self.row.heads) or sum(self.row.held) >= limit:
            return False
        self._hold(1)
        return True

    def _hold(self, more: int) -> None:
        self.held += more
        self.row.held[self._me] = self.held

    def _show(self) -> None:
        """Tell the others how many of us wait, and since when. In the row's turn only."""
        self.row.waiting[self._me] = len(self.queue)
        self.row.heads[self._me] = self.queue[0].ticket if self.queue else 0

    def _first(self) -> int | None:
        """The process in which somebody has waited longest."""
        waiting = [(ticket, process) for process, ticket in enumerate(self.row.heads) if ticket]
        return min(waiting)[1] if waiting else None
