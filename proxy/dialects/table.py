"""Which dialect is spoken with which kind of engine: the one table that a new wire format is added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from proxy.dialects import ollama, openai, tgi
from proxy.dialects.base import Dialect, EngineKind, Plan, Request, Steps, Target


@dataclass(frozen=True, slots=True)
class Bilingual:
    """A `Dialect` for an engine that also speaks OpenAI: its own where `native` says so."""

    own: Dialect
    native: Callable[[Request, Target], bool]

    def encode(self, request: Request, target: Target) -> Plan | Steps:
        dialect = self.own if self.native(request, target) else openai.DIALECT
        return dialect.encode(request, target)


def _translated_by_ollama(request: Request, _: Target) -> bool:
    """What Ollama serves in its own API; the Responses and Messages APIs and images it has under /v1 only."""
    return request.endpoint in ("chat", "completions", "embeddings")


def _translated_by_tgi(request: Request, target: Target) -> bool:
    """Everything but token counting, unless its own /v1 is configured or the better choice."""
    return request.endpoint in ("chat", "completions") and not tgi.wants_openai(request, target)


DIALECTS: Final[Mapping[EngineKind, Dialect]] = MappingProxyType(
    {
        "vllm": openai.DIALECT,
        "sglang": openai.DIALECT,
        "llamacpp": openai.DIALECT,
        "transformers": openai.DIALECT,
        "infinity": openai.DIALECT,
        "tei": openai.DIALECT,
        "ollama": Bilingual(ollama.DIALECT, _translated_by_ollama),
        "tgi": Bilingual(tgi.DIALECT, _translated_by_tgi),
        "openai": openai.DIALECT,
    }
)
