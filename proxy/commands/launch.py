"""`illm launch`: the launcher in the foreground; with `--print`, the document that it works by.

The launcher is another program (`python -m launchers`), which this process becomes. It runs `illm launch --print` with
the same arguments at its start and for each reload, so that settings are read in one place only.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from proxy import wire
from proxy.commands.source import UsageError, asked
from proxy.launcher_process import command, home, state_root
from proxy.settings import EngineSettings, Settings
from proxy.settings_engines import Device
from proxy.settings_types import Key

_HIDDEN: Final = "********"


def run(arguments: argparse.Namespace) -> int:
    """Become the launcher. Returns only with `--print`. Raises `SettingsError`, `UsageError` and `LauncherError`."""
    wanted = asked(arguments, os.environ)
    settings = wanted.settings(os.environ)
    if arguments.print:
        whole = document(settings, wanted.file)
        sys.stdout.buffer.write(wire.dump(_without_secrets(whole) if sys.stdout.isatty() else whole) + b"\n")
        return 0
    if not settings.engines:
        where = wanted.file or "configs/illm.yaml"
        raise UsageError(f"no engines to launch: write them to {where} (engines:), or name one: KIND --model NAME")
    place = home(state_root(settings.launcher.state, os.environ), wanted.label())
    place.make()
    words = command(place, wanted.source(), for_gateway=False)
    sys.stdout.flush()
    return _become(words)


def _become(words: list[str]) -> NoReturn:
    os.execv(words[0], words)  # noqa: S606 - a program of our own, by its whole path


def document(settings: Settings, file: Path | None) -> dict[str, Any]:
    """What the launcher is told, with every default filled in and every secret in plain text: for its eyes only.

    Its form is `launchers/spec.py`, which this package may not import."""
    launcher = settings.launcher
    return {
        "launcher": {
            "listen": launcher.listen,
            "api_key": _plain(launcher.api_key),
            "bind": launcher.bind,
            "orphans": launcher.orphans,
            "linger": launcher.linger,
            "watch": launcher.watch,
            "budget": launcher.budget,
            "auto_install": settings.auto_install,
            "file": str(file) if file else None,
        },
        "engines": [_engine(key, engine, settings.device) for key, engine in settings.engines.items()],
    }


def _engine(key: str, engine: EngineSettings, device: Device | None) -> dict[str, Any]:
    if engine.gpus and device == "cpu":
        device = None  # it names GPUs: that is the more particular wish
    return {
        **{name: getattr(engine, name) for name in EngineSettings.model_fields},
        "name": key,
        "public": engine.public(key),
        "device": engine.device or device,
        "api_key": _plain(engine.api_key),
        "env": {name: value.get_secret_value() for name, value in engine.env.items()},
        "args": list(engine.args),
        "command": list(engine.command),
    }


def _plain(key: Key | None) -> str | None:
    return key.get_secret_value() if key else None


def _without_secrets(whole: dict[str, Any]) -> dict[str, Any]:
    """For a person's eyes."""
    for part in (whole["launcher"], *whole["engines"]):
        part["api_key"] = part["api_key"] and _HIDDEN
        part["env"] = dict.fromkeys(part.get("env", ()), _HIDDEN)
    return whole
