"""One timer for many looks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from proxy.sweep import Sweep


class Clock:
    """A loop whose timers run when they are told to."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> Any:
        timer = (delay, callback, args)
        self.timers.append(timer)

        class Handle:
            def cancel(_) -> None:
                self.timers.remove(timer)

        return Handle()

    def run(self) -> None:
        ((_, callback, args),) = self.timers
        self.timers.clear()
        callback(*args)


class One:
    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.looks = 0
        self._then = then

    def look(self) -> None:
        self.looks += 1
        self._then()


def loop(clock: Clock) -> asyncio.AbstractEventLoop:
    return cast(asyncio.AbstractEventLoop, clock)


def test_many_have_one_timer_and_none_has_none() -> None:
    clock, sweep = Clock(), Sweep(0.25)
    one, two = One(), One()
    sweep.add(one.look, loop(clock))
    sweep.add(two.look, loop(clock))
    assert [delay for delay, *_ in clock.timers] == [0.25]
    clock.run()
    clock.run()
    assert (one.looks, two.looks) == (2, 2)
    sweep.discard(one.look)
    sweep.discard(one.look)
    clock.run()
    assert (one.looks, two.looks) == (2, 3)
    sweep.discard(two.look)
    assert not clock.timers
    sweep.add(one.look, loop(clock))
    clock.run()
    assert (one.looks, two.looks) == (3, 3)


def test_a_look_may_end_its_own_and_others() -> None:
    clock, sweep = Clock(), Sweep(1.0)
    pair: list[One] = []

    def end() -> None:
        for one in pair:
            sweep.discard(one.look)

    pair += [One(end), One(end)]
    for one in pair:
        sweep.add(one.look, loop(clock))
    clock.run()
    assert sum(one.looks for one in pair) == 1
    assert not clock.timers
