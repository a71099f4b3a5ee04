"""Reading the settings again: only what changed is touched, what will be done is said first, and a mistake changes
nothing."""

import json
import signal
from pathlib import Path

import pytest

from tests.engines.process import wait_until
from tests.launchers.support import Events, Launcher, alive, spec

NOTHING = {"start": [], "stop": [], "restart": [], "update": [], "keep": [], "launcher": [], "left": []}


def ready(launcher: Launcher, name: str) -> int:
    with launcher.wanted(name, "start") as events:
        pid: int = events.until("ready")["engine"]["pid"]
    return pid


def test_a_reload_touches_only_what_changed() -> None:
    same, told, minded, gone = (spec(name) for name in ("same", "told", "minded", "gone"))
    with Launcher(same, told, minded, gone) as launcher:
        pids = {name: ready(launcher, name) for name in ("same", "told", "minded", "gone")}
        new = spec("new", start="eager")
        launcher.write(same, spec("told", env={"MODE": "other"}), minded | {"ttl": 600.0}, new)
        todo = {
            "start": ["new"], "stop": ["gone"], "restart": ["told"], "update": ["minded"], "keep": ["same"],
            "launcher": [], "left": [],
        }  # fmt: skip

        with launcher.wanted("same") as lease:
            lease.until("ready")
            assert launcher.reload(dry_run=True) == todo
            assert [alive(pid) for pid in pids.values()] == [True] * 4
            assert launcher.client.get("/engines/new").status_code == 404

            assert launcher.reload() == todo
            assert "reload: start new; stop gone; restart told; update minded; keep same" in launcher.log.read_text()
            assert [name for name, pid in pids.items() if alive(pid)] == ["same", "minded"]
            assert launcher.until("told", "ready")["pid"] != pids["told"]  # it was running
            launcher.until("new", "ready")
            assert launcher.client.get("/engines/gone").status_code == 404
            assert launcher.row("minded")["ttl"] == 600.0
            assert launcher.reload() == NOTHING | {"keep": ["same", "told", "minded", "new"]}
            assert launcher.row("same")["leases"] == 1


def test_a_restart_waits_for_leases_and_who_comes_meanwhile_gets_the_new_one() -> None:
    with Launcher(spec("coder")) as launcher:
        with launcher.wanted("coder") as lease:
            first = lease.until("ready")["engine"]["pid"]
            launcher.write(spec("coder", env={"STANDIN_KEY": "a-new-key"}))
            launcher.say(signal.SIGHUP)
            assert lease.until("yield")["reason"] == "its settings have changed"
            assert alive(first)
            with launcher.wanted("coder") as late:
                late.until("phase")
                lease.close()
                assert late.until("ready")["engine"]["pid"] != first
        logs = launcher.client.get("/engines/coder/logs").text
        assert "key none" in logs
        assert "key ***" in logs  # the new one, too


@pytest.mark.parametrize("way", ["signal", "request", "watch"])
def test_settings_with_a_mistake_change_nothing(way: str, tmp_path: Path) -> None:
    file = tmp_path / "illm.yaml"
    file.touch()
    constants = {"launchers.supervisor.WATCH": 0.05}
    with Launcher(spec("a", start="eager"), constants=constants, watch=way == "watch", file=str(file)) as launcher:
        pid = launcher.until("a", "ready")["pid"]
        bad = spec("b", start="eager") | {"kind": "vllm", "command": [], "mmproj": "/m.gguf"}
        for document in ("{", json.dumps({"launcher": {}, "engines": []}), None):
            said = launcher.log.read_text().count("Nothing was changed.")
            if document is None:  # the last of these is fine but for what its engine is told
                launcher.write(spec("c", start="eager"), bad)
            else:
                launcher.document.write_text(document)
            if way == "request":
                answer = launcher.client.post("/reload")
                assert answer.status_code == 400
                assert answer.json()["error"]["code"] == "invalid_settings"
                assert answer.json()["error"]["message"].endswith("Nothing was changed.")
            else:
                if way == "signal":
                    launcher.say(signal.SIGHUP)
                else:
                    file.write_text(f"change {said}")
                wait_until(lambda said=said: launcher.log.read_text().count("Nothing was changed.") > said, "said")
        rows = launcher.client.get("/engines").json()["engines"]
        assert [(row["name"], row["pid"]) for row in rows] == [("a", pid)]

        launcher.write(spec("a", start="eager"), spec("b"))
        assert launcher.reload()["start"] == ["b"]


def test_with_watch_a_change_of_the_file_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "illm.yaml"
    file.touch()
    with Launcher(spec("a"), constants={"launchers.supervisor.WATCH": 0.05}, watch=True, file=str(file)) as launcher:
        launcher.write(spec("a"), spec("b"))
        file.write_text("changed")
        wait_until(lambda: launcher.client.get("/engines/b").status_code == 200, "b is there")


def test_an_engine_that_is_taken_out_and_put_back_is_there_for_who_follows() -> None:
    with Launcher(spec("a"), spec("b")) as launcher, launcher.client.stream("GET", "/events") as answer:
        events = Events(answer)
        picture = {row["name"]: row for row in events.until("engines")["engines"]}
        assert set(picture) == {"a", "b"}
        launcher.write(spec("b"))
        launcher.reload()
        launcher.write(spec("a"), spec("b"))
        launcher.reload()
        ready(launcher, "a")
        while picture.get("a", {}).get("state") != "ready":
            event = events.until("engine", "removed")
            if event["event"] == "removed":
                picture.pop(event["name"])
            else:
                picture[event["engine"]["name"]] = event["engine"]
        assert set(picture) == {"a", "b"}


def test_a_stopped_engine_that_becomes_eager_starts_and_one_given_up_is_tried_again() -> None:
    broken = spec("broken", "--fail", "no", restarts=0)
    with Launcher(spec("late"), broken) as launcher:
        with launcher.wanted("broken") as events:
            events.until("failed")
        launcher.write(spec("late", start="eager"), spec("broken", start="eager"))
        assert launcher.reload()["update"] == ["late"]
        assert launcher.until("late", "ready")["start"] == "eager"
        row = launcher.until("broken", "ready")
        assert (row["error"], row["failures"]) == (None, 0)


def test_a_reload_during_a_start_takes_the_new_settings(tmp_path: Path) -> None:
    with Launcher(spec("a", "--gate", str(tmp_path / "never"))) as launcher, launcher.wanted("a") as events:
        wait_until(lambda: launcher.row("a")["pid"], "it has a process")
        first = launcher.row("a")["pid"]
        launcher.write(spec("a"))
        launcher.reload()
        assert events.until("ready")["engine"]["pid"] != first  # who waited goes on waiting
        assert not alive(first)


def test_an_engine_that_is_taken_out_tells_who_waits_and_who_holds_it(tmp_path: Path) -> None:
    held, awaited = spec("held"), spec("awaited", "--gate", str(tmp_path / "never"))
    with Launcher(held, awaited) as launcher:
        with launcher.wanted("held") as lease, launcher.wanted("awaited") as events:
            lease.until("ready")
            wait_until(lambda: launcher.row("awaited")["pid"], "it has a process")
            launcher.write()
            launcher.say(signal.SIGHUP)
            failed = events.until("failed")
            assert (failed["code"], failed["message"]) == (
                "engine_stopped", "Engine 'awaited' was stopped: it is no longer in the settings."
            )  # fmt: skip
            lease.until("yield")
            with launcher.wanted("held") as late:  # it drains, and takes nobody new
                assert late.until("failed")["code"] == "engine_stopped"
            lease.close()
            wait_until(lambda: launcher.client.get("/engines").json() == {"engines": []}, "both are gone")
        assert launcher.engines_alive() == []
