"""Reading an OpenAI request for an engine that speaks something else: members in their bounds, what is refused, what
is dropped, and how `n` and a list of prompts become several calls.

Bookkeeping members (`user`, `metadata`, `store`, …) and unknown ones need no table: a translator sends only what it
knows. Images are in `images`. Not here: any engine's words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from proxy.dialects.base import Request, Target
from proxy.errors import error
from proxy.wire import InvalidJson, JsonObject, bad_json, load_object

TextEndpoint = Literal["chat", "completions"]

MAX_N: Final = 8
MAX_PROMPTS: Final = 32
MAX_TOP: Final[dict[TextEndpoint, int]] = {"chat": 20, "completions": 5}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read: every value is within OpenAI's bounds, None where the client is silent."""

    endpoint: TextEndpoint
    members: JsonObject  # all of them; nulls are left out, the backend's options are in where the client is silent
    stream: bool
    include_usage: bool
    limit: int | None  # tokens of the answer, at most
    stops: tuple[str, ...]
    temperature: float | None
    top_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    n: int
    logprobs: bool
    top: int  # alternatives wanted for each token


@dataclass(frozen=True, slots=True)
class Child:
    """One upstream call of a fan-out. `index`: of its choice; `prompt`: which prompt it answers; `shift`: what is
    added to the client's seed."""

    index: int
    prompt: int
    shift: int


def read(request: Request, target: Target, engine: str) -> Asked:
    """The members of a chat or completions request. `engine`: its name in messages. Raises `ApiError`."""
    assert request.endpoint in ("chat", "completions")
    members = load_members(request, target)
    if request.endpoint == "chat":
        _refuse_shapes(members, engine)
    logprobs, top = _logprobs(request.endpoint, members)
    return Asked(
        endpoint=request.endpoint,
        members=members,
        stream=request.stream,
        include_usage=wants_usage(members),
        limit=output_limit(request.endpoint, members),
        stops=tuple(stop_strings(members)),
        temperature=number(members, "temperature", low=0),
        top_p=number(members, "top_p", low=0, high=1),
        frequency_penalty=number(members, "frequency_penalty", low=-2, high=2),
        presence_penalty=number(members, "presence_penalty", low=-2, high=2),
        seed=integer(members, "seed"),
        n=count_of(members, target),
        logprobs=logprobs,
        top=top,
    )


def load_members(request: Request, target: Target) -> JsonObject:
    """The body, with the backend's options. Raises `ApiError` `invalid_json`."""
    try:
        return with_defaults(load_object(request.body), target)
    except InvalidJson as exc:
        raise bad_json(exc) from None


def with_defaults(body: JsonObject, target: Target) -> JsonObject:
    """The request as it is meant: the backend's options where it is silent, and null as good as absent."""
    return {**target.options, **{name: value for name, value in body.items() if value is not None}}


# -- members -------------------------------------------------------------------------------------------------


def output_limit(endpoint: str, members: JsonObject) -> int | None:
    """How many tokens the client wants at most. Raises `ApiError`."""
    names = ("max_completion_tokens", "max_tokens") if endpoint == "chat" else ("max_tokens",)
    for name in names:
        value = members.get(name)
        if value is None:
            continue
        if not is_integer(value) or value < 1:
            raise error("invalid_value", f"`{name}` must be an integer of at least 1.", param=name)
        return int(value)
    return None


def stop_strings(members: JsonObject) -> list[str]:
    """`stop` as a list, without empty strings (which would end every answer at once). Raises `ApiError`."""
    stop = members.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise error("invalid_value", "`stop` must be a string or a list of strings.", param="stop")
    return [item for item in stops if item]


def wants_usage(members: JsonObject) -> bool:
    """True if the client asked for a usage chunk at the end of a stream."""
    options = members.get("stream_options")
    return members.get("stream") is True and isinstance(options, dict) and options.get("include_usage") is True


def number(members: JsonObject, name: str, *, low: float | None = None, high: float | None = None) -> float | None:
    """A number within bounds, both inclusive. Raises `ApiError`."""
    value = members.get(name)
    if value is None:
        return None
    fits = not isinstance(value, bool) and isinstance(value, int | float)
    if not fits or (low is not None and value < low) or (high is not None and value > high):
        raise error("invalid_value", f"`{name}` must be a number{_bounds(low, high)}.", param=name)
    return float(value) if isinstance(value, int) and abs(value) > 2**53 else value


def integer(members: JsonObject, name: str, *, low: int | None = None) -> int | None:
    """A JSON integer, not 1.0 and not true. Raises `ApiError`."""
    value = members.get(name)
    if value is None:
        return None
    if not is_integer(value) or (low is not None and value < low):
        raise error("invalid_value", f"`{name}` must be an integer{_bounds(low, None)}.", param=name)
    return int(value)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def prompts(members: JsonObject, target: Target, engine: str) -> list[str]:
    """A completion's prompts, none of them empty. Raises `ApiError`."""
    prompt = members.get("prompt")
    if prompt is None:
        raise error("missing_required_parameter", "`prompt` is missing.", param="prompt")
    found = prompt if isinstance(prompt, list) else [prompt]
    if isinstance(prompt, list) and prompt and all(is_integer(item) or isinstance(item, list) for item in prompt):
        raise error("unsupported_value", f"{engine} takes prompts as text, not as token ids.", param="prompt")
    if not found or not all(isinstance(item, str) and item for item in found):
        raise error("invalid_value", "`prompt` must be a non-empty string or a list of them.", param="prompt")
    most = _setting(target, "max_prompts", MAX_PROMPTS)
    if len(found) > most:
        raise error(
            "unsupported_value",
            f"At most {most} prompts go in one request to {engine}, not {len(found)}: send several requests.",
            param="prompt",
        )
    return found


def count_of(members: JsonObject, target: Target) -> int:
    """How many answers are wanted for each prompt. Raises `ApiError` above the backend's `max_n`."""
    n = integer(members, "n", low=1)
    most = _setting(target, "max_n", MAX_N)
    if n is not None and n > most:
        raise error("unsupported_value", f"`n` may be {most} at most on backend '{target.backend}'.", param="n")
    return n or 1


def fan_out(prompt_count: int, n: int) -> tuple[Child, ...]:
    """The calls for so many prompts with `n` answers each, in the order of their choices."""
    return tuple(Child(prompt * n + i, prompt, i) for prompt in range(prompt_count) for i in range(n))


def dropped(members: JsonObject, neutral: Mapping[str, Sequence[Any]], target: Target, engine: str) -> tuple[str, ...]:
    """Which members of that table (name -> values that change nothing) are lost on that engine. Raises
    `unsupported_parameter` where the backend is strict about it."""
    lost = tuple(name for name, values in neutral.items() if name in members and members[name] not in values)
    if lost and target.strict_params:
        raise error(
            "unsupported_parameter",
            f"{engine} (backend '{target.backend}') has no `{lost[0]}`, and strict_params is set.",
            param=lost[0],
        )
    return lost


def version_of(text: str | None) -> tuple[int, ...] | None:
    """`3.3.6-dev0` -> (3, 3, 6); releases carry such suffixes too. None if unknown."""
    try:
        return tuple(int(part) for part in (text or "").lstrip("v").split("-")[0].split("."))
    except ValueError:
        return None


# -- inside --------------------------------------------------------------------------------------------------


def _refuse_shapes(members: JsonObject, engine: str) -> None:
    """What would change the answer's shape and can't be had."""
    modalities = members.get("modalities", ["text"])
    refused = {
        "audio": "audio" in members,
        "modalities": modalities != ["text"],
        "functions": bool(members.get("functions")),
        "function_call": members.get("function_call", "none") != "none",
    }
    for name, asked in refused.items():
        if asked:
            hint = " Use `tools`." if name.startswith("function") else ""
            raise error("unsupported_parameter", f"{engine} answers in text; it has no `{name}`.{hint}", param=name)


def _logprobs(endpoint: TextEndpoint, members: JsonObject) -> tuple[bool, int]:
    wanted = members.get("logprobs")
    most = MAX_TOP[endpoint]
    if endpoint == "completions":
        if wanted is None:
            return False, 0
        if not is_integer(wanted) or not 0 <= wanted <= most:
            raise error("invalid_value", f"`logprobs` must be an integer from 0 to {most}.", param="logprobs")
        return True, wanted
    if wanted is not None and not isinstance(wanted, bool):
        raise error("invalid_value", "`logprobs` must be true or false.", param="logprobs")
    top = members.get("top_logprobs")
    if top is None:
        return wanted is True, 0
    if wanted is not True or not is_integer(top) or not 0 <= top <= most:
        raise error(
            "invalid_value",
            f"`top_logprobs` needs `logprobs: true` and a value from 0 to {most}.",
            param="top_logprobs",
        )
    return True, top


def _setting(target: Target, name: str, default: int) -> int:
    value = target.options.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _bounds(low: float | None, high: float | None) -> str:
    if low is None:
        return ""
    return f" of at least {low}" if high is None else f" from {low} to {high}"
