"""Spawning, finding again and stopping: real programs that fork, hide, refuse and get killed, and nothing is left."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from launchers import guard, running
from launchers.engines.base import Command
from launchers.ledger import Ledger
from launchers.logs import EngineLog
from launchers.process import NotStarted, Record, Running, adopt, become_subreaper, clear, reap_strangers, spawn
from tests.engines.process import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
LONG = 10 * PATIENCE  # a grace that nobody waits for

# What the engines in here do. Each writes "ready" when it got so far.
SERVES = "import signal; print('ready', flush=True); signal.pause()"
POLITE = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
signal.pause()
"""
# Heeds it once there is a file "go".
RELUCTANT = """
import os, signal, sys, time
def end(*_):
    while not os.path.exists("go"):
        time.sleep(0.01)
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
# A worker in its group and a daemon in a session of its own, neither of which heeds SIGTERM.
FAMILY = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    print("worker", os.getpid(), flush=True)
    while True:
        signal.pause()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", os.getpid(), flush=True)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
"""
DEAF_FAMILY = FAMILY + "while True: signal.pause()"
LEAVES_FAMILY = FAMILY + "import time\nwhile open('log').read().count('\\n') < 2: time.sleep(0.01)\nsys.exit(7)"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A word in the environment of everything that a test starts, guards too; afterwards none of that is left, and no
    zombie."""
    word = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARK", word)
    before = set(zombies())
    yield word
    try:
        wait_until(lambda: not marked(word) and not set(zombies()) - before, "nothing is left")
    finally:
        for pid in marked(word):
            os.kill(pid, signal.SIGKILL)


def marked(word: str) -> list[int]:
    """Living processes with that word in their environment."""
    found = []
    for row in guard.processes().values():
        try:
            if not row.zombie and word.encode() in Path(f"/proc/{row.pid}/environ").read_bytes():
                found.append(row.pid)
        except OSError:
            continue
    return found


def zombies() -> list[int]:
    """Children of this process that ended and that nobody took."""
    return [row.pid for row in guard.processes().values() if row.zombie and row.parent == os.getpid()]


def alive(pid: int) -> bool:
    row = guard.process(pid)
    return row is not None and not row.zombie


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


class House:
    """A folder with a log, and engines started in it."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = folder, mark
        self.log = EngineLog(folder / "log")
        self.runs = folder / "runs"

    async def start(self, source: str, *, lines: int = 1, **more: Any) -> Running:
        """An engine, once its log has that many lines."""
        command = Command(
            (sys.executable, "-c", source), {"TEST_MARK": self.mark, **more.pop("env", {})}, more.pop("cleanup", ())
        )
        engine = await self.spawn(command, **more)
        await until(lambda: len(self.lines()) >= lines, "the engine has written its lines")
        return engine

    async def spawn(self, command: Command, **more: Any) -> Running:
        return await spawn(
            command,
            name="one",
            log=self.log,
            run_dir=self.runs,
            orphans=more.pop("orphans", "kill"),
            grace=more.pop("grace", LONG),
            host="127.0.0.1",
            port=1,
            model="m",
            fingerprint="f",
            cwd=more.pop("cwd", self.folder),
        )

    def lines(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def pid(self, who: str) -> int:
        """Of whoever wrote its name and pid."""
        return int(next(line.split()[1] for line in self.lines() if line.startswith(who)))


@pytest.fixture
def house(tmp_path: Path, mark: str) -> Iterator[House]:
    house = House(tmp_path, mark)
    yield house
    house.log.close()


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_an_engine_that_heeds_sigterm_ends_in_its_own_way(house: House) -> None:
    engine = await house.start(POLITE)
    assert alive(engine.record.engine_pid)
    assert not engine.has_ended
    ending = await engine.stop(LONG)
    assert (ending.status, ending.text, ending.asked) == (3, "exit status 3", True)
    assert engine.has_ended
    assert guard.process(engine.record.engine_pid) is None
    assert guard.process(engine.record.guard_pid) is None
    assert await engine.stop(LONG) == ending
    assert list(house.runs.iterdir()) == []


async def test_who_does_not_heed_sigterm_is_killed_after_the_grace_with_worker_and_daemon(house: House) -> None:
    engine = await house.start(DEAF_FAMILY, lines=2)
    everyone = {engine.record.engine_pid, house.pid("worker"), house.pid("daemon")}
    await until(lambda: set(engine.pids()) == everyone, "they are all, once the daemon's parent has ended")
    begun = time.monotonic()
    ending = await asyncio.wait_for(engine.stop(0.5), PATIENCE)
    assert time.monotonic() - begun >= 0.5
    assert ending.text == "killed by SIGKILL, since it did not end when asked to"
    assert [pid for pid in everyone if alive(pid)] == []
    assert engine.pids() == []


async def test_the_grace_of_the_spawn_holds_too(house: House) -> None:
    engine = await house.start(DEAF, grace=0.2)
    ending = await asyncio.wait_for(engine.stop(LONG), PATIENCE)
    assert ending.status == -signal.SIGKILL


async def test_no_grace_at_all(house: House) -> None:
    engine = await house.start(DEAF)
    assert (await asyncio.wait_for(engine.stop(0), PATIENCE)).status == -signal.SIGKILL


async def test_a_stopped_process_can_be_asked_to_end(house: House) -> None:
    engine = await house.start(POLITE)
    os.kill(engine.record.engine_pid, signal.SIGSTOP)
    assert (await asyncio.wait_for(engine.stop(LONG), PATIENCE)).status == 3


async def test_several_stops_are_one_and_the_shortest_grace_counts(house: House) -> None:
    engine = await house.start(DEAF)
    waiter = asyncio.create_task(engine.ended())
    endings = await asyncio.wait_for(asyncio.gather(engine.stop(LONG), engine.stop(0.1), engine.stop(LONG)), PATIENCE)
    assert endings[0] is endings[1] is endings[2] is await waiter


async def test_a_cancelled_stop_goes_on(house: House) -> None:
    engine = await house.start(RELUCTANT)
    stop = asyncio.create_task(engine.stop(LONG))
    await asyncio.sleep(0)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert not engine.has_ended
    (house.folder / "go").touch()
    assert (await asyncio.wait_for(engine.ended(), PATIENCE)).status == 3


async def test_a_second_sigterm_to_the_guard_leaves_the_grace_out_and_a_terminals_signals_do_nothing(
    house: House,
) -> None:
    engine = await house.start(DEAF)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(engine.record.guard_pid, number)
    await until(lambda: list(house.runs.glob("*.status")), "the guard has begun to stop it")
    assert alive(engine.record.engine_pid)
    os.kill(engine.record.guard_pid, signal.SIGTERM)
    assert (await asyncio.wait_for(engine.ended(), PATIENCE)).asked


async def test_a_guard_that_does_nothing_is_replaced(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MARGIN", 0.2)
    monkeypatch.setattr(signal, "SIGCONT", 0)  # else it would be woken
    engine = await house.start(DEAF_FAMILY, lines=2)
    os.kill(engine.record.guard_pid, signal.SIGSTOP)
    ending = await asyncio.wait_for(engine.stop(0.1), PATIENCE)
    assert ending.asked
    assert marked(house.mark) == []


# --- ending by itself ------------------------------------------------------------------------------------------------


async def test_an_engine_that_ends_takes_what_it_started_with_it(house: House) -> None:
    engine = await house.start(LEAVES_FAMILY, lines=2, grace=0.2)
    ending = await asyncio.wait_for(engine.ended(), PATIENCE)
    assert (ending.status, ending.text, ending.asked) == (7, "exit status 7", False)
    assert marked(house.mark) == []


async def test_an_engine_that_was_killed_may_have_run_out_of_memory(house: House) -> None:
    engine = await house.start(SERVES)
    os.kill(engine.record.engine_pid, signal.SIGKILL)
    ending = await engine.ended()
    assert (ending.status, ending.text) == (-signal.SIGKILL, "killed by SIGKILL (out of memory?)")


@pytest.mark.parametrize("reaper", [False, True])
async def test_a_killed_guard_takes_everything_with_it(house: House, reaper: bool) -> None:
    done = house.folder / "done"
    try:
        assert not reaper or become_subreaper()
        engine = await house.start(DEAF_FAMILY, lines=2, cleanup=("touch", str(done)))
        os.kill(engine.record.guard_pid, signal.SIGKILL)
        ending = await asyncio.wait_for(engine.ended(), PATIENCE)
        assert zombies() == []
    finally:
        guard.prctl(36, 0)
    assert ending.status is None
    assert ending.text == "its guard process ended before it (killed by SIGKILL)"
    assert marked(house.mark) == []
    assert done.exists()


async def test_strangers_are_reaped_and_own_children_left_alone(house: House) -> None:
    """A marked orphan that this process inherits is ended; its own child, which somebody waits for, is not."""
    orphan = f"{guard.MARK}=x TEST_MARK={house.mark} setsid sleep 600 & echo $!"
    own = subprocess.Popen(["sleep", "600"])
    guarded = subprocess.Popen(["sleep", "600"], start_new_session=True, env={**os.environ, guard.MARK: "y"})
    try:
        assert become_subreaper()
        pid = _orphan(orphan, house.folder)
        await until(lambda: (row := guard.process(pid)) and row.parent == os.getpid(), "the orphan came here")
        await until(lambda: pid in marked(house.mark), "the orphan runs")
        assert pid in reap_strangers({guarded.pid})
        await until(lambda: reap_strangers({guarded.pid}) == [] and guard.process(pid) is None, "the zombie was taken")
        assert own.poll() is None
        assert guarded.poll() is None
    finally:
        guard.prctl(36, 0)
        for child in (own, guarded):
            child.kill()
            child.wait()


def _orphan(command: str, folder: Path) -> int:
    """Runs that in the background of a shell that ends; the pid that it wrote."""
    with (folder / "pid").open("w") as file:
        subprocess.run(["sh", "-c", command], stdout=file, check=True)
    return int((folder / "pid").read_text())


# --- the start -------------------------------------------------------------------------------------------------------


async def test_what_an_engine_inherits(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of ours, no descriptor, no ignored signal, no terminal."""
    monkeypatch.setenv("ILLM_API_KEYS", "secret")
    monkeypatch.setenv("OTHER", "inherited")
    leak = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leak, True)
    shows = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd))
print(json.dumps({"env": dict(os.environ), "fds": fds, "stdin": os.readlink("/proc/self/fd/0"), "cwd": os.getcwd(),
                  "blocked": int(status["SigBlk"], 16), "leader": os.getsid(0) == os.getpgrp() == os.getpid()}))
"""
    engine = await house.start(shows, env={"MINE": "given"})
    os.close(leak)
    await engine.ended()
    seen = json.loads(house.lines()[0])
    assert "ILLM_API_KEYS" not in seen["env"]
    assert seen["env"]["OTHER"] == "inherited"
    assert seen["env"]["MINE"] == "given"
    assert (seen["fds"], seen["stdin"]) == ([0, 1, 2], "/dev/null")
    assert (seen["blocked"], seen["leader"], seen["cwd"]) == (0, True, str(house.folder))
    engine = await house.spawn(Command(("sh", "-c", "grep SigIgn /proc/self/status"), {"TEST_MARK": house.mark}))
    await engine.ended()
    ignored = int(house.lines()[-1].split()[1], 16)
    assert ignored & 0x7FFFFFFF == 0  # above are those that the C library keeps for itself


async def test_a_program_that_can_not_be_run_is_explained(house: House) -> None:
    def script(name: str, text: str, mode: int) -> str:
        file = house.folder / name
        file.write_text(text)
        file.chmod(mode)
        return str(file)

    cases = {
        "no-such-program": r"its program 'no-such-program' was not found; install it",
        script("plain", "text", 0o644): r"may not be run.*chmod \+x",
        script("lost", "#!/no/such/interpreter\n", 0o755): r"is a script whose interpreter .* was not found",
        script("odd", "\x7fELF nonsense", 0o755): "is no program that this machine can run",
        "zero\0byte": "can not be run: Invalid argument",
    }
    for program, why in cases.items():
        with pytest.raises(NotStarted, match=why):
            await house.spawn(Command((program,), {"TEST_MARK": house.mark}))
    with pytest.raises(NotStarted, match=r"its folder '/no/such/folder' can't be entered: No such file"):
        await house.spawn(Command(("true",), {"TEST_MARK": house.mark}), cwd=Path("/no/such/folder"))
    assert zombies() == []


async def test_the_engines_own_path_finds_the_program(house: House) -> None:
    (house.folder / "bin").mkdir()
    program = house.folder / "bin" / "tool"
    program.write_text("#!/bin/sh\nexit 5\n")
    program.chmod(0o755)
    env = {"PATH": f"{program.parent}:/bin:/usr/bin", "TEST_MARK": house.mark}
    engine = await house.spawn(Command(("tool",), env))
    assert (await engine.ended()).status == 5


async def test_an_environment_that_breaks_pythons_does_not_break_the_guard(house: House) -> None:
    env = {"PYTHONHOME": "/no/such", "LD_LIBRARY_PATH": "/no/such", "TEST_MARK": house.mark}
    engine = await house.spawn(Command(("sh", "-c", "exit 4"), env))
    assert (await engine.ended()).status == 4


async def test_no_descriptor_is_left_open(house: House) -> None:
    house.log.last(0)
    before = os.listdir("/proc/self/fd")
    engine = await house.start(SERVES)
    await engine.stop(LONG)
    with pytest.raises(NotStarted):
        await house.spawn(Command(("no-such-program",), {"TEST_MARK": house.mark}))
    assert os.listdir("/proc/self/fd") == before


async def test_a_cancelled_spawn_leaves_nothing(house: House) -> None:
    for turns in (1, 2, 3, 4):  # of the loop
        task = asyncio.create_task(house.spawn(Command((sys.executable, "-c", DEAF), {"TEST_MARK": house.mark})))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert marked(house.mark) == []


async def test_the_cleanup_runs_when_all_is_gone(house: House) -> None:
    done = house.folder / "done"
    cleanup = ("sh", "-c", f'pgrep -f {house.mark}-engin[e] >/dev/null; echo "$?" > {done}')
    engine = await house.start(f"# {house.mark}-engine\n{SERVES}", cleanup=cleanup)
    await engine.stop(LONG)
    assert done.read_text().strip() == "1"  # pgrep found nobody


async def test_a_cleanup_that_can_not_be_run_is_said_in_the_log(house: House) -> None:
    engine = await house.start(SERVES, cleanup=("no-such-cleanup",))
    await engine.stop(LONG)
    assert (
        house.lines()[-1] == "=== illm: the cleanup command 'no-such-cleanup' can't be run: No such file or directory"
    )


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("pidfd", [True, False], ids=["pidfd", "polling"])
def test_any_loop_with_and_without_pidfd(
    tmp_path: Path, mark: str, factory: Any, pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")

    async def scenario() -> None:
        house = House(tmp_path, mark)
        stopped, crashed, found = [await house.start(POLITE, lines=n, orphans="adopt") for n in (1, 2, 3)]
        found.release()
        again = adopt(found.record)
        assert again is not None
        os.kill(crashed.record.engine_pid, signal.SIGSEGV)
        assert (await crashed.ended()).text == "killed by SIGSEGV"
        assert (await stopped.stop(LONG)).status == 3
        ends = await asyncio.gather(again.stop(LONG), found.ended())
        assert 3 in [end.status for end in ends]
        house.log.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(scenario(), PATIENCE))


# --- the launcher's own end ------------------------------------------------------------------------------------------

LAUNCHER = """
import asyncio, sys
from pathlib import Path
from launchers.engines.base import Command
from launchers.ledger import Ledger
from launchers.logs import EngineLog
from launchers.process import become_subreaper, spawn

async def main(folder, orphans, release, source):
    become_subreaper()
    folder = Path(folder)
    engine = await spawn(Command((sys.executable, "-c", source)), name="one", log=EngineLog(folder / "log"),
        run_dir=folder / "runs", orphans=orphans, grace=0.3, host="127.0.0.1", port=1, model="m", fingerprint="f",
        cwd=folder)
    Ledger(folder / "runs").write(engine.record)
    if release == "release":
        engine.release()
    print("launched", flush=True)
    await engine.ended()
    print("ended", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def killed_launcher(house: House, orphans: str, release: str, source: str, *, lines: int) -> Record:
    """A launcher in a process of its own, killed with -9 once its engine has written its lines: what it recorded."""
    command = [sys.executable, "-c", LAUNCHER, str(house.folder), orphans, release, source]
    env = {**os.environ, "TEST_MARK": house.mark}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "launched\n"
        wait_until(lambda: len(house.lines()) >= lines, "the engine has written its lines")
        launcher.kill()
    (record,) = Ledger(house.runs).read()
    return record


async def test_a_killed_launcher_takes_its_engines_with_it(house: House) -> None:
    record = killed_launcher(house, "kill", "release", DEAF_FAMILY, lines=2)
    await until(lambda: marked(house.mark) == [], "everything is gone")
    assert adopt(record) is None
    ending = await clear(record)
    assert (ending.status, ending.asked) == (-signal.SIGKILL, True)


async def test_nobody_adopts_what_a_guard_is_ending(house: House) -> None:
    record = killed_launcher(house, "kill", "release", DEAF, lines=1)
    assert adopt(record) is None
    await asyncio.wait_for(clear(record), PATIENCE)
    assert marked(house.mark) == []


async def test_an_engine_that_no_record_tells_of_does_not_outlive_its_launcher(house: House) -> None:
    killed_launcher(house, "adopt", "keep", DEAF_FAMILY, lines=2)
    await until(lambda: marked(house.mark) == [], "everything is gone")


async def test_an_engine_is_adopted_by_the_next_launcher(house: House) -> None:
    record = killed_launcher(house, "adopt", "release", DEAF_FAMILY, lines=2)
    everyone = {record.engine_pid, house.pid("worker"), house.pid("daemon")}
    assert all(map(alive, everyone))
    engine = adopt(record)
    assert engine is not None
    await until(lambda: set(engine.pids()) == everyone, "they are all, once the daemon's parent has ended")
    assert not engine.has_ended
    ending = await asyncio.wait_for(engine.stop(0.1), PATIENCE)
    assert (ending.status, ending.asked) == (-signal.SIGKILL, True)
    assert marked(house.mark) == []


async def test_only_the_same_process_is_adopted(house: House) -> None:
    record = killed_launcher(house, "adopt", "release", SERVES, lines=1)
    strangers = [
        replace(record, engine_start="1"),
        replace(record, guard_start="1"),
        replace(record, epoch="another boot"),
        replace(record, orphans="kill"),
        replace(record, engine_pid=os.getpid()),
    ]
    assert [adopt(one) for one in strangers] == [None] * len(strangers)
    engine = adopt(record)
    assert engine is not None
    os.kill(record.guard_pid, signal.SIGSTOP)  # so that the stop has begun and not ended
    Path(record.status).write_text('{"stopping": true}')
    assert adopt(record) is None
    os.kill(record.guard_pid, signal.SIGCONT)
    await engine.stop(LONG)


async def test_a_record_whose_pids_are_others_by_now_harms_nobody(house: House) -> None:
    innocent = subprocess.Popen(["sleep", "600"], start_new_session=True, env={**os.environ, "TEST_MARK": house.mark})
    try:
        engine = await house.start(SERVES)
        await engine.stop(LONG)
        other = {"guard_pid": innocent.pid, "guard_start": "1", "engine_pid": innocent.pid, "engine_start": "1"}
        ending = await clear(replace(engine.record, **other))
        assert ending.text == "ended while no launcher watched it"
        row = guard.process(innocent.pid)
        assert row is not None
        same = {
            "guard_pid": innocent.pid,
            "guard_start": row.start,
            "engine_pid": innocent.pid,
            "engine_start": row.start,
        }
        await clear(replace(engine.record, epoch="before the machine was started anew", **same))
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


async def test_what_a_killed_launcher_and_guard_leave_is_cleared(house: House) -> None:
    record = killed_launcher(house, "adopt", "release", DEAF_FAMILY, lines=2)
    os.kill(record.guard_pid, signal.SIGKILL)
    await until(lambda: not alive(record.engine_pid), "the engine dies with its guard")
    assert alive(house.pid("daemon"))
    assert adopt(record) is None
    await asyncio.wait_for(clear(record), PATIENCE)
    assert marked(house.mark) == []


async def test_how_an_engine_ended_while_nobody_watched(house: House) -> None:
    source = "import os, time\nprint(flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nraise SystemExit(9)"
    record = killed_launcher(house, "adopt", "release", source, lines=1)
    (house.folder / "go").touch()
    await until(lambda: not alive(record.guard_pid), "it has ended")
    ending = await clear(record)
    assert (ending.status, ending.text, ending.asked) == (9, "exit status 9", False)
    assert not Path(record.status).exists()


async def test_closing_lets_a_released_engine_go_on_and_ends_another(house: House) -> None:
    kept, ended = await house.start(SERVES, orphans="adopt"), await house.start(SERVES, lines=2)
    kept.release()
    kept.close()
    ended.close()
    await until(lambda: not alive(ended.record.engine_pid), "the one that was not released has ended")
    assert alive(kept.record.engine_pid)
    os.waitpid(ended.record.guard_pid, 0)
    again = adopt(kept.record)
    assert again is not None
    await again.stop(LONG)
    os.waitpid(kept.record.guard_pid, 0)
