"""From chat messages to the one raw prompt that `/generate` takes: by a configured template or by TGI itself.

Steps of the dialect, each a generator that asks the backend and remembers what holds for every request: what `/info`
says, and whether TGI's template puts a BOS in front that `/generate` would add again.

Not here: what messages look like (`shared.tgi_messages`), rendering (`template`), parameters.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from proxy.dialects.base import Answered, Ask, Learn, Target
from proxy.dialects.shared.openai_in import version_of
from proxy.dialects.shared.tgi_errors import decode_tgi_error
from proxy.dialects.tgi.template import compiled, render
from proxy.errors import ApiError, error
from proxy.wire import InvalidJson, JsonObject, dump, load

CHAT_TOKENIZE_SINCE: Final = (2, 3)

# Facts: what is learned once for each backend.
INFO: Final = "tgi.info"
BOS: Final = "tgi.bos"
TEMPLATE: Final = "tgi.template"


@dataclass(frozen=True, slots=True)
class Prompt:
    """`tokens`: its length as far as it is known, else 0."""

    text: str
    tokens: int = 0


def version(target: Target) -> tuple[int, ...] | None:
    """As discovery or `/info` told; None if unknown, which is taken for a recent one."""
    told = target.version or target.facts.get(INFO, {}).get("version")
    return version_of(told) if isinstance(told, str) else None


def older(target: Target, than: tuple[int, ...]) -> bool:
    known = version(target)
    return known is not None and known < than


def learn_info(target: Target) -> Generator[Ask | Learn, Answered, JsonObject]:
    """What `/info` says; empty where it says nothing usable, which is not remembered."""
    known: JsonObject | None = target.facts.get(INFO)
    if known is not None:
        return known
    answer = yield Ask("/info")
    info = _json(answer) if answer.status == 200 else None
    if not isinstance(info, dict):
        return {}
    yield Learn(INFO, info)
    return info


def rendered(
    text: str, messages: list[JsonObject], now: int, target: Target
) -> Generator[Ask | Learn, Answered, Prompt]:
    """The prompt by the configured template `text`."""
    known = target.facts.get(TEMPLATE)
    if known is None or known[0] != text:
        known = (text, compiled(text, target))
        yield Learn(TEMPLATE, known)
    prompt = render(known[1], messages, now, target)
    strip = target.options.get("strip_bos", "auto")
    return Prompt(prompt if strip in ("auto", "never") else prompt.removeprefix(strip))


def templated(body: JsonObject, target: Target, *, tools: bool) -> Generator[Ask | Learn, Answered, Prompt]:
    """The prompt by `/chat_tokenize`, which gets `body`. Raises `ApiError`."""
    if older(target, CHAT_TOKENIZE_SINCE):
        raise _unavailable(target)
    answer = yield Ask("/chat_tokenize", dump(body))
    if answer.status == 404:
        raise _unavailable(target)
    if answer.status != 200:
        raise decode_tgi_error(
            answer.status, answer.content_type, answer.body, "chat", target.backend,
            tools=tools, retry_after=answer.header(b"retry-after"),
        )  # fmt: skip
    told = _json(answer)
    text = told.get("templated_text") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(text, str):
        raise error(
            "upstream_invalid_response",
            f"Backend '{target.backend}' (TGI) answered /chat_tokenize without a prompt. Check its base_url.",
        )
    tokens = _tokens(told.get("tokenize_response"))
    bos = yield from _bos(text, tokens, target)
    return Prompt(text.removeprefix(bos), len(tokens))


def _bos(text: str, tokens: list[JsonObject], target: Target) -> Generator[Ask | Learn, Answered, str]:
    """What is to be cut from the front of every prompt, because `/generate` puts it there itself; "" for nothing.

    `/tokenize` adds what `/generate` adds, `/chat_tokenize` does not, so the same text twice shows it."""
    strip = target.options.get("strip_bos", "auto")
    if strip != "auto":
        return "" if strip == "never" else str(strip)
    known: str | None = target.facts.get(BOS)
    if known is not None:
        return known
    first = tokens[0].get("text") if tokens else None
    if not isinstance(first, str) or not first or not text.startswith(first):
        return ""
    answer = yield Ask("/tokenize", dump({"inputs": text}))
    if answer.status != 200:
        return ""
    ids, again = _ids(tokens), _ids(_tokens(_json(answer)))
    bos = first if again[1:] == ids and again[:1] == ids[:1] else ""
    yield Learn(BOS, bos)
    return bos


def _json(answer: Answered) -> Any:
    try:
        return load(answer.body)
    except InvalidJson:
        return None


def _tokens(value: Any) -> list[JsonObject]:
    return [token for token in value if isinstance(token, dict)] if isinstance(value, list) else []


def _ids(tokens: list[JsonObject]) -> list[Any]:
    return [token.get("id") for token in tokens]


def _unavailable(target: Target) -> ApiError:
    known = target.version or "of unknown version"
    return error(
        "chat_template_unavailable",
        f"Backend '{target.backend}' can't apply a chat template: that needs TGI 2.3, this one is {known}. Take a "
        "newer one, or set `chat_template` in the options of that backend.",
        param="messages",
    )
