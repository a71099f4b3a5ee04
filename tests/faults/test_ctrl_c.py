"""Ctrl-C while requests are under way: it says what it waits for; the second one ends it, and clients are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import CHAT_PATH, DONE, SSE, STREAM, client, errors, event
from tests.faults.test_drain import Process, alive, config, process
from tests.proxy.harness import PATIENCE, Got, Line, engine, until
from tests.proxy.workers.support import children, command, illm

WAITS = "Waiting for 1 request under way to finish, for up to 60 s. Ctrl-C again ends it now.\n"
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


async def endless(_: Got, line: Line) -> None:
    """Begins a stream and says no more."""
    await line.head(200, SSE)
    await line.chunk(event("one"))
    await line.closed.wait()


@contextlib.asynccontextmanager
async def told(gate: Process) -> AsyncIterator[list[str]]:
    """What it says from now on, line by line."""
    said: list[str] = []

    async def hear() -> None:
        assert gate.process.stderr is not None
        while line := await gate.process.stderr.readline():
            said.append(line.decode())

    hearing = asyncio.create_task(hear())
    try:
        yield said
    finally:
        async with asyncio.timeout(PATIENCE):
            await gate.process.wait()
            await hearing


def shut_down(got: bytes) -> None:
    """The stream ended as one that the gateway had no more time for."""
    assert [one["code"] for one in errors(got)] == ["backend_unavailable"]
    assert "shutting down" in errors(got)[0]["message"]
    assert got.endswith(DONE)


async def test_it_says_what_it_waits_for_and_the_second_ends_it(tmp_path: Path) -> None:
    async with (
        engine(endless) as upstream,
        process("--config", config(tmp_path, upstream.root, 60)) as gate,
        client(gate.url) as stream,
        told(gate) as said,
    ):
        await stream.send(CHAT_PATH, STREAM)
        await stream.answer()
        await stream.until(b"one")
        gate.process.send_signal(signal.SIGINT)
        await until(lambda: WAITS in said)
        assert gate.process.returncode is None
        gate.process.send_signal(signal.SIGINT)

        shut_down(await stream.rest())
        async with asyncio.timeout(PATIENCE):
            assert await gate.process.wait() == 0
    assert "Traceback" not in "".join(said)
    assert said.count(WAITS) == 1


async def test_a_client_that_does_not_read_holds_up_no_second_ctrl_c(tmp_path: Path) -> None:
    async def flood(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        while True:
            await line.chunk(event("x" * 60_000))

    async with (
        engine(flood) as upstream,
        process("--config", config(tmp_path, upstream.root, 60)) as gate,
        client(gate.url, receive_buffer=4096) as stream,
        told(gate) as said,
    ):
        await stream.send(CHAT_PATH, STREAM)
        await until(lambda: bool(upstream.got))
        gate.process.send_signal(signal.SIGTERM)
        await until(lambda: WAITS.replace(" again", "") in said)
        gate.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            assert await gate.process.wait() == 0
    assert "Traceback" not in "".join(said)


async def test_nothing_is_said_where_nothing_is_under_way(tmp_path: Path) -> None:
    async with (
        engine(endless) as upstream,
        process("--config", config(tmp_path, upstream.root, 60)) as gate,
        told(gate) as said,
    ):
        gate.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            assert await gate.process.wait() == 0
    assert "Waiting" not in "".join(said)


async def test_with_workers(tmp_path: Path) -> None:
    """Those of all of them are counted, and told."""
    async with engine(endless) as upstream:
        settings = {"backends": {"b": {"kind": "vllm", "base_url": upstream.root, "model": "m"}}}
        async with illm(tmp_path, settings) as gate, gate.clients() as clients:
            for one in clients:
                await one.send(CHAT_PATH, STREAM | {"model": "m"})
                await one.answer()
                await one.until(b"one")
            gate.process.send_signal(signal.SIGINT)
            says = r"Waiting for 2 requests under way to finish, for up to \d+ s. Ctrl-C again ends them now.\n"
            await until(lambda: re.search(says, "".join(gate.said)) is not None)
            gate.process.send_signal(signal.SIGINT)

            for one in clients:
                shut_down(await one.rest())
            assert await gate.ended() == 0


async def test_with_engines_of_its_own(tmp_path: Path) -> None:
    """They end too, however often Ctrl-C comes."""
    demo = [sys.executable, "-m", "launchers.demo", "--port", "{port}", "--model", "mine", "--delay-ms", "60000"]
    settings: dict[str, Any] = {
        "server": {"port": 0, "drain_timeout": 60},
        "discovery": {"local": False},
        "launcher": {"state": str(tmp_path / "s")},
        "engines": {"mine": {"kind": "command", "command": demo}},
    }
    file = Path(config(tmp_path, "http://unused", 60))
    settings["server"]["port"] = int(re.findall(r"port: (\d+)", file.read_text())[0])
    file.write_text(json.dumps(settings))
    async with process("--config", str(file)) as gate, client(gate.url) as stream, told(gate) as said:
        await stream.send(CHAT_PATH, STREAM | {"model": "mine"})
        await stream.answer()
        await stream.until(b"data:")
        launchers = [pid for pid in children(gate.process.pid) if b"launchers" in command(pid)]
        engines = [pid for one in launchers for pid in children(one)]
        assert launchers
        assert engines
        gate.process.send_signal(signal.SIGINT)
        await until(lambda: WAITS in said)
        gate.process.send_signal(signal.SIGINT)

        shut_down(await stream.rest())
        await until(lambda: any(line.startswith("Stopping the launcher") for line in said))
        gate.process.send_signal(signal.SIGINT)  # impatient: the engine ends nevertheless
        async with asyncio.timeout(PATIENCE):
            assert await gate.process.wait() == 0
        await until(lambda: not any(map(alive, [*launchers, *engines])))
    assert "Traceback" not in "".join(said)
