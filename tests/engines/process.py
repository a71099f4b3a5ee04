"""Server programs as child processes: start on a free port, wait until ready, read the log, stop for certain.

It knows nothing of any engine or of the gateway; who needs one says what its command and its readiness are. Everything
blocks and is meant for fixtures and the conformance suite, never for an event loop.
"""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

# Seconds: how long anything may take that must happen. One number for all tests, so that none has its own idea of how
# fast a machine is: a wait ends when what it waits for is there, so that only a test that fails takes so long. Nothing
# waits *for* it: where running into a limit is what a test is about, it sets that limit itself.
PATIENCE = 180.0
AGES = 1200.0  # the same for what takes a minute on a quiet machine: vLLM's start, an image that is built
POLL = 0.02
ASK = 10.0  # seconds for one look of a wait; an engine that is just starting may take a connection and forget it
TERM_GRACE = 30.0
HOST = "127.0.0.1"


class NotReady(Exception):
    """The program ended or was not ready in time; the message carries the end of its log."""


class StillSo(AssertionError):
    """A condition did not come true before its deadline."""


def free_port() -> int:
    """A loopback port that nobody listens on at this moment, nor soon by chance: the system gives other ones to whoever
    connects or asks for any, and no engine's usual port is among these."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind((HOST, port))
            return port


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> float:
    """Blocks until `condition()` is true and returns the seconds it took; raises StillSo after `seconds`.

    Other `seconds` than PATIENCE are AGES, and fewer where StillSo is expected.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise StillSo(f"not within {seconds:g} s: {what}")
        time.sleep(POLL)
    return time.monotonic() - start


def answers(url: str) -> Callable[[], bool]:
    """A readiness condition: a GET of `url` is answered with 200."""

    def ready() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(url, timeout=ASK, trust_env=False).status_code == 200
        return False

    return ready


class ServerProcess:
    """One running program in a session of its own. Owns it: `stop` ends it and every child that it started.

    Use as a context manager, or call `stop` yourself. `log` holds stdout and stderr together.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        port: int,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Starts the program at once; `env` is laid over this process's own."""
        self.port = port
        self.base_url = f"http://{HOST}:{port}"
        self.log = log
        self._stopped = False
        self._command = [str(word) for word in command]
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self, ready: Callable[[], bool], seconds: float = PATIENCE) -> Self:
        """Blocks until `ready()` is true. Where it ends or takes longer it is stopped and NotReady raised."""
        try:
            wait_until(lambda: self.returncode is not None or ready(), "ready", seconds)
        except StillSo:
            self.stop()
            raise NotReady(self._report(f"not ready within {seconds:g} s")) from None
        except BaseException:
            self.stop()
            raise
        if self.returncode is not None:
            self.stop()
            raise NotReady(self._report(f"ended with {self.returncode} before it was ready"))
        return self

    def terminate(self) -> None:
        """Asks the program to end (SIGTERM) and does not wait."""
        self._process.terminate()

    def say(self, number: signal.Signals) -> None:
        """Sends the program a signal, and it alone."""
        self._process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Blocks until the program has ended; its exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after a grace time, to the whole session's group. Idempotent; blocks until it ended."""
        if self._stopped:
            return  # the group's number may be another's by now
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(TERM_GRACE)
        self._signal(signal.SIGKILL)  # also children that outlived their parent
        self._process.wait()
        with suppress(StillSo):  # killed is not yet gone
            wait_until(self._group_is_gone, "every child has ended", TERM_GRACE)
        self._stopped = True

    def cpu_seconds(self) -> float:
        """CPU time used so far by the program and the children of its session that still run (Linux)."""
        ticks = sum(_session_ticks(entry, self.pid) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return ticks / os.sysconf("SC_CLK_TCK")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _group_is_gone(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        return False

    def _report(self, what: str) -> str:
        tail = self.log_text()[-3000:]
        return f"{self._command[0]}: {what}; the end of its log:\n{tail}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def _session_ticks(entry: Path, session: int) -> int:
    """User and system time in clock ticks of one /proc entry, 0 where it is of another session or gone."""
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12]) if int(fields[3]) == session else 0
