"""`illm check` beside a gateway that runs, or with something else on the port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.commands import check_port
from proxy.commands.check_port import look_at_port
from proxy.settings import Settings
from tests.engines.process import free_port
from tests.proxy.commands.support import Said, illm, scripted
from tests.proxy.harness import Running, gateway
from tests.proxy.test_server import by_default

QUIET: dict[str, Any] = {"discovery": {"local": False}}


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def check(folder: Path, settings: Any, *words: str) -> Said:
    (folder / "my.yaml").write_text(json.dumps(QUIET | settings))
    return await illm(folder, "check", "--config", "my.yaml", *words)


async def test_a_gateway_that_runs_is_no_problem_and_no_demo_engine_is_promised(tmp_path: Path) -> None:
    async with scripted() as engine, gateway({"backends": {"fast": {"base_url": engine.root}}}) as running:
        port = port_of(running.url)
        said = await check(tmp_path, {"server": {"port": port}})
        told = await check(tmp_path, {"server": {"port": port}}, "--json")

    assert (said.status, said.err) == (0, "")
    assert (
        f"An illm gateway runs at {running.url}, and serves fast (ready). `illm models` lists its models." in said.out
    )
    assert f"Port {port} is taken by an illm gateway that runs already: another can't start there." in said.out
    assert "demo engine" not in said.out
    assert said.out.endswith("All is well.\n")
    assert told.json["port"] == {
        "number": port, "taken": "an illm gateway that runs already", "instead": None, "gateway": running.url,
    }  # fmt: skip


async def test_where_nothing_runs_the_demo_engine_is_promised(tmp_path: Path) -> None:
    said = await check(tmp_path, {"server": {"port": free_port()}})

    assert "illm serve would start its demo engine" in said.out
    assert "Port" not in said.out


async def test_a_port_that_was_chosen_and_is_taken_is_to_be_fixed(tmp_path: Path) -> None:
    async with scripted() as engine:
        port = port_of(engine.root)
        said = await check(tmp_path, {"server": {"port": port}})

    assert said.status == 1
    assert f"- Port {port} is taken by vLLM. Stop it, or choose another port (--port, ILLM_PORT)." in said.out


async def look(settings: Settings) -> check_port.Port:
    """In a loop of its own, as the command has it."""
    return await asyncio.to_thread(lambda: asyncio.run(look_at_port(settings)))


async def test_the_default_port_gives_way() -> None:
    async with scripted() as engine:
        port = port_of(engine.root)
        found = await look(by_default(port))

    assert found.instead is not None
    assert port < found.instead
    assert found.problems() == []
    assert found.notes() == [f"Port {port} is taken by vLLM: `illm serve` would use {found.instead}."]


async def test_a_gateway_on_a_port_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    running: Running
    async with scripted() as engine, gateway({"backends": {"fast": {"base_url": engine.root}}}) as running:
        places = [engine.root, running.url]
        monkeypatch.setattr(check_port, "roots", lambda _: places)
        found = await look(by_default(port_of(engine.root)))

    assert found.gateway == running.url
    assert (found.taken, [one["name"] for one in found.backends]) == ("vLLM", ["fast"])


async def test_another_gateway_would_take_the_next_port() -> None:
    async with gateway({}) as running:
        port = port_of(running.url)
        found = await look(by_default(port))

    assert found.problems() == []
    assert found.notes()[-1] == (
        f"Port {port} is taken by an illm gateway that runs already: another `illm serve` would use {found.instead}."
    )
