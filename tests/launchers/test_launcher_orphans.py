"""The end of a launcher, however it comes, and what the next one finds: nothing, or its engines as they were."""

import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from launchers.__main__ import LOOK, Program
from launchers.mailbox import Board
from tests.engines.process import PATIENCE, wait_until
from tests.launchers.support import ROOT, Launcher, alive, command_line, spec, vllm

pytestmark = pytest.mark.slow


def ready(launcher: Launcher, name: str) -> int:
    """Have it started; its pid."""
    with launcher.wanted(name, "start") as events:
        pid: int = events.until("ready")["engine"]["pid"]
    return pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_asked_to_end_leaves_no_process(number: signal.Signals) -> None:
    parent = spec("a", "--children", "2", stop_timeout=0.3)
    with Launcher(parent, spec("b", "--ignore-term", stop_timeout=0.3)) as launcher:
        ready(launcher, "a")
        ready(launcher, "b")
        assert len(launcher.engines_alive()) == 6  # two guards, two engines, two children
        launcher.say(number)
        assert launcher.process.wait(PATIENCE) == 0
        assert launcher.engines_alive() == []
        assert not (launcher.state / "launcher.sock").exists()
        assert list((launcher.state / "run").iterdir()) == []


def test_one_that_is_asked_to_end_while_engines_start_leaves_no_process(tmp_path: Path) -> None:
    with Launcher(spec("a", "--gate", str(tmp_path / "never"))) as launcher, launcher.wanted("a") as events:
        wait_until(lambda: launcher.row("a")["pid"], "it has a process")
        launcher.say(signal.SIGTERM)
        assert events.until("failed")["message"] == "Engine 'a' was stopped: the launcher ends."
        assert events.rest() == []
        assert launcher.process.wait(PATIENCE) == 0
        assert launcher.engines_alive() == []


def test_a_second_signal_does_not_wait_for_requests_nor_for_an_engine_that_hangs() -> None:
    with Launcher(spec("a", "--ignore-term", stop_timeout=60.0)) as launcher:
        with launcher.wanted("a") as lease:
            lease.until("ready")
            launcher.say(signal.SIGTERM)
            lease.until("yield")
            assert launcher.row("a")["state"] == "ready"  # there is a lease
            launcher.say(signal.SIGTERM)
            assert lease.until("gone")["reason"] == "Engine 'a' was stopped: the launcher ends."
        assert launcher.process.wait(PATIENCE) == 0
        assert launcher.engines_alive() == []


def test_nor_for_one_that_was_asked_to_end_already() -> None:
    with Launcher(spec("a", "--ignore-term", stop_timeout=60.0)) as launcher:
        ready(launcher, "a")
        launcher.say(signal.SIGTERM)
        launcher.until("a", "stopping")
        launcher.say(signal.SIGTERM)
        assert launcher.process.wait(PATIENCE) == 0
        assert launcher.engines_alive() == []


@pytest.mark.parametrize("orphans", ["kill", "adopt"])
def test_a_launcher_that_is_killed_while_an_engine_starts_leaves_nothing(orphans: str, tmp_path: Path) -> None:
    with Launcher(spec("a", "--gate", str(tmp_path / "never")), orphans=orphans) as launcher:
        with launcher.wanted("a", "start"):
            wait_until(lambda: launcher.row("a")["pid"], "it has a process")
            launcher.process.kill()
            launcher.kill()
        wait_until(lambda: launcher.engines_alive() == [], "all are gone")


def test_when_it_is_killed_its_engines_die_and_all_that_they_started() -> None:
    with Launcher(spec("a", "--children", "2", "--ignore-term", stop_timeout=0.3)) as launcher:
        ready(launcher, "a")
        assert len(launcher.engines_alive()) == 4
        launcher.kill()
        wait_until(lambda: launcher.engines_alive() == [], "all are gone")
        launcher.start()
        assert launcher.row("a")["state"] == "stopped"
        assert list((launcher.state / "run").iterdir()) == []


def test_the_next_launcher_waits_for_what_the_killed_one_left() -> None:
    slow = spec("a", "--ignore-term", stop_timeout=1.0, start="eager")
    with Launcher(slow) as launcher:
        old = launcher.until("a", "ready")["pid"]
        (guard,) = [pid for pid in launcher.engines_alive() if "guard.py" in command_line(pid)]
        os.kill(guard, signal.SIGSTOP)  # so that the engine lives until the next launcher wakes it up
        launcher.kill()
        assert alive(old)
        launcher.start()
        assert not alive(old)  # before anything new is started
        assert launcher.until("a", "ready")["pid"] != old


def test_a_guard_that_is_killed_with_its_launcher_leaves_the_engine_to_the_next_one() -> None:
    with Launcher(spec("a", "--children", "1", "--ignore-term")) as launcher:
        engine = ready(launcher, "a")
        guards = [pid for pid in launcher.engines_alive() if "guard.py" in command_line(pid)]
        launcher.say(signal.SIGSTOP)  # so that it can't see to it itself
        os.kill(guards[0], signal.SIGKILL)
        launcher.kill()
        wait_until(lambda: not alive(engine), "the engine dies with its guard")
        launcher.start()
        assert launcher.engines_alive() == []


def test_with_adopt_the_next_launcher_finds_its_engines_as_they_were() -> None:
    kept, asleep = spec("kept", "--children", "1", stop_timeout=0.3), vllm("asleep", unload="sleep", ttl=0.2)
    changed, removed = spec("changed"), spec("removed")
    with Launcher(kept, changed, removed, asleep, orphans="adopt") as launcher:
        pids = {name: ready(launcher, name) for name in ("kept", "changed", "removed", "asleep")}
        url = launcher.row("kept")["base_url"]
        wait_until(lambda: launcher.row("asleep")["phase"] == "asleep", "it sleeps")
        launcher.kill()
        answer = httpx.post(f"{url}/v1/chat/completions", json={}, timeout=PATIENCE, trust_env=False)  # nobody notices
        assert answer.json()["choices"][0]["message"]["content"] == f"kept {pids['kept']}"
        assert [name for name, pid in pids.items() if not alive(pid)] == []

        launcher.write(kept | {"ttl": 900.0}, spec("changed", "--children", "0"), asleep)
        launcher.start()
        row = launcher.row("kept")
        assert (row["state"], row["pid"], row["base_url"], row["ttl"]) == ("ready", pids["kept"], url, 900.0)
        assert [name for name, pid in pids.items() if alive(pid)] == ["kept"]
        assert launcher.row("changed")["state"] == launcher.row("asleep")["state"] == "stopped"
        with launcher.wanted("kept") as lease:
            assert lease.until("ready")["engine"]["pid"] == pids["kept"]
            logs = launcher.client.get("/engines/kept/logs").text
            assert "stand-in engine for kept" in logs  # from before

            os.kill(pids["kept"], signal.SIGKILL)  # an adopted one is watched as any other
            lease.until("gone")
        launcher.until("kept", "ready")
        launcher.say(signal.SIGTERM)
        assert launcher.process.wait(PATIENCE) == 0
        assert launcher.engines_alive() == []


def test_one_that_is_to_leave_its_engines_leaves_them_and_only_where_they_can_be_adopted() -> None:
    with Launcher(spec("a"), orphans="adopt") as launcher:
        pid = ready(launcher, "a")
        assert launcher.client.post("/shutdown", params={"leave": 1}).status_code == 202
        assert launcher.process.wait(PATIENCE) == 0
        assert alive(pid)
        launcher.client.close()
        launcher.start()
        assert launcher.row("a")["pid"] == pid
        launcher.kill()
        os.kill(pid, signal.SIGKILL)  # between two launchers
        wait_until(lambda: not alive(pid), "it is gone")
        launcher.start()
        assert launcher.row("a")["state"] == "stopped"
    with Launcher(spec("a")) as launcher:
        answer = launcher.client.post("/shutdown", params={"leave": 1})
        assert answer.status_code == 400
        assert "launcher.orphans: adopt" in answer.json()["error"]["message"]


def test_without_a_gateway_it_ends_after_its_time() -> None:
    constants = {"launchers.__main__.ARRIVAL": 0.0}
    with Launcher(spec("a", start="eager"), for_gateway=True, linger=0.2, begin=False, constants=constants) as launcher:
        run = subprocess.run(
            launcher.command_line(), cwd=ROOT, env=launcher.environment(), capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
        assert (run.returncode, "no gateway for 0.2 s" in run.stderr) == (0, True)
        assert launcher.engines_alive() == []


async def test_and_not_while_one_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that runs when it is told to: whoever follows may be late on a busy machine."""
    board, now = Board(), 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now >= 100:
            board.leave(one)

    program = Program(tmp_path, [], for_gateway=True)
    monkeypatch.setattr("launchers.__main__.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("launchers.__main__.asyncio", SimpleNamespace(sleep=sleep))
    one = board.follow()
    supervisor = SimpleNamespace(board=board, document=SimpleNamespace(launcher=SimpleNamespace(linger=7.0)))
    await program._watch_gateways(cast(Any, supervisor))
    assert program._asked.is_set()
    assert 100 + 7 - LOOK <= now <= 100 + 7 + LOOK
