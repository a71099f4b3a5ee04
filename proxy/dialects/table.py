"""Which dialect is spoken with which kind of engine: the one table that a new wire format is added to."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from proxy.dialects import openai
from proxy.dialects.base import Dialect, EngineKind

DIALECTS: Final[Mapping[EngineKind, Dialect]] = MappingProxyType(
    {
        "vllm": openai.DIALECT,
        "sglang": openai.DIALECT,
        "llamacpp": openai.DIALECT,
        "transformers": openai.DIALECT,
        "infinity": openai.DIALECT,
        "tei": openai.DIALECT,
        "ollama": openai.DIALECT,
        "tgi": openai.DIALECT,
        "openai": openai.DIALECT,
    }
)
