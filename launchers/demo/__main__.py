"""`python -m launchers.demo`: the demo engine as a process.

It prints one line, `listening on http://HOST:PORT`, when it can be asked. With `--exit-with-parent` it lives only as
long as someone holds the other end of its standard input: a parent that dies by any signal takes it along.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Sequence

import uvicorn

from launchers.demo.app import create_app


class _Server(uvicorn.Server):
    """Says when it is ready, and where: with port 0 only the socket knows."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            sys.stdout.write(f"listening on http://{shown}:{port}\n")
            sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal, or until standard input ends. Blocks; returns the exit status."""
    options = _parser().parse_args(arguments)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family)
    except OSError as exc:
        reason = str(exc.strerror).partition(" (")[0]  # create_server repeats the address in parentheses
        sys.stderr.write(f"The demo engine can't listen on {options.host}:{options.port}: {reason}.\n")
        return 1
    if options.exit_with_parent:
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    config = uvicorn.Config(
        create_app(options.model, options.delay_ms / 1000),
        loop="asyncio",  # enough for a stand-in, and uvloop costs memory and start-up time
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    _Server(config).run(sockets=[listener])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launchers.demo", description="A stand-in that speaks OpenAI's API and has no model."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one and prints it")
    parser.add_argument("--model", default="demo", help="the one model name it answers to")
    parser.add_argument("--delay-ms", type=float, default=20, help="between two streamed words")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input ends")
    return parser


def _exit_at_end_of_input() -> None:
    # The bare descriptor, since sys.stdin's lock would stop the interpreter's own shutdown; and no farewell,
    # since a stream in flight must not keep alive a process that nobody owns any more.
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # no standard input at all: nobody holds it
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
