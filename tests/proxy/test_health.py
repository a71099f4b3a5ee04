"""The probe loop: it learns by itself, hurries while an engine starts, and neither a slow engine nor a bug stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from proxy import health
from proxy.ask import asking
from proxy.engine_answers import ModelInfo, Probe
from proxy.health import EAGER, EAGER_PROBES, SPREAD, HealthLoop
from proxy.registry import Registry
from proxy.settings import load_settings
from tests.proxy.harness import PATIENCE, engine, gateway, until

READY = Probe("ready", "vllm", models=(ModelInfo("m"),))
DOWN = Probe("down", "vllm", detail="connection refused")


@contextlib.asynccontextmanager
async def loop(**settings: Any) -> AsyncIterator[tuple[HealthLoop, Registry]]:
    registry = Registry(load_settings(None, {}, settings))
    with asking() as asker:
        made = HealthLoop(registry, asker)
        try:
            yield made, registry
        finally:
            await made.close()


def backends(*names: str, kind: str | None = None) -> dict[str, Any]:
    return {name: {"base_url": f"http://{name}.invalid:1"} | ({"kind": kind} if kind else {}) for name in names}


def probing(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Probes are answered by `answer(root)`; what each was asked with."""
    asked: list[tuple[Any, ...]] = []

    async def probe(_: Any, root: str, kind: Any, key: Any, timeout: float, version: Any) -> Probe:
        asked.append((root, kind, key, timeout, version))
        found = answer(root)
        return await found if asyncio.iscoroutine(found) else found

    monkeypatch.setattr(health, "probe", probe)
    return asked


async def test_engines_come_and_go() -> None:
    settings = {"health": {"interval": 0.02, "down_after": 2}}
    async with engine(models=("a",)) as upstream:
        port = int(upstream.root.rpartition(":")[2])
        async with gateway({"backends": {"b": {"base_url": upstream.root}}} | settings) as gate:
            registry = gate.gateway.registry
            assert list(registry.snapshot.routes) == ["a"], "known when serving begins"
            upstream.models = ("b", "c")
            await until(lambda: list(registry.snapshot.routes) == ["b", "c"])
            await upstream.close()
            await until(lambda: registry.backends["b"].state == "down")
            assert "refused" in registry.backends["b"].detail
            await upstream.listen(port)
            await until(lambda: registry.backends["b"].state == "ready")


async def test_what_a_probe_is_asked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = probing(monkeypatch, lambda _: Probe("ready", "sglang", version="0.5"))
    known = {"k": {"base_url": "http://k.invalid/v1/", "kind": "vllm", "api_key": "sk"}}
    async with loop(backends=known | backends("u"), health={"timeout": 3}) as (made, registry):
        for _ in range(2):
            await made.look(registry.backends["k"])
            await made.look(registry.backends["u"])

    root = "http://u.invalid:1"
    assert asked[0] == ("http://k.invalid", "vllm", "sk", 3, None)
    assert asked[2] == ("http://k.invalid", "vllm", "sk", 3, "0.5")
    assert asked[1::2] == [(root, None, None, 3, None), (root, "sglang", None, 3, "0.5")], "recognised once"


async def test_a_slow_engine_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = asyncio.Event()

    async def slow() -> Probe:
        await hold.wait()
        return READY

    probing(monkeypatch, lambda root: slow() if "slow" in root else READY)
    async with loop(backends=backends("slow", "quick")) as (made, registry):
        made.start()
        await until(lambda: registry.backends["quick"].state == "ready")

        assert registry.backends["slow"].state == "unknown"
        await asyncio.wait_for(made.first_round(0.05), PATIENCE)
        hold.set()
        await made.first_round(PATIENCE)
        assert registry.backends["slow"].state == "ready"


async def test_a_bug_in_a_probe_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ValueError("odd"), READY, READY])

    def answer(_: str) -> Probe:
        found = next(answers, READY)
        if isinstance(found, Exception):
            raise found
        return found

    probing(monkeypatch, answer)
    with caplog.at_level(logging.ERROR, "illm"):
        async with loop(backends=backends("b"), health={"interval": 0.01}) as (made, registry):
            made.start()
            await until(lambda: registry.backends["b"].state == "ready")

    assert "probe of backend 'b'" in caplog.text


WAITS: dict[str, tuple[str | None, list[Probe], list[float]]] = {
    "ready": ("vllm", [READY] * 3, [5, 5, 5]),
    "it may come at any moment": ("vllm", [DOWN, DOWN, READY], [EAGER, EAGER, 5]),
    "it is loading": ("llamacpp", [Probe("loading", "llamacpp")] * 2 + [READY], [EAGER, EAGER, 5]),
    "TGI's health may run a generation": ("tgi", [DOWN, DOWN], [5, 5]),
    "not for ever": (None, [DOWN] * (EAGER_PROBES + 1), [EAGER] * (EAGER_PROBES - 1) + [5, 5]),
}


@pytest.mark.parametrize(("kind", "found", "waits"), WAITS.values(), ids=WAITS)
async def test_how_often(
    kind: str | None, found: list[Probe], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(found)
    slept: list[float] = []
    done = asyncio.Event()
    turn = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == len(waits):
            done.set()
            await asyncio.Event().wait()
        await turn(0)

    probing(monkeypatch, lambda _: next(answers))
    async with loop(backends=backends("b", kind=kind)) as (made, _):
        monkeypatch.setattr(health.asyncio, "sleep", sleep)
        made.start()
        await asyncio.wait_for(done.wait(), PATIENCE)
        monkeypatch.undo()

    for took, told in zip(slept, waits, strict=True):
        assert told <= took <= (told if told == EAGER else told * SPREAD)


async def test_what_is_forgotten_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = probing(monkeypatch, lambda _: READY)
    async with loop(backends=backends("a", "b"), health={"interval": 0.01}) as (made, _):
        made.start()
        await made.first_round(PATIENCE)
        made.forget("a")
        made.forget("nobody")
        before = len([one for one in asked if "//a." in one[0]])
        await until(lambda: len([one for one in asked if "//b." in one[0]]) >= 5)

        assert len([one for one in asked if "//a." in one[0]]) == before


async def test_changes_of_state_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    many = Probe("ready", "vllm", models=tuple(ModelInfo(f"m{i}") for i in range(7)))
    answers = [many, many, DOWN, DOWN, DOWN]
    probing(monkeypatch, lambda _: answers.pop(0))
    with caplog.at_level(logging.INFO, "illm"):
        async with loop(backends=backends("b"), health={"down_after": 2}) as (made, registry):
            for _ in range(5):
                await made.look(registry.backends["b"])

    assert [record.message for record in caplog.records if record.name == "illm"] == [
        "backend 'b' (vllm) is ready: m0, m1, m2, m3, m4 and 2 more",
        "backend 'b' is down: connection refused",
    ]
