"""The plot: well-formed, to scale, and cut where a bar would leave it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from benchmarks.plot import Panel, draw, number

SVG = "{http://www.w3.org/2000/svg}"


def panel(**values: float) -> Panel:
    return Panel("CPU <per> request", "µs", values, peer="peer", own="own")


def lengths(svg: str) -> list[float]:
    """The horizontal length of each bar's upper edge."""
    return [float(found) for found in re.findall(r'd="M[\d.]+ [\d.]+h([\d.]+)l', svg)]


def test_the_plot_is_well_formed_and_has_every_word() -> None:
    root = ElementTree.fromstring(draw([panel(own=50.0, peer=100.0)], "less & less"))
    words = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert words == ["CPU <per> request", "own", "50 µs", "peer", "100 µs", "less & less"]
    assert root.findtext(f"{SVG}title") == "less & less"


def test_bars_are_as_long_as_their_ratios() -> None:
    half, one = lengths(draw([panel(own=50.0, peer=100.0)], ""))
    assert abs(half * 2 - one) <= 0.2  # of a pixel
    assert one > 50


def test_a_bar_that_is_too_long_is_cut_and_tells_its_ratio() -> None:
    svg = draw([panel(own=300.0, peer=100.0, slow=15000.0)], "")
    whole, _, cut = lengths(svg)
    assert cut == whole
    assert svg.count("l-8 14") == 1
    assert "15\u202f000 µs (150x)" in svg


def test_less_than_nothing_is_an_empty_bar() -> None:
    assert lengths(draw([panel(own=-5.0, peer=100.0)], ""))[0] == 0.0


def test_a_panel_without_its_peer_is_left_out() -> None:
    assert lengths(draw([panel(own=50.0), panel(own=50.0, peer=0.0)], "")) == []


def test_numbers_are_short() -> None:
    assert [number(0.333), number(17.6), number(8196.7)] == ["0.33", "18", "8\u202f197"]
