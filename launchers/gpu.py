"""NVIDIA's GPUs: what each has, what is free and which processes hold the rest, from NVML (through `nvidia-ml-py`).

The only file that knows NVML. A machine without the library or a driver simply has no GPUs. NVML shows all of them,
whatever CUDA_VISIBLE_DEVICES says, and numbers them in the order of the PCI bus; CUDA numbers them by speed, unless the
engine has CUDA_DEVICE_ORDER=PCI_BUS_ID in its environment (`engines/table` sees to that).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from launchers.meters import process_words
from launchers.scene import Holder, Reading
from launchers.spec import Device

T = TypeVar("T")

# Who computes and who draws; each in the versions that drivers have had, the newest first.
_PROCESSES: Final = tuple(
    tuple(f"nvmlDeviceGet{what}RunningProcesses_v{version}" for version in (3, 2)) for what in ("Compute", "Graphics")
)


@dataclass(frozen=True, slots=True)
class Card:
    """Who a GPU is."""

    number: Device
    uuid: str
    name: str


class NvidiaGpus:
    """A `Meter`; owns its connection to the driver until `close`. Any thread may ask; one at a time is answered.

    `cards` are the GPUs of the last look, `notes` sentences on what went wrong in it."""

    def __init__(self) -> None:
        self.cards: tuple[Card, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._nvml: Any = None  # the module, while it is initialised
        self._turn = threading.Lock()

    def read(self) -> Mapping[Device, Reading]:
        """Every GPU that answers, by its number. Blocks for milliseconds; the first time, where no driver is loaded
        yet, for seconds. Never raises."""
        with self._turn:
            return self._read()

    def _read(self) -> Mapping[Device, Reading]:
        self.notes = ()
        if self._nvml is None and not self._open():
            self.cards = ()
            return {}
        found: dict[Device, Reading] = {}
        cards: list[Card] = []
        for index in range(self._count()):
            try:
                card, reading = self._look(index)
            except self._nvml.NVMLError as exc:
                self._note(f"GPU {index} can't be measured: {exc}. launcher.budget can declare its memory.")
                continue
            cards.append(card)
            found[card.number] = reading
        self.cards = tuple(cards)  # at once: `number` may be asked meanwhile
        return found

    def number(self, device: Device) -> Device:
        """The number of a GPU that is named by its UUID, or by as much of that as tells it apart, as CUDA allows it.
        Anything else is given back as it is."""
        matches = [card.number for card in self.cards if len(device) > 4 and card.uuid.startswith(device)]
        return matches[0] if len(matches) == 1 else device

    def close(self) -> None:
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None

    def _open(self) -> bool:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return False
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            # No library: no NVIDIA driver on this machine, as on most.
            if exc.value != nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                self._note(f"NVIDIA's driver doesn't answer: {exc}. `nvidia-smi` may say more.")
            return False
        self._nvml = nvml
        return True

    def _count(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as exc:
            self._note(f"NVIDIA's driver doesn't answer any more: {exc}. `nvidia-smi` may say more.")
            self.close()  # it may have been reloaded: the next look begins anew
            return 0

    def _look(self, index: int) -> tuple[Card, Reading]:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        uuid = self._or(lambda: str(nvml.nvmlDeviceGetUUID(handle)), "")
        name = self._or(lambda: str(nvml.nvmlDeviceGetName(handle)), "")
        return Card(str(index), uuid, name), Reading(int(memory.total), int(memory.free), self._holders(handle))

    def _holders(self, handle: Any) -> tuple[Holder, ...]:
        """Empty where the driver doesn't tell, as in a container that can't see the host's processes."""
        held: dict[int, int | None] = {}
        for versions in _PROCESSES:
            used: dict[int, int | None] = {}
            for process in self._processes(handle, versions):
                before = used.get(process.pid, 0)  # a process has a row in each instance of a divided GPU
                now = process.usedGpuMemory
                used[process.pid] = None if now is None or before is None else before + int(now)
            for pid, size in used.items():  # who both computes and draws is in both lists with all it holds
                held[pid] = max((s for s in (size, held.get(pid)) if s is not None), default=None)
        return tuple(Holder(process_words(pid), size, pid) for pid, size in sorted(held.items()))

    def _processes(self, handle: Any, versions: Iterable[str]) -> list[Any]:
        for function in versions:
            try:
                return list(getattr(self._nvml, function)(handle))
            except AttributeError:  # a library of the same name that is older than the one asked for
                continue
            except self._nvml.NVMLError as exc:
                if exc.value != self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                    return []
        return []

    def _or(self, ask: Callable[[], T], otherwise: T) -> T:
        try:
            return ask()
        except self._nvml.NVMLError:
            return otherwise

    def _note(self, sentence: str) -> None:
        self.notes += (sentence,)


def used_by(reading: Reading, pids: Iterable[int]) -> int | None:
    """Bytes of one GPU that these processes hold together, to learn an engine's need from. None where the driver
    doesn't tell, or knows none of them: in a container it may count processes by other numbers."""
    wanted = frozenset(pids)
    sizes = [holder.bytes for holder in reading.holders if holder.pid in wanted]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None
