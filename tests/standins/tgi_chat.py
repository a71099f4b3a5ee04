"""TGI's chat side: messages → prompt as its templates do, tools → grammar, `/v1` bodies → generation parameters.

Knows no HTTP; tgi_v1.py answers.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.engines.speech import TOOL_NAME
from tests.standins.instances import instance
from tests.standins.tgi_rules import Refused, Settings, compile_schema, invalid
from tests.standins.tgi_tokens import BOS, EOS

NO_TOOL = "no_tool"
_TOOL_PROMPT = (
    "\nGiven the functions available, please respond with a JSON for a function call with its proper arguments that "
    "best answers the given prompt. Respond in the format {name: function name, parameters: dictionary of argument "
    "name and its value}.Do not use variables.\n"
)
_NO_TOOL_FUNCTION = {
    "description": "Open ended response with no specific tool selected",
    "name": NO_TOOL,
    "arguments": {
        "type": "object",
        "properties": {"content": {"type": "string", "description": "The response content"}},
        "required": ["content"],
    },
}


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions a request may call, and whether it may also call none."""

    functions: list[dict[str, Any]]
    auto: bool


def template_error(text: str) -> Refused:
    return Refused(422, f"Template error: {text}", "template_error")


def tool_error(text: str) -> Refused:
    return Refused(422, f"Tool error: {text}", "tool_error")


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    given = tool["function"]
    arguments = given["arguments"] if "arguments" in given else given.get("parameters")
    return {"description": given.get("description"), "name": given["name"], "arguments": arguments}


def choose_tools(body: dict[str, Any], settings: Settings) -> Tools | None:
    """Raises Refused; None where the request has no tools to call."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools is None or choice == "none":
        return None
    if body.get("response_format") is not None:
        raise tool_error("Grammar and tools are mutually exclusive")
    functions = [_function(tool) for tool in tools]
    if choice in (None, "auto"):
        return Tools([*functions, _NO_TOOL_FUNCTION], auto=True)
    if choice == "required":
        return Tools(functions, auto=False)
    name = choice if isinstance(choice, str) else (choice.get("function") or {}).get("name")
    named = [each for each in functions if each["name"] == name]
    if not named:
        raise tool_error(f"Tool with name {name} not found")
    return Tools(named, auto=False)


def check_tool_schemas(tools: Tools, settings: Settings) -> None:
    for each in tools.functions:
        if isinstance(each["arguments"], dict):
            compile_schema(each["arguments"], settings)
            if "$ref" in json.dumps(each["arguments"]):
                # the schema is moved below `$functions`, so that its own `#/$defs` lead nowhere
                raise invalid("cannot compile regex from schema: Failed to resolve reference")


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        shown = (part["text"] if part["type"] == "text" else f"![]({part['image_url']['url']})" for part in content)
        return "".join(shown)
    calls = [
        {
            "id": call["id"],
            "type": call.get("type", "function"),
            "function": _function(call) | {"arguments": _json(_function(call)["arguments"])},
        }
        for call in message["tool_calls"]
    ]
    return _json(calls)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _tool_text(tools: Tools, prompt: str) -> str:
    shown = [
        {"type": "function", "function": each | {"arguments": _json(each["arguments"])}} for each in tools.functions
    ]
    return f"\n---\n{_json(shown)}\n{prompt}"


def render(messages: list[dict[str, Any]], tools: Tools | None, tool_prompt: str | None, settings: Settings) -> str:
    """The prompt. Raises Refused where there is no template, or where it raises."""
    if settings.template == "none":
        raise template_error("template not found")
    texts = [(message["role"], _text(message)) for message in messages]
    if tools is not None and texts:
        role, last = texts[-1]
        texts[-1] = (role, last + _tool_text(tools, _TOOL_PROMPT if tool_prompt is None else tool_prompt))
    shown = _whitespace(texts) if settings.template == "whitespace" else _default(texts)
    prompt = (BOS if settings.template_bos else "") + shown
    if texts and texts[-1][0] == "assistant":
        prompt = prompt[: prompt.rindex(texts[-1][1]) + len(texts[-1][1])].rstrip()
    return prompt


def _default(texts: list[tuple[str, str]]) -> str:
    for role, _ in texts:
        if role == "forbidden":
            raise template_error(f"syntax error: Role {role} is not allowed here (in <string>:1)")
    return "".join(f"<|{role}|>\n{text}{EOS}\n" for role, text in texts) + "<|assistant|>\n"


def _whitespace(texts: list[tuple[str, str]]) -> str:
    """A template with block tags on lines of their own, around which TGI trims nothing."""
    names = {"user": "USER", "assistant": "ASSISTANT"}
    for role, _ in texts:
        if role not in names:
            raise template_error("syntax error: only user and assistant (in <string>:1)")
    return "".join(f"\n    \n{names[role]}: {text}\n    \n" for role, text in texts) + "ASSISTANT:"


def parameters(body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """Generation parameters of a `/v1` body, with the router's own oddities."""
    temperature = body.get("temperature")
    made = {
        "do_sample": temperature is None or temperature > 0,
        "temperature": temperature or None,
        "max_new_tokens": body.get("max_tokens", body.get("max_completion_tokens") if chat else None),
        "details": True,
    }
    made |= {name: body.get(name) for name in ("top_p", "frequency_penalty", "seed", "stop")}
    if not chat:
        return made | {"repetition_penalty": body.get("repetition_penalty")}
    presence = body.get("presence_penalty")
    made["repetition_penalty"] = None if presence is None else presence + 2
    made["top_n_tokens"] = body.get("top_logprobs") if body.get("logprobs") else None
    made["grammar"] = body.get("response_format")
    return made


def call_text(tools: Tools, messages: list[dict[str, Any]]) -> str | None:
    """What the model says when it is bound to call; no tool where it may and the last word is not a user's."""
    callable_ = [each for each in tools.functions if each["name"] != NO_TOOL]
    if not callable_:
        return None
    if tools.auto and messages and messages[-1]["role"] != "user":
        return json.dumps({"function": {"_name": NO_TOOL, "content": ""}})
    named = next((each for each in callable_ if each["name"] == TOOL_NAME), callable_[0])
    arguments = instance(named["arguments"]) if isinstance(named["arguments"], dict) else {}
    return json.dumps({"function": {"_name": named["name"], **arguments}}, ensure_ascii=False)


def call_id(messages: list[dict[str, Any]]) -> str:
    """The next number after the history's; with ids that are none, a made-up one."""
    ids = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    if not all(each.isdigit() for each in ids):
        return "791c5f30-4d52-4a6b-9d0e-000000000000"
    return str(max(map(int, ids)) + 1 if ids else 0)


_NAMED = re.compile(r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*"([^"]*)"\s*([,}])')


class CallPieces:
    """Cuts the streamed text of a call into its name and the pieces of its arguments."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._text = ""
        self._depth = 1

    def feed(self, text: str) -> str | None:
        """The next piece of the arguments; None while the name is not known yet."""
        if self.name is not None:
            return self._inside(text)
        self._text += text
        found = _NAMED.match(self._text)
        if found is None:
            return None
        self.name = found[1]
        if found[2] == "}":
            self._depth = 0
            return "{}"
        return "{" + self._inside(self._text[found.end() :])

    def _inside(self, text: str) -> str:
        kept = ""
        for char in text:
            if self._depth == 0:
                break
            self._depth += (char == "{") - (char == "}")
            kept += char
        return kept
