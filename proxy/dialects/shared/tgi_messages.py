"""Chat messages in the form that TGI takes, images included.

TGI finds images by a Markdown pattern in the finished prompt and fetches http(s) ones without looking where they
lead. So only data URLs go in, and the same pattern in a user's own words is broken up.

Pure: nothing is fetched here. `content` was at the body before: images are image URLs, in standard base64.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, Final

from proxy.errors import ApiError, error
from proxy.wire import InvalidJson, JsonObject, dump, load_object

_ROLES: Final[dict[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_DATA_URL: Final = re.compile(r"data:(?:image/[^;,]+)?;base64,([A-Za-z0-9+/]+=*)", re.IGNORECASE)
_LINK: Final = re.compile(r"!\[\]\((?!data:image/)")
_MAGIC: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"II\*\x00|MM\x00\*"), "image/tiff"),
)


def messages_for_tgi(messages: Any, *, vision: bool, backend: str) -> list[JsonObject]:
    """The messages as TGI wants them. Raises `ApiError` with param `messages`."""
    if messages is None:
        raise error("missing_required_parameter", "`messages` is missing.", param="messages")
    if not isinstance(messages, list) or not messages:
        raise _bad("`messages` must be a list with at least one message.")
    return [_message(message, vision, backend) for message in messages]


def without_links(prompt: str) -> str:
    """A raw prompt for a vision model: pictures inside it stay, what would make TGI fetch something is broken up."""
    return _LINK.sub("! [](", prompt)


def _message(message: Any, vision: bool, backend: str) -> JsonObject:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise _bad(f"Every message needs a `role`, one of {', '.join(_ROLES)}.")
    sent: JsonObject = {"role": _ROLES[role]}
    content = _content(message.get("content"), vision, backend)
    calls = [_call(call) for call in _list(message.get("tool_calls"))] if role == "assistant" else []
    calls = defused(calls) if vision else calls
    if calls and not content:
        sent["tool_calls"] = calls  # and no content member: even "" makes TGI lose the calls
    elif calls:
        sent["content"] = _with_text(content, "\n" + dump(calls).decode())  # it would lose these too
    else:
        sent["content"] = content
    if isinstance(message.get("name"), str):
        sent["name"] = defused(message["name"]) if vision else message["name"]
    return sent


def defused(value: Any) -> Any:
    """The same JSON value with the pattern of an image broken up in each of its texts. For a vision model, wherever
    a client's words get into a prompt."""
    if isinstance(value, str):
        return value.replace("![](", "! [](")
    if isinstance(value, list):
        return [defused(item) for item in value]
    if isinstance(value, dict):
        return {defused(name): defused(item) for name, item in value.items()}
    return value


def _content(content: Any, vision: bool, backend: str) -> str | list[JsonObject]:
    if content is None:
        return ""
    if isinstance(content, str):
        return str(defused(content)) if vision else content
    if not isinstance(content, list):
        raise _bad("A message's `content` must be a string or a list of parts.")
    parts = [_part(part, vision, backend) for part in content]
    if vision:
        parts = _joined(parts)
    return parts if any(part.get("text") != "" for part in parts) else ""


def _part(part: Any, vision: bool, backend: str) -> JsonObject:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind != "image_url":
        raise _unsupported(f"Backend '{backend}' (TGI) takes text and images, not parts of type {kind!r}.")
    if not vision:
        raise _unsupported(
            f"The model on backend '{backend}' (TGI) takes no images. If it does, set `vision: true` in the options "
            "of that backend."
        )
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    return {"type": "image_url", "image_url": {"url": _image(url, backend)}}


def _image(url: Any, backend: str) -> str:
    """A data URL with the type that the bytes show: TGI decodes by what the URL says."""
    if not isinstance(url, str) or url[:5].lower() != "data:":
        raise _unsupported(f"Backend '{backend}' (TGI) takes images as data: URLs only; send the picture itself.")
    found = _DATA_URL.fullmatch(url)
    shown = _type_of(found[1]) if found else None
    if found is None or shown is None:
        raise error(
            "invalid_image_url",
            "An image must be a PNG, JPEG, GIF, WebP or TIFF as a base64 data: URL.",
            param="messages",
        )
    return f"data:{shown};base64,{found[1]}"


def _type_of(encoded: str) -> str | None:
    try:
        begin = binascii.a2b_base64(encoded[:24])  # whole groups of four, if there are that many
    except binascii.Error:
        return None
    return next((name for magic, name in _MAGIC if magic.match(begin)), None)


def _call(call: Any) -> JsonObject:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad("Every entry of `tool_calls` must be a function call with a name.")
    return {
        "id": str(call.get("id") or ""),
        "type": "function",
        "function": {"name": function["name"], "arguments": _arguments(function.get("arguments"))},
    }


def _arguments(arguments: Any) -> JsonObject:
    """As an object: TGI would quote a string once more."""
    if isinstance(arguments, dict):
        return arguments
    try:
        return load_object(arguments) if isinstance(arguments, str) and arguments else {}
    except InvalidJson:
        raise _bad("The `arguments` of a tool call must be a JSON object.") from None


def _with_text(content: str | list[JsonObject], more: str) -> str | list[JsonObject]:
    return content + more if isinstance(content, str) else [*content, {"type": "text", "text": more}]


def _joined(parts: list[JsonObject]) -> list[JsonObject]:
    """Neighbouring texts in one, as TGI joins them, so that no pattern hides in the seam; then defused."""
    out: list[JsonObject] = []
    for part in parts:
        if out and part["type"] == out[-1]["type"] == "text":
            part = {"type": "text", "text": out.pop()["text"] + part["text"]}
        out.append(part)
    return [defused(part) if part["type"] == "text" else part for part in out]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _bad(message: str) -> ApiError:
    return error("invalid_value", message, param="messages")


def _unsupported(message: str) -> ApiError:
    return error("unsupported_value", message, param="messages")
