"""One streamed answer to a chat: text and thoughts as they come, then what it took.

Blocks. A Ctrl-C ends the request, not the program: the answer is what came until then. How it looks is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Literal

from proxy.commands.client import Refused, Server
from proxy.commands.source import Failed

# What is shown: a word of the answer, one of the thoughts before it, or what is waited for.
Show = Callable[[Literal["text", "thought", "waiting"], str], None]
BASE_MODEL: Final = "this is a base model, without a chat template; chat models are called …-Instruct, -Chat or -it"
PATH: Final = "/chat/completions"
_TOO_LONG: Final = ("context_length_exceeded", "exceed_context_size_error")  # OpenAI and illm; llama-server


@dataclass(slots=True)
class Answer:
    """`first`: seconds until its first word, None where it has none; `pieces` that it came in; `interrupted` by a
    Ctrl-C."""

    text: str = ""
    thoughts: str = ""
    model: str = ""
    finish: str | None = None
    usage: dict[str, Any] | None = None
    first: float | None = None
    seconds: float = 0.0
    pieces: int = 0
    interrupted: bool = False

    @property
    def tokens(self) -> int:
        """As the server counts them, else a piece for one."""
        told = self.usage.get("completion_tokens") if self.usage else None
        return told if isinstance(told, int) and told else self.pieces

    @property
    def speed(self) -> float | None:
        """Tokens a second, from the first one on."""
        if self.first is None or self.tokens < 2 or self.seconds <= self.first:
            return None
        return (self.tokens - 1) / (self.seconds - self.first)


def answer(asked: Server, body: dict[str, Any], show: Show) -> Answer:
    """Send `body` as a stream. Raises `Failed`; what was shown until then is lost."""
    got, began = Answer(), time.perf_counter()
    try:
        try:
            _read(asked, {**body, "stream": True, "stream_options": {"include_usage": True}}, got, show, began)
        except Refused as exc:
            if exc.status not in (400, 422) or "stream_options" not in exc.said:
                raise
            _read(asked, {**body, "stream": True}, got, show, began)  # an old server: it tells no usage
    except KeyboardInterrupt:
        got.interrupted = True
    got.seconds = time.perf_counter() - began
    return got


def _read(asked: Server, body: dict[str, Any], got: Answer, show: Show, began: float) -> None:
    with closing(asked.stream(PATH, body)) as stream:
        for item in stream:
            if item.kind == "comment" and got.first is None:
                show("waiting", item.text)
            elif item.kind == "chunk":
                _take(item.chunk, got, show, began)


def _take(chunk: dict[str, Any], got: Answer, show: Show, began: float) -> None:
    if isinstance(chunk.get("usage"), dict):
        got.usage = chunk["usage"]
    if isinstance(chunk.get("model"), str):
        got.model = chunk["model"]
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    got.finish = choice.get("finish_reason") or got.finish
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return
    thought, text = delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")
    if not any(isinstance(piece, str) and piece for piece in (thought, text)):
        return
    if got.first is None:
        got.first = time.perf_counter() - began
    got.pieces += 1
    if isinstance(thought, str) and thought:
        got.thoughts += thought
        show("thought", thought)
    if isinstance(text, str) and text:
        got.text += text
        show("text", text)


def advice(exc: Failed, shorter: str) -> str:
    """What to do about a failure, where that is plain; `shorter`: how to send less."""
    said = exc.said.lower() if isinstance(exc, Refused) else ""
    if "chat template" in said:
        return f"\nhint: {BASE_MODEL}; `illm models` lists what there is"
    if isinstance(exc, Refused) and (exc.code in _TOO_LONG or "context length" in said or "context size" in said):
        return f"\nhint: this is more than the model can take; {shorter}"
    return ""
