"""What a launcher makes of its own settings: what it refuses and where that stands, what it takes over while it runs,
and whom it ends for."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines.process import wait_until
from tests.launchers.support import ROOT, Events, Launcher, Row, spec

GiB = 1024**3
LONG = 60.0
SOON = {"launchers.room.LOOK": 0.05, "launchers.room.COME_BACK": 0.2, "launchers.supervisor.WATCH": 0.05}


def rewrite(launcher: Launcher, *engines: Row, **settings: Any) -> None:
    document = json.loads(launcher.document.read_text())
    document["launcher"] |= settings
    launcher.document.write_text(json.dumps(document | ({"engines": list(engines)} if engines else {})))


def outcome(launcher: Launcher, name: str) -> Row:
    with launcher.wanted(name) as events:
        return events.until("ready", "failed")


WRONG = [
    spec("a", where={"": "my.yaml:1", "kind": "my.yaml:2"}),
    spec("b", kind="llamacpp", model="m", command=[], dtype="f16", where={"": "my.yaml:3", "dtype": "my.yaml:5"}),
    spec("c", image="IMG", device="mps", where={"": "my.yaml:7"}),
]
SAID = [
    "my.yaml:5: b: llama.cpp has no option `dtype` (which is for vllm, sglang, tgi, transformers, infinity, tei). ",
    "my.yaml:7: c: a container can't use Apple's GPU; leave out `image`, or set `device: cpu`.",
]


def test_all_that_cannot_be_launched_is_said_with_its_line_and_nobody_finds_a_socket(tmp_path: Path) -> None:
    with Launcher(spec("a")) as launcher:
        launcher.say(signal.SIGTERM)
        launcher.process.wait(LONG)
        rewrite(launcher, *WRONG)
        run = subprocess.run(launcher.command_line(), cwd=ROOT, capture_output=True, text=True, timeout=LONG)
        assert run.returncode == 2
        said = run.stderr.removeprefix("illm launch: ").splitlines()
        assert [line.startswith(wrong) for line, wrong in zip(said, SAID, strict=True)] == [True, True]
        assert not (launcher.state / "launcher.sock").exists()

        check = [sys.executable, "-m", "launchers", "--check", "--", "cat", str(launcher.document)]
        run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=LONG)
        assert (run.returncode, run.stdout.splitlines()) == (0, said)


def test_a_reload_with_such_a_mistake_says_so_too_and_changes_nothing() -> None:
    with Launcher(spec("a")) as launcher:
        rewrite(launcher, *WRONG, linger=1.0)
        answer = launcher.client.post("/reload")
        assert answer.status_code == 400
        assert SAID[0] in answer.json()["error"]["message"]
        assert [row["name"] for row in launcher.client.get("/engines").json()["engines"]] == ["a"]


def test_a_budget_holds_from_the_reload_on_and_what_does_not_is_named() -> None:
    engine = spec("a", gpus=["0"], memory=6 * GiB)
    with Launcher(engine, constants=SOON, budget={"0": 4 * GiB}) as launcher:
        assert "launcher.budget allows 4 GiB" in outcome(launcher, "a")["message"]
        rewrite(launcher, engine, budget={"0": 8 * GiB}, bind="127.0.0.2", orphans="adopt", auto_install=True)
        planned = launcher.reload(dry_run=True)
        assert "launcher.budget allows 4 GiB" in outcome(launcher, "a")["message"]
        done = launcher.reload()
        assert done == planned
        assert (done["launcher"], done["left"]) == (["budget", "auto_install"], ["bind", "orphans"])
        assert outcome(launcher, "a")["event"] == "ready"
        assert launcher.client.get("/").json()["orphans"] == "kill"
        assert "launcher.bind, launcher.orphans: what it says now takes effect when" in launcher.log.read_text()
        assert launcher.reload()["launcher"] == []
        assert launcher.reload()["left"] == ["bind", "orphans"], "as long as that is so"


def test_the_file_is_watched_from_the_reload_on_that_asks_for_it_and_no_longer_than_one_does(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.touch()
    with Launcher(spec("a"), constants=SOON, file=str(file)) as launcher:
        rewrite(launcher, spec("a"), watch=True)
        assert launcher.reload()["launcher"] == ["watch"]
        rewrite(launcher, spec("b"))
        os.utime(file, ns=(1, 1))
        wait_until(lambda: launcher.client.get("/engines/b").status_code == 200, "it was read")


# --- the gateways that use it ---------------------------------------------------------------------------------------


def test_it_does_not_end_for_one_gateway_while_another_follows_it() -> None:
    with (
        Launcher(spec("a"), constants={"launchers.control.FAREWELL": 0.1}) as launcher,
        launcher.client.stream("GET", "/events") as answer,
    ):
        other = Events(answer)
        other.next()
        refused = launcher.client.post("/shutdown", params={"if_unused": 1})
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "launcher_in_use"
        assert "1 more gateway uses it" in refused.json()["error"]["message"]
        assert outcome(launcher, "a")["event"] == "ready"
        other.close()


def test_that_the_gateway_which_asks_has_only_just_left_is_waited_for() -> None:
    with Launcher(spec("a"), constants={"launchers.control.FAREWELL": LONG}) as launcher:
        with launcher.client.stream("GET", "/events") as answer:
            itself = Events(answer)
            itself.next()
        assert launcher.client.post("/shutdown", params={"if_unused": 1}).status_code == 202
        assert launcher.process.wait(LONG) == 0


@pytest.mark.parametrize("linger", [0.0, 0.1])
def test_its_time_without_a_gateway_begins_when_the_first_has_been_there(linger: float) -> None:
    """However short that time is: the gateway that started it needs a moment to come."""
    with Launcher(spec("a"), for_gateway=True, linger=linger) as launcher:
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.process.wait(1.0)
        with launcher.client.stream("GET", "/events") as answer:
            Events(answer).next()
        assert launcher.process.wait(LONG) == 0


def test_one_that_no_gateway_ever_follows_ends_too() -> None:
    constants = {"launchers.__main__.ARRIVAL": 4.0}  # enough for the test to find it
    with Launcher(spec("a"), for_gateway=True, linger=0.0) as launcher:
        assert launcher.process.poll() is None
    with Launcher(spec("a"), for_gateway=True, linger=0.0, constants=constants) as launcher:
        assert launcher.process.wait(LONG) == 0
