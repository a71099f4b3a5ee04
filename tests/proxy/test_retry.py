"""What the official SDK does with what the gateway answers: it retries where that may help and nowhere else, and
shows the gateway's own words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from proxy.errors import KINDS, error
from proxy.wire import dump_error
from tests.proxy.harness import Engine, Got, Line, Running, engine, gateway, one_backend
from tests.vectors_support import load

CASES = load("sdk_retry")["cases"]
MESSAGES: Any = [{"role": "user", "content": "hi"}]


def sdk(transport: httpx.MockTransport, monkeypatch: pytest.MonkeyPatch) -> tuple[openai.OpenAI, list[float]]:
    """A client that retries once, and the waits that it would have made."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return openai.OpenAI(
        base_url="http://x/v1", api_key="k", max_retries=1, http_client=httpx.Client(transport=transport)
    ), waits


def attempts(status: int, headers: dict[str, str], body: bytes, patch: pytest.MonkeyPatch) -> tuple[int, list[float]]:
    """How often the SDK asks, and how long it waits, where that is every answer."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, headers=headers | {"content-type": "application/json"}, content=body)

    client, waits = sdk(httpx.MockTransport(answer), patch)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert caught.value.status_code == status
    return len(asked), waits


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['status']} {case['headers']}")
def test_the_sdk_is_as_the_contract_says(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = case["openai_sdk_retries"]
    if not isinstance(wanted, bool):  # it depends on the SDK's version
        wanted = int(openai.__version__.partition(".")[0]) < 3
    asked, waits = attempts(case["status"], case["headers"], b'{"error":{}}', monkeypatch)

    assert asked == (2 if wanted else 1)
    if "openai_sdk_wait_s" in case:
        assert waits == [case["openai_sdk_wait_s"]]


# A failure that is worth another try, by its code; any other must not be repeated.
WORTH_IT = {
    "rate_limit_exceeded", "backend_unavailable", "model_loading", "backend_overloaded", "backend_timeout",
    "upstream_incomplete", "upstream_invalid_response", "upstream_error", "upstream_generation_failed",
    "internal_error", "engine_memory", "engine_stopped", "launcher_unavailable",
}  # fmt: skip


@pytest.mark.parametrize("code", KINDS)
def test_each_of_our_errors(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exc = error(code, "What to do.")
    asked, waits = attempts(exc.status, dict(exc.headers), dump_error(exc), monkeypatch)

    assert asked == (2 if code in WORTH_IT else 1)
    if "retry-after" in dict(exc.headers):
        assert waits == [float(dict(exc.headers)["retry-after"])]


# -- over the wire -----------------------------------------------------------------------------------------------


async def ask(gate: Running, seed: int = 0) -> openai.APIStatusError:
    """One failure, as the SDK shows it."""
    async with openai.AsyncOpenAI(base_url=gate.url + "/v1", api_key="k", max_retries=1) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="pub", messages=MESSAGES, seed=seed)
    return caught.value


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai.AsyncOpenAI, "_calculate_retry_timeout", lambda *_: 0.0)


# status that an engine answers -> status that the client sees, and whether the SDK asks again
ENGINES: dict[int, tuple[int, bool]] = {
    400: (400, False),
    401: (502, False),
    403: (502, False),
    404: (404, False),
    413: (413, False),
    418: (400, False),
    422: (400, False),
    424: (400, False),
    429: (429, True),
    500: (500, True),
    501: (422, False),
    502: (502, True),
    503: (503, True),
    504: (504, True),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def failing() -> AsyncIterator[tuple[Engine, Running]]:
    """An engine that answers with the status that it is asked for."""

    async def answer(got: Got, line: Line) -> None:
        status = got.json["seed"]
        body = {"error": {"message": "the model does not exist", "type": "x", "code": status}}
        await line.reply(status, json.dumps(body).encode())

    async with engine(answer) as upstream, gateway(one_backend(upstream.root)) as gate:
        yield upstream, gate


@pytest.mark.parametrize(("told", "expected"), ENGINES.items(), ids=str)
@pytest.mark.usefixtures("hurried")
@pytest.mark.asyncio(loop_scope="module")
async def test_an_engines_status_on_its_way_to_the_sdk(
    told: int, expected: tuple[int, bool], failing: tuple[Engine, Running]
) -> None:
    upstream, gate = failing
    upstream.got.clear()
    gate.log.clear()
    status, again = expected
    exc = await ask(gate, told)

    assert exc.status_code == status
    assert len(upstream.got) == (2 if again else 1)
    assert exc.request_id == (await gate.logged(len(upstream.got)))[-1]["id"]
    if status not in (422, 502):
        assert "the model does not exist" in exc.message


@pytest.mark.usefixtures("hurried")
async def test_the_gateways_own_refusals_are_final() -> None:
    async with engine() as upstream, gateway(one_backend(upstream.root, "infinity")) as gate:
        exc = await ask(gate)

        assert isinstance(exc, openai.UnprocessableEntityError)
        assert (exc.type, exc.code, exc.param) == ("CapabilityNotSupported", "unsupported_endpoint", "model")
        assert len(gate.lines()) == 1


@pytest.mark.usefixtures("hurried")
async def test_an_engine_that_is_back_at_the_second_try() -> None:
    async with engine() as upstream:
        root = upstream.root
    async with gateway(one_backend(root)) as gate:
        port = int(root.rpartition(":")[2])

        async def answer(_: Got, line: Line) -> None:
            await line.reply(200, b'{"id":"c","object":"chat.completion","created":1,"model":"up","choices":[]}')

        async with openai.AsyncOpenAI(base_url=gate.url + "/v1", api_key="k", max_retries=50) as client:
            asking = asyncio.ensure_future(client.chat.completions.create(model="pub", messages=MESSAGES))
            await gate.logged()
            upstream.handler = answer
            await upstream.listen(port)
            try:
                assert (await asking).model == "pub"
            finally:
                await upstream.close()
