"""What TGI's router refuses before it generates: parameter bounds, lengths, grammars and images, in its own words.

Knows no HTTP. The order of the checks is the router's.
"""

import base64
import binascii
import json
import math
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from tests.standins.directives import ENDLESS_DELAY
from tests.standins.instances import is_recursive
from tests.standins.tgi_serde import Malformed, Text
from tests.standins.tgi_tokens import Piece, encode

SEGMENT = 1024
_IMAGE = re.compile(r"!\[\]\(([^)]*)\)")
_FORMATS = ("uuid", "date-time", "date", "time")
_SIGNATURES = {
    "image/png": b"\x89PNG",
    "image/gif": b"GIF8",
    "image/jpeg": b"\xff\xd8",
    "image/webp": b"RIFF",
}
_IMAGE_TOKENS = 1


class Refused(Exception):
    """An answer of the form {"error", "error_type"}."""

    def __init__(self, status: int, error: str, kind: str) -> None:
        super().__init__(error)
        self.status, self.error, self.kind = status, error, kind

    def body(self) -> bytes:
        return dumps({"error": self.error, "error_type": self.kind})


@dataclass(frozen=True, slots=True)
class Settings:
    """The command line of one stand-in router."""

    version: str = "3.3.6-dev0"
    model_id: str = "acme/tiny-llama"
    max_input_tokens: int = 4096
    max_total_tokens: int = 8192
    max_concurrent: int = 128
    max_best_of: int = 2
    max_stop: int = 4
    max_top_n: int = 5
    max_batch: int = 4
    api_key: str | None = None
    vision: bool = False
    grammars: bool = True
    bos: str = "both"  # who puts it in front: both, tokenizer, template or none
    template: str = "default"  # default, whitespace or none
    keep_alive: float = 15.0
    token_delay: float = 0.0
    endless_delay: float = ENDLESS_DELAY

    @property
    def since(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.partition("-")[0].split("."))

    @property
    def tokenizer_bos(self) -> bool:
        return self.bos in ("both", "tokenizer")

    @property
    def template_bos(self) -> bool:
        return self.bos in ("both", "template")


@dataclass(slots=True)
class Job:
    """A request that passed."""

    inputs: str
    parameters: dict[str, Any]
    limit: int
    prompt_tokens: int
    schema: Any = None
    images: list[str] = field(default_factory=list)
    last_message: str = ""

    @property
    def details(self) -> bool:
        return bool(self.parameters.get("details", False))

    @property
    def best_of(self) -> int:
        return self.parameters.get("best_of") or 1


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def invalid(text: str) -> Refused:
    return Refused(422, f"Input validation error: {text}", "validation")


def check(inputs: str, parameters: dict[str, Any], settings: Settings, *, stream: bool, special: bool = True) -> Job:
    """Raises Refused; kills the process where the real one dies of a recursive schema.

    `special`: the tokenizer adds its BOS, as everywhere but in chats.
    """
    _sampling(parameters, settings, stream)
    _lists(parameters, settings)
    if not inputs:
        raise invalid("`inputs` cannot be empty")
    truncate = parameters.get("truncate")
    if truncate is not None and not 0 < truncate <= settings.max_input_tokens:
        most = settings.max_input_tokens
        raise invalid(f"`truncate` must be strictly positive and less than {most}. Given: {truncate}")
    pieces, images = prompt_pieces(inputs, settings)
    count = len(pieces) + len(images) * _IMAGE_TOKENS + (special and settings.tokenizer_bos)
    count = min(count, truncate or count)
    limit = _length(count, parameters.get("max_new_tokens"), settings)
    job = Job(inputs, parameters, limit, count, images=images)
    if parameters.get("grammar") is not None:
        job.schema = grammar(parameters["grammar"], settings)
    return job


def _sampling(given: dict[str, Any], settings: Settings, stream: bool) -> None:
    best_of = given.get("best_of") or 1
    if best_of > settings.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {best_of}")
    if stream and best_of > 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if stream and given.get("decoder_input_details"):
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    if best_of > 1 and not samples(given):
        raise invalid("you must use sampling when `best_of` is > 1")
    for name in ("temperature", "repetition_penalty"):
        if given.get(name) is not None and given[name] <= 0:
            raise invalid(f"`{name}` must be strictly positive")
    if given.get("frequency_penalty") is not None and not -2 <= given["frequency_penalty"] <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    for name in ("top_p", "typical_p"):
        if given.get(name) is not None and not 0 < given[name] < 1:
            raise invalid(f"`{name}` must be > 0.0 and < 1.0")
    for name in ("top_k", "max_new_tokens"):
        if given.get(name) is not None and given[name] <= 0:
            raise invalid(f"`{name}` must be strictly positive")


def _lists(given: dict[str, Any], settings: Settings) -> None:
    stops, top_n = len(given.get("stop") or ()), given.get("top_n_tokens")
    if stops > settings.max_stop:
        raise invalid(f"`stop` supports up to {settings.max_stop} stop sequences. Given: {stops}")
    if (given.get("best_of") or 1) > 1 and given.get("seed") is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    if top_n is not None and top_n > settings.max_top_n:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {settings.max_top_n}. Given: {top_n}")


def samples(given: dict[str, Any]) -> bool:
    """Any warper switches sampling on; without parameters it is on too, but nobody can see that."""
    return bool(given.get("do_sample")) or any(
        given.get(name) is not None for name in ("temperature", "top_k", "top_p", "typical_p")
    )


def _length(count: int, wanted: int | None, settings: Settings) -> int:
    """The number of tokens after which it ends with `length`."""
    if count > settings.max_input_tokens:
        raise invalid(f"`inputs` must have less than {settings.max_input_tokens} tokens. Given: {count}")
    segmented = settings.since >= (3, 0)
    room = settings.max_total_tokens - count
    if wanted is None:
        return room if segmented else min(room, 100 if settings.since >= (1, 4) else 20)
    checked = min(wanted, SEGMENT) if segmented else wanted
    if checked > room:
        most = settings.max_total_tokens
        given = f"Given: {count} `inputs` tokens and {checked} `max_new_tokens`"
        raise invalid(f"`inputs` tokens + `max_new_tokens` must be <= {most}. {given}")
    if segmented and wanted > SEGMENT:
        return min(math.ceil(wanted / SEGMENT), room // SEGMENT) * SEGMENT
    return wanted


def grammar(given: dict[str, Any], settings: Settings) -> Any:
    """The schema that the answer is bound to, None for a regular expression (taken, but not obeyed)."""
    if not settings.grammars:
        raise invalid("grammar is not supported")
    value = given["value"]
    if given["type"] == "regex":
        return None
    if given["type"] == "json_schema":
        value = value.get("schema") if isinstance(value, dict) else value
    if isinstance(value, str):
        try:
            value = Text(value.encode()).read().plain()
        except Malformed as broken:
            raise invalid(f"grammar is not valid: {broken}") from None
    if not isinstance(value, dict):
        raise invalid("grammar is not supported")
    if "properties" not in value:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    compile_schema(value, settings)
    return value


def compile_schema(value: Any, settings: Settings) -> None:
    """What the router's schema compiler refuses."""
    if is_recursive(value) and settings.since >= (3, 0):
        print("fatal runtime error: stack overflow, aborting", file=sys.stderr, flush=True)
        os.abort()
    _types(value)
    for each in value.get("properties", {}).values():
        _compiles(each)


_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def _types(schema: Any) -> None:
    if isinstance(schema, dict):
        kind = schema.get("type")
        if isinstance(kind, str) and kind not in _TYPES:
            text = f"\"{kind}\" is not valid under any of the schemas listed in the 'anyOf' keyword"
            raise invalid(f"grammar is not valid: {text}")
        for each in schema.get("properties", {}).values():
            _types(each)


def _compiles(schema: Any) -> None:
    start = "cannot compile regex from schema: "
    if not isinstance(schema, dict):
        raise invalid(f"{start}Invalid JSON Schema: expected an object")
    if isinstance(schema.get("type"), list):
        raise invalid(f"{start}'type' must be a string")
    if "not" in schema:
        text = json.dumps(schema, separators=(",", ":"))
        hint = "Make sure it is valid to the JSON Schema specification and check"
        raise invalid(f"{start}Unsupported JSON Schema structure {text} \n{hint} if it's supported by Outlines.")
    if schema.get("format", _FORMATS[0]) not in _FORMATS:
        raise invalid(f"{start}Format {schema['format']} is not supported by Outlines")
    for each in schema.get("properties", {}).values():
        _compiles(each)


def prompt_pieces(inputs: str, settings: Settings) -> tuple[list[Piece], list[str]]:
    """The prompt's tokens and, for a vision model, its images, each said in words. Raises Refused for a bad image."""
    if not settings.vision:
        return encode(inputs), []
    images = [_image(each) for each in _IMAGE.finditer(inputs)]
    return [piece for part in _IMAGE.split(inputs)[::2] for piece in encode(part)], images


def _image(found: "re.Match[str]") -> str:
    url = found[1]
    if url.startswith(("http://", "https://")):
        # fetched without any check by the real one; here nobody ever answers, and the journal shows what was asked
        failure = "error trying to connect: tcp connect error: Connection refused (os error 111)"
        raise invalid(f"Could not fetch image: error sending request for url ({url}): {failure}")
    if not url.startswith("data:"):
        raise invalid(f"invalid image content: {found[0]}")
    content = url.removeprefix("data:")
    media, marked, text = content.partition(";base64,")
    if not marked or ";" in media:
        raise invalid(f"invalid image content: {content}")
    wrong = re.search(r"[^A-Za-z0-9+/=]", text)
    if wrong:
        raise invalid(f"base64 encoding is invalid: Invalid symbol {ord(wrong[0])}, offset {wrong.start()}.")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise invalid("base64 encoding is invalid: Invalid padding") from None
    return _decoded(media, data)


def _decoded(media: str, data: bytes) -> str:
    names = [name for name, signature in _SIGNATURES.items() if data.startswith(signature)]
    declared = media if media in _SIGNATURES else (names or ["image/png"])[0]
    if len(data) < len(_SIGNATURES[declared]):
        raise invalid("invalid image: unexpected end of file")
    if declared not in names:
        kind = declared.removeprefix("image/").capitalize()
        raise invalid(f"invalid image: Format error decoding {kind}: malformed {kind.upper()} header")
    return f"A {declared.removeprefix('image/')} picture of {len(data)} bytes ."
