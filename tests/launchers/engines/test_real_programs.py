"""The command lines against the real programs, where they are at hand: none is fetched for this.

The Python engines take seconds to say what options they have: SLOW_TESTS=1 asks them too.
"""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from launchers.engines.base import Place
from launchers.engines.table import ENGINES, launch
from launchers.spec import EngineSpec, Kind
from tests.engines import install
from tests.engines.models import Gguf
from tests.engines.process import PATIENCE, ServerProcess, answers, free_port
from tests.launchers.engines.specs import spec

Start = Callable[[EngineSpec], ServerProcess]


def cached(name: str) -> Path:
    """The program of an engine that is at hand; skips where it isn't."""
    recipe = install.RECIPES[name]
    program = install.cache() / f"{name}-{recipe.version}" / recipe.program
    if not program.exists():
        pytest.skip(f"{name} is not at hand (scripts/engine {name})")
    return program


@pytest.mark.parametrize(
    ("kind", "name", "help_words", "told"),
    [
        (
            "llamacpp", "llama-server", ["--help"],
            {"mmproj": "p", "max_model_len": 1, "gpu_layers": 1, "embedding": True, "device": "cpu"},
        ),
        pytest.param(
            "transformers", "transformers", ["serve", "--help"],
            {"device": "cpu", "dtype": "auto", "trust_remote_code": True}, marks=pytest.mark.slow,
        ),
        pytest.param(
            "infinity", "infinity", ["v2", "--help"], {"device": "cpu", "dtype": "auto"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "vllm", "vllm", ["serve", "--help=all"],
            {
                "dtype": "auto", "max_model_len": 1, "tensor_parallel": 1, "gpu_memory": 0.5, "trust_remote_code": True,
                "embedding": True, "unload": "sleep",
            },
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_every_option_is_known(kind: Kind, name: str, help_words: list[str], told: dict[str, object]) -> None:
    program = cached(name)
    env = {**os.environ, "COLUMNS": "300", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    said = subprocess.run(
        [program, *help_words], env=env, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    known = set(re.findall(r"--[\w-]+", said.stdout + said.stderr))
    for model in ("org/model", "/m/a.gguf"):
        argv = launch(spec(kind, model, **told), Place("127.0.0.1", 9000)).argv
        assert {word for word in argv if word.startswith("--")} <= known


def test_llama_server_answers_by_its_public_name_and_wants_its_key(tiny_models: Gguf, tmp_path: Path) -> None:
    program = str(cached("llama-server"))
    told = spec("llamacpp", str(tiny_models.chat), api_key="SECRET", device="cpu", max_model_len=4096, gpu_layers=-1)
    port = free_port()
    command = launch(told, Place("127.0.0.1", port, (program,)))
    ready = ENGINES["llamacpp"].ready(told)
    log = tmp_path / "log"
    with ServerProcess(command.argv, port=port, log=log, env=command.env) as server:
        server.wait_ready(answers(f"{server.base_url}{ready.health}"))
        url = f"{server.base_url}{ready.models}"
        listed = httpx.get(url, headers={"authorization": "Bearer SECRET"}, timeout=PATIENCE, trust_env=False).json()
        assert [entry["id"] for entry in listed["data"]] == ["my-model"]
        assert httpx.get(f"{server.base_url}/slots", timeout=PATIENCE, trust_env=False).status_code == 401
    seen = [
        phase.text
        for line in log.read_text().splitlines()
        for phase in ENGINES["llamacpp"].phases
        if phase.pattern.search(line)
    ]
    assert seen == ["loading weights", "warming up", "listening"]
    assert "SECRET" not in log.read_text()


def test_ollama_is_asked_to_load_what_it_has(tiny_models: Gguf, tmp_path: Path) -> None:
    program = str(cached("ollama"))
    told = spec("ollama", "tiny", env={"HOME": str(tmp_path), "OLLAMA_MODELS": str(tmp_path / "models")})
    port = free_port()
    command = launch(told, Place("127.0.0.1", port, (program, "serve")))
    engine = ENGINES["ollama"]
    with ServerProcess(command.argv, port=port, log=tmp_path / "log", env=command.env) as server:
        server.wait_ready(answers(f"{server.base_url}{engine.ready(told).health}"))
        (tmp_path / "M").write_text(f"FROM {tiny_models.bare}\n")
        create = [program, "create", "tiny", "-f", str(tmp_path / "M")]
        subprocess.run(create, env={**os.environ, **command.env}, capture_output=True, check=True)
        pull, load = engine.prepare(told)
        assert (pull.unless, pull.model) == ("/api/tags", "tiny")
        answer = httpx.post(f"{server.base_url}{load.path}", json=load.body, timeout=PATIENCE, trust_env=False)
        assert answer.status_code == 200
        (held,) = httpx.get(f"{server.base_url}/api/ps", timeout=PATIENCE, trust_env=False).json()["models"]
        assert held["name"] == "tiny:latest"
        assert held["expires_at"] > "2100"  # it stays loaded
