"""`illm COMMAND` as a program, beside a server that a test writes the answers of, and a terminal for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.proxy.harness import PATIENCE, Engine, Got, Handler, Line, until

ROOT = Path(__file__).resolve().parents[3]
SECRET = "sk-very-secret"


class Said(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def begin(folder: Path, *words: str, env: Mapping[str, str] | None = None, **streams: Any) -> Process:
    """Started in `folder`, where its state is as well."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ILLM_")}
    environ |= {"XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **(env or {})}
    streams = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE} | streams
    command = (sys.executable, "-P", "-m", "proxy.cli", *words)
    return await asyncio.create_subprocess_exec(*command, env=environ, cwd=folder, **streams)


async def illm(folder: Path, *words: str, given: str | None = None, env: Mapping[str, str] | None = None) -> Said:
    """Run to its end. `given`: its standard input."""
    process = await begin(folder, *words, env=env, stdin=PIPE if given is not None else DEVNULL)
    return await ended(process, given)


async def ended(process: Process, given: str | None = None) -> Said:
    """Its end, which must be one for people: no traceback, no key."""
    try:
        out, err = await asyncio.wait_for(process.communicate(given.encode() if given is not None else None), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    said = Said(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in said.err, said.err
    assert SECRET not in said.out + said.err
    return said


# --- a server ------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    path: str
    key: str | None


@dataclass
class Scripted(Engine):
    """An engine whose answers to GET a test gives (`about`: path -> JSON, or status and JSON), else those of a vLLM."""

    about: dict[str, Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)  # GETs

    async def _about(self, got: Got, line: Line) -> None:
        key = got.headers.get("authorization")
        self.asked.append(Asked(got.path, key.removeprefix("Bearer ") if key else None))
        if got.path not in self.about:
            await super()._about(got, line)
            return
        answer = self.about[got.path]
        status, value = answer if isinstance(answer, tuple) else (200, answer)
        await line.reply(status, json.dumps(value).encode())


@contextlib.asynccontextmanager
async def scripted(handler: Handler | None = None, **how: Any) -> AsyncIterator[Scripted]:
    one = Scripted(handler, **how)
    await one.listen()
    try:
        yield one
    finally:
        await one.close()


async def events(line: Line, *items: Any, end: bool = True) -> None:
    """An event stream: objects as data, texts as comments, bytes as they are."""
    await line.head(200, {"content-type": "text/event-stream"})
    for item in items:
        data = item if isinstance(item, bytes) else f": {item}\n\n".encode() if isinstance(item, str) else event(item)
        await line.chunk(data)
    if end:
        await line.chunk(b"data: [DONE]\n\n")
        await line.end()


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(content: str | None = None, finish: str | None = None, **members: Any) -> Any:
    """A chunk of a chat."""
    if content is not None:
        members["content"] = content
    return {"id": "1", "model": "m", "choices": [{"index": 0, "delta": members, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> Any:
    return {"id": "1", "model": "m", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


async def refuse(line: Line, status: int, message: str, code: str | None = None) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    await line.reply(status, json.dumps({"error": error}).encode())


# --- a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """A program on a terminal. `seen` is all that it wrote; `await says(…)` for what it writes next."""

    def __init__(self, ours: int, process: Process) -> None:
        self._ours = ours
        self.process = process
        self.seen = ""
        self._read = 0  # of `seen`, by `says`
        self._bytes = bytearray()

    def take(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._bytes += os.read(self._ours, 65536)
            self.seen = self._bytes.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait for this behind what was waited for before."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            match = re.compile(pattern).search(self.seen, self._read)
            if match:
                found.append(match)
            return bool(match)

        try:
            await until(there)
        except TimeoutError:
            raise AssertionError(f"{pattern!r} does not come: {self.seen[self._read :]!r}") from None
        self._read = found[0].end()
        return found[0]

    async def line(self, text: str) -> None:
        """Type a line once it is asked for one."""
        await self.says("> ")
        self.type(text + "\n")


@contextlib.asynccontextmanager
async def terminal(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Terminal]:
    """The program on a terminal of its own, which is its controlling one: a typed Ctrl-C interrupts it."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    loop = asyncio.get_running_loop()
    environ = {"TERM": "xterm", "NO_COLOR": "", "COLUMNS": "200", **(env or {})}
    process = await begin(
        folder, *words, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lambda: _control(theirs)
    )
    os.close(theirs)
    one = Terminal(ours, process)
    loop.add_reader(ours, one.take)
    try:
        yield one
        assert "Traceback" not in one.seen, one.seen
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.kill()
        await process.wait()
        os.close(ours)


def _control(descriptor: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
