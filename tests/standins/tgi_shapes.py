"""The shapes of TGI's request bodies: which members each endpoint reads, and of what type. No bounds."""

from tests.standins.tgi_serde import (
    Check,
    Node,
    Text,
    anything,
    boolean,
    integer,
    optional,
    real,
    sequence,
    string,
    struct,
)

_U32 = integer("u32", 0, 2**32 - 1)
_U64 = integer("u64", 0, 2**64 - 1)
_USIZE = integer("usize", 0, 2**64 - 1)
_I32 = integer("i32", -(2**31), 2**31 - 1)
_STRINGS = sequence(string)


def _grammar(kinds: tuple[str, ...]) -> Check:
    listed = ", ".join(f"`{kind}`" for kind in kinds)
    expected = f"one of {listed}" if len(kinds) > 2 else " or ".join(f"`{kind}`" for kind in kinds)

    def check(text: Text, node: Node, path: str) -> None:
        if not isinstance(node.value, dict):
            raise text.wrong_type(node, path, "adjacently tagged enum GrammarType")
        kind = node.value.get("type")
        if kind is None:
            raise text.mismatch(path, "missing field `type`", node.end)
        if kind.value not in kinds:
            raise text.mismatch(f"{path}.type", f"unknown variant `{kind.value}`, expected {expected}", kind.end)
        if "value" not in node.value:
            raise text.mismatch(path, "missing field `value`", node.end)

    return check


def _fits(node: Node | None, kind: type) -> bool:
    return node is not None and isinstance(node.value, kind)


def _is_part(node: Node) -> bool:
    if not isinstance(node.value, dict) or not _fits(node.value.get("type"), str):
        return False
    if node.value["type"].value == "text":
        return _fits(node.value.get("text"), str)
    url = node.value.get("image_url")
    return node.value["type"].value == "image_url" and _fits(url, dict) and _fits(url.value.get("url"), str)


def _is_call(node: Node) -> bool:
    function = node.value.get("function") if isinstance(node.value, dict) else None
    if not _fits(function, dict) or not _fits(node.value.get("id"), str):
        return False
    return _fits(function.value.get("name"), str) and bool({"arguments", "parameters"} & function.value.keys())


def _message(text: Text, node: Node, path: str) -> None:
    if not isinstance(node.value, dict):
        raise text.wrong_type(node, path, "struct Message")
    if not _fits(node.value.get("role"), str):
        raise text.mismatch(path, "missing field `role`", node.end)
    content, calls = node.value.get("content"), node.value.get("tool_calls")
    spoken = _fits(content, str) or (_fits(content, list) and all(map(_is_part, content.value)))
    if not spoken and not (_fits(calls, list) and all(map(_is_call, calls.value))):
        raise text.mismatch(path, "data did not match any variant of untagged enum MessageBody", node.end)


def _prompt(text: Text, node: Node, path: str) -> None:
    if node.value == []:
        raise text.mismatch(path, "Empty array detected. Do not use an empty array for the prompt.", node.end)
    if _fits(node, str) or (_fits(node, list) and all(_fits(each, str) for each in node.value)):
        return
    raise text.mismatch(path, "data did not match any variant of untagged enum PromptDeserializer", node.end)


_FUNCTION = struct(
    "FunctionDefinition",
    {"description": optional(string), "name": string, "arguments": anything},
    ("name", "arguments"),
    {"parameters": "arguments"},
)
_TOOL = struct("Tool", {"type": string, "function": _FUNCTION}, ("type", "function"))
_STREAM_OPTIONS = struct("StreamOptions", {"include_usage": boolean}, ("include_usage",))


def generate(version: tuple[int, ...]) -> Check:
    kinds = ("json", "json_object", "regex") + (("json_schema",) if version >= (3, 3, 0) else ())
    parameters = {
        "best_of": optional(_USIZE),
        "temperature": optional(real),
        "repetition_penalty": optional(real),
        "frequency_penalty": optional(real),
        "top_k": optional(_I32),
        "top_p": optional(real),
        "typical_p": optional(real),
        "do_sample": boolean,
        "max_new_tokens": optional(_U32),
        "return_full_text": optional(boolean),
        "stop": _STRINGS,
        "truncate": optional(_USIZE),
        "watermark": boolean,
        "details": boolean,
        "decoder_input_details": boolean,
        "seed": optional(_U64),
        "top_n_tokens": optional(_U32),
        "grammar": optional(_grammar(kinds)),
        "adapter_id": optional(string),
    }
    members = {"inputs": string, "parameters": struct("GenerateParameters", parameters)}
    return struct("GenerateRequest", members, ("inputs",))


def compat(version: tuple[int, ...]) -> Check:
    """`POST /`: the same, and `stream`."""
    native = generate(version)

    def check(text: Text, node: Node, path: str) -> None:
        native(text, node, path)
        struct("CompatGenerateRequest", {"stream": boolean})(text, node, path)

    return check


def chat(version: tuple[int, ...]) -> Check:
    kinds = ("json", "json_object", "regex") + (("json_schema",) if version >= (3, 3, 0) else ())
    members = {
        "messages": sequence(_message),
        "model": optional(string),
        "frequency_penalty": optional(real),
        "logit_bias": optional(sequence(real)),
        "logprobs": optional(boolean),
        "top_logprobs": optional(_U32),
        "max_tokens": optional(_U32),
        "n": optional(_U32),
        "presence_penalty": optional(real),
        "stop": optional(_STRINGS),
        "stream": boolean,
        "seed": optional(_U64),
        "temperature": optional(real),
        "top_p": optional(real),
        "tools": optional(sequence(_TOOL)),
        "tool_prompt": optional(string),
        "tool_choice": anything,
        "response_format": optional(_grammar(kinds)),
        "guideline": optional(string),
        "stream_options": _STREAM_OPTIONS,
    }
    aliases = {"max_completion_tokens": "max_tokens"} if version >= (3, 0, 2) else {}
    return struct("ChatRequest", members, ("messages",), aliases)


def completions(version: tuple[int, ...]) -> Check:
    del version
    members = {
        "model": optional(string),
        "prompt": _prompt,
        "max_tokens": optional(_U32),
        "temperature": optional(real),
        "top_p": optional(real),
        "stream": boolean,
        "seed": optional(_U64),
        "suffix": optional(string),
        "repetition_penalty": optional(real),
        "frequency_penalty": optional(real),
        "stop": optional(_STRINGS),
        "stream_options": optional(_STREAM_OPTIONS),
    }
    return struct("CompletionRequest", members, ("prompt",))


def tokenize(version: tuple[int, ...]) -> Check:
    return generate(version)
