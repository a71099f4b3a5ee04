"""`illm smoke`: tries a server out as its clients will use it, and shows a table of what it can do.

Core checks are that it answers, completes a text, and streams one; they decide the exit status. The checks themselves
are in `smoke_checks`. Here: their order, the table, and advice for people.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from proxy.commands.answering import BASE_MODEL
from proxy.commands.client import Refused, Server
from proxy.commands.say import say, say_json, table
from proxy.commands.smoke_checks import CHECKS, Check, Outcome, Result
from proxy.commands.source import Failed
from proxy.commands.where import first_key

FAILED: Final = 1
COLUMNS: Final = ("", "CHECK", "TIME", "DETAIL")
_STYLES: Final = {"": {"✓": "green", "✗": "bold red", "–": "dim"}}  # noqa: RUF001 - the dash that says: not there
_MARKS: Final = {"passed": "✓", "failed": "✗", "absent": "–", "skipped": "–"}  # noqa: RUF001
_TEMPLATE: Final = "chat template", "chat_template"


def run(arguments: argparse.Namespace) -> int:
    """Blocks until every check is through. Raises `UsageError`; what goes wrong is in the table."""
    with Server(arguments.base_url, arguments.api_key or first_key(os.environ), arguments.timeout) as asked:
        results = attempt(asked, arguments.model)
        url = asked.url
    passed = all(result.outcome == "passed" for result in results if result.core)
    hints = list(advice(results, arguments.model))
    if arguments.json:
        checks = [_as_json(result) for result in results]
        say_json({"base_url": url, "model": arguments.model, "passed": passed, "checks": checks, "hints": hints})
        return 0 if passed else FAILED
    say(f"{arguments.model} at {url}")
    table(COLUMNS, [_row(result) for result in results], _STYLES)
    for hint in hints:
        say(f"hint: {hint}")
    say("The core checks pass." if passed else "The core checks (*) do not pass.")
    return 0 if passed else FAILED


def attempt(asked: Server, model: str) -> list[Result]:
    """Every check, one after the other. Once the server can't be reached at all, the rest are skipped."""
    results: list[Result] = []
    for check in CHECKS:
        if results and results[0].outcome == "failed":
            results.append(Result(check.name, check.core, "skipped", 0.0, "not tried"))
            continue
        results.append(_one(check, asked, model))
    return results


def _one(check: Check, asked: Server, model: str) -> Result:
    began = time.perf_counter()
    outcome: Outcome
    refusal = None
    try:
        outcome, detail = check.work(asked, model)
    except Refused as exc:
        refusal = exc
        # what is not core and not offered is no failure; what breaks is one
        lacks = exc.status == 501 or 400 <= exc.status < 500
        outcome, detail = "absent" if lacks and not check.core else "failed", _said(exc)
    except Failed as exc:
        outcome, detail = "failed", str(exc)
    return Result(check.name, check.core, outcome, time.perf_counter() - began, detail, refusal)


def _said(exc: Refused) -> str:
    return f"{exc.status}: {exc.said}" if exc.status and exc.said and exc.status not in (401, 403) else str(exc)


def advice(results: Sequence[Result], model: str) -> Iterator[str]:
    """What the results mean, where they mean something that people meet often."""
    by_name = {result.name: result for result in results}
    refusals = [result.refusal for result in results if result.refusal is not None]
    text, chat, embeddings = (by_name[name] for name in ("completion", "chat", "embeddings"))
    listed = by_name["models"]
    if by_name["reachable"].outcome == "failed":
        if not refusals:
            yield "nothing answers there: is the server up, and does it listen on that address and port?"
        return
    if listed.outcome == "failed" and listed.refusal is None:
        yield f"the server does not list {model!r}; name one of those above, exactly as they are written"
    if any(word in refusal.said.lower() for refusal in refusals for word in _TEMPLATE):
        yield BASE_MODEL
    if text.outcome == "failed" and embeddings.outcome == "passed":
        yield "this is an embedding model: it generates no text, and its vectors are fine"
    elif text.outcome == "failed" and chat.outcome == "passed":
        yield "it chats, but has no text completion; clients that use /v1/chat/completions will do"
    if text.outcome == "passed" and by_name["streamed completion"].outcome == "failed":
        yield "it answers but does not stream as OpenAI does: is there a proxy in between that gathers answers?"


def _row(result: Result) -> list[str]:
    took = "" if result.outcome == "skipped" else f"{result.seconds * 1000:.0f} ms"
    return [_MARKS[result.outcome], result.name + ("*" if result.core else ""), took, result.detail]


def _as_json(result: Result) -> dict[str, Any]:
    return {
        "check": result.name,
        "core": result.core,
        "outcome": result.outcome,
        "seconds": round(result.seconds, 4),
        "detail": result.detail,
    }
