"""Checks of good answers: text, streams, usage, tools, schemas, embeddings, and the endpoints beside chat.

The models' words are known beforehand: tests/engines/speech.py has them.
"""

import asyncio
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.conformance.clients import HI, KEY, TIMEOUT, async_sdk, post, same, sdk
from tests.conformance.outcome import HttpRefusal, Ignored
from tests.conformance.subjects import INTERVAL, Subject
from tests.engines.process import StillSo, wait_until
from tests.engines.speech import TEXT, THINK_START, THINK_WORD, THOUGHT, TOOL_ARGUMENTS, TOOL_NAME

TOKENS = len(TEXT.split()) + 1  # one a word, and the end of the turn
PONDER: Any = [{"role": "user", "content": f"{THINK_WORD} this"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        },
    },
}


def chat(subject: Subject) -> None:
    """openai, synchronous: text, finish reason, usage, the public name."""
    answer = sdk(subject).chat.completions.create(model=subject.chat, messages=HI)
    same(answer.choices[0].message.content, TEXT, "content")
    same(answer.choices[0].finish_reason, "stop", "finish_reason")
    same(answer.model, subject.chat, "model")
    assert answer.usage, "no usage"
    same(answer.usage.completion_tokens, TOKENS, "usage.completion_tokens")


def chat_async(subject: Subject) -> None:
    """openai, asynchronous: eight at once, and a limit of tokens that is kept."""

    async def ask() -> None:
        async with async_sdk(subject) as client:
            create = client.chat.completions.create
            asked = [create(model=subject.chat, messages=HI, max_tokens=4) for _ in range(8)]
            for answer in await asyncio.gather(*asked):
                same(answer.choices[0].message.content, " ".join(TEXT.split()[:4]), "content")
                same(answer.choices[0].finish_reason, "length", "finish_reason")

    asyncio.run(ask())


def stream(subject: Subject) -> None:
    """openai's streaming helper and its plain stream: all pieces, the reason, the public name in each of them."""
    with sdk(subject).chat.completions.stream(model=subject.chat, messages=HI) as helper:
        for _ in helper:
            pass
        final = helper.get_final_completion()
    same(final.choices[0].message.content, TEXT, "the helper's content")
    same(final.choices[0].finish_reason, "stop", "the helper's finish_reason")

    async def read() -> list[Any]:
        async with async_sdk(subject) as client:
            return [c async for c in await client.chat.completions.create(model=subject.chat, messages=HI, stream=True)]

    chunks = asyncio.run(read())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    same(text, TEXT, "the stream's content")
    same({chunk.model for chunk in chunks}, {subject.chat}, "the chunks' model")


def stream_framing(subject: Subject) -> None:
    """The stream's bytes: the content type, several pieces, and exactly one closing [DONE]."""
    body = {"model": subject.chat, "messages": HI, "stream": True}
    url = f"{subject.gateway.v1}/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=TIMEOUT, trust_env=False) as response:
        if response.read() and response.status_code != 200:
            raise HttpRefusal(response)
    assert response.headers["content-type"].startswith("text/event-stream"), response.headers["content-type"]
    data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data:")]
    assert len(data) > 2, data
    same(data[-1], "[DONE]", "the last event")
    same(data.count("[DONE]"), 1, "the number of [DONE] events")


def usage(subject: Subject) -> None:
    """`stream_options.include_usage`: exact counts at the end of a stream."""
    options: Any = {"include_usage": True}
    create = sdk(subject).chat.completions.create
    chunks = list(create(model=subject.chat, messages=HI, stream=True, stream_options=options))
    counts = [chunk.usage for chunk in chunks if chunk.usage]
    if not counts:
        raise Ignored("no chunk has usage")
    same(counts[-1].completion_tokens, TOKENS, "usage.completion_tokens")
    assert counts[-1].prompt_tokens > 0, counts[-1]


def completions(subject: Subject) -> None:
    """/v1/completions, plain and streamed."""
    create = sdk(subject).completions.create
    answer = create(model=subject.chat, prompt="hi", max_tokens=50)
    same(answer.choices[0].text, TEXT, "text")
    same(answer.model, subject.chat, "model")
    chunks = list(create(model=subject.chat, prompt="hi", max_tokens=50, stream=True))
    same("".join(chunk.choices[0].text for chunk in chunks if chunk.choices), TEXT, "the stream's text")


def tools(subject: Subject) -> None:
    """A tool call, plain and streamed, and the answer to its result, of every model that has a way of its own."""
    for model in subject.tools:
        check_tools(subject, model)


def check_tools(subject: Subject, model: str) -> None:
    completions = sdk(subject).chat.completions
    answer = completions.create(model=model, messages=HI, tools=[TOOL])
    message = answer.choices[0].message
    if not message.tool_calls:
        raise Ignored(f"no tool call but {message.content!r}")
    same(answer.choices[0].finish_reason, "tool_calls", "finish_reason")
    check_call(message.tool_calls[0])
    with completions.stream(model=model, messages=HI, tools=[TOOL]) as helper:
        for _ in helper:
            pass
        streamed = helper.get_final_completion().choices[0]
    same(streamed.finish_reason, "tool_calls", "the stream's finish_reason")
    assert streamed.message.tool_calls, "the stream has no tool call"
    check_call(streamed.message.tool_calls[0])
    call = message.tool_calls[0].model_dump(exclude_none=True)
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    history: Any = [*HI, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
    after = completions.create(model=model, messages=history, tools=[TOOL])
    same(after.choices[0].message.content, TEXT, "the answer to the tool's result")


def check_call(call: Any) -> None:
    same(call.function.name, TOOL_NAME, "the called function")
    same(json.loads(call.function.arguments), json.loads(TOOL_ARGUMENTS), "the arguments")
    assert call.id, "a tool call without an id"


def thinking(subject: Subject) -> None:
    """Thinking arrives apart from the text, plain and streamed."""
    create = sdk(subject).chat.completions.create
    message = create(model=subject.think, messages=PONDER).choices[0].message
    if not thought(message):
        raise Ignored(f"no thinking but {message.content!r}")
    check_thinking(thought(message), message.content or "")
    deltas = [c.choices[0].delta for c in create(model=subject.think, messages=PONDER, stream=True) if c.choices]
    check_thinking("".join(map(thought, deltas)), "".join(delta.content or "" for delta in deltas))


def check_thinking(thoughts: str, text: str) -> None:
    same(thoughts.strip(), THOUGHT, "the thinking")
    same(text.strip().removeprefix(THINK_START).strip(), TEXT, "the content")  # `transformers serve` repeats it


def thought(message: Any) -> str:
    """The gateway's name for it, or the one that newer engines have and that is passed on."""
    return getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""


def no_thinking(subject: Subject) -> None:
    """`reasoning_effort: none` switches thinking off."""
    create = sdk(subject).chat.completions.create
    if not thought(create(model=subject.think, messages=PONDER).choices[0].message):
        raise Ignored("it never thinks")
    message = create(model=subject.think, messages=PONDER, reasoning_effort="none").choices[0].message
    if thought(message) or message.content != TEXT:
        raise Ignored(f"it still thinks: {message!r}")


def suffix(subject: Subject) -> None:
    """`suffix` of a completion reaches the model, plain and streamed."""
    create = sdk(subject).completions.create
    answers = [create(model=subject.insert, prompt="hi", suffix=end, max_tokens=50) for end in ("a", "a longer end")]
    used = [answer.usage.prompt_tokens for answer in answers if answer.usage]
    if used[0] == used[1]:
        raise Ignored("a longer suffix makes no longer prompt")
    same(answers[0].choices[0].text, TEXT, "text")
    chunks = create(model=subject.insert, prompt="hi", suffix="a", max_tokens=50, stream=True)
    same("".join(chunk.choices[0].text for chunk in chunks if chunk.choices), TEXT, "the stream's text")


def engine_options(subject: Subject) -> None:
    """What only that engine has for a request reaches it: `keep_alive`, and `num_ctx` in `options`."""
    more = {"keep_alive": "17m", "options": {"num_ctx": 3072}}
    sdk(subject).chat.completions.create(model=subject.chat, messages=HI, extra_body=more)
    if subject.loaded is None:
        raise Ignored("the engine has no such members")
    told = subject.loaded(subject.chat)
    left = datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)
    seen = told["context_length"], round(left.total_seconds() / 60)
    if seen[1] == 5:  # Ollama's own time
        raise Ignored(f"the model stays for 5 minutes, context {seen[0]}")
    same(seen, (3072, 17), "context and minutes")


def entry(subject: Subject) -> None:
    """The model's entry in the list tells how long its context is, after the gateway's second look at the engine."""
    url = f"{subject.gateway.v1}/models/{subject.chat}"
    told: dict[str, Any] = {}

    def seen() -> bool:
        told.update(httpx.get(url, timeout=TIMEOUT, trust_env=False).raise_for_status().json())
        return "max_model_len" in told

    with suppress(StillSo):
        wait_until(seen, "the entry has a max_model_len", 10 * INTERVAL)
    same((told["id"], told["object"], told["state"]), (subject.chat, "model", "ready"), "id, object and state")
    if not told.get("max_model_len"):
        raise Ignored("no max_model_len")


def json_schema(subject: Subject) -> None:
    """`response_format` with a schema binds the answer to it. White space is JSON too, and a model of random habits may
    fill its limit with that: then it is asked again."""
    create = sdk(subject).chat.completions.create
    for seed in range(8):
        answer = create(model=subject.chat, messages=HI, response_format=SCHEMA, max_tokens=200, seed=seed)
        content = (answer.choices[0].message.content or "").strip()
        if content == TEXT:
            raise Ignored("the answer is not JSON")
        if answer.choices[0].finish_reason != "length":
            assert isinstance(json.loads(content)["ok"], bool), answer
            return
    raise AssertionError("eight answers, none of which ended within 200 tokens")


def two_choices(subject: Subject) -> None:
    """`n: 2`"""
    answer = sdk(subject).chat.completions.create(model=subject.chat, messages=HI, n=2)
    same({choice.message.content for choice in answer.choices}, {TEXT}, "the contents")
    if len(answer.choices) == 1:
        raise Ignored("one choice")
    same(sorted(choice.index for choice in answer.choices), [0, 1], "the indexes")


def logprobs(subject: Subject) -> None:
    """`logprobs` with `top_logprobs`"""
    create = sdk(subject).chat.completions.create
    answer = create(model=subject.chat, messages=HI, logprobs=True, top_logprobs=2, max_tokens=3)
    told = answer.choices[0].logprobs
    if told is None or not told.content:
        raise Ignored("no logprobs")
    same("".join(entry.token for entry in told.content), " ".join(TEXT.split()[:3]), "the tokens")
    same(len(told.content[0].top_logprobs), 2, "the number of top_logprobs")


def langchain(subject: Subject) -> None:
    """langchain-openai: invoke and stream."""
    model = ChatOpenAI(
        model=subject.chat, base_url=subject.gateway.v1, api_key=SecretStr(KEY), max_retries=0, timeout=TIMEOUT
    )
    same(model.invoke("hi").content, TEXT, "content")
    same("".join(str(piece.content) for piece in model.stream("hi")), TEXT, "the stream's content")


def embeddings(subject: Subject) -> None:
    """openai (whose default is base64) and langchain-openai give the floats that were asked for as floats."""
    create = sdk(subject).embeddings.create
    texts = ["hi there", "a stone bridge"]
    packed = create(model=subject.embed, input=texts)
    plain = create(model=subject.embed, input=texts, encoding_format="float")
    same(packed.model, subject.embed, "model")
    same([entry.index for entry in packed.data], [0, 1], "the indexes")
    check_vectors([entry.embedding for entry in packed.data], [entry.embedding for entry in plain.data])
    one = create(model=subject.embed, input=texts[0])
    check_vectors([one.data[0].embedding], [plain.data[0].embedding])
    client = OpenAIEmbeddings(
        model=subject.embed, base_url=subject.gateway.v1, api_key=SecretStr(KEY), check_embedding_ctx_length=False
    )
    check_vectors(client.embed_documents(texts), [entry.embedding for entry in plain.data])


def check_vectors(got: list[list[float]], wanted: list[list[float]]) -> None:
    same([len(vector) for vector in got], [len(vector) for vector in wanted], "the lengths")
    assert any(got[0]), "a vector of zeros"
    pairs = zip([x for vector in got for x in vector], [x for vector in wanted for x in vector], strict=True)
    assert all(abs(x - y) < 1e-4 for x, y in pairs), "the vectors differ from those asked for as floats"
    assert len(got) < 2 or got[0] != got[1], "two texts have the same vector"


def dimensions(subject: Subject) -> None:
    """`dimensions` shortens the vectors."""
    answer = sdk(subject).embeddings.create(model=subject.embed, input="hi there", dimensions=16)
    length = len(answer.data[0].embedding)
    if length != 16:
        raise Ignored(f"{length} numbers, not 16")


def rerank(subject: Subject) -> None:
    """/v1/rerank: a score for each document."""
    body = {"model": subject.rerank, "query": "hi there", "documents": ["a", "hi there", "a stone bridge"]}
    answer = post(subject, "/v1/rerank", body)
    same(sorted(result["index"] for result in answer["results"]), [0, 1, 2], "the indexes")
    assert all(isinstance(result["relevance_score"], float) for result in answer["results"]), answer


def responses(subject: Subject) -> None:
    """/v1/responses, plain and streamed."""
    create = sdk(subject).responses.create
    same(create(model=subject.chat, input="hi").output_text, TEXT, "output_text")
    events = list(create(model=subject.chat, input="hi", stream=True))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    same("".join(pieces), TEXT, "the stream's text")


def messages(subject: Subject) -> None:
    """/v1/messages, plain and streamed, with Anthropic's SDK."""
    client = anthropic.Anthropic(base_url=subject.gateway.base_url, api_key=KEY, max_retries=0, timeout=TIMEOUT)
    answer = client.messages.create(model=subject.chat, messages=HI, max_tokens=50)
    same("".join(block.text for block in answer.content if block.type == "text"), TEXT, "text")
    same(answer.model, subject.chat, "model")
    with client.messages.stream(model=subject.chat, messages=HI, max_tokens=50) as helper:
        same("".join(helper.text_stream), TEXT, "the stream's text")


def tokenize(subject: Subject) -> None:
    """/tokenize (vLLM calls the text `prompt`, llama.cpp `content`, TGI `inputs`)."""
    names = ("prompt", "content", "inputs")
    answer = post(subject, "/tokenize", {"model": subject.chat} | dict.fromkeys(names, "hi there"))
    tokens = [token["id"] for token in answer] if isinstance(answer, list) else answer["tokens"]
    assert tokens, answer
    assert all(isinstance(token, int) for token in tokens), answer
