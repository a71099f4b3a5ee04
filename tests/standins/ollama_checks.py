"""What Ollama refuses before a model speaks: think values, lacking abilities, foreign Host and Origin headers."""

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tests.standins.directives import Directive
from tests.standins.ollama_go import Refused, engine_error
from tests.standins.ollama_models import JINJA, Model
from tests.standins.ollama_prompt import wants_thoughts
from tests.standins.ollama_speech import Turn

_LOCAL = ("localhost",)
_LOCAL_ENDS = (".localhost", ".local", ".internal")


def think_value(body: Mapping[str, Any], since: tuple[int, ...]) -> bool | str | None:
    if since < (0, 9) or "think" not in body:
        return None
    levels = ["high", "medium", "low", *(["max"] if since >= (0, 22) else [])]
    think = body["think"]
    if isinstance(think, bool) or think in levels:
        value: bool | str = think
        return value
    listed = ", ".join(f'"{level}"' for level in levels)
    raise Refused(400, f'invalid think value: "{think}" (must be {listed}, true, or false)')


def abilities(
    model: Model,
    name: str,
    body: Mapping[str, Any],
    think: bool | str | None,
    since: tuple[int, ...],
    api: str = "chat",
) -> tuple[bool, list[dict[str, Any]]]:
    """Whether it thinks, and the tools it may call. Raises Refused for what it can't."""
    can = model.capabilities(since)
    if "completion" not in can:
        raise Refused(400, f'"{name}" does not support {api}')
    tools = body.get("tools") or [] if since >= (0, 2, 6) else []
    if tools and "tools" not in can:
        raise Refused(400, f"registry.ollama.ai/library/{model.name}:latest does not support tools")
    return wants_thoughts(model, name, think, since), tools


def will_call(model: Model, messages: list[dict[str, Any]], directive: Directive) -> bool:
    obliged = not model.obliging or messages[-1].get("role") == "user"
    return bool(model.calls) and obliged and directive.text is None


def refuse_in_engine(turn: Turn, body: Mapping[str, Any]) -> None:
    """What llama-server refuses (0.30+)."""
    since = turn.since
    if since < JINJA:
        return
    kind = "invalid_request_error"
    if turn.images and "vision" not in turn.model.can and turn.in_engine:
        text = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
        raise engine_error(500, text, "server_error")
    if turn.images and "vision" not in turn.model.can:
        text = "Multimodal data provided, but model does not support multimodal requests."
        raise engine_error(400, text, kind)
    if turn.in_engine and turn.tools and body.get("logprobs"):
        raise engine_error(400, "logprobs is not supported with tools + stream", kind)
    if turn.in_engine and any("parameters" not in tool["function"] for tool in turn.tools):
        cause = "Automatic parser generation failed: JSON schema error at #: properties must be an object"
        raise engine_error(400, f"Unable to generate parser for this template. {cause}", kind)


def host_allowed(headers: Mapping[str, str]) -> bool:
    name = urlsplit("//" + headers.get("host", "")).hostname or ""
    try:
        return ipaddress.ip_address(name).is_private
    except ValueError:
        return name in ("", *_LOCAL) or name.endswith(_LOCAL_ENDS)


def origin_allowed(headers: Mapping[str, str]) -> bool:
    origin = headers.get("origin")
    return origin is None or (urlsplit(origin).hostname or "") in (*_LOCAL, "127.0.0.1", "0.0.0.0")
