"""Starting and stopping programs: what the fixtures of real engines rest on."""

import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.engines.process import PATIENCE, NotReady, ServerProcess, answers, free_port

SERVER = "import http.server as h, sys; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    print("child", os.getpid(), flush=True)
signal.pause()
"""


def python(source: str, folder: Path, *args: str) -> ServerProcess:
    port = free_port()
    return ServerProcess([sys.executable, "-c", source, str(port), *args], port=port, log=folder / "log")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_server_is_ready_when_it_answers_and_gone_when_stopped(tmp_path: Path) -> None:
    with python(SERVER, tmp_path) as server:
        server.wait_ready(answers(f"{server.base_url}/"))
        assert httpx.get(server.base_url, timeout=PATIENCE, trust_env=False).status_code == 200
        assert server.returncode is None
    assert server.returncode == -signal.SIGTERM
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.base_url, timeout=PATIENCE, trust_env=False)


def test_a_program_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    server = python("import sys; print('no such model'); sys.exit(3)", tmp_path)
    with pytest.raises(NotReady, match=r"ended with 3 .*\n.*no such model"):
        server.wait_ready(lambda: False)


def test_a_program_that_is_not_ready_in_time_is_stopped(tmp_path: Path) -> None:
    server = python("import signal; signal.pause()", tmp_path)
    with pytest.raises(NotReady, match=r"not ready within 0\.1 s"):
        server.wait_ready(lambda: False, 0.1)
    assert server.returncode is not None


def test_a_program_that_ignores_sigterm_goes_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.engines.process.TERM_GRACE", 0.1)
    server = python(STUBBORN, tmp_path).wait_ready(lambda: (tmp_path / "log").read_text().endswith("\n"))
    child = int(server.log_text().split()[1])
    assert alive(child)
    server.stop()
    assert server.returncode == -signal.SIGKILL
    assert not alive(child)
    server.stop()  # harmless
