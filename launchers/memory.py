"""Who must go so that an engine can start: a pure decision over what was measured, declared and promised.

No I/O, no clock, and it must not log; `room` carries the verdict out, `meters` and `gpu` measure.

Idle engines go before those in use, the least recently used first; between them come those that sleep, which hold on
to a little and are ended for it. Pinned ones never go, nor does one that is on its way in or out, nor one that became
ready only a moment ago (`min_residency`): swapping two models at every request would serve neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from launchers.scene import NOBODY, Scene, look
from launchers.scene import Holder as Holder
from launchers.scene import Reading as Reading
from launchers.scene import Resident as Resident
from launchers.scene import Want as Want
from launchers.shortage import listed, why_never
from launchers.shortage import words as words
from launchers.spec import Device as Device


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room now."""


@dataclass(frozen=True, slots=True)
class Evict:
    """There is room once these have gone; none of them could stay. Those with leases are to be asked, and drain.
    `asleep`: some of them sleep, and are to be ended."""

    names: tuple[str, ...]
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after `seconds`; None: when something has changed. `reason`: who is waited for."""

    seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Never:
    """No waiting helps. `reason`: sentences that say what is needed, who holds it and what to do next."""

    reason: str


Verdict = Fits | Evict | Wait | Never


def decide(
    want: Want, residents: Iterable[Resident], readings: Mapping[Device, Reading], budget: Mapping[Device, int]
) -> Verdict:
    """What must happen before `want` can start. A device that is neither in `readings` nor in `budget` has room without
    end; one in both has the lesser. `want` itself may be among the residents and doesn't count there."""
    scene = look(want, residents, readings, budget)
    if scene.fits(NOBODY):
        return Fits()
    leaving = frozenset(r.name for r in scene.residents if r.stopping)
    if scene.fits(leaving):
        return Wait(None, f"{_are(leaving)} still stopping")
    settled = [r for r in scene.residents if not (r.pinned or r.starting or r.stopping)]
    free = sorted((r for r in settled if not r.leases), key=lambda r: -(r.idle_for or 0.0))
    idle, asleep = [r for r in free if not r.asleep], [r for r in free if r.asleep]
    leased = sorted((r for r in settled if r.leases), key=lambda r: -r.ready_for)
    for candidates in (idle, [*idle, *asleep], [*idle, *asleep, *leased]):
        if scene.fits(leaving | _names(candidates)):
            return _choose(scene, candidates, leaving)
    # Only those on their way could help now. A starting engine has taken some of its memory already, and what is free
    # doesn't tell how much: so this asks whether there could be room at all, and its outcome decides.
    gone = frozenset(r.name for r in scene.residents if not r.pinned or r.stopping)
    if scene.fits(gone, hopeful=True):
        starting = _names(r for r in scene.residents if r.starting)
        return Wait(None, f"{_are(starting)} still starting" if starting else f"{_are(leaving)} still stopping")
    return Never(why_never(scene, gone))


def _choose(scene: Scene, candidates: Sequence[Resident], leaving: AbstractSet[str]) -> Evict | Wait:
    """`candidates`, the first to go first, would all together make room: the fewest of them, or the time until then."""
    ripe = [r for r in candidates if not r.stays_for]
    if scene.fits(leaving | _names(ripe)):
        chosen = list(ripe)
        for spared in reversed(ripe):
            if scene.fits(leaving | (_names(chosen) - {spared.name})):
                chosen.remove(spared)
        return Evict(tuple(r.name for r in chosen), asleep=any(r.asleep for r in chosen))
    by_time = sorted(candidates, key=lambda r: r.stays_for)
    last = next(r for n, r in enumerate(by_time, 1) if scene.fits(leaving | _names(by_time[:n])))
    return Wait(last.stays_for, f"{last.name} stays for another {math.ceil(last.stays_for)} s (min_residency)")


def _names(residents: Iterable[Resident]) -> frozenset[str]:
    return frozenset(r.name for r in residents)


def _are(names: Iterable[str]) -> str:
    known = sorted(names)
    return f"{listed(known)} {'are' if len(known) > 1 else 'is'}"
