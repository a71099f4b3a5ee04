"""How each real engine is started: its command line, its environment and what "ready" means for it.

Each function returns a running, ready `ServerProcess` that the caller stops. They raise install.CannotBeHad where the
engine can't be had here and NotReady where it does not come up.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.engines import install
from tests.engines.process import AGES, HOST, ServerProcess, answers, free_port

OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}


def llama_server(model: Path, folder: Path, *args: str, wait: bool = True, port: int | None = None) -> ServerProcess:
    """llama-server with one model (up in 0.1 s). `wait=False` returns before the model is loaded."""
    program = install.ensure("llama-server")
    port = port or free_port()
    command: list[str | Path] = [
        program,
        "-m",
        model,
        "--host",
        HOST,
        "--port",
        str(port),
        "--slots",
        "--metrics",
        *args,
    ]
    # Warm-up would hide the difference between a loaded model and one that has answered before.
    server = ServerProcess(
        [*command, "--no-warmup"], port=port, log=folder / f"llama-server-{port}.log", env={"HOME": str(folder)}
    )
    return server.wait_ready(answers(f"{server.base_url}/health")) if wait else server


def vllm(model: Path, folder: Path, name: str, *args: str, env: Mapping[str, str] | None = None) -> ServerProcess:
    """`vllm serve` on the CPU with one model (half a minute to one, 2.5 GB)."""
    program, port = install.ensure("vllm"), free_port()
    command: list[str | Path] = [
        program,
        "serve",
        model,
        "--served-model-name",
        name,
        "--enforce-eager",
        "--host",
        HOST,
    ]
    settings = {**OFFLINE, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HOME": str(folder), **(env or {})}
    log = folder / f"vllm-{port}.log"
    server = ServerProcess([*command, "--port", str(port), *args], port=port, log=log, env=settings)
    return server.wait_ready(answers(f"{server.base_url}/health"), AGES)


def transformers(folder: Path) -> ServerProcess:
    """`transformers serve` (5 s, 0.5 GB); it loads the model that a request names by its path."""
    program, port = install.ensure("transformers"), free_port()
    (folder / "hub").mkdir(parents=True, exist_ok=True)  # without it a listing of models is a 500
    command: list[str | Path] = [program, "serve", "--host", HOST, "--port", str(port), "--device", "cpu"]
    log = folder / f"transformers-{port}.log"
    server = ServerProcess(command, port=port, log=log, env={**OFFLINE, "HF_HOME": str(folder)})
    return server.wait_ready(answers(f"{server.base_url}/health"), AGES)


def infinity(models: Mapping[str, Path], folder: Path, *args: str) -> ServerProcess:
    """Infinity with these models by their served names (8 s, 0.9 GB)."""
    program, port = install.ensure("infinity"), free_port()
    command: list[str | Path] = [program, "v2"]
    named = [word for name, path in models.items() for word in ("--model-id", path, "--served-model-name", name)]
    engine = ("--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--host", HOST, "--port", str(port))
    settings = {**OFFLINE, "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HOME": str(folder)}
    log = folder / f"infinity-{port}.log"
    server = ServerProcess([*command, *named, *engine, *args], port=port, log=log, env=settings)
    return server.wait_ready(answers(f"{server.base_url}/health"), AGES)


def ollama(
    models: Mapping[str, Path],
    folder: Path,
    env: Mapping[str, str] | None = None,
    templates: Mapping[str, str] | None = None,
) -> ServerProcess:
    """Ollama with these GGUF files as its models (1 s); `templates` (Go) by a model's name, for those that get one."""
    program, port = install.ensure("ollama"), free_port()
    settings = {"HOME": str(folder), "OLLAMA_MODELS": str(folder / "ollama"), "OLLAMA_HOST": f"{HOST}:{port}"}
    settings |= {"OLLAMA_NO_CLOUD": "1", **(env or {})}
    server = ServerProcess([program, "serve"], port=port, log=folder / f"ollama-{port}.log", env=settings)
    server.wait_ready(answers(f"{server.base_url}/api/version"), AGES)
    for name, path in models.items():
        modelfile = folder / f"{name}.modelfile"
        template = (templates or {}).get(name)
        modelfile.write_text(f"FROM {path}\n" + (f'TEMPLATE """{template}"""\n' if template else ""))
        create = subprocess.run(
            [program, "create", name, "-f", modelfile], env=settings, capture_output=True, text=True, check=False
        )
        if create.returncode:
            server.stop()
            raise install.CannotBeHad(f"`ollama create {name}` failed: {create.stderr[-500:]}")
    return server
