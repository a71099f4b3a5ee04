"""The table of states: what leads where, and that nothing leads nowhere."""

from typing import get_args

import pytest

from launchers.lifecycle import LONGEST_DELAY, TRANSITIONS, IllegalTransition, State, after, delay

STATES = set(get_args(State))


def test_every_state_is_reached_and_left() -> None:
    assert {state for state, _ in TRANSITIONS} == STATES
    assert set(TRANSITIONS.values()) == STATES


def test_whatever_runs_or_may_run_can_be_stopped() -> None:
    stoppable = {state for state, event in TRANSITIONS if event == "stop"}

    assert stoppable == STATES - {"stopping"}


def test_only_asking_again_leads_out_of_fatal_to_a_start() -> None:
    assert {(event, to) for (state, event), to in TRANSITIONS.items() if state == "fatal"} == {
        ("start", "starting"),
        ("stop", "stopped"),
    }


def test_what_isnt_in_the_table_is_a_bug() -> None:
    with pytest.raises(IllegalTransition, match="'ready' in state 'stopped'"):
        after("stopped", "ready")


def test_each_try_waits_longer_up_to_a_limit() -> None:
    delays = [delay(failures) for failures in range(1, 12)]

    assert delays[:4] == [1.0, 2.0, 4.0, 8.0]
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_DELAY
