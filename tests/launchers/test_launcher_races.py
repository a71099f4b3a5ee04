"""A supervisor and its engines in this process, at moments that can't be met from outside: two things at once, bugs,
and what is left when all has ended."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from launchers.control import Control
from launchers.engine import ManagedEngine
from launchers.spec import SpecError, parse
from launchers.supervisor import Supervisor
from launchers.ticket import Ticket
from tests.engines.process import AGES, PATIENCE
from tests.launchers.support import Row, alive, spec

LAUNCHER = {
    "listen": None, "api_key": None, "bind": "127.0.0.1", "orphans": "kill", "linger": 300.0, "watch": False,
    "budget": {"0": 100}, "auto_install": False, "file": None,
}  # fmt: skip


def document(*engines: Row) -> bytes:
    return json.dumps({"launcher": LAUNCHER, "engines": engines}).encode()


@asynccontextmanager
async def supervising(folder: Path, *engines: Row) -> AsyncIterator[Supervisor]:
    """One that has begun; closed at the end, if that wasn't done, and then nothing of it may be left."""
    tasks, handles = asyncio.all_tasks(), len(os.listdir("/proc/self/fd"))
    file = folder / "document.json"
    file.write_bytes(document(*engines))
    supervisor = Supervisor(folder / "s", ["cat", str(file)], parse(file.read_bytes()))
    await supervisor.begin()
    try:
        yield supervisor
    finally:
        await supervisor.close(drain=0)
        await until(lambda: asyncio.all_tasks() <= tasks, "all tasks have ended")
        assert len(os.listdir("/proc/self/fd")) <= handles


async def until(condition: Callable[[], object], what: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)
    assert condition(), what


async def outcome(ticket: Ticket) -> Row:
    """Its `ready` or `failed`."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for event in await ticket.take(PATIENCE):
                if event["event"] in ("ready", "failed"):
                    return dict(event)


def engine_of(supervisor: Supervisor, name: str = "a") -> ManagedEngine:
    engine = supervisor.engine(name)
    assert engine is not None
    return engine


async def test_an_engine_that_was_closed_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with supervising(tmp_path, spec("a")) as supervisor, asyncio.timeout(PATIENCE):
        engine = engine_of(supervisor)
        (tmp_path / "document.json").write_bytes(document())
        await supervisor.reload()

        assert (await outcome(engine.ensure()))["code"] == "engine_stopped"  # they found it before it was taken out
        assert (await outcome(engine.ensure(lease=False)))["code"] == "engine_stopped"
        await engine.stop("somebody asked for it")
        await engine.evict("its memory is wanted")
        follower = supervisor.board.follow()
        engine.release(engine.ensure())
        assert await follower.take(0.01) == []  # it is not there again


async def test_a_last_event_is_read_by_whoever_is_slow(tmp_path: Path) -> None:
    async with supervising(tmp_path, spec("a", "--fail", "no", restarts=0)) as supervisor:
        control = Control(supervisor, "mine", "1", lambda leave: None, for_gateway=False)
        answer = control.ensure({"path_params": {"name": "a"}})
        lines = [json.loads(await anext(answer))]
        await until(lambda: engine_of(supervisor).state == "fatal", "it is given up")
        lines += [json.loads(line) async for line in answer]
        assert [line["event"] for line in lines][-1] == "failed"


async def test_whoever_comes_at_the_moment_of_giving_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Ticket] = []
    move = ManagedEngine._move

    def moving(engine: ManagedEngine, event: Any) -> None:
        if event in ("failed", "give_up"):  # its start is over, and its state tells nobody yet
            late.append(engine.ensure())
        move(engine, event)

    monkeypatch.setattr(ManagedEngine, "_move", moving)
    async with supervising(tmp_path, spec("a", "--fail", "no", restarts=0)) as supervisor:
        assert (await outcome(engine_of(supervisor).ensure()))["code"] == "engine_failed"
        assert [(await outcome(ticket))["code"] for ticket in late] == ["engine_failed"] * 2


async def test_a_bug_ends_one_engine_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervising(tmp_path, spec("a", device="cpu"), spec("b", device="cpu")) as supervisor:
        a, b = engine_of(supervisor, "a"), engine_of(supervisor, "b")
        other = await outcome(b.ensure())
        learn, learned = supervisor.room.learn, []

        async def broken(engine: ManagedEngine) -> None:
            learned.append(engine)
            if engine is a and learned.count(a) == 1:
                raise RuntimeError("a bug")
            await learn(engine)

        monkeypatch.setattr(supervisor.room, "learn", broken)
        ticket = a.ensure()
        pid = (await outcome(ticket))["engine"]["pid"]
        await until(lambda: a.state == "fatal", "its task has met the bug")
        assert not ticket.held
        assert not alive(pid)
        assert "met a bug in the launcher" in (await outcome(a.ensure()))["message"]
        assert alive(other["engine"]["pid"])
        assert (await outcome(a.ensure(lease=False)))["event"] == "ready"  # a person may try again


async def test_two_bugs_keep_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async with supervising(tmp_path, spec("a")) as supervisor, asyncio.timeout(PATIENCE):
        engine = engine_of(supervisor)
        with monkeypatch.context() as patch:
            patch.setattr(supervisor.room, "admit", broken)
            patch.setattr(supervisor.room, "vacate", broken)  # on the way out of the first
            assert (await outcome(engine.ensure()))["code"] == "engine_stopped"
        assert "the launcher met a bug" in (await outcome(engine.ensure()))["message"]
        await engine.stop("somebody asked for it")


async def test_a_disk_that_takes_no_notes_costs_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with supervising(tmp_path, spec("a")) as supervisor:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(supervisor._ledger, "write", full)
        monkeypatch.setattr(supervisor._ledger, "remove", full)
        monkeypatch.setattr(supervisor.room._needs, "learn", full)
        engine = engine_of(supervisor)
        pid = (await outcome(engine.ensure()))["engine"]["pid"]
        await until(lambda: engine.tickets.leases == 1, "it is leased")
        assert alive(pid)
        await engine.stop("somebody asked for it", drain=0)
        assert engine.condition.error is None


async def test_nothing_is_read_anew_by_one_that_ends(tmp_path: Path) -> None:
    async with supervising(tmp_path, spec("a")) as supervisor:
        reloading = asyncio.create_task(supervisor.reload())
        (tmp_path / "document.json").write_bytes(document(spec("a"), spec("b", start="eager")))
        await asyncio.sleep(0)
        await supervisor.close(drain=0)
        with pytest.raises(SpecError, match="The launcher is ending"):
            await reloading
        assert supervisor.engine("b") is None


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_asked_in_whatever_order_it_ends_well(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    engines = [spec(name, gpus=["0"], memory=60, restarts=100, abandon=name == "c") for name in "abc"]
    async with supervising(tmp_path, *engines) as supervisor:

        async def somebody() -> None:
            for _ in range(12):
                engine = engine_of(supervisor, dice.choice("abc"))
                match dice.choice(("ensure", "ensure", "glance", "stop", "kill", "evict")):
                    case "ensure":
                        ticket = engine.ensure()
                        await anyhow(ticket)
                        engine.release(ticket)
                    case "glance":
                        ticket = engine.ensure()
                        await asyncio.sleep(dice.random() / 20)
                        engine.release(ticket)
                    case "stop":
                        await engine.stop("somebody asked for it", drain=0.05)
                    case "kill":
                        with suppress(TypeError, ProcessLookupError):
                            os.kill(engine.row()["pid"], signal.SIGKILL)
                    case "evict":
                        await engine.evict("its memory is wanted")

        async def anyhow(ticket: Ticket) -> None:
            """Until it was told, and not for long; then it is given back at once when that is asked for."""
            with suppress(TimeoutError):
                async with asyncio.timeout(0.4):
                    while not (ticket.over or ticket.held):
                        await ticket.take(0.4)

        async with asyncio.timeout(AGES):
            await asyncio.gather(*(somebody() for _ in range(5)))
            for name in "abc":
                engine = engine_of(supervisor, name)
                assert (engine.tickets.leases, engine.tickets.waiting) == (0, 0)
                if engine.state == "fatal":
                    await engine.stop("to begin anew")
                ticket = engine.ensure()
                row = (await outcome(ticket))["engine"]
                assert alive(row["pid"])
                engine.release(ticket)
