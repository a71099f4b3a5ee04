"""What a launcher is told: the engines it may start and how, as frozen values.

It comes as one JSON document from the command that reads the settings (`illm launch --print`), which has checked it
and filled in every default; here it gets its types. Not here: YAML, the environment, what an option means to an engine
(`engines/`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

Kind = Literal["vllm", "sglang", "tgi", "ollama", "llamacpp", "transformers", "infinity", "tei", "command"]
Accelerator = Literal["cpu", "cuda", "mps"]
Device = str  # "cpu", or a GPU's number or UUID as the driver has it
CPU: Final[Device] = "cpu"

_SECRET: Final = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_TELLING: Final = 6  # characters; shorter ones are switches ("true") rather than secrets


class SpecError(Exception):
    """Something about an engine can't be done; the text is for people, and says what to do instead. `option`: the
    member of its specification that asks for it, where it is one."""

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine. Times are seconds, memory bytes; None is what the engine itself would take."""

    name: str  # unique on this launcher; names files and containers
    kind: Kind
    public: str  # the name that clients use, which the engine is told
    model: str | None  # a path or a name; None only for `command`
    # What the engine is told. Every kind refuses what it hasn't got.
    mmproj: str | None
    dtype: str | None
    max_model_len: int | None
    tensor_parallel: int | None
    gpu_memory: float | None  # a share of each GPU, 0 to 1
    gpu_layers: int | None
    trust_remote_code: bool
    embedding: bool  # it is to make embeddings, where the engine must be told
    device: Accelerator | None
    api_key: str | None
    args: tuple[str, ...]  # ready words, put last
    env: Mapping[str, str]
    command: tuple[
        str, ...
    ]  # of `command`, with {port}, {host}, {model} and {name} in it; else in place of the program
    health: str | None  # path that answers 200 when it is ready, in place of the kind's own
    image: str | None  # run in a container of this
    volumes: tuple[str, ...]  # SOURCE:TARGET[:ro]
    # What the launcher does with it.
    gpus: tuple[Device, ...]
    port: int | None
    memory: int | None  # on each of its devices
    start: Literal["eager", "on_demand"]
    ttl: float | None
    pin: bool
    abandon: bool
    unload: Literal["stop", "sleep"]
    start_timeout: float
    stop_timeout: float
    min_residency: float
    restarts: int
    # Where people find it: the file and line, or who else set it, of each member that was set; of the whole under "".
    where: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: its key, and what its variables hold that are called one."""
        named = (text for name, text in self.env.items() if _SECRET.search(name) and len(text) >= _TELLING)
        return tuple(filter(None, (self.api_key, *named)))


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherSpec:
    """How the launcher itself runs. Times are seconds."""

    listen: str | None  # http://HOST:PORT; None: the unix socket in its state folder
    api_key: str | None
    bind: str  # the address that engines listen on
    orphans: Literal["kill", "adopt"]
    linger: float  # how long it stays without a gateway, where a gateway started it
    watch: bool
    budget: Mapping[Device, int] | str | None  # bytes by device, or the path of a budget file
    auto_install: bool
    file: str | None  # the settings file, for `watch` and for people


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """All of it."""

    launcher: LauncherSpec
    engines: tuple[EngineSpec, ...]


_DOCUMENT: Final = TypeAdapter(Document)


def parse(text: bytes) -> Document:
    """The document in JSON. Raises `SpecError`."""
    try:
        return _DOCUMENT.validate_json(text)
    except ValidationError as exc:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_input=False))
        raise SpecError(f"The launcher and the settings don't understand one another: {places}") from None
