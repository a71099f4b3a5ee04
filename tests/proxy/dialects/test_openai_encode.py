"""What an engine is asked: the client's own bytes but for the name, the gateway's members and the few words that this
engine has others for; and the path, which every engine has for what it can."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from proxy.dialects.base import Encoded, Endpoint, EngineKind, Request, Target
from proxy.dialects.openai import DIALECT
from proxy.dialects.openai.paths import ABILITIES, PATHS, TITLES
from proxy.errors import ApiError
from proxy.forms import audio_form
from proxy.wire import members

KINDS: tuple[EngineKind, ...] = get_args(EngineKind)
ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)


def target(kind: EngineKind = "vllm", **how: Any) -> Target:
    return Target(**{"kind": kind, "backend": "b", "model": "up", "public": "pub"} | how)


def request(body: bytes | dict[str, Any], endpoint: Endpoint = "chat") -> Request:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = members(raw)
    return Request(endpoint, raw, parts, None, bytes(parts.get("stream", b"")) == b"true")


def encoded(asked: Request, to: Target) -> Encoded:
    (call,) = DIALECT.encode(asked, to).calls
    return call


def sent(body: bytes | dict[str, Any], to: Target | None = None, endpoint: Endpoint = "chat") -> Any:
    return json.loads(encoded(request(body, endpoint), to or target()).body)


# -- bytes -------------------------------------------------------------------------------------------------------

ODD = (
    b'"big":123456789012345678901234567890,"one":1.0,"e":1E5,"esc":"\\u00e9\\ud83d\\ude00\\/","sp" : [ 1 , 2 ],'
    b'"twice":{"a":1,"a":2},"model2":"up","nul":null'
)


def test_equal_names_leave_the_bytes_alone() -> None:
    body = b' { "messages":[],"model" : "up",  ' + ODD + b"}\n"
    call = encoded(request(body), target())

    assert call.body is body
    assert call.content_type == "application/json"


def test_a_name_spelled_with_escapes_is_the_same_name() -> None:
    body = b'{"messages":[],"model":"\\u0075p"}'

    assert encoded(request(body), target()).body is body


@pytest.mark.parametrize("extra", [b'"model":"pub"', b'"model":"up","framework":"vllm"', b'"embedding_model":"x"'])
def test_a_change_leaves_every_other_value_alone(extra: bytes) -> None:
    body = encoded(request(b'{"messages":[],' + ODD + b"," + extra + b"}"), target()).body
    parts = members(body)

    assert {name: bytes(value) for name, value in parts.items() if name not in ("model", "messages")} == {
        "big": b"123456789012345678901234567890",
        "one": b"1.0",
        "e": b"1E5",
        "esc": b'"\\u00e9\\ud83d\\ude00\\/"',
        "sp": b"[ 1 , 2 ]",
        "twice": b'{"a":1,"a":2}',
        "model2": b'"up"',
        "nul": b"null",
    }
    assert bytes(parts["model"]) == b'"up"'


def test_the_last_of_two_equal_members_wins() -> None:
    assert sent(b'{"model":"a","n":1,"model":"pub","n":2}') == {"model": "up", "n": 2}


# -- members -----------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[EngineKind, dict[str, Any], dict[str, Any]]] = {
    "llama.cpp's word": ("llamacpp", {"repetition_penalty": 1.1, "n_probs": 1}, {"repeat_penalty": 1.1, "n_probs": 1}),
    "vLLM's word": ("vllm", {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
    "SGLang's word": ("sglang", {"repeat_penalty": 1.1}, {"repetition_penalty": 1.1}),
    "both words": (
        "vllm", {"repeat_penalty": 1, "repetition_penalty": 2}, {"repeat_penalty": 1, "repetition_penalty": 2},
    ),
    "its own word": ("llamacpp", {"repeat_penalty": 2, "n_probs": 1}, {"repeat_penalty": 2, "n_probs": 1}),
    "no word known": ("openai", {"repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
    "stream options alone": ("vllm", {"stream_options": {"include_usage": True}}, {}),
    "stream false": ("vllm", {"stream": False, "stream_options": {}}, {"stream": False}),
    "stream options": (
        "vllm", {"stream": True, "stream_options": {"x": 1}}, {"stream": True, "stream_options": {"x": 1}},
    ),
    "llama.cpp is asked for a stream": (
        "llamacpp", {"temperature": 0}, {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}},
    ),
    "not where a stream says less": ("llamacpp", {"logprobs": True}, {"logprobs": True}),
    "llama.cpp's own stream": ("llamacpp", {"stream": True}, {"stream": True}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "expected"), CHANGES.values(), ids=CHANGES)
def test_members(kind: EngineKind, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sent({"model": "pub", "messages": []} | given, target(kind)) == {"model": "up", "messages": []} | expected


def test_options_fill_only_what_is_absent() -> None:
    to = target(options={"min_p": 0.1, "seed": 1, "nested": {"a": [1]}})

    assert sent({"messages": [], "seed": 7}, to) == {
        "messages": [], "seed": 7, "model": "up", "min_p": 0.1, "nested": {"a": [1]},
    }  # fmt: skip


GENERATION: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"top_k": 5, "min_p": 0.1}, {"top_k": 5, "min_p": 0.1}),
    ({"top_k": 5, "generation_config": '{"top_k":9,"x":1}'}, {"top_k": 9, "x": 1}),
    ({"top_k": 5, "generation_config": {"x": 1}}, {"top_k": 5, "x": 1}),
    ({"repetition_penalty": 1.1, "generation_config": None}, {"repetition_penalty": 1.1}),
    ({"temperature": 1}, None),
]


@pytest.mark.parametrize(("given", "expected"), GENERATION)
def test_transformers_generation_config(given: dict[str, Any], expected: dict[str, Any] | None) -> None:
    """transformers serve refuses members that it doesn't know, and takes these as JSON inside a text."""
    got = sent({"messages": [], "model": "up"} | given, target("transformers"))

    assert not {"top_k", "min_p", "typical_p", "repetition_penalty"} & got.keys()
    assert (json.loads(got["generation_config"]) if "generation_config" in got else None) == expected


def test_a_generation_config_that_is_none() -> None:
    with pytest.raises(ApiError) as caught:
        sent({"messages": [], "top_k": 5, "generation_config": "nonsense"}, target("transformers"))

    assert (caught.value.status, caught.value.param) == (400, "generation_config")


# -- media -------------------------------------------------------------------------------------------------------

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("infinity", "tei", "tgi", "ollama")])
def test_image_base64_becomes_a_data_url(kind: EngineKind) -> None:
    part = {"type": "image_base64", "image_base64": PNG}
    got = sent({"model": "up", "messages": [{"role": "user", "content": [part]}], "stream": True}, target(kind))

    assert got["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    ]


@pytest.mark.parametrize("kind", [k for k in KINDS if "chat" in PATHS[k] and k != "ollama"])
@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "ftp://x/y", "http:///x"])
def test_no_engine_is_sent_a_local_file(kind: EngineKind, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(ApiError) as caught:
        sent({"model": "up", "messages": [{"role": "user", "content": [part]}]}, target(kind))

    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_media_in_a_backends_options_is_looked_at_too() -> None:
    part = {"type": "image_url", "image_url": "file:///x"}
    with pytest.raises(ApiError):
        sent({"messages": []} | {"model": "up"}, target(options={"documents": [{"content": [part]}]}))


# -- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("ollama", "tgi")])
def test_each_path(kind: EngineKind, endpoint: Endpoint) -> None:
    if endpoint in ("transcriptions", "translations"):
        asked = Request(endpoint, b"", None, audio_form({"audio_base64": "AAAA", "model": "pub"}))
    else:
        asked = request({"model": "pub", "query": "q", "documents": ["d"]}, endpoint)
    if endpoint in PATHS[kind]:
        path = encoded(asked, target(kind, prefix="/v1")).path

        assert path == PATHS[kind][endpoint].replace("{v1}", "/v1")
        assert path.startswith("/")
        assert encoded(asked, target(kind, prefix="")).path == PATHS[kind][endpoint].replace("{v1}", "")
    else:
        with pytest.raises(ApiError) as caught:
            DIALECT.encode(asked, target(kind))

        exc = caught.value
        assert (exc.status, exc.type, exc.code, exc.param) == (
            422, "CapabilityNotSupported", "unsupported_endpoint", "model",
        )  # fmt: skip
        assert TITLES[kind] in exc.message
        assert ABILITIES[endpoint] in exc.message
        assert "'b'" in exc.message
        assert "'pub'" in exc.message


def test_the_tables_are_complete() -> None:
    assert set(PATHS) == set(TITLES) == set(KINDS)
    assert set(ABILITIES) == set(ENDPOINTS)
