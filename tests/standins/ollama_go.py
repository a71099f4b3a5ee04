"""JSON as Ollama's Go reads and writes it: escapes, refusals of wrong types, durations, base64. Knows no HTTP."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

_KINDS = {dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "bool"}
_PYTHON = {"string": (str,), "bool": (bool,), "int": (int,), "array": (list,), "object": (dict,)}
_GO = {"array": "[]interface {}", "object": "map[string]interface {}"}
_CHAT = {"model": "string", "stream": "bool", "messages": "array", "options": "object", "tools": "array"}
_COMMON = {"truncate": "bool", "shift": "bool", "logprobs": "bool", "top_logprobs": "int"}
_GENERATE = {"model": "string", "prompt": "string", "suffix": "string", "stream": "bool", "raw": "bool"}
_DURATION = re.compile(r"[-+]?(?:\d+(?:\.\d*)?(?:ns|us|µs|ms|s|m|h))+")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_INTS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k")
_FLOATS = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")
_OPTIONS = dict.fromkeys((*_INTS, "repeat_last_n", "draft_num_predict"), "integer")
_OPTIONS |= dict.fromkeys(_FLOATS, "float32") | {"stop": "array", "use_mmap": "boolean"}


class Refused(Exception):
    """An answer of the form {"error": text}."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text

    def body(self) -> bytes:
        return dumps({"error": self.text})


def dumps(value: object) -> bytes:
    """Compact, and with the characters escaped that Go escapes for HTML's sake."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def engine_error(status: int, text: str, kind: str, **more: object) -> Refused:
    """An error of llama-server, which Ollama 0.30+ hands on as JSON inside its own text."""
    inner = {"error": {"code": status, "message": text, "type": kind, **more}}
    return Refused(status, json.dumps(inner, ensure_ascii=False, separators=(",", ":")))


def read(body: bytes) -> dict[str, Any]:
    """Raises Refused."""
    if not body:
        raise Refused(400, "missing request body")
    try:
        value = json.loads(body)
    except ValueError as broken:
        at_end = str(broken).startswith("Expecting") and getattr(broken, "pos", 0) >= len(body.decode().rstrip())
        raise Refused(400, "unexpected EOF" if at_end else "invalid character in JSON") from None
    if not isinstance(value, dict):
        raise Refused(
            400, f"json: cannot unmarshal {_KINDS.get(type(value), 'null')} into Go value of type api.Request"
        )
    return {name: each for name, each in value.items() if each is not None}


def _typed(value: object, kind: str, where: str, shown: str | None = None) -> None:
    wrong = not isinstance(value, _PYTHON[kind]) or (isinstance(value, bool) and kind == "int")
    if value is not None and wrong:
        name = shown or _GO.get(kind, kind)
        raise Refused(400, f"json: cannot unmarshal {_KINDS[type(value)]} into Go struct field {where} of type {name}")


def check_chat(body: Mapping[str, Any], since: tuple[int, ...]) -> None:
    """Types of the members that /api/chat reads. Raises Refused."""
    for name, kind in (_CHAT | _COMMON).items():
        _typed(body.get(name), kind, f"ChatRequest.{name}", {"messages": "[]api.Message"}.get(name))
    for message in body.get("messages", ()):
        _typed(message, "object", "ChatRequest.messages", "api.Message")
        for name in ("role", "content", "thinking", "tool_name"):
            _typed(message.get(name), "string", f"ChatRequest.messages.{name}")
        for image in message.get("images") or ():
            decode_image(image)
        for call in message.get("tool_calls") or ():
            _check_arguments(call.get("function", {}).get("arguments"), since)
    for tool in body.get("tools", ()):
        _check_tool(tool)


def check_generate(body: Mapping[str, Any]) -> None:
    for name, kind in (_GENERATE | _COMMON | {"options": "object"}).items():
        _typed(body.get(name), kind, f"GenerateRequest.{name}")
    for image in body.get("images") or ():
        decode_image(image)


def _check_arguments(value: object, since: tuple[int, ...]) -> None:
    if isinstance(value, str) and since >= (0, 30):
        raise Refused(400, "Value looks like object, but can't find closing '}' symbol")
    where = "ChatRequest.messages.tool_calls.function.arguments"
    _typed(value, "object", where, "api.ToolCallFunctionArguments")


def _check_tool(tool: Mapping[str, Any]) -> None:
    parameters = (tool.get("function") or {}).get("parameters")
    if not isinstance(parameters, dict):
        return
    _typed(parameters.get("type"), "string", "ToolFunctionParameters.tools.function.parameters.type")
    for each in (parameters.get("properties") or {}).values():
        where = "ToolFunctionParameters.tools.function.parameters.properties"
        _typed(each, "object", where, "api.ToolProperty")


def decode_image(text: object) -> bytes:
    """Raises Refused for anything but padded standard base64."""
    _typed(text, "string", "ChatRequest.messages.images", "api.ImageData")
    assert isinstance(text, str)
    wrong = re.search(r"[^A-Za-z0-9+/=]", text)
    if wrong or len(text) % 4:
        raise Refused(400, f"illegal base64 data at input byte {wrong.start() if wrong else len(text) // 4 * 4}")
    return base64.b64decode(text)


def check_options(options: Mapping[str, Any]) -> None:
    """A wrong type inside `options` is a 500. Unknown names and nulls are ignored."""
    for name, value in options.items():
        kind = _OPTIONS.get(name)
        fits = {
            "integer": isinstance(value, int | float) and not isinstance(value, bool),
            "float32": isinstance(value, int | float) and not isinstance(value, bool),
            "array": isinstance(value, list) and all(isinstance(each, str) for each in value),
            "boolean": isinstance(value, bool),
        }
        if kind is not None and value is not None and not fits[kind]:
            raise Refused(500, f'option "{name}" must be of type {kind}')


def duration(value: object) -> float:
    """Seconds of a `keep_alive`. Raises Refused."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        raise Refused(400, f"unsupported type for keep_alive: {_KINDS.get(type(value), 'null')}")
    if value == "0":
        return 0.0
    if re.fullmatch(r"[-+]?\d+(\.\d+)?", value):
        raise Refused(400, f'time: missing unit in duration "{value}"')
    if not _DURATION.fullmatch(value):
        raise Refused(400, f'time: invalid duration "{value}"')
    total = sum(float(amount) * _UNITS[unit] for amount, unit in re.findall(r"([\d.]+)(ns|us|µs|ms|s|m|h)", value))
    return -total if value.startswith("-") else total
