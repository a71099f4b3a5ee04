"""What a stand-in model answers to one request: the words, where they stop, and the objects that carry them.

Yields the objects of a stream; a whole answer is their sum. Knows no HTTP.
"""

import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

from tests.standins.directives import Directive, Failed, Vanished, endless, is_endless, paced
from tests.standins.instances import instance
from tests.standins.ollama_go import Refused
from tests.standins.ollama_models import Model, split_words
from tests.standins.server import Exchange

GARBAGE = b'{"model":"tiny","message":{"content":\n'
_GUARD = 30  # that many equal texts before the next one end the answer
_LEFT_MIDWAY = "an error was encountered while running the model: unexpected EOF"


@dataclass(slots=True)
class Turn:
    """One request, checked, with its model loaded."""

    model: Model
    name: str  # as it was asked for
    since: tuple[int, ...]
    options: dict[str, Any]
    directive: Directive
    last: str  # the last message, or the prompt
    prompt_tokens: int
    load_ns: int
    chat: bool = True
    raw: bool = False
    think: bool = False
    tools: list[dict[str, Any]] = field(default_factory=list)
    calls: bool = False
    schema: Any = None
    images: list[bytes] = field(default_factory=list)
    logprobs: bool = False
    top_logprobs: int = 0
    limit: int = 1
    keep_context: bool = False
    endless_delay: float = 0.001
    token_delay: float = 0.0

    @property
    def in_engine(self) -> bool:
        return self.chat and self.model.in_engine(self.since)


def now() -> str:
    """RFC 3339 with nanoseconds, trailing zeros cut."""
    seconds, nanos = divmod(time.time_ns(), 10**9)
    fraction = f".{nanos:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


def call_ids(turn: Turn, exchange: Exchange) -> Iterator[str | None]:
    """None where there were none yet; 32 letters and digits from llama-server."""
    number = 0
    while True:
        number += 1
        digest = sha256(f"{exchange.id} {number}".encode()).hexdigest()
        if turn.since < (0, 12, 10):
            yield None
        else:
            yield digest[:32] if turn.in_engine else f"call_{digest[:8]}"


def _words(turn: Turn) -> Iterator[tuple[str, bool]]:
    """Every word with whether it is a thought."""
    directive, model = turn.directive, turn.model
    if directive.text is not None:
        return ((word, False) for word in split_words(directive.text))
    if turn.schema is not None and model.name != "json":
        value = {"answer": "red"} if turn.schema == "json" else instance(turn.schema)
        return ((word, False) for word in split_words(json.dumps(value, ensure_ascii=False)))
    if is_endless(turn.last) and not model.endless:
        return ((word, False) for word in endless())
    if turn.images and "vision" in model.can:
        return ((word, False) for image in turn.images for word in split_words(_seen(image)))
    if turn.think:
        return iter([*((word, True) for word in model.thinks), *((word, False) for word in model.says)])
    if model.thinks and turn.raw:
        tagged = ("<think>", *split_words(" " + "".join(model.thinks).rstrip()), " </think>", " Blue", *model.says[1:])
        return ((word, False) for word in tagged)
    return ((word, False) for word in model.words())


def _seen(image: bytes) -> str:
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for start, kind in kinds.items() if image.startswith(start)), "strange")
    return f"A {kind} picture of {len(image)} bytes ."


def _end_tokens(turn: Turn) -> int:
    if turn.think and turn.directive.text is None:
        return turn.model.end_tokens
    return 1


class _Stops:
    """Holds back what may begin a stop string."""

    def __init__(self, stops: list[str]) -> None:
        self._stops, self._held = stops, ""
        self.hit = False

    def feed(self, text: str) -> str:
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            return self._held[: min(found)]
        keep = max((self._partly(stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def _partly(self, stop: str) -> int:
        most = min(len(stop) - 1, len(self._held))
        return next((size for size in range(most, 0, -1) if stop.startswith(self._held[-size:])), 0)

    def rest(self) -> str:
        return "" if self.hit else self._held


def _entry(word: str, top: int) -> dict[str, Any]:
    def one(text: str, value: float) -> dict[str, Any]:
        return {"token": text, "logprob": value} | ({"bytes": list(text.encode())} if text else {})

    entry = one(word, 0)
    if top:
        entry["top_logprobs"] = [one(word, 0), *(one(f" other{at}", -27.4 - at) for at in range(1, top))]
    return entry


def _line(turn: Turn, text: str = "", thought: str = "", **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"model": turn.name, "created_at": now()}
    if turn.chat:
        made["message"] = {"role": "assistant", "content": text}
        if thought:
            made["message"]["thinking"] = thought
    else:
        made["response"] = text
        if thought:
            made["thinking"] = thought
    return made | {"done": False} | more


def last_line(turn: Turn, reason: str, count: int) -> dict[str, Any]:
    made = _line(turn) | {"done": True, "done_reason": reason}
    if turn.keep_context:
        made["context"] = list(range(260, 260 + turn.prompt_tokens + count))
    made["total_duration"] = turn.load_ns + 3_000_000
    made["load_duration"] = turn.load_ns
    made["prompt_eval_count"] = turn.prompt_tokens
    made["prompt_eval_duration"] = 1_233_000
    made["eval_count"] = count
    if count > 1 or turn.since >= (0, 30):
        made["eval_duration"] = 1_000 if count == 1 else 400_000 * count
    return made


async def speak(turn: Turn, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    """The objects of the stream, ending with `done: true` unless the model went wrong. Raises Refused."""
    try:
        source = _called(turn, exchange) if turn.calls else _said(turn, exchange)
        async for line in source:
            yield line
    except Failed as failed:
        told = str(failed)
        raise Refused(500, told if told != Directive().fail else _LEFT_MIDWAY) from None
    except Vanished:
        return


async def _said(turn: Turn, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    stops = _Stops(list(turn.options.get("stop") or ()))
    count, latest, equal = 0, "", 0
    slow = turn.endless_delay if turn.model.endless or is_endless(turn.last) else 0.0
    words = islice(_words(turn), turn.limit)
    async for word, thought in paced(words, turn.directive, exchange, GARBAGE, max(slow, turn.token_delay)):
        count += 1
        shown = word if thought else stops.feed(word)
        more = {"logprobs": [_entry(word, turn.top_logprobs)]} if turn.logprobs else {}
        if shown or more:
            yield _line(turn, "" if thought else shown, shown if thought else "", **more)
        if stops.hit:
            yield last_line(turn, "stop", count)
            return
        equal = equal + 1 if word.strip() == latest else 0
        latest = word.strip()
        if equal == _GUARD and not turn.in_engine:
            return
    if stops.rest():
        yield _line(turn, stops.rest())
    cut = count == turn.limit
    yield last_line(turn, "length" if cut else "stop", count if cut else count + _end_tokens(turn))


async def _called(turn: Turn, exchange: Exchange) -> AsyncIterator[dict[str, Any]]:
    """The words of the calls are read by a parser: nothing of them is shown, each call comes whole."""
    words = turn.model.says if not turn.model.obliging else split_words(json.dumps(turn.model.calls[0]))
    limit = turn.limit
    async for _ in paced(words[:limit], turn.directive, exchange, GARBAGE, turn.token_delay):
        pass
    wanted = {tool["function"]["name"] for tool in turn.tools}
    cut = limit < len(words)
    name, known = turn.model.calls[0][0], [call for call in turn.model.calls if call[0] in wanted]
    if cut and turn.in_engine:
        text = f'llama-server returned invalid tool call arguments for "{name}": unexpected end of JSON input'
        raise Refused(500, text)
    ids, calls = call_ids(turn, exchange), []
    for at, (name, arguments) in enumerate(() if cut else known or turn.model.calls[:1]):
        call: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
        number = next(ids)
        if number is not None:
            index = 0 if turn.model.built_in_parser and turn.since < (0, 30) else at
            call = {"id": number, "function": {"index": index, "name": name, "arguments": arguments}}
        calls.append(call)
    done = last_line(turn, "length" if cut else "stop", limit if cut else len(words) + 1)
    if turn.in_engine:
        done["message"]["tool_calls"] = calls
        yield done
        return
    for call in calls:
        line = _line(turn)
        line["message"]["tool_calls"] = [call]
        yield line
    yield done


def summed(turn: Turn, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer that a stream's objects make; without `done: true` among them it has none either."""
    last = lines[-1] if lines else _line(turn)
    made: dict[str, Any] = {"model": turn.name, "created_at": last["created_at"]}
    thought = "".join(_part(line, "thinking") for line in lines)
    text = "".join(_part(line, "content" if turn.chat else "response") for line in lines)
    calls = [call for line in lines for call in line.get("message", {}).get("tool_calls", ())]
    body: dict[str, Any] = {"role": "assistant", "content": text} if turn.chat else {"response": text}
    body |= {"thinking": thought} if thought else {}
    body |= {"tool_calls": calls} if calls else {}
    made |= {"message": body} if turn.chat else body
    made["done"] = last["done"]
    entries = [entry for line in lines for entry in line.get("logprobs", ())]
    rest = {name: value for name, value in last.items() if name not in (*made, "response", "message", "logprobs")}
    return _joined(made, rest, entries)


def _joined(made: dict[str, Any], rest: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    reason = {"done_reason": rest.pop("done_reason")} if "done_reason" in rest else {}
    return made | reason | ({"logprobs": entries} if entries else {}) | rest


def _part(line: dict[str, Any], name: str) -> str:
    found: str = line.get("message", line).get(name, "")
    return found
