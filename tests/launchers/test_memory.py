"""Who must go: cases as people would tell them, then properties against a count of all subsets."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from launchers.memory import (
    Device,
    Evict,
    Fits,
    Holder,
    Never,
    Reading,
    Resident,
    Verdict,
    Wait,
    Want,
    decide,
    words,
)

GiB = 1024**3


def engine(
    name: str,
    need: float,
    *devices: Device,
    pinned: bool = False,
    leases: int = 0,
    starting: bool = False,
    stopping: bool = False,
    ready: float = 1000,
    idle: float = 100,
) -> Resident:
    """`need` in GiB; on GPU 0 unless devices are named; may go after 30 s."""
    return Resident(
        name=name,
        need={device: int(need * GiB) for device in devices or ("0",)},
        pinned=pinned,
        leases=leases,
        starting=starting,
        stopping=stopping,
        ready_for=ready,
        idle_for=None if leases else idle,
        min_residency=30,
    )


def measured(total: float, free: float, *holders: Holder) -> Reading:
    return Reading(int(total * GiB), int(free * GiB), holders)


def want(need: float | None, *devices: Device) -> Want:
    return Want("coder", {device: None if need is None else int(need * GiB) for device in devices or ("0",)})


@dataclass
class Case:
    """One GPU 0 of 24 GiB, unless it says otherwise. Sizes in GiB."""

    want: Want
    expected: Verdict
    residents: Sequence[Resident] = ()
    free: float = 24
    budget: float | None = None


old, young = engine("old", 10, idle=500), engine("young", 10, idle=50)
busy = engine("busy", 10, leases=2)

CASES = {
    "room": Case(want(20), Fits()),
    "just room": Case(want(24), Fits()),
    "nothing needed, nothing there": Case(want(0), Fits(), free=0),
    "the least recently used goes": Case(want(12), Evict(("old",)), [young, old], free=4),
    "both go, in that order": Case(want(20), Evict(("old", "young")), [young, old], free=4),
    "none goes in vain": Case(want(20), Evict(("big",)), [engine("small", 2, idle=900), engine("big", 18)], free=4),
    "idle before busy": Case(want(12), Evict(("young",)), [busy, young], free=4),
    "busy ones are asked when nothing else helps": Case(want(20), Evict(("young", "busy")), [busy, young], free=4),
    "of two busy ones the longer ready": Case(
        want(12), Evict(("first",)), [engine("last", 10, leases=1, ready=40), engine("first", 10, leases=9)], free=4
    ),
    "a new one stays a while": Case(
        want(12), Wait(18, "new stays for another 18 s (min_residency)"), [engine("new", 10, ready=12)], free=4
    ),
    "an old one goes in place of a new one": Case(
        want(12), Evict(("young",)), [engine("new", 10, ready=12, idle=800), young], free=4
    ),
    "rather wait for an idle one than disturb a busy one": Case(
        want(12),
        Wait(18, "new stays for another 18 s (min_residency)"),
        [engine("new", 10, ready=12), busy],
        free=4,
    ),
    "a busy one goes where a new one doesn't help": Case(
        want(12), Evict(("busy",)), [engine("new", 2, ready=12), busy], free=4
    ),
    "a new busy one stays too": Case(
        want(12), Wait(25, "b stays for another 25 s (min_residency)"), [engine("b", 20, leases=1, ready=5)], free=4
    ),
    "the wait is for those that matter": Case(
        want(12),
        Wait(10, "a stays for another 10 s (min_residency)"),
        [engine("a", 10, ready=20), engine("b", 8, ready=1)],
        free=4,
    ),
    "room that a starting one will take": Case(
        want(12), Wait(None, "new is still starting"), [engine("new", 20, starting=True)], free=20
    ),
    "room beside a starting one": Case(want(4), Fits(), [engine("new", 20, starting=True)]),
    "room once a starting one has gone again": Case(
        want(20), Wait(None, "a and b are still starting"),
        [engine("a", 6, starting=True), engine("b", 6, starting=True)],
    ),
    "room beside a pinned one, seen once it has started": Case(
        want(10), Wait(None, "p is still starting"), [engine("p", 10, starting=True, pinned=True)], free=14
    ),
    "one that stops is waited for": Case(
        want(20), Wait(None, "ex is still stopping"), [engine("ex", 20, stopping=True, pinned=True), young], free=4
    ),
    "one that stops isn't enough": Case(want(20), Evict(("old",)), [engine("ex", 6, stopping=True), old], free=4),
    "one stops and one starts": Case(
        want(20),
        Wait(None, "new is still starting"),
        [engine("ex", 10, stopping=True, pinned=True), engine("new", 10, starting=True)],
        free=4,
    ),
    "the newcomer itself doesn't count": Case(want(20), Fits(), [engine("coder", 20, starting=True)]),
    "the budget is the limit": Case(want(12), Evict(("old",)), [old], free=14, budget=20),
    "the budget has room, the GPU hasn't": Case(want(12), Evict(("old",)), [old], free=4, budget=24),
    "a starting one counts in the budget once": Case(want(4), Fits(), [engine("new", 16, starting=True)], budget=20),
    "not known: it gets all": Case(want(None), Evict(("old", "young", "busy")), [busy, young, old], free=4),
    "not known: but others' memory isn't ours": Case(want(None), Fits(), free=1),
    "not known: it tries beside a pinned one": Case(want(None), Fits(), [engine("p", 20, pinned=True)], free=4),
    "not known: not beside a starting one": Case(
        want(None), Wait(None, "new is still starting"), [engine("new", 4, starting=True)], free=20
    ),
    "who holds an unknown part may go": Case(want(20), Evict(("odd",)), [engine("odd", 0), engine("p", 2)], free=2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    budget = {} if case.budget is None else {"0": int(case.budget * GiB)}
    assert decide(case.want, case.residents, {"0": measured(24, case.free)}, budget) == case.expected


def test_no_limit_where_nothing_is_known() -> None:
    assert decide(want(900), [engine("a", 900)], {}, {}) == Fits()
    assert decide(want(None), [engine("a", 900)], {}, {}) == Fits()


def test_a_budget_alone_counts_what_was_granted() -> None:
    budget = {"0": 20 * GiB}
    assert decide(want(10), [engine("a", 10)], {}, budget) == Fits()
    assert decide(want(11), [engine("a", 10)], {}, budget) == Evict(("a",))
    assert decide(want(11), [engine("a", 0)], {}, budget) == Evict(("a",))  # it may have all of it


def test_room_on_every_device() -> None:
    readings = {"0": measured(24, 4), "1": measured(24, 4), "2": measured(24, 0)}
    residents = [
        engine("zero", 18, "0", idle=10),
        engine("one", 18, "1", idle=20),
        engine("two", 18, "2", idle=900),
        engine("both", 18, "0", "1", idle=5),
    ]
    assert decide(want(20, "0", "1"), residents, readings, {}) == Evict(("one", "zero"))
    assert decide(want(20, "0"), residents, readings, {}) == Evict(("zero",))


def test_ram_that_is_not_known_needs_a_little() -> None:
    resident = engine("a", 8, "cpu")
    assert decide(want(None, "cpu"), [resident], {"cpu": measured(16, 1)}, {}) == Fits()
    assert decide(want(None, "cpu"), [resident], {"cpu": measured(16, 0)}, {}) == Evict(("a",))


def test_who_starts_with_an_unknown_need_is_not_taken_for_all_other_programs() -> None:
    residents = [engine("a", 0, "cpu", starting=True)]
    assert decide(want(2, "cpu"), residents, {"cpu": measured(16, 6)}, {}) == Fits()


def test_several_who_hold_unknown_parts() -> None:
    residents = [engine("a", 0, idle=9), engine("b", 0, idle=99), engine("c", 4)]
    assert decide(want(10), residents, {"0": measured(24, 2)}, {}) == Evict(("b",))


PYTHON = Holder("pid 4242 python3", 6 * GiB, 4242)


@pytest.mark.parametrize(
    ("wanted", "residents", "readings", "budget", "reason"),
    [
        (
            want(20),
            [engine("vision", 12, pinned=True), engine("b", 4)],
            {"0": measured(24, 2, PYTHON)},
            {"0": 22 * GiB},
            "coder needs 20 GiB of GPU 0, where launcher.budget allows 22 GiB: at most 6 GiB of 24 GiB can be made "
            "free. Held by vision (pinned, 12 GiB) and pid 4242 python3 (6 GiB). To start it, raise launcher.budget, "
            "unpin vision, stop pid 4242 python3, lower its `memory`, gpu_memory or max_model_len or take a smaller "
            "model.",
        ),
        (  # larger than the GPU: neither unpinning nor stopping anything would help
            want(40),
            [engine("vision", 12, pinned=True)],
            {"0": measured(24, 6, PYTHON)},
            {},
            "coder needs 40 GiB of GPU 0: at most 6 GiB of 24 GiB can be made free. Held by vision (pinned, 12 GiB) "
            "and pid 4242 python3 (6 GiB). To start it, lower its `memory`, gpu_memory or max_model_len or take a "
            "smaller model.",
        ),
        (
            want(10, "cpu"),
            [engine("vision", 4.5, "cpu", pinned=True)],
            {"cpu": measured(16, 6)},
            {},
            "coder needs 10 GiB of RAM: at most 6 GiB of 16 GiB can be made free. Held by vision (pinned, 4.5 GiB) and "
            "other programs (5.5 GiB). To start it, unpin vision, lower its `memory` or max_model_len or take a "
            "smaller model.",
        ),
        (
            want(None),
            [engine("a", 6, pinned=True), engine("b", 6, pinned=True)],
            {},
            {"0": 12 * GiB},
            "coder needs memory of GPU 0, where launcher.budget allows 12 GiB: nothing can be made free. Held by a "
            "(pinned, 6 GiB) and b (pinned, 6 GiB). To start it, raise launcher.budget or unpin a or b.",
        ),
        (
            want(None),
            [],
            {"0": measured(24, 0, Holder("pid 7", None, 7))},
            {},
            "coder needs memory of GPU 0: nothing of 24 GiB can be made free. Held by pid 7 and other programs "
            "(24 GiB). To start it, stop pid 7.",
        ),
        (
            want(20, "0", "1"),
            [engine("vision", 12, pinned=True)],
            {"0": measured(24, 12), "1": measured(24, 24)},
            {},
            "coder needs 20 GiB of GPU 0: at most 12 GiB of 24 GiB can be made free. Held by vision (pinned, 12 GiB). "
            "To start it, unpin vision, lower its `memory`, gpu_memory or max_model_len or take a smaller model.",
        ),
        (want(None), [], {"0": measured(24, 0)}, {}, "coder needs memory of GPU 0: nothing of 24 GiB can be made free. "
            "Held by other programs (24 GiB). To start it, free memory of GPU 0."),
    ],
)  # fmt: skip
def test_why_it_can_not_fit(
    wanted: Want,
    residents: list[Resident],
    readings: Mapping[Device, Reading],
    budget: Mapping[Device, int],
    reason: str,
) -> None:
    assert decide(wanted, residents, readings, budget) == Never(reason)


def test_an_engines_own_processes_are_no_strangers() -> None:
    reading = measured(24, 6, PYTHON, Holder("pid 7 vllm", 12 * GiB, 7))
    assert reading.without([7, 8]) == measured(24, 6, PYTHON)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "nothing"),
        (1, "less than 1 MiB"),
        (512 * 2**20, "512 MiB"),
        (GiB - 1, "1 GiB"),
        (GiB, "1 GiB"),
        (int(22.54 * GiB), "22.5 GiB"),
        (80 * GiB, "80 GiB"),
    ],
)
def test_words(size: int, said: str) -> None:
    assert words(size) == said


# --- properties -------------------------------------------------------------------------------------------------------

DEVICES = ("cpu", "0", "1")


@dataclass(frozen=True)
class Scenery:
    want: Want
    residents: tuple[Resident, ...]
    readings: Mapping[Device, Reading]
    budget: Mapping[Device, int]

    def decide(self) -> Verdict:
        return decide(self.want, self.residents, self.readings, self.budget)

    def fits(self, gone: Collection[str] = (), *, started: bool = False) -> bool:
        """The rule in other words. `started`: as if those that start were done, and what they hold within what isn't
        free."""
        for device, need in self.want.need.items():
            limits = self._limits(device, gone, started)
            stay = [r for r in self.residents if r.name not in gone]
            if limits and need is None and device != "cpu" and any(device in r.need and not r.pinned for r in stay):
                return False
            if need != 0 and any((need or 1) > limit for limit in limits):
                return False
        return True

    def _limits(self, device: Device, gone: Collection[str], started: bool) -> list[int]:
        limits = []
        stay = [r for r in self.residents if r.name not in gone]
        if device in self.readings:
            reading = self.readings[device]
            back = sum(r.need.get(device, 0) for r in self.residents if r.name in gone)
            coming = sum(r.need.get(device, 0) for r in stay if r.starting)
            limits.append(reading.free + back - (0 if started else coming))
            limits.append(reading.total - coming)
        if device in self.budget:
            limits.append(self.budget[device] - sum(r.need.get(device, 0) for r in stay))
        return limits

    def after(self, seconds: float) -> "Scenery":
        older = (
            replace(r, ready_for=r.ready_for + seconds, idle_for=None if r.idle_for is None else r.idle_for + seconds)
            for r in self.residents
        )
        return replace(self, residents=tuple(older))

    def without(self, names: Collection[str]) -> "Scenery":
        """Those have gone and their memory is back."""
        readings = {}
        for device, reading in self.readings.items():
            back = sum(r.need.get(device, 0) for r in self.residents if r.name in names)
            readings[device] = replace(reading, free=min(reading.free + back, reading.total))
        return replace(self, residents=tuple(r for r in self.residents if r.name not in names), readings=readings)

    def named(self, names: Collection[str]) -> list[Resident]:
        return [r for r in self.residents if r.name in names]

    @property
    def leaving(self) -> set[str]:
        return {r.name for r in self.residents if r.stopping}


@st.composite
def sceneries(draw: st.DrawFn, crowded: bool = False, fresh: bool = False) -> Scenery:
    """`crowded`: most often there is too little room, and somebody who may go. `fresh`: but not at once."""
    sizes = st.integers(1, 10)
    unlucky = [False, False, False, not crowded]
    residents = []
    for name in "abcde"[: draw(st.integers(2 if crowded else 0, 5))]:
        phase = draw(st.sampled_from(["ready", "ready", "ready", "ready" if crowded else "starting", "stopping"]))
        leases = draw(st.sampled_from([0, 0, 1]))
        residents.append(
            Resident(
                name=name,
                need=draw(st.dictionaries(st.sampled_from(DEVICES), sizes, min_size=1)),
                pinned=draw(st.sampled_from(unlucky)),
                leases=leases,
                starting=phase == "starting",
                stopping=phase == "stopping",
                ready_for=draw(st.integers(0, 60)) if phase == "ready" else 0,
                idle_for=None if leases or phase != "ready" else draw(st.integers(0, 60)),
                min_residency=61 if fresh else 30 if draw(st.sampled_from(unlucky)) else 0,
            )
        )
    readings = {}
    for device in DEVICES if crowded else draw(st.sets(st.sampled_from(DEVICES))):
        total = draw(st.integers(20 if crowded else 1, 30))
        readings[device] = Reading(total, draw(st.integers(0, 5 if crowded else total)))
    needs = st.one_of(st.none(), st.integers(5, 20) if crowded else st.integers(0, 10))
    wanted = draw(st.dictionaries(st.sampled_from(DEVICES), needs, min_size=1, max_size=2 if crowded else 3))
    limits = st.integers(15 if crowded else 0, 30)
    budget = draw(st.dictionaries(st.sampled_from(DEVICES), limits, max_size=1 if crowded else 3))
    return Scenery(Want("new", wanted), tuple(residents), readings, budget)


@given(sceneries())
def test_it_fits_exactly_when_there_is_room(scenery: Scenery) -> None:
    verdict = scenery.decide()
    event(type(verdict).__name__)
    assert (verdict == Fits()) == scenery.fits()


@given(st.one_of(sceneries(), sceneries(crowded=True), sceneries(crowded=True)))
def test_an_eviction(scenery: Scenery) -> None:
    verdict = scenery.decide()
    assume(isinstance(verdict, Evict))
    assert isinstance(verdict, Evict)
    victims, leaving = scenery.named(verdict.names), scenery.leaving
    event(f"{len(victims)} go")

    # They may go, make room, and none of them could stay.
    assert len(victims) == len(verdict.names) > 0
    assert all(may_go(r) for r in victims)
    gone = {*verdict.names, *leaving}
    assert scenery.fits(gone)
    assert not any(scenery.fits(gone - {name}) for name in verdict.names)
    later = scenery.without(gone)
    assert later.decide() == Fits()

    # Who is in use is asked only when all the idle ones don't suffice; of the idle ones, none goes in whose place those
    # would do that were used longer ago.
    if any(r.leases for r in victims):
        assert not scenery.fits({r.name for r in scenery.residents if settled(r) and not r.leases} | leaving)
        return
    idle = [r.idle_for or 0 for r in (next(r for r in victims if r.name == name) for name in verdict.names)]
    assert idle == sorted(idle, reverse=True)
    older = {r.name for r in scenery.residents if may_go(r) and (r.idle_for or 0) > idle[-1] and not r.leases}
    assert not scenery.fits(older | leaving)


def settled(resident: Resident) -> bool:
    return not (resident.pinned or resident.starting or resident.stopping)


def may_go(resident: Resident) -> bool:
    return settled(resident) and resident.ready_for >= resident.min_residency


@given(st.one_of(sceneries(), sceneries(crowded=True, fresh=True), sceneries(crowded=True, fresh=True)))
def test_a_wait_is_as_long_as_it_says(scenery: Scenery) -> None:
    verdict = scenery.decide()
    assume(isinstance(verdict, Wait))
    assert isinstance(verdict, Wait)
    if verdict.seconds is None:
        assert any(r.starting or r.stopping for r in scenery.residents)
        return
    assert verdict.seconds > 0
    assert isinstance(scenery.after(verdict.seconds).decide(), Evict)
    assert not isinstance(scenery.after(verdict.seconds - 0.5).decide(), Evict | Fits)


@given(sceneries())
def test_never_is_said_when_whoever_goes_it_could_not_fit(scenery: Scenery) -> None:
    verdict = scenery.decide()
    may_leave = [r.name for r in scenery.residents if not r.pinned or r.stopping]
    sets = (gone for count in range(len(may_leave) + 1) for gone in combinations(may_leave, count))
    assert isinstance(verdict, Never) != any(scenery.fits(gone, started=True) for gone in sets)
    if isinstance(verdict, Never):
        assert verdict.reason.startswith("new needs ")


@given(sceneries(), st.sampled_from(DEVICES), st.integers(1, 10))
def test_more_memory_and_smaller_needs_never_hurt(scenery: Scenery, device: Device, more: int) -> None:
    before = scenery.decide()
    assume(not isinstance(before, Never))
    better = [scenery]
    if (reading := scenery.readings.get(device)) is not None:
        grown = replace(reading, total=reading.total + more, free=reading.free + more)
        better.append(replace(scenery, readings={**scenery.readings, device: grown}))
    if (limit := scenery.budget.get(device)) is not None:
        better.append(replace(scenery, budget={**scenery.budget, device: limit + more}))
    if (need := scenery.want.need.get(device)) is not None:
        less = Want("new", {**scenery.want.need, device: max(0, need - more)})
        better.append(replace(scenery, want=less))
    for other in better:
        after = other.decide()
        assert not isinstance(after, Never)
        if before == Fits():
            assert after == Fits()


@given(sceneries(), st.randoms())
def test_the_order_of_telling_does_not_matter(scenery: Scenery, random: object) -> None:
    idle = [(r.idle_for, r.leases, r.ready_for) for r in scenery.residents]
    assume(len(set(idle)) == len(idle))
    shuffled = list(scenery.residents)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert type(decide(scenery.want, shuffled, scenery.readings, scenery.budget)) is type(scenery.decide())
