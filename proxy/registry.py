"""Which model names there are and what each resolves to.

Built from the settings, from what probes found and from what launchers tell, as a frozen snapshot that is replaced
whole; a request reads one snapshot and never waits. The backends' own state is kept by URL, so a reload forgets nothing
that is still true. No I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from proxy.dialects.base import Endpoint, EngineKind
from proxy.engine_answers import ModelInfo
from proxy.errors import ApiError, error
from proxy.pool import Backend, Replica, Route
from proxy.settings import ReplicaSettings, Settings

_EMBEDDERS: Final[frozenset[Endpoint]] = frozenset(("embeddings", "rerank", "score", "classify", "pooling"))
NAMES_IN_A_MESSAGE: Final = 20

Kinds = frozenset[EngineKind]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The routes at one moment; `names` also holds the aliases."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    names: Mapping[str, Route] = field(default_factory=dict)


class Sharing(Protocol):
    """What several processes share of their backends."""

    def keep(self, backends: Iterable[Backend]) -> None:
        """These there are now, and no others."""


class Registry:
    """The only owner of the snapshot and of the list of backends. `sharing`: with other processes; None: there are
    none. `changed` is called after every change."""

    def __init__(self, settings: Settings, sharing: Sharing | None = None) -> None:
        self.settings = settings
        self.changed: Callable[[], None] = _nobody
        self._sharing = sharing
        self.backends: dict[str, Backend] = {
            name: Backend(name, configured) for name, configured in settings.backends.items()
        }
        self.launchers: dict[str, str] = {}  # name -> why it isn't there, empty where it is
        self.unasked: set[str] = set()  # launchers that haven't answered yet, nor failed to
        self.retired: list[Backend] = []  # no more among `backends`, but with requests under way
        self.snapshot = Snapshot()
        self._turns = itertools.count()
        self.rebuild()

    def add(self, backend: Backend) -> None:
        """A backend found at run time."""
        self.backends[backend.name] = backend
        self.rebuild()

    def remove(self, name: str) -> None:
        self._retire([self.backends.pop(name)])
        self.rebuild()

    def planned(self, settings: Settings) -> dict[str, Backend]:
        """The backends that those settings configure: those that are there already, by name and URL, and new ones.
        Changes nothing; for `adopt`, after the new ones were asked who they are."""
        planned = {}
        for name, configured in settings.backends.items():
            there = self.backends.get(name)
            same = there is not None and _configured(there) and there.settings.root == configured.root
            planned[name] = there if there is not None and same else Backend(name, configured)
        return planned

    def adopt(self, settings: Settings, planned: dict[str, Backend]) -> list[Backend]:
        """Take new settings over, in one step: a request sees the old routes or the new ones. What was found rather
        than configured stays, but gives way to a configured name. Returns the backends that are no more."""
        for name, backend in planned.items():
            if backend.settings != settings.backends[name]:
                backend.configure(settings.backends[name])
        found = {name: b for name, b in self.backends.items() if not _configured(b) and name not in planned}
        kept = {id(backend) for backend in (*planned.values(), *found.values())}
        gone = [backend for backend in self.backends.values() if id(backend) not in kept]
        self.settings = settings
        self.backends = planned | found
        self._retire(gone)
        self.rebuild()
        return gone

    @property
    def settling(self) -> bool:
        """Was somebody not heard for the first time yet? Then what isn't known may be there nevertheless."""
        return bool(self._not_heard())

    def turn(self) -> int:
        """A running number, for replicas that are equally good."""
        return next(self._turns)

    def rebuild(self) -> None:
        """Make the snapshot anew; call it after any change of a backend's kind, models or state."""
        routes: dict[str, Route] = {}
        aliases: dict[str, str] = {}
        for name, configured in self.settings.models.items():
            if configured.replicas:
                replicas = tuple(r for one in configured.replicas if (r := self._replica(one, name)) is not None)
            else:  # aliases or options for a model that backends list by themselves
                replicas = tuple(_listing(self.backends.values(), name))
            if configured.options:
                replicas = tuple(replace(one, options={**configured.options, **one.options}) for one in replicas)
            routes[name] = Route(name, replicas, _info(replicas))
            aliases |= dict.fromkeys(configured.aliases, name)
        listed: dict[str, list[Replica]] = {}
        for backend in self.backends.values():
            for model in served(backend):
                listed.setdefault(model, []).append(Replica(backend, model))
        for name, found in listed.items():
            routes.setdefault(name, Route(name, tuple(found), _info(found)))
        names = dict(routes) | {alias: routes[name] for alias, name in aliases.items()}
        if self._sharing is not None:
            self._sharing.keep((*self.backends.values(), *self.retired))
        self.snapshot = Snapshot(routes, names)
        self.changed()

    def resolve(self, model: str | None, framework: EngineKind | None, endpoint: Endpoint) -> Route:
        """The route for a request. Raises `ApiError` that says what there is instead."""
        framework = framework or self.settings.framework
        kinds = _kinds(framework, endpoint)
        if framework is not None:
            self._check_configured(framework, kinds)
        if model is None:
            model = self._default(endpoint, kinds)
        route = self.snapshot.names.get(model) or self.snapshot.names.get(model.removesuffix(":latest"))
        if route is None:
            route = self.snapshot.names.get(f"{model}:latest")  # Ollama's names: the same model with and without
        if framework is not None:
            return self._within(route, model, framework, kinds)
        if route is None or not route.replicas:
            raise self._unknown(model)
        return route

    # -- inside ----------------------------------------------------------------------------------------------

    def _replica(self, configured: ReplicaSettings, public: str) -> Replica | None:
        """None for an engine that no launcher has told of (yet)."""
        backend = self.backends.get(configured.backend) or self._engine(configured.backend)
        if backend is None:
            return None
        return Replica(backend, configured.model or _own_model(backend, public), configured.options)

    def _engine(self, name: str) -> Backend | None:
        """A launched engine by its own name, with or without its launcher's, whatever it is called here."""
        for backend in self.backends.values():
            engine = backend.engine
            if engine is not None and name in (engine.name, f"{engine.name}@{engine.launcher}"):
                return backend
        return None

    def _retire(self, backends: Iterable[Backend]) -> None:
        self.retired = [b for b in (*self.retired, *backends) if b.places.held]

    def _default(self, endpoint: Endpoint, kinds: Kinds) -> str:
        settings = self.settings
        named = settings.embedding_model if endpoint in _EMBEDDERS else settings.model
        if named is not None:
            return named
        names = self._names(kinds)
        if len(names) == 1:
            return names[0]
        if not names and (coming := self._settling() or self._loading(kinds)) is not None:
            raise coming
        what = "`model` is missing." if names else "`model` is missing, and no backend lists one yet."
        raise error("missing_required_parameter", f"{what} {self._known(names)}", param="model")

    def _within(self, route: Route | None, model: str, framework: EngineKind, kinds: Kinds) -> Route:
        """Only the replicas of those kinds. A backend of such a kind that lists no models takes any name
        (transformers serve loads what it is asked for)."""
        replicas = tuple(r for r in route.replicas if r.backend.kind in kinds) if route is not None else ()
        if not replicas:
            replicas = tuple(Replica(b, model) for b in self.backends.values() if b.kind in kinds and not served(b))
        if not replicas:
            raise self._unknown(model, framework, kinds)
        if route is None:
            return Route(model, replicas, known=False)
        return Route(route.name, replicas, route.info)

    def _check_configured(self, framework: EngineKind, kinds: Kinds) -> None:
        if not any(backend.kind in kinds for backend in self.backends.values()):
            who = "TGI" if framework == "tgi" else "Remote"
            raise error(
                "backend_not_configured",
                f"{who} base_url is not configured. Set ILLM_{framework.upper()}_BASE_URL, or add a backend of kind "
                f"'{framework}' to the configuration.",
                param="framework",
            )

    def _names(self, kinds: Kinds) -> list[str]:
        return [
            name
            for name, route in self.snapshot.routes.items()
            if not kinds or any(replica.backend.kind in kinds for replica in route.replicas)
        ]

    def _not_heard(self) -> list[str]:
        backends = [f"backend '{b.name}'" for b in self.backends.values() if b.state == "unknown" and b.engine is None]
        return backends + [f"launcher '{name}'" for name in self.unasked]

    def _settling(self) -> ApiError | None:
        """The error for what isn't known, where that is too early to tell."""
        asked = self._not_heard()
        if not asked:
            return None
        return error(
            "model_loading",
            f"The gateway has just started and doesn't know all models yet; it waits for {', '.join(asked)}. Try again "
            "in a moment.",
            headers=(("retry-after", "1"),),
        )

    def _loading(self, kinds: Kinds) -> ApiError | None:
        """The error for a model that nobody lists because the backends that may have it still load."""
        loading = [b for b in self.backends.values() if b.state == "loading" and (not kinds or b.kind in kinds)]
        if not loading:
            return None
        told = ", ".join(f"'{b.name}' ({b.detail})" for b in loading)
        return error("model_loading", f"The model isn't there yet. Still loading: {told}. Try again in a moment.")

    def _unknown(self, model: str, framework: EngineKind | None = None, kinds: Kinds = frozenset()) -> ApiError:
        if (settling := self._settling()) is not None:
            return settling
        awaited = model in self.snapshot.names or not self._names(kinds)
        if awaited and (loading := self._loading(kinds)) is not None:
            return loading
        away = " ".join(reason for reason in self.launchers.values() if reason)
        if awaited and away:
            return error("launcher_unavailable", f"Model '{model}' isn't there. {away}")
        where = f" on a backend of kind '{framework}'" if framework else ""
        down = [f"'{b.name}' ({b.detail})" for b in self.backends.values() if b.state in ("down", "loading")]
        absent = f" Not available at the moment: {', '.join(down)}." if down else ""
        return error(
            "model_not_found",
            f"Model '{model}' does not exist{where}. {self._known(self._names(kinds))}{absent}{away and ' ' + away}",
            param="model",
        )

    @staticmethod
    def _known(names: Iterable[str]) -> str:
        known = sorted(names)
        if not known:
            return "No models are known."
        more = (
            f", and {len(known) - NAMES_IN_A_MESSAGE} more (GET /v1/models)" if len(known) > NAMES_IN_A_MESSAGE else ""
        )
        return f"Known models: {', '.join(known[:NAMES_IN_A_MESSAGE])}{more}."


def _kinds(framework: EngineKind | None, endpoint: Endpoint) -> Kinds:
    """The kinds that a `framework` stands for; none: any. For embeddings and rerank `transformers` also means the
    servers that do this for Hugging Face models, since transformers serve can't."""
    if framework is None:
        return frozenset()
    if framework == "transformers" and endpoint in _EMBEDDERS:
        return frozenset(("transformers", "infinity", "tei"))
    return frozenset((framework,))


def served(backend: Backend) -> tuple[str, ...]:
    """The names under which a backend's models are routable: what is written down for it, else what it lists."""
    settings = backend.settings
    if settings.model is not None or settings.models:
        own = () if settings.model is None else (settings.model,)
        return own + tuple(m for m in settings.models if m not in own)
    return tuple(model.id for model in backend.models)


def _configured(backend: Backend) -> bool:
    """Is it from the settings, neither found nor launched?"""
    return not backend.local and backend.engine is None


def _nobody() -> None:
    """Hears of a change."""


def _own_model(backend: Backend, public: str) -> str:
    """The upstream name where a replica doesn't give one: the same, or the only model that backend has."""
    names = served(backend)
    return names[0] if len(names) == 1 and public not in names else public


def _listing(backends: Iterable[Backend], name: str) -> Iterable[Replica]:
    return (Replica(backend, name) for backend in backends if name in served(backend))


def _info(replicas: Iterable[Replica]) -> ModelInfo | None:
    for replica in replicas:
        for model in replica.backend.models:
            if model.id == replica.model or len(replica.backend.models) == 1:
                return model
    return None
