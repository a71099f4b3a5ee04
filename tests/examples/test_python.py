"""The Python examples, word for word, against real engines and, as a newcomer runs them, against the demo engine."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from tests.engines.process import free_port
from tests.engines.speech import TEXT, TOOL_ARGUMENTS, TOOL_NAME
from tests.examples.support import CHAT, EMBED, PNG, SEEING, Run, environment, run_python

CALL = "{'city': 'Bern'}"
SAID = 20  # tokens of TEXT and of its end


def test_openai_chat(run: Run) -> None:
    said, tokens = run("openai_chat.py", CHAT, "hi").splitlines()
    assert said == TEXT
    assert tokens.endswith(f" {SAID} out)")


def test_openai_stream(run: Run) -> None:
    assert run("openai_stream.py", CHAT, "hi") == f"{TEXT}\n({SAID} tokens)\n"
    assert run("openai_stream.py", CHAT, "ponder").startswith("llamas like bridges")


def test_openai_tools(run: Run) -> None:
    assert run("openai_tools.py", CHAT) == f"{TOOL_NAME}({TOOL_ARGUMENTS})\n{TEXT}\n"


def test_openai_vision(run: Run, extras: str, tmp_path: Path) -> None:
    file = tmp_path / "pixel.png"
    file.write_bytes(PNG)
    told = run("openai_vision.py", SEEING, str(file), f"{extras}/pixel.png")
    assert told.count("png") == 2  # the stand-in says what it was shown


def test_openai_embeddings(run: Run) -> None:
    size, first, *others = run("openai_embeddings.py", EMBED).splitlines()
    assert size == "64 numbers each"
    assert first == "1.000  Where do cats sleep?"
    assert len(others) == 2


def test_openai_models(run: Run) -> None:
    lines = run("openai_models.py").splitlines()
    assert f"{CHAT} ready chat" in lines
    assert f"{SEEING} ready seeing" in lines
    some = run("openai_models.py", "llamacpp").splitlines()
    assert f"{CHAT} ready chat" in some
    assert not any("seeing" in line for line in some)


def test_openai_errors(run: Run) -> None:
    status, message, log = run("openai_errors.py").splitlines()
    assert status == "404 invalid_request_error model_not_found (param: model)"
    assert "no-such-model" in message
    assert CHAT in message
    assert len(log.removeprefix("in illm's log as ")) > 8
    assert run("openai_errors.py", CHAT, "hi") == f"{TEXT}\n"


def test_openai_errors_in_a_stream(run: Run) -> None:
    told = run("openai_errors.py", SEEING, '@@{"fail_at": 3, "fail": "the graphics card is gone"}@@')
    first, broke, message = told.splitlines()
    assert first == "Once upon a"
    assert broke.startswith("broke off: ")
    assert "the graphics card is gone" in message


@pytest.mark.slow
def test_openai_errors_where_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = environment(f"http://127.0.0.1:{free_port()}")
    told = run_python("openai_errors.py", (), settings, monkeypatch, capsys)
    assert told.startswith(f"no answer from {settings['OPENAI_BASE_URL']}")
    assert "onnection refused" in told or "connect" in told


def test_a_key_that_is_none_of_the_gateways(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the key that the others send is one that is asked for."""
    monkeypatch.setattr("tests.examples.conftest.environment", lambda root: environment(root, "wrong"))
    with pytest.raises(openai.AuthenticationError):
        run("openai_chat.py", CHAT)


@pytest.mark.slow
def test_langchain_chat(run: Run) -> None:
    answer, stream, call, last = run("langchain_chat.py", CHAT).splitlines()
    assert (answer, stream) == (f"answer: {TEXT}", f"stream: {TEXT}")
    assert call == f"call: {TOOL_NAME} {CALL}"
    assert last == f"with tools: {TEXT}"


@pytest.mark.slow
def test_langchain_embeddings(run: Run) -> None:
    assert run("langchain_embeddings.py", EMBED) == "The bridge is built of stone.\n"


@pytest.mark.slow
def test_anthropic_messages(run: Run) -> None:
    answer, stream, call, last = run("anthropic_messages.py", CHAT).splitlines()
    assert (answer, stream) == (f"answer: {TEXT}", f"stream: {TEXT}")
    assert call == f"call: {TOOL_NAME} {CALL}"
    assert last == f"with tools: {TEXT}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openai_chat.py", 'You said: "Hello"'),
        ("openai_stream.py", 'You said: "Hello"'),
        ("openai_waiting.py", 'You said: "Hello"'),
        ("openai_tools.py", "What is the weather in Bern?"),
        ("openai_embeddings.py", "1.000  Where do cats sleep?"),
        ("openai_models.py", "demo ready demo"),
        ("openai_errors.py", "Known models: demo."),
        ("langchain_chat.py", "with tools: This is illm's built-in demo engine"),
        ("langchain_embeddings.py", "The bridge is built of stone."),
    ],
)
def test_without_any_words_the_demo_engine_answers(run_bare: Run, name: str, said: str) -> None:
    assert said in run_bare(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"), [("openai_vision.py", ()), ("openai_vision.py", ("m",)), ("anthropic_messages.py", ())]
)
def test_what_the_demo_engine_lacks_wants_words(
    name: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_python(name, words, {}, monkeypatch, capsys)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: {name} MODEL ")
