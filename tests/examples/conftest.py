"""Two gateways for the examples: one with real engines and a key, one with the demo engine as a newcomer has it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.engines.gateway import ROOT, Gateway
from tests.engines.process import PATIENCE, ServerProcess, answers, free_port, wait_until
from tests.examples.support import CHAT, EMBED, HEARING, KEY, SEEING, Extras, Run, environment, run_python
from tests.standins.support import StandIn


@pytest.fixture(scope="session")
def extras() -> Iterator[str]:
    """The base URL of the server with a picture and with ears."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Extras)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def real(
    llama_server: ServerProcess, llama_embed: ServerProcess, extras: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Real llama-servers for chat and embeddings, a stand-in of Ollama that sees, a stand-in that hears."""
    folder = tmp_path_factory.mktemp("examples")
    with StandIn("ollama", folder) as seeing:
        config: dict[str, Any] = {
            "discovery": {"local": False},
            "server": {"api_keys": [KEY]},
            "backends": {
                "chat": {"kind": "llamacpp", "base_url": llama_server.base_url},
                "embed": {"kind": "llamacpp", "base_url": llama_embed.base_url},
                "seeing": {"kind": "ollama", "base_url": seeing.base_url},
                "hearing": {"kind": "openai", "base_url": extras},
            },
            "models": {
                CHAT: {"replicas": [{"backend": "chat", "model": "tiny-chat"}]},
                SEEING: {"replicas": [{"backend": "seeing", "model": "gvision"}]},
            },
            "images": {"allow_private": True, "ports": [int(extras.rpartition(":")[2])]},
        }
        with Gateway(json.dumps(config), folder) as gateway:
            wait_until(lambda: {CHAT, EMBED, SEEING, HEARING} <= listed(gateway), "the engines are found")
            yield gateway


def listed(gateway: Gateway) -> set[str]:
    answer = httpx.get(
        f"{gateway.v1}/models", headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE, trust_env=False
    )
    return {entry["id"] for entry in answer.json()["data"]}


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The demo engine behind a gateway without keys: what `scripts/serve` gives where no engine runs."""
    folder, port = tmp_path_factory.mktemp("newcomer"), free_port()
    command = [sys.executable, "-m", "launchers.demo", "--port", str(port), "--delay-ms", "0"]
    with ServerProcess(command, port=port, log=folder / "demo.log", cwd=ROOT) as demo:
        demo.wait_ready(answers(f"{demo.base_url}/v1/models"))
        config = f"discovery: {{local: false}}\nbackends: {{demo: {{kind: openai, base_url: {demo.base_url}}}}}\n"
        with Gateway(config, folder) as gateway:
            yield gateway.wait_models("demo")


@pytest.fixture
def run(real: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a Python example against the real engines."""

    def call(name: str, *words: str) -> str:
        return run_python(name, words, environment(real.base_url), monkeypatch, capsys)

    return call


@pytest.fixture
def run_bare(newcomer: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a Python example without any words against the demo engine."""

    def call(name: str) -> str:
        return run_python(name, (), environment(newcomer.base_url, "none"), monkeypatch, capsys)

    return call
