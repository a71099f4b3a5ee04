"""What a command line asks for: a settings file, an engine beside it (`KIND --model …`), or both.

One value, `Asked`, gives the settings, the command that prints them for the launcher, and the launcher's label, so that
`serve`, `launch` and a reload agree on all three. Not here: what is done with them.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from proxy.settings import Settings, load_settings, settings_file

_OF_ENGINES: Final = ("mmproj", "name", "device", "gpus")  # options that say nothing without a KIND
_NAME: Final = 64  # characters of an engine's name


class UsageError(Exception):
    """The command line makes no sense; the text says what to write."""


class Failed(Exception):
    """The command was understood and could not be done; the text says why, and what to do next."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for. Paths are whole; `engine` is one entry of `engines`, called `key`."""

    file: Path | None
    key: str = ""
    engine: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, environ: Mapping[str, str], overrides: Mapping[str, Any] = MappingProxyType({})) -> Settings:
        """Read them (blocks). Raises `SettingsError`."""
        engines = {"engines": {self.key: self.engine}} if self.key else {}
        return load_settings(self.file, environ, {**overrides, **engines})

    def words(self) -> list[str]:
        """The same as arguments of `illm launch`."""
        words = ["--config", str(self.file)] if self.file else []
        if not self.key:
            return words
        words.append(self.engine["kind"])
        given = {**self.engine, "name": self.engine.get("name") or self.key}
        for name in ("model", *_OF_ENGINES):
            value = given.get(name)
            if value is not None:
                words.append(f"--{name}={','.join(value) if name == 'gpus' else value}")
        rest = self.engine.get("command") or self.engine.get("args") or []
        return [*words, "--", *rest] if rest else words

    def source(self) -> list[str]:
        """The command that prints the launcher's document."""
        return [*python_module("proxy.cli"), "launch", "--print", *self.words()]

    def label(self) -> str:
        """The name of its launcher's folder: the same for the same file or the same one-line form."""
        stem = self.key or (self.file.stem if self.file else "settings")
        return label(stem, "\0".join(self.words()) if self.key else str(self.file or Path.cwd()))


def asked(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Asked:
    """What the parsed command line asks for. Looks whether the model is a file here. Raises `UsageError`."""
    found = settings_file(arguments.config, environ)
    file = found.absolute() if found else None
    if arguments.kind is None:
        for name in _OF_ENGINES:
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} belongs to one engine; say its kind too, like: llamacpp --model NAME")
        if arguments.rest:
            raise UsageError("words after -- go to an engine; say its kind too, like: llamacpp --model NAME -- ARGS")
        return Asked(file)
    if arguments.kind == "command" and not arguments.rest:
        raise UsageError("kind 'command' needs the command behind --, like: command --name mine -- ./server {port}")
    if arguments.kind != "command" and arguments.model is None:
        raise UsageError(f"which model shall {arguments.kind} serve? Add --model NAME_OR_PATH")
    model, public = _model(arguments.model, arguments.rest)
    public = arguments.name or public
    key = engine_name(public)
    engine = {
        "kind": arguments.kind,
        "model": model,
        "mmproj": str(Path(arguments.mmproj).expanduser().absolute()) if arguments.mmproj else None,
        "name": public if public != key else None,
        "device": arguments.device,
        "gpus": [gpu.strip() for gpu in arguments.gpus.split(",")] if arguments.gpus else None,
        "command" if arguments.kind == "command" else "args": list(arguments.rest) or None,
        "start": "eager",
    }
    return Asked(file, key, engine)


def _model(given: str | None, rest: Sequence[str]) -> tuple[str | None, str]:
    """The model as the engine gets it, and the public name that it has unless somebody gives another."""
    if given is None:
        return None, Path(rest[0]).name
    path = Path(given).expanduser()
    if path.exists() or given.startswith(("./", "../", "/", "~/")) or path.suffix == ".gguf":
        return str(path.absolute()), path.name.removesuffix(".gguf") or given
    return given, given


def engine_name(public: str) -> str:
    """A public name as a name in `engines`, which may hold less."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", public.rstrip("/").rpartition("/")[2])
    return name.strip("-._")[:_NAME] or "engine"


def label(stem: str, key: str) -> str:
    """A readable name for what `key` tells apart from everything else."""
    return f"{engine_name(stem)[:24]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def python_module(name: str) -> list[str]:
    """Words that run an installed module. The current folder isn't looked in: something there may have its name."""
    return [sys.executable, "-P", "-m", name]
