"""The example for models that must be loaded first: launched by illm, and not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.engines.door import Door, never_loaded
from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.models import Gguf
from tests.engines.speech import TEXT
from tests.examples.support import environment, run_python
from tests.launched.support import Host, llama
from tests.real.support import access_lines

pytestmark = pytest.mark.slow


def test_an_engine_that_illm_starts(
    llama_program: Path, tiny_models: Gguf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Host({"cold": llama(llama_program, tiny_models.chat)}) as host:
        assert host.row("cold")["state"] == "stopped"
        settings = environment(host.url, "none")
        assert run_python("openai_waiting.py", ("cold", "hi"), settings, monkeypatch, capsys) == f"{TEXT}\n"
        assert len(access_lines(host.gateway, "/v1/chat/completions")) == 1  # it waited, nothing was tried again


def test_an_engine_that_is_loading_already(
    start_llama: StartLlamaServer,
    start_gateway: Callable[..., Gateway],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = start_llama("--alias", "cold")
    with Door(start_llama(*never_loaded(tmp_path), "--alias", "cold", wait=False)) as engine:
        gateway = start_gateway(
            f"discovery: {{local: false}}\nbackends: {{only: {{kind: llamacpp, base_url: {engine.base_url}}}}}\n"
            "models: {cold: {replicas: [{backend: only, model: cold}]}}\n"
        )

        def load() -> None:
            access_lines(gateway, "/v1/chat/completions")  # once there is one
            engine.lead_to(loaded)

        settings = environment(gateway.base_url, "none")
        with ThreadPoolExecutor() as threads:
            loading = threads.submit(load)
            assert run_python("openai_waiting.py", ("cold", "hi"), settings, monkeypatch, capsys) == f"{TEXT}\n"
            loading.result()
    first, *_, last = access_lines(gateway, "/v1/chat/completions", 2)  # refused at first, and tried again
    assert (first["status"], last["status"]) == (503, 200)
