"""Which engine serves which endpoint, and under which path. Tables only.

`{v1}` is what that server puts before OpenAI's paths: `/v1`, or nothing where discovery found it so (Infinity). An
endpoint that is absent here is answered with `CapabilityNotSupported` without asking the engine; one that is present
may still be missing in an older version or switched off, which the engine's own 404 or 501 then says.
"""

from __future__ import annotations

from typing import Final

from proxy.dialects.base import Endpoint, EngineKind, Target
from proxy.errors import error

_TEXT: Final[dict[Endpoint, str]] = {
    "chat": "{v1}/chat/completions",
    "completions": "{v1}/completions",
}
_ANTHROPIC: Final[dict[Endpoint, str]] = {
    "messages": "{v1}/messages",
    "count_tokens": "{v1}/messages/count_tokens",
}
_AUDIO_IN: Final[dict[Endpoint, str]] = {
    "transcriptions": "{v1}/audio/transcriptions",
    "translations": "{v1}/audio/translations",
}
_MEDIA_OUT: Final[dict[Endpoint, str]] = {
    "speech": "{v1}/audio/speech",
    "images": "{v1}/images/generations",
    "image_edits": "{v1}/images/edits",
}
_TOKENS: Final[dict[Endpoint, str]] = {"tokenize": "/tokenize", "detokenize": "/detokenize"}
_EMBEDDINGS: Final[dict[Endpoint, str]] = {"embeddings": "{v1}/embeddings"}
_RESPONSES: Final[dict[Endpoint, str]] = {"responses": "{v1}/responses"}
_RANK: Final[dict[Endpoint, str]] = {"rerank": "{v1}/rerank", "score": "{v1}/score"}
_VECTORS: Final[dict[Endpoint, str]] = {"classify": "/classify", "pooling": "/pooling"}

PATHS: Final[dict[EngineKind, dict[Endpoint, str]]] = {
    "vllm": _TEXT | _RESPONSES | _EMBEDDINGS | _RANK | _ANTHROPIC | _AUDIO_IN | _MEDIA_OUT | _TOKENS | _VECTORS,
    "sglang": _TEXT
    | _RESPONSES
    | _EMBEDDINGS
    | _RANK
    | _ANTHROPIC
    | _AUDIO_IN
    | _MEDIA_OUT
    | _TOKENS
    | {"classify": "{v1}/classify"},
    "llamacpp": _TEXT
    | _RESPONSES
    | _EMBEDDINGS
    | _ANTHROPIC
    | _TOKENS
    | {"rerank": "{v1}/rerank", "infill": "/infill", "transcriptions": "{v1}/audio/transcriptions"},
    "transformers": _TEXT | _RESPONSES | {"transcriptions": "{v1}/audio/transcriptions"},
    "infinity": {"embeddings": "{v1}/embeddings", "rerank": "{v1}/rerank", "classify": "{v1}/classify"},
    "tei": {
        "embeddings": "/v1/embeddings",
        "rerank": "/rerank",
        "tokenize": "/tokenize",
        "detokenize": "/decode",
        "classify": "/predict",
    },
    "ollama": _TEXT | _RESPONSES | _EMBEDDINGS | _ANTHROPIC | {"images": "{v1}/images/generations"},
    "tgi": _TEXT | {"tokenize": "/tokenize"},
    "openai": _TEXT
    | _RESPONSES
    | _EMBEDDINGS
    | _RANK
    | _ANTHROPIC
    | _AUDIO_IN
    | _MEDIA_OUT
    | _TOKENS
    | _VECTORS
    | {"infill": "/infill"},
}

# How people call these programs, and the endpoints, in messages.
TITLES: Final[dict[EngineKind, str]] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "llamacpp": "llama.cpp",
    "transformers": "transformers serve",
    "infinity": "Infinity",
    "tei": "TEI",
    "ollama": "Ollama",
    "tgi": "TGI",
    "openai": "an OpenAI-compatible server",
}
ABILITIES: Final[dict[Endpoint, str]] = {
    "chat": "chat",
    "completions": "text completion",
    "embeddings": "embeddings",
    "responses": "the Responses API",
    "messages": "the Messages API",
    "count_tokens": "token counting of the Messages API",
    "rerank": "reranking",
    "score": "scoring",
    "transcriptions": "audio transcription",
    "translations": "audio translation",
    "speech": "speech",
    "images": "image generation",
    "image_edits": "image editing",
    "tokenize": "tokenizing",
    "detokenize": "detokenizing",
    "infill": "infilling",
    "classify": "classification",
    "pooling": "pooling",
}


def path_for(endpoint: Endpoint, target: Target) -> str:
    """The upstream path. Raises `CapabilityNotSupported`, naming the engines that can."""
    template = PATHS[target.kind].get(endpoint)
    if template is None:
        able = ", ".join(TITLES[k] for k, paths in PATHS.items() if endpoint in paths and k != "openai")
        raise error(
            "unsupported_endpoint",
            f"{TITLES[target.kind]} (backend '{target.backend}', model '{target.public}') does not serve "
            f"{ABILITIES[endpoint]}. Engines that do: {able}.",
            param="model",
        )
    return template.replace("{v1}", target.prefix)


def lacks(endpoint: Endpoint, target: Target) -> str:
    """What to say when a healthy engine answers that it has no such route."""
    return (
        f"Model '{target.public}' on backend '{target.backend}' ({TITLES[target.kind]}) does not serve "
        f"{ABILITIES[endpoint]}. Ask a model that does, or start the engine with that ability switched on."
    )
