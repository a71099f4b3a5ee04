"""Engines and launchers that are killed with -9: what clients see, who comes back, and that nobody is left over."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.engines.models import Gguf
from tests.engines.process import PATIENCE, wait_until
from tests.engines.speech import TEXT
from tests.launched.support import FOREVER, Host, alive, llama


def test_an_engine_killed_mid_stream_ends_it_with_an_error_and_is_back_by_itself(
    llama_program: Path, tiny_models: Gguf
) -> None:
    with Host({"tiny": llama(llama_program, tiny_models.chat, args=["-c", "262144"])}) as host:
        body = {"model": "tiny", "messages": FOREVER, "stream": True, "max_tokens": 260000}  # a minute of them
        with httpx.stream("POST", f"{host.url}/v1/chat/completions", json=body, timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            before = host.row("tiny")
            os.kill(before["pid"], signal.SIGKILL)
            rest = [line for line in lines if line]
        wait_until(lambda: host.row("tiny")["pid"] not in (None, before["pid"]), "it starts anew")
        after = host.until("tiny", "ready")
        again = host.ask("tiny")

    assert '"error"' in rest[-2]
    assert "tiny" in rest[-2]
    assert rest[-1] == "data: [DONE]"
    assert after["pid"] != before["pid"]
    assert again.json()["choices"][0]["message"]["content"] == TEXT


def test_requests_right_after_the_kill_wait_for_the_next_start(llama_program: Path, tiny_models: Gguf) -> None:
    with Host({"tiny": llama(llama_program, tiny_models.chat)}) as host:
        assert host.ask("tiny").status_code == 200
        os.kill(host.row("tiny")["pid"], signal.SIGKILL)
        answers = [host.ask("tiny") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.mark.parametrize("orphans", ["kill", "adopt"])
def test_a_launcher_killed_with_9(llama_program: Path, tiny_models: Gguf, orphans: str) -> None:
    """Its engines end with it, or go on answering and are the next launcher's."""
    engine = llama(llama_program, tiny_models.chat)
    with Host({"tiny": engine}, orphans=orphans) as host:
        assert host.ask("tiny").status_code == 200
        before, launcher = host.row("tiny")["pid"], host.launcher_pid()
        os.kill(launcher, signal.SIGKILL)
        if orphans == "kill":
            wait_until(lambda: not alive(before), "the engine has ended with its launcher")
        else:
            assert host.ask("tiny").status_code == 200  # the engine doesn't need its launcher, nor does the gateway
            assert alive(before)
        row = host.until("tiny", "ready" if orphans == "adopt" else "stopped")  # the gateway started another launcher
        another = host.launcher_pid()
        wait_until(lambda: host.ask("tiny").status_code == 200, "the gateway finds the next launcher")
        after = host.row("tiny")["pid"]

    assert another != launcher
    assert (row["pid"] == before) == (orphans == "adopt")
    assert (after == before) == (orphans == "adopt")
    assert not alive(after)
