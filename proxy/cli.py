"""The command line: the parser, exit codes, and plain words for what went wrong. What a command does is in `commands`,
of which only the one that was asked for is imported."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, get_args

from proxy import __version__
from proxy.commands.arguments import COMMANDS, count
from proxy.dialects.base import EngineKind
from proxy.settings import SettingsError
from proxy.settings_engines import LAUNCH_KINDS, Device
from proxy.settings_types import KIND_SYNONYMS

USAGE: Final = 2  # exit code for what the user can mend
FAILED: Final = 1
INTERRUPTED: Final = 130

_SERVE: Final = """examples:
  illm serve                                   find the engines on this machine and serve their models
  illm serve --config my.yaml --port 9000
  illm serve llamacpp --model qwen.gguf        launch this engine and serve it
  illm serve vllm --model Qwen/Qwen2.5-7B-Instruct --name qwen --gpus 0 -- --max-num-seqs 64
  ILLM_VLLM_BASE_URL=http://10.0.0.5:8000 illm serve"""

_LAUNCH: Final = """examples:
  illm launch                                  what configs/illm.yaml has under engines:
  illm launch vllm --model Qwen/Qwen2.5-7B-Instruct --name qwen
  illm launch command --name mine -- ./my-server --port {port}
  illm launch --stop                           end it and its engines, also one that illm serve started"""

_CONTROL: Final = {
    "ps": """examples:
  illm ps
  illm ps --watch
  illm ps --launcher gpu-host --json""",
    "start": """examples:
  illm start coder""",
    "stop": """examples:
  illm stop coder
  illm stop coder --launcher gpu-host""",
    "logs": """examples:
  illm logs coder -f
  illm logs coder --tail 20""",
    "reload": """examples:
  illm reload --dry-run                        say what would change
  illm reload""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `illm` command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = _parser()
    arguments = parser.parse_args(words[:end])
    if end < len(words) and not hasattr(arguments, "kind"):
        parser.error("no words can stand behind -- here: they are an engine's, for `serve` and `launch`")
    arguments.rest = words[end + 1 :]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("illm").setLevel(logging.INFO)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """The command's exit code, or that of what stopped it."""
    from proxy.commands.source import Failed, UsageError
    from proxy.launcher_client import LauncherError

    try:
        return int(arguments.run(arguments))
    except (SettingsError, UsageError) as exc:
        print(f"illm: {exc}", file=sys.stderr)  # noqa: T201
        return USAGE
    except (Failed, LauncherError) as exc:
        print(f"illm: {exc}", file=sys.stderr)  # noqa: T201
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who reads has gone, as with `illm logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at the end would say so again
        return FAILED


def _serve(arguments: argparse.Namespace) -> int:
    from proxy.commands import serve

    return serve.run(arguments)


def _launch(arguments: argparse.Namespace) -> int:
    from proxy.commands import launch

    return launch.run(arguments)


def _of_engines(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        from proxy.commands import engines

        work: Callable[[argparse.Namespace], int] = getattr(engines, name)
        return work(arguments)

    return run


def _of_servers(name: str) -> Callable[[argparse.Namespace], int]:
    def run(arguments: argparse.Namespace) -> int:
        return int(importlib.import_module(f"proxy.commands.{name}").run(arguments))

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="illm", description="One OpenAI-compatible endpoint for local engines.")
    parser.add_argument("--version", action="version", version=f"illm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "serve the gateway, and launch the engines that the settings have"
    _add_serve(_command(commands, "serve", text, usage="illm serve [KIND] [options] [-- ARGS]", epilog=_SERVE))
    text = "launch engines, without the gateway"
    _add_launch(_command(commands, "launch", text, usage="illm launch [KIND] [options] [-- ARGS]", epilog=_LAUNCH))

    ps = _control(commands, "ps", "list launched engines and what they do")
    ps.add_argument("--watch", action="store_true", help="go on, once a second")
    start = _control(commands, "start", "start an engine and wait until it is ready")
    stop = _control(commands, "stop", "stop an engine")
    logs = _control(commands, "logs", "show an engine's log")
    for control in (start, stop, logs):
        control.add_argument("name", metavar="NAME", help="the engine's name, or the one its clients use")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    logs.add_argument("--tail", type=count, default=100, metavar="N", help="lines from its end (default: 100)")
    reload = _control(commands, "reload", "have launchers read their settings anew")
    reload.add_argument("--dry-run", action="store_true", help="only say what that would do")

    for one in COMMANDS:
        asking = _command(commands, one.name, one.text, epilog=one.examples, settings=one.settings)
        one.add(asking)
        asking.add_argument("--json", action="store_true", help="for programs: JSON")
        asking.set_defaults(run=_of_servers(one.name))
    return parser


Commands = argparse._SubParsersAction  # its type has no public name


def _command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    text: str,
    usage: str | None = None,
    epilog: str | None = None,
    settings: bool = True,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        usage=usage,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if settings:
        text = "settings (default: configs/illm.yaml, if there)"
        command.add_argument("--config", type=Path, metavar="FILE", help=text)
    return command


def _control(commands: Commands[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    """A command that talks to launchers."""
    command = _command(commands, name, text, epilog=_CONTROL[name])
    command.add_argument("--launcher", metavar="WHICH", help="a launcher's name, URL or socket (default: all)")
    command.add_argument("--json", action="store_true", help="for programs: JSON, one object a line")
    command.set_defaults(run=_of_engines(name))
    return command


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8000, or the next free one)")
    serve.add_argument("--workers", type=int, metavar="N", help="processes that serve (default: 1)")
    kinds = [*get_args(EngineKind), *KIND_SYNONYMS]
    serve.add_argument("--framework", choices=kinds, metavar="KIND", help="kind of backend for requests that name none")
    serve.add_argument("--embedding-model", help="embedding model for requests that name none")
    _add_engine(serve, "the engine's model, a name or a path; without KIND: the model for requests that name none")
    serve.set_defaults(run=_serve)


def _add_launch(launch: argparse.ArgumentParser) -> None:
    launch.add_argument("--stop", action="store_true", help="end the launcher that runs for these settings")
    launch.add_argument("--leave", action="store_true", help="with --stop: its engines go on (orphans: adopt)")
    launch.add_argument("--print", action="store_true", help="print the launcher's document (JSON, with its secrets)")
    _add_engine(launch, "the engine's model, a name or a path")
    launch.set_defaults(run=_launch)


def _add_engine(command: argparse.ArgumentParser, model: str) -> None:
    """The one-line form: an engine beside those of the settings."""
    kinds = [*LAUNCH_KINDS, *KIND_SYNONYMS]
    what = f"launch an engine of this kind: {', '.join(LAUNCH_KINDS)}; what stands behind -- goes to it"
    command.add_argument("kind", nargs="?", choices=kinds, metavar="KIND", help=what)
    command.add_argument("--model", help=model)
    engine = command.add_argument_group("of that engine")
    engine.add_argument("--mmproj", metavar="FILE", help="llama.cpp: the file that lets it see pictures")
    engine.add_argument("--name", help="the name that clients use (default: the model's)")
    engine.add_argument("--device", choices=get_args(Device), help="what it computes on")
    engine.add_argument("--gpus", metavar="0,1", help="the GPUs it may use")


if __name__ == "__main__":
    sys.exit(main())
