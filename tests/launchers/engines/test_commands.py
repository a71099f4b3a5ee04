"""The exact command line and environment of every kind of engine, and what is refused."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from launchers.engines.base import Place
from launchers.engines.table import ENGINES, launch
from launchers.spec import EngineSpec, Kind, SpecError
from tests.launchers.engines.specs import spec
from tests.test_documents import ROOT, rows

PLACE = Place("127.0.0.1", 9000, container="illm-one")
COMMON = {"DO_NOT_TRACK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
AT = "--host 127.0.0.1 --port 9000"
LLAMA_PYTHON = ("python3", "-m", "llama_cpp.server")

Case = tuple[EngineSpec, str, Mapping[str, str]]

MINIMAL: dict[str, Case] = {
    "vllm": (
        spec("vllm"),
        f"vllm serve org/model --served-model-name my-model {AT}",
        {"VLLM_NO_USAGE_STATS": "1"},
    ),
    "sglang": (
        spec("sglang"),
        f"python3 -m sglang.launch_server --model-path org/model --served-model-name my-model {AT}",
        {},
    ),
    "tgi": (
        spec("tgi"),
        "text-generation-launcher --model-id org/model --hostname 127.0.0.1 --port 9000 "
        "--shard-uds-path /tmp/text-generation-server-9000",
        {"USAGE_STATS": "off", "PROMETHEUS_PORT": "0"},
    ),
    "ollama": (
        spec("ollama", "qwen2:7b"),
        "ollama serve",
        {
            "OLLAMA_HOST": "127.0.0.1:9000",
            "OLLAMA_KEEP_ALIVE": "-1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_NOPRUNE": "1",
        },
    ),
    "llamacpp": (spec("llamacpp", "/m/a.gguf"), f"llama-server --model /m/a.gguf --alias my-model {AT}", {}),
    "transformers": (spec("transformers"), f"transformers serve org/model {AT}", {}),
    "infinity": (
        spec("infinity"),
        f"infinity_emb v2 --model-id org/model --served-model-name my-model {AT} --no-trust-remote-code",
        {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "COLUMNS": "200"},
    ),
    "tei": (
        spec("tei"),
        "text-embeddings-router --model-id org/model --hostname 127.0.0.1 --port 9000 "
        "--uds-path /tmp/text-embeddings-inference-server-9000",
        {"SERVED_MODEL_NAME": "my-model"},
    ),
    "command": (
        spec("command", "m.bin", command=("serve-it", "{model}", "--as={name}", "--at={host}:{port}", '{"a": {}}')),
        'serve-it m.bin --as=my-model --at=127.0.0.1:9000 {"a": {}}',
        {},
    ),
}

EVERYTHING: dict[str, Case] = {
    "vllm": (
        spec(
            "vllm", dtype="bfloat16", max_model_len=4096, gpu_memory=0.5, trust_remote_code=True, embedding=True,
            device="cuda", api_key="SECRET", gpus=("0", "1"), unload="sleep", args=("--swap-space", "4"),
            env={"VLLM_NO_USAGE_STATS": "0", "X": "y"},
        ),
        f"vllm serve org/model --served-model-name my-model {AT} --dtype bfloat16 --max-model-len 4096 "
        "--tensor-parallel-size 2 --gpu-memory-utilization 0.5 --trust-remote-code --runner pooling "
        "--enable-sleep-mode --swap-space 4",
        {
            "CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "VLLM_NO_USAGE_STATS": "0",
            "VLLM_API_KEY": "SECRET", "VLLM_SERVER_DEV_MODE": "1", "X": "y",
        },
    ),
    "sglang": (
        spec(
            "sglang", dtype="half", max_model_len=4096, tensor_parallel=2, gpu_memory=0.8, trust_remote_code=True,
            embedding=True, device="cuda", gpus=("2", "3"),
        ),
        f"python3 -m sglang.launch_server --model-path org/model --served-model-name my-model {AT} --dtype half "
        "--context-length 4096 --tp-size 2 --mem-fraction-static 0.8 --trust-remote-code --is-embedding --device cuda",
        {"CUDA_VISIBLE_DEVICES": "2,3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    ),
    "tgi": (
        spec(
            "tgi", dtype="float16", max_model_len=4096, gpu_memory=0.8, trust_remote_code=True, api_key="SECRET",
            gpus=("0", "GPU-1a2b"),
        ),
        "text-generation-launcher --model-id org/model --hostname 127.0.0.1 --port 9000 "
        "--shard-uds-path /tmp/text-generation-server-9000 --dtype float16 --max-total-tokens 4096 --num-shard 2 "
        "--cuda-memory-fraction 0.8 --trust-remote-code",
        {
            "CUDA_VISIBLE_DEVICES": "0,GPU-1a2b", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "USAGE_STATS": "off",
            "PROMETHEUS_PORT": "0",
            "API_KEY": "SECRET",
        },
    ),
    "ollama": (
        spec("ollama", "qwen2:7b", max_model_len=4096, embedding=True, device="cpu", env={"OLLAMA_MODELS": "/store"}),
        "ollama serve",
        {
            "CUDA_VISIBLE_DEVICES": "-1", "ROCR_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": "-1",
            "OLLAMA_HOST": "127.0.0.1:9000", "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_MAX_LOADED_MODELS": "1",
            "OLLAMA_NOPRUNE": "1", "OLLAMA_CONTEXT_LENGTH": "4096", "OLLAMA_MODELS": "/store",
        },
    ),
    "llamacpp": (
        spec(
            "llamacpp", "/m/a.gguf", mmproj="/m/p.gguf", max_model_len=4096, gpu_layers=-1, embedding=True,
            device="cpu", api_key="SECRET", args=("--flash-attn", "on"),
        ),
        f"llama-server --model /m/a.gguf --alias my-model {AT} --mmproj /m/p.gguf --ctx-size 4096 --gpu-layers 999 "
        "--embeddings --device none --flash-attn on",
        {"CUDA_VISIBLE_DEVICES": "-1", "LLAMA_API_KEY": "SECRET"},
    ),
    "llamacpp-repo": (
        spec("llamacpp", "org/repo-GGUF:Q8_0", gpu_layers=20),
        f"llama-server --hf-repo org/repo-GGUF:Q8_0 --alias my-model {AT} --gpu-layers 20",
        {},
    ),
    "llamacpp-python": (
        spec(
            "llamacpp", "/m/a.gguf", mmproj="/m/p.gguf", max_model_len=4096, gpu_layers=-1, embedding=True,
            api_key="SECRET", command=LLAMA_PYTHON,
        ),
        f"python3 -m llama_cpp.server --model /m/a.gguf --model_alias my-model {AT} --clip_model_path /m/p.gguf "
        "--n_ctx 4096 --n_gpu_layers -1 --embedding true",
        {"HOST": "127.0.0.1", "PORT": "9000", "API_KEY": "SECRET"},
    ),
    "llamacpp-python-repo": (
        spec("llamacpp", "org/repo-GGUF", device="cpu", command=LLAMA_PYTHON),
        "python3 -m llama_cpp.server --hf_model_repo_id org/repo-GGUF --model *Q4_K_M.gguf --model_alias my-model "
        f"{AT} --n_gpu_layers 0",
        {"CUDA_VISIBLE_DEVICES": "-1", "HOST": "127.0.0.1", "PORT": "9000"},
    ),
    "transformers": (
        spec("transformers", dtype="float32", trust_remote_code=True, device="mps"),
        f"transformers serve org/model {AT} --device mps --dtype float32 --trust-remote-code",
        {},
    ),
    "infinity": (
        spec("infinity", dtype="float16", trust_remote_code=True, embedding=True, device="cuda", api_key="SECRET"),
        f"infinity_emb v2 --model-id org/model --served-model-name my-model {AT} --device cuda --dtype float16 "
        "--trust-remote-code",
        {"INFINITY_ANONYMOUS_USAGE_STATS": "0", "COLUMNS": "200", "INFINITY_API_KEY": "SECRET"},
    ),
    "tei": (
        spec("tei", dtype="float16", embedding=True, api_key="SECRET"),
        "text-embeddings-router --model-id org/model --hostname 127.0.0.1 --port 9000 "
        "--uds-path /tmp/text-embeddings-inference-server-9000 --dtype float16",
        {"SERVED_MODEL_NAME": "my-model", "API_KEY": "SECRET"},
    ),
    "command": (
        spec("command", None, command=("run",), args=("-p", "{port}"), env={"K": "{api_key}@{name}"}, api_key="SECRET"),
        "run -p 9000",
        {"K": "SECRET@my-model"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MINIMAL.values(), ids=MINIMAL)
def test_minimal(case: Case) -> None:
    given, argv, env = case
    command = launch(given, PLACE)
    assert " ".join(command.argv) == argv
    assert command.env == COMMON | env
    assert command.cleanup == ()


@pytest.mark.parametrize("case", EVERYTHING.values(), ids=EVERYTHING)
def test_everything_set(case: Case) -> None:
    given, argv, env = case
    command = launch(given, PLACE)
    assert " ".join(command.argv) == argv
    assert command.env == COMMON | env


def test_every_kind_is_there() -> None:
    assert set(ENGINES) == set(get_args(Kind)) == set(MINIMAL)


@pytest.mark.parametrize("kind", [kind for kind, engine in ENGINES.items() if "api_key" in engine.options])
def test_a_key_stands_in_the_environment_and_not_in_the_command_line(kind: Kind) -> None:
    given = spec(kind, api_key="SECRET", command=("x", "{port}") if kind == "command" else (), env={"E": "{api_key}"})
    command = launch(given, PLACE)
    assert any("SECRET" in value for value in command.env.values()) != (kind == "sglang")
    # SGLang has no other way to be told.
    assert any("SECRET" in word for word in command.argv) == (kind == "sglang")


@pytest.mark.parametrize("kind", [kind for kind in ENGINES if kind != "command"])
def test_the_users_words_come_last_and_win(kind: Kind) -> None:
    given = spec(kind, "m", args=("--x", "{port}"), env={"DO_NOT_TRACK": "0"})
    command = launch(given, PLACE)
    assert command.argv[-2:] == ("--x", "{port}")
    assert command.env["DO_NOT_TRACK"] == "0"


def test_what_was_found_is_started() -> None:
    place = Place("::1", 9000, program=("/env/bin/vllm", "serve"))
    assert launch(spec("vllm"), place).argv[:3] == ("/env/bin/vllm", "serve", "org/model")


def test_one_word_of_command_stands_for_the_first_several_for_all() -> None:
    assert launch(spec("vllm", command=("/opt/vllm",)), PLACE).argv[:3] == ("/opt/vllm", "serve", "org/model")
    module = ("python", "-m", "vllm.entrypoints.openai.api_server")
    assert launch(spec("vllm", command=module), PLACE).argv[:5] == (*module, "--model", "org/model")


def test_an_ipv6_address() -> None:
    assert launch(spec("ollama", "m"), Place("::1", 9000)).env["OLLAMA_HOST"] == "[::1]:9000"


@pytest.mark.parametrize(
    ("model", "option"),
    [
        ("/m/a.gguf", "--model"), ("a.gguf", "--model"), ("./a", "--model"), ("sub/a.gguf", "--model"),
        ("org/repo", "--hf-repo"), ("org/repo:Q4_0", "--hf-repo"), ("a/b/c", "--model"),
    ],
)  # fmt: skip
def test_a_file_is_told_from_a_repository(model: str, option: str) -> None:
    assert launch(spec("llamacpp", model), PLACE).argv[1:3] == (option, model)


REFUSED: list[tuple[Kind, dict[str, Any], str]] = [
    ("vllm", {"mmproj": "/p"}, "one: vLLM has no option `mmproj` (which is for llamacpp)"),
    ("vllm", {"gpu_layers": 3}, "has no option `gpu_layers`"),
    ("vllm", {"device": "mps"}, "can't use `device: mps`; it can use cpu or cuda"),
    ("vllm", {"unload": "sleep", "device": "cpu"}, "sleeps only on a GPU"),
    ("vllm", {"device": "cpu", "gpus": ("0",)}, "contradict"),
    ("vllm", {"model": None}, "vLLM needs a `model`"),
    ("sglang", {"unload": "sleep"}, "SGLang has no option `unload: sleep` (which is for vllm)"),
    ("tgi", {"embedding": True}, "TGI has no option `embedding`"),
    ("ollama", {"api_key": "SECRET"}, "Ollama has no option `api_key`"),
    ("ollama", {"model": "/m/a.gguf"}, "`kind: llamacpp` runs a GGUF file"),
    ("llamacpp", {"dtype": "f16"}, "llama.cpp has no option `dtype`"),
    ("transformers", {"max_model_len": 1}, "transformers serve has no option `max_model_len`"),
    ("infinity", {"max_model_len": 1}, "Infinity has no option `max_model_len`"),
    ("tei", {"trust_remote_code": True}, "TEI has no option `trust_remote_code`"),
    ("command", {"command": ("run", "{port}"), "dtype": "f16"}, "the command has no option `dtype`"),
    ("command", {"command": ("run",)}, "write {port} into its command"),
    ("command", {"command": ("{port}", "{model}"), "model": None}, "{model} is used, but no `model` is set"),
    ("command", {"command": ("{port}", "{api_key}"), "api_key": "SECRET"}, "put it into `env`"),
]


@pytest.mark.parametrize(("kind", "told", "text"), REFUSED)
def test_what_an_engine_has_not_got_is_refused(kind: Kind, told: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as refused:
        launch(spec(kind, **told), PLACE)
    assert text in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_a_program_that_listens_at_a_port_of_its_own() -> None:
    assert launch(spec("command", command=("run",), port=7000), PLACE).argv == ("run",)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vllm", "my-model"), ("sglang", "my-model"), ("llamacpp", "my-model"), ("infinity", "my-model"),
        ("tgi", "org/model"), ("tei", "org/model"), ("ollama", "org/model"), ("transformers", "org/model"),
        ("command", None),
    ],
)  # fmt: skip
def test_the_name_by_which_an_engine_knows_its_model(kind: Kind, name: str | None) -> None:
    assert ENGINES[kind].listed(spec(kind)) == name


@pytest.mark.parametrize(
    ("kind", "told", "need"),
    [
        ("vllm", {}, 92), ("vllm", {"gpu_memory": 0.5}, 50), ("sglang", {}, 90), ("sglang", {"gpu_memory": 0.5}, 50),
        ("tgi", {}, 95), ("tgi", {"gpu_memory": 0.5}, 47), ("llamacpp", {}, None), ("ollama", {}, None),
    ],
)  # fmt: skip
def test_the_share_of_a_gpu_that_it_takes(kind: Kind, told: dict[str, Any], need: int | None) -> None:
    assert ENGINES[kind].need(spec(kind, **told), 100) == need
    assert ENGINES[kind].need(spec(kind, **told), None) is None


def test_the_page_says_how_each_gets_its_key() -> None:
    _, _, *table = rows(ROOT / "docs" / "launcher.md", "Kind")
    told = {row[0].strip("`"): row[4].partition(" (")[0] for row in table}
    for kind, engine in ENGINES.items():
        if kind == "command":
            continue
        if "api_key" not in engine.options:
            assert told[kind] == "none"
            continue
        command = launch(spec(kind, api_key="sk-secret"), PLACE)
        assert told[kind] == ("environment" if "sk-secret" in command.env.values() else "command line")
        assert ("sk-secret" in command.argv) == (told[kind] == "command line")
