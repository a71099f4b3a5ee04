"""Several answers from TGI's own /v1, which gives one for each request: `n` above 1, and more prompts than it takes.

Each child is a request of its own, fixed by a `ReplyFixer` of its own; here their choices get the client's index and
their answers one id, one usage and one end. Pure, on parsed JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.dialects.base import Endpoint, Target
from proxy.dialects.openai.tgi_reply import ReplyFixer
from proxy.dialects.openai.tgi_request import batch_size
from proxy.dialects.shared.openai_in import Child, count_of, fan_out, prompts, wants_usage, with_defaults
from proxy.wire import JsonObject


def children(endpoint: Endpoint, body: JsonObject, target: Target) -> list[tuple[JsonObject, Child]]:
    """The requests that this one becomes, none where TGI can take it as it is. Raises `ApiError` above the limits."""
    asked = with_defaults(body, target)
    n = count_of(asked, target)
    found: list[Any] = [None]
    if endpoint == "completions" and isinstance(asked.get("prompt"), list):
        found = prompts(asked, target, "TGI")
    if n == 1 and len(found) <= batch_size(target):
        return []
    out = []
    for child in fan_out(len(found), n):
        one = {name: value for name, value in asked.items() if name != "n"}
        if endpoint == "completions" and found != [None]:
            one["prompt"] = found[child.prompt]
        if isinstance(one.get("seed"), int):
            one["seed"] += child.shift
        out.append((one, child))
    return out


@dataclass
class Joint:
    """What the children's streams share."""

    left: int
    common: JsonObject = field(default_factory=dict)  # id, created and model of the first chunk that came
    prompt: int = 0
    completion: int = 0

    def count(self, usage: Any, child: Child) -> None:
        """A prompt is counted once, however many answers it gets."""
        if isinstance(usage, dict):
            self.prompt += usage.get("prompt_tokens") or 0 if child.shift == 0 else 0
            self.completion += usage.get("completion_tokens") or 0

    def usage(self) -> JsonObject:
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class ChildFixer:
    """A `stream.Fixer` for one child: the last of them to end adds the usage and lets the stream end."""

    def __init__(self, inner: ReplyFixer, child: Child, joint: Joint, *, usage: bool) -> None:
        self._inner = inner
        self._child = child
        self._joint = joint
        self._wants_usage = usage

    @property
    def stopped(self) -> bool:
        return self._inner.stopped

    @property
    def last(self) -> bool:
        return self._joint.left == 0

    def event(self, chunk: JsonObject) -> list[JsonObject]:
        return [self._placed(one) for one in self._inner.event(chunk)]

    def end(self, *, marked: bool = True) -> list[JsonObject]:
        out = []
        for chunk in self._inner.end(marked=marked):
            if chunk.get("choices"):
                out.append(self._placed(chunk))
            else:
                self._joint.count(chunk.get("usage"), self._child)
        self._joint.left -= 1
        if self.last and self._wants_usage:
            out.append({**self._joint.common, "choices": [], "usage": self._joint.usage()})
        return out

    def _placed(self, chunk: JsonObject) -> JsonObject:
        if not self._joint.common:
            self._joint.common = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        choices = [{**choice, "index": self._child.index} for choice in chunk["choices"]]
        return {**chunk, **self._joint.common, "choices": choices}


def fixers(
    endpoint: Endpoint, asked: Sequence[tuple[JsonObject, Child]], target: Target, ids: Callable[[str], str]
) -> list[ChildFixer]:
    """One for each child's stream."""
    joint = Joint(len(asked))
    return [
        ChildFixer(ReplyFixer(endpoint, body, target, ids), child, joint, usage=wants_usage(body))
        for body, child in asked
    ]


def joined(
    endpoint: Endpoint,
    asked: Sequence[tuple[JsonObject, Child]],
    answers: Sequence[JsonObject],
    target: Target,
    ids: Callable[[str], str],
) -> JsonObject:
    """One whole answer from the children's, in their order. Raises `ApiError` where one isn't an answer."""
    joint = Joint(0)
    first: JsonObject = {}
    choices = []
    for (body, child), answer in zip(asked, answers, strict=True):
        whole = ReplyFixer(endpoint, body, target, ids).whole(answer)
        first = first or whole
        joint.count(whole.get("usage"), child)
        choices += [{**choice, "index": child.index} for choice in whole["choices"]]
    return {**first, "choices": choices, "usage": joint.usage()}
