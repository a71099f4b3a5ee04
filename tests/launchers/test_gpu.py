"""NVML as the launcher reads it, through the real binding, from a stand-in of the library: each look in a process of
its own, because that is where a library is chosen."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers.gpu import used_by
from launchers.memory import Holder, Reading
from tests.engines.process import PATIENCE
from tests.launchers.standins import nvml
from tests.launchers.standins.nvml import GiB

ROOT = Path(__file__).parents[2]
BIG = f"gpu {80 * GiB} {50 * GiB} GPU-aaaa1111-0000 NVIDIA H100 80GB HBM3"
SMALL = f"gpu {24 * GiB} {20 * GiB} GPU-bbbb2222-0000 NVIDIA GeForce RTX 4090"
LOST, NOT_SUPPORTED, NO_PERMISSION, NO_DRIVER, MISMATCH, UNINITIALISED = 15, 3, 4, 9, 18, 1

# Looks once for each line on its input and tells what it saw.
LOOK = """
import dataclasses, json, sys
if "blocked" in sys.argv: sys.modules["pynvml"] = None
from launchers.gpu import NvidiaGpus
gpus = NvidiaGpus()
for line in sys.stdin:
    readings = {device: dataclasses.asdict(reading) for device, reading in gpus.read().items()}
    cards = [dataclasses.asdict(card) for card in gpus.cards]
    numbers = {name: gpus.number(name) for name in line.split()}
    print(json.dumps({"gpus": readings, "cards": cards, "notes": gpus.notes, "numbers": numbers}), flush=True)
gpus.close()
gpus.close()
"""


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if sys.platform != "linux":
        pytest.skip("another system looks for the library in another way")
    folder = tmp_path_factory.mktemp("nvml")
    try:
        return {"new": nvml.build(folder / "new"), "old": nvml.build(folder / "old", old=True)}
    except nvml.NoCompiler as exc:
        pytest.skip(str(exc))


class Looker:
    """A process that looks when asked to."""

    def __init__(self, library: Path, state: Path, *words: str) -> None:
        self.state = state
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", LOOK, *words],
            cwd=ROOT,
            env=os.environ | nvml.environment(library, state),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def look(self, *lines: str, names: str = "") -> Any:
        """What it saw, once the state is these lines."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        nvml.write(self.state, *lines)
        self._process.stdin.write(names + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0


@pytest.fixture
def looker(libraries: dict[str, Path], tmp_path: Path) -> Iterator[Looker]:
    looker = Looker(libraries["new"], tmp_path / "state")
    yield looker
    looker.end()


def test_reads_every_gpu(looker: Looker) -> None:
    seen = looker.look(BIG, SMALL)
    assert seen["gpus"] == {
        "0": {"total": 80 * GiB, "free": 50 * GiB, "holders": []},
        "1": {"total": 24 * GiB, "free": 20 * GiB, "holders": []},
    }
    assert seen["cards"] == [
        {"number": "0", "uuid": "GPU-aaaa1111-0000", "name": "NVIDIA H100 80GB HBM3"},
        {"number": "1", "uuid": "GPU-bbbb2222-0000", "name": "NVIDIA GeForce RTX 4090"},
    ]
    assert seen["notes"] == []


def test_looks_anew_each_time(looker: Looker) -> None:
    assert looker.look(BIG)["gpus"]["0"]["free"] == 50 * GiB
    assert looker.look(BIG.replace(str(50 * GiB), str(70 * GiB)))["gpus"]["0"]["free"] == 70 * GiB


def test_a_machine_without_gpus_but_with_the_library(looker: Looker) -> None:
    assert looker.look() == {"gpus": {}, "cards": [], "notes": [], "numbers": {}}


def test_names_the_processes_of_each_gpu(looker: Looker) -> None:
    mine, nobody = os.getpid(), 2**22 + 1  # above the largest pid there can be
    seen = looker.look(
        BIG,
        SMALL,
        f"process 0 compute {mine} {6 * GiB}",
        f"process 0 compute {nobody} {GiB}",
        f"process 1 compute {mine} {GiB}",
    )
    comm = Path("/proc/self/comm").read_text().strip()
    assert seen["gpus"]["0"]["holders"] == [
        {"what": f"pid {mine} {comm}", "bytes": 6 * GiB, "pid": mine},
        {"what": f"pid {nobody}", "bytes": GiB, "pid": nobody},
    ]
    assert [holder["bytes"] for holder in seen["gpus"]["1"]["holders"]] == [GiB]


def held(seen: Any) -> dict[int, int | None]:
    return {holder["pid"]: holder["bytes"] for holder in seen["gpus"]["0"]["holders"]}


def test_a_process_that_computes_and_draws_counts_once(looker: Looker) -> None:
    lines = ("process 0 compute 7 500", "process 0 graphics 7 500", "process 0 graphics 8 900")
    more = ("process 0 compute 9 0", "process 0 graphics 9 unknown", "process 0 graphics 10 unknown")
    assert held(looker.look(BIG, *lines, *more)) == {7: 500, 8: 900, 9: 0, 10: None}


def test_a_process_in_several_instances_of_a_gpu_counts_with_all(looker: Looker) -> None:
    assert held(looker.look(BIG, "process 0 compute 7 500", "process 0 compute 7 300")) == {7: 800}


def test_what_the_driver_does_not_tell_is_not_known(looker: Looker) -> None:
    assert held(looker.look(BIG, "process 0 compute 7 unknown", "process 0 compute 8 100")) == {7: None, 8: 100}


def test_many_processes(looker: Looker) -> None:
    lines = [f"process 0 compute {pid} {pid * 1000}" for pid in range(100, 140)]
    assert held(looker.look(BIG, *lines)) == {pid: pid * 1000 for pid in range(100, 140)}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
def test_memory_is_known_without_the_processes(looker: Looker, code: int) -> None:
    fails = [f"fail nvmlDeviceGet{what}RunningProcesses_v3 {code}" for what in ("Compute", "Graphics")]
    seen = looker.look(BIG, "process 0 compute 7 500", *fails)
    assert seen["gpus"] == {"0": {"total": 80 * GiB, "free": 50 * GiB, "holders": []}}
    assert seen["notes"] == []


def test_an_older_driver_tells_its_processes_too(libraries: dict[str, Path], tmp_path: Path) -> None:
    looker = Looker(libraries["old"], tmp_path / "state")
    lines = ("process 0 compute 7 500", "process 0 compute 8 700", "process 0 graphics 9 100")
    assert held(looker.look(BIG, *lines)) == {7: 500, 8: 700, 9: 100}
    looker.end()


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo"])
def test_a_lost_gpu_is_missing_and_said_so(looker: Looker, function: str) -> None:
    seen = looker.look(BIG, SMALL, f"fail {function} {LOST} 0")
    assert list(seen["gpus"]) == ["1"]
    assert [card["number"] for card in seen["cards"]] == ["1"]
    assert seen["notes"] == ["GPU 0 can't be measured: GPU is lost. launcher.budget can declare its memory."]
    assert looker.look(BIG, SMALL)["notes"] == []


@pytest.mark.parametrize("function", ["nvmlDeviceGetUUID", "nvmlDeviceGetName"])
def test_a_gpu_without_a_name_is_a_gpu(looker: Looker, function: str) -> None:
    assert looker.look(BIG, f"fail {function} {NOT_SUPPORTED}")["gpus"]["0"]["total"] == 80 * GiB


@pytest.mark.parametrize(("code", "words"), [(NO_DRIVER, "Driver Not Loaded"), (MISMATCH, "version mismatch")])
def test_a_driver_that_does_not_answer(looker: Looker, code: int, words: str) -> None:
    seen = looker.look(BIG, f"fail nvmlInitWithFlags {code}")
    assert seen["gpus"] == {}
    assert len(seen["notes"]) == 1
    assert words in seen["notes"][0]
    assert list(looker.look(BIG)["gpus"]) == ["0"]  # it was put right meanwhile


def test_a_driver_that_was_reloaded(looker: Looker) -> None:
    assert list(looker.look(BIG)["gpus"]) == ["0"]
    broken = looker.look(BIG, f"fail nvmlDeviceGetCount_v2 {UNINITIALISED}", f"fail nvmlShutdown {UNINITIALISED}")
    assert broken["gpus"] == {}
    assert "Uninitialized" in broken["notes"][0]
    assert list(looker.look(BIG)["gpus"]) == ["0"]


def test_an_error_that_the_binding_does_not_know(looker: Looker) -> None:
    seen = looker.look(BIG, "fail nvmlDeviceGetMemoryInfo 777")
    assert "a code of the stand-in" in seen["notes"][0]


def test_no_library_is_no_gpu(tmp_path: Path) -> None:
    broken = tmp_path / nvml.LIBRARY
    broken.write_text("no library")
    looker = Looker(broken, tmp_path / "state")
    assert looker.look(BIG) == {"gpus": {}, "cards": [], "notes": [], "numbers": {}}
    looker.end()


def test_no_binding_is_no_gpu(libraries: dict[str, Path], tmp_path: Path) -> None:
    looker = Looker(libraries["new"], tmp_path / "state", "blocked")
    assert looker.look(BIG)["gpus"] == {}
    looker.end()


def test_a_uuid_names_a_gpu(looker: Looker) -> None:
    twin = BIG.replace("aaaa1111", "aaaa3333")
    names = "GPU-bbbb2222-0000 GPU-bb GPU-aaaa GPU-aaaa3 GPU- 1 9 cpu GPU-cccc"
    assert looker.look(BIG, SMALL, twin, names=names)["numbers"] == {
        "GPU-bbbb2222-0000": "1",
        "GPU-bb": "1",
        "GPU-aaaa": "GPU-aaaa",  # could be two
        "GPU-aaaa3": "2",
        "GPU-": "GPU-",
        "1": "1",
        "9": "9",
        "cpu": "cpu",
        "GPU-cccc": "GPU-cccc",
    }


@pytest.mark.parametrize(
    ("holders", "pids", "expected"),
    [
        ((Holder("a", 5, 1), Holder("b", 7, 2), Holder("c", 11, 3)), [1, 3, 99], 16),
        ((Holder("a", 5, 1),), [2], None),
        ((Holder("a", None, 1), Holder("b", 7, 2)), [1, 2], None),
        ((Holder("someone", 5, None),), [1], None),
        ((), [1], None),
    ],
)
def test_what_an_engine_holds(holders: tuple[Holder, ...], pids: list[int], expected: int | None) -> None:
    assert used_by(Reading(100, 50, holders), pids) == expected
