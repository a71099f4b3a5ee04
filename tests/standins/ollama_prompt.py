"""Prompts of the stand-in models: how long they are, what happens to one that is too long, formats, thinking."""

import json
from collections.abc import Mapping
from typing import Any

from tests.standins.ollama_go import Refused, engine_error
from tests.standins.ollama_models import JINJA, Model, prompt_tokens

_LONGER = "the prompt is longer than the context length currently available to the model; shorten the prompt, "
_LONGER += "adjust the context length in settings, or use a model with a longer context length"
_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def rendered(messages: list[dict[str, Any]] | str, tools: list[dict[str, Any]], *, images: bool) -> list[int]:
    """The tokens of each message, the frame of the whole last; a raw prompt is one message without a frame."""
    if isinstance(messages, str):
        return [prompt_tokens(messages), 1]
    sizes = []
    for message in messages:
        text = (message.get("role") or "") + (message.get("content") or "") + (message.get("thinking") or "")
        for call in message.get("tool_calls") or ():
            text += json.dumps(call.get("function"))
        pictures = message.get("images") or ()
        text += "" if images else "".join(f"[img-{at}]" for at in range(len(pictures)))
        sizes.append(prompt_tokens(text) + 4)
    front = 1 + (prompt_tokens(json.dumps(tools)) if tools else 0)
    return [*sizes, front + 1 + len("assistant") + 1]


def fit(
    sizes: list[int], num_ctx: int, body: Mapping[str, Any], *, in_engine: bool, since: tuple[int, ...]
) -> tuple[int, int | None]:
    """The tokens that are read and, where the cut leaves no room, the most that can be said. Raises Refused."""
    total, aware = sum(sizes), since >= (0, 12, 6)
    truncate = body.get("truncate", True) if aware else True
    shift = body.get("shift", True) if aware else True
    if total < num_ctx:
        return total, None
    if since >= JINJA:
        if in_engine or not truncate:
            text = f"request ({total} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
            numbers = {"n_prompt_tokens": total, "n_ctx": num_ctx}
            raise engine_error(400, text, "exceed_context_size_error", **numbers)
        if not shift:
            raise Refused(400, _LONGER)
    elif not truncate:
        raise Refused(400, "the input length exceeds the context length")
    while len(sizes) > 2 and sum(sizes) >= num_ctx:
        sizes = sizes[1:]
    if sum(sizes) < num_ctx:
        return sum(sizes), None
    return (num_ctx // 2 + 3, None) if since >= JINJA else (num_ctx, None if shift else 1)


def format_schema(given: object, since: tuple[int, ...]) -> Any:
    """None, "json" or the schema. Raises Refused."""
    if given in (None, ""):
        return None
    if since < (0, 5) or given == "json":
        return "json"
    if not isinstance(given, dict):
        shown = json.dumps(json.dumps(given))
        raise Refused(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')
    kind = given.get("type")
    if isinstance(kind, str) and kind not in _TYPES:
        if since < JINJA:
            raise Refused(500, "invalid JSON schema in format")
        text = f"JSON schema conversion failed:\nJSON schema error at #: unrecognized type {kind}"
        raise engine_error(400, f"Field 'json_schema': \"json_schema\": {text}", "invalid_request_error")
    return given


def wants_thoughts(model: Model, name: str, think: bool | str | None, since: tuple[int, ...]) -> bool:
    """Thinking models think unless told not to. Raises Refused."""
    able = "thinking" in model.capabilities(since) and since >= (0, 9)
    if think and not able:
        raise Refused(400, f'"{name}" does not support thinking')
    if isinstance(think, str) and since < (0, 17, 7):
        raise Refused(400, f'think value "{think}" is not supported for this model')
    return able and think is not False
