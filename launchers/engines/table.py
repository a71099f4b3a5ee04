"""Every kind of engine, and the one way from a specification to a command: `launch`.

It does what is the same for all of them: refuses options that a kind hasn't got, says which GPUs may be seen, wraps a
container around it, and lets the user's words come last. Also what any engine's log says when a port is taken or memory
runs out. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from launchers.engines import command, infinity, llamacpp, ollama, sglang, tei, tgi, transformers, vllm
from launchers.engines.base import Command, Engine, Option, Place
from launchers.engines.container import INSIDE, caches, contain
from launchers.spec import EngineSpec, Kind, SpecError

ENGINES: Final[Mapping[Kind, Engine]] = MappingProxyType(
    {
        module.ENGINE.kind: module.ENGINE
        for module in (vllm, sglang, tgi, ollama, llamacpp, transformers, infinity, tei, command)
    }
)

PORT_TAKEN: Final = re.compile(
    r"address already in use|couldn't bind HTTP server socket|port is already allocated|EADDRINUSE"
    r"|ports are not available",
    re.IGNORECASE,
)
OUT_OF_MEMORY: Final = re.compile(
    r"\bout of memory\b|OutOfMemory|OutOfDeviceMemory|Cannot allocate memory|\bMemoryError\b|std::bad_alloc"
    r"|not enough memory|(?:failed|unable) to allocate|desired GPU memory utilization"
    r"|No available memory for the cache blocks|larger than the (?:available KV cache memory|maximum number of tokens)"
    r"|requires more system memory",
    re.IGNORECASE,
)

# For all of them: nobody is told who runs what, and a log line is there when it is written.
_COMMON: Final = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
_NO_GPU: Final = "-1"  # no GPU has it; an empty list is "not set" to some engines


def launch(spec: EngineSpec, place: Place) -> Command:
    """What starts that engine there. Raises `SpecError` for what can't be done, naming the engine and what can.

    `args` come after all that this project says, and `env` over all of it."""
    engine = ENGINES[spec.kind]
    refuse_unknown(spec, engine)
    told = engine.command(spec, _within(spec, engine, place))
    args, own = ((), told.env) if spec.kind == "command" else (spec.args, spec.env)  # it has put its own in already
    argv = (*told.argv, *args)
    if spec.image is None:
        return replace(told, argv=argv, env={**_COMMON, **_visible(spec), **told.env, **own})
    entrypoint, words = engine.image.entrypoint, argv
    if spec.command and spec.kind != "command":
        entrypoint, words = argv[0], argv[1:]
    where = engine.image.env if caches(spec, engine.image) else {}
    env = {**_COMMON, **where, **told.env, **own}
    return contain(spec, engine.image, words, env, place, entrypoint)


def program(spec: EngineSpec, engine: Engine) -> tuple[str, ...]:
    """The words that start its program. One word in `command` stands for the first of them, several for all."""
    if spec.kind == "command" or not spec.command:
        return engine.program
    return (*spec.command, *engine.program[1:]) if len(spec.command) == 1 else spec.command


def refuse_unknown(spec: EngineSpec, engine: Engine) -> None:
    """Raises `SpecError` for a typed option that this kind hasn't got."""
    if spec.model is None and spec.kind != "command":
        raise SpecError(f"{spec.name}: {engine.title} needs a `model`.")
    for option, value in _options(spec).items():
        if value and option not in engine.options:
            kinds = [kind for kind, other in ENGINES.items() if option in other.options]
            shown = "unload: sleep" if option == "sleep" else option
            raise SpecError(
                f"{spec.name}: {engine.title} has no option `{shown}` (which is for {', '.join(kinds)}). Take it out; "
                f"what is peculiar to an engine goes into `args` or `env`.",
                option="unload" if option == "sleep" else option,
            )
    if spec.device is not None and spec.device not in engine.devices:
        raise SpecError(
            f"{spec.name}: {engine.title} can't use `device: {spec.device}`; it can use "
            f"{' or '.join(sorted(engine.devices))}.",
            option="device",
        )
    if spec.device == "cpu" and spec.gpus:
        raise SpecError(
            f"{spec.name}: `device: cpu` and `gpus` contradict one another; keep one of them.", option="gpus"
        )


def _options(spec: EngineSpec) -> dict[Option, bool]:
    """Which typed options are set."""
    return {
        "mmproj": spec.mmproj is not None,
        "dtype": spec.dtype is not None,
        "max_model_len": spec.max_model_len is not None,
        "tensor_parallel": spec.tensor_parallel is not None,
        "gpu_memory": spec.gpu_memory is not None,
        "gpu_layers": spec.gpu_layers is not None,
        "trust_remote_code": spec.trust_remote_code,
        "embedding": spec.embedding,
        "api_key": spec.api_key is not None,
        "sleep": spec.unload == "sleep",
    }


def _within(spec: EngineSpec, engine: Engine, place: Place) -> Place:
    """The place as the engine itself sees it."""
    if spec.image is None:
        return replace(place, program=place.program or program(spec, engine))
    words = program(spec, engine) if spec.command else engine.image.words
    return replace(place, host=INSIDE, program=words)


def _visible(spec: EngineSpec) -> dict[str, str]:
    """Which GPUs may be seen. AMD's runtime heeds the same variable. By the numbers that the driver and its tools use,
    which CUDA on its own counts otherwise: fastest first."""
    if spec.gpus:
        return {"CUDA_VISIBLE_DEVICES": ",".join(spec.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {"CUDA_VISIBLE_DEVICES": _NO_GPU} if spec.device == "cpu" else {}
