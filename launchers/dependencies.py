"""Is an engine's program there? And, where that is allowed, getting it: an environment of its own for each kind.

An environment is a folder ENVS/KIND, complete when its stamp is there; a half-made one is thrown away. Not here: when
it is allowed, and what the program is told (`engines/`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from launchers import errand
from launchers.engines.base import Engine
from launchers.engines.table import program
from launchers.spec import EngineSpec, SpecError

STAMP: Final = ".complete"
LOCK: Final = "install.lock"
POLL: Final = 0.2

ELSEWHERE: Final = (
    "Among a settings file's `engines` it can also have a `command`, which says where it is, or an `image`, for a "
    "container."
)

Say = Callable[[str, float | None], None]

# What of pip's talk is worth showing, and how.
_STEPS: Final = (
    (re.compile(r"^Collecting (?P<what>\S+)"), "collecting {what}"),
    (re.compile(r"^\s*Downloading (?P<what>.+)"), "downloading {what}"),
    (re.compile(r"^\s*Building wheels? for .*?: (?P<what>.+)"), "building {what}"),
    (re.compile(r"^Installing collected packages: (?P<what>.+)"), "unpacking"),
)


class Missing(SpecError):
    """The engine's program isn't here; the text says how it is had."""


class InstallFailed(SpecError):
    """The program could not be installed; the text has the installer's last words."""


# --- finding -------------------------------------------------------------------------------------------------------


def find(spec: EngineSpec, engine: Engine, envs: Path) -> tuple[str, ...]:
    """The words that start its program: what `command` says, else what is on the path or beside this Python, else what
    was installed below `envs`; docker for a container. Raises `Missing`.

    Blocks: looks at the disk, and asks a Python whether it has a module (0.1 s)."""
    if spec.image is not None:
        docker = _which("docker")
        if docker is None:
            raise Missing(
                f"{spec.name} runs in a container (`image`), and there is no `docker` on the path here. Install Docker "
                f"(https://docs.docker.com/engine/install/), or leave `image` out."
            )
        return (docker,)
    if spec.command:
        return _found_command(spec, engine)
    first, *rest = engine.program
    found = _module(rest[1]) if rest[:1] == ["-m"] else _which(first)
    env = envs / engine.kind
    if found is None and (env / STAMP).exists():
        found = str(env / "bin" / first)
    if found is None:
        raise Missing(_advice(spec, engine))
    return (found, *rest)


def _found_command(spec: EngineSpec, engine: Engine) -> tuple[str, ...]:
    first, *rest = spec.command if spec.kind == "command" else program(spec, engine)
    found = first if "{" in first else _which(first)
    if found is None:
        raise Missing(f"{spec.name}: there is no program {first!r} here, with which its `command` begins.")
    return (found, *rest)


def _which(name: str) -> str | None:
    """On the path, or beside this Python, whose environment need not be active."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name) or shutil.which(name, path=beside)


def _module(name: str) -> str | None:
    """A Python that has that module."""
    package = name.partition(".")[0]
    script = _which(package)  # most packages bring a program, and the Python beside it is theirs
    beside = str(Path(script).with_name("python3")) if script else None
    ask = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"
    for python in dict.fromkeys((beside, shutil.which("python3"), sys.executable)):
        with suppress(OSError, subprocess.TimeoutExpired):
            if python and subprocess.run([python, "-c", ask, package], timeout=30).returncode == 0:  # noqa: S603
                return python
    return None


def _advice(spec: EngineSpec, engine: Engine) -> str:
    what = engine.program[2] if engine.program[1:2] == ("-m",) else engine.program[0]
    said = f"{spec.name} needs {engine.title}, and there is no `{what}` here. "
    if not engine.install.packages:
        return said + f"To have it: {engine.install.advice}. {ELSEWHERE}"
    return said + (
        f"Install it (`{engine.install.advice}`), or let it be installed: `auto_install: true` (ILLM_AUTO_INSTALL=1). "
        f"{ELSEWHERE}"
    )


# --- installing ----------------------------------------------------------------------------------------------------


async def install(engine: Engine, envs: Path, say: Say) -> None:
    """Make an environment for that kind below `envs`, with pip, whose progress goes to `say` (text, None). Returns at
    once where it is there already; waits while another installation is under way, of any kind or launcher. Minutes and
    gigabytes, for most.

    Raises `InstallFailed`; then, and when cancelled, pip has ended and nothing is left. PIP_* in the environment holds.
    """
    if not engine.install.packages:
        raise InstallFailed(f"{engine.title} can't be installed for you. To have it: {engine.install.advice}.")
    env = envs / engine.kind
    await asyncio.to_thread(envs.mkdir, parents=True, exist_ok=True)
    async with _alone(envs / LOCK, engine, say) as lock:
        if (env / STAMP).exists():
            return
        try:
            await asyncio.to_thread(shutil.rmtree, env, ignore_errors=True)
            say(f"installing {engine.title}: making its environment", None)
            await _run([sys.executable, "-m", "venv", str(env)], engine, say, lock)
            pip = [str(env / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            await _run([*pip, "--progress-bar", "off", *engine.install.packages], engine, say, lock)
            (env / STAMP).write_text("\n".join(engine.install.packages) + "\n")
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, env, ignore_errors=True)
            raise


@asynccontextmanager
async def _alone(path: Path, engine: Engine, say: Say) -> AsyncIterator[int]:
    """Holds the lock on that file. Whoever inherits it holds it too, so that a pip which outlives its launcher is
    waited for."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"installing {engine.title}: waiting for another installation", None)
                told = True
                await asyncio.sleep(POLL)
        yield lock
    finally:
        os.close(lock)


async def _run(argv: list[str], engine: Engine, say: Say, lock: int) -> None:
    """To its end."""

    def hear(line: str) -> None:
        step = _step(line)
        if step is not None:
            say(f"installing {engine.title}: {step}", None)

    done = await errand.run(argv, hear, pass_fds=(lock,))
    if done.status:
        raise InstallFailed(
            f"{engine.title} could not be installed. Install it yourself (`{engine.install.advice}`), or see what is "
            f"wrong. The installer's last words:\n{done.words}"
        )


def _step(line: str) -> str | None:
    for pattern, text in _STEPS:
        match = pattern.match(line)
        if match is not None:
            return text.format(what=match["what"])
    return None
