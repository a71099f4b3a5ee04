"""Questions to a base URL, for the control plane: one request, and its whole answer.

They go over connections like those of clients' requests (`transport`), so that they meet what a request would meet,
and hold the streams up for as short a time as one (docs/data-path.md). A connection for each: engines close idle ones
after about as long as two questions are apart.

Not here: what is asked, how long it may take, and what an answer means (`discovery`, `describe`).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from proxy import wire
from proxy.connection import ConnectFailed, TransportError
from proxy.exchange import Exchange, TooLong
from proxy.headers import Named
from proxy.open_files import shortage
from proxy.transport import Limits, Origin, Transport

MAX_BYTES: Final = 4 * 2**20  # read of one answer, unless the question says otherwise


class Unanswered(Exception):
    """No answer came; the text says why in plain words, without URLs or keys."""


class Answer(NamedTuple):
    status: int
    names: Named
    body: bytes

    def header(self, name: bytes) -> str:
        """Empty where it isn't there."""
        return self.names.get(name, b"").decode("latin-1")

    @property
    def value(self) -> Any:
        """The JSON that its body is, else None."""
        try:
            return wire.load(self.body)
        except wire.InvalidJson:
            return None


class Asker:
    """Whoever makes it calls `close`, in the event loop that it was used in."""

    def __init__(self) -> None:
        self._transport = Transport(Limits())

    async def ask(
        self, root: str, path: str, key: str | None, body: bytes | None = None, most: int = MAX_BYTES
    ) -> Answer:
        """GET `path` behind that base URL, or POST JSON to it. Redirects are answers, cookies are not kept, proxies of
        the environment not used. Waits for as long as its caller lets it. Raises `Unanswered`."""
        try:
            origin = Origin.parse(root)
        except ValueError:
            scheme = root.startswith(("http://", "https://"))
            said = "base_url is not a URL" if scheme else "base_url must begin with http:// or https://"
            raise Unanswered(said) from None
        told = _request(origin, path, key, body)
        exchange = Exchange()
        try:
            exchange.send(told, await self._transport.connect(origin))
            await exchange.head()
            return Answer(exchange.status, exchange.names, await exchange.read(most))
        except TransportError as exc:
            raise Unanswered(_why(exc)) from None
        except TooLong:
            raise Unanswered(f"answered with more than {most // 2**20} MiB") from None
        finally:
            exchange.close()

    def close(self) -> None:
        self._transport.close()


@contextlib.contextmanager
def asking() -> Iterator[Asker]:
    """One for a while."""
    asker = Asker()
    try:
        yield asker
    finally:
        asker.close()


def _request(origin: Origin, path: str, key: str | None, body: bytes | None) -> bytes:
    head = b"%b %b%b HTTP/1.1\r\nhost: %b\r\nuser-agent: illm\r\naccept: application/json\r\n" % (
        b"GET" if body is None else b"POST", origin.path.encode(), path.encode(), origin.authority,
    )  # fmt: skip
    if key is not None:
        if any(sign < " " or sign == "\x7f" for sign in key):
            raise Unanswered("the api_key can't stand in a header")
        head += b"authorization: Bearer %b\r\n" % key.encode()
    if body is not None:
        head += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return b"%baccept-encoding: identity\r\nconnection: close\r\n\r\n%b" % (head, body or b"")


def _why(exc: TransportError) -> str:
    if not isinstance(exc, ConnectFailed):
        return "it closed the connection or does not answer in HTTP"
    reason = exc.reason
    if isinstance(reason, ssl.SSLError):
        return "TLS failed: check http:// or https:// in base_url, and its certificate"
    if isinstance(reason, socket.gaierror):
        return "host name not found"
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused"
    return (reason is not None and shortage(reason)) or "can't connect"
