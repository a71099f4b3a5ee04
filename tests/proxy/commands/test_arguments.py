"""The table of commands: help that shows examples which parse, and a parser that imports nothing slow."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from proxy.cli import USAGE, _parser, main
from proxy.commands.arguments import COMMANDS
from tests.proxy.commands.support import ROOT

NAMES = [command.name for command in COMMANDS]
OTHERS = ["serve", "launch", "ps", "start", "stop", "logs", "reload"]


@pytest.mark.parametrize("name", NAMES + OTHERS)
def test_help_shows_examples_that_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out.partition("examples:\n")[2]
    examples = [re.split(r" {3,}", line.strip())[0] for line in shown.splitlines() if "illm " in line]
    assert examples
    for example in examples:
        words = shlex.split(example[example.index("illm ") :].partition(" < ")[0])
        end = words.index("--") if "--" in words else None
        assert hasattr(_parser().parse_args(words[1:end]), "run"), example


@pytest.mark.parametrize("name", NAMES)
def test_every_command_speaks_json_and_has_a_module_of_its_name(name: str) -> None:
    shape = {"chat": [], "embed": ["m", "x"], "smoke": ["http://x", "m"], "pull": ["m"]}.get(name, [])
    assert _parser().parse_args([name, *shape, "--json"]).json is True
    assert (ROOT / "proxy" / "commands" / f"{name}.py").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["smoke", "http://x"],
        ["smoke", "http://x", "m", "--timeout", "0"],
        ["smoke", "http://x", "m", "--config", "x"],
        ["embed", "m"],
        ["pull"],
        ["chat", "m", "--history", "-1"],
        ["models", "--framework", "gpt"],
        ["models", "--", "x"],
    ],
)
def test_arguments_that_are_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == USAGE
    said = capsys.readouterr().err
    assert "usage: illm" in said
    assert "_seconds" not in said


def test_the_parser_imports_nothing_slow() -> None:
    code = (
        "import sys, proxy.cli; proxy.cli._parser(); "
        "there = [name for name, module in sys.modules.items() if module is not None]; "
        "print([m for m in there if m.split('.')[0] in ('httpx', 'rich', 'uvicorn') or 'commands.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['proxy.commands.arguments']\n"


def test_what_only_a_terminal_needs_is_imported_only_there() -> None:
    modules = ", ".join(f"proxy.commands.{name}" for name in NAMES)
    code = f"import sys, {modules}; print([name for name in sys.modules if name.startswith('rich')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
