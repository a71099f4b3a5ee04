"""Tool calls: TGI's forced one natively, a choice through its /v1, Ollama's with both kinds of template."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.engines.gateway import Gateway
from tests.engines.speech import TEXT
from tests.native.support import HI, TOOL, chat, told
from tests.standins.support import StandIn

NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
WAYS = {"tgi forced": ("tgi-native", NAMED), "tgi auto": ("tgi", "auto"), "ollama": ("ollama", "auto"),
        "ollama gguf": ("ollama-gguf", "auto")}  # fmt: skip


@pytest.mark.parametrize(("model", "choice"), WAYS.values(), ids=WAYS)
def test_a_call_plain_and_streamed(sdk: openai.OpenAI, model: str, choice: Any) -> None:
    completions = sdk.chat.completions
    plain = completions.create(model=model, messages=HI, tools=[TOOL], tool_choice=choice).choices[0]
    with completions.stream(model=model, messages=HI, tools=[TOOL], tool_choice=choice) as stream:
        streamed = stream.until_done().get_final_completion().choices[0]
    for one in (plain, streamed):
        assert one.finish_reason == "tool_calls"
        calls: list[Any] = list(one.message.tool_calls or ())
        (call,) = calls
        assert call.type == "function"
        assert call.function.name == "get_weather"
        assert json.loads(call.function.arguments) == {"city": "Bern"}
        assert call.id
        assert not call.id.isdigit()
    assert plain.message.content is None


@pytest.mark.parametrize(("model", "choice"), WAYS.values(), ids=WAYS)
def test_the_answer_to_a_result(sdk: openai.OpenAI, model: str, choice: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'}}
    history: Any = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    tools: dict[str, Any] = {} if choice is NAMED else {"tools": [TOOL]}
    after = sdk.chat.completions.create(model=model, messages=history, **tools)
    assert after.choices[0].message.content == TEXT


def test_tgis_ways(gateway: Gateway, tgi: StandIn) -> None:
    """A forced call is native in every mode but one; a choice goes to /v1, and is refused where that may not be."""
    chat(gateway, "tgi-native", tools=[TOOL], tool_choice="required")
    assert [one["path"] for one in tgi.requests() if one["path"].startswith("/generate")] == ["/generate"]
    tgi.reset()
    chat(gateway, "tgi", tools=[TOOL])
    assert tgi.requests("/v1/chat/completions")
    assert not tgi.requests("/generate")
    refused = chat(gateway, "tgi-native", tools=[TOOL])
    assert told(refused) == (400, "unsupported_parameter", "tools")
    assert "chat_mode" in refused.json()["error"]["message"]


def test_langchain_binds_tools(gateway: Gateway) -> None:
    @tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return city

    client = ChatOpenAI(model="ollama", base_url=gateway.v1, api_key=SecretStr("unused"), max_retries=0)
    answer = client.bind_tools([get_weather]).invoke("hi")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("get_weather", {"city": "Bern"})]
