"""`illm check`: the table, the sentences about what to fix, and the exit status that scripts go by."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers.engines.table import ENGINES
from proxy.commands.check_engines import INSTALLABLE
from tests.proxy.commands.support import SECRET, Said, illm, scripted
from tests.proxy.harness import gateway
from tests.proxy.scripted_launcher import launcher, row


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, as a launcher's socket lies in it."""
    path = Path(tempfile.mkdtemp(prefix="illm-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


async def check(folder: Path, settings: Any, *words: str) -> Said:
    (folder / "my.yaml").write_text(json.dumps(settings))
    return await illm(folder, "check", "--config", "my.yaml", *words)


def problems(said: Said) -> list[str]:
    return [line.removeprefix("- ") for line in said.out.partition("To fix:\n")[2].splitlines()]


async def test_all_is_well(folder: Path) -> None:
    async with scripted(models=("a", "b", "c", "d")) as engine:
        settings = {"backends": {"fast": {"base_url": engine.root}}, "models": {"pub": {"replicas": ["fast"]}}}
        settings["models"]["pub"]["replicas"] = [{"backend": "fast", "model": "b"}]
        said = await check(folder, settings)
        told = await check(folder, settings, "--json")

    lines = said.out.splitlines()
    assert (said.status, said.err, lines[0], lines[-1]) == (0, "", "settings: my.yaml", "All is well.")
    assert lines[2].split() == ["BACKEND", "KIND", "VERSION", "ADDRESS", "STATE", "MODELS", "MS"]
    assert lines[3].split()[:6] == ["fast", "vllm", "3.3.7", engine.root, "ready", "a,"]
    assert "a, b, c and 1 more" in lines[3]
    assert lines[3].split()[-1].isdigit()
    (one,) = told.json["backends"]
    assert (told.status, told.json["ok"], told.json["problems"]) == (0, True, [])
    assert (one["name"], one["kind"], one["models"], one["state"]) == ("fast", "vllm", ["a", "b", "c", "d"], "ready")
    assert one["ms"] > 0


async def test_settings_that_are_wrong(folder: Path) -> None:
    (folder / "my.yaml").write_text("server:\n  prot: 1\nbackends:\n  a: {kind: gpt, base_url: 'http://x'}\n")
    said = await illm(folder, "check", "--config", "my.yaml")
    told = await illm(folder, "check", "--config", "my.yaml", "--json")

    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("illm: the settings are wrong:\n")
    assert "my.yaml:2: server.prot" in said.err
    assert "my.yaml:4: backends.a.kind" in said.err
    assert told.status == 2
    assert (told.json["ok"], len(told.json["wrong"])) == (False, 2)


async def test_every_backend_that_lacks_something_gets_a_sentence(folder: Path) -> None:
    async with scripted() as engine, scripted(about={"/v1/models": (401, {"error": "Unauthorized"})}) as closed:
        backends = {
            "gone": {"kind": "tgi", "base_url": "http://127.0.0.1:9"},
            "container": {"kind": "vllm", "base_url": "http://no-such-host.invalid:8000"},
            "other": {"kind": "llamacpp", "base_url": engine.root},
            "closed": {"kind": "vllm", "base_url": closed.root, "api_key": SECRET},
            "pinned": {"base_url": engine.root, "model": "large"},
        }
        said = await check(folder, {"backends": backends})
        told = await check(folder, {"backends": backends}, "--json")

    assert (said.status, told.status) == (1, 1)
    assert problems(said) == [
        "Backend 'gone' at http://127.0.0.1:9: connection refused. Start it, or correct its base_url.",
        "Backend 'container' at http://no-such-host.invalid:8000: host name not found. Correct its base_url, or start "
        "it: a container's name is known only while it runs.",
        f"Backend 'other' at {engine.root} is vllm, not llamacpp. Correct its kind or leave it out.",
        f"Backend 'closed' at {closed.root}: answered 401: check api_key. Set its api_key "
        "(ILLM_BACKENDS__NAME__API_KEY) as the engine has it.",
        "Backend 'pinned' does not list 'large'. It has: m",
    ]
    assert told.json["problems"] == problems(said)
    assert [one["state"] for one in told.json["backends"]] == ["down", "down", "ready", "down", "ready"]


async def test_an_engine_that_is_still_loading(folder: Path) -> None:
    loading = (503, {"error": {"message": "Loading model", "code": 503}})
    async with scripted(about={"/v1/models": loading}) as engine:
        said = await check(folder, {"backends": {"slow": {"kind": "llamacpp", "base_url": engine.root}}})

    assert said.status == 1
    assert problems(said) == [
        f"Backend 'slow' at {engine.root} is loading (503 Loading model). Wait until it is ready."
    ]


async def test_models_that_lead_nowhere(folder: Path) -> None:
    async with scripted(models=("a", "b")) as engine:
        settings = {
            "backends": {"fast": {"base_url": engine.root}},
            "models": {"pub": {"replicas": [{"backend": "fast", "model": "c"}]}, "lost": {"aliases": ["x"]}},
            "model": "nowhere",
        }
        said = await check(folder, settings)

    assert said.status == 1
    assert problems(said) == [
        "Model 'pub': backend 'fast' does not list 'c'. It has: a, b",
        "Model 'lost' has no replicas, and no backend lists it by that name. Say which: replicas: [...]",
        "`model` is 'nowhere', which nobody serves. There are: a, b, lost, pub, x",
    ]


async def test_a_gateway_behind_the_gateway(folder: Path) -> None:
    async with gateway({}) as running:
        said = await check(folder, {"backends": {"round": {"base_url": running.url}}})

    assert said.status == 1
    assert "this is an illm gateway, not an engine. Take it out of backends" in problems(said)[0]


async def test_engines_whose_files_or_programs_are_not_there(folder: Path) -> None:
    (folder / "there.gguf").touch()
    engines = {
        "a": {"kind": "llamacpp", "model": "./no.gguf", "command": ["/no/such/llama-server"]},
        "b": {"kind": "llamacpp", "model": "there.gguf", "mmproj": "eyes.gguf", "command": ["sh"]},
        "c": {"kind": "command", "command": ["sh", "-c", "x", "{port}"]},
        "d": {"kind": "tei", "model": "BAAI/bge-m3"},
        "e": {"kind": "infinity", "model": "BAAI/bge-m3"},
    }
    said = await check(folder, {"engines": engines})
    may_be_installed = await check(folder, {"engines": engines, "auto_install": True})

    assert said.status == 1
    assert problems(said) == [
        "Engine 'a': there is no program '/no/such/llama-server' here, with which its `command` begins.",
        f"Engine 'a': its model is not there: {folder / 'no.gguf'}",
        f"Engine 'b': its mmproj is not there: {folder / 'eyes.gguf'}",
        "Engine 'd': there is no `text-embeddings-router` on the path here. Install it, say where it is (`command`), "
        "or run it in a container (`image`).",
        "Engine 'e': there is no `infinity_emb` on the path here. Install it, say where it is (`command`), or let it "
        "be installed: auto_install: true.",
    ]
    assert problems(may_be_installed) == problems(said)[:4]
    assert ["c", "command", "c", "not", "started"] in [line.split() for line in said.out.splitlines()]


async def test_what_the_launcher_would_refuse_is_named_with_its_line(folder: Path) -> None:
    engines = {
        "a": {"kind": "command", "command": ["sh", "-c", "x {port}"], "image": "img", "device": "mps"},
        "b": {"kind": "llamacpp", "model": "org/repo", "command": ["sh"], "dtype": "f16"},
    }
    said = await check(folder, {"engines": engines})
    assert said.status == 1
    found = [problem for problem in problems(said) if ".yaml:" in problem]
    assert len(found) == 2
    assert "a: a container can't use Apple's GPU" in found[0]
    assert "b: llama.cpp has no option `dtype`" in found[1]


def test_what_may_be_installed_is_what_the_launcher_can_install() -> None:
    assert {kind for kind, engine in ENGINES.items() if engine.install.packages} == INSTALLABLE


async def test_a_launcher_that_runs_tells_of_its_engines(folder: Path) -> None:
    settings = {"engines": {"coder": {"kind": "vllm", "model": "m", "name": "pub"}}, "model": "pub"}
    ready = row("coder", "ready", model="pub", api_key=SECRET)
    home = folder / "illm" / "mine-1"
    home.mkdir(parents=True)
    async with launcher(home, ready) as running:
        well = await check(folder, settings)
        running.tell("coder", "fatal", model="pub", error="It ended with exit status 1:\nno such file")
        broken = await check(folder, settings)
        told = await check(folder, settings, "--json")

    assert (well.status, well.out.splitlines()[-1]) == (0, "All is well.")
    assert ["coder", "vllm", "pub", "ready", "mine-1"] in [line.split() for line in well.out.splitlines()]
    assert broken.status == 1
    says = "Engine 'coder': It ended with exit status 1. Its log: illm logs coder; then: illm start coder"
    assert problems(broken)[0] == says
    assert told.json["engines"][0]["state"] == "fatal"


async def test_a_launcher_elsewhere_that_cannot_be_reached(folder: Path) -> None:
    said = await check(folder, {"launchers": {"far": {"base_url": "http://127.0.0.1:9", "api_key": SECRET}}})

    assert said.status == 1
    assert ["far", "http://127.0.0.1:9", "down"] in [line.split() for line in said.out.splitlines()]
    assert problems(said)[0].startswith("Launcher 'far' at http://127.0.0.1:9 can't be reached.")
