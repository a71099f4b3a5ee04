"""What the gateway takes from a request's head before it looks at anything else: whose request it is, whether it may
come in, what of its headers goes along to an engine. Worked out once for all requests that repeat a head.

Pure decisions over `headers`; not here: what a route does (`endpoints`), and how a refusal is told (`middleware`).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

from proxy.client_head import Head
from proxy.errors import ApiError, error
from proxy.headers import Named, RawHeaders, for_upstream, offered_id


class Cors:
    """Which web pages may read answers. An origin without a port stands for every port of that host."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.rstrip("/") for origin in origins)
        self._any = "*" in self._origins

    def allows(self, origin: str) -> bool:
        if self._any or origin in self._origins:
            return True
        try:
            url = urlsplit(origin)
        except ValueError:
            return False
        host = f"[{url.hostname}]" if url.hostname and ":" in url.hostname else url.hostname
        return f"{url.scheme}://{host}" in self._origins

    def headers(self, origin: bytes | None) -> RawHeaders:
        """For any answer to that origin."""
        if origin is None or not self.allows(origin.decode("latin-1")):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, x-illm-dropped-params, retry-after"),
            (b"vary", b"origin"),
        ]

    def preflight(self, asked: Named) -> RawHeaders:
        """For an OPTIONS request that asks before the real one."""
        allowed = self.headers(asked.get(b"origin"))
        if not allowed:
            return []
        wanted = asked.get(b"access-control-request-headers") or b"authorization, content-type"
        more: RawHeaders = [
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        if asked.get(b"access-control-request-private-network") == b"true":  # a public page, a gateway at home
            more.append((b"access-control-allow-private-network", b"true"))
        return allowed + more


class Keys:
    """Bearer keys, compared in constant time: each with each, whatever matched before. `without`: what is checked
    instead where there are none."""

    def __init__(self, keys: Iterable[str], without: Callable[[Named], object] = lambda _: None) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._without = without

    def check(self, headers: Named) -> None:
        """Raises 401 where a key is needed and none of ours was sent."""
        if not self._keys:
            self._without(headers)
            return
        scheme, _, offered = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            offered = headers.get(b"x-api-key", b"")  # how Anthropic's clients send it
        offered = offered.strip()
        matches = [hmac.compare_digest(offered, key) for key in self._keys]  # all of them, whatever matched before
        if not any(matches):
            said = "Wrong API key." if offered else "No API key was sent."
            raise error("invalid_api_key", f"{said} Send one of the gateway's keys as 'Authorization: Bearer KEY'.")

    def admit(self, headers: Named) -> bool:
        """Would `check` pass?"""
        try:
            self.check(headers)
        except ApiError:
            return False
        return True


class Reading:
    """Of one head. `id`: the client's own for the request, empty where it gave none that is harmless; `forwarded`: for
    whom a reverse proxy asks, if it says so; `passing`: header lines for an engine; `circles`: it came from here."""

    __slots__ = ("admitted", "circles", "cors", "forwarded", "id", "passing", "path")

    def __init__(self, head: Head, cors: Cors, keys: Keys, via: bytes) -> None:
        headers, names = head.headers, head.names
        path = head.target.path
        self.path = path.rstrip("/") if len(path) > 1 and path.endswith("/") else path
        self.id = offered_id(names.get(b"x-request-id"))
        self.admitted = keys.admit(names)
        self.cors = cors.headers(names.get(b"origin"))
        self.forwarded = _forwarded(headers) if b"x-forwarded-for" in names else ""
        self.circles = b"via" in names and any(name == b"via" and via in value for name, value in headers)
        self.passing = for_upstream(headers) + b"via: 1.1 %b\r\n" % via


class Reader:
    """Reads heads. `via`: this gateway's own name in `Via` headers, by which it knows its own requests."""

    def __init__(self, cors: Cors, keys: Keys, via: bytes) -> None:
        self.cors = cors
        self.keys = keys
        self._via: Final = via

    def read(self, head: Head) -> Reading:
        known = head.reading
        if isinstance(known, Reading):
            return known
        reading = Reading(head, self.cors, self.keys, self._via)
        head.reading = reading
        return reading


def _forwarded(headers: RawHeaders) -> str:
    """The last of several is the nearest proxy's own."""
    told = [value for name, value in headers if name == b"x-forwarded-for"][-1]
    return told.rpartition(b",")[2].strip().decode("latin-1")
