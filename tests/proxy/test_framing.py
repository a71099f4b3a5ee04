"""Frames come out the same wherever the bytes were cut."""

import base64
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.framing import Event, FrameTooLong, NdjsonParser, SseParser, complete_prefix

VECTORS = Path(__file__).parents[1] / "vectors" / "unit_sse_parser.json"
CASES = json.loads(VECTORS.read_text("utf-8"))["cases"]

# Streams made of what matters to the parser: line ends, colons, spaces, fields, a character of several bytes.
TOKENS = [
    b"\n",
    b"\r",
    b"\r\n",
    b":",
    b" ",
    b"data",
    b"data: ",
    b"event: ",
    b"error: ",
    b"id: ",
    b"x",
    "ü\u2028".encode(),
]
streams = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join)


def parse(reads: list[bytes]) -> list[Event]:
    parser = SseParser()
    events = [event for read in reads for event in parser.feed(read)]
    return events + parser.flush()


def feed_all(parser: SseParser | NdjsonParser, reads: list[bytes]) -> None:
    for read in reads:
        parser.feed(read)


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def expected(case: dict) -> list[Event]:
    return [Event(event["event"], event["data"], event.get("fields", {})) for event in case["events"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("how", ["as_given", "whole", "byte_by_byte"])
def test_sse_vectors(case: dict, how: str) -> None:
    given_reads = [base64.b64decode(read) for read in case["bytes_base64_per_read"]]
    whole = b"".join(given_reads)
    reads = {"as_given": given_reads, "whole": [whole], "byte_by_byte": bytewise(whole)}[how]

    assert parse(reads) == expected(case)


@given(streams, st.lists(st.integers(min_value=0), max_size=6))
def test_any_cut_gives_the_same_events(data: bytes, places: list[int]) -> None:
    assert parse(cut(data, places)) == parse([data])


@given(streams)
def test_line_ends_are_alike(data: bytes) -> None:
    lf = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    assert parse([data]) == parse([lf])
    assert parse([lf.replace(b"\n", b"\r\n")]) == parse([lf])
    assert parse([lf.replace(b"\n", b"\r")]) == parse([lf])


@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
def test_an_event_comes_as_soon_as_its_blank_line_begins(ends: bytes) -> None:
    parser = SseParser()

    first = parser.feed(b"data: 1" + ends + ends[:1])
    second = parser.feed(ends[1:] + b"data: 2" + ends + ends)

    assert first == [Event(None, "1")]
    assert second == [Event(None, "2")]


@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
def test_byte_by_byte_several_lines_stay_one_event(ends: bytes) -> None:
    parser = SseParser()
    stream = ends.join([b"data: a", b"data: b", b"event: e", b""])

    early = [event for byte in bytewise(stream) for event in parser.feed(byte)]

    assert early == []
    assert parser.feed(ends[:1]) == [Event("e", "a\nb")]


def test_fields_without_data() -> None:
    assert parse([b"id: 7\nretry: 10\n\nevent: ping\n\ndata\n\ndata:\n\n"]) == [Event(None, ""), Event(None, "")]
    assert parse([b"event: a\nerror: x\n\n"]) == [Event("a", None, {"error": "x"})]


def test_bom_is_skipped_at_the_start_only() -> None:
    bom = b"\xef\xbb\xbf"

    assert parse([bom[:1], bom[1:], b"data: 1\n\n" + bom + b"data: 2\n\n"]) == [
        Event(None, "1"),
        Event(None, None, {"\ufeffdata": "2"}),
    ]
    assert parse([bom[:2]]) == [Event(None, None, {"\ufffd": ""})]


def test_a_parser_is_empty_after_flush() -> None:
    parser = SseParser()
    parser.feed(b"data: 1")

    assert parser.flush() == [Event(None, "1")]
    assert parser.flush() == []


@pytest.mark.parametrize(
    "reads",
    [[b"data: 123456\n\n"], [b"data: 1\n\ndata: 123456\n\n"], [b"data: 123", b"4567"], [b":" + b"x" * 12]],
)
def test_sse_limit(reads: list[bytes]) -> None:
    with pytest.raises(FrameTooLong):
        feed_all(SseParser(limit=10), reads)


def test_sse_limit_is_for_one_event() -> None:
    assert len(SseParser(limit=10).feed(b"data: 1234\n\n" * 100)) == 100


# -- complete_prefix -----------------------------------------------------------------------------------------


@given(streams)
def test_complete_prefix_agrees_with_the_parser(data: bytes) -> None:
    end = complete_prefix(data)
    prefix, rest = data[:end], data[end:]
    inside = SseParser()

    assert inside.feed(prefix) == SseParser().feed(data), "nothing complete is left behind"
    assert inside.flush() == [], "nothing incomplete is taken along"
    assert parse([prefix]) + parse([rest]) == parse([data])


@given(streams)
def test_a_comment_fits_in_at_a_complete_prefix(data: bytes) -> None:
    end = complete_prefix(data)

    assert parse([data[:end] + b": keep-alive\n\n" + data[end:]]) == parse([data])


@given(streams, st.lists(st.integers(min_value=0), max_size=6))
def test_pieces_cut_at_complete_prefixes(data: bytes, places: list[int]) -> None:
    pieces, held = [], b""
    for read in cut(data, places):
        held += read
        end = complete_prefix(held)
        pieces.append(held[:end])
        held = held[end:]

    assert [event for piece in pieces for event in parse([piece])] + parse([held]) == parse([data])


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"", 0),
        (b"data: 1", 0),
        (b"data: 1\n", 0),
        (b"data: 1\r\n", 0),
        (b"data: 1\n\n", 9),
        (b"data: 1\n\ndata", 9),
        (b"data: 1\r\rdata", 9),
        (b"data: 1\r\n\r", 10),
        (b"data: 1\r\n\r\n", 11),
        (b"data: 1\r\n\r\nda\r\n", 11),
        (b"data: 1\n\r\n", 10),
        (b"\ndata: 2\n", 1),
        (b"\r\ndata: 2\r\n", 2),
        (b": x\n\n\n\ndata", 7),
    ],
)
def test_complete_prefix(data: bytes, end: int) -> None:
    assert complete_prefix(data) == end


# -- NDJSON --------------------------------------------------------------------------------------------------

ndjson = st.lists(st.sampled_from([b"\n", b"\r\n", b" ", b'{"a":1}', "\u2028\u0085".encode(), b"\t"]), max_size=30).map(
    b"".join
)


def lines(reads: list[bytes]) -> list[bytes]:
    parser = NdjsonParser()
    found = [line for read in reads for line in parser.feed(read)]
    return found + parser.flush()


@given(ndjson, st.lists(st.integers(min_value=0), max_size=6))
def test_ndjson_any_cut_gives_the_same_lines(data: bytes, places: list[int]) -> None:
    assert lines(cut(data, places)) == lines([data]) == [line for line in data.split(b"\n") if line.strip()]


def test_ndjson_lines() -> None:
    parser = NdjsonParser()

    assert parser.feed(b'{"a":1}\n\n \r\n{"b"') == [b'{"a":1}']
    assert parser.feed(b":2}") == []
    assert parser.flush() == [b'{"b":2}']
    assert parser.flush() == []


@pytest.mark.parametrize("reads", [[b"12345678901\n"], [b"123456", b"78901"], [b"1\n12345678901"]])
def test_ndjson_limit(reads: list[bytes]) -> None:
    with pytest.raises(FrameTooLong):
        feed_all(NdjsonParser(limit=10), reads)
