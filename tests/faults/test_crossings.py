"""What must not cross from one answer, name or program to another: trailers, a client's names in labels and logs, a
backend that is this very gateway, an engine in another's place, bodies and heads made to exhaust.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import httpx
import pytest
import uvicorn

import proxy.connection
import proxy.local
from proxy.app import create_app
from proxy.client_connection import ClientConnection
from proxy.engine_answers import message, openai_models
from proxy.settings import load_settings
from tests.faults.support import (
    CHAT,
    CHAT_PATH,
    DONE,
    PATHS,
    REPLY,
    SSE,
    STREAM,
    Got,
    Line,
    backend,
    client,
    errors,
    event,
    ok,
    scene,
)  # fmt: skip
from tests.proxy.harness import PATIENCE, Engine, Server, engine, gateway, one_backend, sse, until


async def test_trailers_do_not_reach_the_next_answer() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "application/json"})
        await line.chunk(REPLY)
        line.writer.write(b"0\r\nx-of-another: secret\r\ncontent-type: text/plain\r\n\r\n")
        await line.writer.drain()

    async with scene(handler) as (_, gate):
        for _ in range(2):
            answer = await gate.client.post(CHAT_PATH, json=CHAT)
            assert answer.status_code == 200
            assert "x-of-another" not in answer.headers


@pytest.mark.interpreted
@pytest.mark.parametrize(("stale", "sent", "status"), [(0.0, 2, 503), (9.0, 3, 200)])
async def test_only_what_breaks_at_once_is_sent_anew(
    monkeypatch: pytest.MonkeyPatch, stale: float, sent: int, status: int
) -> None:
    """An engine that worked on a request before it died must not get it again."""
    monkeypatch.setattr(proxy.connection, "STALE", stale)

    async def handler(_: Got, line: Line) -> None:
        if len(upstream.got) == 2:
            line.drop()
            await line.closed.wait()
        await line.reply(200, REPLY)

    async with scene(handler) as (upstream, gate):
        assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200
        answer = await gate.client.post(CHAT_PATH, json=CHAT)

    assert (len(upstream.got), answer.status_code) == (sent, status)


async def test_a_whole_answer_of_many_lines_is_one_event() -> None:
    said = json.dumps(json.loads(REPLY) | {"choices": [{"index": 0}]}, indent=1).encode()
    go = asyncio.Event()

    async def handler(_: Got, line: Line) -> None:
        await go.wait()
        await line.reply(200, said)

    async with scene(handler, server={"keep_alive_interval": 0.05}) as (_, gate), client(gate.url) as one:
        await one.send(CHAT_PATH, STREAM)
        assert (await one.answer())[0] == 200
        await one.until(b": keep-alive")
        go.set()
        whole, done = sse((await one.rest()).decode())

    assert json.loads(whole)["model"] == "pub"
    assert "\n" not in whole
    assert done == "[DONE]"


async def test_a_stream_s_own_headers_are_said_once() -> None:
    async def handler(_: Got, line: Line) -> None:
        own = {"cache-control": "no-store", "x-accel-buffering": "yes", "connection": "x-hop, keep-alive", "x-hop": "1"}
        await line.head(200, SSE | own)
        await line.chunk(event("a", finish="stop") + DONE)
        await line.end()

    async with scene(handler) as (_, gate):
        answer = await gate.client.post(CHAT_PATH, json=STREAM)

    assert answer.headers.get_list("cache-control") == ["no-cache"]
    assert answer.headers.get_list("x-accel-buffering") == ["no"]
    assert "x-hop" not in answer.headers


async def test_an_encoding_that_nobody_asked_for_is_passed_on_with_its_name() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.reply(200, b"", "audio/wav", content_encoding="gzip")

    async with scene(handler) as (_, gate):
        answer = await gate.client.post("/v1/audio/speech", json={"model": "pub", "input": "x", "voice": "a"})

    assert answer.headers["content-encoding"] == "gzip"


async def test_a_client_s_model_names_are_no_labels() -> None:
    class Listless(Engine):
        async def _about(self, got: Got, line: Line) -> None:
            await line.reply(500 if got.path.endswith("/models") else 200, b"{}")

    upstream = Listless(ok)
    await upstream.listen()
    try:
        async with gateway({"backends": {"t": {"kind": "transformers", "base_url": upstream.root}}}) as gate:
            await until(lambda: backend(gate, "t").state == "ready")
            asked = CHAT | {"model": "made-up", "framework": "transformers", "logprobs": True}
            answer = await gate.client.post(CHAT_PATH, json=asked)
            metrics = (await gate.client.get("/metrics")).text
    finally:
        await upstream.close()

    assert answer.json()["model"] == "made-up"
    assert "made-up" not in metrics
    assert 'illm_requests_total{endpoint="chat",model="",backend="t",status="200"} 1' in metrics


async def test_a_replica_that_lacks_the_ability_is_passed_over() -> None:
    async with engine(ok) as able, engine(ok) as unable:
        replicas = {"backends": {"a": {"kind": "vllm", "base_url": able.root},
                                 "b": {"kind": "transformers", "base_url": unable.root}},
                    "models": {"pub": {"replicas": ["a", "b"]}}}  # fmt: skip
        async with gateway(replicas) as gate:
            asked = {"model": "pub", "input": "x"}
            statuses = [(await gate.client.post("/v1/embeddings", json=asked)).status_code for _ in range(4)]

    assert statuses == [200] * 4
    assert not unable.got


async def test_a_backend_that_is_this_gateway() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    itself = {"discovery": {"local": False}, "backends": {"me": {"kind": "vllm", "base_url": url, "model": "m"}}}
    built = create_app(load_settings(None, {}, itself), sink=lambda _: None)
    config = uvicorn.Config(built.app, http=ClientConnection, log_level="error", access_log=False)
    server = Server(config)
    serving = asyncio.ensure_future(server._serve(sockets=[sock]))
    await until(lambda: server.started or serving.done())
    async with httpx.AsyncClient(timeout=PATIENCE, trust_env=False) as one:
        answer = await one.post(f"{url}/v1/chat/completions", json=CHAT | {"model": "m"})
    server.should_exit = True
    await asyncio.wait_for(serving, PATIENCE)

    assert answer.status_code == 400
    assert "in a circle" in answer.json()["error"]["message"]


async def test_another_engine_on_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Engine(ok, owned_by="vllm"), Engine(ok, owned_by="sglang")
    await first.listen()
    port = int(first.root.rpartition(":")[2])
    monkeypatch.setattr(proxy.local, "LOCAL_PORTS", {port: "any"})
    health = {"interval": 0.02, "down_after": 1000}
    async with gateway({"discovery": {"local": True, "interval": 0.02}, "demo": False, "health": health}) as gate:
        await until(lambda: "vllm" in gate.gateway.registry.backends)
        found = backend(gate, "vllm")
        assert found.kind == "vllm"
        await first.close()
        await until(lambda: found.failures > 0)
        await second.listen(port)
        await until(lambda: found.kind == "sglang")
    await second.close()


async def test_a_configured_engine_is_not_found_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine(ok) as upstream:
        port = int(upstream.root.rpartition(":")[2])
        monkeypatch.setattr(proxy.local, "LOCAL_PORTS", {port: "any"})
        configured = {"b": {"kind": "vllm", "base_url": f"http://localhost:{port}/v1"}}
        async with gateway({"discovery": {"local": True}, "demo": False, "backends": configured}) as gate:
            assert list(gate.gateway.registry.backends) == ["b"]


async def test_a_model_s_path_with_a_slash_behind_it() -> None:
    async with scene(ok) as (_, gate):
        answer = await gate.client.get("/v1/models/pub/")

    assert answer.json()["id"] == "pub"


async def test_an_engine_s_version_is_asked_again_after_a_restart() -> None:
    class Newer(Engine):
        async def _about(self, got: Got, line: Line) -> None:
            if got.path == "/version":
                await line.reply(200, b'{"version":"9.9"}')
            else:
                await super()._about(got, line)

    old, new = Engine(ok), Newer(ok)
    await old.listen()
    async with gateway(one_backend(old.root) | {"health": {"interval": 0.02}}) as gate:
        await until(lambda: backend(gate).version == "3.3.7")
        await old.close()
        await until(lambda: backend(gate).failures > 0)
        await new.listen(int(old.root.rpartition(":")[2]))
        await until(lambda: backend(gate).version == "9.9")
    await new.close()


@pytest.mark.parametrize("choice", [{"index": [0], "finish_reason": "stop"}, {"index": 0, "finish_reason": {"a": "b"}}])
async def test_a_choice_of_the_wrong_type_ends_the_stream_with_an_error(choice: dict[str, object]) -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("a"))
        body = {"object": "chat.completion.chunk", "choices": [choice], "usage": {}}
        await line.chunk(b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n")
        await line.end()

    async with scene(handler) as (_, gate):
        answer = await gate.client.post(CHAT_PATH, json=STREAM)

    assert [said["code"] for said in errors(answer.content)] == ["upstream_invalid_response"]
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_a_model_in_the_client_s_metadata_is_not_the_model() -> None:
    async def handler(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        for kind in ("response.created", "response.completed"):
            said = {"type": kind, "response": {"metadata": {"model": "mine"}, "model": "up", "output": []}}
            data = json.dumps(said, separators=(",", ":")).encode()
            await line.chunk(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
        await line.end()

    path, body = PATHS["responses"]
    async with scene(handler) as (_, gate):
        answer = await gate.client.post(path, json=body)

    said = [json.loads(line[6:])["response"] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [(one["metadata"]["model"], one["model"]) for one in said] == [("mine", "pub")] * 2


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_engine_that_repeats_its_key(streamed: bool) -> None:
    async def handler(got: Got, line: Line) -> None:
        said = json.dumps({"error": {"message": f"bad header {got.headers['authorization']}"}}).encode()
        if not streamed:
            await line.reply(400, said)
            return
        await line.head(200, SSE)
        await line.chunk(event("a"))
        await line.chunk(b"data: " + said + b"\n\n" + DONE)
        await line.end()

    async with scene(handler, backend={"api_key": "sk-very-secret"}) as (_, gate):
        answer = await gate.client.post(CHAT_PATH, json=STREAM if streamed else CHAT)
        (logged,) = await gate.logged()

    assert "bad header Bearer ***" in answer.text
    assert "secret" not in answer.text + str(logged)


def test_engines_words_for_logs_hold_no_control_characters() -> None:
    models = openai_models({"data": [{"id": "a\nERROR forged"}, {"id": "a\x1b[31m"}, {"id": "Qwen/Qwen3 ü"}]})

    assert models is not None
    assert [model.id for model in models] == ["Qwen/Qwen3 ü"]
    assert message({"error": "a\x1b[31m\nb"}, None) == "a [31m b"


@pytest.mark.parametrize(
    "flood",
    [
        b"x: " + b"y" * 10**6,
        b"".join(b"x-%d: %b\r\n" % (n, b"y" * 1000) for n in range(1000)),
        b"content-length: 2\r\n\r\n{}POST / HTTP/1.1\r\nx: " + b"y" * 10**6,
        b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 10**4,
    ],
)
async def test_a_head_without_end_is_cut(flood: bytes) -> None:
    built = create_app(load_settings(None, {}, {"discovery": {"local": False}, "demo": False}), sink=lambda _: None)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    server = Server(uvicorn.Config(built.app, http=ClientConnection, log_level="critical", access_log=False))
    serving = asyncio.ensure_future(server._serve(sockets=[sock]))
    await until(lambda: server.started or serving.done())
    async with client(f"http://127.0.0.1:{sock.getsockname()[1]}") as one:
        one.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + flood)
        with contextlib.suppress(ConnectionError):  # it closes with some of that unread
            await one.everything()  # until then: there is no end to wait for
    server.should_exit = True
    await asyncio.wait_for(serving, PATIENCE)
