"""Backends, the replicas that serve a model, and which of them a request goes to.

A `Backend` is the one object here that changes: what is known of a base URL (by probes, and by its launcher where it
has one) and how busy it is (by requests). It outlives reloads. Everything above it is frozen and made anew. No I/O;
`select` decides and does nothing else, it must not even log.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol

from proxy.breaker import Breaker
from proxy.dialects.base import EngineKind, Target
from proxy.engine_answers import ModelInfo, Probe
from proxy.errors import ApiError, error
from proxy.places import Full, OwnPlaces, Places
from proxy.settings import BackendSettings
from proxy.transport import Origin

State = Literal["unknown", "ready", "loading", "launchable", "down"]

# The lower the better: an unprobed backend is worth a try, one that a launcher is starting is waited for and will be
# there sooner than one that is still to be started, a loading one elsewhere will answer that it is loading.
_RANK: Final[dict[State, int]] = {"ready": 0, "unknown": 1, "launchable": 3, "loading": 4, "down": 5}
_STARTING: Final = 2
TARGETS: Final = 256  # kept for one backend: clients may ask some engines for any name


class Gate(Protocol):
    """The way to an engine that a launcher runs: whoever passes may rely on it until it leaves."""

    open: bool  # it is there: who enters doesn't wait

    async def enter(self) -> None:
        """Until the engine is ready. Raises `ApiError` where it won't be. Whoever enters must `leave`."""

    def leave(self) -> None: ...

    async def lost(self) -> None:
        """Somebody found nobody there: until the launcher has seen it too, for a moment at most."""

    def told(self) -> str:
        """What is waited for, in a few words."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """What a launcher last said of an engine of its. `progress`: 0 to 1, where it is known."""

    launcher: str
    name: str
    state: str
    phase: str = ""
    progress: float | None = None


class Finding(NamedTuple):
    """What one process knows of a backend, for others that don't ask it themselves."""

    name: str
    root: str
    local: bool
    state: State
    detail: str
    kind: EngineKind | None
    prefix: str
    version: str | None
    models: tuple[ModelInfo, ...]


class Backend:
    """One base URL: its settings, what the last probe found, and what is under way there. Of a launched engine the
    base URL is that of its last start."""

    def __init__(self, name: str, settings: BackendSettings, *, local: bool = False) -> None:
        self.name = name
        self.settings = settings
        self.local = local  # found on this machine rather than configured
        self.origin = Origin.parse(settings.root)
        self.kind: EngineKind | None = settings.kind
        self.prefix = "/v1"
        self.version: str | None = None
        self.state: State = "unknown"
        self.detail = "not asked yet"
        self.models: tuple[ModelInfo, ...] = ()
        self.described: dict[tuple[str, int | None], ModelInfo] = {}  # by name and version; `describe` fills it
        self.places: Places = OwnPlaces()
        self.breaker = Breaker()
        self.facts: dict[str, Any] = {}  # what a dialect learned of it; void once it was down
        self.engine: EngineState | None = None  # of a launched one
        self.upstream: str | None = None  # a launched engine's own name for its model, where it has another
        self.gate: Gate | None = None  # the way to a launched one
        self.successes = 0  # probes in a row
        self._heads: dict[tuple[str, str], bytes] = {}
        self._targets: dict[tuple[str, str], Target] = {}  # for requests without options of their own
        self._targets_of = settings  # what they were made from

    def learn(self, probe: Probe, *, down_after: int, up_after: int = 1) -> bool:
        """Take a probe's findings over; True if anything that routing depends on changed.

        Hysteresis: one that answered before stays as it is until `down_after` probes in a row failed, and a request
        answered meanwhile starts the count again; one that was down comes back after `up_after` good ones. Busy is
        not dead.
        """
        before = (self.state, self.kind, self.prefix, self.models)
        if probe.state == "down":
            self.breaker.failures += 1
            self.successes = 0
            self.detail = probe.detail
            if self.state in ("unknown", "loading") or self.breaker.failures >= down_after:
                self.state = "down"
                self.facts.clear()
            return before[0] != self.state
        self.breaker.failures = 0
        self.successes += 1
        if self.state == "down" and self.successes < up_after:
            return False
        self.state = probe.state
        self.detail = probe.detail
        self.kind = self.settings.kind or probe.kind or self.kind
        self.version = probe.version or self.version
        if probe.state == "ready":
            self.prefix = probe.prefix
            self.models = probe.models
            self.breaker.clear()
        return before != (self.state, self.kind, self.prefix, self.models)

    def finding(self) -> Finding:
        """What there is to tell."""
        return Finding(
            self.name, self.settings.root, self.local, self.state, self.detail, self.kind, self.prefix, self.version,
            self.models,
        )  # fmt: skip

    def agree(self, finding: Finding) -> bool:
        """Take over what another process found; True if anything that routing depends on changed."""
        before = (self.state, self.kind, self.prefix, self.models)
        if finding.state == "down" or finding.kind != self.kind:
            self.facts.clear()
        self.state, self.detail, self.kind = finding.state, finding.detail, finding.kind
        self.prefix, self.version, self.models = finding.prefix, finding.version, finding.models
        return before != (self.state, self.kind, self.prefix, self.models)

    def configure(self, settings: BackendSettings) -> None:
        """Other settings for the same address: what is known of it stays."""
        self.settings = settings
        self._heads.clear()
        if settings.kind not in (None, self.kind):
            self.kind = settings.kind
            self.facts.clear()
            self.described.clear()

    def move(self, settings: BackendSettings) -> None:
        """Its engine is another process now, most likely at another address: what was known of the last one is void.
        Requests under way are left alone."""
        self.configure(settings)
        self.origin = Origin.parse(settings.root)
        self.kind = settings.kind
        self.prefix = "/v1"
        self.version = None
        self.state = "unknown"
        self.detail = "not asked yet"
        self.described.clear()
        self.facts = {}
        self.breaker.clear()
        self.successes = 0

    @property
    def in_flight(self) -> int:
        """Requests under way, in all processes of this gateway."""
        return self.places.total

    @property
    def failures(self) -> int:
        """Failed probes in a row."""
        return self.breaker.failures

    @property
    def servable(self) -> bool:
        """Would a request be served, at once or after a start?"""
        return self.state in ("ready", "launchable") or (self.engine is not None and self.state == "loading")

    def answered(self) -> None:
        """A request got an answer: whatever probes say, it is alive."""
        self.breaker.clear()

    def blot(self, exc: ApiError) -> None:
        """Take this backend's key out of an error, should its engine have repeated it."""
        key = self.settings.api_key
        if key is not None:
            exc.message = exc.message.replace(key.get_secret_value(), "***")

    def target(self, replica: Replica, public: str) -> Target:
        """What a dialect may know of a replica of this backend's. The last one, as long as it is true."""
        settings = self.settings
        model = replica.model
        if self.upstream is not None and model == settings.model:
            model = self.upstream
        if replica.options:
            return self._target(model, public, {**settings.options, **replica.options})
        if self._targets_of is not settings or len(self._targets) > TARGETS:
            self._targets, self._targets_of = {}, settings
        known = self._targets.get((model, public))
        if known is None or not self._still(known):
            known = self._targets[model, public] = self._target(model, public, settings.options)
        return known

    def _still(self, known: Target) -> bool:
        """Is it still as that target says?"""
        return (
            known.kind == (self.kind or "openai")
            and known.healthy == (self.state == "ready")
            and known.prefix == self.prefix
            and known.version == self.version
            and known.facts is self.facts
        )

    def _target(self, model: str, public: str, options: Mapping[str, Any]) -> Target:
        settings = self.settings
        return Target(
            kind=self.kind or "openai",
            backend=self.name,
            model=model,
            public=public,
            version=self.version,
            prefix=self.prefix,
            reasoning_field=settings.reasoning_field,
            image_urls=settings.image_urls,
            chat_mode=settings.chat_mode,
            strict_params=settings.strict_params,
            options=options,
            facts=self.facts,
            healthy=self.state == "ready",
        )

    def request_head(self, method: str, path: str) -> bytes:
        """The lines that every such request begins with, the backend's own key among them."""
        head = self._heads.get((method, path))
        if head is None:
            key = self.settings.api_key
            authorization = f"authorization: Bearer {key.get_secret_value()}\r\n" if key is not None else ""
            head = self._heads[method, path] = (
                f"{method} {self.origin.path}{path} HTTP/1.1\r\nhost: {self.origin.authority.decode()}\r\n"
                f"accept-encoding: identity\r\n{authorization}"
            ).encode()
        return head

    def admit(self) -> bool:
        """Take a place at once, if there is no gate and one is free. Whoever is admitted must `leave`."""
        return self.gate is None and self.places.take(self.settings.max_in_flight)

    async def enter(self) -> None:
        """Take a place among its requests; waits at the gate of a launched engine, and in line where `max_in_flight`
        is reached. Raises `rate_limit_exceeded` when the line is full, and what the gate does. Whoever enters must
        `leave`."""
        gate = self.gate
        if gate is not None:
            await gate.enter()
        limit = self.settings.max_in_flight
        if self.places.take(limit) or limit is None:
            return
        try:
            await self.places.wait(limit, self.settings.max_queue)
        except BaseException as exc:
            if gate is not None:
                gate.leave()
            if isinstance(exc, Full):
                raise self._full(limit, exc.waiting) from None
            raise

    def leave(self) -> None:
        """Give the place back; the next in line gets it."""
        self.places.give_back(self.settings.max_in_flight)
        if self.gate is not None:
            self.gate.leave()

    def _full(self, limit: int, waiting: int) -> ApiError:
        return error(
            "rate_limit_exceeded",
            f"Backend '{self.name}' is full: {limit} requests under way and {waiting} waiting. Try again shortly.",
        )


@dataclass(frozen=True, slots=True)
class Replica:
    """One (backend, model) that serves a route; `model` is the name that backend knows, `options` win over its."""

    backend: Backend
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """What a public model name resolves to."""

    name: str
    replicas: tuple[Replica, ...]
    info: ModelInfo | None = None  # of the first replica that tells
    known: bool = True  # False: only a client says that there is such a model


def select(replicas: Sequence[Replica], tried: Collection[Replica], now: float, turn: int) -> Replica | None:
    """The replica for the next attempt, None when all were tried: the healthiest, then the least busy; equals take
    turns. A backend that seems down is still tried when nothing better is left, since the last probe may be old.

    Pure decision; must not log."""
    left = [replica for replica in replicas if replica not in tried]
    if not left:
        return None
    if len(left) == 1:
        return left[0]
    start = turn % len(left)
    return min(left[start:] + left[:start], key=lambda replica: _burden(replica.backend, now))


def _burden(backend: Backend, now: float) -> tuple[bool, int, int]:
    starting = backend.state == "loading" and backend.engine is not None and backend.engine.state == "starting"
    return backend.breaker.open(now), _STARTING if starting else _RANK[backend.state], backend.in_flight
