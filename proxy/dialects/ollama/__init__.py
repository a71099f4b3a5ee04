"""The dialect of Ollama's native API: `/api/chat`, `/api/generate`, `/api/embed`.

Native rather than Ollama's own /v1, which hides errors inside streams and can't pass options. What Ollama serves
only under /v1 (responses, messages, images) goes there by the OpenAI dialect; the table of dialects decides that.
"""

from __future__ import annotations

from typing import Final

from proxy.dialects.base import Plan, Request, Steps, Target
from proxy.dialects.ollama.embeddings import embed
from proxy.dialects.ollama.members import plain_target
from proxy.dialects.ollama.request import chat, completions
from proxy.dialects.shared.openai_in import load_members
from proxy.errors import error


class Ollama:
    """A `Dialect`; stateless."""

    def encode(self, request: Request, target: Target) -> Plan | Steps:
        if request.endpoint == "chat":
            return chat(request, target)
        if request.endpoint == "completions":
            return completions(request, target)
        if request.endpoint == "embeddings":
            return embed(load_members(request, plain_target(target)), target)
        raise error(
            "unsupported_endpoint",
            f"Ollama (backend '{target.backend}') has no native {request.endpoint}. Ask a model on another engine.",
            param="model",
        )


DIALECT: Final = Ollama()
