"""The launcher as a process of its own, with the real one: started, found again, ended, and what is said where not."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy import launcher_process
from proxy.cli import FAILED, USAGE, main
from proxy.commands import serve as serving
from proxy.commands.source import Asked
from proxy.launcher_client import Address, LauncherError
from proxy.launcher_process import (
    Home,
    about,
    address,
    connectable,
    ensure,
    home,
    listens,
    see_end,
    state_root,
    tell_to_end,
)
from proxy.settings import LauncherSettings
from tests.engines.process import PATIENCE, answers, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = "engines: {mine: {kind: command, command: 'false {port}'}}\n"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a short name, as a socket's path may not be long. Whatever launcher runs in it is ended."""
    made = Path(tempfile.mkdtemp(prefix="illm-", dir="/tmp"))
    (made / "illm.yaml").write_text(SETTINGS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in [name for name in os.environ if name.startswith("ILLM_")]:
        monkeypatch.delenv(name)
    yield made
    for path in made.rglob("launcher.sock"):
        with suppress(LauncherError):
            tell_to_end(Address("left", f"unix:{path}"))
    shutil.rmtree(made)


@pytest.fixture
def place(folder: Path) -> Home:
    return home(folder / "state", "mine")


@pytest.fixture
def asked(folder: Path) -> Asked:
    return Asked(folder / "illm.yaml")


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_it_is_started_once_and_then_told_to_read_its_settings_anew(place: Home, asked: Asked) -> None:
    there = address(place, LauncherSettings())
    assert not listens(there)
    said = ensure(place, there, asked.source(), 321)
    first = about(there)
    assert said == f"Started the launcher (pid {first['pid']}; its log: {place.log})."
    assert os.getsid(first["pid"]) == first["pid"], "a session of its own: Ctrl-C in a terminal isn't its"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place.folder, place.log)] == [0o700, 0o600]
    if hasattr(resource, "prlimit"):
        assert resource.prlimit(first["pid"], resource.RLIMIT_NOFILE)[0] == 321

    assert (
        ensure(place, there, asked.source())
        == f"The launcher that runs already (pid {first['pid']}) read the settings anew."
    )
    assert about(there)["pid"] == first["pid"]

    tell_to_end(there)
    see_end(there)
    assert not listens(there)
    wait_until(lambda: not alive(first["pid"]), "it has ended, and is no zombie")


def test_settings_that_have_become_wrong_change_nothing(place: Home, asked: Asked) -> None:
    there = address(place, LauncherSettings())
    ensure(place, there, asked.source())
    assert asked.file is not None
    asked.file.write_text("engines: {mine: {kind: vlm}}\n")
    with pytest.raises(LauncherError, match=r"illm\.yaml:1: engines\.mine\.kind: 'vlm' is not one of"):
        ensure(place, there, asked.source())
    assert about(there)["pid"]


def test_a_launcher_that_does_not_start_is_quoted(place: Home, asked: Asked) -> None:
    place.make()
    place.log.write_text("from an earlier start\n")
    assert asked.file is not None
    asked.file.write_text("engines: {mine: {kind: vlm}}\n")
    with pytest.raises(
        LauncherError, match=r"did not start\. It said:\n(.*\n)*.*illm\.yaml:1: engines\.mine\.kind"
    ) as caught:
        ensure(place, address(place, LauncherSettings()), asked.source())
    assert "earlier" not in str(caught.value)


def test_a_launcher_that_never_answers_is_not_left_behind(
    place: Home, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = place.folder.parent / "pid"
    program = f"import os, time; open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(launcher_process, "command", lambda *_, **__: [sys.executable, "-c", program])
    monkeypatch.setattr(launcher_process, "PATIENCE", 1.0)
    with pytest.raises(LauncherError, match=r"did not answer within 1 s\. It said nothing"):
        ensure(place, address(place, LauncherSettings()), asked.source())
    wait_until(lambda: not alive(int(pids.read_text())), "it was ended")


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(LauncherError, match=r"can't be made: Not a directory\. Set launcher\.state"):
        Home(folder / "file" / "x").make()


def test_a_path_that_is_too_long_for_a_socket() -> None:
    assert home(Path("/" + "x" * 60), "y" * 20)
    with pytest.raises(LauncherError, match=r"longer than a socket's path may be .* Set launcher\.state"):
        home(Path("/" + "x" * 70), "y" * 20)


@pytest.mark.parametrize(
    ("setting", "environ", "folder"),
    [
        (None, {}, "~/.local/state/illm"),
        (None, {"XDG_STATE_HOME": "/s"}, "/s/illm"),
        (None, {"XDG_STATE_HOME": "relative"}, "~/.local/state/illm"),  # as the specification has it
        ("/mine", {"XDG_STATE_HOME": "/s"}, "/mine"),
        ("~/mine", {}, "~/mine"),
    ],
)
def test_where_launchers_live(setting: str | None, environ: dict[str, str], folder: str) -> None:
    assert state_root(setting, environ) == Path(folder).expanduser()


def test_where_orders_are_taken() -> None:
    place = Home(Path("/s"))
    assert address(place, LauncherSettings()) == Address("s", "unix:/s/launcher.sock", own=True)
    tcp = LauncherSettings.model_validate({"listen": "http://0.0.0.0:8090", "api_key": "k"})
    assert address(place, tcp) == Address("s", "http://127.0.0.1:8090", "k", own=True)
    assert connectable("http://[::]:1") == "http://[::1]:1"
    assert connectable("http://10.0.0.5:1") == "http://10.0.0.5:1"


def test_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        there = Address("x", f"http://127.0.0.1:{sock.getsockname()[1]}")
        assert listens(there)
    assert not listens(there)


# --- illm serve ----------------------------------------------------------------------------------------------------


def serve(folder: Path, port: int) -> subprocess.Popen[str]:
    words = ["serve", "--config", "illm.yaml", "--port", str(port)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "proxy.cli", *words],
        cwd=folder,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], how: signal.Signals, port: int) -> str:
    """What it said, from its start until a signal ended it."""
    try:
        wait_until(answers(f"http://127.0.0.1:{port}/livez"), "it serves")
        process.send_signal(how)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in err
    return err


def test_the_launcher_outlives_the_gateway_but_not_ctrl_c(folder: Path) -> None:
    port = free_port()
    first = ended(serve(folder, port), signal.SIGTERM, port)
    (socket_path,) = folder.rglob("launcher.sock")
    there = Address("its", f"unix:{socket_path}")
    pid = about(there)["pid"]
    assert first.startswith(f"Started the launcher (pid {pid}; its log: {socket_path.parent / 'launcher.log'}).\n")

    second = ended(serve(folder, port), signal.SIGINT, port)
    assert second.startswith(f"The launcher that runs already (pid {pid}) read the settings anew.\n")
    assert second.endswith(f"Stopping the launcher (pid {pid}) and its engines.\n")
    assert not listens(there)
    wait_until(lambda: not alive(pid), "it has ended")


def test_without_engines_there_is_no_launcher(folder: Path) -> None:
    (folder / "illm.yaml").write_text("backends: {a: {base_url: 'http://127.0.0.1:9'}}\n")
    port = free_port()
    assert "launcher" not in ended(serve(folder, port), signal.SIGINT, port)
    assert not list(folder.rglob("launcher.sock"))


# --- what it refuses, keeps and ends for ------------------------------------------------------------------------------


def test_an_engine_that_it_refuses_is_named_with_its_line_and_no_socket_is_left(place: Home, asked: Asked) -> None:
    assert asked.file is not None
    asked.file.write_text("engines:\n  mine:\n    kind: llamacpp\n    model: m\n    dtype: f16\n")
    said = r"did not start\. It said:\nillm launch: .*illm\.yaml:5: mine: llama\.cpp has no option `dtype`"
    with pytest.raises(LauncherError, match=said):
        ensure(place, address(place, LauncherSettings()), asked.source())
    assert not place.socket.exists()
    (problem,) = launcher_process.problems(asked.source())
    assert problem.startswith(f"{asked.file}:5: mine: llama.cpp has no option")
    asked.file.write_text("engines: {mine: {kind: vlm}}\n")
    (problem,) = launcher_process.problems(asked.source())
    assert "illm.yaml:1: engines.mine.kind: 'vlm' is not one of" in problem


def test_what_it_cannot_take_over_while_it_runs_is_said(place: Home, asked: Asked) -> None:
    there = address(place, LauncherSettings())
    ensure(place, there, asked.source())
    assert asked.file is not None
    asked.file.write_text(f"{SETTINGS}launcher: {{bind: 127.0.0.2, linger: 9s}}\n")
    assert "A change of launcher.bind takes effect when the launcher starts anew: `illm launch --stop`" in ensure(
        place, there, asked.source()
    )


def test_it_is_stopped_by_hand(
    folder: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ILLM_LAUNCHER__STATE", str(folder / "state"))
    words = ["launch", "--stop", "--config", str(asked.file)]
    assert main(words) == FAILED
    assert "no launcher runs for these settings" in capsys.readouterr().err
    mine = home(folder / "state", asked.label())
    there = address(mine, LauncherSettings())
    ensure(mine, there, asked.source())
    pid = about(there)["pid"]
    assert main([*words, "--leave"]) == FAILED
    assert "only with `launcher.orphans: adopt`" in capsys.readouterr().err
    assert main(words) == 0
    assert capsys.readouterr().out == f"Stopping the launcher (pid {pid}) and its engines.\n"
    wait_until(lambda: not alive(pid), "it has ended")
    assert main(["launch", "--leave"]) == USAGE


def test_it_goes_on_where_another_gateway_uses_it(
    folder: Path, place: Home, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    there = address(place, LauncherSettings())
    ensure(place, there, asked.source())
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(place.socket))
        other.sendall(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"200 OK" in other.recv(1000)
        serving._end_launcher(there)
        assert "The launcher goes on: 1 more gateway uses it." in capsys.readouterr().err
        pid = about(there)["pid"]
    serving._end_launcher(there)
    assert capsys.readouterr().err == f"Stopping the launcher (pid {pid}) and its engines.\n"
    assert not listens(there)
