"""Rerank on TEI in the form that everyone else speaks."""

from typing import Any

import pytest

from proxy.dialects.base import Target
from proxy.dialects.openai.tei import decode_rerank, encode_rerank
from proxy.errors import ApiError

TARGET = Target(kind="tei", backend="t", model="BAAI/bge-reranker", public="ranker")
ASKED = {"model": "ranker", "query": "q", "documents": ["a", {"text": "b", "id": 7}, "c"]}
RANKS = [{"index": 2, "score": 0.9}, {"index": 0, "score": 0.1}, {"index": 1, "score": 0.5}]


def refused(body: dict) -> str | None:
    with pytest.raises(ApiError) as caught:
        encode_rerank(body, TARGET)
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")
    return caught.value.param


def test_encode() -> None:
    body = {
        **ASKED,
        "top_n": 2,
        "return_documents": True,
        "truncate": True,
        "raw_scores": False,
        "max_chunks_per_doc": 3,
    }

    assert encode_rerank(body, TARGET) == {
        "query": "q",
        "texts": ["a", "b", "c"],
        "truncate": True,
        "raw_scores": False,
    }


def test_encode_takes_the_backends_options() -> None:
    target = Target(kind="tei", backend="t", model="m", public="p", options={"truncate": True})

    assert encode_rerank(ASKED, target)["truncate"] is True
    assert encode_rerank({**ASKED, "truncate": False}, target)["truncate"] is False


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": None}, "query"),
        ({"query": ["q"]}, "query"),
        ({"documents": None}, "documents"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", 1]}, "documents"),
        ({"documents": ["a", {"text": None}]}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"top_n": "2"}, "top_n"),
    ],
)
def test_encode_refuses(change: dict, param: str) -> None:
    assert refused({**ASKED, **change}) == param


def test_decode_sorts_by_falling_score() -> None:
    assert decode_rerank(RANKS, ASKED, TARGET) == {
        "object": "list",
        "model": "ranker",
        "results": [
            {"index": 2, "relevance_score": 0.9},
            {"index": 1, "relevance_score": 0.5},
            {"index": 0, "relevance_score": 0.1},
        ],
    }


def test_decode_cuts_to_top_n_and_gives_documents_back() -> None:
    asked = {**ASKED, "top_n": 2, "return_documents": True}

    assert decode_rerank(RANKS, asked, TARGET)["results"] == [
        {"index": 2, "relevance_score": 0.9, "document": {"text": "c"}},
        {"index": 1, "relevance_score": 0.5, "document": {"text": "b"}},
    ]


def test_equal_and_negative_scores() -> None:
    ranks = [{"index": 1, "score": -2.5}, {"index": 0, "score": -2.5}, {"index": 2, "score": 0}]

    results = decode_rerank(ranks, {**ASKED, "top_n": 9}, TARGET)["results"]

    assert [(r["index"], r["relevance_score"]) for r in results] == [(2, 0), (0, -2.5), (1, -2.5)]


@pytest.mark.parametrize(
    "reply",
    [
        None,
        {"results": []},
        ["x"],
        [{"index": 0}],
        [{"index": 3, "score": 1}],
        [{"index": -1, "score": 1}],
        [{"index": "0", "score": 1}],
        [{"index": 0, "score": "x"}],
        [{"index": 0, "score": None}],
    ],
)
def test_decode_refuses_what_is_no_ranking(reply: Any) -> None:
    with pytest.raises(ApiError) as caught:
        decode_rerank(reply, ASKED, TARGET)

    assert caught.value.code == "upstream_invalid_response"


def test_teis_own_form_passes() -> None:
    body = {"model": "ranker", "framework": "tei", "query": "q", "texts": ["a", "b"], "return_text": True}

    assert encode_rerank(body, TARGET) == {"query": "q", "texts": ["a", "b"], "return_text": True}
    assert decode_rerank(RANKS, body, TARGET) is RANKS
