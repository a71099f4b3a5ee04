"""What Ollama tells of a model beyond its list, and that it ends up in `/v1/models`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import respx

from proxy.describe import Known, describe_ollama
from proxy.discovery import new_client
from proxy.engine_answers import ollama_models
from tests.vectors_support import cases

ROOT = "http://ollama.test:11434"
SHOWN = next(case for case in cases("models") if case["name"] == "show_to_model")
LISTED = next(case for case in cases("models") if case["name"] == "tags_to_model_list")


@respx.mock
async def test_described_as_the_contract_says() -> None:
    models = ollama_models(LISTED["upstream_response"]["body"])
    assert models is not None
    show = respx.post(f"{ROOT}/api/show").respond(json=SHOWN["upstream_response"]["body"])
    respx.get(f"{ROOT}/api/ps").respond(json={"models": []})
    async with new_client() as client:
        (model,) = await describe_ollama(client, ROOT, "secret", models[:1], {})
    wanted = SHOWN["response_out"]["body"] if "body" in SHOWN["response_out"] else SHOWN["response_out"]

    assert json.loads(show.calls[0].request.content) == SHOWN["upstream_request"]["body"]
    assert show.calls[0].request.headers["authorization"] == "Bearer secret"
    assert (model.created, model.owned_by) == (wanted["created"], wanted["owned_by"])
    assert (model.max_model_len, list(model.capabilities)) == (wanted["max_model_len"], wanted["capabilities"])


@respx.mock
async def test_asked_once_for_each_version_and_loaded_context_wins() -> None:
    models = ollama_models(LISTED["upstream_response"]["body"])
    assert models is not None
    show = respx.post(f"{ROOT}/api/show").respond(json=SHOWN["upstream_response"]["body"])
    respx.get(f"{ROOT}/api/ps").respond(json={"models": [{"model": models[0].id, "context_length": 4096}]})
    known: Known = {}
    async with new_client() as client:
        await describe_ollama(client, ROOT, None, models, known)
        first, second = await describe_ollama(client, ROOT, None, models, known)

    assert show.call_count == len(models) == 2
    assert (first.max_model_len, second.max_model_len) == (4096, 131072)


@pytest.mark.parametrize(
    "answer", [httpx.Response(404, json={"error": "no"}), httpx.Response(200, text="<html>"), httpx.ConnectError("no")]
)
@respx.mock
async def test_a_question_that_fails_changes_nothing(answer: Any) -> None:
    models = ollama_models(LISTED["upstream_response"]["body"])
    assert models is not None
    respx.post(f"{ROOT}/api/show").mock(side_effect=[answer, answer])
    respx.get(f"{ROOT}/api/ps").mock(side_effect=[answer])
    async with new_client() as client:
        assert await describe_ollama(client, ROOT, None, models, {}) == models
