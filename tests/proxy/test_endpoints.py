"""What a client says and what an engine is sent for it, through a whole gateway: every endpoint, both body forms, the
gateway's own members, defaults, and replies that are no JSON."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from proxy.dialects.base import Endpoint, EngineKind
from proxy.dialects.openai.paths import PATHS
from proxy.endpoints import RELAYED
from proxy.forms import parse_form
from tests.proxy.harness import Engine, Got, Line, Running, engine, gateway, one_backend

CHAT = {"model": "pub", "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[Endpoint, dict[str, Any]] = {
    "chat": CHAT,
    "completions": {"model": "pub", "prompt": "p"},
    "embeddings": {"model": "pub", "input": "i"},
    "rerank": {"model": "pub", "query": "q", "documents": ["d"]},
    "transcriptions": {"model": "pub", "audio_base64": "AAAA"},
    "translations": {"model": "pub", "audio_base64": "AAAA"},
}


async def echo(got: Got, line: Line) -> None:
    """A reply that every endpoint's decoder takes."""
    reply = {"object": "list", "model": "up", "data": []}
    body: Any = [{"index": 0, "score": 0.5}] if got.path == "/rerank" else reply
    await line.reply(200, json.dumps(body).encode())


Sent = Callable[..., Awaitable[Got]]
one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sent() -> AsyncIterator[Sent]:
    """What reaches an engine. `how`: `kind` and other settings of the backend, `settings` of the gateway; one gateway
    for all tests with the same."""
    running: dict[str, tuple[Engine, Running]] = {}
    async with contextlib.AsyncExitStack() as stack:

        async def send(body: dict[str, Any] | bytes, path: str = "/v1/chat/completions", **how: Any) -> Got:
            key = json.dumps(how)
            if key not in running:
                settings = how.pop("settings", {})
                upstream = await stack.enter_async_context(engine(echo))
                gate = await stack.enter_async_context(gateway(one_backend(upstream.root, **how) | settings))
                running[key] = upstream, gate
            upstream, gate = running[key]
            upstream.got.clear()
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            reply = await gate.client.post(path, content=content, headers={"content-type": "application/json"})
            assert reply.status_code == 200, reply.text
            (got,) = upstream.got
            return got

        yield send


# -- paths -------------------------------------------------------------------------------------------------------

NATIVE: frozenset[EngineKind] = frozenset(("tgi", "ollama"))  # their own dialects decide


@pytest.mark.parametrize("kind", [kind for kind in PATHS if kind not in NATIVE])
async def test_every_endpoint_reaches_its_path_or_says_that_there_is_none(kind: EngineKind) -> None:
    async with engine(echo) as upstream, gateway(one_backend(upstream.root, kind)) as gate:
        for path, endpoint in RELAYED.items():
            upstream.got.clear()
            reply = await gate.client.post("/v1" + path, json=BODIES.get(endpoint, {"model": "pub"}))
            template = PATHS[kind].get(endpoint)
            if template is not None:
                assert reply.status_code == 200, (path, reply.text)
                prefix = gate.gateway.registry.backends["b"].prefix
                assert [got.path for got in upstream.got] == [template.replace("{v1}", prefix)]
            else:
                told = reply.json()["error"]
                assert (reply.status_code, told["type"]) == (422, "CapabilityNotSupported"), (path, told)
                assert not upstream.got


class Infinity(Engine):
    """Infinity as it starts by default: no `/v1`."""

    async def _about(self, got: Got, line: Line) -> None:
        if got.path.startswith("/v1"):
            await line.reply(404, b'{"detail":"Not Found"}')
        else:
            await super()._about(got, line)


@contextlib.asynccontextmanager
async def infinity() -> AsyncIterator[Infinity]:
    one = Infinity(echo, models=("bge",), owned_by="infinity")
    await one.listen()
    try:
        yield one
    finally:
        await one.close()


@pytest.mark.parametrize("kind", ["infinity", None])
@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
async def test_infinity_without_a_prefix(kind: str | None, tail: str) -> None:
    async with infinity() as upstream:
        backend = {"base_url": upstream.root + tail} | ({"kind": kind} if kind else {})
        async with gateway({"backends": {"i": backend}}) as gate:
            for path in ("/v1/embeddings", "/embeddings", "/v1/rerank"):
                body = {"model": "bge", "framework": "transformers", "input": "i", "query": "q", "documents": ["d"]}
                assert (await gate.client.post(path, json=body)).status_code == 200

        assert [got.path for got in upstream.got] == ["/embeddings", "/embeddings", "/rerank"]


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
async def test_a_base_url_with_and_without_v1(tail: str) -> None:
    async with engine(echo) as upstream, gateway(one_backend(upstream.root + tail)) as gate:
        await gate.client.post("/v1/chat/completions", json=CHAT)
        await gate.client.post("/tokenize", json={"model": "pub", "prompt": "p"})

        assert [got.path for got in upstream.got] == ["/v1/chat/completions", "/tokenize"]


# -- members -----------------------------------------------------------------------------------------------------

ODD = b'"big":123456789012345678901234567890,"one":1.0,"huge":1e999,"esc":"\\u00e9\\/","in":{"a":1,"a":2}'


UP = {"models": {"up": {"replicas": [{"backend": "b", "model": "up"}]}}}


@one_loop
async def test_equal_names_leave_the_body_alone(sent: Sent) -> None:
    body = b' {"model" : "up", "messages":[ ], ' + ODD + b" } "

    assert (await sent(body, settings=UP)).body == body


@pytest.mark.parametrize("image", [False, True])
@one_loop
async def test_values_that_are_not_ours_keep_their_bytes(image: bool, sent: Sent) -> None:
    """Also where pictures in the messages make a closer look necessary."""
    part = b'[{"role":"user","content":[{"type":"image_url","image_url":"http://x/y"}]}]' if image else b"[]"
    got = await sent(b'{"model":"pub","framework":"vllm","messages":' + part + b"," + ODD + b"}")

    assert ODD in got.body
    assert b"framework" not in got.body
    assert (b'{"url":"http://x/y"}' in got.body) is image


@pytest.mark.parametrize("framework", ["vllm", None, ""])
@one_loop
async def test_framework_never_reaches_an_engine(framework: str | None, sent: Sent) -> None:
    assert (await sent(CHAT | {"framework": framework})).json == CHAT | {"model": "up"}


@one_loop
async def test_transformer_is_transformers(sent: Sent) -> None:
    got = await sent(CHAT | {"framework": "transformer", "logprobs": True}, kind="transformers")

    assert got.json == CHAT | {"model": "up", "logprobs": True}


async def test_an_unknown_framework_hears_the_known_ones() -> None:
    async with engine(echo) as upstream, gateway(one_backend(upstream.root)) as gate:
        reply = await gate.client.post("/v1/chat/completions", json=CHAT | {"framework": "gpt"})

        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "framework")
        assert "vllm" in reply.json()["error"]["message"]


@pytest.mark.parametrize("model", [{}, {"model": "other"}, {"model": None}])
@one_loop
async def test_embedding_model_wins(model: dict[str, Any], sent: Sent) -> None:
    got = await sent(model | {"embedding_model": "pub", "input": ["a", [1, 2]]}, "/v1/embeddings")

    assert got.json == {"input": ["a", [1, 2]], "model": "up"}


DEFAULTS = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "repetition_penalty": 1.2}
FILLED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "all": ("chat/completions", CHAT, DEFAULTS),
    "null is absent": ("chat/completions", CHAT | {"temperature": None}, DEFAULTS),
    "what is said stays": ("chat/completions", CHAT | {"temperature": 0, "top_k": -1},
                           DEFAULTS | {"temperature": 0, "top_k": -1}),
    "the newer word for a limit": ("chat/completions", CHAT | {"max_completion_tokens": 3},
                                   {k: v for k, v in DEFAULTS.items() if k != "max_tokens"}
                                   | {"max_completion_tokens": 3}),
    "completions": ("completions", {"model": "pub", "prompt": "p"}, DEFAULTS),
    "responses": ("responses", {"model": "pub", "input": "i"},
                  {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 9}),
    "messages": ("messages", CHAT | {"max_tokens": 5},
                 {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "max_tokens": 5}),
    "not for embeddings": ("embeddings", {"model": "pub", "input": "i"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "added"), FILLED.values(), ids=FILLED)
@one_loop
async def test_defaults_fill_only_what_is_absent(
    path: str, body: dict[str, Any], added: dict[str, Any], sent: Sent
) -> None:
    got = await sent(body, "/v1/" + path, settings={"defaults": DEFAULTS})

    assert got.json == body | added | {"model": "up"}


@one_loop
async def test_options_of_the_backend_and_its_own_words(sent: Sent) -> None:
    body = CHAT | {"repetition_penalty": 1.3, "seed": 1, "n_probs": 0}
    got = await sent(body, kind="llamacpp", options={"seed": 7, "cache_prompt": True})

    assert got.json == CHAT | {"model": "up", "repeat_penalty": 1.3, "seed": 1, "n_probs": 0, "cache_prompt": True}


@one_loop
async def test_stream_options_without_a_stream(sent: Sent) -> None:
    assert (await sent(CHAT | {"stream_options": {"include_usage": True}})).json == CHAT | {"model": "up"}


@one_loop
async def test_transformers_takes_sampling_as_a_generation_config(sent: Sent) -> None:
    got = await sent(CHAT | {"top_k": 3, "temperature": 1, "logprobs": True}, kind="transformers")

    assert got.json.keys() == {"model", "messages", "temperature", "logprobs", "generation_config"}
    assert json.loads(got.json["generation_config"]) == {"top_k": 3}


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp", "transformers", "openai"])
async def test_pictures(kind: str) -> None:
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n....").decode()
    parts = [{"type": "image_base64", "image_base64": png}, {"type": "text", "text": "what?"}]
    async with engine(echo) as upstream, gateway(one_backend(upstream.root, kind)) as gate:
        ask = {"model": "pub", "messages": [{"role": "user", "content": parts}]}
        good = await gate.client.post("/v1/chat/completions", json=ask)
        parts[0] = {"type": "image_url", "image_url": "file:///etc/passwd"}
        bad = await gate.client.post("/v1/chat/completions", json=ask)

        assert good.status_code == 200
        (got,) = upstream.got
        assert got.json["messages"][0]["content"][0] == {
            "type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"},
        }  # fmt: skip
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "unsupported_value")


# -- audio and pictures ------------------------------------------------------------------------------------------

WAV = b"RIFF\x00\x01\r\n--x\r\n\xff"


async def test_a_form() -> None:
    async def transcribe(_: Got, line: Line) -> None:
        await line.reply(200, "Grüße\n".encode(), "text/plain; charset=utf-8")

    async with engine(transcribe) as upstream, gateway(one_backend(upstream.root)) as gate:
        reply = await gate.client.post(
            "/v1/audio/transcriptions",
            data={"model": "pub", "framework": "vllm", "response_format": "text", "language": "de"},
            files={"file": ("a b.wav", WAV, "audio/wav")},
        )

        assert (reply.status_code, reply.text) == (200, "Grüße\n")
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        (got,) = upstream.got
        parts = parse_form(got.headers["content-type"], got.body).parts
        assert {part.name: part.data for part in parts} == {
            "model": b"up", "response_format": b"text", "language": b"de", "file": WAV,
        }  # fmt: skip
        (file,) = [part for part in parts if part.is_file]
        assert b'filename="a b.wav"' in file.head


@pytest.mark.parametrize("path", ["transcriptions", "translations"])
@one_loop
async def test_audio_in_json(path: str, sent: Sent) -> None:
    body = {"model": "pub", "framework": "vllm", "audio_base64": base64.b64encode(WAV).decode(), "temperature": 0}
    got = await sent(body, f"/v1/audio/{path}")

    assert got.path == f"/v1/audio/{path}"
    assert {part.name: part.data for part in parse_form(got.headers["content-type"], got.body).parts} == {
        "model": b"up", "file": WAV, "temperature": b"0",
    }  # fmt: skip


@pytest.mark.parametrize("form", [True, False])
async def test_a_transcription_may_be_a_stream(form: bool) -> None:
    async def transcribe(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "text/event-stream"})
        await line.chunk(b'data: {"model":"up","choices":[]}\n\ndata: [DONE]\n\n')
        await line.end()

    async with engine(transcribe) as upstream, gateway(one_backend(upstream.root)) as gate:
        ask: dict[str, Any] = (
            {"data": {"model": "pub", "stream": "true"}, "files": {"file": ("a.wav", WAV)}}
            if form
            else {"json": {"model": "pub", "stream": True, "audio_base64": "AAAA"}}
        )
        reply = await gate.client.post("/v1/audio/transcriptions", **ask)

        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text == 'data: {"model":"pub","choices":[]}\n\ndata: [DONE]\n\n'


async def test_speech_comes_back_byte_for_byte() -> None:
    sound = bytes(range(256)) * 4000

    async def speak(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "audio/mpeg"})
        for start in range(0, len(sound), 100_000):
            await line.chunk(sound[start : start + 100_000])
        await line.end()

    async with engine(speak) as upstream, gateway(one_backend(upstream.root)) as gate:
        reply = await gate.client.post("/v1/audio/speech", json={"model": "pub", "input": "hi", "voice": "a"})

        assert (reply.status_code, reply.headers["content-type"]) == (200, "audio/mpeg")
        assert reply.content == sound
        assert upstream.got[0].json == {"model": "up", "input": "hi", "voice": "a"}


async def test_images() -> None:
    async def paint(_: Got, line: Line) -> None:
        await line.reply(200, b'{"created":1,"data":[{"b64_json":"AAAA"}]}')

    async with engine(paint) as upstream, gateway(one_backend(upstream.root)) as gate:
        reply = await gate.client.post("/v1/images/generations", json={"model": "pub", "prompt": "a cat", "n": 1})
        edit = await gate.client.post(
            "/v1/images/edits", data={"model": "pub", "prompt": "a"}, files={"image": ("a.png", b"\x89PNG")}
        )

        assert reply.json() == edit.json() == {"created": 1, "data": [{"b64_json": "AAAA"}]}
        assert [got.path for got in upstream.got] == ["/v1/images/generations", "/v1/images/edits"]
        assert upstream.got[0].json == {"model": "up", "prompt": "a cat", "n": 1}


# -- rerank ------------------------------------------------------------------------------------------------------


async def test_rerank_on_tei_is_translated_both_ways() -> None:
    async def rank(_: Got, line: Line) -> None:
        await line.reply(200, b'[{"index":1,"score":0.9},{"index":0,"score":0.2}]')

    async with engine(rank) as upstream, gateway(one_backend(upstream.root, "tei")) as gate:
        ask = {"model": "pub", "framework": "transformers", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}
        reply = await gate.client.post("/v1/rerank", json=ask | {"return_documents": True})

        (got,) = upstream.got
        assert (got.path, got.json) == ("/rerank", {"query": "q", "texts": ["a", "b"]})
        assert reply.json() == {
            "object": "list", "model": "pub",
            "results": [{"index": 1, "relevance_score": 0.9, "document": {"text": "b"}}],
        }  # fmt: skip


@one_loop
async def test_rerank_elsewhere_passes(sent: Sent) -> None:
    body = {"model": "pub", "query": "q", "documents": ["a"], "top_n": 1}

    assert (await sent(body, "/v1/reranking")).json == body | {"model": "up"}
    assert (await sent(body, "/v1/rerank")).path == "/v1/rerank"
