"""The stand-ins, an image server and one gateway in front of them, on real sockets, for all tests here."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE
from tests.native.support import ENGINES, MODELS, PNG, settings
from tests.standins.support import StandIn


class _Pictures(BaseHTTPRequestHandler):
    """`/pixel.png` is a picture, all else is none."""

    def do_GET(self) -> None:
        body = base64.b64decode(PNG) if self.path == "/pixel.png" else b"no picture"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def pictures() -> Iterator[str]:
    """The base URL of an HTTP server on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StandIn]]:
    folder = tmp_path_factory.mktemp("standins")
    with ExitStack() as stack:
        yield {name: stack.enter_context(StandIn(kind, folder, options)) for name, (kind, options) in ENGINES.items()}


@pytest.fixture(scope="session")
def gateway(engines: dict[str, StandIn], pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = settings(engines, int(pictures.rpartition(":")[2]))
    with Gateway(config, tmp_path_factory.mktemp("gateway")) as running:
        yield running.wait_models(*MODELS)


@pytest.fixture
def tgi(engines: dict[str, StandIn]) -> StandIn:
    """The TGI of today, with an empty journal."""
    engines["tgi"].reset()
    return engines["tgi"]


@pytest.fixture
def ollama(engines: dict[str, StandIn]) -> StandIn:
    """The Ollama of today, with an empty journal."""
    engines["ollama"].reset()
    return engines["ollama"]


@pytest.fixture
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        yield client
