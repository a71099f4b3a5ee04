"""An engine in a container: its command line as the arguments of `docker run`.

The container listens on the same port as the engine would, published at the engine's address alone. Model files are
mounted read-only where they are outside; what it downloads goes to volumes that stay. The environment goes by name, so
that no secret stands in the command line; docker fetches the values from its own. Pure: no look at files, no docker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final

from launchers.engines.base import Command, Image, Place, is_path
from launchers.spec import EngineSpec, SpecError

INSIDE: Final = "0.0.0.0"  # where an engine listens in there
DOCKER: Final = ("docker",)

# Given on where the launcher has them: docker leaves out a name without a value.
_FROM_OUTSIDE: Final = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")


def contain(
    spec: EngineSpec, image: Image, words: Iterable[str], env: Mapping[str, str], place: Place, entrypoint: str | None
) -> Command:
    """`words`: what the container is told after its image. `place`: outside. Raises `SpecError`.

    The container is named and removes itself; `cleanup` removes it by force, also one that an earlier launcher left
    behind, and may be run when there is none."""
    docker = place.program or DOCKER
    if spec.device == "mps":
        raise SpecError(
            f"{spec.name}: a container can't use Apple's GPU; leave out `image`, or set `device: cpu`.", option="device"
        )
    host = f"[{place.host}]" if ":" in place.host else place.host
    argv = [*docker, "run", "--rm", "--init", "--name", place.container, "-p", f"{host}:{place.port}:{place.port}"]
    gpus = _gpus(spec, image)
    if gpus is not None:
        argv += ["--gpus", gpus]
    if image.shared_memory:
        argv += ["--ipc", "host"]
    for volume in (*caches(spec, image), *spec.volumes, *_mounts(spec)):
        argv += ["-v", volume]
    for name in dict.fromkeys((*_FROM_OUTSIDE, *sorted(env))):
        argv += ["-e", name]
    if entrypoint is not None:
        argv += ["--entrypoint", entrypoint]
    return Command((*argv, str(spec.image), *words), env, (*docker, "rm", "-f", place.container))


def _gpus(spec: EngineSpec, image: Image) -> str | None:
    """The value of --gpus, which docker reads as comma-separated, so that a list needs quotes of its own."""
    if spec.gpus:
        return f'"device={",".join(spec.gpus)}"'
    return "all" if spec.device == "cuda" or (image.gpus and spec.device is None) else None


def _targets(volumes: Iterable[str]) -> list[PurePosixPath]:
    return [PurePosixPath(volume.split(":")[1]) for volume in volumes if ":" in volume]


def caches(spec: EngineSpec, image: Image) -> list[str]:
    """The volumes for what it downloads; not where one of the user's own has something to do with that folder."""
    own = _targets(spec.volumes)

    def is_theirs(folder: PurePosixPath) -> bool:
        return any(folder.is_relative_to(target) or target.is_relative_to(folder) for target in own)

    return [volume for volume in image.caches if not is_theirs(*_targets((volume,)))]


def _mounts(spec: EngineSpec) -> list[str]:
    """Folders of the model's files, at their own paths, where no volume has them already."""
    targets = _targets(spec.volumes)
    folders: list[PurePosixPath] = []
    for text in (spec.model, spec.mmproj):
        if text is None or not is_path(text) or spec.kind == "command":
            continue
        path = PurePosixPath(text)
        if not path.is_absolute():
            raise SpecError(
                f"{spec.name}: in a container {text!r} means another file; write the whole path, from / on.",
                option="model" if text == spec.model else "mmproj",
            )
        folder = _folder(path)
        if folder not in folders and not any(path.is_relative_to(target) for target in targets):
            folders.append(folder)
    return [f"{folder}:{folder}:ro" for folder in folders]


def _folder(path: PurePosixPath) -> PurePosixPath:
    """What must be seen for a model to be read: all parts of a split file lie side by side, and a snapshot in Hugging
    Face's cache consists of links into the folder of its repository."""
    for parent in path.parents:
        if parent.name == "snapshots":
            return parent.parent
    return path.parent if path.suffix == ".gguf" and path.parent != PurePosixPath("/") else path
