"""pytest fixtures of real engines (a plugin: `pytest_plugins = ["tests.engines.fixtures"]` in the root conftest).

A test that needs an engine which can't be had on this machine is skipped with the reason.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.engines import install, servers
from tests.engines.gateway import Gateway
from tests.engines.models import Gguf, gguf_models
from tests.engines.process import ServerProcess


class StartLlamaServer(Protocol):
    """Starts one more llama-server with extra arguments; it is stopped when the test ends."""

    def __call__(
        self, *args: str, model: Path | None = None, wait: bool = True, port: int | None = None
    ) -> ServerProcess: ...


@pytest.fixture(scope="session")
def llama_program() -> Path:
    """The path of a real llama-server."""
    try:
        return install.ensure("llama-server")
    except install.CannotBeHad as reason:
        pytest.skip(f"llama-server can't be had here: {reason}")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    return gguf_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engines of this session keep their logs."""
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="session")
def llama_server(llama_program: Path, tiny_models: Gguf, llama_folder: Path) -> Iterator[ServerProcess]:
    """A chat model with tools, four slots (speech.py has what it says)."""
    slots = ("-np", "4", "-c", "400000", "--alias", "tiny-chat")
    with servers.llama_server(tiny_models.chat, llama_folder, *slots) as server:
        yield server


@pytest.fixture(scope="session")
def llama_embed(llama_program: Path, tiny_models: Gguf, llama_folder: Path) -> Iterator[ServerProcess]:
    """An embedding model."""
    args = ("--embeddings", "--pooling", "mean", "--alias", "tiny-embed")
    with servers.llama_server(tiny_models.embed, llama_folder, *args) as server:
        yield server


@pytest.fixture(scope="session")
def llama_rerank(llama_program: Path, tiny_models: Gguf, llama_folder: Path) -> Iterator[ServerProcess]:
    """A rerank model."""
    with servers.llama_server(tiny_models.rerank, llama_folder, "--rerank", "--alias", "tiny-rerank") as server:
        yield server


@pytest.fixture
def start_llama(llama_program: Path, tiny_models: Gguf, tmp_path: Path) -> Iterator[StartLlamaServer]:
    """A factory for servers with arguments of the test's own: `-np 1`, `--api-key K`."""
    with ExitStack() as running:

        def start(*args: str, model: Path | None = None, wait: bool = True, port: int | None = None) -> ServerProcess:
            server = servers.llama_server(model or tiny_models.chat, tmp_path, *args, wait=wait, port=port)
            return running.enter_context(server)

        yield start


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """A factory for gateways (`Gateway`'s own arguments without the folder), stopped when the test ends."""
    with ExitStack() as running:

        def start(config: str, **options: object) -> Gateway:
            return running.enter_context(Gateway(config, tmp_path, **options))  # type: ignore[arg-type]

        yield start
