"""Chat and completions requests for Ollama: what is sent, and the steps before it.

Steps are taken only for images: is the model known to see (asked once for each model), and what do URLs hold.
`n` and lists of prompts become several calls. Not here: single members (`members`), messages (`messages`).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

from proxy.dialects.base import Answered, Ask, Encoded, Fetch, Learn, Plan, Request, Steps, Target
from proxy.dialects.ollama.members import ENGINE, common, options, plain_target, think
from proxy.dialects.ollama.messages import encode_messages, encode_tools, has_images
from proxy.dialects.ollama.reply import Expected, OllamaAnswers
from proxy.dialects.shared.images import fetched, local_images, with_images
from proxy.dialects.shared.openai_in import Asked, Child, dropped, fan_out, integer, prompts, read
from proxy.errors import error
from proxy.wire import InvalidJson, JsonObject, dump, load_object

Step = Generator[Ask | Fetch | Learn, Answered, None]

_DROPS: Final[dict[str, tuple[Any, ...]]] = {"logit_bias": ({},)}
_TOOL_DROPS: Final[dict[str, tuple[Any, ...]]] = {"tool_choice": ("auto", "none"), "parallel_tool_calls": (True,)}


def chat(request: Request, target: Target) -> Plan | Steps:
    """`/api/chat`. Raises `ApiError`."""
    asked = read(request, plain_target(target), ENGINE)
    members = asked.members
    given, urls = local_images(members.get("messages"), target)
    messages = encode_messages(given)
    tools = encode_tools(members.get("tools"), members.get("tool_choice"))
    lost = dropped(members, _DROPS | (_TOOL_DROPS if tools else {}), target, ENGINE)
    body = common(asked, target)
    level = think(members, target)
    if level is not None:
        body["think"] = level
    if tools:
        body["tools"] = tools

    def plan(messages: list[JsonObject]) -> Plan:
        calls = fan_out(1, asked.n)
        expected = _expected(request, asked, calls, ("",), bool(tools) and "format" not in body)
        encoded = [_call("/api/chat", body | {"messages": messages}, asked, target, one) for one in calls]
        return Plan(tuple(encoded), OllamaAnswers(expected, target), lost)

    def steps() -> Steps:
        yield from _sees(target)
        if not urls:
            return plan(messages)
        images = yield from fetched(urls)
        return plan(encode_messages(with_images(given, images)))

    return steps() if has_images(messages) else plan(messages)


def completions(request: Request, target: Target) -> Plan:
    """`/api/generate`. Raises `ApiError`."""
    asked = read(request, plain_target(target), ENGINE)
    members = asked.members
    asked_prompts = prompts(members, target, ENGINE)
    lost = dropped(members, _DROPS, target, ENGINE)
    body = common(asked, target)
    suffix = members.get("suffix")
    if suffix is not None and not isinstance(suffix, str):
        raise error("invalid_value", "`suffix` must be a text.", param="suffix")
    if suffix:
        body["suffix"] = suffix
    elif target.options.get("completions_raw") is not False:
        body |= {"raw": True, "think": False}  # without it a thinking model's text is split even when raw
    if (integer(members, "best_of", low=1) or 1) > 1:
        raise error("unsupported_value", "Ollama has no `best_of`. Use `n` and choose.", param="best_of")
    calls = fan_out(len(asked_prompts), asked.n)
    expected = _expected(request, asked, calls, _echoes(asked, asked_prompts), False)
    encoded = [
        _call("/api/generate", body | {"prompt": asked_prompts[one.prompt]}, asked, target, one) for one in calls
    ]
    return Plan(tuple(encoded), OllamaAnswers(expected, target), lost)


def _echoes(asked: Asked, asked_prompts: list[str]) -> tuple[str, ...]:
    """What is put before the answer to each prompt."""
    echo = asked.members.get("echo", False)
    if not isinstance(echo, bool):
        raise error("invalid_value", "`echo` must be true or false.", param="echo")
    if echo and asked.logprobs:
        raise error(
            "unsupported_parameter",
            "Ollama gives no logprobs of a prompt: leave out `echo` or `logprobs`.",
            param="echo",
        )
    return tuple(asked_prompts) if echo else ("",) * len(asked_prompts)


def _expected(
    request: Request, asked: Asked, calls: tuple[Child, ...], echoes: tuple[str, ...], tools: bool
) -> Expected:
    return Expected(
        asked.endpoint,
        request.stream,
        request.now,
        include_usage=asked.include_usage,
        prompts=tuple(one.prompt for one in calls),
        echoes=tuple(echoes[one.prompt] for one in calls),
        top_logprobs=asked.top if asked.logprobs else None,
        tools=tools,
    )


def _call(path: str, body: JsonObject, asked: Asked, target: Target, child: Child) -> Encoded:
    chosen = options(asked, target, child.shift)
    return Encoded(path, dump(body | {"options": chosen} if chosen else body))


def _sees(target: Target) -> Step:
    """Refuse images for a model that is known to have no eyes: older servers would answer without a look at them,
    newer ones with an error of their engine's."""
    fact = f"ollama.capabilities:{target.model}"
    known = target.facts.get(fact)
    if known is None:
        answer = yield Ask("/api/show", dump({"model": target.model}))
        known = _capabilities(answer)
        if known is None:
            return
        yield Learn(fact, known)
    if known and "vision" not in known:
        raise error(
            "unsupported_value",
            f"Model '{target.public}' can't see images (Ollama on backend '{target.backend}' lists its abilities as "
            f"{', '.join(known)}). Ask a vision model, or send text only.",
            param="messages",
        )


def _capabilities(answer: Answered) -> tuple[str, ...] | None:
    """What `/api/show` says the model can; empty where the server is too old to say, None where it gave no answer."""
    if answer.status != 200:
        return None
    try:
        listed = load_object(answer.body).get("capabilities")
    except InvalidJson:
        return None
    return tuple(one for one in listed if isinstance(one, str)) if isinstance(listed, list) else ()
