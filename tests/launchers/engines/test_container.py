"""Engines in containers: the exact `docker run`."""

from typing import Any

import pytest

from launchers.engines.base import Place
from launchers.engines.table import launch
from launchers.spec import Kind, SpecError
from tests.launchers.engines.specs import spec

PLACE = Place("127.0.0.1", 9000, ("/usr/bin/docker",), "illm-one")
HEAD = "/usr/bin/docker run --rm --init --name illm-one -p 127.0.0.1:9000:9000"
OUTSIDE = "-e HF_TOKEN -e HF_ENDPOINT -e HF_HUB_OFFLINE -e HTTPS_PROXY -e HTTP_PROXY -e NO_PROXY"
QUIET = "-e DO_NOT_TRACK -e HF_HUB_DISABLE_TELEMETRY"
HUB = "-v illm-huggingface:/root/.cache/huggingface"
DATA = "-v illm-huggingface:/data"
LLAMA = f"-v illm-llamacpp:/root/.cache/llama.cpp {HUB}"
COMMON = f"{QUIET} -e PYTHONUNBUFFERED"
AT = "--host 0.0.0.0 --port 9000"
LISTEN = "--hostname 0.0.0.0 --port 9000"

CASES: list[tuple[Kind, dict[str, Any], str]] = [
    (
        "vllm",
        {"gpus": ("0", "1"), "api_key": "SECRET"},
        f'{HEAD} --gpus "device=0,1" --ipc host {HUB} {OUTSIDE} {COMMON} -e VLLM_API_KEY -e VLLM_NO_USAGE_STATS '
        f"--entrypoint "
        f"vllm IMG serve org/model --served-model-name my-model {AT} --tensor-parallel-size 2",
    ),
    (
        "sglang",
        {},
        f"{HEAD} --gpus all --ipc host {HUB} {OUTSIDE} {COMMON} IMG python3 -m sglang.launch_server --model-path "
        f"org/model "
        f"--served-model-name my-model {AT}",
    ),
    (
        "tgi",
        {"device": "cpu"},
        f"{HEAD} --ipc host {DATA} {OUTSIDE} {QUIET} -e HUGGINGFACE_HUB_CACHE -e PROMETHEUS_PORT -e "
        f"PYTHONUNBUFFERED -e USAGE_STATS IMG "
        f"--model-id org/model {LISTEN} --shard-uds-path /tmp/text-generation-server-9000",
    ),
    (
        "ollama",
        {"volumes": ("ollama:/root/.ollama",)},
        f"{HEAD} -v ollama:/root/.ollama {OUTSIDE} {QUIET} -e OLLAMA_HOST -e OLLAMA_KEEP_ALIVE "
        "-e OLLAMA_MAX_LOADED_MODELS -e OLLAMA_NOPRUNE -e PYTHONUNBUFFERED IMG serve",
    ),
    (
        "llamacpp",
        {"model": "/m/a.gguf", "mmproj": "/p/b.gguf", "device": "cuda", "args": ("--flash-attn", "on")},
        f"{HEAD} --gpus all {LLAMA} -v /m:/m:ro -v /p:/p:ro {OUTSIDE} {QUIET} -e LLAMA_CACHE -e PYTHONUNBUFFERED "
        f"IMG --model /m/a.gguf --alias my-model {AT} "
        "--mmproj /p/b.gguf --flash-attn on",
    ),
    (
        "llamacpp",
        {"command": ("python3", "-m", "llama_cpp.server")},
        f"{HEAD} {LLAMA} {OUTSIDE} {QUIET} -e HOST -e LLAMA_CACHE -e PORT -e PYTHONUNBUFFERED --entrypoint python3 IMG "
        "-m llama_cpp.server --hf_model_repo_id org/model --model *Q4_K_M.gguf "
        f"--model_alias my-model {AT}",
    ),
    (
        "transformers",
        {"model": "/models/a"},
        f"{HEAD} -v illm-transformers:/root/.cache/huggingface -v /models/a:/models/a:ro {OUTSIDE} {COMMON} IMG "
        f"transformers serve /models/a {AT}",
    ),
    (
        "infinity",
        {},
        f"{HEAD} -v illm-huggingface:/app/.cache/huggingface {OUTSIDE} -e COLUMNS -e DO_NOT_TRACK -e HF_HOME -e "
        f"HF_HUB_DISABLE_TELEMETRY -e INFINITY_ANONYMOUS_USAGE_STATS "
        f"-e PYTHONUNBUFFERED IMG v2 --model-id org/model --served-model-name my-model {AT} --no-trust-remote-code",
    ),
    (
        "tei",
        {"env": {"HF_TOKEN": "SECRET"}},
        f"{HEAD} {DATA} {OUTSIDE} {QUIET} -e HUGGINGFACE_HUB_CACHE -e PYTHONUNBUFFERED -e SERVED_MODEL_NAME IMG "
        f"--model-id org/model {LISTEN} "
        "--uds-path /tmp/text-embeddings-inference-server-9000",
    ),
    (
        "command",
        {"command": ("serve", "{model}", "{host}:{port}"), "model": "/inside"},
        f"{HEAD} {OUTSIDE} {COMMON} IMG serve /inside 0.0.0.0:9000",
    ),
]


@pytest.mark.parametrize(("kind", "told", "argv"), CASES)
def test_the_command_line(kind: Kind, told: dict[str, Any], argv: str) -> None:
    command = launch(spec(kind, image="IMG", **told), PLACE)
    assert " ".join(command.argv) == argv
    assert command.cleanup == ("/usr/bin/docker", "rm", "-f", "illm-one")
    assert "SECRET" not in argv
    assert "CUDA_VISIBLE_DEVICES" not in command.env  # in there they are counted anew


def test_every_variable_that_is_passed_by_name_has_its_value_in_the_environment() -> None:
    command = launch(spec("vllm", image="IMG", api_key="SECRET", env={"A": "b"}), PLACE)
    named = {command.argv[at + 1] for at, word in enumerate(command.argv) if word == "-e"}
    assert set(command.env) <= named
    assert command.env["VLLM_API_KEY"] == "SECRET"
    assert command.env["A"] == "b"


@pytest.mark.parametrize(
    ("model", "volumes", "mounted"),
    [
        ("/m/a-00001-of-00002.gguf", (), ["/m:/m:ro"]),
        ("/a.gguf", (), ["/a.gguf:/a.gguf:ro"]),
        ("/models/a.gguf", ("/data:/models",), ["/data:/models"]),  # the path is the container's own
        ("/models-2/a.gguf", ("/data:/models",), ["/data:/models", "/models-2:/models-2:ro"]),
        ("/hub/models--o--m/snapshots/1a2b", (), ["/hub/models--o--m:/hub/models--o--m:ro"]),
        ("org/repo", (), []),
    ],
)
def test_model_files_are_seen_inside(model: str, volumes: tuple[str, ...], mounted: list[str]) -> None:
    argv = launch(spec("llamacpp", model, image="IMG", volumes=volumes), PLACE).argv
    seen = [argv[at + 1] for at, word in enumerate(argv) if word == "-v"]
    assert [volume for volume in seen if not volume.startswith("illm-")] == mounted


@pytest.mark.parametrize(
    ("volumes", "kept"),
    [
        ((), "illm-ollama:/root/.ollama"),
        (("/models:/models:ro",), "illm-ollama:/root/.ollama"),
        (("mine:/root/.ollama",), None),
        (("/data/root:/root",), None),
        (("/data/models:/root/.ollama/models",), None),
        (("/data:/root/.ollama-2",), "illm-ollama:/root/.ollama"),
    ],
)
def test_what_it_downloads_outlives_the_container_unless_the_user_says_where(
    volumes: tuple[str, ...], kept: str | None
) -> None:
    argv = launch(spec("ollama", image="IMG", volumes=volumes), PLACE).argv
    seen = [argv[at + 1] for at, word in enumerate(argv) if word == "-v"]
    assert seen == [*([kept] if kept else []), *volumes]


def test_what_a_container_cannot_do_is_refused() -> None:
    with pytest.raises(SpecError, match="Apple's GPU"):
        launch(spec("llamacpp", image="IMG", device="mps"), PLACE)
    with pytest.raises(SpecError, match="whole path"):
        launch(spec("llamacpp", "./a.gguf", image="IMG"), PLACE)


def test_an_ipv6_address_is_published() -> None:
    argv = launch(spec("tei", image="IMG"), Place("::1", 9000, container="c")).argv
    assert argv[:2] == ("docker", "run")
    assert "[::1]:9000:9000" in argv
