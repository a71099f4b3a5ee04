"""`illm chat` on a terminal: a conversation, its commands, and what Ctrl-C and Ctrl-D do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.commands.support import delta, events, refuse, scripted, terminal, usage
from tests.proxy.harness import PATIENCE, Got, Line

pytestmark = pytest.mark.slow

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


async def echoes(got: Got, line: Line) -> None:
    said = got.json["messages"][-1]["content"]
    await events(
        line, delta("You said "), delta(f"{said if isinstance(said, str) else said[-1]['text']}."), usage(5, 4)
    )


def contents(got: Got) -> list[Any]:
    return [message["content"] for message in got.json["messages"]]


async def test_a_conversation(tmp_path: Path) -> None:
    async with scripted(echoes) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.says(r"m at http://\S+/v1\. /help lists commands, Ctrl-D ends\.")
        await there.line("one")
        await there.says(r"You said one\.\n")
        await there.says(r"\[4 tokens, [\d.]+ tokens/s, first after \d+ ms, 5 in the prompt\]")
        await there.line("two\\")
        await there.says(r"\. ")
        there.type("and three\n")
        await there.says(r"You said two\nand three\.")
        await there.line("/system Be brief.")
        await there.line("/history 2")
        await there.says("2 messages are sent along")
        await there.line("four")
        await there.says(r"You said four\.")
        await there.says("> ")
        there.type("\x04")
        assert await asyncio.wait_for(there.process.wait(), PATIENCE) == 0

    assert contents(engine.got[1]) == ["one", "You said one.", "two\nand three"]
    assert contents(engine.got[2]) == ["Be brief.", "two\nand three", "You said two\nand three.", "four"]


async def test_thoughts_are_dim_and_nothing_an_answer_says_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    async def thinks(_: Got, line: Line) -> None:
        await events(line, delta(reasoning="let me see"), delta("a\x1b]0;title\x07b\x9bc\n"), delta("end"))

    async with scripted(thinks) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("hi")
        await there.says("end\n")

    assert f"{DIM}let me see{PLAIN}\n\na]0;titlebc\nend" in there.seen


async def test_without_colours(tmp_path: Path) -> None:
    async def thinks(_: Got, line: Line) -> None:
        await events(line, delta(reasoning="let me see"), delta("yes"))

    async with (
        scripted(thinks) as engine,
        terminal(tmp_path, "chat", "--base-url", engine.root, env={"NO_COLOR": "1"}) as there,
    ):
        await there.line("hi")
        await there.says(r"\(thinking\) let me see\n\nyes\n\[2 tokens")
    assert DIM not in there.seen


async def test_waiting_for_an_engine_shows_its_phase(tmp_path: Path) -> None:
    async def starts(_: Got, line: Line) -> None:
        await events(line, "'coder': loading weights 43 %", end=False)
        go_on = asyncio.get_running_loop().create_future()
        gone.append(go_on)
        await go_on
        await line.chunk(b'data: {"choices": [{"delta": {"content": "here"}}]}\n\ndata: [DONE]\n\n')
        await line.end()

    gone: list[asyncio.Future[None]] = []
    async with scripted(starts) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("hi")
        await there.says("… 'coder': loading weights 43 %")
        gone[0].set_result(None)
        await there.says("\r\x1b\\[Khere\n")


async def test_ctrl_c_ends_the_answer_and_not_the_program(tmp_path: Path) -> None:
    async def sings(got: Got, line: Line) -> None:
        if contents(got)[-1] != "sing":
            await echoes(got, line)
            return
        await events(line, delta("la "), delta("la "), end=False)
        await line.closed.wait()

    async with scripted(sings) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("sing")
        await there.says("la la ")
        there.type("\x03")
        await there.says(r"stopped by you\]")
        await asyncio.wait_for(engine.lines[-1].closed.wait(), PATIENCE)
        await there.says("> ")
        there.type("half a line\x03")
        await there.line("and now?")
        await there.says(r"You said and now\?\.")
    assert contents(engine.got[-1]) == ["sing", "la la ", "and now?"]


async def test_a_failure_leaves_the_conversation_as_it_was_and_can_be_tried_again(tmp_path: Path) -> None:
    broken = True

    async def sometimes(got: Got, line: Line) -> None:
        if broken and contents(got)[-1] != "one":
            await refuse(line, 400, "Too long.", "context_length_exceeded")
        else:
            await echoes(got, line)

    async with scripted(sometimes) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("/retry")
        await there.says("nothing was asked yet")
        await there.line("one")
        await there.line("two")
        await there.says(
            r"Too long\.\nhint: this is more than the model can take; ask with fewer messages \(/history N\)"
        )
        broken = False
        await there.line("/retry")
        await there.says(r"You said two\.")
        await there.line("/retry")
        await there.says(r"You said two\.")
    assert [contents(got) for got in engine.got[1:]] == [["one", "You said one.", "two"]] * 3


async def test_models_are_chosen_from_a_list(tmp_path: Path) -> None:
    async with (
        scripted(echoes, models=("a", "b")) as engine,
        terminal(tmp_path, "chat", "--base-url", engine.root) as there,
    ):
        await there.says(r"  1  a\n  2  b\nWhich model\? A number or a name: ")
        there.type("2\n")
        await there.says("b at http")
        await there.line("hi")
        await there.line("/model c")
        await there.says("there is no model 'c'; it has: a, b")
        await there.line("/model a")
        await there.line("hi")
        await there.says("You said hi")
    assert [got.json["model"] for got in engine.got] == ["b", "a"]


async def test_pictures_go_with_the_next_message_only(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    async with scripted(echoes) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("/image")
        await there.says(r"which one\? /image FILE_OR_URL")
        await there.line("/image cat.jpg")
        await there.says(r"\[1 picture\] ")
        await there.line("what?")
        await there.says(r"You said what\?")
        await there.line("and?")
        await there.says(r"You said and\?")
    assert contents(engine.got[0])[-1][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert contents(engine.got[1])[-1] == "and?"


async def test_saving_and_forgetting(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    async with scripted(echoes) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("one")
        for name in ("a.json", "a.md", "a.md"):
            await there.line(f"/save {name}")
            await there.says(f"saved to {name}")
        await there.line("/save mine.txt")
        await there.says("mine.txt is there already; choose another name")
        await there.line("/save no/such/folder/a.md")
        await there.says("can't be written: No such file or directory")
        await there.line("/clear")
        await there.line("two")
        await there.says("You said two")
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "You said one."}]
    assert json.loads((tmp_path / "a.json").read_text()) == said
    assert (tmp_path / "a.md").read_text() == "**user:** one\n\n**assistant:** You said one.\n"
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert contents(engine.got[-1]) == ["two"]


async def test_commands_that_are_none_and_the_end(tmp_path: Path) -> None:
    async with scripted(echoes) as engine, terminal(tmp_path, "chat", "--base-url", engine.root) as there:
        await there.line("/dance")
        await there.says(r"there is no command /dance; /help lists them")
        await there.line("/help")
        await there.says(r"/history N +how many messages are sent along")
        await there.line("/history many")
        await there.says("a number is needed")
        await there.line('"""first')
        await there.says(r"\. ")
        there.type('second"""\n')
        await there.says(r"You said first\nsecond\.")
        await there.line("/exit")
        assert await asyncio.wait_for(there.process.wait(), PATIENCE) == 0
    assert len(engine.got) == 1


async def test_json_is_for_single_questions(tmp_path: Path) -> None:
    async with terminal(tmp_path, "chat", "m", "--json") as there:
        await there.says("illm: --json is for a single question: add --once PROMPT")
        assert await asyncio.wait_for(there.process.wait(), PATIENCE) == 2
