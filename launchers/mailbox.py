"""Events on their way to one reader of the control API. In memory, one loop; no I/O.

A newer event replaces an unread one under the same key, so a reader that is slow, or never reads, costs no memory and
always learns the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

Event = Mapping[str, Any]


class Mailbox:
    """Written by whoever has something to tell, read by one task."""

    def __init__(self) -> None:
        self._unread: dict[str, Event] = {}
        self._filled = asyncio.Event()

    def put(self, key: str, event: Event) -> None:
        """Never waits."""
        self._unread.pop(key, None)  # the order is that of the latest
        self._unread[key] = event
        self._filled.set()

    @property
    def is_empty(self) -> bool:
        return not self._unread

    def wake(self) -> None:
        """Let its reader come back, if only with nothing."""
        self._filled.set()

    async def take(self, patience: float) -> list[Event]:
        """All that is unread, waiting for the first of it; empty after `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._filled.wait()
        except TimeoutError:
            return []
        self._filled.clear()
        unread, self._unread = list(self._unread.values()), {}
        return unread


class Board:
    """What changed, for everybody who follows it."""

    def __init__(self) -> None:
        self._followers: set[Mailbox] = set()
        self._nobody = asyncio.Event()  # follows
        self._nobody.set()
        self.came = 0  # how many have followed so far
        self.closed = False

    def close(self) -> None:
        """Nothing follows. Readers come back with what is unread, and are to leave."""
        self.closed = True
        for follower in self._followers:
            follower.wake()

    @property
    def followers(self) -> int:
        return len(self._followers)

    async def left(self, patience: float) -> int:
        """How many follow, once nobody does or after `patience` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._nobody.wait()
        return len(self._followers)

    def follow(self) -> Mailbox:
        """A mailbox that gets everything from now on, until `leave`."""
        mailbox = Mailbox()
        self._followers.add(mailbox)
        self.came += 1
        self._nobody.clear()
        return mailbox

    def leave(self, mailbox: Mailbox) -> None:
        self._followers.discard(mailbox)
        if not self._followers:
            self._nobody.set()

    def tell(self, key: str, event: Event) -> None:
        for follower in self._followers:
            follower.put(key, event)
