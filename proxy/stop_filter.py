"""Cuts generated text before the first stop string, however the text is split into pieces.

For engines that leave the stop string in their answer or that only notice one at the end of a token. A leaf,
sans-IO: text in, text out; positions are code points. What a cut means for the rest of an answer (finish reason,
closing the upstream) is the caller's business.

The result never depends on how the text was cut into pieces: the occurrence that *starts* earliest wins, so a stop
string that is complete has to wait while a longer one that began before it may still be completed.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopFilter:
    """One text, fed piece by piece; `stopped` is True once a stop string has ended it. Empty stop strings are
    ignored."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What can be shown now: all but a tail that may yet turn out to begin a stop string. After the stop, always
        empty."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        held = self._held + text
        found = self._first(held)
        open_from = self._open_from(held)
        if found is not None and found <= open_from:
            self.stopped = True
            self._held = ""
            return held[:found]
        self._held = held[open_from:]
        return held[:open_from]

    def end(self) -> str:
        """The text is complete: the rest of what may be shown. Further calls give nothing."""
        held, self._held = self._held, ""
        found = self._first(held)
        if found is None:
            return held
        self.stopped = True
        return held[:found]

    def _first(self, text: str) -> int | None:
        """Where the earliest complete stop string starts."""
        return min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)

    def _open_from(self, text: str) -> int:
        """Where the longest tail starts that a stop string begins with; the end if there is none."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return len(text) - longest
