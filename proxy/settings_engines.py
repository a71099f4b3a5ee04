"""What can be set of the launcher and the engines it starts, and of launchers on other machines.

Types, defaults and meanings only. The launcher itself never sees this: it gets a document with everything filled in
(`commands/launch.py`). Not here: what an option means to an engine, which the launcher knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from proxy.settings_file import Place
from proxy.settings_layers import refuse
from proxy.settings_types import (
    KIND_SYNONYMS,
    Arguments,
    CommandWords,
    Duration,
    Gpu,
    Key,
    LauncherUrl,
    Listen,
    Name,
    Section,
    Size,
    UrlPath,
    VariableText,
    Volume,
    Words,
)

Device = Literal["cpu", "cuda", "mps"]
LaunchKind = Literal["vllm", "sglang", "tgi", "ollama", "llamacpp", "transformers", "infinity", "tei", "command"]
LAUNCH_KINDS: Final[tuple[str, ...]] = get_args(LaunchKind)


def _launch_kind(value: Any) -> Any:
    return KIND_SYNONYMS.get(value.lower(), value.lower()) if isinstance(value, str) else value


_Kind = Annotated[LaunchKind, BeforeValidator(_launch_kind, json_schema_input_type=LaunchKind | Literal["transformer"])]


class EngineSettings(Section):
    """An engine that the launcher starts on this machine."""

    kind: _Kind = Field(description="Which engine it is; `command` is any other program, see `command`.")
    model: Name | None = Field(
        default=None,
        description="Its model: a name the engine can fetch, or a path, relative to this file. Only `command` can go "
        "without.",
    )
    name: Name | None = Field(
        default=None,
        description="The name that clients use; left out: the engine's name here. Equal ones: replicas.",
    )
    mmproj: Name | None = Field(default=None, description="llama.cpp: the file that lets the model see pictures.")
    dtype: Name | None = Field(default=None, description="The type of its weights: bfloat16, …")
    max_model_len: PositiveInt | None = Field(default=None, description="Longest context in tokens.")
    tensor_parallel: PositiveInt | None = Field(default=None, description="GPUs to split the model over.")
    gpu_memory: float | None = Field(default=None, gt=0, le=1, description="Share of each GPU's memory to take.")
    gpu_layers: NonNegativeInt | None = Field(
        default=None, description="llama.cpp: layers on the GPU, 999 for all; left out: as many as fit."
    )
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the model.")
    embedding: bool = Field(default=False, description="It is for embeddings, where the engine must be told.")
    device: Device | None = Field(default=None, description="What it computes on; left out: the top level's `device`.")
    api_key: Key | None = Field(default=None, description="The engine asks for it, and the gateway sends it.")
    args: Arguments = Field(
        default=Words(),
        description="More options for its command line: `{ctx-size: 8192, flash-attn: true}`, a list of words, or a "
        "text.",
    )
    env: dict[Name, VariableText] = Field(
        default_factory=dict, description="Environment variables for it; never shown or logged."
    )
    command: CommandWords = Field(
        default=Words(),
        description="`command`: the command line, with {port}, {host}, {model} and {name} in it. Other kinds: what to "
        "start in place of the engine's own program.",
    )
    health: UrlPath | None = Field(
        default=None, description="Path that answers 200 once it is ready; left out: the engine's own."
    )
    image: Name | None = Field(default=None, description="Run it in a container of this image.")
    volumes: tuple[Volume, ...] = Field(
        default=(),
        description="What the container sees: SOURCE:/TARGET[:ro]. What it downloads has a volume by itself.",
    )
    gpus: tuple[Gpu, ...] = Field(default=(), description="The GPUs it may use: numbers or UUIDs. None: its choice.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Where it listens; left out: a free port.")
    memory: Size | None = Field(
        default=None, description="What it needs on each of its GPUs, or of RAM; left out: learnt."
    )
    start: Literal["on_demand", "eager"] = Field(
        default="on_demand", description="With the first request, or with the launcher."
    )
    ttl: Duration | None = Field(
        default=None, gt=0, description="It is unloaded after so long without a request; left out: never."
    )
    pin: bool = Field(default=False, description="Never unload it for another engine.")
    abandon: bool = Field(default=False, description="Give a start up once nobody waits for it any more.")
    unload: Literal["stop", "sleep"] = Field(
        default="stop", description="How: end it, or let it sleep with its weights in RAM (vLLM)."
    )
    start_timeout: Duration = Field(default=600.0, gt=0, description="How long a start may take.")
    stop_timeout: Duration = Field(default=10.0, description="How long it may take to end before it is killed.")
    min_residency: Duration = Field(
        default=5.0, description="How long it stays at least before another may have its memory."
    )
    restarts: NonNegativeInt = Field(default=3, description="Failures in a row after which it is given up.")

    def public(self, key: str) -> str:
        """The name that clients use, where it stands under `key`."""
        return self.name or key

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse(_engine_problems(self))
        return self


class LauncherSettings(Section):
    """The launcher of this machine."""

    listen: Listen | None = Field(
        default=None,
        description="Where it takes orders, for gateways on other machines too: http://0.0.0.0:8090. Left out: a "
        "socket that only this user can open.",
    )
    api_key: Key | None = Field(
        default=None, description="What those who give orders must know; needed unless it listens on loopback."
    )
    bind: Name = Field(
        default="127.0.0.1", description="Address that engines listen on; 0.0.0.0 where the gateway is elsewhere."
    )
    orphans: Literal["kill", "adopt"] = Field(
        default="kill",
        description="Engines whose launcher died: they die too, or go on and are taken over by the next one.",
    )
    linger: Duration = Field(
        default=300.0, description="How long it stays without a gateway, where `illm serve` started it."
    )
    watch: bool = Field(default=False, description="Read the settings anew whenever the file changes.")
    budget: dict[str, Size] | str | None = Field(
        default=None,
        description='Memory that engines may take, by device: `{cpu: 24GiB, "0": 20GiB}`, or a file that says it. '
        "Left out: all that is free.",
    )
    state: Name | None = Field(
        default=None, description="Folder for its socket, logs and records; left out: ~/.local/state/illm."
    )
    wait: Duration = Field(
        default=600.0, gt=0, description="How long a request that is no stream waits for its engine to start."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse(_launcher_problems(self))
        return self


class RemoteLauncherSettings(Section):
    """A launcher on another machine, whose engines are served as well."""

    base_url: LauncherUrl = Field(description="Its `launcher.listen`: http://10.0.0.7:8090; or unix:/path.")
    api_key: Key | None = Field(default=None, description="Its `launcher.api_key`.")


def _engine_problems(engine: EngineSettings) -> Iterator[tuple[Place, str]]:
    if engine.kind == "command" and not engine.command:
        yield ("command",), "kind 'command' needs the command line to start"
    if engine.kind != "command" and engine.model is None:
        yield ("model",), f"kind {engine.kind!r} needs a model: its name or its path"
    if engine.pin and engine.ttl is not None:
        yield ("ttl",), "an engine with `pin: true` is never unloaded; keep one of the two"
    if engine.volumes and engine.image is None:
        yield ("volumes",), "only a container has volumes; set `image` too"
    if engine.device == "cpu" and engine.gpus:
        yield ("gpus",), "with `device: cpu` it uses no GPU; keep one of the two"
    if len(set(engine.gpus)) < len(engine.gpus):
        yield ("gpus",), "a GPU is named twice"
    if engine.gpus and (engine.tensor_parallel or 1) > len(engine.gpus):
        yield ("tensor_parallel",), f"the model can't be split over {engine.tensor_parallel} GPUs: `gpus` has fewer"


def _launcher_problems(launcher: LauncherSettings) -> Iterator[tuple[Place, str]]:
    if launcher.listen is not None and launcher.api_key is None and not _is_loopback(launcher.listen):
        yield (
            ("api_key",),
            "whoever reaches `listen` could start and stop engines: set a key (ILLM_LAUNCHER__API_KEY), or listen on "
            "127.0.0.1",
        )

    devices = launcher.budget if isinstance(launcher.budget, dict) else {}
    for device in devices:
        if not re.fullmatch(r"cpu|\d{1,3}|GPU-[\w-]+", device):
            yield ("budget", device), "a device is 'cpu', or a GPU's number or UUID"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
