"""What Open WebUI asks the gateway, and what it needs in the answers.

The requests were recorded from Open WebUI 0.12.4 in a browser and cut: of its 36 built-in tools three are left, and of
the long instructions for titles one line. `shown` reads a stream by that program's rules, which are stricter than the
event stream format: each line is an event of its own. How to use it is in docs/open-webui.md.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.process import HOST, ServerProcess, answers, free_port
from tests.engines.speech import TEXT
from tests.proxy.harness import PATIENCE, Got, Line, Running, engine, gateway, one_backend, until
from tests.standins.support import StandIn

HEADERS = {
    "authorization": "Bearer none",
    "accept": "*/*",
    "accept-encoding": "gzip, deflate, br",
    "user-agent": "Python/3.11 aiohttp/3.14.5",
}
SSE = {"content-type": "text/event-stream"}

TOOLS: Any = json.loads("""[
 {"type": "function", "function": {"name": "get_current_timestamp",
  "description": "Get the current Unix timestamp in seconds.", "parameters": {"properties": {}, "type": "object"}}},
 {"type": "function", "function": {"name": "ask_user",
  "description": "Ask the user clarifying questions before continuing.",
  "parameters": {"properties": {
    "questions": {"items": {"additionalProperties": true, "type": "object"}, "type": "array"},
    "allow_other": {"default": true, "type": "boolean"}, "timeout_ms": {"default": 120000, "type": "integer"}},
   "required": ["questions"], "type": "object"}}},
 {"type": "function", "function": {"name": "update_task",
  "description": "Mark a single visible task item as completed.",
  "parameters": {"properties": {"id": {"type": "string"}, "status": {"default": "completed", "type": "string"}},
   "required": ["id"], "type": "object"}}}
]""")
HELLO: Any = {"stream": True, "model": "pub", "messages": [{"role": "user", "content": "Hello there"}], "tools": TOOLS}
AFTER_THE_TOOL = HELLO | json.loads("""{"messages": [
 {"role": "user", "content": "Hello there"},
 {"role": "assistant", "content": "", "tool_calls": [{"id": "VijWsuNe84SBfVUdcUt39QbUA603fok0", "type": "function",
   "function": {"name": "get_current_timestamp", "arguments": "{}"}}]},
 {"role": "tool", "tool_call_id": "VijWsuNe84SBfVUdcUt39QbUA603fok0",
  "content": "{\\"current_timestamp\\":1795269676,\\"user_timezone\\":\\"UTC\\"}"}
]}""")
PICTURE = HELLO | json.loads("""{"messages": [{"role": "user", "content": [
 {"type": "text", "text": "<attached_files>\\n<file type=\\"file\\" name=\\"red.png\\"/>\\n</attached_files>\\n\\n"},
 {"type": "text", "text": "What is this"},
 {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
]}]}""")
TITLE = json.loads("""{"model": "demo", "messages": [{"role": "user", "content":
 "### Output:\\nJSON format: { \\"title\\": \\"a title\\" }\\n### Chat History:\\nUSER: Tell me of two llamas\\n"
}], "stream": false, "max_tokens": 1000}""")
DOCUMENT = {"input": ["The old stone bridge was built in 1432.   Llamas sang there.", "llamas"], "model": "demo"}


# -- how Open WebUI reads ----------------------------------------------------------------------------------------


@dataclass
class Shown:
    """What the page would show of a stream."""

    text: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    done: bool = False


def shown(stream: str) -> Shown:
    """A line that begins with `data:` is an event, whole; other lines are passed over. A tool call without `index` is
    lost, so it is a failure here."""
    page = Shown()
    for line in stream.splitlines():
        if not line.startswith("data:"):
            assert "error" not in line
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            page.done = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            page.errors.append(chunk["error"]["message"])
        for choice in chunk.get("choices", []):
            page.text += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or []:
                kept = page.calls.setdefault(call["index"], {"id": call.get("id", ""), "name": "", "arguments": ""})
                kept["name"] = call["function"].get("name") or kept["name"]
                kept["arguments"] += call["function"].get("arguments") or ""
    return page


async def ask(gate: Running, body: dict[str, Any]) -> httpx.Response:
    return await gate.client.post("/v1/chat/completions", json=body, headers=HEADERS)


def streamed(reply: httpx.Response) -> Shown:
    """A stream that began well: Open WebUI goes by its content type, and it unpacks nothing while it streams."""
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in reply.headers
    return shown(reply.text)


def refused(reply: httpx.Response, status: int) -> str:
    """What the page says of an answer that is an error: it must be JSON, or the stream's reader would get it."""
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    message: str = reply.json()["error"]["message"]
    return message


# -- the list ----------------------------------------------------------------------------------------------------


async def test_the_list_has_every_model_also_one_that_is_down() -> None:
    async with engine() as upstream:
        settings = one_backend(upstream.root)
        settings["backends"]["gone"] = {"kind": "vllm", "base_url": f"http://{HOST}:{free_port()}"}
        settings["models"]["far-away"] = {"replicas": [{"backend": "gone", "model": "Qwen/Qwen2.5-7B-Instruct"}]}
        async with gateway(settings) as gate:
            reply = await gate.client.get("/v1/models", headers=HEADERS)  # no redirect: it would follow none
            said = await ask(gate, HELLO | {"model": "far-away"})

    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    listed = {entry["id"]: entry for entry in reply.json()["data"]}
    assert {"pub", "far-away"} <= listed.keys()
    assert all(entry.get("owned_by") != "ollama" for entry in listed.values())  # would be asked by Ollama's own API
    assert "Backend 'gone' can't be reached" in refused(said, 503)


@pytest.mark.parametrize(("sent", "says"), [({}, "No API key was sent"), (HEADERS, "Wrong API key")])
async def test_verify_connection_says_what_is_wrong_with_the_key(sent: dict[str, str], says: str) -> None:
    async with gateway({"server": {"api_keys": ["sk-right"]}}) as gate:
        assert says in refused(await gate.client.get("/v1/models", headers=sent), 401)
        right = await gate.client.get("/v1/models", headers={"authorization": "Bearer sk-right"})
        assert (right.status_code, right.json()["object"]) == (200, "list")


# -- chats -------------------------------------------------------------------------------------------------------


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "up", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def hello(_: Got, line: Line) -> None:
    await line.head(200, SSE)
    await line.chunk(chunk({"role": "assistant", "content": None}) + chunk({"content": "Hel"}))
    await line.chunk(chunk({"content": "lo"}) + chunk({}, "stop") + b"data: [DONE]\n\n")
    await line.end()


@pytest.mark.parametrize("body", [HELLO, AFTER_THE_TOOL, PICTURE], ids=["tools", "after the tool", "picture"])
async def test_a_chat_reaches_the_engine_as_it_was_sent(body: dict[str, Any]) -> None:
    async with engine(hello) as upstream, gateway(one_backend(upstream.root)) as gate:
        page = streamed(await ask(gate, body))

        assert upstream.got[0].json == body | {"model": "up"}
        assert "authorization" not in upstream.got[0].headers
        assert (page.text, page.done, page.errors) == ("Hello", True, [])


async def test_what_the_engine_refuses_is_no_stream() -> None:
    """vLLM without its options for tools refuses every chat of Open WebUI's with built-in tools."""
    says = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'

    async def refuse(_: Got, line: Line) -> None:
        told = {"message": says, "type": "BadRequestError", "param": None, "code": 400}
        await line.reply(400, json.dumps({"error": told}).encode())

    async with engine(refuse) as upstream, gateway(one_backend(upstream.root)) as gate:
        assert refused(await ask(gate, HELLO), 400) == says


async def test_the_comments_of_a_long_wait_are_passed_over() -> None:
    commented = asyncio.Event()

    async def slow(got: Got, line: Line) -> None:
        await commented.wait()
        await hello(got, line)

    async with engine(slow) as upstream:
        settings = one_backend(upstream.root) | {"server": {"keep_alive_interval": 0.02}}
        async with (
            gateway(settings) as gate,
            gate.client.stream("POST", "/v1/chat/completions", json=HELLO, headers=HEADERS) as reply,
        ):
            assert reply.status_code == 200
            pieces = reply.aiter_text()
            text = await anext(pieces)
            commented.set()
            text += "".join([piece async for piece in pieces])

    page = shown(text)
    assert text.startswith(":")
    assert (page.text, page.done) == ("Hello", True)


async def test_an_answer_that_breaks_off_ends_with_a_readable_error() -> None:
    async def broken(_: Got, line: Line) -> None:
        await line.head(200, SSE)
        await line.chunk(chunk({"content": "Hel"}))
        line.drop()

    async with engine(broken) as upstream, gateway(one_backend(upstream.root)) as gate:
        page = streamed(await ask(gate, HELLO))

    assert page.text == "Hel"
    (said,) = page.errors
    assert said.startswith("Backend 'b' broke off")


async def test_stop_ends_the_engines_work() -> None:
    """Open WebUI closes the connection; a title that is being made at the same time goes on."""
    stopped, streams = asyncio.Event(), list[Line]()

    async def work(got: Got, line: Line) -> None:
        if not got.json["stream"]:
            await stopped.wait()
            said = {"index": 0, "message": {"role": "assistant", "content": "{}"}, "finish_reason": "stop"}
            await line.reply(200, json.dumps({"id": "t", "model": "up", "choices": [said]}).encode())
            return
        streams.append(line)
        await line.head(200, SSE)
        await line.chunk(chunk({"content": "la"}))
        await line.closed.wait()

    async with engine(work) as upstream, gateway(one_backend(upstream.root)) as gate:
        title = asyncio.ensure_future(ask(gate, TITLE | {"model": "pub"}))
        await until(lambda: len(upstream.got) == 1)
        async with gate.client.stream("POST", "/v1/chat/completions", json=HELLO, headers=HEADERS) as reply:
            assert "la" in await anext(reply.aiter_text())
        async with asyncio.timeout(PATIENCE):
            await streams[0].closed.wait()
        (line,) = await gate.logged()
        assert (line["status"], line["stream"]) == (499, True)
        stopped.set()
        assert (await title).json()["choices"][0]["message"]["content"] == "{}"


# -- a demo engine, for what is asked in the background -----------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "launchers.demo", "--port", str(port), "--delay-ms", "0"]
    log = tmp_path_factory.mktemp("demo") / "demo.log"
    with ServerProcess(command, port=port, log=log, cwd=Path(__file__).parents[2]) as process:
        yield process.wait_ready(answers(f"{process.base_url}/health")).base_url


@pytest.fixture
async def before_the_demo(demo: str) -> AsyncIterator[Running]:
    async with gateway({"backends": {"demo": {"kind": "openai", "base_url": demo}}}) as running:
        await until(lambda: "demo" in running.gateway.registry.snapshot.routes)
        yield running


async def test_a_title(before_the_demo: Running) -> None:
    reply = await ask(before_the_demo, TITLE)

    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    assert "Tell me of two llamas" in reply.json()["choices"][0]["message"]["content"]


async def test_a_chat_with_tools_on_an_engine_that_calls_none(before_the_demo: Running) -> None:
    page = streamed(await ask(before_the_demo, HELLO | {"model": "demo"}))

    assert 'You said: "Hello there"' in page.text
    assert (page.done, page.calls, page.errors) == (True, {}, [])


async def test_a_document_is_embedded_in_order(before_the_demo: Running) -> None:
    """Open WebUI takes `data` in its order and wants lists of numbers."""
    reply = await before_the_demo.client.post("/v1/embeddings", json=DOCUMENT, headers=HEADERS)

    assert reply.status_code == 200
    data = reply.json()["data"]
    assert [row["index"] for row in data] == [0, 1]
    assert all(isinstance(number, float) for row in data for number in row["embedding"])


# -- engines whose API is translated ------------------------------------------------------------------------------


async def test_a_tool_on_tgi_and_the_answer_after_it(tmp_path: Path) -> None:
    with StandIn("tgi", tmp_path) as standin:
        settings = one_backend(standin.base_url, "tgi")
        settings["models"]["pub"]["replicas"][0]["model"] = "acme/tiny-llama"
        async with gateway(settings) as gate:
            called = streamed(await ask(gate, HELLO))
            (call,) = called.calls.values()
            assert call["id"]
            assert call["name"] in {tool["function"]["name"] for tool in TOOLS}
            assert isinstance(json.loads(call["arguments"]), dict)
            assert streamed(await ask(gate, AFTER_THE_TOOL)).text.strip() == TEXT


async def test_a_tool_on_ollama_and_a_model_that_has_none(tmp_path: Path) -> None:
    with StandIn("ollama", tmp_path) as standin:
        backend = {"kind": "ollama", "base_url": standin.base_url}
        async with gateway({"backends": {"laptop": backend}}) as gate:
            await until(lambda: {"helper:latest", "tiny:latest"} <= gate.gateway.registry.snapshot.routes.keys())
            (call,) = streamed(await ask(gate, HELLO | {"model": "helper:latest"})).calls.values()
            assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Bern"})
            assert call["id"]
            assert streamed(await ask(gate, AFTER_THE_TOOL | {"model": "helper:latest"})).text == TEXT
            assert "does not support tools" in refused(await ask(gate, HELLO | {"model": "tiny:latest"}), 400)
