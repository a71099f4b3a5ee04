"""`illm ps`, `start`, `stop`, `logs` and `reload`: what a person does with engines, through the launchers' control API.

Each takes the parsed arguments and returns an exit status. How things look is in `progress`, where engines are in
`find`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Coroutine
from contextlib import aclosing, nullcontext
from typing import Any, Final

from proxy.commands import progress
from proxy.commands.find import Answer, Row, answers, ask, nobody, one, shown
from proxy.commands.say import complain, say, say_json
from proxy.launcher_client import LauncherClient, LauncherError, left_over

INTERVAL: Final = 1.0  # seconds between two looks of `ps --watch`
FAILED: Final = 1
STOPPED_READING: Final = 130
PLAN: Final = ("start", "stop", "restart", "update", "keep", "launcher")


def ps(arguments: argparse.Namespace) -> int:
    """List engines. Blocks for seconds at most, with `--watch` until Ctrl-C."""
    return _until_interrupted(_watch(arguments) if arguments.watch else _ps(arguments), 0)


def start(arguments: argparse.Namespace) -> int:
    """Start one and wait until it is ready (0) or has failed (1)."""
    return _until_interrupted(_start(arguments), STOPPED_READING, "The start goes on; `illm ps` shows how far it is.")


def stop(arguments: argparse.Namespace) -> int:
    """Stop one and wait until it has."""
    return _until_interrupted(_stop(arguments), STOPPED_READING, "The engine is still stopping.")


def logs(arguments: argparse.Namespace) -> int:
    """Write the end of its log, with `--follow` what comes as well."""
    return _until_interrupted(_logs(arguments), STOPPED_READING)


def reload(arguments: argparse.Namespace) -> int:
    """Have the launchers read their settings anew; with `--dry-run` only say what that would do."""
    return _until_interrupted(_reload(arguments), STOPPED_READING)


def _until_interrupted(work: Coroutine[Any, Any, int], status: int, advice: str = "") -> int:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        if advice:
            complain(advice)
        return status


async def _ps(arguments: argparse.Namespace) -> int:
    async with answers(arguments) as found:
        rows = _rows(found)
        problems = [answer.problem for answer in found if answer.problem]
        if arguments.json:
            say_json({"engines": rows, "unreachable": _unreachable(found)})
        elif not any(answer.problem is None for answer in found):
            raise LauncherError(nobody(found))
        else:
            _print_table(rows)
            for problem in problems:
                complain(problem)
        return FAILED if problems else 0


async def _watch(arguments: argparse.Namespace) -> int:
    async with answers(arguments) as found:
        if not found:
            raise LauncherError(nobody(found))
        last: Any = None
        with nullcontext() if arguments.json else progress.Watch() as table:
            while True:
                rows = _rows(found)
                if table is not None:
                    table.show(rows)
                elif rows != last:
                    say_json({"engines": rows, "unreachable": _unreachable(found)})
                last = rows
                await asyncio.sleep(INTERVAL)
                found = await asyncio.gather(*(ask(answer.client) for answer in found))


def _rows(found: list[Answer]) -> list[Row]:
    return [{"launcher": answer.name, **row} for answer in found for row in answer.engines]


def _unreachable(found: list[Answer]) -> list[Row]:
    return [{"launcher": answer.name, "error": answer.problem} for answer in found if answer.problem]


def _print_table(rows: list[Row]) -> None:
    if not rows:
        say("No engines: the launcher's settings have none.")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(progress.rich_table(rows))
    else:
        say("\n".join(progress.lines(rows)))
    for note in progress.notes(rows):
        say(note)


async def _start(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    async with answers(arguments) as found:
        client, row = one(found, arguments.name)
        last = await _follow_start(client, row["name"], arguments.json)
    if last.get("event") == "ready":
        where = (last.get("engine") or {}).get("base_url")
        if not arguments.json:
            took = progress.duration(time.monotonic() - began)
            say(f"{row['name']} is ready{f' at {where}' if where else ''} ({took}).")
        return 0
    message = last.get("message") or "the launcher ended the answer without a word; see `illm ps`"
    complain(f"{row['name']} did not start: {message}")
    return FAILED


async def _follow_start(client: LauncherClient, name: str, as_json: bool) -> Row:
    """Show the events of a start; the last one."""
    event: Row = {}
    with nullcontext(say_json) if as_json else progress.starting(name) as show:
        async with aclosing(client.start(name)) as events:
            async for event in events:
                if isinstance(event.get("engine"), dict):
                    event = {**event, "engine": shown(event["engine"])}
                if as_json or event.get("event") == "phase":
                    show(event)
                if event.get("event") in ("ready", "failed"):
                    break
    return event


async def _stop(arguments: argparse.Namespace) -> int:
    async with answers(arguments) as found:
        client, row = one(found, arguments.name)
        after = shown(await client.stop(row["name"]))
    if arguments.json:
        say_json(after)
    else:
        say(f"{row['name']} is {after.get('state', 'stopped')}.")
    return 0


async def _logs(arguments: argparse.Namespace) -> int:
    async with answers(arguments) as found:
        client, row = one(found, arguments.name)
        kept = ""
        async with aclosing(client.logs(row["name"], arguments.tail, arguments.follow)) as pieces:
            async for piece in pieces:
                if not arguments.json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    continue
                *whole, kept = (kept + piece).split("\n")
                for line in whole:
                    say_json({"engine": row["name"], "line": line})
        if kept:
            say_json({"engine": row["name"], "line": kept})
    return 0


async def _reload(arguments: argparse.Namespace) -> int:
    async with answers(arguments) as found:
        if not found:
            raise LauncherError(nobody(found))
        status = 0
        for answer in found:
            try:
                plan = await answer.client.reload(arguments.dry_run)
            except LauncherError as exc:
                complain(f"{answer.name}: {exc}")
                status = FAILED
                continue
            if arguments.json:
                say_json({"launcher": answer.name, **plan})
                continue
            words = [f"{what}: {', '.join(plan[what])}" for what in PLAN if plan.get(what)]
            say(f"{answer.name}: {'; '.join(words) or 'no engines'}")
            if left := left_over(plan):
                say(f"{answer.name}: {left}")
        return status
