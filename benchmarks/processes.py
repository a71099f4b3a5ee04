"""Programs under measurement: started on a core of their own, weighed with all their children, stopped for certain.

Its children are found in /proc, by their parents and by the session that every program gets. Nothing here knows what a
program is for (`targets`) or what is asked of it (`load`). Needs Linux. Everything blocks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL
_TICK: Final = 1_000_000 / os.sysconf("SC_CLK_TCK")  # microseconds
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class DidNotStart(Exception):
    """A program ended or did not answer in time; the message has the end of its log."""


def spawn(
    command: Sequence[str | Path], core: int | None, output: Any, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a program at once, in a session of its own. It gets SIGTERM should this process die before it."""

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if core is not None:
            os.sched_setaffinity(0, {core})

    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
        preexec_fn=prepare,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, after a grace time SIGKILL to it and every child that is left; returns when it has ended."""
    children = _born(process.pid) if process.poll() is None else {}
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    for pid, born in (children | _born(process.pid)).items():
        if _stat(Path(f"/proc/{pid}"))[19:20] == [born]:  # the number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def program(
    command: Sequence[str | Path],
    ready: Callable[[], bool],
    *,
    core: int | None,
    log: Path,
    patience: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[int, float]]:
    """The program, pinned, from its start until its first good answer: its pid and the milliseconds that took.

    Stopped at the end. Raises `DidNotStart` where it ends before, or is not `ready()` within `patience` seconds.
    """
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = spawn(command, core, output, environment)
        try:
            while not ready():
                spent = time.perf_counter() - begun
                if process.poll() is not None or spent > patience:
                    why = f"ended with status {process.returncode}" if process.returncode is not None else "was silent"
                    raise DidNotStart(f"it {why} after {spent:.1f} s:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.002)
            yield process.pid, (time.perf_counter() - begun) * 1000
        finally:
            stop(process)


def cpu_us(root: int) -> float:
    """Microseconds that a program and all its children have used, in user mode and in the kernel; also the children
    that have ended. `root` is the program's pid."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _members(root)) * _TICK


def rss_mb(root: int) -> float:
    """Megabytes of memory that they hold; pages that they share count once for each."""
    pages = sum(int(fields[21]) for _, fields in _members(root))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def sockets(root: int) -> int:
    """How many sockets they have open, the ones that listen among them."""
    return sum(kind.startswith("socket:") for kind in _descriptors(root))


def descriptors(root: int) -> int:
    """How many files, sockets and pipes they have open."""
    return sum(1 for _ in _descriptors(root))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def two_cores() -> tuple[int, int]:
    """The core for what is measured and the one for its load, which are the same where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[min(1, len(cores) - 1)], cores[0]


def to_its_end(main: Callable[[], int]) -> int:
    """A program's exit status. SIGTERM ends it as an interrupt does, so that what it started is stopped."""
    # As an interrupt, which asyncio's runner looks after: an exception out of a handler gets lost in a loop.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return main()
    except KeyboardInterrupt:
        print("Stopped before the end.", file=sys.stderr)
        return 130


def _members(root: int) -> list[tuple[Path, list[str]]]:
    """The /proc entries of a program and its children and theirs, also of those that left its session or outlived
    their parent within it; each with the fields of its `stat` behind the name."""
    entries = {int(entry.name): entry for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = {pid: (entry, fields) for pid, entry in entries.items() if (fields := _stat(entry))}
    inside = {pid for pid, (_, fields) in found.items() if root in (pid, int(fields[3]))}
    while more := {pid for pid, (_, fields) in found.items() if int(fields[1]) in inside} - inside:
        inside |= more
    return [found[pid] for pid in inside]


def _stat(entry: Path) -> list[str]:
    """What stands behind the name in `stat`; nothing where the process has ended."""
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _born(root: int) -> dict[int, str]:
    """When each of a program's processes began, by number."""
    return {int(entry.name): fields[19] for entry, fields in _members(root)}


def _descriptors(root: int) -> Iterator[str]:
    for entry, _ in _members(root):
        with contextlib.suppress(OSError):
            for link in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield os.readlink(link)
