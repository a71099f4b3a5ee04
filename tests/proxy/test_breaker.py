"""Strikes: how many open a breaker, how long they count."""

from __future__ import annotations

from proxy.breaker import LAPSE, STRIKES, Breaker


def struck(*times: float) -> Breaker:
    breaker = Breaker()
    for time in times:
        breaker.strike(time)
    return breaker


def test_it_opens_at_the_third_strike_and_not_before() -> None:
    assert not struck(*[0.0] * (STRIKES - 1)).open(0.0)
    assert struck(*[0.0] * STRIKES).open(0.0)


def test_it_closes_by_itself() -> None:
    breaker = struck(0.0, 1.0, 2.0)

    assert breaker.open(LAPSE - 0.1)
    assert not breaker.open(LAPSE)


def test_strikes_that_lapsed_count_no_more() -> None:
    assert not struck(0.0, 1.0, LAPSE + 0.5).open(LAPSE + 0.5)


def test_the_latest_strikes_count() -> None:
    assert struck(0.0, 5.0, 5.0, 5.0).open(LAPSE + 1)


def test_an_answer_clears_them() -> None:
    breaker = struck(0.0, 0.0, 0.0)
    breaker.clear()

    assert not breaker.open(0.0)
    breaker.strike(0.0)
    assert not breaker.open(0.0)
