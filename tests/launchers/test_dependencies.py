"""Finding an engine's program, and installing it: real environments and a real pip, without any network."""

import asyncio
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from launchers import dependencies, errand
from launchers.dependencies import InstallFailed, Missing
from launchers.engines.base import Engine, Place
from launchers.engines.table import ENGINES, launch
from launchers.spec import Kind
from tests.engines.process import PATIENCE, StillSo
from tests.launchers.engines.specs import spec

NAME = "illm-tiny-engine"


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the path, besides the one of this Python, which has no engines."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-of-the-launcher"))
    return folder


def program(folder: Path, name: str, script: str = "exit 0") -> str:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


def tiny(packages: tuple[str, ...] = (NAME,)) -> Engine:
    """An engine that is installed in a moment."""
    vllm = ENGINES["vllm"]
    return replace(vllm, title="Tiny", program=(NAME,), install=replace(vllm.install, packages=packages))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which is all that pip knows."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "illm_tiny_engine-1.0.dist-info"
    with zipfile.ZipFile(folder / "illm_tiny_engine-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("illm_tiny_engine.py", "def main():\n    print('tiny engine')\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{NAME} = illm_tiny_engine:main\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


# --- finding ---


def test_a_program_on_the_path(bin_folder: Path, tmp_path: Path) -> None:
    found = program(bin_folder, "vllm")
    assert dependencies.find(spec("vllm"), ENGINES["vllm"], tmp_path) == (found, "serve")


def test_a_program_beside_this_python_whose_environment_is_not_active(bin_folder: Path, tmp_path: Path) -> None:
    found = program(tmp_path, "vllm")
    assert dependencies.find(spec("vllm"), ENGINES["vllm"], tmp_path / "envs") == (found, "serve")


def test_command_stands_for_the_program(bin_folder: Path, tmp_path: Path) -> None:
    other = program(tmp_path, "my-vllm")
    found = dependencies.find(spec("vllm", command=(other,)), ENGINES["vllm"], tmp_path)
    assert found == (other, "serve")
    server = (other, "-m", "llama_cpp.server")
    assert dependencies.find(spec("llamacpp", command=server), ENGINES["llamacpp"], tmp_path) == server


def test_a_module_is_looked_for_in_a_python(bin_folder: Path, tmp_path: Path) -> None:
    python = program(bin_folder, "python3", 'test "$3" = sglang')
    words = (python, "-m", "sglang.launch_server")
    assert dependencies.find(spec("sglang"), ENGINES["sglang"], tmp_path) == words
    program(bin_folder, "python3", "exit 1")  # it hasn't got it
    with pytest.raises(Missing, match=r"pip install 'sglang\[all\]'"):
        dependencies.find(spec("sglang"), ENGINES["sglang"], tmp_path)


def test_a_container_needs_docker_alone(bin_folder: Path, tmp_path: Path) -> None:
    told = spec("tgi", image="tgi:latest")
    with pytest.raises(Missing, match="no `docker` on the path"):
        dependencies.find(told, ENGINES["tgi"], tmp_path)
    docker = program(bin_folder, "docker")
    assert dependencies.find(told, ENGINES["tgi"], tmp_path) == (docker,)


def test_an_installed_environment_counts_only_when_it_is_complete(bin_folder: Path, tmp_path: Path) -> None:
    env = tmp_path / "vllm"
    env.mkdir()
    with pytest.raises(Missing):
        dependencies.find(spec("vllm"), ENGINES["vllm"], tmp_path)
    (env / dependencies.STAMP).touch()
    words = dependencies.find(spec("vllm"), ENGINES["vllm"], tmp_path)
    assert words == (str(env / "bin/vllm"), "serve")


@pytest.mark.parametrize("kind", [kind for kind in ENGINES if kind != "command"])
def test_what_is_missing_comes_with_how_to_have_it(kind: Kind, bin_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Missing) as missing:
        dependencies.find(spec(kind), ENGINES[kind], tmp_path)
    said = str(missing.value)
    assert said.startswith(f"one needs {ENGINES[kind].title}, and there is no `")
    assert ENGINES[kind].install.advice in said
    assert ("ILLM_AUTO_INSTALL" in said) == bool(ENGINES[kind].install.packages)


def test_a_command_that_is_not_there(bin_folder: Path, tmp_path: Path) -> None:
    told = spec("command", command=("no-such-program", "{port}"))
    with pytest.raises(Missing, match="no program 'no-such-program' here"):
        dependencies.find(told, ENGINES["command"], tmp_path)
    there = program(bin_folder, "no-such-program")
    assert dependencies.find(told, ENGINES["command"], tmp_path)[0] == there


# --- installing ---


async def test_it_is_installed_found_and_works(wheels: Path, tmp_path: Path) -> None:
    envs, said = tmp_path / "a" / "envs", []
    engine = tiny()
    await dependencies.install(engine, envs, lambda text, share: said.append(text))
    words = dependencies.find(spec("vllm"), engine, envs)
    assert words == (str(envs / "vllm/bin" / NAME),)
    assert subprocess.run(words, capture_output=True, check=True).stdout == b"tiny engine\n"
    assert said == ["installing Tiny: making its environment", "installing Tiny: unpacking"]
    said.clear()
    await dependencies.install(engine, envs, lambda text, share: said.append(text))  # it is there
    assert said == []


class QuietIndex(SimpleHTTPRequestHandler):
    """A package index: a folder for each package."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
async def test_what_pip_fetches_is_said(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "index" / NAME
    packages.mkdir(parents=True)
    shutil.copy(next(wheels.iterdir()), packages)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietIndex, directory=str(packages.parent))) as index:
        Thread(target=index.serve_forever, daemon=True).start()
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.server_port}/")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        said: list[str] = []
        await dependencies.install(tiny(), tmp_path / "envs", lambda text, share: said.append(text))
        index.shutdown()
    assert said[1] == f"installing Tiny: collecting {NAME}"
    assert said[2].startswith("installing Tiny: downloading ")
    assert "illm_tiny_engine-1.0-py3-none-any.whl" in said[2]


@pytest.mark.slow
async def test_a_failure_has_pips_last_words_and_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    envs = tmp_path / "envs"
    with pytest.raises(InstallFailed) as failed:
        await dependencies.install(tiny(("no-such-package",)), envs, lambda text, share: None)
    assert "Tiny could not be installed" in str(failed.value)
    assert "No matching distribution found for no-such-package" in str(failed.value)
    assert not (envs / "vllm").exists()


@pytest.mark.slow
async def test_a_half_made_environment_is_made_anew(wheels: Path, tmp_path: Path) -> None:
    remains = tmp_path / "vllm" / "bin" / "python"
    remains.mkdir(parents=True)  # no program at all
    await dependencies.install(tiny(), tmp_path, lambda text, share: None)
    assert remains.is_file()


async def test_what_cannot_be_installed_says_so(tmp_path: Path) -> None:
    with pytest.raises(InstallFailed, match="Ollama can't be installed for you"):
        await dependencies.install(ENGINES["ollama"], tmp_path, lambda text, share: None)


@pytest.fixture
def hanging(wheels: Path, tmp_path: Path) -> Path:
    """A package whose build never ends, whatever it is politely told; the file with its process's number."""
    pid = tmp_path / "pid"
    backend = (
        "import os, signal, pathlib, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    source = tmp_path / "hanging"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "hanging"\nversion = "1"\n'
    )
    (source / "backend.py").write_text(backend)
    return pid


async def until(condition: Callable[[], object], what: str) -> None:
    """Polls; raises StillSo."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.02)
            return
    raise StillSo(what)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


@pytest.mark.slow
async def test_cancelled_it_ends_all_that_pip_started_and_leaves_nothing(
    hanging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errand, "GRACE", 0.2)
    envs = tmp_path / "envs"
    installing = asyncio.create_task(
        dependencies.install(tiny((str(hanging.with_name("hanging")),)), envs, lambda text, share: None)
    )
    await until(lambda: hanging.exists() and hanging.read_text(), "the build runs")
    pid = int(hanging.read_text())
    assert alive(pid)
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    await until(lambda: not alive(pid), "the build has ended")
    assert not (envs / "vllm").exists()


@pytest.mark.slow
async def test_only_one_at_a_time(hanging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errand, "GRACE", 0.2)
    envs, said = tmp_path / "envs", []
    first = asyncio.create_task(
        dependencies.install(tiny((str(hanging.with_name("hanging")),)), envs, lambda text, share: None)
    )
    await until(hanging.exists, "the build runs")
    second = asyncio.create_task(dependencies.install(tiny(), envs, lambda text, share: said.append(text)))
    await until(lambda: said, "the second one waits")
    assert said == ["installing Tiny: waiting for another installation"]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second
    assert dependencies.find(spec("vllm"), tiny(), envs) == (str(envs / "vllm/bin" / NAME),)


def test_what_is_found_is_what_is_launched(bin_folder: Path, tmp_path: Path) -> None:
    found = program(bin_folder, "infinity_emb")
    told = spec("infinity")
    place = Place("127.0.0.1", 1, dependencies.find(told, ENGINES["infinity"], tmp_path))
    assert launch(told, place).argv[:2] == (found, "v2")
