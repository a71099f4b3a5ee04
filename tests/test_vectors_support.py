"""The matcher itself: what it accepts, what it refuses, and that it says where."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vectors_support import VECTORS, Mismatch, load, match


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": [1, None, 2.0]}, {"a": [1.0, None, 2]}),
        ("*", "anything"),
        (["<<ID:chatcmpl->>", "<<ID:chatcmpl->>"], ["chatcmpl-1", "chatcmpl-1"]),
        (["<<NOW>>", "<<NOW>>"], [7, 7]),
        (["<<CALL>>", "<<CALL>>"], ["call_" + "0" * 24, "call_" + "f" * 24]),
        ("<<RFC3339>>", "2026-11-21T06:30:12.123456789Z"),
        ("<<HEX64>>", "0a" * 32),
        (["<<CFG>>", "<<NS>>"], [-1, 0]),
    ],
)
def test_matches(expected: Any, actual: Any) -> None:
    match(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual", "path"),
    [
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "$.a.b[1]"),
        ({"a": 1}, {}, "$.a"),
        ({}, {"a": 1}, "$.a"),
        ([1], [1, 2], "$"),
        ([1, 2], [1], "$"),
        (1, True, "$"),
        (False, 0, "$"),
        (None, 0, "$"),
        ({"a": 1}, [1], "$"),
        ("*", "", "$"),
        ("<<ID:cmpl->>", "cmpl-", "$"),
        (["<<ID:cmpl->>", "<<ID:cmpl->>"], ["cmpl-1", "cmpl-2"], "$[1]"),
        (["<<NOW>>", "<<NOW>>"], [7, 8], "$[1]"),
        ("<<NOW>>", 7.5, "$"),
        ("<<NS>>", -1, "$"),
        ("<<CALL>>", "call_123", "$"),
        ("<<RFC3339>>", "yesterday", "$"),
        ("<<HEX64>>", "0A" * 32, "$"),
    ],
)
def test_refuses_and_says_where(expected: Any, actual: Any, path: str) -> None:
    with pytest.raises(Mismatch) as caught:
        match(expected, actual)
    assert caught.value.path == path
    assert path in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("*.json")))
def test_every_file_has_cases(name: str) -> None:
    assert load(name)["cases"]
