"""What stands on the terminal while an answer comes, and the line below it about what that took.

Nothing is asked here. Control characters of an answer don't reach the terminal.
"""

from __future__ import annotations

import sys
from typing import Final

from proxy.commands.answering import Answer
from proxy.commands.say import coloured, printable, say

_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"
_CLEAR: Final = "\r\x1b[K"


class Screen:
    """What stands on the terminal while an answer comes: one line about waiting, dim thoughts, then the text."""

    def __init__(self) -> None:
        self._dim, self._plain = (_DIM, _PLAIN) if coloured() else ("", "")
        self._clear = _CLEAR if coloured() else ""  # else the line about waiting can't be taken away
        self._state = ""
        self._column = False  # the last line is unfinished

    def wait(self, text: str) -> None:
        if self._clear:
            self._write(f"{self._clear}{self._dim}… {' '.join(printable(text).split())[:100]}{self._plain}")
            self._state = "waiting"

    def show(self, kind: str, text: str) -> None:
        """A piece of what comes (`answering.Show`)."""
        if kind == "waiting":
            self.wait(text)
            return
        if kind != self._state:
            start = (
                self._clear if self._state == "waiting" else f"{self._plain}\n\n" if self._state == "thought" else ""
            )
            self._write(start + ((self._dim or "(thinking) ") if kind == "thought" else ""))
            self._state = kind
        self._write(printable(text, "\n\t"))
        self._column = not text.endswith("\n")

    def end(self) -> None:
        """The answer is over; the next thing begins on a line of its own."""
        after = {"waiting": self._clear, "thought": self._plain}.get(self._state, "")
        self._write(after + ("\n" if self._column else ""))
        self._state, self._column = "", False

    def note(self, text: str) -> None:
        """A line about something."""
        say(f"{self._dim}{printable(text)}{self._plain}")

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def summary(got: Answer) -> str:
    """What an answer took, and whether it is whole."""
    parts = [f"{got.tokens} token{'s' if got.tokens > 1 else ''}" if got.tokens else "no text"]
    if got.speed is not None:
        parts.append(f"{got.speed:.1f} tokens/s")
    if got.first is not None:
        parts.append(f"first after {_time(got.first)}")
    told = got.usage.get("prompt_tokens") if got.usage else None
    if isinstance(told, int):
        parts.append(f"{told} in the prompt")
    if got.interrupted:
        parts.append("stopped by you")
    elif got.finish == "length":
        parts.append("cut off by the limit of tokens (--max-tokens)")
    return "[" + ", ".join(parts) + "]"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
