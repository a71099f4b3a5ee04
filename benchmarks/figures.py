"""One round of one target: started anew, put under each load in turn, weighed as a whole tree of processes.

`LOADS` are the loads, `Figures` what comes out. What the figures mean beside others' is `report`'s.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import uvloop

from benchmarks.load import Tally, drive, request
from benchmarks.processes import cpu_us, free_port, program, rss_mb
from benchmarks.targets import Target
from benchmarks.upstream import PACE

WARM: Final = 0.3  # seconds before each measurement
LARGE: Final = 100 * 1024


@dataclass(frozen=True, slots=True)
class Load:
    clients: int
    stream: bool
    size: int = 1024


LOADS: Final = {
    "request_1": Load(1, stream=False),
    "request_32": Load(32, stream=False),
    "request_1_100k": Load(1, stream=False, size=LARGE),
    "request_32_100k": Load(32, stream=False, size=LARGE),
    "chunk_100": Load(100, stream=True),
    "chunk_1000": Load(1000, stream=True),
}


@dataclass(slots=True)
class Figures:
    """By name: each load's own (`request_32_us`: microseconds of CPU for a request or a chunk), and those of `_more`.
    A load that failed has none, and the reason in `failures`."""

    values: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(target: Target, upstream: int, core: int, seconds: float) -> Figures:
    """One round of one target, in a process of its own. Blocks. Raises `DidNotStart` or `CannotBeHad`."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(target, upstream, Path(scratch), core) as (pid, port, start_ms),
    ):
        time.sleep(target.settle)
        figures = Figures({"start_ms": start_ms})
        uvloop.run(_loads(figures, port, pid, seconds, exact=target.exact))
        return figures


@contextlib.contextmanager
def running(target: Target, upstream: int, scratch: Path, core: int | None) -> Iterator[tuple[int, int, float]]:
    """The target, pinned, from its start until its first good answer: its pid, its port and the milliseconds that
    took. Stopped at the end."""
    port = free_port()
    with program(
        target.prepare(port, upstream, scratch),
        lambda: answers(port),
        core=core,
        log=scratch / "log",
        patience=target.patience,
        environment=target.environment,
    ) as (pid, start_ms):
        yield pid, port, start_ms


def measure_direct(upstream: int, seconds: float) -> Figures:
    """The stand-in engine asked without anything between; there is nobody's CPU to tell."""
    figures = Figures()
    uvloop.run(_loads(figures, upstream, None, seconds, exact=True))
    return figures


async def _loads(figures: Figures, port: int, session: int | None, seconds: float, *, exact: bool) -> None:
    mark: Callable[[], float] = (lambda: 0.0) if session is None else (lambda: cpu_us(session))
    for name, load in LOADS.items():
        try:
            tally, spent = await drive(
                port,
                clients=load.clients,
                stream=load.stream,
                size=load.size,
                warm=WARM,
                seconds=seconds,
                mark=_after(mark, figures, session) if name == "chunk_1000" else mark,
                exact=exact,
            )
        except (RuntimeError, OSError, TimeoutError) as why:
            figures.failures.append(f"{name}: {why or type(why).__name__}")
            continue
        done = tally.chunks if load.stream else tally.answers
        if not done:
            figures.failures.append(f"{name}: nothing came in {tally.seconds:.0f} s")
            continue
        if session is not None:
            figures.values[f"{name}_us"] = spent / done
        figures.values |= _more(name, load, tally)


def _after(mark: Callable[[], float], figures: Figures, session: int | None) -> Callable[[], float]:
    """`mark`, which also notes the memory: its second call is at the end, while all the streams run."""

    def noting() -> float:
        value = mark()
        if session is not None:
            figures.values["rss_mb"] = rss_mb(session)
        return value

    return noting


def _more(name: str, load: Load, tally: Tally) -> dict[str, float]:
    """What clients saw: times to the first byte of streams, times of whole answers, and how many there were."""
    times, unit = (tally.first, 1e3) if load.stream else (tally.whole, 1e6)
    kind = f"{name}_ttft" if load.stream else f"{name}_latency"
    suffix = "ms" if load.stream else "us"
    found = {}
    if len(times) > 1:
        cuts = quantiles(times, n=100)
        found = {f"{kind}_p50_{suffix}": cuts[49] * unit, f"{kind}_p99_{suffix}": cuts[98] * unit}
    if load.stream:
        found[f"{name}_pace"] = tally.chunks / tally.seconds / (load.clients / PACE)
    else:
        found[f"{name}_per_second"] = tally.answers / tally.seconds
    return found


def answers(port: int) -> bool:
    """Is a chat request answered with 200?"""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(request(port, stream=False))
            return sock.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
