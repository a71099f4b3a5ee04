"""What memory there is and what is free: the host's RAM, a file that stands in for GPUs, several meters as one.

Looks only; nobody is asked to leave here (`memory`, `room`). NVIDIA's GPUs have their own file (`gpu`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from launchers.scene import Holder, Reading
from launchers.spec import CPU, Device

SIZES: Final = "write bytes, or a number with kB, MB, GB, KiB, MiB or GiB"
_UNITS: Final = {"": 1, "b": 1} | {
    letter + unit: base**power for power, letter in enumerate("kmgt", 1) for unit, base in (("b", 1000), ("ib", 1024))
}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([a-z]*)")
_FIELD: Final = re.compile(r"^(\w+):?\s+(\d+)(?: kB)?$", re.MULTILINE)


class MeterError(Exception):
    """Nobody can tell what is free; the text is for people."""


class Meter(Protocol):
    def read(self) -> Mapping[Device, Reading]:
        """Every device that it knows, now. Blocks for some milliseconds. Raises `MeterError` where the user has to put
        something right; a device that can't be measured is simply not there."""


class Together:
    """Several meters as one; of a device that several know, the last one's word counts."""

    def __init__(self, *meters: Meter) -> None:
        self._meters = meters

    def read(self) -> Mapping[Device, Reading]:
        found: dict[Device, Reading] = {}
        for meter in self._meters:
            found |= meter.read()
        return found


class HostMemory:
    """The RAM, as device "cpu". Where a control group limits this process (a container), that limit is the total.

    Free is what the kernel could hand out without taking file pages away that somebody has mapped: Linux counts all of
    the page cache as available (`MemAvailable`), but an engine that maps its weights, as llama.cpp does, sits in there.
    Elsewhere than on Linux and macOS nothing is measured. `root`: for tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Mapping[Device, Reading]:
        if sys.platform == "darwin":
            reading = _darwin()
            return {} if reading is None else {CPU: reading}
        info = {name: size * 1024 for name, size in _fields(self._root / "proc/meminfo").items()}
        if "MemTotal" not in info or "MemAvailable" not in info:
            return {}
        total = host = info["MemTotal"]
        free = info["MemAvailable"] - max(0, info.get("Mapped", 0) - info.get("Shmem", 0))
        for limit, room in _groups(self._root):
            if limit < host:
                total, free = min(total, limit), min(free, room)
        return {CPU: Reading(total, max(0, min(free, total)))}


class BudgetFile:
    """A file, looked at anew each time, that stands in for devices that can't be measured. JSON or YAML:

        "0": 24GiB                                      # as large as that; who holds it is the launcher's own count
        "1": {total: 24GiB, free: 10GiB, holders: {"pid 4242 python3": 14GiB}}   # as if it were measured

    Its totals are the budget too: pass `budget()` to the decision, since `free` alone doesn't shrink by itself."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Mapping[Device, Reading]:
        return {device: self._reading(device, row) for device, row in self._rows().items()}

    def budget(self) -> Mapping[Device, int]:
        """Bytes of each device. Raises `MeterError`."""
        return {device: reading.total for device, reading in self.read().items()}

    def _rows(self) -> Mapping[Device, Any]:
        try:
            found = yaml.safe_load(self._path.read_text())
        except OSError as exc:
            raise MeterError(f"The budget file {self._path} can't be read: {exc.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as exc:
            mark = getattr(exc, "problem_mark", None)
            where = f" (line {mark.line + 1})" if mark is not None else ""
            raise MeterError(f"The budget file {self._path} is neither JSON nor YAML{where}.") from None
        if not isinstance(found, Mapping):
            raise MeterError(f'The budget file {self._path} is to map devices to sizes, like {{"0": "24GiB"}}.')
        return {str(device): row for device, row in found.items()}

    def _reading(self, device: Device, row: Any) -> Reading:
        parts = row if isinstance(row, Mapping) else {"total": row}
        if unknown := [str(key) for key in parts if key not in ("total", "free", "holders")]:
            raise self._wrong(device, f"{unknown[0]!r} means nothing there; it has total, free and holders")
        holders = parts.get("holders") or {}
        if "total" not in parts or not isinstance(holders, Mapping):
            raise self._wrong(device, "it needs a total, and holders as a mapping from a name to a size")
        try:
            total = parse_size(parts["total"])
            free = parse_size(parts.get("free", total))
            held = tuple(Holder(str(what), parse_size(size)) for what, size in holders.items())
        except ValueError as exc:
            raise self._wrong(device, str(exc)) from None
        return Reading(total, min(free, total), held)

    def _wrong(self, device: Device, why: str) -> MeterError:
        return MeterError(f"The budget file {self._path}, device {device}: {why}.")


def parse_size(value: object) -> int:
    """Bytes, from a number of them or from text like "24GiB". Raises `ValueError` with a clause for people."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is not a size; {SIZES}")
    return int(float(match[1]) * _UNITS[match[2]])


def process_memory(pids: Iterable[int], root: Path = Path("/")) -> int:
    """Bytes of RAM that these processes hold together, mapped weights included; what they share counts once (Pss).
    One that has ended counts nothing; 0 where there is no /proc. Blocks for some milliseconds, for tens of them with a
    large process."""
    return sum(_held(root / "proc" / str(pid)) for pid in pids)


def process_words(pid: int, root: Path = Path("/")) -> str:
    """A process in people's words: "pid 4242 python3"; without the name where it can't be seen."""
    try:
        name = (root / "proc" / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        name = ""
    return f"pid {pid} {name}".strip()


def _held(folder: Path) -> int:
    if pss := _fields(folder / "smaps_rollup").get("Pss", 0):
        return pss * 1024
    try:  # another user's process, or a kernel without it: its resident pages, shared ones in full
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _fields(path: Path) -> dict[str, int]:
    """`name: number kB` or `name number` in each line; nothing where the file can't be read."""
    try:
        return {name: int(number) for name, number in _FIELD.findall(path.read_text())}
    except OSError:
        return {}


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """The limit and what is left under it, for each control group that limits this process, version 1 or 2.

    In a container the path may be the host's, of which only the end, or nothing, exists inside: all of its ancestors
    are looked at and those that aren't there have no limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            group = base.joinpath(*parts[:depth])
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None:
                yield limit, limit - used + _reclaimable(_fields(group / "memory.stat"))


def _number(path: Path) -> int | None:
    """None too for "max", which is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Mapping[str, int]) -> int:
    """Page cache of a group that nobody has mapped. Version 1 has the sum over its children under `total_`."""

    def field(*names: str) -> int:
        return next((stat[name] for name in names if name in stat), 0)

    cache = field("total_active_file", "active_file") + field("total_inactive_file", "inactive_file")
    mapped = field("total_mapped_file", "file_mapped") - field("total_shmem", "shmem")
    return max(0, cache - max(0, mapped)) + field("slab_reclaimable")


def _darwin() -> Reading | None:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        said = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    free = parse_vm_stat(said)
    return None if free is None else Reading(total, min(free, total))


def parse_vm_stat(said: str) -> int | None:
    """Bytes that macOS could hand out, from what its `vm_stat` prints; None if that isn't it."""
    page = re.search(r"page size of (\d+) bytes", said)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", said, re.MULTILINE)
    return int(page[1]) * sum(map(int, pages)) if page and pages else None
