"""Media in request bodies that are passed on: which URLs an engine may see, and the forms that every engine knows.

Engines open what they are given, some of them `file:` URLs and bare paths too; so only `data:` and http(s) URLs get
through (contract 0.9). With `image_urls: passthrough` the engine itself fetches http(s) URLs by its own rules:
whether an address is public is not looked at here, as nothing is resolved here. Fetching by the proxy (`fetch`) is
not available on this path.

Pure: bodies in, bodies out. Not here: fetching, and the native dialects' own image forms.
"""

from __future__ import annotations

from typing import Final

from proxy.dialects.base import Target
from proxy.dialects.shared.images import CONTROL, HTTP, data_url, inline_url
from proxy.errors import ApiError, error
from proxy.glance_types import ABSENT, Message
from proxy.wire import InvalidJson, JsonObject, Members, Raw, items

# member -> must its `data:` URL be an image?
_MEDIA: Final[dict[str, bool]] = {
    "image_url": True,
    "image": True,
    "video_url": False,
    "video": False,
    "audio_url": False,
    "audio": False,
    "file_url": False,
}
# Where a body holds parts: OpenAI's and Anthropic's messages, Responses and embeddings input, and what vLLM's
# score, rerank and pooling take. Members of parts that hold further parts follow.
ROOTS: Final = ("messages", "input", "documents", "query", "queries", "data_1", "data_2", "text_1", "text_2")
_ROOTS: Final = frozenset(ROOTS)
_NESTED: Final = ("content", "output")
# A part without these, and without parts in it, has no media.
_TELLING: Final = frozenset((*_MEDIA, "image_base64", "source"))
_TEXT: Final = frozenset(b'"ntf-0123456789')  # first bytes of JSON that is no array and no object


def needs_look(body: Members) -> bool:
    """False only if `fix_parts` would neither change nor refuse this body; cheap, since text is skipped, not read."""
    for name, value in body.items():  # a loop: a generator for each of them would cost more than the look
        if name in _ROOTS and _holds_parts(value):
            return True
    return False


def all_text(messages: list[Message]) -> bool:
    """Of a glance: False where a message's content may hold media."""
    for one in messages:
        if one.content is not ABSENT and memoryview(one.content)[0] not in _TEXT:
            return False
    return True


def _holds_parts(value: Raw) -> bool:
    if memoryview(value)[0] in _TEXT:
        return False
    try:
        parts = items(value)
    except InvalidJson:
        return True
    for part in parts:
        if isinstance(part, dict) and _may_hold_media(part):
            return True
    return False


def _may_hold_media(part: Members) -> bool:
    if not _TELLING.isdisjoint(part):
        return True
    if "type" in part and (b"image" in bytes(part["type"]) or b"\\" in bytes(part["type"])):
        return True
    for name in _NESTED:
        if name in part and memoryview(part[name])[0] not in _TEXT:
            return True
    return False


def fix_parts(body: JsonObject, target: Target) -> bool:
    """Checks every media URL in the body and puts media into the usual form, in place; True if something changed.

    `image_base64` parts become image URLs; bare strings become `{"url": …}`; images in `data:` URLs get standard
    base64 and, where none is given, the media type that their bytes show. Raises `ApiError` for what may not pass.
    """
    changed = False
    for root in ROOTS:
        value = body.get(root)
        if isinstance(value, (list, dict)):
            changed = _Walk(target, root).over(value) or changed
    return changed


class _Walk:
    """Over the parts under one member of the body, `param` in errors. With a stack of its own: bodies nest as
    deep as the client likes."""

    def __init__(self, target: Target, param: str) -> None:
        self._target = target
        self._param = param
        self._changed = False

    def over(self, root: object) -> bool:
        stack = [root]
        while stack:
            value = stack.pop()
            if isinstance(value, list):
                stack.extend(value)
            elif isinstance(value, dict):
                self._part(value)
                stack.extend(value[name] for name in _NESTED if name in value)
        return self._changed

    def _part(self, part: JsonObject) -> None:
        if part.get("type") == "image_base64" or "image_base64" in part:
            self._inline(part)
        for member, image in _MEDIA.items():
            given = part.get(member)
            if given is None:
                continue
            if isinstance(given, dict):
                self._replace(given, "url", image)
            elif part.get("type") == member and self._param == "messages":
                part[member] = {"url": self._url(given, image)}
                self._changed = True
            else:
                self._replace(part, member, image)
        source = part.get("source")
        if isinstance(source, dict):
            self._source(part, source)
        elif part.get("type") == "image":  # elsewhere it is a name, as in Anthropic's search results
            self._replace(part, "source", image=True)

    def _replace(self, holder: JsonObject, member: str, image: bool) -> None:
        given = holder.get(member)
        if given is not None:
            url = self._url(given, image)
            if url != given:
                holder[member] = url
                self._changed = True

    def _inline(self, part: JsonObject) -> None:
        given = part.pop("image_base64", None)
        url = inline_url(given, self._param)
        responses = self._param == "input"
        part["type"] = "input_image" if responses else "image_url"
        part["image_url"] = url if responses else {"url": url}
        if not responses and "detail" in part:
            part["image_url"]["detail"] = part.pop("detail")
        self._changed = True

    def _source(self, part: JsonObject, source: JsonObject) -> None:
        """Anthropic's form, for images and documents."""
        image = part.get("type") == "image"
        self._replace(source, "url", image)
        data = source.get("data")
        if image and data is not None:
            if not isinstance(data, str):
                raise self._bad_image("An image source's `data` must be a string of base64.")
            url = data_url(f"data:{source.get('media_type') or ''};base64,{data}", self._param)
            media_type, _, data = url.removeprefix("data:").partition(";base64,")
            if (media_type, data) != (source.get("media_type"), source["data"]):
                source["media_type"], source["data"] = media_type, data
                self._changed = True

    def _url(self, url: object, image: bool) -> str:
        """The URL as an engine may see it."""
        if not isinstance(url, str):
            raise self._unsupported("A media URL must be a string.")
        if url[:5].lower() == "data:":
            return data_url(url, self._param) if image else "data:" + url[5:]
        http = HTTP.match(url)
        if http is None or CONTROL.search(url):
            raise self._unsupported(
                f"Media must be given as http(s) or data: URLs, not {url[:40]!r}. Send a local file's bytes as "
                "`data:<media type>;base64,…`."
            )
        if self._target.image_urls != "passthrough":
            raise self._unsupported(
                f"Backend '{self._target.backend}' takes no http(s) URLs for media (`image_urls: "
                f"{self._target.image_urls}`). Send the bytes as `data:<media type>;base64,…`."
            )
        return http[1].lower() + url[len(http[1]) :]  # some engines know schemes in lower case only

    def _unsupported(self, message: str) -> ApiError:
        return error("unsupported_value", message, param=self._param)

    def _bad_image(self, message: str) -> ApiError:
        return error("invalid_image_url", message, param=self._param)
