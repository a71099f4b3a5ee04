"""The one-line form (`KIND --model …`): which engine it makes, how it is asked for again, and `illm launch`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import USAGE, main
from proxy.commands import launch
from proxy.commands.source import Asked, engine_name, label
from proxy.settings import EngineSettings

Engine = dict[str, Any]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, which is the current one; no settings of this machine's, and no handlers on its log."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ILLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", "/tmp/illm-none")
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr("proxy.cli.logging.Logger.setLevel", lambda *_: None)
    return tmp_path


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that this process would have become."""
    seen: list[list[str]] = []
    monkeypatch.setattr(launch, "_become", lambda words: seen.append(words) or 0)
    monkeypatch.setattr("proxy.launcher_process.Home.make", lambda _: None)
    return seen


def printed(capsysbinary: pytest.CaptureFixture[bytes], *words: str) -> dict[str, Any]:
    assert main(["launch", "--print", *words]) == 0
    whole: dict[str, Any] = json.loads(capsysbinary.readouterr().out)
    return whole


USUAL = EngineSettings(kind="tei", model="m", start="eager").model_dump()


def engine(name: str, **more: Any) -> Engine:
    """What the launcher is told of one of which nothing else was said."""
    return {"name": name, "public": name, **more}


CASES: list[tuple[list[str], Engine]] = [
    (["vllm", "--model", "org/Q-7B"], engine("Q-7B", kind="vllm", model="org/Q-7B", public="org/Q-7B")),
    (["ollama", "--model", "q:7b"], engine("q-7b", kind="ollama", model="q:7b", public="q:7b")),
    (["transformer", "--model", "m"], engine("m", kind="transformers", model="m")),
    (["tei", "--model", "a/b", "--name", "embed"], engine("embed", kind="tei", model="a/b")),
    (["sglang", "--model", "org/Q"], engine("Q", kind="sglang", model="org/Q", public="org/Q")),
    (["tgi", "--model", "org/Q", "--name", "q"], engine("q", kind="tgi", model="org/Q")),
    (
        ["infinity", "--model", "BAAI/bge-m3"],
        engine("bge-m3", kind="infinity", model="BAAI/bge-m3", public="BAAI/bge-m3"),
    ),
    (["tei", "--model", "m", "--device", "cpu"], engine("m", kind="tei", model="m", device="cpu")),
    (["vllm", "--model", "m", "--gpus", "0, 1"], engine("m", kind="vllm", model="m", gpus=["0", "1"])),
    (["vllm", "--model", "m", "--", "-x", "--", "-y"], engine("m", kind="vllm", model="m", args=["-x", "--", "-y"])),
    (["command", "--name", "a b", "--", "./s"], engine("a-b", kind="command", public="a b", command=["./s"])),
    (["command", "--model", "m", "--", "/opt/s"], engine("m", kind="command", model="m", command=["/opt/s"])),
    (["command", "--", "/opt/srv", "{port}"], engine("srv", kind="command", command=["/opt/srv", "{port}"])),
]
WORDS = [" ".join(words) for words, _ in CASES]


@pytest.mark.parametrize(("words", "expected"), CASES, ids=WORDS)
def test_an_engine(words: list[str], expected: Engine, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (found,) = printed(capsysbinary, *words)["engines"]
    assert set(found.pop("where").values()) == {"command line"}
    nothing = {**USUAL, "model": None, "args": [], "command": [], "gpus": [], "volumes": []}
    assert found == {**nothing, **expected}


def test_a_file_is_told_by_its_whole_path(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (folder / "models").mkdir()
    words = ("llamacpp", "--model", "models/qwen-vl.gguf", "--mmproj", "mmproj.gguf")
    (found,) = printed(capsysbinary, *words)["engines"]
    assert (found["name"], found["public"]) == ("qwen-vl", "qwen-vl")
    assert found["model"] == str(folder / "models" / "qwen-vl.gguf")
    assert found["mmproj"] == str(folder / "mmproj.gguf")
    (found,) = printed(capsysbinary, "vllm", "--model", "models")["engines"]
    assert (found["name"], found["model"]) == ("models", str(folder / "models")), "it is a folder here"


def test_it_stands_beside_the_settings(folder: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (folder / "my.yaml").write_text("engines: {a: {kind: tei, model: x}}\nlauncher: {watch: true}\n")
    whole = printed(capsysbinary, "--config", "my.yaml", "vllm", "--model", "m")
    assert [each["name"] for each in whole["engines"]] == ["a", "m"]
    assert whole["launcher"]["watch"] is True
    assert whole["launcher"]["file"] == str(folder / "my.yaml")


@pytest.mark.parametrize("words", [words for words, _ in CASES], ids=WORDS)
def test_the_launcher_is_given_a_command_that_asks_for_the_same(
    words: list[str], became: list[list[str]], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    whole = printed(capsysbinary, *words)
    assert main(["launch", *words]) == 0
    ((*program, state, separator),) = [line[: line.index("--") + 1] for line in became]
    assert program[1:] == ["-P", "-m", "launchers", "--state"]
    assert separator == "--"
    assert Path(state).parent == Path("/tmp/illm-none/illm")
    source = became[0][became[0].index("--") + 1 :]
    assert source[1:6] == ["-P", "-m", "proxy.cli", "launch", "--print"]
    assert printed(capsysbinary, *source[6:]) == whole


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "vllm"], "which model shall vllm serve? Add --model NAME_OR_PATH"),
        (["serve", "--name", "x"], "--name belongs to one engine; say its kind too, like: llamacpp --model NAME"),
        (["launch", "--gpus", "0"], "--gpus belongs to one engine; say its kind too"),
        (["serve", "--", "-c", "5"], "words after -- go to an engine; say its kind too"),
        (["serve", "command", "--name", "x"], "kind 'command' needs the command behind --, like:"),
        (
            ["launch"],
            "no engines to launch: write them to configs/illm.yaml (engines:), or name one: KIND",
        ),
        (["launch", "vllm", "--model", "m", "--gpus", "all"], "command line: engines.m.gpus[0]: a GPU is its number"),
    ],
)
def test_what_makes_no_sense(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"illm: {says}")


def test_a_person_does_not_get_to_see_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "my.yaml").write_text(
        "engines: {a: {kind: tei, model: x, api_key: sk-1, env: {T: sk-2}}}\nlauncher: {api_key: sk-3}\n"
    )
    assert b"sk-1" in json.dumps(printed(capsysbinary, "--config", "my.yaml")).encode()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    whole = printed(capsysbinary, "--config", "my.yaml")
    assert "sk-" not in json.dumps(whole)
    assert whole["engines"][0]["env"] == {"T": "********"}
    assert whole["engines"][0]["api_key"] == "********"


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("public", "name"),
    [("a", "a"), ("org/Model-7B", "Model-7B"), ("q:7b", "q-7b"), ("größe", "gr-e"), ("...", "engine"), ("a/", "a"),
     ("x" * 99, "x" * 64), ("-a-", "a"), ("", "engine")],
)  # fmt: skip
def test_names_for_files(public: str, name: str) -> None:
    assert engine_name(public) == name


def test_a_label_is_readable_and_tells_files_apart() -> None:
    assert label("illm", "/a/illm.yaml") == "illm-" + label("other", "/a/illm.yaml")[-8:]
    assert label("illm", "/a/illm.yaml") != label("illm", "/b/illm.yaml")
    assert len(label("x" * 99, "")) == 24 + 1 + 8


def test_the_same_question_has_the_same_label() -> None:
    file = Path("/a/illm.yaml")
    engine = {"kind": "tei", "model": "m", "args": ["-x"]}
    assert Asked(file).label() == Asked(file).label() == label("illm", "/a/illm.yaml")
    assert Asked(file, "m", engine).label() == Asked(file, "m", dict(engine)).label()
    others = [Asked(None, "m", engine), Asked(file, "m", {**engine, "args": ["-y"]}), Asked(file), Asked(None)]
    assert len({one.label() for one in [Asked(file, "m", engine), *others]}) == 5
