"""compose.yaml brought up for real: its images are built, people's first chat is had, and nothing is left behind.

The gateway is the image that users build. Ollama is ollama.py, llama-server and Prometheus are Debian's, since their
images need a registry; override.yaml has what that changes. What this can't show: GPUs, Docker's own network, Grafana.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.compose import ollama
from tests.compose.dashboard import EXPRESSIONS
from tests.compose.docker_engine import Docker, compose_plugin, docker_engine, python_image
from tests.engines import install
from tests.engines.models import CHAT, Gguf
from tests.engines.process import AGES, PATIENCE, wait_until
from tests.engines.speech import TEXT

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("vllm", "sglang", "tgi", "llamacpp", "transformers", "embeddings", "observability")
SERVICES = ("gateway", "ollama", "pull", "llamacpp", "prometheus")  # what can be had here
KEYS = "first-key,second-key"
LARGEST = 80_000_000  # bytes that illm may add to the image it is built from
EMPTY = {"sum by (state) (illm_engine_state)"}  # there is no launcher in the stack

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Stack:
    """compose.yaml under the override."""

    docker: Docker
    env: dict[str, str]
    project: str
    net: str

    @property
    def words(self) -> tuple[str, ...]:
        files = ("--file", str(ROOT / "compose.yaml"), "--file", str(ROOT / "tests/compose/override.yaml"))
        only = ("--project-name", self.project, "--env-file", os.devnull)
        return ("compose", *only, *files, "--profile", "llamacpp", "--profile", "observability")

    def __call__(self, *words: str, seconds: float = AGES) -> str:
        return self.docker(*self.words, *words, seconds=seconds, **self.env)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """`docker compose …` without waiting for its end."""
        env = {**os.environ, **self.docker.env, **self.env}
        return subprocess.Popen(["docker", *self.words, *words], env=env, stderr=subprocess.DEVNULL)

    def inspect(self, service: str) -> dict[str, Any]:
        return self.docker.inspect(f"{self.project}-{service}-1")

    def healthy(self, service: str) -> bool:
        return bool(self.inspect(service)["State"]["Health"]["Status"] == "healthy")

    def left(self) -> list[str]:
        """Containers, volumes and networks of this project."""
        of = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        kinds = (("ps", "--all", *of), ("volume", "ls", *of), ("network", "ls", *of))
        return [line for words in kinds for line in self.docker(*words).splitlines()]

    @property
    def gateway(self) -> str:
        return f"http://{self.net}.3:8000"

    def get(self, path: str) -> httpx.Response:
        headers = {"Authorization": "Bearer second-key"}
        return httpx.get(f"{self.gateway}{path}", headers=headers, timeout=PATIENCE, trust_env=False)

    def client(self) -> OpenAI:
        return OpenAI(
            base_url=f"{self.gateway}/v1",
            api_key="second-key",
            max_retries=0,
            timeout=PATIENCE,
            http_client=httpx.Client(timeout=PATIENCE, trust_env=False),
        )


def unpack_prometheus(place: install.Place) -> None:
    install.unpack_debian(place, place.home / "root", ("prometheus",))
    place.run(place.home / "root/usr/bin/prometheus", "--version")


@pytest.fixture
def stack(llama_program: Path, tiny_models: Gguf) -> Iterator[Stack]:
    """Nothing is up yet; all of it is gone afterwards."""
    llama = llama_program.parent.parent
    if not (llama / "root").is_dir():
        pytest.skip("llama-server was compiled here; its container is made of Debian's package")
    folder = Path(tempfile.mkdtemp(prefix="illm-docker-"))  # short: sockets' paths have a limit
    net = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250 + 1}"
    with contextlib.ExitStack() as running:
        running.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            recipe = install.Recipe(install.DEBIAN_SUITE, "root/usr/bin/prometheus", unpack_prometheus)
            prometheus = install.ensure_recipe("prometheus", recipe).parents[3]
            docker = running.enter_context(docker_engine(folder))
            image = python_image(docker)
        except install.CannotBeHad as reason:
            pytest.skip(str(reason))
        env = {
            "PYTHON_IMAGE": image,
            "GATEWAY_IMAGE": "illm-test:local",
            "ILLM_API_KEYS": KEYS,
            "PROMETHEUS_ARGS": f"--web.listen-address={net}.4:9090",
            "TEST_NET": net,
            "TEST_LLAMA": str(llama),
            "TEST_MODELS": str(tiny_models.chat.parent),
            "TEST_PROMETHEUS": str(prometheus),
        }
        stack = Stack(docker, env, f"illm-test-{os.getpid()}", net)
        running.callback(docker.run, "image", "rm", *(f"illm-test{n}:local" for n in ("", "-llama", "-prometheus")))
        running.callback(stack, "down", "--volumes")
        yield stack


def test_people_bring_it_up_chat_restart_it_and_take_it_down(stack: Stack) -> None:
    stack("build", *SERVICES, seconds=AGES)
    small_and_without_root(stack)
    stack("up", "--detach", *SERVICES)
    comes_up_in_order(stack)
    everything_answers(stack)
    inside_it_is_safe(stack)
    prometheus_gets_what_the_dashboard_shows(stack)
    stack("restart", "gateway")
    wait_until(lambda: stack.healthy("gateway"), "the gateway is healthy again")
    everything_answers(stack)
    a_stream_ends_before_the_gateway_does(stack)
    stack("down", "--volumes")
    assert stack.left() == []


def small_and_without_root(stack: Stack) -> None:
    illm, base = (stack.docker.inspect(name) for name in ("illm-test:local", stack.env["PYTHON_IMAGE"]))
    assert illm["Size"] - base["Size"] < LARGEST
    assert illm["Config"]["User"] == "10001:10001"
    assert illm["Config"]["Entrypoint"] == ["illm"]


def comes_up_in_order(stack: Stack) -> None:
    """The gateway after a healthy Ollama, then the model, which a service of its own pulls and tells of."""
    wait_until(lambda: stack.inspect("pull")["State"]["Status"] == "exited", "the model is pulled")
    pull, log = stack.inspect("pull")["State"], stack("logs", "--no-log-prefix", "pull")
    assert pull["ExitCode"] == 0, log
    assert "qwen2.5:0.5b: pulling manifest" in log
    assert "50% of 381 MiB" in log
    assert pull["StartedAt"] > stack.inspect("ollama")["State"]["StartedAt"]
    wait_until(lambda: stack.healthy("gateway") and stack.healthy("llamacpp"), "everything is healthy")
    listed = {"qwen2.5:0.5b", CHAT}
    wait_until(lambda: {m["id"] for m in stack.get("/v1/models").json()["data"]} == listed, "both are listed")


def everything_answers(stack: Stack) -> None:
    wait_until(lambda: stack.get("/healthz").json()["status"] == "degraded", "backends answer")
    states = {row["name"]: row["state"] for row in stack.get("/healthz").json()["backends"]}
    assert {name for name, state in states.items() if state == "ready"} == {"ollama", "llamacpp"}
    assert stack.get("/readyz").status_code == 200
    assert stack.get("/livez").status_code == 200
    with stack.client() as client:
        for model, text in (("qwen2.5:0.5b", "".join(ollama.WORDS)), (CHAT, TEXT)):
            ask: Any = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
            assert client.chat.completions.create(**ask).choices[0].message.content == text
            with client.chat.completions.create(**ask, stream=True) as stream:
                pieces = [piece.choices[0].delta.content or "" for piece in stream]
            assert "".join(pieces) == text
            assert len(pieces) > 3
    assert httpx.get(f"{stack.gateway}/v1/models", timeout=PATIENCE, trust_env=False).status_code == 401


def inside_it_is_safe(stack: Stack) -> None:
    """Not root, nothing can be written, nothing can be built or installed, and the command line is there."""
    script = (
        "id -u; touch /app/new 2>/dev/null && echo written; python -c 'import pip' 2>/dev/null && echo pip; "
        "command -v gcc cc make; cat /proc/self/status | grep CapEff; "
        "python -c 'import proxy.relay; print(proxy.relay.__file__)'; illm models; illm check"
    )
    done = stack.docker.run(*stack.words, "exec", "-T", "gateway", "sh", "-c", script, **stack.env)
    user, capabilities, relay, *said = done.stdout.splitlines()
    assert user == "10001"
    assert relay.endswith(".so"), "the hot path is compiled"
    assert capabilities.split()[-1] == "0" * 16
    text = "\n".join(said)
    assert CHAT in text
    assert "Backend 'vllm' at http://vllm:8000" in text  # what isn't up is told, and hurts nothing else


def prometheus_gets_what_the_dashboard_shows(stack: Stack) -> None:
    """With the gateway's key, by the entrypoint and the settings that users have; and each query of the dashboard."""
    root = f"http://{stack.net}.4:9090"

    def query(expression: str) -> list[Any]:
        answer = httpx.post(
            f"{root}/api/v1/query", data={"query": expression}, timeout=PATIENCE, trust_env=False
        ).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        found: list[Any] = answer["data"]["result"]
        return found

    wait_until(lambda: stack.healthy("prometheus"), "Prometheus is healthy")
    asked = f'illm_requests_total{{model="{CHAT}",status="200"}}'
    wait_until(lambda: query(asked), "the gateway's metrics are there")
    ask: Any = {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}]}
    with stack.client() as client:
        client.chat.completions.create(**ask)
    assert httpx.get(f"{stack.gateway}/v1/models/none", timeout=PATIENCE, trust_env=False).status_code == 401
    wait_until(lambda: query(f"rate({asked}[1m]) > 0"), "it was asked again")
    shown = {expression: query(expression) for expression in EXPRESSIONS}
    assert {expression for expression, found in shown.items() if not found} == EMPTY
    assert query("sum(illm_backend_up)")[0]["value"][1] == "2"


def a_stream_ends_before_the_gateway_does(stack: Stack) -> None:
    """SIGTERM in its middle: nobody new gets in, the answer comes whole, and then the container ends by itself."""
    ask: Any = {"model": "qwen2.5:0.5b", "messages": [{"role": "user", "content": "Hello, and wait"}]}

    def closed() -> bool:
        with contextlib.suppress(httpx.TransportError):
            stack.get("/livez")
            return False
        return True

    with stack.client() as client, client.chat.completions.create(**ask, stream=True) as stream:
        words = (word for piece in stream for choice in piece.choices if (word := choice.delta.content))
        text = next(words)
        with stack.start("stop", "gateway") as stopping:
            wait_until(closed, "the gateway takes nobody new")
            assert text == ollama.WORDS[0]
            assert stack.inspect("gateway")["State"]["Running"]
            httpx.post(f"http://{stack.net}.1:11434/release", timeout=PATIENCE, trust_env=False)
            assert text + "".join(words) == "".join(ollama.WORDS)
        assert stopping.returncode == 0
    assert stack.inspect("gateway")["State"]["ExitCode"] in (0, 143)  # 137 would be a kill


@pytest.mark.parametrize("profiles", [(), *((name,) for name in PROFILES), PROFILES], ids=lambda p: "+".join(p) or "-")
def test_compose_takes_every_profile(profiles: tuple[str, ...]) -> None:
    try:
        plugin = compose_plugin()
    except install.CannotBeHad as reason:
        pytest.skip(str(reason))
    words = [word for name in profiles for word in ("--profile", name)]
    file = ("--env-file", os.devnull, "--file", str(ROOT / "compose.yaml"))
    done = subprocess.run(
        [plugin, *file, *words, "config", "--format", "json"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    expected = {"gateway", "ollama", "pull"} | set(profiles) - {"observability"}
    expected |= {"prometheus", "grafana"} if "observability" in profiles else set()
    assert set(json.loads(done.stdout)["services"]) == expected
