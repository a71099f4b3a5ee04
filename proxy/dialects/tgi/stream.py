"""Streams of `/generate_stream`: one decoder for each call, all writing into one client stream.

TGI sends an event for every token and tells the end by a `generated_text` in the last one; there is no `[DONE]`, and
errors are events too. Stop strings and the output limit are kept here, so an answer may be cut before TGI ends it.
"""

from __future__ import annotations

from proxy.dialects.base import StreamDecoder, Usage
from proxy.dialects.shared.openai_in import Child
from proxy.dialects.shared.openai_out import ChoiceWriter, ClientStream, tool_call
from proxy.dialects.tgi.job import Job, count, shown_text
from proxy.errors import ApiError, error
from proxy.events import error_events
from proxy.framing import Event, FrameTooLong, SseParser
from proxy.stop_filter import StopFilter
from proxy.wire import InvalidJson, JsonObject, load_object


def streams(job: Job) -> tuple[TokenStream, ...]:
    """A decoder for each call, in order."""
    asked = job.asked
    client = ClientStream(
        asked.endpoint,
        job.target.public,
        answers=len(job.children),
        include_usage=asked.include_usage,
        created=job.now,
    )
    return tuple(TokenStream(job, child, client) for child in job.children)


class TokenStream(StreamDecoder):
    """Of one call."""

    __slots__ = (
        "_client", "_filter", "_job", "_parser", "_pending", "_prompt", "_queue", "_texts", "_tokens", "_writer",
        "cut", "done", "usage",
    )  # fmt: skip

    def __init__(self, job: Job, child: Child, client: ClientStream) -> None:
        self.done = False
        self.cut = False
        self.usage: Usage | None = None
        self._job = job
        self._client = client
        self._prompt = job.prompts[child.prompt]
        self._parser = SseParser()
        self._filter = StopFilter(job.asked.stops)
        self._queue = EntryQueue()
        self._tokens = 0  # events with a token
        self._texts: list[str] = []  # of tokens that aren't special
        self._pending = b""
        self._writer: ChoiceWriter = client.choice(
            child.index,
            prompt=child.prompt,
            content="" if job.tool is None else None,
            echo=self._prompt.text if job.echo else "",
            wanted=job.asked.top,
        )

    # -- StreamDecoder -------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> bytes:
        if self.done:
            return b""
        try:
            events = self._parser.feed(data)
        except FrameTooLong:
            raise self._job.nonsense() from None
        return self._decode(events)

    def flush(self) -> bytes:
        out = b"" if self.done else self._decode(self._parser.flush())
        if not self.done:
            self._pending += out
            raise error(
                "upstream_incomplete",
                f"Backend '{self._job.target.backend}' (TGI) ended the stream too early. Try again; its log says why.",
            )
        return out

    def error(self, exc: ApiError) -> bytes:
        self.done = True
        return error_events(self._job.asked.endpoint, exc)

    def take_pending(self) -> bytes:
        pending, self._pending = self._pending, b""
        return pending

    # -- inside --------------------------------------------------------------------------------------------------

    def _decode(self, events: list[Event]) -> bytes:
        out: list[bytes] = []
        try:
            for event in events:
                if event.data is not None and not self.done:
                    out.append(self._event(event.data))
        except ApiError:
            self._pending += b"".join(out)
            raise
        return b"".join(out)

    def _event(self, data: str) -> bytes:
        try:
            body = load_object(data)
        except InvalidJson:
            raise self._job.nonsense() from None
        if body.get("error"):
            raise self._job.event_error(body)
        token = body.get("token")
        if not isinstance(token, dict):
            raise self._job.nonsense()
        return self._token(body, token)

    def _token(self, body: JsonObject, token: JsonObject) -> bytes:
        job = self._job
        self._tokens += 1
        text = shown_text(token)
        self._texts.append(text)
        if job.asked.logprobs and token.get("special") is not True:
            self._queue.add(job.entry(token, body.get("top_tokens")), len(text))
        whole = body.get("generated_text")
        last = isinstance(whole, str)
        if isinstance(whole, str) and whole.startswith(said := "".join(self._texts)):
            rest = whole[len(said) :]
            self._queue.skip(len(rest))
            text += rest
        full = not last and job.asked.limit is not None and self._tokens >= job.asked.limit
        shown = self._filter.feed(text)
        if last or full:
            shown += self._filter.end()
        stopped = self._filter.stopped
        over = last or full or stopped
        out = self._begin() + self._piece(shown, self._queue.take(len(shown), last=over, stopped=stopped))
        return out + self._finish(body, last=last, full=full) if over else out

    def _begin(self) -> bytes:
        """What goes before everything else, once."""
        if self._tokens > 1:
            return b""
        name = self._job.tool
        out = self._writer.begin()
        return out if name is None else out + self._writer.calls([tool_call(name, "", index=0)])

    def _piece(self, text: str, entries: list[JsonObject]) -> bytes:
        if self._job.tool is None or not (text or entries):
            return self._writer.text(text, entries)
        return self._writer.calls([{"index": 0, "function": {"arguments": text}}], entries)

    def _finish(self, body: JsonObject, *, last: bool, full: bool) -> bytes:
        """`last`: TGI says so itself. `full`: the limit is reached."""
        details = body.get("details")
        details = details if last and isinstance(details, dict) else {}
        told = "length" if full else details.get("finish_reason")
        usage = Usage(
            count(details.get("input_length"), self._prompt.tokens),
            count(details.get("generated_tokens"), self._tokens),
        )
        out = self._writer.finish(self._job.finish_reason(told, stopped=self._filter.stopped), usage)
        self.done = True
        self.cut = not last
        self.usage = self._client.usage
        return out


class EntryQueue:
    """Logprobs that wait for their text: one travels with the first character of its token."""

    __slots__ = ("_fed", "_sent", "_waiting")

    def __init__(self) -> None:
        self._fed = 0  # code points that came
        self._sent = 0  # code points that went out
        self._waiting: list[tuple[int, JsonObject]] = []

    def add(self, entry: JsonObject, size: int) -> None:
        """Of a token with so many code points. One without any goes as soon as all text before it is out."""
        self._waiting.append((self._fed if size else self._fed - 1, entry))
        self._fed += size

    def skip(self, size: int) -> None:
        """Text that belongs to no token."""
        self._fed += size

    def take(self, sent: int, *, last: bool, stopped: bool) -> list[JsonObject]:
        """The entries that go along with so many code points more. `last`: nothing follows, and unless a stop string
        `stopped` the text, all that is left goes."""
        self._sent += sent
        everything = last and not stopped
        out = [entry for place, entry in self._waiting if everything or place < self._sent]
        self._waiting = [waiting for waiting in self._waiting if waiting[0] >= self._sent]
        return out
