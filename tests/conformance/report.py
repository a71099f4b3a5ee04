"""The table of what came out, as Markdown, and its place in a document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.outcome import Outcome, Result

BEGIN, END = "<!-- conformance:begin -->", "<!-- conformance:end -->"
LEGEND = """\
Written by `scripts/conformance`: real engines with tiny models on a CPU, behind the gateway, asked with the `openai`,
`anthropic` and `langchain-openai` clients. TGI is a stand-in made from its API description and from answers of the
real router, since it can't be had from package indexes. **can't**: the engine lacks it, and the answer is 422
`CapabilityNotSupported` (or 400 where only a parameter is refused). **ignores it**: the engine answers as if it had
not been asked for. **fails**: the engine breaks on it, and the client gets a clean 5xx error."""


@dataclass(slots=True)
class Column:
    """One engine's results by row; `skipped` says why there are none."""

    title: str
    version: str = ""
    skipped: str = ""
    results: dict[str, Result] = field(default_factory=dict)


def table(rows: Sequence[str], columns: Sequence[Column]) -> str:
    """Markdown: a line for each row, a column for each engine, and below it why an engine was skipped."""
    heads = [f"{column.title} {column.version}".strip() for column in columns]
    lines = [["", *heads], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cell(column, row) for column in columns)] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    skipped = [f"{column.title} was skipped: {column.skipped}" for column in columns if column.skipped]
    return "\n\n".join([text, LEGEND, *skipped])


def cell(column: Column, row: str) -> str:
    if column.skipped:
        return "skipped"
    result = column.results.get(row)
    return (result.outcome if result else Outcome.NO).value


def write_between_marks(document: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Replaces what stands between the two marks. Raises ValueError where a mark is missing."""
    before, begin, rest = document.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{document} has no {marks[0]} … {marks[1]}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def summary(columns: Mapping[str, Column], unexpected: int, seconds: float) -> str:
    """The last line, as test runners write it."""
    cells = sum(len(column.results) for column in columns.values())
    skipped = sum(bool(column.skipped) for column in columns.values())
    engines = f", {skipped} engines skipped" if skipped else ""
    return f"{cells - unexpected} passed, {unexpected} failed{engines} in {seconds:.0f}s"
