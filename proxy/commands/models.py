"""`illm models`: what a running gateway (or any OpenAI-compatible server) lists, as a table.

A gateway says more of a model than others do: its state, which backends have it, and of which kind those are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any, Final

from proxy.commands.client import Server
from proxy.commands.say import STATES, say, say_json, table
from proxy.commands.source import Failed
from proxy.commands.where import server
from proxy.engine_answers import is_gateway
from proxy.settings_types import KIND_SYNONYMS

COLUMNS: Final = ("NAME", "STATE", "KIND", "CONTEXT", "CAPABILITIES", "BACKENDS")
_LENGTHS: Final = ("max_model_len", "context_length", "max_context_length")  # vLLM and illm; others


def run(arguments: argparse.Namespace) -> int:
    """Blocks for seconds at most. Raises `SettingsError`, `UsageError` and `Failed`."""
    with server(arguments, os.environ) as asked:
        framework = KIND_SYNONYMS.get(arguments.framework, arguments.framework)
        entries = asked.models(framework)
        kinds = backend_kinds(asked)
    if arguments.json:
        say_json({"base_url": asked.url, "models": [{**entry, "kinds": _kinds(entry, kinds)} for entry in entries]})
    elif entries:
        table(COLUMNS, [_row(entry, kinds) for entry in entries], {"STATE": STATES})
    else:
        said = f" of kind {framework}." if framework else ". `illm check` says what it lacks."
        say(f"{asked.url} has no models{said}")
    return 0


def backend_kinds(asked: Server) -> Mapping[str, str]:
    """A gateway's backends and the kinds of engine that they are; none of another server's."""
    try:
        health = asked.get("/healthz", plain=True)
    except Failed:
        return {}
    rows = health.get("backends") if is_gateway(health) else None
    named = (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return {str(row.get("name")): str(row.get("kind") or "") for row in named}


def _kinds(entry: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    """Of the backends that have it, each once."""
    return list(dict.fromkeys(kind for name in _texts(entry.get("backends")) if (kind := kinds.get(name))))


def _row(entry: Mapping[str, Any], kinds: Mapping[str, str]) -> list[str]:
    length = next((entry[name] for name in _LENGTHS if isinstance(entry.get(name), int)), "")
    alias = f" (= {entry['root']})" if entry.get("root") not in (None, entry["id"]) and entry.get("backends") else ""
    return [
        f"{entry['id']}{alias}",
        _state(entry),
        ", ".join(_kinds(entry, kinds)) or str(entry.get("owned_by") or ""),
        str(length),
        ", ".join(_texts(entry.get("capabilities"))),
        ", ".join(_texts(entry.get("backends"))),
    ]


def _state(entry: Mapping[str, Any]) -> str:
    """With the phase of an engine that is being started."""
    state, engine = str(entry.get("state") or ""), entry.get("engine")
    phase = engine.get("phase") if isinstance(engine, dict) and state == "loading" else None
    return f"{state} ({phase})" if phase else state


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
