"""How engines are shown: single cells, and lines where there is no terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from proxy.commands import progress


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0s"), (0.4, "0s"), (59, "59s"), (900, "15m"), (5400, "1h30m"), (3661, "1h1m"), (90000, "1d1h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"state": "ready", "leases": 2, "ttl": 900.0}, "in use"),
        ({"state": "ready", "ttl": 900.0}, "ttl 15m"),
        ({"state": "ready", "ttl": 900.0, "idle": 125}, "2m5s of 15m"),
        ({"state": "ready", "idle": 125}, "2m5s"),
        ({"state": "ready", "pinned": True}, "pinned"),
        ({"state": "ready"}, ""),
        ({"state": "stopped", "ttl": 900.0}, ""),
    ],
)
def test_use(row: dict[str, Any], words: str) -> None:
    assert progress.use(row) == words


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"cpu": 5 * 2**20}, "5 MiB"),
        ({"0": 2**30, "1": 2**30}, "2.0 GiB (GPU 0,1)"),
        ({"0": None}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_memory(held: Any, words: str) -> None:
    assert progress.memory({"memory": held}) == words


def test_a_row_of_which_nothing_is_known_is_shown_all_the_same() -> None:
    assert progress.cells({}) == ["?", "", "?", "", "", "", "", "", ""]
    assert progress.lines([])[0].split() == list(progress.COLUMNS)


def test_the_launcher_is_shown_where_there_are_several() -> None:
    one, two = {"name": "a", "launcher": "big"}, {"name": "b", "launcher": "small"}
    assert "LAUNCHER" not in progress.lines([one])[0]
    assert [line.split()[:2] for line in progress.lines([one, two])] == [
        ["NAME", "LAUNCHER"],
        ["a", "big"],
        ["b", "small"],
    ]


def test_a_narrow_terminal_cuts_no_address() -> None:
    row = {
        "name": "coder", "launcher": "gpu-host", "kind": "llamacpp", "state": "starting", "phase": "loading weights",
        "progress": 0.43, "model": "Qwen/Qwen2.5-Coder-7B-Instruct", "memory": {"0": 9 << 30}, "leases": 0,
        "pid": 4194304, "base_url": "http://127.0.0.1:41233",
    }  # fmt: skip
    console = Console(width=80, file=StringIO())
    console.print(progress.rich_table([row, {**row, "launcher": "other"}]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("http://127.0.0.1:41233") == 2
    assert "…" not in shown


def test_plain_progress_says_nothing_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.starting("coder") as show:
        show({"event": "phase", "state": "stopped", "phase": ""})
        for phase, done in [("a", None), ("a", None), ("b", 0.0), ("b", 0.09), ("b", 0.1), ("b", 1.0)]:
            show({"event": "phase", "phase": phase, "progress": done})
        show({"event": "phase", "state": "ready", "phase": ""})
    assert capsys.readouterr().out.splitlines() == ["coder: a", "coder: b 0%", "coder: b 10%", "coder: b 100%"]


def test_the_terminals_table_has_the_same_cells() -> None:
    rows = [{"name": "a", "state": "ready"}, {"name": "[b]", "state": "fatal"}]
    table = progress.rich_table(rows)
    assert [column.header for column in table.columns] == list(progress.COLUMNS)
    shown = [[str(cell) for cell in column.cells] for column in table.columns]
    assert [list(row) for row in zip(*shown, strict=True)] == [progress.cells(row) for row in rows]
