"""Ollama's streams (NDJSON) as OpenAI's: one decoder for one upstream answer, several of which may share a stream.

A line is emitted in Ollama's order: thinking, content, tool calls. Calls are counted by the proxy, since Ollama's own
index is unreliable. The line that says `done` ends the stream; a body that ends properly without it was ended by the
server's guard against repetition if its last texts are all equal, and is incomplete otherwise.

`flush` is called only for a body that ended properly, which is what tells the guard from a lost connection.
"""

from __future__ import annotations

from typing import Final

from proxy.dialects.base import StreamDecoder, Target, Usage
from proxy.dialects.ollama.answer import created, finish_reason, guard_reason, logprobs, said, usage
from proxy.dialects.ollama.errors import error_in
from proxy.dialects.shared.openai_out import ChoiceWriter, ClientStream, tool_call
from proxy.errors import ApiError, error
from proxy.events import error_events
from proxy.framing import FrameTooLong, NdjsonParser
from proxy.wire import InvalidJson, JsonObject, load_object

REPEATED: Final = 30  # equal texts at the end by which the guard is known; it acts on the 32nd and withholds that


class OllamaDecoder(StreamDecoder):
    """`top_logprobs`: None where no logprobs were asked for."""

    def __init__(
        self,
        stream: ClientStream,
        choice: ChoiceWriter,
        target: Target,
        *,
        now: int = 0,
        top_logprobs: int | None = None,
        tools: bool = False,
    ) -> None:
        self.done = False
        self.cut = False
        self.usage: Usage | None = None  # of the whole client stream: only with the decoder that ends it
        self._stream = stream
        self._choice = choice
        self._target = target
        self._now = now
        self._top = top_logprobs
        self._tools = tools
        self._parser = NdjsonParser()
        self._pending: list[bytes] = []
        self._calls = 0
        self._texts = 0
        self._last: str | None = None  # the text that came last, trimmed, and how often running
        self._running = 0

    # -- StreamDecoder ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        if self.done:
            return b""
        try:
            lines = self._parser.feed(data)
        except FrameTooLong:
            raise self._invalid("sent a line of more than 16 MiB") from None
        return self._decode(lines)

    def flush(self) -> bytes:
        if self.done:
            return b""
        try:
            lines = self._parser.flush()
        except FrameTooLong:
            raise self._invalid("sent a line of more than 16 MiB") from None
        self._pending.append(self._decode(lines))
        if not self.done:
            if self._running < REPEATED:
                raise error(
                    "upstream_incomplete",
                    f"Ollama on backend '{self._target.backend}' ended the stream too early. Try again.",
                )
            self._end(guard_reason(self._calls), Usage(0, self._texts))
        return self.take_pending()

    def error(self, exc: ApiError) -> bytes:
        self.done = True
        return error_events(self._stream.endpoint, exc)

    def take_pending(self) -> bytes:
        pending = b"".join(self._pending)
        self._pending.clear()
        return pending

    # -- inside ----------------------------------------------------------------------------------------------

    def _decode(self, lines: list[bytes]) -> bytes:
        """What is decoded before an error stays in `pending`."""
        for line in lines:
            try:
                body = load_object(line)
            except InvalidJson:
                raise self._invalid("sent a line that is no JSON object") from None
            told = error_in(body, self._stream.endpoint, self._target.backend, tools=self._tools)
            if told is not None:
                raise told
            self._line(body)
            if self.done:
                break
        return self.take_pending()

    def _line(self, body: JsonObject) -> None:
        done = body.get("done") is True
        part = said(body)
        if not part.present and not done:
            raise self._invalid("sent a line without an answer")
        if self._stream.created is None:
            at = created(body.get("created_at"))
            self._stream.settle(self._now if at is None else at)
        chat = self._stream.endpoint == "chat"
        thinking = part.thinking if chat else ""
        calls = part.calls if chat else ()
        for text in (part.thinking, part.content):
            if text:
                self._count(text)
        entries = None if self._top is None else logprobs(body, self._top)
        out, choice = self._pending, self._choice
        out.append(choice.begin())
        # Logprobs travel on the content's chunk, else the calls', else the thinking's.
        if thinking:
            out.append(choice.reasoning(thinking, None if part.content or calls else entries))
        if part.content or (entries and not calls and not thinking):
            out.append(choice.text(part.content, entries))
        if calls:
            made = [tool_call(c.name, c.arguments, c.id, index) for index, c in enumerate(calls, self._calls)]
            self._calls += len(made)
            out.append(choice.calls(made, None if part.content else entries))
        if done:
            self._end(finish_reason(body.get("done_reason"), self._calls), usage(body))

    def _count(self, text: str) -> None:
        text = text.strip()
        self._texts += 1
        self._running = self._running + 1 if text == self._last else 1
        self._last = text

    def _end(self, reason: str, used: Usage) -> None:
        self.done = True
        self._pending.append(self._choice.finish(reason, used))
        self.usage = self._stream.usage

    def _invalid(self, what: str) -> ApiError:
        return error("upstream_invalid_response", f"Ollama on backend '{self._target.backend}' {what}. See its log.")
