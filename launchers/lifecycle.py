"""The states of a launched engine and what leads from one to another: a table, and nothing else. No I/O, no clock.

    stopped ──start──▶ starting ──ready──▶ ready ──stop──▶ stopping ──stopped──▶ stopped
                 ▲        │  │ failed        │ failed
                 │        │  ▼               ▼
                 │ retry  │ backoff ◀────────┘
                 └────────┼──┘ │ give_up
                          ▼    ▼
                        stopping / fatal ──start──▶ starting

`supervisor` and `engine` act on it; `control` shows it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal

State = Literal["stopped", "starting", "ready", "stopping", "backoff", "fatal"]
Event = Literal["start", "ready", "stop", "stopped", "failed", "retry", "give_up", "adopt"]

TRANSITIONS: Final = MappingProxyType(
    {
        ("stopped", "start"): "starting",
        ("stopped", "adopt"): "ready",  # found alive: another launcher started it
        ("stopped", "stop"): "stopping",  # asleep, and now to be ended
        ("starting", "ready"): "ready",
        ("starting", "failed"): "backoff",
        ("starting", "give_up"): "fatal",  # trying again can't help
        ("starting", "stop"): "stopping",
        ("ready", "stop"): "stopping",
        ("ready", "failed"): "backoff",
        ("stopping", "stopped"): "stopped",
        ("backoff", "retry"): "starting",
        ("backoff", "give_up"): "fatal",
        ("backoff", "stop"): "stopped",
        ("fatal", "start"): "starting",
        ("fatal", "stop"): "stopped",
    }
)

FIRST_DELAY: Final = 1.0  # seconds before the first try again; each further one waits twice as long
LONGEST_DELAY: Final = 60.0
STABLE: Final = 60.0  # seconds of being ready after which earlier failures are forgotten


class IllegalTransition(Exception):
    """A bug: nothing leads from that state by that event."""


def after(state: State, event: Event) -> State:
    """The next state. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[state, event]  # type: ignore[return-value]
    except KeyError:
        raise IllegalTransition(f"{event!r} in state {state!r}") from None


def delay(failures: int) -> float:
    """Seconds to wait after that many failures in a row (from 1)."""
    return min(FIRST_DELAY * 2.0 ** (failures - 1), LONGEST_DELAY)
