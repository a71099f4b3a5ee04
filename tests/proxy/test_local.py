"""Zero configuration: what runs on the usual ports is found and forgotten, and the demo engine fills the gap."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.engines import process
from tests.proxy.harness import Engine, Running, engine, gateway, until

QUICK: dict[str, Any] = {
    "discovery": {"local": True, "interval": 0.03},
    "health": {"interval": 0.03, "down_after": 1},
    "demo": False,
}


def port_of(root: str) -> int:
    return int(root.rpartition(":")[2])


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The ports that are looked at: none of this machine's own, but those that a test puts in."""
    ports: dict[int, str] = {}
    monkeypatch.setattr("proxy.local.LOCAL_PORTS", ports)
    return ports


@pytest.fixture
def free_port() -> int:
    return process.free_port()


def names(gate: Running) -> dict[str, str]:
    return {backend.name: backend.settings.root for backend in gate.gateway.registry.backends.values()}


async def test_engines_are_found_before_serving_begins(usual: dict[int, str]) -> None:
    async with engine(models=("a",)) as one, engine(models=("b",)) as two, engine(owned_by="sglang") as three:
        usual |= {port_of(root): "" for root in (one.root, two.root, three.root)}
        async with gateway(QUICK) as gate:
            assert names(gate) == {"vllm": one.root, f"vllm-{port_of(two.root)}": two.root, "sglang": three.root}
            assert (await gate.client.get("/v1/models")).json()["data"][0]["id"] == "a"
            assert all(backend.local for backend in gate.gateway.registry.backends.values())


async def test_an_engine_that_comes_later_appears_and_one_that_goes_disappears(
    usual: dict[int, str], free_port: int
) -> None:
    usual[free_port] = ""
    async with gateway(QUICK) as gate:
        assert names(gate) == {}
        late = Engine()
        await late.listen(free_port)
        await until(lambda: list(names(gate)) == ["vllm"])
        await late.close()
        await until(lambda: names(gate) == {})
        assert (await gate.client.get("/v1/models")).json()["data"] == []


async def test_what_is_configured_is_not_found_twice(usual: dict[int, str]) -> None:
    async with engine() as one:
        usual[port_of(one.root)] = ""
        async with gateway(QUICK | {"backends": {"mine": {"base_url": one.root + "/v1"}}}) as gate:
            assert list(names(gate)) == ["mine"]


async def test_a_configured_engine_that_goes_is_not_forgotten(usual: dict[int, str]) -> None:
    async with engine() as one, gateway(QUICK | {"backends": {"mine": {"base_url": one.root}}}) as gate:
        await one.close()
        await until(lambda: gate.gateway.registry.backends["mine"].state == "down")
        async with engine() as other:
            usual[port_of(other.root)] = ""
            await until(lambda: "vllm" in names(gate))

            assert "mine" in names(gate)


async def test_another_gateway_is_no_engine(usual: dict[int, str]) -> None:
    """Two that found each other would send a request in circles."""
    async with engine() as one, gateway({"backends": {"b": {"base_url": one.root}}}) as other:
        usual[port_of(other.url)] = ""
        async with gateway(QUICK) as gate:
            assert names(gate) == {}


async def test_nobody_looks_where_backends_are_configured(usual: dict[int, str]) -> None:
    async with engine() as one, engine() as two:
        usual[port_of(two.root)] = ""
        settings = {"backends": {"b": {"base_url": one.root}}, "discovery": {}}
        async with gateway(settings) as gate:
            assert list(names(gate)) == ["b"]


# -- the demo engine ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def demo() -> AsyncIterator[Running]:
    async with gateway(QUICK | {"demo": True}) as gate:
        yield gate


async def test_the_demo_engine_answers_where_there_is_none_and_goes_when_there_is(
    usual: dict[int, str], free_port: int
) -> None:
    usual[free_port] = ""
    async with demo() as gate:
        root = names(gate)["demo"]
        await until(lambda: bool(gate.gateway.registry.snapshot.routes))
        reply = await gate.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["message"]["content"]

        real = Engine()
        await real.listen(free_port)
        await until(lambda: list(names(gate)) == ["vllm"])
        await until(lambda: not listens(port_of(root)))
        await real.close()


async def test_the_demo_engine_ends_with_the_gateway(usual: dict[int, str]) -> None:
    async with demo() as gate:
        port = port_of(names(gate)["demo"])
        assert listens(port)

    assert not listens(port)


async def test_no_demo_engine_where_nobody_wants_it(usual: dict[int, str]) -> None:
    async with gateway(QUICK) as gate:
        assert names(gate) == {}
        assert (await gate.client.get("/readyz")).status_code == 503


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
