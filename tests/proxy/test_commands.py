"""`illm ps`, `start`, `stop`, `logs` and `reload` as programs, against a launcher that a test writes the script of."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from starlette.responses import JSONResponse

from tests.proxy.harness import PATIENCE, until
from tests.proxy.scripted_launcher import Launcher, Stream, launcher, row

SECRET = "sk-very-secret"
READY = row(
    "coder", "ready", base_url="http://127.0.0.1:41233", api_key=SECRET, pid=4242, phase="ready", leases=1,
    memory={"0": 6 * 2**30}, ttl=900.0, model="my/coder", pinned=False,
)  # fmt: skip
DOWN = row("writer", "fatal", error="It ended with exit status 1.\nno such file", ttl=None, memory={"cpu": 5 * 2**20})


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder of a short name, as a socket's path may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="illm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def one(state: Path, *rows: Any, label: str = "mine-0a1b2c3d", **how: Any) -> AsyncIterator[Launcher]:
    folder = state / "illm" / label
    folder.mkdir(parents=True)
    async with launcher(folder, *rows, **how) as running:
        yield running


class Said(NamedTuple):
    status: int
    out: str
    err: str


async def begin(state: Path, *words: str, **streams: Any) -> Process:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ILLM_")}
    environ |= {"XDG_STATE_HOME": str(state), "PYTHONPATH": str(Path(__file__).parents[2])}
    streams = {"stdin": asyncio.subprocess.DEVNULL, "stdout": PIPE, "stderr": PIPE} | streams
    command = (sys.executable, "-P", "-m", "proxy.cli", *words)
    return await asyncio.create_subprocess_exec(*command, env=environ, cwd=state, **streams)


async def illm(state: Path, *words: str) -> Said:
    process = await begin(state, *words)
    try:
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    said = Said(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in said.err
    assert SECRET not in said.out + said.err
    return said


# --- ps ------------------------------------------------------------------------------------------------------------


async def test_ps_into_a_pipe_is_an_aligned_table(state: Path) -> None:
    loading = row("embedder", "starting", phase="loading weights", progress=0.434)
    async with one(state, READY, DOWN, loading):
        said = await illm(state, "ps")

    lines = said.out.splitlines()
    assert said.status == 0
    assert lines[0].split() == ["NAME", "KIND", "STATE", "PROGRESS", "MODEL", "MEMORY", "IDLE", "PID", "ADDRESS"]
    assert lines[1].split("  ")[0] == "coder"
    assert "6.0 GiB (GPU 0)  in use  4242  http://127.0.0.1:41233" in lines[1]
    assert lines[2].split() == ["writer", "vllm", "fatal", "writer", "5", "MiB"]
    assert "starting (loading weights)  43%" in lines[3]
    assert len({line.index(word) for line, word in zip(lines, ("KIND", "vllm", "vllm", "vllm"), strict=False)}) == 1
    assert lines[4] == "writer: It ended with exit status 1. (illm logs writer)"


async def test_ps_for_programs(state: Path) -> None:
    async with one(state, READY):
        said = await illm(state, "ps", "--json")

    answer = json.loads(said.out)
    assert answer["unreachable"] == []
    assert answer["engines"] == [{"launcher": "mine-0a1b2c3d"} | {k: v for k, v in READY.items() if k != "api_key"}]


async def test_ps_shows_the_engines_of_all_launchers_and_says_who_cannot_be_reached(state: Path) -> None:
    (state / "my.yaml").write_text("launchers: {far: {base_url: 'http://127.0.0.1:9', api_key: sk-very-secret}}\n")
    async with one(state, READY, label="a-1"), one(state, DOWN, label="b-2"):
        said = await illm(state, "ps", "--config", "my.yaml")
        for_programs = await illm(state, "ps", "--config", "my.yaml", "--json")

    assert said.status == 1
    assert [line.split()[0] for line in said.out.splitlines()[1:3]] == ["coder", "writer"]
    assert said.err.startswith("illm: Launcher 'far' at http://127.0.0.1:9 can't be reached.")
    told = json.loads(for_programs.out)
    assert [engine["launcher"] for engine in told["engines"]] == ["a-1", "b-2"]
    assert [one["launcher"] for one in told["unreachable"]] == ["far"]


async def test_sockets_that_nobody_listens_on_are_passed_over(state: Path) -> None:
    async with one(state, READY) as running:
        pass
    assert running.path.is_socket()
    said = await illm(state, "ps")

    assert said.status == 1
    assert said.err == "illm: No launcher is running here. `illm launch` starts one, and so does `illm serve`.\n"


async def test_ps_goes_on_until_it_is_interrupted(state: Path) -> None:
    async with one(state, READY) as running:
        process = await begin(state, "ps", "--watch", "--json")
        assert process.stdout is not None
        first = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
        running.tell("coder", "stopped")
        second = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)

    assert [answer["engines"][0]["state"] for answer in (first, second)] == ["ready", "stopped"]
    assert (process.returncode, err) == (0, b"")


# --- start ---------------------------------------------------------------------------------------------------------


def loads(stream: Stream) -> None:
    for phase, progress in (
        ("started", None),
        ("loading weights", 0.41),
        ("loading weights", 0.43),
        ("warming up", None),
    ):
        stream.say("phase", state="starting", phase=phase, progress=progress)
    stream.say("ready", engine=READY)
    stream.end()


async def test_start_into_a_pipe_tells_the_phases(state: Path) -> None:
    async with one(state, row("coder"), answer=loads) as running:
        said = await illm(state, "start", "coder")

    assert said.status == 0
    *phases, last = said.out.splitlines()
    assert phases == ["coder: started", "coder: loading weights 41%", "coder: warming up"]
    assert last.startswith("coder is ready at http://127.0.0.1:41233 (")
    assert "POST /engines/coder/start" in running.asked


async def test_start_for_programs(state: Path) -> None:
    async with one(state, row("coder"), answer=loads):
        said = await illm(state, "start", "--json", "coder")

    events = [json.loads(line) for line in said.out.splitlines()]
    assert [event["event"] for event in events] == ["phase"] * 4 + ["ready"]
    assert "api_key" not in events[-1]["engine"]


@pytest.mark.parametrize("how", [["start", "coder"], ["start", "coder", "--json"]])
async def test_a_start_that_fails(state: Path, how: list[str]) -> None:
    def fails(stream: Stream) -> None:
        stream.say("failed", code="engine_failed", message="It ended with exit status 1:\nno such file")
        stream.end()

    async with one(state, row("coder"), answer=fails):
        said = await illm(state, *how)

    assert said.status == 1
    assert said.err == "illm: coder did not start: It ended with exit status 1:\nno such file\n"


async def test_a_start_whose_launcher_goes_away(state: Path) -> None:
    async with one(state, row("coder"), answer=lambda stream: stream.say("phase", phase="started")) as running:
        process = await begin(state, "start", "coder")
        await running.lease()
        running.cut()
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)

    assert process.returncode == 1
    assert err.startswith(b"illm: ")
    assert b"Traceback" not in err


async def test_an_interrupted_start_goes_on(state: Path) -> None:
    async with one(state, row("coder"), answer=lambda stream: stream.say("phase", phase="started")) as running:
        process = await begin(state, "start", "coder")
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"coder: started\n"
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        await until(lambda: not running.held)

    assert process.returncode == 130
    assert err == b"illm: The start goes on; `illm ps` shows how far it is.\n"


async def test_a_terminal_gets_a_bar(state: Path) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    seen = bytearray()
    asyncio.get_running_loop().add_reader(ours, lambda: seen.extend(_read(ours)))
    try:
        async with one(state, row("coder")) as running:
            process = await begin(state, "start", "coder", stdout=theirs)
            lease = await running.lease()
            lease.say("phase", state="starting", phase="loading [weights]", progress=0.43)
            await until(lambda: b"43%" in seen and b"loading [weights]" in seen)
            lease.say("ready", engine=READY)
            await asyncio.wait_for(process.wait(), PATIENCE)
            await until(lambda: b"coder is ready" in seen)
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert "━".encode() in seen


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except (BlockingIOError, OSError):
        return b""


# --- stop, logs, reload --------------------------------------------------------------------------------------------


async def test_stop(state: Path) -> None:
    async with one(state, row("coder", api_key=SECRET)) as running:
        said = await illm(state, "stop", "coder")
        for_programs = await illm(state, "stop", "coder", "--json")

    assert (said.status, said.out) == (0, "coder is stopped.\n")
    assert json.loads(for_programs.out)["state"] == "stopped"
    assert running.asked.count("POST /engines/coder/stop") == 2


async def test_logs(state: Path) -> None:
    async with one(state, row("coder")) as running:
        said = await illm(state, "logs", "coder", "--tail", "7")
        for_programs = await illm(state, "logs", "coder", "-f", "--json")

    assert said == (0, "one\ntwo\n", "")
    lines = [json.loads(line) for line in for_programs.out.splitlines()]
    assert lines == [{"engine": "coder", "line": "one"}, {"engine": "coder", "line": "two"}]
    assert "GET /engines/coder/logs?tail=7" in running.asked
    assert "GET /engines/coder/logs?tail=100&follow=1" in running.asked


async def test_reload(state: Path) -> None:
    async with one(state, row("coder")) as running:
        said = await illm(state, "reload", "--dry-run")
        for_programs = await illm(state, "reload", "--json")

    assert (said.status, said.out) == (0, "mine-0a1b2c3d: start: a; keep: b\n")
    assert json.loads(for_programs.out)["launcher"] == "mine-0a1b2c3d"
    assert [asked for asked in running.asked if "reload" in asked] == ["POST /reload?dry_run=1", "POST /reload"]


async def test_a_reload_that_is_refused(state: Path) -> None:
    refusal = JSONResponse({"error": {"message": "illm.yaml:2: kind is wrong", "code": "invalid_settings"}}, 400)
    async with one(state, refusal=lambda request: refusal if request.url.path == "/reload" else None):
        said = await illm(state, "reload")

    assert (said.status, said.err) == (1, "illm: mine-0a1b2c3d: illm.yaml:2: kind is wrong\n")


# --- which one -----------------------------------------------------------------------------------------------------


async def test_an_engine_is_also_known_by_the_name_its_clients_use(state: Path) -> None:
    async with one(state, row("coder", model="my/coder")) as running:
        assert (await illm(state, "stop", "my/coder")).status == 0
    assert "POST /engines/coder/stop" in running.asked


async def test_an_engine_that_nobody_knows(state: Path) -> None:
    async with one(state, row("coder"), row("writer")):
        said = await illm(state, "stop", "codr")
    assert (said.status, said.err) == (2, "illm: there is no engine 'codr'. Engines: coder, writer\n")


async def test_a_name_on_two_launchers(state: Path) -> None:
    async with one(state, row("coder"), label="a-1") as first, one(state, row("coder"), label="b-2") as second:
        said = await illm(state, "stop", "coder")
        assert (await illm(state, "stop", "coder", "--launcher", "b-2")).status == 0
        for way in (f"unix:{first.path}", str(first.path), str(first.path.parent)):
            assert (await illm(state, "stop", "coder", "--launcher", way)).status == 0

    assert said.status == 2
    assert said.err == "illm: engine 'coder' is on several launchers: a-1, b-2. Say which one: --launcher NAME\n"
    stops = "POST /engines/coder/stop"
    assert (first.asked.count(stops), second.asked.count(stops)) == (3, 1)


async def test_a_public_name_of_several_engines(state: Path) -> None:
    async with one(state, row("a", model="m"), row("b", model="m")):
        said = await illm(state, "stop", "m")
    assert (said.status, said.err) == (2, "illm: 'm' is served by several engines: a, b. Name one of them\n")


async def test_a_launcher_that_nobody_knows(state: Path) -> None:
    async with one(state, row("coder")):
        said = await illm(state, "ps", "--launcher", "gpu")
    assert said.status == 2
    assert said.err.startswith("illm: there is no launcher 'gpu'; a name, a URL or a socket's path is needed.")
    assert said.err.endswith("Known: mine-0a1b2c3d\n")


@pytest.mark.parametrize("command", ["start", "stop", "logs"])
async def test_no_launcher_at_all(state: Path, command: str) -> None:
    said = await illm(state, command, "coder")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("illm: No launcher is running here.")
