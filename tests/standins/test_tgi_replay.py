"""The requests that were posted to a real TGI router, posted to the stand-in: the same answers, but for what is listed.

Statuses, the headers that matter, members and types always; values too where the request determines them.
"""

from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection

import pytest

from tests.engines.process import wait_until
from tests.standins.captures import Captured, curl_files, differences, parts, post, surveys
from tests.standins.support import StandIn

SMALL = ("--max-input-tokens", "512", "--max-total-tokens", "1024")
KEY = ("--api-key", "sk-tgi", "--max-concurrent", "1")
ROUTERS = {
    "main": SMALL,
    "roomy": ("--max-input-tokens", "2048", "--max-total-tokens", "4096"),
    "api key, 1 concurrent": (*SMALL, *KEY),
    "4096 total tokens": (
        "--max-input-tokens",
        "2048",
        "--max-total-tokens",
        "4096",
        "--bos",
        "none",
        "--endless-delay",
        "0",
    ),
    "no template, no grammars": (*SMALL, "--template", "none", "--no-grammars"),
    "vision": (*SMALL, "--vision"),
    "whitespace": (*SMALL, "--template", "whitespace"),
}
PORTS = {"18301": "main", "18302": "api key, 1 concurrent", "18303": "4096 total tokens", "18307": "whitespace"}
PORTS |= {"18304": "no template, no grammars", "18305": "vision", "18306": "vision"}
HEADERS = ("content-type", "cache-control", "x-accel-buffering", "x-prompt-tokens", "x-generated-tokens", "allow")

# Documented differences: of these members only the type is compared.
ALWAYS = {"created", "seed"}
WORDS = {"id", "text", "generated_text", "content", "x-generated-tokens"}  # the captures' model spoke at random
COUNTS = {"prompt_tokens", "total_tokens", "x-prompt-tokens"}  # longer prompts split into other pieces
DIFFERENT = {
    "bos_twice": WORDS,
    "vision_generate": WORDS,
    "vision_off_plain_text": WORDS,
    "vision_defused": WORDS,
    "vision_alt_text": WORDS,
    "vision_mime_other": WORDS,
    "v1_chat_empty_messages": WORDS,
    "v1_chat_empty_messages 2": WORDS,
    "generate_top_n_tokens": {"top_tokens"},  # the alternatives are made up
    "stream_top_n_tokens": {"top_tokens"},
    "generate_best_of_top_n": {"top_tokens"},
    "stream_keep_alive": {"input_length"},
    "chat_tokenize_forced_tool": {"tokenize_response"},
    "segments_above_the_context": {"x-prompt-tokens"},  # the prompt has to say that no end is wanted
    "segments_max_new_tokens_1030": {"x-prompt-tokens"},
    "v1_chat_tools_history_uuid": {"id"},
}
NOT_REPLAYED = {
    "metrics": "only the gauges that the gateway reads are there",
    "key_none_docs": "the stand-in has no description of itself",
    "stream_keep_alive": "takes 17 s; test_faults.py has a shorter one",
    "chat_tokenize_forced_tool_tools_template": "a template of its own",
    "crash_recursive_schema": "test_tgi_own.py",
}


def _cases() -> dict[str, Captured]:
    found = {f"file-{each.name}": each for each in curl_files("tgi")}
    whole = {each.name for each in found.values()}
    found |= {f"survey-{each.name}": each for each in surveys("tgi") if each.name not in whole}
    return {name: each for name, each in found.items() if each.name not in NOT_REPLAYED}


CASES = _cases()


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StandIn]]:
    folder = tmp_path_factory.mktemp("tgi")
    started: dict[str, StandIn] = {}
    try:
        for name, options in ROUTERS.items():
            started[name] = StandIn("tgi", folder, options)
        yield started
    finally:
        for each in started.values():
            each.stop()


def prepared(captured: Captured) -> tuple[str, Captured, dict[str, str]]:
    """The router to ask, the request as it is posted, and the headers that surveys don't name."""
    where = PORTS.get(captured.where, captured.where)
    if where == "main" and "tools" in captured.body:
        where = "roomy"  # tool prompts split into more pieces than in the captures
    headers = {"content-type": "application/json"} if captured.method == "POST" else {}
    if captured.name in ("err_wrong_content_type", "err_no_content_type"):
        headers["content-type"] = "text/plain"
    if where == "api key, 1 concurrent" and not captured.name.startswith(("key_none", "key_missing", "key_wrong")):
        headers["authorization"] = "bearer SK-TGI" if captured.name == "key_case" else "Bearer sk-tgi"
    if captured.name.startswith("segments"):
        captured = replace(captured, body=captured.body.replace("Go on.", "Go on forever."))
    return where, captured, headers


@pytest.mark.parametrize("name", [name for name, each in CASES.items() if not each.name.startswith("overloaded")])
def test_same_answer(name: str, routers: dict[str, StandIn]) -> None:
    where, captured, headers = prepared(CASES[name])
    router = routers[where]
    if captured.name == "health_down":
        router.health(False)
    try:
        answer = post(router.base_url, captured, headers)
    finally:
        if captured.name == "health_down":
            router.health(True)
    loose = frozenset(ALWAYS | DIFFERENT.get(captured.name, set()) | (COUNTS if where == "roomy" else set()))
    assert compared(captured, answer.status, answer.headers, answer.text, loose) == []


@pytest.mark.parametrize("name", [name for name, each in CASES.items() if each.name.startswith("overloaded")])
def test_same_answer_when_overloaded(name: str, routers: dict[str, StandIn]) -> None:
    where, captured, headers = prepared(CASES[name])
    router = routers[where]
    split = HTTPConnection("127.0.0.1", router.port)
    try:
        body = '{"inputs": "x @@{\\"text\\": \\"x\\", \\"stall_at\\": 0}@@"}'
        split.request("POST", "/generate", body, {**headers, "content-type": "application/json"})
        wait_until(router.running, "the one place is taken")
        answer = post(router.base_url, captured, headers)
    finally:
        split.close()
    wait_until(lambda: not router.running(), "the place is free again")
    assert compared(captured, answer.status, answer.headers, answer.text, frozenset(ALWAYS)) == []


def compared(captured: Captured, status: int, headers: dict[str, str], text: str, loose: frozenset[str]) -> list[str]:
    found = [] if status == captured.status else [f"status {captured.status}, not {status}: {text[:200]}"]
    for name in HEADERS if captured.headers else ():
        real, made = captured.headers.get(name), headers.get(name)
        if real != made and not (name in loose and None not in (real, made)):
            found.append(f"{name}: {real}, not {made}")
    if captured.text is not None and not found:
        kind = headers.get("content-type", "")
        found += differences(parts(captured.text, kind), parts(text, kind), loose)
    return found
