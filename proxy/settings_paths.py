"""Files that settings name, seen from the settings file: chat templates are read, models get their whole path.

Works on the plain values before they are checked, so it takes nothing for granted of their shape. It opens nothing but
chat templates.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from proxy.settings_layers import Layers

_FILES: Final = ("model", "mmproj")  # of an engine; a name that is no file stays as it is


def resolve_files(layers: Layers, folder: Path, home: str | None) -> list[str]:
    """Put texts and whole paths in the place of names of files, relative ones from `folder` on; what goes wrong, a line
    each. Blocks for the reading of chat templates."""
    engines = layers.data.get("engines")
    for engine in engines.values() if isinstance(engines, dict) else ():
        if isinstance(engine, dict):
            _engine_files(engine, folder, home)
    launcher = layers.data.get("launcher")
    if isinstance(launcher, dict):
        for name in ("budget", "state"):
            if isinstance(launcher.get(name), str):
                launcher[name] = str(_expanded(launcher[name], folder, home))
    return list(_read_templates(layers, folder))


def _engine_files(engine: dict[str, Any], folder: Path, home: str | None) -> None:
    for name in _FILES:
        if isinstance(engine.get(name), str) and engine[name]:
            path = _expanded(engine[name], folder, home)
            if path.exists() or engine[name].startswith(("./", "../", "~/")) or _is_weights(engine, engine[name]):
                engine[name] = str(path)
    volumes = engine.get("volumes")
    if isinstance(volumes, list):
        engine["volumes"] = [_volume(volume, folder, home) for volume in volumes]


def _is_weights(engine: dict[str, Any], name: str) -> bool:
    """Whether it means a file of weights, be it there or not: it may come later. OWNER/REPOSITORY/FILE.gguf is a name
    that some engines fetch, and a command's path in a container is the container's."""
    if engine.get("image") is not None and engine.get("kind") == "command":
        return False
    return name.endswith(".gguf") and (engine.get("kind") == "llamacpp" or name.count("/") != 2)


def _volume(volume: Any, folder: Path, home: str | None) -> Any:
    """As Docker Compose has it: only what begins with a dot or a tilde is a relative path, other words are names."""
    if not isinstance(volume, str) or not volume.startswith(("./", "../", "~/")):
        return volume
    source, colon, rest = volume.partition(":")
    return f"{_expanded(source, folder, home)}{colon}{rest}"


def _expanded(name: str, folder: Path, home: str | None) -> Path:
    if name.startswith("~/") and home:
        return Path(home, name[2:])
    return folder.absolute() / name


def _read_templates(layers: Layers, folder: Path) -> Iterator[str]:
    """Put the text of each chat template that is given as a file (`*.jinja`, beside the settings) in its place; what
    goes wrong, a line each."""
    backends = layers.data.get("backends")
    for name, backend in backends.items() if isinstance(backends, dict) else ():
        options = backend.get("options") if isinstance(backend, dict) else None
        if not isinstance(options, dict):
            continue
        given = options.get("chat_template")
        if isinstance(given, str) and given.endswith(".jinja"):
            try:
                options["chat_template"] = (folder / given).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as exc:
                label = layers.origin(("backends", name, "options", "chat_template"))[0].label
                yield f"{label}: backends.{name}.options.chat_template: {given} can't be read ({exc})"
