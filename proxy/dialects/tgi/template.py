"""A chat template that the operator configured for a TGI backend, rendered here instead of by TGI.

The only file that knows Jinja, and it imports it only when a template is used. Templates come from models' makers, so
they run in Jinja's sandbox. A clock is not read: `strftime_now` tells the time that the request came with.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from proxy.dialects.base import Target
from proxy.errors import ApiError, error
from proxy.wire import JsonObject, dump

# What a template can do wrong besides what Jinja has a name for.
_MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Template(Protocol):
    """A compiled template."""

    def render(self, **variables: Any) -> str: ...


def compiled(text: str, target: Target) -> Template:
    """That template, to be kept. Raises `chat_template_error`."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if "{{" not in text and "{%" not in text:
        raise _failed(target, "it is no Jinja template (the option takes its text, not the name of a file)")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **_: dump(value).decode()
    try:
        template: Template = environment.from_string(text)
    except TemplateError as exc:
        raise _failed(target, str(exc)) from None
    return template


def render(template: Template, messages: Sequence[JsonObject], now: int, target: Target) -> str:
    """The prompt for messages in TGI's form; `now`: unix seconds. An assistant's message at the end is left open, for
    the model to go on. Raises `chat_template_error`."""
    from jinja2 import TemplateError

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    options = target.options
    plain = [{**message, "content": _plain(message.get("content"))} for message in messages]
    try:
        text = template.render(
            messages=plain,
            add_generation_prompt=True,
            bos_token=options.get("bos_token") or "" if options.get("template_bos") is True else "",
            eos_token=options.get("eos_token") or "",
            raise_exception=raise_exception,
            strftime_now=datetime.fromtimestamp(now, UTC).strftime,
        )
    except (TemplateError, *_MISTAKES) as exc:
        raise _failed(target, str(exc) or type(exc).__name__) from None
    last = plain[-1]
    return _open(text, last["content"]) if last["role"] == "assistant" else text


def _open(text: str, content: str) -> str:
    """Without what the template puts behind the last message."""
    for shown in (content, content.strip()):  # many templates trim
        at = text.rfind(shown) if shown else -1
        if at >= 0:
            return text[: at + len(shown)].rstrip()
    return text


def _plain(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    return "".join(part["text"] if part["type"] == "text" else f"![]({part['image_url']['url']})" for part in content)


def _failed(target: Target, why: str) -> ApiError:
    return error(
        "chat_template_error",
        f"The chat template of backend '{target.backend}' can't be used for these messages: {why}",
        param="messages",
    )
