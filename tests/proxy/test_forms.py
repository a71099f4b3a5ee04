"""Multipart forms: what routes is read and rewritten, every other byte is copied."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ApiError
from proxy.forms import Form, Part, audio_form, parse_form

FILE = b"RIFF\x00\r\n--B\r\n\xff\x00--\r\n"  # line ends and something like a boundary inside
BODY = (
    b'--BB\r\nContent-Disposition: form-data; name="model"\r\n\r\npub\r\n'
    b'--BB\r\nContent-Disposition: form-data; name="timestamp_granularities[]"\r\n\r\nword\r\n'
    b'--BB\r\nContent-Disposition: form-data; name="timestamp_granularities[]"\r\n\r\nsegment\r\n'
    b'--BB\r\nContent-Disposition: form-data; name="framework"\r\n\r\n vllm \r\n'
    b'--BB\r\ncontent-disposition: form-data; name="file"; filename="a \xc3\xa9.wav"\r\nContent-Type: audio/wav\r\n'
    b"X-Odd: 1\r\n\r\n" + FILE + b"\r\n--BB--\r\n"
)
TYPE = "multipart/form-data; boundary=BB"


def test_a_form_is_read() -> None:
    form = parse_form(TYPE, BODY)

    assert [part.name for part in form.parts] == [
        "model", "timestamp_granularities[]", "timestamp_granularities[]", "framework", "file",
    ]  # fmt: skip
    assert (form.text("model"), form.text("framework"), form.text("nothing")) == ("pub", "vllm", None)
    assert form.text("file") is None
    assert form.parts[-1].data == FILE
    assert form.parts[-1].is_file


def test_a_form_is_written_anew() -> None:
    form = parse_form(TYPE, BODY)
    content_type, body = form.encode({"model": "up", "framework": None})
    again = parse_form(content_type, body)

    assert again.text("model") == "up"
    assert "framework" not in [part.name for part in again.parts]
    assert [part for part in again.parts if part.name != "model"] == [
        part for part in form.parts if part.name not in ("model", "framework")
    ]
    assert b'filename="a \xc3\xa9.wav"\r\nContent-Type: audio/wav\r\nX-Odd: 1\r\n\r\n' + FILE in body


def test_a_file_called_model_is_no_name() -> None:
    form = Form((Part("model", b'Content-Disposition: form-data; name="model"; filename="m"', b"x", is_file=True),))
    content_type, body = form.encode({"model": "up"})

    assert form.text("model") is None
    assert [part.data for part in parse_form(content_type, body).parts] == [b"up", b"x"]


def test_a_quoted_boundary() -> None:
    assert parse_form('multipart/form-data; charset=utf-8; boundary="BB"', BODY).text("model") == "pub"


@given(st.binary(max_size=300))
def test_any_bytes_of_a_file(data: bytes) -> None:
    head = b'Content-Disposition: form-data; name="file"; filename="f"'
    content_type, body = Form((Part("file", head, data, is_file=True),)).encode({"model": "up"})

    assert parse_form(content_type, body).parts[1].data == data


BROKEN = {
    "no boundary": ("multipart/form-data", BODY),
    "another boundary": ("multipart/form-data; boundary=CC", BODY),
    "no form": (TYPE, b'{"model":"pub"}'),
}


@pytest.mark.parametrize(("content_type", "body"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_form(content_type: str, body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_form(content_type, body)

    assert caught.value.status == 400
    assert "multipart" in caught.value.message


# -- audio in JSON -----------------------------------------------------------------------------------------------


def sent(members: dict[str, Any]) -> dict[str, list[bytes]]:
    content_type, body = audio_form(members).encode({"model": "up", "framework": None})
    fields: dict[str, list[bytes]] = {}
    for part in parse_form(content_type, body).parts:
        fields.setdefault(part.name, []).append(part.data)
    return fields


@pytest.mark.parametrize("prefix", ["", "data:audio/wav;base64,"])
def test_audio_base64_becomes_the_form_that_engines_expect(prefix: str) -> None:
    members = {
        "model": "pub", "framework": "vllm", "audio_base64": prefix + base64.b64encode(FILE).decode(), "language": "de",
        "temperature": 0.5, "stream": True, "prompt": None, "timestamp_granularities": ["word", "segment"],
    }  # fmt: skip

    assert sent(members) == {
        "model": [b"up"],
        "file": [FILE],
        "language": [b"de"],
        "temperature": [b"0.5"],
        "stream": [b"true"],
        "timestamp_granularities[]": [b"word", b"segment"],
    }


@pytest.mark.parametrize(
    ("magic", "name"),
    [(b"RIFF", "wav"), (b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3"), (b"\xff\xfb", "mp3"), (b"?", "wav")],
)
def test_the_file_is_named_after_its_bytes(magic: bytes, name: str) -> None:
    part = audio_form({"audio_base64": base64.b64encode(magic).decode()}).parts[-1]

    assert part.is_file
    assert f'filename="audio.{name}"'.encode() in part.head


@pytest.mark.parametrize(
    ("given", "code"),
    [(None, "missing_required_parameter"), ("", "missing_required_parameter"), (5, "missing_required_parameter"),
     ("not base64!", "invalid_value"), ("abc", "invalid_value"), ("é", "invalid_value")],
)  # fmt: skip
def test_audio_that_is_none(given: Any, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        audio_form({"audio_base64": given})

    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, "audio_base64")


def test_a_member_cannot_break_out_of_its_header() -> None:
    form = audio_form({"audio_base64": "AAAA", 'a"\r\nX: y\r\n\r\nz': "v"})
    content_type, body = form.encode({"model": "up"})

    assert [part.name for part in parse_form(content_type, body).parts] == [
        "model",
        "a%22%0D%0AX: y%0D%0A%0D%0Az",
        "file",
    ]


def test_an_object_in_a_json_body_stays_json() -> None:
    form = audio_form({"audio_base64": "UklGRg==", "chunking_strategy": {"type": "server_vad"}})

    assert form.text("chunking_strategy") == '{"type":"server_vad"}'


def test_a_form_of_too_many_parts_is_refused() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'

    with pytest.raises(ApiError, match="more than 1000 parts") as caught:
        parse_form("multipart/form-data; boundary=b", part * 1001 + b"--b--\r\n")
    assert caught.value.status == 400
