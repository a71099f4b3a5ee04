"""An engine's log: real files, written to as engines do, read as people do; and the lines that tell why it failed."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from launchers import logs
from launchers.last_words import CHARACTERS, telling
from launchers.logs import EngineLog
from tests.engines.process import PATIENCE, wait_until


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., EngineLog]]:
    made: list[EngineLog] = []

    def make(**options: Any) -> EngineLog:
        made.append(EngineLog(tmp_path / "logs" / "one.log", **options))
        return made[-1]

    yield make
    for log in made:
        log.close()


class Engine:
    """Whoever writes: the descriptor that an engine would have."""

    def __init__(self, log: EngineLog) -> None:
        self.fd = log.open()

    def write(self, text: str | bytes) -> None:
        os.write(self.fd, text.encode() if isinstance(text, str) else text)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


@asynccontextmanager
async def following(log: EngineLog) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(log.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_as_people_see_them(make: Callable[..., EngineLog]) -> None:
    log = make(hide=("key", "key-long", ""))
    with Engine(log) as engine:
        engine.write(b"plain\n\n\x1b[1;32mgreen\x1b[0m \x1b]0;title\x07and\x1b(B more\ttab\x00\x08\n")
        engine.write("Grüße \r\n".encode() + b"bad \xff byte\n")
        engine.write("my key-long and key\n")
    assert log.last(10) == ["plain", "", "green and more\ttab", "Grüße ", "bad \ufffd byte", "my *** and ***"]
    assert log.last(2) == ["bad \ufffd byte", "my *** and ***"]
    assert log.last(0) == []


def test_a_line_that_comes_in_pieces(make: Callable[..., EngineLog]) -> None:
    log = make()
    heard: list[str] = []
    text = "één\r\ntwo\rthree\n\r\nfour\n".encode()
    with Engine(log) as engine, log.listening(heard.append):
        for place in range(len(text)):
            engine.write(text[place : place + 1])
            log.look()
    assert heard == ["één", "two", "three", "", "four"]
    assert log.last(9) == ["één", "three", "", "four"]


def test_a_progress_bar_is_one_line_that_is_heard_each_time(make: Callable[..., EngineLog]) -> None:
    log = make()
    heard: list[str] = []
    with Engine(log) as engine, log.listening(heard.append):
        engine.write("begin\n")
        for percent in (0, 50, 100):
            engine.write(f"\rloading {percent}%")
            log.look()
        assert log.last(9) == ["begin", "loading 100%"]  # also what has no end yet
        engine.write("\n")
        engine.write("end\n")
        assert log.last(9) == ["begin", "loading 100%", "end"]
    assert [heard.index(f"loading {percent}%") for percent in (0, 50, 100)] == [1, 2, 3]


def test_a_line_without_an_end_is_shown_and_then_completed(make: Callable[..., EngineLog]) -> None:
    log = make()
    with Engine(log) as engine:
        engine.write("first\nload")
        log.look()
        assert log.last(9) == ["first", "load"]
        engine.write("ed\nnext\n")
        assert log.last(9) == ["first", "loaded", "next"]


def test_memory_is_bounded(make: Callable[..., EngineLog]) -> None:
    log = make(ring=5)
    with Engine(log) as engine:
        engine.write(b"x" * 100_000)
        log.look()
        assert max(map(len, log.last(9))) <= logs.LONGEST
        assert len(log._partial) <= logs.LONGEST
        engine.write(b"\n" + b"".join(b"%d\n" % number for number in range(1000)))
        assert log.last(9) == ["995", "996", "997", "998", "999"]
        engine.write(b"flood\n" * 1_000_000 + b"last\n")
        log.look()
    assert log.last(9)[-2:] == ["flood", "last"]


def test_what_an_earlier_launcher_left_is_shown_but_not_heard(make: Callable[..., EngineLog]) -> None:
    with Engine(make()) as engine:
        engine.write("before\n")
        log = make()
        log.mark("now")
        heard: list[str] = []
        with log.listening(heard.append):
            engine.write("after\n")
            log.look()
        assert heard == ["after"]
        assert log.last(9)[0] == "before"
        assert log.since_mark(9) == ["after"]


def test_a_listener_hears_what_was_said_since_the_mark(make: Callable[..., EngineLog]) -> None:
    log = make()
    with Engine(log) as engine:
        engine.write("the run before, cut off")
        log.mark("one: llama-server\n--model x")
        engine.write("early\n")
        log.look()
        heard: list[str] = []
        with log.listening(heard.append):
            engine.write("late\n")
            log.look()
        engine.write("unheard\n")
        log.look()
    assert heard == ["early", "late"]
    assert log.last(5)[0] == "the run before, cut off"
    assert log.last(5)[1].startswith("=== illm starts ")
    assert log.last(5)[1].endswith(" one: llama-server --model x")


def test_only_the_owner_can_read_the_file(make: Callable[..., EngineLog]) -> None:
    log = make()
    with Engine(log):
        assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


# --- following -------------------------------------------------------------------------------------------------------


async def test_following_a_program(make: Callable[..., EngineLog]) -> None:
    log = make()
    with Engine(log) as engine:
        engine.write("one\ntwo\nthree\n")
        async with following(log) as task:
            await until(lambda: log.last(1) == ["three"], "the lines were read")
            lines, others = log.follow(2), log.follow(0)
            assert [await anext(lines), await anext(lines)] == ["two", "three"]
            source = "print('four', flush=True); print('five', flush=True)"
            second = asyncio.ensure_future(anext(others))
            await asyncio.sleep(0)
            subprocess.run([sys.executable, "-c", source], stdout=engine.fd, check=True)
            async with asyncio.timeout(PATIENCE):
                assert [await anext(lines), await anext(lines)] == ["four", "five"]
                assert await second == "four"
            engine.write("six\n")
            task.cancel()
            async with asyncio.timeout(PATIENCE):
                assert [line async for line in lines] == ["six"]
                assert [line async for line in others] == ["five", "six"]


async def test_a_slow_follower_is_told_what_it_missed(make: Callable[..., EngineLog]) -> None:
    log = make(ring=3)
    with Engine(log) as engine:
        lines = log.follow(5)
        engine.write("a\n")
        log.look()
        assert await anext(lines) == "a"
        engine.write("b\nc\nd\ne\nf\n")
        log.look()
        assert await anext(lines) == f"=== illm: lines are left out here; {log.path} has them"
        assert [await anext(lines) for _ in range(3)] == ["d", "e", "f"]
        await lines.aclose()


async def test_rotation_keeps_the_file_small_while_the_engine_writes_on(
    make: Callable[..., EngineLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "TICK", 0.01)
    log = make(max_bytes=2000, keep=2, ring=50)
    folder = log.path.parent
    with Engine(log) as engine:
        async with following(log):
            for part in range(4):
                engine.write("".join(f"{part}-{number:05d}\n" for number in range(300)))
                await until(lambda: log.path.stat().st_size == 0, "it was rotated")
            engine.write("the end\n")
            await until(lambda: log.last(1) == ["the end"], "the new file is followed")
    assert sorted(file.name for file in folder.iterdir()) == ["one.log", "one.log.1", "one.log.2"]
    assert log.path.read_text() == "the end\n"
    assert (folder / "one.log.1").read_text().splitlines()[0::299] == ["3-00000", "3-00299"]
    assert (folder / "one.log.2").read_text().splitlines()[0::299] == ["2-00000", "2-00299"]
    assert stat.S_IMODE((folder / "one.log.1").stat().st_mode) == 0o600
    assert log.last(50)[-2:] == ["3-00299", "the end"]


async def test_a_disk_without_room_for_a_copy_still_gets_its_log_cut(make: Callable[..., EngineLog]) -> None:
    log = make(max_bytes=100, keep=1)
    with Engine(log) as engine:
        (log.path.parent / "one.log.1").mkdir()  # no file can be written there
        engine.write("x" * 200 + "\n")
        async with following(log):
            await until(lambda: log.path.stat().st_size == 0, "it was cut")


def test_somebody_else_cuts_or_removes_the_file(make: Callable[..., EngineLog]) -> None:
    log = make()
    with Engine(log) as engine:
        engine.write("one line, not short\n")
        log.look()
        os.truncate(log.path, 0)
        log.look()
        engine.write("two\n")
        assert log.last(1) == ["two"]
        log.path.unlink()
        engine.write("three\n")
        assert log.last(1) == ["three"]
    with Engine(log) as engine:
        engine.write("four\n")
        assert log.last(2) == ["three", "four"]
    assert log.path.read_text() == "four\n"


def test_a_closed_log_still_shows_what_it_read(make: Callable[..., EngineLog]) -> None:
    log = make()
    with Engine(log) as engine:
        engine.write("kept\n")
        log.close()
        engine.write("not read any more\n")
    assert log.last(5) == ["kept"]


# --- last words ------------------------------------------------------------------------------------------------------

VLLM = """\
INFO 01-01 10:00:00 [core.py:1] Initializing a V1 LLM engine
(EngineCore_0 pid=9) ERROR 01-01 10:00:01 [core.py:700] EngineCore failed to start.
(EngineCore_0 pid=9) ERROR 01-01 10:00:01 [core.py:700] Traceback (most recent call last):
(EngineCore_0 pid=9) ERROR 01-01 10:00:01 [core.py:700]   File "/x/vllm/core.py", line 691, in run_engine_core
(EngineCore_0 pid=9) ERROR 01-01 10:00:01 [core.py:700]     raise ValueError("never to be seen")
(EngineCore_0 pid=9) ERROR 01-01 10:00:01 [core.py:700]     ^^^^^^^^^^^^^^^^^^^^^
(EngineCore_0 pid=9) ERROR 01-01 10:00:01 [core.py:700] ValueError: Free memory on device (3.1/80 GiB) is too little.
(EngineCore_0 pid=9) Process EngineCore_0:
(EngineCore_0 pid=9) Traceback (most recent call last):
(EngineCore_0 pid=9)   File "/x/vllm/core.py", line 691, in run_engine_core
(EngineCore_0 pid=9)     raise ValueError("never to be seen")
(EngineCore_0 pid=9) ValueError: Free memory on device (3.1/80 GiB) is too little.

Traceback (most recent call last):
  File "/x/bin/vllm", line 8, in <module>
    sys.exit(main())
             ^^^^^^
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

LLAMA = """\
build: 6000 (abc)
main: loading model
gguf_init_from_file: failed to open GGUF file 'x.gguf' (No such file or directory)
llama_model_load: error loading model: llama_model_loader: failed to load model from x.gguf
srv    load_model: failed to load model, 'x.gguf'
srv    operator(): cleaning up before exit...
main: exiting due to model loading error
"""


def test_the_first_cause_is_told_and_no_traceback() -> None:
    words = telling(VLLM.splitlines(), 20)
    assert "ValueError: Free memory on device (3.1/80 GiB) is too little." in words[1]
    assert words[-1].startswith("RuntimeError: Engine core initialization failed.")
    assert not [line for line in words if "Traceback" in line or 'File "' in line or "never" in line or "^^" in line]
    assert len(telling(VLLM.splitlines(), 2)) == 2
    assert telling(VLLM.splitlines(), 2)[-1] == words[-1]


def test_what_llama_server_says_of_a_missing_file() -> None:
    words = telling(LLAMA.splitlines(), 20)
    assert words[0].endswith("(No such file or directory)")
    assert words[-1] == "main: exiting due to model loading error"
    assert "main: loading model" not in words


def test_where_nothing_is_wrong_the_end_is_told() -> None:
    assert telling([f"line {number}" for number in range(100)], 3) == ["line 97", "line 98", "line 99"]
    assert telling([], 3) == []
    assert telling(["", "  "], 3) == []


def test_what_follows_the_last_complaint_is_told_too_and_repetitions_once() -> None:
    lines = [*["error: full"] * 50, "error: at last", *(f"after {number}" for number in range(50))]
    assert telling(lines, 6) == ["error: full", "error: at last", "after 0", "after 1"]


def test_last_words_are_short() -> None:
    words = telling(["error: " + "x" * 5000, *(f"error {number}: {'y' * 300}" for number in range(50))], 20)
    assert len("\n".join(words)) <= CHARACTERS
    assert words[-1].startswith("error 49")
    assert len(telling(["x" * 5000], 20)[0]) <= 400


def test_last_words_are_of_the_last_start(make: Callable[..., EngineLog]) -> None:
    log = make(hide=("hidden-key",))
    with Engine(log) as engine:
        engine.write("error: of the run before\n")
        log.mark("again")
        engine.write("fine\nerror: key hidden-key is wrong")
        assert log.last_words() == "error: key *** is wrong"
