"""The dialect of vLLM, SGLang, llama.cpp, transformers serve, Infinity, TEI and every other OpenAI-compatible server.

Requests pass as they came but for the model's name and the few members that an engine knows under another name or
can't take; answers pass but for the model's name, errors and what OpenAI's schema forbids.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.dialects.base import Answered, Encoded, Endpoint, EngineKind, Plan, Reply, Request, Target
from proxy.dialects.openai import content, tei, tgi
from proxy.dialects.openai.gather import gather_chat, gather_completion
from proxy.dialects.openai.gather_messages import gather_message
from proxy.dialects.openai.paths import lacks, path_for
from proxy.dialects.openai.reply import decode_json, no_json, usage_of
from proxy.dialects.openai.stream import Fixer, PassThroughDecoder
from proxy.dialects.shared.errors import decode_error, is_missing_route
from proxy.dialects.shared.openai_in import Child
from proxy.dialects.shared.tgi_errors import decode_tgi_error, decode_tgi_event
from proxy.errors import ApiError, error
from proxy.framing import SseParser
from proxy.glance_types import ABSENT, Glance
from proxy.wire import InvalidJson, JsonObject, Members, Raw, bad_json, dump, load, load_object

_TEXT: Final = frozenset(("chat", "completions"))
_GENERATIONS: Final = _TEXT | {"responses", "messages"}  # always JSON, whatever an answer calls itself

# Sampling members that an engine knows by another name than the field's usual one.
SYNONYMS: Final[dict[EngineKind, dict[str, str]]] = {
    "llamacpp": {"repetition_penalty": "repeat_penalty"},
    "vllm": {"repeat_penalty": "repetition_penalty"},
    "sglang": {"repeat_penalty": "repetition_penalty"},
}
# Engines whose chat requests may pass as they came; the others' always change.
_PASSED: Final = frozenset(("vllm", "sglang", "llamacpp", "openai"))
# transformers serve refuses members that it doesn't know; these it takes inside `generation_config`.
GENERATION_CONFIG: Final = ("top_k", "min_p", "typical_p", "repetition_penalty")
# Engines that go on generating for a plain request whose client has left, but stop at once when a stream is closed:
# they are asked for a stream, which is gathered.
GATHERED: Final[dict[EngineKind, dict[str, Raw]]] = {
    "llamacpp": {"stream": Raw(b"true"), "stream_options": Raw(b'{"include_usage":true}')},
    "transformers": {"stream": Raw(b"true")},
}
# The same for APIs whose streams have typed events and tell usage unasked.
GATHERED_TYPED: Final[dict[EngineKind, frozenset[Endpoint]]] = {"llamacpp": frozenset(("responses", "messages"))}
# Answered differently, or not at all, in a stream: asked for plainly.
UNGATHERED: Final = frozenset(("logprobs", "top_logprobs", "n_probs", "verbose"))


class OpenAI:
    """A `Dialect`; stateless."""

    def encode(self, request: Request, target: Target) -> Plan:
        try:
            return self._encode(request, target)
        except InvalidJson as exc:  # inside a member, where nobody has looked before
            raise bad_json(exc) from None

    def _encode(self, request: Request, target: Target) -> Plan:
        path = path_for(request.endpoint, target)
        if request.glance is not None and _passes(request.glance, request.stream, target):
            return Plan((Encoded(path, request.body),), Decoder(request, target))
        if request.form is not None:
            content_type, body = request.form.encode({"model": target.model, "framework": None})
            return Plan((Encoded(path, body, content_type),), Decoder(request, target))
        if target.kind == "tgi" and request.endpoint in _TEXT:
            return self._encode_tgi(request, target, path)
        if target.kind == "tei" and request.endpoint == "rerank":
            asked = load_object(request.body)
            encoded = Encoded(path, dump(tei.encode_rerank(asked, target)))
            return Plan((encoded,), TeiRerankDecoder(request, target, asked))
        wanted = _members(request, target)
        body = request.body if wanted is request.members else dump(wanted)
        if content.needs_look(wanted):
            parts: JsonObject = {name: load(wanted[name]) for name in content.ROOTS if name in wanted}
            if content.fix_parts(parts, target):
                body = dump(wanted | parts)
        return Plan((Encoded(path, body),), Decoder(request, target))

    def _encode_tgi(self, request: Request, target: Target, path: str) -> Plan:
        asked = load_object(request.body)
        content.fix_parts(asked, target)
        children = tgi.children(request.endpoint, asked, target)
        bodies = [body for body, _ in children] or [asked]
        encoded = [tgi.encode(request.endpoint, body, target) for body in bodies]
        calls = tuple(Encoded(path, dump(body)) for body, _ in encoded)
        return Plan(calls, TgiDecoder(request, target, asked, children), encoded[0][1])


class Decoder:
    """A `ResponseDecoder` for an answer that passes as it is. A stream that comes although the client wants one
    object is gathered into it."""

    def __init__(self, request: Request, target: Target) -> None:
        self._endpoint: Endpoint = request.endpoint
        self._target = target
        self._several = _several(request)

    def reply(self, answers: Sequence[Answered]) -> Reply:
        (answer,) = answers
        if answer.content_type.startswith("text/event-stream"):
            return self._fold(answer.body)
        json = "json" in answer.content_type or "html" in answer.content_type or self._endpoint in _GENERATIONS
        if not json:
            return Reply(answer.body, answer.content_type or "application/octet-stream")
        return decode_json(self._endpoint, self._target, answer.body)

    def failure(self, answer: Answered) -> ApiError:
        target = self._target
        if target.healthy and is_missing_route(answer.status, answer.body):
            return error("unsupported_endpoint", lacks(self._endpoint, target), param="model")
        return decode_error(
            answer.status, answer.content_type, answer.body, self._endpoint, target.backend,
            retry_after=answer.header(b"retry-after"),
        )  # fmt: skip

    def streams(self) -> tuple[PassThroughDecoder, ...]:
        return (PassThroughDecoder(self._endpoint, self._target, several=self._several),)

    def _fold(self, body: bytes) -> Reply:
        """A stream that the client shall get as one object."""
        decoder = PassThroughDecoder(self._endpoint, self._target, several=self._several)
        events = [e.data for e in SseParser().feed(decoder.feed(body) + decoder.flush()) if e.data is not None]
        try:
            chunks = [load_object(data) for data in events if not data.startswith("[DONE]")]
        except InvalidJson:
            raise no_json(self._target) from None
        whole = _JOIN.get(self._endpoint, gather_completion)(chunks)
        whole["model"] = self._target.public
        return Reply(dump(whole), usage=usage_of(whole))


class TgiDecoder(Decoder):
    """TGI's own /v1: every chunk and object is fixed. `children`: the requests that this one became, none for one."""

    def __init__(
        self, request: Request, target: Target, asked: JsonObject, children: Sequence[tuple[JsonObject, Child]]
    ) -> None:
        super().__init__(request, target)
        self._asked = asked
        self._children = children
        self._tools = tgi.has_tools_only(asked)

    def reply(self, answers: Sequence[Answered]) -> Reply:
        try:
            told = [load_object(answer.body) for answer in answers]
        except InvalidJson:
            raise error(
                "upstream_invalid_response", f"Backend '{self._target.backend}' answered no JSON object. Check its log."
            ) from None
        if self._children:
            whole = tgi.joined(self._endpoint, self._children, told, self._target, _new_id)
        else:
            whole = self._fixer().whole(told[0])
        return Reply(dump(whole), usage=usage_of(whole))

    def failure(self, answer: Answered) -> ApiError:
        return decode_tgi_error(
            answer.status, answer.content_type, answer.body, self._endpoint, self._target.backend,
            tools=self._tools, retry_after=answer.header(b"retry-after"),
        )  # fmt: skip

    def streams(self) -> tuple[PassThroughDecoder, ...]:
        fixers: Sequence[Fixer] = [self._fixer()]
        if self._children:
            fixers = tgi.fixers(self._endpoint, self._children, self._target, _new_id)
        return tuple(
            PassThroughDecoder(self._endpoint, self._target, fixer=fixer, failure=self._event_failure)
            for fixer in fixers
        )

    def _event_failure(self, event: JsonObject) -> ApiError:
        return decode_tgi_event(event, self._endpoint, self._target.backend, tools=self._tools)

    def _fixer(self) -> tgi.ReplyFixer:
        return tgi.ReplyFixer(self._endpoint, self._asked, self._target, ids=_new_id)


class TeiRerankDecoder(Decoder):
    """TEI's own /rerank, in the shape that the other engines answer."""

    def __init__(self, request: Request, target: Target, asked: JsonObject) -> None:
        super().__init__(request, target)
        self._asked = asked

    def reply(self, answers: Sequence[Answered]) -> Reply:
        (answer,) = answers
        try:
            return Reply(dump(tei.decode_rerank(load(answer.body), self._asked, self._target)))
        except InvalidJson:
            raise error(
                "upstream_invalid_response", f"Backend '{self._target.backend}' answered no JSON to a rerank request."
            ) from None


def _passes(glance: Glance, stream: bool, target: Target) -> bool:
    """Is a body with nothing but this sent as it came? Only where `_members` and `content` would change nothing."""
    if glance.model != target.model or target.kind not in _PASSED or target.options:
        return False
    if target.kind == "llamacpp":
        if not stream or glance.repetition_penalty is not ABSENT:
            return False
    elif glance.repeat_penalty is not ABSENT:
        return False
    return (stream or glance.stream_options is ABSENT) and content.all_text(glance.messages)


def _members(request: Request, target: Target) -> Members:
    """What is sent instead of the request's members; the same object where nothing changes."""
    members = request.members
    changes: dict[str, Raw | None] = {}
    if "model" not in members or load(members["model"]) != target.model:
        changes["model"] = Raw(dump(target.model))
    for member in ("framework", "embedding_model"):
        if member in members:
            changes[member] = None
    for name, value in target.options.items():
        if name not in members:
            changes[name] = Raw(dump(value))
    for usual, own in SYNONYMS.get(target.kind, {}).items():
        if usual in members and own not in members:
            changes |= {usual: None, own: members[usual]}
    if "stream_options" in members and not request.stream:
        changes["stream_options"] = None  # vLLM: 400
    if target.kind == "transformers" and request.endpoint in _TEXT:
        changes |= _generation_config(members)
    if request.endpoint in _TEXT and not request.stream and UNGATHERED.isdisjoint(members):
        changes |= GATHERED.get(target.kind, {})
    if request.endpoint in GATHERED_TYPED.get(target.kind, ()) and not request.stream:
        changes["stream"] = Raw(b"true")
    if not changes:
        return members
    merged: dict[str, Any] = members | changes
    return {name: value for name, value in merged.items() if value is not None}


def _generation_config(members: Members) -> dict[str, Raw | None]:
    given = {name: load(members[name]) for name in GENERATION_CONFIG if name in members}
    if not given:
        return {}
    own = load(members["generation_config"]) if "generation_config" in members else "{}"
    try:
        merged = given | (load_object(own) if isinstance(own, str) else own or {})
    except InvalidJson:
        raise error("invalid_value", "`generation_config` is not a JSON object.", param="generation_config") from None
    return dict.fromkeys(given) | {"generation_config": Raw(dump(dump(merged).decode()))}


def _several(request: Request) -> bool:
    """May more than one choice come?"""
    if request.endpoint not in _TEXT:
        return False
    if request.glance is not None:
        return bytes(request.glance.n) not in (b"", b"1", b"null")
    members = request.members
    return bytes(members.get("n", b"1")) not in (b"1", b"null") or bytes(members.get("prompt", b"")).startswith(b"[")


def _last_response(events: list[JsonObject]) -> JsonObject:
    """The Responses API's object, from the stream that ends with it."""
    for event in reversed(events):
        if isinstance(event.get("response"), dict):
            response: JsonObject = event["response"]
            return response
    raise error("upstream_incomplete", "The engine ended the answer before it was complete. Try again.")


_JOIN: Final[dict[Endpoint, Callable[[list[JsonObject]], JsonObject]]] = {
    "chat": gather_chat,
    "responses": _last_response,
    "messages": gather_message,
}


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(16)


DIALECT: Final = OpenAI()
