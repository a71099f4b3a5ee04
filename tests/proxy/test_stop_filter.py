"""The stop filter: the contract's cases fed in several ways, and that cutting the input changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.stop_filter import StopFilter
from tests.vectors_support import cases

CASES = cases("unit_stop_filter")


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopFilter(stops)
    text = "".join([stop.feed(piece) for piece in pieces])
    return text + stop.end(), stop.stopped


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_as_written(case: dict[str, Any]) -> None:
    stop = StopFilter(case["stop"])
    assert [stop.feed(piece) for piece in case["feed"]] == case["emitted_after_each_feed"]
    assert stop.stopped is case["stopped"]
    assert stop.end() == case["flushed_at_end"]
    assert stop.stopped is case["stopped"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("cut", [lambda text: [text], list], ids=["whole", "by_code_point"])
def test_however_it_is_cut(case: dict[str, Any], cut: Any) -> None:
    wanted = "".join(case["emitted_after_each_feed"]) + case["flushed_at_end"]
    assert run(case["stop"], cut("".join(case["feed"]))) == (wanted, case["stopped"])


@given(
    st.lists(st.text("abé", min_size=0, max_size=4), max_size=4),
    st.lists(st.text("abé", max_size=5), max_size=12),
)
def test_cutting_changes_nothing(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    starts = [text.find(stop) for stop in stops if stop and stop in text]
    wanted = (text[: min(starts)], True) if starts else (text, False)
    assert run(stops, pieces) == wanted


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.text("ab", max_size=4), max_size=10))
def test_holds_back_no_more_than_needed(stops: list[str], pieces: list[str]) -> None:
    stop = StopFilter(stops)
    fed = shown = ""
    for piece in pieces:
        fed += piece
        shown += stop.feed(piece)
        if stop.stopped:
            break
        assert fed.startswith(shown)
        held = fed[len(shown) :]
        assert held == "" or any(begun.startswith(held) and begun != held for begun in stops)


def test_waits_for_a_stop_string_that_began_earlier() -> None:
    stop = StopFilter(["abcd", "bc"])
    assert (stop.feed("xabc"), stop.stopped) == ("x", False)
    assert (stop.feed("d"), stop.stopped) == ("", True)
    assert run(["abcd", "bc"], ["xabc", "e"]) == ("xa", True)
    assert run(["abcd", "bc"], ["xabc"]) == ("xa", True)


def test_says_nothing_after_the_stop() -> None:
    stop = StopFilter(["."])
    assert stop.feed("a.b") == "a"
    assert stop.feed("c") == ""
    assert stop.end() == ""
