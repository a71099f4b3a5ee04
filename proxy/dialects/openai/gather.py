"""A stream folded into the plain answer that the same engine would have given.

Some engines go on generating after the client of a plain request has gone, and stop at once when a stream is closed.
They are asked for a stream (with `stream_options.include_usage`, as a plain answer always has its usage) even when
the client wants a plain answer; this file puts that answer together. Sans-IO: one `add` for each parsed event.

What can't be told from a stream and so may differ from the engine's own plain answer: an answer without any text
gets `content: ""`, and llama-server's `__verbose` has its `content` and `tokens` empty, as they stand in the stream.

Not here: framing, what an error object means, and the public name of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar, Final

from proxy.errors import ApiError, error
from proxy.wire import JsonObject

Failure = Callable[[JsonObject], ApiError]

_TEXT: Final = frozenset({"text", "content", "reasoning_content", "reasoning", "refusal", "arguments"})
# Members of a chunk that speak of the stream and have no place in a plain answer.
_STREAM_ONLY: Final = frozenset({"choices", "object", "prompt_progress"})


class Gather:
    """One answer in the making. `failure` makes the error to raise from an event that is an error object; without
    it that is `upstream_error` with the event's own words.

    Text is kept in pieces until `result`, so that a long answer costs no more than its length.
    """

    __slots__ = ("_choices", "_failure", "_owner", "_ranks", "_top")

    _object: ClassVar[str]

    def __init__(self, failure: Failure | None = None) -> None:
        self._failure = failure or _upstream_error
        self._choices: dict[int, JsonObject] = {}
        self._top: JsonObject = {}
        self._ranks: dict[str, tuple[bool, int]] = {}
        self._owner = 0

    def add(self, event: JsonObject | None) -> None:
        """The next event's object; None stands for `data: null`, which llama-server sends while a prompt waits
        for a slot. Raises what `failure` makes of an error object."""
        if event is None:
            return
        if event.get("error") or event.get("object") == "error":
            raise self._failure(event)
        choices = event.get("choices") or ()
        try:
            for choice in choices:
                self._owner = choice.get("index", 0)
                state = self._choices.setdefault(self._owner, {"index": self._owner, "finish_reason": None})
                self._add_choice(state, choice)
        except (AttributeError, TypeError) as exc:  # no object where one belongs
            raise error("upstream_invalid_response", "The engine sent a malformed chunk.") from exc
        self._add_top(event, closing=not choices)

    def result(self) -> JsonObject:
        """The whole answer, once the stream has ended. Raises `upstream_incomplete` where it ended before every
        choice had its finish reason."""
        if not self._choices or any(not c["finish_reason"] for c in self._choices.values()):
            raise error("upstream_incomplete", "The engine's answer ended before it was finished. Try again.")
        choices = [self._finish(self._choices[index]) for index in sorted(self._choices)]
        return {**self._top, "object": self._object, "choices": choices}

    def _add_choice(self, state: JsonObject, choice: JsonObject) -> None:
        for key, value in choice.items():
            if key == "logprobs":
                _merge_object(state, key, value)
            elif key == "finish_reason":
                state[key] = value or state[key]
            else:
                _merge(state, key, value)

    def _add_top(self, event: JsonObject, *, closing: bool) -> None:
        """With several choices each may bring a usage and timings of its own; the plain answer has the first
        choice's. A chunk without choices closes the choice before it, and weighs more than one with."""
        rank = (closing, -self._owner)
        for key, value in event.items():
            if key in _STREAM_ONLY:
                continue
            if value is None:
                self._top.setdefault(key, None)
            elif rank >= self._ranks.get(key, rank):
                self._top[key], self._ranks[key] = value, rank

    def _finish(self, state: JsonObject) -> JsonObject:
        return _join(state)


class ChatGather(Gather):
    """Chunks of `/v1/chat/completions`."""

    __slots__ = ()

    _object = "chat.completion"

    def _add_choice(self, state: JsonObject, choice: JsonObject) -> None:
        message = state.setdefault("message", {"role": "assistant", "content": []})
        for key, value in (choice.get("delta") or {}).items():
            if key == "tool_calls":
                _add_calls(message.setdefault("tool_calls", {}), value or ())
            else:
                _merge(message, key, value)
        super()._add_choice(state, {key: value for key, value in choice.items() if key != "delta"})

    def _finish(self, state: JsonObject) -> JsonObject:
        message = _join(state["message"])
        calls = message.pop("tool_calls", None)
        if calls:
            message["tool_calls"] = [
                {**calls[index], "function": _join(calls[index]["function"])} for index in sorted(calls)
            ]
        return _join({**state, "message": message})


class CompletionGather(Gather):
    """Chunks of `/v1/completions`."""

    __slots__ = ()

    _object = "text_completion"

    def _add_choice(self, state: JsonObject, choice: JsonObject) -> None:
        state.setdefault("text", [])
        super()._add_choice(state, choice)


def gather_chat(events: Iterable[JsonObject | None], failure: Failure | None = None) -> JsonObject:
    """`ChatGather` over all events at once."""
    return _gather(ChatGather(failure), events)


def gather_completion(events: Iterable[JsonObject | None], failure: Failure | None = None) -> JsonObject:
    """`CompletionGather` over all events at once."""
    return _gather(CompletionGather(failure), events)


def _gather(gather: Gather, events: Iterable[JsonObject | None]) -> JsonObject:
    for event in events:
        gather.add(event)
    return gather.result()


def _upstream_error(event: JsonObject) -> ApiError:
    told = event.get("error") or event
    message = told.get("message") if isinstance(told, dict) else told
    return error("upstream_error", message if isinstance(message, str) else "The engine reported an error.")


def _merge(into: JsonObject, key: str, value: object) -> None:
    """Adds a delta's member: text and lists grow, anything else is replaced unless by nothing. What is null all
    along is null in the end, and what never came stays absent."""
    if value is None:
        into.setdefault(key, None)
    elif isinstance(value, list) or (isinstance(value, str) and key in _TEXT):
        have = into.get(key)
        if have is None:
            have = into[key] = []
        have.extend(value if isinstance(value, list) else [value])
    elif value != "" or key not in into:
        into[key] = value


def _merge_object(into: JsonObject, key: str, value: JsonObject | None) -> None:
    """`_merge` for a member whose own members grow: logprobs, whose lists all run parallel to the text."""
    have = into.setdefault(key, None)
    if value is not None:
        if have is None:
            have = into[key] = {}
        for name, part in value.items():
            _merge(have, name, part)


def _add_calls(calls: dict[int, JsonObject], deltas: Iterable[JsonObject]) -> None:
    for delta in deltas:
        index = delta.get("index")
        if index is None:  # some engines leave it out and send each call in one piece, or its id in the first
            index = len(calls) if delta.get("id") or not calls else len(calls) - 1
        call = calls.setdefault(index, {"type": "function", "function": {"name": "", "arguments": []}})
        for key, value in delta.items():
            if key == "function":
                for name, part in (value or {}).items():
                    _merge(call["function"], name, part)
            elif key != "index":
                _merge(call, key, value)


def _join(state: JsonObject) -> JsonObject:
    """The same object with the pieces of each text put together."""
    return {
        key: "".join(value) if key in _TEXT and isinstance(value, list) and _is_text(value) else value
        for key, value in state.items()
    }


def _is_text(pieces: list[object]) -> bool:
    return all(isinstance(piece, str) for piece in pieces)
