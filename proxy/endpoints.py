"""The HTTP surface: which paths there are, what a request must hold, and the answers that the gateway gives itself.

Raw ASGI, with two more members in the scope: the `ClientRequest`, which is read and answered directly, and a `Call`,
the request's record. Errors are raised as `ApiError` and put on the wire by `middleware`. Not here: how an answer is
got (`forward`) or written (`relay`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from difflib import get_close_matches
from time import time
from typing import Any, Final, get_args
from urllib.parse import parse_qsl, unquote

from proxy.answer import Opened
from proxy.call import Call, clock
from proxy.client_request import ClientRequest
from proxy.dialects.base import Endpoint, EngineKind, Request
from proxy.errors import ApiError, error
from proxy.forms import audio_form, parse_form
from proxy.forward import GENERATIONS, Forwarder
from proxy.glance import glance
from proxy.pool import Route
from proxy.registry import Registry
from proxy.relay import Client, relay
from proxy.settings import Defaults
from proxy.settings_types import KIND_SYNONYMS
from proxy.sweep import Sweep
from proxy.wire import InvalidJson, Members, Raw, bad_json, dump, load, load_object, members

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Answer = Callable[[Scope], tuple[int, str, bytes]]
LaterAnswer = Callable[[Scope], Awaitable[tuple[int, str, bytes]]]

SETTLING: Final = 3.0  # seconds for which a request waits where the gateway has just started and can't tell yet
TICK: Final = 0.02

# Path (behind an optional /v1) -> what is asked for.
RELAYED: Final[dict[str, Endpoint]] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
    "/responses": "responses",
    "/messages": "messages",
    "/messages/count_tokens": "count_tokens",
    "/rerank": "rerank",
    "/reranking": "rerank",
    "/score": "score",
    "/audio/transcriptions": "transcriptions",
    "/audio/translations": "translations",
    "/audio/speech": "speech",
    "/images/generations": "images",
    "/images/edits": "image_edits",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/infill": "infill",
    "/classify": "classify",
    "/pooling": "pooling",
}
# What must be there, besides the model; the engine checks the rest.
REQUIRED: Final[dict[Endpoint, str]] = {"chat": "messages", "completions": "prompt", "embeddings": "input"}
# Whose body it is likely to be if what must be there isn't, but this is.
_MEANT: Final = {"input": "/v1/responses", "messages": "/v1/chat/completions", "prompt": "/v1/completions"}
_AUDIO_IN: Final = frozenset(("transcriptions", "translations"))
_KINDS: Final[tuple[str, ...]] = get_args(EngineKind)

# Settings' defaults for members that a request leaves out, by endpoint: our name -> the endpoint's.
_SAMPLING: Final = {n: n for n in ("temperature", "top_p", "top_k", "repetition_penalty")}
DEFAULTS: Final[dict[Endpoint, dict[str, str]]] = {
    "chat": _SAMPLING | {"max_tokens": "max_tokens"},
    "completions": _SAMPLING | {"max_tokens": "max_tokens"},
    "responses": {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_output_tokens"},
    "messages": {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"},
}


class RelayEndpoint:
    """One relayed path."""

    def __init__(
        self,
        endpoint: Endpoint,
        registry: Registry,
        forwarder: Forwarder,
        *,
        max_body: int,
        pulse: Sweep | None,
    ) -> None:
        """`pulse`: keeps its streams alive, see `relay`."""
        self._endpoint = endpoint
        self._registry = registry
        self._forwarder = forwarder
        self._max_body = max_body
        self._pulse = pulse if endpoint in GENERATIONS else None
        self.adopt(registry.settings.defaults)

    def adopt(self, defaults: Defaults) -> None:
        """Other values for what requests leave out, from the next one on."""
        self._defaults = _defaults(self._endpoint, defaults)

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        only(scope, "POST")
        call: Call = scope["illm.call"]
        call.endpoint = self._endpoint
        client: ClientRequest = scope["illm.client"]
        if call.circles:
            raise _in_a_circle()
        opening = await self._open(client, call)
        pulse = self._pulse if call.stream else None
        await relay(Client(call, client), opening, endpoint=self._endpoint, pulse=pulse)

    async def _open(self, client: ClientRequest, call: Call) -> Coroutine[Any, Any, Opened]:
        """The answer, not begun. Here alone is the body, which nobody keeps for as long as a stream lasts."""
        body = await read_body(client, self._max_body)
        request, model, framework = self._read(client.names.get(b"content-type", b""), body)
        try:
            route = self._registry.resolve(model, framework, self._endpoint)
        except ApiError:
            if not self._registry.settling:
                raise
            route = await self._once_settled(model, framework)
        call.model = route.name if route.known else ""
        call.stream = request.stream
        return self._forwarder.open(request, route, call)

    async def _once_settled(self, model: str | None, framework: EngineKind | None) -> Route:
        """The gateway has just started: who has what is asked for may be heard of in a moment. Raises `ApiError`."""
        deadline = clock() + SETTLING
        while True:
            await asyncio.sleep(TICK)
            try:
                return self._registry.resolve(model, framework, self._endpoint)
            except ApiError:
                if clock() > deadline or not self._registry.settling:
                    raise

    def _read(self, content_type: bytes, body: bytes) -> tuple[Request, str | None, EngineKind | None]:
        if content_type.lower().startswith(b"multipart/form-data"):
            form = parse_form(content_type.decode("latin-1"), body)
            stream = (form.text("stream") or "").lower() in ("true", "1")
            request = Request(self._endpoint, b"", None, form, stream, int(time()))
            return request, form.text("model"), parse_kind(form.text("framework"))
        try:
            return self._read_json(body)
        except InvalidJson as exc:
            raise bad_json(exc) from None

    def _read_json(self, body: bytes) -> tuple[Request, str | None, EngineKind | None]:
        """Raises `InvalidJson`, also for a value that only a closer look finds wrong."""
        seen = glance(body) if self._endpoint == "chat" and not self._defaults else None
        if seen is not None:
            request = Request("chat", body, None, None, seen.stream, int(time()), seen)
            return request, seen.model or None, None
        parts = members(body)
        model = _text(parts, "model")
        if self._endpoint == "embeddings":
            model = _text(parts, "embedding_model") or model
        framework = parse_kind(_text(parts, "framework"))
        if self._endpoint in _AUDIO_IN:
            form = audio_form(load_object(body))
            return Request(self._endpoint, b"", None, form, _flag(parts, "stream"), int(time())), model, framework
        needed = REQUIRED.get(self._endpoint)
        if needed is not None and needed not in parts:
            raise error("missing_required_parameter", f"`{needed}` is missing.{_meant(parts)}", param=needed)
        added = {name: value for name, value in self._defaults.items() if _absent(parts, name)}
        if added:
            parts |= added
            body = dump(parts)
        return Request(self._endpoint, body, parts, None, _flag(parts, "stream"), int(time())), model, framework


class ClientLeft(Exception):
    """Before its request was read."""


class LocalEndpoint:
    """An answer that the gateway gives itself, at once or after a moment."""

    def __init__(self, answer: Answer | LaterAnswer) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        only(scope, "GET", "HEAD")
        answered = self._answer(scope)
        status, content_type, body = answered if isinstance(answered, tuple) else await answered
        call: Call = scope["illm.call"]
        await Client(call, scope["illm.client"]).respond(status, content_type, body, [])  # no body for HEAD


async def read_body(client: ClientRequest, limit: int) -> bytes:
    """The whole body. Raises `ClientLeft`, and 413 above `limit` bytes, before reading them where the client says so
    beforehand."""
    told = client.names.get(b"content-length")
    if told is not None and int(told) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    while True:
        piece = client.take()
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        if client.read:
            return piece if len(pieces) == 1 else b"".join(pieces)
        if not await client.more():
            raise ClientLeft


def only(scope: Scope, *methods: str) -> None:
    """Raises 405 for any other method."""
    if scope["method"] not in methods:
        raise error(
            "method_not_allowed",
            f"{scope['path']} takes {methods[0]}, not {scope['method']}.",
            headers=(("allow", ", ".join(methods)),),
        )


def parse_kind(given: str | None) -> EngineKind | None:
    if not given:
        return None
    kind = KIND_SYNONYMS.get(given, given)
    if kind not in _KINDS:
        raise error("invalid_value", f"`framework` is '{given}'; it can be {', '.join(_KINDS)}.", param="framework")
    return kind  # type: ignore[return-value]  # checked against the literal's own values


def _defaults(endpoint: Endpoint, settings: Defaults) -> Members:
    values = settings.model_dump(exclude_none=True)
    names = DEFAULTS.get(endpoint, {})
    return {theirs: Raw(dump(values[ours])) for ours, theirs in names.items() if ours in values}


def _meant(parts: Members) -> str:
    for name, path in _MEANT.items():
        if name in parts:
            return f" A body with `{name}` is one for {path}."
    return ""


def _absent(parts: Members, name: str) -> bool:
    if name == "max_tokens" and not _null(parts, "max_completion_tokens"):
        return False
    return _null(parts, name)


def _null(parts: Members, name: str) -> bool:
    return name not in parts or bytes(parts[name]) == b"null"


def _flag(parts: Members, name: str) -> bool:
    value = parts.get(name)
    return value is not None and bytes(value) == b"true"


def _text(parts: Members, name: str) -> str | None:
    """A string member, None where it is absent, null or empty. Raises for any other type."""
    raw = parts.get(name)
    if raw is None:
        return None
    value = load(raw)
    if value is not None and not isinstance(value, str):
        raise error("invalid_value", f"`{name}` must be a string.", param=name)
    return value or None


def _too_large(limit: int) -> ApiError:
    return error(
        "request_too_large",
        f"The request body is larger than {limit} bytes. Send less, or raise server.max_body.",
    )


def _in_a_circle() -> ApiError:
    return error(
        "backend_not_configured",
        "This request went in a circle: a backend's base_url leads back to this gateway. Set the engine's own there.",
    )


def query(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode("latin-1")))


def path_tail(scope: Scope, marker: str) -> str:
    """What follows `marker` in the path; a model's name may hold slashes, encoded or not."""
    raw = scope.get("raw_path") or scope["path"].encode()
    return unquote(raw.decode("latin-1").partition(marker)[2])


async def unknown_url(scope: Scope, _receive: Receive, _send: Send) -> None:
    """For every path that isn't there; a `Router`'s default."""
    path = scope["path"]
    known = [prefix + relayed for relayed in RELAYED for prefix in ("/v1", "")] + ["/v1/models", "/healthz", "/metrics"]
    near = get_close_matches(path, known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}?" if near else " GET / lists what there is."
    raise error("unknown_url", f"There is no {path} here.{hint}")
