"""What a list of models leaves out and its engine tells on request: Ollama's `/api/show` and `/api/ps`.

Control plane, as `discovery`: asked in the background after a probe, never for a client. A description is asked for
once for each version of a model; what is loaded with which context is asked again with every probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from proxy import wire
from proxy.ask import Asker, Unanswered
from proxy.engine_answers import ModelInfo, ollama_contexts, ollama_shown

AT_ONCE: Final = 20  # models described after one probe; the rest follow after the next ones
MAX_BYTES: Final = 16 * 2**20  # of one answer: a model's whole vocabulary may be in it
TIMEOUT: Final = 5.0  # seconds, for each question

Known = dict[tuple[str, int | None], ModelInfo]  # (name, when it was made) -> its description


async def describe_ollama(
    asker: Asker, root: str, key: str | None, models: Iterable[ModelInfo], known: Known
) -> tuple[ModelInfo, ...]:
    """The same models with their context length and capabilities. Adds to `known` what it learns. A question that
    fails leaves a model as it was listed; nothing is raised."""
    asked = 0
    described: list[ModelInfo] = []
    for model in models:
        version = (model.id, model.created)
        if version not in known and asked < AT_ONCE:
            asked += 1
            shown = ollama_shown(await _ask(asker, root, "/api/show", key, {"model": model.id}), model)
            if shown is not None:
                known[version] = shown
        described.append(known.get(version, model))
    loaded = ollama_contexts(await _ask(asker, root, "/api/ps", key, None))
    return tuple(replace(model, max_model_len=loaded.get(model.id, model.max_model_len)) for model in described)


async def _ask(asker: Asker, root: str, path: str, key: str | None, body: dict[str, Any] | None) -> Any:
    """The JSON that is answered; None for anything else."""
    try:
        async with asyncio.timeout(TIMEOUT):
            told = await asker.ask(root, path, key, wire.dump(body) if body is not None else None, MAX_BYTES)
    except (TimeoutError, Unanswered):
        return None
    return told.value if told.status == 200 else None
