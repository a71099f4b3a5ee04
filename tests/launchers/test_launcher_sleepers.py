"""Engines that sleep, and what they hold on to: their own when they wake, and others' when they have to end for it."""

import json
from pathlib import Path

import pytest

from tests.engines.process import wait_until
from tests.launchers.support import Launcher, Row, vllm

GiB = 1024**3
LONG = 60.0
SOON = {"launchers.room.LOOK": 0.05, "launchers.room.SETTLE": 0.1, "launchers.room.COME_BACK": 0.5}
NEED = int(9.2 * GiB)


class Gpu:
    """A budget file with one GPU of 10 GiB."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "budget.json"
        self.free("10GiB")

    def free(self, size: str, **holders: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"0": {"total": "10GiB", "free": size, "holders": holders}}))
        new.replace(self.file)


@pytest.fixture
def gpu(tmp_path: Path) -> Gpu:
    return Gpu(tmp_path)


def sleeper(name: str, memory: int = NEED) -> Row:
    return vllm(name, unload="sleep", ttl=0.2, gpus=["0"], memory=memory)


def put_to_sleep(launcher: Launcher, gpu: Gpu, name: str, left: str = "8.8GiB") -> int:
    """Runs it and lets it fall asleep, with that much free then; its process."""
    with launcher.wanted(name) as lease:
        pid: int = lease.until("ready")["engine"]["pid"]
        gpu.free("0.8GiB")
    wait_until(lambda: launcher.row(name)["phase"] == "asleep", f"{name} sleeps")
    gpu.free(left)
    return pid


def test_what_it_holds_asleep_is_its_own_when_it_wakes(gpu: Gpu) -> None:
    with Launcher(sleeper("a"), constants=SOON, budget=str(gpu.file)) as launcher:
        pid = put_to_sleep(launcher, gpu, "a")
        with launcher.wanted("a") as lease:
            event = lease.until("ready", "failed")
            assert event["event"] == "ready", event
            assert launcher.row("a")["pid"] == pid


def test_what_others_hold_is_not_its_own(gpu: Gpu) -> None:
    with Launcher(sleeper("a"), constants=SOON, budget=str(gpu.file)) as launcher:
        pid = put_to_sleep(launcher, gpu, "a")
        gpu.free("7.8GiB", **{"pid 42 game": "1GiB"})
        with launcher.wanted("a") as events:
            said = events.until("failed")["message"]
        assert "Held by pid 42 game (1 GiB)." in said
        assert "other programs" not in said
        row = launcher.row("a")
        assert (row["phase"], row["pid"]) == ("asleep", pid)


def test_a_sleeper_is_ended_where_nothing_else_makes_room(gpu: Gpu) -> None:
    with Launcher(sleeper("a"), sleeper("b"), constants=SOON, budget=str(gpu.file)) as launcher:
        put_to_sleep(launcher, gpu, "a")
        with launcher.wanted("b") as events:
            events.until("phase", where=lambda event: event["phase"] == "waiting for a to make room")
            wait_until(lambda: launcher.row("a")["pid"] is None, "a is ended")
            gpu.free("10GiB")
            events.until("ready")
        assert launcher.row("a")["state"] == "stopped"


def test_a_sleeper_stays_where_its_sleep_makes_room_enough(gpu: Gpu) -> None:
    with Launcher(sleeper("a"), sleeper("b", 8 * GiB), constants=SOON, budget=str(gpu.file)) as launcher:
        pid = put_to_sleep(launcher, gpu, "a")
        with launcher.wanted("b") as events:
            events.until("ready")
        assert launcher.row("a")["pid"] == pid


def test_a_sleeper_that_waits_to_wake_may_have_to_end_and_starts_anew_then(gpu: Gpu) -> None:
    with Launcher(sleeper("a"), sleeper("b"), constants=SOON, budget=str(gpu.file)) as launcher:
        first = put_to_sleep(launcher, gpu, "a")
        with launcher.wanted("b") as events:
            wait_until(lambda: launcher.row("a")["pid"] is None, "a is ended")
            with launcher.wanted("a") as again:
                gpu.free("10GiB")
                events.until("ready")
                gpu.free("0.8GiB")
                events.close()
                wait_until(lambda: launcher.row("b")["phase"] == "asleep", "b goes for a")
                gpu.free("8.8GiB")
                wait_until(lambda: launcher.row("b")["pid"] is None, "b is ended")
                gpu.free("10GiB")
                assert again.until("ready")["engine"]["pid"] != first
