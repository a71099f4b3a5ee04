"""What there is beside chat: responses, messages, embeddings, rerank, tokens and the list of models."""

from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, ServerProcess
from tests.engines.speech import TEXT, TOOL_ARGUMENTS, TOOL_NAME
from tests.real.support import (
    ALIAS,
    CHAT,
    EMBED,
    HI,
    HI_TOKENS,
    PUBLIC,
    RERANK,
    SAID,
    TOOL,
    WORDS,
    get,
    post,
    row,
)


@pytest.fixture
def claude(served: Gateway) -> Any:
    with anthropic.Anthropic(base_url=served.base_url, api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        yield client


def test_responses(sdk: openai.OpenAI) -> None:
    answer = sdk.responses.create(model=PUBLIC, input="hi")
    assert (answer.output_text, answer.status, answer.model) == (TEXT, "completed", PUBLIC)
    assert answer.usage
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (HI_TOKENS, SAID)


def test_responses_stream(sdk: openai.OpenAI) -> None:
    events = list(sdk.responses.create(model=PUBLIC, input="hi", stream=True))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == list(WORDS)
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    last: Any = events[-1]
    assert (last.response.model, last.response.output_text) == (PUBLIC, TEXT)
    assert last.response.usage.output_tokens == SAID


async def test_responses_stream_helper(async_sdk: openai.AsyncOpenAI) -> None:
    stream = await async_sdk.responses.create(model=ALIAS, input="hi", stream=True, max_output_tokens=2)
    deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert deltas == list(WORDS[:2])


def test_responses_tool_call(sdk: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "strict": False, **TOOL["function"]}
    answer = sdk.responses.create(model=PUBLIC, input="hi", tools=[tool])
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, call.arguments) == (TOOL_NAME, TOOL_ARGUMENTS)


def test_messages(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=PUBLIC, messages=HI, max_tokens=50)
    (block,) = answer.content
    assert block.type == "text"
    assert (block.text, answer.stop_reason, answer.model) == (TEXT, "end_turn", PUBLIC)
    told = answer.usage
    assert (told.input_tokens + (told.cache_read_input_tokens or 0), told.output_tokens) == (HI_TOKENS, SAID)


def test_messages_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=PUBLIC, messages=HI, max_tokens=3) as stream:
        assert list(stream.text_stream) == list(WORDS[:3])
        final = stream.get_final_message()
    assert (final.model, final.stop_reason, final.usage.output_tokens) == (PUBLIC, "max_tokens", 3)


def test_messages_tool_call(claude: anthropic.Anthropic) -> None:
    function = TOOL["function"]
    tool: Any = {"name": function["name"], "input_schema": function["parameters"]}
    answer = claude.messages.create(model=PUBLIC, messages=HI, max_tokens=50, tools=[tool])
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, call.input, answer.stop_reason) == (TOOL_NAME, {"city": "Bern"}, "tool_use")


def test_messages_count_tokens(claude: anthropic.Anthropic) -> None:
    assert claude.messages.count_tokens(model=PUBLIC, messages=HI).input_tokens == HI_TOKENS


def close(got: Any, wanted: Any) -> bool:
    return len(got) == len(wanted) and all(abs(x - y) < 1e-6 for x, y in zip(got, wanted, strict=True))


def straight(engine: ServerProcess, given: Any) -> list[Any]:
    """The vectors that the engine itself gives."""
    answer = post(engine.base_url, "/v1/embeddings", {"input": given, "encoding_format": "float"}).json()
    return [entry["embedding"] for entry in answer["data"]]


@pytest.mark.parametrize("given", ["a stone bridge", ["hi", "a stone bridge"], [[1, 335, 336], [1, 335]]])
def test_embeddings(sdk: openai.OpenAI, llama_embed: ServerProcess, given: Any) -> None:
    wanted = straight(llama_embed, given)
    assert len(wanted[0]) == 64
    for asked in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):  # the first is base64 too
        answer: Any = sdk.embeddings.create(model=EMBED, input=given, **asked)  # type: ignore[arg-type]
        assert [entry.index for entry in answer.data] == list(range(len(wanted)))
        if asked.get("encoding_format") != "base64":
            assert all(close(entry.embedding, vector) for entry, vector in zip(answer.data, wanted, strict=True))
        else:
            assert {type(entry.embedding) for entry in answer.data} == {str}
        assert answer.model == EMBED
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


async def test_embeddings_async_under_the_field_embedding_model(async_sdk: openai.AsyncOpenAI) -> None:
    answer = await async_sdk.embeddings.create(model=PUBLIC, input="hi", extra_body={"embedding_model": EMBED})
    assert answer.model == EMBED
    assert len(answer.data[0].embedding) == 64


def test_dimensions_are_the_engines_business(sdk: openai.OpenAI, llama_embed: ServerProcess) -> None:
    body = {"input": "hi", "encoding_format": "float", "dimensions": 8}
    engine = post(llama_embed.base_url, "/v1/embeddings", body)
    answer = sdk.embeddings.create(model=EMBED, input="hi", encoding_format="float", dimensions=8)
    assert close(answer.data[0].embedding, engine.json()["data"][0]["embedding"])


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_rerank(served: Gateway, path: str) -> None:
    """The scores are the engine's business: they move a little with what its cache holds."""
    body = {"query": "hi there", "documents": ["a", "hi there", "a stone bridge"]}
    answer = post(served.base_url, path, {"model": RERANK} | body)
    results = answer.json()["results"]
    scores = [result["relevance_score"] for result in results]

    assert answer.status_code == 200
    assert answer.json()["model"] == RERANK
    assert {result["index"] for result in results} == {0, 1, 2}
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 3


def test_tokens(served: Gateway) -> None:
    told = post(served.base_url, "/tokenize", {"model": PUBLIC, "content": "hi", "add_special": True}).json()
    assert len(told["tokens"]) == 3
    back = post(served.base_url, "/v1/detokenize", {"model": ALIAS, "tokens": told["tokens"][1:]}).json()
    assert back == {"content": "hi"}


def test_list_of_models(sdk: openai.OpenAI) -> None:
    listed = {model.id: model for model in sdk.models.list()}
    assert listed.keys() == {PUBLIC, ALIAS, CHAT, EMBED, RERANK}
    assert {model.object for model in listed.values()} == {"model"}
    assert {model.owned_by for model in listed.values()} == {"llamacpp"}
    extra: Any = listed[PUBLIC].model_extra
    assert (extra["state"], extra["backends"]) == ("ready", ["chat"])


def test_a_model_by_its_name(sdk: openai.OpenAI, served: Gateway) -> None:
    assert sdk.models.retrieve(PUBLIC).id == PUBLIC  # the client sends the slash as %2F
    assert sdk.models.retrieve(EMBED).id == EMBED
    assert get(f"{served.v1}/models/{PUBLIC}").json()["id"] == PUBLIC
    assert get(f"{served.base_url}/models/{ALIAS}").json()["root"] == PUBLIC
    with pytest.raises(openai.NotFoundError) as refused:
        sdk.models.retrieve("team/none")
    assert refused.value.code == "model_not_found"


def test_models_of_a_framework(served: Gateway) -> None:
    assert len(get(f"{served.v1}/models?framework=llamacpp").json()["data"]) == 5
    assert get(f"{served.v1}/models?framework=vllm").json()["data"] == []


def test_health(served: Gateway) -> None:
    body = get(f"{served.base_url}/healthz").json()
    assert (body["status"], body["framework"], body["providers"]) == ("ok", "llamacpp", ["llamacpp"])
    told = row(served, "chat")
    assert (told["kind"], told["state"], told["models"], told["in_flight"]) == ("llamacpp", "ready", 1, 0)
    assert told["version"]
    assert get(f"{served.base_url}/readyz").status_code == 200


def test_metrics_count_tokens(served: Gateway) -> None:
    def completion_tokens() -> float:
        lines = httpx.get(f"{served.base_url}/metrics", timeout=PATIENCE, trust_env=False).text.splitlines()
        told = [line for line in lines if "tokens_total{" in line and "completion" in line and f'"{PUBLIC}"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in told if 'endpoint="chat"' in line)

    def ask(**more: Any) -> None:
        post(served.base_url, "/v1/chat/completions", {"model": PUBLIC, "messages": HI} | more)

    ask()
    before = completion_tokens()
    assert before >= SAID
    ask()
    ask(max_tokens=3, stream=True, stream_options={"include_usage": True})
    assert completion_tokens() == before + SAID + 3
