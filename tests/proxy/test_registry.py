"""Which backend a model's name leads to, what a request that names none gets, and what it is told otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.dialects.base import Endpoint, EngineKind
from proxy.engine_answers import ModelInfo, Probe
from proxy.errors import ApiError
from proxy.pool import Backend, Route
from proxy.registry import NAMES_IN_A_MESSAGE, Registry
from proxy.settings import BackendSettings, load_settings


def registry(listed: dict[str, tuple[str, ...]], **settings: Any) -> Registry:
    """`listed`: backend (its name begins with its kind) -> the models that it lists."""
    backends = {
        name: {"kind": name.partition("-")[0], "base_url": f"http://10.0.0.{i}:1"} for i, name in enumerate(listed, 1)
    }
    for name, more in settings.pop("backends", {}).items():
        backends[name] |= more
    made = Registry(load_settings(None, {}, {"backends": backends, **settings}))
    for name, models in listed.items():
        ready(made.backends[name], *models)
    made.rebuild()
    return made


def ready(backend: Backend, *models: str) -> None:
    infos = tuple(ModelInfo(model, max_model_len=100) for model in models)
    backend.learn(Probe("ready", backend.kind, models=infos), down_after=1)


def shown(route: Route) -> tuple[str, list[tuple[str, str]]]:
    return route.name, [(replica.backend.name, replica.model) for replica in route.replicas]


def resolve(
    made: Registry, model: str | None, framework: EngineKind | None = None, endpoint: Endpoint = "chat"
) -> tuple[str, list[tuple[str, str]]]:
    return shown(made.resolve(model, framework, endpoint))


def refusal(
    made: Registry, model: str | None, framework: EngineKind | None = None, endpoint: Endpoint = "chat"
) -> ApiError:
    with pytest.raises(ApiError) as caught:
        made.resolve(model, framework, endpoint)
    return caught.value


# -- names -------------------------------------------------------------------------------------------------------

MODELS = {
    "qwen": {
        "aliases": ["gpt-4o-mini"],
        "replicas": [{"backend": "vllm", "model": "Qwen/Qwen2"}, {"backend": "ollama", "model": "qwen2:7b"}],
    },
    "llama": {"aliases": ["l3"]},
    "one": {"replicas": ["tgi"]},
}
LISTED = {"vllm": ("Qwen/Qwen2", "llama"), "ollama": ("qwen2:7b", "tiny:latest", "llama"), "tgi": ("mistral",)}
BOTH = [("vllm", "Qwen/Qwen2"), ("ollama", "qwen2:7b")]
NAMES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "public": ("qwen", "qwen", BOTH),
    "alias": ("gpt-4o-mini", "qwen", BOTH),
    "listed": ("Qwen/Qwen2", "Qwen/Qwen2", [("vllm", "Qwen/Qwen2")]),
    "listed by two": ("llama", "llama", [("vllm", "llama"), ("ollama", "llama")]),
    "alias of what is listed": ("l3", "llama", [("vllm", "llama"), ("ollama", "llama")]),
    "without :latest": ("tiny", "tiny:latest", [("ollama", "tiny:latest")]),
    "with :latest": ("tiny:latest", "tiny:latest", [("ollama", "tiny:latest")]),
    "with :latest too much": ("llama:latest", "llama", [("vllm", "llama"), ("ollama", "llama")]),
    "alias and :latest": ("gpt-4o-mini:latest", "qwen", BOTH),
    "the only one there": ("one", "one", [("tgi", "mistral")]),
}


@pytest.mark.parametrize(("asked", "name", "replicas"), NAMES.values(), ids=NAMES)
def test_names(asked: str, name: str, replicas: list[tuple[str, str]]) -> None:
    assert resolve(registry(LISTED, models=MODELS), asked) == (name, replicas)


def test_a_configured_name_hides_a_listed_one() -> None:
    made = registry({"vllm": ("a", "b")}, models={"a": {"replicas": [{"backend": "vllm", "model": "b"}]}})

    assert resolve(made, "a") == ("a", [("vllm", "b")])
    assert sorted(made.snapshot.routes) == ["a", "b"]


def test_what_is_written_down_for_a_backend_is_all_that_it_serves() -> None:
    made = registry(
        {"vllm": ("a", "b", "c"), "tgi": ()}, backends={"vllm": {"models": ["b"]}, "tgi": {"model": "mistral"}}
    )

    assert sorted(made.snapshot.routes) == ["b", "mistral"]
    assert resolve(made, "mistral") == ("mistral", [("tgi", "mistral")])
    assert refusal(made, "a").status == 404


def test_a_replica_that_names_no_model() -> None:
    """The public name where the backend has it or nothing is known, the only model otherwise."""
    for listed, expected in ((("up",), "up"), (("up", "pub"), "pub"), ((), "pub"), (("x", "y"), "pub")):
        made = registry({"vllm": listed}, models={"pub": {"replicas": ["vllm"]}})

        assert resolve(made, "pub") == ("pub", [("vllm", expected)])


def test_the_length_of_a_route_is_that_of_the_first_replica_that_tells() -> None:
    made = registry({"tgi": (), "vllm": ("up", "z")}, models={
        "pub": {"replicas": [{"backend": "tgi", "model": "up"}, {"backend": "vllm", "model": "up"}]}
    })  # fmt: skip
    info = made.resolve("pub", None, "chat").info

    assert info is not None
    assert (info.id, info.max_model_len) == ("up", 100)


# -- framework ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "asked", "expected"),
    [(None, "ollama", "ollama"), ("ollama", None, "ollama"), ("vllm", "ollama", "ollama"), ("ollama", "vllm", "vllm")],
)
def test_the_body_wins_over_the_settings(
    configured: EngineKind | None, asked: EngineKind | None, expected: str
) -> None:
    made = registry({"vllm": ("m",), "ollama": ("m",)}, framework=configured)

    assert resolve(made, "m", asked) == ("m", [(expected, "m")])


EMBEDDERS: list[tuple[Endpoint, list[str]]] = [
    ("chat", ["transformers"]),
    ("completions", ["transformers"]),
    ("embeddings", ["infinity", "tei", "transformers"]),
    ("rerank", ["infinity", "tei", "transformers"]),
]


@pytest.mark.parametrize(("endpoint", "backends"), EMBEDDERS)
def test_transformers_means_the_embedding_servers_too(endpoint: Endpoint, backends: list[str]) -> None:
    made = registry(dict.fromkeys(("infinity", "tei", "transformers", "vllm"), ("m",)))

    assert resolve(made, "m", "transformers", endpoint) == ("m", [(name, "m") for name in backends])


def test_transformers_without_its_own_server_embeds() -> None:
    made = registry({"infinity": ("e",), "vllm": ("e",)})

    assert resolve(made, "e", "transformers", "embeddings") == ("e", [("infinity", "e")])
    assert refusal(made, "e", "transformers", "chat").code == "backend_not_configured"


def test_a_backend_that_lists_nothing_takes_any_name_of_its_framework() -> None:
    made = registry({"transformers": (), "vllm": ("m",)})

    assert resolve(made, "Qwen/Qwen3-0.6B", "transformers") == (
        "Qwen/Qwen3-0.6B",
        [("transformers", "Qwen/Qwen3-0.6B")],
    )
    assert resolve(made, "m", "transformers") == ("m", [("transformers", "m")])
    assert refusal(made, "Qwen/Qwen3-0.6B").code == "model_not_found"


def test_a_model_of_another_framework() -> None:
    exc = refusal(registry({"vllm": ("m",), "ollama": ("tiny",)}), "m", "ollama")

    assert (exc.status, exc.code, exc.param) == (404, "model_not_found", "model")
    assert "of kind 'ollama'" in exc.message
    assert "Known models: tiny." in exc.message


NOT_CONFIGURED: list[tuple[EngineKind, str, str]] = [
    ("vllm", "Remote base_url is not configured", "ILLM_VLLM_BASE_URL"),
    ("tgi", "TGI base_url is not configured", "ILLM_TGI_BASE_URL"),
    ("ollama", "Remote base_url is not configured", "ILLM_OLLAMA_BASE_URL"),
    ("transformers", "Remote base_url is not configured", "ILLM_TRANSFORMERS_BASE_URL"),
]


@pytest.mark.parametrize(("framework", "begins", "names"), NOT_CONFIGURED)
@pytest.mark.parametrize("where", ["body", "settings"])
def test_a_framework_without_a_backend(framework: EngineKind, begins: str, names: str, where: str) -> None:
    made = registry({"llamacpp": ("m",)}, framework=framework if where == "settings" else None)
    exc = refusal(made, "m", framework if where == "body" else None)

    assert (exc.status, exc.type, exc.code) == (400, "RemoteEndpointError", "backend_not_configured")
    assert exc.message.startswith(begins)
    assert names in exc.message


# -- no name -----------------------------------------------------------------------------------------------------

TWO = {"vllm": ("a",), "infinity": ("e",)}
UNNAMED: dict[str, tuple[dict[str, tuple[str, ...]], dict[str, Any], Endpoint, EngineKind | None, str]] = {
    "ILLM_MODEL": (TWO, {"model": "a"}, "chat", None, "a"),
    "ILLM_EMBEDDING_MODEL": (TWO, {"model": "a", "embedding_model": "e"}, "embeddings", None, "e"),
    "and for rerank": (TWO, {"model": "a", "embedding_model": "e"}, "rerank", None, "e"),
    "each for its own": (TWO, {"model": "a", "embedding_model": "e"}, "responses", None, "a"),
    "the only one": ({"vllm": ("a",)}, {}, "chat", None, "a"),
    "the only one of a framework": (TWO, {}, "chat", "vllm", "a"),
    "the only one that embeds for transformers": (TWO, {}, "embeddings", "transformers", "e"),
    "one, whatever its aliases": ({"vllm": ("a",)}, {"models": {"a": {"aliases": ["x", "y"]}}}, "chat", None, "a"),
}


@pytest.mark.parametrize(("listed", "settings", "endpoint", "framework", "name"), UNNAMED.values(), ids=UNNAMED)
def test_a_request_without_a_model(
    listed: dict[str, tuple[str, ...]],
    settings: dict[str, Any],
    endpoint: Endpoint,
    framework: EngineKind | None,
    name: str,
) -> None:
    assert resolve(registry(listed, **settings), None, framework, endpoint)[0] == name


@pytest.mark.parametrize(
    ("listed", "settings", "endpoint", "says"),
    [
        (TWO, {}, "chat", "Known models: a, e."),
        (TWO, {"model": "a"}, "embeddings", "Known models: a, e."),
        ({"vllm": ()}, {}, "chat", "no backend lists one yet"),
    ],
)
def test_several_models_and_no_name(
    listed: dict[str, tuple[str, ...]], settings: dict[str, Any], endpoint: Endpoint, says: str
) -> None:
    exc = refusal(registry(listed, **settings), None, None, endpoint)

    assert (exc.status, exc.code, exc.param) == (400, "missing_required_parameter", "model")
    assert says in exc.message


# -- unknown names -----------------------------------------------------------------------------------------------


def test_an_unknown_model_hears_what_there_is_and_what_is_missing() -> None:
    made = registry({"vllm": ("b", "a"), "tgi": (), "llamacpp": ()})
    made.backends["tgi"].learn(Probe("down", "tgi", detail="connection refused"), down_after=1)
    made.backends["llamacpp"].learn(Probe("loading", "llamacpp", detail="loading (503)"), down_after=1)
    made.rebuild()
    exc = refusal(made, "nope")

    assert (exc.status, exc.type, exc.code, exc.param) == (404, "invalid_request_error", "model_not_found", "model")
    assert exc.message == (
        "Model 'nope' does not exist. Known models: a, b. Not available at the moment: "
        "'tgi' (connection refused), 'llamacpp' (loading (503))."
    )


def test_a_long_list_is_cut() -> None:
    names = tuple(f"m{i:03}" for i in range(NAMES_IN_A_MESSAGE + 5))
    message = refusal(registry({"vllm": names}), "nope").message

    assert "m019, and 5 more (GET /v1/models)." in message
    assert "m020" not in message


def test_a_configured_name_that_nobody_lists() -> None:
    """Aliases for a model that isn't there (yet) are no route."""
    assert refusal(registry({"vllm": ("a",)}, models=MODELS_OF_NOBODY), "ghost").status == 404


MODELS_OF_NOBODY = {"ghost": {"aliases": ["spook"]}}


# -- changes -----------------------------------------------------------------------------------------------------


def test_a_rebuild_keeps_backends_and_swaps_the_snapshot() -> None:
    made = registry({"vllm": ("a",)})
    backend, before = made.backends["vllm"], made.snapshot
    ready(backend, "b")
    made.rebuild()

    assert made.backends["vllm"] is backend
    assert made.resolve("b", None, "chat").replicas[0].backend is backend
    assert made.snapshot is not before
    assert list(before.routes) == ["a"], "a request may still hold the old one"
    assert list(made.snapshot.routes) == ["b"]


def test_backends_come_and_go_at_run_time() -> None:
    made = registry({"vllm": ("a",)})
    found = Backend("llamacpp", BackendSettings(kind="llamacpp", base_url="http://127.0.0.1:8080"), local=True)
    ready(found, "a", "c")
    made.add(found)

    assert resolve(made, "a") == ("a", [("vllm", "a"), ("llamacpp", "a")])
    made.remove("llamacpp")
    assert resolve(made, "a") == ("a", [("vllm", "a")])
    assert refusal(made, "c").status == 404


def test_models_of_a_backend_that_is_down_stay_routable() -> None:
    """The probe may be old; the request then hears why it can't be served."""
    made = registry({"vllm": ("a",)})
    made.backends["vllm"].learn(Probe("down", "vllm", detail="gone"), down_after=1)
    made.rebuild()

    assert resolve(made, "a") == ("a", [("vllm", "a")])


def test_options_of_a_model_and_of_a_replica() -> None:
    """Backend, then model, then replica: the nearest wins. An alias has its model's."""
    made = Registry(
        load_settings(
            None,
            {},
            {
                "backends": {
                    "o": {"kind": "ollama", "base_url": "http://o", "options": {"num_ctx": 1, "seed": 1, "a": 1}}
                },
                "models": {
                    "big": {
                        "aliases": ["huge"],
                        "options": {"num_ctx": 2, "seed": 2},
                        "replicas": [
                            {"backend": "o", "model": "m", "options": {"num_ctx": 3}},
                            {"backend": "o", "model": "n"},
                        ],
                    }
                },
            },
        )
    )
    first, second = made.resolve("huge", None, "chat").replicas

    assert first.backend.target(first, "big").options == {"num_ctx": 3, "seed": 2, "a": 1}
    assert second.backend.target(second, "big").options == {"num_ctx": 2, "seed": 2, "a": 1}
