"""The event that nearly all of a stream consists of: the same as the last one but for its text.

Within one answer an engine writes the same members in the same order with each token, and only the text differs. What
stands before and behind it is learned from one event that was looked through; an event with the same bytes there, and
no quote in its text, can hold nothing else that matters. docs/data-path.md has what that saves.

Pure. Not here: what is done about any other event (`stream`).
"""

from __future__ import annotations

from typing import Final

from proxy.dialects.openai.names import Renamer

# The members that hold a token's text, as engines write JSON without spaces.
_TEXTS: Final = (b'"content":"', b'"text":"', b'"reasoning_content":"', b'"reasoning":"')
_END: Final = b"\n\n"
QUOTE: Final = 34
SHORT: Final = 32  # bytes of text


class UsualEvent:
    """`before` and `after`: the bytes around the text; `ours` and `ours_after`: the same with the public name."""

    __slots__ = ("_after", "_before", "_ours", "_ours_after", "_same")

    def __init__(self, before: bytes, after: bytes, renamer: Renamer) -> None:
        self._before = before
        self._after = after
        self._ours = renamer.apply(before)
        self._ours_after = renamer.apply(after)
        self._same = self._ours == before and self._ours_after == after

    def fits(self, data: bytes) -> bool:
        """Is it such an event, one and whole?"""
        if not (data.startswith(self._before) and data.endswith(self._after)):
            return False
        at, end = len(self._before), len(data) - len(self._after)
        if end - at > SHORT:
            return data.find(b'"', at, end) < 0
        while at < end:  # compiled, this takes less time than a call
            if data[at] == QUOTE:
                return False
            at += 1
        return at == end

    def renamed(self, data: bytes) -> bytes:
        """That event with the public name of the model."""
        if self._same:
            return data
        return self._ours + data[len(self._before) : len(data) - len(self._after)] + self._ours_after


def usual_event(data: bytes, renamer: Renamer) -> UsualEvent | None:
    """From an event that may be passed on unparsed; None where `data` is none with a text, or more than one."""
    if not data.endswith(_END) or data.find(_END) != len(data) - len(_END):
        return None
    for member in _TEXTS:
        at = data.find(member)
        if at >= 0:
            begin = at + len(member)
            end = data.find(b'"', begin)
            if end < 0 or data.startswith(b"\\", end - 1):
                return None
            return UsualEvent(data[:begin], data[end:], renamer)
    return None
