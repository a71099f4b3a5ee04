# ruff: noqa: E501 - cases in one line each
"""Requests that are no requests: always the envelope and a 4xx, never a 500 or a traceback."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.faults.support import CHAT, CHAT_PATH, client, event, ok, scene
from tests.proxy.harness import PATIENCE, Got, Line

MESSAGES = b'"messages":[{"role":"user","content":"hi"}]'
NOT_JSON = {
    "nothing": b"",
    "spaces": b"  \r\n",
    "words": b"hello",
    "an array": b"[" + json.dumps(CHAT).encode() + b"]",
    "a string": b'"x"',
    "null": b"null",
    "cut off": json.dumps(CHAT).encode()[:-1],
    "more behind it": json.dumps(CHAT).encode() + b"{}",
    "single quotes": b"{'model': 'pub'}",
    "a comma too many": b'{"model":"pub",' + MESSAGES + b",}",
    "NaN": b'{"model":"pub","temperature":NaN,' + MESSAGES + b"}",
    "Infinity": b'{"model":"pub","temperature":-Infinity,' + MESSAGES + b"}",
    "a control character": b'{"model":"pub","messages":[{"role":"user","content":"a\x00b"}]}',
    "deep nesting": b'{"model":"pub","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep nesting, no end": b'{"a":' * 100_000,
    "no UTF-8 in the model": b'{"model":"p\xffub",' + MESSAGES + b"}",
    "no UTF-8 in a message": b'{"model":"pub","messages":[{"role":"user","content":"\xc3("}]}',
    "no UTF-8 in a name": b'{"model":"pub","\xff":1,' + MESSAGES + b"}",
    "an overlong form": b'{"model":"pub","messages":[{"role":"user","content":"\xc0\x80"}]}',
    "a surrogate in UTF-8": b'{"model":"pub","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "half a surrogate pair": b'{"model":"\\ud800",' + MESSAGES + b"}",
    "half a pair in a picture": b'{"model":"pub","messages":[{"role":"user","content":[{"type":"image_url","image_url":"\\ud800"}]}]}',
    "UTF-16": json.dumps(CHAT).encode("utf-16"),
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
}  # fmt: skip


PATHS = [CHAT_PATH, "/v1/embeddings", "/v1/messages", "/tokenize", "/v1/audio/transcriptions"]


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_no_json(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with scene(ok) as (upstream, gate):
        for path in PATHS:
            reply = await gate.client.post(path, content=body, headers={"content-type": "application/json"})

            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json"), path
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
            assert "Traceback" not in reply.text
        assert not upstream.got
        assert not caplog.records


# JSON, but not what the gateway needs of it: the member that is wrong, or None where the engine is to judge.
ODD = {
    "a number for the model": (b'{"model":5,' + MESSAGES + b"}", "model"),
    "an object for the model": (b'{"model":{},' + MESSAGES + b"}", "model"),
    "an unknown framework": (b'{"model":"pub","framework":"cuda",' + MESSAGES + b"}", "framework"),
    "a list for the framework": (b'{"model":"pub","framework":[],' + MESSAGES + b"}", "framework"),
    "no messages": (b'{"model":"pub"}', "messages"),
    "a text for stream": (b'{"model":"pub","stream":"yes",' + MESSAGES + b"}", None),
    "null for stream": (b'{"model":"pub","stream":null,' + MESSAGES + b"}", None),
    "a text for messages": (b'{"model":"pub","messages":"hi"}', None),
    "a list for content parts": (b'{"model":"pub","messages":[[{"type":"image_url"}]]}', None),
    "an image that is none": (b'{"model":"pub","messages":[{"role":"user","content":[{"type":"image_base64","image_base64":5}]}]}', None),
    "parts without a type": (b'{"model":"pub","messages":[{"role":"user","content":[{"image_base64":""},5,null]}]}', None),
    "stream_options that are none": (b'{"model":"pub","stream_options":7,' + MESSAGES + b"}", None),
    "model twice": (b'{"model":"nobody","model":"pub",' + MESSAGES + b"}", None),
    "a huge number": (b'{"model":"pub","seed":' + b"9" * 4000 + b"," + MESSAGES + b"}", None),
    "n of a strange kind": (b'{"model":"pub","n":"many",' + MESSAGES + b"}", None),
}  # fmt: skip


CHOICE = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
WHOLE = {"id": "c", "object": "chat.completion", "created": 1, "model": "up", "choices": [CHOICE]}


@pytest.mark.parametrize("kind", ["vllm", "llamacpp", "transformers", "tgi"])
async def test_odd_json(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(got: Got, line: Line) -> None:
        if got.json.get("stream") is True:
            await line.head(200, {"content-type": "text/event-stream"})
            await line.chunk(event("x", finish="stop") + b"data: [DONE]\n\n")
            await line.end()
        else:
            await line.reply(200, json.dumps(WHOLE).encode())

    mode = {"chat_mode": "openai"} if kind == "tgi" else {}
    async with scene(handler, kind=kind, backend=mode) as (upstream, gate):
        for name, (body, param) in ODD.items():
            before = len(upstream.got)
            reply = await gate.client.post(CHAT_PATH, content=body, headers={"content-type": "application/json"})

            if param is None:
                assert reply.status_code == 200 or 400 <= reply.status_code < 500, (name, reply.text)
            else:
                assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), name
                assert len(upstream.got) == before, name
            if reply.status_code != 200:
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}, name
            assert not caplog.records, name


FORM = b'--X\r\ncontent-disposition: form-data; name="model"\r\n\r\npub\r\n'
FORMS = {
    "no boundary": ("multipart/form-data", FORM + b"--X--\r\n"),
    "another boundary": ("multipart/form-data; boundary=Y", FORM + b"--X--\r\n"),
    "cut off": ("multipart/form-data; boundary=X", FORM[:-8]),
    "nothing": ("multipart/form-data; boundary=X", b""),
    "no name": ("multipart/form-data; boundary=X", b"--X\r\ncontent-disposition: form-data\r\n\r\nx\r\n--X--\r\n"),
    "no headers": ("multipart/form-data; boundary=X", b"--X\r\n\r\nx\r\n--X--\r\n"),
    "no UTF-8": ("multipart/form-data; boundary=X", FORM.replace(b"pub", b"\xff") + b"--X--\r\n"),
    "an odd boundary": ("multipart/form-data; boundary=" + "X" * 300, b"x"),
    "binary": ("multipart/form-data; boundary=X", bytes(range(256))),
}


async def test_no_form(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(ok) as (_, gate):
        for name, (kind, body) in FORMS.items():
            reply = await gate.client.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})

            assert 400 <= reply.status_code < 500, (name, reply.text)
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}, name
            assert not [record for record in caplog.records if record.exc_info], name


NO_HTTP = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "no version": b"POST /v1/chat/completions\r\n\r\n",
    "a bad length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
    "a negative length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}",
    "length and chunks": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is none": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "a header without a colon": b"POST /v1/chat/completions HTTP/1.1\r\nhost x\r\n\r\n",
    "a space in the path": b"POST /v1/chat completions HTTP/1.1\r\nhost: x\r\n\r\n",
}


async def test_no_http(caplog: pytest.LogCaptureFixture) -> None:
    async with scene(ok) as (upstream, gate):
        for name, data in NO_HTTP.items():
            async with client(gate.url) as one:
                one.writer.write(data)
                one.writer.write_eof()
                got = await one.everything()

            assert got == b"" or got.startswith(b"HTTP/1.1 4"), name
            assert b"Traceback" not in got, name
            assert not upstream.got, name
            assert not [record for record in caplog.records if record.exc_info], name
        assert (await gate.client.post(CHAT_PATH, json=CHAT)).status_code == 200


async def test_odd_paths(caplog: pytest.LogCaptureFixture) -> None:
    odd = ["/%", "/%ff", "/v1/models/%ff", "//", "/v1/../healthz", "/v1/models/" + "x" * 4000, "*"]
    async with scene(ok) as (_, gate):
        for path in odd:
            async with client(gate.url) as one:
                one.writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path.encode())
                got = await one.everything()

            assert got.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), path
            assert not [record for record in caplog.records if record.exc_info], path


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def handler(got: Got, line: Line) -> None:
        await line.reply(200, b'{"n":%d}' % got.json["n"])

    async with scene(handler) as (_, gate), client(gate.url) as one:
        for n in range(3):
            await one.send(CHAT_PATH, CHAT | {"n": n}, {"connection": "close"} if n == 2 else None)
        got = await one.everything()

        at = [got.index(b'{"n":%d}' % n) for n in range(3)]
        assert at == sorted(at)


async def test_expect_continue() -> None:
    body = json.dumps(CHAT).encode()
    async with scene(ok) as (_, gate), client(gate.url) as one:
        await one.head(CHAT_PATH, {"content-length": str(len(body)), "expect": "100-continue"})
        assert (await one.answer())[0] == 100
        one.writer.write(body)
        assert (await one.answer())[0] == 200


async def test_a_client_of_http_1_0() -> None:
    body = json.dumps(CHAT).encode()
    async with scene(ok) as (_, gate), client(gate.url) as one:
        one.writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT_PATH.encode(), len(body), body))
        async with asyncio.timeout(PATIENCE):
            got = await one.reader.read()  # closed by the gateway, as that client expects

        assert got.startswith(b"HTTP/1.1 200 ")
        assert b'"model":"pub"' in got
