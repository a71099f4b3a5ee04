"""A gateway of several processes for tests: `illm serve --workers`, and which of them a connection is with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.engines.process import free_port
from tests.faults.support import Client, client
from tests.proxy.harness import PATIENCE, calm, until

ROOT = Path(__file__).parents[3]


@dataclass
class Gateway:
    """The parent's process. `said`: its standard error so far, with its workers'."""

    process: asyncio.subprocess.Process
    config: Path
    port: int
    said: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def text(self) -> str:
        return "".join(self.said)

    def workers(self) -> list[int]:
        """Their process ids."""
        return [pid for pid in children(self.process.pid) if b"proxy.workers.worker" in command(pid)]

    async def kill_worker(self, pid: int) -> None:
        """Returns when it has ended, so that nothing connects to it any more."""
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid))

    async def get(self, path: str) -> httpx.Response:
        """On a connection of its own, so from any worker."""
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, trust_env=False) as one:
            return await one.get(path)

    async def counter(self, name: str) -> float:
        """The sum of a metric's samples, as one worker tells it."""
        async with asyncio.timeout(PATIENCE):
            while (answer := await self.get("/metrics")).status_code != 200:
                assert "Ask again shortly" in answer.text  # on a machine that stands still
        return sum(float(n) for n in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", answer.text, re.MULTILINE))

    def worker_of(self, one: Client) -> int:
        """The process that has the other end."""
        mine = one.writer.get_extra_info("sockname")[1]
        inode = _inode(self.port, mine)
        return next(pid for pid in self.workers() if inode in _sockets(pid))

    @contextlib.asynccontextmanager
    async def clients(self) -> AsyncIterator[list[Client]]:
        """A connection to each worker."""
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
            found: dict[int, Client] = {}
            while len(found) < 2:
                one = await stack.enter_async_context(client(self.url))
                await ask(one, "/livez")  # it is accepted by then
                found.setdefault(self.worker_of(one), one)
            yield list(found.values())

    def configure(self, settings: Mapping[str, Any]) -> None:
        server = {"port": self.port, "drain_timeout": PATIENCE} | settings.get("server", {})
        self.config.write_text(yaml.safe_dump(calm({**settings, "server": server})))

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


async def ask(one: Client, path: str) -> bytes:
    """GET on a kept connection: the body."""
    one.writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await one.writer.drain()
    _, headers = await one.answer()
    return await one.reader.readexactly(int(headers["content-length"]))


@contextlib.asynccontextmanager
async def illm(folder: Path, settings: Mapping[str, Any], code: str = "", waits: bool = True) -> AsyncIterator[Gateway]:
    """Two workers that serve. `code` runs in the parent before anything else."""
    main = f"{code}\nimport sys, proxy.cli\nsys.exit(proxy.cli.main(sys.argv[1:]))"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ILLM_")}
    port = free_port()
    config = folder / "illm.yaml"
    gate = Gateway(None, config, port)  # type: ignore[arg-type]  # it needs its configuration first
    gate.configure(settings)
    with (folder / "access.log").open("wb") as log:
        gate.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", main, "serve", "--workers", "2", "--config", str(config), cwd=ROOT, env=environ,
            stdout=log, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    listening = asyncio.create_task(_hear(gate))
    pids: list[int] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while waits and "is listening on " not in gate.text:
                assert not listening.done(), gate.text
                await asyncio.sleep(0.01)
        pids = gate.workers()
        yield gate
    finally:
        if gate.process.returncode is None:
            pids += gate.workers()
            gate.process.kill()
            await gate.process.wait()
        try:
            await until(lambda: listening.done() and not any(alive(pid) for pid in pids))
        except TimeoutError:
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"a worker outlived its gateway: {gate.text}") from None
    assert "Traceback" not in gate.text, gate.text


async def _hear(gate: Gateway) -> None:
    assert gate.process.stderr is not None
    while line := await gate.process.stderr.readline():
        gate.said.append(line.decode())


# -- /proc ----------------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    found: list[str] = []
    with contextlib.suppress(OSError):  # the process has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread may end while it is looked at
                found += (task / "children").read_text().split()
    return [int(child) for child in found]


def command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _inode(local: int, remote: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        cells = line.split()
        if [int(cells[at].rpartition(":")[2], 16) for at in (1, 2)] == [local, remote]:
            return cells[9]
    raise AssertionError(f"no connection from port {remote}")


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # the process has ended
        for file in list(Path(f"/proc/{pid}/fd").iterdir()):
            with contextlib.suppress(OSError):
                found.add(file.readlink().name.removeprefix("socket:[").removesuffix("]"))
    return found
