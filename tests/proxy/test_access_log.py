"""The access log as it is written: when, what, and what is left out."""

from __future__ import annotations

import datetime
import json
import os
import re
import select
import time

import pytest

from proxy.access_log import FLUSH, AccessLog, timed
from proxy.call import Call, clock
from tests.proxy.harness import gateway, until

DAY = 1_700_000_000  # 2023-11-14T22:13:20Z


def read(fd: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in os.read(fd, 1 << 16).splitlines()]


def test_each_line_has_its_own_time() -> None:
    lines = [(DAY + 0.0, b'{"a":1}'), (DAY + 0.9994, b'{"b":2}'), (DAY + 1.25, b'{"c":3}')]

    assert timed(lines) == (
        b'{"time":"2023-11-14T22:13:20.000Z","a":1}\n'
        b'{"time":"2023-11-14T22:13:20.999Z","b":2}\n'
        b'{"time":"2023-11-14T22:13:21.250Z","c":3}\n'
    )


async def test_the_time_is_that_of_the_request_and_not_of_the_batch() -> None:
    reading, writing = os.pipe()
    log = AccessLog(writing)
    before = time.time()
    log.write(Call(b"x", "GET", "/", "", clock()), clock())
    after = time.time()
    await until(lambda: bool(select.select([reading], [], [], 0)[0]))
    (line,) = read(reading)
    log.close()
    os.close(reading)
    os.close(writing)

    told = datetime.datetime.fromisoformat(str(line["time"])).timestamp()
    assert before - 0.002 < told < after + FLUSH / 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["time"]))
    assert (next(iter(line)), line["id"]) == ("time", "x")


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/health", "/metrics", "/livez/"])
async def test_probes_that_are_answered_have_no_line(path: str) -> None:
    async with gateway({}) as gate:
        await gate.client.get(path)
        await gate.client.get("/v1/models")
        assert [line["path"] for line in gate.log] == ["/v1/models"]


async def test_probes_that_fail_have_one() -> None:
    async with gateway({"server": {"api_keys": ["k"]}}) as gate:
        await gate.client.get("/readyz")  # nothing can be served
        await gate.client.get("/metrics")  # without a key
        assert [(line["path"], line["status"]) for line in gate.log] == [("/readyz", 503), ("/metrics", 401)]
