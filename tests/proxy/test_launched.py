"""Engines that a launcher runs, through the gateway: cold starts, leases, what is told of them, and what goes wrong.

The launcher is scripted, on a unix socket; the engines are the harness's, on real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy import gate as gate_module
from proxy.engine_rows import Row, Unreachable, reachable
from proxy.launcher_client import Address
from tests.proxy.harness import PATIENCE, Got, Line, Running, engine, gateway, sse, until
from tests.proxy.scripted_launcher import Launcher, Stream, launcher, row

CHAT = {"model": "coder", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
HASTY = {"server": {"keep_alive_interval": 0.03}, "health": {"interval": 0.1}}
REPLY = b'{"id":"c","object":"chat.completion","created":1,"model":"coder","choices":[]}'
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"coder","choices":[]}\n\n'


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease goes back by the clock, nor is a launcher late with its news, but where a test is about that."""
    monkeypatch.setattr(gate_module, "LEASE_IDLE", PATIENCE)
    monkeypatch.setattr(gate_module, "DOUBT", PATIENCE)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, a lease that isn't used goes back at once."""
    return lambda: monkeypatch.setattr(gate_module, "LEASE_IDLE", 0.01)


async def answer(got: Got, line: Line) -> None:
    if got.json.get("stream"):
        await line.head(headers={"content-type": "text/event-stream"})
        await line.chunk(CHUNK + b"data: [DONE]\n\n")
        await line.end()
    else:
        await line.reply(200, REPLY)


class Held:
    """A handler that begins a stream, and ends it when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, got: Got, line: Line) -> None:
        await line.head(headers={"content-type": "text/event-stream"})
        await line.chunk(CHUNK)
        await self.go.wait()
        await line.chunk(b"data: [DONE]\n\n")
        await line.end()


def serving(there: Launcher, root: Callable[[], str], **more: Any) -> None:
    """From now on every lease is granted at once."""

    def ready(lease: Stream) -> None:
        there.ready(lease, root(), **more)

    there.answer = ready


def ask(gate: Running, body: dict[str, Any] = CHAT) -> asyncio.Task[httpx.Response]:
    return asyncio.ensure_future(gate.client.post("/v1/chat/completions", json=body))


@contextlib.asynccontextmanager
async def streamed(gate: Running, body: dict[str, Any] = STREAM) -> AsyncIterator[tuple[httpx.Response, Any]]:
    """A stream that has begun; its pieces are read by hand."""
    async with gate.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        yield reply, reply.aiter_text()


async def begun(pieces: Any) -> None:
    """Until the engine's first words, behind all comments."""
    text = ""
    while CHUNK.decode() not in text:
        text += await anext(pieces)


async def entries(gate: Running) -> dict[str, Any]:
    return {one["id"]: one for one in (await gate.client.get("/v1/models")).json()["data"]}


def state(gate: Running, name: str = "coder") -> str:
    backends = gate.gateway.registry.backends
    return backends[name].state if name in backends else "not there"


# -- cold starts -------------------------------------------------------------------------------------------------


async def test_a_stream_that_waits_for_a_cold_model_hears_how_far_it_is(tmp_path: Path) -> None:
    async with (
        engine(answer, models=("coder",)) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (reply, pieces),
    ):
        assert (await anext(pieces)).startswith(": waiting for 'coder'\n\n")
        lease = await there.lease()
        lease.say("phase", state="starting", phase="loading\nweights", progress=0.43)
        told = ""
        while "weights" not in told:
            told = await anext(pieces)
        assert ": starting 'coder': loading weights 43 %\n\n" in told
        there.ready(lease, upstream.root)
        rest = "".join([piece async for piece in pieces])

        assert reply.status_code == 200
        assert sse(rest)[-1] == "[DONE]"
        assert upstream.got[0].path == "/v1/chat/completions"


async def test_comments_are_the_usual_ones_when_the_engine_has_the_request(tmp_path: Path) -> None:
    held = Held()
    async with (
        engine(held) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        await anext(pieces)
        there.ready(await there.lease(), upstream.root)
        await begun(pieces)
        assert set((await anext(pieces)).split("\n\n")) == {": keep-alive", ""}
        held.go.set()
        assert "[DONE]" in "".join([piece async for piece in pieces])


async def test_many_requests_for_one_cold_model_are_one_start(tmp_path: Path) -> None:
    async with (
        engine(answer) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
    ):
        asking = [ask(gate, STREAM if i % 2 else CHAT) for i in range(20)]
        lease = await there.lease()
        backend = gate.gateway.registry.backends["coder"]
        await until(lambda: len(backend.gate._waiters) == 20)  # type: ignore[union-attr]
        there.ready(lease, upstream.root)
        replies = await asyncio.gather(*asking)

        assert [reply.status_code for reply in replies] == [200] * 20
        assert (len(there.leases), len(upstream.got)) == (1, 20)


async def test_who_gives_up_ends_the_waiting_when_it_is_the_last(tmp_path: Path) -> None:
    async with launcher(tmp_path, row()) as there, gateway(HASTY, launchers=[there.address]) as gate:
        first, second = ask(gate), ask(gate, STREAM)
        lease = await there.lease()
        await until(lambda: len(gate.gateway.registry.backends["coder"].gate._waiters) == 2)  # type: ignore[union-attr]
        first.cancel()
        await gate.logged(1)
        assert not lease.closed.is_set(), "another one waits"
        second.cancel()
        await asyncio.wait_for(lease.closed.wait(), PATIENCE)

        assert [line["status"] for line in await gate.logged(2)] == [499, 499]
        assert len(there.leases) == 1


async def test_a_plain_request_waits_for_so_long(tmp_path: Path) -> None:
    settings = HASTY | {"launcher": {"wait": 0.2}}
    async with launcher(tmp_path, row()) as there, gateway(settings, launchers=[there.address]) as gate:
        async with streamed(gate) as (_, pieces):  # it waits longer, and tells when the news is there
            lease = await there.lease()
            lease.say("phase", state="starting", phase="warming up", progress=None)
            while "warming up" not in await anext(pieces):
                pass
            reply = await ask(gate)

        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        error = reply.json()["error"]
        assert (error["code"], error["type"]) == ("model_loading", "server_error")
        assert error["message"] == (
            "The model isn't there after 0.2 s (starting 'coder': warming up). Try again in a moment."
        )
        await asyncio.wait_for(lease.closed.wait(), PATIENCE)


async def test_a_stream_waits_longer(tmp_path: Path) -> None:
    settings = HASTY | {"launcher": {"wait": 0.05}}
    async with (
        engine(answer) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(settings, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        for _ in range(5):
            assert (await anext(pieces)).startswith(": ")
        there.ready(await there.lease(), upstream.root)

        assert "[DONE]" in "".join([piece async for piece in pieces])


FAILURES = {
    "engine_failed": (502, "false", None),
    "engine_missing": (502, "false", None),
    "engine_memory": (503, None, "5"),
    "engine_stopped": (503, None, "5"),
    "engine_of_a_newer_launcher": (502, "false", None),
}


@pytest.mark.parametrize(("code", "expected"), FAILURES.items(), ids=FAILURES)
async def test_a_start_that_fails(code: str, expected: tuple[int, str | None, str | None], tmp_path: Path) -> None:
    async with launcher(tmp_path, row()) as there, gateway({}, launchers=[there.address]) as gate:
        there.answer = lambda lease: lease.say("failed", code=code, message="No.\nThe log ends:\n  boom")
        replies = await asyncio.gather(ask(gate), ask(gate))

        for reply in replies:
            error = reply.json()["error"]
            shown = (reply.status_code, reply.headers.get("x-should-retry"), reply.headers.get("retry-after"))
            assert shown == expected
            assert (error["type"], error["message"]) == ("RemoteEndpointError", "No.\nThe log ends:\n  boom")
            assert error["code"] == (code if code in ("engine_missing", "engine_memory", "engine_stopped")
                                     else "engine_failed")  # fmt: skip
        assert there.held == []


async def test_a_start_that_fails_in_a_stream_that_has_begun(tmp_path: Path) -> None:
    async with (
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        await anext(pieces)
        (await there.lease()).say("failed", code="engine_failed", message="boom")
        error, done = sse("".join([piece async for piece in pieces]))

        assert json.loads(error)["error"]["code"] == "engine_failed"
        assert done == "[DONE]"


async def test_another_replica_where_one_cannot_start(tmp_path: Path) -> None:
    settings = {
        "backends": {"far": {"kind": "vllm", "base_url": "http://127.0.0.1:9"}},
        "models": {"coder": {"replicas": ["far", "here-coder"]}},
        "engines": {"here-coder": {"kind": "vllm", "model": "coder"}},
    }
    async with (
        engine(answer, models=("coder",)) as upstream,
        launcher(tmp_path, row("here-coder", model="coder")) as there,
    ):
        settings["backends"]["far"]["base_url"] = upstream.root
        there.answer = lambda lease: lease.say("failed", code="engine_memory", message="It doesn't fit.")
        async with gateway(settings, launchers=[there.address]) as gate:
            far = gate.gateway.registry.backends["far"]
            far.state = "down"  # as the last probe had it; so the cold one is preferred
            reply = await ask(gate)

            assert reply.status_code == 200
            assert len(there.leases) == 1


@pytest.mark.parametrize(("kind", "path", "status"), [("tgi", "embeddings", 422), ("infinity", "audio/speech", 422)])
async def test_no_engine_is_started_for_what_its_kind_cannot_do(
    kind: str, path: str, status: int, tmp_path: Path
) -> None:
    async with launcher(tmp_path, row(kind=kind)) as there, gateway({}, launchers=[there.address]) as gate:
        reply = await gate.client.post(f"/v1/{path}", json={"model": "coder", "input": "x"})

        assert (reply.status_code, reply.json()["error"]["type"]) == (status, "CapabilityNotSupported")
        assert there.leases == []


# -- leases ------------------------------------------------------------------------------------------------------


async def test_one_lease_for_requests_in_a_row_and_none_when_idle(tmp_path: Path, soon: Callable[[], None]) -> None:
    async with (
        engine(answer) as upstream,
        launcher(tmp_path, row()) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root)
        backend = gate.gateway.registry.backends["coder"]
        for _ in range(5):
            assert (await ask(gate)).status_code == 200
        assert len(there.leases) == 1
        soon()
        backend.gate._wake()  # type: ignore[union-attr]  # as its timer will
        await asyncio.wait_for(there.leases[0].closed.wait(), PATIENCE)
        assert (await ask(gate)).status_code == 200
        assert len(there.leases) == 2


async def test_a_lease_is_held_as_long_as_a_request_is_under_way(tmp_path: Path, soon: Callable[[], None]) -> None:
    held = Held()
    soon()
    async with (
        engine(held) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        there.ready(await there.lease(), upstream.root)
        await begun(pieces)
        for _ in range(4):  # comments, each of which takes longer than an unused lease has
            await anext(pieces)
        assert not there.leases[0].closed.is_set()
        held.go.set()
        assert "[DONE]" in "".join([piece async for piece in pieces])
        await asyncio.wait_for(there.leases[0].closed.wait(), PATIENCE)


async def test_a_lease_that_is_asked_back_is_given_back_when_what_is_under_way_has_ended(tmp_path: Path) -> None:
    held = Held()
    async with (
        engine(held) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        first = await there.lease()
        there.ready(first, upstream.root)
        await begun(pieces)
        first.say("yield", reason="'other' needs the memory")
        backend = gate.gateway.registry.backends["coder"]
        await until(lambda: not backend.gate.open)  # type: ignore[union-attr]
        upstream.handler = answer
        late = ask(gate)
        await until(lambda: bool(backend.gate._waiters))  # type: ignore[union-attr]

        assert (len(there.leases), first.closed.is_set()) == (1, False), "nobody is cut, nobody is let in"
        order: list[str] = []
        there.answer = lambda lease: order.append("closed" if first.closed.is_set() else "open")
        held.go.set()
        assert "[DONE]" in "".join([piece async for piece in pieces])
        second = await there.lease(2)
        assert order == ["closed"], "the new lease is asked for when the old one is back"
        there.ready(second, upstream.root)
        assert (await late).status_code == 200


async def test_a_lease_that_nobody_uses_is_given_back_at_once(tmp_path: Path) -> None:
    async with (
        engine(answer) as upstream,
        launcher(tmp_path, row()) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root)
        await ask(gate)
        assert there.held == there.leases
        there.leases[0].say("yield", reason="memory")
        await asyncio.wait_for(there.leases[0].closed.wait(), PATIENCE)
        assert (await ask(gate)).status_code == 200
        assert len(there.leases) == 2


async def test_an_engine_that_is_gone_is_asked_for_anew_and_found_elsewhere(tmp_path: Path) -> None:
    async with (
        engine(answer) as first,
        engine(answer) as second,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: first.root, pid=1)
        assert (await ask(gate)).status_code == 200
        there.answer = None
        there.tell("coder", "backoff", error="it crashed")
        there.leases[0].say("gone", reason="it crashed")
        there.leases[0].end()
        await until(lambda: state(gate) == "loading")
        asking = ask(gate)
        there.ready(await there.lease(2), second.root, pid=2)

        assert (await asking).status_code == 200
        assert (len(first.got), len(second.got)) == (1, 1)
        await until(lambda: state(gate) == "ready")


async def test_an_engine_that_dies_this_moment_costs_no_request(tmp_path: Path) -> None:
    """The gateway finds nobody at its address before the launcher has told."""

    async def last(_: Got, line: Line) -> None:
        await line.reply(200, REPLY, connection="close")

    async with (
        engine(last) as first,
        engine(answer) as second,
        launcher(tmp_path, row()) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: first.root, pid=1)
        assert (await ask(gate)).status_code == 200
        there.answer = None
        await first.close()
        asking = ask(gate)
        backend = gate.gateway.registry.backends["coder"]
        await until(lambda: bool(backend.breaker._strikes))
        there.leases[0].say("gone", reason="killed by signal 9")
        there.leases[0].end()
        there.ready(await there.lease(2), second.root, pid=2)
        reply = await asking

        assert reply.status_code == 200
        assert len(second.got) == 1


async def test_an_engine_that_nobody_can_reach_although_it_is_ready(tmp_path: Path, soon: Callable[[], None]) -> None:
    soon()
    async with (
        engine(answer) as upstream,
        launcher(tmp_path, row()) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root)
        await upstream.close()
        reply = await ask(gate)

        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "backend_unavailable")
        assert len(there.leases) == 2, "asked for once more, and no oftener"


async def test_a_removed_engine_lets_what_is_under_way_end(tmp_path: Path, soon: Callable[[], None]) -> None:
    held = Held()
    soon()
    async with (
        engine(held) as upstream,
        launcher(tmp_path, row()) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        there.ready(await there.lease(), upstream.root)
        await begun(pieces)
        there.forget("coder")
        await until(lambda: state(gate) == "not there")
        assert (await ask(gate)).json()["error"]["code"] == "model_not_found"
        assert there.held
        held.go.set()
        assert "[DONE]" in "".join([piece async for piece in pieces])
        await until(lambda: not there.held)


# -- a launcher that is away -------------------------------------------------------------------------------------


async def test_a_launcher_that_is_away_takes_no_ready_engine_with_it(tmp_path: Path) -> None:
    held = Held()
    async with (
        engine(held, models=("coder",)) as upstream,
        launcher(tmp_path, row(), row("cold")) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
        streamed(gate) as (_, pieces),
    ):
        there.ready(await there.lease(), upstream.root, pid=7)
        await begun(pieces)
        await there.leave()
        await until(lambda: state(gate, "cold") == "down")
        upstream.handler = answer

        assert state(gate) == "ready"
        assert (await ask(gate)).status_code == 200
        reply = await ask(gate, CHAT | {"model": "cold"})
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (503, "launcher_unavailable")
        assert error["message"].startswith(f"Launcher 'here' at {there.path} can't be reached.")
        assert (await gate.client.get("/healthz")).json()["launchers"][0]["state"] == "down"

        leases = len(there.leases)
        await there.listen()
        await until(lambda: state(gate, "cold") == "launchable")
        renewed = await there.lease(leases + 1)
        assert renewed.name == "coder", "what went on without a lease has one again"
        there.ready(renewed, upstream.root, pid=7)
        held.go.set()
        assert "[DONE]" in "".join([piece async for piece in pieces])


async def test_a_gateway_that_starts_before_its_launcher(tmp_path: Path) -> None:
    there = Launcher(tmp_path / "launcher.sock", {"coder": row()})
    async with engine(answer) as upstream, gateway({}, launchers=[there.address]) as gate:
        early = (await ask(gate)).json()["error"]
        assert early["code"] == "launcher_unavailable"
        assert "can't be reached" in early["message"]
        serving(there, lambda: upstream.root)
        await there.listen()
        try:
            await until(lambda: state(gate) == "launchable")
            assert (await ask(gate)).status_code == 200
        finally:
            await there.leave()


async def test_a_launcher_that_ends_while_somebody_waits(tmp_path: Path) -> None:
    async with launcher(tmp_path, row()) as there, gateway({}, launchers=[there.address]) as gate:
        asking = ask(gate)
        await there.lease()
        there.cut()
        error = (await asking).json()["error"]

        assert error["code"] == "launcher_unavailable"
        assert "broke off" in error["message"]


async def test_nonsense_from_a_launcher_ends_nothing(tmp_path: Path) -> None:
    odd: list[Any] = [{"name": 5}, "x", None, row("coder", "dancing"), row("fine")]
    async with launcher(tmp_path) as there, gateway({}, launchers=[there.address]) as gate:
        there.followers[0].say("engines", engines=odd)
        there.followers[0].say("something new", a=1)
        await until(lambda: state(gate, "fine") == "launchable")

        assert state(gate) == "down"


# -- who the engine is -------------------------------------------------------------------------------------------


async def test_a_command_is_recognised_before_anything_is_sent(tmp_path: Path) -> None:
    """Infinity has no /v1 before its paths: the request must wait for the probe that finds it out."""

    async def embed(got: Got, line: Line) -> None:
        body = {"object": "list", "data": [], "model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        await line.reply(200, json.dumps(body).encode())

    async with (
        engine(embed, models=("e",), owned_by="infinity") as upstream,
        launcher(tmp_path, row("e", kind="command")) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root, kind="command")
        reply = await gate.client.post("/v1/embeddings", json={"model": "e", "input": "x"})

        assert reply.status_code == 200
        assert upstream.got[0].path == "/embeddings"


async def test_its_key_and_its_own_name_for_the_model(tmp_path: Path) -> None:
    async with (
        engine(answer, models=("org/model",)) as upstream,
        launcher(tmp_path, row(upstream="org/model")) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root, upstream="org/model", api_key="sk-engine")
        assert (await ask(gate)).json()["model"] == "coder"

        assert upstream.got[0].headers["authorization"] == "Bearer sk-engine"
        assert upstream.got[0].json["model"] == "org/model"


@pytest.mark.parametrize(("listed", "sent"), [(("own",), "own"), (("own", "coder"), "coder"), (("a", "b"), "coder")])
async def test_the_name_of_the_only_model_that_it_lists(listed: tuple[str, ...], sent: str, tmp_path: Path) -> None:
    """Known only after the start for which the request was waiting already."""
    async with (
        engine(answer, models=listed) as upstream,
        launcher(tmp_path, row(upstream="coder")) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root, upstream="coder")
        assert (await ask(gate)).status_code == 200

        assert upstream.got[0].json["model"] == sent


async def test_an_engine_as_a_replica_before_and_after_its_launcher_tells_of_it(tmp_path: Path) -> None:
    settings = {
        "engines": {"coder": {"kind": "vllm", "model": "up"}},
        "models": {"pub": {"aliases": ["gpt-4o"], "replicas": ["coder"]}},
    }
    async with (
        engine(answer, models=("up",)) as upstream,
        launcher(tmp_path) as there,
        gateway(settings, launchers=[there.address]) as gate,
    ):
        assert (await entries(gate))["pub"]["state"] == "down"
        early = await ask(gate, CHAT | {"model": "gpt-4o"})
        assert early.status_code == 404
        serving(there, lambda: upstream.root, model="up")
        there.tell("coder", "stopped", model="up")
        await until(lambda: state(gate) == "launchable")
        reply = await ask(gate, CHAT | {"model": "gpt-4o"})

        assert reply.status_code == 200
        assert upstream.got[0].json["model"] == "up"


async def test_two_launchers_with_engines_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        engine(answer) as upstream,
        launcher(tmp_path / "a", row()) as first,
        launcher(tmp_path / "b", row()) as second,
    ):
        addresses = [Address("a", first.address.url), Address("b", second.address.url)]
        async with gateway({}, launchers=addresses) as gate:
            backends = gate.gateway.registry.backends
            assert [one.name for one in backends.values()] in (["coder", "coder@b"], ["coder", "coder@a"])
            assert set((await entries(gate))["coder"]["backends"]) == set(backends)
            for there in (first, second):
                serving(there, lambda: upstream.root)
            assert (await ask(gate)).status_code == 200


FAR, HERE, TUNNEL = (
    Address("gpu", "http://10.0.0.9:7000"),
    Address("here", "unix:/run/x.sock"),
    Address("t", "http://127.0.0.1:7"),
)
ADDRESSES = {
    "a network address": ("http://10.0.0.9:41000", FAR, "http://10.0.0.9:41000"),
    "every address, elsewhere": ("http://0.0.0.0:41000", FAR, "http://10.0.0.9:41000"),
    "every address, here": ("http://0.0.0.0:41000", HERE, "http://127.0.0.1:41000"),
    "every address, version 6": ("http://[::]:41000", Address("g", "http://[fd00::9]:1"), "http://[fd00::9]:41000"),
    "loopback, here": ("http://127.0.0.1:41000", HERE, "http://127.0.0.1:41000"),
    "loopback, through a tunnel": ("http://localhost:41000", TUNNEL, "http://localhost:41000"),
    "a path": ("http://0.0.0.0:1/llm", FAR, "http://10.0.0.9:1/llm"),
}


@pytest.mark.parametrize(("told", "where", "expected"), ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_as_it_is_seen_from_here(told: str, where: Address, expected: str) -> None:
    assert reachable(Row("e", "m", "ready", base_url=told), where) == expected


def test_loopback_of_another_machine() -> None:
    with pytest.raises(Unreachable, match=r"Set launcher\.bind on '10\.0\.0\.9'"):
        reachable(Row("e", "m", "ready", base_url="http://127.0.0.1:41000"), FAR)


@pytest.mark.parametrize("told", [None, "", "nonsense", "http://[", "http://x:port"])
def test_an_address_that_is_none(told: str | None) -> None:
    with pytest.raises(Unreachable, match="no address"):
        reachable(Row("e", "m", "ready", base_url=told), FAR)


async def test_an_engine_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    async with launcher(tmp_path, row()) as there, gateway({}, launchers=[there.address]) as gate:
        serving(there, lambda: "nonsense")
        error = (await ask(gate)).json()["error"]

        assert (error["code"], error["message"]) == (
            "launcher_unavailable", "Launcher 'here' tells no address of engine 'coder'.",
        )  # fmt: skip
        assert state(gate) == "down"


# -- what is told of them ----------------------------------------------------------------------------------------

STATES = {
    "stopped": ("launchable", 200),
    "starting": ("loading", 200),
    "stopping": ("loading", 200),
    "backoff": ("loading", 200),
    "fatal": ("down", 503),
}


@pytest.mark.parametrize(("told", "expected"), STATES.items(), ids=STATES)
async def test_states(told: str, expected: tuple[str, int], tmp_path: Path) -> None:
    shown = row("coder", told, phase="loading weights", progress=0.5, error="boom " * 500)
    async with launcher(tmp_path, shown) as there, gateway({}, launchers=[there.address]) as gate:
        entry = (await entries(gate))["coder"]
        health = (await gate.client.get("/healthz")).json()
        (backend,) = health["backends"]

        engine_state = {"name": "coder", "state": told, "phase": "loading weights", "progress": 0.5}
        assert (entry["state"], entry["engine"]) == (expected[0], engine_state)
        assert (backend["state"], backend["engine"]) == (expected[0], engine_state | {"launcher": "here"})
        assert (await gate.client.get("/readyz")).status_code == expected[1]
        assert len(backend["detail"]) < 500
        assert health["launchers"] == [{"name": "here", "state": "ready", "detail": ""}]
        assert health["status"] == ("ok" if expected[1] == 200 else "no backend is ready")
        metrics = (await gate.client.get("/metrics")).text
        assert f'illm_engine_state{{backend="coder",kind="vllm",launcher="here",state="{told}"}} 1' in metrics
        assert f'illm_backend_state{{backend="coder",kind="vllm",state="{expected[0]}"}} 1' in metrics


async def test_a_ready_engine_is_there_when_serving_begins(tmp_path: Path) -> None:
    async with (
        engine(answer, models=("coder",)) as upstream,
        launcher(tmp_path, row("coder", "ready", base_url=upstream.root)) as there,
        gateway(HASTY, launchers=[there.address]) as gate,
    ):
        assert state(gate) == "ready"
        assert (await entries(gate))["coder"]["created"] == 5, "as the engine lists it"
        await upstream.close()
        await until(lambda: state(gate) == "down")
        assert "refused" in gate.gateway.registry.backends["coder"].detail, (
            "probes judge it, whatever its launcher says"
        )


async def test_a_stopped_engine_is_not_asked(tmp_path: Path) -> None:
    async with (
        engine(answer, models=("coder",)) as upstream,
        engine() as clock,
        launcher(tmp_path, row("coder", "ready", base_url=upstream.root)) as there,
        gateway(
            HASTY | {"backends": {"clock": {"base_url": clock.root, "kind": "vllm"}}}, launchers=[there.address]
        ) as gate,
    ):
        there.tell("coder", "stopped")
        await until(lambda: state(gate) == "launchable")
        before, then = upstream.looks, clock.looks
        await until(lambda: clock.looks >= then + 6)

        assert upstream.looks == before
        assert state(gate) == "launchable"


async def test_no_lease_is_left_when_the_gateway_ends(tmp_path: Path) -> None:
    async with engine(answer) as upstream, launcher(tmp_path, row()) as there:
        serving(there, lambda: upstream.root)
        async with gateway({}, launchers=[there.address]) as gate:
            await ask(gate)
            assert there.held
        await until(lambda: not there.held and all(one.closed.is_set() for one in there.followers))


async def test_what_it_costs_while_the_lease_is_held(tmp_path: Path) -> None:
    """No question to the launcher for each request."""
    async with (
        engine(answer) as upstream,
        launcher(tmp_path, row()) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        serving(there, lambda: upstream.root)
        await ask(gate)
        before = len(there.asked)
        await asyncio.gather(*(ask(gate) for _ in range(30)))

        assert len(there.asked) == before
