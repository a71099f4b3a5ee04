"""How one engine is at the moment, and how that is shown (docs/launcher-api.md, "A row").

Changed by the engine's task alone. It moves by the table in `lifecycle`; no I/O but a look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from launchers import start
from launchers.lifecycle import STABLE, Event, State, after
from launchers.memory import Device
from launchers.process import Running
from launchers.spec import EngineSpec
from launchers.ticket import Tickets

_PHASES: Final[Mapping[State, str]] = {
    "stopped": "",
    "starting": "starting",
    "ready": "",
    "stopping": "stopping",
    "backoff": "failed",
    "fatal": "given up",
}


class Condition:
    """State, phase, and what went wrong."""

    def __init__(self) -> None:
        self.state: State = "stopped"
        self.phase = ""
        self.progress: float | None = None
        self.failures = 0  # in a row
        self.error: str | None = None
        self._since = time.time()
        self._entered = time.monotonic()  # the same moment, on the clock that only goes forward

    def move(self, event: Event) -> None:
        self.state = after(self.state, event)
        self._enter()

    def break_down(self, error: str) -> None:
        """Whatever the state: given up, since the launcher itself went wrong."""
        self.state, self.error = "fatal", error
        self._enter()

    def say(self, phase: str, progress: float | None) -> bool:
        """True if that is news."""
        news = (phase, progress) != (self.phase, self.progress)
        self.phase, self.progress = phase, progress
        return news

    def forgive(self) -> None:
        """Forget earlier failures, where it has been well for long enough."""
        if time.monotonic() - self._entered > STABLE:
            self.failures = 0

    def ready_for(self) -> float:
        """Seconds since it became ready; 0 where it isn't."""
        return time.monotonic() - self._entered if self.state == "ready" else 0.0

    def unchanged_for(self) -> float:
        """Seconds in this state."""
        return time.monotonic() - self._entered

    def idle_for(self, tickets: Tickets) -> float | None:
        """Seconds without a lease; None while there is one, or nothing to lease."""
        idle = self.state == "ready" and not tickets.leases
        return time.monotonic() - max(tickets.idle_since, self._entered) if idle else None

    def row(
        self, spec: EngineSpec, running: Running | None, tickets: Tickets, claim: Mapping[Device, int] | None
    ) -> dict[str, Any]:
        """What the control API shows. `running`: its process, also while it sleeps."""
        return {
            "name": spec.name,
            "model": spec.public,
            "upstream": start.name_upstream(spec),
            "kind": spec.kind,
            "state": self.state,
            "phase": "asleep" if self.state == "stopped" and running is not None else self.phase,
            "progress": self.progress,
            "since": self._since,
            "base_url": start.shown_url(running.record) if running is not None else None,
            "api_key": spec.api_key,
            "pid": running.record.engine_pid if running is not None else None,
            "gpus": list(spec.gpus),
            "memory": dict(claim or {}),
            "pinned": spec.pin,
            "start": spec.start,
            "ttl": spec.ttl,
            "leases": tickets.leases,
            "waiting": tickets.waiting,
            "idle": self.idle_for(tickets),
            "failures": self.failures,
            "error": self.error,
        }

    def _enter(self) -> None:
        self.phase, self.progress = _PHASES[self.state], None
        self._since, self._entered = time.time(), time.monotonic()
