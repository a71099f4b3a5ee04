"""Which media URLs pass to an engine, and in which form."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.base import Target
from proxy.dialects.openai.content import fix_parts, needs_look
from proxy.errors import ApiError
from proxy.wire import load_object, members

VECTORS = Path(__file__).parents[2] / "vectors" / "unit_image_url_policy.json"
CASES = json.loads(VECTORS.read_text("utf-8"))["cases"]

PASS = Target(kind="vllm", backend="b", model="m", public="p")
REJECT = replace(PASS, image_urls="reject")
FETCH = replace(PASS, image_urls="fetch")

PNG = b"\x89PNG\r\n\x1a\n\xff\xfb\xef\xbe\xff\xff\xff\x00"  # its base64 has +, / and padding
B64 = base64.b64encode(PNG).decode()
DATA_URL = f"data:image/png;base64,{B64}"
assert {"+", "/", "="} <= set(B64)


def chat(*parts: Any) -> dict:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def part(url: Any) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def refused(body: dict, target: Target = PASS) -> tuple[str | None, str | None]:
    with pytest.raises(ApiError) as caught:
        fix_parts(body, target)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"] + " " + case["url"][:30])
@pytest.mark.parametrize("form", ["object", "string"])
@pytest.mark.parametrize("target", [PASS, REJECT], ids=lambda target: target.image_urls)
def test_url_policy_vectors(case: dict, form: str, target: Target) -> None:
    """With passthrough every http(s) row is forwarded, and the others are as in the reject column."""
    url = case["url"]
    body = chat(part(url) if form == "object" else {"type": "image_url", "image_url": url})
    http = url.startswith(("http:", "https:"))

    if case["image_urls=reject"] == "allow" or (http and target is PASS):
        fix_parts(body, target)
        sent = body["messages"][0]["content"][0]["image_url"]["url"]
        assert sent == url.replace("data:;", "data:image/png;")
    else:
        code = "invalid_image_url" if url.startswith("data:") else "unsupported_value"
        assert refused(body, target) == (code, "messages")


def test_fetch_is_not_available_here() -> None:
    assert refused(chat(part("https://example.com/a.png")), FETCH) == ("unsupported_value", "messages")
    assert fix_parts(chat(part(DATA_URL)), FETCH) is False


@pytest.mark.parametrize(
    "url",
    [
        " https://a/x",
        "https://a/\nx",
        "https:///x",
        "http:\\\\a\\x",
        "https:a",
        "//a/x",
        "file:///x?http://a/",
        "x\x00",
        7,
    ],
)
def test_only_plain_http_urls(url: Any) -> None:
    assert refused(chat(part(url))) == ("unsupported_value", "messages")


def test_schemes_are_sent_in_lower_case() -> None:
    body = chat(part("HTTPS://Example.com/A.png"), part("DATA:IMAGE/PNG;BASE64," + B64))

    assert fix_parts(body, PASS) is True
    assert body == chat(part("https://Example.com/A.png"), part(DATA_URL))


@pytest.mark.parametrize(
    "body",
    [
        chat("text", {"type": "text", "text": "file:///etc/passwd"}),
        chat(part(DATA_URL), part("https://example.com/a b.png")),
        chat({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}, "uuid": "u"}),
        chat({"type": "image_url", "image_url": None, "uuid": "cached"}),
        chat({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
        chat({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,BBBB"}}),
        chat({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}}),
        chat({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "…"}}),
        chat({"type": "search_result", "source": "a name", "content": [{"type": "text", "text": "x"}]}),
        {"messages": [{"role": "assistant", "content": None, "audio": {"id": "a"}, "tool_calls": []}]},
        {"messages": "x", "input": ["text", [1, 2]], "prompt": "file:///x"},
        {"messages": [], "tools": [{"function": {"parameters": {"properties": {"image_url": {"type": "string"}}}}}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": DATA_URL}]}]},
        {"input": [{"type": "input_file", "file_url": "https://example.com/a.pdf"}]},
        {},
    ],
)
def test_bodies_that_pass_unchanged(body: dict) -> None:
    before = json.dumps(body)

    assert fix_parts(body, PASS) is False
    assert json.dumps(body) == before


@pytest.mark.parametrize(
    ("given_part", "sent"),
    [
        ({"type": "image_url", "image_url": DATA_URL}, part(DATA_URL)),
        ({"type": "image_base64", "image_base64": B64}, part(DATA_URL)),
        ({"type": "image_base64", "image_base64": B64.rstrip("=")}, part(DATA_URL)),
        ({"type": "image_base64", "image_base64": base64.urlsafe_b64encode(PNG).decode()}, part(DATA_URL)),
        ({"type": "image_base64", "image_base64": base64.encodebytes(PNG).decode()}, part(DATA_URL)),
        ({"type": "image_base64", "image_base64": DATA_URL}, part(DATA_URL)),
        (
            {"type": "image_base64", "image_base64": B64, "detail": "low"},
            {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
        ),
        (part("data:;base64," + B64), part(DATA_URL)),
        (part("data:image/png;base64," + base64.urlsafe_b64encode(PNG).decode().rstrip("=")), part(DATA_URL)),
        (part("data:image/png;name=a.png;base64," + B64.replace("+", "%2B").replace("=", "%3D")), part(DATA_URL)),
        ({"type": "video_url", "video_url": "https://a/v"}, {"type": "video_url", "video_url": {"url": "https://a/v"}}),
        ({"type": "audio_url", "audio_url": "data:,x"}, {"type": "audio_url", "audio_url": {"url": "data:,x"}}),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64.rstrip("=")}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        ),
        (
            {"type": "image", "source": {"type": "base64", "data": B64}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
        ),
    ],
)
def test_forms_that_are_rewritten(given_part: dict, sent: dict) -> None:
    body = chat({"type": "text", "text": "look"}, given_part)

    assert fix_parts(body, PASS) is True
    assert body == chat({"type": "text", "text": "look"}, sent)
    assert fix_parts(body, PASS) is False, "the usual form stays as it is"


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\xff\xd8\xff\xe0....", "image/jpeg"),
        (b"GIF89a..", "image/gif"),
        (b"GIF87a..", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
def test_types_by_magic_bytes(data: bytes, media_type: str) -> None:
    text = base64.b64encode(data).decode()
    body = chat({"type": "image_base64", "image_base64": text})

    fix_parts(body, PASS)

    assert body == chat(part(f"data:{media_type};base64,{text}"))


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "image_base64", "image_base64": base64.b64encode(b"RIFF....WAVE").decode()},
        {"type": "image_base64", "image_base64": "@@@"},
        {"type": "image_base64", "image_base64": ""},
        {"type": "image_base64", "image_base64": "ü"},
        {"type": "image_base64", "image_base64": None},
        {"type": "image_base64"},
        {"type": "image_base64", "image_base64": "data:text/html;base64,PGI+"},
        part("data:image/png;base64,"),
        part("data:image/png;base64"),
        part("data:image/png;base64,AAAAA"),
        part("data:"),
        {"type": "image", "source": {"type": "base64", "media_type": "text/html", "data": B64}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "@@@"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": 5}},
    ],
)
def test_images_that_are_none(bad: dict) -> None:
    assert refused(chat(bad)) == ("invalid_image_url", "messages")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat({"image_url": "file:///x"}), "messages"),  # vLLM needs no type
        (chat({"type": "text", "text": "x", "video_url": {"url": "/x.mp4"}}), "messages"),
        (chat({"type": "audio_url", "audio_url": "/x.wav"}), "messages"),
        (chat({"type": "image_url", "image_url": ["file:///x"]}), "messages"),
        (chat({"type": "image", "source": {"type": "url", "url": "file:///x"}}), "messages"),
        (chat({"type": "image", "source": "file:///x"}), "messages"),
        (chat({"type": "document", "source": {"type": "url", "url": "file:///x"}}), "messages"),
        (chat({"type": "tool_result", "content": [{"type": "image", "source": {"url": "/x"}}]}), "messages"),
        ({"messages": [{"role": "user", "content": part("file:///x")}]}, "messages"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///x"}]}]}, "input"),
        ({"input": [{"type": "function_call_output", "output": [{"image_url": "/x"}]}]}, "input"),
        ({"input": [{"type": "input_file", "file_url": "file:///x"}]}, "input"),
        ({"input": [{"text": "a", "image": "/x.png"}]}, "input"),  # SGLang's multimodal embeddings
        ({"documents": {"content": [part("file:///x")]}}, "documents"),  # vLLM's rerank and score
        ({"data_1": {"content": [part("file:///x")]}}, "data_1"),
    ],
)
def test_every_place_where_an_engine_would_look(body: dict, param: str) -> None:
    assert refused(body) == ("unsupported_value", param)


def test_responses_input() -> None:
    body = {"input": [{"role": "user", "content": [{"type": "image_base64", "image_base64": B64}]}]}

    assert fix_parts(body, PASS) is True
    assert body["input"][0]["content"] == [{"type": "input_image", "image_url": DATA_URL}]


def test_depth_is_no_problem() -> None:
    body: dict = part("file:///x")
    for _ in range(5000):
        body = {"content": [body]}

    assert refused({"messages": [body]}) == ("unsupported_value", "messages")


# -- needs_look ----------------------------------------------------------------------------------------------

MEDIA = [
    part("file:///x"),
    {"image_url": "x"},
    {"type": "image_base64", "image_base64": B64},
    {"type": "image_base64"},
    {"type": "video_url", "video_url": "x"},
    {"type": "audio_url", "audio_url": {"url": "x"}},
    {"type": "image", "source": {"type": "url", "url": "x"}},
    {"type": "document", "source": {"type": "url", "url": "x"}},
    {"file_url": "x"},
    {"text": "a", "image": "x"},
    {"text": "a", "video": "x"},
    {"text": "a", "audio": "x"},
]


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """That value in any spelling that JSON has for it."""
    blank = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, dict):
        pairs = [f"{draw(spelled(k))}{blank}:{blank}{draw(spelled(v))}" for k, v in value.items()]
        return "{" + blank + f"{blank},".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(draw(spelled(v)) for v in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    escaped = draw(st.sets(st.integers(0, max(len(value) - 1, 0)), max_size=3))
    form = draw(st.sampled_from(["\\u{:04x}", "\\u{:04X}"]))
    return (
        '"' + "".join(form.format(ord(c)) if i in escaped else json.dumps(c)[1:-1] for i, c in enumerate(value)) + '"'
    )


@given(st.data(), st.sampled_from(MEDIA))
def test_needs_look_notices_media_in_any_spelling(data: st.DataObject, media: dict) -> None:
    body = data.draw(spelled(chat(media))).encode()
    assert load_object(body) == chat(media)

    assert needs_look(members(body))


@pytest.mark.parametrize("word", ["image_url", "image_base64", "source", "image", "video", "audio", "file_url"])
def test_needs_look_notices_any_one_escape(word: str) -> None:
    for place, character in enumerate(word):
        for form in ("\\u{:04x}", "\\u{:04X}"):
            spelling = word[:place] + form.format(ord(character)) + word[place + 1 :]
            body = f'{{"messages":[{{"content":[{{"{spelling}":"x"}}]}}]}}'.encode()
            assert load_object(body) == chat_with(word)
            assert needs_look(members(body)), spelling


def chat_with(member: str) -> dict:
    return {"messages": [{"content": [{member: "x"}]}]}


words = st.sampled_from(
    ["text", "image", "image_url", "image_base64", "source", "url", "type", "audio", "x", "file:///x", B64]
)
parts = st.recursive(words | st.none(), lambda inner: st.dictionaries(words, inner, max_size=3), max_leaves=6)


@given(st.data(), parts)
def test_what_needs_no_look_would_not_be_touched(data: st.DataObject, anything: Any) -> None:
    text = data.draw(spelled(chat(anything))).encode()
    body = load_object(text)
    try:
        touched = fix_parts(body, PASS)
    except ApiError:
        touched = True

    assert needs_look(members(text)) or not touched


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"image_url, source and the like"}]}',
        b'{"messages":[{"content":"\\u00e9\\u4e2d\\u003cb\\u003e \\u0026"}]}',
        b'{"messages":[{"content":"{\\"source\\": \\"audio\\"}"}]}',
        b'{"url":"x","sources":[]}',
    ],
)
def test_ordinary_bodies_need_no_look(body: bytes) -> None:
    assert not needs_look(members(body))
