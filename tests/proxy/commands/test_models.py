"""`illm models`, and which server a command asks when nobody says it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.proxy.commands.support import SECRET, illm, scripted
from tests.proxy.harness import gateway
from tests.proxy.scripted_launcher import launcher, row

pytestmark = pytest.mark.slow

LENGTHS = {"object": "list", "data": [{"id": "a", "owned_by": "vllm", "max_model_len": 4096}, {"id": "b"}]}


def rows(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


async def test_a_gateway_tells_states_kinds_and_backends(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"models": {"a": {"aliases": ["gpt-4o-mini"]}}}
    async with scripted(about={"/v1/models": LENGTHS}) as engine, launcher(tmp_path, row("coder")) as starts:
        settings["backends"] = {"fast": {"base_url": engine.root}}
        async with gateway(settings, launchers=[starts.address]) as running:
            said = await illm(tmp_path, "models", "--base-url", running.url)
            told = await illm(tmp_path, "models", "--base-url", running.url, "--json")

    assert (said.status, said.err) == (0, "")
    table = rows(said.out)
    assert table[0] == ["NAME", "STATE", "KIND", "CONTEXT", "CAPABILITIES", "BACKENDS"]
    assert ["a", "ready", "vllm", "4096", "fast"] in table
    assert ["gpt-4o-mini", "(=", "a)", "ready", "vllm", "4096", "fast"] in table
    assert ["coder", "launchable", "vllm", "coder"] in table
    assert {model["id"]: model["kinds"] for model in told.json["models"]}["b"] == ["vllm"]


async def test_only_those_of_one_kind(tmp_path: Path) -> None:
    async with scripted() as engine, gateway({"backends": {"fast": {"base_url": engine.root}}}) as running:
        some = await illm(tmp_path, "models", "--base-url", running.url, "--framework", "vllm")
        none = await illm(tmp_path, "models", "--base-url", f"{running.url}/v1", "--framework", "transformer")

    assert rows(some.out)[1][0] == "m"
    assert none == (
        0, f"{running.url}/v1 has no models of kind transformers.\n", "",
    )  # fmt: skip


async def test_any_other_server(tmp_path: Path) -> None:
    async with scripted(about={"/v1/models": LENGTHS, "/healthz": (404, {})}) as engine:
        said = await illm(tmp_path, "models", "--base-url", engine.root)
    assert rows(said.out)[1:] == [["a", "vllm", "4096"], ["b"]]


async def test_a_server_whose_paths_have_no_v1(tmp_path: Path) -> None:
    async with scripted(about={"/v1/models": (404, {"detail": "Not Found"}), "/models": LENGTHS}) as engine:
        said = await illm(tmp_path, "models", "--base-url", engine.root)
        told = await illm(tmp_path, "models", "--base-url", f"{engine.root}/v1")
    assert rows(said.out)[1][0] == "a"
    assert (told.status, told.err) == (1, f"illm: {engine.root}/v1: it answered 404 at /v1/models: Not Found\n")


async def test_names_cannot_paint_the_table(tmp_path: Path) -> None:
    async with scripted(about={"/v1/models": {"data": [{"id": "a\x1b[31m\nb"}]}}) as engine:
        said = await illm(tmp_path, "models", "--base-url", engine.root)
    assert said.out.splitlines()[1] == "a[31m b"


# --- where the gateway is ------------------------------------------------------------------------------------------


async def test_the_gateway_of_the_settings_and_their_key(tmp_path: Path) -> None:
    async with (
        scripted() as engine,
        gateway({"backends": {"b": {"base_url": engine.root}}, "server": {"api_keys": [SECRET]}}) as running,
    ):
        port = urlsplit(running.url).port
        (tmp_path / "my.yaml").write_text(f"server: {{host: 0.0.0.0, port: {port}, api_keys: [{SECRET}]}}\n")
        said = await illm(tmp_path, "models", "--config", "my.yaml")
        by_variables = await illm(tmp_path, "models", env={"ILLM_PORT": str(port), "ILLM_API_KEYS": f"{SECRET},b"})
        elsewhere = await illm(tmp_path, "models", "--base-url", running.url, env={"ILLM_API_KEYS": f'["{SECRET}"]'})
        without = await illm(tmp_path, "models", "--base-url", running.url)
        wrong = await illm(tmp_path, "models", "--base-url", running.url, "--api-key", "nonsense")

    assert [rows(each.out)[1][0] for each in (said, by_variables, elsewhere)] == ["m"] * 3
    assert without.status == 1
    assert "it answered 401 at /v1/models; it wants a key: --api-key KEY" in without.err
    assert "it doesn't take this key: --api-key" in wrong.err


async def test_another_server_in_the_gateways_place_gets_no_key(tmp_path: Path) -> None:
    async with scripted() as engine:
        port = urlsplit(engine.root).port
        (tmp_path / "my.yaml").write_text(f"server: {{port: {port}, api_keys: [{SECRET}]}}\n")
        said = await illm(tmp_path, "models", "--config", "my.yaml")

    assert said.status == 1
    assert said.err.startswith(
        f"illm: no illm gateway answers at {engine.root}. Another server answers at {engine.root};"
    )
    assert engine.asked
    assert {asked.key for asked in engine.asked} == {None}


@pytest.mark.parametrize("command", [["models"], ["chat", "--once", "x"], ["embed", "m", "x"]])
async def test_no_gateway_at_all(tmp_path: Path, command: list[str]) -> None:
    said = await illm(tmp_path, *command, env={"ILLM_PORT": "9"})
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        "illm: no illm gateway answers at http://127.0.0.1:9. Start one (illm serve), or say where it is: "
        "--base-url URL.\n"
    )


async def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        said = await illm(tmp_path, "models", env={"ILLM_PORT": str(port)})
    assert said.status == 1
    assert said.err.startswith(f"illm: no illm gateway answers at http://127.0.0.1:{port}.")
