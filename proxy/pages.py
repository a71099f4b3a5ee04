"""What a gateway without keys refuses, because a web page may have had a browser send it.

A browser runs other people's pages on the user's machine, and they reach its loopback. Any page can post a text without
asking first (CORS governs only who may read the answer), but can't hide its origin; one whose own name is made to point
here (DNS rebinding) counts as the same origin, but can't hide its name. Programs send no `Origin`, and ask by an
address or a name of this machine. Keys make all of this needless: a foreign page has none. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

from proxy.errors import ApiError, error
from proxy.headers import Named

# Names that nobody can have point here who isn't here already: no registry gives them away.
OURS: Final = (".localhost", ".local", ".internal")
SHOWN: Final = 200  # characters of an origin or name in an error


class Pages:
    """`allows`: may pages of that origin call? `here`: only this machine reaches the gateway, so `Host` must be a name
    that can't be a foreign page's. `names`: more that may be, beside the usual ones; '*' is every one, '*.x' all below
    x."""

    def __init__(self, allows: Callable[[str], bool], names: Iterable[str], *, here: bool) -> None:
        self._allows = allows
        self._names = frozenset(name.lower() for name in names)
        self._below = tuple(name[1:] for name in self._names if name.startswith("*."))
        self._here = here
        self._good = b""  # the last `Host` that was: nearly every request has the same

    def check(self, headers: Named) -> None:
        """Raises 403 for what a page may have sent that may not."""
        host = headers.get(b"host", b"")  # a browser always sends one
        if self._here and host != self._good:
            self._check_host(host, headers)
        origin = headers.get(b"origin")
        if origin is not None:
            self._check_origin(origin.decode("latin-1"), host.decode("latin-1"), headers)

    def _check_host(self, host: bytes, headers: Named) -> None:
        name = host.decode("latin-1")
        if self._known(name):
            self._good = host
        elif b"via" not in headers:  # which proxies send, and no page can
            raise _not_a_name(host_name(name))

    def _check_origin(self, origin: str, host: str, headers: Named) -> None:
        if not origin.startswith(("http://", "https://")) and origin != "null":
            return  # an application or an extension that the user has installed: no page can say that
        if self._allows(origin):
            return
        authority = origin.partition("://")[2]
        own = authority == host or host_name(authority) == host  # a proxy may leave the port out
        if not (own and (self._known(host) or b"via" in headers)):
            raise _not_an_origin(origin)

    def _known(self, host: str) -> bool:
        name = host_name(host)
        if not name or "." not in name or name in self._names or "*" in self._names or name.endswith(OURS):
            return True
        return any(name.endswith(below) for below in self._below) or _address(name)


def host_name(host: str) -> str:
    """Of a `Host`: without port, brackets and the root's dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def only_here(host: str) -> bool:
    """Can only this machine reach what listens on that address?"""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _not_an_origin(origin: str) -> ApiError:
    return error(
        "origin_not_allowed",
        f"A web page of {origin[:SHOWN]} sent this, and pages from there may not use this gateway, which has no keys. "
        "If they shall, add that origin to server.cors_origins (ILLM_SERVER__CORS_ORIGINS).",
    )


def _not_a_name(name: str) -> ApiError:
    return error(
        "host_not_allowed",
        f"This gateway has no keys and is there for its own machine, so it doesn't answer to the name "
        f"'{name[:SHOWN]}', which may be a foreign web page's. If it shall, add that name to server.allowed_hosts "
        "(ILLM_SERVER__ALLOWED_HOSTS), or set server.api_keys.",
    )
