"""How engines are shown: a table, a bar while one starts, and the same as plain lines where no terminal is.

Knows a row and the events of docs/launcher-api.md, and asks nobody anything. `rich` is imported only when a terminal is
there to use it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from proxy.commands.say import aligned

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
COLUMNS: Final = ("NAME", "KIND", "STATE", "PROGRESS", "MODEL", "MEMORY", "IDLE", "PID", "ADDRESS")
LAUNCHER: Final = "LAUNCHER"
WHOLE: Final = ("NAME", "PID", "ADDRESS")  # columns that are copied from
_STYLES: Final = {"ready": "green", "starting": "yellow", "stopping": "yellow", "backoff": "yellow", "fatal": "red"}
_STEP: Final = 10  # percent between two plain lines


def header(rows: Sequence[Row]) -> list[str]:
    """`COLUMNS`, and whose engine each is where there are several launchers."""
    several = len({row.get("launcher") for row in rows}) > 1
    return [*COLUMNS[:1], *((LAUNCHER,) if several else ()), *COLUMNS[1:]]


def cells(row: Row, columns: Sequence[str] = COLUMNS) -> list[str]:
    """A row of the table, in the order of `columns`."""
    told = dict(zip((LAUNCHER, *COLUMNS), [str(row.get("launcher") or ""), *_cells(row)], strict=True))
    return [told[name] for name in columns]


def _cells(row: Row) -> list[str]:
    state, phase = str(row.get("state", "?")), row.get("phase")
    return [
        str(row.get("name", "?")),
        str(row.get("kind", "")),
        f"{state} ({phase})" if phase and phase != state and state != "ready" else state,
        percent(row.get("progress")) if state == "starting" else "",
        str(row.get("model") or ""),
        memory(row),
        use(row),
        str(row.get("pid") or ""),
        str(row.get("base_url") or ""),
    ]


def lines(rows: Sequence[Row]) -> list[str]:
    """The table as text, columns aligned, nothing cut off."""
    columns = header(rows)
    return aligned([columns, *(cells(row, columns) for row in rows)])


def rich_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal: where that is narrow, words go on in the next line, and no address is cut."""
    from rich.table import Table
    from rich.text import Text

    columns = header(rows)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in WHOLE)
    for row in rows:
        style = _STYLES.get(str(row.get("state")), "dim")
        texts = [
            Text(cell, style=style if name == "STATE" else "")
            for name, cell in zip(columns, cells(row, columns), strict=True)
        ]
        table.add_row(*texts)
    return table


def notes(rows: Sequence[Row]) -> list[str]:
    """Why engines are not what they should be, a line each."""
    return [
        f"{row.get('name')}: {str(row['error']).splitlines()[0]} (illm logs {row.get('name')})"
        for row in rows
        if row.get("error") and row.get("state") in ("fatal", "backoff")
    ]


def percent(value: Any) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) else ""


def memory(row: Row) -> str:
    """What it takes, over all its devices."""
    held = row.get("memory")
    known = {device: value for device, value in held.items() if value} if isinstance(held, dict) else {}
    if not known:
        return ""
    gpus = [device for device in known if device != "cpu"]
    return size(sum(known.values())) + (f" (GPU {','.join(gpus)})" if gpus else "")


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def use(row: Row) -> str:
    """Whether it is idle, and what becomes of it then."""
    if row.get("state") != "ready":
        return ""
    if row.get("leases"):
        return "in use"
    idle, ttl = row.get("idle"), row.get("ttl")
    words = duration(idle) if isinstance(idle, int | float) else ""
    if row.get("pinned"):
        return f"{words} pinned".strip()
    return f"{words} of {duration(ttl)}" if words and ttl else f"ttl {duration(ttl)}" if ttl else words


def duration(seconds: float) -> str:
    """`1h30m`, the largest two units."""
    left = round(seconds)
    parts = [(left // 86400, "d"), (left // 3600 % 24, "h"), (left // 60 % 60, "m"), (left % 60, "s")]
    words = [f"{number}{unit}" for number, unit in parts if number]
    return "".join(words[:2]) or "0s"


@contextmanager
def starting(name: str) -> Iterator[Callable[[Row], None]]:
    """Shows the events of a start: a bar on a terminal, else a line for each phase and each tenth of it."""
    if not sys.stdout.isatty():
        yield _Plain(name)
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[engine]}", markup=False),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("starting", total=None, engine=name)

        def show(event: Row) -> None:
            done = event.get("progress")
            known = isinstance(done, int | float)
            progress.update(
                task, description=event.get("phase") or "starting", total=1.0 if known else None,
                completed=done if known else 0.0,
            )  # fmt: skip

        yield show


class _Plain:
    """Lines, as few as tell the story."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[str, int | None] | None = None

    def __call__(self, event: Row) -> None:
        if event.get("state") in ("stopped", "ready"):  # before its first phase, or after its last
            return
        done = event.get("progress")
        step = int(done * 100) // _STEP if isinstance(done, int | float) else None
        phase = str(event.get("phase") or event.get("state") or "starting")
        if (phase, step) == self._last:
            return
        self._last = (phase, step)
        sys.stdout.write(f"{self._name}: {phase} {percent(done)}".rstrip() + "\n")
        sys.stdout.flush()


class Watch:
    """A table that is written again and again: in its place on a terminal, else below whenever it has changed."""

    def __init__(self) -> None:
        self._live: Any = None
        self._last: list[str] | None = None

    def __enter__(self) -> Watch:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        if self._live is not None:
            self._live.update(rich_table(rows), refresh=True)
            return
        text = lines(rows)
        if text != self._last:
            self._last = text
            sys.stdout.write("\n".join([time.strftime("%H:%M:%S"), *text, ""]) + "\n")
            sys.stdout.flush()
