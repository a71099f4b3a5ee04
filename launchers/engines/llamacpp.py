"""llama.cpp: its own `llama-server`, or llama-cpp-python's server where `command` ends with `llama_cpp.server`.

A model that looks like `ORG/REPO[:QUANT]` is fetched from Hugging Face; anything else is the path of a GGUF file.
llama-cpp-python's server prefers HOST and PORT in the environment to its options, and takes its key from there.
"""

from __future__ import annotations

import re
from typing import Final

from launchers.engines.base import (
    DOWNLOADING,
    LISTENING,
    LOADING,
    WARMING,
    Command,
    Engine,
    Image,
    Install,
    Phase,
    Place,
    Ready,
    is_path,
    words,
)
from launchers.spec import EngineSpec

PYTHON: Final = "llama_cpp.server"
ALL_LAYERS: Final = 999  # its newer versions take -1 for "as many as fit", its older ones don't know the word "all"
QUANT: Final = "Q4_K_M"  # what llama-server takes where none is named
_REPO: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+))?")


def command(spec: EngineSpec, place: Place) -> Command:
    return (_python if place.program[-1:] == (PYTHON,) else _server)(spec, place)


def ready(spec: EngineSpec) -> Ready:
    if spec.command[-1:] == (PYTHON,):  # it has no health path, and listens only when the model is loaded
        return Ready("/v1/models", "/v1/models")
    return Ready("/health", "/v1/models")


def _repo(model: str) -> re.Match[str] | None:
    return None if is_path(model) else _REPO.fullmatch(model)


def _server(spec: EngineSpec, place: Place) -> Command:
    model = str(spec.model)
    argv = words(
        ("--hf-repo" if _repo(model) else "--model", model),
        ("--alias", spec.public),
        ("--host", place.host),
        ("--port", place.port),
        ("--mmproj", spec.mmproj),
        ("--ctx-size", spec.max_model_len),
        ("--gpu-layers", ALL_LAYERS if spec.gpu_layers == -1 else spec.gpu_layers),
        ("--embeddings", spec.embedding),
        ("--device", "none" if spec.device == "cpu" else None),
    )
    env = {"LLAMA_API_KEY": spec.api_key} if spec.api_key is not None else {}
    return Command((*place.program, *argv), env)


def _python(spec: EngineSpec, place: Place) -> Command:
    model = str(spec.model)
    repo = _repo(model)
    argv = words(
        ("--hf_model_repo_id", repo["repo"] if repo else None),
        ("--model", f"*{repo['quant'] or QUANT}.gguf" if repo else model),
        ("--model_alias", spec.public),
        ("--host", place.host),
        ("--port", place.port),
        ("--clip_model_path", spec.mmproj),
        ("--n_ctx", spec.max_model_len),
        ("--n_gpu_layers", 0 if spec.device == "cpu" else spec.gpu_layers),
        ("--embedding", "true" if spec.embedding else None),
    )
    env = {"HOST": place.host, "PORT": str(place.port)}
    if spec.api_key is not None:
        env["API_KEY"] = spec.api_key
    return Command((*place.program, *argv), env)


ENGINE: Final = Engine(
    kind="llamacpp",
    title="llama.cpp",
    program=("llama-server",),
    options=frozenset(("mmproj", "max_model_len", "gpu_layers", "embedding", "api_key")),
    command=command,
    ready=ready,
    install=Install(
        "`brew install llama.cpp`, your distribution's llama.cpp package, or a release from "
        "https://github.com/ggml-org/llama.cpp/releases; or set `image: ghcr.io/ggml-org/llama.cpp:server`"
    ),
    image=Image(
        # its newer versions keep what they fetch where Hugging Face's own programs do
        caches=("illm-llamacpp:/root/.cache/llama.cpp", "illm-huggingface:/root/.cache/huggingface"),
        env={"LLAMA_CACHE": "/root/.cache/llama.cpp"},
    ),
    phases=(
        Phase(re.compile(r"trying to download model|[Dd]ownloading (?:from|model)"), DOWNLOADING),
        Phase(re.compile(r"load_model: loading model|loading model from"), LOADING),
        Phase(re.compile(r"warming up the model|load_model: initializing"), WARMING),
        Phase(re.compile(r"server is listening|listening on http"), LISTENING),
    ),
)
