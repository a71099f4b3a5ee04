"""The command line: `illm serve`. Reads arguments, environment and the settings file, and starts what they ask for."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

from proxy import __version__
from proxy.dialects.base import EngineKind
from proxy.settings import SettingsError, load_settings
from proxy.settings_types import KIND_SYNONYMS

USAGE: Final = 2  # exit code for what the user can mend

_SERVE: Final = """examples:
  illm serve                                   find the engines on this machine and serve their models
  illm serve --config my.yaml --port 9000
  ILLM_VLLM_BASE_URL=http://10.0.0.5:8000 illm serve"""


def main(argv: Sequence[str] | None = None) -> int:
    """The `illm` command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("illm").setLevel(logging.INFO)
    return int(arguments.run(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    from proxy.server import ServeError, serve  # uvicorn is not needed for --help

    overrides: dict[str, Any] = {
        "server": {"host": arguments.host, "port": arguments.port},
        "framework": arguments.framework,
        "model": arguments.model,
        "embedding_model": arguments.embedding_model,
    }
    try:
        settings = load_settings(arguments.config, os.environ, overrides)
        serve(settings)
    except (SettingsError, ServeError) as exc:
        print(f"illm: {exc}", file=sys.stderr)  # noqa: T201
        return USAGE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="illm", description="One OpenAI-compatible endpoint for local engines.")
    parser.add_argument("--version", action="version", version=f"illm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="serve the gateway",
        description="Serve the gateway.",
        epilog=_SERVE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings (default: configs/illm.yaml, if there)")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8000, or the next free one)")
    kinds = [*get_args(EngineKind), *KIND_SYNONYMS]
    serve.add_argument("--framework", choices=kinds, metavar="KIND", help="kind of backend for requests that name none")
    serve.add_argument("--model", help="model for requests that name none")
    serve.add_argument("--embedding-model", help="the same for embeddings")
    serve.set_defaults(run=_serve)
    return parser


if __name__ == "__main__":
    sys.exit(main())
