"""Asking a base URL what it is: which engine, in what state, with which models.

Control plane: one `probe` at a time, nothing kept between two of them; how a question is asked is `ask`'s. Hysteresis,
intervals and what to do with the answer are the caller's (`health`, `registry`); no request of a client ever waits for
this file.

An engine is known by what it says, never by its port, and never by a status alone: LM Studio answers 200 to every
path, and a web server that was not meant at all may sit on a usual port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from proxy import engine_answers
from proxy.ask import Asker, Unanswered
from proxy.dialects.base import EngineKind
from proxy.engine_answers import ModelInfo, Probe

# Where engines listen when nobody says otherwise. For people: what answers there decides.
LOCAL_PORTS: Final[dict[int, str]] = {
    11434: "Ollama",
    8000: "vLLM, transformers serve",
    8080: "llama-server, TGI, TEI",
    30000: "SGLang",
    3000: "TGI, TEI",
    1234: "LM Studio",
    7997: "Infinity",
}


async def probe(
    asker: Asker,
    root: str,
    kind: EngineKind | None,
    api_key: str | None,
    timeout: float,  # noqa: ASYNC109 - one limit for all requests, kept by asyncio.timeout below
    version: str | None = None,
) -> Probe:
    """Ask `root` (a base URL without `/v1`) for its state and models; with no `kind`, find out which engine it is.

    Takes at most `timeout` seconds in all, one or two requests for a known kind and up to eight to recognise one. A
    `version` that an earlier probe told is returned again without asking. Every failure is a `Probe`, none is
    raised. TGI is not to be asked more often than every 5 s. The asker belongs to the caller.
    """
    ask = _Questions(asker, root.rstrip("/"), api_key)
    try:
        async with asyncio.timeout(timeout):
            if kind is None:
                found = await _identify(ask)
                if isinstance(found, Probe):
                    return found
                kind = found
            return await _examine(ask, kind, version)
    except TimeoutError:
        return Probe("down", kind, detail=f"no answer within {timeout:g} s")
    except Unanswered as exc:
        return Probe("down", kind, detail=str(exc))


class _Answer(NamedTuple):
    path: str
    status: int
    server: str
    content_type: str
    value: Any  # the JSON it is, else None


@dataclass(slots=True)
class _Questions:
    """GETs of one probe; none is asked twice."""

    asker: Asker
    root: str
    key: str | None
    answers: dict[str, _Answer] = field(default_factory=dict)

    async def get(self, path: str) -> _Answer:
        if path not in self.answers:
            told = await self.asker.ask(self.root, path, self.key)
            server, content_type = told.header(b"server"), told.header(b"content-type")
            self.answers[path] = _Answer(path, told.status, server, content_type, told.value)
        return self.answers[path]


# --- what each engine is asked ---


class _Plan(NamedTuple):
    """How an engine is looked at."""

    models: tuple[tuple[str, str], ...] = (("/v1", "/v1/models"),)  # (prefix, path), until one is there
    parse: Callable[[Any], tuple[ModelInfo, ...] | None] = engine_answers.openai_models
    health: str | None = None
    version: str | None = None
    no_list: frozenset[int] = frozenset()  # statuses of the list that an engine in good health may give
    loading: frozenset[int] = frozenset()  # statuses that mean: not yet


PROBES: Final[dict[EngineKind, _Plan]] = {
    "vllm": _Plan(health="/health", version="/version"),
    # Its /health may generate a token and take 20 s; /ready is cheap and missing in older ones. Its version stands
    # only in /server_info, beside its key, and costs the scheduler a turn: not asked.
    "sglang": _Plan(health="/ready", loading=frozenset({503})),
    "llamacpp": _Plan(version="/props", loading=frozenset({503})),
    "tgi": _Plan((("/v1", "/info"),), engine_answers.tgi_models, health="/health", version="/info"),
    "tei": _Plan((("/v1", "/info"),), engine_answers.tei_models, health="/health", version="/info"),
    "ollama": _Plan((("/v1", "/api/tags"),), engine_answers.ollama_models, version="/api/version"),
    "transformers": _Plan(health="/health", no_list=frozenset({500})),
    "infinity": _Plan((("", "/models"), ("/v1", "/v1/models"))),
    "openai": _Plan((("/v1", "/v1/models"), ("", "/models")), no_list=frozenset({404, 405, 501})),
}


async def _examine(ask: _Questions, kind: EngineKind, version: str | None) -> Probe:
    """The state and models of an engine of that kind."""
    plan = PROBES[kind]
    prefix, path = plan.models[0]
    answer = await ask.get(path)
    for other in plan.models[1:]:
        if answer.status in (404, 405):
            prefix, path = other
            answer = await ask.get(path)
    detail = ""
    models: tuple[ModelInfo, ...] | None = ()
    if answer.status in plan.no_list:
        prefix, detail = "/v1", f"it lists no models (answered {answer.status} at {answer.path})"
    elif answer.status != 200:
        return _not_ready(ask, kind, answer)
    else:
        models = plan.parse(answer.value)
    if models is None:
        said = f"what it answers at {answer.path} is not {kind}'s list of models: check base_url and kind"
        return Probe("down", kind, detail=said)
    if plan.health is not None:
        health = await ask.get(plan.health)
        if health.status >= 500:
            return _not_ready(ask, kind, health)
    if version is None and plan.version is not None:
        version = engine_answers.version((await ask.get(plan.version)).value)
    return Probe("ready", kind, prefix, version, models, detail)


def _not_ready(ask: _Questions, kind: EngineKind | None, answer: _Answer) -> Probe:
    """What an answer other than 200 means."""
    status, said = answer.status, engine_answers.message(answer.value, ask.key)
    if status in (401, 403):
        advice = "an api_key is missing" if ask.key is None else "check api_key"
        if kind == "ollama" and status == 403:
            advice = "it refuses this host name: use its address, or set OLLAMA_HOST there"
        return Probe("down", kind, detail=f"answered {status}: {advice}")
    if 300 <= status < 400:
        return Probe("down", kind, detail=f"answered {status}, a redirect: base_url must name where it leads")
    if status == 503 and ((kind is not None and status in PROBES[kind].loading) or "loading" in said.lower()):
        return Probe("loading", kind, detail=f"loading (503 {said or 'at ' + answer.path})")
    return Probe("down", kind, detail=f"answered {status} at {answer.path}" + (f": {said}" if said else ""))


# --- which engine it is ---


async def _identify(ask: _Questions) -> EngineKind | Probe:
    """The kind of engine at that URL, or why it has none."""
    first = await ask.get("/v1/models")
    if first.server.startswith("llama.cpp"):
        return "llamacpp"
    if "html" in first.content_type:  # a web server: its log is spared the other questions
        return _stranger(ask, first)
    if engine_answers.is_gateway((await ask.get("/healthz")).value):
        return Probe("down", None, detail="this is an illm gateway, not an engine", gateway=True)
    if first.status in (401, 403):
        # vLLM's list is closed without its key, its version open.
        if first.value == {"error": "Unauthorized"} and engine_answers.version((await ask.get("/version")).value):
            return "vllm"
        return _stranger(ask, first)
    listed = await ask.get("/models") if first.status in (404, 405) else first
    models = engine_answers.openai_models(listed.value) if listed.status == 200 else None
    for model in models or ():
        if (kind := engine_answers.OWNERS.get(model.owned_by)) is not None:
            return kind
    for path, clue in engine_answers.CLUES:
        if (kind := clue((await ask.get(path)).value)) is not None:
            return kind
    return "openai" if models is not None else _stranger(ask, first)


def _stranger(ask: _Questions, first: _Answer) -> Probe:
    if first.status in (401, 403, 503):
        return _not_ready(ask, None, first)
    said = f"something answers ({first.status} at {first.path}), but not as an engine does"
    return Probe("down", None, detail=said)
