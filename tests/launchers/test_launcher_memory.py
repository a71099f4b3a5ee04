"""Memory as a launcher minds it, with budgets in place of GPUs: who makes room, who doesn't, and what is said then."""

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.engines.process import PATIENCE, wait_until
from tests.launchers.support import Events, Launcher, Row, alive, spec

GiB = 1024**3
SOON = {"launchers.room.LOOK": 0.05}


def gpu(name: str, memory: int | None = 6, *words: str, **members: Any) -> Row:
    """An engine that needs so many GiB of GPU 0."""
    declared = None if memory is None else memory * GiB
    return spec(name, *words, **{"gpus": ["0"], "memory": declared} | members)


def run(launcher: Launcher, name: str) -> int:
    """Have it started and leave it idle; its pid."""
    with launcher.wanted(name) as lease:
        pid: int = lease.until("ready")["engine"]["pid"]
    wait_until(lambda: launcher.row(name)["leases"] == 0, "the lease is given back")
    return pid


def failure(launcher: Launcher, name: str) -> Row:
    with launcher.wanted(name) as events:
        return events.until("failed")


def test_the_idle_engine_that_was_used_longest_ago_makes_room() -> None:
    with Launcher(gpu("a", 4), gpu("b", 4), gpu("c", 4), constants=SOON, budget={"0": 10 * GiB}) as launcher:
        run(launcher, "a")
        run(launcher, "b")
        run(launcher, "a")  # used again: b is the older one now
        run(launcher, "c")
        assert [launcher.row(name)["state"] for name in "abc"] == ["ready", "stopped", "ready"]
        assert launcher.row("c")["memory"] == {"0": 4 * GiB}
        assert launcher.row("b")["memory"] == {}
        devices = {one["device"]: one for one in launcher.client.get("/").json()["devices"]}
        assert devices["0"] == {"device": "0", "total": None, "free": None, "budget": 10 * GiB}


def test_what_is_pinned_stays_and_is_named_where_nothing_else_helps() -> None:
    with Launcher(gpu("pinned", pin=True), gpu("new"), budget={"0": 10 * GiB}) as launcher:
        pid = run(launcher, "pinned")
        failed = failure(launcher, "new")
        assert failed["code"] == "engine_memory"
        assert "new needs 6 GiB of GPU 0, where launcher.budget allows 10 GiB" in failed["message"]
        assert "pinned (pinned, 6 GiB)" in failed["message"]
        assert "unpin pinned" in failed["message"]
        row = launcher.row("new")
        assert (row["state"], row["error"], row["memory"]) == ("stopped", failed["message"], {})
        assert alive(pid)

        launcher.stop("pinned")
        run(launcher, "new")  # it was not given up for good


def test_one_that_can_never_fit_is_refused_and_nobody_goes_for_it() -> None:
    with Launcher(gpu("idle"), gpu("huge", 20, start="eager"), budget={"0": 10 * GiB}) as launcher:
        run(launcher, "idle")
        wait_until(lambda: launcher.row("huge")["error"], "the eager one was refused")
        failed = failure(launcher, "huge")
        assert "huge needs 20 GiB of GPU 0" in failed["message"]
        assert launcher.row("idle")["state"] == "ready"


def test_nobody_goes_for_one_that_could_not_start_anyway() -> None:
    missing = gpu("missing", command=["no-such-program", "{port}"])
    with Launcher(gpu("idle"), missing, budget={"0": 10 * GiB}) as launcher:
        pid = run(launcher, "idle")
        assert failure(launcher, "missing")["code"] == "engine_missing"
        assert launcher.row("idle")["pid"] == pid


def test_an_engine_that_just_became_ready_is_left_alone_for_its_time() -> None:
    resident = gpu("resident", min_residency=3600.0)
    with Launcher(resident, gpu("new"), constants=SOON, budget={"0": 10 * GiB}) as launcher:
        run(launcher, "resident")
        since = launcher.row("resident")["since"]
        with launcher.wanted("new") as events:
            stays = re.compile(r"stays for another 3\d\d\d s \(min_residency\)")
            events.until("phase", where=lambda event: stays.search(event["phase"]))
            assert launcher.row("resident")["state"] == "ready"
            launcher.write(resident | {"min_residency": 1.0}, gpu("new"))
            launcher.reload()
            row = events.until("ready")["engine"]
        assert row["since"] - since >= 1.0


def test_starts_on_one_gpu_come_one_after_the_other_and_others_at_once(tmp_path: Path) -> None:
    gates = {name: tmp_path / name for name in "abc"}
    engines = [gpu(name, 2, "--gate", str(gates[name])) for name in "ab"]
    engines.append(gpu("c", 2, "--gate", str(gates["c"]), gpus=["1"]))
    with Launcher(*engines, constants=SOON, budget={"0": 10 * GiB, "1": 10 * GiB}) as launcher, ExitStack() as stack:
        a = stack.enter_context(launcher.wanted("a"))
        wait_until(lambda: launcher.row("a")["pid"], "a has a process")
        b, c = (stack.enter_context(launcher.wanted(name)) for name in "bc")
        b.until("phase", where=lambda event: event["phase"] == "waiting for another start on GPU 0")
        wait_until(lambda: launcher.row("c")["pid"], "c has a process")
        assert launcher.row("b")["pid"] is None
        gates["b"].touch()
        gates["a"].touch()
        a.until("ready")
        b.until("ready")
        gates["c"].touch()
        c.until("ready")


def test_a_stop_while_it_waits_for_its_turn_passes_the_turn_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Launcher(gpu("a", 2, "--gate", str(gate)), gpu("b", 2), gpu("c", 2), budget={"0": 10 * GiB}) as launcher:
        waiting = "waiting for another start on GPU 0"
        with ExitStack() as stack:
            a = stack.enter_context(launcher.wanted("a"))
            wait_until(lambda: launcher.row("a")["pid"], "a has a process")
            b = stack.enter_context(launcher.wanted("b"))
            b.until("phase", where=lambda event: event["phase"] == waiting)
            c = stack.enter_context(launcher.wanted("c"))
            c.until("phase", where=lambda event: event["phase"] == waiting)
            launcher.stop("b")
            launcher.stop("a")
            assert [events.until("failed")["code"] for events in (a, b)] == ["engine_stopped"] * 2
            c.until("ready")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the budget's file at once, as it is read at any moment; its path."""

    def written(**row: object) -> Path:
        file = tmp_path / "budget.json"
        file.with_suffix(".new").write_text(json.dumps({"0": row}))
        return file.with_suffix(".new").replace(file)

    return written


def test_the_file_of_a_budget_is_read_anew_and_memory_that_does_not_come_back_is_said(
    write: Callable[..., Path],
) -> None:
    file = write(total="10GiB", free="10GiB")
    constants = SOON | {"launchers.room.COME_BACK": 0.6}
    with Launcher(gpu("a"), gpu("b"), constants=constants, budget=str(file)) as launcher:
        run(launcher, "a")
        write(total="10GiB", free="3GiB", holders={"pid 4242 python3": "1GiB"})
        with launcher.wanted("b") as events:
            failed = events.until("failed")
            waited = "waiting for memory to come back" in [event.get("phase") for event in events.seen]
            assert launcher.row("a")["state"] == "stopped"
        assert failed["code"] == "engine_memory"
        assert "b needs 6 GiB of GPU 0" in failed["message"]
        assert "pid 4242 python3 (1 GiB)" in failed["message"]
        # (Where the machine stood still meanwhile there was no time left for waiting.)
        assert ("What ended before it has not come back within 0.6 s." in failed["message"]) == waited

    write(total="10GiB", free="10GiB")
    constants = SOON | {"launchers.room.COME_BACK": PATIENCE}
    with Launcher(gpu("a"), gpu("b"), constants=constants, budget=str(file)) as launcher:
        run(launcher, "a")
        write(total="10GiB", free="3GiB")
        with launcher.wanted("b") as events:  # and this time it comes back in time
            events.until("phase", where=lambda event: event["phase"] == "waiting for memory to come back")
            write(total="10GiB", free="10GiB")
            events.until("ready")


def test_a_crashed_engine_waits_for_its_own_memory_to_come_back(write: Callable[..., Path]) -> None:
    file = write(total="10GiB", free="10GiB")
    constants = SOON | {"launchers.lifecycle.FIRST_DELAY": 0.05, "launchers.room.COME_BACK": PATIENCE}
    with Launcher(gpu("a"), constants=constants, budget=str(file)) as launcher:
        pid = run(launcher, "a")
        write(total="10GiB", free="3GiB")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: launcher.row("a")["phase"] == "waiting for memory to come back", "it waits")
        write(total="10GiB", free="10GiB")
        assert launcher.until("a", "ready")["pid"] != pid


def test_a_budget_file_that_cannot_be_read_fails_starts_in_words(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    file.write_text('{"0": "10GiB"}')
    with Launcher(gpu("a"), budget=str(file)) as launcher:
        file.write_text('{"0": "lots"}')
        failed = failure(launcher, "a")
        assert failed["code"] == "engine_memory"
        assert f"The budget file {file}, device 0: 'lots' is not a size" in failed["message"]


def test_one_whose_need_nobody_knows_has_the_gpu_for_itself() -> None:
    with Launcher(gpu("a", None), gpu("b", None), constants=SOON, budget={"0": 10 * GiB}) as launcher:
        run(launcher, "a")
        run(launcher, "b")
        assert launcher.row("a")["state"] == "stopped"
        assert launcher.row("b")["memory"] == {"0": 0}


def test_what_an_engine_holds_in_ram_is_learned_for_its_next_start() -> None:
    with Launcher(spec("a")) as launcher:
        with launcher.client.stream("GET", "/events") as answer:
            events = Events(answer)
            events.next()
            run(launcher, "a")
        wait_until(lambda: launcher.row("a")["memory"]["cpu"] > 1024**2, "it was measured")
        learned = launcher.row("a")["memory"]
        launcher.stop("a")
        with launcher.wanted("a") as lease:
            lease.until("ready")
            assert launcher.row("a")["memory"]["cpu"] >= learned["cpu"]


def test_a_crash_of_the_one_that_is_to_go_makes_room_as_well() -> None:
    with (
        Launcher(gpu("old", restarts=0), gpu("new"), constants=SOON, budget={"0": 10 * GiB}) as launcher,
        launcher.wanted("old") as lease,
    ):
        pid = lease.until("ready")["engine"]["pid"]
        with launcher.wanted("new") as newcomer:
            lease.until("yield")
            os.kill(pid, signal.SIGKILL)
            lease.until("gone")
            newcomer.until("ready")
