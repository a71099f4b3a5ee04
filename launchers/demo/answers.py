"""What the demo engine says: request bodies in, OpenAI's objects out.

It does honestly what can be done without a model (lengths, stop strings, usage, choices, unit vectors) and refuses
what would be a lie (forced tool calls, JSON by schema, log probabilities). One word with the space before it is one
token. No I/O, no clock but the one in `created`; HTTP is `app`'s.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

DIMENSIONS: Final = 64  # of an embedding, where the request names none
MAX_DIMENSIONS: Final = 4096
MAX_CHOICES: Final = 64
MAX_INPUTS: Final = 2048
MAX_TOKENS: Final = 8192  # of one embedding input
QUOTED: Final = 300  # characters of the user's words that come back

_TOKEN: Final = re.compile(r"\s*\S+|\s+")


class Refused(Exception):
    """A request that is answered with an error, in OpenAI's envelope."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def envelope(self) -> Json:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice's text, cut by `stop` and the token limit."""

    tokens: tuple[str, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked chat or completion request and its answers, one for each choice."""

    chat: bool
    model: str
    answers: tuple[Answer, ...]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    id: str
    created: int

    def usage(self) -> Json:
        return _usage(self.prompt_tokens, sum(len(answer.tokens) for answer in self.answers))

    def whole(self) -> Json:
        """The plain reply."""
        choices = [self._choice(index, answer) for index, answer in enumerate(self.answers)]
        return self._head("chat.completion") | {"choices": choices, "usage": self.usage()}

    def _choice(self, index: int, answer: Answer) -> Json:
        said: Json = {"text": answer.text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
        return {"index": index, **said, "logprobs": None, "finish_reason": answer.finish_reason}

    def chunks(self) -> Iterator[Json]:
        """The streamed reply: choices take turns, token by token."""
        if self.chat:
            for index in range(len(self.answers)):
                yield self._chunk(index, {"role": "assistant", "content": ""})
        for turn in range(max(len(answer.tokens) for answer in self.answers)):
            for index, answer in enumerate(self.answers):
                if turn < len(answer.tokens):
                    piece = answer.tokens[turn]
                    yield self._chunk(index, {"content": piece} if self.chat else piece)
        for index, answer in enumerate(self.answers):
            yield self._chunk(index, {} if self.chat else "", answer.finish_reason)
        if self.include_usage:
            yield self._head("chat.completion.chunk") | {"choices": [], "usage": self.usage()}

    def _chunk(self, index: int, said: Json | str, finish_reason: str | None = None) -> Json:
        part = {"delta" if self.chat else "text": said}
        choice = {"index": index, **part, "logprobs": None, "finish_reason": finish_reason}
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk

    def _head(self, chat_object: str) -> Json:
        name = chat_object if self.chat else "text_completion"
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def speech(said: str) -> str:
    """The whole answer to those words."""
    quoted = said if len(said) <= QUOTED else said[:QUOTED] + "…"
    return (
        "This is illm's built-in demo engine, a stand-in and not a language model. "
        f'You said: "{quoted}". '
        "Point illm at a real engine to get real answers: start one at its usual local port (Ollama, llama-server, "
        "vLLM, …), or name its base_url under `backends:` in illm's YAML file."
    )


def chat(body: Json, model: str) -> Generation:
    """Raises `Refused`."""
    _check_model(body, model)
    _refuse_what_needs_a_model(body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise Refused("`messages` must be a list of one or more message objects.", param="messages")
    texts = [(str(one.get("role")), _content_text(one.get("content"))) for one in messages]
    said = next((text for role, text in reversed(texts) if role == "user"), texts[-1][1])
    limit = _integer(body, "max_completion_tokens", 1) or _integer(body, "max_tokens", 1)
    answer = _cut(speech(said), _stops(body), limit)
    prompt_tokens = sum(len(_TOKEN.findall(text)) for _, text in texts)
    return _generation(body, model, True, [answer], prompt_tokens)


def completion(body: Json, model: str) -> Generation:
    """Raises `Refused`."""
    _check_model(body, model)
    _refuse_what_needs_a_model(body)
    prompts = _texts(body, "prompt")
    stops, limit = _stops(body), _integer(body, "max_tokens", 0)
    answers = []
    for prompt in prompts:
        answer = _cut(speech(prompt), stops, limit)
        if body.get("echo") is True:
            answer = Answer((prompt, *answer.tokens), answer.finish_reason)
        answers.append(answer)
    prompt_tokens = sum(len(_TOKEN.findall(prompt)) for prompt in prompts)
    return _generation(body, model, False, answers, prompt_tokens)


def embeddings(body: Json, model: str) -> Json:
    """The whole reply: for each input a unit vector made from its words alone. Raises `Refused`."""
    _check_model(body, model)
    texts = _texts(body, "input")
    size = _integer(body, "dimensions", 1, MAX_DIMENSIONS) or DIMENSIONS
    if any(len(_TOKEN.findall(text)) > MAX_TOKENS for text in texts):
        message = f"An input is longer than {MAX_TOKENS} tokens."
        raise Refused(message, param="input", code="context_length_exceeded")
    style = body.get("encoding_format") or "float"
    if style not in ("float", "base64"):
        raise Refused("`encoding_format` must be `float` or `base64`.", param="encoding_format")
    data = []
    for index, text in enumerate(texts):
        vector = unit_vector(text, size)
        shown: Any = vector
        if style == "base64":
            shown = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = _usage(sum(len(_TOKEN.findall(text)) for text in texts), None)
    return {"object": "list", "data": data, "model": model, "usage": usage}


def model_object(model: str) -> Json:
    return {"id": model, "object": "model", "created": 0, "owned_by": "illm-demo"}


def unit_vector(text: str, size: int) -> list[float]:
    """The same text always gives the same vector, and texts that share words are nearer to each other."""
    total = [0.0] * size
    for word in text.lower().split() or [text]:
        digest = hashlib.shake_256(word.encode("utf-8", "surrogatepass")).digest(2 * size)
        for place, value in enumerate(struct.unpack(f"<{size}h", digest)):
            total[place] += value
    length = math.sqrt(sum(value * value for value in total)) or 1.0
    return [value / length for value in total]


def _generation(body: Json, model: str, chat: bool, answers: list[Answer], prompt_tokens: int) -> Generation:
    stream = _flag(body, "stream")
    options = body.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict)):
        raise Refused("`stream_options` is an object and needs `stream: true`.", param="stream_options")
    copies = _integer(body, "n", 1, MAX_CHOICES) or 1
    return Generation(
        chat=chat,
        model=model,
        answers=tuple(answer for answer in answers for _ in range(copies)),
        prompt_tokens=prompt_tokens,
        stream=stream,
        include_usage=bool(options and _flag(options, "include_usage")),
        id=("chatcmpl-demo-" if chat else "cmpl-demo-") + uuid.uuid4().hex,
        created=int(time.time()),
    )


def _cut(text: str, stops: tuple[str, ...], limit: int | None) -> Answer:
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    tokens = tuple(_TOKEN.findall(text[: min(found)] if found else text))
    if limit is not None and len(tokens) > limit:
        return Answer(tokens[:limit], "length")
    return Answer(tokens, "stop")


def _usage(prompt: int, completion: int | None) -> Json:
    if completion is None:
        return {"prompt_tokens": prompt, "total_tokens": prompt}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _check_model(body: Json, model: str) -> None:
    asked = body.get("model")
    if not isinstance(asked, str) or not asked:
        raise Refused("`model` is missing.", param="model", code="missing_required_parameter")
    if asked != model:
        message = f"The model `{asked}` does not exist: the demo engine has only `{model}`."
        raise Refused(message, status=404, param="model", code="model_not_found")


def _refuse_what_needs_a_model(body: Json) -> None:
    shape = body.get("response_format")
    unable = {
        "tool_choice": body.get("tool_choice") not in (None, "none", "auto"),
        "response_format": shape is not None and not (isinstance(shape, dict) and shape.get("type") == "text"),
        "logprobs": body.get("logprobs") not in (None, False),
    }
    for name, wanted in unable.items():
        if wanted:
            raise Refused(
                f"The demo engine has no model and can't do `{name}`: point illm at a real engine for that.",
                param=name,
                code="unsupported_parameter",
            )


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused("A message's `content` is a string or a list of parts.", param="messages")
    return " ".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


def _texts(body: Json, name: str) -> list[str]:
    """A string, a list of strings, token ids or a list of lists of token ids, as texts."""
    value = body.get(name)
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list) or not value or len(value) > MAX_INPUTS:
        raise Refused(f"`{name}` must be a string, token ids, or a list of at most {MAX_INPUTS} of them.", param=name)
    texts = []
    for one in value:
        if not isinstance(one, str) and not _is_ids(one):
            raise Refused(f"`{name}` holds something that is neither text nor token ids.", param=name)
        texts.append(one if isinstance(one, str) else " ".join(str(number) for number in one))
    if name == "input" and "" in texts:
        raise Refused("`input` can't be an empty string.", param=name)
    return texts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _stops(body: Json) -> tuple[str, ...]:
    value = body.get("stop")
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(one, str) for one in stops):
        raise Refused("`stop` must be a string or a list of at most four strings.", param="stop")
    return tuple(stop for stop in stops if stop)


def _integer(body: Json, name: str, least: int, most: int = 2**31) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise Refused(f"`{name}` must be a whole number from {least} to {most}.", param=name, code="invalid_value")
    return value


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"`{name}` must be true or false.", param=name, code="invalid_value")
    return bool(value)
