"""A program that stands in Ollama's place in the stack: it has no model until one is pulled, and then says one text.

    python ollama.py HOST PORT

Standard library only, since it runs in a container of nothing but Python. `POST /release` lets answers go on that wait
in their middle: those to a last message with "wait" in it. What Ollama really says is tests/standins' and the real
engine's matter.
"""

import json
import sys
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("The", " first", " chat", " works", ".")
SIZE = 400_000_000


def pulled(name: str, models: list[str]) -> Iterator[dict[str, Any]]:
    yield {"status": "pulling manifest"}
    for tenth in range(11):
        yield {"status": "pulling 0123456789ab", "digest": "sha256:01", "total": SIZE, "completed": SIZE // 10 * tenth}
    models.append(name)
    yield {"status": "success"}


def said(asked: dict[str, Any], go_on: threading.Event) -> Iterator[dict[str, Any]]:
    start = {"model": asked["model"], "created_at": "2026-01-01T00:00:00Z"}
    for number, word in enumerate(WORDS):
        if number == 1 and "wait" in asked["messages"][-1]["content"]:
            go_on.wait(600)  # it is told to; this program stands alone in its container
        yield {**start, "message": {"role": "assistant", "content": word}, "done": False}
    end = {"done_reason": "stop", "prompt_eval_count": 3, "eval_count": len(WORDS)}
    yield {**start, "message": {"role": "assistant", "content": ""}, "done": True, **end}


def whole(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    *_, last = every = list(lines)
    text = "".join(line["message"]["content"] for line in every)
    return {**last, "message": {"role": "assistant", "content": text}}


class Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, Handler)
        self.models: list[str] = []
        self.go_on = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        entries = [{"name": name, "model": name, "details": {"family": "none"}} for name in self.server.models]
        known = {"/api/tags": {"models": entries}, "/api/version": {"version": "0.32.15"}}
        self._answer(known.get(self.path))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if self.path == "/release":
            self.server.go_on.set()
            self._answer({})
        elif self.path == "/api/pull":
            self._lines(pulled(asked["model"], self.server.models))
        elif self.path == "/api/chat" and asked.get("stream", True):
            self._lines(said(asked, self.server.go_on))
        else:
            self._answer(whole(said(asked, self.server.go_on)) if self.path == "/api/chat" else None)

    def _answer(self, value: dict[str, Any] | None) -> None:
        body = json.dumps({"error": "not found"} if value is None else value).encode()
        self.send_response(404 if value is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _lines(self, lines: Iterable[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            text = json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    Server((sys.argv[1], int(sys.argv[2]))).serve_forever()
