"""The little that the hot path has to know of a body, read in one pass and built into nothing else.

A body that is only passed on needn't be split into its members: one look tells the model, whether a stream is wanted,
and that no member is there which this gateway would have to change. What a look can't tell (`None`) isn't wrong: the
members are split then (`wire.members`), which also finds the error's name. So everything here may be left out without
changing what is answered; docs/data-path.md has what it saves.

Not here: what a body is read into (`glance_types`), and what follows from it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from proxy.glance_types import Glance, Told

_glance: Final = msgspec.json.Decoder(Glance)
_told: Final = msgspec.json.Decoder(Told)


def glance(body: bytes) -> Glance | None:
    """At a chat request's body. None: look closer, as it isn't JSON, a type is unusual, or something unwanted there."""
    try:
        if not body.isascii():
            body.decode()
        return _glance.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def told(body: bytes) -> Told | None:
    """At the answer to one. None: look closer."""
    try:
        if not body.isascii():
            body.decode()
        return _told.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
