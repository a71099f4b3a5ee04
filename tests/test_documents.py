"""The documents against the code: links, examples, commands, tables and names. What the prose means is not here."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args
from xml.etree import ElementTree

import pytest
import yaml

from proxy.cli import _parser
from proxy.dialects.base import Endpoint, EngineKind
from proxy.dialects.openai.paths import PATHS
from proxy.discovery import LOCAL_PORTS
from proxy.endpoints import RELAYED
from proxy.errors import KINDS
from proxy.settings import NAMES, Settings, SettingsError, load_settings

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README, ENGINES, ERRORS = ROOT / "README.md", ROOT / "docs" / "engines.md", ROOT / "docs" / "errors.md"
ARCHITECTURE, CONFIGURATION = ROOT / "docs" / "architecture.md", ROOT / "docs" / "configuration.md"

# What the commands of the examples are called that are no programs of this project.
FOREIGN = frozenset(
    ("cp", "curl", "docker", "export", "git", "infinity_emb", "llama-server", "ollama", "open-webui", "pip", "python")
) | frozenset(("text-embeddings-router", "text-generation-launcher", "transformers", "vllm", "vllm-router"))
FOLDERS = ("proxy", "launchers", "configs", "tests", "benchmarks", "scripts", "docs", ".ci")


class Block(NamedTuple):
    """A fenced example."""

    document: Path
    line: int
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def of(language: str) -> list[Any]:
    found = [block for block in blocks() if block.language == language]
    return [pytest.param(block, id=f"{block.document.name}:{block.line}") for block in found]


def prose(document: Path) -> str:
    """The text without its fenced examples."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def rows(document: Path, first: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so, heading and rule included."""
    lines = document.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    table: list[list[str]] = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def anchors(document: Path) -> set[str]:
    """What a link may name behind '#', as the usual sites make it of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- links and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    broken = []
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(document: Path) -> None:
    if document.name == "CHANGELOG.md":
        return  # it may tell of what was
    named = re.findall(rf"`((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*)", document.read_text(encoding="utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_one(document: Path) -> None:
    def known(variable: str) -> bool:
        if variable in NAMES.short or variable in NAMES.ignored:
            return True
        first, _, rest = variable.removeprefix("ILLM_").lower().partition("__")
        kind = Settings.model_fields.get(first)
        return kind is not None and (not rest or _has(Settings.model_json_schema(), first, rest))

    named = re.findall(r"\bILLM_[A-Z][A-Z_]*[A-Z]\b", document.read_text(encoding="utf-8"))
    assert [name for name in named if not known(name)] == []


def _has(schema: dict[str, Any], section: str, rest: str) -> bool:
    node = schema["properties"][section]
    free = "additionalProperties" in node
    definition = schema["$defs"][(node["additionalProperties"] if free else node)["$ref"].rpartition("/")[2]]
    return rest.split("__")[-1] in definition["properties"] and rest.count("__") == free


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", index.read_text(encoding="utf-8"))}
    assert [
        path.name for path in sorted((ROOT / "docs").glob("*.md")) if path != index and path.name not in linked
    ] == []


# --- examples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_is_good_settings(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "illm.yaml"
    path.write_text(block.text, encoding="utf-8")
    assert load_settings(path, {}).explicit


@pytest.mark.parametrize("block", of("yml"))
def test_yaml_of_other_programs_is_none_of_ours(block: Block, tmp_path: Path) -> None:
    """It would be checked as settings if it were called `yaml`."""
    assert isinstance(yaml.safe_load(block.text), dict)
    path = tmp_path / "illm.yaml"
    path.write_text(block.text, encoding="utf-8")
    with pytest.raises(SettingsError):
        load_settings(path, {})


@pytest.mark.parametrize("block", of("json"))
def test_json_parses(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles(block: Block) -> None:
    compile(block.text, f"{block.document.name}:{block.line}", "exec")


@pytest.mark.parametrize("block", of("sh"))
def test_commands_are_there(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in FOREIGN:
            continue
        if words[0] == "illm":
            _parser().parse_args(words[1 : words.index("--") if "--" in words else None])  # exits where it's wrong
            continue
        assert (ROOT / words[0]).stat().st_mode & 0o100, f"{words[0]} is no program of this project"


@pytest.mark.parametrize("block", of("sh"))
def test_the_bodies_that_curl_sends_are_json(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for option, value in pairwise(words):
            if option == "-d":
                json.loads(value)


def test_every_example_says_what_it_is() -> None:
    known = {"sh", "yaml", "yml", "json", "python", "ini", "nginx", "dockerfile", "text"}
    assert [f"{b.document.name}:{b.line}" for b in blocks() if b.language not in known] == []


# --- tables --------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_code() -> None:
    _, _, *table = rows(ERRORS, "Code")
    told = {row[0].strip("`"): (int(row[1]), row[2].strip("`")) for row in table}
    assert told == {code: (kind.status, kind.type) for code, kind in KINDS.items()}
    assert all(len(row) == 5 and row[3] and row[4] for row in table)
    types = {row[0].strip("`") for row in rows(ERRORS, "Type")[2:]}
    assert types == {kind.type for kind in KINDS.values()}


def test_the_paths_of_the_engines_are_those_of_the_code() -> None:
    heading, _, *table = rows(ENGINES, "Endpoint")
    kinds = [cell.strip("`") for cell in heading[1:]]
    assert set(kinds) == set(get_args(EngineKind))
    own: dict[Endpoint, str] = {}
    for path, endpoint in RELAYED.items():
        own.setdefault(endpoint, path)
    by_path = {path: endpoint for endpoint, path in own.items()}
    told: dict[str, dict[Endpoint, str]] = {kind: {} for kind in kinds}
    for row in table:
        path = row[0].strip("`")
        for kind, cell in zip(kinds, row[1:], strict=True):
            if cell:
                told[kind][by_path[path]] = path if cell == "yes" else cell.strip("`")
    for kind in get_args(EngineKind):
        asked = {e: path.replace("{v1}", "").removeprefix("/v1") for e, path in PATHS[kind].items()}
        assert told[kind] == asked, kind


def test_readme_knows_every_engine_and_port() -> None:
    _, _, *table = rows(README, "Engine")
    assert {row[1].strip("`") for row in table} == set(get_args(EngineKind))
    ports = {int(port) for row in table for port in re.findall(r"\d+", row[2])}
    assert ports == set(LOCAL_PORTS)
    assert [str(port) for port in LOCAL_PORTS if str(port) not in ENGINES.read_text(encoding="utf-8")] == []


def test_readme_has_the_marks_that_conformance_writes_between() -> None:
    text = README.read_text(encoding="utf-8")
    assert 0 < text.index("<!-- conformance:begin -->") < text.index("<!-- conformance:end -->")


def test_every_setting_is_in_the_reference() -> None:
    schema = Settings.model_json_schema()
    names = set(schema["properties"]) | {n for d in schema["$defs"].values() for n in d.get("properties", ())}
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert [name for name in sorted(names) if not re.search(rf"`(?:[\w.\[\]]+\.)?{name}[`.\[]", text)] == []


# --- the house -----------------------------------------------------------------------------------------------------


def rooms() -> dict[str, int]:
    """Room -> its row, counted from the bottom of the house."""
    _, _, *table = rows(ARCHITECTURE, "Room in `proxy/`")
    return {
        name.replace("/", "."): number for number, row in enumerate(table) for name in re.findall(r"`([^`]+)`", row[0])
    }


def room_of(module: str) -> str:
    """`proxy.dialects.openai.stream` is in the room `dialects.openai`."""
    parts = module.removeprefix("proxy.").split(".")
    return ".".join(parts[:2]) if parts[0] == "dialects" else parts[0]


def modules() -> dict[str, Path]:
    """Every module of the gateway that another may import."""
    found = {}
    for path in (ROOT / "proxy").rglob("*.py"):
        if path.name != "__init__.py" or path.parent.parent.name == "dialects":
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    return found


def test_every_room_is_in_the_table() -> None:
    assert {room_of(module) for module in modules()} == set(rooms())


def test_the_table_is_in_the_order_of_the_imports() -> None:
    order = rooms()
    against = []
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("proxy"):
                continue
            assert node.module is not None
            targets = {f"{node.module}.{name.name}" for name in node.names} & set(modules()) or {node.module}
            for target in targets:
                if order.get(room_of(target), 0) > order.get(room_of(module), len(order)):
                    against.append(f"{module} imports {target}")
    assert against == []


def test_the_picture_is_well_formed_and_has_words_for_those_who_cannot_see_it() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "request-flow.svg").getroot()
    names = {child.tag.rpartition("}")[2] for child in picture}
    assert {"title", "desc"} <= names
    assert "request-flow.svg" in README.read_text(encoding="utf-8")


def test_the_changelog_and_the_licence_are_there() -> None:
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'license = "Apache-2.0"' in metadata
