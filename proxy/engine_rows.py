"""What a launcher tells of an engine (docs/launcher-api.md, "A row"), read into our words: its state, its address as
the gateway reaches it, its settings as a backend's.

No I/O: `launched` follows the launcher, this file understands. A row comes from another program, perhaps a newer one:
what is missing or has the wrong type counts as not told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from proxy.dialects.base import EngineKind
from proxy.launcher_client import UNIX, Address
from proxy.pool import EngineState, State
from proxy.settings import BackendSettings

NOWHERE: Final = "http://not-started.invalid"  # the base URL of an engine that has none yet; nothing is sent there
MAX_DETAIL: Final = 400  # characters of an engine's own words
LOOPBACK: Final = frozenset(("127.0.0.1", "localhost", "::1"))
ANYWHERE: Final = frozenset(("0.0.0.0", "::"))

_KINDS: Final = frozenset(get_args(EngineKind))
_STATES: Final[dict[str, State]] = {
    "starting": "loading",
    "backoff": "loading",
    "stopping": "loading",
    "stopped": "launchable",
    "fatal": "down",
}


class Unreachable(Exception):
    """That engine runs, but the gateway can't use it; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One engine. `upstream`: its own name for its model, where it couldn't be told the public one (`model`)."""

    name: str
    model: str
    state: str
    kind: EngineKind | None = None  # None: recognised by asking it
    upstream: str | None = None
    phase: str = ""
    progress: float | None = None
    base_url: str | None = None
    api_key: str | None = None
    pid: int | None = None
    error: str = ""

    @classmethod
    def read(cls, value: Any) -> Row | None:
        """None for what is no row."""
        if not isinstance(value, dict):
            return None

        def text(member: str) -> str:
            told = value.get(member)
            return told if isinstance(told, str) else ""

        name, kind = text("name"), text("kind")
        if not name or not text("state"):
            return None
        model, upstream = text("model") or name, text("upstream")
        progress, pid = value.get("progress"), value.get("pid")
        return cls(
            name=name,
            model=model,
            state=text("state"),
            kind=kind if kind in _KINDS else None,  # type: ignore[arg-type]  # checked against the literal's values
            upstream=upstream if upstream not in ("", model) else None,
            phase=text("phase"),
            progress=float(progress) if isinstance(progress, int | float) else None,
            base_url=text("base_url") or None,
            api_key=text("api_key") or None,
            pid=pid if isinstance(pid, int) else None,
            error=text("error"),
        )

    @property
    def process(self) -> tuple[object, ...]:
        """What differs when it is another process, or used in another way."""
        return self.base_url, self.api_key, self.pid, self.kind, self.model

    def engine(self, launcher: str) -> EngineState:
        return EngineState(launcher, self.name, self.state, self.phase, self.progress)

    def seen(self) -> tuple[State, str]:
        """A backend's state and its detail, for an engine that isn't ready."""
        state = _STATES.get(self.state, "down")
        if state == "launchable":
            return state, "stopped; the first request starts it"
        detail = self.error if state == "down" else self.phase or self.state
        if self.state == "backoff" and self.error:
            detail = f"{detail}: {self.error}"
        return state, _short(detail or self.state)


def settings(row: Row, launcher: Address) -> BackendSettings:
    """Of the backend that it is. Raises `Unreachable`."""
    base_url = reachable(row, launcher)
    try:
        return BackendSettings(
            kind=row.kind, base_url=base_url, api_key=row.api_key, model=row.model  # type: ignore[arg-type]
        )  # fmt: skip
    except ValidationError:
        raise Unreachable(f"What launcher '{launcher.name}' tells of engine '{row.name}' can't be used.") from None


def reachable(row: Row, launcher: Address) -> str:
    """Its base URL as seen from here: an engine that listens on every address of its machine is reached at its
    launcher's. Raises `Unreachable` where it listens on another machine's loopback."""
    try:
        url = urlsplit(row.base_url or "")
        host, port = url.hostname or "", url.port
    except ValueError:
        host, port = "", None
    if not host:
        raise Unreachable(f"Launcher '{launcher.name}' tells no address of engine '{row.name}'.")
    there = None if launcher.url.startswith(UNIX) else urlsplit(launcher.url).hostname
    local = there is None or there in LOOPBACK
    if host in LOOPBACK and not local:
        raise Unreachable(
            f"Engine '{row.name}' listens on its own machine's loopback alone. Set launcher.bind on '{there}' to an "
            "address that this machine reaches (0.0.0.0 is all of them)."
        )
    if host in ANYWHERE:
        host = "127.0.0.1" if local or there is None else there
    name = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{name}{f':{port}' if port is not None else ''}{url.path}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL else f"{text[:MAX_DETAIL]}…"
