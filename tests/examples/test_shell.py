"""The shell examples: what curl gets from real engines, and from the demo engine without any words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engines.gateway import Gateway
from tests.engines.speech import TEXT
from tests.examples.support import (
    CHAT,
    EMBED,
    EXAMPLES,
    HEARING,
    PATIENCE,
    PNG,
    SEEING,
    WAV,
    environment,
    run_shell,
)


@pytest.fixture
def settings(real: Gateway) -> dict[str, str]:
    return environment(real.base_url)


def sections(told: str) -> dict[str, str]:
    """What stands under each heading."""
    parts = told.split("== ")[1:]
    return {head: body.strip() for head, _, body in (part.partition("\n") for part in parts)}


def said(body: str) -> str:
    answer: dict[str, Any] = json.loads(body)
    content: str = answer["choices"][0]["message"]["content"]
    return content


def check_stream(body: str, text: str) -> None:
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    pieces = [choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]]
    assert text in "".join(pieces)
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_curl_chat(settings: dict[str, str]) -> None:
    told = sections(run_shell("curl_chat.sh", CHAT, "llamacpp", settings=settings))
    assert CHAT in {entry["id"] for entry in json.loads(told["models"])["data"]}
    assert said(told["an answer"]) == TEXT
    check_stream(told["a stream"], TEXT)
    assert said(told["from llamacpp engine"]) == " ".join(TEXT.split()[:5])


def test_curl_chat_with_a_kind_that_nobody_has(settings: dict[str, str]) -> None:
    told = sections(run_shell("curl_chat.sh", CHAT, "vllm", settings=settings))
    assert json.loads(told["from vllm engine"])["error"]["code"] == "backend_not_configured"


@pytest.mark.slow
def test_curl_chat_without_any_words(newcomer: Gateway) -> None:
    told = sections(run_shell("curl_chat.sh", settings=environment(newcomer.base_url, "none")))
    assert 'You said: "Hello"' in said(told["an answer"])
    check_stream(told["a stream"], 'You said: "Hello"')
    assert said(told["from any kind of engine"]) == "This is illm's built-in demo"


@pytest.mark.slow
def test_curl_embeddings(settings: dict[str, str], newcomer: Gateway) -> None:
    for words, where in (((EMBED,), settings), ((), environment(newcomer.base_url, "none"))):
        answer = json.loads(run_shell("curl_embeddings.sh", *words, settings=where))
        assert [len(entry["embedding"]) for entry in answer["data"]] == [64, 64]


def test_curl_picture(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "pixel.png"
    file.write_bytes(PNG)
    assert "png" in said(run_shell("curl_picture.sh", SEEING, file, settings=settings))


def test_curl_transcription(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "hello.wav"
    file.write_bytes(WAV)
    form, as_json = run_shell("curl_transcription.sh", HEARING, file, settings=settings).splitlines()
    assert json.loads(form) == {"text": f"{len(WAV)} bytes of hello.wav"}
    assert json.loads(as_json) == {"text": f"{len(WAV)} bytes of audio.wav"}


@pytest.mark.parametrize("name", ["curl_picture.sh", "curl_transcription.sh"])
@pytest.mark.parametrize("words", [(), ("m",), ("m", "no-such-file")])
def test_nothing_is_sent_without_a_model_and_a_file(name: str, words: tuple[str, ...]) -> None:
    done = subprocess.run([EXAMPLES / name, *words], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"usage: {name} MODEL FILE\n")
