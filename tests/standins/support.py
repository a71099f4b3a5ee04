"""Starting stand-ins in tests, and asking them what they saw. Everything blocks; nothing here knows what they say."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.engines.process import PATIENCE, ServerProcess, free_port, wait_until

ROOT = Path(__file__).parents[2]


@contextmanager
def asking(url: str, body: Any) -> Iterator[None]:
    """POSTs that and reads nothing; leaves at the end of the block."""
    where = urlsplit(url)
    connection = HTTPConnection(str(where.hostname), where.port, timeout=PATIENCE)
    with closing(connection):
        connection.request("POST", where.path, json.dumps(body), {"content-type": "application/json"})
        yield


class StandIn(ServerProcess):
    """One running stand-in; a context manager that ends it. `kind` is `tgi` or `ollama`, `options` its command line."""

    def __init__(self, kind: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.kind = kind
        self._client = httpx.Client(trust_env=False, timeout=PATIENCE, verify=False)  # no TLS here; to load it is slow
        port = free_port()
        command = [sys.executable, "-m", f"tests.standins.{kind}", "--port", str(port), *options]
        super().__init__(command, port=port, log=folder / f"{kind}-{port}.log", cwd=ROOT)
        self.wait_ready(self._listens)

    def requests(self, path: str | None = None) -> list[dict[str, Any]]:
        """What arrived, in order."""
        return [each for each in self._ask("requests") if path in (None, each["path"])]

    def closed(self) -> list[dict[str, Any]]:
        """Connections that the client closed before its answer was complete."""
        found: list[dict[str, Any]] = self._ask("closed")
        return found

    def running(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("running")
        return found

    def wait_tokens(self, count: int = 1) -> None:
        """Blocks until an answer that is under way has that many."""
        wait_until(lambda: any(one["tokens"] >= count for one in self.running()), f"{count} tokens are made")

    def wait_closed(self, count: int = 1) -> list[dict[str, Any]]:
        """Blocks until that many clients have left early."""
        wait_until(lambda: len(self.closed()) >= count, f"{count} closed connections")
        return self.closed()

    def fault(self, directive: dict[str, Any], **more: Any) -> None:
        """Queues a fault for the next requests; `path` and `times` narrow it."""
        self._tell("faults", {"directive": directive, **more})

    def health(self, up: bool) -> None:
        """What the health route says from now on (TGI)."""
        self._tell("health", {"up": up})

    def release(self) -> None:
        """Lets a directive that is `held` go on, until the next reset."""
        self._tell("release", {})

    def reset(self) -> None:
        self._tell("reset", {})

    def stop(self) -> None:
        super().stop()
        self._client.close()

    def _listens(self) -> bool:
        try:
            return self._client.get(f"{self.base_url}/_standin/running").is_success
        except httpx.TransportError:
            return False

    def _ask(self, name: str) -> Any:
        return self._client.get(f"{self.base_url}/_standin/{name}").json()

    def _tell(self, name: str, body: dict[str, Any]) -> None:
        self._client.post(f"{self.base_url}/_standin/{name}", json=body).raise_for_status()
