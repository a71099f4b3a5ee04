"""What `illm check` finds out about the port: who has it, and whether a gateway runs already.

It binds to see what is free and lets go at once, and asks who answers. Blocks for a moment. Not here: how it is shown.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.ask import Asker, Unanswered, asking
from proxy.commands.where import PATIENCE, roots
from proxy.dialects.openai.paths import TITLES
from proxy.discovery import probe
from proxy.engine_answers import is_gateway
from proxy.settings import Settings

Row = dict[str, Any]
ILLM: Final = "an illm gateway that runs already"


@dataclass(frozen=True, slots=True)
class Port:
    """`taken`: by whom, empty where it is free. `instead`: what `illm serve` would use then, None where it would give
    up. `gateway`: the URL of one that runs, there or on a port behind it; `backends`: what that has, by `/healthz`."""

    number: int
    taken: str = ""
    instead: int | None = None
    gateway: str | None = None
    backends: tuple[Row, ...] = ()

    def notes(self) -> list[str]:
        """Sentences about what is as it may be."""
        lines = []
        if self.gateway is not None:
            there = ", ".join(f"{one.get('name')} ({one.get('state')})" for one in self.backends) or "nothing"
            lines.append(f"An illm gateway runs at {self.gateway}, and serves {there}. `illm models` lists its models.")
        if self.taken and self.instead is not None:
            who = "another `illm serve`" if self.taken == ILLM else "`illm serve`"
            lines.append(f"Port {self.number} is taken by {self.taken}: {who} would use {self.instead}.")
        elif self.taken == ILLM:
            lines.append(f"Port {self.number} is taken by {self.taken}: another can't start there.")
        return lines

    def problems(self) -> list[str]:
        """What is to be fixed."""
        if not self.taken or self.taken == ILLM or self.instead is not None:
            return []
        return [f"Port {self.number} is taken by {self.taken}. Stop it, or choose another port (--port, ILLM_PORT)."]


async def look_at_port(settings: Settings) -> Port:
    """The settings' port, and those that stand in for it where nobody chose it."""
    host, number = settings.server.host, settings.server.port
    places = roots(settings)
    free = [root for root in places if _free(host, urlsplit(root).port or 0)]
    with asking() as asker:
        health = await asyncio.gather(*(_health(asker, root) for root in places if root not in free))
        running = next((one for one in health if one is not None), None)
        gateway, about = running if running is not None else (None, {})
        taken = "" if places[0] in free else ILLM if gateway == places[0] else await _who(asker, places[0])
    backends = tuple(one for one in about.get("backends") or () if isinstance(one, dict))
    instead = urlsplit(free[0]).port if taken and free else None
    return Port(number, taken, instead, gateway, backends)


def _free(host: str, port: int) -> bool:
    """Could somebody listen there? Whatever else is wrong with it counts as free: `illm serve` says it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as exc:
            return exc.errno != errno.EADDRINUSE
    return True


async def _health(asker: Asker, root: str) -> tuple[str, Row] | None:
    """Where it is and what it says of itself, if it is a gateway."""
    try:
        async with asyncio.timeout(PATIENCE):
            about = (await asker.ask(root, "/healthz", None)).value
    except (TimeoutError, Unanswered):
        return None
    return (root, about) if is_gateway(about) else None


async def _who(asker: Asker, root: str) -> str:
    found = await probe(asker, root, None, None, PATIENCE)
    return TITLES[found.kind] if found.kind is not None else "another program"
