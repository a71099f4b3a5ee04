"""The words of a cell, and how an error answer is told apart from a failure of the gateway."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import anthropic
import httpx
import openai

TYPES = {  # of the contract, by what they say about whose failure it is
    "CapabilityNotSupported": range(422, 423),
    "invalid_request_error": range(400, 422),
    "rate_limit_error": range(429, 430),
    "server_error": range(500, 600),
    "RemoteEndpointError": range(500, 600),
}


class Outcome(Enum):
    """What happened, in the words that the table has for it."""

    YES = "yes"
    UNSUPPORTED = "can't"  # 422 CapabilityNotSupported
    REFUSED = "can't (400)"  # a clean OpenAI error that says so
    IGNORED = "ignores it"  # answered as if nothing had been asked
    FAILS = "fails (5xx)"  # the engine breaks on it; the client hears so in a clean OpenAI error
    NO = "**no**"  # the gateway's fault: never expected


class Ignored(Exception):
    """Raised by a check: the answer is good, but what was asked for is not in it."""


class HttpRefusal(Exception):
    """Raised by checks that use plain HTTP: an answer other than 200."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"{response.status_code}: {response.text[:500]}")
        self.response = response


@dataclass(frozen=True, slots=True)
class Result:
    """One cell: what came out, and the words behind it."""

    outcome: Outcome
    detail: str = ""


def envelope(response: Any) -> dict[str, object]:
    """The error object of an answer (httpx's, or a client's own kind of it).

    Raises AssertionError where it is not exactly what the contract says."""
    assert response.headers["content-type"].startswith("application/json"), response.headers["content-type"]
    error: dict[str, object] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str), error
    assert error["message"], error
    assert error["code"] is None or (isinstance(error["code"], str) and not error["code"].isdigit()), error
    assert response.status_code in TYPES[str(error["type"])], (response.status_code, error)
    assert response.headers.get("x-request-id"), "an error without x-request-id"
    return error


def classify(response: Any) -> Result:
    """What an error answer to a well-formed request for a known model means. AssertionError where it is unclean."""
    error, status = envelope(response), response.status_code
    detail = f"{status} {error}"
    if status == 422:
        return Result(Outcome.UNSUPPORTED, detail)
    if status == 400:
        return Result(Outcome.REFUSED, detail)
    if status >= 500:
        return Result(Outcome.FAILS, detail)
    return Result(Outcome.NO, detail)


def observe(check: Callable[[], None]) -> Result:
    """Runs one check and says what came out. Only an assertion, a client's error or a broken answer is caught."""
    try:
        check()
    except Ignored as reason:
        return Result(Outcome.IGNORED, str(reason))
    except (HttpRefusal, openai.APIStatusError, anthropic.APIStatusError) as refusal:
        try:
            return classify(refusal.response)
        except (AssertionError, KeyError, ValueError) as unclean:
            text = refusal.response.text[:500]
            return Result(Outcome.NO, f"unclean error: {unclean!r} of {refusal.response.status_code} {text}")
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError) as wrong:
        return Result(Outcome.NO, f"{type(wrong).__name__}: {wrong}")
    except (httpx.HTTPError, openai.OpenAIError, anthropic.AnthropicError) as broken:
        return Result(Outcome.NO, f"{type(broken).__name__}: {broken} ({broken.__cause__!r})")
    return Result(Outcome.YES)
