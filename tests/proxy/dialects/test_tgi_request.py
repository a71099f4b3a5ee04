"""TGI's native dialect: what goes up, what is refused before anything is asked, and the steps in between."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from proxy.dialects.base import Answered, Ask, Fetch
from proxy.dialects.tgi import DIALECT, wants_openai
from proxy.dialects.tgi.prompt import BOS, INFO
from proxy.errors import ApiError
from tests.proxy.dialects.tgi_native_support import (
    HI,
    PNG,
    SCHEMA,
    TOOL,
    Walk,
    answered,
    chat,
    completion,
    encode,
    refused,
    request,
    sent,
    target,
    tokenized,
)

OTHER = {"type": "function", "function": {"name": "g", "parameters": SCHEMA}}
LOOP = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}


@pytest.mark.parametrize(
    ("members", "parameters"),
    [
        ({}, {"do_sample": True}),
        ({"temperature": None, "stop": None, "n": None, "seed": None}, {"do_sample": True}),
        ({"temperature": 0, "top_k": 5, "typical_p": 0.5}, {"do_sample": False}),
        ({"temperature": 2.5}, {"do_sample": True, "temperature": 2.5}),
        ({"top_p": 1}, {"do_sample": True}),
        ({"top_p": 0.5}, {"do_sample": True, "top_p": 0.5}),
        ({"top_k": 0}, {"do_sample": True}),
        ({"top_k": -1}, {"do_sample": True}),
        ({"top_k": 2**70}, {"do_sample": True, "top_k": 2**31 - 1}),
        ({"typical_p": 1}, {"do_sample": True}),
        ({"repetition_penalty": 1}, {"do_sample": True}),
        ({"repetition_penalty": 1.2}, {"do_sample": True, "repetition_penalty": 1.2}),
        ({"frequency_penalty": 0}, {"do_sample": True}),
        ({"frequency_penalty": -1}, {"do_sample": True, "frequency_penalty": -1}),
        ({"stop": ["a", ""]}, {"do_sample": True, "stop": ["a"]}),
        ({"max_completion_tokens": 7, "max_tokens": 9}, {"do_sample": True, "max_new_tokens": 7}),
        ({"max_tokens": 2**40}, {"do_sample": True, "max_new_tokens": 2**32 - 1}),
        ({"logprobs": True}, {"do_sample": True}),
        ({"logprobs": True, "top_logprobs": 3}, {"do_sample": True, "top_n_tokens": 3}),
        ({"response_format": {"type": "text"}}, {"do_sample": True}),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            {"do_sample": True, "grammar": {"type": "json", "value": SCHEMA}},
        ),
        (
            {"response_format": {"type": "regex", "value": "a+"}},
            {"do_sample": True, "grammar": {"type": "regex", "value": "a+"}},
        ),
        (
            {"watermark": True, "truncate": 6, "adapter_id": "lora"},
            {"do_sample": True, "watermark": True, "truncate": 6, "adapter_id": "lora"},
        ),
        ({"watermark": False, "truncate": 0, "adapter_id": ""}, {"do_sample": True}),
        ({"echo": True, "return_full_text": True, "best_of": 4, "user": "u", "unknown": {}}, {"do_sample": True}),
        ({"tools": [TOOL], "tool_choice": "none"}, {"do_sample": True}),
        ({"tools": [], "parallel_tool_calls": False}, {"do_sample": True}),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_parameters(members: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert sent(chat(**members)) == parameters


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.0}, "top_k", "invalid_value"),
        ({"typical_p": 0}, "typical_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"frequency_penalty": 2.1}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -2.1}, "presence_penalty", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_value"),
        ({"stop": 1}, "stop", "invalid_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 9}, "n", "unsupported_value"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format",
            "invalid_value",
        ),
        ({"response_format": {"type": "regex"}}, "response_format", "invalid_value"),
        ({"watermark": "yes"}, "watermark", "invalid_value"),
        ({"truncate": -1}, "truncate", "invalid_value"),
        ({"adapter_id": 7}, "adapter_id", "invalid_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"functions": [{}]}, "functions", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "invalid_value"),
        ({"tools": [TOOL, OTHER], "tool_choice": "required"}, "tools", "unsupported_parameter"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tools", "unsupported_parameter"),
        ({"tools": [{"type": "web"}], "tool_choice": "required"}, "tools", "unsupported_value"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "nope"}}},
            "tool_choice",
            "invalid_value",
        ),
        (
            {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "regex", "value": "a"}},
            "response_format",
            "unsupported_parameter",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
            "tools",
            "unsupported_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": LOOP}}], "tool_choice": "required"},
            "tools",
            "unsupported_value",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_refusals(members: dict[str, Any], param: str, code: str) -> None:
    assert refused("chat", chat(**members)) == (param, code)


@pytest.mark.parametrize(
    ("members", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[1], [2]]}, "prompt", "unsupported_value"),
        ({"prompt": ["a"] * 33}, "prompt", "unsupported_value"),
        ({"best_of": 2, "n": 3}, "best_of", "unsupported_value"),
        ({"best_of": 0}, "best_of", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_refused_completions(members: dict[str, Any], param: str, code: str) -> None:
    assert refused("completions", completion(**members)) == (param, code)


@pytest.mark.parametrize(
    ("members", "parameters"),
    [
        ({"logprobs": 0}, {"do_sample": True}),
        ({"logprobs": 2}, {"do_sample": True, "top_n_tokens": 2}),
        ({"best_of": 3, "temperature": 0}, {"do_sample": False}),
        ({"best_of": 3}, {"do_sample": True, "best_of": 3}),
        ({"suffix": "", "tools": [TOOL], "response_format": {"type": "json_object"}}, {"do_sample": True}),
    ],
    ids=str,
)
def test_completions(members: dict[str, Any], parameters: dict[str, Any]) -> None:
    assert sent(completion(**members)) == parameters


@pytest.mark.parametrize("endpoint", ["embeddings", "rerank", "speech", "responses"])
def test_other_endpoints(endpoint: str) -> None:
    assert refused(endpoint, {"model": "pub-tgi"}) == ("model", "unsupported_endpoint")


def test_dropped_or_strict() -> None:
    body = chat(reasoning_effort="high", min_p=0.1, logit_bias={}, presence_penalty=0.0)
    assert encode("chat", body).dropped == ("min_p", "reasoning_effort")
    assert refused("chat", body, target(strict_params=True)) == ("min_p", "unsupported_parameter")
    assert encode("completions", completion(reasoning_effort="high")).dropped == ()


def test_options_of_the_backend_are_defaults() -> None:
    to = target(options={"adapter_id": "lora", "temperature": 0.5, "max_tokens": 5})
    assert sent(chat(temperature=1), to) == {
        "do_sample": True, "temperature": 1, "adapter_id": "lora", "max_new_tokens": 5,
    }  # fmt: skip


def test_fan_out() -> None:
    plan = encode("completions", completion(prompt=["A", "B"], n=2, seed=5))
    told = [json.loads(call.body) for call in plan.calls]
    assert [(one["inputs"], one["parameters"]["seed"]) for one in told] == [("A", 5), ("A", 6), ("B", 5), ("B", 6)]


# -- versions --------------------------------------------------------------------------------------------------


def paths(walk: Walk) -> list[str]:
    return [step.path for step in walk.asked if isinstance(step, Ask)]


def test_old_servers_are_told_a_limit() -> None:
    info = {"version": "2.4.0", "max_total_tokens": 2048, "max_input_tokens": 1024}
    walk = Walk(target("2.4.0"), lambda step: answered(info) if getattr(step, "path", "") == "/info" else tokenized())
    (call,) = walk.run("chat", chat()).calls
    assert json.loads(call.body)["parameters"]["max_new_tokens"] == 1024
    (call,) = walk.run("completions", completion()).calls
    assert json.loads(call.body)["parameters"]["max_new_tokens"] == 1024
    assert paths(walk) == ["/chat_tokenize", "/info"]
    assert sent(chat(max_tokens=3), target("2.4.0")) == {"do_sample": True, "max_new_tokens": 3}
    assert sent(chat(), target("2.4.0", options={"default_max_tokens": 9}))["max_new_tokens"] == 9


def test_very_old_servers_have_no_template() -> None:
    with pytest.raises(ApiError) as caught:
        encode("chat", chat(max_tokens=1), target("2.2.0"))
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "chat_template_unavailable",
        "messages",
    )
    with pytest.raises(ApiError) as caught:
        encode("chat", chat(), target(), lambda _: answered(b"", 404, ""))
    assert caught.value.code == "chat_template_unavailable"
    options = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    assert (
        json.loads(encode("chat", chat(max_tokens=1), target("1.4.0", options=options)).calls[0].body)["inputs"] == "hi"
    )


def test_forced_tools_need_a_recent_server_and_its_own_template() -> None:
    body = chat(tools=[TOOL], tool_choice="required")
    assert refused("chat", body, target("2.4.0")) == ("tools", "unsupported_parameter")
    assert refused("chat", body, target(options={"chat_template": "{{ 1 }}"})) == ("tools", "unsupported_parameter")
    assert sent(body)["grammar"] == {"type": "json", "value": SCHEMA}


def test_info_that_fails_is_asked_again() -> None:
    to = target(None)
    walk = Walk(to, lambda step: answered("", 503, "") if getattr(step, "path", "") == "/info" else tokenized())
    for _ in range(2):
        walk.run("chat", chat())
    assert paths(walk) == ["/info", "/chat_tokenize"] * 2
    assert INFO not in to.facts


@pytest.mark.parametrize(
    ("mode", "members", "version", "openai"),
    [
        ("native", {"tools": [TOOL]}, "3.3.7", False),
        ("openai", {}, "3.3.7", True),
        ("auto", {}, "3.3.7", False),
        ("auto", {"tools": []}, "3.3.7", False),
        ("auto", {"tools": None}, "3.3.7", False),
        ("auto", {"tools": [TOOL]}, "3.3.6-dev0", True),
        ("auto", {"tools": [TOOL]}, "2.4.1", True),
        ("auto", {"tools": [TOOL]}, "2.4.0", False),
        ("auto", {"tools": [TOOL]}, "2.3.1-dev0", False),
        ("auto", {"tools": [TOOL]}, None, True),
        ("auto", {"tools": [TOOL], "tool_choice": "none"}, "3.3.7", False),
    ],
)
def test_mode(mode: Any, members: dict[str, Any], version: str | None, openai: bool) -> None:
    assert wants_openai(request("chat", chat(**members)), target(version, chat_mode=mode)) is openai


def test_mode_of_other_endpoints() -> None:
    assert not wants_openai(request("completions", completion(tools=[TOOL])), target())
    assert wants_openai(request("completions", completion()), target(chat_mode="openai"))
    assert wants_openai(request("tokenize", {"inputs": "x"}), target(chat_mode="native"))


# -- the prompt ------------------------------------------------------------------------------------------------


def bos_answers(*ids: int) -> Any:
    """`/tokenize` with those ids, for a template text whose ids are 1 and 2."""

    def answer(step: Ask | Fetch) -> Answered:
        assert isinstance(step, Ask)
        if step.path == "/tokenize":
            return answered([{"id": one, "text": "", "start": 0, "stop": 0} for one in ids])
        tokens = [{"id": one, "text": text, "start": 0, "stop": 0} for one, text in ((1, "<s>"), (2, "x"))]
        return answered({"templated_text": "<s>x", "tokenize_response": tokens})

    return answer


@pytest.mark.parametrize(
    ("ids", "strip", "inputs", "asked"),
    [
        ((1, 1, 2), "auto", "x", 2),
        ((1, 2), "auto", "<s>x", 2),
        ((7, 1, 2), "auto", "<s>x", 2),
        ((1, 1, 2, 3), "auto", "<s>x", 2),
        ((1, 1, 2), "never", "<s>x", 1),
        ((1, 2), "<s>", "x", 1),
    ],
)
def test_bos(ids: tuple[int, ...], strip: str, inputs: str, asked: int) -> None:
    to = target(facts={}, options={"strip_bos": strip})
    walk = Walk(to, bos_answers(*ids))
    (call,) = walk.run("chat", chat()).calls
    assert json.loads(call.body)["inputs"] == inputs
    assert len(walk.asked) == asked
    assert (BOS in to.facts) is (strip == "auto")


def test_bos_is_not_asked_where_it_cannot_matter() -> None:
    walk = Walk(target(facts={}), lambda _: tokenized("User: x", "<s>", "User"))
    walk.run("chat", chat())
    assert paths(walk) == ["/chat_tokenize"]


def test_one_prompt_for_all_choices() -> None:
    walk = Walk(target())
    assert len(walk.run("chat", chat(n=3)).calls) == 3
    assert paths(walk) == ["/chat_tokenize"]


@pytest.mark.parametrize(
    "answer", [answered({}), answered("<html>", 200, "text/html"), answered({"templated_text": None})]
)
def test_a_prompt_that_is_none(answer: Answered) -> None:
    with pytest.raises(ApiError) as caught:
        encode("chat", chat(), None, lambda _: answer)
    assert caught.value.code == "upstream_invalid_response"


def rendered(template: str, messages: Any = HI, **options: Any) -> str:
    to = target(options={"chat_template": template} | options)
    (call,) = encode("chat", chat(messages=messages), to).calls
    inputs: str = json.loads(call.body)["inputs"]
    return inputs


def test_template_variables() -> None:
    assert rendered("{{ eos_token }}|{{ bos_token }}|{{ strftime_now('%Y') }}", eos_token="</s>", bos_token="<s>") == (
        "</s>||2023"
    )
    assert rendered("{{ messages[0].content | tojson }}") == '"hi"'
    assert rendered("<s>{{ messages[0].content }}", strip_bos="<s>") == "hi"
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}]
    picture = rendered("{{ messages[0].content }}", [{"role": "user", "content": parts}], vision=True)
    assert picture == f"a![](data:image/png;base64,{PNG})"


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "no template at all",
        "/models/template.jinja",
        "{{ 1 // 0 }}",
        "{{ messages.nothing.at.all }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now(1) }}",
    ],
)
def test_templates_that_fail(template: str) -> None:
    with pytest.raises(ApiError) as caught:
        rendered(template)
    assert (caught.value.status, caught.value.code) == (400, "chat_template_error")


def test_a_template_is_compiled_once() -> None:
    to = target(options={"chat_template": "{{ messages[0].content }}"})
    Walk(to).run("chat", chat())
    known = to.facts["tgi.template"]
    Walk(to).run("chat", chat())
    assert to.facts["tgi.template"] is known


# -- images ----------------------------------------------------------------------------------------------------


def picture(url: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_images_are_fetched_once_and_sent_as_what_they_are() -> None:
    url = "https://example.com/a.jpg"

    def answer(step: Ask | Fetch) -> Answered:
        return Answered(200, "image/png", base64.b64decode(PNG)) if isinstance(step, Fetch) else tokenized()

    walk = Walk(target(options={"vision": True}), answer)
    walk.run("chat", chat(messages=picture(url) * 2))
    fetch, ask = walk.asked
    assert fetch == Fetch(url)
    assert isinstance(ask, Ask)
    assert ask.body is not None
    told = json.loads(ask.body)["messages"]
    assert [m["content"][0]["image_url"] for m in told] == [{"url": f"data:image/png;base64,{PNG}"}] * 2


@pytest.mark.parametrize(
    ("url", "more", "code"),
    [
        ("https://example.com/a.jpg", {"options": {}}, "unsupported_value"),
        ("https://example.com/a.jpg", {"options": {"vision": True}, "image_urls": "reject"}, "unsupported_value"),
        ("file:///etc/passwd", {"options": {"vision": True}}, "unsupported_value"),
        (PNG, {"options": {"vision": True}}, "unsupported_value"),
        (7, {"options": {"vision": True}}, "unsupported_value"),
        ("data:text/plain;base64,AAAA", {"options": {"vision": True}}, "invalid_image_url"),
        ("data:image/png;base64,$$$$", {"options": {"vision": True}}, "invalid_image_url"),
    ],
)
def test_refused_images(url: Any, more: dict[str, Any], code: str) -> None:
    assert refused("chat", chat(messages=picture(url)), target(**more)) == ("messages", code)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "![](http://10.0.0.5/)"},
        {"role": "user", "content": [{"type": "text", "text": "!["}, {"type": "text", "text": "](http://10.0.0.5/)"}]},
        {"role": "user", "name": "![](http://10.0.0.5/)", "content": "x"},
        {
            "role": "assistant",
            "tool_calls": [
                {"function": {"name": "f", "arguments": '{"![](http://10.0.0.5/)":"![](http://10.0.0.5/)"}'}}
            ],
        },
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [{"function": {"name": "![](http://10.0.0.5/)", "arguments": "{}"}}],
        },
    ],
)
def test_words_never_become_an_image(message: dict[str, Any]) -> None:
    walk = Walk(target(options={"vision": True}))
    walk.run("chat", chat(messages=[message, *HI]))
    (ask,) = walk.asked
    assert isinstance(ask, Ask)
    assert ask.body is not None
    parts = json.loads(ask.body)
    assert b"![](" not in ask.body
    assert "10.0.0.5" in json.dumps(parts)
    for one in parts["messages"]:
        content = one.get("content")
        if isinstance(content, list):
            assert "![](" not in "".join(part["text"] for part in content)


def test_raw_prompts_and_tools_of_vision_models() -> None:
    to = target(options={"vision": True})
    prompt = f"![](http://10.0.0.5/) ![](data:image/png;base64,{PNG})"
    (call,) = encode("completions", completion(prompt=prompt), to).calls
    assert json.loads(call.body)["inputs"] == f"! [](http://10.0.0.5/) ![](data:image/png;base64,{PNG})"
    tool = {"type": "function", "function": {**TOOL["function"], "description": "![](http://10.0.0.5/)"}}
    walk = Walk(to)
    walk.run("chat", chat(tools=[tool], tool_choice="required"))
    assert all(b"![](" not in (step.body or b"") for step in walk.asked if isinstance(step, Ask))


def test_encode_checks_before_it_steps() -> None:
    with pytest.raises(ApiError):
        DIALECT.encode(request("chat", chat(temperature=-1)), target())
