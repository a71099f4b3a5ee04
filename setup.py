"""With COMPILE=1 in the environment a build translates the hot path to C by mypyc (docs/data-path.md has what that
saves). Without it, as in a checkout, the same files run as they are. Everything else is in pyproject.toml.

What is translated stands in HOT and nowhere else: modules that run for each request or chunk. Not those whose classes
are subclassed elsewhere (`breaker`) or are msgspec's (`glance_types`).
"""

import os

from setuptools import setup

HOT = (
    "proxy/access_log.py",
    "proxy/answer.py",
    "proxy/call.py",
    "proxy/chunks.py",
    "proxy/client_connection.py",
    "proxy/client_head.py",
    "proxy/client_parser.py",
    "proxy/client_request.py",
    "proxy/connection.py",
    "proxy/endpoints.py",
    "proxy/errors.py",
    "proxy/events.py",
    "proxy/exchange.py",
    "proxy/forward.py",
    "proxy/framing.py",
    "proxy/glance.py",
    "proxy/headers.py",
    "proxy/line.py",
    "proxy/metrics.py",
    "proxy/middleware.py",
    "proxy/places.py",
    "proxy/pages.py",
    "proxy/pool.py",
    "proxy/reading.py",
    "proxy/registry.py",
    "proxy/relay.py",
    "proxy/sweep.py",
    "proxy/transport.py",
    "proxy/wire.py",
    "proxy/dialects/base.py",
    "proxy/dialects/openai/__init__.py",
    "proxy/dialects/openai/content.py",
    "proxy/dialects/openai/names.py",
    "proxy/dialects/openai/paths.py",
    "proxy/dialects/openai/reply.py",
    "proxy/dialects/openai/stream.py",
    "proxy/dialects/openai/usual.py",
    "proxy/dialects/ollama/stream.py",
    "proxy/dialects/tgi/stream.py",
)


def extensions() -> list[object]:
    if os.environ.get("COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    return mypycify(list(HOT), opt_level="3", debug_level="0")


setup(ext_modules=extensions())
