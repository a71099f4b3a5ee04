"""A gateway with engines of its own: `illm serve` with a YAML that has `engines:`, and the launcher that it starts.

Both are real processes, the engines real llama-servers. Owned by the test: whatever it does, nothing is left behind.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, StillSo, wait_until

HI: Any = [{"role": "user", "content": "hi"}]
FOREVER: Any = [{"role": "user", "content": "forever, please"}]

Row = dict[str, Any]
AWAY = (OSError, ValueError, http.client.HTTPException)  # a launcher that isn't there, or is just ending


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket. (httpx's client leaks the socket that it can't connect.)"""

    def __init__(self, path: str) -> None:
        super().__init__("launcher", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Host:
    """One machine: a gateway, its launcher and the launcher's engines."""

    def __init__(
        self, engines: dict[str, Row], *, args: tuple[str, ...] = (), env: dict[str, str] | None = None, **launcher: Any
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="illm-"))  # short: a unix socket's path lies in it
        self.settings: Row = {
            "discovery": {"local": False},
            "launcher": {"state": str(self.folder / "s"), **launcher},
            "engines": engines,
        }
        self._seen: set[int] = set()
        self.gateway = Gateway(json.dumps(self.settings), self.folder, args=args, env=env)
        self.config = self.folder / f"illm-{self.gateway.process.port}.yaml"

    @property
    def url(self) -> str:
        return self.gateway.base_url

    def rewrite(self, **changes: Any) -> None:
        """Change the settings file; nothing reads it before it is told to."""
        self.config.write_text(json.dumps(self.settings | changes))

    def control(self, method: str, path: str) -> Row:
        """One question to the launcher. Raises OSError where nobody listens there."""
        (socket_path,) = (self.folder / "s").glob("*/launcher.sock")
        with closing(UnixConnection(str(socket_path))) as connection:
            connection.request(method, path)
            answer: Row = json.loads(connection.getresponse().read())
        return answer

    def row(self, name: str) -> Row:
        return self.control("GET", f"/engines/{name}")

    def until(self, name: str, state: str, seconds: float = PATIENCE) -> Row:
        def there() -> bool:
            with suppress(*AWAY, KeyError):
                return bool(self.row(name)["state"] == state)
            return False

        wait_until(there, f"{name} is {state}", seconds)
        return self.row(name)

    def launcher_pid(self) -> int:
        return int(self.control("GET", "/")["pid"])

    def launcher_log(self) -> str:
        return "".join(file.read_text() for file in (self.folder / "s").glob("*/launcher.log"))

    def ask(self, model: str, *, messages: Any = HI, timeout: float = PATIENCE, **members: Any) -> httpx.Response:
        body = {"model": model, "messages": messages, **members}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=timeout, trust_env=False)

    def processes(self) -> list[int]:
        """All that this host started and that lives, the gateway excepted: they carry the folder in their words, or the
        launcher showed them before."""
        with suppress(*AWAY):
            self._seen |= {row["pid"] for row in self.control("GET", "/engines")["engines"] if row["pid"]}
        found = {pid for pid, words in command_lines() if str(self.folder) in words} - {self.gateway.process.pid}
        return [pid for pid in found | self._seen if alive(pid)]

    @staticmethod
    def tree(pid: int) -> list[int]:
        """That process and all below it."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found = [pid]
        for one in found:
            found += [child for child, parent in parents.items() if parent == one]
        return found

    def close(self) -> None:
        self.processes()
        self.gateway.stop()
        with suppress(*AWAY):
            self.control("POST", "/shutdown")
        with suppress(StillSo):
            wait_until(lambda: not self.processes(), "the launcher and its engines have ended")
        left = self.processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"left behind: {left}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def llama(program: Path, model: Path, folder: Path | None = None, **members: Any) -> Row:
    """A llama-server among `engines`; a copy of the model makes its processes the host's own to see."""
    return {"kind": "llamacpp", "command": [str(program)], "model": str(model), "min_residency": 0.2} | members


def command_lines() -> list[tuple[int, str]]:
    """(pid, command line) of all processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def alive(pid: int) -> bool:
    """Running, and no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False
