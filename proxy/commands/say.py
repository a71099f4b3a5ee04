"""What commands print: sentences, JSON for programs, and tables, which are coloured on a terminal and plain in a pipe.

What a table or a sentence says is the command's. `rich` is imported only when a terminal is there to use it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from proxy import wire

Row = Sequence[str]
STATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ready": "green",
        "loading": "yellow",
        "starting": "yellow",
        "stopping": "yellow",
        "backoff": "yellow",
        "launchable": "cyan",
        "down": "red",
        "fatal": "red",
    }
)


def say(text: str) -> None:
    """A line on standard output, at once."""
    print(text, flush=True)  # noqa: T201


def say_json(value: Any) -> None:
    """One line of JSON."""
    say(wire.dump(value).decode())


def complain(text: str) -> None:
    """A line on standard error, with the program's name."""
    print(f"illm: {text}", file=sys.stderr, flush=True)  # noqa: T201


def coloured() -> bool:
    """Whether standard output is a terminal that may be coloured."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str, also: str = "") -> str:
    """What a server said, without the control characters that a terminal would obey; those in `also` stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in also else " " if c == "\n" else "" for c in text)


def aligned(rows: Sequence[Row]) -> list[str]:
    """Rows as lines of text, columns aligned, nothing cut off."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def table(columns: Row, rows: Sequence[Row], styles: Mapping[str, Mapping[str, str]] = MappingProxyType({})) -> None:
    """Print rows below their headings. `styles`: of a column's cells, by their first word; for a terminal."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        say("\n".join(aligned([columns, *clean])))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in clean:
        texts = []
        for name, cell in zip(columns, row, strict=True):
            style = styles.get(name, {}).get(cell.split(" ")[0], "")
            texts.append(Text(cell, style=style, overflow="fold"))
        shown.add_row(*texts)
    Console().print(shown)
