"""Requests for Ollama: options and where they come from, thinking, tools, messages, images, fan-out."""

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
from tests.proxy.dialects.ollama_support import HI, PNG, TOOL, Steps, answered, chat, encode, request, sent, target


def refused(endpoint: Any, to: Any = None, **members: Any) -> tuple[Any, Any, int]:
    body = chat(**members) if endpoint == "chat" else members
    with pytest.raises(ApiError) as caught:
        encode(endpoint, body, to)
    assert caught.value.message
    return caught.value.param, caught.value.code, caught.value.status


# -- options -------------------------------------------------------------------------------------------------


def test_options_come_from_configuration_then_request_then_openai() -> None:
    configured = {"num_ctx": 8192, "temperature": 0.1, "top_k": -1, "mirostat": 2, "stop": "A", "repetition_penalty": 2}
    got = sent("chat", target(options=configured), options={"temperature": 0.2, "seed": 4, "mirostat": 1}, seed=5)
    assert got["options"] == {
        "num_ctx": 8192, "temperature": 0.2, "top_k": 0, "mirostat": 1, "stop": ["A"], "repeat_penalty": 2, "seed": 5,
    }  # fmt: skip


def test_configured_limit_gives_way() -> None:
    to = target(options={"max_tokens": 7})
    assert sent("chat", to) == {"options": {"num_predict": 7}}
    assert sent("chat", to, options={"num_predict": 8})["options"] == {"num_predict": 8}
    assert sent("chat", to, max_completion_tokens=9)["options"] == {"num_predict": 9}


def test_nothing_is_invented() -> None:
    assert sent("chat") == {}
    assert sent("chat", temperature=None, stop=[""], options={}, logprobs=False, tools=[], n=None) == {}


def test_beside_the_options() -> None:
    to = target(options={"keep_alive": "10m", "strict_context": True})
    assert sent("chat", to) == {"keep_alive": "10m", "truncate": False, "shift": False}
    got = sent("chat", to, keep_alive=-1, shift=True)
    assert got == {"keep_alive": -1, "truncate": False, "shift": True}


def test_the_proxys_own_settings_are_not_the_clients_to_make() -> None:
    assert sent("chat", strict_context=True) == {}
    got = sent("completions", prompt="x", completions_raw=False)
    assert got == {"prompt": "x", "raw": True, "think": False}
    got = sent("completions", target(options={"completions_raw": False}), prompt="x")
    assert got == {"prompt": "x"}


def test_bookkeeping_stays_and_the_unknown_goes_along() -> None:
    assert sent("chat", user="u", metadata={}, store=True, framework="ollama", embedding_model="e") == {}
    assert sent("chat", brand_new=[1]) == {"brand_new": [1]}


@pytest.mark.parametrize("name", ["Model", "MESSAGES", "\u017ftream", "Keep_Alive"])
def test_no_other_spelling_reaches_ollama(name: str) -> None:
    """Ollama takes any case for its own members: a second `Model` would get past the routing."""
    assert sent("chat", **{name: "other"}) == {}


def test_penalties_and_runner_options() -> None:
    got = sent("chat", repetition_penalty=1.1, repeat_penalty=1.2, num_gpu=0, top_k=3, presence_penalty=0)
    assert got["options"] == {"repeat_penalty": 1.1, "num_gpu": 0, "top_k": 3, "presence_penalty": 0}
    assert sent("chat", repeat_penalty=1.2)["options"] == {"repeat_penalty": 1.2}


@pytest.mark.parametrize(
    ("member", "value"),
    [("temperature", -1), ("temperature", True), ("top_p", 1.1), ("seed", 1.5), ("max_tokens", 0), ("stop", 3)]
    + [("frequency_penalty", 3), ("options", [1]), ("top_logprobs", 1), ("n", 0), ("messages", {})],
)
def test_out_of_bounds(member: str, value: Any) -> None:
    assert refused("chat", **{member: value}) == (member, "invalid_value", 400)


# -- formats and thinking ------------------------------------------------------------------------------------


def test_formats() -> None:
    schema = {"type": "object"}
    assert sent("chat", response_format={"type": "text"}) == {}
    assert sent("chat", response_format={"type": "json_object", "schema": schema}) == {"format": schema}
    assert sent("chat", response_format={"type": "json_schema", "json_schema": {"name": "x"}}) == {"format": "json"}
    assert sent("chat", format="json") == {"format": "json"}
    bad = {"type": "json_schema", "json_schema": {"schema": "x"}}
    assert refused("chat", response_format=bad) == ("response_format", "invalid_value", 400)
    assert refused("chat", response_format={"type": "grammar"})[:2] == ("response_format", "unsupported_value")


@pytest.mark.parametrize(
    ("version", "model", "effort", "think"),
    [
        (None, "m", "max", "max"),
        ("0.33.0-rc2", "m", "max", "max"),
        ("0.12.0", "gpt-oss:20b", "low", "low"),
        ("0.12.0", "unsloth/GPT-OSS:20b", "xhigh", "high"),
        ("0.12.0", "qwen3", "low", True),
        ("0.9.0", "qwen3", "none", False),
        ("0.8.9", "qwen3", "none", None),
        ("0.8.9", "qwen3", "high", None),
    ],
)
def test_effort_by_version(version: str | None, model: str, effort: str, think: Any) -> None:
    got = sent("chat", target(version, model=model), reasoning_effort=effort)
    assert got == ({} if think is None else {"think": think})
    assert sent("chat", target(version, model=model), reasoning={"effort": effort}) == got


def test_think_wins() -> None:
    assert sent("chat", think=False, reasoning_effort="high") == {"think": False}
    assert sent("chat", chat_template_kwargs={"enable_thinking": False}) == {"think": False}
    kwargs = {"enable_thinking": False}
    assert sent("chat", reasoning_effort="low", chat_template_kwargs=kwargs) == {"think": "low"}
    assert refused("chat", reasoning_effort="huge") == ("reasoning_effort", "invalid_value", 400)


# -- tools ---------------------------------------------------------------------------------------------------


def test_tool_choices() -> None:
    other = {"type": "function", "function": {"name": "g", "description": "d", "strict": True}}
    named = {"type": "function", "function": {"name": "g"}}
    plan = encode("chat", chat(tools=[TOOL, other], tool_choice=named, parallel_tool_calls=False))
    (call,) = plan.calls
    assert [tool["function"]["name"] for tool in json.loads(call.body)["tools"]] == ["g"]
    assert set(plan.dropped) == {"tool_choice", "parallel_tool_calls"}
    assert encode("chat", chat(tools=[TOOL], tool_choice="required")).dropped == ("tool_choice",)
    assert encode("chat", chat(tools=[TOOL], tool_choice="auto", parallel_tool_calls=True)).dropped == ()
    assert encode("chat", chat(parallel_tool_calls=False)).dropped == ()
    none = encode("chat", chat(tools=[TOOL], tool_choice="none", parallel_tool_calls=False))
    assert none.dropped == ()
    assert "tools" not in json.loads(none.calls[0].body)


def test_bad_tools() -> None:
    unknown = {"type": "function", "function": {"name": "nope"}}
    assert refused("chat", tools=[TOOL], tool_choice=unknown) == ("tool_choice", "invalid_value", 400)
    assert refused("chat", tools=[{"type": "web_search"}])[:2] == ("tools", "unsupported_value")
    assert refused("chat", tools=[{"type": "function"}])[:2] == ("tools", "invalid_value")
    assert refused("chat", tools=[3])[:2] == ("tools", "invalid_value")


def test_strict_params_refuse_instead_of_dropping() -> None:
    strict = target(strict_params=True)
    assert refused("chat", strict, logit_bias={"1": 2}) == ("logit_bias", "unsupported_parameter", 400)
    assert refused("chat", strict, tools=[TOOL], tool_choice="required")[:2] == ("tool_choice", "unsupported_parameter")
    assert sent("chat", strict, logit_bias={}) == {}


@pytest.mark.parametrize(
    ("member", "value"),
    [("audio", {}), ("modalities", ["text", "audio"]), ("functions", [{"name": "f"}]), ("function_call", "auto")],
)
def test_what_no_native_engine_has(member: str, value: Any) -> None:
    assert refused("chat", **{member: value}) == (member, "unsupported_parameter", 400)


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


# -- completions and fan-out ---------------------------------------------------------------------------------


def test_fan_out() -> None:
    plan = encode("completions", {"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 2**31 - 1})
    bodies = [json.loads(call.body) for call in plan.calls]
    assert [(body["prompt"], body["options"]["seed"]) for body in bodies] == [
        ("a", 2**31 - 1), ("a", 0), ("b", 2**31 - 1), ("b", 0),
    ]  # fmt: skip
    assert len(plan.decoder.streams()) == 4
    assert {call.path for call in plan.calls} == {"/api/generate"}
    assert len(encode("chat", chat(n=8)).calls) == 8
    assert refused("chat", n=9)[:2] == ("n", "unsupported_value")
    assert refused("completions", prompt=["x"] * 33)[:2] == ("prompt", "unsupported_value")


def test_completions_members() -> None:
    got = sent("completions", prompt="x", logprobs=2, keep_alive=3, top_k=4, suffix="", best_of=1)
    assert got == {
        "prompt": "x", "raw": True, "think": False, "logprobs": True, "top_logprobs": 2, "keep_alive": 3,
        "options": {"top_k": 4},
    }  # fmt: skip
    assert sent("completions", prompt="x", logprobs=0)["logprobs"] is True
    assert "top_logprobs" not in sent("completions", prompt="x", logprobs=0)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, ("prompt", "missing_required_parameter", 400)),
        ({"prompt": ["x", ""]}, ("prompt", "invalid_value", 400)),
        ({"prompt": [[1], [2]]}, ("prompt", "unsupported_value", 400)),
        ({"prompt": "x", "echo": True, "logprobs": 1}, ("echo", "unsupported_parameter", 400)),
        ({"prompt": "x", "echo": 1}, ("echo", "invalid_value", 400)),
        ({"prompt": "x", "suffix": 1}, ("suffix", "invalid_value", 400)),
        ({"prompt": "x", "logprobs": 6}, ("logprobs", "invalid_value", 400)),
        ({"prompt": "x", "logprobs": True}, ("logprobs", "invalid_value", 400)),
        ({"prompt": "x", "best_of": 0}, ("best_of", "invalid_value", 400)),
    ],
)
def test_bad_completions(members: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert refused("completions", **members) == expected


def test_other_endpoints_are_another_dialects() -> None:
    with pytest.raises(ApiError) as caught:
        encode("rerank", {"model": "m"})
    assert (caught.value.status, caught.value.type) == (422, "CapabilityNotSupported")
