"""A value that satisfies a JSON schema: what a model bound to that schema would say. Deterministic; no validation."""

from typing import Any

_WORDS = {"city": "Bern"}  # so that the tools of tests get the arguments of the tiny models
_SCALARS = {"integer": 1, "number": 1.5, "boolean": True, "null": None}
_DEEPEST = 12


def instance(schema: Any, root: Any = None, name: str = "", depth: int = 0) -> Any:
    """Optional members are filled in too, until the schema nests too deeply."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        return instance(resolve(schema["$ref"], root), root, name, depth + 1)
    for word, pick in (("const", schema.get("const")), ("enum", (schema.get("enum") or [None])[0])):
        if word in schema:
            return pick
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return instance(schema[word][-1 if depth > _DEEPEST else 0], root, name, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        members = schema.get("properties", {})
        wanted = schema.get("required", []) if depth > _DEEPEST else members
        return {each: instance(members[each], root, each, depth + 1) for each in members if each in wanted}
    if kind == "array":
        return [instance(schema.get("items", {}), root, name, depth + 1)] * max(1, schema.get("minItems", 1))
    return _SCALARS.get(kind, _WORDS.get(name, "red"))


def resolve(reference: str, root: Any) -> Any:
    """The schema that `#/a/b` points to; None where there is none."""
    found = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step) if isinstance(found, dict) and step else found
    return found


def is_recursive(schema: Any, root: Any = None, seen: tuple[str, ...] = ()) -> bool:
    """Whether a `$ref` leads back to itself."""
    root = schema if root is None else root
    if isinstance(schema, list):
        return any(is_recursive(each, root, seen) for each in schema)
    if not isinstance(schema, dict):
        return False
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return reference in seen or is_recursive(resolve(reference, root), root, (*seen, reference))
    return any(is_recursive(value, root, seen) for key, value in schema.items() if key not in ("$defs", "definitions"))
