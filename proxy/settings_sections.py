"""The sections of the settings that the gateway itself reads: types, defaults and meanings.

The launcher's are in `settings_engines.py`; what must fit across sections, and loading, in `settings.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from proxy.dialects.base import ImageUrls, ReasoningField
from proxy.settings_types import BaseUrl, HostName, Key, Kind, MiB, Name, Origin, Section, Size


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
    workers: PositiveInt = Field(
        default=1, description="Processes that serve, for more requests than one core can carry."
    )
    api_keys: tuple[Key, ...] = Field(
        default=(), description="Keys that clients must send one of; none: everybody may."
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=("http://localhost", "http://127.0.0.1", "http://[::1]"),
        description="Web pages that may call: origins, on any port where none is given; '*' is every page.",
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        default=(),
        description="On loopback without keys: more names to be asked by than addresses, localhost, this machine's "
        "name, those without a dot and .local, .internal and .localhost. '*.example.com': all below it; '*': any.",
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
