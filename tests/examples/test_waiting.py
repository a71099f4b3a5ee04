"""The example for models that must be loaded first, with one that takes seconds: launched by illm, and not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.models import Gguf
from tests.engines.speech import TEXT
from tests.examples.support import environment, run_python
from tests.launched.support import Host, llama
from tests.real.support import access_lines

pytestmark = pytest.mark.slow

CONTEXT = "12000000"  # whose memory takes seconds to be laid out


def test_an_engine_that_illm_starts(
    llama_program: Path, tiny_models: Gguf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Host({"cold": llama(llama_program, tiny_models.chat, args=["-c", CONTEXT])}) as host:
        assert host.row("cold")["state"] == "stopped"
        settings = environment(host.url, "none")
        assert run_python("openai_waiting.py", ("cold", "hi"), settings, monkeypatch, capsys) == f"{TEXT}\n"
        assert len(access_lines(host.gateway, "/v1/chat/completions")) == 1  # it waited, nothing was tried again


def test_an_engine_that_is_loading_already(
    start_llama: StartLlamaServer,
    start_gateway: Callable[..., Gateway],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = start_llama("-c", CONTEXT, "--alias", "cold", wait=False)
    gateway = start_gateway(
        f"discovery: {{local: false}}\nbackends: {{only: {{kind: llamacpp, base_url: {engine.base_url}}}}}\n"
        "models: {cold: {replicas: [{backend: only, model: cold}]}}\n"
    )
    settings = environment(gateway.base_url, "none")
    assert run_python("openai_waiting.py", ("cold", "hi"), settings, monkeypatch, capsys) == f"{TEXT}\n"
    first, *_, last = access_lines(gateway, "/v1/chat/completions", 2)  # refused at first, and tried again
    assert (first["status"], last["status"]) == (503, 200)
