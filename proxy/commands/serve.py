"""`illm serve`: the gateway, and beside it the launcher where the settings have engines.

The launcher outlives the gateway: a restart of this process unloads no model. Only Ctrl-C means both.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from proxy import launcher_process
from proxy.commands.source import Asked, UsageError, asked
from proxy.launcher_client import Address, LauncherError
from proxy.settings import Settings


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it. Blocks. Raises `SettingsError`, `UsageError` and `LauncherError`."""
    from proxy.server import ServeError

    wanted = asked(arguments, os.environ)
    overrides: dict[str, Any] = {
        "server": {"host": arguments.host, "port": arguments.port, "workers": arguments.workers},
        "framework": arguments.framework,
        "model": arguments.model if arguments.kind is None else None,
        "embedding_model": arguments.embedding_model,
    }
    settings = wanted.settings(os.environ, overrides)
    own = _ensure_launcher(settings, wanted)
    others = [
        launcher_process.address_of(name, launcher.base_url, launcher.api_key)
        for name, launcher in settings.launchers.items()
    ]

    def reload() -> Settings:
        return wanted.settings(os.environ, overrides)

    with _interrupts() as interrupted:
        try:
            _serving(settings)(
                settings,
                launchers=(*([own] if own else []), *others),
                reload=reload,
                revive=_reviver(own, settings, wanted),
            )
        except ServeError as exc:
            raise UsageError(str(exc)) from None
    if own is not None and interrupted:
        _end_launcher(own)
    return 0


def _serving(settings: Settings) -> Callable[..., None]:
    """What serves: this process alone, or workers that it starts."""
    if settings.server.workers > 1:
        from proxy.workers.parent import serve
    else:
        from proxy.server import serve  # here, as tests put another in its place
    return serve


def _ensure_launcher(settings: Settings, wanted: Asked) -> Address | None:
    """Where this machine's launcher is, started if need be; None where there is nothing to launch."""
    if not settings.engines:
        return None
    root = launcher_process.state_root(settings.launcher.state, os.environ)
    place = launcher_process.home(root, wanted.label())
    there = launcher_process.address(place, settings.launcher)
    _say(launcher_process.ensure(place, there, wanted.source()))
    return there


def _reviver(own: Address | None, settings: Settings, wanted: Asked) -> Callable[[], str] | None:
    """What starts the launcher again should it die; None where it isn't this gateway's (`illm launch` started it)."""
    if own is None or not launcher_process.about(own).get("for_gateway", True):
        return None

    def revive() -> str:
        _ensure_launcher(settings, wanted)
        return f"Launcher '{own.name}' had ended without being told to. It was started again."

    return revive


def _end_launcher(there: Address) -> None:
    """The launcher ends too, unless it was there by itself."""
    try:
        about = launcher_process.about(there)
        if not about.get("for_gateway", True):
            _say("The launcher goes on: it was started by itself (illm launch).")
            return
        _say(f"Stopping the launcher (pid {about.get('pid')}) and its engines.")
        launcher_process.end(there)
    except LauncherError as exc:
        _say(f"illm: {exc}")
    except KeyboardInterrupt:
        _say("The launcher is still stopping its engines.")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects the SIGINTs of the time inside: the server ends on one without saying which signal it was."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
