"""What the tests of TGI's native dialect share: requests, steps carried out by hand, and what may be sent and told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import jsonschema
import pytest

from proxy.dialects.base import Answered, Ask, Fetch, Learn, Plan, Reply, Request, StreamDecoder, Target
from proxy.dialects.tgi import DIALECT
from proxy.dialects.tgi.prompt import BOS
from proxy.errors import ApiError
from proxy.wire import members
from tests.vectors_support import DATA, data

HI = [{"role": "user", "content": "hi"}]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
NOW = 1_700_000_000
CAPTURES = json.loads((DATA / "tgi" / "3.3.6-dev0.json").read_text("utf-8"))

Answers = Callable[[Ask | Fetch], Answered]


def target(version: str | None = "3.3.7", *, facts: dict[str, Any] | None = None, **more: Any) -> Target:
    """One whose BOS rule is known already, unless `facts` say otherwise."""
    known = {BOS: ""} if facts is None else facts
    return Target("tgi", "old", "acme/m", "pub-tgi", version=version, facts=known, **more)


def request(endpoint: Any, body: dict[str, Any]) -> Request:
    raw = json.dumps(body).encode()
    return Request(endpoint, raw, members(raw), stream=body.get("stream") is True, now=NOW)


def tokenized(text: str = "PROMPT", *texts: str) -> Answered:
    tokens = [{"id": i, "text": t, "start": 0, "stop": 0} for i, t in enumerate(texts)]
    return answered({"templated_text": text, "tokenize_response": tokens})


def answered(body: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> Answered:
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Answered(status, content_type, raw, lines)


class Walk:
    """Carries out what `encode` gave. `asked`: the calls it made on its way; facts go where the gateway puts them."""

    def __init__(self, to: Target, answer: Answers | None = None) -> None:
        self.asked: list[Ask | Fetch] = []
        self._to = to
        self._answer = answer or (lambda _: tokenized())

    def run(self, endpoint: Any, body: dict[str, Any]) -> Plan:
        steps = DIALECT.encode(request(endpoint, body), self._to)
        got = None
        while True:
            try:
                step = next(steps) if got is None else steps.send(got)
            except StopIteration as stop:
                plan: Plan = stop.value
                return plan
            if isinstance(step, Learn):
                self._to.facts[step.name] = step.value  # type: ignore[index]
                got = Answered(200, "", b"")
                continue
            self.asked.append(step)
            got = self._answer(step)


def encode(endpoint: Any, body: dict[str, Any], to: Target | None = None, answer: Answers | None = None) -> Plan:
    plan = Walk(to or target(), answer).run(endpoint, body)
    for call in plan.calls:
        check_sent(json.loads(call.body))
    return plan


def chat(**members: Any) -> dict[str, Any]:
    return {"model": "pub-tgi", "messages": HI} | members


def completion(**members: Any) -> dict[str, Any]:
    return {"model": "pub-tgi", "prompt": "Hi"} | members


def sent(body: dict[str, Any], to: Target | None = None) -> dict[str, Any]:
    """The `parameters` of the one call that goes up, without `details`."""
    (call,) = encode("chat" if "messages" in body else "completions", body, to).calls
    parameters: dict[str, Any] = json.loads(call.body)["parameters"]
    assert parameters.pop("details") is True
    return parameters


def refused(endpoint: Any, body: dict[str, Any], to: Target | None = None) -> tuple[Any, Any]:
    """Param and code of the refusal, which comes before anything is asked."""

    def nobody(step: Ask | Fetch) -> Answered:
        raise AssertionError(f"{step} although the request can't be served")

    with pytest.raises(ApiError) as caught:
        Walk(to or target(), nobody).run(endpoint, body)
    exc = caught.value
    assert exc.message
    assert exc.status == (422 if exc.code == "unsupported_endpoint" else 400)
    return exc.param, exc.code


# -- streams ---------------------------------------------------------------------------------------------------


def token(text: str, *, final: str | None = None, special: bool = False, reason: str = "length", **more: Any) -> bytes:
    """An event of `/generate_stream`; `final`: the last one, with the whole text."""
    body: dict[str, Any] = {
        "index": 1, "token": {"id": 1, "text": text, "logprob": -0.5, "special": special}, "generated_text": final,
        "details": None,
    }  # fmt: skip
    if final is not None:
        body["details"] = {"finish_reason": reason, "generated_tokens": 7, "seed": None, "input_length": 3}
    return b"data: " + json.dumps(body | more).encode() + b"\n\n"


def decoded(decoder: StreamDecoder, pieces: Iterable[bytes]) -> bytes:
    """The client's stream, as the relay writes it."""
    out = b""
    try:
        for piece in pieces:
            new = decoder.feed(piece)
            assert not new or new.endswith(b"\n\n")
            out += new
        if not decoder.done:
            out += decoder.flush()
    except ApiError as exc:
        out += decoder.take_pending() + decoder.error(exc)
    return out


def events(stream: bytes) -> list[Any]:
    texts = [block.removeprefix(b"data: ") for block in stream.split(b"\n\n") if block]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in texts]


def stream(body: dict[str, Any], pieces: Sequence[bytes], to: Target | None = None) -> list[Any]:
    plan = encode("chat" if "messages" in body else "completions", body | {"stream": True}, to)
    (decoder,) = plan.decoder.streams()
    return events(decoded(decoder, pieces))


def whole(body: dict[str, Any], *answers: Answered, to: Target | None = None) -> dict[str, Any]:
    plan = encode("chat" if "messages" in body else "completions", body, to)
    reply = plan.decoder.reply(answers)
    assert isinstance(reply, Reply)
    told: dict[str, Any] = json.loads(reply.body)
    check_told("CreateChatCompletionResponse" if "messages" in body else "CreateCompletionResponse", told)
    return told


def generation(text: str, *texts: str, reason: str = "length", **details: Any) -> Answered:
    """An answer of `/generate`; `texts`: its tokens, else one for each character."""
    tokens = [{"id": i, "text": t, "logprob": -0.5, "special": False} for i, t in enumerate(texts or text)]
    told = {"finish_reason": reason, "generated_tokens": len(tokens), "seed": None, "prefill": [], "tokens": tokens}
    return answered({"generated_text": text, "details": told | details}, x_prompt_tokens="3")


# -- schemas ---------------------------------------------------------------------------------------------------


@cache
def _generate_request() -> tuple[jsonschema.Draft202012Validator, frozenset[str]]:
    document = data("tgi-openapi")
    known = document["components"]["schemas"]["GenerateParameters"]["properties"]
    del known["seed"]["exclusiveMinimum"]  # 0 is taken
    validator = jsonschema.Draft202012Validator({"$ref": "#/components/schemas/GenerateRequest", **document})
    return validator, frozenset(known) - {"return_full_text", "decoder_input_details"}


@cache
def _openai(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/$defs/{name}", "$defs": data("openai-jsonschema-bundle")["$defs"]}
    )


def check_sent(body: dict[str, Any]) -> None:
    """Against TGI's own description, and for what it leaves unsaid."""
    validator, known = _generate_request()
    validator.validate(body)
    assert set(body) == {"inputs", "parameters"}
    assert set(body["parameters"]) <= known
    assert None not in body["parameters"].values()


def check_told(name: str, body: dict[str, Any]) -> None:
    _openai(name).validate(body)
