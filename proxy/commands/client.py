"""One OpenAI-compatible server as `models`, `chat`, `embed` and `smoke` ask it: requests, event streams, plain errors.

Blocks, with httpx; a Ctrl-C ends a request at once. Where the server is, when nobody says so, is in `where`. Not here:
what an answer means, and how it is shown.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

import httpx

from proxy import wire
from proxy.commands.source import Failed, UsageError
from proxy.engine_answers import message
from proxy.framing import FrameTooLong, SseParser
from proxy.open_files import shortage

CONNECT: Final = 5.0  # seconds
LOOK: Final = 30.0  # seconds for what a server knows by heart
MAX_BYTES: Final = 256 * 2**20  # of one answer that is no stream: many embeddings are large
EVENT_STREAM: Final = "text/event-stream"
END: Final = "[DONE]"


class Refused(Failed):
    """The server answered with an error. `said`: its own words, `code`: what it calls it; empty where it told none.
    `enveloped`: it has the form of OpenAI's errors. `status` is 0 where the error came inside a stream."""

    def __init__(self, text: str, status: int, said: str = "", code: str = "", enveloped: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.said = said
        self.code = code
        self.enveloped = enveloped


class Unreachable(Failed):
    """No answer came, or it broke off."""


class Nonsense(Failed):
    """What came is no answer of this API."""


class Item(NamedTuple):
    """A piece of an event stream: a comment's text, a chunk (a JSON object), the closing `[DONE]`, or a line that no
    event stream has."""

    kind: Literal["comment", "chunk", "end", "stray"]
    text: str = ""
    chunk: dict[str, Any] = {}  # noqa: RUF012 - of a frozen tuple, and never changed


class Server:
    """A server at a base URL, with or without `/v1`. Whoever makes it closes it (`with`).

    `silence`: most seconds without a byte of an answer; None waits for as long as it takes. Every method raises
    `Unreachable`, `Refused` and `Nonsense`, which are `Failed`.
    """

    def __init__(self, base_url: str, api_key: str | None, silence: float | None = LOOK) -> None:
        self.root, self._prefix = _split(base_url)
        self.prefix = self._prefix or "/v1"
        self.key = api_key or None
        self._silence = silence
        # A connection for each request: engines close idle ones, and one that is closing would look like a failure.
        headers = {b"accept-encoding": b"identity", b"connection": b"close"}
        if self.key is not None:
            headers[b"authorization"] = b"Bearer " + self.key.encode("utf-8", "replace")
        self._client = httpx.Client(
            headers=headers,
            verify=self.root.startswith("https:"),  # reading the certificates takes its time
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()

    @property
    def url(self) -> str:
        """For people: the base URL without a password."""
        parts = urlsplit(self.root + self.prefix)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def models(self, framework: str | None = None) -> list[dict[str, Any]]:
        """The entries of its list. Where it has none below `/v1` but without, so will the other paths."""
        query = f"?framework={framework}" if framework else ""
        try:
            value = self.get(f"/models{query}")
        except Refused as exc:
            if self._prefix is not None or exc.status not in (404, 405):
                raise
            before, self.prefix = self.prefix, ""
            try:
                value = self.get(f"/models{query}")
            except Failed:
                self.prefix = before
                raise exc from None
        data = value.get("data") if isinstance(value, dict) else value  # some give the bare list
        entries = data if isinstance(data, list) else []
        return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    def settle(self) -> list[dict[str, Any]]:
        """Find out where its paths are, for who doesn't care for the list; the list all the same, empty where it has
        none."""
        try:
            return self.models()
        except Refused as exc:
            if exc.status in (401, 403):
                raise
        except Nonsense:
            pass
        return []

    def get(self, path: str, *, plain: bool = False) -> Any:
        """The JSON of a path of the API; `plain`: of a path of the server."""
        return self._json("GET", self.root + ("" if plain else self.prefix) + path, None, LOOK)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._json("POST", self.root + self.prefix + path, body, self._silence)

    def stream(self, path: str, body: dict[str, Any]) -> Generator[Item, None, None]:
        """The pieces of an event stream as they come. Close it (`contextlib.closing`) to end the request."""
        parser, lines = SseParser(), _Comments()
        with self._open("POST", self.root + self.prefix + path, body, self._silence) as response:
            kind = response.headers.get("content-type", "")
            if not kind.startswith(EVENT_STREAM):
                response.read()
                raise self._refused(
                    response, f"a stream was asked for, and it answered with {kind or 'no content type'}"
                )
            for piece in response.iter_raw():
                for text in lines.feed(piece):
                    yield Item("comment", text)
                for event in parser.feed(piece):
                    yield from self._items(event.data, event.fields)
            for event in parser.flush():
                yield from self._items(event.data, event.fields)

    # -- inside ----------------------------------------------------------------------------------------------

    def _items(self, data: str | None, fields: dict[str, str]) -> Iterator[Item]:
        for name, value in fields.items():
            yield Item("stray", f"{name}: {value}")
        if data is None:
            return
        if data.strip() == END:
            yield Item("end")
            return
        try:
            chunk = wire.load_object(data)
        except wire.InvalidJson:
            raise Nonsense(f"{self.url} sent an event that is no JSON object") from None
        if chunk.get("error"):
            said, code, enveloped = _told(chunk, self.key)
            raise Refused(f"{self.url} broke off with an error: {said or 'no words'}", 0, said, code, enveloped)
        yield Item("chunk", chunk=chunk)

    def _json(self, method: str, url: str, body: dict[str, Any] | None, silence: float | None) -> Any:
        with self._open(method, url, body, silence) as response:
            content = bytearray()
            for piece in response.iter_raw():
                content += piece
                if len(content) > MAX_BYTES:
                    raise Nonsense(f"{self.url} answered with more than {MAX_BYTES // 2**20} MiB")
        try:
            return wire.load(content)
        except wire.InvalidJson:
            path = urlsplit(url).path
            raise Nonsense(f"{self.url} answered {path} with something that is no JSON: see the base URL") from None

    @contextmanager
    def _open(
        self, method: str, url: str, body: dict[str, Any] | None, silence: float | None
    ) -> Iterator[httpx.Response]:
        """A successful answer, its body not read yet."""
        headers = {"content-type": "application/json"} if body is not None else {}
        content = wire.dump(body) if body is not None else None
        limits = httpx.Timeout(CONNECT, read=silence, write=silence)
        try:
            with self._client.stream(method, url, content=content, headers=headers, timeout=limits) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refused(response)
                yield response
        except httpx.ConnectTimeout:
            raise Unreachable(f"{self.url} can't be reached: no answer within {CONNECT:g} s") from None
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url} was silent for {silence:g} s") from None
        except FrameTooLong as exc:
            raise Nonsense(f"{self.url}: {exc}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise Unreachable(f"{self.url} can't be reached: {why(exc)}") from None

    def _refused(self, response: httpx.Response, text: str = "") -> Refused:
        status = response.status_code
        try:
            value = wire.load(response.content)
        except wire.InvalidJson:
            value = None
        said, code, enveloped = _told(value, self.key)
        text = text or f"it answered {status} at {response.url.path}"
        if status in (401, 403):
            text += "; it wants a key: --api-key KEY" if self.key is None else "; it doesn't take this key: --api-key"
        elif 300 <= status < 400:
            text += ", a redirect: the base URL must name where it leads"
        return Refused(f"{self.url}: {text}{f': {said}' if said else ''}", status, said, code, enveloped)


class _Comments:
    """Finds the comments of an event stream, which carry what a gateway says while an engine starts."""

    def __init__(self) -> None:
        self._start = b""  # of an unfinished line

    def feed(self, piece: bytes) -> list[str]:
        *lines, self._start = (self._start + piece).split(b"\n")
        if not self._start.startswith(b":"):
            self._start = self._start[:1]  # enough to know that it is none
        return [
            text for line in lines if line.startswith(b":") and (text := line[1:].decode("utf-8", "replace").strip())
        ]


def _told(value: Any, key: str | None) -> tuple[str, str, bool]:
    """An error's words, its code, and whether it is in OpenAI's envelope."""
    error = value.get("error") if isinstance(value, dict) else None
    inner = error if isinstance(error, dict) else value if isinstance(value, dict) else {}
    code = inner.get("code") or inner.get("type")
    enveloped = isinstance(error, dict) and isinstance(error.get("message"), str)
    return message(value, key), code if isinstance(code, str) else "", enveloped


def _split(base_url: str) -> tuple[str, str | None]:
    """Root and prefix of a base URL; no prefix where it doesn't end with `/v1`."""
    given = base_url.strip()
    given = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(given)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise UsageError("a base URL is needed, like http://127.0.0.1:8000/v1")
    root = given.rstrip("/")
    cut = re.sub(r"/v1$", "", root)
    return (cut, "/v1") if cut != root else (root, None)


# --- what went wrong below HTTP ---

_CAUSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "connection refused"),
    (ConnectionResetError, "the connection was reset"),
    (socket.gaierror, "host name not found"),
    (ssl.SSLError, "TLS failed: check http:// or https:// in base_url, and its certificate"),
    (httpx.UnsupportedProtocol, "base_url must begin with http:// or https://"),
    (httpx.InvalidURL, "base_url is not a URL"),
    (httpx.LocalProtocolError, "the api_key can't stand in a header"),
    (httpx.RemoteProtocolError, "it closed the connection or does not answer in HTTP"),
    (httpx.ConnectError, "can't connect"),
)


def why(exc: BaseException) -> str:
    """What went wrong below HTTP, in plain words. Never httpx's own, which may hold a URL with a password."""
    causes = tuple(_chain(exc))
    for cause in causes:
        if (said := shortage(cause)) is not None:
            return said
    for kind, words in _CAUSES:
        if any(isinstance(cause, kind) for cause in causes):
            return words
    return f"the connection broke off ({type(exc).__name__})"


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """The exception and everything it came from, each once: httpx wraps the socket's error a few layers deep."""
    todo, seen = [exc], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
