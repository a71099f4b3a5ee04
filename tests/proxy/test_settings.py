"""Settings: sources and their order, what is refused, the words in which that is said, and the files in configs/."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from proxy.dialects.base import EngineKind
from proxy.settings import (
    BackendSettings,
    EngineSettings,
    ModelSettings,
    RemoteLauncherSettings,
    ReplicaSettings,
    ServerSettings,
    Settings,
    SettingsError,
    load_settings,
    schema,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SECRET = "sk-very-secret"

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the file into an empty folder, which is the current one, so that its name in messages is short."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("illm.yaml").write_text(text, encoding="utf-8")
        return Path("illm.yaml")

    return write


def problems(config: Path | None, environ: dict[str, str] | None = None, overrides: Any = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(config, environ or {}, overrides or {})
    assert SECRET not in str(caught.value)
    return str(caught.value).split("\n")


# --- sources -------------------------------------------------------------------------------------------------------


def test_nothing_given_is_the_defaults(write: Write) -> None:
    settings = load_settings(None, {})
    assert settings == Settings()
    assert settings.explicit == frozenset()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)


def test_arguments_alone_never_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER", '{"port": 9}')
    monkeypatch.setenv("MODEL", "from-outside")
    assert Settings().model is None
    assert Settings().server.port == 8000


def test_order_of_the_sources(write: Write) -> None:
    file = write("server: {host: a, port: 1, drain_timeout: 1}\n")
    environ = {"ILLM_HOST": "b", "ILLM_PORT": "2"}
    server = load_settings(file, environ, {"server": {"host": "c", "port": None}}).server
    assert (server.host, server.port, server.drain_timeout) == ("c", 2, 1.0)


def test_lists_are_replaced_and_mappings_are_merged(write: Write) -> None:
    file = write("server: {api_keys: [a, b]}\nbackends: {x: {base_url: 'http://x', options: {a: 1, b: 2}}}\n")
    settings = load_settings(file, {"ILLM_API_KEYS": "c", "ILLM_BACKENDS__X__OPTIONS": '{"b": 3}'})
    assert [key.get_secret_value() for key in settings.server.api_keys] == ["c"]
    assert settings.backends["x"].options == {"a": 1, "b": 3}


def test_the_usual_file_is_read_where_there_is_one(write: Write) -> None:
    Path("configs").mkdir()
    Path("configs/illm.yaml").write_text("model: usual\n")
    assert load_settings(None, {}).model == "usual"
    assert load_settings(write("model: given\n"), {}).model == "given"
    assert load_settings(None, {"ILLM_CONFIG": "illm.yaml"}).model == "given"
    assert load_settings(Path("configs/illm.yaml"), {"ILLM_CONFIG": "illm.yaml"}).model == "usual"


@pytest.mark.parametrize("environ", [{}, {"ILLM_CONFIG": "absent.yaml"}])
def test_a_named_file_that_is_missing(write: Write, environ: dict[str, str]) -> None:
    config = None if environ else Path("absent.yaml")
    assert problems(config, environ) == ["absent.yaml: can't be read: No such file or directory"]


def test_explicit_knows_what_was_set_even_to_its_default(write: Write) -> None:
    assert "server.port" in load_settings(write("server: {port: 8000}\n"), {}).explicit
    assert "server.port" in load_settings(write(""), {"ILLM_PORT": "8000"}).explicit
    assert "server.port" in load_settings(write(""), {}, {"server": {"port": 8000}}).explicit
    assert "server.port" not in load_settings(write("server: {port: }\n"), {"ILLM_HOST": "x"}).explicit


# --- environment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "place", "value"),
    [
        ("ILLM_FRAMEWORK", "transformer", "framework", "transformers"),
        ("ILLM_MODEL", "m", "model", "m"),
        ("ILLM_EMBEDDING_MODEL", "e", "embedding_model", "e"),
        ("ILLM_HOST", "::", "server.host", "::"),
        ("ILLM_PORT", "9000", "server.port", 9000),
        ("ILLM_DEVICE", "mps", "device", "mps"),
        ("ILLM_AUTO_INSTALL", "true", "auto_install", True),
        ("ILLM_MAX_TOKENS", "7", "defaults.max_tokens", 7),
        ("ILLM_TEMPERATURE", "0.5", "defaults.temperature", 0.5),
        ("ILLM_TOP_P", "1", "defaults.top_p", 1.0),
        ("ILLM_TOP_K", "-1", "defaults.top_k", -1),
        ("ILLM_REPETITION_PENALTY", "1.1", "defaults.repetition_penalty", 1.1),
        ("ILLM_SERVER__PORT", "9001", "server.port", 9001),
        ("ILLM_SERVER__MAX_BODY", "10mb", "server.max_body", 10_000_000),
        ("ILLM_SERVER__CORS_ORIGINS", "*", "server.cors_origins", ("*",)),
        ("ILLM_DISCOVERY__LOCAL", "no", "discovery.local", False),
        ("ILLM_HEALTH", '{"down_after": 9}', "health.down_after", 9),
        ("ILLM_MODEL", "", "model", None),
    ],
)
def test_a_variable(write: Write, variable: str, text: str, place: str, value: object) -> None:
    found: Any = load_settings(write(""), {variable: text})
    for name in place.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize("text", ["a, b", '["a", "b"]'])
def test_api_keys_from_the_environment(write: Write, text: str) -> None:
    keys = load_settings(write(""), {"ILLM_API_KEYS": text}).server.api_keys
    assert [key.get_secret_value() for key in keys] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((kind, kind) for kind in ("vllm", "sglang", "tgi", "ollama", "llamacpp", "transformers", "infinity", "tei")),
        ("transformer", "transformers"),
    ],
)
def test_a_backend_for_each_kind(write: Write, name: str, kind: str) -> None:
    environ = {f"ILLM_{name.upper()}_BASE_URL": "http://h:1/v1/", f"ILLM_{name.upper()}_API_KEY": "k"}
    (backend,) = load_settings(write(""), environ).backends.items()
    assert backend[0] == backend[1].kind == kind
    assert backend[1].root == "http://h:1"
    assert backend[1].api_key is not None
    assert backend[1].api_key.get_secret_value() == "k"


def test_a_base_url_variable_overrides_the_files_backend_of_that_name(write: Write) -> None:
    file = write("backends:\n  tgi: {kind: vllm, base_url: 'http://file', model: m}\n")
    backend = load_settings(file, {"ILLM_TGI_BASE_URL": "http://env"}).backends["tgi"]
    assert (backend.kind, backend.base_url, backend.model) == ("tgi", "http://env", "m")


def test_free_names_are_matched_with_the_files(write: Write) -> None:
    file = write("backends: {My-GPU.1: {base_url: 'http://a'}}\nmodels: {Qwen/Qwen2-7B: {}}\n")
    environ = {
        "ILLM_BACKENDS__MY_GPU_1__KIND": "tei",
        "ILLM_MODELS__QWEN_QWEN2_7B__ALIASES": "q, r",
        "ILLM_MODELS__QWEN_QWEN2_7B__REPLICAS": "My-GPU.1",
        "ILLM_BACKENDS__NEW__BASE_URL": "http://b",
        "ILLM_BACKENDS__NEW__OPTIONS__NUM_CTX": "8192",
        "ILLM_BACKENDS__NEW__OPTIONS__KEEP_ALIVE": "10m",
    }
    settings = load_settings(file, environ)
    assert settings.backends["My-GPU.1"].kind == "tei"
    assert settings.models["Qwen/Qwen2-7B"].aliases == ("q", "r")
    assert settings.models["Qwen/Qwen2-7B"].replicas == (ReplicaSettings(backend="My-GPU.1"),)
    assert settings.backends["new"].options == {"num_ctx": 8192, "keep_alive": "10m"}


def test_the_more_specific_variable_wins(write: Write) -> None:
    environ = {"ILLM_SERVER": '{"port": 1, "host": "h"}', "ILLM_PORT": "2"}
    assert load_settings(write(""), environ).server == ServerSettings(host="h", port=2)


def test_other_programs_variables_and_those_of_the_tools_are_left_alone(write: Write) -> None:
    environ = {"ILLM_CONFIG": "illm.yaml", "ILLM_ENGINES": "x", "ILLM_VENV": "x", "PORT": "x", "MODEL": "y"}
    write("")
    assert load_settings(None, environ) == Settings()


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ILLM_PORT": "abc"}, "ILLM_PORT: 'abc' is not a whole number"),
        ({"ILLM_PORT": "70000"}, "ILLM_PORT: '70000' is more than 65535, the most allowed"),
        ({"ILLM_AUTO_INSTALL": "maybe"}, "ILLM_AUTO_INSTALL: 'maybe' is not true or false"),
        ({"ILLM_DEVICE": "gpu"}, "ILLM_DEVICE: 'gpu' is not one of cpu, cuda, mps"),
        ({"ILLM_PROT": "1"}, "ILLM_PROT: unknown variable; did you mean ILLM_PORT"),
        ({"ILLM_SERVER__PRT": "1"}, "ILLM_SERVER__PRT: unknown variable; did you mean 'ILLM_SERVER__PORT'? Allowed: "),
        ({"ILLM_PORT__X": "1"}, "ILLM_PORT__X: unknown variable"),
        ({"ILLM_SERVER__PORT__X": "1"}, "ILLM_SERVER__PORT__X: unknown variable"),
        ({"ILLM_": "1"}, "ILLM_: unknown variable"),
        ({"ILLM_BACKENDS__": "{}"}, "ILLM_BACKENDS__: unknown variable"),
        (
            {"ILLM_BACKENDS__FAST__KND": "tgi"},
            "ILLM_BACKENDS__FAST__KND: unknown variable; did you mean 'ILLM_BACKENDS__FAST__KIND'?",
        ),
        ({"ILLM_QQQQQQQQ": "1"}, "ILLM_QQQQQQQQ: unknown variable. Allowed: ILLM_API_KEYS, "),
        ({"ILLM_PORT": "1", "ILLM_SERVER__PORT": "1"}, "ILLM_SERVER__PORT: ILLM_PORT sets server.port too"),
        ({"ILLM_SERVER": "{"}, "ILLM_SERVER: not the JSON that this variable needs"),
        ({"ILLM_SERVER": '{"prt": 1}'}, "ILLM_SERVER: server.prt: unknown name; did you mean 'port'?"),
        ({"ILLM_API_KEYS": f'["{SECRET}'}, "ILLM_API_KEYS: not the JSON that this variable needs"),
        ({"ILLM_API_KEYS": f"{SECRET} x"}, "ILLM_API_KEYS: server.api_keys[0]: a key is one or more visible"),
        ({"ILLM_API_KEYS": "a,"}, "ILLM_API_KEYS: server.api_keys[1]: a key is one or more visible"),
        ({"ILLM_API_KEYS": '[{"k": "sk-very-secret"}]'}, "ILLM_API_KEYS: server.api_keys[0]: the value is not text"),
        ({"ILLM_VLLM_API_KEY": SECRET}, "ILLM_VLLM_API_KEY: backends.vllm.base_url: this is required, and missing"),
        (
            {"ILLM_VLLM_BASE_URL": f"http://me:{SECRET}@h"},
            "ILLM_VLLM_BASE_URL: a user name or password in the URL is not supported",
        ),
        ({"ILLM_VLLM_BASE_URL": "10.0.0.5:8000"}, "ILLM_VLLM_BASE_URL: an http:// or https:// URL is needed"),
    ],
)
def test_a_wrong_variable(write: Write, environ: dict[str, str], said: str) -> None:
    (problem,) = problems(write(""), environ)
    assert problem.startswith(said)


def test_a_wrong_override(write: Write) -> None:
    (problem,) = problems(write("server: {port: 1}\n"), {}, {"server": {"port": "x"}})
    assert problem == "command line: server.port: 'x' is not a whole number"


# --- the file ------------------------------------------------------------------------------------------------------


def test_a_whole_file(write: Write) -> None:
    file = write(
        """\
server:   {host: 127.0.0.1, port: 8000, api_keys: []}
backends:
  fast:   {kind: vllm,   base_url: http://10.0.0.5:8000}
  laptop: {kind: ollama, base_url: http://127.0.0.1:11434, options: {num_ctx: 8192, keep_alive: 10m, stop: null}}
  old:    {kind: tgi,    base_url: http://127.0.0.1:8080, model: mistral-7b}
models:
  qwen:
    aliases: [gpt-4o-mini]
    replicas: [{backend: fast, model: Qwen/Qwen2-7B-Instruct}, laptop]
"""
    )
    settings = load_settings(file, {})
    assert settings.backends["laptop"].options == {"num_ctx": 8192, "keep_alive": "10m", "stop": None}
    assert settings.models["qwen"] == ModelSettings(
        aliases=("gpt-4o-mini",),
        replicas=(
            ReplicaSettings(backend="fast", model="Qwen/Qwen2-7B-Instruct"),
            ReplicaSettings(backend="laptop"),
        ),
    )


@pytest.mark.parametrize("text", ["", "# only this\n", "---\n", "null\n", "server:\nbackends:\nmodel: \n", "\ufeff"])
def test_an_empty_file_or_section_is_the_defaults(write: Write, text: str) -> None:
    assert load_settings(write(text), {}) == Settings()


def test_words_are_read_as_editors_read_them(write: Write) -> None:
    file = write("backends: {x: {base_url: 'http://x', options: {a: no, b: 12:30, c: 2024-01-01, d: 1e-3, e: 0o10}}}")
    assert load_settings(file, {}).backends["x"].options == {
        "a": "no",
        "b": "12:30",
        "c": "2024-01-01",
        "d": 1e-3,
        "e": 8,
    }


def test_anchors_work(write: Write) -> None:
    file = write(
        "backends:\n  a: {base_url: 'http://a', options: &o {x: 1}}\n  b: {base_url: 'http://b', options: *o}\n"
    )
    settings = load_settings(file, {"ILLM_BACKENDS__A__OPTIONS__X": "2"})
    assert (settings.backends["a"].options, settings.backends["b"].options) == ({"x": 2}, {"x": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "backends:\n  fast:\n    base_url: http://a\n    knd: vllm\n",
            ":4: backends.fast.knd: unknown name; did you mean 'kind'? Allowed: api_key, base_url, ",
        ),
        (
            "backends:\n  fast:\n    base_url: http://a\n    kind: vlm\n",
            ":4: backends.fast.kind: 'vlm' is not one of infinity, llamacpp, ollama, openai, sglang, tei, tgi, ",
        ),
        ("motors: {}\n", ":1: motors: unknown name. Allowed: auto_install, backends, "),
        ("_env_file: x\n", ":1: _env_file: unknown name"),
        ("_build_sources: 5\n", ":1: _build_sources: unknown name"),
        ("server:\n  port: abc\n", ":2: server.port: 'abc' is not a whole number"),
        ("server:\n  port: 0\n", ":2: server.port: 0 is less than 1, the least allowed"),
        ("server:\n  port: 80.5\n", ":2: server.port: 80.5 is not a whole number"),
        ("server:\n  max_body: 3 parsecs\n", ":2: server.max_body: '3 parsecs' is not a size; "),
        ("server:\n  max_body: -1\n", ":2: server.max_body: -1 is not greater than 0"),
        ("server:\n  drain_timeout: .inf\n", ":2: server.drain_timeout: inf is not a number"),
        ("server:\n  cors_origins: [localhost]\n", ":2: server.cors_origins[0]: an origin is scheme://host"),
        ("server: 5\n", ":1: server: names with values (name: value) belong here, not one value"),
        ("server: [a]\n", ":1: server: names with values (name: value) belong here, not a list"),
        (f"server:\n  api_keys: {SECRET}\n", ":2: server.api_keys: a list belongs here ([a, b]), not one value"),
        ("server:\n  api_keys:\n    - a\n    - 77112233\n", ":4: server.api_keys[1]: the value is not text; put it in"),
        (f"backends:\n  a: {SECRET}\n", ":2: backends.a: names with values (name: value) belong here"),
        ("backends:\n  a:\n", ":2: backends.a.base_url: this is required, and missing"),
        ("backends:\n  a:\n    kind: tgi\n", ":2: backends.a.base_url: this is required, and missing"),
        ("model: 7\n", ":1: model: 7 is not text; put it in quotes"),
        ("model: ''\n", ":1: model: "),
        ("defaults:\n  top_p: 2\n", ":2: defaults.top_p: 2 is more than 1, the most allowed"),
        (
            "backends: {b: {base_url: 'http://b'}}\nmodels:\n  m:\n    replicas:\n      - b\n      - backend: c\n",
            ":6: models.m.replicas[1].backend: there is no backend 'c'; known backends: b",
        ),
        (
            "models:\n  m: {replicas: [b]}\n",
            ":2: models.m.replicas[0].backend: there is no backend 'b'; known backends: none",
        ),
        ("models:\n  m: {}\n  n:\n    aliases: [m]\n", ":4: models.n.aliases[0]: 'm' is already the name of models.m"),
        ("models:\n  m: {aliases: [x]}\n  n: {aliases: [x]}\n", ":3: models.n.aliases[0]: 'x' is already an alias of"),
        # YAML itself
        ("- a\n", ":1: the file must be names with values (server:, backends:, …), but it is a list"),
        ("hello\n", ":1: the file must be names with values (server:, backends:, …), but it is a single value"),
        ("server:\n  port: 1\n  port: 2\n", ":3: server.port: given twice, first on line 2; keep one"),
        ("model: a: b\n", ":1:9: ': ' can't be here; "),
        ("server:\n\tport: 1\n", ":2:1: this character can't start a value; indent with spaces, not tabs"),
        (
            "server: {port: 1\nmodel: x\n",
            ":2:6: expected ',' or '}': the mapping opened with '{' goes on here (opened on",
        ),
        ("model: [a, b\n", ":2:1: expected ',' or ']': the list opened with '[' goes on here (opened on line 1)"),
        ("server:\n  port: 1\n host: x\n", ":3:2: this line is indented differently"),
        (f'server: {{api_keys: ["{SECRET}\n', ":2:1: the file ends inside a quoted text"),
        (f"model: *{SECRET}\n", ":1:8: '*' refers to an '&' anchor that the file does not have"),
        ("model: x\n---\nmodel: y\n", ":2:1: '---' begins a second document"),
        (
            "model: !!python/object/apply:os.getcwd []\n",
            ":1: model: tags (words that begin with '!') are not supported",
        ),
        ("model: !env HOME\n", ":1: model: unsupported '!' tag"),
        ("model: !!int abc\n", ":1: model: this is not what '!!int' means"),
        ("models:\n  7: {}\n", ":2: models: a name here is not text; put it in quotes"),
        ("models:\n  a: &a {aliases: [*a]}\n", ":2: models.a.aliases[0]: an alias ('*') that contains itself"),
        ("model: a\nframework: \x07\n", ":2: a control character that YAML does not allow"),
    ],
)
def test_a_wrong_file(write: Write, text: str, said: str) -> None:
    (problem,) = problems(write(text))
    assert problem.startswith(f"illm.yaml{said}")
    assert "77112233" not in problem


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "illm.yaml").write_bytes("a: 1\nmodel: größe\n".encode("latin-1"))
    (problem,) = problems(tmp_path / "illm.yaml")
    assert problem.endswith("illm.yaml:2: not UTF-8 text")


def test_every_problem_is_told_in_the_files_order(write: Write) -> None:
    text = "model: 7\nbackends:\n  a: {base_url: x}\nserver: {port: x, prt: 1}\ndefaults:\n  top_k: z\n"
    told = problems(write(text), {"ILLM_PROT": "1", "ILLM_TOP_P": "x"})
    assert [problem.split(": ")[0] for problem in told] == [
        "ILLM_PROT",
        "ILLM_TOP_P",
        *(f"illm.yaml:{line}" for line in (1, 3, 4, 4, 6)),
    ]


def test_a_variable_over_a_wrong_section_leaves_the_sections_own_error(write: Write) -> None:
    (problem,) = problems(write("server: 5\n"), {"ILLM_PORT": "9"})
    assert problem.startswith("illm.yaml:1: server: names with values")


# --- values --------------------------------------------------------------------------------------------------------


def test_everything_is_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.model = "x"
    with pytest.raises(ValidationError):
        settings.server.port = 1


def test_secrets_stay_out_of_texts() -> None:
    settings = Settings.model_validate(
        {
            "server": {"api_keys": [SECRET]},
            "backends": {"a": {"base_url": "http://a", "api_key": SECRET}},
        }
    )
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"server": {"api_keys": [f"{SECRET} "]}})
    assert SECRET not in str(caught.value)


def test_wrong_references_are_refused_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match=r"models\.m\.replicas\[0\]\.backend: there is no backend '\{x\}'"):
        Settings.model_validate({"models": {"m": {"replicas": ["{x}"]}}})


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("http://h:8000", "http://h:8000"),
        ("http://h:8000/", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1/", "http://h:8000"),
        ("https://h/openai/v1//", "https://h/openai"),
        ("http://[::1]:1/v1", "http://[::1]:1"),
        ("http://h/v10", "http://h/v10"),
        ("http://v1", "http://v1"),
    ],
)
def test_the_root_of_a_base_url(given: str, root: str) -> None:
    assert BackendSettings(base_url=given).root == root


@pytest.mark.parametrize(
    "url",
    ["", "h", "localhost:8000", "ftp://h", "http://", "http://h:99999", "http://h:x", "http://[::1", "http://u@h",
     "http://h/?a=1", "http://h/#a", "http://h /v1", "http://h/\r\nx: y", "unix:///run/x.sock"],
)  # fmt: skip
def test_a_base_url_that_is_none(url: str) -> None:
    with pytest.raises(ValidationError):
        BackendSettings(base_url=url)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("10b", 10), ("2kB", 2000), ("2KiB", 2048), ("10mb", 10**7), ("64MiB", 64 * 1024**2),
     ("1.5 GiB", 3 * 1024**3 // 2), (" 1 TB ", 10**12), (77, 77)],
)  # fmt: skip
def test_sizes(text: str | int, size: int) -> None:
    assert ServerSettings.model_validate({"max_body": text}).max_body == size


@pytest.mark.parametrize("text", ["", "MiB", "1 2", "1e9", "64M", "-1", "0", "0.1", 0, -5])
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(ValidationError):
        ServerSettings.model_validate({"max_body": text})


# --- the files that people copy ------------------------------------------------------------------------------------

EXAMPLES = sorted((CONFIGS / "examples").glob("*.yaml"))
OTHERS = {"aliases", "engines-docker", "engines-swap", "engines-vllm", "gpu-host", "gpu-host-remote", "mixed"} | {
    "open-to-the-network",
    "replicas",
}
NEEDS = {  # what an example says it has from the environment
    "gpu-host": {"ILLM_LAUNCHER__API_KEY": "k"},
    "gpu-host-remote": {"ILLM_LAUNCHERS__GPU_HOST__API_KEY": "k"},
    "openai": {"ILLM_BACKENDS__HOSTED__API_KEY": "k"},
    "open-to-the-network": {"ILLM_API_KEYS": "first,second"},
}


def uncommented() -> str:
    """configs/illm.yaml with every setting in force; what is prose has a space behind its '#'."""
    return re.sub(r"^#(?=\w|  )", "", (CONFIGS / "illm.yaml").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_commented_file_sets_nothing() -> None:
    settings = load_settings(CONFIGS / "illm.yaml", {})
    assert settings == Settings()
    assert settings.explicit == frozenset()


def test_every_comment_in_it_is_a_valid_setting_and_none_is_missing(write: Write) -> None:
    settings = load_settings(write(uncommented()), {})
    assert settings.model_fields_set == set(Settings.model_fields)
    for name in ("server", "defaults", "health", "upstream", "discovery", "launcher"):
        section = getattr(settings, name)
        assert section.model_fields_set == set(type(section).model_fields)
    used = set().union(*(backend.model_fields_set for backend in settings.backends.values()))
    assert used == set(BackendSettings.model_fields)
    named = set().union(*(model.model_fields_set for model in settings.models.values()))
    assert named == set(ModelSettings.model_fields)
    engines = set().union(*(engine.model_fields_set for engine in settings.engines.values()))
    assert engines == set(EngineSettings.model_fields)
    remote = set().union(*(launcher.model_fields_set for launcher in settings.launchers.values()))
    assert remote == set(RemoteLauncherSettings.model_fields)
    # what it says of defaults is so
    assert settings.server == ServerSettings()
    assert settings.upstream == Settings().upstream
    assert settings.health == Settings().health
    usual, engine = EngineSettings(kind="tei", model="m"), settings.engines["coder"]
    for name in ("start", "abandon", "restarts", "start_timeout", "stop_timeout", "min_residency"):
        assert getattr(engine, name) == getattr(usual, name), name
    for name in ("orphans", "linger", "watch", "wait", "bind"):
        assert getattr(settings.launcher, name) == getattr(Settings().launcher, name), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads(example: Path) -> None:
    settings = load_settings(example, NEEDS.get(example.stem, {}))
    assert settings.backends or settings.engines or settings.launchers
    kinds = {backend.kind for backend in settings.backends.values()}
    assert example.stem in OTHERS or kinds == {example.stem}


def test_there_is_an_example_for_each_engine() -> None:
    assert {path.stem for path in EXAMPLES} == set(get_args(EngineKind)) | OTHERS


def test_examples_hold_no_keys() -> None:
    """People copy them, and don't change what is in there."""
    for example in EXAMPLES:
        keys = re.findall(r"api_keys?: *[^\s#\[{]", example.read_text(encoding="utf-8"))
        assert keys == [], example.name


def test_the_launcher_of_the_gpu_host_does_not_start_without_a_key() -> None:
    with pytest.raises(SettingsError, match=r"ILLM_LAUNCHER__API_KEY"):
        load_settings(CONFIGS / "examples" / "gpu-host.yaml", {})


def test_the_variables_that_examples_name_are_right() -> None:
    for name, environ in NEEDS.items():
        text = (CONFIGS / "examples" / f"{name}.yaml").read_text(encoding="utf-8")
        assert [variable for variable in environ if variable not in text] == []


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_beside_them_load(path: Path) -> None:
    load_settings(path, {})


@pytest.mark.parametrize("path", [CONFIGS / "illm.yaml", *EXAMPLES], ids=lambda path: path.stem)
def test_files_name_the_schema_that_is_there(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / name).resolve() == CONFIGS / "illm.schema.json"


def test_the_schema_agrees_with_the_files() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for text in (uncommented(), *(path.read_text(encoding="utf-8") for path in EXAMPLES)):
        validator.validate(yaml.safe_load(text))
    wrong = [
        {"motors": {}},
        {"engines": {"a": {}}},
        {"engines": {"a": {"kind": "openai"}}},
        {"engines": {"a": {"kind": "tei", "ttl": "soon"}}},
        {"launcher": {"orphans": "keep"}},
        {"launchers": {"a": {}}},
        {"server": {"prt": 1}},
        {"server": {"port": 0}},
        {"server": {"max_body": "64 parsecs"}},
        {"backends": {"a": {}}},
        {"backends": {"a": {"base_url": "h:8000"}}},
        {"backends": {"a": {"base_url": "http://h", "kind": "vlm"}}},
        {"models": {"m": {"replicas": [{"model": "x"}]}}},
    ]
    assert [value for value in wrong if validator.is_valid(value)] == []
    right = [
        {"models": {"m": {"replicas": ["a", {"backend": "b"}]}}},
        {"backends": {"a": {"base_url": "http://h", "kind": "transformer"}}},
        {"server": {"max_body": 5, "api_keys": ["x"]}},
        {"engines": {"a": {"kind": "transformer", "ttl": "1h30m", "args": ["-c", 5], "gpus": [0, "GPU-1"]}}},
        {"engines": {"a": {"kind": "command", "command": "x y", "args": {"a": True}, "env": {"A": 1}}}},
        {"launcher": {"budget": {"cpu": "1GiB"}}},
        {"launcher": {"budget": "budget.json"}},
    ]
    assert [value for value in right if not validator.is_valid(value)] == []


def test_every_field_in_the_schema_is_described() -> None:
    made = schema()
    sections = {"": made, **made["$defs"]}
    bare = [
        f"{section}.{name}"
        for section, part in sections.items()
        for name, member in part["properties"].items()
        if not (member.get("description") or sections[member["$ref"].rpartition("/")[2]].get("description"))
    ]
    assert bare == []


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "schema"), *arguments], capture_output=True, text=True, check=False
    )


def test_the_schema_file_is_fresh() -> None:
    assert json.loads((CONFIGS / "illm.schema.json").read_text(encoding="utf-8")) == json.loads(json.dumps(schema()))


def test_the_script_says_when_the_file_is_stale_and_writes_it_anew(tmp_path: Path) -> None:
    copy = tmp_path / "schema.json"
    shutil.copy(CONFIGS / "illm.schema.json", copy)
    assert run_script("--check", str(copy)).returncode == 0
    copy.write_text("{}")
    stale = run_script("--check", str(copy))
    assert stale.returncode == 1
    assert "is stale" in stale.stderr
    assert copy.read_text() == "{}"
    assert run_script(str(copy)).returncode == 0
    assert copy.read_bytes() == (CONFIGS / "illm.schema.json").read_bytes()


def test_a_chat_template_may_be_a_file_beside_the_settings(write: Write) -> None:
    text = "backends:\n  old:\n    kind: tgi\n    base_url: http://h\n    options: {chat_template: mine.jinja}\n"
    path = write(text)
    with pytest.raises(SettingsError, match=r":5: backends\.old\.options\.chat_template: mine\.jinja can't be read"):
        load_settings(path, {})
    (path.parent / "mine.jinja").write_text("{{ messages }}")

    assert load_settings(path, {}).backends["old"].options["chat_template"] == "{{ messages }}"
