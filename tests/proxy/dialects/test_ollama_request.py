"""Requests for Ollama: options and where they come from, thinking, tools, completions, fan-out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ApiError
from tests.proxy.dialects.ollama_support import TOOL, chat, encode, refused, sent, target

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
    [
        ("temperature", -1),
        ("temperature", True),
        ("top_p", 1.1),
        ("seed", 1.5),
        ("max_tokens", 0),
        ("stop", 3),
        ("frequency_penalty", 3),
        ("options", [1]),
        ("top_logprobs", 1),
        ("n", 0),
        ("messages", {}),
    ],
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
