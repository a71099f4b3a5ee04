"""Requests to TGI's own /v1: what it refuses, misreads or quietly ignores is put right, dropped or refused here.

TGI's OpenAI surface is close to OpenAI's and wrong in detail: a null is an error, the model name a LoRA id, a penalty
gets 2 added, an empty list of tools invents one, and a recursive schema kills the whole server.

Pure functions on parsed bodies. Not here: messages (`tgi_messages`), schemas (`tgi_schemas`), answers (`tgi_reply`).
"""

from __future__ import annotations

from typing import Any, Final

from proxy.dialects.base import Endpoint, Target
from proxy.dialects.shared.openai_in import (
    is_integer,
    number,
    output_limit,
    stop_strings,
    version_of,
    wants_usage,
    with_defaults,
)
from proxy.dialects.shared.tgi_messages import messages_for_tgi
from proxy.dialects.shared.tgi_schemas import grammar, tool_for_tgi
from proxy.errors import error
from proxy.wire import JsonObject

SEED_RANGE: Final = 2**64
DEFAULT_MAX_TOKENS: Final = 100  # TGI's own before 3.0
DEFAULT_BATCH: Final = 4  # max_client_batch_size, as TGI starts

# Settings of the backend in `Target.options` that are no members of a request, and members for the proxy only.
_LOCAL: Final = frozenset(
    (
        "adapter_id",
        "vision",
        "default_max_tokens",
        "max_client_batch_size",
        "framework",
        "embedding_model",
    )
)

# Members that TGI's /v1 has no word for -> values that change nothing, which go silently.
_DROPPED: Final[dict[Endpoint, dict[str, tuple[Any, ...]]]] = {
    "chat": {
        "presence_penalty": (0,),  # TGI makes it a repetition penalty of value + 2
        "logit_bias": ({},),
        "top_k": (0, -1),
        "min_p": (0,),
        "typical_p": (1,),
        "repetition_penalty": (1,),
        "reasoning_effort": ("none",),
        "watermark": (False,),
        "truncate": (0, False),
    },
    "completions": {
        "presence_penalty": (0,),
        "logit_bias": ({},),
        "top_k": (0, -1),
        "min_p": (0,),
        "typical_p": (1,),
        "watermark": (False,),
        "truncate": (0, False),
    },
}


def encode(endpoint: Endpoint, body: JsonObject, target: Target) -> tuple[JsonObject, tuple[str, ...]]:
    """The body for TGI's own `/v1/chat/completions` or `/v1/completions`, and the members that were dropped although
    they would have changed something. `body` is left as it is. Raises `ApiError` for what TGI can't serve."""
    if endpoint not in ("chat", "completions"):
        raise error(
            "unsupported_endpoint", f"TGI (backend '{target.backend}') serves chat and completions only.", param="model"
        )
    body = with_defaults(body, target)
    sent = {name: value for name, value in body.items() if name not in _LOCAL}
    sent["model"] = body.get("adapter_id") or "tgi"  # any other name is taken for a LoRA adapter
    _set_limit(endpoint, sent, target)
    dropped = _sampling(endpoint, sent)
    _set(sent, "stop", stop_strings(body) or None)
    sent.pop("n", None)  # more than one is `tgi_fan_out`'s
    if not wants_usage(body):
        sent.pop("stream_options", None)
    if endpoint == "chat":
        sent["messages"] = messages_for_tgi(
            sent.get("messages"), vision=target.options.get("vision") is True, backend=target.backend
        )
        _chat(sent, target)
    else:
        _completion(sent, target)
    if dropped and target.strict_params:
        raise error(
            "unsupported_parameter",
            f"TGI (backend '{target.backend}') has no `{dropped[0]}`, and strict_params is set.",
            param=dropped[0],
        )
    return sent, dropped


def has_tools_only(body: JsonObject) -> bool:
    """True if a grammar that TGI complains of can only come from the tools."""
    form = body.get("response_format")
    plain = not isinstance(form, dict) or form.get("type") == "text"
    return bool(body.get("tools")) and plain


# -- members of both endpoints ---------------------------------------------------------------------------------


def _set_limit(endpoint: Endpoint, sent: JsonObject, target: Target) -> None:
    limit = output_limit(endpoint, sent)
    version = version_of(target.version)
    if limit is None and version is not None and version < (3,):
        limit = target.options.get("default_max_tokens") or DEFAULT_MAX_TOKENS
    sent.pop("max_completion_tokens", None)
    _set(sent, "max_tokens", limit)


def _sampling(endpoint: Endpoint, sent: JsonObject) -> tuple[str, ...]:
    """Bounds, TGI's exclusive ones, and what it has no word for; the names of what is lost."""
    temperature = number(sent, "temperature", low=0)
    top_p = number(sent, "top_p", low=0, high=1)
    number(sent, "frequency_penalty", low=-2, high=2)
    number(sent, "presence_penalty", low=-2, high=2)
    if top_p == 0:
        temperature = sent["temperature"] = 0
    if top_p in (0, 1) or temperature == 0:  # a top_p beside temperature 0 would switch sampling on again
        sent.pop("top_p", None)
    if "seed" in sent:
        if not is_integer(sent["seed"]):
            raise error("invalid_value", "`seed` must be an integer.", param="seed")
        sent["seed"] %= SEED_RANGE
    lost: list[str] = []
    for name, neutral in _DROPPED[endpoint].items():
        if name in sent and sent.pop(name) not in neutral:
            lost.append(name)
    return tuple(lost)


def batch_size(target: Target) -> int:
    """How many prompts TGI takes in one request."""
    return target.options.get("max_client_batch_size") or DEFAULT_BATCH


# -- chat ------------------------------------------------------------------------------------------------------


def _chat(sent: JsonObject, target: Target) -> None:
    _check_logprobs(sent)
    asked = sent.get("response_format")
    version = version_of(target.version)
    if asked is not None and version is not None and version < (2, 1):
        raise error(
            "unsupported_parameter", f"TGI {target.version} has no `response_format` in /v1.", param="response_format"
        )
    _set(sent, "response_format", grammar(asked))
    tools = sent.get("tools")
    if not tools:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            sent.pop(name, None)
        return
    if "response_format" in sent:
        raise error(
            "unsupported_parameter", "TGI can't have `tools` and `response_format` together.", param="response_format"
        )
    if not isinstance(tools, list):
        raise error("invalid_value", "`tools` must be a list.", param="tools")
    sent["tools"] = [tool_for_tgi(tool) for tool in tools]


def _check_logprobs(sent: JsonObject) -> None:
    wanted, top = sent.get("logprobs"), sent.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise error("invalid_value", "`logprobs` must be true or false.", param="logprobs")
    if top is not None and (wanted is not True or not is_integer(top) or not 0 <= top <= 20):
        raise error(
            "invalid_value", "`top_logprobs` needs `logprobs: true` and a value from 0 to 20.", param="top_logprobs"
        )


# -- completions -----------------------------------------------------------------------------------------------


def _completion(sent: JsonObject, target: Target) -> None:
    _check_prompt(sent.get("prompt"))
    asked = {
        "suffix": sent.pop("suffix", "") != "",
        "logprobs": sent.pop("logprobs", False) is not False,  # 0 asks for some too
        "best_of": sent.pop("best_of", 1) != 1,
    }
    for name, wanted in asked.items():
        if wanted:
            raise error("unsupported_parameter", f"TGI's completions have no `{name}`.", param=name)
    sent.pop("echo", None)  # the proxy does it


def _check_prompt(prompt: Any) -> None:
    if prompt is None:
        raise error("missing_required_parameter", "`prompt` is missing.", param="prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if prompts and all(is_integer(item) or isinstance(item, list) for item in prompts) and isinstance(prompt, list):
        raise error("unsupported_value", "TGI takes prompts as text, not as token ids.", param="prompt")
    if not prompts or not all(isinstance(item, str) and item for item in prompts):
        raise error("invalid_value", "`prompt` must be a non-empty string or a list of them.", param="prompt")


# -- values ----------------------------------------------------------------------------------------------------


def _set(sent: JsonObject, name: str, value: Any) -> None:
    if value is None:
        sent.pop(name, None)
    else:
        sent[name] = value
