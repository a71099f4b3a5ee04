"""Which lines of a failed engine's log tell why it failed: a pure choice, for the message that people read first.

Python's tracebacks are cut down to what they end with, the lines that speak of something wrong come before those that
don't, and several of them are kept: an engine's last complaint is often only that an earlier one has happened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

CHARACTERS: Final = 2048  # of all that is chosen
LINE: Final = 400  # characters of a line

_FRAME: Final = re.compile(r'File "[^"]+", line \d+')
_NOISE: Final = re.compile(
    r"Traceback \(most recent call last\)|[~^]{2,}\s*$|^\s*$"
    r"|During handling of the above exception|The above exception was the direct cause"
)
_WRONG: Final = re.compile(
    r"\b(?:error|critical|fatal|panic(?:ked)?|exception|failed|failure|abort(?:ed)?|unable|cannot|can't|invalid"
    r"|out of memory|no such file|not found|segmentation fault)\b|[a-z](?:error|exception):",
    re.IGNORECASE,
)


def telling(lines: Sequence[str], count: int) -> list[str]:
    """At most `count` of the lines, in their order: the last that speaks of something wrong with what follows it, and
    before it the latest others of that sort; where there is none, the last lines."""
    lines = _without_frames(lines)
    wrong = [place for place, line in enumerate(lines) if _WRONG.search(line)]
    if not wrong:
        return _short(lines[max(len(lines) - count, 0) :])
    end = lines[wrong[-1] :][: max(count // 2, 1)]
    earlier = [lines[place] for place in wrong[:-1]]
    distinct = [line for place, line in enumerate(earlier) if line not in earlier[place + 1 :] and line not in end]
    room = count - len(end)
    return _short([*distinct[max(len(distinct) - room, 0) :], *end])


def _without_frames(lines: Sequence[str]) -> list[str]:
    """Without blank lines, and of tracebacks only how they end."""
    kept: list[str] = []
    column = -1  # where the frame began whose source line may follow
    for line in lines:
        frame = _FRAME.search(line)
        source = column >= 0 and line[column : column + 2].isspace()
        if frame is None and not source and not _NOISE.search(line):
            kept.append(line)
        if not source:
            column = frame.start() if frame is not None else -1
    return kept


def _short(lines: Sequence[str]) -> list[str]:
    """The latest that fit into `CHARACTERS`."""
    chosen: list[str] = []
    left = CHARACTERS
    for line in reversed(lines):
        text = line.rstrip() if len(line) <= LINE else f"{line[: LINE - 1]}…"
        left -= len(text) + 1
        if left < 0:
            break
        chosen.append(text)
    return chosen[::-1]
