"""The Prometheus text, read back by a small parser of the exposition format, and what the counters count."""

from __future__ import annotations

import math
import re

import pytest

from proxy.metrics import BUCKETS, OTHER, BackendGauge, BackendState, Metrics, Series

Labels = frozenset[tuple[str, str]]
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


class Scrape:
    """A parsed text; refuses what the format forbids: split families, samples of no family, equal samples."""

    def __init__(self, text: bytes) -> None:
        self.types: dict[str, str] = {}
        self.samples: dict[tuple[str, Labels], float] = {}
        assert text.endswith(b"\n")
        family = ""
        for line in text.decode().split("\n")[:-1]:
            if line.startswith("# HELP "):
                family = line.split(" ")[2]
                assert family not in self.types, f"{family} is there twice"
                assert len(line.split(" ", 3)[3]) > 0
            elif line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert name == family
                self.types[name] = kind
            else:
                self._sample(line, family)

    def _sample(self, line: str, family: str) -> None:
        match = re.fullmatch(r"([a-zA-Z_:]\w*)(?:\{(.*)\})? (\S+)", line)
        assert match is not None, line
        name, text, value = match.groups()
        suffixes = ("_bucket", "_sum", "_count") if self.types[family] == "histogram" else ("",)
        assert name in {family + suffix for suffix in suffixes}
        labels = _LABEL.findall(text or "")
        assert "".join(f'{key}="{raw}",' for key, raw in labels).rstrip(",") == (text or "")
        assert len({key for key, _ in labels}) == len(labels)
        found = frozenset((key, re.sub(r"\\.", lambda m: _UNESCAPED[m[0]], raw)) for key, raw in labels)
        assert (name, found) not in self.samples, f"{line} is there twice"
        self.samples[name, found] = float(value)

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, frozenset(labels.items())))

    def all(self, name: str) -> dict[Labels, float]:
        return {labels: value for (found, labels), value in self.samples.items() if found == name}


def make(max_series: int = 512) -> Metrics:
    return Metrics(version="1.2.3", started=1700000000.25, max_series=max_series)


def scrape(metrics: Metrics, *backends: BackendGauge) -> Scrape:
    return Scrape(metrics.render(backends))


def request(series: Series, status: int = 200, seconds: float = 1.0) -> None:
    series.started()
    series.ended()
    series.finished(status, seconds)


def test_a_fresh_process() -> None:
    found = scrape(make())
    assert found.value("process_start_time_seconds") == 1700000000.25
    ((info, one),) = found.all("illm_build_info").items()
    assert dict(info)["version"] == "1.2.3"
    assert one == 1
    assert found.types["illm_requests_total"] == "counter"
    assert found.types["illm_request_duration_seconds"] == "histogram"
    assert len(found.samples) == 2


def test_requests_are_counted_by_status() -> None:
    metrics = make()
    series = metrics.series("chat", "m", "b")
    for status in (200, 200, 503):
        request(series, status)
    request(metrics.series("embeddings", "m", "b"))
    found = scrape(metrics)
    where = {"model": "m", "backend": "b"}
    assert found.value("illm_requests_total", endpoint="chat", status="200", **where) == 2
    assert found.value("illm_requests_total", endpoint="chat", status="503", **where) == 1
    assert found.value("illm_requests_total", endpoint="embeddings", status="200", **where) == 1
    assert len(found.all("illm_requests_total")) == 3


def test_in_flight_is_a_gauge_over_the_endpoints() -> None:
    metrics = make()
    chat, embeddings, elsewhere = (metrics.series(*key) for key in (("c", "m", "b"), ("e", "m", "b"), ("c", "m", "x")))
    chat.started()
    chat.started()
    embeddings.started()
    elsewhere.started()
    assert scrape(metrics).value("illm_requests_in_flight", model="m", backend="b") == 3
    chat.ended()
    chat.finished(499, 1)
    elsewhere.ended()  # tried in vain: the request goes on elsewhere
    embeddings.ended()
    embeddings.finished(200, 1)
    found = scrape(metrics)
    assert found.value("illm_requests_in_flight", model="m", backend="b") == 1
    assert found.value("illm_requests_in_flight", model="m", backend="x") == 0
    assert sum(found.all("illm_requests_total").values()) == 2


def test_a_request_that_reached_no_backend_is_counted_and_leaves_no_gauge_askew() -> None:
    metrics = make()
    metrics.series("chat", "", "").finished(404, 0.001)
    found = scrape(metrics)
    assert found.value("illm_requests_total", endpoint="chat", model="", backend="", status="404") == 1
    assert found.value("illm_requests_in_flight", model="", backend="") == 0


def test_a_series_is_the_same_object_every_time() -> None:
    metrics = make()
    assert metrics.series("chat", "m", "b") is metrics.series("chat", "m", "b")
    assert metrics.series("chat", "m", "b") is not metrics.series("chat", "b", "m")


@pytest.mark.parametrize("name", ["illm_time_to_first_byte_seconds", "illm_request_duration_seconds"])
def test_histograms_are_cumulative(name: str) -> None:
    metrics = make()
    series = metrics.series("chat", "m", "b")
    values = [0.0, 0.004, 0.005, 0.0050001, 0.3, 1.0, 1.0, 599.9, 600.0, 601.0, 1e9]
    for value in values:
        if "first" in name:
            series.first_byte(value)
        series.finished(200, 0.0 if "first" in name else value)
    found = scrape(metrics)
    where = {"endpoint": "chat", "model": "m", "backend": "b"}
    buckets = {float(dict(labels)["le"]): n for labels, n in found.all(f"{name}_bucket").items()}
    assert sorted(buckets) == [*BUCKETS, math.inf]
    for bound, count in buckets.items():
        assert count == sum(value <= bound for value in values), bound
    assert list(buckets.values()) == sorted(buckets.values())
    assert found.value(f"{name}_count", **where) == buckets[math.inf] == len(values)
    assert found.value(f"{name}_sum", **where) == pytest.approx(sum(values))


def test_a_request_without_a_first_byte_is_in_one_histogram_only() -> None:
    metrics = make()
    request(metrics.series("chat", "m", "b"), 503, 0.2)
    found = scrape(metrics)
    assert found.all("illm_time_to_first_byte_seconds_count") == {}
    assert list(found.all("illm_request_duration_seconds_count").values()) == [1]


def test_tokens() -> None:
    metrics = make()
    series = metrics.series("chat", "m", "b")
    series.tokens(10, 2)
    series.tokens(5, 0)
    found = scrape(metrics)
    where = {"endpoint": "chat", "model": "m", "backend": "b"}
    assert found.value("illm_tokens_total", kind="prompt", **where) == 15
    assert found.value("illm_tokens_total", kind="completion", **where) == 2


def test_errors_by_code_are_bounded() -> None:
    metrics = make()
    for code in ("model_not_found", "model_not_found", "backend_timeout", None, "upstream says hi", ""):
        metrics.error(code)
    found = scrape(metrics)
    assert found.value("illm_request_errors_total", code="model_not_found") == 2
    assert found.value("illm_request_errors_total", code="backend_timeout") == 1
    assert found.value("illm_request_errors_total", code=OTHER) == 3
    assert len(found.all("illm_request_errors_total")) == 3


@pytest.mark.parametrize("state", ["ready", "loading", "down", "unknown"])
def test_backends_are_as_handed_in(state: BackendState) -> None:
    metrics = make()
    found = scrape(metrics, BackendGauge("a", "vllm", state, connections=7), BackendGauge("b", "", "down"))
    a = {"backend": "a", "kind": "vllm"}
    assert found.value("illm_backend_up", **a) == (state == "ready")
    assert found.value("illm_backend_up", backend="b", kind="") == 0
    assert found.value("illm_upstream_connections", **a) == 7
    states = {
        dict(labels)["state"]: n for labels, n in found.all("illm_backend_state").items() if ("backend", "a") in labels
    }
    assert states == {name: float(name == state) for name in ("ready", "loading", "down", "unknown")}
    assert scrape(metrics).all("illm_backend_up") == {}


@pytest.mark.parametrize("name", ['a"b', "a\\", "a\nb", '\\"\n', "\\n", "a,b={}", "größe 模型", ""])
def test_labels_are_escaped(name: str) -> None:
    metrics = make()
    request(metrics.series("chat", name, name))
    found = scrape(metrics, BackendGauge(name, "tgi", "ready"))
    assert found.value("illm_requests_total", endpoint="chat", model=name, backend=name, status="200") == 1
    assert found.value("illm_backend_up", backend=name, kind="tgi") == 1


def test_a_lone_surrogate_does_not_break_the_scrape() -> None:
    metrics = make()
    request(metrics.series("chat", "a\udcff", "b"))
    assert len(scrape(metrics).all("illm_requests_total")) == 1


def test_the_number_of_series_is_capped() -> None:
    metrics = make(max_series=3)
    for index in range(10):
        request(metrics.series("chat", f"m{index}", "b"))
    assert metrics.series("chat", "m9", "b") is metrics.series("embeddings", "m8", "c")
    request(metrics.series("chat", "m1", "b"))  # an old one goes on
    found = scrape(metrics)
    assert len(found.all("illm_requests_total")) == 4
    assert found.value("illm_requests_total", endpoint=OTHER, model=OTHER, backend=OTHER, status="200") == 7
    assert found.value("illm_requests_total", endpoint="chat", model="m1", backend="b", status="200") == 2


def test_what_processes_have_counted_adds_up() -> None:
    whole, parts = make(), [make(max_series=1), make()]
    for n, part in enumerate(parts, 1):
        for model in ("m", f"only {n}"):
            series = part.series("chat", model, "b")
            series.started()
            series.finished(200 * n, 0.1 * n)
            series.first_byte(0.1)
            series.tokens(n, 2 * n)
        part.error(None)
    for part in parts:
        whole.add(part.counted())
    found = Scrape(whole.render())

    labels = {"endpoint": "chat", "model": "m", "backend": "b"}
    assert found.value("illm_requests_total", **labels, status="200") == 1
    assert found.value("illm_requests_total", **labels, status="400") == 1
    assert found.value("illm_request_duration_seconds_count", **labels) == 2
    assert found.value("illm_request_duration_seconds_sum", **labels) == pytest.approx(0.3)
    assert found.value("illm_time_to_first_byte_seconds_bucket", **labels, le="0.1") == 2
    assert found.value("illm_tokens_total", **labels, kind="completion") == 6
    assert found.value("illm_requests_in_flight", model="m", backend="b") == 2
    assert found.value("illm_request_errors_total", code=OTHER) == 2
    rest = {"endpoint": OTHER, "model": OTHER, "backend": OTHER}  # where the first put what was too much for it
    assert found.value("illm_requests_total", **rest, status="200") == 1
    assert parts[0].series("chat", "m", "b").statuses == {200: 1}


def test_the_rest_is_absent_while_nothing_is_in_it() -> None:
    metrics = make(max_series=1)
    request(metrics.series("chat", "m", "b"))
    assert all(OTHER not in dict(labels).values() for _, labels in scrape(metrics).samples)
