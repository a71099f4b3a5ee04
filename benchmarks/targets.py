"""What is measured. A target is a name, a command line, and the files that it needs; add one to `TARGETS`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.load import KEY
from benchmarks.upstream import MODEL

Prepare = Callable[[int, int, Path], list[str]]  # own port, upstream's port, scratch folder -> command


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    prepare: Prepare


def _gateway(port: int, upstream: int, scratch: Path) -> list[str]:
    return _illm(port, upstream, scratch, "")


def _renamed(port: int, upstream: int, scratch: Path) -> list[str]:
    """The engine knows the model by another name: it is replaced in the request and in every chunk."""
    return _illm(port, upstream, scratch, f"models: {{{MODEL}: {{replicas: [{{backend: one, model: {MODEL}-7b}}]}}}}\n")


def _illm(port: int, upstream: int, scratch: Path, models: str) -> list[str]:
    config = scratch / "illm.yaml"
    config.write_text(
        f"server: {{port: {port}, api_keys: [another-key, {KEY}], access_log: true}}\n"
        f"backends: {{one: {{kind: vllm, base_url: 'http://127.0.0.1:{upstream}'}}}}\n" + models
    )
    return [sys.executable, "-m", "proxy.cli", "serve", "--config", str(config)]


def _floor(port: int, upstream: int, scratch: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.floor", str(port)]


TARGETS: Final = {
    target.name: target
    for target in (Target("gateway", _gateway), Target("floor", _floor), Target("renamed", _renamed))
}
