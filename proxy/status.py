"""What the gateway says of itself: models, health, metrics. Reads the registry's last known state and never waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from proxy.endpoints import parse_kind, path_tail, query
from proxy.errors import error
from proxy.metrics import CONTENT_TYPE, BackendGauge, Metrics
from proxy.pool import Backend, Route, State
from proxy.registry import Registry
from proxy.transport import Origin, Transport
from proxy.wire import dump

JSON: Final = "application/json"
_ORDER: Final[tuple[State, ...]] = ("ready", "loading", "launchable", "unknown", "down")

Scope = Mapping[str, Any]
Answered = tuple[int, str, bytes]


class Status:
    """The gateway's own answers; every method is an endpoint's `Answer`. `trusts`: whether who asks may know what needs
    a key, on paths that need none."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        transport: Transport,
        *,
        started: int,
        trusts: Callable[[Scope], bool],
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._transport = transport
        self._trusts = trusts
        self._started = started  # unix time, for models that don't tell their own

    def models(self, scope: Scope) -> Answered:
        kind = parse_kind(query(scope).get("framework"))
        entries = [
            self._entry(name, route)
            for name, route in self._registry.snapshot.names.items()
            if kind is None or any(replica.backend.kind == kind for replica in route.replicas)
        ]
        return 200, JSON, dump({"object": "list", "data": entries})

    def model(self, scope: Scope) -> Answered:
        name = path_tail(scope, "/models/").rstrip("/")
        route = self._registry.snapshot.names.get(name)
        if route is None:
            route = self._registry.resolve(name, None, "chat")
        return 200, JSON, dump(self._entry(name, route))

    def healthz(self, scope: Scope) -> Answered:
        """200 as long as the process answers: what is behind it is in the rows (`/readyz` judges). To strangers names
        and states: why a backend is down may tell addresses, versions what to attack them with."""
        row, launcher = (_row, _launcher) if self._trusts(scope) else (_outline, _launcher_outline)
        registry = self._registry
        backends = list(registry.backends.values())
        kinds = list(dict.fromkeys(backend.kind for backend in backends if backend.kind is not None))
        ready = sum(backend.servable for backend in backends)
        body = {
            "status": "ok" if ready == len(backends) and ready else "degraded" if ready else "no backend is ready",
            "framework": registry.settings.framework or (kinds[0] if len(kinds) == 1 else None),
            "model": registry.settings.model or self._only_model(),
            "providers": kinds,
            "backends": [row(backend) for backend in backends],
        }
        if registry.launchers:
            body["launchers"] = [launcher(name, reason) for name, reason in registry.launchers.items()]
        return 200, JSON, dump(body)

    def livez(self, _: Scope) -> Answered:
        return 200, JSON, b'{"status":"ok"}'

    def readyz(self, _: Scope) -> Answered:
        routes = self._registry.snapshot.routes.values()
        if any(replica.backend.servable for route in routes for replica in route.replicas):
            return 200, JSON, b'{"status":"ok"}'
        raise error("backend_unavailable", "No model can be served yet; GET /healthz says what each backend lacks.")

    def metrics(self, _: Scope) -> Answered:
        return 200, CONTENT_TYPE, self._metrics.render(gauges(self._registry, self._transport.open_to))

    def root(self, _: Scope) -> Answered:
        body = {
            "name": "illm",
            "what": "an OpenAI-compatible gateway",
            "base_url": "/v1",
            "see": ["/v1/models", "/healthz", "/metrics"],
        }
        return 200, JSON, dump(body)

    def table(self) -> dict[str, Callable[[Scope], Answered]]:
        """Path -> answer."""
        return {
            "/": self.root,
            "/v1": self.root,
            "/v1/models": self.models,
            "/models": self.models,
            "/v1/models/{name:path}": self.model,
            "/models/{name:path}": self.model,
            "/healthz": self.healthz,
            "/health": self.healthz,
            "/livez": self.livez,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
        }

    def _only_model(self) -> str | None:
        routes = self._registry.snapshot.routes
        return next(iter(routes)) if len(routes) == 1 else None

    def _entry(self, name: str, route: Route) -> dict[str, Any]:
        info = route.info
        entry: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": (info.created if info else None) or self._started,
            "owned_by": (info.owned_by if info else None) or (route.replicas[0].backend.kind if route.replicas else "")
            or "illm",
            "state": _state(route),
            "backends": [replica.backend.name for replica in route.replicas],
        }  # fmt: skip
        if name != route.name:
            entry["root"] = route.name
        if info is not None and info.max_model_len is not None:
            entry["max_model_len"] = info.max_model_len
        if info is not None and info.capabilities:
            entry["capabilities"] = list(info.capabilities)
        launched = [r.backend for r in route.replicas if r.backend.engine is not None]
        if launched:
            entry["engine"] = _engine(min(launched, key=lambda backend: _ORDER.index(backend.state)))
        return entry


def gauges(registry: Registry, open_to: Callable[[Origin], int]) -> list[BackendGauge]:
    """The backends as they are at this moment. `open_to`: how many connections there are."""
    return [
        BackendGauge(
            backend.name,
            backend.kind or "",
            backend.state,
            open_to(backend.origin),
            backend.engine.launcher if backend.engine is not None else "",
            backend.engine.state if backend.engine is not None else "",
        )
        for backend in registry.backends.values()
    ]


def _state(route: Route) -> State:
    """The best of its replicas'."""
    states = {replica.backend.state for replica in route.replicas}
    return next((state for state in _ORDER if state in states), "down")


def _engine(backend: Backend) -> dict[str, Any]:
    engine = backend.engine
    assert engine is not None
    return {"name": engine.name, "state": engine.state, "phase": engine.phase, "progress": engine.progress}


def _launcher_outline(name: str, reason: str) -> dict[str, Any]:
    return {"name": name, "state": "down" if reason else "ready"}


def _launcher(name: str, reason: str) -> dict[str, Any]:
    return _launcher_outline(name, reason) | {"detail": reason}


def _outline(backend: Backend) -> dict[str, Any]:
    return {"name": backend.name, "kind": backend.kind, "state": backend.state}


def _row(backend: Backend) -> dict[str, Any]:
    row = _outline(backend) | {
        "detail": backend.detail,
        "version": backend.version,
        "models": len(backend.models),
        "in_flight": backend.in_flight,
    }
    if backend.engine is not None:
        row["engine"] = _engine(backend) | {"launcher": backend.engine.launcher}
    return row
