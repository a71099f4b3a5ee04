"""illm beside its peers, in one run on one machine. `scripts/bench` is this with everything installed.

    scripts/bench [--rounds 5] [--seconds 2] [--only illm,nginx] [--quick] [--out DIR] [--write README.md]

The program under measurement has one core to itself; the stand-in engines and the load client share another. Each
round starts every target anew, one after the other (A B A B), so that a noisy minute hits all of them. A whole run
writes latest.json, latest.md and latest.svg; one with --only or --quick writes nothing unless told where. What can't
be had on this machine is left out, with its reason. It takes some 20 minutes, and every step of it has a limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import report
from benchmarks.figures import Figures, answers, measure, measure_direct
from benchmarks.plot import Panel, draw
from benchmarks.processes import ROOT, DidNotStart, free_port, spawn, stop, to_its_end, two_cores
from benchmarks.targets import TARGETS, Target, has_workers, version
from tests.conformance.report import write_between_marks
from tests.engines.install import CannotBeHad

RESULTS: Final = ROOT / "benchmarks/results"
USUAL: Final = (
    "illm",
    "nginx",
    "vllm-router",
    "sglang-router",
    "litellm",
    "illm-interpreted",
    "illm-tgi",
    "illm-ollama",
    "illm-2-workers",
)
PLOTTED: Final = (
    *("request_32_us", "request_32_100k_us", "chunk_100_us", "chunk_1000_us"),
    *("chunk_100_ttft_p50_ms", "chunk_100_ttft_p99_ms", "rss_mb", "start_ms"),
)
STAND_IN: Final = 120.0  # seconds for a stand-in engine's start


def say(text: str) -> None:
    print(text, flush=True)


def chosen(names: Sequence[str]) -> tuple[list[Target], dict[str, str]]:
    """The targets that can run here, fetched where need be, and why the others can't. Blocks, minutes."""
    found, skipped = [], {}
    for name in names:
        target = TARGETS[name]
        try:
            if name == "illm-2-workers" and not has_workers():
                raise CannotBeHad("`illm serve` has no --workers")
            version(target)  # a peer is fetched for it, illm compiled
        except CannotBeHad as why:
            skipped[name] = str(why).partition(", see ")[0]  # a path of this machine's is nothing to publish
            say(f"{name} is left out: {why}")
            continue
        found.append(target)
    return found, skipped


@contextlib.contextmanager
def stand_ins(kinds: Sequence[str], core: int) -> Iterator[dict[str, int]]:
    """The engines, by kind: their ports. They are idle while nobody asks them."""
    ports, made = {}, []
    try:
        for kind in dict.fromkeys(kinds):
            port = ports[kind] = free_port()
            words = ["benchmarks.upstream"] if kind == "vllm" else ["benchmarks.engines", kind]
            made.append(spawn([sys.executable, "-m", *words, str(port), str(core)], core, sys.stderr))
            limit = time.monotonic() + STAND_IN
            while kind == "vllm" and not answers(port):
                if time.monotonic() > limit or made[-1].poll() is not None:
                    raise SystemExit(f"The stand-in engine did not start within {STAND_IN:g} s.")
                time.sleep(0.01)
        yield ports
    finally:
        for process in made:
            stop(process)


def run(targets: Sequence[Target], rounds: int, seconds: float) -> dict[str, list[Figures]]:
    """All rounds of all targets, and of the engine asked directly. Blocks."""
    core, other = two_cores()
    os.sched_setaffinity(0, {other})
    figures: dict[str, list[Figures]] = {report.DIRECT: [], **{target.name: [] for target in targets}}
    with stand_ins(["vllm", *(target.upstream for target in targets)], other) as ports:
        for number in range(1, rounds + 1):
            figures[report.DIRECT].append(measure_direct(ports["vllm"], seconds))
            for target in targets:
                begun = time.monotonic()
                found = one(target, ports[target.upstream], core, seconds)
                figures[target.name].append(found)
                request, chunk = (found.values.get(name, math.nan) for name in ("request_32_us", "chunk_100_us"))
                took = f"{time.monotonic() - begun:.0f} s"
                say(f"{number}/{rounds} {target.name:15} {request:7.1f} µs a request {chunk:6.1f} µs a chunk ({took})")
                for failure in found.failures:
                    say(f"    failed: {failure}")
    return figures


def one(target: Target, upstream: int, core: int, seconds: float) -> Figures:
    try:
        return measure(target, upstream, core, seconds)
    except DidNotStart as why:
        say(f"{target.name} did not start: {why}")
        return Figures(failures=[f"start: {str(why).splitlines()[0]}"])


def machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    return {
        "cpu": cpu or platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def panels(result: Mapping[str, Any]) -> list[Panel]:
    found = []
    for name in PLOTTED:
        metric = report.METRICS[name]
        medians = {
            report.TITLES.get(target, target): result["summary"][target]["medians"][name]
            for target in (*report.BESIDE, "illm-tgi", "illm-ollama")
            if name in result["summary"].get(target, {}).get("medians", {})
        }
        short = {title.replace(" before ", " → "): value for title, value in medians.items()}
        found.append(Panel(metric.title, metric.unit, short, report.PEER, report.MEASURED))
    return found


def write(result: Mapping[str, Any], folder: Path) -> None:
    """latest.json, .md and .svg, which say the same."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (folder / "latest.md").write_text(f"# illm beside its peers\n\n{report.document(result, 'latest.svg')}\n")
    caption = f"The dotted line is {report.PEER}; less is better. {result['machine']['cpu']}, {result['date']}"
    (folder / "latest.svg").write_text(draw(panels(result), caption))


def write_into(document: Path, result: Mapping[str, Any], folder: Path) -> None:
    """The tables between the document's marks, with links that are right from where it lies."""
    there = Path(os.path.relpath(folder, document.parent))
    more = f"Every round is in [{there / 'latest.json'}]({there / 'latest.json'})."
    write_between_marks(document, report.document(result, str(there / "latest.svg"), more), report.MARKS)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each load (default: 2)")
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--quick", action="store_true", help="one round with short loads, to see that it works")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go (default: benchmarks/results)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between this document's marks")
    parser.add_argument("--again", action="store_true", help="measure nothing; write what the last run found")
    options = parser.parse_args()
    options.names = options.only.split(",") if options.only else list(USUAL)
    if unknown := [name for name in options.names if name not in TARGETS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 0.5)
    options.whole = not (options.only or options.quick)
    if options.write and not options.out and not options.whole and not options.again:
        parser.error("--write takes a whole run; leave out --only and --quick")
    return options


def main() -> int:
    options = arguments()
    folder = options.out or RESULTS
    if options.again:
        result = json.loads((folder / "latest.json").read_text())
    else:
        result = measured(options)
        say(f"\n{report.document(result, 'latest.svg')}")
    if options.whole or options.out or options.again:
        write(result, folder)
        say(f"\nwritten: {', '.join(str(folder / f'latest.{kind}') for kind in ('json', 'md', 'svg'))}")
        if options.write:
            write_into(options.write, result, folder)
    broken = [why for each in result["rounds"].get(report.MEASURED, ()) for why in each["failures"]]
    return 1 if broken else 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """A run, as it is kept."""
    if not sys.platform.startswith("linux"):
        raise SystemExit("The benchmarks need Linux: they read /proc and pin programs to cores.")
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("Two cores are needed: one for the program that is measured, one for its load.")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 1000 streams are 2000 connections
    about = machine()
    targets, skipped = chosen(options.names)
    figures = run(targets, options.rounds, options.seconds)
    rounds = {name: [each.as_json() for each in found] for name, found in figures.items()}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": about,
        "seconds": options.seconds,
        "versions": {t.name: version(t) for t in targets if t.peer or t.name in (report.MEASURED, "uvicorn")},
        "skipped": skipped,
        "summary": report.summary({name: [each.values for each in found] for name, found in figures.items()}),
        "rounds": rounds,
    }


if __name__ == "__main__":
    sys.exit(to_its_end(main))
