"""A real vLLM on the CPU, started by a request, killed with -9 in a stream, and back by itself.

It takes minutes and 2.5 GB, so it runs with SLOW_TESTS=1 (as CI does).
"""

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.engines import install
from tests.engines.models import CHAT, hf_models
from tests.engines.process import AGES, wait_until
from tests.launched.support import FOREVER, Host, alive

pytestmark = pytest.mark.slow


def test_vllm_is_started_by_a_request_killed_mid_stream_and_back_by_itself(tmp_path: Path) -> None:
    try:
        program, models = install.ensure("vllm"), hf_models(tmp_path)
    except install.CannotBeHad as reason:
        pytest.skip(f"vLLM can't be had here: {reason}")
    env = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HOME": str(tmp_path)}
    engine = {"kind": "vllm", "command": [str(program)], "model": str(models / CHAT), "device": "cpu", "env": env}
    body = {"model": "tiny", "messages": FOREVER, "stream": True, "max_tokens": 20000, "ignore_eos": True}
    with Host({"tiny": engine | {"args": ["--enforce-eager"]}}) as host:
        url = f"{host.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=AGES) as stream:
            lines = stream.iter_lines()
            said = [next(lines)]
            while not said[-1].startswith("data: "):
                said.append(next(lines))
            before = host.row("tiny")
            workers = [pid for pid in host.tree(before["pid"]) if pid != before["pid"]]
            os.kill(before["pid"], signal.SIGKILL)
            rest = [line for line in lines if line]
        wait_until(lambda: not any(alive(pid) for pid in workers), "its workers have ended too")
        wait_until(lambda: host.row("tiny")["pid"] not in (None, before["pid"]), "it starts anew")
        host.until("tiny", "ready", AGES)
        again = host.ask("tiny", max_tokens=5)

    comments = [line for line in said if line.startswith(":")]
    assert any("'tiny'" in line for line in comments), said
    assert workers
    assert '"error"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    assert again.status_code == 200
    assert again.json()["model"] == "tiny"
