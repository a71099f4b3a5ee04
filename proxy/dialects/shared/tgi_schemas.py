"""JSON schemas for TGI: output formats and tools.

TGI compiles a schema into a grammar. It can't follow references in a tool's parameters, and a reference that leads
back to itself ends the whole server by stack overflow, so such a schema is never sent.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from proxy.errors import ApiError, error
from proxy.wire import JsonObject


def grammar(form: Any) -> JsonObject | None:
    """`response_format` in TGI's words; None for plain text. Raises `ApiError`."""
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "regex":
        if not isinstance(form.get("value"), str):
            raise _format_error("invalid_value", "type regex needs its pattern in `value`")
        return {"type": "regex", "value": form["value"]}
    if kind == "json_schema":
        inner = form.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else form.get("value")
    elif kind in ("json_object", "json"):
        schema = form.get("schema", form.get("value"))
        if schema is None:
            raise _format_error("unsupported_parameter", "TGI needs a schema; use type json_schema")
    else:
        raise _format_error("invalid_value", "its type must be text, json_schema or regex")
    if not isinstance(schema, dict):
        raise _format_error("invalid_value", "it needs a JSON schema, which is an object")
    if leads_back(schema):
        raise _format_error("unsupported_value", "TGI can't take a schema with a $ref that leads back to itself")
    return {"type": "json", "value": schema}


def _format_error(code: str, what: str) -> ApiError:
    return error(code, f"`response_format`: {what}.", param="response_format")


def tool_for_tgi(tool: Any) -> JsonObject:
    """A tool with the members that TGI insists on. Raises `ApiError`."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict):
        raise error("unsupported_value", "TGI takes tools of type `function` only.", param="tools")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise error("invalid_value", "A function's `parameters` must be a JSON schema.", param="tools")
    if _refs(parameters):
        raise error("unsupported_value", "TGI can't take a $ref in a function's `parameters`.", param="tools")
    kept = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": kept | {"parameters": parameters}}


def _refs(schema: Any) -> set[str]:
    """Every `$ref` below, without following any. (A property may be *called* `$ref`: its value is no string.)"""
    found: set[str] = set()
    todo = [schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                found.add(node["$ref"])
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return found


def leads_back(schema: JsonObject) -> bool:
    """True if following references inside the schema can come round to one that is being followed: such a schema is
    never sent."""
    edges: dict[str, set[str]] = {}
    todo = list(_refs(schema))
    while todo:
        ref = todo.pop()
        if ref not in edges:
            edges[ref] = _refs(_at(schema, ref))
            todo.extend(edges[ref])
    while ends := [ref for ref, following in edges.items() if not following & edges.keys()]:
        for ref in ends:
            del edges[ref]
    return bool(edges)


def _at(schema: JsonObject, ref: str) -> Any:
    """What a local reference points to; None for one that leads nowhere or outside."""
    if not ref.startswith("#"):
        return None
    node: Any = schema
    for step in unquote(ref[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list):
            node = dict(enumerate(node)).get(int(step)) if re.fullmatch(r"[0-9]{1,9}", step) else None
        else:
            node = node.get(step) if isinstance(node, dict) else None
    return node
