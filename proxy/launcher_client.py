"""Talking to a launcher: its control API (docs/launcher-api.md) over a unix socket or TCP, with httpx.

Control plane: the gateway and the command line use it, no request of a client's does while its engine is held. What
the answers mean is the caller's (`launched`, the commands); here they are parsed and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    import httpx  # 6 MB, for gateways with launchers only: imported where the first client is made

from proxy.wire import InvalidJson, load_object

UNIX: Final = "unix:"
CONNECT: Final = 5.0  # seconds
SILENCE: Final = 30.0  # seconds after which a stream of events counts as lost: a ping comes every ten
ANSWER: Final = 30.0  # seconds for what a launcher knows by heart
IN_USE: Final = "launcher_in_use"  # the code of an error
PATIENCE: Final = 600.0  # seconds for what it has to do first: to stop an engine, to read its settings anew

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a launcher is. `url`: `http://HOST:PORT`, or `unix:` and the path of its socket."""

    name: str  # for people, and for telling engines of the same name apart
    url: str
    api_key: str | None = None
    own: bool = False  # this machine's, for these settings: not one of `launchers`


class LauncherError(Exception):
    """The launcher can't be asked, or refused; the text is for people. `status`: of its answer, None where there was
    none. `code`: what its error was called, if it was told."""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class LauncherClient:
    """One launcher. Whoever makes it calls `aclose`. Every method raises `LauncherError`.

    What gives events makes its request when the first one is asked for, and ends it when the generator is closed
    (`contextlib.aclosing`) or its reader cancelled. Pings are not given.
    """

    def __init__(self, address: Address) -> None:
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx

        self.address = address
        socket = address.url.removeprefix(UNIX) if address.url.startswith(UNIX) else None
        headers = {"authorization": f"Bearer {address.api_key}"} if address.api_key is not None else {}
        self._client = httpx.AsyncClient(
            base_url="http://launcher" if socket is not None else address.url,
            transport=httpx.AsyncHTTPTransport(
                verify=socket is None,  # there is no TLS on a socket, and reading the certificates takes its time
                uds=socket,
                limits=httpx.Limits(max_connections=None),  # one for each lease
            ),
            headers=headers,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def about(self) -> dict[str, Any]:
        """Who it is: version, pid, devices."""
        return await self._ask("GET", "/")

    async def engines(self) -> list[dict[str, Any]]:
        """A row for each engine."""
        rows = (await self._ask("GET", "/engines")).get("engines")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def events(self) -> AsyncGenerator[Event, None]:
        """All engines, then every change, for as long as they are read."""
        return self._events("GET", "/events")

    def ensure(self, name: str) -> AsyncGenerator[Event, None]:
        """The way to `ready`, and from then on a lease, until the generator is closed."""
        return self._events("POST", _engine(name, "/ensure"))

    def start(self, name: str) -> AsyncGenerator[Event, None]:
        """The way to `ready` or `failed`; no lease."""
        return self._events("POST", _engine(name, "/start"))

    async def stop(self, name: str) -> dict[str, Any]:
        """Its row, once it has stopped."""
        return await self._ask("POST", _engine(name, "/stop"), patience=PATIENCE)

    async def logs(self, name: str, tail: int = 100, follow: bool = False) -> AsyncGenerator[str, None]:
        """Text of its log, in pieces: the last lines and, with `follow`, what comes for as long as it is read."""
        query = {"tail": tail} | ({"follow": 1} if follow else {})
        async with self._open("GET", _engine(name, "/logs"), None if follow else ANSWER, query) as response:
            async for piece in response.aiter_text():
                yield piece

    async def reload(self, dry_run: bool = False) -> dict[str, Any]:
        """What it does (or would do) about its settings as they are now: names of engines by `start`, `stop`,
        `restart`, `update`, `keep`; of its own settings by `launcher` (taken over) and `left` (see `left_over`)."""
        return await self._ask("POST", "/reload", patience=PATIENCE, query={"dry_run": 1} if dry_run else {})

    async def shutdown(self, *, leave: bool = False, if_unused: bool = False) -> None:
        """It stops its engines, or leaves them to the next launcher, and ends; returns at once. `if_unused`: it refuses
        with `IN_USE` while a gateway follows it."""
        query = {name: 1 for name, asked in (("leave", leave), ("if_unused", if_unused)) if asked}
        await self._ask("POST", "/shutdown", query=query)

    # -- inside ----------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, patience: float = ANSWER, query: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        async with self._open(method, path, patience, query) as response:
            body = await response.aread()
        return self._object(body) if body.strip() else {}

    async def _events(self, method: str, path: str) -> AsyncGenerator[Event, None]:
        async with self._open(method, path, SILENCE) as response:
            async for line in response.aiter_lines():
                event = self._object(line) if line.strip() else {}
                if event and event.get("event") != "ping":
                    yield event

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, silence: float | None, query: dict[str, Any] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """An answer that is none of an error. `silence`: most seconds between two pieces of it."""
        import httpx

        limits = httpx.Timeout(CONNECT, read=silence)
        try:
            async with self._client.stream(method, path, params=query, timeout=limits) as response:
                if response.status_code >= 400:
                    raise self._refused(response.status_code, await response.aread())
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise self._lost(exc) from None

    def _object(self, text: str | bytes) -> dict[str, Any]:
        try:
            return load_object(text)
        except InvalidJson:
            raise LauncherError(f"{self._who} answered with something that is not JSON. {self._advice}") from None

    def _refused(self, status: int, body: bytes) -> LauncherError:
        try:
            told = load_object(body).get("error")
        except InvalidJson:
            told = None
        told = told if isinstance(told, dict) else {}
        code, message = told.get("code"), told.get("message")
        if status == 401:
            message = f"{self._who} refused the key. Set its api_key as that launcher has it."
        if not isinstance(message, str) or not message:
            message = f"{self._who} answered with status {status}. {self._advice}"
        return LauncherError(message, status=status, code=code if isinstance(code, str) else None)

    def _lost(self, exc: Exception) -> LauncherError:
        """In plain words; never httpx's own."""
        import httpx

        if isinstance(exc, httpx.ConnectTimeout | httpx.ConnectError):
            return LauncherError(f"{self._who} can't be reached. {self._advice}")
        if isinstance(exc, httpx.TimeoutException):
            return LauncherError(f"{self._who} has fallen silent. {self._advice}")
        if isinstance(exc, httpx.LocalProtocolError | httpx.InvalidURL | httpx.UnsupportedProtocol):
            return LauncherError(f"{self._who} can't be asked: its address or its api_key is not fit for HTTP.")
        return LauncherError(f"The connection to {self._who[0].lower()}{self._who[1:]} broke off. {self._advice}")

    @property
    def _who(self) -> str:
        return f"Launcher '{self.address.name}' at {self.address.url.removeprefix(UNIX)}"

    @property
    def _advice(self) -> str:
        if self.address.url.startswith(UNIX):
            return "Is it running? `illm launch` starts it; its log says why it ended."
        return "Check that `illm launch` runs on that machine and that the address is right."


def left_over(plan: dict[str, Any]) -> str:
    """What of the launcher's own settings a reload could not take over, a sentence with what to do; empty where there
    is nothing."""
    names = plan.get("left")
    if not isinstance(names, list) or not names:
        return ""
    said = ", ".join(f"launcher.{name}" for name in names)
    return f"A change of {said} takes effect when the launcher starts anew: `illm launch --stop`, then start it again."


def _engine(name: str, what: str) -> str:
    return f"/engines/{quote(name, safe='')}{what}"
