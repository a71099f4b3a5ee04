"""What there is to decide about: devices as measured, engines that hold memory, one that wants some, and how much room
there would be if some had gone.

Values and arithmetic; no I/O, no clock. Who has to go is decided in `memory`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from launchers.spec import CPU, Device

NOBODY: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who is seen to hold memory. `what`: people's words ("pid 4242 python3"). `bytes`: None where the driver
    doesn't tell."""

    what: str
    bytes: int | None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One device as it was measured, in bytes. `free` is what a newcomer could have at this moment."""

    total: int
    free: int
    holders: tuple[Holder, ...] = ()

    def without(self, pids: Iterable[int]) -> Reading:
        """Less those holders: for the launcher's own processes, which are engines with names."""
        own = frozenset(pids)
        return replace(self, holders=tuple(h for h in self.holders if h.pid not in own))


@dataclass(frozen=True, slots=True)
class Resident:
    """An engine that holds memory, or is about to.

    `need`: bytes on each of its devices; 0 means that nobody knows, and then it is taken to hold what is otherwise
    unaccounted for. `ready_for`: seconds since it became ready. `idle_for`: seconds since its last lease ended, None
    while there is one. `starting`: what it needs isn't all gone from the measured free memory yet. `stopping`: what it
    holds is about to come back by itself. `asleep`: it gave most of its memory back and holds the rest until it ends.
    """

    name: str
    need: Mapping[Device, int]
    pinned: bool
    leases: int
    starting: bool
    ready_for: float
    idle_for: float | None
    min_residency: float
    stopping: bool = False
    asleep: bool = False

    @property
    def stays_for(self) -> float:
        """Seconds for which it may not be asked to go."""
        return max(0.0, self.min_residency - self.ready_for)


@dataclass(frozen=True, slots=True)
class Want:
    """An engine that is to start. `need`: bytes on each of its devices, None where that isn't known yet: on a GPU it is
    then taken to want all there is (most engines do), on the CPU whatever is left will do."""

    name: str
    need: Mapping[Device, int | None]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is there. Everywhere `gone` names residents that are imagined away."""

    want: Want
    residents: tuple[Resident, ...]
    readings: Mapping[Device, Reading]
    budget: Mapping[Device, int]

    def held(self, device: Device, gone: AbstractSet[str], *, starting: bool = False) -> int:
        """What those that stay need there; only those that are starting, if so asked."""
        stay = (r for r in self.residents if r.name not in gone and (r.starting or not starting))
        return sum(r.need.get(device, 0) for r in stay)

    def room(self, device: Device, gone: AbstractSet[str], *, hopeful: bool = False) -> int | None:
        """Bytes for a newcomer, None for no limit. `hopeful`: as if a starting engine had taken its part already."""
        bounds = []
        if (reading := self.readings.get(device)) is not None:
            back = sum(r.need.get(device, 0) for r in self.residents if r.name in gone)
            coming = self.held(device, gone, starting=True)
            free = reading.free + back
            bounds.append(min(free, reading.total - coming) if hopeful else min(free, reading.total) - coming)
        if (limit := self.budget.get(device)) is not None:
            bounds.append(limit - self.held(device, gone))
        return min(bounds, default=None)

    def missing(self, device: Device, gone: AbstractSet[str], *, hopeful: bool = False) -> int:
        """Bytes; 0 where there is room."""
        room = self.room(device, gone, hopeful=hopeful)
        need = self.want.need[device]
        if room is None or need == 0:
            return 0
        if (
            need is None
            and device != CPU
            and any(_in_the_way(r, device) and r.name not in gone for r in self.residents)
        ):
            return max(1, 1 - room)
        return max(0, (need or 1) - room)

    def fits(self, gone: AbstractSet[str], *, hopeful: bool = False) -> bool:
        return not any(self.missing(device, gone, hopeful=hopeful) for device in self.want.need)


def _in_the_way(resident: Resident, device: Device) -> bool:
    """Of a newcomer that wants all there is."""
    return device in resident.need and not resident.pinned and not (resident.asleep and not resident.need[device])


def look(
    want: Want, residents: Iterable[Resident], readings: Mapping[Device, Reading], budget: Mapping[Device, int]
) -> Scene:
    """With a guess for every need that nobody knows: an equal part of what is unaccounted for. Not for one that only
    starts on the CPU: there all that other programs hold is unaccounted for. What `want` holds on to in its sleep is
    free for it."""
    known = _guessed([r for r in residents if r.name != want.name or r.asleep], readings, budget)
    own = {device: size for r in known if r.name == want.name for device, size in r.need.items()}
    seen = {
        device: replace(reading, free=min(reading.free + own.get(device, 0), reading.total))
        for device, reading in readings.items()
    }
    return Scene(want, tuple(r for r in known if r.name != want.name), seen, budget)


def _guessed(
    residents: Iterable[Resident], readings: Mapping[Device, Reading], budget: Mapping[Device, int]
) -> tuple[Resident, ...]:
    found = tuple(residents)
    for device in dict.fromkeys(device for r in found for device in r.need):
        puzzles = _puzzles(found, device, device in readings)
        known = sum(r.need.get(device, 0) for r in found)
        if (reading := readings.get(device)) is not None:
            spare = reading.total - reading.free - known - sum(h.bytes or 0 for h in reading.holders)
        else:
            spare = budget.get(device, 0) - known
        guess = max(0, spare) // max(len(puzzles), 1)
        found = tuple(replace(r, need={**r.need, device: guess}) if r.name in puzzles else r for r in found)
    return found


def _puzzles(residents: Iterable[Resident], device: Device, measured: bool) -> frozenset[str]:
    """Those whose part of the device is to be guessed: sleepers only where nobody is awake who may have it, and where
    there is something to tell it from."""
    unknown = [r for r in residents if r.need.get(device) == 0 and not (device == CPU and (r.starting or r.asleep))]
    awake = frozenset(r.name for r in unknown if not r.asleep)
    return awake or frozenset(r.name for r in unknown if measured)
