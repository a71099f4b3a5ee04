"""What is examined: real engines, each behind a gateway of its own that maps public names to the engine's.

The public names differ from the names that the engines know wherever an engine lets us choose, so that a name which
leaks through shows. What the answers must be is not here.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.engines import install, servers
from tests.engines.gateway import Gateway
from tests.engines.models import CHAT, EMBED, GO_TEMPLATES, RERANK, gguf_models, hf_models
from tests.engines.process import PATIENCE, ServerProcess
from tests.standins.support import StandIn

CONTEXT = 16384  # tokens that fit; an endless answer of so many takes any of these engines many seconds
BUSY_CORES = 0.3
SHORTER = ("--hf-overrides", '{"is_matryoshka": true}')  # lets vLLM cut vectors
INTERVAL = 2  # seconds between two of the gateway's looks at an engine
TOOLS, THINK, INSERT = "tiny-tools", "tiny-think", "tiny-insert"  # where an engine needs models of their own for these

Loaded = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Backend:
    """One running engine process: its kind in the configuration, its URL, and its models (public name → its own)."""

    kind: str
    base_url: str
    models: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Started:
    """An engine that runs: its backends, its version, and whether it computes at this moment. `loaded`: what it says
    of a loaded model (by the public name), where it says such things."""

    backends: tuple[Backend, ...]
    version: str
    busy: Callable[[], bool]
    loaded: Loaded | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine behind a gateway. The names are the models to ask for chat, embeddings and so on; where the engine has
    no such model, another model of it, so that what the gateway says to that is seen too."""

    gateway: Gateway
    version: str
    busy: Callable[[], bool]
    chat: str
    embed: str
    rerank: str
    tools: tuple[str, ...]
    think: str
    insert: str
    loaded: Loaded | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """How one column of the table comes about. `start` blocks until the engine is ready; what it starts is closed
    with the stack. It raises install.CannotBeHad, or process.NotReady."""

    title: str
    start: Callable[[ExitStack, Path], Started]
    env: Mapping[str, str] = field(default_factory=dict)


def get_json(url: str) -> dict[str, str]:
    answer: dict[str, str] = httpx.get(url, timeout=PATIENCE, trust_env=False).raise_for_status().json()
    return answer


def computes(server: ServerProcess) -> Callable[[], bool]:
    """Whether a program that tells nothing of itself is at work: by the CPU time of all its processes."""

    def busy() -> bool:
        seconds, start = server.cpu_seconds(), time.monotonic()
        time.sleep(0.2)
        return (server.cpu_seconds() - seconds) / (time.monotonic() - start) > BUSY_CORES

    return busy


def start_llama_server(stack: ExitStack, folder: Path) -> Started:
    models = gguf_models(folder)
    slots = ("-np", "4", "-c", str(4 * CONTEXT), "--alias", "upstream-chat")
    chat = stack.enter_context(servers.llama_server(models.chat, folder, *slots))
    pooling = ("--embeddings", "--pooling", "mean", "--alias", "upstream-embed")
    embed = stack.enter_context(servers.llama_server(models.embed, folder, *pooling))
    reranking = ("--rerank", "--alias", "upstream-rerank")
    rerank = stack.enter_context(servers.llama_server(models.rerank, folder, *reranking))

    def busy() -> bool:
        slots = httpx.get(f"{chat.base_url}/slots", timeout=PATIENCE, trust_env=False).json()
        return any(slot["is_processing"] for slot in slots)

    backends = (
        Backend("llamacpp", chat.base_url, {CHAT: "upstream-chat"}),
        Backend("llamacpp", embed.base_url, {EMBED: "upstream-embed"}),
        Backend("llamacpp", rerank.base_url, {RERANK: "upstream-rerank"}),
    )
    return Started(backends, get_json(f"{chat.base_url}/props")["build_info"], busy)


def start_vllm(stack: ExitStack, folder: Path) -> Started:
    models = hf_models(folder)
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--max-model-len", str(CONTEXT))
    chat = stack.enter_context(servers.vllm(models / CHAT, folder, "upstream-chat", *tools))
    embed = stack.enter_context(servers.vllm(models / EMBED, folder, "upstream-embed", "--runner", "pooling", *SHORTER))
    # With a parser whatever holds no thinking is taken for nothing but thinking: a server of its own.
    thinking = ("--reasoning-parser", "qwen3", "--max-model-len", "4096")
    think = stack.enter_context(servers.vllm(models / CHAT, folder, "upstream-think", *thinking))

    def busy() -> bool:
        text = httpx.get(f"{chat.base_url}/metrics", timeout=PATIENCE, trust_env=False).text
        running = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
        return any(float(line.rpartition(" ")[2]) > 0 for line in running)

    backends = (
        Backend("vllm", chat.base_url, {CHAT: "upstream-chat"}),
        Backend("vllm", embed.base_url, {EMBED: "upstream-embed"}),
        Backend("vllm", think.base_url, {THINK: "upstream-think"}),
    )
    return Started(backends, get_json(f"{chat.base_url}/version")["version"], busy)


def start_transformers(stack: ExitStack, folder: Path) -> Started:
    models = hf_models(folder)
    server = stack.enter_context(servers.transformers(folder))
    backend = Backend("transformers", server.base_url, {CHAT: str(models / CHAT)})
    return Started((backend,), install.TRANSFORMERS, computes(server))


def start_infinity(stack: ExitStack, folder: Path) -> Started:
    models = hf_models(folder)
    named = {"upstream-embed": models / EMBED, "upstream-rerank": models / RERANK}
    server = stack.enter_context(servers.infinity(named, folder))
    names = {EMBED: "upstream-embed", RERANK: "upstream-rerank"}
    return Started((Backend("infinity", server.base_url, names),), install.INFINITY, computes(server))


def start_ollama(stack: ExitStack, folder: Path) -> Started:
    """Its own API, with models whose templates are Ollama's and models whose template is only in the GGUF."""
    models = gguf_models(folder)
    files = {CHAT: models.chat, EMBED: models.embed} | dict.fromkeys(GO_TEMPLATES, models.bare)
    named = {f"upstream-{name}": path for name, path in files.items()}
    templates = {f"upstream-{name}": text for name, text in GO_TEMPLATES.items()}
    server = stack.enter_context(servers.ollama(named, folder, templates=templates))

    def loaded(public: str) -> Mapping[str, Any]:
        listed: Any = get_json(f"{server.base_url}/api/ps")
        return next(model for model in listed["models"] if model["model"] == f"upstream-{public}:latest")

    names = {name: f"upstream-{name}:latest" for name in files}
    version = get_json(f"{server.base_url}/api/version")["version"]
    return Started((Backend("ollama", server.base_url, names),), version, computes(server), loaded)


def start_ollama_v1(stack: ExitStack, folder: Path) -> Started:
    """Its OpenAI-compatible side, as a backend of kind `openai`."""
    ollama = start_ollama(stack, folder)
    (backend,) = ollama.backends
    backends = (Backend("openai", f"{backend.base_url}/v1", backend.models),)
    return Started(backends, ollama.version, ollama.busy, ollama.loaded)


def start_tgi(stack: ExitStack, folder: Path) -> Started:
    """A stand-in: the real TGI can't be had from package indexes."""
    server = stack.enter_context(StandIn("tgi", folder))
    version = get_json(f"{server.base_url}/info")["version"]
    return Started((Backend("tgi", server.base_url, {CHAT: CHAT}),), version, lambda: bool(server.running()))


ENGINES: Mapping[str, Engine] = {
    "llama-server": Engine("llama-server", start_llama_server),
    "vllm": Engine("vLLM", start_vllm),
    "transformers": Engine("transformers serve", start_transformers),
    "infinity": Engine("Infinity", start_infinity),
    "ollama": Engine("Ollama", start_ollama),
    "ollama-v1": Engine("Ollama `/v1`", start_ollama_v1),
    "tgi": Engine("TGI (stand-in)", start_tgi),
}


def configuration(backends: tuple[Backend, ...]) -> str:
    """The gateway's YAML (JSON is YAML) for these backends."""
    named = {f"engine{number}": backend for number, backend in enumerate(backends)}
    models = {
        public: {"replicas": [{"backend": name, "model": own}]}
        for name, backend in named.items()
        for public, own in backend.models.items()
    }
    urls = {name: {"kind": backend.kind, "base_url": backend.base_url} for name, backend in named.items()}
    return json.dumps({"backends": urls, "models": models, "health": {"interval": INTERVAL}}, indent=2)


def start_subject(engine: Engine, stack: ExitStack, folder: Path) -> Subject:
    """Starts the engine and a gateway before it; both are closed with the stack."""
    started = engine.start(stack, folder)
    gateway = stack.enter_context(Gateway(configuration(started.backends), folder, env=engine.env))
    names = [name for backend in started.backends for name in backend.models]
    gateway.wait_models(*names)
    chat, embed = (name if name in names else names[0] for name in (CHAT, EMBED))
    rerank = RERANK if RERANK in names else embed
    think, insert = (name if name in names else chat for name in (THINK, INSERT))
    tools = tuple(name for name in (chat, TOOLS) if name in names)
    return Subject(
        gateway, started.version, started.busy, chat, embed, rerank, tools, think, insert, started.loaded
    )  # fmt: skip
