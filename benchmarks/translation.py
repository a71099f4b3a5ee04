"""What translating a stream costs beside passing it through: the decoders alone, and whole gateways under load.

    python -m benchmarks.translation [--rounds 5] [--seconds 2] [--streams 100] [--alone]

Each round does every dialect once, one after the other, so that a noisy minute hits all of them; the figures are
medians, in microseconds per chunk that the client gets. Compare ratios within one run. Through the gateway it needs
two cores: one has the gateway to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from benchmarks.engines import SPOKEN, Spoken
from benchmarks.figures import WARM, running
from benchmarks.load import drive
from benchmarks.processes import cpu_us, free_port, spawn, stop, to_its_end
from benchmarks.targets import illm
from benchmarks.upstream import CHUNKS, MODEL
from proxy.dialects import base
from proxy.dialects.base import Answered, Ask, Plan, Request
from proxy.dialects.table import DIALECTS
from proxy.wire import members

STREAMS_ALONE: Final = 300  # decoded in a row for one figure
ASKED: Final = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
KINDS: Final[tuple[base.EngineKind, ...]] = ("vllm", "ollama", "tgi")
Measure = Callable[[base.EngineKind], float]


def plan(kind: base.EngineKind) -> Plan:
    """The encoded request; what the dialect asks for before is answered with the stand-in's constants."""
    body = json.dumps(ASKED, separators=(",", ":")).encode()
    request = Request("chat", body, members(body), stream=True, now=1_700_000_000)
    target = base.Target(kind, "one", MODEL, MODEL, version={"tgi": "3.3.6-dev0", "ollama": "0.33.0"}.get(kind))
    found = DIALECTS[kind].encode(request, target)
    if isinstance(found, Plan):
        return found
    answer = None
    while True:
        try:
            step = next(found) if answer is None else found.send(answer)
        except StopIteration as done:
            made: Plan = done.value
            return made
        said = SPOKEN[kind].other(step.path) if isinstance(step, Ask) else b""
        answer = Answered(200, "application/json", said)


def alone(kind: base.EngineKind) -> float:
    """Microseconds per chunk of a stream decoder that is fed one event at a time."""
    spoken: Spoken = SPOKEN[kind]
    decoders = [plan(kind).decoder.streams()[0] for _ in range(STREAMS_ALONE)]
    begun = time.process_time()
    for decoder in decoders:
        for piece in spoken.stream:
            out = decoder.feed(piece)
        out += decoder.flush()
    spent = time.process_time() - begun
    assert out.endswith(b"data: [DONE]\n\n")
    return spent * 1e6 / STREAMS_ALONE / CHUNKS


def through(cores: list[int], seconds: float, streams: int) -> Measure:
    """Microseconds of a gateway's CPU per chunk."""

    def measure(kind: base.EngineKind) -> float:
        upstream = free_port()
        command = [sys.executable, "-m", "benchmarks.engines", kind, str(upstream), str(cores[-1])]
        engine = spawn(command, cores[-1], None)
        try:
            with (
                tempfile.TemporaryDirectory() as scratch,
                running(illm(f"illm before {kind}", kind=kind), upstream, Path(scratch), cores[0]) as (pid, port, _),
            ):
                load = drive(port, clients=streams, stream=True, warm=WARM, seconds=seconds, mark=lambda: cpu_us(pid))
                tally, spent = uvloop.run(load)
                if not tally.chunks:
                    raise SystemExit(f"No chunk came from {kind} in {seconds:g} s.")
                return spent / tally.chunks
        finally:
            stop(engine)

    return measure


def report(title: str, measure: Measure, rounds: int) -> None:
    figures: dict[base.EngineKind, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            figures[kind].append(measure(kind))
    passed = median(figures["vllm"])
    print(f"{title}: microseconds per chunk, median of {rounds}")
    for kind, each in figures.items():
        name = "passed through" if kind == "vllm" else kind
        spread = f"{min(each):.1f} to {max(each):.1f}"
        print(f"  {name:15} {median(each):7.2f}  {median(each) / passed:5.2f} times  ({spread})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each load (default: 2)")
    parser.add_argument("--streams", type=int, default=100, help="at a time (default: 100)")
    parser.add_argument("--alone", action="store_true", help="the decoders only")
    arguments = parser.parse_args()
    report("the decoder alone", alone, arguments.rounds)
    if arguments.alone:
        return 0
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("Two cores are needed: one for the gateway, one for its load.")
    os.sched_setaffinity(0, {cores[1]})
    report("through the gateway", through(cores, arguments.seconds, arguments.streams), arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(to_its_end(main))
