"""How much memory each engine needs, and where: declared, learned while it ran, told by its kind, or guessed from the
size of its files, in this order.

What was learned is kept in one file in the launcher's state folder. Reads sizes of model files; measures nothing
(`room` brings it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from launchers.engines.table import ENGINES
from launchers.memory import Reading
from launchers.spec import CPU, Device, EngineSpec

OVER_FILES: Final = 1.2  # a model's memory over its files' size, before it was ever measured
_WEIGHTS: Final = frozenset((".gguf", ".safetensors", ".bin", ".pt", ".pth"))
_PART: Final = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)")


class Needs:
    """Belongs to one launcher."""

    def __init__(self, file: Path, number: Callable[[Device], Device]) -> None:
        """`number` gives a GPU's number for its UUID."""
        self._file = file
        self._number = number
        self._learned: dict[str, dict[Device, int]] = {}
        with suppress(OSError, ValueError):
            self._learned = json.loads(file.read_text())

    def of(
        self, spec: EngineSpec, fingerprint: str, there: Mapping[Device, Reading | None]
    ) -> dict[Device, int | None]:
        """Bytes on each device that it will use; None: not known before it ran. `there`: the devices of this machine.

        Reads the sizes of its files: blocks a little."""
        learned = self._learned.get(fingerprint, {}) if spec.image is None else {}
        needed: dict[Device, int | None] = {}
        for device in map(self._number, devices(spec, there)):
            reading = there.get(device)
            needed[device] = (
                spec.memory
                or learned.get(device)
                or ENGINES[spec.kind].need(spec, reading.total if reading is not None and device != CPU else None)
                or _size_of_files(spec, device)
            )
        return needed

    def learn(self, spec: EngineSpec, fingerprint: str, measured: Mapping[Device, int]) -> bool:
        """Take over what it was seen to hold; the most counts. True if that is news."""
        known = self._learned.setdefault(fingerprint, {})
        news = {device: held for device, held in measured.items() if held > known.get(device, 0) * 1.05}
        if spec.memory is not None or not news:
            return False
        known |= news
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._learned, indent=1))
        new.replace(self._file)
        return True


def devices(spec: EngineSpec, there: Mapping[Device, Reading | None]) -> tuple[Device, ...]:
    """Where an engine's model will be: the GPUs it was given, else the first ones there are, else the CPU."""
    if spec.gpus:
        return spec.gpus
    gpus = sorted((device for device in there if device != CPU), key=lambda device: _rank(device, there[device]))
    if spec.device in ("cpu", "mps") or not gpus:
        return (CPU,)
    return tuple(gpus[: spec.tensor_parallel or 1])


def _rank(device: Device, reading: Reading | None) -> tuple[bool, bool, int, Device]:
    """Measured ones first, then by number: what is merely declared may be named in any order."""
    return reading is None, not device.isdigit(), int(device) if device.isdigit() else 0, device


def _size_of_files(spec: EngineSpec, device: Device) -> int | None:
    """From the weights on disk, shared among its GPUs; None where they aren't here."""
    size = sum(_bytes(Path(text)) for text in (spec.model, spec.mmproj) if text)
    share = max(len(spec.gpus), 1) if device != CPU else 1
    return int(size * OVER_FILES / share) or None


def _bytes(path: Path) -> int:
    with suppress(OSError):
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.suffix in _WEIGHTS)
        if path.is_file():
            parts = path.parent.glob(_PART.sub(r"-*-of-\1", path.name))
            return sum(part.stat().st_size for part in parts)
    return 0
