"""`illm serve KIND` where that engine's program isn't there: said once, with how it is had, and nothing is offered that
can't work."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests.faults.test_ctrl_c import told
from tests.faults.test_drain import process
from tests.proxy.harness import PATIENCE, until


@pytest.mark.parametrize("more", [(), ("--workers", "2")])
async def test_an_engine_whose_program_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    (tmp_path / "x.gguf").touch()
    (tmp_path / "illm.yaml").write_text(f"launcher: {{state: {tmp_path / 's'}}}")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    monkeypatch.setenv("PATH", "/bin")  # there is no llama-server
    words = ("llamacpp", "--model", str(tmp_path / "x.gguf"), "--config", str(tmp_path / "illm.yaml"))
    async with process(*words, "--port", str(port), *more) as gate, told(gate) as said:
        await until(lambda: any("illm start x" in line for line in said))
        gate.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            await gate.process.wait()

    whole = gate.before + "".join(said)
    assert whole.count("there is no `llama-server` here") == 1
    assert "brew install llama.cpp" in whole
    assert "Mend that, then `illm start x` tries again." in whole
    assert "curl" not in whole
    assert "Traceback" not in whole
