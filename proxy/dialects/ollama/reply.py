"""Answers of `/api/chat` and `/api/generate`, whole or streamed, one for each call of a fan-out.

`Expected` is what the request asked of its answer; `OllamaAnswers` turns one or several upstream answers into one
reply or one client stream. Not here: what an object says (`answer`), lines (`stream`), errors (`errors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.dialects.base import Answered, Reply, Target, Usage
from proxy.dialects.ollama import answer as said_by
from proxy.dialects.ollama.errors import error_in, failure
from proxy.dialects.ollama.stream import OllamaDecoder
from proxy.dialects.shared import openai_out
from proxy.dialects.shared.logprobs import LegacyLogprobs
from proxy.errors import ApiError, error
from proxy.events import CONTENT_TYPE
from proxy.wire import InvalidJson, JsonObject, dump, load_object


@dataclass(frozen=True, slots=True)
class Expected:
    """Of an answer. `prompts`: which prompt each call answers; `echoes`: the text put before each; `top_logprobs`:
    None where no logprobs were asked for; `tools`: a schema that Ollama refuses came from tools."""

    endpoint: openai_out.TextEndpoint
    stream: bool
    now: int
    include_usage: bool = False
    prompts: tuple[int, ...] = (0,)
    echoes: tuple[str, ...] = ("",)
    top_logprobs: int | None = None
    tools: bool = False


class OllamaAnswers:
    """A `ResponseDecoder`."""

    def __init__(self, expected: Expected, target: Target) -> None:
        self._expected = expected
        self._target = target

    def reply(self, answers: Sequence[Answered]) -> Reply:
        if self._expected.stream:  # one object where lines were due
            return self._as_stream(answers)
        expected, target = self._expected, self._target
        bodies = [self._body(one) for one in answers]
        used = openai_out.sum_usage(
            (prompt, said_by.usage(body)) for prompt, body in zip(expected.prompts, bodies, strict=True)
        )
        at = said_by.created(bodies[0].get("created_at"))
        choose = self._chat_choice if expected.endpoint == "chat" else self._completion_choice
        choices = [choose(index, body) for index, body in enumerate(bodies)]
        build = openai_out.chat_reply if expected.endpoint == "chat" else openai_out.completion_reply
        whole = build(target.public, expected.now if at is None else at, choices, used)
        return Reply(dump(whole), usage=used)

    def failure(self, answer: Answered) -> ApiError:
        return failure(answer, self._expected.endpoint, self._target.backend, tools=self._expected.tools)

    def streams(self) -> tuple[OllamaDecoder, ...]:
        expected, target = self._expected, self._target
        stream = openai_out.ClientStream(
            expected.endpoint,
            target.public,
            answers=len(expected.prompts),
            include_usage=expected.include_usage,
            field=target.reasoning_field,
        )
        wanted = expected.top_logprobs or 0
        return tuple(
            OllamaDecoder(
                stream,
                stream.choice(index, prompt=prompt, echo=echo, wanted=wanted),
                target,
                now=expected.now,
                top_logprobs=expected.top_logprobs,
                tools=expected.tools,
            )
            for index, (prompt, echo) in enumerate(zip(expected.prompts, expected.echoes, strict=True))
        )

    def _as_stream(self, answers: Sequence[Answered]) -> Reply:
        decoders = self.streams()
        pieces = [d.feed(one.body) + d.flush() for d, one in zip(decoders, answers, strict=True)]
        used: Usage | None = next((d.usage for d in decoders if d.usage is not None), None)
        return Reply(b"".join(pieces), CONTENT_TYPE, used)

    def _body(self, one: Answered) -> JsonObject:
        target = self._target
        try:
            body = load_object(one.body)
        except InvalidJson:
            raise unusable(target, "no JSON object") from None
        told = error_in(body, self._expected.endpoint, target.backend, tools=self._expected.tools)
        if told is not None:
            raise told
        if not said_by.said(body).present:
            raise unusable(target, "an object without an answer")
        return body

    def _chat_choice(self, index: int, body: JsonObject) -> JsonObject:
        part = said_by.said(body)
        calls = [openai_out.tool_call(call.name, call.arguments, call.id) for call in part.calls]
        built = openai_out.message(
            part.content, reasoning=part.thinking, calls=calls, field=self._target.reasoning_field
        )
        return openai_out.chat_choice(index, built, _reason(body, len(calls)), self._entries(body))

    def _completion_choice(self, index: int, body: JsonObject) -> JsonObject:
        echo = self._expected.echoes[index]
        entries = self._entries(body)
        legacy = LegacyLogprobs(self._expected.top_logprobs or 0, len(echo))
        logprobs = None if entries is None else legacy(entries)
        return openai_out.completion_choice(index, echo + said_by.said(body).content, _reason(body, 0), logprobs)

    def _entries(self, body: JsonObject) -> list[JsonObject] | None:
        top = self._expected.top_logprobs
        return None if top is None else said_by.logprobs(body, top)


def unusable(target: Target, what: str) -> ApiError:
    """A 200 that holds no answer."""
    return error(
        "upstream_invalid_response",
        f"Ollama on backend '{target.backend}' answered {what}. Check that the base_url is Ollama's own.",
    )


def _reason(body: JsonObject, calls: int) -> str:
    if body.get("done") is False:
        return said_by.guard_reason(calls)
    return said_by.finish_reason(body.get("done_reason"), calls)
