"""The `model` member of replies: the engine's own name out, the public one in, without parsing what surrounds it.

Inside a JSON string every quote is escaped, so the bytes `"model"` followed by a colon are always a member's name:
replacing them where they stand can't touch generated text.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.wire import dump, load

_MODEL: Final = re.compile(rb'"model"(\s*:\s*)("(?:[^"\\]|\\.)*")')


class Renamer:
    """Replaces the name that an engine gives itself; learns it from the first piece that has one, because engines
    answer with their alias, their first served name or `<path>@main` rather than with what they were asked for."""

    __slots__ = ("_new", "_old", "_public", "known")

    def __init__(self, public: str) -> None:
        self._public = dump(public)
        self._old = b""
        self._new = b""
        self.known = False

    def learn(self, data: bytes, said: str | None = None) -> None:
        """Find the name in a piece that holds whole events, or in a whole body. `said`: the name, where other members
        that are called `model` (in a client's metadata) may stand before it."""
        found = next((m for m in _MODEL.finditer(data) if said is None or load(m[2]) == said), None)
        if found is None:
            return
        self.known = True
        if found[2] != self._public:
            self._old = found[0]
            self._new = b'"model"' + found[1] + self._public

    def apply(self, data: bytes) -> bytes:
        return data.replace(self._old, self._new) if self._old else data
