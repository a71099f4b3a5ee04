"""OpenAI's messages and tools as `/api/chat` takes them. Images are expected in the one form that `shared.images`
gives them. Pure; raises `ApiError` for what Ollama has no word for. Not here: fetching, other members.
"""

from __future__ import annotations

from typing import Any, Final

from proxy.errors import ApiError, error
from proxy.wire import InvalidJson, JsonObject, load

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def encode_messages(messages: Any) -> list[JsonObject]:
    """All of them. Images are base64 (or, while they are yet to be fetched, URLs)."""
    if messages is None:
        raise error("missing_required_parameter", "`messages` is missing.", param="messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("`messages` must be a list with at least one message")
    names: dict[str, str] = {}  # tool call id -> the function that was called last under it
    return [_message(one, names) for one in messages]


def has_images(messages: list[JsonObject]) -> bool:
    """Of encoded messages."""
    return any("images" in one for one in messages)


def _message(one: Any, names: dict[str, str]) -> JsonObject:
    role = one.get("role") if isinstance(one, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise _bad(f"a message's role must be one of {', '.join(_ROLES)}")
    out: JsonObject = {"role": _ROLES[role], **_content(one.get("content"))}
    thinking = one.get("reasoning_content")
    thinking = one.get("reasoning") if thinking is None else thinking
    if thinking and isinstance(thinking, str):
        out["thinking"] = thinking
    calls = one.get("tool_calls")
    if calls:
        if not isinstance(calls, list):
            raise _bad("`tool_calls` must be a list")
        out["tool_calls"] = [_call(call, names) for call in calls]
    if out["role"] == "tool":
        out |= _answered_call(one, names)
    return out


def _content(content: Any) -> JsonObject:
    if content is None:
        return {"content": ""}
    if isinstance(content, str):
        return {"content": content}
    if not isinstance(content, list):
        raise _bad("a message's content must be a text or a list of parts")
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(part["image_url"]["url"].partition(";base64,")[2])
        elif kind == "text" or not isinstance(kind, str):
            raise _bad("a content part needs a `type` and, for text, a `text`")
        else:
            raise error(
                "unsupported_value",
                f"Ollama takes text and images in messages, no {kind[:40]!r} parts. Ask a model on another engine.",
                param="messages",
            )
    return {"content": "\n".join(texts)} | ({"images": images} if images else {})


def _call(call: Any, names: dict[str, str]) -> JsonObject:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise _bad("a tool call needs a function with a name")
    made: JsonObject = {"function": {"name": name, "arguments": _arguments(function.get("arguments"), name)}}
    id_ = call.get("id")
    if isinstance(id_, str) and id_:
        names[id_] = name
        made = {"id": id_, **made}
    return made


def _arguments(given: Any, name: str) -> JsonObject:
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        try:
            given = load(given)
        except InvalidJson:
            given = None
    if not isinstance(given, dict):
        raise _bad(f"the arguments of the call of {name[:60]!r} are no JSON object, which Ollama needs")
    return given


def _answered_call(one: JsonObject, names: dict[str, str]) -> JsonObject:
    out: JsonObject = {}
    id_, name = one.get("tool_call_id"), one.get("name")
    if isinstance(id_, str) and id_:
        out["tool_call_id"] = id_
        name = name or names.get(id_)
    if isinstance(name, str) and name:
        out["tool_name"] = name
    return out


# -- tools ---------------------------------------------------------------------------------------------------


def encode_tools(tools: Any, choice: Any) -> list[JsonObject]:
    """The tools to send: none for `none`, the one that is named, else all."""
    if tools is not None and not isinstance(tools, list):
        raise _bad_tool("`tools` must be a list")
    made = [_tool(tool) for tool in tools or ()]
    if isinstance(choice, dict):
        wanted = _named(choice)
        made = [tool for tool in made if tool["function"]["name"] == wanted][:1]
        if not made:
            raise error("invalid_value", f"`tool_choice` names {wanted!r}, which is no tool.", param="tool_choice")
    elif choice not in (None, "auto", "none", "required"):
        raise error("invalid_value", "`tool_choice` must be none, auto, required or a function.", param="tool_choice")
    return [] if choice == "none" else made


def _named(choice: JsonObject) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type", "function") != "function" or not isinstance(name, str):
        raise error("invalid_value", "A `tool_choice` object must name a function.", param="tool_choice")
    return name


def _tool(tool: Any) -> JsonObject:
    kind = tool.get("type", "function") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise error("unsupported_value", f"Ollama knows function tools only, not {kind[:40]!r}.", param="tools")
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad_tool("a tool needs a function with a name")
    made: JsonObject = {"name": function["name"]}
    if function.get("description") is not None:
        made["description"] = function["description"]
    parameters = function.get("parameters")
    made["parameters"] = {"type": "object", "properties": {}} if parameters is None else parameters
    return {"type": "function", "function": made}


def _bad(what: str) -> ApiError:
    return error("invalid_value", f"In `messages`: {what}.", param="messages")


def _bad_tool(what: str) -> ApiError:
    return error("invalid_value", f"In `tools`: {what}.", param="tools")
