"""A gateway that was started without engines, and a reload that brings the first: a launcher is started then."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.launcher_client import Address, LauncherError
from proxy.settings import Settings, load_settings
from tests.engines.gateway import Gateway
from tests.engines.process import PATIENCE, wait_until
from tests.proxy.harness import gateway, until
from tests.proxy.scripted_launcher import launcher, row

ENGINES = {"engines": {"coder": {"kind": "llamacpp", "model": "m.gguf"}}}


def new(settings: dict[str, Any]) -> Settings:
    return load_settings(None, {}, {"discovery": {"local": False}} | settings)


async def test_the_first_engines_get_a_launcher(tmp_path: Path) -> None:
    begun: list[Settings] = []
    async with launcher(tmp_path, row("coder")) as there:

        def launch(settings: Settings) -> tuple[Address, None]:
            begun.append(settings)
            return Address("mine", there.address.url, own=True), None

        async with gateway({}, launch=launch) as gate:
            await gate.gateway.reload(new({}))
            assert begun == [], "there is nothing to launch"
            await gate.gateway.reload(new(ENGINES))
            listed = (await gate.client.get("/v1/models")).json()["data"]
            await gate.gateway.reload(new(ENGINES))

            assert [(one["id"], one["state"]) for one in listed] == [("coder", "launchable")]
            assert len(begun) == 1, "from then on it is told to read its settings"
            assert there.asked.count("POST /reload") == 1
        await until(lambda: not there.followers or all(one.closed.is_set() for one in there.followers))


async def test_a_launcher_that_does_not_start_holds_nothing_up_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []
    async with launcher(tmp_path, row("coder")) as there:

        def launch(_: Settings) -> tuple[Address, None]:
            tries.append(1)
            if len(tries) == 1:
                raise LauncherError("The launcher's folder can't be made.")
            return Address("mine", there.address.url, own=True), None

        async with gateway({}, launch=launch) as gate:
            more = {"backends": {"b": {"base_url": "http://127.0.0.1:9", "model": "m"}}}
            await gate.gateway.reload(new(ENGINES | more))
            assert "the engines can't be started: The launcher's folder can't be made." in caplog.text
            assert list(gate.gateway.registry.snapshot.routes) == ["m"]
            await gate.gateway.reload(new(ENGINES | more))
            assert sorted(gate.gateway.registry.snapshot.routes) == ["coder", "m"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a short name, as a socket's path may not be long."""
    made = Path(tempfile.mkdtemp(prefix="illm-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.mark.slow  # a gateway, its workers, a launcher and an engine
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux, to look at another process's limits")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_whole_processes(folder: Path, workers: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    usual = min(512, soft)
    settings = {"discovery": {"local": False}, "launcher": {"state": str(folder / "s")}}
    # A file beside the launcher's folder tells the engine's pid, to look at its limits.
    code = f"import os, runpy, sys; open({str(folder / 'pid')!r}, 'w').write(str(os.getpid())); " + (
        "runpy.run_module('launchers.demo', run_name='__main__')"
    )
    mine = {"kind": "command", "command": [sys.executable, "-c", code, "--port", "{port}"], "start": "eager"}
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, hard))
    try:
        gate = Gateway(json.dumps(settings), folder, args=("--workers", workers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pid = gate.process.pid
    try:
        (file,) = folder.glob("illm-*.yaml")
        file.write_text(json.dumps(settings | {"engines": {"mine": mine}}))
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: gate.models().get("mine", {}).get("state") == "ready", "the engine is ready")
        for _ in range(8):  # connections of their own, so from any worker
            body = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
            wait_until(lambda: "mine" in gate.models(), "every worker knows it")
            answer = httpx.post(f"{gate.v1}/chat/completions", json=body, timeout=PATIENCE, trust_env=False)
            assert (answer.status_code, answer.json()["model"]) == (200, "mine")
        engine = int((folder / "pid").read_text())
        limits = [resource.prlimit(one, resource.RLIMIT_NOFILE)[0] for one in (pid, *_children(pid), engine)]
        log = gate.log_text()
        os.kill(pid, signal.SIGINT)
        gate.process.wait(PATIENCE)
        wait_until(lambda: not Path(f"/proc/{engine}").exists(), "Ctrl-C has ended the engine as well")
    finally:
        gate.stop()
    assert log.count("Started the launcher") == 1
    count = int(workers)
    assert sorted(limits) == sorted([hard] * (1 + (count if count > 1 else 0)) + [usual] * 2), "launcher and engine"


def _children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
