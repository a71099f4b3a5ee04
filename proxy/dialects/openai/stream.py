"""Streams of engines that speak OpenAI: relayed as they come, looked into only where something has to change.

A read that is one event like the last, but for its text (`usual`), or that holds whole events and none of the marks
below, is handed on unparsed, but for the model's name. A mark
(an error, a finish reason, usage, the end) sends the events of that read through `_inspect`, one by one. Every piece
returned ends at an event boundary, so a comment or an error may follow any of them.

Not here: framing itself (`framing`), what TGI's own /v1 needs (`tgi`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from proxy.dialects.base import Endpoint, StreamDecoder, Target, Usage
from proxy.dialects.openai.names import Renamer
from proxy.dialects.openai.reply import rename_reasoning, usage_of
from proxy.dialects.openai.usual import UsualEvent, usual_event
from proxy.dialects.shared.errors import decode_error_event
from proxy.errors import ApiError, error
from proxy.events import DONE, error_events
from proxy.framing import Event, FrameTooLong, SseParser, complete_prefix, split_events
from proxy.wire import InvalidJson, JsonObject, dump, load_object

LIMIT: Final = 16 * 1024 * 1024  # one event
PATTERNS: Final = 8  # as often as a stream may change the way it writes its events, before that is given up

# What makes a read worth parsing, as engines write JSON without spaces (others are always parsed: _SPACED). Each test
# is one search for fixed bytes; a mark inside generated text costs a parse and changes nothing.
_MARKS: Final[tuple[bytes, ...]] = (b"[DONE]", b'"error"', b"error:", b'"finish_reason":"', b'"usage":{')
_TYPED_MARKS: Final[tuple[bytes, ...]] = (b'"type":"error"', b"message_", b'"type":"response.')
_SPACED: Final = re.compile(rb'"(?:id|object|choices|model|type)"\s+:|"(?:id|object|choices|model|type)":\s')

# The event that ends a stream which has no [DONE].
_TERMINAL: Final[dict[Endpoint, frozenset[str]]] = {
    "responses": frozenset(("response.completed", "response.failed", "response.incomplete", "error")),
    "messages": frozenset(("message_stop", "error")),
}
# Where OpenAI's `choices` and its closing [DONE] are to be expected.
_CHOICES: Final = frozenset(("chat", "completions"))


class Fixer(Protocol):
    """Changes chunk by chunk, for an engine whose chunks can't be passed on as they are."""

    @property
    def stopped(self) -> bool:
        """The answer is complete although the engine goes on."""

    @property
    def last(self) -> bool:
        """The client's stream ends with this one: after `end`, the end marker is due."""

    def event(self, chunk: JsonObject) -> list[JsonObject]: ...

    def end(self, *, marked: bool = True) -> list[JsonObject]: ...


class PassThroughDecoder(StreamDecoder):
    """Of Server-Sent Events. `several`: more than one choice may come, so each chunk's index
    matters for knowing whether all of them ended."""

    def __init__(
        self,
        endpoint: Endpoint,
        target: Target,
        *,
        several: bool = False,
        fixer: Fixer | None = None,
        failure: Callable[[JsonObject], ApiError] | None = None,
    ) -> None:
        self.done = False
        self.cut = False
        self.usage: Usage | None = None
        self._endpoint = endpoint
        self._target = target
        self._fixer = fixer
        self._decode_failure = failure
        self._renamer = Renamer(target.public)
        self._marks = _TYPED_MARKS if endpoint in _TERMINAL else _MARKS
        self._always = several or fixer is not None or target.reasoning_field != "passthrough"
        self._begun = False
        self._usual: UsualEvent | None = None
        self._patterns = PATTERNS if endpoint in _CHOICES else 0  # that may still be learned
        self._rest = b""
        self._pending = b""
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._ended = False  # a terminal event went by, for endpoints without [DONE]
        self._last = b""  # the last typed event: an error's running number follows its

    # -- StreamDecoder ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        if self.done:
            return b""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        elif (usual := self._usual) is not None and usual.fits(data):
            return usual.renamed(data)
        end = complete_prefix(data)
        if end != len(data):
            self._rest = data[end:]
            if len(self._rest) > LIMIT:
                raise self._broken("sent an event of more than 16 MiB")
            data = data[:end]
        if not data:
            return b""
        if not self._begun:
            data = self._begin(data)
        if self._always:
            return self._inspect(data)
        for mark in self._marks:
            if data.find(mark) >= 0:  # `in` would first make an error of its not being a number
                return self._inspect(data)
        if self._patterns:
            self._patterns -= 1
            self._usual = usual_event(data, self._renamer)
        return self._rename(data)

    def flush(self) -> bytes:
        rest, self._rest = self._rest, b""
        if rest and not self.done and _unbroken(rest):  # some servers leave out the last blank line
            self._pending = self._inspect(rest + b"\n\n") if self._begun else self._inspect(self._begin(rest + b"\n\n"))
        if self.done:
            return self.take_pending()
        if self._fixer is not None:
            self._pending += self._events(self._fixer.end(marked=False))
            return self._close()
        if self._endpoint not in _CHOICES:
            if self._ended or self._endpoint not in _TERMINAL:
                self.done = True
                return self.take_pending()
        elif self._finished and self._seen <= self._finished:
            return self._close()
        raise error("upstream_incomplete", f"Backend '{self._target.backend}' ended the stream too early. Try again.")

    def error(self, exc: ApiError) -> bytes:
        self.done = True
        return error_events(self._endpoint, exc, self._last)

    def take_pending(self) -> bytes:
        pending, self._pending = self._pending, b""
        return pending

    # -- inside ----------------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> bytes:
        """Skip comments before the first event (the head waits for an event) and learn how this engine writes."""
        if data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        data = data.lstrip(b"\r\n")  # the rest of a CRLF, say: no event yet
        while data.startswith(b":"):
            first = split_events(data)[0]
            if not _only_comments(first):
                break
            data = data[len(first) :]
        if data:
            self._begun = True
            if self._endpoint not in _TERMINAL:
                self._renamer.learn(data)
            self._always = self._always or _SPACED.search(data) is not None
            if self._endpoint in _CHOICES:
                self._seen.add(0)
        return data

    def _inspect(self, data: bytes) -> bytes:
        """The events of one read, one by one; what is decoded before an error waits in `pending`."""
        out: list[bytes] = []
        try:
            for raw in split_events(data):
                out.append(self._one(raw))
                if self.done:
                    break
        except ApiError:
            self._pending += b"".join(out)
            raise
        return b"".join(out)

    def _one(self, raw: bytes) -> bytes:
        try:
            events = SseParser().feed(raw)
        except FrameTooLong:
            raise self._broken("sent an event of more than 16 MiB") from None
        if not events:
            return raw  # a comment
        return b"".join(self._decode(event, raw) for event in events[:1])

    def _decode(self, event: Event, raw: bytes) -> bytes:
        old_error = event.fields.get("error")  # llama.cpp before late 2025
        if old_error is not None:
            raise self._failure({"error": _object(old_error) or {"message": old_error}})
        data = event.data
        if data is None:
            return raw
        if data.startswith("[DONE]"):
            return self._on_done()
        if data == "null":  # llama-server, when more choices are asked for than it has slots
            return b""
        body = _object(data)
        if body is None:
            return self._renamer.apply(raw)
        if self._endpoint in _TERMINAL:
            return self._typed(body, raw)
        if body.get("error") or body.get("object") == "error":
            raise self._failure(body)
        if (usage := usage_of(body)) is not None:
            self.usage = usage
        return self._chunk(body, raw)

    def _on_done(self) -> bytes:
        extra = self._events(self._fixer.end()) if self._fixer is not None else b""
        self.done = True
        return extra + self._marker()

    def _typed(self, body: JsonObject, raw: bytes) -> bytes:
        """An event of the Responses or Messages API."""
        kind = body.get("type")
        if kind in _TERMINAL[self._endpoint]:
            self._ended = True
            if kind == "error":
                raise self._failure(body)
        self._last = raw
        if (usage := usage_of(body)) is not None:
            before = self.usage or Usage()  # message_start counts the prompt, message_delta the answer
            self.usage = Usage(usage.prompt or before.prompt, usage.completion or before.completion)
        if not self._renamer.known:
            self._renamer.learn(raw, _named(body))
        return self._renamer.apply(raw)

    def _chunk(self, body: JsonObject, raw: bytes) -> bytes:
        if self._fixer is not None:
            out = self._events(self._fixer.event(body))
            if self._fixer.stopped:
                self.done = self.cut = True
                return out + self._events(self._fixer.end()) + self._marker()
            return out
        changed = self._note_finish(body)
        if self._target.reasoning_field != "passthrough":
            changed = rename_reasoning(body, "delta", self._target.reasoning_field) or changed
        if changed:
            if "model" in body:
                body["model"] = self._target.public
            return _event(body)
        return self._rename(raw)

    def _rename(self, raw: bytes) -> bytes:
        if not self._renamer.known:  # the first event doesn't always name the model
            self._renamer.learn(raw)
        return self._renamer.apply(raw)

    def _note_finish(self, body: JsonObject) -> bool:
        """Keep account of ended choices; put OpenAI's words for reasons it doesn't have. True if `body` changed."""
        changed = False
        for choice in body.get("choices") or ():
            if not isinstance(choice, dict):
                continue
            index, reason = choice.get("index", 0), choice.get("finish_reason")
            if not isinstance(index, int) or not isinstance(reason, str | None):
                raise self._broken("sent a choice whose index or finish_reason is of the wrong type")
            self._seen.add(index)
            if reason in FINISH_REASONS:
                reason = choice["finish_reason"] = FINISH_REASONS[reason]
                changed = True
            if reason is not None:
                self._finished.add(index)
        return changed

    def _events(self, chunks: list[JsonObject]) -> bytes:
        """The fixer's chunks; what they say of usage is what the client is told."""
        for chunk in chunks:
            self.usage = usage_of(chunk) or self.usage
        return b"".join(_event(chunk) for chunk in chunks)

    def _close(self) -> bytes:
        self.done = True
        return self.take_pending() + self._marker()

    def _marker(self) -> bytes:
        return DONE if self._fixer is None or self._fixer.last else b""

    def _failure(self, event: JsonObject) -> ApiError:
        if self._decode_failure is not None:
            return self._decode_failure(event)
        return decode_error_event(event, self._endpoint, self._target.backend)

    def _broken(self, what: str) -> ApiError:
        return error("upstream_invalid_response", f"Backend '{self._target.backend}' {what}.")


# SGLang's word for an aborted request, and what some servers send in every chunk but the last.
FINISH_REASONS: Final[dict[str | None, str | None]] = {"abort": "stop", "": None}


def _event(chunk: JsonObject) -> bytes:
    return b"data: " + dump(chunk) + b"\n\n"


def _object(text: str) -> JsonObject | None:
    try:
        return load_object(text)
    except InvalidJson:
        return None


def _named(body: JsonObject) -> str | None:
    """The model's name in a typed event: the first of a stream tells it one level down."""
    for inner in (body, body.get("response"), body.get("message")):
        if isinstance(inner, dict) and isinstance(name := inner.get("model"), str):
            return name
    return None


def _unbroken(raw: bytes) -> bool:
    """Does this last event lack nothing but its blank line? Where only the closed connection ends a body, a crash
    looks like the end."""
    data = [event.data for event in SseParser().feed(raw + b"\n\n")]
    return all(d is None or d.startswith("[DONE]") or d == "null" or _object(d) is not None for d in data)


def _only_comments(raw: bytes) -> bool:
    return all(not line or line.startswith(b":") for line in raw.splitlines())
