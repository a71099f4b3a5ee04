"""The signals that end the parent, heard from before its loop begins until it has ended."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Heard:
    """The signals that end it. `then` is called with each, in the loop, from when it is set."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.then: Callable[[int], object] = lambda _: None


@contextmanager
def listening() -> Iterator[Heard]:
    """For the time inside; then whoever listened before does again."""
    heard = Heard()

    def note(number: int, _frame: FrameType | None) -> None:
        heard.got.append(number)
        heard.then(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
