"""The types that settings have: what a size, a time, a key or a URL may look like, and what is said of another.

A leaf but for `wire`. No message repeats a key, a URL or a word of a command line, which may hold one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    NonNegativeFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from proxy import wire
from proxy.dialects.base import EngineKind

KIND_SYNONYMS: Final[Mapping[str, EngineKind]] = MappingProxyType({"transformer": "transformers"})
MiB: Final = 1024**2

_UNITS: Final = {"": 1, "b": 1} | {
    letter + unit: base**power for power, letter in enumerate("kmgt", 1) for unit, base in (("b", 1000), ("ib", 1024))
}

_TIMES: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = r"(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|d)\s*"


def without_empty(data: Any) -> Any:
    """The members of a section that have a value; one without any is an empty section."""
    if data is None:
        return {}
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class Section(BaseModel):
    """A frozen mapping of known names. A name with nothing behind it counts as absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    _empty = model_validator(mode="before")(without_empty)


class Words(tuple[str, ...]):
    """Words of a command line. A type of its own, as a variable's text is split as a shell does it, not at commas."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.is_instance_schema(cls)


def _kind(value: Any) -> Any:
    return KIND_SYNONYMS.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", value.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if re.fullmatch(r"\d{1,9}(?:\.\d{1,6})?", text):
        return float(text)
    if not re.fullmatch(f"(?:{_TIME})+", text):
        raise ValueError(f"{value!r} is not a time; write seconds, or a text like 500ms, 10s, 15m or 1h30m")
    return round(sum(float(number) * _TIMES[unit] for number, unit in re.findall(_TIME, text)), 6)


def _text(value: Any) -> str:
    """A word as it stands on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else wire.dump(value).decode()


def _words(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return Words(shlex.split(value))
        except ValueError as exc:
            raise ValueError(f"the text can't be split into words: {str(exc).lower()} (it is not shown)") from None
    if not isinstance(value, list | tuple) or any(isinstance(word, dict | list | None) for word in value):
        raise ValueError("a text or a list of words belongs here")
    return Words(_text(word) for word in value)


def _arguments(value: Any) -> Any:
    return Words(_flags(value)) if isinstance(value, dict) else _words(value)


def _flags(named: Mapping[str, Any]) -> Iterator[str]:
    for name, value in named.items():
        flag = name if name.startswith("-") else f"-{name}" if len(name) == 1 else f"--{name}"
        if value is None or value is False:
            continue
        yield flag
        if value is not True:
            yield from (map(_text, value) if isinstance(value, list) else (_text(value),))


def _variable_text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("an environment variable is text; put it in quotes, the way the program wants it")
    return str(value) if isinstance(value, int | float) else value


def _gpu(value: Any) -> Any:
    value = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,3}|(?:GPU|MIG)-[\w./-]+", value):
        raise ValueError("a GPU is its number (0, 1, …) or its UUID (GPU-…)")
    return value


def _volume(value: str) -> str:
    if not re.fullmatch(r"[^:]+:/[^:]*(?::[a-zA-Z,]+)?", value):
        raise ValueError(f"{value!r} is not a volume; write SOURCE:/TARGET or SOURCE:/TARGET:ro")
    return value


def _url_path(value: str) -> str:
    if not re.fullmatch(r"/[\x21-\x7e]*", value):
        raise ValueError(f"{value!r} is not a path; it begins with '/', like /health")
    return value


def _listen(value: str) -> str:
    parts = urlsplit(_base_url(value))
    if parts.scheme != "http" or parts.port is None or parts.path not in ("", "/"):
        raise ValueError("write it like http://127.0.0.1:8090, with a port and without a path")
    return value.rstrip("/")


def _launcher_url(value: str) -> str:
    if value.startswith("unix:"):
        if not value.startswith("unix:/"):
            raise ValueError("a socket is unix: and its whole path, like unix:/run/illm/launcher.sock")
        return value
    return _base_url(value).rstrip("/")


def _key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
        raise ValueError("a key is one or more visible ASCII characters, without spaces (the value is not shown)")
    return value


def _base_url(value: str) -> str:
    example = "write it like http://10.0.0.5:8000"
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"not a valid URL; {example}") from None
    if "@" in parts.netloc or "@" in value.partition("/")[0]:
        raise ValueError("a user name or password in the URL is not supported; use `api_key` (the value is not shown)")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"an http:// or https:// URL is needed; {example}")
    if parts.query or parts.fragment or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError(f"no spaces, '?' or '#' can be in a base URL; {example}")
    return value


def _origin(value: str) -> str:
    if value not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#]+", value):
        raise ValueError("an origin is scheme://host or scheme://host:port without a path, or '*' for all")
    return value


def _host_name(value: str) -> str:
    if not re.fullmatch(r"\*|(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", value):
        raise ValueError("a host's name belongs here, without scheme and port, like ai.example.com; '*' is every one")
    return value.lower()


Name = Annotated[str, StringConstraints(min_length=1)]
Kind = Annotated[EngineKind, BeforeValidator(_kind, json_schema_input_type=EngineKind | Literal["transformer"])]
Key = Annotated[SecretStr, AfterValidator(_key), WithJsonSchema({"type": "string", "minLength": 1})]
Size = Annotated[
    PositiveInt,
    BeforeValidator(_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]?[iI]?[bB])?\s*$"},
            ],
        }
    ),
]
BaseUrl = Annotated[
    str,
    AfterValidator(_base_url),
    WithJsonSchema({"type": "string", "pattern": "^[hH][tT][tT][pP][sS]?://[^@?#\\s]+$"}),
]
HostName = Annotated[str, AfterValidator(_host_name)]
Origin = Annotated[str, AfterValidator(_origin)]
Duration = Annotated[
    NonNegativeFloat,
    BeforeValidator(_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^\s*([0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)?\s*)+$"},
            ]
        }
    ),
]
_WORD: Final = {"type": ["string", "number", "boolean"]}
CommandWords = Annotated[
    Words, BeforeValidator(_words), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _WORD}]})
]
Arguments = Annotated[
    Words,
    BeforeValidator(_arguments),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "array", "items": _WORD}, {"type": "string"}]}),
]
VariableText = Annotated[SecretStr, BeforeValidator(_variable_text), WithJsonSchema({"type": ["string", "number"]})]
Gpu = Annotated[
    str,
    BeforeValidator(_gpu),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]}),
]
Volume = Annotated[str, AfterValidator(_volume)]
UrlPath = Annotated[str, AfterValidator(_url_path)]
Listen = Annotated[str, AfterValidator(_listen)]
LauncherUrl = Annotated[str, AfterValidator(_launcher_url)]
