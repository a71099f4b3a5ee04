"""What the answers to a request have to know of it, and the words that whole and streamed answers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from proxy.dialects.base import Target
from proxy.dialects.shared.logprobs import Token, entry
from proxy.dialects.shared.openai_in import Asked, Child
from proxy.dialects.shared.tgi_errors import decode_tgi_event
from proxy.dialects.tgi.prompt import Prompt
from proxy.errors import ApiError, error
from proxy.wire import JsonObject

_REASONS: Final = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


@dataclass(frozen=True, slots=True)
class Job:
    """One client request and the calls it became. `tool`: the function that the model is made to call."""

    asked: Asked
    target: Target
    now: int
    prompts: tuple[Prompt, ...]
    children: tuple[Child, ...]
    tool: str | None = None
    echo: bool = False

    def event_error(self, told: JsonObject) -> ApiError:
        """An error object that came with status 200."""
        return decode_tgi_event(told, self.asked.endpoint, self.target.backend, tools=self.tool is not None)

    def nonsense(self) -> ApiError:
        return error(
            "upstream_invalid_response",
            f"Backend '{self.target.backend}' (TGI) answered something that is no generation. Check its base_url and "
            "version.",
        )

    def finish_reason(self, told: Any, *, stopped: bool = False) -> str:
        """OpenAI's word for TGI's. `stopped`: a stop string was found here."""
        reason = "stop" if stopped else finish_reason(told)
        return "tool_calls" if reason == "stop" and self.tool is not None else reason

    def entry(self, token: JsonObject, alternatives: Any) -> JsonObject:
        """A token's logprobs; `alternatives`: TGI's `top_tokens` for it, if any came."""
        others = alternatives if isinstance(alternatives, list) else ()
        tops = [Token(shown_text(one, special=True), one.get("logprob")) for one in others if isinstance(one, dict)]
        return entry(Token(shown_text(token), token.get("logprob")), tops, self.asked.top)


def finish_reason(told: Any) -> str:
    return _REASONS.get(told, "stop") if isinstance(told, str) else "stop"


def shown_text(token: JsonObject, *, special: bool = False) -> str:
    """The token's text; special ones show none, unless they are only an alternative."""
    text = token.get("text")
    return text if isinstance(text, str) and (special or token.get("special") is not True) else ""


def count(value: Any, otherwise: int) -> int:
    """A number of tokens, as far as TGI told it."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else otherwise


def dicts(value: Any) -> Sequence[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else ()
