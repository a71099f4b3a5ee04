"""Ollama: a server of its own for one model, which it pulls if its store lacks it, and then holds.

It shares the user's store with any other Ollama (`OLLAMA_MODELS` in `env` names another), so it must not prune there,
and no copy of the model under the public name is left in it: requests name the model as Ollama knows it. It has no
keys. A context length is told by the environment.
"""

from __future__ import annotations

from typing import Final

from launchers.engines.base import (
    DOWNLOADING,
    LOADING,
    Command,
    Engine,
    Image,
    Install,
    Place,
    Question,
    Ready,
    is_path,
)
from launchers.spec import EngineSpec, SpecError

NO_GPU: Final = "-1"  # an invalid number: it ignores an empty list


def command(spec: EngineSpec, place: Place) -> Command:
    if is_path(str(spec.model)):
        raise SpecError(
            f"{spec.name}: Ollama takes a model's name (`qwen2:7b`, `hf.co/ORG/REPO:QUANT`), not the file "
            f"{spec.model!r}; `kind: llamacpp` runs a GGUF file.",
            option="model",
        )
    authority = f"[{place.host}]" if ":" in place.host else place.host
    env = {
        "OLLAMA_HOST": f"{authority}:{place.port}",
        "OLLAMA_KEEP_ALIVE": "-1",  # the launcher unloads it, nobody else
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NOPRUNE": "1",
    }
    if spec.max_model_len is not None:
        env["OLLAMA_CONTEXT_LENGTH"] = str(spec.max_model_len)
    if spec.device == "cpu":
        env |= {"ROCR_VISIBLE_DEVICES": NO_GPU, "GGML_VK_VISIBLE_DEVICES": NO_GPU}
    return Command(place.program, env)


def prepare(spec: EngineSpec) -> tuple[Question, ...]:
    """https://github.com/ollama/ollama/blob/main/docs/api.md: a generation without a prompt loads the model, one on an
    embedding model is refused."""
    model = str(spec.model)
    load: dict[str, object] = {"model": model, "stream": False}
    if spec.embedding:
        load = {"model": model, "input": " "}
    return (
        Question(
            "POST", "/api/pull", {"model": model}, stream=True, phase=DOWNLOADING, unless="/api/tags", model=model
        ),
        Question("POST", "/api/embed" if spec.embedding else "/api/generate", load, phase=LOADING),
    )


ENGINE: Final = Engine(
    kind="ollama",
    title="Ollama",
    program=("ollama", "serve"),
    options=frozenset(("max_model_len", "embedding")),
    command=command,
    ready=lambda spec: Ready("/api/version", "/api/tags"),
    install=Install("see https://ollama.com/download, or set `image: ollama/ollama`"),
    image=Image(("serve",), caches=("illm-ollama:/root/.ollama",)),
    listed=lambda spec: spec.model,
    prepare=prepare,
)
