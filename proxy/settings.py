"""What can be set, with its type, default and meaning; and `load_settings`, the one way to get it.

Everything here is frozen. Nothing here reads the process's environment, opens a socket or knows the registry.
Reading YAML is in `settings_file.py`, the environment in `settings_environment.py`, laying the sources over one another
and explaining errors in `settings_layers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.dialects.base import EngineKind, ImageUrls, ReasoningField
from proxy.settings_environment import Names, from_environment
from proxy.settings_file import Place, SettingsFile, dotted, read_settings_file
from proxy.settings_file import SettingsError as SettingsError  # raised here, so found here
from proxy.settings_layers import Layers, explain, from_mapping, read_templates
from proxy.settings_types import KIND_SYNONYMS, BaseUrl, Key, Kind, MiB, Name, Origin, Size

DEFAULT_CONFIG: Final = Path("configs/illm.yaml")


def _without_empty(data: Any) -> Any:
    if data is None:
        return {}
    return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class Section(BaseModel):
    """A frozen mapping of known names. A name with nothing behind it counts as absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    _empty = model_validator(mode="before")(_without_empty)


class ServerSettings(Section):
    """The side that clients see."""

    host: Name = Field(
        default="127.0.0.1", description="Address to listen on; 0.0.0.0 is every network this machine is in."
    )
    port: int = Field(
        default=8000,
        ge=1,
        le=65535,
        description="Port to listen on. If nobody sets it and it is taken, the next free one.",
    )
    api_keys: tuple[Key, ...] = Field(
        default=(), description="Keys that clients must send one of; none: everybody may."
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=("http://localhost", "http://127.0.0.1", "http://[::1]"),
        description="Web pages that may call: origins, on any port where none is given; '*' is every page.",
    )
    max_body: Size = Field(default=64 * MiB, description="Largest request body: bytes, or a text like 64MiB.")
    keep_alive_interval: PositiveFloat = Field(
        default=10.0, description="Seconds of silence after which a stream gets a comment, so that nothing times out."
    )
    drain_timeout: NonNegativeFloat = Field(
        default=30.0, description="Seconds that streams may go on for after SIGTERM."
    )
    access_log: bool = Field(default=True, description="One line in the log for each request.")


class BackendSettings(Section):
    """An engine that is running elsewhere: one base URL."""

    kind: Kind | None = Field(default=None, description="Which engine it is; left out: found out by asking it.")
    base_url: BaseUrl = Field(description="Where it listens, with or without /v1: http://10.0.0.5:8000.")
    api_key: Key | None = Field(default=None, description="Sent to it as a bearer token; a client's own key never is.")
    model: Name | None = Field(
        default=None,
        description="The name it knows its model by, where it can't list it or only this one shall be served.",
    )
    models: tuple[Name, ...] = Field(
        default=(), description="More of them; together with `model`, nothing else is served."
    )
    chat_mode: Literal["auto", "native", "openai"] = Field(
        default="auto", description="TGI only: chat through /generate (native) or through its own OpenAI API."
    )
    image_urls: ImageUrls = Field(
        default="passthrough", description="http(s) image URLs: left to the engine, fetched by the proxy, or refused."
    )
    reasoning_field: ReasoningField = Field(
        default="passthrough", description="The name under which a model's reasoning reaches the client."
    )
    strict_params: bool = Field(
        default=False, description="Refuse parameters that the engine lacks rather than drop them."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Request members set for this backend where a request leaves them out."
    )
    max_in_flight: PositiveInt | None = Field(
        default=None, description="Requests at a time; more wait. None: no limit."
    )
    max_queue: NonNegativeInt = Field(default=128, description="Requests that may wait; more are refused with 429.")

    @property
    def root(self) -> str:
        """`base_url` without a slash or `/v1` at its end: what paths are put behind."""
        return re.sub(r"(?<=[^/])/v1$", "", self.base_url.rstrip("/")).rstrip("/")


class ReplicaSettings(Section):
    """One backend that serves a model; a plain text is its `backend`."""

    backend: Name = Field(description="A name from `backends`.")
    model: Name | None = Field(
        default=None, description="The name it knows the model by; left out: the public one, or the only one it has."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="As its backend's, for this replica; they win over the model's."
    )


def _replica(value: Any) -> Any:
    return {"backend": value} if isinstance(value, str) else value


class ModelSettings(Section):
    """A public model name. Models that backends list need no entry."""

    aliases: tuple[Name, ...] = Field(default=(), description="Other names for it.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="As a backend's, for this name; they win over the backend's."
    )
    replicas: tuple[
        Annotated[ReplicaSettings, BeforeValidator(_replica, json_schema_input_type=ReplicaSettings | str)], ...
    ] = Field(default=(), description="Who serves it; left out: every backend that lists it by this name.")


class Defaults(Section):
    """Values for fields that a request leaves out; without one, the engine's own apply."""

    max_tokens: PositiveInt | None = Field(default=None, description="Most tokens to generate.")
    temperature: NonNegativeFloat | None = Field(default=None, description="0 is greedy.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Nucleus sampling: the probability mass kept.")
    top_k: int | None = Field(default=None, ge=-1, description="Tokens kept; -1 or 0 keeps all, as the engine has it.")
    repetition_penalty: PositiveFloat | None = Field(default=None, description="1 is none.")


class DiscoverySettings(Section):
    """Finding engines and their models."""

    local: bool | None = Field(
        default=None,
        description="Look for engines on this machine's usual ports; left out: only when no backend is set.",
    )
    interval: PositiveFloat = Field(default=5.0, description="Seconds between two looks.")


class HealthSettings(Section):
    """The active probe of each backend."""

    interval: PositiveFloat = Field(default=5.0, description="Seconds between two probes.")
    timeout: PositiveFloat = Field(default=5.0, description="Seconds that a probe may take.")
    down_after: PositiveInt = Field(default=3, description="Failed probes in a row that take a backend out.")
    up_after: PositiveInt = Field(default=1, description="Good probes in a row that bring it back.")


class UpstreamSettings(Section):
    """Connections to backends; seconds."""

    connect_timeout: PositiveFloat = Field(default=5.0, description="To connect.")
    response_timeout: PositiveFloat = Field(default=600.0, description="From the request to the head of the answer.")
    idle_timeout: PositiveFloat = Field(default=600.0, description="Between two pieces of an answer.")
    idle_connection: NonNegativeFloat = Field(
        default=4.0, description="How long an unused connection is kept; engines close theirs after 5."
    )
    max_reply: Size = Field(default=64 * MiB, description="Largest answer of those that must be held whole.")


class ImageSettings(Section):
    """Images that the gateway fetches, for engines that can't (TGI, Ollama)."""

    allow_private: bool = Field(
        default=False, description="Also from loopback and private addresses: whoever may ask can then reach them."
    )
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(
        default=(80, 443, 8080, 8443), description="Ports that may be fetched from."
    )


class Settings(BaseSettings):
    """Everything that can be set. Built directly it takes its arguments only; `load_settings` reads the sources."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    _empty = model_validator(mode="before")(_without_empty)

    server: ServerSettings = Field(default_factory=ServerSettings, description="The side that clients see.")
    backends: dict[Name, BackendSettings] = Field(
        default_factory=dict, description="Engines that are running elsewhere, by a name of your choice."
    )
    models: dict[Name, ModelSettings] = Field(
        default_factory=dict, description="Public names, aliases and replicas; what backends list needs no entry."
    )
    defaults: Defaults = Field(default_factory=Defaults, description="For fields that a request leaves out.")
    discovery: DiscoverySettings = Field(default_factory=DiscoverySettings, description="Finding engines.")
    health: HealthSettings = Field(default_factory=HealthSettings, description="The active probe of each backend.")
    upstream: UpstreamSettings = Field(default_factory=UpstreamSettings, description="Connections to backends.")
    images: ImageSettings = Field(default_factory=ImageSettings, description="Images fetched for engines.")
    framework: Kind | None = Field(
        default=None, description="The kind of engine for requests that don't say `framework`."
    )
    model: Name | None = Field(default=None, description="The model for requests that don't name one.")
    embedding_model: Name | None = Field(default=None, description="The same, for embeddings and rerank.")
    device: Literal["cpu", "cuda", "mps"] | None = Field(default=None, description="What launched engines compute on.")
    auto_install: bool = Field(default=False, description="Install an engine that is to be launched and isn't there.")
    demo: bool = Field(default=True, description="Start a small demo engine when no engine is found.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: `load_settings` reads the rest, and knows which line or variable a wrong value is from."""
        return (init_settings,)

    @property
    def explicit(self) -> frozenset[str]:
        """What somebody set, even to its default: `{"server.port", …}`."""
        return frozenset(_explicit(self, ""))

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        problems = (*_unknown_backends(self), *_taken_names(self))
        if problems:
            text = "; ".join(f"{dotted(place)}: {message}" for place, message in problems)
            raise PydanticCustomError("names", "{text}", {"text": text, "problems": problems})
        return self


def _explicit(section: BaseModel, start: str) -> Iterator[str]:
    for name in section.model_fields_set:
        yield start + name
        value = getattr(section, name)
        inner = value if isinstance(value, dict) else {"": value}
        for key, below in inner.items():
            if isinstance(below, BaseModel):
                yield from _explicit(below, f"{start}{name}.{key}." if key else f"{start}{name}.")


def _unknown_backends(settings: Settings) -> Iterator[tuple[Place, str]]:
    known = ", ".join(settings.backends) or "none"
    for name, model in settings.models.items():
        for index, replica in enumerate(model.replicas):
            if replica.backend not in settings.backends:
                place = ("models", name, "replicas", index, "backend")
                yield place, f"there is no backend {replica.backend!r}; known backends: {known}"


def _taken_names(settings: Settings) -> Iterator[tuple[Place, str]]:
    taken = {name: f"the name of models.{name}" for name in settings.models}
    for name, model in settings.models.items():
        for index, alias in enumerate(model.aliases):
            place = ("models", name, "aliases", index)
            if alias in taken:
                yield place, f"{alias!r} is already {taken[alias]}; public names must differ"
            taken.setdefault(alias, f"an alias of models.{name}")


# --- loading -------------------------------------------------------------------------------------------------------


def _names() -> Names:
    short: dict[str, Place] = {
        "ILLM_HOST": ("server", "host"),
        "ILLM_PORT": ("server", "port"),
        "ILLM_API_KEYS": ("server", "api_keys"),
    }
    short |= {f"ILLM_{name.upper()}": ("defaults", name) for name in Defaults.model_fields}
    implied: dict[str, tuple[Place, Any]] = {}
    for spelling, kind in (*((kind, kind) for kind in get_args(EngineKind)), *KIND_SYNONYMS.items()):
        for name in ("base_url", "api_key"):
            variable = f"ILLM_{spelling}_{name}".upper()
            short[variable] = ("backends", kind, name)
            implied[variable] = (("backends", kind, "kind"), kind)
    read_elsewhere = frozenset({"ILLM_CONFIG", "ILLM_ENGINES", "ILLM_VENV"})
    return Names("ILLM_", MappingProxyType(short), MappingProxyType(implied), read_elsewhere)


NAMES: Final = _names()  # the variables whose names don't spell out their place in the file


def load_settings(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Command line (`overrides`: nested names, None for what was not given) over environment over file over default.

    Reads the file (blocks): `config`, else `ILLM_CONFIG`, else `configs/illm.yaml` where there is one. Empty
    variables count as unset. Raises `SettingsError` with everything that is wrong.
    """
    path = config or (Path(environ["ILLM_CONFIG"]) if environ.get("ILLM_CONFIG") else None)
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    layers = Layers.of_file(str(path), read_settings_file(path) if path else SettingsFile())
    given, problems = from_environment(Settings, NAMES, environ, layers.data)
    for value in (*given, *from_mapping("command line", overrides)):
        layers.put(value)
    problems += read_templates(layers, path.parent if path else Path())
    private = [name for name in layers.data if name.startswith("_")]  # BaseSettings would take them for its own
    problems += [f"{layers.origin((name,))[0].label}: {name}: unknown name" for name in private]
    try:
        settings = Settings(**{name: value for name, value in layers.data.items() if name not in private})
    except ValidationError as exc:
        problems += explain(Settings, layers, exc)
    if problems:
        raise SettingsError(*problems)
    return settings


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    return {
        **Settings.model_json_schema(),
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "illm settings",
        "description": "configs/illm.yaml: everything that can be set. All of it is optional.",
    }
