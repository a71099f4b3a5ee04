"""The commands that ask servers, as a table: what each is called, takes and is for, with examples for its help.

Read whenever a command line is parsed, so it imports nothing that takes time. What a command does is in the module of
its name, which is imported when it is called.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final, NamedTuple, get_args

from proxy.dialects.base import EngineKind
from proxy.settings_types import KIND_SYNONYMS


class Command(NamedTuple):
    """`add` puts its arguments into its parser. `settings`: it reads them, so it takes `--config`."""

    name: str
    text: str
    examples: str
    add: Callable[[argparse.ArgumentParser], None]
    settings: bool = True


def count(text: str) -> int:
    """A whole number that isn't negative."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return number


def _server(command: argparse.ArgumentParser) -> None:
    """Which server it asks."""
    where = "the server, with or without /v1 (default: the gateway on this machine, as the settings have it)"
    command.add_argument("--base-url", metavar="URL", help=where)
    _key(command, "default: the first of ILLM_API_KEYS, or of the settings for the gateway that they describe")


def _key(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--api-key", metavar="KEY", help=f"what to send as bearer token ({default})")


def _check(_: argparse.ArgumentParser) -> None:
    """Nothing but the settings."""


def _models(command: argparse.ArgumentParser) -> None:
    _server(command)
    kinds = [*get_args(EngineKind), *KIND_SYNONYMS]
    command.add_argument("--framework", choices=kinds, metavar="KIND", help="only models of this kind of engine")


def _chat(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", metavar="MODEL", help="which one (default: the server's, or it is asked)")
    _server(command)
    command.add_argument("--once", metavar="PROMPT", help="one question; print the answer and end")
    command.add_argument("--system", metavar="TEXT", help="the system prompt")
    command.add_argument(
        "--image", action="append", default=[], metavar="FILE_OR_URL", help="a picture for the first message"
    )
    command.add_argument("--max-tokens", type=count, metavar="N", help="most tokens of an answer")
    command.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    command.add_argument(
        "--history", type=count, default=40, metavar="N", help="messages that are sent along (default: 40; 0: none)"
    )


def _embed(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL")
    command.add_argument("text", nargs="+", metavar="TEXT", help="texts; - reads them from standard input, a line each")
    _server(command)
    command.add_argument("--dimensions", type=count, metavar="N", help="ask for vectors of this length")


def _smoke(command: argparse.ArgumentParser) -> None:
    command.add_argument("base_url", metavar="BASE_URL", help="the server, with or without /v1")
    command.add_argument("model", metavar="MODEL")
    _key(command, "default: the first of ILLM_API_KEYS")
    command.add_argument(
        "--timeout", type=_seconds, default=120.0, metavar="SECONDS", help="longest silence of a check (default: 120)"
    )


def _pull(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help="as Ollama calls it: qwen2.5:0.5b")
    command.add_argument(
        "--backend", metavar="NAME", help="which Ollama, where there are several: its name, or its URL"
    )


COMMANDS: Final = (
    Command(
        "check",
        "read the settings, reach every backend, say what to fix",
        """examples:
  illm check
  illm check --config my.yaml --json

exit status: 0 all is well, 1 something is to be fixed, 2 the settings are wrong""",
        _check,
    ),
    Command(
        "models",
        "list the models of a running gateway, or of another server",
        """examples:
  illm models
  illm models --framework vllm
  illm models --base-url http://10.0.0.5:8000 --json""",
        _models,
    ),
    Command(
        "chat",
        "talk to a model",
        """examples:
  illm chat                                    choose a model, then talk; /help lists what else there is
  illm chat qwen --system "Answer briefly." --temperature 0
  illm chat qwen-vl --image photo.jpg --once "What is this?"
  git diff | illm chat coder --system "Write a commit message." """.rstrip(),
        _chat,
    ),
    Command(
        "embed",
        "turn texts into vectors and compare them",
        """examples:
  illm embed bge-m3 "a cat" "a kitten" "a bridge"
  illm embed bge-m3 - < sentences.txt
  illm embed bge-m3 "a cat" --json             the whole vectors""",
        _embed,
    ),
    Command(
        "smoke",
        "try out a server: completions and streams, chat, tools, embeddings",
        """examples:
  illm smoke http://127.0.0.1:8000 Qwen/Qwen2.5-7B-Instruct
  illm smoke https://gpu.example/v1 qwen --api-key KEY --json

exit status: 0 the core checks pass, 1 they do not""",
        _smoke,
        settings=False,
    ),
    Command(
        "pull",
        "have an Ollama download a model",
        """examples:
  illm pull qwen2.5:0.5b
  illm pull llama3.2 --backend laptop""",
        _pull,
    ),
)
