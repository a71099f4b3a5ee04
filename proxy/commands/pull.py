"""`illm pull`: has an Ollama download a model (POST /api/pull, whose answer tells how far it is, a JSON object a line).

Which Ollama: one of the settings' backends, one that a launcher runs, or the one on its usual port here. Blocks until
the model is there; the download itself is Ollama's, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import httpx

from proxy import wire
from proxy.ask import asking
from proxy.commands.client import why
from proxy.commands.find import answers
from proxy.commands.progress import percent, size
from proxy.commands.say import complain, printable, say, say_json
from proxy.commands.source import Failed, UsageError
from proxy.discovery import probe
from proxy.engine_answers import message
from proxy.framing import FrameTooLong, NdjsonParser
from proxy.settings import Settings, load_settings

LOCAL: Final = "http://127.0.0.1:11434"
SILENCE: Final = 120.0  # seconds without news; Ollama gives some twice a second, but not while it checks a large file
STEP: Final = 10  # percent between two plain lines
INTERRUPTED: Final = 130

Event = dict[str, Any]
Show = Callable[[Event], None]


class Ollama(NamedTuple):
    name: str
    root: str
    key: str | None


def run(arguments: argparse.Namespace) -> int:
    """0 once the model is there. Raises `SettingsError`, `UsageError` and `Failed`."""
    settings = load_settings(arguments.config, os.environ)
    there = asyncio.run(_which(arguments, settings))
    showing: AbstractContextManager[Show] = nullcontext(say_json) if arguments.json else _shown(arguments.model)
    try:
        with showing as show:
            for event in _pull(there, arguments.model):
                show(event)
    except KeyboardInterrupt:
        complain("stopped. The same command goes on where it stopped.")
        return INTERRUPTED
    if not arguments.json:
        say(f"{arguments.model} is there ({there.name} at {there.root}).")
    return 0


# --- which one -----------------------------------------------------------------------------------------------------


async def _which(arguments: argparse.Namespace, settings: Settings) -> Ollama:
    given = arguments.backend
    if given is not None and given.startswith(("http://", "https://")):
        return Ollama("Ollama", given.rstrip("/").removesuffix("/v1"), None)
    known = [*_configured(settings), *await _launched(arguments)]
    if given is not None:
        named = [each for each in known if each.name == given]
        if not named:
            names = ", ".join(each.name for each in known) or "none"
            raise UsageError(
                f"there is no backend {given!r} that could be an Ollama. There are: {names}; a URL will do"
            )
        return named[0]
    found = await _asked([*known, Ollama("ollama", LOCAL, None)])
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{each.name} ({each.root})" for each in found)
        raise UsageError(f"there are several Ollamas: {names}. Say which one: --backend NAME")
    unasked = ", ".join(each.name for each in known)
    raise Failed(
        f"no Ollama answers{f' (asked: {unasked})' if unasked else ''}, and none does at {LOCAL}. Start it "
        f"(ollama serve, or illm start NAME for one under engines:), or say where it is: --backend URL."
    )


def _configured(settings: Settings) -> list[Ollama]:
    """Backends that are one, or may be."""
    return [
        Ollama(name, backend.root, backend.api_key.get_secret_value() if backend.api_key else None)
        for name, backend in settings.backends.items()
        if backend.kind in (None, "ollama")
    ]


async def _launched(arguments: argparse.Namespace) -> list[Ollama]:
    """Those that launchers run; a launcher that can't be asked has none."""
    every = argparse.Namespace(config=arguments.config, launcher=None)
    async with answers(every) as found:
        rows = [row for answer in found for row in answer.engines]
    return [
        Ollama(str(row["name"]), str(row["base_url"]), None)
        for row in rows
        if row.get("kind") == "ollama" and row.get("state") == "ready" and row.get("base_url")
    ]


async def _asked(known: list[Ollama]) -> list[Ollama]:
    """Those that are there and are Ollama, each once."""
    unique = list({each.root.replace("//localhost:", "//127.0.0.1:"): each for each in reversed(known)}.values())[::-1]
    with asking() as asker:
        looks = await asyncio.gather(*(probe(asker, each.root, None, each.key, 5.0) for each in unique))
    return [each for each, look in zip(unique, looks, strict=True) if look.kind == "ollama"]


# --- the download --------------------------------------------------------------------------------------------------


def _pull(there: Ollama, model: str) -> Iterator[Event]:
    """What Ollama says of it, until it says `success`. Raises `Failed`."""
    headers = {b"authorization": b"Bearer " + there.key.encode()} if there.key else {}
    content, where = wire.dump({"model": model, "stream": True}), f"{there.name} at {there.root}"
    parser, done = NdjsonParser(), False
    try:
        with (
            httpx.Client(trust_env=False, timeout=httpx.Timeout(SILENCE, connect=5.0)) as client,
            client.stream("POST", f"{there.root}/api/pull", content=content, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise Failed(_refused(where, model, response.read(), f"answered {response.status_code}"))
            for piece in response.iter_raw():
                for line in parser.feed(piece):
                    event = wire.load_object(line)
                    if "error" in event:
                        raise Failed(_refused(where, model, line, "broke off"))
                    done = done or event.get("status") == "success"
                    yield event
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Failed(f"{where}: {why(exc)}. The same command goes on where it stopped.") from None
    except (wire.InvalidJson, FrameTooLong):
        raise Failed(f"{where} answered with something that is no news of a download. Is it an Ollama?") from None
    if not done:
        raise Failed(f"{where} ended without success. The same command goes on where it stopped.")


def _refused(where: str, model: str, body: bytes, text: str) -> str:
    try:
        said = message(wire.load(body), None)
    except wire.InvalidJson:
        said = ""
    advice = ". See https://ollama.com/library for names" if "manifest" in said or "not exist" in said else ""
    return f"{model} could not be pulled: {where} {text}{f': {said}' if said else ''}{advice}"


@contextmanager
def _shown(model: str) -> Iterator[Show]:
    """A bar for all layers together on a terminal, else a line for each step and each tenth of a layer."""
    if not sys.stdout.isatty():
        yield _Plain(model)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    layers: dict[str, tuple[float, float]] = {}
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(model, total=None)

        def show(event: Event) -> None:
            digest, total, done = event.get("digest"), event.get("total"), event.get("completed", 0)
            if isinstance(digest, str) and isinstance(total, int | float) and isinstance(done, int | float):
                layers[digest] = (total, done)
            whole, come = (sum(layer[part] for layer in layers.values()) for part in (0, 1))
            status = "pulling" if digest else printable(str(event.get("status", "")))
            bar.update(task, description=f"{model}: {status}", total=whole or None, completed=come)

        yield show


class _Plain:
    """Lines, as few as tell the story."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._last: tuple[str, int | None] | None = None

    def __call__(self, event: Event) -> None:
        status, total, done = str(event.get("status", "")), event.get("total"), event.get("completed", 0)
        step, far = None, ""
        if isinstance(total, int | float) and total > 0 and isinstance(done, int | float):
            step, far = int(done / total * 100) // STEP, f" {percent(done / total)} of {size(total)}"
        if (status, step) == self._last:
            return
        self._last = (status, step)
        say(f"{self._model}: {printable(status)}{far}")
