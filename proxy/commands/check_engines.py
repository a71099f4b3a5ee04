"""What `illm check` finds out about engines that are to be launched: without starting any of them.

A launcher that runs knows best how its engines are. Where none does, only what is cheap is looked at: whether files and
programs are there. Blocks for the looks at the disk.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from proxy.commands.find import Answer
from proxy.settings import EngineSettings, Settings

# What starts each kind, where the settings don't say it. (SGLang is a module of some Python, and not looked for.)
_PROGRAMS: Final[Mapping[str, str]] = {
    "vllm": "vllm",
    "tgi": "text-generation-launcher",
    "ollama": "ollama",
    "llamacpp": "llama-server",
    "transformers": "transformers",
    "infinity": "infinity_emb",
    "tei": "text-embeddings-router",
}
# What the launcher can install for the user: with pip, from a package index.
INSTALLABLE: Final = frozenset(("vllm", "sglang", "transformers", "infinity"))
_WEIGHTS: Final = ".gguf"
_WRONG: Final = ("fatal", "backoff")


class EngineRow(NamedTuple):
    """An engine; `state` is empty where no launcher tells it."""

    name: str
    kind: str
    model: str
    state: str
    launcher: str


def engine_rows(settings: Settings, launchers: Sequence[Answer]) -> list[EngineRow]:
    """Those of the launchers that answered, then those of the settings that none of them has."""
    rows = [
        EngineRow(
            str(row.get("name")),
            str(row.get("kind", "")),
            str(row.get("model", "")),
            str(row.get("state", "")),
            one.name,
        )
        for one in launchers
        for row in one.engines
    ]
    told = {row.name for row in rows}
    return rows + [
        EngineRow(key, engine.kind, engine.public(key), "", "")
        for key, engine in settings.engines.items()
        if key not in told
    ]


def engine_problems(settings: Settings, launchers: Sequence[Answer]) -> Iterator[str]:
    """What is to be fixed, a sentence each."""
    told: set[str] = set()
    for one in launchers:
        if one.problem is not None:
            yield one.problem
        for row in one.engines:
            if row.get("state") in ("ready", "starting", *_WRONG):
                told.add(str(row.get("name")))  # what might be missing isn't, or was named
            if row.get("state") in _WRONG:
                yield _failed(row)
    for key, engine in settings.engines.items():
        if key not in told:
            yield from (f"Engine '{key}': {problem}" for problem in _missing(engine, settings.auto_install))


def _failed(row: Mapping[str, Any]) -> str:
    said = str(row.get("error") or "it does not start").splitlines()[0].rstrip(".:")
    name = row.get("name")
    return f"Engine '{name}': {said}. Its log: illm logs {name}; then: illm start {name}"


def _missing(engine: EngineSettings, auto_install: bool) -> Iterator[str]:
    if engine.image is not None:
        if _program("docker") is None:
            yield "it runs in a container, and there is no `docker` on the path here. Install it, or leave `image` out."
        return  # its paths are the container's
    if engine.command:
        first = engine.command[0]
        if "{" not in first and _program(first) is None:
            yield f"there is no program {first!r} here, with which its `command` begins."
    elif engine.kind in _PROGRAMS and _program(_PROGRAMS[engine.kind]) is None:
        missing = f"there is no `{_PROGRAMS[engine.kind]}` on the path here. Install it, say where it is (`command`), "
        if engine.kind not in INSTALLABLE:
            yield f"{missing}or run it in a container (`image`)."
        elif not auto_install:
            yield f"{missing}or let it be installed: auto_install: true."
    for name, path in (("model", engine.model), ("mmproj", engine.mmproj)):
        if path is not None and _is_path(path) and not Path(path).exists():
            yield f"its {name} is not there: {path}"


def _program(name: str) -> str | None:
    """On the path, or beside this Python, as the launcher looks for it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _is_path(model: str) -> bool:
    """Rather than a name that the engine can fetch. The settings made whole paths of relative ones that they know."""
    return model.startswith("/") or (model.endswith(_WEIGHTS) and model.count("/") != 2)  # OWNER/REPOSITORY/FILE.gguf
