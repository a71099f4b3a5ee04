"""What is measured, each with its command line, its files and its environment; add a `Target` to `TARGETS`.

illm runs with keys, metrics, access log (into the file that its output goes to) and health probes on. The peers run as
their documents say for one upstream server, with what they log by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Final

from benchmarks.install import PEERS, ensure_peer
from benchmarks.load import KEY
from benchmarks.processes import ROOT, free_port
from benchmarks.upstream import MODEL
from tests.engines.install import CannotBeHad, cache

COMPILED: Final = cache() / "compiled"
Prepare = Callable[[int, int, Path], Sequence[str | Path]]  # own port, upstream's port, scratch folder -> command


@dataclass(frozen=True, slots=True)
class Target:
    """`prepare` writes the files into the scratch folder; it raises `CannotBeHad` where `peer` can't be got."""

    name: str
    prepare: Prepare
    peer: str | None = None  # its recipe in `install`
    upstream: str = "vllm"  # what the stand-in engine speaks: a kind of `engines`
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 120.0  # seconds for a start
    settle: float = 0.5  # seconds from then until it is measured
    exact: bool = True  # its streams have as many chunks as the engine's
    compiled: bool = False  # it runs from COMPILED, which `ensure_compiled` makes


def illm(
    name: str, *words: str, kind: str = "vllm", models: Mapping[str, Any] | None = None, compiled: bool = True
) -> Target:
    """A gateway in front of one engine of that kind; `compiled` as the Docker image has it, else as a checkout runs."""

    def prepare(port: int, upstream: int, scratch: Path) -> list[str]:
        backend = {"kind": kind, "base_url": f"http://127.0.0.1:{upstream}"}
        settings = {
            "server": {"port": port, "api_keys": ["another-key", KEY], "access_log": True},
            "backends": {"one": backend if kind != "tgi" else backend | {"model": MODEL}},
            "models": models or {},
        }
        config = scratch / "illm.yaml"
        config.write_text(json.dumps(settings))
        return [sys.executable, "-m", "proxy.cli", "serve", "--config", str(config), *words]

    elsewhere = {"PYTHONPATH": str(COMPILED), "PYTHONSAFEPATH": "1"}  # instead of this checkout
    return Target(name, prepare, upstream=kind, environment=elsewhere if compiled else {}, compiled=compiled)


def _uvicorn(port: int, upstream: int, scratch: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.floor", str(port)]


_NGINX: Final = Template("""\
$user daemon off; worker_processes 1; pid nginx.pid; error_log stderr;
events { worker_connections 4096; }
http {
    access_log off; client_max_body_size 0; client_body_buffer_size 256k; keepalive_requests 100000000;
    client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
    upstream engine { server 127.0.0.1:$upstream; keepalive 1100; keepalive_requests 100000000; }
    server {
        listen 127.0.0.1:$port backlog=2048;
        location / {
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }
    }
}
""")


def _nginx(port: int, upstream: int, scratch: Path) -> list[str | Path]:
    user = "user root;" if os.geteuid() == 0 else ""  # the scratch folder is closed to nginx's usual user
    (scratch / "nginx.conf").write_text(_NGINX.substitute(user=user, port=port, upstream=upstream))
    return [ensure_peer("nginx"), "-e", "stderr", "-p", scratch, "-c", "nginx.conf"]


def _rust(peer: str, *words: str) -> Prepare:
    def prepare(port: int, upstream: int, scratch: Path) -> list[str | Path]:
        where = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()))
        workers = ("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin")
        return [ensure_peer(peer), *words, *workers, *where]

    return prepare


def _litellm(port: int, upstream: int, scratch: Path) -> list[str | Path]:
    engine = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = scratch / "litellm.yaml"
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": engine}]}))
    where = ("--host", "127.0.0.1", "--port", str(port), "--telemetry", "False")
    return [ensure_peer("litellm"), "--config", config, *where]


_LITELLM_SETTINGS: Final = {
    "LITELLM_MASTER_KEY": KEY,
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it looks for prices in the network when it starts
    "LITELLM_LOG": "ERROR",  # as its guide to production says
}
_RENAMED: Final = {MODEL: {"replicas": [{"backend": "one", "model": f"{MODEL}-7b"}]}}

_ALL: Final = (
    illm("illm"),
    Target("nginx", _nginx, peer="nginx"),
    Target("vllm-router", _rust("vllm-router"), peer="vllm-router"),
    Target("sglang-router", _rust("sglang-router", "launch"), peer="sglang-router"),
    Target(
        "litellm",
        _litellm,
        peer="litellm",
        environment=_LITELLM_SETTINGS,
        patience=180.0,
        settle=5.0,
        exact=False,
    ),
    illm("illm-tgi", kind="tgi"),
    illm("illm-ollama", kind="ollama"),
    illm("illm-2-workers", "--workers", "2"),
    illm("illm-interpreted", compiled=False),
    illm("illm-renamed", models=_RENAMED),  # the engine's name for the model is replaced in every chunk
    Target("uvicorn", _uvicorn),  # answers by itself: the floor for a Python server
)
_VENV: Final = {"ILLM_VENV": sys.prefix}
TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in _ALL}


def ensure_compiled() -> None:
    """Make COMPILED from this checkout, unless it is fresh (blocks, a minute). Raises `CannotBeHad`."""
    done = subprocess.run(
        [ROOT / "scripts/compile", COMPILED], capture_output=True, text=True, check=False, env={**os.environ, **_VENV}
    )
    if done.returncode:
        raise CannotBeHad(f"the hot path can't be compiled here: {done.stderr.strip().rpartition(chr(10))[2]}")


def has_workers() -> bool:
    """Does this checkout's `illm serve` have --workers?"""
    command = [sys.executable, "-m", "proxy.cli", "serve", "--help"]
    return "--workers" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def version(target: Target) -> str:
    """What runs under that name, in a few characters; what is missing of it is got. Raises `CannotBeHad`."""
    if target.compiled:
        ensure_compiled()
    if target.peer == "nginx":
        said = subprocess.run([ensure_peer("nginx"), "-v"], capture_output=True, text=True, check=False).stderr
        return said.strip().rpartition("/")[2]
    if target.peer is not None:
        return PEERS[target.peer].version
    if target.name == "uvicorn":
        import uvicorn

        return uvicorn.__version__
    return _own_version()


def _own_version() -> str:
    from proxy import __version__

    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return __version__
    return f"{__version__} ({done.stdout.strip()})" if done.returncode == 0 else __version__
