"""Which stand-in models are loaded: loading takes its time in silence, the queue for it has an end."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.standins.ollama_go import Refused
from tests.standins.ollama_models import Model

_KEEP = 300.0
_FOREVER = 10 * 365 * 86400.0
_FULL = "server busy, please try again.  maximum pending requests exceeded"
_ENDED = "llama-server process has terminated: exit status 1: error: failed to allocate buffer"


@dataclass(slots=True)
class Runner:
    """A loaded model; `state` is what makes another one necessary when it differs."""

    model: Model
    state: tuple[int, bool]
    until: float


class Runners:
    def __init__(self, load_delay: float, load_gate: str, max_queue: int, parallel: int) -> None:
        self._gate = Path(load_gate) if load_gate else None
        self._delay, self._max_queue, self._parallel = load_delay, max_queue, parallel
        self._loaded: dict[str, Runner] = {}
        self._places: dict[str, asyncio.Semaphore] = {}
        self._loading = asyncio.Lock()
        self._waiting = 0

    def loaded(self) -> list[Runner]:
        now = time.time()
        self._loaded = {name: each for name, each in self._loaded.items() if each.until > now}
        return list(self._loaded.values())

    def unload(self, model: Model) -> None:
        self._loaded.pop(model.name, None)

    @asynccontextmanager
    async def place(self, model: Model, state: tuple[int, bool], keep: float | None) -> AsyncIterator[int]:
        """One of the model's places, with the nanoseconds that loading took. Raises Refused."""
        load_ns = await self._ready(model, state)
        seconds = _KEEP if keep is None else keep
        try:
            async with self._places.setdefault(model.name, asyncio.Semaphore(self._parallel)):
                self._loaded[model.name].until = time.time() + (_FOREVER if seconds < 0 else max(seconds, 1))
                yield load_ns
        finally:
            if keep == 0:
                self.unload(model)

    def _fits(self, model: Model, state: tuple[int, bool]) -> bool:
        return any(each.model is model and each.state == state for each in self.loaded())

    async def _ready(self, model: Model, state: tuple[int, bool]) -> int:
        if self._fits(model, state):
            return 1_666_000
        if self._waiting > self._max_queue:
            raise Refused(503, _FULL)
        self._waiting += 1
        try:
            async with self._loading:
                if not self._fits(model, state):
                    while self._gate is not None and not self._gate.exists():
                        await asyncio.sleep(0.01)
                    await asyncio.sleep(self._delay)
                    if model.breaks:
                        raise Refused(500, _ENDED)
                    self._loaded[model.name] = Runner(model, state, time.time() + _KEEP)
        finally:
            self._waiting -= 1
        return 260_000_000 + int(self._delay * 1e9)
