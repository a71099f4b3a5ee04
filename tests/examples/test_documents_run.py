"""What the documents show of clients, done as written: Python programs and curl commands against the demo engine, the
commands of `illm` against real engines. Only the address is another one.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.engines.gateway import ROOT, Gateway
from tests.engines.process import ServerProcess
from tests.examples.support import PATIENCE, environment, run_program

pytestmark = pytest.mark.slow

DOCUMENTS = [path for name in ("README.md", "README.zh.md", "docs/clients.md") if (path := ROOT / name).exists()]
SHOWN = "http://127.0.0.1:8000"


def fenced(language: str) -> Iterator[tuple[Path, int, str]]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield document, text.count("\n", 0, found.start()) + 1, found[1]


def commands(program: str) -> list[ParameterSet]:
    """The shown commands of that program, one to a test."""
    found = []
    for document, line, text in fenced("sh"):
        whole = text.replace("\\\n", " ")
        found += [
            pytest.param(one, id=f"{document.name}:{line} {number}")
            for number, one in enumerate(whole.splitlines())
            if shlex.split(one, comments=True)[:1] == [program]
        ]
    return found


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=f"{path.name}:{line}") for path, line, text in fenced("python")]
)
def test_python(
    text: str, newcomer: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(newcomer.base_url, "none").items():
        monkeypatch.setenv(name, value)
    assert SHOWN in text
    exec(compile(text.replace(SHOWN, newcomer.base_url), "document", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("line", commands("curl"))
def test_curl(line: str, newcomer: Gateway) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    assert SHOWN in line
    told = run_program(
        "sh", "-c", f"{line.replace(SHOWN, newcomer.base_url)} -sS --fail", settings=environment(newcomer.base_url)
    )
    assert told.startswith("{")


def test_there_is_something_to_run() -> None:
    assert len(list(fenced("python"))) >= 2
    assert len(commands("curl")) >= 3


@pytest.fixture
def named(llama_server: ServerProcess, llama_embed: ServerProcess, tmp_path: Path) -> Iterator[Gateway]:
    """Real engines under the names that the documents use."""
    config = (
        "discovery: {local: false}\n"
        f"backends: {{chat: {{kind: llamacpp, base_url: {llama_server.base_url}}},"
        f" embed: {{kind: llamacpp, base_url: {llama_embed.base_url}}}}}\n"
        "models:\n"
        "  qwen: {aliases: [Qwen/Qwen2.5-7B-Instruct], replicas: [{backend: chat, model: tiny-chat}]}\n"
        "  bge-m3: {replicas: [{backend: embed, model: tiny-embed}]}\n"
    )
    with Gateway(config, tmp_path) as gateway:
        yield gateway.wait_models("qwen", "bge-m3")


@pytest.mark.parametrize("line", commands("illm"))
def test_illm(line: str, named: Gateway, tmp_path: Path) -> None:
    words = shlex.split(line.replace(SHOWN, named.base_url), comments=True)[1:]
    if words[0] not in ("check", "models", "chat", "embed", "smoke"):
        pytest.skip(f"`illm {words[0]}` is tried elsewhere: it starts engines or needs Ollama")
    if words[0] == "check":
        words += ["--config", str(tmp_path / f"illm-{named.process.port}.yaml")]
    command = [sys.executable, "-m", "proxy.cli", *words]
    settings = {"ILLM_PORT": str(named.process.port), "PYTHONPATH": str(ROOT)}
    assert run_program(*command, settings=settings, cwd=tmp_path, text="Hello").strip()


@pytest.mark.parametrize("line", commands("python") + commands("docs/examples/curl_chat.sh"))
def test_examples_as_they_are_called(line: str, newcomer: Gateway) -> None:
    words = shlex.split(line, comments=True)
    command = [sys.executable, *words[1:]] if words[0] == "python" else words
    if words[0] != "python" and shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    told = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment(newcomer.base_url, "none"), "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert 'You said: "Hello"' in told.stdout or 'You said: \\"Hello\\"' in told.stdout
