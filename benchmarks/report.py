"""What the rounds come to: medians, ratios, goals, and the Markdown that tells them. Pure.

A round is a mapping from a figure's name to its value; all rounds of a run are `{target: [round, …]}`. Ratios are
taken within each round and only then their median, so that a noisy minute falls on both sides of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

Round = Mapping[str, float]
Rounds = Mapping[str, Sequence[Round]]

MARKS: Final = ("<!-- bench:begin -->", "<!-- bench:end -->")
MEASURED: Final = "illm"
PEER: Final = "vllm-router"
FLOOR: Final = "nginx"
DIRECT: Final = "direct"
BASES: Final = (PEER, "uvicorn", FLOOR)
TITLES: Final = {
    "litellm": "LiteLLM",
    "illm-interpreted": "illm, not compiled",
    "illm-tgi": "illm before TGI",
    "illm-ollama": "illm before Ollama",
    "illm-2-workers": "illm --workers 2",
    "illm-renamed": "illm, model renamed",
    "uvicorn": "uvicorn, answering itself",
    DIRECT: "the engine asked directly",
}
BESIDE: Final = (MEASURED, PEER, "sglang-router", "litellm", FLOOR)
VARIANTS: Final = (MEASURED, "illm-interpreted", "illm-tgi", "illm-ollama", "illm-2-workers", "illm-renamed", "uvicorn")


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure, of which less is better; `goal` is the highest ratio of illm to `than` that is wanted."""

    title: str
    unit: str
    goal: float | None = None
    than: str = PEER


METRICS: Final[Mapping[str, Metric]] = {
    "request_32_us": Metric("CPU per request, 1 KB, 32 clients", "µs", 0.9),
    "request_1_us": Metric("CPU per request, 1 KB, 1 client", "µs"),
    "request_32_100k_us": Metric("CPU per request, 100 KB, 32 clients", "µs", 0.9),
    "request_1_100k_us": Metric("CPU per request, 100 KB, 1 client", "µs"),
    "chunk_100_us": Metric("CPU per chunk, 100 streams", "µs", 1.0),
    "chunk_1000_us": Metric("CPU per chunk, 1000 streams", "µs", 0.9),
    "added_p50_us": Metric("added latency p50, 1 client", "µs"),
    "added_p99_us": Metric("added latency p99, 1 client", "µs"),
    "chunk_100_ttft_p50_ms": Metric("first byte p50, 100 streams", "ms", 1.0),
    "chunk_100_ttft_p99_ms": Metric("first byte p99, 100 streams", "ms", 1.0),
    "rss_mb": Metric("memory at 1000 streams", "MB", 0.4),
    "start_ms": Metric("start to first answer", "ms"),
}
MORE_GOALS: Final = {"request_32_us": Metric("CPU per request, 1 KB, 32 clients", "µs", 0.02, "litellm")}


def with_added(rounds: Rounds) -> Rounds:
    """The same with the latency that each target adds to its engine's, where that was asked directly in that round."""
    direct = rounds.get(DIRECT, ())

    def added(number: int, figures: Round) -> Round:
        found = dict(figures)
        for part in ("p50", "p99"):
            name = f"request_1_latency_{part}_us"
            if number < len(direct) and name in figures and name in direct[number]:
                found[f"added_{part}_us"] = figures[name] - direct[number][name]
        return found

    return {
        target: [added(number, figures) if target != DIRECT else figures for number, figures in enumerate(each)]
        for target, each in rounds.items()
    }


def medians(each: Sequence[Round]) -> dict[str, float]:
    """Over the rounds that have the figure."""
    names = dict.fromkeys(name for figures in each for name in figures)
    return {name: median(figures[name] for figures in each if name in figures) for name in names}


def ratios(rounds: Rounds, target: str, base: str) -> dict[str, float]:
    """The median of what the target takes as a multiple of the base, over the rounds that have both."""
    found: dict[str, list[float]] = {}
    for mine, its in zip(rounds.get(target, ()), rounds.get(base, ()), strict=False):
        for name, value in mine.items():
            if its.get(name, 0.0) > 0.0:
                found.setdefault(name, []).append(value / its[name])
    return {name: median(values) for name, values in found.items()}


def base(rounds: Rounds) -> str | None:
    """What the others are compared to: the peer, or where that was not measured a floor."""
    return next((name for name in BASES if rounds.get(name)), None)


def summary(rounds: Rounds) -> dict[str, Any]:
    """By target: its medians, and its ratios to what is compared to, by that one's name."""
    whole = with_added(rounds)
    return {
        target: {"medians": medians(each)} | {f"to {one}": ratios(whole, target, one) for one in BASES if one in whole}
        for target, each in whole.items()
    }


def goals(rounds: Rounds) -> list[tuple[Metric, float]]:
    """Every goal whose two sides were measured, with illm's ratio."""
    whole = with_added(rounds)
    wanted = [(name, metric) for name, metric in METRICS.items() if metric.goal is not None]
    found = []
    for name, metric in (*wanted, *MORE_GOALS.items()):
        ratio = ratios(whole, MEASURED, metric.than).get(name)
        if ratio is not None:
            found.append((metric, ratio))
    return found


def document(result: Mapping[str, Any], picture: str, more: str = "") -> str:
    """All of it as Markdown, from what is kept as JSON; `picture` is the link to the plot."""
    rounds: Rounds = {name: [each["values"] for each in kept] for name, kept in result["rounds"].items()}
    machine, beside = result["machine"], base(rounds)
    versions = ", ".join(f"{title(name)} {version}" for name, version in result["versions"].items())
    parts = [
        f"![illm beside its peers, each figure as a multiple of {PEER}'s]({picture})" if PEER in rounds else "",
        table(rounds, BESIDE),
        f"Medians of {counted(rounds)}; less is better."
        + (f" In brackets the ratio to {title(beside)} in the same round." if beside else ""),
        table(rounds, VARIANTS),
        goal_list(rounds),
        f"Measured by `scripts/bench` on {result['date']}: {machine['cpu']}, {machine['cores']} cores, Linux "
        f"{machine['kernel']}, Python {machine['python']}. {versions}. Every program has one core to itself; the load "
        f"and the stand-in engine share another. CPU is that of all the program's processes. illm checks keys, counts, "
        f"writes its access log and probes its engine meanwhile; nginx does no more than pass on.",
        paces(rounds),
        *(f"{title(name)} was left out: {why}" for name, why in result["skipped"].items()),
        *failures(result),
        more,
    ]
    return "\n\n".join(part for part in parts if part)


def counted(rounds: Rounds) -> str:
    count = max(map(len, rounds.values()), default=0)
    return "1 round" if count == 1 else f"{count} rounds"


def table(rounds: Rounds, names: Sequence[str]) -> str:
    """A line for each figure, a column for each target that was measured, and how far illm is above nginx. Nothing
    where there is no more than one to show."""
    whole = with_added(rounds)
    shown, beside = [name for name in names if name in whole], base(rounds)
    if len(shown) < 2:
        return ""
    values = {name: medians(whole[name]) for name in shown}
    beside_it = {name: ratios(whole, name, beside) if beside and name != beside else {} for name in shown}
    floor = MEASURED in shown and FLOOR in shown
    above = ratios(whole, MEASURED, FLOOR)
    lines = [["", *map(title, shown), *([f"illm / {FLOOR}"] if floor else [])]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name, metric in METRICS.items():
        if any(name in found for found in values.values()):
            cells = [cell(values[one].get(name), beside_it[one].get(name)) for one in shown]
            last = [cell(above.get(name), None)] if floor else []
            lines.append([f"{metric.title} ({metric.unit})", *cells, *last])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: float | None, ratio: float | None) -> str:
    """A figure in three digits, and its ratio in brackets."""
    said = "-" if value is None else three_digits(value)
    return said if value is None or ratio is None else f"{said} ({three_digits(ratio)})"


def three_digits(value: float) -> str:
    for digits, limit in ((2, 10), (1, 100)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"


def goal_list(rounds: Rounds) -> str:
    """A line for each goal, with what it is and what was measured."""
    found = goals(rounds)
    if not found:
        return ""
    lines = [
        f"| {metric.title} | {title(metric.than)} | {metric.goal:g} | {ratio:.3g} | {_met(metric, ratio)} |"
        for metric, ratio in found
    ]
    return "\n".join(["| Goal for illm | beside | at most | measured | |", "| --- | --- | ---: | ---: | --- |", *lines])


def _met(metric: Metric, ratio: float) -> str:
    return "met" if metric.goal is not None and ratio <= metric.goal else "**not met**"


def paces(rounds: Rounds) -> str:
    """How much of the asked pace was kept where it was not: CPU per chunk is less where chunks wait for one another."""
    found = {name: medians(each).get("chunk_1000_pace", 1.0) for name, each in rounds.items()}
    slow = ", ".join(f"{title(name)} {100 * pace:.0f} %" for name, pace in found.items() if pace < 0.98)
    return f"Of the 100,000 chunks a second that 1000 streams ask for, there came with: {slow}." if slow else ""


def failures(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each load that a target did not stand in some round."""
    said = {
        f"{title(name)} failed at a load: {why.splitlines()[0][:200]}"
        for name, kept in result["rounds"].items()
        for each in kept
        for why in each["failures"]
    }
    return sorted(said)


def title(name: str) -> str:
    return TITLES.get(name, name)
