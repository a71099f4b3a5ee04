"""Who is at that URL: every engine recognised from its own answers, and every way not to be ready.

Bodies are real engines' (TEI's, SGLang's and LM Studio's as published), shortened where they don't matter.
"""

import asyncio
import contextlib
import json

import pytest

from proxy.ask import Unanswered, asking
from proxy.discovery import LOCAL_PORTS, Probe, probe
from proxy.engine_answers import MAX_MODELS, ModelInfo, ollama_models, tgi_models
from tests.engines.process import PATIENCE
from tests.proxy.told import Reply, Told

ROOT = "http://engine.test:8000"
JSON = {"content-type": "application/json"}
UVICORN = JSON | {"server": "uvicorn"}
LLAMA = {"server": "llama.cpp", "content-type": "application/json; charset=utf-8"}
HTML = {"content-type": "text/html"}

FASTAPI_404: Reply = (404, '{"detail":"Not Found"}', UVICORN)
LLAMA_404: Reply = (404, '{"error":{"message":"File Not Found","type":"not_found_error","code":404}}', LLAMA)
LLAMA_LOADING: Reply = (
    503,
    '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}',
    LLAMA,
)
LLAMA_401: Reply = (
    401,
    '{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}',
    LLAMA,
)
LM_STUDIO_ANY: Reply = (200, '{"error":"Unexpected endpoint or method. (GET /x)"}', JSON)

VLLM_MODELS = (
    '{"object":"list","data":[{"id":"tiny","object":"model","created":1795234795,"owned_by":"vllm",'
    '"root":"/models/tiny-chat","parent":null,"max_model_len":2048,"permission":[]},'
    '{"id":"lora","object":"model","created":1795234795,"owned_by":"vllm","root":"/l","parent":"tiny",'
    '"max_model_len":null,"permission":[]}]}'
)
LLAMA_MODELS = (
    '{"models":[{"name":"models/tiny.gguf","model":"models/tiny.gguf","modified_at":"","size":"","digest":"",'
    '"type":"model","capabilities":["completion"],"details":{"format":"gguf"}}],"object":"list",'
    '"data":[{"id":"models/tiny.gguf","aliases":["models/tiny.gguf"],"object":"model","created":1795234597,'
    '"owned_by":"llamacpp","meta":{"vocab_type":1,"n_vocab":375,"n_ctx":256,"n_ctx_train":4096}}]}'
)
ROUTER_MODELS = (
    '{"data":[{"id":"tiny-a","aliases":[],"object":"model","owned_by":"llamacpp","created":1795234718,'
    '"status":{"value":"loaded"},"meta":{"n_ctx":512,"n_ctx_train":4096}},'
    '{"id":"tiny-b","aliases":[],"object":"model","owned_by":"llamacpp","created":1795234718,'
    '"status":{"value":"unloaded"}}],"object":"list"}'
)
TGI_INFO = (
    '{"model_id":"acme/tiny-llama","model_sha":null,"model_pipeline_tag":null,"max_concurrent_requests":128,'
    '"max_best_of":2,"max_stop_sequences":4,"max_input_tokens":512,"max_total_tokens":1024,'
    '"validation_workers":1,"max_client_batch_size":4,"router":"text-generation-router",'
    '"version":"3.3.6-dev0","sha":"db931fc","docker_label":null}'
)
TGI_MODELS = (
    '{"object":"list","data":[{"id":"acme/tiny-llama","object":"model","created":0,"owned_by":"acme/tiny-llama"}]}'
)
TEI_INFO = (
    '{"model_id":"BAAI/bge-m3","model_sha":null,"model_dtype":"float16","model_type":{"embedding":'
    '{"pooling":"cls"}},"max_concurrent_requests":512,"max_input_length":4096,"max_batch_tokens":4096,'
    '"max_batch_requests":null,"max_client_batch_size":16,"auto_truncate":true,"tokenization_workers":32,'
    '"version":"1.8.3","sha":"78502d8","docker_label":"sha-78502d8"}'
)
TAGS = (
    '{"models":[{"name":"pthink:latest","model":"pthink:latest","modified_at":"2026-11-21T05:56:54.086428696Z",'
    '"size":312179,"details":{"format":"gguf","context_length":4096},'
    '"capabilities":["completion","tools","thinking"]},'
    '{"name":"acme/bert:latest","model":"acme/bert:latest","modified_at":"2026-02-02T00:00:00+02:00",'
    '"size":1,"details":{"format":"gguf"}}]}'
)
OLLAMA_MODELS = (
    '{"object":"list","data":[{"id":"pthink:latest","object":"model","created":1795240614,"owned_by":"library"}]}'
)
INFINITY_MODELS = (
    '{"data":[{"id":"tiny-embed","stats":{"queue_fraction":0.0},"object":"model","owned_by":"infinity",'
    '"created":1795246377,"backend":"torch","capabilities":["embed"]}],"object":"list"}'
)
SGLANG_MODELS = (
    '{"object":"list","data":[{"id":"qwen","object":"model","created":1795234795,"owned_by":"sglang",'
    '"root":"qwen","parent":null,"max_model_len":32768}]}'
)
TRANSFORMERS_API = json.dumps(
    {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": {"/v1/chat/completions": {}, "/v1/responses": {}, "/load_model": {}, "/v1/models": {}, "/health": {}},
    }
)
LLAMA_CPP_PYTHON_MODELS = '{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"me","permissions":[]}]}'
LM_STUDIO_MODELS = (
    '{"data":[{"id":"qwen3.5-35b-a3b","object":"model","owned_by":"organization_owner"}],"object":"list"}'
)
OWN_HEALTHZ = '{"status":"ok","framework":null,"model":null,"providers":["vllm","ollama"],"backends":[]}'


def serve(replies: dict[str, Reply], otherwise: Reply = FASTAPI_404) -> Told:
    return Told(replies, otherwise)


VLLM = {
    "/v1/models": (200, VLLM_MODELS, UVICORN),
    "/version": (200, '{"version":"0.32.0"}', UVICORN),
    "/health": (200, "", {"server": "uvicorn"}),
}
LLAMA_SERVER = {
    "/v1/models": (200, LLAMA_MODELS, LLAMA),
    "/health": (200, '{"status":"ok"}', LLAMA),
    "/props": (200, '{"default_generation_settings":{"n_ctx":256},"build_info":"b11669-Debian"}', LLAMA),
}
ROUTER = {
    "/v1/models": (200, ROUTER_MODELS, LLAMA),
    "/props": (200, '{"role":"router","max_instances":1,"build_info":"b1-0c1e570"}', LLAMA),
}
TGI = {
    "/v1/models": (200, TGI_MODELS, JSON),
    "/info": (200, TGI_INFO, JSON),
    "/health": (200, "", {}),
}
OLD_TGI = {"/info": (200, TGI_INFO, JSON), "/health": (200, "", {})}
TEI = {"/info": (200, TEI_INFO, JSON), "/health": (200, "", {})}
OLLAMA = {
    "/v1/models": (200, OLLAMA_MODELS, JSON),
    "/api/tags": (200, TAGS, JSON),
    "/api/version": (200, '{"version":"0.33.0-rc2"}', JSON),
}
EMPTY_OLLAMA = {
    "/v1/models": (200, '{"object":"list","data":null}', JSON),
    "/api/tags": (200, '{"models":null}', JSON),
    "/api/version": (200, '{"version":"0.12.11"}', JSON),
}
INFINITY = {"/models": (200, INFINITY_MODELS, UVICORN), "/health": (200, '{"unix":1795246377.7830245}', UVICORN)}
INFINITY_V1 = {"/v1/models": (200, INFINITY_MODELS, UVICORN)}
SGLANG = {"/v1/models": (200, SGLANG_MODELS, UVICORN), "/ready": (200, "", {})}
OLD_SGLANG = {"/v1/models": (200, SGLANG_MODELS, UVICORN)}
TRANSFORMERS = {
    "/v1/models": (200, '{"object":"list","data":[]}', UVICORN),
    "/health": (200, '{"status":"ok"}', UVICORN),
    "/openapi.json": (200, TRANSFORMERS_API, UVICORN),
}
BROKEN_TRANSFORMERS = TRANSFORMERS | {"/v1/models": (500, "Internal Server Error", {"content-type": "text/plain"})}
LLAMA_CPP_PYTHON = {
    "/v1/models": (200, LLAMA_CPP_PYTHON_MODELS, UVICORN),
    "/openapi.json": (
        200,
        '{"info":{"title":"llama.cpp Python API","version":"0.3.16"},"paths":{"/v1/chat/completions":{}}}',
        UVICORN,
    ),
}

VLLM_INFOS = (
    ModelInfo("tiny", 2048, "vllm", 1795234795),
    ModelInfo("lora", None, "vllm", 1795234795),
)
INFINITY_INFOS = (ModelInfo("tiny-embed", None, "infinity", 1795246377, ("embed",)),)
TGI_INFOS = (ModelInfo("acme/tiny-llama", 1024, "tgi"),)
OLLAMA_INFOS = (
    ModelInfo("pthink:latest", None, "library", 1795240614, ("completion", "tools", "thinking")),
    ModelInfo("acme/bert:latest", None, "acme", 1769983200),
)
SGLANG_INFOS = (ModelInfo("qwen", 32768, "sglang", 1795234795),)
LLAMA_INFOS = (ModelInfo("models/tiny.gguf", 256, "llamacpp", 1795234597, ("completion",)),)

ENGINES = [
    pytest.param(VLLM, FASTAPI_404, Probe("ready", "vllm", "/v1", "0.32.0", VLLM_INFOS), id="vllm"),
    pytest.param(
        LLAMA_SERVER, LLAMA_404, Probe("ready", "llamacpp", "/v1", "b11669-Debian", LLAMA_INFOS), id="llama-server"
    ),
    pytest.param(
        ROUTER,
        LLAMA_404,
        Probe(
            "ready",
            "llamacpp",
            "/v1",
            "b1-0c1e570",
            (ModelInfo("tiny-a", 512, "llamacpp", 1795234718), ModelInfo("tiny-b", None, "llamacpp", 1795234718)),
        ),
        id="llama-server-router",
    ),
    pytest.param(TGI, (404, "", {}), Probe("ready", "tgi", "/v1", "3.3.6-dev0", TGI_INFOS), id="tgi"),
    pytest.param(OLD_TGI, (404, "", {}), Probe("ready", "tgi", "/v1", "3.3.6-dev0", TGI_INFOS), id="tgi-before-2.3"),
    pytest.param(
        TEI,
        (404, "", {}),
        Probe("ready", "tei", "/v1", "1.8.3", (ModelInfo("BAAI/bge-m3", 4096, "tei", None, ("embed",)),)),
        id="tei",
    ),
    pytest.param(
        OLLAMA,
        (404, "404 page not found", {"content-type": "text/plain"}),
        Probe("ready", "ollama", "/v1", "0.33.0-rc2", OLLAMA_INFOS),
        id="ollama",
    ),
    pytest.param(
        EMPTY_OLLAMA,
        (404, "404 page not found", {"content-type": "text/plain"}),
        Probe("ready", "ollama", "/v1", "0.12.11"),
        id="ollama-without-models",
    ),
    pytest.param(INFINITY, FASTAPI_404, Probe("ready", "infinity", "", None, INFINITY_INFOS), id="infinity"),
    pytest.param(
        INFINITY_V1, FASTAPI_404, Probe("ready", "infinity", "/v1", None, INFINITY_INFOS), id="infinity-with-prefix"
    ),
    pytest.param(SGLANG, FASTAPI_404, Probe("ready", "sglang", "/v1", None, SGLANG_INFOS), id="sglang"),
    pytest.param(OLD_SGLANG, FASTAPI_404, Probe("ready", "sglang", "/v1", None, SGLANG_INFOS), id="sglang-no-ready"),
    pytest.param(TRANSFORMERS, FASTAPI_404, Probe("ready", "transformers"), id="transformers"),
    pytest.param(
        BROKEN_TRANSFORMERS,
        FASTAPI_404,
        Probe("ready", "transformers", detail="it lists no models (answered 500 at /v1/models)"),
        id="transformers-500",
    ),
    pytest.param(
        LLAMA_CPP_PYTHON,
        FASTAPI_404,
        Probe("ready", "openai", "/v1", None, (ModelInfo("tiny", None, "me"),)),
        id="llama-cpp-python",
    ),
    pytest.param(
        {"/v1/models": (200, LM_STUDIO_MODELS, JSON)},
        LM_STUDIO_ANY,
        Probe("ready", "openai", "/v1", None, (ModelInfo("qwen3.5-35b-a3b", None, "organization_owner"),)),
        id="lm-studio",
    ),
]


@pytest.mark.parametrize(("replies", "otherwise", "expected"), ENGINES)
async def test_engine_is_recognised(replies: dict[str, Reply], otherwise: Reply, expected: Probe) -> None:
    told = serve(replies, otherwise)
    assert await probe(told, ROOT + "/", None, None, 5) == expected
    assert len(told.paths) == len(set(told.paths)) <= 8


@pytest.mark.parametrize(("replies", "otherwise", "expected"), ENGINES)
async def test_known_engine_costs_two_requests(replies: dict[str, Reply], otherwise: Reply, expected: Probe) -> None:
    told = serve(replies, otherwise)
    found = await probe(told, ROOT, expected.kind, None, 5, expected.version)
    assert found == expected
    assert len(told.paths) <= 2


async def test_version_is_asked_until_it_is_known() -> None:
    told = serve(VLLM)
    assert (await probe(told, ROOT, "vllm", None, 5)).version == "0.32.0"
    assert told.paths == ["/v1/models", "/health", "/version"]


@pytest.mark.parametrize("listed_as", ["vllm", "illm-demo"])
async def test_another_gateway_is_no_engine(listed_as: str) -> None:
    models = VLLM_MODELS.replace('"vllm"', f'"{listed_as}"')
    told = serve({"/v1/models": (200, models, UVICORN), "/healthz": (200, OWN_HEALTHZ, UVICORN)})
    found = await probe(told, ROOT, None, None, 5)
    assert (found.state, found.kind, found.gateway, found.models) == ("down", None, True, ())


async def test_gateway_with_keys_is_seen() -> None:
    told = serve({"/v1/models": (401, "{}", UVICORN), "/healthz": (200, OWN_HEALTHZ, UVICORN)})
    assert (await probe(told, ROOT, None, None, 5)).gateway


NOT_READY = [
    pytest.param({}, LLAMA_LOADING, None, "loading", "llamacpp", "loading (503 Loading model)", id="llama-loading"),
    pytest.param({}, LLAMA_LOADING, "llamacpp", "loading", "llamacpp", "loading (503 Loading model)", id="known"),
    pytest.param(
        SGLANG | {"/ready": (503, "", {})},
        FASTAPI_404,
        None,
        "loading",
        "sglang",
        "loading (503 at /ready)",
        id="sglang",
    ),
    pytest.param(
        VLLM | {"/health": (503, "", {})},
        FASTAPI_404,
        "vllm",
        "down",
        "vllm",
        "answered 503 at /health",
        id="vllm-dead",
    ),
    pytest.param(
        TGI | {"/health": (503, '{"error":"unhealthy","error_type":"healthcheck"}', JSON)},
        FASTAPI_404,
        None,
        "down",
        "tgi",
        "answered 503 at /health: unhealthy",
        id="tgi-unhealthy",
    ),
    pytest.param({}, (500, "oops", {}), "openai", "down", "openai", "answered 500 at /v1/models", id="broken"),
    pytest.param(
        {},
        (307, "", {"location": "http://engine.test:8000/elsewhere"}),
        "vllm",
        "down",
        "vllm",
        "answered 307, a redirect: base_url must name where it leads",
        id="redirect",
    ),
    pytest.param(
        {},
        (302, "", {"location": "/login"}),
        None,
        "down",
        None,
        "something answers (302 at /v1/models), but not as an engine does",
        id="redirect-unknown",
    ),
    pytest.param(
        {},
        (200, "<!doctype html><title>hi</title>", HTML),
        "vllm",
        "down",
        "vllm",
        "what it answers at /v1/models is not vllm's list of models: check base_url and kind",
        id="html-known",
    ),
    pytest.param({}, LM_STUDIO_ANY, "ollama", "down", "ollama", None, id="200-for-everything"),
    pytest.param({}, LM_STUDIO_ANY, None, "down", None, None, id="200-for-everything-unknown"),
    pytest.param({}, (403, "", {}), "ollama", "down", "ollama", None, id="ollama-foreign-host"),
    pytest.param(
        {},
        LLAMA_404,
        "tgi",
        "down",
        "tgi",
        "answered 404 at /info: File Not Found",
        id="wrong-kind",
    ),
]


@pytest.mark.parametrize(("replies", "otherwise", "kind", "state", "found_kind", "detail"), NOT_READY)
async def test_not_ready(
    replies: dict[str, Reply],
    otherwise: Reply,
    kind: None,
    state: str,
    found_kind: str | None,
    detail: str | None,
) -> None:
    told = serve(replies, otherwise)
    found = await probe(told, ROOT, kind, None, 5)
    assert (found.state, found.kind, found.models) == (state, found_kind, ())
    assert found.detail == detail if detail is not None else found.detail


async def test_web_server_is_asked_once() -> None:
    told = serve({}, (200, "<!doctype html><title>hi</title>", HTML))
    found = await probe(told, ROOT, None, None, 5)
    assert (found.state, found.kind) == ("down", None)
    assert told.paths == ["/v1/models"]


@pytest.mark.parametrize(
    ("replies", "otherwise", "kind", "key", "found_kind", "detail"),
    [
        ({}, LLAMA_401, None, None, "llamacpp", "answered 401: an api_key is missing"),
        ({}, LLAMA_401, "llamacpp", "sk-wrong", "llamacpp", "answered 401: check api_key"),
        (
            VLLM | {"/v1/models": (401, '{"error":"Unauthorized"}', UVICORN)},
            FASTAPI_404,
            None,
            None,
            "vllm",
            "answered 401: an api_key is missing",
        ),
        ({}, (403, "no", {}), None, "sk-wrong", None, "answered 403: check api_key"),
        ({}, (400, '{"error":{"message":"no such key:\\n sk-wrong"}}', JSON), "openai", "sk-wrong", "openai", None),
    ],
)
async def test_key_trouble(
    replies: dict[str, Reply],
    otherwise: Reply,
    kind: None,
    key: str | None,
    found_kind: str | None,
    detail: str | None,
) -> None:
    told = serve(replies, otherwise)
    found = await probe(told, ROOT, kind, key, 5)
    assert (found.state, found.kind) == ("down", found_kind)
    assert "sk-wrong" not in found.detail
    assert found.detail == (detail or "answered 400 at /v1/models: no such key: ***")


async def test_key_is_sent() -> None:
    told = serve(VLLM)
    await probe(told, ROOT, None, "sk-ünicode", 5)
    assert {one.key for one in told.asked} == {"sk-ünicode"}


async def test_openai_without_a_list_is_up() -> None:
    told = serve({})
    found = await probe(told, ROOT, "openai", None, 5)
    assert found == Probe("ready", "openai", detail="it lists no models (answered 404 at /models)")
    assert (await probe(told, ROOT, None, None, 5)).state == "down"


async def test_openai_without_prefix() -> None:
    told = serve({"/models": (200, LLAMA_CPP_PYTHON_MODELS, JSON)})
    for kind in (None, "openai"):
        found = await probe(told, ROOT, kind, None, 5)  # type: ignore[arg-type]
        assert (found.kind, found.prefix, len(found.models)) == ("openai", "", 1)


async def test_odd_lists() -> None:
    odd = [
        None,
        7,
        {"object": "model"},
        {"id": ["x"]},
        {"id": ""},
        {"id": "x" * 513},
        {"id": "good", "created": 17.9, "max_model_len": "many", "owned_by": 5, "meta": 1, "capabilities": ["a", 2]},
        {"id": "good", "created": 5},
        {"id": "flag", "max_model_len": True, "created": -1},
    ]
    body = json.dumps({"data": odd, "models": [{"name": ["x"]}, 3]})
    told = serve({"/v1/models": (200, body, JSON)})
    found = await probe(told, ROOT, "openai", None, 5)
    assert found.models == (ModelInfo("good", None, "", 17, ("a",)), ModelInfo("flag"))


async def test_list_is_bounded() -> None:
    entries = [{"id": f"m{number}"} for number in range(MAX_MODELS + 5)]
    told = serve({"/v1/models": (200, json.dumps({"data": entries}), JSON)})
    assert len((await probe(told, ROOT, "openai", None, 5)).models) == MAX_MODELS


async def test_no_answer_is_told_in_its_words() -> None:
    told = Told({}, Unanswered("connection refused"))
    assert await probe(told, ROOT, None, None, 5) == Probe("down", None, detail="connection refused")
    assert await probe(told, ROOT, "vllm", None, 5) == Probe("down", "vllm", detail="connection refused")


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"])
async def test_slow_answers_end_at_the_limit(first: bytes) -> None:
    closed = asyncio.Event()

    async def dawdle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # given up before it was asked, on a busy machine
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        closed.set()
        writer.close()

    with asking() as asker:
        async with await asyncio.start_server(dawdle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            found = await probe(asker, f"http://127.0.0.1:{port}", None, None, 0.2)
            assert found == Probe("down", None, detail="no answer within 0.2 s")
            async with asyncio.timeout(PATIENCE):
                await closed.wait()


def test_dates_and_lengths_of_the_contract() -> None:
    stamped = {"models": [{"name": "llama3.2:3b", "modified_at": "2026-02-01T00:00:00.5Z"}]}
    assert ollama_models(stamped) == (ModelInfo("llama3.2:3b", None, "library", 1769904000),)
    older = {"model_id": "bigscience/bloom-560m", "max_input_length": 1024, "max_total_tokens": 2048}
    assert tgi_models(older) == (ModelInfo("bigscience/bloom-560m", 2048, "tgi"),)


def test_usual_ports() -> None:
    assert set(LOCAL_PORTS) >= {11434, 8000, 8080, 30000, 3000, 1234, 7997}
