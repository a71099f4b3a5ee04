"""Changed settings taken over while requests are under way: what changes, what stays, and that nobody notices."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from proxy.reload import fixed
from proxy.server import Reloading
from proxy.settings import Settings, SettingsError, load_settings
from tests.engines.process import free_port
from tests.proxy.harness import PATIENCE, Got, Line, Running, calm, engine, gateway, one_backend, until
from tests.proxy.scripted_launcher import launcher, row

CHAT: dict[str, Any] = {"model": "pub", "messages": []}
PROBED = {"health": {"interval": 0.02}}
CHUNK = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"up","choices":[]}\n\n'


def new(settings: dict[str, Any]) -> Settings:
    return load_settings(None, {}, calm(settings))


class Talker:
    """A handler: plain answers at once, streams that end when they may."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, got: Got, line: Line) -> None:
        if not got.json.get("stream"):
            await line.reply(200, b'{"id":"c","object":"chat.completion","created":1,"model":"up","choices":[]}')
            return
        await line.head(headers={"content-type": "text/event-stream"})
        await line.chunk(CHUNK)
        await self.go.wait()
        await line.chunk(CHUNK + b"data: [DONE]\n\n")
        await line.end()


@pytest.fixture
def answer() -> Talker:
    return Talker()


@contextlib.asynccontextmanager
async def streaming(gate: Running) -> AsyncIterator[Any]:
    """A stream that has begun."""
    async with gate.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        pieces = reply.aiter_text()
        assert "chunk" in await anext(pieces)
        yield pieces


async def plain(gate: Running, **more: Any) -> httpx.Response:
    return await gate.client.post("/v1/chat/completions", json=CHAT | more)


# -- requests under way ------------------------------------------------------------------------------------------


async def test_a_stream_goes_on_where_it_began_and_new_requests_go_where_they_lead_now(answer: Talker) -> None:
    async with engine(answer) as old, engine(answer) as fresh, gateway(one_backend(old.root)) as gate:
        async with streaming(gate) as pieces:
            await gate.gateway.reload(new(one_backend(fresh.root)))
            assert (await plain(gate)).status_code == 200
            assert (len(old.got), len(fresh.got)) == (1, 1)
            answer.go.set()
            assert (await anext(pieces)).endswith("data: [DONE]\n\n")
        assert await gate.logged(2)
        assert [line["status"] for line in gate.lines()] == [200, 200]


async def test_a_backend_that_stays_keeps_all_that_is_known_of_it(answer: Talker) -> None:
    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as gate:
        backend = gate.gateway.registry.backends["b"]
        async with streaming(gate) as pieces:
            backend.breaker.strike(1.0)
            settings = one_backend(upstream.root + "/v1", api_key="sk", options={"seed": 7})
            await gate.gateway.reload(new(settings))

            assert gate.gateway.registry.backends["b"] is backend
            assert (backend.in_flight, backend.state, backend.breaker._strikes) == (1, "ready", [1.0])
            answer.go.set()
            assert (await anext(pieces)).endswith("data: [DONE]\n\n")
        await plain(gate)

        assert upstream.got[1].headers["authorization"] == "Bearer sk", "with the new key"
        assert upstream.got[1].json["seed"] == 7


async def test_a_backend_that_goes_lets_its_requests_end(answer: Talker) -> None:
    async with (
        engine(answer) as upstream,
        engine() as clock,
        gateway(one_backend(upstream.root) | PROBED) as gate,
    ):
        rest = PROBED | {"backends": {"clock": {"base_url": clock.root, "kind": "vllm"}}}
        async with streaming(gate) as pieces:
            await gate.gateway.reload(new(rest))
            registry = gate.gateway.registry
            assert (list(registry.backends), len(registry.retired)) == (["clock"], 1)
            assert (await plain(gate)).status_code == 404
            answer.go.set()
            assert (await anext(pieces)).endswith("data: [DONE]\n\n")
        before, then = upstream.looks, clock.looks
        await until(lambda: clock.looks >= then + 10)
        await gate.gateway.reload(new(rest))

        assert registry.retired == []
        assert upstream.looks == before, "nobody asks it any more"


async def test_a_new_backends_models_are_there_with_it(answer: Talker) -> None:
    """No request falls between the old routes and the first probe of the new backend."""
    async with engine(answer, models=("m",)) as old, engine(answer, models=("m", "n")) as fresh:
        backends = {"b": {"base_url": old.root}}
        async with gateway({"backends": backends}) as gate:
            asking = asyncio.ensure_future(gate.gateway.reload(new({"backends": {"b": {"base_url": fresh.root}}})))
            statuses = []
            while not asking.done():
                statuses.append((await plain(gate, model="m")).status_code)
            statuses.append((await plain(gate, model="n")).status_code)

            assert set(statuses) == {200}
            listed = (await gate.client.get("/v1/models")).json()["data"]
            assert sorted(one["id"] for one in listed) == ["m", "n"]
            assert sorted(one["id"] for one in (await gate.client.get("/models")).json()["data"]) == ["m", "n"]


async def test_a_new_backend_that_does_not_answer_holds_nothing_up(
    answer: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer.go.wait()
        writer.close()

    monkeypatch.setattr("proxy.reload.PATIENCE", 0.1)
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    root = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with gateway({}) as gate:
            await asyncio.wait_for(gate.gateway.reload(new({"backends": {"b": {"base_url": root}}})), PATIENCE)
            assert gate.gateway.registry.backends["b"].state == "unknown"
    finally:
        answer.go.set()
        server.close()


async def test_what_requests_leave_out(answer: Talker) -> None:
    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as gate:
        await gate.gateway.reload(new(one_backend(upstream.root) | {"defaults": {"top_p": 0.5}, "model": "pub"}))
        reply = await gate.client.post("/v1/chat/completions", json={"messages": []})

        assert reply.status_code == 200
        assert upstream.got[0].json["top_p"] == 0.5


async def test_probes_have_the_new_interval() -> None:
    slow = one_backend("http://127.0.0.1:9") | {"health": {"interval": 0.02, "down_after": 1000}}
    async with gateway(slow) as gate:
        backend = gate.gateway.registry.backends["b"]
        backend.state = "ready"
        await gate.gateway.reload(new(slow | {"health": {"interval": 0.02, "down_after": 2}}))

        await until(lambda: backend.state == "down")


# -- launchers ---------------------------------------------------------------------------------------------------


async def test_launchers_read_their_settings_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with launcher(tmp_path) as there, gateway({}, launchers=[there.address]) as gate:
        with caplog.at_level(logging.INFO, "illm"):
            await gate.gateway.reload(new({}))

        assert there.asked.count("POST /reload") == 1
        assert "launcher 'here' has read its settings: start a" in caplog.text


async def test_a_launcher_that_refuses_holds_nothing_up(
    answer: Talker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(answer) as upstream, launcher(tmp_path) as there:
        async with gateway({}, launchers=[there.address]) as gate:
            await there.leave()
            await gate.gateway.reload(new(one_backend(upstream.root)))

            assert (await plain(gate)).status_code == 200
            assert "launcher 'here' goes on as it was: Launcher 'here' at" in caplog.text
        await there.listen()


async def test_an_engine_gives_way_to_a_backend_of_its_name(answer: Talker, tmp_path: Path) -> None:
    async with (
        engine(answer, models=("m",)) as upstream,
        launcher(tmp_path, row("b", model="e")) as there,
        gateway({}, launchers=[there.address]) as gate,
    ):
        assert list(gate.gateway.registry.backends) == ["b"]
        await gate.gateway.reload(new({"backends": {"b": {"base_url": upstream.root}}}))
        backends = gate.gateway.registry.backends

        assert list(backends) == ["b", "b@here"]
        assert (backends["b"].state, backends["b@here"].state) == ("ready", "launchable")
        assert sorted(gate.gateway.registry.snapshot.routes) == ["e", "m"]
        there.tell("b", "starting", model="e")
        await until(lambda: backends["b@here"].state == "loading")
        assert backends["b"].state == "ready"


# -- what can't be changed, and what is wrong --------------------------------------------------------------------


def test_what_waits_for_the_next_start() -> None:
    old = new({"server": {"port": 8000}})
    changed = new({"server": {"port": 8001}, "upstream": {"idle_timeout": 5}, "defaults": {"top_p": 0.1}})

    assert fixed(old, new({"server": {"port": 8000}, "models": {"a": {}}})) == []
    assert fixed(old, changed) == [
        "server: the change takes effect at the next start",
        "upstream: the change takes effect at the next start",
    ]
    assert fixed(old, new({"server": {"port": 8000}, "discovery": {"local": True, "interval": 9}})) == [
        "discovery.local: the change takes effect at the next start"
    ]


async def test_wrong_settings_change_nothing(answer: Talker, caplog: pytest.LogCaptureFixture) -> None:
    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as gate:
        before = gate.gateway.registry.snapshot

        def wrong() -> Settings:
            raise SettingsError("illm.yaml:3: backends.b.base_url: not a valid URL")

        reloading = Reloading(gate.gateway, wrong)
        reloading()
        await until(lambda: "nothing changes" in caplog.text)

        assert "illm.yaml:3" in caplog.text
        assert gate.gateway.registry.snapshot is before
        assert (await plain(gate)).status_code == 200


async def test_signals_while_the_first_is_at_work_have_it_read_once_more() -> None:
    async with gateway({}) as gate:
        read: list[int] = []
        release = threading.Event()

        def settings() -> Settings:
            read.append(1)
            release.wait(PATIENCE)
            return new({})

        reloading = Reloading(gate.gateway, settings)
        reloading()
        await until(lambda: bool(read))
        for _ in range(5):
            reloading()
        release.set()
        assert reloading._task is not None
        await reloading._task

        assert len(read) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
async def test_sighup(answer: Talker, tmp_path: Path) -> None:
    """A whole process, its file and a signal, while it streams."""
    file = tmp_path / "illm.yaml"
    script = (
        "import logging, pathlib, sys; from proxy.server import serve; from proxy.settings import load_settings;"
        "logging.basicConfig(level=logging.INFO, stream=sys.stderr);"
        "read = lambda: load_settings(pathlib.Path(sys.argv[1]), {}); serve(read(), reload=read)"
    )

    def write(settings: dict[str, Any]) -> None:
        common = {"server": {"port": port, "drain_timeout": 1}, "discovery": {"local": False}}
        file.write_text(yaml.safe_dump(common | settings), encoding="utf-8")

    async with engine(answer) as old, engine(answer, models=("other",)) as fresh:
        port = free_port()
        write(one_backend(old.root))
        root = Path(__file__).parents[2]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(file), cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        said: list[str] = []

        async def listen() -> None:
            assert process.stderr is not None
            while line := await process.stderr.readline():
                said.append(line.decode())

        listening = asyncio.ensure_future(listen())
        try:
            await until(lambda: any("is listening" in line for line in said))
            async with (
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client,
                client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply,
            ):
                pieces = reply.aiter_text()
                await anext(pieces)
                write({"backends": "wrong"})
                process.send_signal(signal.SIGHUP)
                await until(lambda: any("nothing changes" in line for line in said))
                write({"backends": {"x": {"base_url": fresh.root}}})
                process.send_signal(signal.SIGHUP)
                await until(lambda: any("read anew: 'x'" in line for line in said))
                async with asyncio.timeout(PATIENCE):  # on a busy machine it is known a moment later
                    while [one["id"] for one in (await client.get("/v1/models")).json()["data"]] != ["other"]:
                        await asyncio.sleep(0.01)
                answer.go.set()
                assert (await anext(pieces)).endswith("data: [DONE]\n\n")
        finally:
            process.terminate()
            await process.wait()
            await listening
