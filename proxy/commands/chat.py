"""`illm chat`: a conversation on a terminal, or one question whose answer is printed and nothing else.

Here: which of the two, which model, and the single question. The conversation is `repl`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Final

from proxy.commands.answering import Answer, advice, answer
from proxy.commands.client import Server
from proxy.commands.conversation import Conversation, picture
from proxy.commands.models import backend_kinds
from proxy.commands.repl import Repl
from proxy.commands.say import complain, printable, say, say_json
from proxy.commands.source import Failed, UsageError
from proxy.commands.where import server

INTERRUPTED: Final = 130


def run(arguments: argparse.Namespace) -> int:
    """Blocks until it ends. Raises `SettingsError`, `UsageError` and `Failed`."""
    images = [picture(source) for source in arguments.image]
    alone = arguments.once is not None or not sys.stdin.isatty()
    if arguments.json and not alone:
        raise UsageError("--json is for a single question: add --once PROMPT, or pipe the question in")
    prompt = arguments.once if arguments.once is not None else "" if not alone else sys.stdin.read().removesuffix("\n")
    if alone and not prompt.strip():
        raise UsageError("there is no question: standard input was empty. Write it there, or add --once PROMPT")
    talk = Conversation(arguments.system, arguments.history)
    options: dict[str, Any] = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    options = {name: value for name, value in options.items() if value is not None}
    with server(arguments, os.environ, None) as asked:
        entries = asked.settle()
        model = arguments.model or _model(asked, entries, alone)
        if alone:
            talk.ask(prompt, images)
            return _once(asked, {"model": model, "messages": talk.sent(), **options}, arguments.json)
        Repl(asked, model, talk, options, images).run()
    return 0


def _model(asked: Server, entries: list[dict[str, Any]], alone: bool) -> str | None:
    """The server's only one, or a gateway's choice for requests that name none; None where a person is to choose."""
    names = [str(entry["id"]) for entry in entries]
    if len({str(entry.get("root", entry["id"])) for entry in entries if entry.get("backends")} or set(names)) == 1:
        return names[0]
    default = asked.get("/healthz", plain=True).get("model") if backend_kinds(asked) else None
    if isinstance(default, str):
        return default
    if not names:
        raise Failed(f"no model is there yet: {asked.url} lists none. `illm models` shows when there is one")
    if alone:
        raise UsageError(f"which model? Name one: illm chat MODEL. {asked.url} has: {', '.join(names)}")
    return None


def _once(asked: Server, body: dict[str, Any], as_json: bool) -> int:
    """Print the answer's text as it comes; its thoughts and what it took are for `--json`."""
    if body["model"] is None:
        del body["model"]
    last = ""

    def show(kind: str, text: str) -> None:
        nonlocal last
        if kind == "text" and not as_json:
            last = text
            sys.stdout.write(printable(text, "\n\t") if sys.stdout.isatty() else text)
            sys.stdout.flush()

    got: Answer | None = None
    try:
        got = answer(asked, body, show)
    except Failed as exc:
        raise Failed(f"{exc}{advice(exc, 'send less of it')}") from None
    finally:
        if last and not last.endswith("\n"):
            say("")
    if as_json:
        say_json(
            {
                "model": got.model or body.get("model"),
                "content": got.text,
                "reasoning": got.thoughts or None,
                "finish_reason": got.finish,
                "usage": got.usage,
                "seconds": round(got.seconds, 4),
                "first_token": round(got.first, 4) if got.first is not None else None,
                "tokens_per_second": round(got.speed, 2) if got.speed is not None else None,
            }
        )
    elif not got.text and not got.interrupted:
        complain("the answer has no text" + ("; it was only thoughts (--max-tokens N)" if got.thoughts else ""))
    return INTERRUPTED if got.interrupted else 0
