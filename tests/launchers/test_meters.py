"""Meters: against this machine's own /proc where that can be foretold, else against written ones."""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from launchers.memory import Device, Holder, Reading
from launchers.meters import (
    BudgetFile,
    HostMemory,
    MeterError,
    Together,
    parse_size,
    parse_vm_stat,
    process_memory,
    process_words,
)

MiB, GiB = 1024**2, 1024**3
UNLIMITED = 9223372036854771712
linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


class Machine:
    """A written /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def memory(self, **fields: int) -> None:
        """In MiB."""
        lines = [f"{name}:{size * 1024:>16} kB\n" for name, size in fields.items()]
        (self.root / "proc/meminfo").write_text("".join(["Active(anon):  99 kB\n", *lines, "HugePages_Total: 0\n"]))

    def cgroup(self, *lines: str) -> None:
        (self.root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, path: str, **files: object) -> None:
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")

    def read(self) -> Reading:
        return HostMemory(self.root).read()["cpu"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.memory(MemTotal=16000, MemFree=1000, MemAvailable=12000, Mapped=300, Shmem=300)
    return machine


@linux
def test_a_host(machine: Machine) -> None:
    assert machine.read() == Reading(16000 * MiB, 12000 * MiB)


@linux
def test_mapped_weights_are_not_free(machine: Machine) -> None:
    machine.memory(MemTotal=16000, MemAvailable=12000, Mapped=8300, Shmem=300)
    assert machine.read().free == 4000 * MiB


@linux
def test_mapped_shared_memory_is_not_counted_twice(machine: Machine) -> None:
    machine.memory(MemTotal=16000, MemAvailable=12000, Mapped=300, Shmem=4000)
    assert machine.read().free == 12000 * MiB


@linux
@pytest.mark.parametrize("fields", [{}, {"MemTotal": 16000}])
def test_a_kernel_that_does_not_tell(machine: Machine, fields: dict[str, int]) -> None:
    machine.memory(**fields)
    assert HostMemory(machine.root).read() == {}


@linux
def test_no_proc(tmp_path: Path) -> None:
    assert HostMemory(tmp_path / "nowhere").read() == {}


@linux
def test_a_container_of_version_2(machine: Machine) -> None:
    machine.cgroup("0::/")
    stat = f"anon {2 * GiB}\nactive_file {GiB}\ninactive_file {GiB}\nfile_mapped {GiB}\nshmem 0\nslab_reclaimable {MiB}"
    machine.group("", memory__max=8 * GiB, memory__current=5 * GiB, memory__stat=stat)
    # Of its two GiB of page cache one is mapped.
    assert machine.read() == Reading(8 * GiB, 4 * GiB + MiB)


@linux
def test_a_service_under_limits_above_it(machine: Machine) -> None:
    machine.cgroup("1:name=systemd:/x", "0::/system.slice/illm.service")
    machine.group("system.slice", memory__max=10 * GiB, memory__current=9 * GiB, memory__stat="")
    machine.group("system.slice/illm.service", memory__max=4 * GiB, memory__current=2 * GiB, memory__stat="")
    assert machine.read() == Reading(4 * GiB, GiB)  # its own limit is the lower one, but its parent has less left


@linux
def test_a_container_of_version_1(machine: Machine) -> None:
    machine.cgroup("5:cpu,cpuacct:/elsewhere", "4:memory:/docker/0123abc", "0::/")
    stat = f"cache 1\nmapped_file 1\ntotal_active_file {GiB}\ntotal_inactive_file 0\ntotal_mapped_file 0\ntotal_shmem 0"
    machine.group("memory", memory__limit_in_bytes=6 * GiB, memory__usage_in_bytes=3 * GiB, memory__stat=stat)
    assert machine.read() == Reading(6 * GiB, 4 * GiB)


@linux
@pytest.mark.parametrize(
    ("line", "path", "files"),
    [
        ("0::/a", "a", {"memory__max": "max", "memory__current": 5 * GiB}),
        ("0::/a", "a", {"memory__max": 64 * GiB, "memory__current": 63 * GiB}),
        ("4:memory:/", "memory", {"memory__limit_in_bytes": UNLIMITED, "memory__usage_in_bytes": 5 * GiB}),
        ("0::/gone", "a", {"memory__max": GiB, "memory__current": 0}),
        ("5:cpu:/a", "a", {"memory__max": GiB, "memory__current": 0}),
    ],
)
def test_groups_that_do_not_limit_it(machine: Machine, line: str, path: str, files: dict[str, object]) -> None:
    machine.cgroup(line)
    machine.group(path, memory__stat="", **files)
    assert machine.read() == Reading(16000 * MiB, 12000 * MiB)


@linux
def test_a_group_that_is_over_its_limit_has_nothing_free(machine: Machine) -> None:
    machine.cgroup("0::/")
    machine.group("", memory__max=GiB, memory__current=2 * GiB, memory__stat="")
    assert machine.read() == Reading(GiB, 0)


@linux
def test_this_machine() -> None:
    reading = HostMemory().read()["cpu"]
    assert 0 < reading.free <= reading.total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 1.01


HOLD = """
import mmap, sys
kind, path = sys.argv[1:]
if kind == "allocated": held = b"x" * (64 << 20)
if kind == "mapped":
    file = open(path, "rb")
    held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    sum(held[at] for at in range(0, len(held), mmap.PAGESIZE))
print("ready", flush=True)
sys.stdin.read()
"""


@linux
@pytest.mark.parametrize("kind", ["allocated", "mapped"])
def test_what_a_process_holds(tmp_path: Path, kind: str) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(os.urandom(MiB) * 64)
    sizes = {}
    for what in ("nothing", kind):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, what, str(weights)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            sizes[what] = process_memory([process.pid])
            assert process_memory([process.pid, 2**22 + 1]) == pytest.approx(sizes[what], rel=0.1)
    assert 60 * MiB < sizes[kind] - sizes["nothing"] < 72 * MiB
    assert process_memory([process.pid]) == 0  # it has ended


def test_a_process_that_may_not_be_looked_into(tmp_path: Path) -> None:
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "statm").write_text("9000 1000 300 1 0 50 0\n")
    assert process_memory([7, 8], tmp_path) == 1000 * mmap.PAGESIZE
    (folder / "smaps_rollup").write_text("5-7 ---p 00000000 00:00 0    [rollup]\nRss:   900 kB\nPss:   500 kB\n")
    assert process_memory([7], tmp_path) == 500 * 1024


def test_a_process_in_words(tmp_path: Path) -> None:
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "comm").write_text("python3\n")
    assert process_words(7, tmp_path) == "pid 7 python3"
    assert process_words(8, tmp_path) == "pid 8"


def test_a_budget_file_is_looked_at_anew(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    meter = BudgetFile(file)
    file.write_text(json.dumps({"0": "24GiB", "cpu": 1000, "1": {"total": "80 GiB", "free": "1.5GB"}}))
    assert meter.read() == {
        "0": Reading(24 * GiB, 24 * GiB),
        "cpu": Reading(1000, 1000),
        "1": Reading(80 * GiB, 1_500_000_000),
    }
    assert meter.budget() == {"0": 24 * GiB, "cpu": 1000, "1": 80 * GiB}
    file.write_text("0: 8GiB\n1: {total: 8GiB, free: 9GiB, holders: {pid 4242 python3: 2GiB}}\n")
    assert meter.read() == {
        "0": Reading(8 * GiB, 8 * GiB),
        "1": Reading(8 * GiB, 8 * GiB, (Holder("pid 4242 python3", 2 * GiB),)),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is neither JSON nor YAML (line 1)"),
        ("", 'is to map devices to sizes, like {"0": "24GiB"}'),
        ("[24GiB]", "is to map devices to sizes"),
        ("0: lots", "device 0: 'lots' is not a size; write bytes, or a number with"),
        ("0: 24 GiBs", "device 0: '24 GiBs' is not a size"),
        ("0: -5", "device 0: -5 is not a size"),
        ("0: yes", "device 0: True is not a size"),
        ("0: 1.5", "device 0: 1.5 is not a size"),
        ("0:", "device 0: None is not a size"),
        ("0: {free: 1GiB}", "device 0: it needs a total"),
        ("0: {total: 1GiB, used: 1GiB}", "device 0: 'used' means nothing there"),
        ("0: {total: 1GiB, holders: [x]}", "device 0: it needs a total, and holders as a mapping"),
        ("0: {total: 1GiB, holders: {x: y}}", "device 0: 'y' is not a size"),
        ("\udcff", "is neither JSON nor YAML"),
    ],
)
def test_a_bad_budget_file(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "budget.yaml"
    file.write_text(content, errors="surrogateescape")
    with pytest.raises(MeterError) as caught:
        BudgetFile(file).read()
    assert str(caught.value).startswith(f"The budget file {file}")
    assert words in str(caught.value)


def test_a_budget_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match=r"can't be read: No such file or directory\.$"):
        BudgetFile(tmp_path / "none").read()


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), (5, 5), ("5", 5), ("5B", 5), ("2kB", 2000), ("2 KiB", 2048), ("1.5GiB", 3 * GiB // 2), ("1tb", 10**12)],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


class Fixed:
    def __init__(self, **readings: Reading) -> None:
        self._readings = readings

    def read(self) -> Mapping[Device, Reading]:
        return self._readings


def test_the_last_meter_has_the_last_word() -> None:
    a, b, c = Reading(1, 1), Reading(2, 2), Reading(3, 3)
    assert Together(Fixed(cpu=a, gpu=b), Fixed(gpu=c)).read() == {"cpu": a, "gpu": c}
    assert Together().read() == {}


VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10.
Pages active:                            900.
Pages inactive:                           20.
Pages speculative:                         3.
Pages wired down:                        700.
Pages purgeable:                           4.
"Translation faults":              123456789.
"""


def test_macos() -> None:
    assert parse_vm_stat(VM_STAT) == 37 * 16384
    assert parse_vm_stat("vm_stat: unknown") is None
