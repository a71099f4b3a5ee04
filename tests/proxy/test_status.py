"""What the gateway says of itself: the list of models, health and readiness, metrics as Prometheus reads them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.engine_answers import ModelInfo, Probe
from proxy.launcher_client import Address
from tests.proxy.harness import PATIENCE, Got, Line, Running, engine, gateway, one_backend, until
from tests.proxy.scripted_launcher import launcher, row

CHAT = {"model": "pub", "messages": []}
NOWHERE = "http://127.0.0.1:9"
SETTINGS: dict[str, Any] = {
    "backends": {
        "v": {"kind": "vllm", "base_url": NOWHERE},
        "o": {"kind": "ollama", "base_url": NOWHERE},
    },
    "models": {"qwen": {"aliases": ["gpt-4o"], "replicas": [
        {"backend": "v", "model": "Qwen/Qwen2"}, {"backend": "o", "model": "qwen2:7b"},
    ]}},
}  # fmt: skip


def teach(gate: Running, name: str, probe: Probe) -> None:
    """As a probe would; the real ones fail, which changes nothing before the third."""
    backend = gate.gateway.registry.backends[name]
    backend.state = "unknown"
    backend.learn(probe, down_after=1)
    gate.gateway.registry.rebuild()


def known(gate: Running) -> None:
    v = (ModelInfo("Qwen/Qwen2", max_model_len=4096, owned_by="vllm", created=7), ModelInfo("org/a/b", created=8))
    teach(gate, "v", Probe("ready", "vllm", models=v))
    teach(gate, "o", Probe("loading", "ollama", detail="loading"))


async def test_models() -> None:
    async with gateway(SETTINGS) as gate:
        known(gate)
        for path in ("/v1/models", "/models"):
            listed = (await gate.client.get(path)).json()

            assert listed["object"] == "list"
            assert {one["id"]: one for one in listed["data"]} == {
                "qwen": {
                    "id": "qwen", "object": "model", "created": 7, "owned_by": "vllm", "state": "ready",
                    "backends": ["v", "o"], "max_model_len": 4096,
                },
                "gpt-4o": {
                    "id": "gpt-4o", "object": "model", "created": 7, "owned_by": "vllm", "state": "ready",
                    "backends": ["v", "o"], "root": "qwen", "max_model_len": 4096,
                },
                "Qwen/Qwen2": {
                    "id": "Qwen/Qwen2", "object": "model", "created": 7, "owned_by": "vllm", "state": "ready",
                    "backends": ["v"], "max_model_len": 4096,
                },
                "org/a/b": {
                    "id": "org/a/b", "object": "model", "created": 8, "owned_by": "vllm", "state": "ready",
                    "backends": ["v"],
                },
            }  # fmt: skip


@pytest.mark.parametrize(
    ("framework", "names"),
    [("vllm", ["Qwen/Qwen2", "gpt-4o", "org/a/b", "qwen"]), ("ollama", ["gpt-4o", "qwen"]), ("tgi", [])],
)
async def test_models_of_a_framework(framework: str, names: list[str]) -> None:
    async with gateway(SETTINGS) as gate:
        known(gate)
        reply = await gate.client.get("/v1/models", params={"framework": framework})

        assert sorted(one["id"] for one in reply.json()["data"]) == names


async def test_models_of_no_framework() -> None:
    async with gateway(SETTINGS) as gate:
        reply = await gate.client.get("/v1/models?framework=gpt")

        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "framework")


@pytest.mark.parametrize("state", ["ready", "loading", "down"])
async def test_the_state_of_a_model_is_the_best_of_its_backends(state: Any) -> None:
    async with gateway(SETTINGS) as gate:
        teach(gate, "v", Probe("down", "vllm"))
        teach(gate, "o", Probe(state, "ollama"))

        assert (await gate.client.get("/v1/models/qwen")).json()["state"] == state


@pytest.mark.parametrize("spelling", ["org/a/b", quote("org/a/b", safe="")])
async def test_one_model_with_slashes_in_its_name(spelling: str) -> None:
    async with gateway(SETTINGS) as gate:
        known(gate)
        for prefix in ("/v1", ""):
            reply = await gate.client.get(f"{prefix}/models/{spelling}")

            assert (reply.status_code, reply.json()["id"]) == (200, "org/a/b")


async def test_one_model_that_isnt_there() -> None:
    async with gateway(SETTINGS) as gate:
        known(gate)
        reply = await gate.client.get("/v1/models/no/such")

        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert "qwen" in reply.json()["error"]["message"]


async def test_models_never_wait_for_an_engine() -> None:
    """One that takes connections and says nothing."""

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hold.wait()
        writer.close()

    hold = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    root = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with gateway({"backends": {"b": {"base_url": root, "model": "m"}}}, first_round=0) as gate:
            reply = await asyncio.wait_for(gate.client.get("/v1/models"), PATIENCE)

            assert [one["state"] for one in reply.json()["data"]] == ["unknown"]
            hold.set()
    finally:
        hold.set()
        server.close()


# -- health ------------------------------------------------------------------------------------------------------


async def test_healthz() -> None:
    async with gateway(SETTINGS | {"model": "qwen"}) as gate:
        known(gate)
        body = (await gate.client.get("/healthz")).json()
        rows = body.pop("backends")

        assert body == {"status": "degraded", "framework": None, "model": "qwen", "providers": ["vllm", "ollama"]}
        assert rows == [
            {"name": "v", "kind": "vllm", "state": "ready", "detail": "", "version": None, "models": 2, "in_flight": 0},
            {"name": "o", "kind": "ollama", "state": "loading", "detail": "loading", "version": None, "models": 0,
             "in_flight": 0},
        ]  # fmt: skip


@pytest.mark.parametrize("key", [None, "wrong", "k"])
async def test_healthz_tells_those_without_a_key_names_and_states_only(key: str | None, tmp_path: Path) -> None:
    keyed = SETTINGS | {"server": {"api_keys": ["k"]}}
    failed = row("coder", "fatal", kind="llamacpp", error="last words of its log")
    async with (
        launcher(tmp_path, failed) as there,
        gateway(keyed, launchers=[there.address, Address("away", "http://127.0.0.1:9")]) as gate,
    ):
        known(gate)
        await until(
            lambda: bool(gate.gateway.registry.launchers["away"]) and not gate.gateway.registry.launchers["here"]
        )
        reply = await gate.client.get("/healthz", headers={"authorization": f"Bearer {key}"} if key else {})
        body = reply.json()

        assert reply.status_code == 200
        assert (body["status"], body["providers"]) == ("degraded", ["vllm", "ollama", "llamacpp"])
        assert ("last words" in reply.text, "127.0.0.1:9" in reply.text) == (key == "k", key == "k")
        if key != "k":
            assert body["backends"] == [
                {"name": "v", "kind": "vllm", "state": "ready"},
                {"name": "o", "kind": "ollama", "state": "loading"},
                {"name": "coder", "kind": "llamacpp", "state": "down"},
            ]
            assert body["launchers"] == [{"name": "here", "state": "ready"}, {"name": "away", "state": "down"}]


@pytest.mark.parametrize(
    ("v", "o", "status"),
    [("ready", "ready", "ok"), ("ready", "down", "degraded"), ("down", "loading", "no backend is ready")],
)
async def test_the_word_of_healthz(v: Any, o: Any, status: str) -> None:
    async with gateway(SETTINGS) as gate:
        teach(gate, "v", Probe(v, "vllm"))
        teach(gate, "o", Probe(o, "ollama"))

        reply = await gate.client.get("/healthz")
        assert (reply.status_code, reply.json()["status"]) == (200, status)


async def test_healthz_of_one_engine_names_it() -> None:
    async with engine() as upstream, gateway({"backends": {"b": {"base_url": upstream.root}}}) as gate:
        body = (await gate.client.get("/healthz")).json()

        assert (body["status"], body["framework"], body["model"]) == ("ok", "vllm", "m")


async def test_ready_and_live_are_apart() -> None:
    async with gateway(SETTINGS) as gate:
        teach(gate, "v", Probe("down", "vllm"))
        teach(gate, "o", Probe("loading", "ollama"))
        before = await gate.client.get("/readyz")
        live = await gate.client.get("/livez")
        known(gate)
        after = await gate.client.get("/readyz")

        assert (before.status_code, live.status_code, after.status_code) == (503, 200, 200)
        assert before.headers["retry-after"] == "5"
        assert "/healthz" in before.json()["error"]["message"]


# -- metrics -----------------------------------------------------------------------------------------------------


async def scrape(gate: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    reply = await gate.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(reply.text))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


async def test_metrics_after_some_requests() -> None:
    async def answer(got: Got, line: Line) -> None:
        if got.json.get("seed") == 1:
            await line.reply(500, b'{"error":{"message":"boom"}}')
        elif got.json.get("seed") == 2:
            await line.closed.wait()
        else:
            usage = {"prompt_tokens": 3, "completion_tokens": 2}
            await line.reply(200, json.dumps({"object": "chat.completion", "model": "up", "usage": usage}).encode())

    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as gate:
        for _ in range(2):
            await gate.client.post("/v1/chat/completions", json=CHAT)
        await gate.client.post("/v1/chat/completions", json=CHAT | {"seed": 1})
        for name in ("a", "b", 'c\n"\\'):
            await gate.client.post("/v1/chat/completions", json=CHAT | {"model": name})
        leaving = asyncio.ensure_future(gate.client.post("/v1/chat/completions", json=CHAT | {"seed": 2}))
        await until(lambda: any(got.json.get("seed") == 2 for got in upstream.got))
        leaving.cancel()
        await until(lambda: any(line["status"] == 499 for line in gate.log))
        found = await scrape(gate)

        def value(name: str, **labels: str) -> float | None:
            return found.get((name, frozenset(labels.items())))

        pub = {"model": "pub", "backend": "b"}
        statuses = {
            dict(labels)["status"]: number
            for (name, labels), number in found.items()
            if name == "illm_requests_total" and dict(labels)["model"] == "pub"
        }
        assert statuses == {"200": 2, "500": 1, "499": 1}
        assert value("illm_requests_total", endpoint="chat", model="", backend="", status="404") == 3
        assert {dict(labels).get("model", "") for _, labels in found} <= {"", "pub"}, "a client's words are no label"
        assert value("illm_tokens_total", endpoint="chat", kind="prompt", **pub) == 6
        assert value("illm_tokens_total", endpoint="chat", kind="completion", **pub) == 4
        assert value("illm_time_to_first_byte_seconds_count", endpoint="chat", **pub) == 2
        assert value("illm_request_duration_seconds_count", endpoint="chat", **pub) == 4
        assert value("illm_requests_in_flight", **pub) == 0
        assert value("illm_request_errors_total", code="upstream_error") == 1
        assert value("illm_request_errors_total", code="model_not_found") == 3
        assert value("illm_backend_up", backend="b", kind="vllm") == 1


async def test_requests_in_flight() -> None:
    async def hold(_: Got, line: Line) -> None:
        await line.closed.wait()

    async with engine(hold) as upstream, gateway(one_backend(upstream.root)) as gate:
        waiting = asyncio.ensure_future(gate.client.post("/v1/chat/completions", json=CHAT))
        await upstream.arrived.wait()
        found = await scrape(gate)
        waiting.cancel()
        await until(lambda: bool(gate.lines()))

        labels = frozenset({"model": "pub", "backend": "b"}.items())
        assert found["illm_requests_in_flight", labels] == 1
        assert (await scrape(gate))["illm_requests_in_flight", labels] == 0
