"""The way to one launched engine: a lease (docs/launcher-api.md, "Leases") that all requests to it share.

The first request opens an `ensure`, whoever comes meanwhile waits with it, and while it is held a request costs a
counter. It is given back when nobody has used it for `LEASE_IDLE`, when nobody waits for it any more, or when the
launcher asks for it and what was under way has ended. One task reads one lease; the next one begins when the last one
has ended. Not here: HTTP, which engines there are, what a row means (`launched`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from proxy.errors import KINDS, ApiError, error
from proxy.launcher_client import LauncherError

log = logging.getLogger("illm")

LEASE_IDLE: Final = 1.0  # seconds without a request after which a lease is given back
DOUBT: Final = 5.0  # seconds that the launcher has for noticing that an engine is gone, on a busy machine
MAX_PHASE: Final = 200  # characters

Event = dict[str, Any]


class LeaseGate:
    """A `pool.Gate`. Whoever makes it calls `close`.

    `ensure` opens a lease; `ready` is given the event that says so, and returns when the engine's address and kind are
    known (or raises `ApiError`); `alive` tells whether the engine answered when it was last asked, `reachable` whether
    the launcher does.
    """

    def __init__(
        self,
        engine: str,
        ensure: Callable[[], AsyncGenerator[Event, None]],
        ready: Callable[[Event], Awaitable[None]],
        alive: Callable[[], bool],
        reachable: Callable[[], bool],
    ) -> None:
        self.open = False
        self._engine = engine
        self._ensure = ensure
        self._ready = ready
        self._alive = alive
        self._reachable = reachable
        self._users = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self._lease: asyncio.Task[None] | None = None
        self._asked_back = False  # the launcher wants it
        self._ending = False  # it is on its way back; not to be cancelled (again) in the middle of that
        self._phase = ""
        self._rest: asyncio.TimerHandle | None = None
        self._used = 0.0  # loop time when the last user left
        self._closed = False

    # -- pool.Gate -------------------------------------------------------------------------------------------

    async def enter(self) -> None:
        if self.open or (self._alive() and not self._reachable()):  # a launcher's absence doesn't touch its engines
            self._users += 1
            return
        if self._closed:
            raise _closing()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        self._begin()
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # let in in the turn in which it gave up
            raise
        finally:
            self._waiters.discard(waiter)
            self._spare()

    def leave(self) -> None:
        self._users -= 1
        if self._users:
            return
        if self._asked_back:
            self._end()
        elif self.open:
            self._doze()
        else:
            self._spare()

    async def lost(self) -> None:
        if self.open and self._lease is not None:
            await asyncio.wait([self._lease], timeout=DOUBT)

    def told(self) -> str:
        return f"starting '{self._engine}': {self._phase}" if self._phase else f"waiting for '{self._engine}'"

    # -- for its owner ---------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Is there a lease, or somebody who wants one?"""
        return self._lease is not None or bool(self._waiters)

    def renew(self) -> None:
        """The launcher is back: have a lease for what went on without one."""
        if self._users:
            self._begin()

    async def close(self) -> None:
        """Give the lease back and turn those away who wait."""
        self._closed = True
        self._turn_away(_closing())
        if self._rest is not None:
            self._rest.cancel()
        self._end()
        if self._lease is not None:
            await asyncio.wait([self._lease])

    # -- one lease -------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Ask for a lease, unless one is asked for, held or on its way back: what comes after that is `_ended`'s."""
        if self._lease is None and not self._closed:
            self._phase = ""
            self._lease = asyncio.create_task(self._hold(), name=f"lease of '{self._engine}'")
            self._lease.add_done_callback(self._ended)

    async def _hold(self) -> None:
        try:
            async with aclosing(self._ensure()) as events:
                try:
                    async for event in events:
                        if await self._take(event):
                            return
                finally:
                    self.open = False
                    self._ending = True
            raise LauncherError(f"The launcher of '{self._engine}' broke off. Send the request again in a moment.")
        except ApiError as exc:
            self._turn_away(exc)
        except LauncherError as exc:
            if exc.status is None and self._alive():
                self._let_in()
            else:
                self._turn_away(error("launcher_unavailable", str(exc)))

    async def _take(self, event: Event) -> bool:
        """What an event means for who waits; True where it ends the lease."""
        name = event.get("event")
        if name == "phase":
            self._phase = _phase(event)
        elif name == "ready":
            await self._ready(event)
            self._phase = ""
            self.open = True
            self._let_in()
            if not self._users:
                self._doze()
        elif name == "yield" and self.open:
            self.open = False
            self._asked_back = True
            return not self._users
        elif name == "failed" or (name == "gone" and not (self.open or self._asked_back)):
            raise _failed(self._engine, event)
        return name == "gone"

    def _ended(self, lease: asyncio.Task[None]) -> None:
        self._lease = None
        self.open = self._asked_back = self._ending = False
        if not lease.cancelled() and (exc := lease.exception()) is not None:
            log.error("the lease of '%s' met a bug", self._engine, exc_info=exc)
            self._turn_away(
                error("internal_error", f"The gateway failed on '{self._engine}'. Its log has the details.")
            )
        if self._waiters:
            self._begin()

    def _end(self) -> None:
        """Give it back. Its connection is closed when the task has ended."""
        self.open = False
        if self._lease is not None and not self._ending:
            self._ending = True
            self._lease.cancel()

    def _spare(self) -> None:
        """No lease is asked for that nobody waits for."""
        if not (self.open or self._users or self._waiters):
            self._end()

    # -- who waits, who rests --------------------------------------------------------------------------------

    def _let_in(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                self._users += 1
                waiter.set_result(None)
        self._waiters.clear()

    def _turn_away(self, exc: ApiError) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(_copy(exc))
        self._waiters.clear()

    def _doze(self) -> None:
        """Nobody is using it. One timer, looked at rather than moved with every request."""
        loop = asyncio.get_running_loop()
        self._used = loop.time()
        if self._rest is None:
            self._rest = loop.call_later(LEASE_IDLE, self._wake)

    def _wake(self) -> None:
        self._rest = None
        if self._users or not self.open:
            return
        loop = asyncio.get_running_loop()
        left = self._used + LEASE_IDLE - loop.time()
        if left > 0:
            self._rest = loop.call_later(left, self._wake)
        else:
            self._end()


def _phase(event: Event) -> str:
    text = " ".join(str(event.get("phase") or event.get("state") or "").split())[:MAX_PHASE]
    progress = event.get("progress")
    return f"{text} {min(progress, 1):.0%}".removesuffix("%") + " %" if isinstance(progress, int | float) else text


def _failed(engine: str, event: Event) -> ApiError:
    code = event.get("code")
    message = event.get("message") or event.get("reason")
    return error(
        code if isinstance(code, str) and code.startswith("engine_") and code in KINDS else "engine_failed",
        message if isinstance(message, str) else f"Engine '{engine}' did not start; its launcher's log says why.",
    )


def _closing() -> ApiError:
    return error("launcher_unavailable", "The gateway is shutting down. Send the request again in a moment.")


def _copy(exc: ApiError) -> ApiError:
    """Each who waits gets one of its own: they are changed on the way to the client."""
    return ApiError(exc.message, status=exc.status, type=exc.type, param=exc.param, code=exc.code, headers=exc.headers)
