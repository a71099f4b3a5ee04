"""A stand-in for the TGI router as a program: its routes, its command line, and the native endpoints' answers.

What it refuses is in tgi_rules.py and tgi_shapes.py, `/v1` in tgi_v1.py. Known differences from the real one are
listed in test_tgi_replay.py.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import fields
from typing import Any

from tests.standins import tgi_shapes as shapes
from tests.standins.directives import choose
from tests.standins.server import Exchange, serve
from tests.standins.tgi_chat import choose_tools, render
from tests.standins.tgi_details import details, stream_details, timings
from tests.standins.tgi_model import generate, top_tokens, whole
from tests.standins.tgi_rules import Job, Refused, Settings, check, dumps, prompt_pieces
from tests.standins.tgi_serde import Check, Malformed, Mismatch, Text
from tests.standins.tgi_sse import CORS, Events
from tests.standins.tgi_tokens import tokenized
from tests.standins.tgi_v1 import Chat, Completions, error_event

_PLAIN, _JSON = "text/plain; charset=utf-8", "application/json"
_BODY_LIMIT = 2_000_000
_OPEN = ("/health", "/ping", "/info", "/metrics", "/v1/models", "/chat_tokenize", "/docs", "/api-doc/openapi.json")
_SINCE: dict[str, tuple[int, ...]] = {
    "/v1/models": (2, 3),
    "/chat_tokenize": (2, 3),
    "/tokenize": (1, 4),
    "/v1/chat/completions": (1, 4),
}
_SINCE |= {"/v1/completions": (1, 4, 4), "/info": (0, 7)}
Shape = Callable[[tuple[int, ...]], Check]


class Plain(Exception):
    """An answer in plain text, as the web framework gives it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Router:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._free = settings.max_concurrent
        self._count = 0
        post: dict[str, Callable[[Exchange], Awaitable[None]]] = {
            "/generate": self._generate,
            "/generate_stream": self._generate_stream,
            "/": self._compat,
            "/invocations": self._invocations,
            "/tokenize": self._tokenize,
            "/chat_tokenize": self._chat_tokenize,
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
        }
        get: dict[str, Callable[[Exchange], Awaitable[None]]] = dict.fromkeys(("/health", "/ping", "/"), self._health)
        get |= {"/info": self._info, "/v1/models": self._models, "/metrics": self._metrics}
        self._routes = {("POST", path): route for path, route in post.items()}
        self._routes |= {(method, path): route for path, route in get.items() for method in ("GET", "HEAD")}

    async def handle(self, exchange: Exchange) -> None:
        try:
            await self._routed(exchange)
        except Refused as refused:
            await self._reply(exchange, refused.status, refused.body())
        except Plain as plain:
            await self._reply(exchange, plain.status, plain.text.encode(), _PLAIN)

    async def _routed(self, exchange: Exchange) -> None:
        path = exchange.path
        methods = {method for method, known in self._routes if known == path}
        if not methods or self.settings.since < _SINCE.get(path, (0,)):
            await exchange.reply(404, CORS, b"")
        elif exchange.method == "OPTIONS":
            allowed = (("access-control-allow-methods", "GET,POST"), ("access-control-allow-headers", "content-type"))
            await exchange.reply(200, (*CORS, *allowed, ("allow", ",".join(sorted(methods)))), b"")
        elif exchange.method not in methods:
            await exchange.reply(405, (*CORS, ("allow", ",".join(sorted(methods)))), b"")
        elif not self._allowed(exchange):
            await exchange.reply(401, CORS, b"")
        else:
            directive = choose(exchange, "")
            if directive.answer is not None:
                told = directive.answer
                await self._reply(
                    exchange, told["status"], told.get("body", "").encode(), told.get("type", "text/html")
                )
            else:
                await self._routes[exchange.method, path](exchange)

    def _allowed(self, exchange: Exchange) -> bool:
        key = self.settings.api_key
        if key is None or exchange.path in _OPEN or (exchange.path == "/" and exchange.method != "POST"):
            return True
        return exchange.headers.get("authorization", "").lower() == f"bearer {key}".lower()

    async def _reply(
        self, exchange: Exchange, status: int, body: bytes, kind: str = _JSON, more: tuple[tuple[str, str], ...] = ()
    ) -> None:
        await exchange.reply(status, (("content-type", kind), *more, *CORS), body)

    def _body(self, exchange: Exchange, shape: Shape) -> dict[str, Any]:
        if exchange.headers.get("content-type", "").partition(";")[0].strip() != _JSON:
            raise Plain(415, "Expected request with `Content-Type: application/json`")
        if len(exchange.body) > _BODY_LIMIT:
            raise Plain(413, "Failed to buffer the request body: length limit exceeded")
        text = Text(exchange.body)
        try:
            node = text.read()
            shape(self.settings.since)(text, node, "")
        except Malformed as broken:
            raise Plain(400, f"Failed to parse the request body as JSON: {broken}") from None
        except Mismatch as wrong:
            raise Plain(422, f"Failed to deserialize the JSON body into the target type: {wrong}") from None
        body: dict[str, Any] = node.plain()
        return body

    @contextmanager
    def _permits(self, count: int = 1) -> Iterator[None]:
        """Holds that many of the concurrent requests; raises Refused where they are not free."""
        if self._free < count:
            raise Refused(429, "Model is overloaded", "overloaded")
        self._free -= count
        self._count += 1
        try:
            yield
        finally:
            self._free += count

    # the native endpoints

    async def _generate(self, exchange: Exchange) -> None:
        body = self._body(exchange, shapes.generate)
        made, more = await self._generated(exchange, body)
        await self._reply(exchange, 200, dumps(made), more=more)

    async def _generated(
        self, exchange: Exchange, body: dict[str, Any]
    ) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
        given = body.get("parameters", {})
        with self._permits(max(1, min(given.get("best_of") or 1, self.settings.max_best_of))):
            job = check(body["inputs"], given, self.settings, stream=False)
            directive = choose(exchange, job.inputs)
            said = await whole(job, directive, exchange, self.settings)
            others = [await whole(job, directive, exchange, self.settings) for _ in range(job.best_of - 1)]
        front = job.inputs if given.get("return_full_text") else ""
        made: dict[str, Any] = {"generated_text": front + said.text}
        if job.details:
            made["details"] = details(job, said, 0, self.settings)
            if others:
                more = [details(job, each, draw, self.settings) for draw, each in enumerate(others, 1)]
                texts = [{"generated_text": front + each.text} for each in others]
                made["details"]["best_of_sequences"] = [a | b for a, b in zip(texts, more, strict=True)]
        return made, timings(len(job.inputs), job.prompt_tokens, len(said.tokens), self.settings)

    async def _generate_stream(self, exchange: Exchange) -> None:
        await self._streamed(exchange, self._body(exchange, shapes.generate))

    async def _streamed(self, exchange: Exchange, body: dict[str, Any]) -> None:
        given = body.get("parameters", {})
        async with Events(exchange, self.settings) as events:
            try:
                with self._permits():
                    job = check(body["inputs"], given, self.settings, stream=True)
                    await self._events(exchange, job, events)
            except Refused as refused:
                await events.send_raw(refused.body())

    async def _events(self, exchange: Exchange, job: Job, events: Events) -> None:
        directive, said, count = choose(exchange, job.inputs), "", job.parameters.get("top_n_tokens")
        front = job.inputs if job.parameters.get("return_full_text") else ""
        async with aclosing(generate(job, directive, exchange, self.settings, stream=True)) as tokens:
            index = 0
            async for token, finish in tokens:
                index += 1
                said += "" if token.special else token.text
                event: dict[str, Any] = {"index": index} if self.settings.since >= (1, 4) else {}
                event["token"] = token.members()
                if count:
                    event["top_tokens"] = [each.members() for each in top_tokens(token, count)]
                event |= {"generated_text": None, "details": None}
                if finish is not None:
                    event["generated_text"] = front + said
                    event["details"] = stream_details(job, finish, index, self.settings) if job.details else None
                await events.send(event)

    async def _compat(self, exchange: Exchange) -> None:
        body = self._body(exchange, shapes.compat)
        body["parameters"] = {"return_full_text": True} | body.get("parameters", {})
        if body.get("stream"):
            await self._streamed(exchange, body)
            return
        made, more = await self._generated(exchange, body)
        await self._reply(exchange, 200, dumps([made]), more=more)

    async def _invocations(self, exchange: Exchange) -> None:
        if b'"messages"' in exchange.body:
            await self._chat(exchange)
        else:
            await self._compat(exchange)

    async def _tokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange, shapes.tokenize)
        prompt_pieces(body["inputs"], self.settings)
        await self._reply(exchange, 200, dumps(tokenized(body["inputs"], self.settings.tokenizer_bos)))

    async def _chat_tokenize(self, exchange: Exchange) -> None:
        body = self._body(exchange, shapes.chat)
        tools = choose_tools(body, self.settings)
        text = render(body["messages"], tools, body.get("tool_prompt"), self.settings)
        prompt_pieces(text, self.settings)
        made = {"tokenize_response": tokenized(text, bos=False), "templated_text": text}
        await self._reply(exchange, 200, dumps(made))

    # its own /v1

    async def _chat(self, exchange: Exchange) -> None:
        body = self._body(exchange, shapes.chat)
        chat = Chat(exchange, body, self.settings)
        if body.get("stream"):
            await self._v1_stream(exchange, chat, 1)
            return
        with self._permits():
            made, job, said = await chat.whole()
        await self._reply(
            exchange,
            200,
            dumps(made),
            more=timings(len(job.inputs), job.prompt_tokens, len(said.tokens), self.settings),
        )

    async def _completions(self, exchange: Exchange) -> None:
        body = self._body(exchange, shapes.completions)
        completions = Completions(exchange, body, self.settings)
        if body.get("stream"):
            await self._v1_stream(exchange, completions, len(completions.prompts))
            return
        with self._permits(len(completions.prompts)):
            made = await completions.whole()
        usage = made["usage"]
        more = timings(
            sum(map(len, completions.prompts)), usage["prompt_tokens"], usage["completion_tokens"], self.settings
        )
        await self._reply(exchange, 200, dumps(made), more=more)

    async def _v1_stream(self, exchange: Exchange, source: Chat | Completions, permits: int) -> None:
        async with Events(exchange, self.settings) as events:
            try:
                with self._permits(permits):
                    await source.stream(events)
            except Refused as refused:
                await events.send_raw(error_event(refused, self.settings))
                if self.settings.since < (2, 4, 1):
                    return
            await events.send_raw(b"[DONE]")

    # facts

    async def _health(self, exchange: Exchange) -> None:
        if not exchange.healthy and exchange.path != "/":
            raise Refused(503, "unhealthy", "healthcheck")
        await exchange.reply(200, CORS, b"")

    async def _info(self, exchange: Exchange) -> None:
        given = self.settings
        name = "max_input_tokens" if given.since >= (2, 1) else "max_input_length"
        facts = {
            "model_id": given.model_id,
            "model_sha": None,
            "model_pipeline_tag": None,
            "max_concurrent_requests": given.max_concurrent,
            "max_best_of": given.max_best_of,
            "max_stop_sequences": given.max_stop,
            name: given.max_input_tokens,
            "max_total_tokens": given.max_total_tokens,
            "validation_workers": 1,
            "max_client_batch_size": given.max_batch,
            "router": "text-generation-router",
            "version": given.version,
            "sha": "db931fcf42da018a3657580c64bf2720f167f9ab",
            "docker_label": None,
        }
        await self._reply(exchange, 200, dumps(facts))

    async def _models(self, exchange: Exchange) -> None:
        name = self.settings.model_id
        model = {"id": name, "object": "model", "created": 0, "owned_by": name}
        await self._reply(exchange, 200, dumps({"object": "list", "data": [model]}))

    async def _metrics(self, exchange: Exchange) -> None:
        busy = self.settings.max_concurrent - self._free
        lines = [
            "# TYPE tgi_request_count counter",
            f"tgi_request_count {self._count}",
            "# TYPE tgi_batch_current_size gauge",
            f"tgi_batch_current_size {busy}",
            "# TYPE tgi_queue_size gauge",
            "tgi_queue_size 0",
            "",
        ]
        text = "\n".join(lines) if self._count else ""  # a fresh server has none
        await self._reply(exchange, 200, text.encode(), _PLAIN)


def _settings(words: argparse.Namespace) -> Settings:
    return Settings(**{each.name: getattr(words, each.name) for each in fields(Settings)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standins.tgi")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    default = Settings()
    for each in fields(Settings):
        name, value = "--" + each.name.replace("_", "-"), getattr(default, each.name)
        if isinstance(value, bool):
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=value)
        else:
            parser.add_argument(name, type=str if value is None else type(value), default=value)
    words = parser.parse_args()
    asyncio.run(serve(Router(_settings(words)).handle, words.host, words.port))


if __name__ == "__main__":
    main()
