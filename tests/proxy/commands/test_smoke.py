"""`illm smoke` against servers that do well, servers that do otherwise, and a real llama-server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.gateway import Gateway
from tests.engines.process import ServerProcess
from tests.proxy.commands.support import SECRET, Said, delta, events, illm, refuse, scripted, usage
from tests.proxy.harness import Got, Handler, Line

pytestmark = pytest.mark.slow

MARKS = {"✓": "passed", "✗": "failed", "–": "absent"}  # noqa: RUF001


def table(said: Said) -> dict[str, str]:
    """Check -> mark."""
    lines = [line for line in said.out.splitlines() if line[:1] in MARKS]
    return {line[3:].split("  ")[0]: line[0] for line in lines}


def hints(said: Said) -> list[str]:
    return [line.removeprefix("hint: ") for line in said.out.splitlines() if line.startswith("hint: ")]


async def reply(line: Line, value: Any) -> None:
    await line.reply(200, json.dumps(value).encode())


def server(**refusals: tuple[int, str]) -> Handler:
    """One that does everything but what it refuses: `text`, `chat`, `embeddings`."""

    async def answers(got: Got, line: Line) -> None:
        which = {"/v1/completions": "text", "/v1/chat/completions": "chat"}.get(got.path, "embeddings")
        if got.json["model"] != "m":
            await refuse(line, 404, "no such model")
        elif which in refusals:
            await refuse(line, *refusals[which])
        elif which == "embeddings":
            await reply(line, {"data": [{"index": n, "embedding": [0.5, 1.0]} for n in range(2)]})
        elif got.json.get("stream"):
            chunk = delta("a") if which == "chat" else {"choices": [{"text": "a"}]}
            await events(line, chunk, chunk, usage(1, 2))
        elif "tools" in got.json:
            call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
            await reply(line, {"choices": [{"message": {"content": None, "tool_calls": [call]}}]})
        else:
            choice = {"message": {"content": "Hello."}} if which == "chat" else {"text": " there was"}
            await reply(line, {"choices": [choice], "usage": {"completion_tokens": 2}})

    return answers


async def test_a_server_that_has_everything(tmp_path: Path) -> None:
    async with scripted(server()) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m", "--api-key", SECRET)
        told = await illm(tmp_path, "smoke", f"{engine.root}/v1", "m", "--json")

    assert (said.status, said.err, hints(said)) == (0, "", [])
    assert said.out.splitlines()[0] == f"m at {engine.root}/v1"
    assert said.out.splitlines()[-1] == "The core checks pass."
    assert list(table(said)) == [
        "reachable*", "models", "completion*", "streamed completion*", "chat", "streamed chat", "tools", "embeddings",
        "unknown model",
    ]  # fmt: skip
    assert set(table(said).values()) == {"✓"}
    assert "get_weather({})" in said.out
    assert (told.status, told.json["passed"], told.json["hints"]) == (0, True, [])
    assert [check["outcome"] for check in told.json["checks"]] == ["passed"] * 9
    assert [check["check"] for check in told.json["checks"] if check["core"]] == [
        "reachable", "completion", "streamed completion",
    ]  # fmt: skip


async def test_a_base_model_passes_and_is_told_to_be_one(tmp_path: Path) -> None:
    said_by_vllm = "As of transformers v4.44, default chat template is no longer allowed"
    async with scripted(server(chat=(400, said_by_vllm), embeddings=(404, "no"))) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m")

    assert said.status == 0
    assert {name for name, mark in table(said).items() if mark == "–"} == {  # noqa: RUF001
        "chat", "streamed chat", "tools", "embeddings",
    }  # fmt: skip
    assert hints(said) == [
        "this is a base model, without a chat template; chat models are called …-Instruct, -Chat or -it"
    ]


async def test_an_embedding_model_does_not_pass_and_is_told_to_be_one(tmp_path: Path) -> None:
    refusal = (501, "This model does not generate text")
    async with scripted(server(text=refusal, chat=refusal)) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m")

    assert said.status == 1
    marks = table(said)
    assert (marks["completion*"], marks["streamed completion*"]) == ("✗", "✗")
    assert (marks["chat"], marks["embeddings"]) == ("–", "✓")  # noqa: RUF001
    assert "501: This model does not generate text" in said.out
    assert hints(said) == ["this is an embedding model: it generates no text, and its vectors are fine"]
    assert said.out.splitlines()[-1] == "The core checks (*) do not pass."


async def test_a_server_that_only_chats(tmp_path: Path) -> None:
    async with scripted(server(text=(404, "unknown path"), embeddings=(404, "no"))) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m")
    assert said.status == 1
    assert hints(said) == ["it chats, but has no text completion; clients that use /v1/chat/completions will do"]


async def test_a_model_that_it_does_not_list(tmp_path: Path) -> None:
    async with scripted(server()) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "M")
    assert said.status == 1
    assert table(said)["models"] == "✗"
    assert "it has: m" in said.out
    assert hints(said) == ["the server does not list 'M'; name one of those above, exactly as they are written"]


@pytest.mark.parametrize(
    ("chunks", "end", "says"),
    [
        ([{"choices": [{"text": "a"}]}], False, "it ended without [DONE]"),
        ([b"a line\n\n", {"choices": [{"text": "a"}]}], True, "a line in it belongs to no event stream: a line"),
        ([{"id": "1"}], True, "no event in it has choices"),
        (
            [{"choices": [{"text": "a"}]}, {"error": {"message": "Out of memory."}}],
            True,
            "broke off with an error: Out of",
        ),
    ],
)
async def test_a_stream_that_is_not_as_it_should_be(tmp_path: Path, chunks: list[Any], end: bool, says: str) -> None:
    good = server()

    async def answers(got: Got, line: Line) -> None:
        if got.path == "/v1/completions" and got.json.get("stream"):
            await events(line, *chunks, end=end)
            if not end:
                await line.end()
        else:
            await good(got, line)

    async with scripted(answers) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m")

    assert said.status == 1
    assert {name for name, mark in table(said).items() if mark == "✗"} == {"streamed completion*"}
    assert says in said.out
    assert "does not stream as OpenAI does" in hints(said)[0]


async def test_a_stream_without_usage_passes_and_says_so(tmp_path: Path) -> None:
    good = server()

    async def answers(got: Got, line: Line) -> None:
        if got.json.get("stream"):
            assert got.json["stream_options"] == {"include_usage": True}
            await events(line, {"choices": [{"text": "a", "delta": {"content": "a"}}]})
        else:
            await good(got, line)

    async with scripted(answers) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m")
    assert said.status == 0
    assert said.out.count(", no usage") >= 2


async def test_what_is_optional_and_breaks_is_no_success(tmp_path: Path) -> None:
    async with scripted(server(chat=(500, "Internal Server Error"))) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m")
    assert said.status == 0
    assert table(said)["chat"] == "✗"


async def test_nobody_there(tmp_path: Path) -> None:
    said = await illm(tmp_path, "smoke", "http://127.0.0.1:9", "m")
    told = await illm(tmp_path, "smoke", "127.0.0.1:9", "m", "--json")

    assert said.status == told.status == 1
    assert "can't be reached: connection refused" in said.out
    assert hints(said) == ["nothing answers there: is the server up, and does it listen on that address and port?"]
    assert [check["outcome"] for check in told.json["checks"]] == ["failed"] + ["skipped"] * 8


async def test_a_key_is_wanted(tmp_path: Path) -> None:
    async with scripted(about={"/v1/models": (401, {"error": "Unauthorized"})}) as engine:
        without = await illm(tmp_path, "smoke", engine.root, "m")
        wrong = await illm(tmp_path, "smoke", engine.root, "m", env={"ILLM_API_KEYS": SECRET})

    assert without.status == wrong.status == 1
    assert "it wants a key: --api-key KEY" in without.out
    assert "it doesn't take this key" in wrong.out
    assert hints(without) == []
    assert [asked.key for asked in engine.asked] == [None, SECRET]


async def test_a_silent_server(tmp_path: Path) -> None:
    async def silent(_: Got, line: Line) -> None:
        await line.closed.wait()

    async with scripted(silent) as engine:
        said = await illm(tmp_path, "smoke", engine.root, "m", "--timeout", "0.2")
    assert said.status == 1
    reachable = table(said)["reachable*"] == "✓"  # even that may take longer, on a machine that stands still
    assert said.out.count("was silent for 0.2 s") >= (7 if reachable else 1)


# --- real ones -----------------------------------------------------------------------------------------------------


async def test_a_real_llama_server(tmp_path: Path, llama_server: ServerProcess) -> None:
    said = await illm(tmp_path, "smoke", llama_server.base_url, "tiny-chat")

    assert (said.status, said.err) == (0, "")
    marks = table(said)
    assert [name for name, mark in marks.items() if mark == "✗"] == []
    assert all(marks[name] == "✓" for name in ("completion*", "streamed completion*", "chat", "streamed chat", "tools"))
    assert "no usage" not in said.out


async def test_a_real_llama_server_behind_the_gateway(tmp_path: Path, llama_server: ServerProcess) -> None:
    settings = f"discovery: {{local: false}}\nbackends: {{tiny: {{base_url: '{llama_server.base_url}'}}}}\n"
    with Gateway(settings, tmp_path) as gateway:
        gateway.wait_models("tiny-chat")
        said = await illm(tmp_path, "smoke", gateway.v1, "tiny-chat")
        unknown = await illm(tmp_path, "smoke", gateway.v1, "nobody")

    assert said.status == 0
    assert table(said)["unknown model"] == "✓"
    assert unknown.status == 1
    assert "it has: tiny-chat" in unknown.out


async def test_a_real_llama_server_that_only_embeds(tmp_path: Path, llama_embed: ServerProcess) -> None:
    said = await illm(tmp_path, "smoke", llama_embed.base_url, "tiny-embed")
    assert table(said)["embeddings"] == "✓"
