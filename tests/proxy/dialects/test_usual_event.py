"""A stream comes out the same whether its events are taken for usual ones or looked through one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Endpoint, Target
from proxy.dialects.openai.names import Renamer
from proxy.dialects.openai.stream import PassThroughDecoder
from proxy.dialects.openai.usual import usual_event
from proxy.errors import ApiError

TEXTS = st.text(st.sampled_from('a" \\\n{}[],:é\u2028') | st.characters(exclude_categories=["Cs"]), max_size=6)
DELTAS = st.one_of(
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"reasoning_content": text}),
    TEXTS.map(lambda text: {"role": "assistant", "content": text}),
    st.just({}),
    st.just({"tool_calls": [{"index": 0, "function": {"arguments": '{"content":"x"}'}}]}),
)
CHUNKS = st.fixed_dictionaries(
    {"id": st.just("c"), "model": st.just("up"), "choices": DELTAS.map(lambda delta: [{"index": 0, "delta": delta}])},
    optional={
        "usage": st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 2}]),
        "error": st.just({"message": "m"}),
    },
)
FINISH = {"id": "c", "model": "up", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def event(chunk: dict[str, Any], ascii_only: bool = True) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":"), ensure_ascii=ascii_only).encode() + b"\n\n"


def decoded(reads: list[bytes], endpoint: Endpoint = "chat", usual: bool = True) -> tuple[bytes, Any, str]:
    decoder = PassThroughDecoder(endpoint, Target(kind="vllm", backend="b", model="up", public="pub"))
    if not usual:
        decoder._patterns = 0
    out, failure = b"", ""
    try:
        for read in reads:
            out += decoder.feed(read)
        out += decoder.flush()
    except ApiError as exc:
        out, failure = out + decoder.take_pending(), exc.message
    return out, decoder.usage, failure


@pytest.mark.interpreted
@given(
    chunks=st.lists(CHUNKS, max_size=12), ascii_only=st.booleans(), together=st.lists(st.integers(0, 11), max_size=4)
)
def test_the_same_stream(chunks: list[dict[str, Any]], ascii_only: bool, together: list[int]) -> None:
    events = [event(chunk, ascii_only) for chunk in (*chunks, FINISH)] + [b"data: [DONE]\n\n"]
    for at in sorted(together, reverse=True):
        if at + 1 < len(events):
            events[at : at + 2] = [events[at] + events[at + 1]]

    assert decoded(events) == decoded(events, usual=False)


def usual(data: bytes) -> Any:
    renamer = Renamer("pub")
    renamer.learn(data)
    return usual_event(data, renamer)


PLAIN = event({"model": "up", "choices": [{"index": 0, "delta": {"content": " one"}, "finish_reason": None}]})


def test_only_the_text_may_differ() -> None:
    known = usual(PLAIN)

    assert known.fits(PLAIN)
    assert known.renamed(PLAIN) == PLAIN.replace(b'"up"', b'"pub"')
    for text in (b"", b" two", b"\\n", "ü".encode(), b"[DONE]", b"error: x", b"{}"):
        assert known.fits(PLAIN.replace(b" one", text))
    for text in (b'"', b'a"b', b'\\"', b'x"},"finish_reason":"stop","y":{"z":"'):
        assert not known.fits(PLAIN.replace(b" one", text))
    assert not known.fits(PLAIN + PLAIN)
    assert not known.fits(PLAIN[:-1])
    assert not known.fits(PLAIN.replace(b"null", b'"stop"'))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"data: {}\n\n", PLAIN + PLAIN, PLAIN[:-1], b"\n\n" + PLAIN, PLAIN.replace(b" one", b'a\\"b'),
        PLAIN.replace(b"content", b"other"), PLAIN.replace(b" one", b"\\"),
    ],
)  # fmt: skip
def test_no_pattern_is_made_of_anything_else(data: bytes) -> None:
    assert usual(data) is None


def test_before_and_behind_may_not_overlap() -> None:
    known = usual(b'data: {"content":"x"}\n\n')

    assert not known.fits(b'data: {"content":"}\n\n')


@pytest.mark.interpreted
def test_a_stream_that_changes_all_the_time_is_given_up() -> None:
    """Each pattern costs a search, so there is an end to learning."""
    decoder = PassThroughDecoder("chat", Target(kind="vllm", backend="b", model="up", public="pub"))
    for number in range(20):
        decoder.feed(event({"model": "up", "n": number, "choices": [{"index": 0, "delta": {"content": "x"}}]}))

    assert decoder._patterns == 0
