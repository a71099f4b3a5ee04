"""The seam between engines and the supervisor: what an engine's file gives, and what it is given.

Values only. An engine's file is pure: no I/O, no clock, no look at this machine, and nothing of the supervisor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from launchers.spec import Accelerator, EngineSpec, Kind

Option = Literal[
    "mmproj", "dtype", "max_model_len", "tensor_parallel", "gpu_memory", "gpu_layers", "trust_remote_code",
    "embedding", "api_key", "sleep",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a start happens. `program`: words that start the engine's program (`docker`, where it gets a container), as
    `dependencies.find` gives them; empty: simply what is on the path. An engine's `command` always gets them filled in
    (`table.launch`)."""

    host: str
    port: int
    program: tuple[str, ...] = ()
    container: str = ""  # the name that a container gets


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. Secrets stand in `env`, never in `argv` where the engine can take them from there."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cleanup: tuple[str, ...] = ()  # run after its end, however it ended (`docker rm -f …`)


@dataclass(frozen=True, slots=True)
class Phase:
    """A line of the log that tells how far a start is. A group in `pattern` named `percent` is 0 to 100; `done` and
    `total` make one too."""

    pattern: re.Pattern[str]
    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """When an engine is ready: `health` answers 200 and, where there is one, the list at `models` holds its model.
    Paths."""

    health: str
    models: str | None = None
    names: tuple[str, ...] = ("id", "name", "model")  # members of a list's entry that may hold the model's name


@dataclass(frozen=True, slots=True)
class Question:
    """One HTTP request of a preparation. `stream`: the answer is NDJSON whose `completed`/`total` and `status` tell how
    far it is, and whose `error` ends it."""

    method: str
    path: str
    body: Mapping[str, object] | None = None
    stream: bool = False
    phase: str = ""
    unless: str | None = None  # a path: skip this question where a GET of its list holds the model already
    model: str = ""  # the name that `unless` looks for


@dataclass(frozen=True, slots=True)
class Sleep:
    """How an engine gives its memory back without ending: paths of POSTs."""

    sleep: str
    wake: str


@dataclass(frozen=True, slots=True)
class Install:
    """How the program is had. `packages`: for pip, into an environment of its own; none: it can't be done for the user.
    `advice`: how they do it, the end of a sentence."""

    advice: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """What the engine's official image is like. `words`: what stands before the engine's options; `entrypoint`: to be
    set, where the image's own isn't the same in all its versions."""

    words: tuple[str, ...] = ()
    entrypoint: str | None = None
    shared_memory: bool = False  # its processes need more of it than a container has
    gpus: bool = False  # it is of no use without: it gets all of them where none is named
    caches: tuple[str, ...] = ()  # VOLUME:FOLDER of what it downloads, which outlives the container
    env: Mapping[str, str] = field(default_factory=dict)  # what makes it download to there


def _public(spec: EngineSpec) -> str | None:
    return spec.public


def _nothing(spec: EngineSpec) -> tuple[Question, ...]:
    return ()


def _unknown(spec: EngineSpec, total: int | None) -> int | None:
    return None


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of engine; every callable is pure.

    `command` may raise `SpecError`. `listed`: the name by which the engine knows its model, in its list and in
    requests, whether or not it checks it; None: not to be told. `need`: bytes that it takes on each GPU of `total`
    bytes whatever the model is; None: that depends on the model, or `total` isn't known.
    """

    kind: Kind
    title: str
    program: tuple[str, ...]  # the words that start it, where nothing else is said
    options: frozenset[Option]  # which typed options it knows
    command: Callable[[EngineSpec, Place], Command]
    ready: Callable[[EngineSpec], Ready]
    install: Install
    image: Image = Image()
    devices: frozenset[Accelerator] = frozenset(("cpu", "cuda", "mps"))
    phases: tuple[Phase, ...] = ()
    listed: Callable[[EngineSpec], str | None] = _public
    need: Callable[[EngineSpec, int | None], int | None] = _unknown
    prepare: Callable[[EngineSpec], tuple[Question, ...]] = _nothing  # after it listens, before it is ready
    sleep: Sleep | None = None


LOADING: Final = "loading weights"
WARMING: Final = "warming up"
LISTENING: Final = "listening"
DOWNLOADING: Final = "downloading"

# Hugging Face's own bars, whichever engine draws them.
HUB_DOWNLOAD: Final = (
    Phase(re.compile(r"\.(?:safetensors|bin|gguf|onnx|pt)(?:\.incomplete)?: +(?P<percent>\d+)%\|"), DOWNLOADING),
    Phase(re.compile(r"Fetching \d+ files: +(?P<percent>\d+)%"), DOWNLOADING),
)


def words(*pairs: tuple[str, object | None]) -> tuple[str, ...]:
    """Options and their values; those without a value are left out, True is an option alone."""
    told = ((option, value) for option, value in pairs if value is not None and value is not False)
    return tuple(word for option, value in told for word in ((option,) if value is True else (option, str(value))))


def split_over(spec: EngineSpec) -> int | None:
    """Over how many GPUs the model is split: all that were named, unless said."""
    return spec.tensor_parallel or (len(spec.gpus) if len(spec.gpus) > 1 else None)


def is_path(model: str) -> bool:
    """Whether it is meant as a path and not as a name: by its looks alone."""
    return model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")
