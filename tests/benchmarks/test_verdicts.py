"""What the gate, the soak and the run with vLLM's own client make of their figures."""

from __future__ import annotations

import json

from benchmarks import gate, serve_bench, soak
from benchmarks.soak import Sample, Tally


def test_the_gate_lets_a_quarter_pass_and_no_more() -> None:
    recorded = {"request": 4.0, "chunk": 1.6}
    assert gate.dearer({"request": 5.0, "chunk": 2.0}, recorded, gate.MARGIN) == []
    assert gate.dearer({"request": 5.01, "chunk": 1.0}, recorded, gate.MARGIN) == ["request"]
    assert gate.dearer({"new": 100.0}, recorded, gate.MARGIN) == []


def test_the_gate_takes_the_best_of_its_passes() -> None:
    assert gate.lesser({"request": 5.0, "chunk": 1.0}, {"request": 4.0, "chunk": 2.0}) == {"request": 4.0, "chunk": 1.0}


def test_the_gate_has_a_record_of_every_slice() -> None:
    assert json.loads(gate.RECORD.read_text()).keys() == gate.SLICES.keys()


def samples(*memory: float) -> list[Sample]:
    return [Sample(float(minute), value, 10) for minute, value in enumerate(memory)]


def test_memory_that_grows_is_seen_over_the_time_after_the_warm_up() -> None:
    assert soak.growth(samples(0, 50, 90, 100, 101, 102, 103, 104, 105)) == 5.0


def test_a_single_peak_and_the_warm_up_are_no_growth() -> None:
    assert soak.growth(samples(0, 50, 90, 100, 100, 180, 100, 100, 100)) == 0.0
    assert soak.growth(samples(50)) == 0.0


def test_the_soak_fails_for_growth_for_leftovers_for_wrong_answers_and_for_tracebacks() -> None:
    flat, steep, good = samples(*[50.0] * 9), samples(*range(9)), Tally()
    wrong = Tally()
    wrong.wrong["plain: 502"] += 1
    assert soak.verdict(flat, good, [], "", most=1.0) == 0
    assert soak.verdict(steep, good, [], "", most=1.0) == 1
    assert soak.verdict(flat, good, ["1 socket"], "", most=1.0) == 1
    assert soak.verdict(flat, wrong, [], "", most=1.0) == 1
    assert soak.verdict(flat, good, [], "Traceback (most recent call last):", most=1.0) == 1


def test_the_difference_between_two_ways_is_taken_within_a_round() -> None:
    def figures(first: float) -> dict[str, float]:
        return dict.fromkeys(serve_bench.TITLES, 0.0) | {"median_ttft_ms": first}

    direct = [figures(first) for first in (10.0, 30.0, 20.0)]
    through = [figures(first) for first in (11.0, 32.0, 21.0)]
    rows = serve_bench.table({"direct": direct, "through illm": through}).splitlines()
    assert rows[2] == "| first token p50 (ms) | 20.00 | 21.00 | +1.00 |"
