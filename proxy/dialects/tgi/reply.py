"""Whole answers of `/generate` made into OpenAI's: stop strings cut off, the output limit kept, tokens counted.

TGI leaves the stop string in its text and, from 3.0 on, rounds a limit above 1024 up to the next multiple.
Not here: streams, errors with a status of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.dialects.base import Answered, Reply, Usage
from proxy.dialects.shared.logprobs import LegacyLogprobs
from proxy.dialects.shared.openai_in import Child
from proxy.dialects.shared.openai_out import (
    chat_choice,
    chat_reply,
    completion_choice,
    completion_reply,
    message,
    sum_usage,
    tool_call,
)
from proxy.dialects.tgi.job import Job, count, dicts, shown_text
from proxy.stop_filter import StopFilter
from proxy.wire import InvalidJson, JsonObject, dump, load_object


@dataclass(frozen=True, slots=True)
class _Generation:
    """One answer, read. `entries`: None where no logprobs were asked for or delivered."""

    text: str
    reason: str
    entries: list[JsonObject] | None
    usage: Usage


def reply(job: Job, answers: Sequence[Answered]) -> Reply:
    """The client's reply from all calls' answers, in order. Raises `ApiError`."""
    read = [_read(job, child, answer) for child, answer in zip(job.children, answers, strict=True)]
    usage = sum_usage((child.prompt, one.usage) for child, one in zip(job.children, read, strict=True))
    chat = job.asked.endpoint == "chat"
    choose, build = (_chat_choice, chat_reply) if chat else (_completion_choice, completion_reply)
    choices = [choose(job, child, one) for child, one in zip(job.children, read, strict=True)]
    return Reply(dump(build(job.target.public, job.now, choices, usage)), usage=usage)


def _chat_choice(job: Job, child: Child, one: _Generation) -> JsonObject:
    if job.tool is None:
        return chat_choice(child.index, message(one.text), one.reason, one.entries)
    calls = [tool_call(job.tool, one.text)]
    return chat_choice(child.index, message(None, calls=calls), one.reason, one.entries)


def _completion_choice(job: Job, child: Child, one: _Generation) -> JsonObject:
    echo = job.prompts[child.prompt].text if job.echo else ""
    legacy = None if one.entries is None else LegacyLogprobs(job.asked.top, len(echo))(one.entries)
    return completion_choice(child.index, echo + one.text, one.reason, legacy)


def _read(job: Job, child: Child, answer: Answered) -> _Generation:
    try:
        body = load_object(answer.body)
    except InvalidJson:
        raise job.nonsense() from None
    if body.get("error"):
        raise job.event_error(body)
    text, details = body.get("generated_text"), body.get("details")
    if not isinstance(text, str) or not isinstance(details, dict):
        raise job.nonsense()
    told, tokens = details.get("finish_reason"), dicts(details.get("tokens"))
    limit = job.asked.limit
    # An end token behind the limit is no overrun: the model had ended by itself.
    over = limit is not None and sum(token.get("special") is not True for token in tokens) > limit
    if over:
        tokens, told = tokens[:limit], "length"
        text = "".join(shown_text(token) for token in tokens)
    stop = StopFilter(job.asked.stops)
    text = stop.feed(text) + stop.end()
    return _Generation(
        text,
        job.finish_reason(told, stopped=stop.stopped),
        _entries(job, details, tokens, len(text) if stop.stopped else None),
        Usage(_prompt_tokens(job, child, answer, details), _completion_tokens(details, limit if over else None)),
    )


def _entries(job: Job, details: JsonObject, tokens: Sequence[JsonObject], cut: int | None) -> list[JsonObject] | None:
    """Of the tokens that are shown, in part at least. `cut`: where a stop string ended the text."""
    if not job.asked.logprobs or not isinstance(details.get("tokens"), list):
        return None
    tops: Any = details.get("top_tokens")
    tops = tops if isinstance(tops, list) else []
    at, out = 0, []
    for number, token in enumerate(tokens):
        if cut is not None and at >= cut:
            break
        if token.get("special") is not True:
            out.append(job.entry(token, tops[number] if number < len(tops) else None))
            at += len(shown_text(token))
    return out


def _prompt_tokens(job: Job, child: Child, answer: Answered, details: JsonObject) -> int:
    """TGI tells it in a header only."""
    header = answer.header(b"x-prompt-tokens") or ""
    if header.isdecimal():
        return int(header)
    return len(dicts(details.get("prefill"))) or job.prompts[child.prompt].tokens


def _completion_tokens(details: JsonObject, limit: int | None) -> int:
    """All that were generated: best_of's other answers count as well."""
    counts = [count(one.get("generated_tokens"), 0) for one in (details, *dicts(details.get("best_of_sequences")))]
    return sum(counts if limit is None else (min(limit, one) for one in counts))
