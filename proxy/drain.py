"""The end of a server: what it waits for, told in words, and how a second Ctrl-C cuts the wait short.

uvicorn waits for requests under way as long as its configuration says, and then cancels them: their clients are told,
inside the stream where one has begun. Here the same can be had sooner. Not here: signals, and who tells the words.
"""

from __future__ import annotations

import asyncio
from typing import Final

import uvicorn

TICK: Final = 0.05  # seconds between two looks


class DrainingServer(uvicorn.Server):
    """uvicorn whose drain can be ended."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._hurried = False

    @property
    def under_way(self) -> int:
        """Requests that are not answered yet."""
        return len(self.server_state.tasks)

    def hurry(self) -> None:
        """Don't wait for what is under way, now or once the drain begins. May be called from a signal's handler."""
        self._hurried = True

    async def _wait_tasks_to_complete(self) -> None:
        """uvicorn's wait, which it ends itself at the limit. Who must hurry is treated as the limit treats everybody,
        without its error in the log."""
        waiting = asyncio.get_running_loop().create_task(super()._wait_tasks_to_complete())
        try:
            while not waiting.done() and not self._hurried:
                await asyncio.wait([waiting], timeout=TICK)
        finally:
            waiting.cancel()
        for task in list(self.server_state.tasks):
            task.cancel()


def waits_for(requests: int, seconds: float, *, again: bool) -> str:
    """What a drain waits for, for people. `again`: it was a Ctrl-C that began it."""
    what, them = ("1 request", "it") if requests == 1 else (f"{requests} requests", "them")
    return (
        f"Waiting for {what} under way to finish, for up to {seconds:g} s. Ctrl-C{' again' if again else ''} ends "
        f"{them} now."
    )
