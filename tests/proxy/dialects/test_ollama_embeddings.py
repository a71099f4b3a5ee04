"""Embeddings from Ollama: both of its endpoints, both encodings, lengths."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Answered, Ask, Fetch, Reply, Target
from proxy.dialects.ollama import DIALECT
from proxy.dialects.ollama.embeddings import normalised
from proxy.errors import ApiError
from tests.proxy.dialects.ollama_support import Steps, answered, request, target

MISSING = answered("404 page not found", 404, "text/plain")


def embed(body: dict[str, Any], answers: list[Answered], to: Target | None = None) -> tuple[dict[str, Any], Steps]:
    left = list(answers)
    steps = Steps(lambda _: left.pop(0))
    reply = steps.run(DIALECT.encode(request("embeddings", {"model": "pub-oll"} | body), to or target()))
    assert isinstance(reply, Reply)
    assert not left
    return json.loads(reply.body), steps


def asked(step: Ask | Fetch) -> tuple[str, Any]:
    assert isinstance(step, Ask)
    return step.path, json.loads(step.body or b"null")


def vectors(*given_: Any) -> Answered:
    return answered({"model": "x", "embeddings": list(given_), "prompt_eval_count": 3})


def test_members_and_configuration() -> None:
    to = target(options={"num_ctx": 512, "keep_alive": "5m", "strict_context": True})
    body = {"input": "a", "dimensions": 2, "options": {"num_gpu": 0}, "user": "u", "encoding_format": None, "new": 1}
    _, steps = embed(body, [vectors([0.6, 0.8])], to)
    assert asked(steps.asked[0]) == (
        "/api/embed",
        {"model": "llama3.2:3b", "input": "a", "dimensions": 2, "keep_alive": "5m", "truncate": False, "new": 1,
         "options": {"num_ctx": 512, "num_gpu": 0}},
    )  # fmt: skip


def test_old_servers_ignore_dimensions() -> None:
    reply, _ = embed({"input": ["a", "b"], "dimensions": 2}, [vectors([3.0, 4.0, 12.0], [0.6, 0.8])])
    assert [one["embedding"] for one in reply["data"]] == [[0.6, 0.8], [0.6, 0.8]]


def test_the_old_endpoint_is_remembered() -> None:
    old = [answered({"embedding": [3.0, 4.0]}), answered({"embedding": [0.0, 0.0]})]
    reply, steps = embed({"input": ["a", ""], "keep_alive": 5}, [MISSING, *old])
    assert [one["embedding"] for one in reply["data"]] == [[0.6, 0.8], [0.0, 0.0]]
    assert [asked(step) for step in steps.asked[1:]] == [
        ("/api/embeddings", {"model": "llama3.2:3b", "keep_alive": 5, "prompt": "a"}),
        ("/api/embeddings", {"model": "llama3.2:3b", "keep_alive": 5, "prompt": ""}),
    ]
    again, steps = embed({"input": "a"}, [old[0]], target(facts=steps.learned))
    assert [asked(step)[0] for step in steps.asked] == ["/api/embeddings"]
    assert again["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_a_backend_with_neither_endpoint() -> None:
    steps = Steps(lambda _: MISSING)
    with pytest.raises(ApiError) as caught:
        steps.run(DIALECT.encode(request("embeddings", {"input": "a"}), target()))
    assert caught.value.code == "upstream_invalid_response"
    assert steps.learned == {}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (answered({"error": 'model "x" not found, try pulling it first'}, 404), "model_not_found"),
        (answered({"error": "the input length exceeds the context length"}, 400), "context_length_exceeded"),
        (answered("", 501, ""), "unsupported_endpoint"),
        (vectors([1.0], [2.0]), "upstream_invalid_response"),
        (answered({"embeddings": None}), "upstream_invalid_response"),
        (answered({"embeddings": [[None]]}), "upstream_invalid_response"),
        (answered({"embeddings": ["x"]}), "upstream_invalid_response"),
        (answered({"error": "boom"}), "upstream_error"),
        (answered("<html>"), "upstream_invalid_response"),
    ],
)
def test_failures(answer: Answered, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        embed({"input": "a"}, [answer])
    assert caught.value.code == code
    assert caught.value.param == {"model_not_found": "model", "context_length_exceeded": "input",
                                  "unsupported_endpoint": "model"}.get(code)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": {}}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input", "invalid_value"),
        ({"input": [1, [2]]}, "input", "unsupported_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": True}, "dimensions", "invalid_value"),
        ({"input": "a", "encoding_format": ["x"]}, "encoding_format", "invalid_value"),
        ({"input": "a", "options": 1}, "options", "invalid_value"),
    ],
)
def test_bad_requests_ask_nobody(body: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        embed(body, [])
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_base64_is_float32(vector: list[float]) -> None:
    reply, _ = embed({"input": "a", "encoding_format": "base64"}, [vectors(vector)])
    packed = base64.b64decode(reply["data"][0]["embedding"], validate=True)
    assert list(struct.unpack(f"<{len(vector)}f", packed)) == vector


def test_numbers_beyond_float32_are_no_vector() -> None:
    with pytest.raises(ApiError) as caught:
        embed({"input": "a", "encoding_format": "base64"}, [vectors([1e300])])
    assert caught.value.code == "upstream_invalid_response"


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=1, max_size=20))
def test_normalised(vector: list[float]) -> None:
    length = sum(x * x for x in normalised(vector))
    assert length == pytest.approx(1.0 if any(vector) else 0.0)
