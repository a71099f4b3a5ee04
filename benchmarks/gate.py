"""The gate: has the hot path become dearer? CPU per request and per chunk, as ratios to uvicorn answering constants.

    python -m benchmarks.gate [--record]

Both servers run at the same time on one core and are loaded in turn, in short slices (A B A B), so that a noisy moment
hits both; each ratio is the median over pairs of slices. It fails where one stands more than `MARGIN` above what
benchmarks/results/gate.json has, in each of `PASSES` passes: what is dearer is so in all of them, and a busy machine is
not. A pass takes some 20 seconds, and further ones are made only where the first ones were dearer. `--record` writes
that file instead: do it on a quiet machine, after a change that is meant to cost or to gain.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from benchmarks.figures import running
from benchmarks.load import drive
from benchmarks.peers import stand_ins
from benchmarks.processes import ROOT, cpu_us, to_its_end, two_cores
from benchmarks.targets import TARGETS

RECORD: Final = ROOT / "benchmarks/results/gate.json"
MARGIN: Final = 0.25
PAIRS: Final = 5
PASSES: Final = 5
WARM: Final = 0.15  # seconds


@dataclass(frozen=True, slots=True)
class Slice:
    clients: int
    stream: bool
    seconds: float


SLICES: Final = {"request": Slice(32, stream=False, seconds=0.5), "chunk": Slice(100, stream=True, seconds=0.5)}


def passed() -> dict[str, float]:
    """One pass: by name of slice, what the gateway takes as a multiple of uvicorn. Blocks."""
    core, other = two_cores()
    os.sched_setaffinity(0, {other})
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        stand_ins(["vllm"], other) as ports,
        running(TARGETS["illm-interpreted"], ports["vllm"], Path(one), core) as gateway,
        running(TARGETS["uvicorn"], 0, Path(two), core) as floor,
    ):
        pairs: dict[str, list[float]] = {name: [] for name in SLICES}
        for _ in range(PAIRS):
            for name, load in SLICES.items():
                mine, its = (_spent(pid, port, load) for pid, port, _ in (gateway, floor))
                pairs[name].append(mine / its)
        return {name: median(found) for name, found in pairs.items()}


def _spent(pid: int, port: int, load: Slice) -> float:
    """Microseconds of CPU for each unit in a slice."""
    while True:
        tally, spent = uvloop.run(
            drive(
                port,
                clients=load.clients,
                stream=load.stream,
                warm=WARM,
                seconds=load.seconds,
                mark=lambda: cpu_us(pid),
            )
        )
        if spent and (units := tally.chunks if load.stream else tally.answers):
            return spent / units
        print("a machine that stands still can't be measured; once more", flush=True)


def dearer(found: Mapping[str, float], recorded: Mapping[str, float], margin: float) -> list[str]:
    """The names that stand more than `margin` above what is recorded; one that has no record is none of them."""
    return [name for name, ratio in found.items() if ratio > recorded.get(name, ratio) * (1 + margin)]


def lesser(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: min(ratio, second[name]) for name, ratio in first.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="keep what is measured as what it may cost")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print("The gate was not measured: it needs Linux.")
        return 0
    found = passed()
    if options.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps({name: round(ratio, 2) for name, ratio in found.items()}, indent=1) + "\n")
    recorded: dict[str, float] = json.loads(RECORD.read_text())
    for _ in range(PASSES - 1):
        if not dearer(found, recorded, MARGIN):
            break
        print("dearer than it may be; measuring once more", flush=True)
        found = lesser(found, passed())
    bad = dearer(found, recorded, MARGIN)
    for name, ratio in found.items():
        verdict = f"more than {MARGIN:.0%} dearer" if name in bad else "within bounds"
        print(f"CPU per {name}: {ratio:.2f} of uvicorn's, recorded {recorded.get(name, ratio):.2f}: {verdict}")
    if bad:
        print("Find what costs it (docs/data-path.md), or record the new ratios with --record and say why.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(to_its_end(main))
