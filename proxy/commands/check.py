"""`illm check`: are the settings right, and is all that they name there? A table, and what to fix in sentences.

It changes and starts nothing. The findings are made in `check_backends`, `check_engines` and `check_port`; here they
are put together and shown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proxy.commands.check_backends import Look, backend_problems, look_at_all
from proxy.commands.check_engines import EngineRow, engine_problems, engine_rows
from proxy.commands.check_port import Port, look_at_port
from proxy.commands.find import Answer, answers
from proxy.commands.say import STATES, complain, say, say_json, table
from proxy.commands.source import Asked
from proxy.launcher_process import problems
from proxy.settings import Settings, SettingsError, load_settings, settings_file

TO_FIX: Final = 1
WRONG: Final = 2
BACKENDS: Final = ("BACKEND", "KIND", "VERSION", "ADDRESS", "STATE", "MODELS", "MS")
ENGINES: Final = ("ENGINE", "KIND", "MODEL", "STATE", "LAUNCHER")
LAUNCHERS: Final = ("LAUNCHER", "VERSION", "ADDRESS", "STATE", "ENGINES")
SHOWN: Final = 3  # models of a backend in the table


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found out. `file`: the settings', None where there is none."""

    file: Path | None
    looks: list[Look]
    launchers: list[Answer]
    engines: list[EngineRow]
    problems: list[str]
    port: Port


def run(arguments: argparse.Namespace) -> int:
    """0 all is well, 1 something is to be fixed, 2 the settings are wrong. Blocks for seconds at most."""
    file = settings_file(arguments.config, os.environ)
    try:
        settings = load_settings(arguments.config, os.environ)
    except SettingsError as exc:
        if arguments.json:
            say_json({"ok": False, "settings": _path(file), "wrong": list(exc.problems)})
        else:
            complain(f"the settings are wrong:\n{exc}")
        return WRONG
    source = Asked(file.absolute() if file else None).source()
    found = asyncio.run(_find(arguments, settings, file, source))
    if arguments.json:
        say_json(_as_json(found))
    else:
        _show(found, settings)
    return TO_FIX if found.problems else 0


async def _find(
    arguments: argparse.Namespace, settings: Settings, file: Path | None, source: Sequence[str]
) -> Findings:
    looks = asyncio.create_task(look_at_all(settings))
    listening = asyncio.create_task(look_at_port(settings))
    refused = asyncio.create_task(asyncio.to_thread(problems, source)) if settings.engines else None
    async with answers(argparse.Namespace(config=arguments.config, launcher=None)) as launchers:
        there, port = await looks, await listening
        engines = engine_rows(settings, launchers)
        public = frozenset(row.model for row in engines)
        wrong = [*backend_problems(settings, there, public), *(await refused if refused is not None else ())]
        wrong += [*engine_problems(settings, launchers), *port.problems()]
        if not settings.demo and not any(look.told.state == "ready" for look in there) and not engines:
            wrong.append("There is nothing to serve: no engine answers. Start one, or name it under backends:.")
        return Findings(file, there, list(launchers), engines, wrong, port)


def _show(found: Findings, settings: Settings) -> None:
    say(f"settings: {found.file or 'none, so everything is at its default'}")
    if found.looks:
        say("")
        table(BACKENDS, [_backend(look) for look in found.looks], {"STATE": STATES})
    if found.launchers:
        say("")
        table(LAUNCHERS, [_launcher(one) for one in found.launchers], {"STATE": STATES})
    if found.engines:
        say("")
        rows = [[row.name, row.kind, row.model, row.state or "not started", row.launcher] for row in found.engines]
        table(ENGINES, rows, {"STATE": STATES})
    if not found.looks and not found.engines and settings.demo and found.port.gateway is None:
        say("No engine runs on this machine's usual ports: illm serve would start its demo engine.")
    for note in found.port.notes():
        say(note)
    say("")
    if not found.problems:
        say("All is well.")
        return
    say("To fix:")
    for problem in found.problems:
        say(f"- {problem}")


def _backend(look: Look) -> list[str]:
    told = look.told
    names = [model.id for model in told.models]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [
        look.name + (" (found here)" if look.local else ""),
        told.kind or "?",
        told.version or "",
        look.root,
        told.state,
        ", ".join(names[:SHOWN]) + more,
        f"{look.ms:.0f}" if look.ms is not None else "",
    ]


def _launcher(one: Answer) -> list[str]:
    address = one.client.address.url
    if one.problem is not None:
        return [one.name, "", address, "down", ""]
    return [one.name, str(one.about.get("version", "")), address, "ready", str(len(one.engines))]


def _as_json(found: Findings) -> dict[str, Any]:
    return {
        "ok": not found.problems,
        "settings": _path(found.file),
        "backends": [
            {
                "name": look.name,
                "kind": look.told.kind,
                "version": look.told.version,
                "address": look.root,
                "state": look.told.state,
                "detail": look.told.detail,
                "models": [model.id for model in look.told.models],
                "ms": round(look.ms, 1) if look.ms is not None else None,
                "local": look.local,
            }
            for look in found.looks
        ],
        "launchers": [
            {"name": one.name, "address": one.client.address.url, "error": one.problem} for one in found.launchers
        ],
        "engines": [row._asdict() for row in found.engines],
        "port": {
            "number": found.port.number,
            "taken": found.port.taken or None,
            "instead": found.port.instead,
            "gateway": found.port.gateway,
        },
        "problems": found.problems,
    }


def _path(file: Path | None) -> str | None:
    return str(file) if file else None
