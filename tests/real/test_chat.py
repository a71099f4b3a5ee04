"""Chat and text completion through the gateway, with OpenAI's own client: every word, count and reason is known."""

import asyncio
import json
from typing import Any

import openai

from tests.engines.gateway import Gateway
from tests.engines.process import ServerProcess
from tests.engines.speech import TEXT, TOOL_ARGUMENTS, TOOL_NAME
from tests.real.support import ALIAS, HI, HI_TOKENS, PUBLIC, SAID, TOOL, WORDS, post, slots

USAGE: Any = {"include_usage": True}


def counted(usage: Any) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_plain(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=PUBLIC, messages=HI)
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    assert counted(answer.usage) == (HI_TOKENS, SAID, HI_TOKENS + SAID)
    assert (answer.object, answer.model) == ("chat.completion", PUBLIC)


def test_limit(sdk: openai.OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        answer = sdk.chat.completions.create(model=PUBLIC, messages=HI, **limit)  # type: ignore[call-overload]
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Once upon a", "length")
        assert counted(answer.usage) == (HI_TOKENS, 3, HI_TOKENS + 3)


async def test_many_at_once_on_fewer_slots(async_sdk: openai.AsyncOpenAI) -> None:
    create = async_sdk.chat.completions.create
    answers = await asyncio.gather(*(create(model=PUBLIC, messages=HI, max_tokens=1 + at) for at in range(8)))
    assert [answer.choices[0].message.content for answer in answers] == ["".join(WORDS[: 1 + at]) for at in range(8)]


def test_stream_chunk_by_chunk(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model=PUBLIC, messages=HI, stream=True, stream_options=USAGE))
    *said, closing, usage = chunks
    assert [chunk.choices[0].delta.content for chunk in said] == [None, *WORDS]
    assert said[0].choices[0].delta.role == "assistant"
    assert {chunk.choices[0].finish_reason for chunk in said} == {None}
    assert (closing.choices[0].finish_reason, closing.choices[0].delta.content) == ("stop", None)
    assert usage.choices == []
    assert counted(usage.usage) == (HI_TOKENS, SAID, HI_TOKENS + SAID)
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert {chunk.model for chunk in chunks} == {PUBLIC}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_async_stream_without_usage(async_sdk: openai.AsyncOpenAI) -> None:
    stream = await async_sdk.chat.completions.create(model=ALIAS, messages=HI, stream=True, max_tokens=2)
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks] == [None, "Once", " upon", None]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.usage for chunk in chunks} == {None}
    assert {chunk.model for chunk in chunks} == {PUBLIC}


def test_stream_helper(sdk: openai.OpenAI) -> None:
    options: Any = {"stream_options": USAGE}
    with sdk.chat.completions.stream(model=PUBLIC, messages=HI, **options) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert deltas == list(WORDS)
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (TEXT, "stop")
    assert counted(final.usage) == (HI_TOKENS, SAID, HI_TOKENS + SAID)


async def test_async_stream_helper(async_sdk: openai.AsyncOpenAI) -> None:
    async with async_sdk.chat.completions.stream(model=PUBLIC, messages=HI) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
    assert deltas == list(WORDS)


def test_stream_bytes_end_with_one_done(served: Gateway) -> None:
    answer = post(served.base_url, "/chat/completions", {"model": PUBLIC, "messages": HI, "stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["model"] == PUBLIC for event in events[:-2])


def test_two_choices(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=PUBLIC, messages=HI, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    texts = {0: "", 1: ""}
    for chunk in sdk.chat.completions.create(model=PUBLIC, messages=HI, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: TEXT, 1: TEXT}


def test_stop(sdk: openai.OpenAI) -> None:
    for stop in (" two", [" never", " two"]):
        answer = sdk.chat.completions.create(model=PUBLIC, messages=HI, stop=stop)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Once upon a time", "stop")


def test_logprobs(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=PUBLIC, messages=HI, logprobs=True, top_logprobs=2, max_tokens=3)
    told = answer.choices[0].logprobs
    assert told is not None
    assert [entry.token for entry in told.content or ()] == list(WORDS[:3])
    for entry in told.content or ():
        assert entry.logprob > -0.001
        assert next(top.token for top in entry.top_logprobs) == entry.token
        assert len(entry.top_logprobs) == 2
    asked: Any = {"model": PUBLIC, "messages": HI, "logprobs": True, "stream": True, "max_tokens": 3}
    streamed = [c.choices[0].logprobs for c in sdk.chat.completions.create(**asked)]
    assert [e.token for part in streamed if part for e in part.content or ()] == list(WORDS[:3])


def test_content_in_parts(sdk: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    answer = sdk.chat.completions.create(model=PUBLIC, messages=parts)
    assert answer.choices[0].message.content == TEXT


def test_tool_call_and_the_answer_to_its_result(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model=PUBLIC, messages=HI, tools=[TOOL])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    calls: Any = choice.message.tool_calls
    (call,) = calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (TOOL_NAME, json.loads(TOOL_ARGUMENTS))
    assert call.id
    history: Any = [
        *HI,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    after = sdk.chat.completions.create(model=PUBLIC, messages=history, tools=[TOOL])
    assert (after.choices[0].message.content, after.choices[0].finish_reason) == (TEXT, "stop")


def test_streamed_tool_call(sdk: openai.OpenAI) -> None:
    chunks = list(sdk.chat.completions.create(model=PUBLIC, messages=HI, tools=[TOOL], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    assert [call.function.name for call in calls if call.function and call.function.name] == [TOOL_NAME]
    arguments = [call.function.arguments or "" for call in calls if call.function]
    assert len(arguments) > 2
    assert "".join(arguments) == TOOL_ARGUMENTS
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    with sdk.chat.completions.stream(model=PUBLIC, messages=HI, tools=[TOOL]) as stream:
        final = stream.until_done().get_final_completion()
    tool_calls: Any = final.choices[0].message.tool_calls
    (call,) = tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (TOOL_NAME, json.loads(TOOL_ARGUMENTS))


def test_unknown_fields_reach_the_engine(sdk: openai.OpenAI) -> None:
    def cached(**extra: Any) -> int | None:
        answer = sdk.chat.completions.create(model=PUBLIC, messages=HI, max_tokens=1, extra_body=extra)
        assert answer.usage
        assert answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens

    cached()
    assert cached() == HI_TOKENS - 1
    assert cached(cache_prompt=False) == 0
    create = sdk.chat.completions.create
    asked: Any = {"model": PUBLIC, "messages": HI, "stream": True, "max_tokens": 3}
    timed = [chunk.model_extra or {} for chunk in create(**asked, extra_body={"timings_per_token": True})]
    assert sum("timings" in extra for extra in timed) > 2
    assert sum("timings" in (chunk.model_extra or {}) for chunk in create(**asked)) == 1


def test_sampling_fields_reach_the_engine(sdk: openai.OpenAI, llama_server: ServerProcess) -> None:
    extra = {"top_k": 7, "repetition_penalty": 1.5, "min_p": 0.25}
    create = sdk.chat.completions.create
    for seed, stream in ((4711, False), (4712, True)):
        answer = create(model=PUBLIC, messages=HI, seed=seed, stream=stream, temperature=0.5, extra_body=extra)
        if stream:
            list(answer)
        (told,) = [slot["params"] for slot in slots(llama_server) if slot.get("params", {}).get("seed") == seed]
        assert (told["top_k"], told["repeat_penalty"], told["min_p"], told["temperature"]) == (7, 1.5, 0.25, 0.5)
    told = create(model=PUBLIC, messages=HI, extra_body=extra | {"verbose": True}).model_extra
    assert told
    assert told["__verbose"]["generation_settings"]["repeat_penalty"] == 1.5


def test_completion(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=PUBLIC, prompt="hi")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "stop")
    assert counted(answer.usage) == (3, SAID, 3 + SAID)  # BOS and two letters: no chat template around them
    assert (answer.object, answer.model) == ("text_completion", PUBLIC)
    asked: Any = {"model": PUBLIC, "prompt": "hi", "max_tokens": 3, "stream": True, "stream_options": USAGE}
    chunks = list(sdk.completions.create(**asked))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Once upon a"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]
    assert [counted(chunk.usage) for chunk in chunks if chunk.usage] == [(3, 3, 6)]
    assert {chunk.model for chunk in chunks} == {PUBLIC}


def test_completion_of_two_prompts(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=PUBLIC, prompt=["hi", "ho"], max_tokens=2)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "Once upon"), (1, "Once upon")]
    chunks = sdk.completions.create(model=PUBLIC, prompt=["hi", "ho"], max_tokens=2, stream=True)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "Once upon", 1: "Once upon"}
