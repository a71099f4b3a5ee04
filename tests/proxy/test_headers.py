"""Which headers pass, in which direction, and whose request id counts."""

from __future__ import annotations

import pytest

from proxy.headers import for_client, for_upstream, named, new_id, offered_id


@pytest.mark.parametrize("offered", [b"a", b"A-z_0.9", b"x" * 128])
def test_a_harmless_id_is_taken(offered: bytes) -> None:
    assert offered_id(offered) == offered


@pytest.mark.parametrize("offered", [None, b"", b"a b", b"a\nb", b"x" * 129, "é".encode(), b'"a"', b"a\n"])
def test_any_other_is_not(offered: bytes | None) -> None:
    assert offered_id(offered) == b""


def test_a_new_id_is_harmless_and_another_each_time() -> None:
    made = new_id()

    assert offered_id(made) == made
    assert made != new_id()


PASS = [b"accept", b"accept-language", b"user-agent", b"traceparent", b"tracestate", b"baggage", b"x-session-id"]
SECRET = [b"authorization", b"x-api-key", b"api-key", b"cookie", b"proxy-authorization", b"x-forwarded-for"]
WRONG = [b"host", b"content-length", b"content-type", b"accept-encoding", b"transfer-encoding", b"connection",
         b"upgrade", b"te", b"expect", b"x-request-id", b"origin", b"referer"]  # fmt: skip


@pytest.mark.parametrize("name", PASS)
def test_what_an_engine_may_see(name: bytes) -> None:
    assert for_upstream([(name, b"v")]) == name + b": v\r\n"


@pytest.mark.parametrize("name", SECRET + WRONG)
def test_what_it_may_not(name: bytes) -> None:
    assert for_upstream([(name, b"v"), (b"accept", b"*/*")]) == b"accept: */*\r\n"


@pytest.mark.parametrize(
    "name", [b"retry-after", b"x-compute-time", b"openai-processing-ms", b"cache-control", b"etag"]
)
def test_what_a_client_may_see(name: bytes) -> None:
    assert for_client([(name, b"v")], {name: b"v"}) == [(name, b"v")]


@pytest.mark.parametrize(
    "name",
    [
        b"set-cookie", b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"content-encoding",
        b"content-type", b"server", b"date", b"x-request-id", b"location", b"vary", b"access-control-allow-origin",
        b"access-control-anything", b"strict-transport-security", b"trailer",
    ],
)  # fmt: skip
def test_what_is_ours_to_say(name: bytes) -> None:
    assert for_client([(name, b"v")], {name: b"v"}) == []


def test_the_first_of_a_name_counts() -> None:
    assert named([(b"a", b"1"), (b"b", b"2"), (b"b", b"3")]) == {b"a": b"1", b"b": b"2"}
