"""The contract's cases for engines that speak OpenAI, through a whole gateway over real sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.proxy.harness import Got, Line, engine, gateway, one_backend, sse, until
from tests.vectors_support import cases, data, match

PASSTHROUGH = cases("passthrough")
CUTS = {"as written": None, "whole": 0, "byte by byte": 1, "in sevens": 7}


def _settings(case: dict[str, Any], root: str) -> dict[str, Any]:
    backend = case["backend"]
    wanted = case["upstream_request"]
    settings = one_backend(root, backend["kind"], **backend.get("config", {}))
    settings["models"]["pub-m"] = {"replicas": [{"backend": "b", "model": wanted["body"]["model"] if wanted else "x"}]}
    del settings["models"]["pub"]
    return settings


def _pieces(lines: list[str], cut: int | None) -> list[bytes]:
    if cut is None:
        return [line.encode() for line in lines]
    body = "".join(lines).encode()
    return [body[i : i + cut] for i in range(0, len(body), cut)] if cut else [body]


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("case", PASSTHROUGH, ids=lambda case: case["name"])
async def test_passthrough(case: dict[str, Any], cut: int | None) -> None:
    answer = case["upstream_response"]

    async def handler(_: Got, line: Line) -> None:
        if "stream_lines" not in answer:
            await line.reply(answer["status"], json.dumps(answer["body"]).encode())
            return
        await line.head(answer["status"], answer["headers"])
        for piece in _pieces(answer["stream_lines"], cut):
            await line.chunk(piece)
        await line.end()

    async with engine(handler) as upstream, gateway(_settings(case, upstream.root)) as gate:
        asked = case["request_in"]
        reply = await gate.client.request(asked["method"], asked["path"], json=asked["body"])

        if case["upstream_request"] is None:
            assert not upstream.got
        else:
            (got,) = upstream.got
            match(case["upstream_request"]["body"], got.json)
            assert (got.method, got.path) == (case["upstream_request"]["method"], case["upstream_request"]["path"])
        if "chunks" in case:
            assert reply.status_code == 200
            match(case["chunks"], [json.loads(e) if e != "[DONE]" else e for e in sse(reply.text)])
        else:
            _match_reply(case["response_out"], reply)


def _match_reply(expected: dict[str, Any], reply: Any) -> None:
    assert reply.status_code == expected["status"], reply.text
    match(expected["body"], reply.json())
    for name, value in expected.get("headers", {}).items():
        assert reply.headers[name] == value
    assert "x-request-id" in reply.headers


ERRORS = cases("errors")


@pytest.mark.parametrize("case", [c for c in ERRORS if c["upstream_status"]], ids=lambda case: case["name"])
async def test_error_bodies(case: dict[str, Any]) -> None:
    """What each engine's errors become, where the base URL is known by nothing but the settings."""
    kind = case["backend"].partition(">")[0].replace("any", "openai")
    mode = {"chat_mode": "openai"} if kind == "tgi" else {}  # the dialect's own tests have its native calls
    body = case["upstream_body"]
    body = body if isinstance(body, str) else json.dumps(body)

    async def handler(_: Got, line: Line) -> None:
        await line.reply(case["upstream_status"], body.encode(), case["upstream_content_type"])

    async with engine(handler) as upstream, gateway(one_backend(upstream.root, kind, **mode)) as gate:
        backend = gate.gateway.registry.backends["b"]
        await until(lambda: backend.state != "unknown")
        backend.state = "unknown"  # not known to be right: a missing route is a 502
        reply = await gate.client.post("/v1/chat/completions", json=CHAT)

        _match_reply(case["response_out"], reply)


async def test_connection_refused() -> None:
    async with engine() as upstream:
        root = upstream.root
    async with gateway(one_backend(root)) as gate:
        reply = await gate.client.post("/v1/chat/completions", json=CHAT)

        _match_reply(next(c for c in ERRORS if c["name"] == "connection_refused")["response_out"], reply)


async def test_read_timeout() -> None:
    async def silent(_: Got, line: Line) -> None:
        await line.closed.wait()

    async with engine(silent) as upstream:
        settings = one_backend(upstream.root) | {"upstream": {"response_timeout": 0.2}}
        async with gateway(settings) as gate:
            reply = await gate.client.post("/v1/chat/completions", json=CHAT)

            _match_reply(next(c for c in ERRORS if c["name"] == "read_timeout")["response_out"], reply)
            await until(lambda: upstream.lines[-1].closed.is_set())


CHAT = {"model": "pub", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("name", ["chat_plain", "chat_stream"])
async def test_replies_fit_openais_schema(name: str) -> None:
    """A vLLM answer as it passes, against OpenAI's own schema."""
    import jsonschema

    bundle = data("openai-jsonschema-bundle")
    chunk = {
        "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up",
        "choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": None, "finish_reason": "stop"}],
    }  # fmt: skip
    whole = {
        "id": "c", "object": "chat.completion", "created": 1, "model": "up",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x", "refusal": None},
                     "logprobs": None, "finish_reason": "abort"}],
    }  # fmt: skip

    async def handler(got: Got, line: Line) -> None:
        if got.json.get("stream"):
            await line.head(200, {"content-type": "text/event-stream"})
            await line.chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await line.end()
        else:
            await line.reply(200, json.dumps(whole).encode())

    async with engine(handler) as upstream, gateway(one_backend(upstream.root)) as gate:
        stream = name == "chat_stream"
        reply = await gate.client.post("/v1/chat/completions", json=CHAT | {"stream": stream})
        got = json.loads(sse(reply.text)[0]) if stream else reply.json()
        definition = "CreateChatCompletionStreamResponse" if stream else "CreateChatCompletionResponse"

        jsonschema.validate(got, {"$ref": f"#/$defs/{definition}", "$defs": bundle["$defs"]})
        assert got["model"] == "pub"
