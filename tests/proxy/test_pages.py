"""A gateway without keys and the web pages that a browser on its machine runs: who is refused, and who must not be."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.errors import ApiError
from proxy.pages import Pages, host_name, only_here
from proxy.reading import Cors
from proxy.settings import SettingsError, load_settings
from tests.faults.support import CHAT_PATH, REPLY
from tests.proxy.harness import Got, Line, Running, engine, gateway, one_backend

LOCAL = ("http://localhost", "http://127.0.0.1", "http://[::1]")
CHAT = b'{"model": "pub", "messages": [{"role": "user", "content": "hi"}]}'


def refused(headers: dict[str, str], *names: str, here: bool = True, origins: tuple[str, ...] = LOCAL) -> str:
    """The error's code; empty where it is let through."""
    pages = Pages(Cors(origins).allows, names, here=here)
    try:
        pages.check({name.encode(): value.encode() for name, value in headers.items()})
    except ApiError as exc:
        return str(exc.code)
    return ""


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000", "127.0.0.1", "localhost:8000", "LOCALHOST", "localhost.", "[::1]:8000", "[::1]",
        "10.0.0.5:80", "[fe80::1]:8000", "illm:8000", "gateway", "box.local:8000",
        "host.docker.internal:8000", "app.localhost", "",
    ],
)  # fmt: skip
def test_names_that_are_nobody_elses(host: str) -> None:
    assert refused({"host": host}) == ""
    assert refused({"host": host, "origin": "http://localhost:5173"}) == ""


FOREIGN = [
    "evil.example:8000",
    "evil.example",
    "127.0.0.1.evil.example",
    "evil.example.",
    "local.evil.example",
    "a.b:1",
]


@pytest.mark.parametrize("host", FOREIGN)
def test_names_that_may_be_a_pages(host: str) -> None:
    assert refused({"host": host}) == "host_not_allowed"
    assert refused({"host": host}, here=False) == "", "others reach it by names of their own"
    assert refused({"host": host}, host_name(host)) == "", "the setting"
    assert refused({"host": host}, "*") == ""
    assert refused({"host": host, "via": "1.1 Caddy"}) == "", "no page can send that"


def test_names_below_another() -> None:
    assert refused({"host": "a.b.example:1"}, "*.example") == ""
    assert refused({"host": "example.com"}, "*.example.com") == "host_not_allowed"
    assert refused({"host": "evilexample.com"}, "*.example.com") == "host_not_allowed"
    assert refused({"host": "AI.Example.com"}, "ai.example.com") == ""


def test_the_last_good_name_lets_no_other_pass() -> None:
    pages = Pages(Cors(LOCAL).allows, (), here=True)
    pages.check({b"host": b"127.0.0.1:8000"})
    with pytest.raises(ApiError):
        pages.check({b"host": b"evil.example"})
    with pytest.raises(ApiError):
        pages.check({b"host": b"evil.example"})
    pages.check({b"host": b"evil.example", b"via": b"1.1 x"})
    with pytest.raises(ApiError):
        pages.check({b"host": b"evil.example"})


# -- origins ---------------------------------------------------------------------------------------------------------

HERE = "127.0.0.1:8000"


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(
    ("origin", "host", "code"),
    [
        ("https://evil.example", HERE, "origin_not_allowed"),
        ("http://evil.example:8000", "localhost:8000", "origin_not_allowed"),
        ("null", HERE, "origin_not_allowed"),  # a sandboxed frame of any page
        ("http://localhost.evil.example", HERE, "origin_not_allowed"),
        ("http://192.168.1.5:9000", "192.168.1.5:8000", "origin_not_allowed"),  # another server of that machine
        ("http://localhost:3000", HERE, ""),
        ("http://192.168.1.5", "192.168.1.5", ""),  # a proxy has both on one address
        ("http://192.168.1.5:8080", "192.168.1.5", ""),  # and leaves the port out
        ("http://box:8080", "box:8080", ""),
        ("app://obsidian.md", HERE, ""),
        ("chrome-extension://abcdef", HERE, ""),
        ("vscode-webview://abc", HERE, ""),
        ("tauri://localhost", HERE, ""),
    ],
)
def test_origins(origin: str, host: str, code: str, here: bool) -> None:
    assert refused({"host": host, "origin": origin}, here=here) == code


def test_a_page_that_made_its_name_point_here_is_not_the_same_origin() -> None:
    rebound = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
    assert refused(rebound) == "host_not_allowed"
    assert refused(rebound, here=False) == "origin_not_allowed", "as in a container whose port is on loopback"


def test_origins_that_the_settings_allow() -> None:
    asked = {"host": HERE, "origin": "https://chat.example.com"}
    assert refused(asked, origins=("https://chat.example.com",)) == ""
    assert refused(asked, origins=("*",)) == ""


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_who_reaches_an_address(host: str, here: bool) -> None:
    assert only_here(host) == here


# -- a gateway -------------------------------------------------------------------------------------------------------


async def answers(_: Got, line: Line) -> None:
    await line.reply(200, REPLY)


@contextlib.asynccontextmanager
async def serving(server: dict[str, Any]) -> AsyncIterator[Running]:
    async with engine(answers) as upstream, gateway(one_backend(upstream.root) | {"server": server}) as gate:
        yield gate


async def test_a_page_cannot_drive_a_gateway_without_keys() -> None:
    async with serving({}) as gate:
        said = await gate.client.post(
            CHAT_PATH, content=CHAT, headers={"origin": "https://evil.example", "content-type": "text/plain"}
        )
        told = said.json()["error"]
        assert (said.status_code, told["code"], told["type"]) == (403, "origin_not_allowed", "invalid_request_error")
        assert "server.cors_origins (ILLM_SERVER__CORS_ORIGINS)" in told["message"]
        assert "access-control-allow-origin" not in said.headers
        assert said.headers["x-request-id"]
        for path in ("/v1/models", "/metrics"):
            assert (await gate.client.get(path, headers={"origin": "https://evil.example"})).status_code == 403


async def test_nor_by_a_name_of_its_own() -> None:
    async with serving({}) as gate:
        for method, path in (("GET", "/v1/models"), ("POST", CHAT_PATH)):
            said = await gate.client.request(method, path, content=CHAT, headers={"host": "evil.example:8000"})
            assert (said.status_code, said.json()["error"]["code"]) == (403, "host_not_allowed")
            assert "server.allowed_hosts (ILLM_SERVER__ALLOWED_HOSTS)" in said.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": socket.gethostname()},
        {"host": "ai.example.com"},
        {"host": "illm:8000"},
        {"origin": "http://localhost:3000"},
        {"origin": "https://chat.example.com"},
    ],
)
async def test_who_may(headers: dict[str, str]) -> None:
    server = {"allowed_hosts": ["AI.example.com"], "cors_origins": [*LOCAL, "https://chat.example.com"]}
    async with serving(server) as gate:
        assert (await gate.client.post(CHAT_PATH, content=CHAT, headers=headers)).status_code == 200


async def test_keys_are_enough() -> None:
    async with serving({"api_keys": ["k"]}) as gate:
        headers = {"host": "evil.example", "origin": "https://evil.example", "authorization": "Bearer k"}
        assert (await gate.client.post(CHAT_PATH, content=CHAT, headers=headers)).status_code == 200


async def test_health_is_open_and_tells_a_page_no_more_than_a_stranger() -> None:
    async with serving({}) as gate:
        for path in ("/livez", "/readyz", "/healthz", "/health"):
            said = await gate.client.get(path, headers={"host": "evil.example", "origin": "https://evil.example"})
            assert said.status_code == 200
        assert "version" not in (await gate.client.get("/healthz", headers={"host": "evil.example"})).text
        assert "version" in (await gate.client.get("/healthz")).text


@pytest.mark.parametrize("wrong", ["http://a.example", "a.example:80", "a b", "", "*.*", "a..b"])
def test_what_is_no_name(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"allowed_hosts"):
        load_settings(None, {}, {"server": {"allowed_hosts": [wrong]}})


def test_by_the_environment() -> None:
    settings = load_settings(None, {"ILLM_SERVER__ALLOWED_HOSTS": "ai.example.com,*.lan"})
    assert settings.server.allowed_hosts == ("ai.example.com", "*.lan")
