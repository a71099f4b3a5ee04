"""What Ollama tells of a model beyond its list, and that it ends up in `/v1/models`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.ask import Unanswered
from proxy.describe import Known, describe_ollama
from proxy.engine_answers import ollama_models
from tests.proxy.told import Reply, Told
from tests.vectors_support import cases

ROOT = "http://ollama.test:11434"
SHOWN = next(case for case in cases("models") if case["name"] == "show_to_model")
LISTED = next(case for case in cases("models") if case["name"] == "tags_to_model_list")
NOTHING: Reply = (404, '{"error":"no"}', {})


def said(value: Any) -> Reply:
    return 200, json.dumps(value), {}


async def test_described_as_the_contract_says() -> None:
    models = ollama_models(LISTED["upstream_response"]["body"])
    assert models is not None
    show = said(SHOWN["upstream_response"]["body"])
    told = Told({"/api/show": show, "/api/ps": said({"models": []})}, NOTHING)
    (model,) = await describe_ollama(told, ROOT, "secret", models[:1], {})
    wanted = SHOWN["response_out"]["body"] if "body" in SHOWN["response_out"] else SHOWN["response_out"]

    assert told.asked[0].body is not None
    assert json.loads(told.asked[0].body) == SHOWN["upstream_request"]["body"]
    assert {(one.root, one.key) for one in told.asked} == {(ROOT, "secret")}
    assert (model.created, model.owned_by) == (wanted["created"], wanted["owned_by"])
    assert (model.max_model_len, list(model.capabilities)) == (wanted["max_model_len"], wanted["capabilities"])


async def test_asked_once_for_each_version_and_loaded_context_wins() -> None:
    models = ollama_models(LISTED["upstream_response"]["body"])
    assert models is not None
    loaded = said({"models": [{"model": models[0].id, "context_length": 4096}]})
    told = Told({"/api/show": said(SHOWN["upstream_response"]["body"]), "/api/ps": loaded}, NOTHING)
    known: Known = {}
    await describe_ollama(told, ROOT, None, models, known)
    first, second = await describe_ollama(told, ROOT, None, models, known)

    assert told.paths.count("/api/show") == len(models) == 2
    assert (first.max_model_len, second.max_model_len) == (4096, 131072)


@pytest.mark.parametrize("answer", [NOTHING, (200, "<html>", {}), Unanswered("no")], ids=["404", "a page", "none"])
async def test_a_question_that_fails_changes_nothing(answer: Any) -> None:
    models = ollama_models(LISTED["upstream_response"]["body"])
    assert models is not None
    assert await describe_ollama(Told({}, answer), ROOT, None, models, {}) == models
