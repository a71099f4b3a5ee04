"""A conversation as `illm chat` has it: what was said, which of it is sent along, and pictures as parts of a message.

No I/O but for reading a picture's file. How it looks is in `chat` and `repl`, asking in `answering`.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.commands.source import UsageError

MAX_IMAGE: Final = 20 * 2**20  # bytes: more than any engine takes
_URLS: Final = ("http://", "https://", "data:")

Message = dict[str, Any]


@dataclass(slots=True)
class Conversation:
    """`window`: how many of its last messages are sent along with a new one. `unanswered`: the last question, where it
    got no answer and so isn't among them."""

    system: str | None = None
    window: int = 40
    messages: list[Message] = field(default_factory=list)
    unanswered: Message | None = None

    def ask(self, text: str, images: Sequence[str] = ()) -> None:
        """The user says something, beside pictures (URLs)."""
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        content = [*parts, {"type": "text", "text": text}] if parts else text
        self.unanswered = None
        self.messages.append({"role": "user", "content": content})

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def sent(self) -> list[Message]:
        """What a request holds: the system prompt, the window, and the last question, which is never left out. An
        answer whose question lies outside is left out as well: templates want the user to begin."""
        *before, last = self.messages
        kept = before[-self.window :] if self.window else []
        while kept and kept[0]["role"] != "user":
            kept = kept[1:]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *kept, last]

    def take_back(self) -> bool:
        """Back to the last question, without its answer; False where there is none."""
        if self.unanswered is not None:
            self.messages.append(self.unanswered)
            self.unanswered = None
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        return bool(self.messages)

    def drop_question(self) -> None:
        """The last question got no answer: it is no part of what was said, and may be asked again."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.unanswered = self.messages.pop()

    def forget(self) -> None:
        self.messages.clear()
        self.unanswered = None

    def transcript(self) -> str:
        """For people, as Markdown."""
        said = [f"**system:** {self.system}"] if self.system else []
        said += [f"**{message['role']}:** {_text(message['content'])}" for message in self.messages]
        return "\n\n".join(said) + "\n"

    def whole(self) -> list[Message]:
        """For programs: everything that was said, as a request's `messages`."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]


def picture(source: str) -> str:
    """The URL of a picture: as it is given, or a `data:` URL of a file (which it reads). Raises `UsageError`."""
    if source.startswith(_URLS):
        return source
    path = Path(source).expanduser()
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise UsageError(f"{source} is no picture by its name; a file like .png or .jpg is needed, or an http(s) URL")
    try:
        if path.stat().st_size > MAX_IMAGE:
            raise UsageError(f"{source} is larger than {MAX_IMAGE // 2**20} MiB; make it smaller")
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"{source} can't be read: {exc.strerror}") from None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text") or "[picture]" for part in content)
