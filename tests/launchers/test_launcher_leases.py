"""Leases: who has one, how it is asked for, and how it ends, whichever way its holder or its engine goes."""

import asyncio
import os
import signal
import socket
from contextlib import ExitStack

import httpx
import pytest

from tests.engines.process import PATIENCE, wait_until
from tests.launchers.support import Launcher, alive, spec

ONE = {"budget": {"0": 100}}  # bytes of a GPU that isn't there


def gpu(name: str, memory: int = 100) -> dict[str, object]:
    return spec(name, gpus=["0"], memory=memory)


def test_an_engine_whose_memory_is_wanted_goes_when_its_last_lease_is_given_back() -> None:
    with Launcher(gpu("old"), gpu("new"), **ONE) as launcher, ExitStack() as stack:
        leases = [stack.enter_context(launcher.wanted("old")) for _ in range(2)]
        pid, _ = (lease.until("ready")["engine"]["pid"] for lease in leases)
        newcomer = stack.enter_context(launcher.wanted("new"))
        for lease in leases:
            assert lease.until("yield")["reason"] == "its memory is wanted for new"
        newcomer.until("phase", where=lambda event: event["phase"] == "waiting for old to make room")

        leases[0].close()
        wait_until(lambda: launcher.row("old")["leases"] == 1, "one lease is left")
        late = stack.enter_context(launcher.wanted("old"))  # it isn't given out any more
        late.until("phase")
        assert launcher.row("old")["state"] == "ready"
        assert launcher.row("new")["state"] == "starting"
        assert alive(pid)

        leases[1].close()
        newcomer.until("ready")
        assert not alive(pid)
        assert "ready" not in [event["event"] for event in late.seen]
        newcomer.until("yield")  # and now the late one's turn comes
        newcomer.close()
        assert late.until("ready")["engine"]["pid"] != pid


def test_a_holder_that_dies_holds_nothing() -> None:
    with Launcher(spec("coder")) as launcher:
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(str(launcher.state / "launcher.sock"))
            holder.sendall(b"POST /engines/coder/ensure HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            wait_until(lambda: launcher.row("coder")["leases"] == 1, "it has a lease")
        wait_until(lambda: launcher.row("coder")["leases"] == 0, "the lease ended with it")


def test_every_lease_hears_of_a_crash_once() -> None:
    with Launcher(spec("coder", restarts=0)) as launcher, ExitStack() as stack:
        leases = [stack.enter_context(launcher.wanted("coder")) for _ in range(3)]
        pids = [lease.until("ready")["engine"]["pid"] for lease in leases]
        os.kill(pids[0], signal.SIGKILL)
        for lease in leases:
            assert [event["event"] for event in lease.rest()][-1:] == ["gone"]
        assert launcher.until("coder", "fatal")["leases"] == 0


async def test_leases_that_come_and_go_at_the_moment_of_the_grant_leave_nothing() -> None:
    with Launcher(spec("coder")) as launcher:
        socket_path = str(launcher.state / "launcher.sock")
        before = len(os.listdir(f"/proc/{launcher.process.pid}/fd"))

        async def come_and_go(client: httpx.AsyncClient, lines: int) -> None:
            async with client.stream("POST", "/engines/coder/ensure") as answer:
                async for _ in answer.aiter_lines():
                    lines -= 1
                    if lines <= 0:
                        return

        transport = httpx.AsyncHTTPTransport(uds=socket_path, limits=httpx.Limits(max_connections=None))
        async with httpx.AsyncClient(transport=transport, base_url="http://launcher", timeout=PATIENCE) as client:
            await asyncio.gather(*(come_and_go(client, n % 5) for n in range(60)))
        row = launcher.until("coder", "ready")
        wait_until(lambda: launcher.row("coder")["leases"] == 0, "all leases are given back")
        assert row["waiting"] == 0
        assert launcher.log.read_text().count("-> starting") == 1
        # its own: the log, the pidfd, the lifeline, the answer to this question
        wait_until(lambda: len(os.listdir(f"/proc/{launcher.process.pid}/fd")) <= before + 6, "no socket is left")


@pytest.mark.parametrize("verb", ["ensure", "start"])
def test_unknown_engines_are_refused_with_those_there_are(verb: str) -> None:
    with Launcher(spec("coder"), spec("chat")) as launcher:
        answer = launcher.client.post(f"/engines/code/{verb}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "engine_not_found"
        assert answer.json()["error"]["message"] == "There is no engine 'code' here. Known: coder, chat."
