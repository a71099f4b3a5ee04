"""The demo engine as people meet it: a real process, real sockets, the official client."""

import base64
import contextlib
import http.client
import json
import math
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.engines.process import PATIENCE

ROOT = Path(__file__).parents[2]
HELLO = [{"role": "user", "content": "hello there"}]


@contextlib.contextmanager
def demo_engine(*arguments: str, stdin: int = subprocess.PIPE) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its base URL, once it says that it listens."""
    command = [sys.executable, "-m", "launchers.demo", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=stdin, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:2] == ["listening", "on"]
            yield process, words[2]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with demo_engine("--exit-with-parent", "--delay-ms", "0") as (_, url):
        yield url


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        yield client


def post(url: str, path: str, body: bytes) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_models_and_health(sdk: openai.OpenAI, url: str) -> None:
    (model,) = sdk.models.list().data
    assert (model.id, model.owned_by) == ("demo", "illm-demo")
    assert sdk.models.retrieve("demo") == model
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200


def test_chat_says_what_it_is(sdk: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "héllo “there”"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    reply = sdk.chat.completions.create(model="demo", messages=messages)  # type: ignore[arg-type]
    (choice,) = reply.choices
    text = choice.message.content or ""
    assert text.startswith("This is illm's built-in demo engine, a stand-in and not a language model.")
    assert 'You said: "héllo “there”".' in text
    assert "Point illm at a real engine" in text
    assert (reply.model, choice.finish_reason, choice.index) == ("demo", "stop", 0)
    assert reply.usage is not None
    words = len(text.split())
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (4, words, 4 + words)


def test_stream_is_the_plain_answer_in_words(sdk: openai.OpenAI) -> None:
    plain = sdk.chat.completions.create(model="demo", messages=HELLO)
    chunks = list(
        sdk.chat.completions.create(model="demo", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    *body, last = chunks
    pieces = [chunk.choices[0].delta.content for chunk in body]
    assert "".join(piece or "" for piece in pieces) == plain.choices[0].message.content
    assert len(pieces) > 20
    assert body[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * (len(body) - 1) + ["stop"]
    assert (last.choices, last.usage) == ([], plain.usage)
    assert all(chunk.usage is None for chunk in body)
    assert len({chunk.id for chunk in chunks}) == 1


def test_limit_stop_and_choices(sdk: openai.OpenAI) -> None:
    cut = sdk.chat.completions.create(model="demo", messages=HELLO, max_tokens=3, n=2)
    assert [choice.message.content for choice in cut.choices] == ["This is illm's"] * 2
    assert [choice.finish_reason for choice in cut.choices] == ["length"] * 2
    assert [choice.index for choice in cut.choices] == [0, 1]
    assert cut.usage is not None
    assert cut.usage.completion_tokens == 6
    stopped = sdk.chat.completions.create(
        model="demo", messages=HELLO, stop=["engine", "built"], max_completion_tokens=9
    )
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("This is illm's ", "stop")
    streamed = sdk.chat.completions.create(model="demo", messages=HELLO, max_tokens=2, n=2, stream=True)
    said = ["", ""]
    reasons = [None, None]
    for chunk in streamed:
        (choice,) = chunk.choices
        said[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
    assert (said, reasons) == (["This is"] * 2, ["length"] * 2)


def test_completions(sdk: openai.OpenAI) -> None:
    reply = sdk.completions.create(model="demo", prompt=["one", "two"], max_tokens=2, echo=True)
    assert [choice.text for choice in reply.choices] == ["oneThis is", "twoThis is"]
    streamed = sdk.completions.create(
        model="demo", prompt=[1, 2, 3], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(streamed)
    text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
    assert 'You said: "1 2 3".' in text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3


def test_embeddings(sdk: openai.OpenAI, url: str) -> None:
    reply = sdk.embeddings.create(model="demo", input=["blue sky", "blue sea", "an old boat"])
    blue, sea, boat = (row.embedding for row in reply.data)  # asked as base64: the SDK's default
    assert [len(vector) for vector in (blue, sea, boat)] == [64] * 3
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in (blue, sea, boat))
    near, far = (sum(a * b for a, b in zip(blue, other, strict=True)) for other in (sea, boat))
    assert near > far
    assert reply.usage.prompt_tokens == 7
    floats = sdk.embeddings.create(model="demo", input="blue sky", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(blue, abs=1e-6)
    short = sdk.embeddings.create(model="demo", input=[[1, 2], [3]], dimensions=8)
    assert [len(row.embedding) for row in short.data] == [8, 8]
    status, raw = post(url, "/v1/embeddings", b'{"model":"demo","input":"blue sky","encoding_format":"base64"}')
    assert status == 200
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack("<64f", packed)) == pytest.approx(blue, abs=1e-6)


CHAT = {"model": "demo", "messages": HELLO}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "code"),
    [
        ("chat/completions", b"{not json", 400, None, "invalid_json"),
        ("chat/completions", b"[1]", 400, None, "invalid_json"),
        ("chat/completions", b"\xff\xfe", 400, None, "invalid_json"),
        ("chat/completions", b"[" * 200_000, 400, None, "invalid_json"),
        ("chat/completions", {"messages": HELLO}, 400, "model", "missing_required_parameter"),
        ("chat/completions", CHAT | {"model": "gpt-9"}, 404, "model", "model_not_found"),
        ("chat/completions", {"model": "demo"}, 400, "messages", None),
        ("chat/completions", {"model": "demo", "messages": [3]}, 400, "messages", None),
        ("chat/completions", CHAT | {"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ("chat/completions", CHAT | {"n": True}, 400, "n", "invalid_value"),
        ("chat/completions", CHAT | {"stop": [1]}, 400, "stop", None),
        ("chat/completions", CHAT | {"stream": "yes"}, 400, "stream", "invalid_value"),
        ("chat/completions", CHAT | {"stream_options": {}}, 400, "stream_options", None),
        ("chat/completions", CHAT | {"tool_choice": "required"}, 400, "tool_choice", "unsupported_parameter"),
        (
            "chat/completions",
            CHAT | {"response_format": {"type": "json_object"}},
            400,
            "response_format",
            "unsupported_parameter",
        ),
        ("completions", {"model": "demo", "prompt": [[]]}, 400, "prompt", None),
        ("embeddings", {"model": "demo", "input": ""}, 400, "input", None),
        ("embeddings", {"model": "demo", "input": "a " * 9000}, 400, "input", "context_length_exceeded"),
        ("embeddings", {"model": "demo", "input": "a", "encoding_format": "hex"}, 400, "encoding_format", None),
        ("rerank", {}, 404, None, "unknown_url"),
        ("models", {}, 405, None, "method_not_allowed"),
    ],
)
def test_errors_are_envelopes(
    url: str, path: str, body: bytes | dict, status: int, param: str | None, code: str | None
) -> None:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    got, reply = post(url, "/v1/" + path, sent)
    assert list(reply) == ["error"]
    error = reply["error"]
    assert (got, error["type"], error["param"], error["code"]) == (status, "invalid_request_error", param, code)
    assert error["message"]


def test_words_without_utf8_come_back(url: str) -> None:
    status, reply = post(url, "/v1/chat/completions", json.dumps(CHAT).replace("hello", "\\ud800").encode())
    assert status == 200
    assert 'You said: "? there"' in reply["choices"][0]["message"]["content"]


def test_streamed_words_are_sent_one_by_one() -> None:
    with (
        demo_engine("--delay-ms", "50", "--model", "other") as (_, url),
        openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as sdk,
    ):
        begun = time.monotonic()
        chunks = list(sdk.chat.completions.create(model="other", messages=HELLO, max_tokens=6, stream=True))
        took = time.monotonic() - begun
    assert len(chunks) == 8
    assert took > 0.05 * 5


def test_end_of_input_ends_it_amid_a_stream() -> None:
    with demo_engine("--exit-with-parent", "--delay-ms", "60000") as (process, url):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE)
        with contextlib.closing(connection):
            body = json.dumps(CHAT | {"stream": True})
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            assert connection.getresponse().readline().startswith(b"data: {")
            assert process.poll() is None
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE) == 0


def test_it_outlives_its_input_unless_told() -> None:
    with demo_engine(stdin=subprocess.DEVNULL) as (process, url):
        assert post(url, "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
        assert process.poll() is None


def test_terminates_cleanly_with_its_input_still_open() -> None:
    with demo_engine("--exit-with-parent") as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_a_taken_port_is_said_plainly(url: str) -> None:
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "launchers.demo", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert done.stderr == f"The demo engine can't listen on 127.0.0.1:{port}: Address already in use.\n"


def test_is_a_small_process_of_its_own() -> None:
    seen = "import sys, launchers.demo.__main__; print([m for m in sys.modules if m.split('.')[0] == 'proxy'])"
    done = subprocess.run(
        [sys.executable, "-c", seen], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.strip() == "[]"
    status = Path("/proc/self/status")
    if status.exists():
        with demo_engine("--exit-with-parent") as (process, url):
            post(url, "/v1/chat/completions", json.dumps(CHAT).encode())
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        (resident,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        assert resident < 40 * 1024
