"""What the checks ask with: the official clients pointed at a subject's gateway, plain HTTP, and the smallest question.

A check returns where all is well; it raises Ignored, the client's own error for an error answer, or AssertionError.
"""

from collections.abc import Mapping
from typing import Any

import httpx
import openai

from tests.conformance.outcome import HttpRefusal
from tests.conformance.subjects import Subject
from tests.engines.process import PATIENCE

KEY = "not-needed"
TIMEOUT = PATIENCE
HI: Any = [{"role": "user", "content": "hi"}]


def sdk(subject: Subject) -> openai.OpenAI:
    return openai.OpenAI(base_url=subject.gateway.v1, api_key=KEY, max_retries=0, timeout=TIMEOUT)


def async_sdk(subject: Subject) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=subject.gateway.v1, api_key=KEY, max_retries=0, timeout=TIMEOUT)


def post(subject: Subject, path: str, body: Mapping[str, Any]) -> Any:
    """Plain HTTP; raises HttpRefusal for any status but 200."""
    response = httpx.post(f"{subject.gateway.base_url}{path}", json=body, timeout=TIMEOUT, trust_env=False)
    if response.status_code != 200:
        raise HttpRefusal(response)
    return response.json()


def same(got: object, wanted: object, what: str) -> None:
    assert got == wanted, f"{what} is {got!r}, not {wanted!r}"
