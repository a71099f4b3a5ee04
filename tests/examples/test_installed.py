"""The examples whose clients are installed for them alone: LlamaIndex into an environment of its own, openai for Node.

Both are kept beside the real engines, so that only the first run downloads.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engines import install
from tests.engines.gateway import Gateway
from tests.engines.speech import TEXT
from tests.examples.support import CHAT, EMBED, EXAMPLES, environment, run_program

pytestmark = pytest.mark.slow

LLAMA_INDEX = ("llama-index-llms-openai-like==0.8.1", "llama-index-embeddings-openai-like==0.4.0")
OPENAI_NODE = "6.49.0"


def build_llama_index(place: install.Place) -> None:
    install.make_venv(place)(*LLAMA_INDEX)


def build_openai_node(place: install.Place) -> None:
    place.run("npm", "install", "--no-audit", "--no-fund", f"openai@{OPENAI_NODE}", cwd=place.home)
    install.write_script(place.home / "bin/node", 'exec node "$@"')


def had(name: str, recipe: install.Recipe) -> Path:
    try:
        return install.ensure_recipe(name, recipe)
    except install.CannotBeHad as reason:
        pytest.skip(f"{name} can't be had here: {reason}")


@pytest.fixture(scope="module")
def python() -> Path:
    version = "-".join(package.rpartition("=")[2] for package in LLAMA_INDEX)
    return had("llama-index", install.Recipe(version, "bin/python", build_llama_index))


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Node's program; the example lies beside its packages in `tmp_path`, since modules are looked for from there."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node on this machine")
    program = had("openai-node", install.Recipe(OPENAI_NODE, "bin/node", build_openai_node))
    (tmp_path / "node_modules").symlink_to(program.parent.parent / "node_modules")
    shutil.copy(EXAMPLES / "openai_node.mjs", tmp_path)
    return program


def test_llamaindex_chat(real: Gateway, python: Path) -> None:
    told = run_program(python, EXAMPLES / "llamaindex_chat.py", CHAT, settings=environment(real.base_url))
    assert told.splitlines() == [f"answer: {TEXT}", f"stream: {TEXT}", "with a tool: sunny in Bern"]


def test_llamaindex_embeddings(real: Gateway, python: Path) -> None:
    told = run_program(python, EXAMPLES / "llamaindex_embeddings.py", EMBED, settings=environment(real.base_url))
    assert told == "The bridge is built of stone.\n"


def test_llamaindex_without_any_words(newcomer: Gateway, python: Path) -> None:
    settings = environment(newcomer.base_url, "none")
    told = run_program(python, EXAMPLES / "llamaindex_chat.py", settings=settings)
    assert "with a tool: This is illm's built-in demo engine" in told
    told = run_program(python, EXAMPLES / "llamaindex_embeddings.py", settings=settings)
    assert told == "The bridge is built of stone.\n"


def test_openai_node(real: Gateway, node: Path, tmp_path: Path) -> None:
    told = run_program(node, tmp_path / "openai_node.mjs", CHAT, "hi", settings=environment(real.base_url))
    error = "error: 404 invalid_request_error model_not_found"
    assert told.splitlines() == [f"answer: {TEXT}", f"stream: {TEXT}", error]


def test_openai_node_without_any_words(newcomer: Gateway, node: Path, tmp_path: Path) -> None:
    told = run_program(node, tmp_path / "openai_node.mjs", settings=environment(newcomer.base_url, "none"))
    assert told.count('You said: "Hello"') == 2
