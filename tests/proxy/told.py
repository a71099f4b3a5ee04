"""An asker that is told what engines answer: for what is asked, and what is made of the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.ask import MAX_BYTES, Answer, Asker, Unanswered

Reply = tuple[int, str, dict[str, str]]  # status, body, headers


@dataclass(frozen=True)
class Asked:
    root: str
    path: str
    key: str | None
    body: bytes | None


class Told(Asker):
    """`replies` by path; `otherwise`: for every other one. An exception is raised."""

    def __init__(self, replies: Mapping[str, Reply | Unanswered], otherwise: Reply | Unanswered) -> None:
        super().__init__()
        self.asked: list[Asked] = []
        self._replies = replies
        self._otherwise = otherwise

    @property
    def paths(self) -> list[str]:
        return [one.path for one in self.asked]

    async def ask(
        self, root: str, path: str, key: str | None, body: bytes | None = None, most: int = MAX_BYTES
    ) -> Answer:
        self.asked.append(Asked(root, path, key, body))
        reply = self._replies.get(path, self._otherwise)
        if isinstance(reply, Unanswered):
            raise reply
        status, text, headers = reply
        return Answer(status, {name.encode(): value.encode() for name, value in headers.items()}, text.encode())
