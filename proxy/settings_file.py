"""YAML to plain values, with the line on which each of them stands: what error messages are made of.

A leaf. It reads YAML 1.2's core types (so `no` and `12:30` are text, as editors think too), text and nothing
executable, and refuses what silently loses a setting: a name given twice. What the names mean is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Place = tuple[str | int, ...]  # ("backends", "fast", "kind"): names, and positions in lists

_TAG: Final = "tag:yaml.org,2002:"


class SettingsError(Exception):
    """The settings can't be used. Its text is for people, one line for each problem, and holds no secret."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What a file says. `lines` has the line (from 1) of every name and list item in `data`."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with YAML 1.2's idea of what an unquoted word is."""


_Loader.yaml_implicit_resolvers = {}


for _name, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


def _int(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_SCALARS: Final[dict[str, Callable[[str], Any]]] = {
    _TAG + "str": str,
    _TAG + "null": lambda _: None,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": _int,
    _TAG + "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}

# What PyYAML says (a part of it) -> what to do about it. None of these repeats the file's text: it may be a key.
_PLAIN: Final = (
    (
        "mapping values are not allowed",
        "': ' can't be here; put quotes around a text that holds it, or see if the line before lacks its ':'",
    ),
    ("cannot start any token", "this character can't start a value; indent with spaces, not tabs, or use quotes"),
    ("could not find expected ':'", "expected 'name: value'; the ':' with a space behind it is missing"),
    ("but found '<block mapping start>'", "this line is indented differently from the names it belongs to"),
    ("expected <block end>", "expected the next name or '- ' item, indented like the ones before it"),
    ("expected ',' or ']'", "expected ',' or ']': the list opened with '[' goes on here"),
    ("expected ',' or '}'", "expected ',' or '}': the mapping opened with '{' goes on here"),
    ("found unexpected end of stream", "the file ends inside a quoted text; the closing quote is missing"),
    ("undefined alias", "'*' refers to an '&' anchor that the file does not have; quote text that begins with '*'"),
    ("another document", "'---' begins a second document; the settings are one document"),
    ("unknown escape character", "unknown \\ escape in double quotes; write \\\\, or use single quotes"),
)


def read_settings_file(path: Path) -> SettingsFile:
    """Read it (blocks). An empty file is empty settings. Raises `SettingsError`."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise SettingsError(f"{path}:{line}: not UTF-8 text") from None
    except OSError as exc:
        raise SettingsError(f"{path}: can't be read: {exc.strerror or exc}") from None
    root = _compose(path, text)
    reader = _Reader(path)
    data = reader.value(root, ()) if root is not None else None
    if reader.problems:
        raise SettingsError(*reader.problems)
    if data is None:
        return SettingsFile()
    if not isinstance(data, dict):
        kind = "a list (a line begins with '-')" if isinstance(data, list) else "a single value"
        message = f"the file must be names with values (server:, backends:, …), but it is {kind}"
        raise SettingsError(f"{path}:{_line(root)}: {message}")
    return SettingsFile(data, reader.lines)


def _line(node: Node | None) -> int:
    return node.start_mark.line + 1 if node is not None else 1


def _compose(path: Path, text: str) -> Node | None:
    """The file's tree of nodes, or None for an empty one."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise SettingsError(f"{path}:{line}: a control character that YAML does not allow") from None
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        said = exc.problem or "not valid YAML"
        plain = next((words for part, words in _PLAIN if part in said), said)
        began = exc.context_mark
        if began and mark and began.line != mark.line and "opened" in plain:
            plain += f" (opened on line {began.line + 1})"
        raise SettingsError(f"{where}: {plain}") from None


class _Reader:
    """Nodes to values. Collects every problem rather than stopping at the first."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[Place, int] = {}
        self.problems: list[str] = []
        self._path = path
        self._open: set[int] = set()

    def value(self, node: Node, place: Place) -> Any:
        if isinstance(node, ScalarNode):
            return self._scalar(node, place)
        if id(node) in self._open:
            self._problem(node, place, "an alias ('*') that contains itself")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, place)
            if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
                return self._list(node, place)
        finally:
            self._open.discard(id(node))
        self._problem(node, place, "tags (words that begin with '!') are not supported")
        return None

    def _scalar(self, node: ScalarNode, place: Place) -> Any:
        build = _SCALARS.get(node.tag)
        if build is None:
            self._problem(node, place, "unsupported '!' tag; put quotes around text that begins with '!'")
            return None
        try:
            return build(node.value)
        except ValueError:
            self._problem(node, place, f"this is not what '!!{node.tag.removeprefix(_TAG)}' means")
            return None

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, ScalarNode) or key.tag != _TAG + "str":
                self._problem(key, place, "a name here is not text; put it in quotes")
                continue
            here = (*place, key.value)
            if key.value in result:
                self._problem(key, here, f"given twice, first on line {self.lines[here]}; keep one")
                continue
            self.lines[here] = _line(key)
            result[key.value] = self.value(child, here)
        return result

    def _list(self, node: SequenceNode, place: Place) -> list[Any]:
        for index, child in enumerate(node.value):
            self.lines[(*place, index)] = _line(child)
        return [self.value(child, (*place, index)) for index, child in enumerate(node.value)]

    def _problem(self, node: Node, place: Place, message: str) -> None:
        self.problems.append(f"{self._path}:{_line(node)}: {dotted(place)}{': ' if place else ''}{message}")


def dotted(place: Place) -> str:
    """`backends.fast.models[0]`"""
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
