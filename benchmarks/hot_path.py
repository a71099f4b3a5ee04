"""CPU, time to first token and memory of the gateway under load, beside a floor, in one run.

    python -m benchmarks.hot_path [--rounds 3] [--seconds 2] [--targets gateway,floor] [--json OUT]

The server under test has the first core to itself; the stand-in engine and the load client share the second (or
have one each where there are three). Each round starts every target anew, one after the other, so that a noisy
minute hits all of them; the figures are medians over rounds. Compare ratios within one run, never microseconds of
two runs. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import uvloop

from benchmarks.load import drive, request
from benchmarks.targets import TARGETS, Target

ROOT: Final = Path(__file__).parent.parent
STREAMS: Final = 100
WARM: Final = 0.3  # seconds before each measurement
PATIENCE: Final = 20.0  # seconds for a start
_TICK: Final = 1_000_000 / os.sysconf("SC_CLK_TCK")  # microseconds


@dataclass(frozen=True, slots=True)
class Figures:
    """One target in one round; times in the unit that the name tells, CPU in microseconds of the server's process."""

    start_ms: float
    request_1_us: float
    request_32_us: float
    per_second_32: float
    chunk_us: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    rss_mb: float


def measure(target: Target, upstream: int, cores: list[int], seconds: float) -> Figures:
    """One round of one target, in a process of its own."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running(target, upstream, Path(scratch), cores[0]) as (pid, port, ms),
    ):
        return uvloop.run(_phases(pid, port, ms, seconds))


async def _phases(pid: int, port: int, start_ms: float, seconds: float) -> Figures:
    def cpu() -> float:
        return cpu_us(pid)

    one, spent_1 = await drive(port, clients=1, stream=False, warm=WARM, seconds=seconds, mark=cpu)
    many, spent_32 = await drive(port, clients=32, stream=False, warm=WARM, seconds=seconds, mark=cpu)
    streams, spent = await drive(port, clients=STREAMS, stream=True, warm=WARM, seconds=seconds, mark=cpu)
    cuts = quantiles(streams.first, n=100)
    return Figures(
        start_ms=start_ms,
        request_1_us=spent_1 / one.answers,
        request_32_us=spent_32 / many.answers,
        per_second_32=many.answers / seconds,
        chunk_us=spent / streams.chunks,
        ttft_p50_ms=cuts[49] * 1000,
        ttft_p99_ms=cuts[98] * 1000,
        rss_mb=rss_mb(pid),
    )


@contextlib.contextmanager
def running(target: Target, upstream: int, scratch: Path, core: int) -> Iterator[tuple[int, int, float]]:
    """The target, pinned, from its start until its first good answer: its pid, its port and how many ms that took."""
    port = free_port()
    command = target.prepare(port, upstream, scratch)
    with (scratch / "log").open("wb") as log:
        begun = time.perf_counter()
        process = spawn(command, core, log)
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() - begun > PATIENCE:
                    raise SystemExit(f"{target.name} did not start:\n{(scratch / 'log').read_text()}")
                time.sleep(0.005)
            yield process.pid, port, (time.perf_counter() - begun) * 1000
        finally:
            process.kill()
            process.wait()


def spawn(command: list[str], core: int, output: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def answers(port: int) -> bool:
    """Is a chat request answered with 200?"""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(request(port, stream=False))
            return sock.recv(65536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu_us(pid: int) -> float:
    """What a process has used, all its threads, in user mode and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def report(medians: dict[str, Figures]) -> str:
    """A table; below it each target as a multiple of the floor, where that was measured."""
    titles = list(Figures.__dataclass_fields__)
    rows = [["", *titles]]
    rows += [[name, *(f"{value:.1f}" for value in asdict(figures).values())] for name, figures in medians.items()]
    floor = medians.get("floor")
    for name, figures in medians.items():
        if floor is not None and name != "floor":
            ratios = zip(asdict(figures).values(), asdict(floor).values(), strict=True)
            rows.append([f"{name} / floor", *(f"{mine / its:.2f}" for mine, its in ratios)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of three loads (default: 2)")
    parser.add_argument("--targets", default="gateway,floor", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--json", type=Path, metavar="OUT", help="every round's figures too")
    arguments = parser.parse_args()
    targets = [TARGETS[name] for name in arguments.targets.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("Two cores are needed: one for the server, one for its load.")
    os.sched_setaffinity(0, {cores[1]})
    upstream = free_port()
    engine = spawn([sys.executable, "-m", "benchmarks.upstream", str(upstream), str(cores[-1])], cores[-1], None)
    rounds: dict[str, list[Figures]] = {target.name: [] for target in targets}
    try:
        while not answers(upstream):
            time.sleep(0.01)
        for _ in range(arguments.rounds):
            for target in targets:
                rounds[target.name].append(measure(target, upstream, cores, arguments.seconds))
    finally:
        engine.kill()
        engine.wait()
    fields = Figures.__dataclass_fields__
    medians = {n: Figures(**{f: median(getattr(x, f) for x in each) for f in fields}) for n, each in rounds.items()}
    print(report(medians))
    if arguments.json is not None:
        machine = {"cpu": _cpu_model(), "python": platform.python_version(), "load": os.getloadavg()}
        all_rounds = {name: [asdict(figures) for figures in each] for name, each in rounds.items()}
        result = {"machine": machine, "medians": {n: asdict(f) for n, f in medians.items()}, "rounds": all_rounds}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _cpu_model() -> str:
    return Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]


if __name__ == "__main__":
    main()
