"""All engines of one launcher: their tasks, what survives a launcher's death, and reloads.

It starts and ends the engines' tasks and leaves each engine's state to its own (`engine`). Not here: HTTP (`control`),
signals (`__main__`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from launchers import process, source, start
from launchers.changes import Changes, changes, settled
from launchers.engine import DRAIN, House, ManagedEngine
from launchers.engines.table import ENGINES
from launchers.gpu import NvidiaGpus, used_by
from launchers.ledger import Ledger
from launchers.logs import EngineLog
from launchers.mailbox import Board
from launchers.meters import BudgetFile, HostMemory, Meter, Together, process_memory
from launchers.needs import Needs
from launchers.readiness import new_client
from launchers.refusals import refuse
from launchers.room import Room
from launchers.spec import CPU, Device, Document, EngineSpec, LauncherSpec, SpecError

log = logging.getLogger("illm.launcher")

REAP: Final = 90.0  # seconds between two looks for processes that nobody waits for; no start of a guard takes longer
WATCH: Final = 1.0  # seconds between two looks at the settings file
RECOGNISE: Final = 15.0  # seconds in which an engine that an earlier launcher left must answer; it may be busy
AGAIN: Final = 0.5  # seconds between two questions to it


@dataclass(frozen=True, slots=True)
class _Kept:
    engine: ManagedEngine
    tasks: tuple[asyncio.Task[None], ...]


class Supervisor:
    """One launcher's engines. `begin` first, `close` last."""

    def __init__(self, folder: Path, command: Sequence[str], document: Document) -> None:
        """`folder`: its state; `command` prints the document anew. Raises `SpecError` for what can't be launched."""
        refuse(document.engines)
        self.document = document
        self.board = Board()
        self._command = command
        self._folder = folder
        self._client = new_client()
        self._gpus = NvidiaGpus()
        self._kept: dict[str, _Kept] = {}
        self._reloading = asyncio.Lock()
        self._chores: list[asyncio.Task[None]] = []
        self._file: asyncio.Task[None] | None = None  # watches it
        self._ending = False
        launcher = document.launcher
        runs = folder / "run"
        runs.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger(runs)
        needs = Needs(folder / "needs.json", self._gpus.number)
        self.room = Room(*self._memory(launcher), needs, self.engines)
        means = start.Means(
            client=self._client,
            runs=runs,
            environments=folder.parent / "environments",  # one for all launchers of this user
            label=hashlib.sha256(os.fsencode(folder)).hexdigest()[:8],
            bind=launcher.bind,
            orphans=launcher.orphans,
            auto_install=lambda: self.document.launcher.auto_install,
        )
        self._house = House(means, self.room, self.board, self._ledger, self._measure)

    def engines(self) -> list[ManagedEngine]:
        return [kept.engine for kept in self._kept.values()]

    def engine(self, name: str) -> ManagedEngine | None:
        kept = self._kept.get(name)
        return kept.engine if kept is not None else None

    async def begin(self) -> None:
        """Take over or end what an earlier launcher left, then start what is to be started."""
        async with self._reloading:  # a reload that is asked for meanwhile comes after it
            engines = [self._make(spec) for spec in self.document.engines]
            by_name = {engine.spec.name: engine for engine in engines}
            await asyncio.gather(*(self._inherit(record, by_name.get(record.name)) for record in self._ledger.read()))
            for engine in engines:
                self._run(engine)
        self._chores.append(asyncio.create_task(self._reaping(), name="reap"))
        self._mind_file()

    async def reload(self, *, dry_run: bool = False) -> Changes:
        """Read the settings again and do what changed; returns when that is under way. Raises `SpecError`, and nothing
        has changed then."""
        async with self._reloading:
            document = await source.read(self._command)
            if self._ending:
                raise SpecError("The launcher is ending.")
            refuse(document.engines)
            launcher, taken, left = settled(self.document.launcher, document.launcher)
            todo = replace(
                changes(self.document.engines, document.engines, start.fingerprint), launcher=taken, left=left
            )
            specs = {spec.name: spec for spec in document.engines}
            new = [self._make(specs[name]) for name in todo.start]  # all of them, before anything is changed
            if dry_run:
                return todo
            log.info("reload: %s", todo)
            if left:
                names = ", ".join(f"launcher.{name}" for name in left)
                log.warning("reload: %s: what it says now takes effect when the launcher starts anew", names)
            self.document = replace(document, launcher=launcher)
            self.room.measure_with(*self._memory(launcher))
            self._mind_file()
            for engine in new:
                self._run(engine)
            await asyncio.gather(
                *(self._remove(name) for name in todo.stop),
                *(self._kept[name].engine.replace(specs[name]) for name in (*todo.restart, *todo.update)),
            )
            return todo

    async def close(self, *, leave: bool = False, drain: float = DRAIN) -> None:
        """End all engines, or leave them to the next launcher, and everything of one's own."""
        self._ending = True
        for chore in (*self._chores, *filter(None, (self._file,))):
            chore.cancel()
        if not leave:
            await asyncio.gather(*(kept.engine.close("the launcher ends", drain=drain) for kept in self._kept.values()))
        for kept in self._kept.values():
            for task in kept.tasks:
                task.cancel()
        await asyncio.gather(*(task for kept in self._kept.values() for task in kept.tasks), return_exceptions=True)
        self.board.close()
        await self._client.aclose()
        self._gpus.close()

    def hurry(self) -> None:
        """Requests under way get no more time."""
        for kept in self._kept.values():
            kept.engine.hurry()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _make(self, spec: EngineSpec) -> ManagedEngine:
        output = EngineLog(self._folder / "logs" / f"{spec.name}.log", hide=spec.secrets)
        return ManagedEngine(spec, self._house, output)

    def _run(self, engine: ManagedEngine) -> None:
        name = engine.spec.name
        tasks = (
            asyncio.create_task(self._task(engine), name=f"engine {name}"),
            asyncio.create_task(engine.output.run(), name=f"log {name}"),
        )
        self._kept[name] = _Kept(engine, tasks)
        self.board.tell(name, {"event": "engine", "engine": engine.row()})

    async def _task(self, engine: ManagedEngine) -> None:
        why = "the launcher met a bug, which its log has"
        try:
            while True:
                try:
                    return await engine.run()
                except Exception:  # a bug in one engine's task must not end the others'
                    log.exception("%s: a bug", engine.spec.name)
                    await engine.recover()
        except asyncio.CancelledError:
            why = "the launcher ends"
            raise
        finally:
            engine.end(why)

    async def _remove(self, name: str) -> None:
        kept = self._kept[name]
        await kept.engine.close("it is no longer in the settings", drain=DRAIN)
        for task in kept.tasks:
            task.cancel()
        await asyncio.gather(*kept.tasks, return_exceptions=True)
        del self._kept[name]
        self.board.tell(name, {"event": "removed", "name": name})

    async def _inherit(self, record: process.Record, engine: ManagedEngine | None) -> None:
        """An engine process that an earlier launcher left."""
        running = process.adopt(record) if self.document.launcher.orphans == "adopt" else None
        if running is not None and engine is not None and await self._same(running, engine):
            engine.adopt(running, start.base_url(record.host, record.port), await self.room.claim(engine))
            log.info("%s: adopted process %d on port %d", record.name, record.engine_pid, record.port)
            return
        log.info("%s: ending what an earlier launcher left of it (process %d)", record.name, record.engine_pid)
        await (running.stop(record.grace) if running is not None else process.clear(record))
        self._ledger.remove(record.name)

    async def _same(self, running: process.Running, engine: ManagedEngine) -> bool:
        """It was told the same, and answers for its model. One that is busy gets some time for that."""
        spec, record = engine.spec, running.record
        if record.fingerprint != engine.fingerprint:
            return False
        ask = start.asker(spec, self._house.means, start.base_url(record.host, record.port))
        ready, listed = start.when_ready(spec), ENGINES[spec.kind].listed(spec)
        deadline = asyncio.get_running_loop().time() + RECOGNISE
        while (stage := await ask.stage(ready, listed)) == "listening" and not running.has_ended:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(AGAIN)
        return stage == "ready"

    async def _reaping(self) -> None:
        """Take what comes to this process as a sub-reaper once a guard was killed. A child that is new may be one that
        is just being started, so its turn comes at the next look."""
        before: set[int] = set()
        while True:
            await asyncio.sleep(REAP)
            children = process.children()
            guards = {pid for one in self.engines() for pid in one.guards()}
            process.reap_strangers(guards | (children - before))
            before = children

    def _mind_file(self) -> None:
        """Watch the settings' file from now on, where that is asked for."""
        launcher = self.document.launcher
        if launcher.watch and launcher.file is not None and (self._file is None or self._file.done()):
            self._file = asyncio.create_task(self._watching(Path(launcher.file)), name="watch settings")

    async def _watching(self, file: Path) -> None:
        seen = _stamp(file)
        while self.document.launcher.watch:
            await asyncio.sleep(WATCH)
            stamp = _stamp(file)
            if stamp != seen:
                seen = stamp
                try:
                    await self.reload()
                except SpecError as exc:
                    log.error("reload: %s\nNothing was changed.", exc)

    def _memory(self, launcher: LauncherSpec) -> tuple[Meter, Callable[[], Mapping[Device, int]]]:
        """What measures memory here, and what declares it."""
        budget = launcher.budget
        if isinstance(budget, str):
            file = BudgetFile(Path(budget))
            return Together(HostMemory(), file), file.budget
        declared = budget or {}
        return Together(HostMemory(), self._gpus), lambda: {self._gpus.number(gpu): declared[gpu] for gpu in declared}

    def _measure(self, devices: Collection[Device], pids: list[int]) -> Mapping[Device, int]:
        measured: dict[Device, int | None] = {CPU: process_memory(pids)} if CPU in devices else {}
        if set(devices) - {CPU}:
            readings = self._gpus.read()
            measured |= {device: used_by(readings[device], pids) for device in devices if device in readings}
        return {device: held for device, held in measured.items() if held}


def _stamp(file: Path) -> tuple[int, int] | None:
    """Changes with the file; None where it isn't there."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
