"""Request bodies read as TGI's Rust does: the same refusals of wrong types, word for word, with line and column.

A small JSON reader that remembers where each value stands, and checks built from it. Knows the shapes of no request;
tgi_shapes.py does.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_SPACE = " \t\r\n"


class Malformed(Exception):
    """The body is no JSON."""


class Mismatch(Exception):
    """The body is JSON of another shape than asked for."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands in the text; objects and arrays hold nodes."""

    value: Any
    start: int
    end: int
    keys: tuple[tuple[str, int], ...] = ()  # an object's names in order, with where each ends

    def plain(self) -> Any:
        if isinstance(self.value, dict):
            return {name: each.plain() for name, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        return self.value


Check = Callable[["Text", Node, str], None]


class Text:
    def __init__(self, body: bytes) -> None:
        self.text = body.decode("utf-8", "replace")

    def where(self, at: int) -> str:
        before = self.text[:at]
        line = before.count("\n") + 1
        return f"line {line} column {len(before.rpartition(chr(10))[2].encode())}"

    def read(self) -> Node:
        """Raises Malformed."""
        node = self._value(self._skip(0))
        at = self._skip(node.end)
        if at < len(self.text):
            raise self._malformed("trailing characters", at + 1)
        return node

    def _malformed(self, what: str, at: int) -> Malformed:
        return Malformed(f"{what} at {self.where(min(at, len(self.text)))}")

    def _skip(self, at: int) -> int:
        while at < len(self.text) and self.text[at] in _SPACE:
            at += 1
        return at

    def _value(self, at: int) -> Node:
        first = self.text[at : at + 1]
        if not first:
            raise self._malformed("EOF while parsing a value", at)
        if first == "{":
            return self._object(at)
        if first == "[":
            return self._array(at)
        if first == '"':
            return self._string(at)
        for word, value in (("true", True), ("false", False), ("null", None)):
            if self.text.startswith(word, at):
                return Node(value, at, at + len(word))
        number = _NUMBER.match(self.text, at)
        if number is None:
            raise self._malformed("expected ident" if first in "tfn" else "expected value", at + 1 + (first in "tfn"))
        digits = number.group()
        return Node(float(digits) if number[1] or number[2] else int(digits), at, number.end())

    def _string(self, at: int) -> Node:
        start, found = at, []
        at += 1
        while (char := self.text[at : at + 1]) != '"':
            if not char:
                raise self._malformed("EOF while parsing a string", at)
            if char == "\\":
                at += 1
                escape = self.text[at : at + 1]
                if escape == "u":
                    found.append(chr(int(self.text[at + 1 : at + 5], 16)))
                    at += 4
                else:
                    found.append(_ESCAPES.get(escape, escape))
            else:
                found.append(char)
            at += 1
        text = "".join(found).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Node(text, start, at + 1)

    def _array(self, start: int) -> Node:
        found: list[Node] = []
        at = self._skip(start + 1)
        if self.text[at : at + 1] == "]":
            return Node(found, start, at + 1)
        while True:
            found.append(self._value(at))
            at = self._skip(found[-1].end)
            sign = self.text[at : at + 1]
            if sign == "]":
                return Node(found, start, at + 1)
            if sign != ",":
                raise self._malformed(
                    "EOF while parsing a list" if not sign else "expected `,` or `]`", at + bool(sign)
                )
            at = self._skip(at + 1)

    def _object(self, start: int) -> Node:
        found: dict[str, Node] = {}
        keys: list[tuple[str, int]] = []
        at = self._skip(start + 1)
        if self.text[at : at + 1] == "}":
            return Node(found, start, at + 1)
        while True:
            if self.text[at : at + 1] != '"':
                what = "EOF while parsing an object" if at >= len(self.text) else "key must be a string"
                raise self._malformed(what, at + (at < len(self.text)))
            name = self._string(at)
            keys.append((name.value, name.end))
            at = self._skip(name.end)
            if self.text[at : at + 1] != ":":
                raise self._malformed("EOF while parsing an object" if at >= len(self.text) else "expected `:`", at + 1)
            found[name.value] = self._value(self._skip(at + 1))
            at = self._skip(found[name.value].end)
            sign = self.text[at : at + 1]
            if sign == "}":
                return Node(found, start, at + 1, tuple(keys))
            if sign != ",":
                what = "EOF while parsing an object" if not sign else "expected `,` or `}`"
                raise self._malformed(what, at + bool(sign))
            at = self._skip(at + 1)

    def mismatch(self, path: str, what: str, at: int) -> Mismatch:
        return Mismatch(f"{path}: {what} at {self.where(at)}" if path else f"{what} at {self.where(at)}")

    def wrong_type(self, node: Node, path: str, expected: str) -> Mismatch:
        at = node.start if isinstance(node.value, dict | list) else node.end
        return self.mismatch(path, f"invalid type: {_found(node.value)}, expected {expected}", at)


def _found(value: object) -> str:
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, str):
        return 'string "' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    names = {type(None): "null", dict: "map", list: "sequence"}
    if type(value) in names:
        return names[type(value)]
    return f"integer `{value}`" if isinstance(value, int) else f"floating point `{value}`"


def optional(check: Check) -> Check:
    def inner(text: Text, node: Node, path: str) -> None:
        if node.value is not None:
            check(text, node, path)

    return inner


def integer(name: str, low: int, high: int) -> Check:
    def check(text: Text, node: Node, path: str) -> None:
        if isinstance(node.value, bool) or not isinstance(node.value, int):
            raise text.wrong_type(node, path, name)
        if not low <= node.value <= high:
            raise text.mismatch(path, f"invalid value: integer `{node.value}`, expected {name}", node.end)

    return check


def real(text: Text, node: Node, path: str) -> None:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float):
        raise text.wrong_type(node, path, "f32")


def boolean(text: Text, node: Node, path: str) -> None:
    if not isinstance(node.value, bool):
        raise text.wrong_type(node, path, "a boolean")


def string(text: Text, node: Node, path: str) -> None:
    if not isinstance(node.value, str):
        raise text.wrong_type(node, path, "a string")


def anything(text: Text, node: Node, path: str) -> None:
    del text, node, path


def sequence(check: Check) -> Check:
    def inner(text: Text, node: Node, path: str) -> None:
        if not isinstance(node.value, list):
            raise text.wrong_type(node, path, "a sequence")
        for at, each in enumerate(node.value):
            check(text, each, f"{path}[{at}]")

    return inner


def struct(
    name: str, fields: Mapping[str, Check], required: Sequence[str] = (), aliases: Mapping[str, str] | None = None
) -> Check:
    """An object; names that are not in `fields` are ignored, as serde does."""

    def check(text: Text, node: Node, path: str) -> None:
        if isinstance(node.value, list):  # serde takes a list for a struct, member by member
            for at, (field, each) in enumerate(zip(fields, node.value, strict=False)):
                fields[field](text, each, f"{path}[{at}]")
            return
        if not isinstance(node.value, dict):
            raise text.wrong_type(node, path, f"struct {name}")
        seen = set()
        for key, end in node.keys:
            field = (aliases or {}).get(key, key)
            if field not in fields:
                continue
            if field in seen:
                raise text.mismatch(path, f"duplicate field `{field}`", end)
            seen.add(field)
            fields[field](text, node.value[key], f"{path}.{key}" if path else key)
        for field in required:
            if field not in seen:
                raise text.mismatch(path, f"missing field `{field}`", node.end)

    return check
