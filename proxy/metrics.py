"""Counters of the hot path, as plain integers, and their Prometheus text, which is made only when it is asked for.

A leaf: no I/O, no clock (callers hand in seconds), one thread. A request costs a dictionary look-up and a few
increments. Label values come from configuration, discovery and this program, never from a client: a caller passes
"" for a model that it does not know. What backends are doing is handed to `render`, not kept here.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple

from proxy.errors import KINDS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHER: Final = "_other"

# Upper bounds in seconds, for both histograms: from a cached token to a cold start of a large model.
BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
_BOUNDS: Final = (*map(repr, BUCKETS), "+Inf")

BackendState = Literal["ready", "loading", "launchable", "down", "unknown"]
STATES: Final[tuple[BackendState, ...]] = ("ready", "loading", "down", "unknown")
LAUNCHED_STATES: Final[tuple[BackendState, ...]] = (*STATES, "launchable")
ENGINE_STATES: Final = ("stopped", "starting", "ready", "stopping", "backoff", "fatal")


@dataclass(frozen=True, slots=True)
class BackendGauge:
    """One backend as it is at the moment of the scrape."""

    name: str
    kind: str  # "" while it is not known
    state: BackendState
    connections: int = 0  # open to it, used or not
    launcher: str = ""  # that runs it; "" for none
    engine: str = ""  # the state that its launcher tells


class Histogram:
    """How many values fell between two neighbouring bounds; summed up only for the text."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * len(_BOUNDS)
        self.total = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _histogram, (self.counts, self.total)

    def add(self, seconds: float) -> None:
        """Count one value; a bound belongs to the bucket below it."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def merge(self, other: Histogram) -> None:
        """Count what another has counted."""
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Its samples, cumulative as the format wants them; none while nothing was counted."""
        *_, count = cumulative = list(accumulate(self.counts))
        if not count:
            return
        for bound, value in zip(_BOUNDS, cumulative, strict=True):
            yield f'{name}_bucket{{{labels},le="{bound}"}} {value}'
        yield f"{name}_sum{{{labels}}} {self.total!r}"
        yield f"{name}_count{{{labels}}} {count}"


class Series:
    """The counters of one (endpoint, model, backend). `started` and `ended` are about attempts at a backend, the rest
    about the request: one that was refused before any attempt is `finished` too."""

    __slots__ = (
        "completion", "duration", "endpoint", "first", "in_flight", "labels", "prompt", "replica", "statuses",
    )  # fmt: skip

    def __init__(self, endpoint: str, model: str, backend: str) -> None:
        self.replica = f'model="{_escape(model)}",backend="{_escape(backend)}"'
        self.labels = f'endpoint="{_escape(endpoint)}",{self.replica}'
        self.endpoint = endpoint
        self.in_flight = 0
        self.statuses: dict[int, int] = {}
        self.first = Histogram()
        self.duration = Histogram()
        self.prompt = 0
        self.completion = 0

    def __reduce__(self) -> tuple[Any, ...]:
        held = (self.in_flight, self.statuses, self.first, self.duration, self.prompt, self.completion)
        return _series, (self.endpoint, self.labels, self.replica, held)

    def started(self) -> None:
        """The backend works on a request of this series (or has it in line)."""
        self.in_flight += 1

    def ended(self) -> None:
        """It no longer does; once for each `started`."""
        self.in_flight -= 1

    def first_byte(self, seconds: float) -> None:
        """The first byte of the answer's body came, so long after the start; at most once a request."""
        self.first.add(seconds)

    def finished(self, status: int, seconds: float) -> None:
        """The request is over, with that status (499: the client left), so long after its start."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.duration.add(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        """What the engine says it read and wrote."""
        self.prompt += prompt
        self.completion += completion

    def add(self, other: Series) -> None:
        """Count what another has counted."""
        self.in_flight += other.in_flight
        for status, n in other.statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + n
        self.first.merge(other.first)
        self.duration.merge(other.duration)
        self.tokens(other.prompt, other.completion)


def _histogram(counts: list[int], total: float) -> Histogram:
    """Out of a pickle: a compiled class has no other way."""
    made = Histogram()
    made.counts, made.total = counts, total
    return made


def _series(
    endpoint: str,
    labels: str,
    replica: str,
    held: tuple[int, dict[int, int], Histogram, Histogram, int, int],
) -> Series:
    """As `_histogram`."""
    made = Series(endpoint, "", "")
    made.labels, made.replica = labels, replica
    made.in_flight, made.statuses, made.first, made.duration, made.prompt, made.completion = held
    return made


Key = tuple[str, str, str]  # endpoint, model, backend


class Counted(NamedTuple):
    """What one process has counted since its start."""

    series: Mapping[Key, Series]
    errors: Mapping[str, int]


class Metrics:
    """All counters of one process. `started` is its start as a Unix time.

    At most `max_series` series exist, and one more for the rest, whose label values are `_other`.
    """

    def __init__(self, *, version: str, started: float, max_series: int = 512) -> None:
        self._version = version
        self._started = started
        self._max_series = max_series
        self._series: dict[Key, Series] = {}
        self._other = Series(OTHER, OTHER, OTHER)
        self._errors: dict[str, int] = {}

    def series(self, endpoint: str, model: str, backend: str) -> Series:
        """The series of those labels, the same object every time; keep it from `started` to `ended`."""
        key = (endpoint, model, backend)
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= self._max_series:
                return self._other
            found = self._series[key] = Series(endpoint, model, backend)
        return found

    def error(self, code: str | None) -> None:
        """A client was told of an error; a code that `errors.KINDS` lacks counts as `_other`."""
        label = code if code in KINDS else OTHER
        self._errors[label] = self._errors.get(label, 0) + 1

    def counted(self) -> Counted:
        """All that was counted, not a copy."""
        other = {(OTHER, OTHER, OTHER): self._other} if self._other.in_flight or self._other.statuses else {}
        return Counted(self._series | other, self._errors)

    def add(self, counted: Counted) -> None:
        """Count what another process has counted; as many series as it takes."""
        for key, one in counted.series.items():
            self._series.setdefault(key, Series(*key)).add(one)
        for label, n in counted.errors.items():
            self._errors[label] = self._errors.get(label, 0) + n

    def render(self, backends: Iterable[BackendGauge] = ()) -> bytes:
        """The Prometheus text (`CONTENT_TYPE`). Blocks: some 35 µs for each series."""
        backends = tuple(backends)
        used = [*self._series.values()]
        if self._other.in_flight or self._other.statuses:
            used.append(self._other)
        lines: list[str] = []
        for name, kind, text, samples in _SERIES_FAMILIES:
            lines += _head(name, kind, text)
            for one in used:
                lines += samples(name, one)
        lines += _in_flight(used)
        lines += _head("illm_request_errors_total", "counter", "Errors that clients were told of, by code.")
        lines += (f'illm_request_errors_total{{code="{code}"}} {n}' for code, n in self._errors.items())
        for name, text, gauges in _BACKEND_FAMILIES:
            lines += _head(name, "gauge", text)
            for backend in backends:
                lines += gauges(name, backend)
        lines += self._process()
        return ("\n".join(lines) + "\n").encode("utf-8", "replace")

    def _process(self) -> Iterator[str]:
        yield from _head("illm_build_info", "gauge", "The version that is running; always 1.")
        python = platform.python_version()
        yield f'illm_build_info{{version="{_escape(self._version)}",python="{_escape(python)}"}} 1'
        yield from _head("process_start_time_seconds", "gauge", "Start of the process, as a Unix time.")
        yield f"process_start_time_seconds {self._started!r}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _requests(name: str, one: Series) -> Iterator[str]:
    return (f'{name}{{{one.labels},status="{status}"}} {n}' for status, n in one.statuses.items())


def _tokens(name: str, one: Series) -> Iterator[str]:
    if one.prompt or one.completion:
        yield f'{name}{{{one.labels},kind="prompt"}} {one.prompt}'
        yield f'{name}{{{one.labels},kind="completion"}} {one.completion}'


def _in_flight(used: list[Series]) -> Iterator[str]:
    """A gauge of each (model, backend): its endpoints together."""
    name = "illm_requests_in_flight"
    yield from _head(name, "gauge", "Requests under way.")
    sums: dict[str, int] = {}
    for one in used:
        sums[one.replica] = sums.get(one.replica, 0) + one.in_flight
    yield from (f"{name}{{{labels}}} {n}" for labels, n in sums.items())


def _backend(gauge: BackendGauge) -> str:
    return f'backend="{_escape(gauge.name)}",kind="{_escape(gauge.kind)}"'


def _up(name: str, gauge: BackendGauge) -> Iterator[str]:
    yield f"{name}{{{_backend(gauge)}}} {int(gauge.state == 'ready')}"


def _state(name: str, gauge: BackendGauge) -> Iterator[str]:
    states = LAUNCHED_STATES if gauge.launcher else STATES
    return (f'{name}{{{_backend(gauge)},state="{state}"}} {int(gauge.state == state)}' for state in states)


def _engine(name: str, gauge: BackendGauge) -> Iterator[str]:
    if gauge.launcher:
        labels = f'{_backend(gauge)},launcher="{_escape(gauge.launcher)}"'
        yield from (f'{name}{{{labels},state="{state}"}} {int(gauge.engine == state)}' for state in ENGINE_STATES)


def _connections(name: str, gauge: BackendGauge) -> Iterator[str]:
    yield f"{name}{{{_backend(gauge)}}} {gauge.connections}"


_SERIES_FAMILIES: Final[tuple[tuple[str, str, str, Callable[[str, Series], Iterator[str]]], ...]] = (
    ("illm_requests_total", "counter", "Requests that are over, by status.", _requests),
    (
        "illm_time_to_first_byte_seconds",
        "histogram",
        "From the request to the first byte of the answer's body.",
        lambda name, one: one.first.lines(name, one.labels),
    ),
    (
        "illm_request_duration_seconds",
        "histogram",
        "From the request to the end of the answer.",
        lambda name, one: one.duration.lines(name, one.labels),
    ),
    ("illm_tokens_total", "counter", "Tokens as the engines count them.", _tokens),
)

_BACKEND_FAMILIES: Final[tuple[tuple[str, str, Callable[[str, BackendGauge], Iterator[str]]], ...]] = (
    ("illm_backend_up", "1 if the backend answers and is ready.", _up),
    ("illm_backend_state", "1 for the state that the backend is in.", _state),
    ("illm_engine_state", "1 for the state of a launched engine, as its launcher tells it.", _engine),
    ("illm_upstream_connections", "Connections open to the backend.", _connections),
)
