"""Which replica a request goes to, what a probe changes, and the line before a backend that is full."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.breaker import LAPSE, STRIKES
from proxy.engine_answers import ModelInfo, Probe
from proxy.errors import ApiError
from proxy.pool import Backend, EngineState, Replica, State, select
from proxy.settings import BackendSettings

READY = Probe("ready", "vllm", models=(ModelInfo("m"),))
LOADING = Probe("loading", "vllm", detail="loading")
DOWN = Probe("down", "vllm", detail="refused")


def backend(
    name: str = "b", *, state: State = "ready", in_flight: int = 0, strikes: int = 0, engine: str = "", **how: Any
) -> Backend:
    made = Backend(name, BackendSettings(kind="vllm", base_url="http://10.0.0.1:1/v1", **how))
    made.state = state
    made.engine = EngineState("here", name, engine) if engine else None
    made.places.held = in_flight
    for _ in range(strikes):
        made.breaker.strike(100.0)
    return made


def chosen(*backends: Backend, tried: tuple[int, ...] = (), now: float = 100.0, turn: int = 0) -> str | None:
    replicas = [Replica(one, "m") for one in backends]
    found = select(replicas, [replicas[i] for i in tried], now, turn)
    return found.backend.name if found is not None else None


# -- select ------------------------------------------------------------------------------------------------------

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the less busy": ({"in_flight": 1}, {"in_flight": 2}),
    "ready before unknown": ({"in_flight": 9}, {"state": "unknown"}),
    "unknown before loading": ({"state": "unknown", "in_flight": 9}, {"state": "loading"}),
    "running before cold": ({"in_flight": 9}, {"state": "launchable"}),
    "being started before cold": ({"state": "loading", "engine": "starting", "in_flight": 9}, {"state": "launchable"}),
    "cold before one that failed": ({"state": "launchable"}, {"state": "loading", "engine": "backoff"}),
    "cold before loading elsewhere": ({"state": "launchable"}, {"state": "loading"}),
    "loading before down": ({"state": "loading", "in_flight": 9}, {"state": "down"}),
    "down before struck": ({"state": "down", "in_flight": 9}, {"strikes": STRIKES}),
    "some strikes are nothing": ({"strikes": STRIKES - 1}, {"in_flight": 1}),
}


@pytest.mark.parametrize(("better", "worse"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("turn", [0, 1])
def test_the_better_one(better: dict[str, Any], worse: dict[str, Any], turn: int) -> None:
    good, bad = backend("good", **better), backend("bad", **worse)

    assert chosen(good, bad, turn=turn) == "good"
    assert chosen(bad, good, turn=turn) == "good"


def test_equals_take_turns() -> None:
    three = [backend(name) for name in "abc"]

    assert [chosen(*three, turn=turn) for turn in range(4)] == ["a", "b", "c", "a"]


def test_what_was_tried_is_not_tried_again() -> None:
    three = [backend("a"), backend("b", state="down"), backend("c", state="loading")]

    assert chosen(*three, tried=(0,)) == "c"
    assert chosen(*three, tried=(0, 2)) == "b"
    assert chosen(*three, tried=(0, 1, 2)) is None


def test_the_last_resort_is_tried_however_bad_it_looks() -> None:
    assert chosen(backend("a", state="down", strikes=STRIKES)) == "a"


def test_strikes_lapse() -> None:
    struck, busy = backend("struck", strikes=STRIKES), backend("busy", in_flight=5)

    assert chosen(struck, busy, now=100.0) == "busy"
    assert chosen(struck, busy, now=100.0 + LAPSE) == "struck"


def test_an_answer_clears_strikes_and_failures() -> None:
    one = backend(strikes=STRIKES)
    one.breaker.failures = 2
    one.answered()

    assert not one.breaker.open(100.0)
    assert one.failures == 0


# -- learn -------------------------------------------------------------------------------------------------------

HISTORIES: dict[str, tuple[State, list[Probe], list[State]]] = {
    "a first failure is enough for the unknown": ("unknown", [DOWN], ["down"]),
    "and for what was loading": ("loading", [DOWN], ["down"]),
    "busy is not dead": ("ready", [DOWN, DOWN, DOWN], ["ready", "ready", "down"]),
    "only failures in a row count": ("ready", [DOWN, DOWN, READY, DOWN, DOWN], ["ready"] * 5),
    "back after so many": ("down", [READY, READY], ["down", "ready"]),
    "and these in a row": ("down", [READY, DOWN, READY, READY], ["down", "down", "down", "ready"]),
    "it loads": ("unknown", [LOADING, LOADING, READY], ["loading", "loading", "ready"]),
    "it loads another": ("ready", [LOADING], ["loading"]),
}


@pytest.mark.parametrize(("state", "probes", "states"), HISTORIES.values(), ids=HISTORIES)
def test_histories(state: State, probes: list[Probe], states: list[State]) -> None:
    one = backend(state=state)
    seen: list[State] = []
    for probe in probes:
        one.learn(probe, down_after=3, up_after=2)
        seen.append(one.state)

    assert seen == states


def test_a_request_that_was_answered_starts_the_count_again() -> None:
    one = backend()
    for _ in range(5):
        one.learn(DOWN, down_after=2)
        one.answered()

    assert one.state == "ready"


def test_whether_routing_changed() -> None:
    one = backend(state="unknown")

    assert one.learn(READY, down_after=2)
    assert not one.learn(READY, down_after=2)
    assert not one.learn(DOWN, down_after=2)
    assert one.learn(DOWN, down_after=2)
    assert not one.learn(DOWN, down_after=2)
    assert one.learn(READY, down_after=2)
    assert one.learn(Probe("ready", "vllm", prefix="", models=(ModelInfo("m"),)), down_after=2)
    assert one.learn(Probe("ready", "vllm", prefix="", models=(ModelInfo("n"),)), down_after=2)


def test_what_one_process_found_another_takes_over() -> None:
    asks, told = backend(state="unknown"), backend(state="unknown")
    told.facts["x"] = 1
    asks.learn(READY, down_after=1)
    assert told.agree(asks.finding())
    assert not told.agree(asks.finding())
    assert told.finding() == asks.finding()
    assert told.facts == {"x": 1}

    asks.learn(DOWN, down_after=1)
    assert told.agree(asks.finding())
    assert (told.state, told.detail, told.models, told.facts) == ("down", "refused", READY.models, {})


def test_one_that_fails_keeps_its_models_and_says_why() -> None:
    one = backend(state="unknown")
    one.learn(READY, down_after=2)
    one.learn(DOWN, down_after=2)

    assert (one.state, one.detail, [model.id for model in one.models]) == ("ready", "refused", ["m"])


def test_a_configured_kind_stands() -> None:
    one = backend(state="unknown")
    one.learn(Probe("ready", "sglang"), down_after=1)

    assert one.kind == "vllm"


def test_a_kind_that_was_found() -> None:
    one = Backend("b", BackendSettings(base_url="http://10.0.0.1:1"))
    one.learn(Probe("ready", "sglang", version="0.5"), down_after=1)
    one.learn(Probe("ready", None), down_after=1)

    assert (one.kind, one.version) == ("sglang", "0.5")


# -- heads -------------------------------------------------------------------------------------------------------


def test_the_lines_that_a_request_begins_with() -> None:
    one = backend(api_key="sk-b")

    assert one.request_head("POST", "/v1/x") == (
        b"POST /v1/x HTTP/1.1\r\nhost: 10.0.0.1:1\r\naccept-encoding: identity\r\nauthorization: Bearer sk-b\r\n"
    )
    assert b"authorization" not in backend().request_head("GET", "/v1/x")


def test_a_base_url_with_a_path() -> None:
    one = Backend("b", BackendSettings(base_url="https://host.example/llm/v1/"))

    assert one.request_head("POST", "/v1/x").startswith(b"POST /llm/v1/x HTTP/1.1\r\nhost: host.example\r\n")


# -- moving and changing -----------------------------------------------------------------------------------------


def test_an_engine_at_another_address_is_another_engine() -> None:
    one = backend(strikes=STRIKES)
    one.learn(Probe("ready", "vllm", prefix="", version="0.5", models=(ModelInfo("m"),)), down_after=1)
    one.request_head("POST", "/v1/x")
    one.facts["template"] = "x"
    one.places.held = 3
    one.move(BackendSettings(base_url="http://10.0.0.2:2", api_key="sk"))  # type: ignore[arg-type]

    assert (one.origin.host, one.origin.port, one.prefix, one.version) == ("10.0.0.2", 2, "/v1", None)
    assert (one.kind, one.state, one.facts, one.in_flight) == (None, "unknown", {}, 3)
    assert b"host: 10.0.0.2:2\r\n" in one.request_head("POST", "/v1/x")
    assert b"Bearer sk" in one.request_head("POST", "/v1/x")


def test_other_settings_for_the_same_address() -> None:
    one = backend()
    one.learn(Probe("ready", "vllm", version="0.5", models=(ModelInfo("m"),)), down_after=1)
    one.facts["template"] = "x"
    one.configure(one.settings.model_copy(update={"max_in_flight": 1}))
    assert (one.state, one.version, one.models, one.facts) == ("ready", "0.5", (ModelInfo("m"),), {"template": "x"})
    one.configure(one.settings.model_copy(update={"kind": "sglang"}))

    assert (one.kind, one.facts) == ("sglang", {})


# -- the line ----------------------------------------------------------------------------------------------------


async def queue(one: Backend, count: int, order: list[int]) -> list[asyncio.Task[None]]:
    async def wait(i: int) -> None:
        await one.enter()
        order.append(i)

    tasks = []
    for i in range(count):
        tasks.append(asyncio.create_task(wait(i)))
        await asyncio.sleep(0)
    return tasks


async def test_first_come_first_served() -> None:
    one = backend(max_in_flight=1)
    await one.enter()
    order: list[int] = []
    tasks = await queue(one, 3, order)
    for expected in ([0], [0, 1], [0, 1, 2]):
        one.leave()
        await asyncio.sleep(0)

        assert order == expected
        assert one.in_flight == 1
    await asyncio.gather(*tasks)
    one.leave()

    assert one.in_flight == 0


async def test_a_full_line() -> None:
    one = backend(max_in_flight=1, max_queue=1)
    await one.enter()
    tasks = await queue(one, 1, [])
    with pytest.raises(ApiError) as caught:
        await one.enter()

    assert (caught.value.status, dict(caught.value.headers)) == (429, {"retry-after": "1"})
    assert one.in_flight == 1
    one.leave()
    await asyncio.gather(*tasks)


async def test_no_line_at_all() -> None:
    one = backend(max_in_flight=1, max_queue=0)
    await one.enter()
    with pytest.raises(ApiError):
        await one.enter()
    one.leave()
    await one.enter()

    assert one.in_flight == 1


async def test_no_limit() -> None:
    one = backend()
    for _ in range(500):
        await one.enter()

    assert one.in_flight == 500


async def test_who_gives_up_waiting_leaves_no_gap() -> None:
    one = backend(max_in_flight=1)
    await one.enter()
    order: list[int] = []
    first, second = await queue(one, 2, order)
    first.cancel()
    await asyncio.sleep(0)
    one.leave()
    await second

    assert order == [1]
    assert one.in_flight == 1


async def test_who_gives_up_in_the_turn_that_it_is_served_passes_the_place_on() -> None:
    one = backend(max_in_flight=1)
    await one.enter()
    order: list[int] = []
    first, second = await queue(one, 2, order)
    one.leave()
    first.cancel()
    await second

    assert order == [1]
    assert one.in_flight == 1


async def test_nobody_overtakes_the_line() -> None:
    """A newcomer in the turn in which a place came free waits behind those that are there."""
    one = backend(max_in_flight=2)
    await one.enter()
    await one.enter()
    order: list[int] = []
    tasks = await queue(one, 1, order)
    one.leave()
    late = asyncio.create_task(one.enter())
    await asyncio.gather(*tasks)

    assert order == [0]
    assert not late.done()
    one.leave()
    await late


class Turnstile:
    """A gate that counts."""

    open = True

    def __init__(self) -> None:
        self.inside = 0

    async def enter(self) -> None:
        self.inside += 1

    def leave(self) -> None:
        self.inside -= 1

    async def lost(self) -> None:
        return

    def told(self) -> str:
        return ""


async def test_who_turns_back_in_the_line_leaves_the_gate_too() -> None:
    one = backend(max_in_flight=1, max_queue=1)
    one.gate = gate = Turnstile()
    await one.enter()
    (waiting,) = await queue(one, 1, [])
    with pytest.raises(ApiError):
        await one.enter()
    assert (one.in_flight, gate.inside) == (1, 2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (one.in_flight, gate.inside) == (1, 1)
    one.leave()

    assert (one.in_flight, gate.inside) == (0, 0)
