"""`illm launch`: the launcher in the foreground; with `--print`, the document that it works by; with `--stop`, the end
of the one that runs.

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
from proxy.commands.source import Asked, Failed, UsageError, asked
from proxy.launcher_process import about, address, command, home, listens, see_end, state_root, tell_to_end
from proxy.settings import EngineSettings, Settings
from proxy.settings_engines import Device
from proxy.settings_types import Key

_HIDDEN: Final = "********"


def run(arguments: argparse.Namespace) -> int:
    """Become the launcher. Returns only with `--print` or `--stop`. Raises `SettingsError`, `UsageError`, `Failed` and
    `LauncherError`."""
    if arguments.leave and not arguments.stop:
        raise UsageError("--leave says how to stop the launcher: --stop --leave")
    wanted = asked(arguments, os.environ)
    settings = wanted.settings(os.environ)
    if arguments.print:
        whole = document(settings, wanted.file)
        sys.stdout.buffer.write(wire.dump(_without_secrets(whole) if sys.stdout.isatty() else whole) + b"\n")
        return 0
    if arguments.stop:
        return _stop(settings, wanted, leave=arguments.leave)
    if not settings.engines:
        where = wanted.file or "configs/illm.yaml"
        raise UsageError(f"no engines to launch: write them to {where} (engines:), or name one: KIND --model NAME")
    place = home(state_root(settings.launcher.state, os.environ), wanted.label())
    place.make()
    words = command(place, wanted.source(), for_gateway=False)
    sys.stdout.flush()
    return _become(words)


def _stop(settings: Settings, wanted: Asked, *, leave: bool) -> int:
    """End the launcher of these settings, which may have been started by `illm serve`, whoever uses it."""
    place = home(state_root(settings.launcher.state, os.environ), wanted.label())
    there = address(place, settings.launcher)
    if not listens(there):
        raise Failed(
            f"no launcher runs for these settings (its folder would be {place.folder}); `illm ps` shows others"
        )
    pid = about(there).get("pid")
    tell_to_end(there, leave=leave)
    what = "; its engines go on for the next one" if leave else " and its engines"
    print(f"Stopping the launcher (pid {pid}){what}.", flush=True)  # noqa: T201
    see_end(there)
    return 0


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
        "engines": [
            {**_engine(key, engine, settings.device), "where": _where(settings, key)}
            for key, engine in settings.engines.items()
        ],
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


def _where(settings: Settings, key: str) -> dict[str, str]:
    """Where people find each of its settings, and itself under the empty name."""
    said = {name: settings.origin("engines", key, name) for name in EngineSettings.model_fields}
    said |= {"": settings.origin("engines", key), "device": said["device"] or settings.origin("device")}
    return {name: where for name, where in said.items() if where is not None}


def _plain(key: Key | None) -> str | None:
    return key.get_secret_value() if key else None


def _without_secrets(whole: dict[str, Any]) -> dict[str, Any]:
    """For a person's eyes."""
    for part in (whole["launcher"], *whole["engines"]):
        part["api_key"] = part["api_key"] and _HIDDEN
        part["env"] = dict.fromkeys(part.get("env", ()), _HIDDEN)
    return whole
