"""`illm pull`: which Ollama downloads, how far it is, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.commands.pull import LOCAL
from tests.proxy.commands.support import SECRET, Scripted, begin, ended, illm, scripted, terminal
from tests.proxy.harness import PATIENCE, Got, Handler, Line
from tests.proxy.scripted_launcher import launcher, row

pytestmark = pytest.mark.slow

GB = 1_000_000_000
IS_OLLAMA = {
    "/v1/models": {"object": "list", "data": [{"id": "old", "owned_by": "library"}]},
    "/api/tags": {"models": [{"name": "old", "model": "old"}]},
    "/api/version": {"version": "0.12.0"},
}
STEPS: tuple[dict[str, Any], ...] = (
    {"status": "pulling manifest"},
    {"status": "pulling aabbcc", "digest": "sha256:aabbcc", "total": 4 * GB},
    {"status": "pulling aabbcc", "digest": "sha256:aabbcc", "total": 4 * GB, "completed": GB},
    {"status": "pulling aabbcc", "digest": "sha256:aabbcc", "total": 4 * GB, "completed": GB + 1},
    {"status": "pulling aabbcc", "digest": "sha256:aabbcc", "total": 4 * GB, "completed": 4 * GB},
    {"status": "verifying sha256 digest"},
    {"status": "success"},
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, as a launcher's socket lies in it."""
    path = Path(tempfile.mkdtemp(prefix="illm-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def _nobody_on_the_usual_port() -> None:
    with socket.socket() as sock:
        if sock.connect_ex(("127.0.0.1", int(LOCAL.rpartition(":")[2]))) == 0:
            pytest.skip("an Ollama of this machine's own answers on its usual port")


def tells(*steps: Any, end: bool = True) -> Handler:
    async def answers(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "application/x-ndjson"})
        for step in steps:
            await line.chunk(json.dumps(step).encode() + b"\n")
        if end:
            await line.end()
        else:
            await line.closed.wait()

    return answers


def ollama(*steps: Any, **how: Any) -> Any:
    return scripted(tells(*(steps or STEPS), **how), about=IS_OLLAMA)


def settings(folder: Path, **backends: Scripted | str) -> None:
    configs = folder / "configs"
    configs.mkdir(exist_ok=True)
    entries = {name: {"base_url": one if isinstance(one, str) else one.root} for name, one in backends.items()}
    (configs / "illm.yaml").write_text(json.dumps({"backends": entries}))


async def test_into_a_pipe_it_tells_each_step_and_each_tenth(folder: Path) -> None:
    async with ollama() as one, scripted() as vllm:
        settings(folder, laptop=f"{one.root}/v1", fast=vllm)
        said = await illm(folder, "pull", "qwen2.5:0.5b")

    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        "qwen2.5:0.5b: pulling manifest",
        "qwen2.5:0.5b: pulling aabbcc 0% of 3.7 GiB",
        "qwen2.5:0.5b: pulling aabbcc 25% of 3.7 GiB",
        "qwen2.5:0.5b: pulling aabbcc 100% of 3.7 GiB",
        "qwen2.5:0.5b: verifying sha256 digest",
        "qwen2.5:0.5b: success",
        f"qwen2.5:0.5b is there (laptop at {one.root}).",
    ]
    (got,) = one.got
    assert (got.path, got.json) == ("/api/pull", {"model": "qwen2.5:0.5b", "stream": True})
    assert not vllm.got


async def test_for_programs(folder: Path) -> None:
    async with ollama() as one:
        said = await illm(folder, "pull", "m", "--backend", one.root, "--json")
    assert said.status == 0
    assert [json.loads(line) for line in said.out.splitlines()] == list(STEPS)


async def test_on_a_terminal_there_is_a_bar(folder: Path) -> None:
    async with ollama(*STEPS[:3], end=False) as one, terminal(folder, "pull", "m", "--backend", one.root) as there:
        await there.says("m: pulling")
        await there.says("1.0/4.0 GB")
        there.type("\x03")
        await there.says("illm: stopped. The same command goes on where it stopped.")
        assert await asyncio.wait_for(there.process.wait(), PATIENCE) == 130


async def test_an_interrupt_ends_the_request(folder: Path) -> None:
    async with ollama(*STEPS[:3], end=False) as one:
        process = await begin(folder, "pull", "m", "--backend", one.root)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"m: pulling manifest\n"
        process.send_signal(signal.SIGINT)
        said = await ended(process)
        await asyncio.wait_for(one.lines[-1].closed.wait(), PATIENCE)
    assert (said.status, said.err) == (130, "illm: stopped. The same command goes on where it stopped.\n")


# --- which one -----------------------------------------------------------------------------------------------------


async def test_several_must_be_told_apart(folder: Path) -> None:
    async with ollama() as one, ollama() as other:
        settings(folder, laptop=one, desk=other)
        said = await illm(folder, "pull", "m")
        named = await illm(folder, "pull", "m", "--backend", "desk")
        nobody = await illm(folder, "pull", "m", "--backend", "dusk")

    assert said.status == 2
    assert said.err == (
        f"illm: there are several Ollamas: laptop ({one.root}), desk ({other.root}). Say which one: --backend NAME\n"
    )
    assert named.status == 0
    assert (len(one.got), len(other.got)) == (0, 1)
    assert nobody.status == 2
    assert "there is no backend 'dusk' that could be an Ollama. There are: laptop, desk" in nobody.err


async def test_one_that_a_launcher_runs(folder: Path) -> None:
    home = folder / "illm" / "mine-1"
    home.mkdir(parents=True)
    async with ollama() as one:
        ready = row("small", "ready", kind="ollama", base_url=one.root, api_key=SECRET)
        async with launcher(home, ready, row("other", "stopped", kind="ollama")):
            said = await illm(folder, "pull", "m")
    assert said.out.splitlines()[-1] == f"m is there (small at {one.root})."


async def test_none_at_all(folder: Path) -> None:
    async with scripted() as vllm:
        settings(folder, fast=vllm)
        said = await illm(folder, "pull", "m")
    assert said.status == 1
    assert said.err.startswith(
        f"illm: no Ollama answers (asked: fast), and none does at {LOCAL}. Start it (ollama serve"
    )


# --- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (({"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}),
         "m could not be pulled: Ollama at {root} broke off: pull model manifest: file does not exist. "
         "See https://ollama.com/library for names"),
        (STEPS[:3], "Ollama at {root} ended without success. The same command goes on where it stopped."),
        ((["x"],), "Ollama at {root} answered with something that is no news of a download. Is it an Ollama?"),
    ],
)  # fmt: skip
async def test_a_download_that_fails(folder: Path, steps: tuple[Any, ...], says: str) -> None:
    async with ollama(*steps) as one:
        said = await illm(folder, "pull", "m", "--backend", one.root)
    assert (said.status, said.err) == (1, f"illm: {says.format(root=one.root)}\n")


async def test_a_refusal_and_nobody(folder: Path) -> None:
    async def refuses(_: Got, line: Line) -> None:
        await line.reply(400, b'{"error": "invalid model name"}')

    async with scripted(refuses) as one:
        said = await illm(folder, "pull", "m", "--backend", one.root)
    nobody = await illm(folder, "pull", "m", "--backend", "http://127.0.0.1:9")

    assert said.status == nobody.status == 1
    assert said.err == f"illm: m could not be pulled: Ollama at {one.root} answered 400: invalid model name\n"
    assert nobody.err.startswith("illm: Ollama at http://127.0.0.1:9: connection refused.")
