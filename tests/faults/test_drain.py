"""The end of a gateway, as a real process: SIGTERM lets answers finish, for so long; nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.engines.process import free_port
from tests.faults.support import CHAT, CHAT_PATH, DONE, REPLY, SSE, STREAM, Client, client, errors, event
from tests.proxy.harness import PATIENCE, Got, Line, calm, engine, one_backend, until

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A gateway's. `before`: what it said until it listened."""

    process: asyncio.subprocess.Process
    url: str
    before: str = ""

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> str:
        """Its last words, once it has ended by itself."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            words = (await self.process.stderr.read()).decode()
            code = await self.process.wait()
        assert code in (0, -signal.SIGTERM)
        return words

    async def closed(self) -> None:
        """Until nobody listens at its port any more."""
        where = urlsplit(self.url)

        def refused() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex((where.hostname, where.port)) != 0

        await until(refused)


@contextlib.asynccontextmanager
async def process(*arguments: str, code: str = "") -> AsyncIterator[Process]:
    """`illm serve`, after it has said where it listens. `code` runs before it in the same interpreter."""
    main = f"{code}\nimport sys, proxy.cli\nsys.exit(proxy.cli.main(sys.argv[1:]))"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ILLM_")}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", main, "serve", *arguments, cwd=ROOT, env=environ,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert running.stderr is not None
        said = ""
        async with asyncio.timeout(PATIENCE):
            while "is listening on " not in said:
                line = (await running.stderr.readline()).decode()
                assert line, f"the gateway ended: {said}"
                said = said + line
        yield Process(running, said.partition("is listening on ")[2].split()[0].removesuffix("/v1"), said)
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


def config(folder: Path, root: str, drain: float) -> str:
    port = free_port()
    settings = calm(one_backend(root) | {"server": {"port": port, "drain_timeout": drain}})
    path = folder / "illm.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


async def test_answers_under_way_finish(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def handler(got: Got, line: Line) -> None:
        if got.json.get("stream"):
            await line.head(200, SSE)
            await line.chunk(event("one"))
            await go.wait()
            await line.chunk(event("two", finish="stop") + DONE)
            await line.end()
        else:
            await go.wait()
            await line.reply(200, REPLY)

    async with (
        engine(handler) as upstream,
        process("--config", config(tmp_path, upstream.root, PATIENCE)) as gate,
        client(gate.url) as stream,
        client(gate.url) as plain,
        client(gate.url) as idle,
    ):
        await stream.send(CHAT_PATH, STREAM)
        await stream.answer()
        got = await stream.until(b"one")
        await plain.send(CHAT_PATH, CHAT)
        await until(lambda: len(upstream.got) == 2)
        gate.terminate()

        await gate.closed()
        assert await idle.everything() == b""  # an unused connection keeps nobody waiting
        assert gate.process.returncode is None
        go.set()
        assert got + await stream.rest() == event("one", "pub") + event("two", "pub", "stop") + DONE
        assert (await plain.answer())[0] == 200
        words = await gate.ended()
        assert "Traceback" not in words
        assert all([await one.reader.read() is not None for one in (stream, plain)])


async def test_what_does_not_finish_is_told(tmp_path: Path) -> None:
    async def handler(got: Got, line: Line) -> None:
        if got.json.get("n") == "events":
            await line.head(200, SSE)
            await line.chunk(event("one"))
        elif got.json.get("n") == "flood":
            await line.head(200, SSE)
            while True:
                await line.chunk(event("x" * 60_000))
        await line.closed.wait()

    async with (
        engine(handler) as upstream,
        process("--config", config(tmp_path, upstream.root, 0.2)) as gate,
        contextlib.AsyncExitStack() as stack,
    ):

        async def another(asked: dict[str, Any] | None = None, path: str = CHAT_PATH) -> Client:
            one = await stack.enter_async_context(client(gate.url, receive_buffer=4096))
            if asked is not None:
                await one.send(path, asked)
            return one

        events = await another(STREAM | {"n": "events"})
        prefill = await another(STREAM)
        plain = await another(CHAT)
        await another(STREAM | {"n": "flood"})  # never read
        upload = await another()
        await upload.head(CHAT_PATH, {"content-length": "1000", "expect": "100-continue"})
        assert (await upload.answer())[0] == 100  # so it is under way
        upload.writer.write(b'{"model"')
        await events.answer()
        await events.until(b"one")
        await until(lambda: len(upstream.got) == 4)
        gate.terminate()

        got = await events.rest()
        assert errors(got)[0]["code"] == "backend_unavailable"
        assert "shutting down" in errors(got)[0]["message"]
        assert got.endswith(DONE)
        for one in (prefill, plain, upload):
            status, headers = await one.answer()
            body = json.loads(await one.reader.readexactly(int(headers["content-length"])))
            assert (status, body["error"]["code"]) == (503, "backend_unavailable")
        words = await gate.ended()
        assert "Traceback" not in words
        await until(lambda: all(line.closed.is_set() for line in upstream.lines))


# -- the demo engine ----------------------------------------------------------------------------------------------

ALONE = "import proxy.local; proxy.local.LOCAL_PORTS = {}"  # other engines on this machine are none of its business


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_the_demo_engine_ends_with_the_gateway(how: signal.Signals) -> None:
    port = free_port()
    async with process("--port", str(port), code=ALONE) as gate:
        (demo,) = children(gate.process.pid)
        async with client(gate.url) as one:
            await one.send(CHAT_PATH, CHAT | {"model": "demo"})
            assert (await one.answer())[0] == 200
        assert alive(demo)
        assert os.getpgid(demo) == demo  # a terminal's Ctrl-C is for the gateway alone
        gate.process.send_signal(how)
        async with asyncio.timeout(PATIENCE):
            await gate.process.wait()

        await until(lambda: not alive(demo))


async def test_the_demo_engine_killed_is_no_end(tmp_path: Path) -> None:
    """The gateway lives on and says what is wrong."""
    port = free_port()
    async with process("--port", str(port), code=ALONE) as gate:
        (demo,) = children(gate.process.pid)
        os.kill(demo, signal.SIGKILL)
        await until(lambda: not alive(demo))
        async with client(gate.url) as one:
            await one.send(CHAT_PATH, CHAT | {"model": "demo"})
            status, headers = await one.answer()
            body = json.loads(await one.reader.readexactly(int(headers["content-length"])))

        assert (status, body["error"]["code"]) == (503, "backend_unavailable")
        gate.terminate()
        assert "Traceback" not in await gate.ended()
