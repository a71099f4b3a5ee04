"""`illm chat` with one question: what is printed, what is sent, and what a failure says."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.engines.process import ServerProcess
from tests.engines.speech import TEXT, THOUGHT
from tests.proxy.commands.support import (
    SECRET,
    begin,
    delta,
    ended,
    event,
    events,
    illm,
    refuse,
    scripted,
    usage,
)  # fmt: skip
from tests.proxy.harness import PATIENCE, Got, Line, gateway

pytestmark = pytest.mark.slow


async def speaks(_: Got, line: Line) -> None:
    thought = delta(reasoning_content="Hm.")
    await events(line, delta(role="assistant"), thought, delta("Hel"), delta("lo."), delta(None, "stop"), usage(7, 3))


async def test_the_answer_to_what_is_piped_in_and_nothing_else(tmp_path: Path) -> None:
    async with scripted(speaks) as engine:
        said = await illm(tmp_path, "chat", "--base-url", engine.root, given="What?\n")

    assert said == (0, "Hello.\n", "")
    (got,) = engine.got
    assert got.path == "/v1/chat/completions"
    assert got.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "What?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_options_go_into_the_request(tmp_path: Path) -> None:
    (tmp_path / "dot.png").write_bytes(b"picture")
    words = ("--system", "Be brief.", "--max-tokens", "9", "--temperature", "0", "--once", "What?", "--api-key", SECRET)
    images = ("--image", "dot.png", "--image", "https://example.com/cat.jpg")
    async with scripted(speaks) as engine:
        said = await illm(tmp_path, "chat", "m2", "--base-url", f"{engine.root}/v1/", *words, *images)

    assert said.status == 0
    (got,) = engine.got
    data = base64.b64encode(b"picture").decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}},
        {"type": "text", "text": "What?"},
    ]
    assert got.json["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert (got.json["model"], got.json["max_tokens"], got.json["temperature"]) == ("m2", 9, 0.0)
    assert got.headers["authorization"] == f"Bearer {SECRET}"
    assert {asked.key for asked in engine.asked} == {SECRET}


async def test_for_programs(tmp_path: Path) -> None:
    async with scripted(speaks) as engine:
        said = await illm(tmp_path, "chat", "--base-url", engine.root, "--once", "What?", "--json")

    told = said.json
    assert said.status == 0
    assert (told["model"], told["content"], told["reasoning"], told["finish_reason"]) == ("m", "Hello.", "Hm.", "stop")
    assert told["usage"] == {"prompt_tokens": 7, "completion_tokens": 3}
    assert 0 < told["first_token"] <= told["seconds"]


async def test_a_server_that_knows_no_stream_options(tmp_path: Path) -> None:
    async def old(got: Got, line: Line) -> None:
        if "stream_options" in got.json:
            await refuse(line, 400, "Unrecognized request argument supplied: stream_options")
        else:
            await speaks(got, line)

    async with scripted(old) as engine:
        said = await illm(tmp_path, "chat", "--base-url", engine.root, "--once", "What?")
    assert said == (0, "Hello.\n", "")


async def test_an_interrupt_ends_the_request(tmp_path: Path) -> None:
    async def forever(_: Got, line: Line) -> None:
        await events(line, delta("la"), end=False)
        await line.closed.wait()

    async with scripted(forever) as engine:
        process = await begin(tmp_path, "chat", "--base-url", engine.root, "--once", "Sing")
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readexactly(2), PATIENCE) == b"la"
        process.send_signal(signal.SIGINT)
        said = await ended(process)
        await asyncio.wait_for(engine.lines[-1].closed.wait(), PATIENCE)

    assert said == (130, "\n", "")


# --- which model ---------------------------------------------------------------------------------------------------


async def test_without_a_name_a_gateway_chooses_what_its_settings_say(tmp_path: Path) -> None:
    async with (
        scripted(speaks, models=("a", "b")) as engine,
        gateway({"backends": {"b": {"base_url": engine.root}}, "model": "b"}) as running,
    ):
        said = await illm(tmp_path, "chat", "--base-url", running.url, "--once", "What?")

    assert (said.status, said.out) == (0, "Hello.\n")
    assert engine.got[-1].json["model"] == "b"


async def test_an_alias_is_no_second_model(tmp_path: Path) -> None:
    async with scripted(speaks, models=("up",)) as engine:
        settings = {"backends": {"b": {"base_url": engine.root}}, "models": {"up": {"aliases": ["gpt-4o-mini"]}}}
        async with gateway(settings) as running:
            said = await illm(tmp_path, "chat", "--base-url", running.url, "--once", "What?")
    assert said == (0, "Hello.\n", "")
    assert engine.got[-1].json["model"] == "up"


async def test_without_a_name_where_there_are_several(tmp_path: Path) -> None:
    async with scripted(speaks, models=("a", "b")) as engine:
        said = await illm(tmp_path, "chat", "--base-url", engine.root, "--once", "What?")

    assert said.status == 2
    assert said.err == f"illm: which model? Name one: illm chat MODEL. {engine.root}/v1 has: a, b\n"


async def test_without_a_name_where_there_is_no_model_yet(tmp_path: Path) -> None:
    async with gateway({"discovery": {"local": False}, "backends": {}}) as running:
        said = await illm(tmp_path, "chat", "--base-url", running.url, "--once", "What?")

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"illm: no model is there yet: {running.url}/v1 lists none. ")


async def test_a_server_that_lists_nothing_is_asked_all_the_same(tmp_path: Path) -> None:
    nothing = (404, {"detail": "Not Found"})
    async with scripted(speaks, about={"/v1/models": nothing, "/models": nothing}) as engine:
        said = await illm(tmp_path, "chat", "m", "--base-url", engine.root, "--once", "What?")
    assert said == (0, "Hello.\n", "")
    assert engine.got[0].path == "/v1/chat/completions"


# --- what can go wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "code", "says"),
    [
        (
            404,
            "Model 'm' does not exist.",
            "model_not_found",
            "answered 404 at /v1/chat/completions: Model 'm' does not",
        ),
        (400, "This model has no chat template.", None, "hint: this is a base model, without a chat template"),
        (400, "Too long.", "context_length_exceeded", "hint: this is more than the model can take; send less of it"),
        (401, f"{SECRET} is wrong", "invalid_api_key", "it doesn't take this key: --api-key: *** is wrong"),
    ],
)
async def test_a_refusal_in_words(tmp_path: Path, status: int, message: str, code: str | None, says: str) -> None:
    async with scripted(lambda _, line: refuse(line, status, message, code)) as engine:
        said = await illm(tmp_path, "chat", "m", "--base-url", engine.root, "--once", "Hi", "--api-key", SECRET)

    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"illm: {engine.root}/v1: ")
    assert says in said.err


async def test_a_stream_that_breaks_off_with_an_error(tmp_path: Path) -> None:
    async def breaks(_: Got, line: Line) -> None:
        error = {"error": {"message": "Out of memory.", "type": "server_error", "code": "upstream_error"}}
        await events(line, delta("Hel"), error, end=False)
        await line.end()

    async with scripted(breaks) as engine:
        said = await illm(tmp_path, "chat", "m", "--base-url", engine.root, "--once", "Hi")

    assert (said.status, said.out) == (1, "Hel\n")
    assert said.err == f"illm: {engine.root}/v1 broke off with an error: Out of memory.\n"


@pytest.mark.parametrize("how", ["cut", "no stream", "no JSON"])
async def test_a_server_that_is_broken(tmp_path: Path, how: str) -> None:
    async def breaks(_: Got, line: Line) -> None:
        if how == "no stream":
            await line.reply(200, json.dumps({"choices": []}).encode())
            return
        await events(line, b"data: {\n\n" if how == "no JSON" else delta("x"), end=False)
        line.drop()

    async with scripted(breaks) as engine:
        said = await illm(tmp_path, "chat", "m", "--base-url", engine.root, "--once", "Hi")

    says = {"cut": "can't be reached", "no stream": "a stream was asked for", "no JSON": "that is no JSON object"}
    assert said.status == 1
    assert says[how] in said.err


async def test_nobody_there(tmp_path: Path) -> None:
    said = await illm(tmp_path, "chat", "m", "--base-url", "127.0.0.1:9", "--once", "Hi")
    assert said == (1, "", "illm: http://127.0.0.1:9/v1 can't be reached: connection refused\n")


USELESS: list[tuple[list[str], str, str]] = [
    (["--once", " "], "", "there is no question"),
    ([], "\n", "there is no question: standard input was empty"),
    (["--once", "x", "--image", "no.png"], "", "no.png can't be read: No such file or directory"),
    (["--once", "x", "--image", "my.txt"], "", "my.txt is no picture by its name"),
    (["--once", "x", "--base-url", "ftp://x"], "", "a base URL is needed, like http://127.0.0.1:8000/v1"),
]


@pytest.mark.parametrize(("words", "given", "says"), USELESS)
async def test_command_lines_that_make_no_sense(tmp_path: Path, words: list[str], given: str, says: str) -> None:
    said = await illm(tmp_path, "chat", *words, given=given)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("illm: ")
    assert says in said.err


async def test_control_characters_are_left_to_a_pipe_as_they_are(tmp_path: Path) -> None:
    async def paints(_: Got, line: Line) -> None:
        await events(line, delta("a\x1b[31mb"))

    async with scripted(paints) as engine:
        said = await illm(tmp_path, "chat", "--base-url", engine.root, "--once", "Hi")
    assert said.out == "a\x1b[31mb\n"


async def test_pieces_of_any_size(tmp_path: Path) -> None:
    whole = b": a comment\n\n" + event(delta("ré: sum\u2028é")) + event(usage(1, 1)) + b"data: [DONE]\n\n"

    async def crumbles(_: Got, line: Line) -> None:
        await line.head(200, {"content-type": "text/event-stream; charset=utf-8"})
        for byte in whole:
            await line.chunk(bytes([byte]))
        await line.end()

    async with scripted(crumbles) as engine:
        said = await illm(tmp_path, "chat", "--base-url", engine.root, "--once", "Hi")
    assert said == (0, "ré: sum\u2028é\n", "")


async def test_a_real_llama_server(tmp_path: Path, llama_server: ServerProcess) -> None:
    url = llama_server.base_url
    said = await illm(tmp_path, "chat", "--base-url", url, given="Tell me a story.")
    told = await illm(tmp_path, "chat", "--base-url", url, "--once", "ponder it", "--json", "--max-tokens", "50")

    assert said == (0, f"{TEXT}\n", "")
    assert told.json["content"].strip() == TEXT
    assert told.json["reasoning"].strip() == THOUGHT
    assert told.json["usage"]["completion_tokens"] > 10
    assert told.json["tokens_per_second"] > 0


def test_what_the_window_keeps() -> None:
    from proxy.commands.conversation import Conversation

    talk = Conversation("S", window=3)
    for number in range(3):
        talk.ask(f"q{number}")
        talk.answered(f"a{number}")
    talk.ask("q3")
    sent: list[Any] = [message["content"] for message in talk.sent()]
    assert sent == ["S", "q2", "a2", "q3"], "an answer without its question is left out"
    talk.window = 0
    assert [message["content"] for message in talk.sent()] == ["S", "q3"]
    talk.drop_question()
    assert talk.messages[-1]["content"] == "a2"
    assert talk.take_back()
    assert talk.messages[-1]["content"] == "q3"
