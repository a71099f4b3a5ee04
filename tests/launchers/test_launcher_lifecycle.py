"""What becomes of an engine that runs: crashes and what follows, idle time, pins, stops, and sleep in place of them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines.process import PATIENCE, wait_until
from tests.launchers.support import Events, Launcher, alive, spec, vllm

QUICK = {"launchers.lifecycle.FIRST_DELAY": 0.05}


@contextmanager
def meanwhile(work: Any, *arguments: Any) -> Iterator[list[Any]]:
    """In a thread; its result is in the list when the block has ended."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work(*arguments)))
    thread.start()
    try:
        yield result
    finally:
        thread.join(PATIENCE)


def context_switches(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("voluntary_ctxt_switches:")[1].split()[0])


def test_an_engine_that_is_killed_comes_back_by_itself() -> None:
    with Launcher(spec("coder"), constants=QUICK) as launcher:
        with launcher.wanted("coder") as lease:
            killed = lease.until("ready")["engine"]["pid"]
            os.kill(killed, signal.SIGKILL)
            gone = lease.until("gone")
            assert "Engine 'coder' ended (killed by SIGKILL" in gone["reason"]
            assert "Its log ends with:\nstand-in engine for coder" in gone["reason"]
            assert lease.rest() == []
        row = launcher.until("coder", "ready")
        assert row["pid"] != killed
        assert row["failures"] == 1
        with launcher.wanted("coder") as lease:
            lease.until("ready")
        assert launcher.stop("coder")["failures"] == 0  # whoever stops it begins anew


def test_one_that_keeps_crashing_is_given_up() -> None:
    with Launcher(spec("coder", restarts=1), constants=QUICK) as launcher:
        with launcher.wanted("coder") as lease:
            os.kill(lease.until("ready")["engine"]["pid"], signal.SIGKILL)
            lease.until("gone")
        os.kill(launcher.until("coder", "ready")["pid"], signal.SIGKILL)
        row = launcher.until("coder", "fatal")
        assert row["phase"] == "given up"
        assert "killed by SIGKILL" in row["error"]
        assert (row["pid"], row["base_url"], row["memory"]) == (None, None, {})

        assert launcher.stop("coder")["state"] == "stopped"  # a stop leads out of it, too
        with launcher.wanted("coder") as lease:
            lease.until("ready")
        assert launcher.row("coder")["failures"] == 0


@pytest.mark.parametrize("way", ["stop", "end"])
def test_a_pause_before_the_next_try_is_cut_short(way: str) -> None:
    with Launcher(spec("coder", "--fail", "no"), constants={"launchers.lifecycle.FIRST_DELAY": 600}) as launcher:
        with launcher.wanted("coder") as events:
            launcher.until("coder", "backoff")
            if way == "stop":
                assert launcher.stop("coder")["state"] == "stopped"
            else:
                launcher.say(signal.SIGTERM)
                assert launcher.process.wait(PATIENCE) == 0
            assert events.until("failed")["code"] == "engine_stopped"
        if way == "stop":  # the launcher lives, so the wish of another is heard
            with launcher.wanted("coder") as events:
                events.until("phase", where=lambda event: event["state"] == "backoff")


def test_one_that_idles_stops_after_its_ttl_and_not_while_it_is_leased() -> None:
    with Launcher(spec("used", ttl=0.3), spec("idle", ttl=0.3)) as launcher:
        with launcher.wanted("used") as lease:
            lease.until("ready")
            with launcher.wanted("idle") as other:
                other.until("ready")
            row = launcher.until("idle", "stopped")  # later than the ttl of the other, had that begun
            assert (row["pid"], row["error"]) == (None, None)
            assert launcher.row("used")["state"] == "ready"
        launcher.until("used", "stopped")
        assert launcher.engines_alive() == []


def test_one_that_is_pinned_stays_and_costs_nothing_meanwhile() -> None:
    with Launcher(spec("pinned", ttl=0.05, pin=True), spec("clock", ttl=1.0)) as launcher:
        with launcher.wanted("pinned") as one, launcher.wanted("clock") as two:
            one.until("ready")
            two.until("ready")
        begun, before = time.monotonic(), context_switches(launcher.process.pid)
        with launcher.client.stream("GET", "/events") as answer:
            Events(answer).until(
                "engine",
                where=lambda event: event["engine"]["name"] == "clock" and event["engine"]["state"] == "stopped",
            )
        assert launcher.row("pinned")["state"] == "ready"
        took = time.monotonic() - begun
        assert context_switches(launcher.process.pid) - before < 80 * took  # looking without a pause makes 100 a second


def test_whoever_wants_it_while_it_stops_gets_the_next_one() -> None:
    with Launcher(spec("coder", "--ignore-term", stop_timeout=10 * PATIENCE)) as launcher:
        with launcher.wanted("coder") as lease:
            first = lease.until("ready")["engine"]["pid"]
        with meanwhile(launcher.stop, "coder") as stopped:
            launcher.until("coder", "stopping")
            with launcher.wanted("coder") as lease:
                lease.until("phase")
                os.kill(first, signal.SIGKILL)  # at last
                assert lease.until("ready")["engine"]["pid"] != first
        assert stopped[0]["name"] == "coder"
        assert not alive(first)
        launcher.hurry()


def test_a_stop_asks_for_leases_and_waits_for_them() -> None:
    with Launcher(spec("coder")) as launcher:
        with launcher.wanted("coder") as lease:
            lease.until("ready")
            with meanwhile(launcher.stop, "coder") as stopped:
                assert lease.until("yield")["reason"] == "somebody asked for it"
                assert launcher.row("coder")["state"] == "ready"
                assert stopped == []
                lease.close()
                wait_until(lambda: stopped, "it has stopped")
        assert stopped[0]["state"] == "stopped"


def test_stopping_what_is_stopped_and_starting_what_runs_is_nothing_special() -> None:
    with Launcher(spec("coder")) as launcher:
        assert launcher.stop("coder")["state"] == "stopped"
        for _ in range(2):
            with launcher.wanted("coder", "start") as events:
                events.until("ready")
                assert events.rest() == []
        assert launcher.row("coder")["leases"] == 0


# --- sleep in place of a stop ----------------------------------------------------------------------------------------


def test_an_engine_that_can_sleep_does_so_and_wakes_up_with_the_same_process() -> None:
    with Launcher(vllm("coder", unload="sleep", ttl=0.2)) as launcher:
        with launcher.wanted("coder") as lease:
            pid = lease.until("ready")["engine"]["pid"]
        row = launcher.until("coder", "stopped")
        assert (row["phase"], row["pid"], row["memory"]) == ("asleep", pid, {})
        with launcher.wanted("coder") as lease:
            assert lease.until("ready")["engine"]["pid"] == pid
            assert "waking up" in [event.get("phase") for event in lease.seen]
        said = launcher.client.get("/engines/coder/logs").text
        assert said.index("asked to /sleep?level=1") < said.index("asked to /wake_up")

        launcher.until("coder", "stopped")
        assert launcher.stop("coder")["pid"] is None  # a person's stop ends it
        assert launcher.engines_alive() == []


def test_one_that_dies_in_its_sleep_starts_anew() -> None:
    with Launcher(vllm("coder", unload="sleep", ttl=0.2)) as launcher:
        with launcher.wanted("coder") as lease:
            pid = lease.until("ready")["engine"]["pid"]
        wait_until(lambda: launcher.row("coder")["phase"] == "asleep", "it sleeps")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: launcher.row("coder")["pid"] is None, "that is noticed, though nobody wants it")
        with launcher.wanted("coder") as lease:
            assert lease.until("ready")["engine"]["pid"] != pid


def test_one_that_dies_while_it_wakes_up_is_started_again(tmp_path: Path) -> None:
    rouse = tmp_path / "rouse"
    sleeper = vllm("coder", "--rouse", str(rouse), unload="sleep", ttl=0.2)
    with Launcher(sleeper, constants=QUICK) as launcher:
        with launcher.wanted("coder") as lease:
            pid = lease.until("ready")["engine"]["pid"]
        wait_until(lambda: launcher.row("coder")["phase"] == "asleep", "it sleeps")
        with launcher.wanted("coder") as lease:
            lease.until("phase", where=lambda event: event["phase"] == "waking up")
            rouse.with_suffix(".new").write_text("die")
            rouse.with_suffix(".new").replace(rouse)  # at once with what is in it
            assert lease.until("ready")["engine"]["pid"] != pid
        assert not alive(pid)


def test_one_that_wakes_up_can_be_stopped(tmp_path: Path) -> None:
    sleeper = vllm("coder", "--rouse", str(tmp_path / "never"), unload="sleep", ttl=0.2)
    with Launcher(sleeper) as launcher:
        with launcher.wanted("coder") as lease:
            lease.until("ready")
        wait_until(lambda: launcher.row("coder")["phase"] == "asleep", "it sleeps")
        with launcher.wanted("coder") as lease:
            lease.until("phase", where=lambda event: event["phase"] == "waking up")
            assert launcher.stop("coder")["pid"] is None
            assert lease.until("failed")["code"] == "engine_stopped"
        assert launcher.engines_alive() == []
