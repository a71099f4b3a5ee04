"""Answers of TGI's own /v1 made into OpenAI's: ids, names, finish reasons, stop strings, tool calls, usage.

One `ReplyFixer` for one answer, whole or streamed, on parsed JSON. It keeps account of every choice, because TGI's
streams leave things out: a tool call ends without a finish reason, usage comes on a chunk with text, and a token
limit above 1024 is overrun.

Not here: framing, errors (`tgi_errors`), the request (`tgi_request`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.dialects.base import Endpoint, Target
from proxy.dialects.openai.tgi_logprobs import LogprobQueue, whole_logprobs
from proxy.dialects.openai.tgi_request import has_tools_only
from proxy.dialects.shared.openai_in import output_limit, stop_strings, wants_usage, with_defaults
from proxy.dialects.shared.tgi_errors import decode_tgi_event
from proxy.errors import ApiError, error
from proxy.stop_filter import StopFilter
from proxy.wire import JsonObject, dump

_REASONS: Final[dict[str, str | None]] = {"stop_sequence": "stop", "eos_token": "stop", "": None}
_EOS: Final = frozenset(("stop", "eos_token"))  # chat says stop where the model's end token came
_CALL_ID: Final = len("call_") + 24


@dataclass(slots=True)
class _Choice:
    """One choice of a stream."""

    filter: StopFilter
    prompt: str | None = None  # echo: still to be sent in front
    fresh: bool = True  # nothing was sent: the role is still due
    pieces: int = 0  # TGI sends a chunk for every token
    logprobs: LogprobQueue = field(default_factory=LogprobQueue)
    calls: set[int] = field(default_factory=set)
    usage: JsonObject | None = None
    finished: bool = False


class ReplyFixer:
    """Fixes one answer. `request`: the client's body, as it came. `ids` makes an id from its prefix and at least 32
    hex digits; it is called only where TGI gave none (or a mere number, for tool calls)."""

    def __init__(self, endpoint: Endpoint, request: JsonObject, target: Target, ids: Callable[[str], str]) -> None:
        asked = with_defaults(request, target)
        self.stopped = False  # the answer is complete although TGI goes on: close the upstream
        self.last = True  # nothing follows it in the client's stream
        self._chat = endpoint == "chat"
        self._endpoint = endpoint
        self._target = target
        self._ids = ids
        self._id = ""
        self._stops = stop_strings(asked)
        self._limit = output_limit(endpoint, asked)
        self._tools = has_tools_only(asked)
        self._wants_usage = wants_usage(asked)
        self._logprobs = self._chat and asked.get("logprobs") is True
        self._top = asked.get("top_logprobs") or 0
        prompt = asked.get("prompt") if not self._chat else None
        self._prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
        self._echo = not self._chat and bool(asked.get("echo"))
        self._choices = {index: self._new_choice(index) for index in range(len(self._prompts))}
        self._common: JsonObject = {}  # what every chunk repeats
        self._usage: JsonObject | None = None
        self._cut = False  # a choice was ended here, not by TGI

    # -- whole ---------------------------------------------------------------------------------------------------

    def whole(self, body: JsonObject) -> JsonObject:
        """A complete answer. Raises `ApiError` where it isn't one."""
        choices = body.get("choices")
        if not isinstance(choices, list):
            if body.get("error"):
                raise decode_tgi_event(body, self._endpoint, self._target.backend, tools=self._tools)
            raise self._nonsense()
        fixed = sorted((self._whole_choice(self._dict(choice)) for choice in choices), key=lambda c: c["index"])
        return {**body, **self._identity(body), "choices": fixed}

    def _whole_choice(self, choice: JsonObject) -> JsonObject:
        index, told = _index(choice), choice.get("finish_reason")
        reason = _REASONS.get(told, told) if isinstance(told, str) else None
        out: JsonObject = {"index": index}
        if not self._chat:
            text, stopped = self._cut_text(choice.get("text"))
            echo = self._choices[index].prompt if index in self._choices else None
            return out | {"text": (echo or "") + text, "logprobs": None, "finish_reason": "stop" if stopped else reason}
        message = dict(self._dict(choice.get("message")))
        calls = message.get("tool_calls")
        if calls:
            message["tool_calls"] = [self._whole_call(self._dict(call)) for call in self._list(calls)]
            reason = "tool_calls" if reason == "stop" else reason
        logprobs = None
        if isinstance(message.get("content"), str):
            message["content"], stopped = self._cut_text(message["content"])
            reason = "stop" if stopped else reason
            if self._logprobs:
                shown = len(message["content"]) if stopped else None
                logprobs = whole_logprobs(choice.get("logprobs"), self._top, eos=told in _EOS, shown=shown)
        message = {"role": "assistant", "content": None, "refusal": None} | message
        return out | {"message": message, "logprobs": logprobs, "finish_reason": reason}

    def _cut_text(self, text: Any) -> tuple[str, bool]:
        if not isinstance(text, str):
            raise self._nonsense()
        stop = StopFilter(self._stops)
        return stop.feed(text) + stop.end(), stop.stopped

    def _whole_call(self, call: JsonObject) -> JsonObject:
        function = dict(self._dict(call.get("function")))
        if function.get("description") is None:
            function.pop("description", None)
        function["arguments"] = _text_of(function.get("arguments", {}))
        return {**call, "id": self._call_id(call.get("id")), "type": "function", "function": function}

    # -- stream --------------------------------------------------------------------------------------------------

    def event(self, chunk: JsonObject) -> list[JsonObject]:
        """The chunks to send for one of TGI's. Error events are the caller's to find first."""
        own = ("choices", "usage", "id", "model")
        self._common = {name: value for name, value in chunk.items() if name not in own}
        self._common = self._identity(chunk) | self._common
        usage, choices = chunk.get("usage"), self._list(chunk.get("choices"))
        if isinstance(usage, dict) and not choices:
            self._usage = usage
        out: list[JsonObject] = []
        for choice in choices:
            index = _index(self._dict(choice))
            state = self._choices.setdefault(index, self._new_choice(index))
            if isinstance(usage, dict):
                state.usage = usage
            if not state.finished:
                out += self._one(index, state, choice)
        self.stopped = self._cut and all(state.finished for state in self._choices.values())
        return out

    def end(self, *, marked: bool = True) -> list[JsonObject]:
        """The upstream's stream is over: what has to come before [DONE]. `marked`: TGI sent its own [DONE], which
        alone tells a tool call that is complete. Raises `ApiError` `upstream_incomplete`."""
        out: list[JsonObject] = []
        for index, state in sorted(self._choices.items()):
            if state.finished:
                continue
            if not (marked and state.calls):
                raise self._incomplete(state)
            state.finished = True  # TGI swallows the event that would have said so
            out.append(self._chunk(index, {"delta": {}}, "tool_calls"))
        if self._wants_usage:
            out.append(self._common | {"choices": [], "usage": self._total()})
        return out

    def _one(self, index: int, state: _Choice, choice: JsonObject) -> list[JsonObject]:
        """The next piece of a choice."""
        told = choice.get("finish_reason")
        reason = _REASONS.get(told, told) if isinstance(told, str) else None
        state.pieces += 1
        cut = reason is None and self._limit is not None and state.pieces >= self._limit
        delta = self._dict(choice.get("delta")) if self._chat else {}
        text = delta.get("content") if self._chat else choice.get("text")
        if not self._chat and told == "eos_token":
            text = ""  # the end token's own text
        text = text if isinstance(text, str) else ""
        if self._logprobs:
            state.logprobs.add(choice.get("logprobs"), self._top, text, eos=told in _EOS)
        shown = state.filter.feed(text)
        if reason is not None or cut:
            shown += state.filter.end()
        if state.filter.stopped:
            cut = reason is None
            reason = "stop"
        elif cut:
            reason = "length"
        calls = self._call_pieces(state, delta.get("tool_calls"))
        if reason == "stop" and state.calls:
            reason = "tool_calls"
        self._cut = self._cut or cut
        state.finished = reason is not None
        entries = state.logprobs.take(len(shown), stopped=state.filter.stopped, last=state.finished)
        return self._pieces(index, state, shown, calls, entries, reason)

    def _pieces(
        self,
        index: int,
        state: _Choice,
        shown: str,
        calls: list[JsonObject],
        entries: list[JsonObject],
        reason: str | None,
    ) -> list[JsonObject]:
        out: list[JsonObject] = []
        if state.prompt is not None:
            out.append(self._chunk(index, {"text": state.prompt}, None))
            state.prompt = None
        if not (shown or calls or entries or reason is not None):
            return out
        if not self._chat:
            return [*out, self._chunk(index, {"text": shown}, reason)]
        delta: JsonObject = {"role": "assistant"} if state.fresh else {}
        if calls:
            delta["tool_calls"] = calls
        if shown or (not calls and (state.fresh or entries)):
            delta["content"] = shown
        state.fresh = False
        logprobs = {"content": entries, "refusal": None} if entries else None
        return [self._chunk(index, {"delta": delta}, reason, logprobs)]

    def _call_pieces(self, state: _Choice, calls: Any) -> list[JsonObject]:
        """Tool calls of a delta: name, id and type once, then arguments only."""
        out: list[JsonObject] = []
        for call in [calls] if isinstance(calls, dict) else self._list(calls):
            function, index = self._dict(self._dict(call).get("function")), _index(call)
            arguments = _text_of(function.get("arguments"))
            if index not in state.calls:
                state.calls.add(index)
                named = {"name": function.get("name") or "", "arguments": arguments}
                out.append({"index": index, "id": self._call_id(call.get("id")), "type": "function", "function": named})
            elif arguments:
                out.append({"index": index, "function": {"arguments": arguments}})
        return out

    # -- parts ---------------------------------------------------------------------------------------------------

    def _new_choice(self, index: int) -> _Choice:
        prompt = self._prompts[index] if self._echo and index < len(self._prompts) else None
        return _Choice(StopFilter(self._stops), prompt=prompt)

    def _identity(self, body: JsonObject) -> JsonObject:
        """The members that name the answer; the id is found once."""
        given = body.get("id")
        if not self._id:
            self._id = given if isinstance(given, str) and given else self._ids("chatcmpl-" if self._chat else "cmpl-")
        return {"id": self._id, "model": self._target.public}

    def _chunk(
        self, index: int, part: JsonObject, reason: str | None, logprobs: JsonObject | None = None
    ) -> JsonObject:
        choice = {"index": index, **part, "logprobs": logprobs, "finish_reason": reason}
        return self._common | {"choices": [choice]} | ({"usage": None} if self._wants_usage else {})

    def _total(self) -> JsonObject:
        """What TGI counted; where it was cut short, the tokens that came."""
        if self._usage is not None:
            return self._usage
        prompt = completion = 0
        for state in self._choices.values():
            counted = state.usage or {}
            prompt += _count(counted.get("prompt_tokens"), 0)
            completion += _count(counted.get("completion_tokens"), state.pieces)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _call_id(self, given: Any) -> str:
        if isinstance(given, str) and given and not given.isdigit():
            return given
        return self._ids("call_")[:_CALL_ID]

    def _dict(self, value: Any) -> JsonObject:
        if not isinstance(value, dict):
            raise self._nonsense()
        return value

    def _list(self, value: Any) -> list[Any]:
        if value is not None and not isinstance(value, list):
            raise self._nonsense()
        return value or []

    def _nonsense(self) -> ApiError:
        return error(
            "upstream_invalid_response",
            f"Backend '{self._target.backend}' (TGI) answered something that is no OpenAI reply. Check its version.",
        )

    def _incomplete(self, state: _Choice) -> ApiError:
        hint = "Try again."
        if self._tools and not state.pieces:
            hint = "Most likely the output limit fell inside a tool call: raise max_tokens."
        return error(
            "upstream_incomplete", f"Backend '{self._target.backend}' (TGI) ended the answer too early. {hint}"
        )


def _index(part: JsonObject) -> int:
    index = part.get("index")
    return index if isinstance(index, int) else 0


def _text_of(arguments: Any) -> str:
    """A call's arguments as OpenAI has them: JSON in a string."""
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return dump(arguments).decode()


def _count(tokens: Any, otherwise: int) -> int:
    return tokens if isinstance(tokens, int) else otherwise
