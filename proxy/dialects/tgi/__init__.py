"""TGI's own wire format: `/generate` and `/generate_stream` with a raw prompt, everything else done here.

A request is read and refused first (`parameters`, `shared.openai_in`), then the prompt is made, for which TGI is asked
(`prompt`), and then come one or several calls whose answers are `reply`'s or `stream`'s. TGI's OpenAI surface is the
OpenAI dialect's; `wants_openai` says which of the two a request goes through.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final

from proxy.dialects.base import (
    Answered,
    Ask,
    Encoded,
    Fetch,
    Learn,
    Plan,
    Reply,
    Request,
    Steps,
    StreamDecoder,
    Target,
)
from proxy.dialects.shared.images import fetched, local_images, with_images
from proxy.dialects.shared.openai_in import Asked, dropped, fan_out, prompts, read
from proxy.dialects.shared.tgi_errors import decode_tgi_error
from proxy.dialects.shared.tgi_messages import defused, messages_for_tgi, without_links
from proxy.dialects.tgi import parameters as rows
from proxy.dialects.tgi.job import Job
from proxy.dialects.tgi.prompt import Prompt, learn_info, older, rendered, templated, version
from proxy.dialects.tgi.reply import reply
from proxy.dialects.tgi.stream import streams
from proxy.errors import ApiError, error
from proxy.wire import InvalidJson, JsonObject, dump, load

__all__ = ["DIALECT", "Tgi", "wants_openai"]

NAME: Final = "TGI"
TOOLS_SINCE: Final = (2, 4, 1)
FILLS_SINCE: Final = (3, 0)  # an absent limit means the rest of the context
_TEXT: Final = ("chat", "completions")
# Stands for a picture that isn't fetched yet, so that a request is checked as a whole before anything is sent.
_PICTURE: Final = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


class Tgi:
    """A `Dialect`; stateless."""

    def encode(self, request: Request, target: Target) -> Steps:
        if request.endpoint not in _TEXT or request.form is not None:
            raise error(
                "unsupported_endpoint",
                f"Model '{target.public}' on backend '{target.backend}' (TGI) serves chat and text completion only. "
                "Embeddings and reranking need a TEI, Infinity, vLLM, SGLang or llama.cpp backend.",
                param="model",
            )
        asked = read(request, target, NAME)
        lost = dropped(asked.members, rows.NEUTRAL[asked.endpoint], target, NAME)
        make = _chat if asked.endpoint == "chat" else _completions
        return make(request, target, asked, lost)


class Decoder:
    """A `ResponseDecoder`."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def reply(self, answers: Sequence[Answered]) -> Reply:
        return reply(self._job, answers)

    def failure(self, answer: Answered) -> ApiError:
        job = self._job
        return decode_tgi_error(
            answer.status, answer.content_type, answer.body, job.asked.endpoint, job.target.backend,
            tools=job.tool is not None, retry_after=answer.header(b"retry-after"),
        )  # fmt: skip

    def streams(self) -> Sequence[StreamDecoder]:
        return streams(self._job)


DIALECT: Final = Tgi()


def wants_openai(request: Request, target: Target) -> bool:
    """True if this request goes through TGI's own /v1: always or never as configured, and with `auto` where the model
    may choose among tools, which native TGI can't do. What is neither chat nor completions is never native."""
    if request.endpoint not in _TEXT:
        return True
    if target.chat_mode != "auto":
        return target.chat_mode == "openai"
    members = request.members or {}
    if request.endpoint != "chat" or "tools" not in members or older(target, TOOLS_SINCE):
        return False
    try:
        told: JsonObject = {name: load(members[name]) for name in ("tools", "tool_choice") if name in members}
    except InvalidJson:
        return False
    return rows.usable_tools(told)


# -- steps ---------------------------------------------------------------------------------------------------


def _chat(request: Request, target: Target, asked: Asked, lost: tuple[str, ...]) -> Steps:
    """Checked now; the steps come with the generator."""
    tool = rows.forced_tool(asked.members, target)
    form = rows.response_grammar(asked)
    if tool is not None and form is not None:
        raise error(
            "unsupported_parameter",
            "TGI can't have `tools` and `response_format` together.",
            param="response_format",
        )
    if tool is not None:
        _check_tools(target)
        form = {"type": "json", "value": tool["function"]["parameters"]}
    body = rows.parameters(asked, form)
    local, urls = local_images(asked.members.get("messages"), target)
    checked = _messages(with_images(local, dict.fromkeys(urls, _PICTURE)) if urls else local, target)

    def steps() -> Steps:
        messages = checked
        if version(target) is None:
            yield from learn_info(target)
        if tool is not None:
            _check_tools(target)
        if urls:
            messages = _messages(with_images(local, (yield from fetched(urls))), target)
        prompt = yield from _prompt(messages, tool, request, target)
        limit = yield from _default_limit(asked, target)
        name = None if tool is None else tool["function"]["name"]
        job = Job(asked, target, request.now, (prompt,), fan_out(1, asked.n), name)
        return _plan(job, body | limit, lost)

    return steps()


def _completions(request: Request, target: Target, asked: Asked, lost: tuple[str, ...]) -> Steps:
    """Checked now; the steps come with the generator."""
    members = asked.members
    texts = prompts(members, target, NAME)
    echo = members.get("echo") is True
    if members.get("suffix", "") != "":
        raise error("unsupported_parameter", "TGI's completions have no `suffix`.", param="suffix")
    if echo and asked.logprobs:
        raise error("unsupported_parameter", "TGI has no logprobs for an echoed prompt.", param="echo")
    body = rows.parameters(asked, None) | rows.best_of(asked)
    vision = target.options.get("vision") is True

    def steps() -> Steps:
        if version(target) is None and asked.limit is None:
            yield from learn_info(target)
        limit = yield from _default_limit(asked, target)
        sent = tuple(Prompt(without_links(text) if vision else text) for text in texts)
        job = Job(asked, target, request.now, sent, fan_out(len(sent), asked.n), echo=echo)
        return _plan(job, body | limit, lost)

    return steps()


def _messages(messages: Any, target: Target) -> list[JsonObject]:
    return messages_for_tgi(messages, vision=target.options.get("vision") is True, backend=target.backend)


def _prompt(
    messages: list[JsonObject], tool: JsonObject | None, request: Request, target: Target
) -> Generator[Ask | Learn, Answered, Prompt]:
    template = target.options.get("chat_template")
    if isinstance(template, str) and template:
        return (yield from rendered(template, messages, request.now, target))
    body: JsonObject = {"messages": messages}
    if tool is not None:
        name = tool["function"]["name"]
        told = {
            "tools": [tool],
            "tool_choice": {"type": "function", "function": {"name": name}},
            "tool_prompt": f"\nAnswer only with the JSON arguments object for the function `{name}`.\n",
        }
        body |= defused(told) if target.options.get("vision") is True else told
    return (yield from templated(body, target, tools=tool is not None))


def _default_limit(asked: Asked, target: Target) -> Generator[Ask | Fetch | Learn, Answered, JsonObject]:
    """Said for old servers, which would stop after 20 or 100 tokens."""
    if asked.limit is not None or not older(target, FILLS_SINCE):
        return {}
    limit = target.options.get("default_max_tokens")
    if limit is None:
        info = yield from learn_info(target)
        total, prompt = info.get("max_total_tokens"), info.get("max_input_tokens", info.get("max_input_length"))
        limit = total - prompt if isinstance(total, int) and isinstance(prompt, int) else None
    return {"max_new_tokens": limit} if isinstance(limit, int) and limit > 0 else {}


def _plan(job: Job, body: JsonObject, lost: tuple[str, ...]) -> Plan:
    path = "/generate_stream" if job.asked.stream else "/generate"
    calls = tuple(
        Encoded(
            path,
            dump({"inputs": job.prompts[one.prompt].text, "parameters": body | rows.seed(job.asked, one.shift)}),
        )
        for one in job.children
    )
    return Plan(calls, Decoder(job), lost)


def _check_tools(target: Target) -> None:
    """A forced call needs TGI's own template, and a recent one."""
    if target.options.get("chat_template"):
        why = "has a chat template of its own configured, which takes no tools"
    elif older(target, TOOLS_SINCE):
        why = f"is too old for them (TGI {target.version}; 2.4.1 or newer is needed)"
    else:
        return
    raise error("unsupported_parameter", f"Backend '{target.backend}' {why}: `tools` can't be used.", param="tools")
