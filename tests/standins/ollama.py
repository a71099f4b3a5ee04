"""A stand-in for Ollama as a program: its routes, its command line, and how a request becomes a turn of a model.

Only the native API is here, not Ollama's own `/v1`. Known differences from the real one are listed in
test_ollama_replay.py.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any

from tests.standins import ollama_checks as checks
from tests.standins import ollama_facts as facts
from tests.standins.directives import ENDLESS_DELAY, choose
from tests.standins.ollama_go import (
    Refused,
    check_chat,
    check_generate,
    check_options,
    decode_image,
    dumps,
    duration,
    read,
)
from tests.standins.ollama_models import JINJA, Model, find
from tests.standins.ollama_prompt import fit, format_schema, rendered
from tests.standins.ollama_runners import Runners
from tests.standins.ollama_speech import Turn, now, speak, summed
from tests.standins.server import Exchange, serve

_JSON = "application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line of one stand-in server."""

    version: str = "0.33.0"
    load_delay: float = 0.0
    load_gate: str = ""  # no model is loaded before there is such a file
    max_queue: int = 512
    num_parallel: int = 4
    token_delay: float = 0.0
    endless_delay: float = ENDLESS_DELAY

    @property
    def since(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.partition("-")[0].split("."))


class Ollama:
    def __init__(self, settings: Settings) -> None:
        self.settings, self.since = settings, settings.since
        self.runners = Runners(settings.load_delay, settings.load_gate, settings.max_queue, settings.num_parallel)
        self._routes: dict[tuple[str, str], Callable[[Exchange], Awaitable[None]]] = {
            ("GET", "/"): self._root,
            ("HEAD", "/"): self._root,
            ("POST", "/api/chat"): self._chat,
            ("POST", "/api/generate"): self._generate,
            ("POST", "/api/embed"): self._embed,
            ("POST", "/api/embeddings"): self._embeddings,
            ("GET", "/api/tags"): self._tags,
            ("POST", "/api/show"): self._show,
            ("GET", "/api/ps"): self._ps,
            ("GET", "/api/version"): self._version,
        }

    async def handle(self, exchange: Exchange) -> None:
        try:
            await self._routed(exchange)
        except Refused as refused:
            await self._reply(exchange, refused.body(), refused.status)

    async def _routed(self, exchange: Exchange) -> None:
        path = exchange.path
        methods = {method for method, known in self._routes if known == path}
        if not checks.host_allowed(exchange.headers) or not checks.origin_allowed(exchange.headers):
            await exchange.reply(403, (), b"")
        elif not methods or (path == "/api/embed" and self.since < (0, 2, 6)):
            await exchange.reply(404, (("content-type", "text/plain"),), b"404 page not found")
        elif exchange.method not in methods:
            await exchange.reply(405, (("content-type", "text/plain"),), b"405 method not allowed")
        else:
            directive = choose(exchange, "")
            if directive.answer is not None:
                told = directive.answer
                head = (("content-type", told.get("type", "text/html")),)
                await exchange.reply(told["status"], head, told.get("body", "").encode())
            else:
                await self._routes[exchange.method, path](exchange)

    async def _reply(self, exchange: Exchange, body: bytes, status: int = 200, kind: str = _JSON) -> None:
        await exchange.reply(status, (("content-type", kind),), body)

    def _known(self, body: Mapping[str, Any], missing: Refused, unknown: str) -> tuple[Model, str]:
        name = body.get("model") or ""
        if not name:
            raise missing
        if name.endswith("-cloud"):
            raise Refused(403, "ollama cloud is disabled: remote model is unavailable")
        model = find(name, self.since)
        if model is None:
            raise Refused(404, unknown.format(name))
        return model, name

    # chat and generate

    async def _chat(self, exchange: Exchange) -> None:
        body = read(exchange.body)
        check_chat(body, self.since)
        keep = duration(body["keep_alive"]) if "keep_alive" in body else None
        think = checks.think_value(body, self.since)
        model, name = self._known(body, Refused(400, "model is required"), "model '{}' not found")
        messages = body.get("messages") or []
        if not messages and keep == 0:
            await self._idle(exchange, name, "unload", {"message": {"role": "assistant", "content": ""}}, model)
            return
        thinks, tools = checks.abilities(model, name, body, think, self.since)
        async with self._loaded(model, body, keep) as (load_ns, num_ctx):
            if not messages:
                await self._idle(exchange, name, "load", {"message": {"role": "assistant", "content": ""}})
                return
            last = messages[-1].get("content") or ""
            turn = self._turn(exchange, model, name, body, last, load_ns)
            turn.think, turn.tools = thinks, tools
            turn.images = [decode_image(image) for message in messages for image in message.get("images") or ()]
            turn.calls = bool(tools) and checks.will_call(model, messages, turn.directive)
            await self._given(exchange, turn, body, messages, num_ctx)

    async def _given(
        self, exchange: Exchange, turn: Turn, body: dict[str, Any], messages: list[dict[str, Any]], num_ctx: int
    ) -> None:
        stream = body.get("stream", True)
        try:
            checks.refuse_in_engine(turn, body)
            turn.schema = format_schema(body.get("format"), self.since)
            prompt = rendered(messages, turn.tools, images="vision" in turn.model.can or self.since >= JINJA)
            turn.prompt_tokens, cut = fit(prompt, num_ctx, body, in_engine=turn.in_engine, since=self.since)
            turn.limit = turn.limit if cut is None else min(cut, turn.limit)
        except Refused as refused:
            await self._failed_before(exchange, refused, stream)
            return
        await self._answer(exchange, turn, stream)

    def _turn(self, exchange: Exchange, model: Model, name: str, body: dict[str, Any], last: str, load_ns: int) -> Turn:
        options = {key: value for key, value in (body.get("options") or {}).items() if value is not None}
        limit = int(options.get("num_predict", -1))
        turn = Turn(model, name, self.since, options, choose(exchange, last), last, 0, load_ns)
        turn.limit = limit if limit > 0 else 10 * int(options.get("num_ctx", model.num_ctx))
        turn.logprobs = self.since >= (0, 12, 11) and bool(body.get("logprobs"))
        turn.top_logprobs = body.get("top_logprobs", 0)
        turn.endless_delay, turn.token_delay = self.settings.endless_delay, self.settings.token_delay
        return turn

    async def _generate(self, exchange: Exchange) -> None:
        body = read(exchange.body)
        check_generate(body)
        keep = duration(body["keep_alive"]) if "keep_alive" in body else None
        think = checks.think_value(body, self.since)
        model, name = self._known(body, Refused(404, "model '' not found"), "model '{}' not found")
        prompt = body.get("prompt") or ""
        if not prompt and keep == 0:
            await self._idle(exchange, name, "unload", {"response": ""}, model)
            return
        raw, suffix = bool(body.get("raw")), body.get("suffix") or ""
        thinks, _ = checks.abilities(model, name, {}, think, self.since, "generate")
        if suffix and "insert" not in model.capabilities(self.since):
            raise Refused(400, f"registry.ollama.ai/library/{model.name}:latest does not support insert")
        async with self._loaded(model, body, keep) as (load_ns, num_ctx):
            if not prompt:
                await self._idle(exchange, name, "load", {"response": ""})
                return
            turn = self._turn(exchange, model, name, body, prompt, load_ns)
            turn.chat, turn.raw, turn.think, turn.keep_context = False, raw, thinks, not raw
            turn.images = [decode_image(image) for image in body.get("images") or ()]
            shown: list[dict[str, Any]] | str = prompt + suffix
            if not raw and not suffix:
                shown = [{"role": "user", "content": prompt}]
            stream = body.get("stream", True)
            try:
                turn.schema = format_schema(body.get("format"), self.since)
                text = rendered(shown, [], images=False)
                turn.prompt_tokens, cut = fit(text, num_ctx, body, in_engine=False, since=self.since)
                turn.limit = turn.limit if cut is None else min(cut, turn.limit)
            except Refused as refused:
                await self._failed_before(exchange, refused, stream)
                return
            await self._answer(exchange, turn, stream)

    @asynccontextmanager
    async def _loaded(
        self, model: Model, body: Mapping[str, Any], keep: float | None
    ) -> AsyncIterator[tuple[int, int]]:
        """Holds a place of the model's runner; waits in silence for it to load. Gives nanoseconds and the context."""
        options = {key: value for key, value in (body.get("options") or {}).items() if value is not None}
        check_options(options)
        num_ctx = int(options.get("num_ctx") or model.num_ctx)
        if self.since >= JINJA:
            num_ctx = min(num_ctx, model.context)
        state = (num_ctx, body.get("shift", True) if self.since >= JINJA else True)
        async with self.runners.place(model, state, keep) as load_ns:
            yield load_ns, num_ctx

    async def _idle(
        self, exchange: Exchange, name: str, reason: str, empty: dict[str, Any], unload: Model | None = None
    ) -> None:
        if unload is not None:
            self.runners.unload(unload)
        made = {"model": name, "created_at": now(), **empty, "done": True, "done_reason": reason}
        await self._reply(exchange, dumps(made))

    async def _failed_before(self, exchange: Exchange, refused: Refused, stream: bool) -> None:
        if not stream:
            raise refused
        if self.since >= (0, 12, 6):
            await exchange.start(refused.status, (("content-type", "application/json"),))
            await exchange.write(refused.body())
        else:
            await exchange.start(200, (("content-type", "application/x-ndjson"),))
            await exchange.write(refused.body() + b"\n")
        await exchange.finish()

    async def _answer(self, exchange: Exchange, turn: Turn, stream: bool) -> None:
        if not stream:
            lines = [line async for line in speak(turn, exchange)]
            await self._reply(exchange, dumps(summed(turn, lines)))
            return
        try:
            async for line in speak(turn, exchange):
                if not exchange.started:
                    await exchange.start(200, (("content-type", "application/x-ndjson"),))
                await exchange.write(dumps(line) + b"\n")
        except Refused as refused:
            if not exchange.started:
                await self._failed_before(exchange, refused, stream)
                return
            await exchange.write(refused.body() + b"\n")
        if not exchange.started:
            await exchange.start(200, (("content-type", "application/x-ndjson"),))
        await exchange.finish()

    # embeddings

    async def _embed(self, exchange: Exchange) -> None:
        body = read(exchange.body)
        given = body.get("input", "")
        texts = [given] if isinstance(given, str) and given else given or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused(400, "invalid input type")
        keep = duration(body["keep_alive"]) if "keep_alive" in body else None
        model, name = self._embedder(body)
        async with self._loaded(model, body, keep) as (load_ns, num_ctx):
            if not texts:
                await self._reply(exchange, dumps({"model": name, "embeddings": []}))
                return
            made = facts.embedded(texts, body, min(num_ctx, model.context), self.since)
            durations = {"total_duration": load_ns + 3_000_000, "load_duration": load_ns}
            vectors, count = made
            await self._reply(
                exchange, dumps({"model": name, "embeddings": vectors, **durations, "prompt_eval_count": count})
            )

    async def _embeddings(self, exchange: Exchange) -> None:
        body = read(exchange.body)
        model, _ = self._embedder(body)
        async with self._loaded(model, body, None):
            text = body.get("prompt") or ""
            vector = facts.vector(text, normal=self.since >= JINJA) if text else []
            await self._reply(exchange, dumps({"embedding": vector}))

    def _embedder(self, body: Mapping[str, Any]) -> tuple[Model, str]:
        unknown = 'model "{}" not found, try pulling it first'
        model, name = self._known(body, Refused(404, "model '' not found"), unknown)
        if self.since >= JINJA and "embedding" not in model.can:
            raise Refused(501, "This server does not support embeddings. Start it with `--embeddings`")
        return model, name

    # facts

    async def _root(self, exchange: Exchange) -> None:
        await self._reply(exchange, b"Ollama is running", kind="text/plain; charset=utf-8")

    async def _version(self, exchange: Exchange) -> None:
        await self._reply(exchange, dumps({"version": self.settings.version}))

    async def _tags(self, exchange: Exchange) -> None:
        await self._reply(exchange, dumps({"models": facts.tags(self.since)}))

    async def _ps(self, exchange: Exchange) -> None:
        await self._reply(exchange, dumps({"models": facts.loaded(self.runners, self.since)}))

    async def _show(self, exchange: Exchange) -> None:
        body = read(exchange.body)
        model, _ = self._known(body, Refused(400, "model is required"), "model '{}:latest' not found")
        await self._reply(exchange, dumps(facts.shown(model, self.since)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standins.ollama")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    for each in fields(Settings):
        value = getattr(Settings(), each.name)
        parser.add_argument("--" + each.name.replace("_", "-"), type=type(value), default=value)
    words = parser.parse_args()
    settings = Settings(**{each.name: getattr(words, each.name) for each in fields(Settings)})
    asyncio.run(serve(Ollama(settings).handle, words.host, words.port))


if __name__ == "__main__":
    main()
