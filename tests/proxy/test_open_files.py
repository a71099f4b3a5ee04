"""The limit of open files: raised at the start, and named where it is reached."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from proxy import open_files
from proxy.ask import asking
from proxy.connection import ConnectFailed
from proxy.discovery import probe
from proxy.open_files import Watch
from proxy.transport import Limits, Origin, Transport
from tests.faults.support import CHAT, ok
from tests.proxy.harness import engine, gateway, one_backend

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def none_left() -> Iterator[str]:
    """This process can open nothing. Gives what is to be said about that."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    limit = spare + 32
    taken = [spare]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield f"the gateway has no file descriptors left (limit {limit})"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
        for file in taken:
            os.close(file)


def raised(soft: int, hard: int) -> list[str]:
    """What `raise_limit` returns in a process with those limits, and its soft limit then."""
    code = (
        "import resource; from proxy.open_files import raise_limit;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        "print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_it_is_raised_as_far_as_it_may_be() -> None:
    assert raised(100, 200) == ["100", "200"]
    assert raised(200, 200) == ["None", "200"]


def test_where_the_highest_cannot_be_had_it_is_a_cautious_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def refuses_all_but(_: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        if limits[0] != open_files.CAUTIOUS:
            raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuses_all_but)

    assert open_files.raise_limit() == 256
    assert asked == [(resource.RLIM_INFINITY,) * 2, (open_files.CAUTIOUS, resource.RLIM_INFINITY)]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_that_cannot_be_made_for_it(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def connect() -> None:
        transport = Transport(Limits())
        with none_left() as said, pytest.raises(ConnectFailed) as caught:
            await transport.connect(Origin.parse("http://127.0.0.1:9"))
        assert str(caught.value) == f"127.0.0.1:9: {said}"
        transport.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(connect())


async def test_the_engine_is_not_blamed() -> None:
    async with engine(ok) as upstream, gateway(one_backend(upstream.root)) as gate:
        await gate.client.get("/livez")  # so that there is a connection to ask on
        with asking() as asker, none_left() as said:
            reply = await gate.client.post("/v1/chat/completions", json=CHAT)
            found = await probe(asker, upstream.root, "vllm", None, 5.0)

        assert reply.status_code == 503
        assert said in reply.json()["error"]["message"]
        assert found.detail == said


async def test_it_is_in_the_log_once_for_as_long_as_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    with caplog.at_level(logging.INFO, "illm"):
        await watch.look()
        assert caplog.messages == []
        with none_left() as said:
            await watch.look()
            await watch.look()
            assert [message.partition(": ")[0] for message in caplog.messages] == [said]
            monkeypatch.setattr(open_files, "REPEAT", 0.0)
            await watch.look()
        assert len(caplog.messages) == 2
