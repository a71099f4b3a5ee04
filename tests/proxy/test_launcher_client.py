"""The control API as the gateway speaks it: what is asked, what comes back, and the sentences for what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from proxy import launcher_client
from proxy.launcher_client import Address, LauncherClient, LauncherError
from tests.proxy.harness import PATIENCE, until
from tests.proxy.scripted_launcher import Launcher, launcher, row


@contextlib.asynccontextmanager
async def client(address: Address) -> AsyncIterator[LauncherClient]:
    made = LauncherClient(address)
    try:
        yield made
    finally:
        await made.aclose()


async def test_questions_and_answers(tmp_path: Path) -> None:
    async with launcher(tmp_path, row("a"), row("b")) as there, client(there.address) as one:
        assert (await one.about())["launcher"] == "illm"
        assert [each["name"] for each in await one.engines()] == ["a", "b"]
        assert (await one.stop("a"))["state"] == "stopped"
        assert "".join([text async for text in one.logs("a", 5, True)]) == "one\ntwo\n"
        assert (await one.reload(dry_run=True))["start"] == ["a"]
        await one.reload()
        await one.shutdown()

        assert there.asked == [
            "GET /",
            "GET /engines",
            "POST /engines/a/stop",
            "GET /engines/a/logs?tail=5&follow=1",
            "POST /reload?dry_run=1",
            "POST /reload",
            "POST /shutdown",
        ]


async def test_a_name_with_anything_in_it(tmp_path: Path) -> None:
    async with launcher(tmp_path) as there, client(there.address) as one:
        with pytest.raises(LauncherError) as caught:
            await anext(one.ensure("a b?c"))

        assert caught.value.status == 404
        assert str(caught.value) == "There is no engine 'a b?c'."


async def test_over_tcp_with_a_key(tmp_path: Path) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    there = Launcher(tmp_path / "unused", {"a": row("a")})
    there.refusal = lambda request: (
        None if request.headers.get("authorization") == "Bearer sk" else JSONResponse({}, 401)
    )
    await there.listen(sock)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    try:
        async with client(Address("gpu", url, "sk")) as one:
            assert len(await one.engines()) == 1
        async with client(Address("gpu", url, "wrong")) as one:
            with pytest.raises(LauncherError) as caught:
                await one.engines()
    finally:
        await there.leave()

    assert caught.value.status == 401
    assert str(caught.value) == f"Launcher 'gpu' at {url} refused the key. Set its api_key as that launcher has it."


async def test_events_without_pings(tmp_path: Path) -> None:
    async with launcher(tmp_path, row("a")) as there, client(there.address) as one:
        async with aclosing(one.events()) as events:
            first = await anext(events)
            for follower in there.followers:
                follower.say("ping")
                follower.say("engine", engine=row("a", "starting", phase="größer"))
            second = await anext(events)

        assert (first["event"], [each["name"] for each in first["engines"]]) == ("engines", ["a"])
        assert (second["event"], second["engine"]["phase"]) == ("engine", "größer")


async def test_closing_the_events_closes_the_request(tmp_path: Path) -> None:
    """Which is how a lease is given back."""
    async with launcher(tmp_path, row("a")) as there, client(there.address) as one:
        async with aclosing(one.ensure("a")) as events:
            reading = asyncio.ensure_future(anext(events))
            lease = await there.lease()
            lease.say("phase", state="starting", phase="loading weights", progress=0.5)
            assert (await reading)["progress"] == 0.5
            assert not lease.closed.is_set()
        await asyncio.wait_for(lease.closed.wait(), PATIENCE)


async def test_cancelling_the_reader_closes_the_request(tmp_path: Path) -> None:
    async with launcher(tmp_path, row("a")) as there, client(there.address) as one:

        async def read() -> None:
            async with aclosing(one.start("a")) as events:
                async for _ in events:
                    pass

        reading = asyncio.ensure_future(read())
        lease = await there.lease()
        reading.cancel()
        await asyncio.wait_for(lease.closed.wait(), PATIENCE)
        await asyncio.gather(reading, return_exceptions=True)


async def test_more_leases_than_a_pool_has_by_default(tmp_path: Path) -> None:
    async with launcher(tmp_path, row("a")) as there, client(there.address) as one:
        events = [one.ensure("a") for _ in range(120)]
        reading = [asyncio.ensure_future(anext(each)) for each in events]
        await until(lambda: len(there.leases) == 120)
        for lease in there.leases:
            lease.say("ready", engine=row("a", "ready"))
        await asyncio.gather(*reading)
        for each in events:
            await each.aclose()


# -- what goes wrong ---------------------------------------------------------------------------------------------


async def failure(one: LauncherClient) -> LauncherError:
    with pytest.raises(LauncherError) as caught:
        await one.engines()
    return caught.value


async def test_nobody_is_there(tmp_path: Path) -> None:
    async with client(Address("here", f"unix:{tmp_path}/no.sock")) as one:
        exc = await failure(one)

    assert exc.status is None
    assert str(exc) == (
        f"Launcher 'here' at {tmp_path}/no.sock can't be reached. Is it running? `illm launch` starts it; its log says "
        "why it ended."
    )


async def test_it_breaks_off(tmp_path: Path) -> None:
    async with launcher(tmp_path, row("a")) as there, client(there.address) as one, aclosing(one.events()) as events:
        await anext(events)
        there.cut()
        with pytest.raises(LauncherError, match=r"The connection to launcher 'here' at .* broke off\."):
            await anext(events)


async def test_it_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a ping: it hangs, or its host is gone without a word."""
    monkeypatch.setattr(launcher_client, "SILENCE", 0.05)
    async with launcher(tmp_path, row("a")) as there, client(there.address) as one, aclosing(one.events()) as events:
        with pytest.raises(LauncherError, match=r"Launcher 'here' at .* has fallen silent\."):
            async for _ in events:
                pass


async def test_its_own_words(tmp_path: Path) -> None:
    async with launcher(tmp_path) as there, client(there.address) as one:
        there.refusal = lambda _: JSONResponse({"error": {"message": "Not now.", "code": "busy"}}, 503)
        exc = await failure(one)

        assert (str(exc), exc.status, exc.code) == ("Not now.", 503, "busy")


@pytest.mark.parametrize(("status", "says"), [(500, "answered with status 500"), (200, "something that is not JSON")])
async def test_another_program_answers(status: int, says: str, tmp_path: Path) -> None:
    async with launcher(tmp_path) as there, client(there.address) as one:
        there.refusal = lambda _: PlainTextResponse("<html>", status)

        assert says in str(await failure(one))


async def test_a_key_that_cannot_stand_in_a_header_is_not_shown(tmp_path: Path) -> None:
    async with launcher(tmp_path) as there, client(Address("here", there.address.url, "sk\nsecret")) as one:
        exc = await failure(one)

    assert "not fit for HTTP" in str(exc)
    assert "secret" not in str(exc)
