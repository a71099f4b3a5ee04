"""The gateway as a real process: `python -m proxy.cli serve` with a configuration of its own, as users start it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.engines.process import HOST, PATIENCE, ServerProcess, answers, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]


class Gateway:
    """A running gateway. Owns its process: `stop` (or leaving the `with` block) ends it."""

    def __init__(
        self,
        config: str,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        args: tuple[str, ...] = (),
        port: int | None = None,
    ) -> None:
        """Starts it with this YAML text and blocks until /livez answers; raises NotReady."""
        port = port or free_port()
        file = folder / f"illm-{port}.yaml"
        file.write_text(config)
        listen = ("--host", HOST, "--port", str(port))
        command: list[str | Path] = [sys.executable, "-m", "proxy.cli", "serve", "--config", file, *listen, *args]
        log, settings = folder / f"illm-{port}.log", {"PYTHONUNBUFFERED": "1", **(env or {})}
        self.process = ServerProcess(command, port=port, log=log, env=settings, cwd=ROOT)
        self.base_url = self.process.base_url
        self.process.wait_ready(answers(f"{self.base_url}/livez"))

    @property
    def v1(self) -> str:
        """What OpenAI clients call the base URL."""
        return f"{self.base_url}/v1"

    def log_text(self) -> str:
        return self.process.log_text()

    def models(self) -> dict[str, dict[str, Any]]:
        """The entries of /v1/models by id."""
        listing = httpx.get(f"{self.v1}/models", timeout=PATIENCE, trust_env=False).raise_for_status().json()
        return {entry["id"]: entry for entry in listing["data"]}

    def wait_models(self, *names: str) -> Self:
        """Blocks until all these models are listed; raises StillSo."""
        wait_until(lambda: set(names) <= self.models().keys(), f"the gateway lists {', '.join(names)}")
        return self

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
