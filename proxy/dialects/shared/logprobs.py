"""Log probabilities in OpenAI's two forms, from whatever an engine calls its tokens.

Entries are made once, by `entry`; a chat choice carries a list of them, a legacy completion four parallel arrays.
Not here: which entries belong to which piece of text, which each dialect decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from proxy.wire import JsonObject

LOWEST: Final = -9999.0  # OpenAI's word for "no chance"; engines say null


class Token(NamedTuple):
    """A token as an engine tells it. `raw`: its bytes, where the engine gives them."""

    text: str
    logprob: Any
    raw: Any = None


def entry(token: Token, alternatives: Iterable[Token] = (), wanted: int = 0) -> JsonObject:
    """OpenAI's entry for a token; of the alternatives the `wanted` likeliest."""
    others = sorted((_one(other) for other in alternatives), key=lambda one: -one["logprob"])
    return _one(token) | {"top_logprobs": others[:wanted]}


def chat_logprobs(entries: Sequence[JsonObject]) -> JsonObject:
    """A chat choice's `logprobs`."""
    return {"content": list(entries), "refusal": None}


class LegacyLogprobs:
    """The `logprobs` of one completion choice, chunk by chunk or at once. `offset`: code points before the first
    token (an echoed prompt); `wanted`: how many alternatives were asked for."""

    __slots__ = ("_offset", "_wanted")

    def __init__(self, wanted: int, offset: int = 0) -> None:
        self._wanted = wanted
        self._offset = offset

    def __call__(self, entries: Iterable[JsonObject]) -> JsonObject:
        """The next tokens, in parallel arrays."""
        tokens: list[str] = []
        chances: list[float] = []
        tops: list[dict[str, float]] = []
        offsets: list[int] = []
        for one in entries:
            text = one["token"]
            tokens.append(text)
            chances.append(one["logprob"])
            tops.append(self._top(one))
            offsets.append(self._offset)
            self._offset += len(text)
        return {"tokens": tokens, "token_logprobs": chances, "top_logprobs": tops, "text_offset": offsets}

    def _top(self, one: JsonObject) -> dict[str, float]:
        top: dict[str, float] = {}
        if self._wanted:
            for other in one["top_logprobs"][: self._wanted]:
                top.setdefault(other["token"], other["logprob"])
            top.setdefault(one["token"], one["logprob"])
        return top


def _one(token: Token) -> JsonObject:
    value = token.logprob
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "token": token.text,
        "logprob": float(value) if known else LOWEST,
        "bytes": token.raw if isinstance(token.raw, list) else list(token.text.encode(errors="replace")),
    }
