"""OpenAI's request members as `parameters` of `/generate`: one row of the contract each, and what is refused.

`details` and `do_sample` are always said, as TGI means false by their absence. TGI takes bounds as exclusive and any
sampling parameter as a wish to sample, so neutral values are left out. Pure functions on a request that was read.
"""

from __future__ import annotations

from typing import Any, Final

from proxy.dialects.base import Target
from proxy.dialects.shared.openai_in import Asked, TextEndpoint, integer, number
from proxy.dialects.shared.tgi_schemas import grammar, leads_back
from proxy.errors import error
from proxy.wire import JsonObject

SEED_RANGE: Final = 2**64
MAX_LIMIT: Final = 2**32 - 1  # what TGI's integers hold
MAX_TOP_K: Final = 2**31 - 1

# Members that TGI has no word for -> values that change nothing.
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {"presence_penalty": (0,), "logit_bias": ({},), "min_p": (0,)}
NEUTRAL: Final[dict[TextEndpoint, dict[str, tuple[Any, ...]]]] = {
    "completions": _NEUTRAL,
    "chat": _NEUTRAL | {"reasoning_effort": ("none",)},
}
_OPENAI_MODE: Final = "Set `chat_mode: openai` (or auto) for that backend."


def parameters(asked: Asked, form: JsonObject | None) -> JsonObject:
    """All but the seed, which differs within a fan-out. `form`: the grammar. Raises `ApiError`."""
    out: JsonObject = {"details": True} | _sampling(asked)
    penalty = number(asked.members, "repetition_penalty")
    if penalty is not None and penalty <= 0:
        raise error("invalid_value", "`repetition_penalty` must be above 0.", param="repetition_penalty")
    out |= {
        "repetition_penalty": None if penalty == 1 else penalty,
        "frequency_penalty": asked.frequency_penalty or None,
        "stop": list(asked.stops) or None,
        "max_new_tokens": None if asked.limit is None else min(asked.limit, MAX_LIMIT),
        "top_n_tokens": asked.top or None,
        "grammar": form,
    }
    out |= _extensions(asked.members)
    return {name: value for name, value in out.items() if value is not None}


def seed(asked: Asked, shift: int) -> JsonObject:
    """Of one call of a fan-out."""
    return {} if asked.seed is None else {"seed": (asked.seed + shift) % SEED_RANGE}


def best_of(asked: Asked) -> JsonObject:
    """Completions only. Raises `ApiError`."""
    wanted = integer(asked.members, "best_of", low=1) or 1
    if wanted in (1, asked.n):
        return {}
    for clash, there in (("stream", asked.stream), ("seed", asked.seed is not None), ("n", asked.n > 1)):
        if there:
            raise error("unsupported_value", f"TGI can't have `best_of` together with `{clash}`.", param="best_of")
    return {} if is_greedy(asked) else {"best_of": min(wanted, MAX_LIMIT)}


def is_greedy(asked: Asked) -> bool:
    """Always the likeliest token: TGI has neither temperature 0 nor top_p 0."""
    return asked.temperature == 0 or asked.top_p == 0


def response_grammar(asked: Asked) -> JsonObject | None:
    """`response_format` of a chat. Raises `ApiError`."""
    return grammar(asked.members.get("response_format"))


def usable_tools(members: JsonObject) -> bool:
    """False where tools are as good as absent."""
    return bool(members.get("tools")) and members.get("tool_choice") != "none"


def forced_tool(members: JsonObject, target: Target) -> JsonObject | None:
    """The one tool that the model has to call; None without tools. Raises `ApiError` for a choice, which only TGI's own
    /v1 can leave to the model."""
    if not usable_tools(members):
        return None
    tools, choice = members["tools"], members.get("tool_choice")
    if not isinstance(tools, list) or not all(_is_function(tool) for tool in tools):
        raise error("unsupported_value", "TGI takes tools of type `function` only, each with a name.", param="tools")
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        tools = [tool for tool in tools if tool["function"]["name"] == choice["function"].get("name")]
        if not tools:
            raise error("invalid_value", "`tool_choice` names a function that isn't in `tools`.", param="tool_choice")
    elif not (choice == "required" and len(tools) == 1):
        raise error(
            "unsupported_parameter",
            f"Backend '{target.backend}' (TGI) can force one function in native mode, but not leave the choice to the "
            f"model. {_OPENAI_MODE}",
            param="tools",
        )
    function = {name: value for name, value in tools[0]["function"].items() if value is not None}
    schema = function.get("parameters")
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict) or leads_back(schema):
        raise error(
            "unsupported_value",
            "TGI needs `parameters` with `properties`, and without a $ref that leads back to itself, for a function.",
            param="tools",
        )
    return {"type": "function", "function": function}


def _sampling(asked: Asked) -> JsonObject:
    typical = number(asked.members, "typical_p")
    if typical == 0:
        raise error("invalid_value", "`typical_p` must be above 0.", param="typical_p")
    top_k = integer(asked.members, "top_k", low=-1)
    if is_greedy(asked):
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": asked.temperature,
        "top_p": None if asked.top_p == 1 else asked.top_p,
        "top_k": min(top_k, MAX_TOP_K) if top_k is not None and top_k > 0 else None,
        "typical_p": None if typical == 1 else typical,
    }


def _extensions(members: JsonObject) -> JsonObject:
    """TGI's own, sent when they say something."""
    watermark, truncate, adapter = members.get("watermark"), members.get("truncate"), members.get("adapter_id")
    if watermark and watermark is not True:
        raise error("invalid_value", "`watermark` must be true or false.", param="watermark")
    if adapter and not isinstance(adapter, str):
        raise error("invalid_value", "`adapter_id` must be a string.", param="adapter_id")
    kept = integer(members, "truncate", low=0) if truncate else None
    return {
        "watermark": watermark or None,
        "truncate": min(kept, MAX_LIMIT) if kept else None,
        "adapter_id": adapter or None,
    }


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])
