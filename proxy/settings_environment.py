"""Environment variables as settings: which place in the tree each one names, and its text as that place's type.

Given a mapping, it never looks at the process's own environment. A message names the variable and never its value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from proxy import wire
from proxy.settings_file import Place, dotted
from proxy.settings_layers import Given, Origin, choices, is_model, names_at, plain, type_at
from proxy.settings_types import Words


class Names(NamedTuple):
    """The variables of a program. `short` has the ones that don't spell out their place."""

    prefix: str
    short: Mapping[str, Place]
    implied: Mapping[str, tuple[Place, Any]]  # what a variable says beside its value
    ignored: frozenset[str]  # read elsewhere


def from_environment(
    root: type[BaseModel], names: Names, environ: Mapping[str, str], known: Mapping[str, Any]
) -> tuple[list[Given], list[str]]:
    """Every variable with the prefix as a value, the most specific last; and the problems.

    Empty variables count as unset. Names below a mapping of free names (backends, models) are matched with the
    ones in `known` without regard to case, `_` standing for whatever a variable's name can't hold.
    """
    found: dict[Place, Given] = {}
    implied: list[Given] = []
    problems: list[str] = []
    for variable in sorted(environ):
        text = environ[variable].strip()
        if not variable.startswith(names.prefix) or variable in names.ignored or not text:
            continue
        place = names.short.get(variable) or _spelled_place(root, variable[len(names.prefix) :], known)
        kind = type_at(root, place)
        if kind is None:
            problems.append(_unknown_variable(root, names, variable, place))
            continue
        if place in found:
            other = found[place].origin.label
            problems.append(f"{variable}: {other} sets {dotted(place)} too; keep one of them")
            continue
        origin = Origin(variable, names_it=True)
        try:
            found[place] = Given(place, _decode(kind, text), origin)
        except ValueError as exc:
            problems.append(f"{variable}: {exc}")
        if variable in names.implied:
            at, value = names.implied[variable]
            implied.append(Given(at, value, origin._replace(names_it=False)))
    return sorted([*implied, *found.values()], key=lambda given: len(given.place)), problems


def _spelled_place(root: type[BaseModel], rest: str, known: Mapping[str, Any]) -> Place:
    place: Place = ()
    here: Any = known
    for segment in rest.split("__"):
        name = segment if place[-1:] == ("env",) else segment.lower()  # variables for an engine are written as they are
        if isinstance(here, Mapping) and get_origin(plain(type_at(root, place))) is dict:
            name = next((key for key in here if re.sub(r"\W", "_", key).lower() == name), name)
        here = here.get(name) if isinstance(here, Mapping) else None
        place = (*place, name)
    return place


def _decode(kind: Any, text: str) -> Any:
    """A variable's text as the value that its type needs. Raises `ValueError` with what is wrong."""
    may_be_text = str in get_args(kind)
    kind = plain(kind)
    try:
        if kind is Words:
            return wire.load(text) if text[0] in "[{" else text
        if may_be_text and not text.startswith("{"):
            return text
        if get_origin(kind) is dict or is_model(kind):
            return wire.load_object(text)
        if get_origin(kind) is tuple:
            return wire.load(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
    except wire.InvalidJson as exc:
        raise ValueError(f"not the JSON that this variable needs: {exc}") from None
    if kind is Any:
        try:
            return wire.load(text)
        except wire.InvalidJson:
            return text
    return text


def _unknown_variable(root: type[BaseModel], names: Names, variable: str, place: Place) -> str:
    """What to say of a variable that sets nothing: the closest ones that do."""
    spelled = variable.split("__")
    for length in range(len(place) - 1, 0, -1):
        allowed = names_at(root, place[:length])
        if allowed:
            start = "__".join(spelled[:length])
            return f"{variable}: unknown variable" + choices(variable, [f"{start}__{name.upper()}" for name in allowed])
    values: list[str] = []
    sections: list[str] = []
    for name in names_at(root, ()):
        kind = plain(type_at(root, (name,)))
        (sections if is_model(kind) or get_origin(kind) is dict else values).append(names.prefix + name.upper())
    whole = sorted({*names.short, *values})
    close = difflib.get_close_matches(variable, [*whole, *names.ignored], n=3)
    if close:
        return f"{variable}: unknown variable; did you mean {' or '.join(close)}?"
    return f"{variable}: unknown variable. Allowed: {', '.join([*whole, *(f'{name}__…' for name in sections)])}"
