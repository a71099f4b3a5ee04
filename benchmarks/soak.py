"""Nothing grows: a mixed load for many minutes, then flat memory and no connection, file or request left over.

    python -m benchmarks.soak [--minutes 30] [--clients 64] [--growth 3]

Behind one gateway stand an engine that lives, one that is killed and started again every few seconds, and one that is
dead. The clients stream, ask plainly, leave at any moment, and err (`soak_load`). Memory is sampled; its growth is a
line through the samples after the first third, steep as the median of all pairs. At the end the gateway's sockets,
open files and requests in flight must be back at what they were before. Exit status 1, with the figures, if not, or if
any answer was wrong. Needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.figures import running
from benchmarks.load import KEY
from benchmarks.processes import descriptors, free_port, rss_mb, sockets, spawn, stop, to_its_end, two_cores
from benchmarks.soak_load import DEAD, EITHER, FLAPPING, PATIENCE, Tally, client
from benchmarks.targets import Target
from benchmarks.upstream import MODEL

SAMPLES: Final = 240  # over the whole run
UP, DOWN = 4.0, 2.0  # seconds of the engine that flaps
IDLE: Final = 6.0  # seconds of looking at the gateway before the load; connections to engines are kept for 4
SETTLE: Final = 120.0  # seconds for everything to be closed after it, on a slow machine
WARM: Final = 1 / 3  # of the samples


@dataclass(frozen=True, slots=True)
class Still:
    """What an idle gateway has open."""

    sockets: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Sample:
    minute: float
    rss_mb: float
    sockets: int


def growth(samples: Sequence[Sample]) -> float:
    """Megabytes by which memory rose over the samples that are no warm-up, by the median slope between any two."""
    later = samples[int(len(samples) * WARM) :]
    slopes = [(b.rss_mb - a.rss_mb) / (b.minute - a.minute) for a, b in combinations(later, 2) if b.minute > a.minute]
    return median(slopes) * (later[-1].minute - later[0].minute) if slopes else 0.0


def gateway(engines: dict[str, int]) -> Target:
    """The gateway under load: every model's engines by their names."""

    def prepare(port: int, upstream: int, scratch: Path) -> list[str]:
        replicas = {MODEL: ["alive"], FLAPPING: ["flapping"], DEAD: ["dead"], EITHER: ["dead", "alive"]}
        settings = {
            "server": {"port": port, "api_keys": [KEY], "access_log": True},
            # A machine that stands still for some seconds is nothing that an engine could be blamed for.
            "health": {"timeout": PATIENCE},
            "upstream": {"connect_timeout": PATIENCE},
            "backends": {
                name: {"kind": "vllm", "base_url": f"http://127.0.0.1:{there}"} for name, there in engines.items()
            },
            "models": {
                model: {"replicas": [{"backend": name, "model": MODEL} for name in names]}
                for model, names in replicas.items()
            },
        }
        (scratch / "illm.yaml").write_text(json.dumps(settings))
        return [sys.executable, "-m", "proxy.cli", "serve", "--config", str(scratch / "illm.yaml")]

    return Target("illm", prepare)


def engine(port: int, core: int) -> subprocess.Popen[bytes]:
    return spawn([sys.executable, "-m", "benchmarks.upstream", str(port), str(core)], core, subprocess.DEVNULL)


@contextlib.asynccontextmanager
async def flapping(port: int, core: int) -> AsyncIterator[None]:
    """An engine that is killed and started again for as long as this lasts."""

    async def flap() -> None:
        while True:
            process = engine(port, core)
            try:
                await asyncio.sleep(UP)
            finally:
                process.kill()
                process.wait()
            await asyncio.sleep(DOWN)

    task = asyncio.create_task(flap())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def look(pid: int, seconds: float) -> Still:
    """The most that is open at one time while nobody asks."""
    found = []
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found.append(Still(sockets(pid), descriptors(pid)))
        await asyncio.sleep(0.1)
    return Still(max(still.sockets for still in found), max(still.descriptors for still in found))


async def load(pid: int, port: int, minutes: float, clients: int, tally: Tally) -> list[Sample]:
    """The load itself, and what the gateway held meanwhile."""
    until = asyncio.Event()
    tasks = [asyncio.create_task(client(port, number, tally, until)) for number in range(clients)]
    samples: list[Sample] = []
    begun = time.monotonic()
    try:
        while (minute := (time.monotonic() - begun) / 60) < minutes:
            samples.append(Sample(minute, rss_mb(pid), sockets(pid)))
            if len(samples) % (SAMPLES // 10) == 1:
                _say(f"{minute:5.1f} min {samples[-1].rss_mb:7.1f} MB {samples[-1].sockets:4} sockets "
                     f"{tally.done.total():8} deeds {tally.wrong.total()} wrong")  # fmt: skip
            await asyncio.sleep(minutes * 60 / SAMPLES)
    finally:
        until.set()
        await asyncio.gather(*tasks)
    return samples


async def settled(pid: int, port: int, before: Still) -> list[str]:
    """What is still there `SETTLE` seconds after the load; nothing as soon as all is gone."""
    limit = time.monotonic() + SETTLE
    while (found := await asyncio.to_thread(_left, pid, port, before)) and time.monotonic() < limit:
        await asyncio.sleep(0.5)
    return found


def _left(pid: int, port: int, before: Still) -> list[str]:
    running_requests = in_flight(port)
    now = Still(sockets(pid), descriptors(pid))
    found = [f"{running_requests:g} requests in flight"] if running_requests else []
    if now.sockets > before.sockets:
        found.append(f"{now.sockets} sockets, {before.sockets} before")
    if now.descriptors > before.descriptors:
        found.append(f"{now.descriptors} open files, {before.descriptors} before")
    return found


def in_flight(port: int) -> float:
    """The requests that the gateway's own counters say are under way."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("illm_requests_in_flight"))


async def soak(minutes: float, clients: int, most: float) -> int:
    core, other = two_cores()
    engines = {name: free_port() for name in ("alive", "flapping", "dead")}
    alive = engine(engines["alive"], other)
    tally = Tally()
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            running(gateway(engines), 0, Path(scratch), core) as (pid, port, _),
        ):
            async with flapping(engines["flapping"], other):
                before = await look(pid, IDLE)
                samples = await load(pid, port, minutes, clients, tally)
            left = await settled(pid, port, before)
            log = (Path(scratch) / "log").read_text(errors="replace")
    finally:
        stop(alive)
    return verdict(samples, tally, left, log, most)


def verdict(samples: Sequence[Sample], tally: Tally, left: Sequence[str], log: str, most: float) -> int:
    """Says what was found; 1 where anything of it is wrong."""
    rose = growth(samples)
    later = samples[int(len(samples) * WARM) :]
    _say(
        f"{tally.done.total()} deeds; memory {later[0].rss_mb:.1f} MB after the warm-up, {later[-1].rss_mb:.1f} MB at "
        f"the end, {rose:+.2f} MB by its slope; left over: {', '.join(left) or 'nothing'}"
    )
    failed = [f"{count} times {what}" for what, count in tally.wrong.items()]
    failed += [f"memory rose by {rose:.2f} MB, at most {most:g} is allowed"] if rose > most else []
    failed += [f"left over: {what}" for what in left]
    failed += [f"the log has a traceback:\n{log[log.find('Traceback') :][:3000]}"] if "Traceback" in log else []
    for what in failed:
        _say(f"FAILED: {what}")
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--growth", type=float, default=3.0, help="MB that are allowed after the warm-up (default: 3)")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        raise SystemExit("The soak needs Linux: it counts in /proc.")
    return asyncio.run(soak(options.minutes, options.clients, options.growth))


if __name__ == "__main__":
    sys.exit(to_its_end(main))
