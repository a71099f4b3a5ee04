"""The types that single settings have: what a size, a key or a URL may look like, and what is said of another.

A leaf. No message repeats a key or a URL, which may hold one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PositiveInt, SecretStr, StringConstraints, WithJsonSchema

from proxy.dialects.base import EngineKind

KIND_SYNONYMS: Final[Mapping[str, EngineKind]] = MappingProxyType({"transformer": "transformers"})
MiB: Final = 1024**2

_UNITS: Final = {"": 1, "b": 1} | {
    letter + unit: base**power for power, letter in enumerate("kmgt", 1) for unit, base in (("b", 1000), ("ib", 1024))
}


def _kind(value: Any) -> Any:
    return KIND_SYNONYMS.get(value.lower(), value.lower()) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)", value.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write bytes, or a number with kB, MB, GB, KiB, MiB or GiB")
    return int(float(match[1]) * _UNITS[match[2]])


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
Origin = Annotated[str, AfterValidator(_origin)]
