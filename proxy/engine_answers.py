"""What engines answer about themselves, read into our words: lists of models, versions, who it is.

No I/O: `discovery` asks, this file understands. Every function takes any JSON value, None included. Answers come
from programs of many versions, so what has the wrong type is left out, and only a body that is no list at all is
refused (None).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from proxy.dialects.base import EngineKind

MAX_MODELS: Final = 2000
MAX_NAME: Final = 512  # characters of a model's name
MAX_SAID: Final = 120  # characters of an engine's own words in a message


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as its engine lists it. `capabilities` are the engine's own words and may be incomplete (Ollama's
    list lacks `tools` where the template is in the GGUF): hints, no ground to refuse a request."""

    id: str
    max_model_len: int | None = None
    owned_by: str = ""
    created: int | None = None
    capabilities: tuple[str, ...] = ()


State = Literal["ready", "loading", "down"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What one look found. `detail` is for people, empty when there is nothing to say, and never holds a key."""

    state: State
    kind: EngineKind | None
    prefix: str = "/v1"  # before OpenAI's paths; empty for Infinity as it starts by default
    version: str | None = None
    models: tuple[ModelInfo, ...] = ()
    detail: str = ""
    gateway: bool = False  # another illm, or this one: routing to it could run in a circle


def openai_models(value: Any) -> tuple[ModelInfo, ...] | None:
    """OpenAI's list. llama-server's carries capabilities and the context beside it."""
    if not isinstance(value, dict) or "data" not in value or not isinstance(value["data"], list | None):
        return None
    said = {str(one.get("name")): one for one in _objects(value.get("models"))}
    found = []
    for entry in _objects(value["data"]):
        meta = entry.get("meta")
        length = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
        able = entry.get("capabilities") or said.get(str(entry.get("id")), {}).get("capabilities")
        found.append(_model(entry.get("id"), length, entry.get("owned_by"), entry.get("created"), able))
    return _unique(found)


def ollama_models(value: Any) -> tuple[ModelInfo, ...] | None:
    """`/api/tags`. The context it tells is the model's, not the one Ollama runs it with: left out."""
    if not isinstance(value, dict) or "models" not in value or not isinstance(value["models"], list | None):
        return None
    found = []
    for entry in _objects(value["models"]):
        name = entry.get("model") or entry.get("name")
        owner, slash, _ = name.rpartition("/") if isinstance(name, str) else ("", "", "")
        created = _seconds(entry.get("modified_at"))
        found.append(_model(name, None, owner if slash else "library", created, entry.get("capabilities")))
    return _unique(found)


def ollama_shown(value: Any, listed: ModelInfo) -> ModelInfo | None:
    """`/api/show`: the model's own context length, and the capabilities that are to be trusted."""
    info = value.get("model_info") if isinstance(value, dict) else None
    if not isinstance(info, dict):
        return None
    length = info.get(f"{info.get('general.architecture')}.context_length")
    created = listed.created if listed.created is not None else _seconds(value.get("modified_at"))
    return _model(listed.id, length, listed.owned_by, created, value.get("capabilities"))


def ollama_contexts(value: Any) -> dict[str, int]:
    """`/api/ps`: the context that each loaded model really has."""
    found = {}
    for entry in _objects(value.get("models") if isinstance(value, dict) else None):
        name, length = entry.get("model") or entry.get("name"), entry.get("context_length")
        if isinstance(name, str) and isinstance(length, int) and not isinstance(length, bool) and length > 0:
            found[name] = length
    return found


_TEI_TASKS: Final = {"embedding": "embed", "reranker": "rerank", "classifier": "classify"}


def tgi_models(value: Any) -> tuple[ModelInfo, ...] | None:
    if not isinstance(value, dict):
        return None
    return _unique([_model(value.get("model_id"), value.get("max_total_tokens"), "tgi", None, None)]) or None


def tei_models(value: Any) -> tuple[ModelInfo, ...] | None:
    if not isinstance(value, dict):
        return None
    task = value.get("model_type")
    able = [_TEI_TASKS.get(name, name) for name in task] if isinstance(task, dict) else None
    name = value.get("served_model_name") or value.get("model_id")
    return _unique([_model(name, value.get("max_input_length"), "tei", None, able)]) or None


def version(value: Any) -> str | None:
    """What the engine calls itself: `version` of most, `build_info` of llama-server's `/props`."""
    if not isinstance(value, dict):
        return None
    told = value.get("version") or value.get("build_info")
    return told if isinstance(told, str) else None


def message(value: Any, secret: str | None) -> str:
    """The words in an error body of any engine's shape, short and on one line; empty where there are none. `secret`
    is blotted out, should the engine repeat it."""
    said = value
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and name in said:
            said = said[name]
    if not isinstance(said, str):
        return ""
    if secret:
        said = said.replace(secret, "***")
    said = " ".join("".join(c if c.isprintable() else " " for c in said[: 8 * MAX_SAID]).split())
    return said if len(said) <= MAX_SAID else said[:MAX_SAID] + "…"


# What servers call themselves in `owned_by`. TGI, transformers and LM Studio's older versions name the model's owner.
OWNERS: Final[dict[str, EngineKind]] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "infinity": "infinity",
    "library": "ollama",
    "organization_owner": "openai",  # LM Studio
    "koboldcpp": "openai",  # which also plays Ollama
    "illm-demo": "openai",
}


def is_gateway(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("providers"), list) and "framework" in value


def ollama_clue(value: Any) -> EngineKind | None:
    return "ollama" if version(value) else None


def hugging_face_clue(value: Any) -> EngineKind | None:
    if not isinstance(value, dict) or not isinstance(value.get("model_id"), str):
        return None
    if value.get("router") == "text-generation-router" or "max_total_tokens" in value:
        return "tgi"
    return "tei" if "tokenization_workers" in value or isinstance(value.get("model_type"), dict) else None


def transformers_clue(value: Any) -> EngineKind | None:
    if not isinstance(value, dict) or not isinstance(paths := value.get("paths"), dict):
        return None
    info = value.get("info")
    unnamed = isinstance(info, dict) and info.get("title") == "FastAPI"
    if not unnamed or "/v1/chat/completions" not in paths or "/version" in paths:
        return None
    return "transformers" if "/load_model" in paths or "/v1/responses" in paths else None


CLUES: Final[tuple[tuple[str, Callable[[Any], EngineKind | None]], ...]] = (
    ("/api/version", ollama_clue),
    ("/info", hugging_face_clue),
    ("/openapi.json", transformers_clue),
)


def _objects(entries: Any) -> Iterator[dict[str, Any]]:
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            yield entry


def _model(name: Any, length: Any, owner: Any, created: Any, able: Any) -> ModelInfo | None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():  # it is put into logs
        return None
    return ModelInfo(
        id=name,
        max_model_len=length if type(length) is int and length > 0 else None,
        owned_by=owner if isinstance(owner, str) else "",
        created=int(created) if isinstance(created, int | float) and 0 < created < 2**53 else None,
        capabilities=tuple(one for one in able if isinstance(one, str)) if isinstance(able, list) else (),
    )


def _unique(found: Iterable[ModelInfo | None]) -> tuple[ModelInfo, ...]:
    """The first of each name, up to `MAX_MODELS`."""
    models: dict[str, ModelInfo] = {}
    for model in found:
        if model is not None and len(models) < MAX_MODELS:
            models.setdefault(model.id, model)
    return tuple(models.values())


def _seconds(stamp: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(stamp).timestamp())
    except (TypeError, ValueError, OverflowError):
        return None
