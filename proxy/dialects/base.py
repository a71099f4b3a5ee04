"""What every dialect is given and gives back: value objects and the two protocols of the seam.

A dialect never sees a socket, a clock or another dialect. `forward` hands it a `Request` and a `Target`, sends what
comes back, and feeds it what the engine answers. Nobody changes a value that is made here. Those that every request
makes aren't frozen all the same, and write their `__init__` out: where this is compiled, a generated one is Python's
and six times as dear (docs/data-path.md).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, Protocol

from proxy.errors import ApiError
from proxy.forms import Form
from proxy.glance_types import Glance
from proxy.wire import Members, members

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
ChatMode = Literal["native", "openai", "auto"]
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Request:
    """What a client asked, read once. `glance`: the little that had to be known of it, where that is enough; `form`: it
    came as one, and `body` is empty."""

    __slots__ = ("_members", "body", "endpoint", "form", "glance", "now", "stream")

    def __init__(
        self,
        endpoint: Endpoint,
        body: bytes,
        members: Members | None = None,
        form: Form | None = None,
        stream: bool = False,
        now: int = 0,
        glance: Glance | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.body = body
        self.form = form
        self.stream = stream
        self.now = now  # unix seconds when it arrived: a dialect has no clock
        self.glance = glance
        self._members = members

    @property
    def members(self) -> Members:
        """A JSON body's top-level members, none of a form. Nobody changes them: a dialect that needs others copies
        them. Raises `InvalidJson`."""
        if self._members is None:
            self._members = {} if self.form is not None else members(self.body)
        return self._members


@dataclass(slots=True, init=False)
class Target:
    """The replica that will answer: all that a dialect may know of it."""

    kind: EngineKind
    backend: str  # its name in the configuration: for messages
    model: str  # the name the engine knows
    public: str  # the name the client uses; what a reply's `model` says
    version: str | None  # the engine's own, where it tells one
    prefix: str  # what the engine puts before OpenAI's paths; Infinity has none by default
    reasoning_field: ReasoningField
    image_urls: ImageUrls
    chat_mode: ChatMode  # TGI: its own wire format or its /v1
    strict_params: bool  # refuse what can't be expressed instead of dropping and reporting it
    options: Mapping[str, Any]  # members set for this backend where absent
    facts: Mapping[str, Any]  # what earlier requests learned of this backend
    healthy: bool  # it answers probes as its kind does, so a missing route is a missing ability

    def __init__(
        self,
        kind: EngineKind,
        backend: str,
        model: str,
        public: str,
        version: str | None = None,
        prefix: str = "/v1",
        reasoning_field: ReasoningField = "passthrough",
        image_urls: ImageUrls = "passthrough",
        chat_mode: ChatMode = "auto",
        strict_params: bool = False,
        options: Mapping[str, Any] = NOTHING,
        facts: Mapping[str, Any] = NOTHING,
        healthy: bool = False,
    ) -> None:
        self.kind = kind
        self.backend = backend
        self.model = model
        self.public = public
        self.version = version
        self.prefix = prefix
        self.reasoning_field = reasoning_field
        self.image_urls = image_urls
        self.chat_mode = chat_mode
        self.strict_params = strict_params
        self.options = options
        self.facts = facts
        self.healthy = healthy


@dataclass(slots=True, init=False)
class Encoded:
    """An upstream call. `path` begins behind the base URL."""

    path: str
    body: bytes
    content_type: str

    def __init__(self, path: str, body: bytes, content_type: str = "application/json") -> None:
        self.path = path
        self.body = body
        self.content_type = content_type


@dataclass(slots=True, init=False)
class Answered:
    """What an engine answered, complete."""

    status: int
    content_type: str
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]

    def __init__(
        self, status: int, content_type: str, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.body = body
        self.headers = headers

    def header(self, name: bytes) -> str | None:
        """The first header of that (lower-case) name."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), None)


@dataclass(slots=True, init=False)
class Usage:
    """Tokens as the engine counted them, for the metrics."""

    prompt: int
    completion: int

    def __init__(self, prompt: int = 0, completion: int = 0) -> None:
        self.prompt = prompt
        self.completion = completion


@dataclass(slots=True, init=False)
class Reply:
    """A whole answer, ready for the client."""

    body: bytes
    content_type: str
    usage: Usage | None

    def __init__(self, body: bytes, content_type: str = "application/json", usage: Usage | None = None) -> None:
        self.body = body
        self.content_type = content_type
        self.usage = usage


class StreamDecoder:
    """Upstream bytes to client bytes, incrementally; one object for one answer. (A class and no protocol, as it is
    called for each chunk: see `connection.Receiver`.)

    Every piece returned ends at an event boundary, so that a comment or an error may follow it.
    """

    __slots__ = ()

    done: bool  # the client's stream is complete, its end marker included: what the engine still says is void
    cut: bool  # it is complete although the engine would go on: its connection must be closed
    usage: Usage | None

    def feed(self, data: bytes) -> bytes:
        """Decode the next read. Raises `ApiError` for an error that the engine reports (nothing is lost: what
        came before it in the same read is in `pending`) and for one that breaks the stream."""
        raise NotImplementedError

    def flush(self) -> bytes:
        """The upstream body ended properly: the rest, and what the engine left out (`[DONE]`). Raises
        `ApiError` `upstream_incomplete` where it ended too early."""
        raise NotImplementedError

    def error(self, exc: ApiError) -> bytes:
        """That error as this stream's last events, its end marker included."""
        raise NotImplementedError

    def take_pending(self) -> bytes:
        """What was decoded before the error that `feed` or `flush` raised; empty otherwise."""
        raise NotImplementedError


class ResponseDecoder(Protocol):
    """The answer to the calls of one `Plan`."""

    def reply(self, answers: Sequence[Answered]) -> Reply:
        """2xx answers that are complete, one for each call, in order. Raises `ApiError` where an engine says 200 and
        means an error."""

    def failure(self, answer: Answered) -> ApiError:
        """Any other answer, as the client shall see it."""

    def streams(self) -> Sequence[StreamDecoder]:
        """A decoder for each call's streamed 2xx answer. Where there are several they share one client stream: each
        returns what may be written as it comes, the last to end adds the end marker."""


@dataclass(slots=True, init=False)
class Plan:
    """What is to be sent: several calls (a fan-out) run at once and end together."""

    calls: tuple[Encoded, ...]
    decoder: ResponseDecoder
    dropped: tuple[str, ...]  # members that the engine has no word for: `x-illm-dropped-params`

    def __init__(self, calls: tuple[Encoded, ...], decoder: ResponseDecoder, dropped: tuple[str, ...] = ()) -> None:
        self.calls = calls
        self.decoder = decoder
        self.dropped = dropped


@dataclass(frozen=True, slots=True)
class Ask:
    """A step: one more call to the same backend. Its answer, of any status, comes back as `Answered`."""

    path: str
    body: bytes | None = None  # None: a GET


@dataclass(frozen=True, slots=True)
class Fetch:
    """A step: an image from the network, by the rules for such URLs. Comes back as `Answered` with the media type
    that its bytes show; what can't be had ends the request."""

    url: str


@dataclass(frozen=True, slots=True)
class Learn:
    """A step: a fact about the backend, in `Target.facts` of every later request until the engine was down."""

    name: str
    value: Any


# How a dialect that needs more than the request comes to its plan, or at once to the reply.
Steps = Generator[Ask | Fetch | Learn, Answered, Plan | Reply]


class Dialect(Protocol):
    """One wire format."""

    def encode(self, request: Request, target: Target) -> Plan | Steps:
        """OpenAI to upstream. Raises `ApiError` for what that engine can't do or can't be sent."""
