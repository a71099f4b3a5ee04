"""A glance at a body tells what a closer look would: it passes nothing that members or media rules would change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.dialects.base import EngineKind, Request, Target
from proxy.dialects.openai import DIALECT
from proxy.dialects.openai.reply import decode_json
from proxy.errors import ApiError
from proxy.glance import glance, told

KINDS: list[EngineKind] = ["vllm", "sglang", "llamacpp", "transformers", "infinity", "openai", "tei"]
NAMES = (
    "model", "stream", "stream_options", "n", "temperature", "repetition_penalty", "repeat_penalty", "framework",
    "embedding_model", "prompt", "input", "documents", "query", "top_k", "tools", "logprobs", "data_1",
)  # fmt: skip
URLS = st.sampled_from(["http://a/b.png", "file:///etc/passwd", "data:image/png;base64,iVBORw0KGgo=", "/etc/passwd"])
PARTS = st.one_of(
    st.text(max_size=3),
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=3)}),
            st.builds(lambda url: {"type": "image_url", "image_url": url}, URLS),
            st.builds(lambda url: {"type": "image_url", "image_url": {"url": url}}, URLS),
        ),
        max_size=2,
    ),
    st.none(),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user")},
        optional={"content": PARTS, "image": URLS, "image_url": URLS, "output": PARTS, "type": st.just("message"),
                  "name": st.text(max_size=2), "tool_calls": st.just([{"id": "1"}])},
    ),
    max_size=3,
)  # fmt: skip
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["pub", "else", "", None, 1]),
    "stream": st.sampled_from([True, False, None, "true", 1]),
    "stream_options": st.just({"include_usage": True}),
    "n": st.sampled_from([1, 2, None]),
    "framework": st.sampled_from(["vllm", ""]),
    "prompt": st.sampled_from(["p", ["a", "b"]]),
    "input": PARTS,
    "documents": PARTS,
}
BODIES = st.fixed_dictionaries(
    {"messages": MESSAGES},
    optional={name: VALUES.get(name, st.sampled_from([1, "a", None, True])) for name in NAMES},
)


def encoded(request: Request, target: Target) -> Any:
    """What is sent, or the error."""
    try:
        (call,) = DIALECT.encode(request, target).calls
    except ApiError as exc:
        return exc.code, exc.message
    return call.path, json.loads(call.body)


@given(body=BODIES, kind=st.sampled_from(KINDS), options=st.sampled_from([{}, {"top_k": 1}]))
@example(body={"messages": [{"role": "user", "image": "file:///etc/passwd"}], "model": "pub"}, kind="vllm", options={})
def test_what_is_sent_is_the_same(body: dict[str, Any], kind: EngineKind, options: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    seen = glance(raw)
    if seen is None:
        return
    assert seen.stream == body.get("stream", False)
    assert seen.model == body.get("model", "")
    target = Target(kind=kind, backend="b", model="pub", public="pub", options=options)
    looked = Request("chat", raw, None, None, seen.stream, 0, seen)
    split = Request("chat", raw, None, None, seen.stream, 0)

    assert encoded(looked, target) == encoded(split, target)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"messages": null}', b'{"messages": "a"}', b'{"messages": [1]}',
        b'{"messages": [[]]}', b'{"messages": [], "stream": null}', b'{"messages": [], "model": 1}',
        b'{"messages": []} x', b'{"messages": [], "x": "\xff"}', b'{"messages": [{"type": "a"}]}',
        b'{"messages": [], "framework": "vllm"}', b'{"messages": [], "input": "a"}',
    ],
)  # fmt: skip
def test_what_it_cannot_tell_is_looked_at_closer(body: bytes) -> None:
    assert glance(body) is None


def test_an_everyday_body_needs_no_closer_look() -> None:
    body = {
        "model": "m", "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "ä [b] {c}"}],
        "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.1, "tools": [], "n": 1,
    }  # fmt: skip

    assert glance(json.dumps(body).encode()) is not None


REPLIES = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"index": st.just(0)}, optional={"finish_reason": st.sampled_from(
                ["stop", "abort", "", None, "tool_calls"])}), max_size=2,
        ),
        "model": st.sampled_from(["pub", "up"]),
    },
    optional={
        "object": st.sampled_from(["chat.completion", "error"]),
        "error": st.sampled_from([None, {"message": "m", "code": 400}]),
        "usage": st.sampled_from(
            [None, {}, {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, {"prompt_tokens": None},
             {"input_tokens": 2, "output_tokens": 1, "cache_read_input_tokens": 5}, {"prompt_tokens": 1.5}]
        ),
    },
)  # fmt: skip


@given(body=REPLIES)
def test_a_reply_is_the_same(body: dict[str, Any]) -> None:
    """Beside an endpoint whose answers are always split."""
    target = Target(kind="vllm", backend="b", model="pub", public="pub")

    def reply(raw: bytes) -> Any:
        try:
            answer = decode_json("chat", target, raw)
        except ApiError as exc:
            return exc.code, exc.message
        return json.loads(answer.body), answer.usage

    # A member twice, the last of which counts: what a glance can't tell, as its type is odd.
    assert told(odd := b'{"model": 1, ' + json.dumps(body).encode()[1:]) is None or body["model"]
    assert reply(json.dumps(body).encode()) == reply(odd)
