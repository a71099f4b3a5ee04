"""OpenAI's request members in Ollama's words: `options`, `think`, `format` and what else stands beside the messages.

Options come from three places, the later wins: the backend's configuration, the request's own `options`, OpenAI's
members. A member that nobody here knows goes along as it is, and Ollama ignores what it doesn't know either.
Not here: messages and tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from proxy.dialects.base import Target
from proxy.dialects.shared.openai_in import Asked, version_of
from proxy.errors import error
from proxy.wire import JsonObject

ENGINE: Final = "Ollama"

# Ollama's options that a request may name at its top, as they are. `top_k` and the penalty have rows of their own.
_SAME: Final = (
    "min_p", "typical_p", "num_ctx", "repeat_last_n", "num_predict", "num_keep", "num_batch", "num_gpu", "main_gpu",
    "use_mmap", "num_thread", "draft_num_predict",
)  # fmt: skip
_BESIDE: Final = ("keep_alive", "truncate", "shift")
# Of a backend's configured options these are not Ollama's `options`: they stand beside them, or are the proxy's own.
_NOT_OPTIONS: Final = frozenset((
    *_BESIDE, "think", "reasoning_effort", "reasoning", "chat_template_kwargs", "response_format", "strict_context",
    "completions_raw", "max_n", "max_prompts",
))  # fmt: skip
# Everything that has a meaning here, or none anywhere in Ollama: all else goes along as it is.
_KNOWN: Final = frozenset((
    *_SAME, *_NOT_OPTIONS, "model", "messages", "prompt", "input", "stream", "stream_options", "options", "format",
    "temperature", "top_p", "top_k", "repetition_penalty", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "seed", "stop", "logit_bias", "n", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "tools",
    "tool_choice", "parallel_tool_calls", "functions", "function_call", "audio", "modalities", "raw", "suffix", "echo",
    "best_of", "encoding_format", "dimensions", "embedding_model", "framework", "user", "safety_identifier", "metadata",
    "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "verbosity",
    "prediction", "moderation", "web_search_options",
))  # fmt: skip

_LEVELS: Final[dict[str, bool | str]] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
_SEED_BITS: Final = 0x7FFFFFFF


# -- options -------------------------------------------------------------------------------------------------


def plain_target(target: Target) -> Target:
    """The target without what its configuration says of Ollama's `options`, which a request's own outrank."""
    return replace(target, options={name: value for name, value in target.options.items() if name in _NOT_OPTIONS})


def base_options(members: Mapping[str, Any], target: Target) -> JsonObject:
    """What holds where OpenAI's members are silent: the configuration's options, then the request's."""
    configured = {name: value for name, value in target.options.items() if name not in _NOT_OPTIONS}
    nested = configured.pop("options", None)
    limit = configured.pop("max_completion_tokens", configured.pop("max_tokens", None))
    if limit is not None:
        configured.setdefault("num_predict", limit)
    if isinstance(configured.get("stop"), str):
        configured["stop"] = [configured["stop"]]
    configured |= _renamed(configured)
    configured.pop("repetition_penalty", None)
    given = members.get("options", {})
    if not isinstance(given, dict):
        raise error("invalid_value", "`options` must be an object of Ollama's options.", param="options")
    return configured | (nested if isinstance(nested, dict) else {}) | given


def options(asked: Asked, target: Target, shift: int = 0) -> JsonObject:
    """Ollama's `options`; `shift` is added to the seed."""
    members = asked.members
    found: JsonObject = {
        "num_predict": asked.limit,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "frequency_penalty": asked.frequency_penalty,
        "presence_penalty": asked.presence_penalty,
        "seed": None if asked.seed is None else fold_seed(asked.seed + shift),
        "stop": list(asked.stops) or None,
    }
    rows = {name: value for name, value in found.items() if value is not None}
    same = {name: members[name] for name in _SAME if name in members}
    return base_options(members, target) | same | _renamed(members) | rows


def fold_seed(seed: int) -> int:
    """A seed that Ollama takes for one: -1 would mean a random one."""
    return seed & _SEED_BITS


def _renamed(members: Mapping[str, Any]) -> JsonObject:
    out: JsonObject = {}
    if "top_k" in members:
        out["top_k"] = 0 if members["top_k"] == -1 else members["top_k"]
    penalty = members.get("repetition_penalty", members.get("repeat_penalty"))
    if penalty is not None:
        out["repeat_penalty"] = penalty
    return out


# -- beside them ---------------------------------------------------------------------------------------------


def common(asked: Asked, target: Target) -> JsonObject:
    """Members of `/api/chat` and `/api/generate` alike, `options` not among them."""
    members = asked.members
    out = (
        unknown(members)
        | {"model": target.model, "stream": asked.stream}
        | _beside(members, target, ("truncate", "shift"))
    )
    if asked.logprobs:
        out["logprobs"] = True
        if asked.top:
            out["top_logprobs"] = asked.top
    wanted = output_format(members["response_format"]) if "response_format" in members else members.get("format")
    return out if wanted is None else out | {"format": wanted}


def embedding_members(members: Mapping[str, Any], target: Target) -> JsonObject:
    """Members of an embeddings request but for its input."""
    beside = _beside(members, target, ("truncate",))
    beside.pop("shift", None)
    found = base_options(members, target)
    out = unknown(members) | {"model": target.model} | beside
    return out | {"options": found} if found else out


def unknown(members: Mapping[str, Any]) -> JsonObject:
    """Members without a meaning here. Names are compared as Ollama does it, which takes `Model` for `model`."""
    return {name: value for name, value in members.items() if name.casefold() not in _KNOWN}


def think(members: Mapping[str, Any], target: Target) -> Any:
    """Ollama's `think`, or None where it isn't to be sent."""
    if "think" in members:
        return members["think"]
    effort = members.get("reasoning_effort")
    reasoning = members.get("reasoning")
    if effort is None and isinstance(reasoning, dict):
        effort = reasoning.get("effort")
    if effort is not None:
        return think_level(effort, target.version, target.model)
    kwargs = members.get("chat_template_kwargs")
    enabled = kwargs.get("enable_thinking") if isinstance(kwargs, dict) else None
    return enabled if isinstance(enabled, bool) else None


def think_level(effort: Any, version: str | None, model: str) -> bool | str | None:
    """`reasoning_effort` as that version of Ollama takes it for that model. Raises `ApiError`."""
    if not isinstance(effort, str) or effort not in _LEVELS:
        raise error(
            "invalid_value", f"`reasoning_effort` must be one of {', '.join(_LEVELS)}.", param="reasoning_effort"
        )
    server = version_of(version)
    level = _LEVELS[effort]
    if server is None or server >= (0, 22) or level is False:
        return None if server is not None and server < (0, 9) else level
    if server < (0, 9):
        return None
    if server < (0, 17, 7) and not model.rpartition("/")[2].lower().startswith("gpt-oss"):
        return True
    return "high" if level == "max" else level


def output_format(wanted: Any) -> Any:
    """`response_format` as Ollama's `format`, None where any text will do. Raises `ApiError`."""
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _schema(wanted.get("schema"))
    if kind == "json_schema":
        described = wanted.get("json_schema")
        if described is not None and not isinstance(described, dict):
            raise _bad_format("`json_schema` must be an object")
        return _schema((described or {}).get("schema"))
    raise error(
        "unsupported_value",
        "Ollama knows the response_format types text, json_object and json_schema.",
        param="response_format",
    )


def _schema(schema: Any) -> Any:
    if schema is None:
        return "json"
    if not isinstance(schema, dict):
        raise _bad_format("its schema must be a JSON schema object")
    return schema


def _bad_format(what: str) -> Exception:
    return error("invalid_value", f"In `response_format`, {what}.", param="response_format")


def _beside(members: Mapping[str, Any], target: Target, strict: tuple[str, ...]) -> JsonObject:
    """`strict`: what is false where the backend must refuse a prompt that is too long instead of cutting it."""
    cut = dict.fromkeys(strict, False) if target.options.get("strict_context") is True else {}
    return cut | {name: members[name] for name in _BESIDE if name in members}
