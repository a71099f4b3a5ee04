"""The cases in `tests/vectors` and how they are compared: see `tests/vectors/README.md` for both.

`cases` loads a file, `match` compares a reply with an expectation in which placeholders stand for what can't be
known. Give `match` one whole reply (all the chunks of a stream, as a list), since some placeholders must stand for
the same value wherever they occur in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors"
DATA = Path(__file__).parent / "data"

_PLACEHOLDER = re.compile(r"<<(?P<kind>ID|CALL|NOW|CFG|NS|RFC3339|HEX64)(?::(?P<prefix>.*))?>>")
_TEXT_PATTERNS = {
    "CALL": re.compile(r"call_[0-9a-f]{24}"),
    "RFC3339": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]00:00)"),
    "HEX64": re.compile(r"[0-9a-f]{64}"),
}


class Mismatch(AssertionError):
    """Where two values differ, and how."""

    def __init__(self, path: str, expected: Any, actual: Any, why: str = "differs") -> None:
        super().__init__(f"{path}: {why}\n  expected {_short(expected)}\n  actual   {_short(actual)}")
        self.path = path


def cases(name: str, *, prefix: str = "") -> list[dict[str, Any]]:
    """The cases of `<name>.json` whose names begin with `prefix`; never an empty list."""
    found = [case for case in load(name)["cases"] if case.get("name", "").startswith(prefix)]
    assert found, f"no case of {name}.json begins with {prefix!r}"
    return found


def load(name: str) -> Any:
    """A whole vector file."""
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def data(name: str) -> Any:
    """A JSON file of `tests/data`."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def sse_events(lines: list[str]) -> Iterator[Any]:
    """The data of the events in a case's `stream_lines`, parsed; `"[DONE]"` as it is. Comments are left out. Only
    for tests of what lies above framing."""
    for block in "".join(lines).split("\n\n"):
        values = [line.removeprefix("data:").strip() for line in block.split("\n") if line.startswith("data:")]
        if values:
            text = "\n".join(values)
            yield text if text == "[DONE]" else json.loads(text)


def match(expected: Any, actual: Any, path: str = "$") -> None:
    """Raise `Mismatch` unless `actual` is what `expected` describes: the same members, no more and no less."""
    _match(expected, actual, path, {})


def _match(expected: Any, actual: Any, path: str, known: dict[str, Any]) -> None:
    if isinstance(expected, str):
        _match_text(expected, actual, path, known)
    elif isinstance(expected, dict):
        if not isinstance(actual, dict):
            raise Mismatch(path, expected, actual)
        if missing := [name for name in expected if name not in actual]:
            raise Mismatch(f"{path}.{missing[0]}", expected[missing[0]], actual, "is missing")
        if extra := [name for name in actual if name not in expected]:
            raise Mismatch(f"{path}.{extra[0]}", expected, actual[extra[0]], "is not expected")
        for name, value in expected.items():
            _match(value, actual[name], f"{path}.{name}", known)
    elif isinstance(expected, list):
        if not isinstance(actual, list):
            raise Mismatch(path, expected, actual)
        for index, (one, other) in enumerate(zip(expected, actual, strict=False)):
            _match(one, other, f"{path}[{index}]", known)
        if len(expected) != len(actual):
            raise Mismatch(path, expected, actual, f"has {len(actual)} items instead of {len(expected)}")
    elif isinstance(expected, bool) is not isinstance(actual, bool) or expected != actual:
        raise Mismatch(path, expected, actual)


def _match_text(expected: str, actual: Any, path: str, known: dict[str, Any]) -> None:
    found = _PLACEHOLDER.fullmatch(expected)
    if found is None:
        good = isinstance(actual, str) and actual != "" if expected == "*" else expected == actual
    elif found["kind"] == "ID":
        prefix = found["prefix"]
        good = isinstance(actual, str) and actual.startswith(prefix) and len(actual) > len(prefix)
    elif found["kind"] in _TEXT_PATTERNS:
        good = isinstance(actual, str) and _TEXT_PATTERNS[found["kind"]].fullmatch(actual) is not None
    else:
        good = isinstance(actual, int) and not isinstance(actual, bool) and (found["kind"] != "NS" or actual >= 0)
    if not good:
        raise Mismatch(path, expected, actual)
    if found is not None and found["kind"] in ("ID", "NOW") and known.setdefault(expected, actual) != actual:
        raise Mismatch(path, known[expected], actual, "is not the same throughout the reply")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 400 else text[:400] + "…"
