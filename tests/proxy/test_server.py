"""Which port is taken, what is said about it, and the start-up text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from proxy import server
from proxy.app import create_app
from proxy.engine_answers import ModelInfo, Probe
from proxy.local import DEMO
from proxy.pool import Backend
from proxy.server import ServeError, greeting, listen
from proxy.settings import BackendSettings, ServerSettings, Settings, load_settings

VLLM = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}
GATEWAY = {"status": "ok", "framework": None, "model": None, "providers": [], "backends": []}


@contextlib.contextmanager
def answering(answers: dict[str, Any]) -> Iterator[int]:
    """A web server in a thread; `listen` blocks, so it can't be in this one. Gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path, {})).encode()
            self.send_response(200 if self.path in answers else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web.server_address[1]
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def by_default(port: int) -> Settings:
    """As if that were the default port, which nobody set."""
    return Settings(discovery={"local": False}).model_copy(  # type: ignore[arg-type]
        update={"server": ServerSettings.model_construct(_fields_set=set(), port=port)}
    )


def chosen(port: int) -> Settings:
    return load_settings(None, {}, {"server": {"port": port}})


# -- ports -------------------------------------------------------------------------------------------------------


def test_a_free_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    taken, notes = listen(chosen(port))
    with taken:
        assert taken.getsockname() == ("127.0.0.1", port)
        assert notes == []


WHO = {
    "vLLM": {"/v1/models": VLLM, "/version": {"version": "0.33.0"}},
    "another illm": {"/healthz": GATEWAY},
    "another program": {"/": {}},
}


@pytest.mark.parametrize("who", WHO)
def test_the_default_port_gives_way(who: str) -> None:
    with answering(WHO[who]) as port:
        sock, notes = listen(by_default(port))
        with sock:
            other = sock.getsockname()[1]

            assert port < other < port + server.NEXT_PORTS
            assert notes == [f"Port {port} is taken ({who}); using {other}."]


@pytest.mark.parametrize("who", WHO)
def test_a_port_that_was_set_does_not(who: str) -> None:
    with answering(WHO[who]) as port, pytest.raises(ServeError) as caught:
        listen(chosen(port))

    assert f"Port {port} is taken: {who} answers there." in str(caught.value)
    assert "--port" in str(caught.value)


def test_no_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "NEXT_PORTS", 1)
    with answering({}) as port, pytest.raises(ServeError, match=f"No port from {port} to {port} is free"):
        listen(by_default(port))


def test_a_host_that_is_not_here() -> None:
    settings = load_settings(None, {}, {"server": {"host": "192.0.2.1", "port": 8000}})

    with pytest.raises(ServeError, match=r"Can't listen on 192\.0\.2\.1:8000: "):
        listen(settings)


async def test_small_writes_are_not_held_back() -> None:
    """asyncio sets TCP_NODELAY on what a listening socket accepts only if that socket says that it is TCP."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    delays: asyncio.Queue[int] = asyncio.Queue()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        delays.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    serving = await asyncio.start_server(accepted, sock=listen(chosen(port))[0])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        assert await delays.get() != 0
    finally:
        writer.close()
        serving.close()


# -- the start-up text -------------------------------------------------------------------------------------------


def text(settings: dict[str, Any], *listed: str, demo: bool = False) -> str:
    made = load_settings(None, {}, settings)
    gateway = create_app(made)
    if demo:
        gateway.registry.add(Backend(DEMO, BackendSettings(kind="openai", base_url="http://127.0.0.1:5"), local=True))
    for backend in gateway.registry.backends.values():
        if listed:
            models = tuple(ModelInfo(name) for name in listed)
            backend.learn(Probe("ready", "vllm", models=models), down_after=1)
        else:
            backend.learn(Probe("down", None, detail="connection refused"), down_after=1)
    gateway.registry.rebuild()
    return "\n".join(greeting(gateway, made, "http://127.0.0.1:8000"))


ONE = {"backends": {"fast": {"kind": "vllm", "base_url": "http://10.0.0.5:8000/v1"}}}


def test_it_says_where_it_listens_and_what_to_try() -> None:
    said = text(ONE, "a", "b")

    assert said.startswith("illm is listening on http://127.0.0.1:8000/v1\n")
    row = next(line for line in said.splitlines() if "fast" in line)
    assert row.split() == ["fast", "vLLM", "http://10.0.0.5:8000", "a,", "b"]
    assert "curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json'" in said
    (body,) = [line.strip() for line in said.splitlines() if line.strip().startswith("-d ")]
    assert json.loads(body.removeprefix("-d ").strip("'"))["model"] == "a"


def test_the_default_model_is_the_one_to_try() -> None:
    assert '"model": "b"' in text(ONE | {"model": "b"}, "a", "b")


def test_an_alias_can_be_the_one_to_try() -> None:
    models = {"pub": {"aliases": ["other"], "replicas": ["fast"]}}

    assert '"model": "other"' in text(ONE | {"models": models, "model": "other"}, "a")


def test_no_key_is_shown() -> None:
    said = text(ONE | {"server": {"api_keys": ["sk-secret"]}}, "a")

    assert "Authorization: Bearer YOUR_KEY" in said
    assert "sk-secret" not in said


def test_many_models_are_cut() -> None:
    assert "m0, m1, m2, m3, …\n" in text(ONE, *(f"m{i}" for i in range(9)))


OPEN = "Warning: on {} without keys, whoever reaches it may use it. Set server.api_keys (ILLM_API_KEYS)."


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("0.0.0.0", [], True),
        ("::", [], True),
        ("192.0.2.7", [], True),
        ("box.example", [], True),
        ("0.0.0.0", ["sk-secret"], False),
        ("127.0.0.1", [], False),
        ("127.9.9.9", [], False),
        ("::1", [], False),
        ("localhost", [], False),
    ],
)
def test_a_gateway_that_is_open_to_others_warns(host: str, keys: list[str], warns: bool) -> None:
    lines = text(ONE | {"server": {"host": host, "api_keys": keys}}, "a").splitlines()

    assert (OPEN.format(host) in lines) == warns
    assert any("Warning" in line for line in lines) == warns


def test_an_engine_that_is_not_there_is_named() -> None:
    said = text(ONE)

    assert "down: connection refused" in said
    assert "curl" not in said, "there is nothing to try"


def test_a_model_whose_backend_is_down_is_not_the_one_to_try() -> None:
    """It is known, as the settings name it, but a request for it would fail."""
    said = text(ONE | {"models": {"pub": {"replicas": [{"backend": "fast", "model": "a"}]}}})

    assert "down: connection refused" in said
    assert "curl" not in said


def test_the_demo_engine_says_that_it_is_a_stand_in() -> None:
    said = text({"discovery": {"local": True}}, "demo", demo=True)

    assert "a stand-in, not a language model" in said
    assert "  backends:\n    mine:\n      base_url: http://127.0.0.1:8080" in said
    assert "curl" in said


def test_a_backend_that_is_called_demo_is_no_stand_in() -> None:
    said = text({"backends": {DEMO: {"kind": "vllm", "base_url": "http://10.0.0.5:8000"}}}, "a")

    assert "stand-in" not in said
    assert "No engine was found" not in said
