"""Several answers of Ollama's in one reply or one stream."""

from __future__ import annotations

import json
from typing import Any

from proxy.dialects.base import Plan, Usage
from tests.proxy.dialects.ollama_support import answered, chat, encode, events, line, ndjson

# -- fan-out -------------------------------------------------------------------------------------------------


def fan(**members: Any) -> Plan:
    return encode("completions", {"prompt": ["a", "bb"], "n": 2, "echo": True} | members)


def answer(text: str, prompt: int, completion: int, at: str = "2026-03-01T12:00:00Z") -> dict[str, Any]:
    return {
        "response": text, "created_at": at, "done": True, "done_reason": "stop",
        "prompt_eval_count": prompt, "eval_count": completion,
    }  # fmt: skip


def test_whole_fan_out() -> None:
    """Each prompt counts once, although the second call found it in the cache."""
    bodies = [answer("1", 5, 1), answer("2", 0, 2), answer("3", 7, 3), answer("4", 7, 4)]
    reply = fan().decoder.reply([answered(body) for body in bodies])
    body = json.loads(reply.body)
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "a1"), (1, "a2"), (2, "bb3"), (3, "bb4")]
    assert body["usage"] == {"prompt_tokens": 12, "completion_tokens": 10, "total_tokens": 22}
    assert reply.usage == Usage(12, 10)


def test_streamed_fan_out_is_one_stream() -> None:
    decoders = fan(stream=True, stream_options={"include_usage": True}).decoder.streams()
    pieces = [decoders[2].feed(ndjson([{"response": "3", "done": False, "created_at": "2026-03-01T12:00:00Z"}]))]
    for index in (3, 0, 1, 2):
        pieces.append(decoders[index].feed(ndjson([answer(str(index), 5, 1, "2026-03-01T12:00:09Z")])))
        assert pieces[-1]
        assert decoders[index].done
    chunks = events(b"".join(pieces))
    assert chunks.count("[DONE]") == 1
    assert chunks[-1] == "[DONE]"
    assert [c for c in chunks[:-1] if not c["choices"]] == [chunks[-2]]
    assert chunks[-2]["usage"] == {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    assert len({(c["id"], c["created"], c["model"]) for c in chunks[:-1]}) == 1
    assert chunks[0]["created"] == 1772366400
    by_index: dict[int, list[Any]] = {}
    for chunk in chunks[:-2]:
        (choice,) = chunk["choices"]
        by_index.setdefault(choice["index"], []).append(choice["finish_reason"] or choice["text"])
    assert by_index == {
        0: ["a", "0", "stop"],
        1: ["a", "1", "stop"],
        2: ["bb", "3", "2", "stop"],
        3: ["bb", "3", "stop"],
    }
    assert [decoder.usage for decoder in decoders if decoder.usage is not None] == [Usage(10, 4)]


def test_each_choice_of_a_chat_has_its_role() -> None:
    first, second = encode("chat", chat(stream=True, n=2)).decoder.streams()
    chunks = events(first.feed(ndjson([line("a")])) + second.feed(ndjson([line("b")])))
    assert [c["choices"][0]["index"] for c in chunks if c["choices"][0]["delta"].get("role")] == [0, 1]
