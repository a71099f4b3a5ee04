"""TGI's own `/v1/chat/completions` and `/v1/completions`, with every difference from OpenAI's that the real one has."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from tests.standins.directives import Directive, choose
from tests.standins.server import Exchange
from tests.standins.tgi_chat import (
    NO_TOOL,
    CallPieces,
    Tools,
    call_id,
    call_text,
    check_tool_schemas,
    choose_tools,
    parameters,
    render,
    tool_error,
)
from tests.standins.tgi_model import Said, generate, top_tokens, whole
from tests.standins.tgi_rules import Job, Refused, Settings, check, dumps
from tests.standins.tgi_serde import Malformed, Text
from tests.standins.tgi_sse import Events
from tests.standins.tgi_tokens import Token

_CHAT_FINISH = {"eos_token": "stop"}


def _identity(kind: str, body: dict[str, Any], settings: Settings) -> dict[str, Any]:
    model = body.get("model") or "tgi"
    return {
        "object": kind,
        "id": "",
        "created": int(time.time()),
        "model": settings.model_id if model == "tgi" else model,
        "system_fingerprint": f"{settings.version}-native",
    }


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprobs(tokens: list[Token], body: dict[str, Any]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    count = body.get("top_logprobs") or 0
    return {
        "content": [
            {
                "token": each.text,
                "logprob": each.logprob,
                "top_logprobs": [
                    {"token": other.text, "logprob": other.logprob}
                    for other in (top_tokens(each, count) if count else ())
                ],
            }
            for each in tokens
        ]
    }


class Chat:
    """One chat request, templated and checked."""

    def __init__(self, exchange: Exchange, body: dict[str, Any], settings: Settings) -> None:
        """Raises Refused for what has its own status even in a stream: templates and tools."""
        self.exchange, self.body, self.settings = exchange, body, settings
        self.messages = body["messages"]
        self.tools = choose_tools(body, settings)
        self.prompt = render(self.messages, self.tools, body.get("tool_prompt"), settings)
        self.directive = choose(exchange, self.prompt)
        self.identity = _identity("chat.completion", body, settings)

    def job(self, tools: Tools | None) -> Job:
        """Raises Refused for what a stream reports inside."""
        prompt = self.prompt if tools is self.tools else render(self.messages, None, None, self.settings)
        if tools is not None:
            check_tool_schemas(tools, self.settings)
        given, stream = parameters(self.body, chat=True), bool(self.body.get("stream"))
        job = check(prompt, given, self.settings, stream=stream, special=False)
        job.last_message = json.dumps(self.messages[-1], ensure_ascii=False) if self.messages else " "
        return job

    def told(self, tools: Tools | None) -> Directive:
        if tools is None or self.directive.text is not None:
            return self.directive
        return replace(self.directive, text=call_text(tools, self.messages))

    def call(self, name: str | None, arguments: object) -> dict[str, Any]:
        return {
            "id": call_id(self.messages),
            "type": "function",
            "function": {"description": None, "name": name, "arguments": arguments},
        }

    async def whole(self) -> tuple[dict[str, Any], Job, Said]:
        job = self.job(self.tools)
        said = await whole(job, self.told(self.tools), self.exchange, self.settings)
        message: dict[str, Any] = {"role": "assistant", "content": said.text}
        if self.tools is not None:
            name, arguments = _parsed(said.text)
            if name == NO_TOOL:
                job = self.job(None)
                said = await whole(job, self.directive, self.exchange, self.settings)
                message["content"] = said.text
            else:
                text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
                shown: object = text if self.settings.since >= (3, 2) else arguments
                message = {"role": "assistant", "tool_calls": [self.call(name, shown)]}
        finish = _CHAT_FINISH.get(said.finish, said.finish)
        logprobs = _logprobs(said.tokens, self.body)
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}
        usage = _usage(job.prompt_tokens, len(said.tokens))
        return {**self.identity, "choices": [choice], "usage": usage}, job, said

    async def stream(self, events: Events) -> None:
        """Writes the chunks; Refused comes through for the caller to report."""
        job = self.job(self.tools)
        if self.tools is None:
            count = await self._contents(job, events)
        else:
            called = await self._calls(job, events)
            if called is None:
                job = self.job(None)
                count = await self._contents(job, events)
            else:
                count = called
        if (self.body.get("stream_options") or {}).get("include_usage"):
            await events.send(self._chunk([], _usage(job.prompt_tokens, count)))

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk"}
        return {**self.identity, **kind, "choices": choices, "usage": usage}

    async def _contents(self, job: Job, events: Events) -> int:
        count = 0
        async with aclosing(generate(job, self.directive, self.exchange, self.settings, stream=True)) as tokens:
            async for token, finish in tokens:
                count += 1
                delta = {"role": "assistant", "content": "" if token.special else token.text}
                choice = {"index": 0, "delta": delta, "logprobs": _logprobs([token], self.body)}
                shown = _CHAT_FINISH.get(finish, finish) if finish else None
                await events.send(self._chunk([{**choice, "finish_reason": shown}]))
        return count

    async def _calls(self, job: Job, events: Events) -> int | None:
        """The number of tokens; None where the model chose no tool, of which nothing is sent."""
        assert self.tools is not None
        pieces, count = CallPieces(), 0
        source = generate(job, self.told(self.tools), self.exchange, self.settings, stream=True)
        async with aclosing(source) as tokens:
            async for token, finish in tokens:
                count += 1
                if token.special:
                    continue  # and with it goes the finish reason
                known = pieces.name is not None
                piece = pieces.feed(token.text)
                if piece is None or pieces.name == NO_TOOL:
                    continue
                function = {"name": None if known else pieces.name, "arguments": piece}
                call = {"index": 0, "id": call_id(self.messages), "type": "function", "function": function}
                delta = {"role": "assistant", "tool_calls": [call]}
                await events.send(
                    self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])
                )
        return None if pieces.name == NO_TOOL else count


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    quoted = json.dumps(text, ensure_ascii=False)
    try:
        value = Text(text.encode()).read().plain()
    except Malformed as broken:
        raise tool_error(f"Failed to parse generated text: {broken} {quoted}") from None
    call = value.get("function") if isinstance(value, dict) else None
    if not isinstance(call, dict) or "_name" not in call:
        raise tool_error("No function found in generated text")
    return call["_name"], {name: each for name, each in call.items() if name != "_name"}


class Completions:
    """One completions request; every prompt of it is generated by itself."""

    def __init__(self, exchange: Exchange, body: dict[str, Any], settings: Settings) -> None:
        """Raises Refused for what has its own status even in a stream."""
        self.exchange, self.body, self.settings = exchange, body, settings
        self.prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        if body.get("suffix") is not None:
            text = "Suffix is not supported and can be achieved by preprocessing the prompt."
            raise Refused(422, text, "suffix not supported")
        if len(self.prompts) > settings.max_batch:
            text = f"Number of prompts exceeds the maximum allowed batch size of {settings.max_batch}"
            raise Refused(422, text, "batch size exceeded")
        self.identity = _identity("text_completion", {}, settings)  # the name that was asked for is not repeated

    def jobs(self) -> list[Job]:
        given = parameters(self.body, chat=False)
        stream = bool(self.body.get("stream"))
        return [check(prompt, given, self.settings, stream=stream) for prompt in self.prompts]

    async def whole(self) -> dict[str, Any]:
        done = []
        for index, job in enumerate(self.jobs()):
            said = await whole(job, choose(self.exchange, job.inputs), self.exchange, self.settings)
            finish = _CHAT_FINISH.get(said.finish, said.finish)
            choice = {"index": index, "text": said.text, "logprobs": None, "finish_reason": finish}
            done.append((len(said.tokens), index, choice, job.prompt_tokens))
        done.sort(key=lambda each: each[:2])  # they are listed as they finish: the short ones first
        usage = _usage(sum(each[3] for each in done), sum(each[0] for each in done))
        return {**self.identity, "choices": [each[2] for each in done], "usage": usage}

    async def stream(self, events: Events) -> None:
        """Round robin over the prompts, as a batch of the real one goes on."""
        jobs = self.jobs()
        running: dict[int, AsyncIterator[tuple[Token, str | None]]] = {
            index: generate(job, choose(self.exchange, job.inputs), self.exchange, self.settings, stream=True)
            for index, job in enumerate(jobs)
        }
        counts = dict.fromkeys(running, 0)
        while running:
            for index, tokens in list(running.items()):
                token, finish = await anext(tokens)
                counts[index] += 1
                choice = {"index": index, "text": token.text, "logprobs": None, "finish_reason": finish or ""}
                chunk: dict[str, Any] = {**self.identity, "choices": [choice]}
                if finish is not None:
                    chunk["usage"] = _usage(jobs[index].prompt_tokens, counts[index])
                    del running[index]
                await events.send(chunk)


def error_event(refused: Refused, settings: Settings) -> bytes:
    """In streams every cause is called 422."""
    if settings.since < (2, 4, 1):
        return refused.body()
    return dumps({"error": {"message": refused.error, "http_status_code": 422}})
