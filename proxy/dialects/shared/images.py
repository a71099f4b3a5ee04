"""Images in chat messages for engines that take nothing but the bytes.

`local_images` puts every image part into one form (an `image_url` object) and finds the URLs that have to be fetched
first; `fetched` is that step; `with_images` puts the results in. `data_url` is the rule for `data:` URLs, used where
bodies are passed on, too.

Pure: fetching, and its rules, are the gateway's. Not here: an engine's own form for images.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from proxy.dialects.base import Answered, Fetch, Target
from proxy.errors import ApiError, error

_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
HTTP: Final = re.compile(r"(https?)://[^/\s\\]", re.IGNORECASE)
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SPACE: Final = b" \t\r\n\f\v"


def local_images(messages: Any, target: Target) -> tuple[Any, tuple[str, ...]]:
    """The messages with their images in one form, and the http(s) URLs among them, each once. Whatever else is wrong
    with the messages is left to the caller. Raises `ApiError` with param `messages`."""
    if not isinstance(messages, list):
        return messages, ()
    urls: dict[str, None] = {}
    out = [_message(message, target, urls) for message in messages]
    return out, tuple(urls)


def fetched(urls: Sequence[str]) -> Generator[Fetch, Answered, dict[str, str]]:
    """URL -> the picture as a `data:` URL. A step of a dialect's (`yield from`)."""
    images: dict[str, str] = {}
    for url in urls:
        answer = yield Fetch(url)
        images[url] = f"data:{answer.content_type};base64,{_encoded(answer.body)}"
    return images


def with_images(messages: list[Any], images: Mapping[str, str]) -> list[Any]:
    """What `local_images` gave, with what `fetched` gave in it."""

    def part(given: Any) -> Any:
        url = given["image_url"]["url"] if _is_image(given) else ""
        return {**given, "image_url": {"url": images[url]}} if url in images else given

    return [
        {**message, "content": [part(given) for given in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def data_url(url: str, param: str = "messages") -> str:
    """An image's `data:` URL with a media type and standard base64; the same text where it has both. Raises
    `invalid_image_url`."""
    head, comma, payload = url[5:].partition(",")
    media_type, *parameters = (word.strip() for word in head.lower().split(";"))
    if not comma or "base64" not in parameters:
        raise _bad("An image's data: URL must be base64: `data:image/png;base64,…`.", param)
    if media_type and not media_type.startswith("image/"):
        raise _bad(f"{media_type[:40]!r} is not an image type.", param)
    if media_type and url.startswith(f"data:{media_type};base64,") and _is_standard(payload):
        return url  # the usual case, without a copy of the picture
    data = _decode(payload)
    if not data:
        raise _bad("The image's base64 can't be decoded.", param)
    media_type = media_type or _sniff(data)
    if not media_type:
        raise _bad("The image is no PNG, JPEG, GIF or WebP; name its type in a data: URL.", param)
    return f"data:{media_type};base64,{_encoded(data)}"


def inline_url(given: object, param: str = "messages") -> str:
    """The `data:` URL of an `image_base64` part. Raises `invalid_image_url`."""
    if not isinstance(given, str):
        raise _bad("`image_base64` must be a string of base64.", param)
    return data_url(given if given[:5].lower() == "data:" else "data:;base64," + given, param)


# -- inside --------------------------------------------------------------------------------------------------


def _message(message: Any, target: Target, urls: dict[str, None]) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(part, target, urls) for part in content]}


def _part(part: Any, target: Target, urls: dict[str, None]) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_base64":
        return {"type": "image_url", "image_url": {"url": inline_url(part.get("image_base64"))}}
    if kind != "image_url":
        return part
    given = part.get("image_url")
    return {"type": "image_url", "image_url": {"url": _url(given, target, urls)}}


def _url(given: Any, target: Target, urls: dict[str, None]) -> str:
    url = given.get("url") if isinstance(given, dict) else given
    if isinstance(url, str) and url[:5].lower() == "data:":
        return data_url(url)
    if not isinstance(url, str) or HTTP.match(url) is None or CONTROL.search(url):
        shown = repr(url[:40]) if isinstance(url, str) else "anything else"
        raise _unsupported(f"Images must be given as http(s) or data: URLs, not {shown}.")
    if target.image_urls == "reject":
        raise _unsupported(f"Backend '{target.backend}' takes no http(s) URLs for images. Send them as data: URLs.")
    urls[url] = None
    return url


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image_url"


def _encoded(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _is_standard(payload: str) -> bool:
    try:
        return bool(binascii.a2b_base64(payload, strict_mode=True))
    except ValueError:  # binascii.Error, or not ASCII
        return False


def _decode(payload: str) -> bytes | None:
    """Standard or URL-safe base64, with or without padding, percent escapes or line breaks; None if it is neither."""
    try:
        raw = unquote_to_bytes(payload) if "%" in payload else payload.encode("ascii")
        raw = raw.translate(None, _SPACE).rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
        return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    except ValueError:
        return None


def _sniff(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for magic, media_type in _MAGIC if data.startswith(magic)), "")


def _unsupported(message: str) -> ApiError:
    return error("unsupported_value", message, param="messages")


def _bad(message: str, param: str) -> ApiError:
    return error("invalid_image_url", message, param=param)
