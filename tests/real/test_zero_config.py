"""`illm serve` with nothing set: no file, no environment, some empty folder. What it finds, what it says, and what the
first user can do with what it says.

The usual ports are this machine's only ones, so a test that needs one is skipped while somebody else listens there.
"""

import fcntl
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from proxy.discovery import LOCAL_PORTS
from tests.engines.fixtures import StartLlamaServer
from tests.engines.gateway import Gateway
from tests.engines.process import HOST, PATIENCE, ServerProcess, wait_until
from tests.engines.speech import TEXT
from tests.real.support import CHAT, HI, get

pytestmark = pytest.mark.slow

LISTENS = re.compile(r"illm is listening on (http://127\.0\.0\.1:(\d+))/v1")

StartBare = Callable[..., ServerProcess]


def taken(*ports: int) -> list[int]:
    """Those of the ports that somebody listens on."""
    busy = []
    for port in ports:
        with closing(socket.socket()) as sock:
            sock.settimeout(1)
            if sock.connect_ex((HOST, port)) == 0:
                busy.append(port)
    return busy


def need_free(*ports: int) -> None:
    if busy := taken(*ports):
        pytest.skip(f"port {', '.join(map(str, busy))} of this machine is taken")


def command(*words: str) -> list[str]:
    """`illm serve` without any environment but a search path."""
    return ["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", sys.executable, "-m", "proxy.cli", "serve", *words]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """One of these tests at a time, whatever runs them: what one starts on a usual port, another would find."""
    with open(Path(tempfile.gettempdir()) / "illm-usual-ports.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def start_bare(tmp_path: Path) -> Iterator[StartBare]:
    """Starts `illm serve` in an empty folder and waits until it says that it listens."""
    with ExitStack() as running:

        def start(*words: str) -> ServerProcess:
            folder = tmp_path / "empty"
            folder.mkdir(exist_ok=True)
            process = ServerProcess(command(*words), port=0, log=tmp_path / "illm.log", cwd=folder)
            running.enter_context(process)
            process.wait_ready(lambda: LISTENS.search(process.log_text()) is not None)
            found = LISTENS.search(process.log_text())
            assert found
            process.base_url, process.port = found[1], int(found[2])
            return process

        yield start


def models(process: ServerProcess) -> list[str]:
    return [entry["id"] for entry in get(f"{process.base_url}/v1/models").json()["data"]]


def ask(process: ServerProcess, **how: Any) -> Any:
    with openai.OpenAI(base_url=f"{process.base_url}/v1", api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        (name,) = [model.id for model in client.models.list()]
        answer = client.chat.completions.create(model=name, messages=HI, **how)
        return "".join(c.choices[0].delta.content or "" for c in answer if c.choices) if how else answer


def printed_curl(log: str) -> str:
    """The command as a user copies it: both its lines."""
    found = re.search(r"^  (curl .*) \\\n    (-d '.*')$", log, re.MULTILINE)
    assert found, log
    return f"{found[1]} {found[2]}"


def run_curl(line: str) -> str:
    """What the command prints; on a machine without curl the same request is sent by hand."""
    if shutil.which("curl") is not None:
        words = ["sh", "-c", f"{line} -sS --noproxy '*'"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    program, url, header, named, data, body = shlex.split(line)
    assert (program, header, data) == ("curl", "-H", "-d")
    name, _, value = named.partition(": ")
    return httpx.post(url, content=body, headers={name: value}, timeout=PATIENCE, trust_env=False).text


def printed_yaml(log: str) -> Any:
    found = re.search(r"^  backends:\n(?:    .*\n)+", log, re.MULTILINE)
    assert found, log
    return yaml.safe_load(found[0])


def test_the_demo_engine_until_a_real_one_comes(start_bare: StartBare, start_llama: StartLlamaServer) -> None:
    need_free(*LOCAL_PORTS)
    illm = start_bare()
    assert ("Port 8000 is taken" in illm.log_text()) == (illm.port != 8000)  # what ended may keep its port for a minute
    (demo,) = models(illm)
    answer = ask(illm)
    said = answer.choices[0].message.content
    assert "demo" in said.lower()
    assert (answer.model, answer.choices[0].finish_reason) == (demo, "stop")
    assert ask(illm, stream=True) == said

    log = illm.log_text()
    assert "stand-in" in log
    assert printed_yaml(log) == {"backends": {"mine": {"base_url": "http://127.0.0.1:8080"}}}
    copied = json.loads(run_curl(printed_curl(log)))
    assert "demo" in copied["choices"][0]["message"]["content"].lower()
    assert copied["usage"]["total_tokens"] > 0

    engine = start_llama("--alias", CHAT, port=8080)
    wait_until(lambda: models(illm) == [CHAT], "the engine appears and the demo goes")
    assert ask(illm).choices[0].message.content == TEXT
    (row,) = get(f"{illm.base_url}/healthz").json()["backends"]
    assert (row["name"], row["kind"], row["state"]) == ("llamacpp", "llamacpp", "ready")
    assert engine.returncode is None
    assert "Traceback" not in illm.log_text()


def test_a_taken_port_gives_way_and_is_searched_for_engines(
    start_bare: StartBare, start_llama: StartLlamaServer
) -> None:
    need_free(*LOCAL_PORTS)
    start_llama("--alias", CHAT, port=8000)
    illm = start_bare()
    assert illm.port > 8000
    assert f"Port 8000 is taken (llama.cpp); using {illm.port}." in illm.log_text()
    assert models(illm) == [CHAT]
    assert ask(illm).choices[0].message.content == TEXT
    assert f"curl http://127.0.0.1:{illm.port}/v1/chat/completions" in illm.log_text()
    assert "stand-in" not in illm.log_text()


def test_a_chosen_port_that_is_taken(
    llama_server: ServerProcess, served: Gateway, tmp_path: Path, mute_program: int
) -> None:
    ports = {llama_server.port: "llama.cpp", served.process.port: "another illm", mute_program: "another program"}
    for port, who in ports.items():
        chosen = command("--port", str(port))
        ended = subprocess.run(chosen, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert ended.returncode == 2
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"illm: Port {port} is taken: ")
        assert who in line
        assert "--port" in line


@pytest.fixture
def mute_program() -> Iterator[int]:
    """The port of a program that accepts connections and says nothing."""
    with socket.create_server((HOST, 0)) as sock:
        yield sock.getsockname()[1]


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "illm.yaml"
    wrong.write_text("server:\n  prot: 9000\n")
    ended = subprocess.run(
        command("--config", str(wrong)), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert all(part in ended.stderr for part in ("illm.yaml:2", "prot", "port"))


def test_defaults_from_the_environment(start_gateway: Callable[..., Gateway], llama_server: ServerProcess) -> None:
    defaults = {"ILLM_MAX_TOKENS": "3", "ILLM_TEMPERATURE": "0.5", "ILLM_TOP_K": "7", "ILLM_REPETITION_PENALTY": "1.25"}
    env = {"ILLM_LLAMACPP_BASE_URL": llama_server.base_url, **defaults}
    gateway = start_gateway("", env=env).wait_models(CHAT)
    with openai.OpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE) as client:

        def engine_got(**more: Any) -> tuple[Any, ...]:
            answer = client.chat.completions.create(model=CHAT, messages=HI, extra_body={"verbose": True} | more)
            assert answer.model_extra
            told = answer.model_extra["__verbose"]["generation_settings"]
            return told["n_predict"], told["temperature"], told["top_k"], told["repeat_penalty"]

        assert engine_got() == (3, 0.5, 7, 1.25)
        assert engine_got(max_tokens=5, top_k=9) == (5, 0.5, 9, 1.25)
        assert engine_got(max_completion_tokens=4, repetition_penalty=1.5, temperature=0.25) == (4, 0.25, 7, 1.5)
        assert engine_got(repeat_penalty=1.75)[3] == 1.75  # the engine's own name for it wins over a default
        assert engine_got(max_tokens=None)[0] == 3  # null counts as left out
        plain = client.chat.completions.create(model=CHAT, messages=HI)
        assert (plain.choices[0].message.content, plain.choices[0].finish_reason) == ("Once upon a", "length")
        assert client.completions.create(model=CHAT, prompt="hi").choices[0].text == "Once upon a"
        assert client.responses.create(model=CHAT, input="hi").output_text == "Once upon a"
        assert client.responses.create(model=CHAT, input="hi", max_output_tokens=2).output_text == "Once upon"
