"""The checks of `illm smoke`, as a table: each asks a server one thing and says how that went.

A check gives its outcome and a detail for people, or raises `Failed`. What a refusal means, and what the outcomes mean
together, is in `smoke`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from proxy.commands.client import Item, Refused, Server
from proxy.commands.source import Failed

Outcome = Literal["passed", "failed", "absent", "skipped"]
Said = tuple[Outcome, str]

PROMPT: Final = "Once upon a time"
QUESTION: Final = "Say hello in one short sentence."
TOKENS: Final = 16
NOBODY: Final = "illm-smoke/no-such-model"
SHOWN: Final = 40  # characters of an answer in the table
TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Check(NamedTuple):
    name: str
    core: bool
    work: Callable[[Server, str], Said]


@dataclass(frozen=True, slots=True)
class Result:
    """`seconds` it took; `refusal`: the server's, where it gave one."""

    name: str
    core: bool
    outcome: Outcome
    seconds: float
    detail: str
    refusal: Refused | None = None


def _reachable(asked: Server, _: str) -> Said:
    """It speaks HTTP and lets us in; whether it has a list of models is another question."""
    try:
        asked.models()
    except Refused as exc:
        if exc.status in (401, 403) or 300 <= exc.status < 400:
            raise
    return "passed", asked.url


def _models(asked: Server, model: str) -> Said:
    names = [str(entry["id"]) for entry in asked.models()]
    if model in names:
        return "passed", f"lists it, and {len(names) - 1} more" if len(names) > 1 else "lists it, and no other"
    return "failed", f"it has: {', '.join(names[:8]) or 'none'}{', …' if len(names) > 8 else ''}"


def _completion(asked: Server, model: str) -> Said:
    answer = asked.post("/completions", _text(model))
    return "passed", f"{_shown(_choice(answer, 'text'))}{_used(answer)}"


def _chat(asked: Server, model: str) -> Said:
    answer = asked.post("/chat/completions", _question(model))
    message = _choice(answer, "message")
    if not isinstance(message, dict):
        raise Failed("its answer has no choices[0].message")
    return "passed", f"{_shown(_words(message))}{_used(answer)}"


def _streamed_completion(asked: Server, model: str) -> Said:
    return _streamed(asked, "/completions", _text(model), lambda choice: choice.get("text"))


def _streamed_chat(asked: Server, model: str) -> Said:
    return _streamed(asked, "/chat/completions", _question(model), lambda choice: _words(choice.get("delta")))


def _tools(asked: Server, model: str) -> Said:
    question = [{"role": "user", "content": "What is the weather in Bern? Use the tool."}]
    answer = asked.post("/chat/completions", {"model": model, "messages": question, "tools": [TOOL], "max_tokens": 200})
    message = _choice(answer, "message")
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list) or not calls:
        return "absent", "it answered without calling the tool"
    function = calls[0].get("function") if isinstance(calls[0], dict) else None
    if not isinstance(function, dict):
        return "failed", "its call names no function"
    return "passed", f"{function.get('name')}({_cut(str(function.get('arguments')))})"


def _embeddings(asked: Server, model: str) -> Said:
    answer = asked.post("/embeddings", {"model": model, "input": ["a", "b"]})
    data = answer.get("data") if isinstance(answer, dict) else None
    vectors = [entry.get("embedding") for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    if len(vectors) != 2 or not all(isinstance(vector, list) and vector for vector in vectors):
        return "failed", "it did not answer with a vector for each text"
    return "passed", f"{len(vectors[0] or ())} dimensions"


def _unknown_model(asked: Server, _: str) -> Said:
    """A client that mistypes a name must be told."""
    try:
        asked.post("/completions", _text(NOBODY))
    except Refused as exc:
        if exc.status >= 500:
            raise
        form = "in OpenAI's form" if exc.enveloped else "not in OpenAI's form"
        return "passed" if exc.enveloped and exc.status == 404 else "absent", f"{exc.status}, {form}"
    return "absent", "it takes any name"


CHECKS: Final = (
    Check("reachable", True, _reachable),
    Check("models", False, _models),
    Check("completion", True, _completion),
    Check("streamed completion", True, _streamed_completion),
    Check("chat", False, _chat),
    Check("streamed chat", False, _streamed_chat),
    Check("tools", False, _tools),
    Check("embeddings", False, _embeddings),
    Check("unknown model", False, _unknown_model),
)


# -- what they share ---------------------------------------------------------------------------------------------


def _text(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}


def _question(model: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}


def _streamed(asked: Server, path: str, body: dict[str, Any], text: Callable[[dict[str, Any]], Any]) -> Said:
    """Chunks, `[DONE]` behind the last of them, the usage in one; nothing that is no event."""
    began, first, last, pieces, usage, items = time.perf_counter(), 0.0, 0.0, 0, False, list[Item]()
    with closing(asked.stream(path, {**body, "stream": True, "stream_options": {"include_usage": True}})) as stream:
        for item in stream:
            items.append(item)
            usage = usage or bool(item.chunk.get("usage"))
            if any(text(choice) for choice in _choices(item.chunk)):
                last = time.perf_counter()
                first, pieces = first or last, pieces + 1
    stray = next((item.text for item in items if item.kind == "stray"), None)
    if stray is not None:
        return "failed", f"a line in it belongs to no event stream: {_cut(stray)}"
    if not any(_choices(item.chunk) for item in items):
        return "failed", "no event in it has choices"
    if items[-1].kind != "end":
        return "failed", "it ended without [DONE]"
    told = f"{pieces} pieces, the first after {(first - began) * 1000:.0f} ms" if pieces else "an empty answer"
    return "passed", told + ("" if usage else ", no usage")


def _choices(chunk: Any) -> list[dict[str, Any]]:
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _choice(answer: Any, member: str) -> Any:
    choices = _choices(answer)
    if not choices or member not in choices[0]:
        raise Failed(f"its answer has no choices[0].{member}")
    return choices[0][member]


def _words(message: Any) -> str:
    """An answer's, or its thoughts."""
    if not isinstance(message, dict):
        return ""
    return str(message.get("content") or message.get("reasoning_content") or message.get("reasoning") or "")


def _used(answer: Any) -> str:
    usage = answer.get("usage")
    return f", {usage.get('completion_tokens')} tokens" if isinstance(usage, dict) else ", no usage"


def _shown(text: Any) -> str:
    return f"“{_cut(text)}”" if isinstance(text, str) and text.strip() else "an empty answer"


def _cut(text: str) -> str:
    one = " ".join(text.split())
    return one if len(one) <= SHOWN else one[: SHOWN - 1] + "…"
