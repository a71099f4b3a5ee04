"""Log probabilities of TGI's chat answers, in OpenAI's form and matched to the text that is really shown.

An entry travels with the first character of its token. Entries behind a stop string go with the text they belong to;
the one for the model's end token goes always, as it belongs to no text.
"""

from __future__ import annotations

from typing import Any, Final

from proxy.wire import JsonObject

LOWEST: Final = -9999.0  # OpenAI's word for "no chance"; TGI says null


def whole_logprobs(logprobs: Any, top: int, *, eos: bool, shown: int | None) -> JsonObject | None:
    """Of a complete answer. `eos`: its last token is the end token. `shown`: where a stop string cut the text."""
    tokens = _entries(logprobs, top)
    if tokens is None:
        return None
    at, kept = 0, []
    for entry in tokens[: len(tokens) - eos]:
        if shown is not None and at >= shown:
            break
        kept.append(entry)
        at += len(entry["token"])
    return {"content": kept, "refusal": None}


class LogprobQueue:
    """Of a stream: entries wait until their text goes out."""

    __slots__ = ("_fed", "_sent", "_waiting")

    def __init__(self) -> None:
        self._fed = 0  # code points that came
        self._sent = 0  # code points that went out
        self._waiting: list[tuple[int, JsonObject]] = []

    def add(self, logprobs: Any, top: int, text: str, *, eos: bool) -> None:
        """The entries of a chunk with that text. `eos`: it is the chunk that ends the answer with the end token."""
        if not (eos and not text):
            # A token without text (half a character) goes as soon as all text before it is out.
            place = self._fed if text else self._fed - 1
            self._waiting += [(place, entry) for entry in _entries(logprobs, top) or ()]
        self._fed += len(text)

    def take(self, sent: int, *, stopped: bool, last: bool) -> list[JsonObject]:
        """The entries to send along with that many code points more."""
        self._sent += sent
        out = [entry for place, entry in self._waiting if place < self._sent or (last and not stopped)]
        self._waiting = [] if last else [waiting for waiting in self._waiting if waiting[0] >= self._sent]
        return out


def _entries(logprobs: Any, top: int) -> list[JsonObject] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return None
    out: list[JsonObject] = []
    for token in content:
        if isinstance(token, dict):
            given = token.get("top_logprobs")
            others = [_one(other) for other in given if isinstance(other, dict)] if isinstance(given, list) else []
            others.sort(key=lambda other: -other["logprob"])
            out.append(_one(token) | {"top_logprobs": others[:top]})
    return out


def _one(token: JsonObject) -> JsonObject:
    text, value = token.get("token"), token.get("logprob")
    text = text if isinstance(text, str) else ""
    known = token.get("bytes")
    return {
        "token": text,
        "logprob": float(value) if isinstance(value, int | float) else LOWEST,
        "bytes": known if isinstance(known, list) else list(text.encode(errors="replace")),
    }
