"""What the stand-in says about its models, and its embeddings: vectors made of the text's own hash."""

import math
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from tests.standins.ollama_go import Refused
from tests.standins.ollama_models import JINJA, MODELS, Model, prompt_tokens
from tests.standins.ollama_runners import Runners

LENGTH = 64
_MODIFIED = "2026-11-21T05:56:54.318614409Z"


def _details(model: Model, *, sizes: bool) -> dict[str, Any]:
    details = {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]}
    details |= {"parameter_size": "77K", "quantization_level": "unknown"}
    return details | ({"context_length": model.context, "embedding_length": LENGTH} if sizes else {})


def _named(model: Model) -> dict[str, Any]:
    return {"name": f"{model.name}:latest", "model": f"{model.name}:latest"}


def _digest(model: Model) -> str:
    return sha256(model.name.encode()).hexdigest()


def tags(since: tuple[int, ...]) -> list[dict[str, Any]]:
    listed = []
    for model in MODELS.values():
        facts = {"modified_at": _MODIFIED, "size": 311223, "digest": _digest(model)}
        facts["details"] = _details(model, sizes=since >= JINJA)
        if since >= JINJA:
            facts["capabilities"] = list(model.can)
        listed.append(_named(model) | facts)
    return listed


def loaded(runners: Runners, since: tuple[int, ...]) -> list[dict[str, Any]]:
    listed = []
    for each in runners.loaded():
        facts = {"size": 6480199, "digest": _digest(each.model), "details": _details(each.model, sizes=False)}
        facts["expires_at"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(each.until)) + ".565428119Z"
        facts["size_vram"] = 0
        if since >= (0, 10):
            facts["context_length"] = each.state[0]
        listed.append(_named(each.model) | facts)
    return listed


def shown(model: Model, since: tuple[int, ...]) -> dict[str, Any]:
    info = {"general.architecture": "llama", "general.parameter_count": 76864}
    info |= {"llama.context_length": model.context, "llama.embedding_length": LENGTH}
    made: dict[str, Any] = {"modelfile": f"FROM {model.name}:latest\n", "template": "{{ .Prompt }}"}
    if not model.gguf_template:
        made["parameters"] = 'stop                           "<|im_end|>"'
    made |= {
        "details": _details(model, sizes=False),
        "model_info": info,
        "tensors": [{"name": "output.weight", "type": "F32", "shape": [LENGTH, 375]}],
    }
    if since >= (0, 6, 4):
        made["capabilities"] = list(model.capabilities(since))
    return made | {"modified_at": _MODIFIED}


def vector(text: str, *, normal: bool, length: int = LENGTH) -> list[float]:
    digest = sha256(text.encode()).digest() + sha256(text[::-1].encode() + b"'").digest()
    raw = [byte / 32 - 4 for byte in digest][:length]
    size = math.sqrt(sum(each * each for each in raw)) if normal else 1.0
    return [round(each / size, 8) for each in raw]


def embedded(
    texts: list[str], body: Mapping[str, Any], num_ctx: int, since: tuple[int, ...]
) -> tuple[list[list[float]], int]:
    """The vectors and the tokens read. Raises Refused."""
    front = 1 if since >= JINJA else 0
    sizes = [prompt_tokens(text) + front for text in texts]
    if max(sizes) > num_ctx and body.get("truncate", True) is False:
        long = "the input length exceeds the context length"
        raise Refused(400, long if since >= JINJA else "input exceeds maximum context length")
    wanted = body.get("dimensions", 0) if since >= (0, 11, 11) else 0
    length = wanted if 0 < wanted < LENGTH else LENGTH
    return [vector(text, normal=True, length=length) for text in texts], sum(min(size, num_ctx) for size in sizes)
