"""The command line of the conformance suite: which engines, where the table goes, and the exit status.

Engines run one after another (memory, and two cores). A cell that differs from expected.py makes the status 1.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.conformance.checks import CHECKS
from tests.conformance.expected import expected
from tests.conformance.outcome import Outcome, Result, observe
from tests.conformance.report import Column, summary, table, write_between_marks
from tests.conformance.subjects import ENGINES, Engine, Subject, start_subject
from tests.engines.install import CannotBeHad
from tests.engines.process import NotReady


def say(text: str) -> None:
    print(text, flush=True)


def examine(name: str, engine: Engine, rows: list[str], folder: Path) -> tuple[Column, int]:
    """One engine's column and its number of unexpected cells."""
    column = Column(engine.title)
    say(f"== {engine.title}")
    with ExitStack() as stack:
        start = time.monotonic()
        try:
            subject = start_subject(engine, stack, folder)
        except CannotBeHad as reason:
            column.skipped = str(reason)
            say(f"   skipped: {reason}")
            return column, 0
        except (NotReady, AssertionError) as reason:
            say(f"   does not run: {reason}")
            column.results = {row: Result(Outcome.NO, "does not run") for row in rows}
            return column, len(rows)
        column.version = subject.version
        say(f"   {subject.version}, ready after {time.monotonic() - start:.0f} s")
        unexpected = sum(not check_cell(name, row, subject, column) for row in rows)
        if unexpected:
            say(f"   the end of the gateway's log:\n{subject.gateway.log_text()[-4000:]}")
    return column, unexpected


def check_cell(name: str, row: str, subject: Subject, column: Column) -> bool:
    """Runs one check, keeps its result and says whether it is the expected one."""
    start = time.monotonic()
    result = observe(lambda: CHECKS[row](subject))
    column.results[row] = result
    wanted = expected(name, row)
    good = result.outcome is wanted
    verdict = "" if good else f"   UNEXPECTED, should be {wanted.name}"
    detail = result.detail[: 100 if good else 1000]
    say(f"   {row:26} {result.outcome.name:12} {time.monotonic() - start:5.1f} s  {detail}{verdict}")
    return good


def chosen(parser: argparse.ArgumentParser, words: str | None, known: list[str]) -> list[str]:
    names = [word.strip() for word in words.split(",")] if words else known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=__doc__)
    parser.add_argument("--only", metavar="ENGINES", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--rows", metavar="ROWS", help="checks by name; a name with a comma can't be chosen")
    parser.add_argument("--write", metavar="FILE", type=Path, help="put the table between this document's marks")
    parser.add_argument("--strict", action="store_true", help="an engine that can't be had is a failure")
    options = parser.parse_args()
    names = chosen(parser, options.only, list(ENGINES))
    rows = chosen(parser, options.rows, list(CHECKS))
    if options.write and (options.only or options.rows):
        parser.error("--write takes the whole table; leave out --only and --rows")

    start, unexpected, columns = time.monotonic(), 0, {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="illm-conformance-") as folder:
            columns[name], wrong = examine(name, ENGINES[name], rows, Path(folder))
        unexpected += wrong
    text = table(rows, list(columns.values()))
    say(f"\n{text}\n")
    if options.write and not unexpected:
        write_between_marks(options.write, text)
    say(summary(columns, unexpected, time.monotonic() - start))
    skipped = any(column.skipped for column in columns.values())
    return 1 if unexpected or (options.strict and skipped) else 0


if __name__ == "__main__":
    sys.exit(main())
