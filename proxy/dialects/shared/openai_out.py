"""OpenAI's replies and streams, built from what a translating dialect has decoded.

`chat_reply`, `completion_reply` and `embedding_reply` are whole objects. `ClientStream` is one client's stream; each
upstream answer writes its choice through a `ChoiceWriter`, so that a fan-out (several answers, one stream) has one
id, one usage chunk that adds up, and one `[DONE]`. Every piece returned ends at an event boundary.

Not here: any engine's words, the text's own rules (stop strings, limits), errors (`proxy.events`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from proxy.dialects.base import ReasoningField, Usage
from proxy.dialects.shared.logprobs import LegacyLogprobs, chat_logprobs
from proxy.events import DONE
from proxy.wire import JsonObject, dump

TextEndpoint = Literal["chat", "completions"]

_ID_PREFIX: Final[dict[TextEndpoint, str]] = {"chat": "chatcmpl-", "completions": "cmpl-"}
_REASONING: Final[dict[ReasoningField, tuple[str, ...]]] = {
    "passthrough": ("reasoning_content",),
    "reasoning_content": ("reasoning_content",),
    "reasoning": ("reasoning",),
    "both": ("reasoning", "reasoning_content"),
}


def reply_id(endpoint: TextEndpoint) -> str:
    """A new id for a reply."""
    return _ID_PREFIX[endpoint] + secrets.token_hex(16)


def call_id() -> str:
    """A new id for a tool call."""
    return "call_" + secrets.token_hex(12)


def tool_call(name: str, arguments: str, id: str | None = None, index: int | None = None) -> JsonObject:
    """A tool call; `index` only inside streams, `id` is made up where it is empty or None."""
    call = {"id": id or call_id(), "type": "function", "function": {"name": name, "arguments": arguments}}
    return call if index is None else {"index": index, **call}


def reasoning_members(text: str, field: ReasoningField) -> dict[str, str]:
    """Thinking, under the name or names that are configured."""
    return dict.fromkeys(_REASONING[field], text)


# -- whole replies -------------------------------------------------------------------------------------------


def message(
    content: str | None,
    *,
    reasoning: str = "",
    calls: Sequence[JsonObject] = (),
    field: ReasoningField = "passthrough",
) -> JsonObject:
    """A chat choice's `message`. Empty content beside tool calls becomes null."""
    built: JsonObject = {"role": "assistant", "content": (content or None) if calls else content, "refusal": None}
    if reasoning:
        built |= reasoning_members(reasoning, field)
    if calls:
        built["tool_calls"] = list(calls)
    return built


def chat_choice(index: int, built: JsonObject, reason: str, entries: Sequence[JsonObject] | None = None) -> JsonObject:
    """`entries`: None where no logprobs were asked for or delivered."""
    logprobs = None if entries is None else chat_logprobs(entries)
    return {"index": index, "message": built, "logprobs": logprobs, "finish_reason": reason}


def completion_choice(index: int, text: str, reason: str, logprobs: JsonObject | None = None) -> JsonObject:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def chat_reply(model: str, created: int, choices: list[JsonObject], usage: Usage) -> JsonObject:
    return _reply("chat", "chat.completion", model, created, choices, usage)


def completion_reply(model: str, created: int, choices: list[JsonObject], usage: Usage) -> JsonObject:
    return _reply("completions", "text_completion", model, created, choices, usage)


def embedding_reply(model: str, vectors: Iterable[Any], prompt_tokens: int) -> JsonObject:
    """`vectors`: lists of floats, or base64 texts."""
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def usage_members(usage: Usage) -> JsonObject:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def sum_usage(usages: Iterable[tuple[int, Usage]]) -> Usage:
    """Of a fan-out, given as (which prompt, usage): each prompt counts once, its answers add up. An engine that
    found a prompt in its cache may say less of it, so the highest count is the prompt's."""
    prompts: dict[int, int] = {}
    completion = 0
    for prompt, usage in usages:
        prompts[prompt] = max(prompts.get(prompt, 0), usage.prompt)
        completion += usage.completion
    return Usage(sum(prompts.values()), completion)


def _reply(
    endpoint: TextEndpoint, kind: str, model: str, created: int, choices: list[JsonObject], usage: Usage
) -> JsonObject:
    return {
        "id": reply_id(endpoint),
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_members(usage),
    }


# -- streams -------------------------------------------------------------------------------------------------

_CHUNK: Final[dict[TextEndpoint, str]] = {"chat": "chat.completion.chunk", "completions": "text_completion"}


class ClientStream:
    """What all choices of one client stream share. `answers`: how many upstream answers feed it; each gets a
    writer by `choice`. `created` may be settled by the first of them, before its first chunk."""

    __slots__ = ("_answers", "_head", "_include_usage", "_usages", "created", "endpoint", "field", "usage")

    def __init__(
        self,
        endpoint: TextEndpoint,
        model: str,
        *,
        answers: int = 1,
        include_usage: bool = False,
        created: int | None = None,
        field: ReasoningField = "passthrough",
    ) -> None:
        self.endpoint: TextEndpoint = endpoint
        self.created = created
        self.field: ReasoningField = field
        self.usage: Usage | None = None  # of all answers, once all have finished
        self._answers = answers
        self._include_usage = include_usage
        self._usages: list[tuple[int, Usage]] = []
        self._head = {"id": reply_id(endpoint), "object": _CHUNK[endpoint], "created": 0, "model": model}

    def settle(self, created: int) -> None:
        """The reply's `created`, unless it is known already."""
        if self.created is None:
            self.created = created

    def choice(
        self, index: int = 0, *, prompt: int = 0, content: str | None = "", echo: str = "", wanted: int = 0
    ) -> ChoiceWriter:
        """`prompt`: which of the request's prompts it answers. `content`: the role chunk's, null for a forced tool
        call. `echo`: a completion's prompt, sent first. `wanted`: alternatives for each token of a completion."""
        return ChoiceWriter(self, index, prompt, content, echo, wanted)

    def chunk(self, choice: JsonObject) -> bytes:
        body = self._head | {"created": self.created or 0, "choices": [choice]}
        if self._include_usage:
            body["usage"] = None
        return b"data: " + dump(body) + b"\n\n"

    def ended(self, prompt: int, usage: Usage) -> bytes:
        """One answer is complete; what follows the last one."""
        self._usages.append((prompt, usage))
        if len(self._usages) < self._answers:
            return b""
        self.usage = sum_usage(self._usages)
        if not self._include_usage:
            return DONE
        told = {"created": self.created or 0, "choices": [], "usage": usage_members(self.usage)}
        return b"data: " + dump(self._head | told) + b"\n\n" + DONE


class ChoiceWriter:
    """One choice of a `ClientStream`. The first piece of any kind brings what goes before it (a chat's role, an
    echoed prompt); pieces without text, calls or logprobs give nothing."""

    __slots__ = ("_begun", "_content", "_echo", "_index", "_legacy", "_prompt", "_stream")

    def __init__(
        self, stream: ClientStream, index: int, prompt: int, content: str | None, echo: str, wanted: int
    ) -> None:
        self._stream = stream
        self._index = index
        self._prompt = prompt
        self._content = content
        self._echo = echo
        self._legacy = LegacyLogprobs(wanted, len(echo))
        self._begun = False

    def begin(self) -> bytes:
        """The upstream's first event is understood."""
        if self._begun:
            return b""
        self._begun = True
        if self._stream.endpoint == "chat":
            return self._chunk({"delta": {"role": "assistant", "content": self._content}})
        return self._chunk({"text": self._echo}) if self._echo else b""

    def text(self, text: str, entries: Sequence[JsonObject] | None = None) -> bytes:
        if not text and not entries:
            return self.begin()
        if self._stream.endpoint == "chat":
            return self.delta({"content": text}, entries)
        return self.begin() + self._chunk({"text": text}, entries)

    def reasoning(self, text: str, entries: Sequence[JsonObject] | None = None) -> bytes:
        """Chat only."""
        if not text and not entries:
            return self.begin()
        return self.delta(reasoning_members(text, self._stream.field), entries)

    def calls(self, calls: Sequence[JsonObject], entries: Sequence[JsonObject] | None = None) -> bytes:
        """Chat only: tool calls or pieces of them, each with its index."""
        return self.delta({"tool_calls": list(calls)}, entries) if calls else self.begin()

    def delta(self, delta: JsonObject, entries: Sequence[JsonObject] | None = None) -> bytes:
        return self.begin() + self._chunk({"delta": delta}, entries)

    def finish(self, reason: str, usage: Usage) -> bytes:
        """This choice's last chunk; behind the last choice's the usage, if it was asked for, and the end marker."""
        last: JsonObject = {"delta": {}} if self._stream.endpoint == "chat" else {"text": ""}
        return self.begin() + self._chunk(last, reason=reason) + self._stream.ended(self._prompt, usage)

    def _chunk(self, body: JsonObject, entries: Sequence[JsonObject] | None = None, reason: str | None = None) -> bytes:
        logprobs = None
        if entries:
            logprobs = chat_logprobs(entries) if self._stream.endpoint == "chat" else self._legacy(entries)
        return self._stream.chunk({"index": self._index, **body, "logprobs": logprobs, "finish_reason": reason})
