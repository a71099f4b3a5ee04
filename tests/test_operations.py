"""docs/operations.md and docs/security.md against the code: metrics, log, reload, limits, messages, nginx's part. The
prose is not here."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import socket
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.install import ensure_peer
from proxy.call import Call
from proxy.client_connection import AHEAD, STALLED
from proxy.client_parser import MAX_HEAD, MAX_HEADERS
from proxy.dialects.base import Usage
from proxy.dialects.shared.openai_in import MAX_N, MAX_PROMPTS
from proxy.errors import KINDS
from proxy.forms import MAX_PARTS
from proxy.headers import REQUEST_PASSES
from proxy.images import MAX_BYTES, REDIRECTS, TOTAL
from proxy.metrics import BackendGauge, Metrics
from proxy.middleware import OPEN_PATHS
from proxy.reload import FIXED
from proxy.server import IDLE_CLIENT
from proxy.settings import BackendSettings, Settings
from proxy.settings_types import MiB
from tests.engines.install import CannotBeHad
from tests.engines.process import free_port
from tests.faults.support import CHAT_PATH, DONE, SSE, STREAM, client, event
from tests.proxy.harness import Got, Line, engine, gateway, one_backend, until
from tests.test_documents import ROOT, blocks, rows

OPERATIONS, SECURITY = ROOT / "docs" / "operations.md", ROOT / "docs" / "security.md"


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def scrape() -> dict[str, tuple[str, set[str]]]:
    """Metric -> its type and its labels, where everything has happened once."""
    metrics = Metrics(version="1", started=1.0)
    series = metrics.series("chat", "m", "b")
    series.started()
    series.finished(200, 0.1)
    series.first_byte(0.1)
    series.tokens(1, 1)
    metrics.error("internal_error")
    found: dict[str, tuple[str, set[str]]] = {}
    text = metrics.render([BackendGauge("b", "vllm", "ready", 1, "local", "ready")]).decode()
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, labels)
    return found


def test_the_metrics_are_those_of_the_code() -> None:
    _, _, *table = rows(OPERATIONS, "Metric")
    told = {row[0].strip("`"): (row[1], set(filter(None, row[2].split(", ")))) for row in table}
    assert told == scrape()


def test_alerts_ask_for_metrics_and_codes_that_there_are() -> None:
    alerts = [block for block in blocks() if block.document == OPERATIONS and "alert:" in block.text]
    known = {name for name, (kind, _) in scrape().items()}
    known |= {f"{name}_bucket" for name, (kind, _) in scrape().items() if kind == "histogram"}
    expressions = [
        rule["expr"] for b in alerts for group in yaml.safe_load(b.text)["groups"] for rule in group["rules"]
    ]
    assert len(expressions) > 5
    for expression in expressions:
        assert set(re.findall(r"\b(?:illm|process)_\w+", expression)) <= known
        assert set(re.findall(r'code="(\w+)"', expression)) <= set(KINDS)


def test_the_access_log_is_that_of_the_code() -> None:
    call = Call(b"id", "POST", "/v1/x", "::1", 0.0)
    call.endpoint, call.model, call.backend, call.status = "chat", "m", "b", 200
    call.attempts, call.stream, call.first_byte, call.bytes_out = 2, True, 0.1, 1
    call.usage, call.code, call.message = Usage(1, 1), "c", "m"
    unset = {name for name in Call.__slots__ if getattr(call, name) in (None, "", b"", 0, False, [])}
    assert unset == {"begun", "circles", "headers", "passing", "started", "waiting"}, "a new member belongs here"
    _, _, *table = rows(OPERATIONS, "Field")
    assert {name for row in table for name in ticked(row[0])} == {"time", *call.line(1.0)}


def test_what_a_reload_changes_is_that_of_the_code() -> None:
    _, _, *table = rows(OPERATIONS, "Setting")
    waits = next(row for row in table if "gateway's next start" in row[1])
    assert set(ticked(waits[0])) == {f"{name}.{m}" for name, some in FIXED for m in some} | {
        name for name, some in FIXED if not some
    }
    named = {name.partition(".")[0] for row in table for name in ticked(row[0])}
    assert named == set(Settings.model_fields), "every setting is in one of the rows"


def test_paths_that_need_no_key_are_those_of_the_code() -> None:
    _, _, *table = rows(OPERATIONS, "Path")
    assert {path for row in table if row[1] == "no" for path in ticked(row[0])} == OPEN_PATHS
    assert set(ticked(next(row[0] for row in rows(SECURITY, "Without a key")[2:] if "GET" in row[0]))) >= OPEN_PATHS


def test_the_limits_are_those_of_the_code() -> None:
    _, _, *table = rows(SECURITY, "What")
    told = " ".join(" ".join(row) for row in table)
    server, upstream = Settings().server, Settings().upstream
    sizes = (
        f"{MAX_HEAD // 1024} KiB, {MAX_HEADERS} headers",
        f"{server.max_body // MiB} MiB;",
        f"{AHEAD // 1024} KiB ahead",
    )
    times = f"| {IDLE_CLIENT:g} s", f"closed after {STALLED:g} s"
    fan_out = f"`max_n` {MAX_N}, `max_prompts` {MAX_PROMPTS}"
    queue = f"`max_queue` ({BackendSettings(base_url='http://h').max_queue})"
    rest = fan_out, queue, f"{upstream.max_reply // MiB} MiB", f"{MAX_PARTS} parts"
    text = SECURITY.read_text(encoding="utf-8")
    assert [one for one in (*sizes, *times, *rest) if one not in told and one not in text] == []
    images = f"{TOTAL:g} s and {MAX_BYTES // 1_000_000} MB in all"
    assert images in text
    assert REDIRECTS == 3, "the page says three"


def test_dependencies_are_those_of_the_project() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    _, _, *table = rows(SECURITY, "Dependency")
    assert {name for row in table for name in ticked(row[0])} == {re.split(r"[^\w-]", one)[0] for one in needed}


def test_headers_that_reach_an_engine_are_those_of_the_code() -> None:
    row = next(row for row in rows(SECURITY, "Sent along") if "`Accept`" in row[0])
    told = {name.lower().encode() for name in ticked(row[0])}
    assert told == REQUEST_PASSES - {b"traceparent", b"tracestate", b"baggage"}, "which it calls trace headers"


# --- messages ------------------------------------------------------------------------------------------------------


def templates() -> Iterator[str]:
    """Every text in the code, with a NUL for what is put in."""
    for folder in ("proxy", "launchers"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)  # type: ignore[misc]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value.replace("%s", "\0").replace("%d", "\0")


TEMPLATES = tuple(templates())


def messages() -> list[str]:
    lines = OPERATIONS.read_text(encoding="utf-8").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("| Message |")]
    found: list[tuple[str, str]] = []
    for start in starts:
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            found += re.findall(r"(?<!`)(`+) ?(.+?) ?\1(?!`)", line.split(" | ")[0].removeprefix("| "))
    return [text for _, text in found]


def fits(message: str, template: str) -> bool:
    """Does the template hold the words between the message's dots, in their order?"""
    pieces = [re.escape(piece.strip()) for piece in message.split("…")]
    return re.search(".*?".join(filter(None, pieces)), template, re.DOTALL) is not None


def test_there_are_messages_to_look_for() -> None:
    assert len(messages()) > 25
    assert not any(fits("Backend '…' has eaten …", template) for template in TEMPLATES)


@pytest.mark.parametrize("message", messages())
def test_a_message_is_one_of_the_code(message: str) -> None:
    assert any(fits(message, template) for template in TEMPLATES)


# --- nginx in front ------------------------------------------------------------------------------------------------

NGINX = """daemon off; worker_processes 1; pid nginx.pid; error_log stderr; events {} %s
http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u;
scgi_temp_path s; %s }"""


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextlib.asynccontextmanager
async def nginx(folder: Path, upstream: str) -> AsyncIterator[str]:
    """nginx as the page has it, in front of that address; its own URL."""
    try:
        program = await asyncio.to_thread(ensure_peer, "nginx")
    except CannotBeHad as reason:
        pytest.skip(f"nginx can't be had here: {reason}")
    port = free_port()
    block = next(block.text for block in blocks() if block.language == "nginx")
    told = block.replace("127.0.0.1:8000", upstream.removeprefix("http://")).replace("80;", f"127.0.0.1:{port};", 1)
    user = "user root;" if os.geteuid() == 0 else ""  # the test's folder is closed to nginx's usual user
    (folder / "nginx.conf").write_text(NGINX % (user, told))
    process = await asyncio.create_subprocess_exec(program, "-e", "stderr", "-p", folder, "-c", "nginx.conf")
    try:
        await until(lambda: process.returncode is not None or listens(port))
        assert process.returncode is None
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@pytest.mark.slow  # nginx may have to be fetched
async def test_a_stream_comes_through_nginx_as_it_is_written(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def handler(got: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(event("one"))
        await go.wait()
        await line.chunk(event("two", finish="stop") + DONE)
        await line.end()

    async with (
        engine(handler) as upstream,
        gateway(one_backend(upstream.root)) as gate,
        nginx(tmp_path, gate.url) as url,
        client(url) as one,
    ):
        await one.send(CHAT_PATH, STREAM)
        status, _ = await one.answer()
        got = await one.until(b"one")  # the engine hasn't written the rest yet
        go.set()
        rest = await one.rest()

        assert status == 200
        assert got + rest == event("one", "pub") + event("two", "pub", "stop") + DONE
        assert (await gate.client.get(f"{url}/metrics")).status_code == 403
        assert (await gate.client.get(f"{url}/readyz")).status_code == 200
