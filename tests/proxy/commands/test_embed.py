"""`illm embed`: vectors, how alike they are, and answers that make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy.commands.embed import similarity
from tests.engines.process import ServerProcess
from tests.proxy.commands.support import Said, illm, scripted
from tests.proxy.harness import Got, Handler, Line

VECTORS = {"a cat": [1.0, 0.0, 0, 0, 0, 0, 0.5], "a bridge": [0.0, 1.0, 0, 0, 0, 0, 0.0], "no": [0.0] * 7}


def embedder(*entries: Any) -> Handler:
    """Answers with these, else with the vectors above, the last text first."""

    async def answers(got: Got, line: Line) -> None:
        texts = list(enumerate(got.json["input"]))
        data = list(entries) or [{"index": n, "embedding": VECTORS[text]} for n, text in reversed(texts)]
        await line.reply(200, json.dumps({"data": data}).encode())

    return answers


async def test_several_texts_are_compared(tmp_path: Path) -> None:
    async with scripted(embedder()) as engine:
        said = await illm(tmp_path, "embed", "m", "a cat", "a bridge", "--base-url", engine.root)

    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "7 dimensions"
    assert lines[1].split() == ["a", "cat", "1", "0", "0", "0", "0", "0", "…"]
    assert lines[4:] == ["cosine similarity", "a cat      1.000   0.000", "a bridge   0.000   1.000"]
    assert engine.got[0].json == {"model": "m", "input": ["a cat", "a bridge"], "encoding_format": "float"}


async def test_one_text_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    async with scripted(embedder()) as engine:
        said = await illm(tmp_path, "embed", "m", "a cat", "--base-url", engine.root, "--dimensions", "7")
    assert "similarity" not in said.out
    assert engine.got[0].json["dimensions"] == 7


async def test_for_programs(tmp_path: Path) -> None:
    async with scripted(embedder()) as engine:
        said = await illm(tmp_path, "embed", "m", "a cat", "no", "--base-url", engine.root, "--json")

    assert said.json["dimensions"] == 7
    assert said.json["data"] == [{"text": text, "embedding": VECTORS[text]} for text in ("a cat", "no")]
    assert said.json["similarity"][0] == [pytest.approx(1.0), 0.0]


async def test_lines_of_standard_input(tmp_path: Path) -> None:
    async with scripted(embedder()) as engine:
        said = await illm(tmp_path, "embed", "m", "-", "--base-url", engine.root, given="a cat\n\na bridge\n")
        empty = await illm(tmp_path, "embed", "m", "-", "--base-url", engine.root, given="\n")

    assert said.status == 0
    assert engine.got[0].json["input"] == ["a cat", "a bridge"]
    assert (empty.status, empty.err) == (2, "illm: there is no text to embed: standard input was empty\n")


@pytest.mark.parametrize(
    "entries",
    [
        ({"index": 0, "embedding": [1.0]},),
        ({"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}),
        ({"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AACAPw=="}),
        ("x", 1),
    ],
)
async def test_answers_that_make_no_sense(tmp_path: Path, entries: tuple[Any, ...]) -> None:
    async with scripted(embedder(*entries)) as engine:
        said = await illm(tmp_path, "embed", "m", "a", "b", "--base-url", engine.root)
    assert (said.status, said.out) == (1, "")
    assert "did not answer with a vector for each text" in said.err


async def test_a_real_llama_server(tmp_path: Path, llama_embed: ServerProcess, llama_server: ServerProcess) -> None:
    async def ask(server: ServerProcess) -> Said:
        return await illm(tmp_path, "embed", "tiny", "a", "a", "other words", "--base-url", server.base_url, "--json")

    said, refused = await ask(llama_embed), await ask(llama_server)
    assert said.status == 0
    assert said.json["similarity"][0][1] == pytest.approx(1.0)
    assert said.json["similarity"][0][2] < 1.0
    assert refused.status == 1
    assert "This server does not support embeddings" in refused.err


def test_a_vector_without_direction_is_like_none() -> None:
    assert similarity([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert similarity([1.0, 1.0], [-1.0, -1.0]) == pytest.approx(-1.0)
