"""Which server a command asks: the one that --base-url names, else the gateway that the settings describe.

Blocks: it reads the settings and looks for a gateway on this machine. A key of the settings goes to that gateway alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

import httpx

from proxy import wire
from proxy.commands.client import LOOK, Server
from proxy.commands.source import Failed
from proxy.engine_answers import is_gateway
from proxy.settings import Settings, load_settings

PORTS: Final = 10  # looked at from the default one on, as a gateway whose port is taken uses the next free one
PATIENCE: Final = 5.0  # seconds for a gateway on this machine to say that it is one
KEYS: Final = "ILLM_API_KEYS"


def server(arguments: argparse.Namespace, environ: Mapping[str, str], silence: float | None = LOOK) -> Server:
    """The server to ask; the caller closes it. Raises `SettingsError`, `UsageError` and `Failed`."""
    if arguments.base_url:
        return Server(arguments.base_url, arguments.api_key or first_key(environ), silence)
    settings = load_settings(arguments.config, environ)
    keys = settings.server.api_keys
    key = arguments.api_key or (keys[0].get_secret_value() if keys else None)
    return Server(_gateway(settings), key, silence)


def first_key(environ: Mapping[str, str]) -> str | None:
    """The first of the keys in the environment, written as the settings take them."""
    text = environ.get(KEYS, "").strip()
    try:
        keys = wire.load(text) if text.startswith("[") else text.split(",")
    except wire.InvalidJson:
        return None
    return str(keys[0]).strip() or None if isinstance(keys, list) and keys else None


def roots(settings: Settings) -> list[str]:
    """Where the gateway that the settings describe may be: at their port, or where nobody set it, at one behind it."""
    host, port = settings.server.host, settings.server.port
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    ports = [port] if "server.port" in settings.explicit else range(port, port + PORTS)
    return [f"http://[{host}]:{each}" if ":" in host else f"http://{host}:{each}" for each in ports]


def _gateway(settings: Settings) -> str:
    """The base URL of the running gateway."""
    places = roots(settings)
    strangers = []
    with httpx.Client(trust_env=False, timeout=PATIENCE, verify=False) as client:  # noqa: S501 - plain HTTP
        for root in places:
            try:
                answer = client.get(f"{root}/healthz")
                if is_gateway(wire.load(answer.content)):
                    return root
                strangers.append(root)
            except wire.InvalidJson:
                strangers.append(root)
            except httpx.HTTPError:
                continue
    advice = "Start one (illm serve), or say where it is: --base-url URL."
    if strangers:
        advice = f"Another server answers at {strangers[0]}; --base-url {strangers[0]} asks that one. {advice}"
    raise Failed(f"no illm gateway answers at {places[0]}. {advice}")
