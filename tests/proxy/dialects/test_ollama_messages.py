"""Messages for Ollama: roles, tool calls, images and the steps that these need."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Answered, Ask, Fetch
from proxy.dialects.ollama import DIALECT
from proxy.dialects.ollama.messages import encode_messages
from proxy.errors import ApiError
from tests.proxy.dialects.ollama_support import HI, PNG, Steps, answered, chat, encode, refused, request, sent, target

# -- messages ------------------------------------------------------------------------------------------------


def test_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b":1,"a":[2]}'}}
    given_ = [
        {"role": "developer", "content": "be brief", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm", "refusal": None, "audio": {}},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "function", "name": "g", "content": "7"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "h", "arguments": ""}}]},
        {"role": "assistant", "content": "x", "reasoning_content": "first", "reasoning": "second"},
    ]
    assert sent("chat", messages=given_)["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "thinking": "hm",
         "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": [2]}}}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1", "tool_name": "f"},
        {"role": "tool", "content": "7", "tool_name": "g"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "h", "arguments": {}}}]},
        {"role": "assistant", "content": "x", "thinking": "first"},
    ]  # fmt: skip


def test_the_latest_call_of_an_id_names_the_tool() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": name, "arguments": "{}"}}]}

    got = encode_messages([call("old"), call("new"), {"role": "tool", "tool_call_id": "1", "content": ""}, call("x")])
    assert got[2]["tool_name"] == "new"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"role": "robot", "content": "x"}, "invalid_value"),
        ({"content": "x"}, "invalid_value"),
        ("hi", "invalid_value"),
        ({"role": "user", "content": 3}, "invalid_value"),
        ({"role": "user", "content": [{"type": "text"}]}, "invalid_value"),
        ({"role": "user", "content": ["x"]}, "invalid_value"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "unsupported_value"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "unsupported_value"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "invalid_value"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "invalid_value"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}, "unsupported_value"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:text/plain;base64,eA=="}]},
         "invalid_image_url"),
    ],
)  # fmt: skip
def test_bad_messages(message: Any, code: str) -> None:
    assert refused("chat", messages=[*HI, message]) == ("messages", code, 400)


def test_no_messages() -> None:
    assert refused("chat", messages=None) == ("messages", "missing_required_parameter", 400)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CALLS = st.lists(st.tuples(st.text("abc1_", min_size=1), TEXTS, st.dictionaries(TEXTS, JSON, max_size=3)), max_size=3)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS, CALLS), min_size=1, max_size=5))
def test_a_conversation_arrives_as_it_was(turns: list[Any]) -> None:
    """What goes up, read back as OpenAI's messages, is what the client sent."""
    messages = []
    for role, text, calls in turns:
        message: dict[str, Any] = {"role": role, "content": text}
        if calls:
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
                for id_, name, arguments in calls
            ]
        messages.append(message)
    back = []
    for one in sent("chat", messages=messages)["messages"]:
        message = {"role": one["role"], "content": one["content"]}
        if "tool_calls" in one:
            message["tool_calls"] = [
                {"id": c["id"], "type": "function", "function": c["function"]
                 | {"arguments": json.dumps(c["function"]["arguments"])}}
                for c in one["tool_calls"]
            ]  # fmt: skip
        back.append(message)
    assert back == messages


# -- images --------------------------------------------------------------------------------------------------


def picture(url: Any, kind: str = "image_url") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": kind, kind: url}]}]


def show(capabilities: Any, status: int = 200) -> Any:
    def answer(step: Ask | Fetch) -> Answered:
        if isinstance(step, Fetch):
            return Answered(200, "image/png", b"bytes of " + step.url.encode())
        assert (step.path, json.loads(step.body or b"")) == ("/api/show", {"model": "llama3.2:3b"})
        return answered({} if capabilities is None else {"capabilities": capabilities}, status)

    return answer


@pytest.mark.parametrize(
    "part",
    [
        picture(f"data:image/png;base64,{PNG}"),
        picture({"url": f"data:image/png;base64,{PNG}"}),
        picture({"url": f"data:;base64,{PNG.rstrip('=')}"}),
        picture(PNG, "image_base64"),
        picture(f"data:image/png;base64,{PNG}", "image_base64"),
    ],
)
def test_images_go_up_as_base64(part: list[dict[str, Any]]) -> None:
    steps = Steps(show(["completion", "vision"]))
    (call,) = encode("chat", chat(messages=part), steps=steps).calls
    assert json.loads(call.body)["messages"] == [{"role": "user", "content": "what?", "images": [PNG]}]


def test_urls_are_fetched_each_once() -> None:
    steps = Steps(show(["vision"]))
    messages = picture("https://a.example/1.png") + picture({"url": "HTTP://a.example/2.png"})
    messages += picture("https://a.example/1.png")
    (call,) = encode("chat", chat(messages=messages), steps=steps).calls
    assert [step.url for step in steps.asked if isinstance(step, Fetch)] == [
        "https://a.example/1.png",
        "HTTP://a.example/2.png",
    ]
    images = [message["images"] for message in json.loads(call.body)["messages"]]
    assert images[0] == images[2] == ["Ynl0ZXMgb2YgaHR0cHM6Ly9hLmV4YW1wbGUvMS5wbmc="]
    assert images[1] != images[0]


def test_a_backend_may_refuse_urls() -> None:
    to = target(image_urls="reject")
    assert refused("chat", to, messages=picture("https://a.example/1.png"))[:2] == ("messages", "unsupported_value")


def test_a_model_without_eyes_is_asked_once() -> None:
    steps = Steps(show(["completion", "tools"]))
    body = chat(messages=picture("https://a.example/1.png"))
    with pytest.raises(ApiError) as caught:
        encode("chat", body, steps=steps)
    assert (caught.value.param, caught.value.code) == ("messages", "unsupported_value")
    assert len(steps.asked) == 1  # and nothing was fetched
    known = Steps()
    with pytest.raises(ApiError, match="can't see"):
        encode("chat", body, target(facts=steps.learned), known)
    assert known.asked == []


@pytest.mark.parametrize(("capabilities", "status", "learned"), [(None, 200, True), (["vision"], 404, False)])
def test_where_nothing_is_known_ollama_decides(capabilities: Any, status: int, learned: bool) -> None:
    steps = Steps(show(capabilities, status))
    encode("chat", chat(messages=picture(f"data:image/png;base64,{PNG}")), steps=steps)
    assert bool(steps.learned) is learned


def test_facts_are_kept_by_model() -> None:
    steps = Steps(show(["vision"]))
    encode("chat", chat(messages=picture(PNG, "image_base64")), steps=steps)
    (name,) = steps.learned
    assert "llama3.2:3b" in name


def test_text_needs_no_steps() -> None:
    assert hasattr(DIALECT.encode(request("chat", chat()), target()), "calls")
