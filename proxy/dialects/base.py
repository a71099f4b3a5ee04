"""What every dialect is given and gives back: value objects and the two protocols of the seam.

A dialect never sees a socket, a clock or another dialect. `forward` hands it a `Request` and a `Target`, sends what
comes back, and feeds it what the engine answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from proxy.errors import ApiError
from proxy.forms import Form
from proxy.wire import Members

EngineKind = Literal["transformers", "vllm", "sglang", "tgi", "ollama", "llamacpp", "infinity", "tei", "openai"]
Endpoint = Literal[
    "chat",
    "completions",
    "embeddings",
    "responses",
    "messages",
    "count_tokens",
    "rerank",
    "score",
    "transcriptions",
    "translations",
    "speech",
    "images",
    "image_edits",
    "tokenize",
    "detokenize",
    "infill",
    "classify",
    "pooling",
]
ReasoningField = Literal["passthrough", "reasoning_content", "reasoning", "both"]
ImageUrls = Literal["passthrough", "fetch", "reject"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked, read and split once. Nobody changes `members`: a dialect that needs others copies them."""

    endpoint: Endpoint
    body: bytes
    members: Members | None  # a JSON body's top-level members; None: it came as a form
    form: Form | None = None
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The replica that will answer: all that a dialect may know of it."""

    kind: EngineKind
    backend: str  # its name in the configuration: for messages
    model: str  # the name the engine knows
    public: str  # the name the client uses; what a reply's `model` says
    version: str | None = None  # the engine's own, where it tells one
    prefix: str = "/v1"  # what the engine puts before OpenAI's paths; Infinity has none by default
    reasoning_field: ReasoningField = "passthrough"
    image_urls: ImageUrls = "passthrough"
    strict_params: bool = False  # refuse what can't be expressed instead of dropping and reporting it
    options: Mapping[str, Any] = field(default_factory=dict)  # members set for this backend where absent
    healthy: bool = False  # it answers probes as its kind does, so a missing route is a missing ability


@dataclass(frozen=True, slots=True)
class Encoded:
    """The upstream call. `path` begins behind the base URL."""

    path: str
    body: bytes
    content_type: str = "application/json"
    dropped: tuple[str, ...] = ()  # members that the engine has no word for: `x-illm-dropped-params`


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them, for the metrics."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, ready for the client."""

    body: bytes
    content_type: str = "application/json"
    usage: Usage | None = None


class StreamDecoder(Protocol):
    """Upstream bytes to client bytes, incrementally; one object for one answer.

    Every piece returned ends at an event boundary, so that a comment or an error may follow it.
    """

    done: bool  # the client's stream is complete, its end marker included: what the engine still says is void
    cut: bool  # it is complete although the engine would go on: its connection must be closed
    usage: Usage | None

    def feed(self, data: bytes) -> bytes:
        """Decode the next read. Raises `ApiError` for an error that the engine reports (nothing is lost: what
        came before it in the same read is in `pending`) and for one that breaks the stream."""

    def flush(self) -> bytes:
        """The upstream body ended properly: the rest, and what the engine left out (`[DONE]`). Raises
        `ApiError` `upstream_incomplete` where it ended too early."""

    def error(self, exc: ApiError) -> bytes:
        """That error as this stream's last events, its end marker included."""

    def take_pending(self) -> bytes:
        """What was decoded before the error that `feed` or `flush` raised; empty otherwise."""


class ResponseDecoder(Protocol):
    """The answer to one `Encoded` call."""

    def reply(self, content_type: str, body: bytes) -> Reply:
        """A 2xx answer that is complete. Raises `ApiError` where the engine says 200 and means an error."""

    def failure(self, status: int, content_type: str, body: bytes, retry_after: str | None = None) -> ApiError:
        """Any other answer, as the client shall see it; `retry_after` is that header of the engine's."""

    def stream(self) -> StreamDecoder:
        """A decoder for a streamed 2xx answer."""


class Dialect(Protocol):
    """One wire format."""

    def encode(self, request: Request, target: Target) -> tuple[Encoded, ResponseDecoder]:
        """OpenAI to upstream. Raises `ApiError` for what that engine can't do or can't be sent."""
