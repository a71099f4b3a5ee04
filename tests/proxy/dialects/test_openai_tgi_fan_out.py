"""`n` and long lists of prompts on TGI's own /v1: which requests they become, and one answer made of several."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from proxy.dialects.openai.tgi import children, fixers, joined
from proxy.errors import ApiError
from tests.proxy.dialects.tgi_support import target

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def ids(prefix: str) -> str:
    return prefix + "0" * 32


def chunk(text: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": reason}
    return {"id": "", "object": "chat.completion.chunk", "created": 7, "model": "Q", "choices": [choice], **more}


@pytest.mark.parametrize(
    ("endpoint", "body", "wanted"),
    [
        ("chat", CHAT, []),
        ("chat", CHAT | {"n": 1}, []),
        ("chat", CHAT | {"n": 2, "seed": 5}, [(0, None, 5), (1, None, 6)]),
        ("completions", {"prompt": list("abcd")}, []),
        ("completions", {"prompt": list("abcde")}, [(i, p, None) for i, p in enumerate("abcde")]),
        ("completions", {"prompt": "a", "n": 2}, [(0, "a", None), (1, "a", None)]),
        (
            "completions",
            {"prompt": ["a", "b"], "n": 2},
            [(0, "a", None), (1, "a", None), (2, "b", None), (3, "b", None)],
        ),
    ],
)
def test_children(endpoint: Any, body: dict[str, Any], wanted: list[Any]) -> None:
    found = children(endpoint, body, target())

    assert [(child.index, one.get("prompt"), one.get("seed")) for one, child in found] == wanted
    assert all("n" not in one for one, _ in found)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({"prompt": "a", "n": 9}, ("n", "unsupported_value")),
        ({"prompt": "a", "n": 0}, ("n", "invalid_value")),
        ({"prompt": ["a"] * 33}, ("prompt", "unsupported_value")),
    ],
)
def test_limits(body: dict[str, Any], refusal: tuple[str, str]) -> None:
    with pytest.raises(ApiError) as caught:
        children("completions", body, target())

    assert (caught.value.param, caught.value.code) == refusal


def test_one_whole_answer() -> None:
    asked = children("chat", CHAT | {"n": 2}, target())
    answers = [
        {
            "id": "", "object": "chat.completion", "created": 7, "model": "Q",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None,
                         "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        }
        for text in "ab"
    ]  # fmt: skip
    whole = joined("chat", asked, answers, target(), ids)

    assert [(choice["index"], choice["message"]["content"]) for choice in whole["choices"]] == [(0, "a"), (1, "b")]
    assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


@pytest.mark.parametrize("order", sorted(set(itertools.permutations([0, 0, 0, 1, 1, 1]))))
def test_one_stream(order: tuple[int, ...]) -> None:
    """However the children's events come: one id, each choice whole, usage once and last."""
    body = CHAT | {"n": 2, "stream": True, "stream_options": {"include_usage": True}}
    pair = fixers("chat", children("chat", body, target()), target(), ids)
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    left = [[chunk("a"), chunk("b", "stop"), {**chunk(""), "choices": [], "usage": usage}] for _ in pair]
    out: list[dict[str, Any]] = []
    for index in order:
        out += pair[index].event(left[index].pop(0))
        if not left[index]:
            assert not pair[index].last
            out += pair[index].end()
    texts = ["", ""]
    for one in out[:-1]:
        (choice,) = one["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")

    assert texts == ["ab", "ab"]
    assert len({one["id"] for one in out}) == 1
    assert [bool(one.get("usage")) for one in out] == [False] * (len(out) - 1) + [True]
    assert out[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert pair[0].last
    assert pair[1].last
