"""A start that fails, a reload, and the one-line form: with real engines, as a user sees them."""

import json
import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.engines.models import Gguf
from tests.engines.process import PATIENCE, wait_until
from tests.engines.speech import TEXT
from tests.launched.support import FOREVER, Host, llama

pytestmark = pytest.mark.slow


def test_a_bad_model_ends_in_fatal_with_the_engines_own_words(llama_program: Path, tiny_models: Gguf) -> None:
    bad = tiny_models.chat.parent / "bad.gguf"
    bad.write_bytes(b"no model at all" * 100)
    with Host({"bad": llama(llama_program, bad, restarts=0)}) as host:
        answer = host.ask("bad")
        state = host.row("bad")["state"]
        again = host.ask("bad")

    error = answer.json()["error"]
    assert answer.status_code == 502
    assert error["type"] == "RemoteEndpointError"
    assert error["code"] == "engine_failed"
    assert "gguf" in error["message"]
    assert "Traceback" not in error["message"]
    assert state == "fatal"
    assert "illm start bad" in again.json()["error"]["message"]


def test_a_reload_changes_one_of_three_while_the_others_stream(llama_program: Path, tiny_models: Gguf) -> None:
    engine = llama(llama_program, tiny_models.chat, args=["-c", "200000"])
    engines = dict.fromkeys(("one", "two", "three"), engine)
    with Host(engines) as host:
        pids = {}
        for name in engines:
            assert host.ask(name).status_code == 200
            pids[name] = host.row(name)["pid"]
        end = threading.Event()
        streams = {name: Endless(host, name, end) for name in ("one", "two")}
        for stream in streams.values():
            stream.wait_for(5)
        host.rewrite(engines=engines | {"three": engine | {"args": ["-c", "300000"]}})
        plan = host.control("POST", "/reload?dry_run=1")
        before = {name: stream.pieces for name, stream in streams.items()}
        host.gateway.process.say(signal.SIGHUP)
        wait_until(lambda: host.row("three")["pid"] not in (None, pids["three"]), "three was started anew")
        host.until("three", "ready")
        for name, stream in streams.items():
            stream.wait_for(before[name] + 5)
        end.set()
        for stream in streams.values():
            stream.thread.join(PATIENCE)
        after = {name: host.row(name)["pid"] for name in engines}
        third = host.ask("three")

    assert {what: names for what, names in plan.items() if names} == {"restart": ["three"], "keep": ["one", "two"]}
    assert [stream.error for stream in streams.values()] == ["", ""]
    assert {name: after[name] == pids[name] for name in engines} == {"one": True, "two": True, "three": False}
    assert third.json()["choices"][0]["message"]["content"] == TEXT


class Endless:
    """A stream that is read in a thread until `end`."""

    def __init__(self, host: Host, model: str, end: threading.Event) -> None:
        self.pieces = 0
        self.error = "it never ended"
        self._body = {"model": model, "messages": FOREVER, "stream": True, "max_tokens": 190000}
        self._url, self._end = f"{host.url}/v1/chat/completions", end
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def wait_for(self, pieces: int) -> None:
        wait_until(lambda: self.pieces > pieces, f"more than {pieces} pieces have come")

    def _read(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=PATIENCE) as stream:
            for line in stream.iter_lines():
                if '"error"' in line or "[DONE]" in line:
                    self.error = line
                    return
                self.pieces += line.startswith("data: ")
                if self._end.is_set():
                    self.error = ""
                    return


def test_one_line_serves_a_model(llama_program: Path, tiny_models: Gguf) -> None:
    """`illm serve llamacpp --model … --name …`; Ctrl-C ends all of it."""
    words = ("llamacpp", "--model", str(tiny_models.chat), "--name", "mine", "--", "-c", "4096")
    path = os.pathsep.join((str(llama_program.parent), os.environ["PATH"]))
    host = Host({}, args=words, env={"PATH": path})
    try:
        wait_until(lambda: host.gateway.models().get("mine", {}).get("state") == "ready", "it is ready")
        answer = host.ask("mine")
        models = host.gateway.models()
        started = host.processes()
        host.gateway.process.say(signal.SIGINT)
        host.gateway.process.wait(PATIENCE)
        wait_until(lambda: not host.processes(), "nothing is left")
    finally:
        host.close()

    assert answer.json()["model"] == "mine"
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    assert json.dumps(list(models)) == '["mine"]'
    assert len(started) >= 2
