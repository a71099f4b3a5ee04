"""Where settings come from: file, environment and command line laid over one another, with the origin of each value.

Knows pydantic's models only as a tree of names and types; what the settings are is in `settings.py`. Here too:
the words in which a wrong value is explained, which never repeat a secret. Reads neither files nor variables.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Final, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from proxy.settings_file import Place, SettingsFile, dotted

SECRETS: Final = frozenset({"api_key", "api_keys", "env", "args", "command"})  # names whose values no message may show


class Origin(NamedTuple):
    """Who set a value: a file's line, a variable, the command line."""

    label: str
    line: int = 0
    names_it: bool = False  # the label alone says which value it is (ILLM_PORT)


@dataclass(frozen=True, slots=True)
class Given:
    """One value from outside the file."""

    place: Place
    value: Any
    origin: Origin


@dataclass(slots=True)
class Layers:
    """What was given so far, the later over the earlier, and by whom."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Place, Origin] = field(default_factory=dict)

    @classmethod
    def of_file(cls, name: str, file: SettingsFile) -> Layers:
        """The lowest layer."""
        return cls(file.data, {at: Origin(f"{name}:{line}", line) for at, line in file.lines.items()})

    def put(self, given: Given) -> None:
        """Lay a value over what is there. Mappings are merged; everything else, lists too, is replaced.

        A value that stands where a mapping belongs stays, so that its own error is the one that is seen.
        """
        *parents, name = given.place
        data = self.data
        at: Place = ()
        for step in parents:
            at = (*at, step)
            if data.get(str(step)) is None:
                data[str(step)] = {}
            data = data[str(step)]
            if not isinstance(data, dict):
                return
            self.origins.setdefault(at, given.origin._replace(names_it=False))
        if isinstance(given.value, Mapping) and isinstance(data.get(str(name)), dict):
            for inner, value in given.value.items():
                origin = given.origin._replace(names_it=False)
                self.put(Given((*given.place, str(inner)), value, origin))
            return
        data[str(name)] = given.value
        self._claim(given.place, given.origin)

    def _claim(self, place: Place, origin: Origin) -> None:
        for old in [at for at in self.origins if at[: len(place)] == place]:
            del self.origins[old]
        self.origins[place] = origin

    def origin(self, place: Place) -> tuple[Origin, bool]:
        """Who set the value at that place or the nearest around it, and whether it is that very place."""
        for length in range(len(place), 0, -1):
            found = self.origins.get(place[:length])
            if found is not None:
                return found, length == len(place)
        return Origin("settings"), False


def from_mapping(label: str, values: Mapping[str, Any], place: Place = ()) -> Iterator[Given]:
    """The values of a nested mapping, one by one; None means not given."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from from_mapping(label, value, (*place, name))
        elif value is not None:
            yield Given((*place, name), value, Origin(label))


# --- types as a tree -----------------------------------------------------------------------------------------------


def plain(kind: Any) -> Any:
    """The type without Annotated and Optional."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, UnionType):
            kind = next(arg for arg in get_args(kind) if arg is not type(None))
        else:
            return kind


def is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    """Whether it is a mapping of known names."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def type_at(root: Any, place: Place) -> Any:
    """The type of the value at that place; None where there can't be one."""
    kind = root
    for step in place:
        kind = plain(kind)
        if is_model(kind):
            known = kind.model_fields.get(str(step))
            kind = known.annotation if known else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1] if step else None
        elif get_origin(kind) is tuple and isinstance(step, int):
            kind = get_args(kind)[0]
        elif kind is not Any:
            return None
    return kind


def names_at(root: Any, place: Place) -> list[str]:
    """The names allowed below that place, sorted; empty where they are free or there are none."""
    kind = plain(type_at(root, place))
    return sorted(kind.model_fields) if is_model(kind) else []


# --- explaining ----------------------------------------------------------------------------------------------------

_NUMBER: Final = "{value} is not a whole number"
_DECIMAL: Final = "{value} is not a number"
_SWITCH: Final = "{value} is not true or false"
_TEXT: Final = "{value} is not text; put it in quotes"
_MAPPING: Final = "names with values (name: value) belong here, not {shape}"
_LIST: Final = "a list belongs here ([a, b]), not {shape}"

# pydantic's error type -> what to say
_WORDS: Final[Mapping[str, str]] = {
    "missing": "this is required, and missing",
    "int_parsing": _NUMBER,
    "int_type": _NUMBER,
    "int_from_float": _NUMBER,
    "int_parsing_size": _NUMBER,
    "float_parsing": _DECIMAL,
    "float_type": _DECIMAL,
    "finite_number": _DECIMAL,
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "string_type": _TEXT,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": _LIST,
    "greater_than": "{value} is not greater than {gt:g}",
    "greater_than_equal": "{value} is less than {ge:g}, the least allowed",
    "less_than_equal": "{value} is more than {le:g}, the most allowed",
}


def explain(root: type[BaseModel], layers: Layers, exc: ValidationError) -> list[str]:
    """One line for each thing that is wrong, the file's in its order."""
    lines: list[tuple[int, str]] = []
    for details in exc.errors(include_url=False):
        for place, message in _messages(root, details):
            origin, exact = layers.origin(place)
            where = "" if origin.names_it and exact else f"{dotted(place)}: "
            lines.append((origin.line, f"{origin.label}: {where}{message}"))
    return [text for _, text in sorted(lines, key=lambda line: line[0])]


def refuse(found: Iterable[tuple[Place, str]]) -> None:
    """Raise, inside a validator, what `explain` tells of several places below the one that is validated."""
    problems = tuple(found)
    if problems:
        text = "; ".join(f"{dotted(place)}: {message}" for place, message in problems)
        raise PydanticCustomError("names", "{text}", {"text": text, "problems": problems})


def _messages(root: type[BaseModel], details: ErrorDetails) -> Iterable[tuple[Place, str]]:
    place: Place = tuple(details["loc"])
    context = details.get("ctx", {})
    if "problems" in context:  # found across several values
        return [((*place, *at), message) for at, message in context["problems"]]
    value = details["input"]
    if details["type"] == "extra_forbidden":
        return [(place, "unknown name" + choices(str(place[-1]), names_at(root, place[:-1])))]
    if details["type"] == "literal_error":
        return [(place, _not_one_of(root, place, value))]
    words = _WORDS.get(details["type"])
    if words is None:
        return [(place, str(context["error"]) if "error" in context else details["msg"])]
    return [(place, words.format(value=_shown(place, value), shape=_shape(value), **context))]


def _not_one_of(root: type[BaseModel], place: Place, value: Any) -> str:
    allowed = sorted(get_args(plain(type_at(root, place))))
    close = close_to(str(value), allowed).rstrip(".")
    return f"{_shown(place, value)} is not one of {', '.join(allowed)}{close}"


def _shown(place: Place, value: Any) -> str:
    if SECRETS.intersection(place) or not isinstance(value, str | int | float):
        return "the value"
    return repr(value) if isinstance(value, str) else str(value).lower()


def _shape(value: Any) -> str:
    return "a list" if isinstance(value, list) else "names with values" if isinstance(value, dict) else "one value"


def close_to(word: str, allowed: Iterable[str]) -> str:
    """How a message goes on that names a wrong word: with the nearest right one, if any is near."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def choices(word: str, allowed: list[str]) -> str:
    """The same, and all that is allowed."""
    return f"{close_to(word, allowed)} Allowed: {', '.join(allowed)}"
