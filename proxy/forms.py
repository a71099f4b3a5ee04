"""Multipart forms (audio, image edits): read the few fields that route a request, write a form anew. No I/O.

Framing is python-multipart's work; here a form is a list of parts that are copied as they are.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.errors import bad_request, error
from proxy.wire import dump

# The beginning of a file -> what an upload of it is called; engines go by the name's ending.
_AUDIO: Final = (
    (b"RIFF", "audio.wav"),
    (b"fLaC", "audio.flac"),
    (b"OggS", "audio.ogg"),
    (b"ID3", "audio.mp3"),
    (b"\xff", "audio.mp3"),
    (b"\x1aE\xdf\xa3", "audio.webm"),
)


MAX_PARTS: Final = 1000  # a body full of tiny ones would take seconds to read


@dataclass(frozen=True, slots=True)
class Part:
    """One field; `head` is its header lines."""

    name: str
    head: bytes
    data: bytes
    is_file: bool


@dataclass(frozen=True, slots=True)
class Form:
    """A whole form, in the order it came."""

    parts: tuple[Part, ...]

    def text(self, name: str) -> str | None:
        """The value of the first text field of that name."""
        for part in self.parts:
            if part.name == name and not part.is_file:
                return part.data.decode("utf-8", "replace").strip()
        return None

    def encode(self, changes: Mapping[str, str | None]) -> tuple[str, bytes]:
        """Content type and body, with some text fields set (None: left out)."""
        boundary = secrets.token_hex(16).encode()
        kept = [part for part in self.parts if part.name not in changes or part.is_file]
        new = [_field(name, value.encode()) for name, value in changes.items() if value is not None]
        lines = [b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, part.head, part.data) for part in (*new, *kept)]
        return f"multipart/form-data; boundary={boundary.decode()}", b"".join([*lines, b"--%b--\r\n" % boundary])


def parse_form(content_type: str, body: bytes) -> Form:
    """Raises a 400 for what is no form."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise bad_request("The multipart form has no boundary in its content-type header.")
    collector = _Collector(body)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as exc:
        raise bad_request(f"The multipart form can't be read: {exc}.") from None
    return Form(tuple(collector.parts))


def audio_form(members: Mapping[str, Any]) -> Form:
    """The form that engines expect, from a JSON body with `audio_base64` (bare base64 or a data: URL)."""
    given = members.get("audio_base64")
    if not isinstance(given, str) or not given:
        raise error(
            "missing_required_parameter",
            "Send the audio as the form field `file`, or as `audio_base64` in a JSON body.",
            param="audio_base64",
        )
    try:
        data = base64.b64decode(given.partition(",")[2] if given.startswith("data:") else given, validate=True)
    except (binascii.Error, ValueError):
        raise error("invalid_value", "`audio_base64` is not base64.", param="audio_base64") from None
    name = next((name for magic, name in _AUDIO if data.startswith(magic)), "audio.wav")
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: application/octet-stream'
    fields = [part for key, value in members.items() if key != "audio_base64" for part in _fields(key, value)]
    return Form((*fields, Part("file", head.encode(), data, is_file=True)))


def _fields(name: str, value: Any) -> Iterable[Part]:
    if value is None:
        return
    if isinstance(value, list):
        for item in value:
            yield from _fields(name if name.endswith("[]") else f"{name}[]", item)
    elif isinstance(value, bool):
        yield _field(name, b"true" if value else b"false")
    elif isinstance(value, dict):
        yield _field(name, dump(value))
    else:
        yield _field(name, str(value).encode())


def _field(name: str, value: bytes) -> Part:
    quoted = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    return Part(name, f'Content-Disposition: form-data; name="{quoted}"'.encode(), value, is_file=False)


class _Collector:
    """Turns the parser's callbacks into parts. The body is written in one go, so offsets are the body's."""

    def __init__(self, body: bytes) -> None:
        self.parts: list[Part] = []
        self._body = body
        self._lines: list[bytes] = []
        self._name = b""
        self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise bad_request(f"The multipart form has more than {MAX_PARTS} parts.")
        self._lines, self._data = [], []
        self._name = self._value = b""

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._lines.append(self._name + b": " + self._value)
        self._name = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        options: dict[bytes, bytes] = {}
        for line in self._lines:
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-disposition":
                _, options = parse_options_header(value)
        name_of = options.get(b"name", b"").decode("utf-8", "replace")
        self.parts.append(Part(name_of, b"\r\n".join(self._lines), b"".join(self._data), b"filename" in options))
