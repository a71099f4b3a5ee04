"""What can be set, with its type, default and meaning; and `load_settings`, the one way to get it.

Everything here is frozen. Nothing here reads the process's environment, opens a socket or knows the registry.
The sections are in `settings_sections.py` and `settings_engines.py`; reading YAML is in `settings_file.py`, the
environment in `settings_environment.py`, laying the sources over one another and explaining errors in
`settings_layers.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from proxy.dialects.base import EngineKind
from proxy.settings_engines import Device, EngineSettings, LauncherSettings, RemoteLauncherSettings
from proxy.settings_environment import Names, from_environment
from proxy.settings_file import Place, SettingsError, SettingsFile, read_settings_file
from proxy.settings_layers import Layers, explain, from_mapping, refuse
from proxy.settings_names import problems_with_names
from proxy.settings_paths import resolve_files
from proxy.settings_sections import (
    BackendSettings,
    Defaults,
    DiscoverySettings,
    HealthSettings,
    ImageSettings,
    ModelSettings,
    ReplicaSettings,
    ServerSettings,
    UpstreamSettings,
)
from proxy.settings_types import KIND_SYNONYMS, Kind, Name, without_empty

__all__ = [
    "DEFAULT_CONFIG",
    "NAMES",
    "BackendSettings",
    "Defaults",
    "DiscoverySettings",
    "EngineSettings",
    "HealthSettings",
    "ImageSettings",
    "LauncherSettings",
    "ModelSettings",
    "RemoteLauncherSettings",
    "ReplicaSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "UpstreamSettings",
    "load_settings",
    "schema",
    "settings_file",
]

DEFAULT_CONFIG: Final = Path("configs/illm.yaml")


@dataclass(frozen=True, slots=True)
class Origins:
    """Who set what. Settings that say the same are the same, whoever set them."""

    labels: Mapping[Place, str] = field(default_factory=dict, compare=False)


class Settings(BaseSettings):
    """Everything that can be set. Built directly it takes its arguments only; `load_settings` reads the sources."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    _empty = model_validator(mode="before")(without_empty)

    server: ServerSettings = Field(default_factory=ServerSettings, description="The side that clients see.")
    backends: dict[Name, BackendSettings] = Field(
        default_factory=dict, description="Engines that are running elsewhere, by a name of your choice."
    )
    models: dict[Name, ModelSettings] = Field(
        default_factory=dict, description="Public names, aliases and replicas; what backends list needs no entry."
    )
    engines: dict[Name, EngineSettings] = Field(
        default_factory=dict, description="Engines that the launcher starts here, by a name of your choice."
    )
    launcher: LauncherSettings = Field(
        default_factory=LauncherSettings, description="The launcher of this machine, which starts `engines`."
    )
    launchers: dict[Name, RemoteLauncherSettings] = Field(
        default_factory=dict, description="Launchers on other machines, by a name of your choice."
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
    device: Device | None = Field(default=None, description="What launched engines compute on.")
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

    _origins: Origins = PrivateAttr(default_factory=Origins)

    def origin(self, *place: str) -> str | None:
        """Who set that very value: `configs/illm.yaml:12`, a variable, the command line; None where nobody did."""
        return self._origins.labels.get(place)

    @property
    def explicit(self) -> frozenset[str]:
        """What somebody set, even to its default: `{"server.port", …}`."""
        return frozenset(_explicit(self, ""))

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        refuse(problems_with_names(self))
        return self


def _explicit(section: BaseModel, start: str) -> Iterator[str]:
    for name in section.model_fields_set:
        yield start + name
        value = getattr(section, name)
        inner = value if isinstance(value, dict) else {"": value}
        for key, below in inner.items():
            if isinstance(below, BaseModel):
                yield from _explicit(below, f"{start}{name}.{key}." if key else f"{start}{name}.")


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


def settings_file(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: `config`, else the one `ILLM_CONFIG` names, else `configs/illm.yaml` where there is one."""
    path = config or (Path(environ["ILLM_CONFIG"]) if environ.get("ILLM_CONFIG") else None)
    return DEFAULT_CONFIG if path is None and DEFAULT_CONFIG.exists() else path


def load_settings(
    config: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Command line (`overrides`: nested names, None for what was not given) over environment over file over default.

    Reads the file (blocks), see `settings_file`. Empty variables count as unset. Raises `SettingsError` with
    everything that is wrong.
    """
    path = settings_file(config, environ)
    layers = Layers.of_file(str(path), read_settings_file(path) if path else SettingsFile())
    given, problems = from_environment(Settings, NAMES, environ, layers.data)
    for value in (*given, *from_mapping("command line", overrides)):
        layers.put(value)
    problems += resolve_files(layers, path.parent if path else Path(), environ.get("HOME"))
    private = [name for name in layers.data if name.startswith("_")]  # BaseSettings would take them for its own
    problems += [f"{layers.origin((name,))[0].label}: {name}: unknown name" for name in private]
    try:
        settings = Settings(**{name: value for name, value in layers.data.items() if name not in private})
    except ValidationError as exc:
        problems += explain(Settings, layers, exc)
    if problems:
        raise SettingsError(*problems)
    settings._origins = Origins({place: origin.label for place, origin in layers.origins.items()})
    return settings


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    return {
        **Settings.model_json_schema(),
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "illm settings",
        "description": "configs/illm.yaml: everything that can be set. All of it is optional.",
    }
