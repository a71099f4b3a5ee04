"""Which headers pass, in which direction. A leaf of tables and pure functions.

Hop-by-hop headers end here (RFC 9110 §7.6.1), a client's credentials never reach an engine, and an engine's cookies
never reach a client. Names are lower-case bytes, as ASGI and the HTTP parser give them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from random import getrandbits
from typing import Final

RawHeaders = list[tuple[bytes, bytes]]
Named = Mapping[bytes, bytes]  # by name, the first of each

HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# Ours to set: the body may have another length or encoding by then, and the rest would speak for the engine's server.
REPLY_OWN: Final = HOP_BY_HOP | {
    b"content-length",
    b"content-encoding",
    b"content-type",
    b"date",
    b"server",
    b"set-cookie",
    b"x-request-id",
    b"vary",
    b"location",  # an engine's own address (vLLM answers a trailing slash with one) is nothing a client can use
    b"alt-svc",
    b"strict-transport-security",
}
# What a request keeps on its way to an engine. A list of what passes can't leak what it doesn't name.
REQUEST_PASSES: Final = frozenset(
    (b"accept", b"accept-language", b"user-agent", b"traceparent", b"tracestate", b"baggage", b"x-session-id", b"via")
)

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def offered_id(offered: bytes | None) -> bytes:
    """The client's own id for a request where it is harmless in a log and a header, else nothing."""
    return offered if offered is not None and _REQUEST_ID.fullmatch(offered) else b""


def new_id() -> bytes:
    """For a request whose client gave it none."""
    return b"%032x" % getrandbits(128)


def for_upstream(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's headers that an engine may see, as header lines."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers if pair[0] in REQUEST_PASSES])


def for_client(headers: Sequence[tuple[bytes, bytes]], names: Named) -> RawHeaders:
    """An engine's headers that a client may see; CORS is the gateway's own business."""
    own: Set[bytes] = REPLY_OWN
    if (more := names.get(b"connection")) is not None:  # names further headers that end here
        own = own | {name.strip().lower() for name in more.split(b",")}
    return [pair for pair in headers if pair[0] not in own and not pair[0].startswith(b"access-control-")]


def named(headers: Sequence[tuple[bytes, bytes]]) -> Named:
    """Headers by their (lower-case) name, the first where there are several."""
    return dict(reversed(headers))
