"""An engine for the launcher's tests: an HTTP server with a model's name, and manners and mishaps to order.

Standard library only, since the launcher runs it like any program. It says what it does on stdout.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    server: "Engine"

    def do_GET(self) -> None:
        if self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            self.answer(401, {"error": {"message": "no key"}})
        elif self.path == "/health":
            self.answer(200 if self.server.loaded.is_set() else 503, {"status": "ok"})
        elif self.path == "/v1/models":
            entries = [{"id": self.server.model, "owned_by": "standin"}] if self.server.loaded.is_set() else []
            self.answer(200 if entries else 503, {"object": "list", "data": entries})
        else:
            self.answer(404, {"error": {"message": "no such path"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        if self.path == "/die":
            self.answer(200, {})
            os._exit(3)
        if self.path in ("/sleep", "/sleep?level=1", "/wake_up"):
            print(f"asked to {self.path}", flush=True)
            while self.path == "/wake_up" and self.server.rouse and not self.server.rouse.exists():
                time.sleep(0.02)
            if self.path == "/wake_up" and self.server.rouse and self.server.rouse.read_text():
                os._exit(4)
            self.answer(200, {})
            return
        reply = {
            "id": "x", "object": "chat.completion", "created": 1, "model": body.get("model"),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": f"{self.server.model} {os.getpid()}"},
                         "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }  # fmt: skip
        self.answer(200, reply)

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Engine(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, model: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = model
        self.rouse: Path | None = None
        self.key: str | None = None
        self.loaded = threading.Event()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", "--served-model-name", required=True)
    parser.add_argument("weights", nargs="?", help="as vLLM's first word, and of no meaning")
    parser.add_argument("--host")
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--key", help="answer nobody who hasn't got it")
    parser.add_argument("--lists", help="the name in its list of models, if another than it was told")
    parser.add_argument("--rouse", type=Path, help="it wakes up once this file is there, and dies if it is full")
    parser.add_argument("--gate", type=Path, help="it is loaded once this file is there")
    parser.add_argument("--fail", help="say this and end with status 1")
    parser.add_argument("--fail-unless", type=Path, help="…unless this file is there")
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--children", type=int, default=0, help="that ignore SIGTERM in sessions of their own")
    options = parser.parse_args()
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(options.children):
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print(f"stand-in engine for {options.model}, key {os.environ.get('STANDIN_KEY', 'none')}", flush=True)
    if options.fail and not (options.fail_unless and options.fail_unless.exists()):
        print(f"ERROR: {options.fail}", flush=True)
        sys.exit(1)
    engine = Engine(options.port, options.lists or options.model)
    engine.rouse = options.rouse
    engine.key = options.key
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    print("Loading safetensors checkpoint shards:  50% Completed | 1/2", flush=True)
    while options.gate and not options.gate.exists():
        time.sleep(0.02)
    engine.loaded.set()
    print("loaded", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
