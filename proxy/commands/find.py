"""Which launchers there are, and on which of them an engine is: what `ps`, `start`, `stop`, `logs` and `reload` share.

Not here: what is done with an engine, and how anything is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy.commands.source import Asked, UsageError
from proxy.launcher_client import UNIX, Address, LauncherClient, LauncherError
from proxy.launcher_process import Home, address_of, listens, state_root
from proxy.launcher_process import address as own_address
from proxy.settings import Settings, load_settings, settings_file

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one launcher said. `problem`: why it said nothing."""

    client: LauncherClient
    about: Row = field(default_factory=dict)
    engines: tuple[Row, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        """As the settings call it; this machine's own knows best itself."""
        there = self.client.address
        return str(self.about.get("name") or there.name) if there.own else there.name


@asynccontextmanager
async def answers(arguments: argparse.Namespace) -> AsyncIterator[list[Answer]]:
    """All launchers, asked at once; their clients are open inside. Raises `SettingsError` and `UsageError`."""
    clients = [LauncherClient(address) for address in addresses(arguments)]
    try:
        yield list(await asyncio.gather(*map(ask, clients)))
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))


async def ask(client: LauncherClient) -> Answer:
    """What it says of itself and its engines."""
    try:
        about, engines = await asyncio.gather(client.about(), client.engines())
    except LauncherError as exc:
        return Answer(client, problem=str(exc))
    # nobody who looks at a list needs an engine's key
    return Answer(client, about, tuple(shown(row) for row in engines))


def shown(row: Row) -> Row:
    """A row without its key."""
    return {name: value for name, value in row.items() if name != "api_key"}


def addresses(arguments: argparse.Namespace) -> list[Address]:
    """The one that was asked for, or all that are known: sockets on this machine that answer, and the settings'."""
    settings = load_settings(arguments.config, os.environ)
    remote = [address_of(name, launcher.base_url, launcher.api_key) for name, launcher in settings.launchers.items()]
    if settings.launcher.listen is not None:
        remote.append(own_address(_home(arguments, settings), settings.launcher))
    if arguments.launcher is not None:
        return [_named(arguments.launcher, [*_sockets(settings), *remote], settings)]
    return [*_sockets(settings), *(there for there in remote if not there.own or listens(there))]


def _home(arguments: argparse.Namespace, settings: Settings) -> Home:
    """The folder of the launcher that `illm serve` and `illm launch` start with these settings."""
    file = settings_file(arguments.config, os.environ)
    label = Asked(file.absolute() if file else None).label()
    return Home(state_root(settings.launcher.state, os.environ) / label)


def _sockets(settings: Settings) -> list[Address]:
    root = state_root(settings.launcher.state, os.environ)
    found = [Address(path.parent.name, f"{UNIX}{path}", own=True) for path in sorted(root.glob("*/launcher.sock"))]
    return [address for address in found if listens(address)]


def _named(given: str, known: Sequence[Address], settings: Settings) -> Address:
    """A launcher by its name, its URL, its socket or the folder that holds it."""
    for address in known:
        if given in (address.name, address.url, address.url.removeprefix(UNIX)):
            return address
    if given.startswith(("http://", "https://")):
        return address_of(given, given.rstrip("/"), settings.launcher.api_key)
    path = Path(given.removeprefix(UNIX)).expanduser().absolute()
    path = path / "launcher.sock" if path.is_dir() else path
    if path.is_socket():
        return Address(path.parent.name, f"{UNIX}{path}", None)
    names = ", ".join(address.name for address in known) or "none"
    raise UsageError(f"there is no launcher {given!r}; a name, a URL or a socket's path is needed. Known: {names}")


def one(found: Sequence[Answer], name: str) -> tuple[LauncherClient, Row]:
    """The only engine of that name, or else of that public name. Raises `UsageError` with what there is."""
    matching: list[tuple[Answer, Row]] = []
    for member in ("name", "model"):
        matching = matching or [(answer, row) for answer in found for row in answer.engines if row.get(member) == name]
    if len(matching) == 1:
        return matching[0][0].client, matching[0][1]
    if matching and len({answer.name for answer, _ in matching}) == len(matching):
        where = ", ".join(answer.name for answer, _ in matching)
        raise UsageError(f"engine {name!r} is on several launchers: {where}. Say which one: --launcher NAME")
    if matching:
        engines = ", ".join(f"{row.get('name')}" for _, row in matching)
        raise UsageError(f"{name!r} is served by several engines: {engines}. Name one of them")
    if not any(answer.problem is None for answer in found):
        raise LauncherError(nobody(found))
    engines = ", ".join(f"{row.get('name')}" for answer in found for row in answer.engines) or "none"
    more = "".join(f"\n{answer.problem}" for answer in found if answer.problem)
    raise UsageError(f"there is no engine {name!r}. Engines: {engines}{more}")


def nobody(found: Sequence[Answer]) -> str:
    """What to say where no launcher answered."""
    problems = [answer.problem for answer in found if answer.problem]
    return "\n".join(problems) or "No launcher is running here. `illm launch` starts one, and so does `illm serve`."
