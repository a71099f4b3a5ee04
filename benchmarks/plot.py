"""The plot of a run as SVG: a panel for each figure, a bar for each target, all as multiples of one peer. Pure.

Bars that would leave the panel are cut, with a slanted end and their number beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 900
_COLUMNS: Final = 2
_NAMES: Final = 96  # pixels for the names of bars
_ROOM: Final = 104  # pixels for the numbers behind them
_ROW, _TITLE, _GAP = 20, 34, 16
_LONGEST: Final = 3.0  # multiples of the peer; a longer bar is cut
_INK, _FAINT, _OWN, _OTHER = "#1f2328", "#6e7781", "#0a7d5a", "#b6c2cf"


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: the values by target and the peer that is 1. Without the peer's value nothing can be drawn."""

    title: str
    unit: str
    values: Mapping[str, float]
    peer: str
    own: str


def draw(panels: Sequence[Panel], caption: str) -> str:
    """A whole SVG document."""
    shown = [panel for panel in panels if panel.values.get(panel.peer, 0.0) > 0.0]
    tallest = max((len(panel.values) for panel in shown), default=0)
    height = _TITLE + tallest * _ROW + _GAP
    width = WIDTH / _COLUMNS
    lines = -(-len(shown) // _COLUMNS)
    whole = lines * height + 32
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(caption)}</title>",
        f'<rect width="{WIDTH}" height="{whole}" rx="6" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(shown):
        x, y = number % _COLUMNS * width, number // _COLUMNS * height
        parts.append(f'<g transform="translate({x:g} {y:g})">{_panel(panel, width)}</g>')
    parts.append(f'<text x="16" y="{whole - 14}" fill="{_FAINT}" font-size="11">{escape(caption)}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, width: float) -> str:
    one = (width - _NAMES - _ROOM - 2 * _GAP) / _LONGEST  # pixels of the peer's own bar
    left = _GAP + _NAMES
    bottom, x = _TITLE + len(panel.values) * _ROW, left + one
    rows = [
        _bar(panel, name, value, left, _TITLE + n * _ROW, one) for n, (name, value) in enumerate(panel.values.items())
    ]
    line = f'<line x1="{x:.1f}" y1="{_TITLE - 4}" x2="{x:.1f}" y2="{bottom}" stroke="{_INK}" stroke-dasharray="2 3"/>'
    heading = f'<text x="{_GAP}" y="22" fill="{_INK}" font-weight="600">{escape(panel.title)}</text>'
    return "".join([heading, *(bar for bar, _ in rows), line, *(words for _, words in rows)])


def _bar(panel: Panel, name: str, value: float, left: float, top: float, one: float) -> tuple[str, str]:
    """The bar, and the words that stand before and behind it."""
    ratio = value / panel.values[panel.peer]
    long = min(max(ratio, 0.0), _LONGEST) * one
    slant = 8 if ratio > _LONGEST else 0
    own = name == panel.own
    weight = ' font-weight="600"' if own else ""
    shape = f"M{left:.1f} {top}h{long:.1f}l{-slant} 14h{slant - long:.1f}z"
    said = f"{number(value)} {panel.unit}" + (f" ({ratio:.0f}x)" if slant else "")
    halo = 'stroke="#ffffff" stroke-width="3" paint-order="stroke"'  # the peer's line may run through it
    return f'<path d="{shape}" fill="{_OWN if own else _OTHER}"/>', (
        f'<text x="{left - 6}" y="{top + 11}" text-anchor="end" fill="{_INK}"{weight}>{escape(name)}</text>'
        f'<text x="{left + long + 5:.1f}" y="{top + 11}" fill="{_INK}" {halo}{weight}>{escape(said)}</text>'
    )


def number(value: float) -> str:
    """At most three digits and no needless ones, thousands apart."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}".replace(",", "\u202f")
