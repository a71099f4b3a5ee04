"""`illm embed`: texts to vectors, and how alike they are."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from proxy.commands.client import Server
from proxy.commands.say import aligned, printable, say, say_json
from proxy.commands.source import Failed, UsageError
from proxy.commands.where import server

SHOWN: Final = 6  # values of a vector that a person sees
WIDTH: Final = 32  # characters of a text beside its values
SILENCE: Final = 600.0  # seconds: an engine that is started for it takes its time
STDIN: Final = "-"


def run(arguments: argparse.Namespace) -> int:
    """Blocks until the server has answered. Raises `SettingsError`, `UsageError` and `Failed`."""
    texts = _texts(arguments.text)
    body: dict[str, Any] = {"model": arguments.model, "input": texts, "encoding_format": "float"}
    if arguments.dimensions is not None:
        body["dimensions"] = arguments.dimensions
    with server(arguments, os.environ, SILENCE) as asked:
        vectors = _vectors(asked, body, len(texts))
    alike = [[similarity(one, other) for other in vectors] for one in vectors]
    if arguments.json:
        data = [{"text": text, "embedding": vector} for text, vector in zip(texts, vectors, strict=True)]
        length = len(vectors[0])
        say_json({"model": arguments.model, "dimensions": length, "data": data, "similarity": alike})
        return 0
    say(f"{len(vectors[0])} dimensions")
    rows = [[_short(text), *_values(vector)] for text, vector in zip(texts, vectors, strict=True)]
    say("\n".join(aligned(rows)))
    if len(texts) > 1:
        say("\ncosine similarity")
        numbers = [[_short(text), *(f"{value:6.3f}" for value in row)] for text, row in zip(texts, alike, strict=True)]
        say("\n".join(aligned(numbers)))
    return 0


def similarity(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 where one has no direction."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _texts(given: Sequence[str]) -> list[str]:
    texts: list[str] = []
    for text in given:
        texts += [line for line in sys.stdin.read().splitlines() if line.strip()] if text == STDIN else [text]
    if not texts:
        raise UsageError("there is no text to embed: standard input was empty")
    return texts


def _vectors(asked: Server, body: dict[str, Any], wanted: int) -> list[list[float]]:
    """One for each text, in their order."""
    asked.settle()
    answer = asked.post("/embeddings", body)
    data = answer.get("data") if isinstance(answer, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    ordered = sorted(entries, key=lambda entry: entry.get("index") or 0)
    vectors = [entry["embedding"] for entry in ordered if _is_vector(entry.get("embedding"))]
    if len(vectors) != wanted or len({len(vector) for vector in vectors}) != 1:
        raise Failed(f"{asked.url} did not answer with a vector for each text. `illm smoke` shows what it can do.")
    return vectors


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(number, int | float) for number in value)


def _values(vector: Sequence[float]) -> list[str]:
    more = ["…"] if len(vector) > SHOWN else []
    return [f"{value: .4g}" for value in vector[:SHOWN]] + more


def _short(text: str) -> str:
    one = " ".join(printable(text).split())
    return one if len(one) <= WIDTH else one[: WIDTH - 1] + "…"
