"""Specifications for tests: everything at its default unless said."""

from typing import Any

from launchers.spec import EngineSpec, Kind


def spec(kind: Kind, model: str | None = "org/model", **told: Any) -> EngineSpec:
    plain: dict[str, Any] = {
        "name": "one", "kind": kind, "public": "my-model", "model": model, "mmproj": None, "dtype": None,
        "max_model_len": None, "tensor_parallel": None, "gpu_memory": None, "gpu_layers": None,
        "trust_remote_code": False, "embedding": False, "device": None, "api_key": None, "args": (), "env": {},
        "command": (), "health": None, "image": None, "volumes": (), "gpus": (), "port": None, "memory": None,
        "start": "on_demand", "ttl": None, "pin": False, "abandon": False, "unload": "stop", "start_timeout": 60.0,
        "stop_timeout": 5.0, "min_residency": 0.0, "restarts": 3,
    }  # fmt: skip
    return EngineSpec(**(plain | told))
