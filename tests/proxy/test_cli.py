"""The command line as a person meets it: exit codes, plain words, no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import proxy.server
from proxy import __version__
from proxy.cli import USAGE, main
from proxy.settings import Settings
from tests.engines.process import PATIENCE


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine's, and no handlers on its log."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("ILLM_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("proxy.cli.logging.Logger.setLevel", lambda *_: None)  # it would stay for other tests


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What would be served."""
    given: list[Settings] = []
    monkeypatch.setattr(proxy.server, "serve", lambda settings, **_: given.append(settings))
    return given


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"illm {__version__}\n"


COMMANDS = ["serve", "launch", "ps", "start", "stop", "logs", "reload"]


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 0
    assert f"usage: illm {arguments[0] if len(arguments) > 1 else ''}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["serve", "--port", "x"],
        ["serve", "--framework", "gpt"],
        ["serve", "--nonsense"],
        ["serve", "gpt", "--model", "m"],
        ["launch", "openai", "--model", "m"],
        ["launch", "vllm", "--model", "m", "--device", "gpu"],
        ["start"],
        ["logs", "coder", "--tail", "-1"],
        ["ps", "--", "x"],
    ],
)
def test_arguments_that_are_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == USAGE
    assert "usage: illm" in capsys.readouterr().err


ARGUMENTS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {"port": 8000, "host": "127.0.0.1", "framework": None, "model": None, "embedding_model": None}),
    (["--port", "9000", "--host", "0.0.0.0"], {"port": 9000, "host": "0.0.0.0"}),
    (["--framework", "transformer"], {"framework": "transformers"}),
    (["--model", "m", "--embedding-model", "e"], {"model": "m", "embedding_model": "e"}),
]


@pytest.mark.parametrize(("arguments", "expected"), ARGUMENTS)
def test_arguments(arguments: list[str], expected: dict[str, Any], served: list[Settings]) -> None:
    assert main(["serve", *arguments]) == 0
    (settings,) = served
    found = {"port": settings.server.port, "host": settings.server.host, **settings.model_dump()}

    assert {name: found[name] for name in expected} == expected


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    served: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.yaml").write_text("framework: vllm\nmodel: file\nserver: {port: 1111}\n")
    monkeypatch.setenv("ILLM_MODEL", "environment")
    monkeypatch.setenv("ILLM_FRAMEWORK", "ollama")
    assert main(["serve", "--config", "my.yaml", "--model", "line"]) == 0
    (settings,) = served

    assert (settings.model, settings.framework, settings.server.port) == ("line", "ollama", 1111)


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("server:\n  prot: 1\n", ["my.yaml:2", "prot", "port"]),
        ("server: {port: high}\n", ["my.yaml:1", "server.port"]),
        ("a: [", ["my.yaml"]),
    ],
)
def test_settings_that_are_wrong(
    yaml: str, says: list[str], served: list[Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text(yaml)
    assert main(["serve", "--config", "my.yaml"]) == USAGE
    said = capsys.readouterr().err

    assert said.startswith("illm: ")
    assert all(word in said for word in says), said
    assert "Traceback" not in said
    assert not served


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "no.yaml"]) == USAGE
    assert "no.yaml" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: Any) -> str:
        return "another program"

    monkeypatch.setattr(proxy.server, "_who_answers", unknown)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == USAGE

    assert f"illm: Port {port} is taken: another program answers there." in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_ends_it(how: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    environment = os.environ | {"ILLM_VLLM_BASE_URL": "http://127.0.0.1:9", "ILLM_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy.cli", "serve"],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        first = next(line for line in process.stderr if "listening" in line)
        assert first == f"illm is listening on http://127.0.0.1:{port}/v1\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=PATIENCE) as reply:
            assert reply.status == 200
        process.send_signal(how)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()

    assert process.returncode in (0, -how)
    assert "Traceback" not in err
    assert json.loads(out)["path"] == "/v1/models", "the access log is written to the end"


@pytest.mark.parametrize("module", ["proxy.commands.serve, proxy.server", "proxy.commands.engines"])
def test_what_only_a_terminal_needs_is_imported_only_there(module: str) -> None:
    code = f"import sys; import proxy.cli, {module}; print([name for name in sys.modules if name.startswith('rich')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
