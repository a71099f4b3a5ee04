"""A launcher has one name: the gateway and its log, the metrics and `illm ps` call it as its state folder."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.process import free_port
from tests.faults.test_ctrl_c import told
from tests.faults.test_drain import process
from tests.proxy.commands.support import illm
from tests.proxy.harness import PATIENCE


@pytest.mark.parametrize("listens", [False, True], ids=["socket", "TCP"])
async def test_it_is_called_the_same_everywhere(tmp_path: Path, listens: bool) -> None:
    demo = [sys.executable, "-m", "launchers.demo", "--port", "{port}"]
    there: dict[str, Any] = {"state": str(tmp_path / "s")}
    if listens:
        there["listen"] = f"http://127.0.0.1:{free_port()}"
    settings = {
        "server": {"port": free_port()},
        "launcher": there,
        "engines": {"mine": {"kind": "command", "command": demo}},
    }
    file = tmp_path / "my.yaml"
    file.write_text(json.dumps(settings))
    async with (
        process("--config", str(file)) as gate,
        told(gate) as said,
        httpx.AsyncClient(base_url=gate.url, trust_env=False, timeout=PATIENCE) as client,
    ):
        (folder,) = (tmp_path / "s").iterdir()
        health = (await client.get("/healthz")).json()
        metrics = (await client.get("/metrics")).text
        listed = await illm(tmp_path, "ps", "--config", str(file), "--json")
        named = await illm(tmp_path, "ps", "--config", str(file), "--launcher", folder.name, "--json")
        gate.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            await gate.process.wait()

    assert folder.name.startswith("my-")
    assert [one["name"] for one in health["launchers"]] == [folder.name]
    assert health["backends"][0]["engine"]["launcher"] == folder.name
    assert f'launcher="{folder.name}"' in metrics
    assert [row["launcher"] for row in listed.json["engines"]] == [folder.name]
    assert [row["launcher"] for row in named.json["engines"]] == [folder.name]
    assert f"launcher '{folder.name}'" in gate.before + "".join(said)
    assert "local" not in gate.before
