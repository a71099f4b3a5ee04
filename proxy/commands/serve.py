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
from proxy.launched import Revive
from proxy.launcher_client import IN_USE, Address, LauncherError
from proxy.open_files import raise_limit
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
    own = _Own(wanted, raise_limit())
    first = own.launch(settings) if settings.engines else None
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
                launchers=(*([first[0]] if first else []), *others),
                reload=reload,
                revive=first[1] if first else None,
                launch=own.launch,
            )
        except ServeError as exc:
            raise UsageError(str(exc)) from None
    if own.there is not None and interrupted:
        _end_launcher(own.there)
    return 0


class _Own:
    """This machine's launcher. `there`: where it is; None while there is nothing to launch. `open_files`: its limit of
    them, see `launcher_process.ensure`."""

    def __init__(self, wanted: Asked, open_files: int | None) -> None:
        self.there: Address | None = None
        self._wanted = wanted
        self._open_files = open_files

    def launch(self, settings: Settings) -> tuple[Address, Revive | None]:
        """Where it is, started if need be, and what starts it again should it die; None where it isn't this gateway's
        (`illm launch` started it). Blocks. Raises `LauncherError`."""
        self.there = there = self._ensure(settings)
        if not launcher_process.about(there).get("for_gateway", True):
            return there, None

        def revive() -> str:
            self._ensure(settings)
            return f"Launcher '{there.name}' had ended without being told to. It was started again."

        return there, revive

    def _ensure(self, settings: Settings) -> Address:
        wanted = self._wanted
        root = launcher_process.state_root(settings.launcher.state, os.environ)
        place = launcher_process.home(root, wanted.label())
        there = launcher_process.address(place, settings.launcher)
        _say(launcher_process.ensure(place, there, wanted.source(), self._open_files))
        return there


def _serving(settings: Settings) -> Callable[..., None]:
    """What serves: this process alone, or workers that it starts."""
    if settings.server.workers > 1:
        from proxy.workers.parent import serve
    else:
        from proxy.server import serve  # here, as tests put another in its place
    return serve


def _end_launcher(there: Address) -> None:
    """The launcher ends too, unless it was there by itself or another gateway uses it. One more Ctrl-C ends the wait,
    but not before it was told: it would run on."""
    try:
        with _deaf():
            about = launcher_process.about(there)
            if not about.get("for_gateway", True):
                _say("The launcher goes on: it was started by itself (illm launch).")
                return
            launcher_process.tell_to_end(there, if_unused=True)
            _say(f"Stopping the launcher (pid {about.get('pid')}) and its engines.")
        launcher_process.see_end(there)
    except LauncherError as exc:
        _say(f"The launcher goes on: {exc}" if exc.code == IN_USE else f"illm: {exc}")
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


@contextmanager
def _deaf() -> Iterator[None]:
    """To SIGINT, for the time inside."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
