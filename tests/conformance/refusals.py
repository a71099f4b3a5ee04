"""Checks of what the gateway says to requests that can't be answered, and to browsers that ask before they post."""

from typing import Any

import httpx
import openai

from tests.conformance.clients import HI, TIMEOUT, same, sdk
from tests.conformance.outcome import Ignored, envelope
from tests.conformance.subjects import CONTEXT, Subject

# One white pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"


def unknown_model(subject: Subject) -> None:
    """404 `model_not_found` with the models that there are."""
    try:
        sdk(subject).chat.completions.create(model="no-such-model", messages=HI)
    except openai.NotFoundError as error:
        same(error.code, "model_not_found", "code")
        named_among(subject.chat, str(envelope(error.response)["message"]))
    else:
        raise AssertionError("an unknown model was answered")


def named_among(model: str, message: str) -> None:
    assert model in message, f"the message does not name the model there is: {message}"


def bad_value(subject: Subject) -> None:
    """A temperature that is no number: 400."""
    try:
        sdk(subject).chat.completions.create(model=subject.chat, messages=HI, temperature="hot")  # type: ignore[call-overload]
    except openai.BadRequestError as error:
        envelope(error.response)
    else:
        raise Ignored("answered as if nothing were wrong")


def overflow(subject: Subject) -> None:
    """A prompt beyond the model's context: 400 `context_length_exceeded`, plain and streamed."""
    long: Any = [{"role": "user", "content": "x" * (CONTEXT + 500)}]
    for streamed in (False, True):
        try:
            sdk(subject).chat.completions.create(model=subject.chat, messages=long, max_tokens=2, stream=streamed)
        except openai.BadRequestError as error:
            envelope(error.response)
            same(error.code, "context_length_exceeded", "code")
        else:
            raise Ignored("answered as if it fitted")


def picture(subject: Subject) -> None:
    """A picture for a model that can't see: 400, and a message that says so."""
    url = f"data:image/png;base64,{PNG}"
    parts: Any = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    try:
        answer = sdk(subject).chat.completions.create(
            model=subject.chat, messages=[{"role": "user", "content": parts}], max_tokens=4
        )
    except openai.BadRequestError as error:
        message = str(envelope(error.response)["message"])
        assert any(word in message.lower() for word in ("image", "multimodal", "vision")), message
    else:
        raise Ignored(f"answered with {answer.choices[0].message.content!r}")


def preflight(subject: Subject) -> None:
    """What a browser asks before it posts from another origin, and what it needs in the answer."""
    url, origin = f"{subject.gateway.v1}/chat/completions", "http://localhost:5173"
    asked = "authorization, content-type, x-stainless-lang"
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
    }
    answer = httpx.options(url, headers=headers, trust_env=False)
    assert answer.status_code in (200, 204), answer.status_code
    assert answer.headers["access-control-allow-origin"] in ("*", origin), answer.headers
    assert {"POST", "*"} & set(words(answer.headers["access-control-allow-methods"])), answer.headers
    allowed = {word.lower() for word in words(answer.headers["access-control-allow-headers"])}
    assert set(words(asked)) <= allowed or "*" in allowed, answer.headers
    body = {"model": subject.chat, "messages": HI}
    posted = httpx.post(url, json=body, headers={"Origin": origin}, timeout=TIMEOUT, trust_env=False)
    same(len(posted.headers.get_list("access-control-allow-origin")), 1, "the number of allow-origin headers")
    assert posted.headers["access-control-allow-origin"] in ("*", origin), posted.headers


def words(header: str) -> list[str]:
    return [word.strip() for word in header.split(",")]
