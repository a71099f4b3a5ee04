"""The demo engine's HTTP side: routes, bodies, event streams, error envelopes.

What it says is `answers`' part, when it ends is `__main__`'s.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from launchers.demo import answers

MAX_BODY: Final = 32 * 2**20


def create_app(model: str = "demo", delay: float = 0.02) -> Starlette:
    """The ASGI application. `delay` is in seconds, between one streamed word and the next."""
    demo = _Demo(model, delay)
    routes = [
        Route("/health", demo.health),
        Route("/v1/models", demo.models),
        Route("/v1/models/{name:path}", demo.one_model),
        Route("/v1/chat/completions", demo.chat, methods=["POST"]),
        Route("/v1/completions", demo.completions, methods=["POST"]),
        Route("/v1/embeddings", demo.embeddings, methods=["POST"]),
    ]
    handlers = {answers.Refused: _refused, HTTPException: _not_served, Exception: _broken}
    return Starlette(routes=routes, exception_handlers=handlers)


def _encoded(value: Any) -> bytes:
    # A lone surrogate is valid in JSON and has no UTF-8: the client's own words may hold one.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


class _Json(JSONResponse):
    def render(self, content: Any) -> bytes:
        return _encoded(content)


@dataclass(frozen=True, slots=True)
class _Demo:
    model: str
    delay: float

    async def health(self, request: Request) -> Response:
        return _Json({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return _Json({"object": "list", "data": [answers.model_object(self.model)]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.model:
            raise answers.Refused(
                f"The model `{name}` does not exist.", status=404, param="model", code="model_not_found"
            )
        return _Json(answers.model_object(self.model))

    async def chat(self, request: Request) -> Response:
        return self._generated(answers.chat(await _body(request), self.model))

    async def completions(self, request: Request) -> Response:
        return self._generated(answers.completion(await _body(request), self.model))

    async def embeddings(self, request: Request) -> Response:
        return _Json(answers.embeddings(await _body(request), self.model))

    def _generated(self, generation: answers.Generation) -> Response:
        if not generation.stream:
            return _Json(generation.whole())
        head = {"cache-control": "no-cache"}
        return StreamingResponse(self._events(generation), media_type="text/event-stream", headers=head)

    async def _events(self, generation: answers.Generation) -> AsyncIterator[bytes]:
        for chunk in generation.chunks():
            yield b"data: " + _encoded(chunk) + b"\n\n"
            await asyncio.sleep(self.delay)
        yield b"data: [DONE]\n\n"


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that was sent, read up to `MAX_BODY`. Raises `Refused`."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY:
            raise answers.Refused("The request body is too large.", status=413, code="request_too_large")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise answers.Refused("The request body is not a valid JSON object.", code="invalid_json")
    return value


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, answers.Refused)
    return _Json(exc.envelope(), exc.status)


async def _not_served(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(exc.status_code)
    said = f"The demo engine has no {request.method} {request.url.path}."
    return _Json(answers.Refused(said, status=exc.status_code, code=code).envelope(), exc.status_code, exc.headers)


async def _broken(request: Request, exc: Exception) -> Response:
    said = answers.Refused("The demo engine broke on this request.", status=500, code="internal_error")
    return _Json(said.envelope(), said.status)
