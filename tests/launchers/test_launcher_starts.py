"""How engines of a launcher start: at once or on demand, one start for many who wait, what is seen of it, and what is
said where it fails."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx

from tests.engines.process import PATIENCE, wait_until
from tests.launchers.support import Launcher, Row, alive, command_line, spec, vllm

QUICK = {"launchers.lifecycle.FIRST_DELAY": 0.05}


def ask(row: Row) -> str:
    """What the engine of that row answers."""
    answer = httpx.post(
        f"{row['base_url']}/v1/chat/completions", json={"model": row["model"]}, timeout=PATIENCE, trust_env=False
    )
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


def test_an_engine_starts_on_demand_and_a_lease_lets_requests_through() -> None:
    with Launcher(spec("coder")) as launcher:
        assert launcher.row("coder")["state"] == "stopped"
        assert launcher.row("coder")["pid"] is None

        with launcher.wanted("coder") as events:
            row = events.until("ready")["engine"]
            assert ask(row) == f"coder {row['pid']}"
            assert launcher.row("coder")["leases"] == 1
        wait_until(lambda: launcher.row("coder")["leases"] == 0, "the lease is given back")
        assert launcher.row("coder")["state"] == "ready"


def test_an_eager_engine_starts_by_itself_and_others_do_not() -> None:
    with Launcher(spec("early", start="eager"), spec("late")) as launcher:
        assert ask(launcher.until("early", "ready")).startswith("early ")
        assert launcher.row("late")["state"] == "stopped"


def test_what_it_does_meanwhile_is_seen_with_the_share_that_is_done(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Launcher(vllm("coder", "--gate", str(gate))) as launcher, launcher.wanted("coder") as events:
        loading = events.until("phase", where=lambda event: event["phase"] == "loading weights")
        row = launcher.row("coder")

        assert loading["progress"] == row["progress"] == 0.5
        assert row["state"] == loading["state"] == "starting"
        assert row["waiting"] == 1
        assert alive(row["pid"])  # it may be looked at, and killed, before it is ready
        assert row["base_url"]

        gate.touch()
        assert events.until("ready")["engine"]["pid"] == row["pid"]


def test_it_is_not_ready_before_it_answers_for_that_very_model() -> None:
    other = vllm("coder", "--lists", "another", start_timeout=0.5, restarts=0)
    with Launcher(other) as launcher, launcher.wanted("coder") as events:
        failed = events.until("failed")

        assert "ready" not in [event["event"] for event in events.seen]
        assert failed["code"] == "engine_failed"
        assert "Engine 'coder' was not ready within 0.5 s (start_timeout)" in failed["message"]
        assert launcher.until("coder", "fatal")["error"] in failed["message"]
        assert launcher.engines_alive() == []


def test_many_who_want_a_cold_engine_cause_one_start() -> None:
    with Launcher(spec("coder")) as launcher, ExitStack() as stack:
        all_of_them = [stack.enter_context(launcher.wanted("coder")) for _ in range(20)]
        pids = {events.until("ready")["engine"]["pid"] for events in all_of_them}

        assert len(pids) == 1
        assert launcher.row("coder")["leases"] == 20
        assert launcher.log.read_text().count("coder: stopped -> starting") == 1
        logs = launcher.client.get("/engines/coder/logs").text
        assert logs.count("stand-in engine") == 1


def test_a_start_goes_on_when_all_who_waited_have_left(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Launcher(spec("coder", "--gate", str(gate))) as launcher:
        with launcher.wanted("coder") as events:
            events.until("phase", where=lambda event: event["state"] == "starting")
        wait_until(lambda: launcher.row("coder")["waiting"] == 0, "nobody waits")
        gate.touch()
        launcher.until("coder", "ready")


def test_with_abandon_it_does_not(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Launcher(spec("coder", "--gate", str(gate), abandon=True)) as launcher:
        with launcher.wanted("coder") as one, launcher.wanted("coder") as other:
            one.until("phase", where=lambda event: event["state"] == "starting")
            other.until("phase", where=lambda event: event["state"] == "starting")
            wait_until(lambda: launcher.row("coder")["pid"], "it has a process")
        launcher.until("coder", "stopped")
        assert launcher.engines_alive() == []
        gate.touch()
        with launcher.wanted("coder") as events:  # and the next one is served
            events.until("ready")


def test_a_start_that_fails_ends_in_fatal_with_the_engines_own_words(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    broken = spec("coder", "--fail", "no tensor 'output.weight'", "--fail-unless", str(mended), restarts=1)
    with Launcher(broken, constants=QUICK) as launcher:
        with launcher.wanted("coder") as events:
            failed = events.until("failed")
            phases = [event.get("phase", "") for event in events.seen]
        assert failed["code"] == "engine_failed"
        assert "ended before it was ready (exit status 1)" in failed["message"]
        assert "ERROR: no tensor 'output.weight'" in failed["message"]
        assert "failed, try 1 of 1 follows in 0.05 s" in phases
        assert launcher.row("coder")["state"] == "fatal"
        assert launcher.log.read_text().count("-> starting") == 2

        with launcher.wanted("coder") as events:  # no further try, and at once
            again = events.next()
        assert again["event"] == "failed"
        assert "no tensor" in again["message"]
        assert "illm start coder" in again["message"]

        mended.touch()
        with launcher.wanted("coder", "start") as events:
            assert events.until("ready")["engine"]["state"] == "ready"
            assert events.rest() == []
        assert (launcher.row("coder")["failures"], launcher.row("coder")["error"]) == (0, None)


def test_whoever_waits_for_a_start_that_is_stopped_is_told_so(tmp_path: Path) -> None:
    with Launcher(spec("coder", "--gate", str(tmp_path / "never"))) as launcher:
        with launcher.wanted("coder") as lease, launcher.wanted("coder", "start") as person:
            wait_until(lambda: launcher.row("coder")["pid"], "it has a process")
            row = launcher.stop("coder")
            for events in (lease, person):
                failed = events.until("failed")
                assert failed["code"] == "engine_stopped"
                assert failed["message"] == "Engine 'coder' was stopped: somebody asked for it."
        assert (row["state"], row["pid"]) == ("stopped", None)
        assert launcher.engines_alive() == []


def test_a_taken_port_is_said_with_its_holder_and_is_no_crash_loop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Launcher(spec("coder", port=port), constants=QUICK) as launcher:
            with launcher.wanted("coder") as events:
                message = events.until("failed")["message"]
            me = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
            assert f"Engine 'coder' can't start: port {port} is taken by process {os.getpid()} ({me})" in message
            assert launcher.row("coder")["state"] == "fatal"
            assert launcher.log.read_text().count("-> starting") == 1
            taken.close()
            with launcher.wanted("coder", "start") as events:
                assert events.until("ready")["engine"]["base_url"] == f"http://127.0.0.1:{port}"


def test_a_missing_program_is_said_with_what_installs_it() -> None:
    missing = spec("served", kind="vllm", command=[])
    nothing = spec("own", command=["no-such-program", "{port}"])
    with Launcher(missing, nothing) as launcher:
        with launcher.wanted("served") as events:
            failed = events.until("failed")
        assert failed["code"] == "engine_missing"
        assert "Engine 'served' can't start: served needs vLLM, and there is no `vllm` here." in failed["message"]
        assert "`pip install vllm`" in failed["message"]
        with launcher.wanted("served") as events:  # it stays what it is
            assert events.until("failed")["code"] == "engine_missing"
        with launcher.wanted("own") as events:
            assert "there is no program 'no-such-program' here" in events.until("failed")["message"]
        assert launcher.row("own")["failures"] == 0


def test_keys_are_shown_nowhere() -> None:
    keys = ("sk-of-the-api", "sk-of-the-hub")
    engine = vllm("coder", api_key=keys[0], env={"STANDIN_KEY": keys[1], "MODE": "not secret"})
    with Launcher(engine) as launcher, launcher.wanted("coder") as events:
        row = events.until("ready")["engine"]
        guard = int(Path(f"/proc/{row['pid']}/stat").read_text().rpartition(")")[2].split()[1])
        words = command_line(row["pid"]) + command_line(guard)
        logs = launcher.client.get("/engines/coder/logs").text

        assert str(row["pid"]) in [str(pid) for pid in launcher.engines_alive()]
        assert "key ***" in logs
        shown = {"argv": words, "logs": logs, "launcher.log": launcher.log.read_text()}
        assert [place for place, text in shown.items() for key in keys if key in text] == []
        assert not any(key in file.read_text() for file in launcher.state.glob("run/*") for key in keys)
