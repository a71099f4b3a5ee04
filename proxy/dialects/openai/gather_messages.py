"""A stream of the Messages API folded into the plain answer that the same engine would have given.

What `gather` is for `choices`: see there why a plain answer is asked for as a stream. Sans-IO. Not here: framing, what
an error event means, and the public name of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.errors import error
from proxy.wire import InvalidJson, JsonObject, load_object

# A delta's type -> its member that holds the piece, and the block's member that grows by it.
_DELTAS: Final[dict[str, tuple[str, str]]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "signature_delta": ("signature", "signature"),
    "input_json_delta": ("partial_json", "input"),
}


def gather_message(events: Iterable[JsonObject]) -> JsonObject:
    """The Messages API's object. Raises `upstream_incomplete` where the stream has no end, `upstream_invalid_response`
    where its events don't fit together."""
    message: JsonObject = {}
    blocks: dict[int, JsonObject] = {}
    grown: dict[tuple[int, str], list[str]] = {}
    try:
        for event in events:
            match event.get("type"):
                case "message_start":
                    message = dict(event["message"])
                case "content_block_start":
                    blocks[event["index"]] = dict(event["content_block"])
                case "content_block_delta":
                    delta = event["delta"]
                    piece, member = _DELTAS.get(delta["type"], ("", ""))
                    if member:
                        grown.setdefault((event["index"], member), []).append(delta[piece])
                case "message_delta":
                    message |= event["delta"]
                    message["usage"] = {**message.get("usage", {}), **event.get("usage", {})}
                case "message_stop":
                    return {**message, "content": _blocks(blocks, grown)}
    except (KeyError, TypeError, AttributeError) as exc:  # no object where one belongs
        raise error("upstream_invalid_response", "The engine sent a malformed event.") from exc
    raise error("upstream_incomplete", "The engine ended the answer before it was complete. Try again.")


def _blocks(blocks: dict[int, JsonObject], grown: dict[tuple[int, str], list[str]]) -> list[JsonObject]:
    for (index, member), pieces in grown.items():
        blocks[index][member] = "".join(pieces)
    for block in blocks.values():
        if block.get("type") == "tool_use":
            block["input"] = _arguments(block.get("input"))
    return [blocks[index] for index in sorted(blocks)]


def _arguments(told: object) -> JsonObject:
    """No arguments where the call was cut within them, as llama-server's plain answer has it."""
    if not isinstance(told, str):
        return told if isinstance(told, dict) else {}
    try:
        return load_object(told)
    except InvalidJson:
        return {}
