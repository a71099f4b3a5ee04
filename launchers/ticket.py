"""What those hold who want an engine: first a place among those who wait for it, then a lease on it.

In memory; the engine's task writes, the control API's answers read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from launchers.mailbox import Event, Mailbox

LAST: Final = frozenset(("failed", "gone"))  # events after which nothing follows


class Ticket:
    """One `ensure`, or one `start` (which becomes no lease). Read it with `take`; give it back to its engine."""

    def __init__(self, *, lease: bool) -> None:
        self.held = False  # it is a lease
        self.over = False
        self._lease = lease  # it is to become one
        self._mailbox = Mailbox()

    @property
    def waits(self) -> bool:
        return not self.held and not self.over

    @property
    def told(self) -> bool:
        """It is over, and all of that was read."""
        return self.over and self._mailbox.is_empty

    async def take(self, patience: float) -> list[Event]:
        """What there is to tell, waiting for it; empty after `patience` seconds."""
        return await self._mailbox.take(patience)

    def phase(self, state: str, phase: str, progress: float | None) -> None:
        self._tell("phase", state=state, phase=phase, progress=progress)

    def ready(self, row: Mapping[str, Any]) -> None:
        self.held = self._lease
        self.over = not self._lease
        self._tell("ready", engine=row)

    def failed(self, code: str, message: str) -> None:
        self._tell("failed", code=code, message=message)

    def please_yield(self, reason: str) -> None:
        self._tell("yield", reason=reason)

    def gone(self, reason: str) -> None:
        self._tell("gone", reason=reason)

    def _tell(self, event: str, **members: Any) -> None:
        if event in LAST:
            self.held, self.over = False, True
        self._mailbox.put(event, {"event": event, **members})


class Tickets:
    """All tickets of one engine."""

    def __init__(self) -> None:
        self._all: set[Ticket] = set()
        self.idle_since = time.monotonic()  # of no meaning while there are leases

    @property
    def leases(self) -> int:
        return sum(ticket.held for ticket in self._all)

    @property
    def waiting(self) -> int:
        return sum(ticket.waits for ticket in self._all)

    def add(self, ticket: Ticket) -> None:
        self._all.add(ticket)

    def release(self, ticket: Ticket) -> None:
        self._all.discard(ticket)
        if ticket.held and not self.leases:
            self.idle_since = time.monotonic()

    def phase(self, state: str, phase: str, progress: float | None) -> None:
        """Tell all who wait how far it is."""
        for ticket in self._waiting():
            ticket.phase(state, phase, progress)

    def grant(self, row: Mapping[str, Any]) -> None:
        """All who wait may use it."""
        for ticket in self._waiting():
            ticket.ready(row)

    def refuse(self, code: str, message: str) -> None:
        """All who wait do so in vain."""
        for ticket in self._waiting():
            ticket.failed(code, message)

    def ask_back(self, reason: str) -> None:
        """Ask for all leases."""
        for ticket in self._all:
            if ticket.held:
                ticket.please_yield(reason)

    def revoke(self, reason: str) -> None:
        """The engine is gone, and every lease with it."""
        for ticket in self._all:
            if ticket.held:
                ticket.gone(reason)

    def _waiting(self) -> list[Ticket]:
        return [ticket for ticket in self._all if ticket.waits]
