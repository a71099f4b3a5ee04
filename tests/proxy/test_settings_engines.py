"""Settings of engines and launchers: their types, what doesn't fit together, files they name, and no secrets told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxy.settings import EngineSettings, LauncherSettings, RemoteLauncherSettings, Settings, SettingsError
from proxy.settings import load_settings as load

SECRET = "sk-very-secret"
ENGINE = {"kind": "llamacpp", "model": "m"}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the file into an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("illm.yaml").write_text(text, encoding="utf-8")
        return Path("illm.yaml")

    return write


def engine(**given: Any) -> EngineSettings:
    return EngineSettings.model_validate({**ENGINE, **given})


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("15m", 900), ("1h30m", 5400), ("10s", 10), ("500ms", 0.5), ("1d", 86400), ("1.5h", 5400), (" 2 m 5 s ", 125),
     ("90", 90), (90, 90), (0.25, 0.25)],
)  # fmt: skip
def test_times(given: Any, seconds: float) -> None:
    assert engine(ttl=given).ttl == seconds


@pytest.mark.parametrize("given", ["", "m", "15x", "1m30", "-5s", "1h-5m", "soon", 0, "0", -1, float("inf"), [5]])
def test_times_that_are_none(given: Any) -> None:
    with pytest.raises(ValidationError):
        engine(ttl=given)


def test_a_time_may_be_nothing_where_that_means_something() -> None:
    assert engine(stop_timeout="0s", min_residency=0).stop_timeout == 0
    with pytest.raises(ValidationError):
        engine(start_timeout=0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"ctx-size": 8192}, ["--ctx-size", "8192"]),
        ({"c": 8192, "ngl": "all"}, ["-c", "8192", "--ngl", "all"]),
        ({"-ngl": 99, "--x": 1}, ["-ngl", "99", "--x", "1"]),
        ({"on": True, "off": False, "unset": None}, ["--on"]),
        ({"lora": ["a", "b", 3, True]}, ["--lora", "a", "b", "3", "true"]),
        ({"rope": {"type": "yarn", "factor": 2.0, "x": [1]}}, ["--rope", '{"type":"yarn","factor":2.0,"x":[1]}']),
        ({"temp": 0.7, "word": "two words", "empty": ""}, ["--temp", "0.7", "--word", "two words", "--empty", ""]),
        (["--ctx-size", 8192, "-x"], ["--ctx-size", "8192", "-x"]),
        ("--ctx-size 8192 --name 'a b'", ["--ctx-size", "8192", "--name", "a b"]),
        ({}, []),
        ([], []),
    ],
)
def test_arguments(given: Any, words: list[str]) -> None:
    assert list(engine(args=given).args) == words


@pytest.mark.parametrize("given", [5, True, [["a"]], [{"a": 1}], [None], f"'{SECRET}"])
def test_arguments_that_are_none(given: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        engine(args=given)
    assert SECRET not in str(caught.value)


def test_a_command_is_words_and_no_mapping() -> None:
    assert engine(kind="command", command="a 'b c' {port}").command == ("a", "b c", "{port}")
    assert engine(kind="command", command=["a", 5]).command == ("a", "5")
    with pytest.raises(ValidationError, match="a text or a list of words belongs here"):
        engine(kind="command", command={"a": 1})


@pytest.mark.parametrize("given", ["1:/b", "name:/b:ro", "/a:/b:ro,z"])
def test_volumes(given: str) -> None:
    assert engine(image="i", volumes=[given]).volumes == (given,)


@pytest.mark.parametrize("given", ["/a", "/a:b", "/a:/b:/c", ":/b"])
def test_volumes_that_are_none(given: str) -> None:
    with pytest.raises(ValidationError, match="is not a volume"):
        engine(image="i", volumes=[given])


@pytest.mark.parametrize("given", [0, "1", "GPU-8a0b-1c", "MIG-GPU-8a/0/1"])
def test_gpus(given: Any) -> None:
    assert engine(gpus=[given]).gpus == (str(given),)


@pytest.mark.parametrize("given", [-1, True, "all", "0,1", 1.0, "cuda:0"])
def test_gpus_that_are_none(given: Any) -> None:
    with pytest.raises(ValidationError, match="a GPU is its number"):
        engine(gpus=[given])


@pytest.mark.parametrize(
    "given", ["http://127.0.0.1:8090", "http://localhost:1/", "http://[::1]:1", "http://127.9.9.9:1"]
)
def test_loopback_needs_no_key(given: str) -> None:
    assert LauncherSettings(listen=given).listen == given.rstrip("/")


@pytest.mark.parametrize(
    "given", ["http://0.0.0.0:8090", "http://10.0.0.5:8090", "http://[::]:8090", "http://gpu:8090"]
)
def test_other_addresses_need_one(given: str) -> None:
    with pytest.raises(ValidationError, match=r"api_key: .* set a key"):
        LauncherSettings(listen=given)
    assert LauncherSettings.model_validate({"listen": given, "api_key": "k"}).listen == given


@pytest.mark.parametrize("given", ["http://127.0.0.1", "https://127.0.0.1:1", "http://127.0.0.1:1/x", "127.0.0.1:1"])
def test_listening_addresses_that_are_none(given: str) -> None:
    with pytest.raises(ValidationError):
        LauncherSettings(listen=given)


@pytest.mark.parametrize("given", ["http://gpu:8090", "https://gpu/launcher", "unix:/run/illm/launcher.sock"])
def test_launchers_elsewhere(given: str) -> None:
    assert RemoteLauncherSettings(base_url=given).base_url == given


@pytest.mark.parametrize("given", ["gpu:8090", "unix:run/x", "http://k@gpu:8090", "ftp://gpu"])
def test_launchers_elsewhere_that_are_none(given: str) -> None:
    with pytest.raises(ValidationError):
        RemoteLauncherSettings(base_url=given)


def test_secrets_stay_out_of_texts() -> None:
    settings = Settings.model_validate({
        "engines": {"a": {**ENGINE, "api_key": SECRET, "env": {"TOKEN": SECRET}}},
        "launcher": {"api_key": SECRET},
        "launchers": {"b": {"base_url": "http://b:1", "api_key": SECRET}},
    })  # fmt: skip
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


# --- what doesn't fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engines:\n  a:\n    model: m\n", ":2: engines.a.kind: this is required, and missing"),
        ("engines:\n  a:\n    kind: openai\n", ":3: engines.a.kind: 'openai' is not one of command, infinity, "),
        ("engines:\n  a:\n    kind: vllm\n", ":2: engines.a.model: kind 'vllm' needs a model: its name or its path"),
        ("engines:\n  a:\n    kind: command\n", ":2: engines.a.command: kind 'command' needs the command line"),
        ("engines:\n  a:\n    kind: tei\n    model: m\n    tll: 5m\n", ":5: engines.a.tll: unknown name; did you mean"),
        ("engines:\n  a:\n    kind: tei\n    model: m\n    ttl: soon\n", ":5: engines.a.ttl: 'soon' is not a time"),
        ("engines:\n  a:\n    kind: tei\n    model: m\n    ttl: 0\n", ":5: engines.a.ttl: 0 is not greater than 0"),
        ("engines:\n  a:\n    kind: tei\n    model: m\n    gpus: 0\n", ":5: engines.a.gpus: a list belongs here"),
        ("engines:\n  a:\n    kind: tei\n    model: m\n    gpus: [0, 0]\n", ":5: engines.a.gpus: a GPU is named twice"),
        ("engines:\n  a:\n    kind: tei\n    model: m\n    health: up\n", ":5: engines.a.health: 'up' is not a path"),
        ("engines:\n  a: {kind: tei, model: m, pin: true, ttl: 5}\n", ":2: engines.a.ttl: an engine with `pin: true`"),
        ("engines:\n  a: {kind: tei, model: m, volumes: [/a:/b]}\n", ":2: engines.a.volumes: only a container has"),
        ("engines:\n  a: {kind: tei, model: m, device: cpu, gpus: [0]}\n", ":2: engines.a.gpus: with `device: cpu`"),
        (
            "engines:\n  a: {kind: vllm, model: m, gpus: [0],\n    tensor_parallel: 2}\n",
            ":3: engines.a.tensor_parallel: the model can't be split over 2 GPUs: `gpus` has fewer",
        ),
        (
            f"engines:\n  a: {{kind: tei, model: m, env: {{T: [{SECRET}]}}}}\n",
            ":2: engines.a.env.T: the value is not text; put it in quotes",
        ),
        ("engines:\n  a: {kind: tei, model: m, env: {T: true}}\n", ":2: engines.a.env.T: an environment variable is"),
        ("engines:\n  a: {kind: tei, model: m, gpu_memory: 90}\n", ":2: engines.a.gpu_memory: 90 is more than 1"),
        ("engines:\n  my/coder: {kind: tei, model: m}\n", ":2: engines.my/coder: an engine's name here also names"),
        ("engines:\n  .a: {kind: tei, model: m}\n", ":2: engines..a: an engine's name here also names its log"),
        (
            "backends: {a: {base_url: 'http://a'}}\nengines:\n  a: {kind: tei, model: m}\n",
            ":3: engines.a: a backend is called 'a' too; choose another name",
        ),
        (
            "models: {m: {replicas: [b]}}\nengines:\n  a: {kind: tei, model: x}\n",
            ":1: models.m.replicas[0].backend: there is no backend 'b'; known backends: a",
        ),
        (
            "backends: {b: {base_url: 'http://b'}}\nmodels: {m: {replicas: [b]}}\nengines: {m: {kind: tei, model: x}}",
            ":3: engines.m: its public name 'm' is that of models.m, which it does not serve; give the engine another",
        ),
        (
            "models: {m: {aliases: [x]}}\nengines:\n  a: {kind: tei, model: x, name: x}\n",
            ":3: engines.a: its public name 'x' is that of models.m, which it does not serve",
        ),
        ("launcher:\n  listen: http://0.0.0.0:8090\n", ":1: launcher.api_key: whoever reaches `listen` could start"),
        ("launcher:\n  budget: {gpu0: 1GiB}\n", ":2: launcher.budget.gpu0: a device is 'cpu', or a GPU's number"),
        ("launcher:\n  orphans: keep\n", ":2: launcher.orphans: 'keep' is not one of adopt, kill"),
    ],
)  # fmt: skip
def test_a_wrong_file(write: Write, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(write(text), {})
    (problem,) = caught.value.problems
    assert problem.startswith(f"illm.yaml{said}")
    assert SECRET not in problem


@pytest.mark.parametrize(
    "text",
    [
        "models: {m: {replicas: [a, {backend: b}]}}\n",  # engines are replicas
        "models: {x: {aliases: [y]}}\n",  # whoever has a model by its entry's name serves it
        "models: {x: {replicas: [a, b]}}\n",
    ],
)
def test_names_that_fit(write: Write, text: str) -> None:
    """Two engines of one public name are two replicas of it."""
    engines = "engines:\n  a: {kind: tei, model: m, name: x}\n  b: {kind: tei, model: m, name: x}\n"
    settings = load(write(text + engines), {})
    assert [one.public(key) for key, one in settings.engines.items()] == ["x", "x"]


def test_a_replica_may_be_an_engine_that_only_another_launcher_knows(write: Write) -> None:
    text = "models: {m: {replicas: [far]}}\nlaunchers: {gpu: {base_url: 'http://gpu:8090'}}\n"
    assert load(write(text), {}).models["m"].replicas[0].backend == "far"


# --- the environment -----------------------------------------------------------------------------------------------


def test_variables(write: Write) -> None:
    file = write("engines: {My-Coder: {kind: tei, model: m, args: {aa: 1, bb: 2}, env: {HF_TOKEN: x, Low: y}}}\n")
    start = "ILLM_ENGINES__MY_CODER__"
    got = load(file, {
        start + "GPUS": "0, GPU-1", start + "TTL": "2m", start + "ARGS": '{"bb": 3, "c": [4]}',
        start + "ENV__HF_TOKEN": SECRET, start + "ENV__New": "7", "ILLM_LAUNCHER__WAIT": "1m",
        "ILLM_LAUNCHERS__GPU__BASE_URL": "http://gpu:1", "ILLM_LAUNCHER__BUDGET": '{"cpu": "1GiB"}',
    })  # fmt: skip
    found = got.engines["My-Coder"]
    assert (found.gpus, found.ttl) == (("0", "GPU-1"), 120.0)
    assert found.args == ("--aa", "1", "--bb", "3", "-c", "4"), "over the file's, name by name"
    env = {name: value.get_secret_value() for name, value in found.env.items()}
    assert env == {"HF_TOKEN": SECRET, "Low": "y", "New": "7"}
    assert got.launcher.wait == 60.0
    assert got.launcher.budget == {"cpu": 2**30}
    assert got.launchers["gpu"].base_url == "http://gpu:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [("--a, b 'c d'", ["--a,", "b", "c d"]), ('["--a", 1]', ["--a", "1"]), ('{"a": true}', ["-a"])],
)
def test_words_in_a_variable_are_split_as_a_shell_does(write: Write, text: str, words: list[str]) -> None:
    file = write("engines: {a: {kind: tei, model: m}}\n")
    assert list(load(file, {"ILLM_ENGINES__A__ARGS": text}).engines["a"].args) == words


def test_a_variable_may_name_a_budget_file(write: Write, tmp_path: Path) -> None:
    assert load(write(""), {"ILLM_LAUNCHER__BUDGET": "b.json"}).launcher.budget == str(tmp_path / "b.json")


def test_a_wrong_variable_never_shows_a_secret(write: Write) -> None:
    file = write("engines: {a: {kind: tei, model: m}}\n")
    with pytest.raises(SettingsError) as caught:
        load(file, {"ILLM_ENGINES__A__ENV": f'{{"T": ["{SECRET}"]}}', "ILLM_ENGINES__A__ARGS": f"'{SECRET}"})
    assert len(caught.value.problems) == 2
    assert SECRET not in str(caught.value)


# --- files ---------------------------------------------------------------------------------------------------------


def test_models_beside_the_settings_get_their_whole_path(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.gguf").touch()
    file = tmp_path / "illm.yaml"
    file.write_text(
        "engines:\n"
        "  a: {kind: llamacpp, model: models/a.gguf, mmproj: ./none.gguf}\n"
        "  b: {kind: llamacpp, model: org/repo, image: i, volumes: ['./w:/w', 'named:/x', '~/y:/y:ro']}\n"
        "  c: {kind: llamacpp, model: ~/c.gguf}\n"
        "launcher: {state: run, budget: ~/b.json}\n"
    )
    got = load(file, {"HOME": "/home/me"})
    a, b, c = got.engines.values()
    assert (a.model, a.mmproj) == (str(tmp_path / "models/a.gguf"), str(tmp_path / "none.gguf"))
    assert b.model == "org/repo", "no file here: the engine knows what it is"
    assert b.volumes == (f"{tmp_path}/w:/w", "named:/x", "/home/me/y:/y:ro")
    assert c.model == "/home/me/c.gguf"
    assert (got.launcher.state, got.launcher.budget) == (str(tmp_path / "run"), "/home/me/b.json")


def test_weights_that_are_not_there_yet_have_their_whole_path_too(tmp_path: Path) -> None:
    file = tmp_path / "illm.yaml"
    file.write_text(
        "engines:\n"
        "  a: {kind: llamacpp, model: later.gguf, mmproj: models/sub/eyes.gguf}\n"
        "  b: {kind: vllm, model: org/repo/file.gguf}\n"
        "  c: {kind: command, model: in/there.gguf, image: i, command: 'x {port}'}\n"
    )
    a, b, c = load(file, {}).engines.values()
    assert (a.model, a.mmproj) == (str(tmp_path / "later.gguf"), str(tmp_path / "models/sub/eyes.gguf"))
    assert b.model == "org/repo/file.gguf", "vLLM fetches that"
    assert c.model == "in/there.gguf", "the container's own"


@pytest.mark.parametrize(
    "text", ["engines: 5\n", "engines: {a: 5}\n", "engines: {a: {volumes: 5, model: 5}}\n", "launcher: 5\n"]
)
def test_files_are_not_looked_for_where_there_is_no_name(write: Write, text: str) -> None:
    with pytest.raises(SettingsError, match=r"illm\.yaml:1: "):
        load(write(text), {})
