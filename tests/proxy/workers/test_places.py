"""Places and strikes that several processes share: here several tables over the same memory, in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from proxy.breaker import LAPSE, STRIKES
from proxy.engine_answers import Probe
from proxy.errors import ApiError
from proxy.pool import Backend, EngineState
from proxy.settings import BackendSettings
from proxy.workers import sharing
from proxy.workers.sharing import Sharing
from proxy.workers.table import ROWS, Bells, Table, new_bells, new_table

WORKERS = 2
DOWN = Probe("down", "vllm", detail="refused")


class Crew:
    """Two workers and their parent; `hears` is what a worker's loop does when its bell rings."""

    def __init__(self) -> None:
        self.parent = new_table(WORKERS + 1)
        self.bells: Bells = new_bells(WORKERS)
        tables = [*(Table(self.parent.fd, WORKERS + 1, me) for me in range(WORKERS)), self.parent]
        self.sides = [Sharing(table, self.bells) for table in tables]

    def backends(self, name: str = "b", **how: int) -> list[Backend]:
        """The same one in each process, the parent last."""
        made = [Backend(name, BackendSettings(kind="vllm", base_url="http://10.0.0.1:1", **how)) for _ in self.sides]
        for side, one in zip(self.sides, made, strict=True):
            side.keep([one])
        return made

    async def hears(self, worker: int) -> None:
        self.bells.heard(worker)
        self.sides[worker].serve()
        await asyncio.sleep(0)


@pytest.fixture
def crew() -> Iterator[Crew]:
    one = Crew()
    yield one
    for fd in (one.parent.fd, *(fd for pair in one.bells.pairs for fd in pair)):
        os.close(fd)


async def entering(backend: Backend) -> asyncio.Task[None]:
    """A request that has got as far as it can."""
    task = asyncio.create_task(backend.enter())
    await asyncio.sleep(0)
    return task


# -- limits ---------------------------------------------------------------------------------------------------------


async def test_one_limit_and_one_line(crew: Crew) -> None:
    a, b, parent = crew.backends(max_in_flight=2, max_queue=2)
    await a.enter()
    await b.enter()
    first, second = await entering(b), await entering(a)
    assert (a.in_flight, b.in_flight, parent.in_flight) == (2, 2, 2)
    with pytest.raises(ApiError, match="2 requests under way and 2 waiting"):
        await b.enter()

    a.leave()
    await crew.hears(0)  # it isn't its turn
    assert not second.done()
    await crew.hears(1)
    assert first.done()
    b.leave()
    await crew.hears(0)
    assert second.done()
    assert parent.in_flight == 2


async def test_nobody_overtakes_who_waits_elsewhere(crew: Crew) -> None:
    a, b, _ = crew.backends(max_in_flight=1)
    await a.enter()
    waiting = await entering(b)
    a.leave()
    late = await entering(a)
    assert not late.done()

    await crew.hears(1)
    assert waiting.done()
    b.leave()
    await crew.hears(0)
    assert late.done()


@pytest.mark.parametrize("given", [False, True], ids=["while it waits", "as it gets its place"])
async def test_who_gives_up_holds_nobody_up(crew: Crew, given: bool) -> None:
    a, b, parent = crew.backends(max_in_flight=1)
    await a.enter()
    leaver, next_one = await entering(b), await entering(a)
    if given:
        a.leave()
        crew.bells.heard(1)
        crew.sides[1].serve()
        assert b.in_flight == 1
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    if not given:
        a.leave()
    await crew.hears(0)

    assert next_one.done()
    assert parent.in_flight == 1


async def test_a_dead_worker_holds_nothing(crew: Crew) -> None:
    a, b, parent = crew.backends(max_in_flight=2, max_queue=2)
    await a.enter()
    await a.enter()
    await entering(a)
    mine = await entering(b)
    crew.parent.strike_out(0)
    crew.bells.ring_all()
    await crew.hears(1)

    assert mine.done()
    assert parent.in_flight == 1


async def test_without_a_limit_all_are_counted(crew: Crew) -> None:
    a, b, parent = crew.backends()
    await asyncio.gather(a.enter(), a.enter(), b.enter())
    a.leave()

    assert (a.in_flight, b.in_flight, parent.in_flight) == (2, 2, 2)
    assert (a.places.held, b.places.held) == (1, 1)


# -- what requests and probes teach ---------------------------------------------------------------------------------


def test_strikes_are_everybodys(crew: Crew) -> None:
    a, b, parent = crew.backends()
    for n in range(STRIKES):
        assert not b.breaker.open(100.0)
        (a, b, a)[n].breaker.strike(100.0 + n)
    assert all(one.breaker.open(103.0) for one in (a, b, parent))
    assert not b.breaker.open(100.0 + LAPSE)
    b.answered()
    assert not any(one.breaker.open(103.0) for one in (a, b, parent))


def test_an_answered_request_starts_the_parents_count_again(crew: Crew) -> None:
    a, _, parent = crew.backends()
    parent.state = "ready"
    parent.learn(DOWN, down_after=3)
    parent.learn(DOWN, down_after=3)
    a.answered()
    parent.learn(DOWN, down_after=3)
    assert (parent.state, parent.failures) == ("ready", 1)


def test_each_process_counts_its_own_probes_of_a_launched_engine(crew: Crew) -> None:
    made = [Backend("e", BackendSettings(base_url=f"http://10.0.0.{n}:1")) for n in range(3)]
    for side, one in zip(crew.sides, made, strict=True):
        one.engine = EngineState("here", "e", "ready")
        one.state = "ready"
        side.keep([one])
        one.learn(DOWN, down_after=2)
    assert [one.state for one in made] == ["ready"] * 3
    made[0].places.take(None)
    assert made[1].in_flight == 1  # wherever each thinks that it is


# -- rows -----------------------------------------------------------------------------------------------------------


def test_a_row_is_free_again_when_nobody_has_its_backend(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    old = crew.backends("old")
    old[0].places.take(None)
    monkeypatch.setattr(sharing, "KEPT", -1.0)
    for side in crew.sides:
        side.keep([])
    assert crew.parent.claim("x") is not None
    rows = [crew.parent.claim(str(n)) for n in range(ROWS - 2)]
    assert None not in rows
    assert crew.parent.claim("one more") is None  # the first still has a request in worker 0
    old[0].places.give_back(None)
    crew.sides[0].keep([])
    crew.sides[0].keep([])
    row = crew.parent.claim("one more")
    assert row is not None
    assert list(row.held) == [0, 0, 0]


def test_a_backend_too_many_counts_for_itself(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.workers.table.ROWS", 0)
    a, b, _ = crew.backends(max_in_flight=1)
    assert a.places.take(1)
    assert b.places.take(1)
