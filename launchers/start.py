"""One start of one engine, from its specification to the moment when it answers for its model.

A sequence: find the program, choose a port, spawn, ask until it is ready. It ends with a running engine or leaves
nothing behind. Not here: whether and when to start or to try again (`engine`), memory (`room`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import httpx

from launchers import dependencies, images, ports
from launchers.engines.base import LOADING, Command, Engine, Phase, Place, Ready
from launchers.engines.table import ENGINES, OUT_OF_MEMORY, PORT_TAKEN, launch
from launchers.logs import EngineLog
from launchers.process import NotStarted, Record, Running, environment, spawn
from launchers.readiness import Asker, PreparationFailed, Say, phase_of
from launchers.remains import clean_up
from launchers.spec import EngineSpec, SpecError

log = logging.getLogger("illm.launcher")

PORTS: Final = 3  # tries with other ports, where another program was faster
FIRST_ASK: Final = 0.02  # seconds between two questions, growing to the longest
LONGEST_ASK: Final = 1.0
LOCKED: Final = 2.0  # seconds for which it must ask for a key: at first another program may answer at its port

SLEEP: Final = 60.0  # seconds that an engine may take to go to sleep or to wake

Code = Literal["engine_failed", "engine_missing", "engine_memory", "engine_stopped"]


class StartFailed(Exception):
    """The text is for people. `again`: trying again may help."""

    def __init__(self, message: str, *, again: bool, code: Code = "engine_failed") -> None:
        super().__init__(message)
        self.again = again
        self.code: Code = code


@dataclass(frozen=True, slots=True)
class Means:
    """What starts need of the launcher around them; shared by all engines, owned by the supervisor."""

    client: httpx.AsyncClient
    runs: Path  # folder of run-time files
    environments: Path  # where engines are installed
    label: str  # tells this launcher's containers from another's
    bind: str
    orphans: Literal["kill", "adopt"]
    auto_install: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Started:
    running: Running
    base_url: str


def fingerprint(spec: EngineSpec) -> str:
    """Stands for all that an engine's process was told, its port aside. Raises `SpecError` for what can't be done."""
    command = launch(spec, Place("127.0.0.1", 0, container="c"))
    told = [spec.kind, spec.public, list(command.argv), sorted(command.env.items()), spec.port, spec.gpus]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


async def program(spec: EngineSpec, means: Means, say: Say) -> tuple[str, ...]:
    """The words that start its program, which is installed if need be and allowed, or its image pulled: that takes
    minutes. Raises `StartFailed`, also where its port is taken."""
    _port(spec, means.bind)
    engine = ENGINES[spec.kind]
    try:
        words = await asyncio.to_thread(dependencies.find, spec, engine, means.environments)
        if spec.image is not None:
            await images.ensure(words, spec.image, environment(spec.env), say)
        return words
    except images.PullFailed as exc:
        raise StartFailed(f"can't start: {exc}", again=True) from None
    except dependencies.Missing as missing:
        if not means.auto_install() or spec.image or spec.command or not engine.install.packages:
            raise StartFailed(f"can't start: {missing}", again=False, code="engine_missing") from None
    say(f"installing {engine.title}", None)
    try:
        await dependencies.install(engine, means.environments, say)
        return await asyncio.to_thread(dependencies.find, spec, engine, means.environments)
    except SpecError as exc:
        raise StartFailed(f"can't start: {exc}", again=False, code="engine_missing") from None


async def start(
    spec: EngineSpec,
    words: tuple[str, ...],
    means: Means,
    output: EngineLog,
    say: Say,
    spawned: Callable[[Started], None],
) -> None:
    """Blocks until the engine is ready; at most its `start_timeout`. `words` are those of `program`. `spawned` is told
    of the process as soon as there is one; of another where the port had to be another. Raises `StartFailed`; then,
    and when cancelled, nothing of it is left."""
    engine = ENGINES[spec.kind]
    for attempt in range(1, PORTS + 1):
        place = Place(means.bind, _port(spec, means.bind), words, container=f"illm-{spec.name}-{means.label}")
        running = await _spawn(spec, place, means, output)
        spawned(Started(running, base_url(means.bind, place.port)))
        try:
            with _phases(output, engine, say):
                async with asyncio.timeout(spec.start_timeout):
                    await _until_ready(spec, engine, running, place, means, say)
        except StartFailed as failed:
            await _end(running, spec.stop_timeout)
            taken = spec.port is None and PORT_TAKEN.search("\n".join(output.since_mark(200)))
            if taken and attempt < PORTS:
                log.info("%s: port %d was taken meanwhile, trying another", spec.name, place.port)
                continue
            raise _with_last_words(failed, output) from None
        except TimeoutError:
            await _end(running, spec.stop_timeout)
            raise _with_last_words(
                StartFailed(f"was not ready within {spec.start_timeout:g} s (start_timeout)", again=True), output
            ) from None
        except BaseException:
            await _end(running, spec.stop_timeout)
            raise
        return
    raise AssertionError("the last attempt returns or raises")


def name_upstream(spec: EngineSpec) -> str:
    """The name that the engine knows its model by."""
    return ENGINES[spec.kind].listed(spec) or spec.public


def base_url(host: str, port: int) -> str:
    """Where this machine reaches an engine that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def shown_url(record: Record) -> str:
    """Where it listens, a wildcard address left as it is: only who asks knows how it reaches this machine."""
    return f"http://[{record.host}]:{record.port}" if ":" in record.host else f"http://{record.host}:{record.port}"


def when_ready(spec: EngineSpec) -> Ready:
    """What its kind asks, unless it says otherwise itself."""
    ready = ENGINES[spec.kind].ready(spec)
    return ready if spec.health is None else replace(ready, health=spec.health)


def asker(spec: EngineSpec, means: Means, base_url: str) -> Asker:
    return Asker(means.client, base_url, spec.api_key)


async def wake(spec: EngineSpec, means: Means, running: Running, base_url: str, say: Say) -> None:
    """From its sleep. Raises `StartFailed`; then its process is gone."""
    how = ENGINES[spec.kind].sleep
    assert how is not None  # it slept
    say("waking up", None)
    try:
        await asker(spec, means, base_url).post(how.wake, SLEEP)
    except httpx.HTTPError as exc:
        await running.stop(spec.stop_timeout)
        raise StartFailed(f"did not wake from its sleep ({type(exc).__name__})", again=True) from None


async def sleep(spec: EngineSpec, means: Means, base_url: str) -> bool:
    """Send it to sleep, where its specification says so and it can; False: it is awake, if it lives at all."""
    how = ENGINES[spec.kind].sleep
    if spec.unload != "sleep" or how is None:
        return False
    try:
        await asker(spec, means, base_url).post(how.sleep, SLEEP)
    except httpx.HTTPError as exc:
        log.warning("%s: did not go to sleep (%s)", spec.name, type(exc).__name__)
        return False
    return True


# --- the steps -----------------------------------------------------------------------------------------------------


def _port(spec: EngineSpec, host: str) -> int:
    try:
        if spec.port is None:
            return ports.free_port(host)
        if ports.is_free(host, spec.port):
            return spec.port
    except OSError as exc:
        where = f"port {spec.port} of {host}" if spec.port is not None else host
        raise StartFailed(
            f"can't start: nothing can listen on {where} ({exc.strerror}); see `launcher.bind` and its `port`",
            again=False,
        ) from None
    who = ports.holder(spec.port)
    raise StartFailed(
        f"can't start: port {spec.port} is taken by {who}; end that, or leave `port` out to have a free one chosen",
        again=False,
    )


async def _end(running: Running, grace: float) -> None:
    """Returns when nothing of it is left, also where this is cancelled meanwhile."""
    ending = asyncio.create_task(running.stop(grace))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


async def _spawn(spec: EngineSpec, place: Place, means: Means, output: EngineLog) -> Running:
    try:
        command = _with_its_folder(launch(spec, place))
        await clean_up(command.cleanup)  # of a container whose launcher didn't live to remove it
        output.mark(f"{spec.name}: {' '.join(command.argv)}")
        return await spawn(
            command,
            name=spec.name,
            log=output,
            run_dir=means.runs,
            orphans=means.orphans,
            host=place.host,
            port=place.port,
            fingerprint=fingerprint(spec),
            model=spec.public,
            grace=spec.stop_timeout,
        )
    except (SpecError, NotStarted) as exc:
        raise StartFailed(f"can't start: {exc}", again=False) from None
    except OSError as exc:
        raise StartFailed(f"can't start: its log can't be written ({exc})", again=False) from None


def _with_its_folder(command: Command) -> Command:
    """An installed program finds what was installed beside it (vLLM looks for ninja)."""
    folder = os.path.dirname(command.argv[0])
    if not os.path.isabs(folder):
        return command
    path = os.pathsep.join(filter(None, (folder, command.env.get("PATH", os.environ.get("PATH")))))
    return replace(command, env={**command.env, "PATH": path})


async def _until_ready(
    spec: EngineSpec, engine: Engine, running: Running, place: Place, means: Means, say: Say
) -> None:
    """Returns when it answers for its model. Raises `StartFailed` when its process ends before."""
    ask = asker(spec, means, base_url(means.bind, place.port))
    ready = when_ready(spec)
    say("started", None)

    async def asking() -> None:
        pause, prepared, shown, locked = FIRST_ASK, False, "started", math.inf
        while True:
            stage = await ask.stage(ready if prepared else replace(ready, models=None), engine.listed(spec))
            if stage == "ready" and not prepared:
                await ask.prepare(engine.prepare(spec), ready.names, say)
                prepared = True
                continue
            if stage == "ready":
                return
            locked = min(locked, time.monotonic()) if stage == "locked" else math.inf
            if time.monotonic() - locked >= LOCKED:
                raise StartFailed(_locked(spec), again=False)
            if phase_of(stage) != shown:
                shown = phase_of(stage)
                say(shown, None)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_ASK)

    question = asyncio.create_task(asking())
    end = asyncio.create_task(running.ended())
    try:
        await asyncio.wait((question, end), return_when=asyncio.FIRST_COMPLETED)
        if end.done():  # also where something answered: that was another program then
            raise StartFailed(f"ended before it was ready ({end.result().text})", again=True)
        question.result()
    except PreparationFailed as exc:
        raise StartFailed(f"refused its model: {exc}", again=True) from None
    except httpx.HTTPError as exc:
        raise StartFailed(f"broke off while it was prepared ({type(exc).__name__})", again=True) from None
    finally:
        question.cancel()
        end.cancel()
        await asyncio.gather(question, end, return_exceptions=True)


def _locked(spec: EngineSpec) -> str:
    what = "refuses its `api_key`; give it the one that the engine was told"
    return f"answers 401: it {what if spec.api_key is not None else 'asks for a key; set its `api_key`'}"


@contextmanager
def _phases(output: EngineLog, engine: Engine, say: Say) -> Iterator[None]:
    """What the log tells of the start, passed on."""

    def heard(line: str) -> None:
        for phase in engine.phases:
            match = phase.pattern.search(line)
            if match is not None:
                say(phase.text or LOADING, share(phase, match))
                return

    with output.listening(heard):
        yield


def share(phase: Phase, match: re.Match[str]) -> float | None:
    """How much of the phase is done, 0 to 1, where the line says so."""
    groups = match.groupdict()
    if groups.get("percent"):
        return min(float(groups["percent"]) / 100, 1.0)
    if groups.get("done") and groups.get("total") and float(groups["total"]):
        return min(float(groups["done"]) / float(groups["total"]), 1.0)
    return None


def _with_last_words(failed: StartFailed, output: EngineLog) -> StartFailed:
    """The same, with the end of the engine's log, and what it most likely means."""
    words = output.last_words()
    hint = " It ran out of memory: give it more (`memory`, `gpus`) or ask less (`max_model_len`)." if (
        OUT_OF_MEMORY.search(words)
    ) else ""  # fmt: skip
    said = f" Its log ends with:\n{words}" if words else " It wrote nothing to its log."
    return StartFailed(f"{failed}.{hint}{said}", again=failed.again, code=failed.code)
