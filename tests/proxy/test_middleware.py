"""What surrounds every request: keys, CORS, ids, the error envelope and the access line."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from proxy.errors import ApiError
from proxy.headers import named
from proxy.middleware import OPEN_PATHS
from proxy.reading import Cors, Keys
from tests.proxy.harness import Got, Line, Running, engine, gateway, one_backend

one_loop = pytest.mark.asyncio(loop_scope="module")

CHAT = {"model": "pub", "messages": []}
ANSWER = {"id": "c", "object": "chat.completion", "model": "up", "choices": [],
          "usage": {"prompt_tokens": 3, "completion_tokens": 2}}  # fmt: skip
PAGE = {"origin": "http://localhost:5173"}


async def answer(_: Got, line: Line) -> None:
    await line.reply(200, json.dumps(ANSWER).encode())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Running]:
    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as running:
        yield running


@pytest.fixture
def gate(running: Running) -> Running:
    """One gateway for all tests here, with an empty log for each."""
    running.log.clear()
    return running


# -- keys --------------------------------------------------------------------------------------------------------

OFFERS: dict[str, tuple[dict[str, str], bool]] = {
    "the first": ({"authorization": "Bearer k1"}, True),
    "the second": ({"authorization": "Bearer k2"}, True),
    "any case of the scheme": ({"authorization": "bEARER k1"}, True),
    "spaces": ({"authorization": "Bearer   k1 "}, True),
    "Anthropic's way": ({"x-api-key": "k2"}, True),
    "beside another scheme": ({"authorization": "Basic eA==", "x-api-key": "k1"}, True),
    "none": ({}, False),
    "empty": ({"authorization": "Bearer "}, False),
    "wrong": ({"authorization": "Bearer k3"}, False),
    "a prefix": ({"authorization": "Bearer k"}, False),
    "more": ({"authorization": "Bearer k11"}, False),
    "another case": ({"authorization": "Bearer K1"}, False),
    "no scheme": ({"authorization": "k1"}, False),
    "another scheme": ({"authorization": "Basic k1"}, False),
    "wrong, and a good one elsewhere": ({"authorization": "Bearer k3", "x-api-key": "k1"}, False),
}


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize(("headers", "good"), OFFERS.values(), ids=OFFERS)
def test_keys(headers: dict[str, str], good: bool) -> None:
    keys = Keys(["k1", "k2"])
    if good:
        keys.check(named(raw(headers)))
        return
    with pytest.raises(ApiError) as caught:
        keys.check(named(raw(headers)))

    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert dict(caught.value.headers) == {"www-authenticate": "Bearer"}
    assert not any(value in caught.value.message for value in ("k1", "k2", "k3"))


def test_no_keys_no_check() -> None:
    Keys([]).check({})


@one_loop
async def test_keys_over_the_wire() -> None:
    settings = {"server": {"api_keys": ["sk-one", "sk-two"]}}
    async with engine(answer) as upstream, gateway(one_backend(upstream.root, api_key="sk-b") | settings) as gate:
        refused = await gate.client.post("/v1/chat/completions", json=CHAT, headers=PAGE)
        models = await gate.client.get("/v1/models")
        wrong = await gate.client.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-wrong"})
        taken = await gate.client.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-two"})
        metrics = await gate.client.get("/metrics")
        unknown = await gate.client.get("/nothing")

        assert refused.status_code == models.status_code == wrong.status_code == metrics.status_code == 401
        assert unknown.status_code == 401, "nothing is said to strangers"
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["access-control-allow-origin"] == PAGE["origin"], "or the page can't read why"
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert taken.status_code == 200
        (got,) = upstream.got
        assert got.headers["authorization"] == "Bearer sk-b"
        assert "sk-" not in json.dumps(gate.log)
        for path in OPEN_PATHS:
            assert (await gate.client.get(path)).status_code == 200, path


# -- CORS --------------------------------------------------------------------------------------------------------

ORIGINS: list[tuple[list[str], str, bool]] = [
    (["http://localhost"], "http://localhost", True),
    (["http://localhost"], "http://localhost:5173", True),
    (["http://localhost"], "https://localhost", False),
    (["http://localhost"], "http://localhost.evil.example", False),
    (["http://localhost"], "http://evil.example", False),
    (["http://localhost"], "null", False),
    (["http://[::1]"], "http://[::1]:3000", True),
    (["https://chat.example:8443"], "https://chat.example:8443", True),
    (["https://chat.example:8443"], "https://chat.example", False),
    (["https://chat.example:8443"], "https://chat.example:9", False),
    (["https://chat.example/"], "https://chat.example", True),
    (["tauri://localhost"], "tauri://localhost", True),
    (["null"], "null", True),
    (["*"], "https://any.example:1", True),
    (["*"], "null", True),
    ([], "http://localhost", False),
]


@pytest.mark.parametrize(("allowed", "origin", "good"), ORIGINS)
def test_origins(allowed: list[str], origin: str, good: bool) -> None:
    headers = dict(Cors(allowed).headers(origin.encode()))

    assert headers.get(b"access-control-allow-origin") == (origin.encode() if good else None)
    assert headers.get(b"vary") == (b"origin" if good else None)


@pytest.mark.parametrize("origin", ["http://[", "http://a]b", "", "http://a:x", "\xff"])
def test_an_origin_that_is_none(origin: str) -> None:
    assert Cors(["http://localhost"]).headers(origin.encode("latin-1")) == []


ASKS = PAGE | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@one_loop
async def test_preflight(gate: Running) -> None:
    reply = await gate.client.options("/v1/chat/completions", headers=ASKS)

    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == PAGE["origin"]
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    assert reply.headers["access-control-max-age"] == "600"
    assert "x-request-id" in reply.headers
    assert "access-control-allow-private-network" not in reply.headers


@one_loop
async def test_preflight_to_a_private_network(gate: Running) -> None:
    ask = ASKS | {"access-control-request-private-network": "true"}
    reply = await gate.client.options("/v1/chat/completions", headers=ask)

    assert reply.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("headers", [{}, ASKS | {"origin": "https://evil.example"}])
@one_loop
async def test_preflight_of_others(gate: Running, headers: dict[str, str]) -> None:
    reply = await gate.client.options("/v1/chat/completions", headers=headers)

    assert reply.status_code == 204
    assert not [name for name in reply.headers if name.startswith("access-control-")]


@one_loop
async def test_preflight_needs_no_key() -> None:
    """Browsers send none with it."""
    async with gateway({"server": {"api_keys": ["k"]}, "backends": {"b": {"base_url": "http://127.0.0.1:9"}}}) as gate:
        assert (await gate.client.options("/v1/chat/completions", headers=ASKS)).status_code == 204


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/no")])
@one_loop
async def test_every_answer_tells_the_page(gate: Running, method: str, path: str) -> None:
    reply = await gate.client.request(method, path, json=CHAT if method == "POST" else None, headers=PAGE)

    assert reply.headers["access-control-allow-origin"] == PAGE["origin"]
    assert "x-request-id" in reply.headers["access-control-expose-headers"]
    assert reply.headers.get_list("vary") == ["origin"]


# -- ids ---------------------------------------------------------------------------------------------------------


@one_loop
async def test_a_request_id_is_taken(gate: Running) -> None:
    reply = await gate.client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc-1.2_3"})

    assert reply.headers.get_list("x-request-id") == ["abc-1.2_3"]
    assert (await gate.logged())[0]["id"] == "abc-1.2_3"


@pytest.mark.parametrize("odd", ["a b", "x" * 129, '{"a":1}', "<b>"])
@one_loop
async def test_an_odd_request_id_is_not(gate: Running, odd: str) -> None:
    reply = await gate.client.get("/v1/models", headers={"x-request-id": odd})

    assert reply.headers["x-request-id"] != odd
    assert reply.headers["x-request-id"].isalnum()


@one_loop
async def test_an_engine_gets_the_id_and_its_own_is_dropped() -> None:
    async def odd(_: Got, line: Line) -> None:
        await line.reply(200, json.dumps(ANSWER).encode(), x_request_id="engine", set_cookie="a=b", x_more="yes")

    async with engine(odd) as upstream, gateway(one_backend(upstream.root)) as gate:
        reply = await gate.client.post(
            "/v1/chat/completions",
            json=CHAT,
            headers={"x-request-id": "mine", "traceparent": "00-1-2-3", "cookie": "c=d"},
        )

        (got,) = upstream.got
        assert (got.headers["x-request-id"], got.headers["traceparent"]) == ("mine", "00-1-2-3")
        assert "cookie" not in got.headers
        assert reply.headers.get_list("x-request-id") == ["mine"]
        assert reply.headers["x-more"] == "yes"
        assert "set-cookie" not in reply.headers


# -- errors ------------------------------------------------------------------------------------------------------

CHATS = "/v1/chat/completions"
REFUSALS: dict[str, tuple[str, str, bytes | None, int, str | None, str]] = {
    "no JSON": ("POST", CHATS, b"{", 400, "invalid_json", "not a valid JSON object"),
    "no object": ("POST", CHATS, b"[]", 400, "invalid_json", "not a valid JSON object"),
    "no body": ("POST", CHATS, b"", 400, "invalid_json", "not a valid JSON object"),
    "not UTF-8": ("POST", CHATS, b'{"model":"\xff"}', 400, "invalid_json", "JSON"),
    "nor this": ("POST", CHATS, b'{"model":"pub","messages":["\xff"],"a_url":1}', 400, "invalid_json", "JSON"),
    "a model that is none": ("POST", CHATS, b'{"model":5,"messages":[]}', 400, "invalid_value", "`model`"),
    "unknown model": ("POST", CHATS, b'{"model":"x","messages":[]}', 404, "model_not_found", "pub"),
    "nothing said": ("POST", CHATS, b'{"model":"pub"}', 400, "missing_required_parameter", "`messages`"),
    "a body for responses": ("POST", CHATS, b'{"model":"pub","input":[]}', 400, "missing_required_parameter",
                             "`messages` is missing. A body with `input` is one for /v1/responses."),
    "a body for chats": ("POST", "/completions", b'{"model":"pub","messages":[]}', 400, "missing_required_parameter",
                         "`prompt` is missing. A body with `messages` is one for /v1/chat/completions."),
    "no prompt": ("POST", "/v1/completions", b'{"model":"pub"}', 400, "missing_required_parameter", "`prompt`"),
    "no input": ("POST", "/v1/embeddings", b'{"model":"pub"}', 400, "missing_required_parameter", "`input`"),
    "unknown path": ("GET", "/v1/nothing/like/it", None, 404, "unknown_url", "/v1/nothing/like/it"),
    "nearly": ("POST", "/v1/chat/completion", b"{}", 404, "unknown_url", "Did you mean /v1/chat/completions?"),
    "nearly, without /v1": ("POST", "/embedding", b"{}", 404, "unknown_url", "Did you mean /embeddings?"),
    "twice /v1": ("POST", "/v1/v1/chat/completions", b"{}", 404, "unknown_url", "Did you mean /v1/chat/completions?"),
    "GET": ("GET", CHATS, None, 405, "method_not_allowed", "POST"),
    "PUT": ("PUT", CHATS, b"{}", 405, "method_not_allowed", "POST"),
    "POST": ("POST", "/v1/models", b"{}", 405, "method_not_allowed", "GET"),
    "DELETE": ("DELETE", "/v1/models/pub", None, 405, "method_not_allowed", "GET"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "code", "says"), REFUSALS.values(), ids=REFUSALS)
@one_loop
async def test_every_refusal_has_the_envelope(
    gate: Running, method: str, path: str, body: bytes | None, status: int, code: str | None, says: str
) -> None:
    reply = await gate.client.request(method, path, content=body, headers=PAGE)
    told = reply.json()["error"]

    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    assert "x-request-id" in reply.headers
    assert reply.headers["access-control-allow-origin"] == PAGE["origin"]
    assert set(told) == {"message", "type", "param", "code"}
    assert (told["code"], told["type"]) == (code, "invalid_request_error")
    assert says in told["message"]
    if status == 405:
        assert says in reply.headers["allow"]


@one_loop
async def test_a_body_over_the_limit() -> None:
    async with engine(answer) as upstream, gateway(one_backend(upstream.root) | {"server": {"max_body": 50}}) as gate:
        reply = await gate.client.post("/v1/chat/completions", json=CHAT | {"x": "y" * 50})

        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
        assert "50 bytes" in reply.json()["error"]["message"]
        assert not upstream.got


@pytest.mark.interpreted
@one_loop
async def test_a_bug_shows_no_traceback(
    gate: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("secret-detail")

    monkeypatch.setattr(gate.gateway.registry, "resolve", broken)
    with caplog.at_level(logging.CRITICAL, "illm"):
        reply = await gate.client.post("/v1/chat/completions", json=CHAT, headers=PAGE | {"x-request-id": "r1"})

    assert reply.status_code == 500
    assert reply.json()["error"] | {"message": ""} == {
        "message": "", "type": "server_error", "param": None, "code": "internal_error",
    }  # fmt: skip
    assert "r1" in reply.json()["error"]["message"]
    assert "secret-detail" not in reply.text
    assert "Traceback" not in reply.text
    assert reply.headers["access-control-allow-origin"] == PAGE["origin"]
    assert (await gate.logged())[0]["status"] == 500


# -- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/chat/completions", "/v1/chat/completions/", "/chat/completions/"]
)
@one_loop
async def test_ways_to_say_a_path(gate: Running, path: str) -> None:
    assert (await gate.client.post(path, json=CHAT)).json()["model"] == "pub"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/models", "/models/", "/healthz", "/livez", "/metrics"])
@one_loop
async def test_head_is_get_without_the_body(gate: Running, path: str) -> None:
    got, head = await gate.client.get(path), await gate.client.head(path)

    assert (got.status_code, head.status_code) == (200, 200)
    assert head.headers["content-type"] == got.headers["content-type"]
    assert got.content
    assert head.content == b""


@one_loop
async def test_a_query_does_no_harm(gate: Running) -> None:
    """Azure's clients send `?api-version=…`."""
    assert (await gate.client.post("/v1/chat/completions?api-version=1", json=CHAT)).status_code == 200


# -- the access line ---------------------------------------------------------------------------------------------


@one_loop
async def test_the_line_of_a_good_request(gate: Running) -> None:
    reply = await gate.client.post("/v1/chat/completions", json=CHAT)
    (line,) = await gate.logged()

    assert 0 <= line.pop("first_byte_ms") <= line.pop("ms") + 0.1
    assert line == {
        "id": reply.headers["x-request-id"], "method": "POST", "path": "/v1/chat/completions", "status": 200,
        "client": "127.0.0.1", "endpoint": "chat", "model": "pub", "backend": "b", "bytes_out": len(reply.content),
        "prompt_tokens": 3, "completion_tokens": 2,
    }  # fmt: skip


@one_loop
async def test_the_line_of_a_refused_one(gate: Running) -> None:
    await gate.client.post("/v1/chat/completions", json=CHAT | {"model": "no-such"})
    (line,) = await gate.logged()

    assert (line["status"], line["code"], line["endpoint"]) == (404, "model_not_found", "chat")
    assert "no-such" in line["error"]
    assert not {"model", "backend", "first_byte_ms", "stream", "attempts"} & line.keys()


@one_loop
async def test_the_line_of_what_the_gateway_answers_itself(gate: Running) -> None:
    await gate.client.get("/v1/models?framework=vllm")
    (line,) = [line for line in gate.log if line["path"] == "/v1/models"]

    assert (line["method"], line["status"]) == ("GET", 200)
    assert "endpoint" not in line


@one_loop
async def test_no_lines_where_nobody_wants_them() -> None:
    async with engine(answer) as upstream:
        settings = one_backend(upstream.root) | {"server": {"access_log": False}}
        async with gateway(settings) as gate:
            assert (await gate.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert gate.log == []
