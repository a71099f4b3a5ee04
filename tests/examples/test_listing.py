"""No example is left out: each is in the list of docs/clients.md, runs in a test, and has the README's address."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.engines.gateway import ROOT
from tests.examples.support import EXAMPLES

ALL = sorted(path for path in EXAMPLES.iterdir() if path.is_file())


def test_the_list_is_whole() -> None:
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[([\w.]+)\]\(examples/", text, re.MULTILINE) != []
    assert sorted(re.findall(r"^\| \[([\w.]+)\]\(examples/\1\) \|", text, re.MULTILINE)) == [path.name for path in ALL]


def test_each_is_run() -> None:
    named: set[str] = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    assert [path.name for path in ALL if path.name not in named] == []


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_it_asks_this_machine_unless_told_otherwise(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    variable, url = ("ANTHROPIC", "") if path.name.startswith("anthropic") else ("OPENAI", "/v1")
    default = re.search(rf"{variable}_BASE_URL\W+(http://127\.0\.0\.1:8000[/\w]*)", text)
    assert default is not None
    assert default[1] == f"http://127.0.0.1:8000{url}"
    assert f"{variable}_API_KEY" in text
    if path.suffix == ".sh":
        assert path.stat().st_mode & 0o111 == 0o111
