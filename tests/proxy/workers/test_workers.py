"""`illm serve --workers 2`, as real processes: one gateway to its clients, its engines and whoever watches it, also
when one of its processes dies."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.support import CHAT, CHAT_PATH, DONE, REPLY, SSE, STREAM, Client, client, event
from tests.proxy.harness import PATIENCE, Engine, Got, Line, engine, one_backend, until
from tests.proxy.scripted_launcher import Launcher, Stream, row
from tests.proxy.workers.support import Gateway, alive, ask, children, illm

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

FAST = {"health": {"interval": 0.05, "down_after": 2}}


class Desk:
    """A handler that counts who is there, and lets them go when they may. Whoever is gone counts no more."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.there = 0
        self.most = 0
        self.go = asyncio.Event()
        if is_open:
            self.go.set()

    async def __call__(self, got: Got, line: Line) -> None:
        self.there += 1
        self.most = max(self.most, self.there)
        try:
            if got.json.get("stream"):
                await line.head(200, SSE)
                await line.chunk(event("one"))
                await self.go.wait()
                await line.chunk(event("two", finish="stop") + DONE)
                await line.end()
            else:
                await self.go.wait()
                await asyncio.sleep(0.02)
                await line.reply(200, REPLY)
        finally:
            self.there -= 1


async def chat(gate: Gateway, said: Any = CHAT) -> int:
    """One request on a connection of its own: its status."""
    async with client(gate.url) as one:
        await one.send(CHAT_PATH, said)
        return (await one.answer())[0]


async def post(one: Client, said: Any) -> int:
    """The status; the connection can be used again."""
    await one.send(CHAT_PATH, said)
    status, headers = await one.answer()
    await one.reader.readexactly(int(headers["content-length"]))
    return status


async def states(clients: list[Client], member: str = "state") -> list[Any]:
    """What each worker says of the backend."""
    return [json.loads(await ask(one, "/healthz"))["backends"][0][member] for one in clients]


async def reach(clients: list[Client], *wanted: str) -> None:
    """Until the workers say this of the backend; a worker may serve before it knows more than nothing."""

    async def said() -> bool:
        rows = [json.loads(await ask(one, "/healthz"))["backends"] for one in clients]
        return [row[0]["state"] for row in rows if row] == list(wanted)

    await eventually(said)


async def counts(gate: Gateway, name: str, wanted: float) -> None:
    """Until they add up to that. Who has much to do may tell it late, but nobody tells more or takes anything back."""
    last = 0.0

    async def added_up() -> bool:
        nonlocal last
        now = await gate.counter(name)
        assert last <= now <= wanted
        last = now
        return now == wanted

    await eventually(added_up)


async def eventually(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await true():
            await asyncio.sleep(0.02)


# -- limits ---------------------------------------------------------------------------------------------------------


async def test_a_limit_holds_over_all_workers_and_connections_are_shared(tmp_path: Path) -> None:
    desk = Desk()
    async with (
        engine(desk) as upstream,
        illm(tmp_path, one_backend(upstream.root, max_in_flight=3)) as gate,
        AsyncExitStack() as stack,
    ):
        clients: list[Client] = []
        shares: Counter[int] = Counter()
        while len(clients) < 40 or len(shares) < 2 or min(shares.values()) < 5:  # a busy machine may wake one late
            clients.append(await stack.enter_async_context(client(gate.url)))
            await ask(clients[-1], "/livez")
            shares[gate.worker_of(clients[-1])] += 1
        for one in clients:
            await one.send(CHAT_PATH, CHAT)
        await until(lambda: desk.there == 3)
        desk.go.set()
        answers = await asyncio.gather(*(one.answer() for one in clients))

        assert Counter(status for status, _ in answers) == {200: len(clients)}
        assert desk.most == 3

        def logged() -> list[int]:
            lines = (tmp_path / "access.log").read_text().splitlines(keepends=True)
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            return [row["status"] for row in rows if row["path"] == CHAT_PATH]

        await until(lambda: len(logged()) == len(clients))
        assert set(logged()) == {200}


async def test_the_queue_is_one(tmp_path: Path) -> None:
    desk = Desk()
    async with (
        engine(desk) as upstream,
        illm(tmp_path, one_backend(upstream.root, max_in_flight=1, max_queue=3)) as gate,
    ):
        asked = [asyncio.create_task(chat(gate)) for _ in range(12)]
        await until(lambda: sum(one.done() for one in asked) == 8)
        assert {one.result() for one in asked if one.done()} == {429}
        desk.go.set()

        assert Counter(await asyncio.gather(*asked)) == {429: 8, 200: 4}
        assert desk.most == 1


async def test_a_killed_worker_gives_its_places_back_and_is_replaced(tmp_path: Path) -> None:
    desk = Desk()
    async with (
        engine(desk) as upstream,
        illm(tmp_path, one_backend(upstream.root, max_in_flight=2)) as gate,
        gate.clients() as (doomed, other),
        AsyncExitStack() as stack,
    ):
        pid = gate.worker_of(doomed)
        holders = [doomed]
        while len(holders) < 2:  # both places are its
            one = await stack.enter_async_context(client(gate.url))
            await ask(one, "/livez")
            if gate.worker_of(one) == pid:
                holders.append(one)
        for one in holders:
            await one.send(CHAT_PATH, STREAM)
            await one.answer()
        await until(lambda: desk.there == 2)
        await other.send(CHAT_PATH, STREAM)
        await gate.kill_worker(pid)

        await other.answer()  # it waited in the other worker
        await until(lambda: desk.there == 1)
        await until(lambda: len(gate.workers()) == 2 and pid not in gate.workers())
        assert "worker" in gate.text
        assert "killed by SIGKILL" in gate.text
        desk.go.set()
        assert {await chat(gate) for _ in range(6)} == {200}
        async with gate.clients() as clients:
            await reach(clients, "ready", "ready")
            assert await states(clients, "in_flight") == [0, 0]


# -- one truth ------------------------------------------------------------------------------------------------------


async def test_counters_add_up_and_never_go_back(tmp_path: Path) -> None:
    name = "illm_requests_total"
    async with engine(Desk(is_open=True)) as upstream, illm(tmp_path, one_backend(upstream.root)) as gate:
        seen = [0.0]
        for _ in range(5):
            assert set(await asyncio.gather(*(chat(gate) for _ in range(10)))) == {200}
            seen.append(await gate.counter(name))
        assert seen == sorted(seen)
        await counts(gate, name, 50)
        assert await gate.counter("illm_requests_in_flight") == 0
        assert await gate.counter("illm_upstream_connections") >= 2

        pid = gate.workers()[0]
        await gate.kill_worker(pid)
        for _ in range(5):
            assert await gate.counter(name) == 50
        await until(lambda: len(gate.workers()) == 2 and pid not in gate.workers())
        assert set(await asyncio.gather(*(chat(gate) for _ in range(10)))) == {200}
        await counts(gate, name, 60)


async def test_all_workers_say_the_same_of_a_backend(tmp_path: Path) -> None:
    async with engine(Desk(is_open=True)) as upstream, illm(tmp_path, one_backend(upstream.root) | FAST) as gate:
        async with gate.clients() as clients:
            await reach(clients, "ready", "ready")
            port = int(upstream.root.rpartition(":")[2])
            await upstream.close()

            async def down() -> bool:
                return await states(clients) == ["down", "down"]

            async def refused() -> bool:  # the first probe may have met a connection that was still open
                return all("refused" in text for text in await states(clients, "detail"))

            await eventually(down)
            await eventually(refused)
            await upstream.listen(port)

            async def ready() -> bool:
                return await states(clients) == ["ready", "ready"]

            await eventually(ready)
        assert await chat(gate) == 200


async def test_a_reload_reaches_all_workers(tmp_path: Path) -> None:
    async with (
        engine() as old,
        engine(Desk(is_open=True), models=("up", "two")) as fresh,
        illm(tmp_path, one_backend(old.root)) as gate,
        gate.clients() as clients,
    ):
        more = {"models": {"pub": {"aliases": ["alias"], "replicas": [{"backend": "b", "model": "up"}]}}}
        gate.configure(one_backend(fresh.root) | more | {"server": {"api_keys": ["from-the-next-start-on"]}})
        gate.process.send_signal(signal.SIGHUP)

        async def there() -> bool:
            said = [json.loads(await ask(one, "/v1/models")) for one in clients]
            names = [{entry["id"] for entry in one["data"]} for one in said]
            return names == [{"pub", "alias", "up", "two"}] * 2

        await eventually(there)
        for one in clients:
            assert await post(one, CHAT | {"model": "alias"}) == 200
        assert (len(old.got), len(fresh.got)) == (0, 2)
        assert gate.text.count("the settings were read anew") == 1
        assert gate.text.count("server: the change takes effect at the next start") == 1
        await gate.kill_worker(gate.workers()[0])
        async with gate.clients() as renewed:  # the new one is as the others: no key is asked for
            for one in renewed:
                assert await post(one, CHAT | {"model": "alias"}) == 200


async def test_launched_engines_are_followed_by_each_worker(tmp_path: Path) -> None:
    there = Launcher(tmp_path / "unused", {"coder": row()})
    sock = socket.create_server(("127.0.0.1", 0))
    await there.listen(sock)
    upstream: Engine
    try:
        async with engine(Desk(is_open=True), models=("coder",)) as upstream:

            def ready(lease: Stream) -> None:
                there.ready(lease, upstream.root)

            there.answer = ready
            settings = {"launchers": {"here": {"base_url": f"http://127.0.0.1:{sock.getsockname()[1]}"}}}
            async with illm(tmp_path, settings) as gate, gate.clients() as clients:
                await reach(clients, "launchable", "launchable")
                for one in clients:
                    assert await post(one, CHAT | {"model": "coder"}) == 200
                await reach(clients, "ready", "ready")
                assert len(there.leases) == 2  # one of each worker, none of the parent
                there.tell("coder", "fatal", error="out of memory")

                async def fatal() -> bool:
                    return await states(clients) == ["down", "down"]

                await eventually(fatal)
    finally:
        await there.leave()


async def test_one_demo_engine_for_all(tmp_path: Path) -> None:
    alone = "import proxy.local; proxy.local.LOCAL_PORTS = {}"
    settings: dict[str, Any] = {"discovery": {"local": True, "interval": 0.1}}
    async with illm(tmp_path, settings, alone) as gate:
        demo = [pid for pid in children(gate.process.pid) if pid not in gate.workers()]
        assert len(demo) == 1
        async with gate.clients() as clients:
            for one in clients:
                assert await post(one, {"messages": [{"role": "user", "content": "hi"}]}) == 200
        gate.process.send_signal(signal.SIGINT)
        await gate.ended()
        await until(lambda: not alive(demo[0]))


# -- the end --------------------------------------------------------------------------------------------------------


async def test_all_workers_let_answers_finish(tmp_path: Path) -> None:
    desk = Desk()
    async with (
        engine(desk) as upstream,
        illm(tmp_path, one_backend(upstream.root)) as gate,
        gate.clients() as clients,
    ):
        workers = gate.workers()
        for one in clients:
            await one.send(CHAT_PATH, STREAM)
            await one.answer()
            await one.until(b"one")
        gate.process.send_signal(signal.SIGTERM)

        def refused() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", gate.port)) != 0

        await until(refused)
        assert all(alive(pid) for pid in workers)
        desk.go.set()
        for one in clients:
            assert (await one.rest()).endswith(DONE)
        assert await gate.ended() == -signal.SIGTERM
        assert not any(alive(pid) for pid in workers)
        assert "ended" not in gate.text


async def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    async with engine() as upstream, illm(tmp_path, one_backend(upstream.root)) as gate:
        workers = gate.workers()
        gate.process.kill()

        await until(lambda: not any(alive(pid) for pid in workers))


async def test_it_gives_up_when_no_worker_comes_up(tmp_path: Path) -> None:
    broken = "import sys; sys.executable = '/bin/false'"
    async with illm(tmp_path, {}, broken, waits=False) as gate:
        assert await gate.ended() == 2
    assert "illm: No worker comes up; the last one ended: exit status 1" in gate.text
