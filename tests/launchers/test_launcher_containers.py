"""Engines in containers through a real launcher: started, stopped, crashed and left, with a `docker` that is a stand-in
(tests/compose has the real one)."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers import start as starts
from launchers.readiness import new_client
from tests.engines.process import wait_until
from tests.launchers.engines.specs import spec as typed_spec
from tests.launchers.support import Launcher, Row, alive, spec

IMAGE = "org/engine:1"
LONG = 60.0
STANDIN = Path(__file__).parent / "standins" / "docker.py"
QUICK = {"launchers.lifecycle.FIRST_DELAY": 0.05}


class Docker:
    """The stand-in's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("images", "containers"):
            (folder / name).mkdir(parents=True)
        (folder / "daemon").touch()
        self.have(IMAGE)

    def have(self, image: str) -> None:
        self._image(image).touch()

    def forget(self, image: str) -> None:
        self._image(image).unlink()

    def _image(self, image: str) -> Path:
        return self.folder / "images" / image.replace("/", "_")

    def set(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def calls(self, verb: str) -> list[list[str]]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.split() for line in lines if line.startswith(f"{verb} ")]

    @property
    def containers(self) -> dict[str, int]:
        """Their processes by name."""
        return {file.name: int(file.read_text() or 0) for file in (self.folder / "containers").iterdir()}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Docker]:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "docker").write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path / "docker"))
    found = Docker(tmp_path / "docker")
    yield found
    left = [pid for pid in found.containers.values() if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def contained(name: str, *words: str, **members: Any) -> Row:
    return spec(name, *words, image=IMAGE, **members)


def ready(launcher: Launcher, name: str) -> Row:
    with launcher.wanted(name) as events:
        row: Row = events.until("ready", "failed")
    assert row["event"] == "ready", row
    return launcher.row(name)


def failure(launcher: Launcher, name: str) -> str:
    with launcher.wanted(name) as events:
        return str(events.until("failed")["message"])


def test_a_container_starts_is_stopped_and_removed(docker: Docker) -> None:
    with Launcher(contained("coder", env={"MY_KEY": "sk-secret"})) as launcher:
        port = ready(launcher, "coder")["base_url"].rpartition(":")[2]
        ((name, inside),) = docker.containers.items()
        assert name.startswith("illm-coder-")
        ((*words,),) = docker.calls("run")
        assert f"127.0.0.1:{port}:{port}" in words
        assert "sk-secret" not in words
        assert launcher.stop("coder")["state"] == "stopped"
        assert docker.containers == {}
        assert not alive(inside)
        assert docker.calls("rm")[-1] == ["rm", "-f", name]


def test_a_start_leaves_the_container_of_another_launcher_alone(docker: Docker) -> None:
    with Launcher(contained("coder")) as first, Launcher(contained("coder")) as second:
        pid = ready(first, "coder")["pid"]
        ready(second, "coder")
        assert len(docker.containers) == 2
        second.stop("coder")
        row = first.row("coder")
        assert (row["state"], row["pid"], row["failures"]) == ("ready", pid, 0)


def test_a_container_that_dies_comes_back_under_its_name(docker: Docker) -> None:
    with Launcher(contained("coder"), constants=QUICK) as launcher:
        pid = ready(launcher, "coder")["pid"]
        ((name, inside),) = docker.containers.items()
        os.kill(inside, signal.SIGKILL)
        wait_until(lambda: launcher.row("coder")["pid"] not in (pid, None), "there is another")
        launcher.until("coder", "ready")
        assert list(docker.containers) == [name]


def test_one_that_a_dead_launcher_left_makes_way_for_the_next(docker: Docker) -> None:
    with Launcher(contained("coder")) as launcher:
        ready(launcher, "coder")
        ((name, inside),) = docker.containers.items()
        launcher.kill()
        wait_until(lambda: not alive(inside), "it is removed")
        (docker.folder / "containers" / name).write_text("0")  # as one whose removal failed
        launcher.start()
        ready(launcher, "coder")


def test_what_docker_said_is_told_whatever_its_cleanup_says_after_it(docker: Docker) -> None:
    with Launcher(contained("coder", restarts=0)) as launcher:
        docker.set(
            "refuse", "docker: Error response from daemon: could not select device driver with capabilities: gpu"
        )
        said = failure(launcher, "coder")
        assert "exit status 125" in said
        assert "could not select device driver" in said
        log = launcher.client.get("/engines/coder/logs").text
        assert "=== illm: the cleanup command" in log, "there was no container to be removed"
        assert "=== illm" not in said


def test_a_port_that_docker_finds_taken_is_no_failure(docker: Docker) -> None:
    with Launcher(contained("coder", restarts=0)) as launcher:
        docker.set("refuse-once", "Bind for 127.0.0.1 failed: port is already allocated")
        ready(launcher, "coder")
        assert len(docker.calls("run")) == 2


def test_without_a_daemon_its_clients_are_told_so(docker: Docker) -> None:
    (docker.folder / "daemon").unlink()
    with Launcher(contained("coder", restarts=0)) as launcher:
        assert "Cannot connect to the Docker daemon" in failure(launcher, "coder")


def test_an_image_is_pulled_first_and_how_far_that_is_is_seen(docker: Docker) -> None:
    docker.forget(IMAGE)
    with Launcher(contained("coder")) as launcher:
        with launcher.wanted("coder") as events:
            pulling = events.until("phase", where=lambda event: event["progress"] == 0.5)
            assert pulling["phase"] == "pulling image"
            assert launcher.row("coder")["pid"] is None
            docker.set("pull")
            events.until("ready")
        launcher.stop("coder")
        ready(launcher, "coder")
        assert len(docker.calls("pull")) == 1


def test_a_pull_that_is_no_longer_wanted_ends(docker: Docker) -> None:
    docker.forget(IMAGE)
    with Launcher(contained("coder")) as launcher:
        with launcher.wanted("coder") as events:
            events.until("phase", where=lambda event: event["phase"] == "pulling image")
            launcher.stop("coder")
            assert events.until("failed")["code"] == "engine_stopped"
        assert launcher.engines_alive() == []


def test_a_pull_that_fails_is_told_in_dockers_words(docker: Docker) -> None:
    docker.forget(IMAGE)
    docker.set("pull", f"Error response from daemon: manifest for {IMAGE} not found")
    with Launcher(contained("coder", restarts=0)) as launcher:
        said = failure(launcher, "coder")
        assert f"its image {IMAGE} is not here and can't be pulled" in said
        assert "manifest for" in said


async def test_a_pull_is_none_of_the_time_that_a_start_may_take(docker: Docker, tmp_path: Path) -> None:
    docker.forget(IMAGE)
    docker.set("pull")
    client = new_client()
    means = starts.Means(client, tmp_path, tmp_path, "label", "127.0.0.1", "kill", auto_install=lambda: False)
    told = typed_spec("vllm", image=IMAGE, start_timeout=1e-9)
    said: list[str] = []
    words = await starts.program(told, means, lambda phase, share: said.append(phase))
    await client.aclose()
    assert words[0].endswith("/bin/docker")
    assert set(said) == {"pulling image"}


def test_what_dockers_client_holds_is_not_taken_for_the_engines_need(docker: Docker) -> None:
    with Launcher(contained("coder"), spec("clock")) as launcher:
        ready(launcher, "coder")
        ready(launcher, "clock")
        wait_until(lambda: launcher.row("clock")["memory"]["cpu"], "it was measured, and the other before it")
        assert launcher.row("coder")["memory"] == {"cpu": 0}
        assert len(json.loads((launcher.state / "needs.json").read_text())) == 1
