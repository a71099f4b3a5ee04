"""Asking a starting engine whether it is ready, and preparing it where it must be told something first.

HTTP to one engine on this machine. Not here: how long that may take and what follows from it (`engine`), what is to be
asked (`engines/`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal

import httpx

from launchers.engines.base import LISTENING, LOADING, Question, Ready

Stage = Literal["silent", "listening", "locked", "ready"]  # locked: it asks for a key, or for another one
Say = Callable[[str, float | None], None]

UNAUTHORIZED: Final = 401
ASK_TIMEOUT: Final = 5.0  # seconds for one question; an engine that loads may be slow to answer


class Unauthorized(Exception):
    """It wants a key that it wasn't given."""


class PreparationFailed(Exception):
    """The engine refused a preparation; the text is its own."""


class Asker:
    """Puts questions to one engine. The client belongs to whoever gave it."""

    def __init__(self, client: httpx.AsyncClient, base_url: str, api_key: str | None) -> None:
        self._client = client
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def stage(self, ready: Ready, model: str | None) -> Stage:
        """How far it is. `model`: the name that its list must hold; None where it lists none."""
        try:
            health = await self._get(ready.health)
            if health.status_code == UNAUTHORIZED:
                return "locked"
            if health.status_code != 200:
                return "listening"
            if ready.models is None or model is None:
                return "ready"
            return "ready" if await self.lists(ready.models, model, ready.names) else "listening"
        except Unauthorized:
            return "locked"
        except httpx.ConnectError:
            return "silent"
        except httpx.HTTPError:  # it listens, and is too busy or too young to answer
            return "listening"

    async def lists(self, path: str, model: str, names: Iterable[str]) -> bool:
        """Whether its list holds that model. Raises `Unauthorized` and `httpx.HTTPError`."""
        answer = await self._get(path)
        if answer.status_code == UNAUTHORIZED:
            raise Unauthorized
        try:
            value = answer.json()
        except ValueError:
            return False
        wanted = {model, f"{model}:latest"}
        return any(entry.get(name) in wanted for entry in _entries(value) for name in names)

    async def prepare(self, questions: Iterable[Question], names: Iterable[str], say: Say) -> None:
        """Put the questions, one after the other. Takes as long as they take. Raises `PreparationFailed`."""
        for question in questions:
            if question.unless is not None and await self.lists(question.unless, question.model, names):
                continue
            say(question.phase, None)
            if question.stream:
                await self._follow(question, say)
            else:
                answer = await self._client.request(
                    question.method,
                    self._base_url + question.path,
                    json=question.body,
                    headers=self._headers,
                    timeout=None,
                )
                if answer.status_code >= 400:
                    raise PreparationFailed(_words(answer.text))

    async def post(self, path: str, timeout: float) -> None:  # noqa: ASYNC109 - httpx's own
        """A bare POST. Raises `httpx.HTTPError`, also for an error status."""
        answer = await self._client.post(self._base_url + path, headers=self._headers, timeout=timeout)
        answer.raise_for_status()

    async def _get(self, path: str) -> httpx.Response:
        return await self._client.get(self._base_url + path, headers=self._headers, timeout=ASK_TIMEOUT)

    async def _follow(self, question: Question, say: Say) -> None:
        async with self._client.stream(
            question.method,
            self._base_url + question.path,
            json=question.body,
            headers=self._headers,
            timeout=None,
        ) as answer:
            if answer.status_code >= 400:
                raise PreparationFailed(_words((await answer.aread()).decode(errors="replace")))
            async for line in answer.aiter_lines():
                told = _load(line)
                if "error" in told:
                    raise PreparationFailed(str(told["error"]))
                total, completed = told.get("total"), told.get("completed")
                share = completed / total if total and completed is not None else None
                say(question.phase or str(told.get("status") or LOADING), share)


def phase_of(stage: Stage) -> str:
    return "started" if stage == "silent" else LISTENING


def new_client() -> httpx.AsyncClient:
    """For engines on this machine: no proxies, a connection for each question. The caller closes it."""
    return httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    """The entries of a list of models, whatever it is wrapped in; a server of one model may answer with that alone."""
    if isinstance(value, dict):
        inner = value.get("data", value.get("models"))
        value = inner if isinstance(inner, list) else [value]
    if isinstance(value, list):
        yield from (entry for entry in value if isinstance(entry, dict))


def _load(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _words(text: str) -> str:
    value = _load(text).get("error", text)
    if isinstance(value, dict):
        value = value.get("message", value)
    return str(value)[:500]
