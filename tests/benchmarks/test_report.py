"""Medians, ratios, goals and tables of a run, from rounds that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.report import METRICS
from tests.conformance.report import write_between_marks

# The second round fell into a noisy minute, which made both twice as dear.
NOISY: dict[str, list[dict[str, float]]] = {
    "illm": [{"request_32_us": 50.0}, {"request_32_us": 100.0}, {"request_32_us": 54.0}],
    "vllm-router": [{"request_32_us": 100.0}, {"request_32_us": 200.0}, {"request_32_us": 60.0}],
    "nginx": [{"request_32_us": 10.0}, {"request_32_us": 20.0}, {"request_32_us": 9.0}],
}


def kept(rounds: dict[str, list[dict[str, float]]], **more: Any) -> dict[str, Any]:
    """A result as it lies in the JSON file."""
    machine = {"cpu": "Made Up 9000", "cores": 2, "kernel": "6.1", "python": "3.11.7"}
    each = {name: [{"values": values, "failures": []} for values in found] for name, found in rounds.items()}
    about = {"date": "2026-01-02 03:04 UTC", "machine": machine, "versions": {"nginx": "1.2"}, "skipped": {}}
    return {**about, "rounds": each, **more}


def test_a_ratio_is_taken_within_a_round() -> None:
    assert report.ratios(NOISY, "illm", "vllm-router") == {"request_32_us": 0.5}
    assert report.medians(NOISY["illm"]) == {"request_32_us": 54.0}


def test_a_ratio_leaves_out_rounds_in_which_one_side_has_no_figure() -> None:
    rounds = {"illm": [{"rss_mb": 10.0}, {}, {"rss_mb": 30.0}], "nginx": [{"rss_mb": 10.0}, {"rss_mb": 5.0}, {}]}
    assert report.ratios(rounds, "illm", "nginx") == {"rss_mb": 1.0}
    assert report.ratios(rounds, "illm", "not measured") == {}
    assert report.ratios({"a": [{"x": 1.0}], "b": [{"x": 0.0}]}, "a", "b") == {}


def test_added_latency_is_that_over_the_engine_in_the_same_round() -> None:
    direct = [{"request_1_latency_p50_us": 40.0, "request_1_latency_p99_us": 90.0}, {"request_1_latency_p50_us": 60.0}]
    rounds = {
        "direct": direct,
        "illm": [{"request_1_latency_p50_us": 140.0, "request_1_latency_p99_us": 290.0, "rss_mb": 1.0}] * 2,
    }
    first, second = report.with_added(rounds)["illm"]
    assert (first["added_p50_us"], first["added_p99_us"], first["rss_mb"]) == (100.0, 200.0, 1.0)
    assert second["added_p50_us"] == 80.0
    assert "added_p99_us" not in second
    assert report.with_added(rounds)["direct"] == direct


def test_what_is_compared_to_is_the_peer_or_else_a_floor() -> None:
    assert report.base(NOISY) == "vllm-router"
    assert report.base({"illm": [{}], "nginx": [{}], "uvicorn": [{}]}) == "uvicorn"
    assert report.base({"illm": [{}], "vllm-router": []}) is None


def test_the_summary_has_medians_and_ratios_for_every_target() -> None:
    found = report.summary(NOISY)
    assert found["nginx"]["medians"] == {"request_32_us": 10.0}
    assert found["illm"]["to vllm-router"] == {"request_32_us": 0.5}
    assert found["illm"]["to nginx"] == {"request_32_us": 5.0}


def test_a_goal_is_met_up_to_its_limit() -> None:
    def verdict(mine: float) -> str:
        rounds = {"illm": [{"request_32_us": mine}], "vllm-router": [{"request_32_us": 100.0}]}
        return report.goal_list(rounds).splitlines()[-1]

    assert METRICS["request_32_us"].goal == 0.9
    assert verdict(90.0).endswith("| 0.9 | met |")
    assert verdict(91.0).endswith("| 0.91 | **not met** |")


def test_goals_of_what_was_not_measured_are_left_out() -> None:
    assert report.goals({"illm": [{"request_32_us": 1.0}]}) == []
    beside_litellm = report.goals({"illm": [{"request_32_us": 1.0}], "litellm": [{"request_32_us": 100.0}]})
    assert [(metric.than, ratio) for metric, ratio in beside_litellm] == [("litellm", 0.01)]


def test_a_table_has_a_column_for_each_target_that_was_measured() -> None:
    assert report.table(NOISY, report.BESIDE).splitlines() == [
        "|  | illm | vllm-router | nginx | illm / nginx |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| CPU per request, 1 KB, 32 clients (µs) | 54.0 (0.50) | 100 | 10.0 (0.10) | 5.00 |",
    ]


def test_a_table_of_one_target_says_nothing() -> None:
    assert report.table({"illm": NOISY["illm"]}, report.BESIDE) == ""


def test_a_figure_that_is_missing_is_a_dash() -> None:
    rounds = {"illm": [{"rss_mb": 50.0, "start_ms": 400.0}], "nginx": [{"rss_mb": 20.0}]}
    assert report.table(rounds, report.BESIDE).splitlines()[-1] == "| start to first answer (ms) | 400 | - | - |"


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.123, "0.12"), (9.87, "9.87"), (12.34, "12.3"), (123.4, "123"), (-0.5, "-0.50"), (5432.1, "5432")],
)
def test_figures_have_three_digits(value: float, said: str) -> None:
    assert report.three_digits(value) == said


def test_the_document_tells_the_machine_the_rounds_and_what_is_missing() -> None:
    result = kept(NOISY, skipped={"litellm": "no network"})
    result["rounds"]["illm"][0]["failures"] = ["chunk_1000: a stream lost chunks"]
    text = report.document(result, "latest.svg", "The end.")
    for said in (
        *("](latest.svg)", "Made Up 9000, 2 cores", "2026-01-02 03:04 UTC", "nginx 1.2", "Medians of 3 rounds"),
        *("LiteLLM was left out: no network", "illm failed at a load: chunk_1000: a stream lost chunks", "The end."),
    ):
        assert said in text
    assert "chunks a second" not in text


def test_the_document_tells_where_the_pace_was_not_kept() -> None:
    rounds = {"illm": [{"chunk_1000_pace": 0.5, "rss_mb": 1.0}], "nginx": [{"chunk_1000_pace": 1.0, "rss_mb": 1.0}]}
    assert "there came with: illm 50 %." in report.document(kept(rounds), "latest.svg")


def test_a_run_without_the_peer_has_no_plot() -> None:
    assert "latest.svg" not in report.document(kept({"illm": [{"rss_mb": 1.0}]}), "latest.svg")


def test_the_readme_has_the_marks_and_only_what_is_between_them_changes(tmp_path: Path) -> None:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert [text.count(mark) for mark in report.MARKS] == [1, 1]
    copy = tmp_path / "README.md"
    copy.write_text(text, encoding="utf-8")
    write_between_marks(copy, "new", report.MARKS)
    before, after = text.split(report.MARKS[0])[0], text.split(report.MARKS[1])[1]
    assert copy.read_text(encoding="utf-8") == f"{before}{report.MARKS[0]}\nnew\n{report.MARKS[1]}{after}"
