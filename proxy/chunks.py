"""HTTP's chunks (RFC 9112 §7.1): written, and read where they come whole, which takes no parser's state.

A leaf and sans-IO. Not here: trailers, extensions and parts of chunks, which are llhttp's.
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 9  # bytes of a size line that are looked through: a longer one isn't usual
USUAL: Final = 1024  # bytes of a chunk whose size line is known beforehand: a token's event, say
LAST: Final = b"0\r\n\r\n"
CR: Final = 13
LF: Final = 10
_LINES: Final = tuple(b"%x\r\n" % size for size in range(USUAL))
_SIZES: Final = {b"%x" % size: size for size in range(1, USUAL)}


def chunk(body: bytes) -> bytes:
    """That body, which isn't empty, as a chunk."""
    size = len(body)
    return b"".join((_LINES[size] if size < USUAL else b"%x\r\n" % size, body, b"\r\n"))


def whole_chunks(data: bytes) -> tuple[bytes, int]:
    """The body of those chunks that `data` begins with and holds wholly, and how many of its bytes they
    are. What is left is for a real parser: a part of a chunk, the last one, an extension, and what is no chunk."""
    if len(data) > LONGEST:
        end = 2 if data[2] == CR else 3  # digits of one of the usual size
        size = _SIZES.get(data[:end], -4)
        if end + size + 4 == len(data) and data[end] == CR and data[end + 1] == LF and data.endswith(b"\r\n"):
            return data[end + 2 : -2], len(data)
    at, bodies = 0, []
    while True:
        end = data.find(b"\r\n", at, at + LONGEST)
        if end < 0:
            break
        digits = data[at:end]
        size = _SIZES.get(digits, 0)
        if not size:  # a large one, or none
            if not digits.isalnum() or digits.startswith(b"0"):
                break
            try:
                size = int(digits, 16)
            except ValueError:
                break
        begin = end + 2
        behind = begin + size
        if behind + 2 > len(data) or data[behind : behind + 2] != b"\r\n":
            break
        bodies.append(data[begin:behind])
        at = behind + 2
        if at == len(data):
            break
    return bodies[0] if len(bodies) == 1 else b"".join(bodies), at
