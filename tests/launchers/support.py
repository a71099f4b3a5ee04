"""A launcher as a real process with a document of the test's own, asked over its socket; and who is still alive."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.engines.process import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
MARK = "LAUNCHER_TEST"  # environment variable, inherited by all that a launcher of these tests starts
STANDIN = Path(__file__).parent / "standins" / "engine.py"

Row = dict[str, Any]


def spec(name: str, *words: str, **members: Any) -> Row:
    """An engine of the document: the stand-in with those words, unless `members` say otherwise."""
    whole: Row = {
        "name": name, "kind": "command", "public": name, "model": name, "mmproj": None, "dtype": None,
        "max_model_len": None, "tensor_parallel": None, "gpu_memory": None, "gpu_layers": None,
        "trust_remote_code": False, "embedding": False, "device": None, "api_key": None, "args": [], "env": {},
        "command": [sys.executable, str(STANDIN), "--port", "{port}", "--model", "{name}", *words],
        "health": None, "image": None, "volumes": [], "gpus": [], "port": None, "memory": None, "start": "on_demand",
        "ttl": None, "pin": False, "abandon": False, "unload": "stop", "start_timeout": PATIENCE, "stop_timeout": 3.0,
        "min_residency": 0.0, "restarts": 3,
    }  # fmt: skip
    return whole | members


def vllm(name: str, *words: str, **members: Any) -> Row:
    """The same as vLLM, as far as the launcher can tell: it is told what vLLM is told and asked as vLLM is."""
    return spec(name, **{"kind": "vllm", "command": [sys.executable, str(STANDIN), *words]} | members)


# Runs as `python -m launchers` does, with other values for some of its constants.
_PATCHED = """
import importlib, json, sys
for name, value in json.loads(sys.argv.pop(1)).items():
    module, _, constant = name.rpartition(".")
    assert hasattr(importlib.import_module(module), constant), name
    setattr(importlib.import_module(module), constant, value)
from launchers.__main__ import main
sys.exit(main())
"""


class Launcher:
    """`python -m launchers`. Owns it: `close` ends it and whatever it left, by pid."""

    def __init__(
        self,
        *engines: Row,
        folder: Path | None = None,
        for_gateway: bool = False,
        begin: bool = True,
        constants: Mapping[str, float] | None = None,
        **launcher: Any,
    ) -> None:
        """`begin`: start it at once; `constants`: values for some of its modules' constants, by their full names;
        `launcher`: its settings."""
        self.constants = dict(constants or {})
        self.folder = folder or Path(tempfile.mkdtemp(prefix="illm-"))
        self._settings = {
            "listen": None, "api_key": None, "bind": "127.0.0.1", "orphans": "kill", "linger": 300.0, "watch": False,
            "budget": None, "auto_install": False, "file": None,
        } | launcher  # fmt: skip
        self.document = self.folder / "document.json"
        self.state = self.folder / "s"
        self.log = self.folder / "launcher.log"
        self.for_gateway = for_gateway
        self.write(*engines)
        self.process: subprocess.Popen[bytes] = None  # type: ignore[assignment]
        if begin:
            self.start()

    def hurry(self) -> None:
        """Have it end without waiting for engines that don't, by a second signal behind the first."""
        self.say(signal.SIGTERM)
        wait_until(lambda: "ending the engines" in self.log.read_text(), "it has heard the first")
        self.say(signal.SIGTERM)
        self.process.wait(PATIENCE)

    def write(self, *engines: Row) -> None:
        """What the next reload, or start, reads."""
        self.document.write_text(json.dumps({"launcher": self._settings, "engines": list(engines)}))

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command_line(), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                env=self.environment(),
            )  # fmt: skip
        listen, key = self._settings["listen"], self._settings["api_key"]
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(uds=None if listen else str(self.state / "launcher.sock")),
            base_url=listen or "http://launcher",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=PATIENCE,
            trust_env=False,
        )
        wait_until(lambda: self.process.poll() is not None or self._answers(), "the launcher answers")
        assert self.process.poll() is None, self.log.read_text()
        return self.process

    def environment(self) -> dict[str, str]:
        return {**os.environ, MARK: str(self.folder)}

    def command_line(self) -> list[str]:
        words = ["-c", _PATCHED, json.dumps(self.constants)] if self.constants else ["-m", "launchers"]
        words += ["--state", str(self.state), *(["--for-gateway"] if self.for_gateway else [])]
        return [sys.executable, *words, "--", "cat", str(self.document)]

    def _answers(self) -> bool:
        if not self._settings["listen"]:
            with socket.socket(socket.AF_UNIX) as probe:  # first, since httpx leaks the socket of a vain attempt
                if probe.connect_ex(str(self.state / "launcher.sock")):
                    return False
        with suppress(httpx.TransportError):
            return self.client.get("/").status_code == 200
        return False

    def row(self, name: str) -> Row:
        row: Row = self.client.get(f"/engines/{name}").json()
        return row

    def until(self, name: str, state: str) -> Row:
        """Wait for that state."""
        wait_until(lambda: self.row(name)["state"] == state, f"{name} is {state}")
        return self.row(name)

    @contextmanager
    def wanted(self, name: str, verb: str = "ensure") -> Iterator["Events"]:
        """The events of an `ensure` (a lease as long as the block lasts) or a `start`."""
        with self.client.stream("POST", f"/engines/{name}/{verb}") as answer:
            yield Events(answer)

    def say(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def reload(self, *, dry_run: bool = False) -> Row:
        """What it did, or would do."""
        answer: Row = self.client.post("/reload", params={"dry_run": 1} if dry_run else {}).json()
        return answer

    def stop(self, name: str) -> Row:
        row: Row = self.client.post(f"/engines/{name}/stop").json()
        return row

    def kill(self) -> None:
        """-9, and wait for its end."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.client.close()

    def engines_alive(self) -> list[int]:
        """All processes that descend from this launcher or an earlier one on this folder: guards, engines, children."""
        own = self.process.pid if self.process is not None else None
        return [pid for pid in marked(str(self.folder)) if pid != own]

    def close(self) -> None:
        if self.process is not None:
            self._end()
        for pid in self.engines_alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE)
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Events:
    """The events of one answer, one after the other."""

    def __init__(self, answer: httpx.Response) -> None:
        self.status = answer.status_code
        self.seen: list[Row] = []
        self._answer = answer
        self._lines = answer.iter_lines()

    def next(self) -> Row:
        event: Row = json.loads(next(self._lines))
        self.seen.append(event)
        return event

    def until(self, *kinds: str, where: Callable[[Row], bool] = lambda event: True) -> Row:
        """The next event of one of these kinds; the ones before it are in `seen`. Fails when it doesn't come."""
        deadline = time.monotonic() + PATIENCE
        while True:
            event = self.next()
            assert time.monotonic() < deadline or event["event"] != "ping", f"none of {kinds} came; seen: {self.seen}"
            if event["event"] in kinds and where(event):
                return event

    def close(self) -> None:
        """Leave."""
        self._answer.close()

    def rest(self) -> list[Row]:
        """All that follow, to the end of the answer."""
        return [json.loads(line) for line in self._lines]


def marked(folder: str) -> list[int]:
    """Living processes that were started, at whatever remove, by a launcher on that folder."""
    mark, found = f"{MARK}={folder}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                    found.append(int(entry.name))
    return found


def command_lines() -> list[tuple[int, str]]:
    """(pid, command line) of all processes."""
    return [
        (int(entry.name), command_line(int(entry.name))) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    ]


def command_line(pid: int) -> str:
    """Its words; empty where it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def alive(pid: int) -> bool:
    """Running, and no zombie."""
    with suppress(OSError):
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] not in ("Z", "X")
    return False
