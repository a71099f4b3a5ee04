"""Requests to TGI's own /v1, row by row: what is sent, dropped and refused; messages and schemas."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.openai.tgi import ReplyFixer, encode
from proxy.errors import ApiError
from tests.proxy.dialects.tgi_support import HI, PNG, TOOL, chat, new_ids, piece_whole, rejected, sent_chat, target


@pytest.mark.parametrize(
    ("members", "sent"),
    [
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0}),
        ({"temperature": 0.7, "top_p": 0}, {"temperature": 0}),
        ({"temperature": 0.7, "top_p": 1}, {"temperature": 0.7}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"seed": 2**64 + 3}, {"seed": 3}),
        ({"stop": ["", "a", ""]}, {"stop": ["a"]}),
        ({"stop": ""}, {}),
        ({"stop": []}, {}),
        ({"stream": True, "stream_options": {"include_usage": False}}, {"stream": True}),
        ({"stream_options": {"include_usage": True}}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"user": "u", "store": True, "metadata": {}}, {"user": "u", "store": True, "metadata": {}}),
        ({"framework": "tgi", "vision": True}, {}),
        ({"max_tokens": 2000}, {"max_tokens": 2000}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {}}}}},
            {"response_format": {"type": "json", "value": {"properties": {}}}},
        ),
        (
            {"response_format": {"type": "json_object", "schema": {"properties": {}}}},
            {"response_format": {"type": "json", "value": {"properties": {}}}},
        ),
        (
            {"response_format": {"type": "json", "value": {"properties": {}}}},
            {"response_format": {"type": "json", "value": {"properties": {}}}},
        ),
        (
            {"response_format": {"type": "regex", "value": "a+"}},
            {"response_format": {"type": "regex", "value": "a+"}},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": None, "parameters": None}}]},
            {"tools": [TOOL]},
        ),
        ({"tools": [TOOL], "tool_choice": "none"}, {"tools": [TOOL], "tool_choice": "none"}),
    ],
)
def test_members_of_chat(members: dict[str, Any], sent: dict[str, Any]) -> None:
    assert sent_chat(**members) == sent


@pytest.mark.parametrize(
    ("version", "sent"),
    [
        ("2.4.1", {"max_tokens": 100}),
        ("v2.3.1-dev0", {"max_tokens": 100}),
        ("3.0.0", {}),
        ("3.3.6-dev0", {}),
        (None, {}),
    ],
)
def test_a_limit_is_always_sent_before_3(version: str | None, sent: dict[str, Any]) -> None:
    assert sent_chat(version) == sent


def test_backend_options() -> None:
    to = target("2.4.1", adapter_id="poet", default_max_tokens=900, temperature=0.3, stop="X")
    body, dropped = encode("chat", chat(temperature=None), to)
    assert body == {
        "model": "poet",
        "messages": HI,
        "temperature": 0.3,
        "stop": ["X"],
        "max_tokens": 900,
    }
    assert dropped == ()
    assert encode("chat", chat(adapter_id="mine"), to)[0]["model"] == "mine"
    assert (
        ReplyFixer("completions", {"prompt": "a"}, to, new_ids()).whole(piece_whole("1X2"))["choices"][0]["text"] == "1"
    )


def test_dropped_and_reported() -> None:
    asked = chat(presence_penalty=1, logit_bias={"5": 1}, top_k=3, min_p=0.1, repetition_penalty=1.1)
    body, dropped = encode("chat", asked, target())
    assert set(body) == {"model", "messages"}
    assert sorted(dropped) == ["logit_bias", "min_p", "presence_penalty", "repetition_penalty", "top_k"]
    neutral = chat(presence_penalty=0, logit_bias={}, top_k=-1, min_p=0, repetition_penalty=1, typical_p=1.0)
    assert encode("chat", neutral, target()) == ({"model": "tgi", "messages": HI}, ())
    asked = {"model": "m", "prompt": "a", "presence_penalty": 0.5, "repetition_penalty": 1.1}
    assert encode("completions", asked, target()) == (
        {"model": "tgi", "prompt": "a", "repetition_penalty": 1.1},
        ("presence_penalty",),
    )


def test_strict_refuses_instead() -> None:
    strict = target(strict=True)
    assert rejected("chat", chat(logit_bias={"5": 1}), strict) == ("logit_bias", "unsupported_parameter")
    assert encode("chat", chat(logit_bias={}, presence_penalty=0), strict)[1] == ()


CYCLE = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/b"}},
    "$defs": {"b": {"properties": {"c": {"$ref": "#/$defs/d~1e"}}}, "d/e": {"items": {"$ref": "#/$defs/b"}}},
}
SHARED = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/b"}, "c": {"$ref": "#/$defs/b"}, "$ref": {"type": "string"}},
    "$defs": {"b": {"items": [{"$ref": "#/$defs/d"}, {"$ref": "http://x/y"}]}, "d": {"type": "string"}},
}


def schema_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def with_parameters(parameters: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def test_schemas_with_references() -> None:
    assert sent_chat(**schema_format(SHARED))["response_format"]["value"] == SHARED
    assert sent_chat(**with_parameters({"properties": {"$ref": {"type": "string"}}}))["tools"]
    for schema in (
        CYCLE,
        {"properties": {"a": {"$ref": "#"}}},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"anyOf": [{"$ref": "#/anyOf/0"}], "properties": {}},
    ):
        assert rejected("chat", chat(**schema_format(schema))) == ("response_format", "unsupported_value")
    leads_nowhere = {"properties": {"a": {"$ref": "#/x/99999999999999"}, "b": {"$ref": "#/required/7"}}, "required": []}
    assert sent_chat(**schema_format(leads_nowhere))


@pytest.mark.parametrize(
    ("members", "refusal"),
    [
        ({"max_tokens": 0}, ("max_tokens", "invalid_value")),
        ({"max_tokens": 2.0}, ("max_tokens", "invalid_value")),
        ({"max_completion_tokens": "9"}, ("max_completion_tokens", "invalid_value")),
        ({"temperature": -0.1}, ("temperature", "invalid_value")),
        ({"temperature": True}, ("temperature", "invalid_value")),
        ({"top_p": 1.1}, ("top_p", "invalid_value")),
        ({"frequency_penalty": 3}, ("frequency_penalty", "invalid_value")),
        ({"presence_penalty": -3}, ("presence_penalty", "invalid_value")),
        ({"seed": 1.5}, ("seed", "invalid_value")),
        ({"stop": 5}, ("stop", "invalid_value")),
        ({"stop": ["a", 5]}, ("stop", "invalid_value")),
        ({"logprobs": 1}, ("logprobs", "invalid_value")),
        ({"top_logprobs": 2}, ("top_logprobs", "invalid_value")),
        ({"logprobs": True, "top_logprobs": 21}, ("top_logprobs", "invalid_value")),
        ({"response_format": {"type": "json_object"}}, ("response_format", "unsupported_parameter")),
        ({"response_format": {"type": "json_schema"}}, ("response_format", "invalid_value")),
        (schema_format("x"), ("response_format", "invalid_value")),
        ({"response_format": {"type": "yaml"}}, ("response_format", "invalid_value")),
        ({"response_format": "json"}, ("response_format", "invalid_value")),
        (schema_format({"properties": {}}) | {"tools": [TOOL]}, ("response_format", "unsupported_parameter")),
        (with_parameters({"properties": {"a": {"$ref": "#/x"}}}), ("tools", "unsupported_value")),
        (with_parameters([1]), ("tools", "invalid_value")),
        ({"tools": [{"type": "web_search"}]}, ("tools", "unsupported_value")),
        ({"tools": {"a": 1}}, ("tools", "invalid_value")),
        ({"messages": None}, ("messages", "missing_required_parameter")),
        ({"messages": []}, ("messages", "invalid_value")),
        ({"messages": [{"role": "judge", "content": "x"}]}, ("messages", "invalid_value")),
        ({"messages": ["hi"]}, ("messages", "invalid_value")),
        ({"messages": [{"role": "user", "content": 5}]}, ("messages", "invalid_value")),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            ("messages", "unsupported_value"),
        ),
    ],
)
def test_refused_chat(members: dict[str, Any], refusal: tuple[str, str]) -> None:
    assert rejected("chat", chat(**members)) == refusal


@pytest.mark.parametrize(
    ("members", "refusal"),
    [
        ({}, ("prompt", "missing_required_parameter")),
        ({"prompt": ""}, ("prompt", "invalid_value")),
        ({"prompt": []}, ("prompt", "invalid_value")),
        ({"prompt": ["a", ""]}, ("prompt", "invalid_value")),
        ({"prompt": 7}, ("prompt", "invalid_value")),
        ({"prompt": [1, 2]}, ("prompt", "unsupported_value")),
        ({"prompt": [[1], [2]]}, ("prompt", "unsupported_value")),
        ({"prompt": "a", "suffix": "z"}, ("suffix", "unsupported_parameter")),
        ({"prompt": "a", "logprobs": 0}, ("logprobs", "unsupported_parameter")),
        ({"prompt": "a", "best_of": 2}, ("best_of", "unsupported_parameter")),
    ],
)
def test_refused_completions(members: dict[str, Any], refusal: tuple[str, str]) -> None:
    assert rejected("completions", {"model": "m", **members}) == refusal


def test_completions_request() -> None:
    asked = {
        "prompt": list("abcd"),
        "suffix": "",
        "best_of": 1,
        "echo": True,
        "max_completion_tokens": 4,
        "logprobs": False,
    }
    assert encode("completions", asked, target()) == ({"model": "tgi", "prompt": list("abcd")}, ())
    six = encode("completions", {"prompt": list("abcdef")}, target(max_client_batch_size=6))[0]
    assert six["prompt"] == list("abcdef")


def test_other_endpoints_and_old_versions() -> None:
    assert rejected("embeddings", {"input": "a"}) == ("model", "unsupported_endpoint")
    old = target("2.0.4")
    assert rejected("chat", chat(**schema_format({"properties": {}})), old) == (
        "response_format",
        "unsupported_parameter",
    )


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city":"Rome"}'}}
CALL_SENT = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"city": "Rome"}}}


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "function", "name": "f", "content": "x"}, {"role": "tool", "name": "f", "content": "x"}),
        ({"role": "user", "content": "x", "name": "bob"}, {"role": "user", "content": "x", "name": "bob"}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": "x", "reasoning_content": "hm", "refusal": None},
            {"role": "assistant", "content": "x"},
        ),
        ({"role": "tool", "tool_call_id": "c1", "content": "x"}, {"role": "tool", "content": "x"}),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "tool_calls": [CALL_SENT]},
        ),
        ({"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "assistant", "tool_calls": [CALL_SENT]}),
        (
            {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [CALL_SENT]},
            {"role": "assistant", "tool_calls": [CALL_SENT]},
        ),
        (
            {"role": "assistant", "content": "Look:", "tool_calls": [CALL]},
            {"role": "assistant", "content": "Look:\n" + json.dumps([CALL_SENT], separators=(",", ":"))},
        ),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "Look:"}], "tool_calls": [CALL]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Look:"},
                    {"type": "text", "text": "\n" + json.dumps([CALL_SENT], separators=(",", ":"))},
                ],
            },
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ),
        ({"role": "user", "content": "see ![](x)"}, {"role": "user", "content": "see ![](x)"}),
    ],
)
def test_messages(message: dict[str, Any], sent: dict[str, Any]) -> None:
    assert encode("chat", chat(messages=[message]), target())[0]["messages"] == [sent]


def test_images_and_markdown_for_a_vision_model() -> None:
    parts = [
        {"type": "text", "text": "What is ![](http://10.0.0.5/x.png) this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}", "detail": "low"}},
    ]
    asked = chat(messages=[{"role": "system", "content": "![](y)"}, {"role": "user", "content": parts}])
    assert encode("chat", asked, target(vision=True))[0]["messages"] == [
        {"role": "system", "content": "! [](y)"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is ! [](http://10.0.0.5/x.png) this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
            ],
        },
    ]
    assert rejected("chat", asked) == ("messages", "unsupported_value")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://example.com/a.png", "unsupported_value"),
        ("file:///etc/passwd", "unsupported_value"),
        (None, "unsupported_value"),
        ("data:text/html;base64,PGI+", "invalid_image_url"),
        ("data:image/png,abc", "invalid_image_url"),
        ("data:image/png;base64,@@@", "invalid_image_url"),
        ("data:image/png;base64,PGI+", "invalid_image_url"),
    ],
)
def test_refused_images(url: str | None, code: str) -> None:
    asked = chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert rejected("chat", asked, target(vision=True)) == ("messages", code)


@pytest.mark.parametrize(
    "magic",
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF89a", "gif"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "webp"),
        (b"II*\x00", "tiff"),
        (b"MM\x00*", "tiff"),
    ],
    ids=lambda magic: magic[1],
)
def test_image_types_are_those_of_the_bytes(magic: tuple[bytes, str]) -> None:
    encoded = base64.b64encode(magic[0] + bytes(30)).decode()
    part = {"type": "image_url", "image_url": f"data:;base64,{encoded}"}
    sent = encode("chat", chat(messages=[{"role": "user", "content": [part]}]), target(vision=True))[0]
    assert sent["messages"][0]["content"][0]["image_url"]["url"] == f"data:image/{magic[1]};base64,{encoded}"


@pytest.mark.parametrize("arguments", ["[1]", "{", '"x"'])
def test_arguments_that_are_no_object(arguments: Any) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call]}
    assert rejected("chat", chat(messages=[message])) == ("messages", "invalid_value")


MEMBERS = st.dictionaries(
    st.sampled_from(
        [
            "messages",
            "prompt",
            "stop",
            "n",
            "seed",
            "top_p",
            "tools",
            "response_format",
            "stream_options",
            "suffix",
            "logprobs",
            "top_logprobs",
            "logit_bias",
            "max_tokens",
            "temperature",
            "best_of",
            "top_k",
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("a$", max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "role",
                        "content",
                        "type",
                        "text",
                        "function",
                        "parameters",
                        "$ref",
                        "schema",
                        "json_schema",
                        "image_url",
                    ]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=8,
    ),
)


@given(st.sampled_from(["chat", "completions"]), MEMBERS)
def test_any_request_is_encoded_or_refused(endpoint: Any, members: dict[str, Any]) -> None:
    base = {"messages": HI, "prompt": "p"}
    try:
        body, dropped = encode(endpoint, base | members, target(vision=True))
    except ApiError as exc:
        refused = exc
    else:
        refused = None
    if refused is not None:
        assert refused.status == 400
        assert refused.param
        return
    assert body["model"] == "tgi"
    assert not set(dropped) & set(body)
    assert None not in body.values()
