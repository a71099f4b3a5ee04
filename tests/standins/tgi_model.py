"""The stand-in model behind TGI's router: what it says to a prompt, token by token, and when it stops.

Knows no HTTP beyond the exchange that its faults act on.
"""

import hashlib
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import islice

from tests.engines.speech import TEXT
from tests.standins.directives import Directive, Failed, Vanished, endless, is_endless, paced
from tests.standins.instances import instance
from tests.standins.server import Exchange
from tests.standins.tgi_rules import Job, Refused, Settings, samples
from tests.standins.tgi_tokens import WORDS, Token, spoken, token

GARBAGE = b'data: {"index":\n\n'
_USER = "<|user|>"


@dataclass(slots=True)
class Said:
    """A whole answer."""

    tokens: list[Token]
    text: str
    finish: str


def last_message(job: Job) -> str:
    return job.last_message or job.inputs.rpartition(_USER)[2]


def answer(job: Job, directive: Directive, settings: Settings) -> tuple[Iterator[Token], float]:
    """The tokens of the answer, without end where it has none, and the least seconds between two of them."""
    if directive.text is not None:
        return iter(spoken(directive.text)), 0
    if job.schema is not None:
        return iter(spoken(json.dumps(instance(job.schema), ensure_ascii=False))), 0
    if is_endless(last_message(job)):
        return (token(WORDS[piece], piece, at) for at, piece in enumerate(endless())), settings.endless_delay
    return iter(spoken(" ".join(job.images) or TEXT)), 0


async def generate(
    job: Job, directive: Directive, exchange: Exchange, settings: Settings, *, stream: bool
) -> AsyncGenerator[tuple[Token, str | None], None]:
    """Tokens, the last one with its finish reason. Raises Refused as the router reports a failure of the model."""
    tokens, slow = answer(job, directive, settings)
    stops = job.parameters.get("stop") or ()
    said = ""
    try:
        slow = max(slow, settings.token_delay)
        number = 0
        async for each in paced(islice(tokens, job.limit), directive, exchange, GARBAGE, slow):
            number += 1
            said += "" if each.special else each.text
            finish = "eos_token" if each.special else None
            if finish is None and any(said.endswith(stop) for stop in stops):
                finish = "stop_sequence"
            if finish is None and number == job.limit:
                finish = "length"
            yield each, finish
            if finish is not None:
                return
    except Failed as failed:
        raise Refused(424, f"Request failed during generation: Server error: {failed}", "generation") from None
    except Vanished:
        name, kind = ("Incomplete generation stream", "incomplete_generation_stream") if stream else _WHOLE
        raise Refused(500, name, kind) from None


_WHOLE = ("Incomplete generation", "incomplete_generation")


async def whole(job: Job, directive: Directive, exchange: Exchange, settings: Settings) -> Said:
    found = [pair async for pair in generate(job, directive, exchange, settings, stream=False)]
    tokens = [each for each, _ in found]
    return Said(tokens, "".join(each.text for each in tokens if not each.special), found[-1][1] or "length")


def top_tokens(each: Token, count: int) -> list[Token]:
    """The token and its alternatives, which are made up."""
    others = (Token(360 + at, f" other{at}", round(each.logprob - 0.5 * at, 3)) for at in range(1, count))
    return [each, *others]


def seed(job: Job, draw: int = 0) -> int | None:
    """The seed that `details` show: the given one, else one drawn for this prompt; none without sampling."""
    if not samples(job.parameters):
        return None
    if job.parameters.get("seed") is not None:
        given: int = job.parameters["seed"]
        return given
    return int.from_bytes(hashlib.sha256(f"{draw} {job.inputs}".encode()).digest()[:8], "big")
