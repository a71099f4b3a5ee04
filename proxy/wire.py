"""JSON in and out: the only file that loads or dumps it.

Two depths. `members` splits an object into its top-level members and leaves each value as the bytes it came as,
which is what the hot path needs (find `model`, change it, hand the rest on untouched). `load` builds Python values,
for replies that are translated and for everything off the hot path.

Not here: what the members mean. No I/O.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from proxy.errors import ApiError, error

JsonObject = dict[str, Any]
Raw = msgspec.Raw
Members = dict[str, msgspec.Raw]

_members = msgspec.json.Decoder(Members)
_items = msgspec.json.Decoder(list[Members | str | int | float | None])
_any = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()

TRUE: Final = b"true"
NULL: Final = b"null"


class InvalidJson(ValueError):
    """The bytes are not JSON, or not an object where one is needed."""


def members(body: bytes | bytearray) -> Members:
    """Top-level members of a JSON object, values as raw bytes, order kept; the last of equal names wins.

    Raises `InvalidJson`. The values are views into `body`.
    """
    try:
        if not body.isascii():
            body.decode()  # values that are only split are not looked into: an engine must not get what is no text
        return _members.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(str(exc)) from None


def items(value: msgspec.Raw) -> list[Members | str | int | float | None]:
    """A JSON array of objects and scalars; the objects as `members` gives them. Raises `InvalidJson`, also for an array
    that holds further ones."""
    try:
        return _items.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(str(exc)) from None


def load(body: bytes | bytearray | memoryview | msgspec.Raw | str) -> Any:
    """Any JSON value. Raises `InvalidJson`."""
    try:
        return _any.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson(str(exc)) from None


def load_object(body: bytes | bytearray | memoryview | msgspec.Raw | str) -> JsonObject:
    """A JSON object. Raises `InvalidJson`."""
    value = load(body)
    if not isinstance(value, dict):
        raise InvalidJson("not a JSON object")
    return value


def dump(value: Any) -> bytes:
    """Compact JSON, non-ASCII unescaped; NaN and infinities become null, as JSON has no word for them."""
    return _encoder.encode(value)


def dump_error(exc: ApiError) -> bytes:
    """The body of an error reply."""
    return _encoder.encode(exc.envelope())


def bad_json(exc: InvalidJson) -> ApiError:
    """What a client hears whose body is not a JSON object."""
    return error("invalid_json", f"The request body is not a valid JSON object: {exc}.")
