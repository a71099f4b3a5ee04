"""The one place where both packages meet: what the settings give is what the launcher takes, name by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from launchers.spec import Document, EngineSpec, LauncherSpec, SpecError, parse
from proxy import wire
from proxy.commands.launch import document
from proxy.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "configs" / "examples").glob("*.yaml"))
MUCH: dict[str, Any] = {
    "engines": {
        "coder": {
            "kind": "llamacpp", "model": "coder.gguf", "name": "my/coder", "mmproj": "p.gguf", "gpu_layers": 20,
            "args": {"ctx-size": 8192, "flash-attn": True}, "env": {"TOKEN": "secret", "N": 1}, "api_key": "key",
            "gpus": [1, "GPU-8a"], "memory": "6GiB", "ttl": "1h30m", "start": "eager", "port": 9000,
        },
        "mine": {"kind": "command", "command": "./serve --port {port} 'a b'", "health": "/up", "restarts": 0},
        "boxed": {"kind": "tgi", "model": "m", "image": "tgi:3", "volumes": ["/a:/b:ro"], "device": "cuda"},
    },
    "launcher": {
        "listen": "http://0.0.0.0:8090", "api_key": "launcher-key", "bind": "0.0.0.0", "orphans": "adopt",
        "linger": "1m", "watch": True, "budget": {"cpu": "1GiB", "0": 5},
    },
    "device": "cpu",
    "auto_install": True,
}  # fmt: skip


def told(given: dict[str, Any], file: Path | None = None) -> Document:
    return parse(wire.dump(document(Settings.model_validate(given), file)))


def fields(kind: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_both_sides_have_the_same_fields() -> None:
    whole = document(Settings.model_validate(MUCH), None)
    assert set(whole) == fields(Document)
    assert set(whole["launcher"]) == fields(LauncherSpec)
    assert [set(engine) for engine in whole["engines"]] == [fields(EngineSpec)] * 3


def test_nothing_set_is_a_launcher_without_engines() -> None:
    assert told({}) == Document(
        engines=(),
        launcher=LauncherSpec(
            listen=None, api_key=None, bind="127.0.0.1", orphans="kill", linger=300.0, watch=False, budget=None,
            auto_install=False, file=None,
        ),
    )  # fmt: skip


def test_everything_arrives() -> None:
    got = told(MUCH, Path("/etc/illm.yaml"))
    assert got.launcher == LauncherSpec(
        listen="http://0.0.0.0:8090", api_key="launcher-key", bind="0.0.0.0", orphans="adopt", linger=60.0, watch=True,
        budget={"cpu": 2**30, "0": 5}, auto_install=True, file="/etc/illm.yaml",
    )  # fmt: skip
    coder, mine, boxed = got.engines
    assert (coder.name, coder.public, coder.model, coder.mmproj) == ("coder", "my/coder", "coder.gguf", "p.gguf")
    assert coder.args == ("--ctx-size", "8192", "--flash-attn")
    assert coder.env == {"TOKEN": "secret", "N": "1"}
    assert (coder.api_key, coder.gpus, coder.memory) == ("key", ("1", "GPU-8a"), 6 * 2**30)
    assert (coder.ttl, coder.start, coder.port, coder.gpu_layers) == (5400.0, "eager", 9000, 20)
    assert (mine.command, mine.public, mine.model) == (("./serve", "--port", "{port}", "a b"), "mine", None)
    assert (mine.health, mine.restarts) == ("/up", 0)
    assert (boxed.image, boxed.volumes, boxed.device) == ("tgi:3", ("/a:/b:ro",), "cuda")


def test_the_device_of_all_engines_is_that_of_those_that_say_nothing() -> None:
    coder, mine, boxed = told(MUCH).engines
    assert mine.device == "cpu"
    assert boxed.device == "cuda"
    assert coder.device is None, "it names GPUs, so it can't be meant to leave them alone"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_can_be_launched(path: Path) -> None:
    settings = load_settings(path, {"ILLM_LAUNCHER__API_KEY": "k"})  # the one that they leave to the environment
    got = parse(wire.dump(document(settings, path)))
    assert [engine.name for engine in got.engines] == list(settings.engines)


def test_what_is_missing_or_unknown_is_named() -> None:
    whole = document(Settings.model_validate(MUCH), None)
    del whole["engines"][0]["ttl"]
    whole["launcher"]["colour"] = "red"
    with pytest.raises(SpecError, match=r"launcher\.colour: .*engines\.0\.ttl: "):
        parse(wire.dump(whole))
