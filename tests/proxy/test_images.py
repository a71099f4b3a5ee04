"""Which image URLs are fetched, and what becomes of those that are: against a real server on loopback."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
import respx

from proxy.errors import ApiError
from proxy.images import MAX_BYTES, Address, ImageFetcher, checked, is_public, resolved
from proxy.settings import ImageSettings
from tests.proxy.harness import Engine, Got, Line, engine
from tests.vectors_support import load

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
POLICY = [case for case in load("unit_image_url_policy")["cases"] if case["url"].startswith("http")]


@pytest.mark.parametrize("case", POLICY, ids=lambda case: case["url"])
async def test_policy(case: dict[str, str]) -> None:
    """The contract's URLs, resolved by the system where they hold an address; names stand for a public host."""

    assert await _allowed(case["url"]) is case["image_urls=fetch"].startswith("allow")


async def _allowed(url: str) -> bool:
    try:
        host = checked(url, ImageSettings().ports).hostname
    except ApiError:
        return False
    assert host is not None
    return host == "example.com" or all(is_public(address) for address in await resolved(host, 80))


@pytest.mark.parametrize("public", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public(public: str) -> None:
    assert is_public(ipaddress.ip_address(public))


@pytest.mark.parametrize("private", ["2002:7f00:1::", "fec0::1", "ff02::1", "240.0.0.1", "::", "64:ff9b:1::a00:1"])
def test_not_public(private: str) -> None:
    assert not is_public(ipaddress.ip_address(private))


def _fetcher(upstream: Engine, seen: list[str] | None = None) -> ImageFetcher:
    async def resolve(host: str, _: int) -> list[Address]:
        if seen is not None:
            seen.append(host)
        return [ipaddress.ip_address("127.0.0.1")]

    port = urlsplit(upstream.root).port
    assert port is not None
    return ImageFetcher(ImageSettings(allow_private=True, ports=(port,)), resolve)


class Files(Engine):
    """Serves what a test puts in `files`: status, body, headers."""

    files: dict[str, tuple[int, bytes, dict[str, str]]]
    asked: list[Got]

    async def _about(self, got: Got, line: Line) -> None:
        self.asked.append(got)
        status, body, headers = self.files[got.path]
        await line.reply(status, body, "text/plain", **headers)


@pytest.fixture
async def files() -> AsyncIterator[Files]:
    one = Files()
    one.files, one.asked = {}, []
    await one.listen()
    yield one
    await one.close()


async def test_fetched(files: Files) -> None:
    """The media type is what the bytes show; the name goes along although the address was connected to."""
    files.files["/a.png"] = (200, PNG, {"set_cookie": "a=b"})
    seen: list[str] = []
    url = files.root.replace("127.0.0.1", "img.test") + "/a.png"

    got = await _fetcher(files, seen)(url)
    await _fetcher(files)(url)

    assert got == ("image/png", PNG)
    assert seen == ["img.test"]
    assert files.asked[0].headers["host"] == urlsplit(url).netloc
    assert "cookie" not in files.asked[1].headers


async def test_each_redirect_is_checked(files: Files) -> None:
    files.files["/a"] = (302, b"", {"location": "/b"})
    files.files["/b"] = (302, b"", {"location": "http://127.0.0.1:22/secret"})

    with pytest.raises(ApiError, match="port"):
        await _fetcher(files)(files.root + "/a")


async def test_redirects_end(files: Files) -> None:
    files.files["/a"] = (302, b"", {"location": "/a"})

    with pytest.raises(ApiError, match="more than 3 times"):
        await _fetcher(files)(files.root + "/a")

    assert len(files.asked) == 4


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>secret</html>", "no PNG"),
        (403, b"internal detail", "doesn't give it out"),
        (200, PNG + bytes(MAX_BYTES), "larger than 20 MB"),
    ],
)
async def test_refused(files: Files, status: int, body: bytes, why: str) -> None:
    """Said without addresses or what the server answered."""
    files.files["/a"] = (status, body, {})

    with pytest.raises(ApiError, match=why) as caught:
        await _fetcher(files)(files.root + "/a")

    assert "127.0.0.1" not in caught.value.message
    assert "secret" not in caught.value.message


async def test_private_addresses_are_refused_by_default() -> None:
    async with engine() as upstream:
        port = urlsplit(upstream.root).port
        assert port is not None
        with pytest.raises(ApiError, match="not on the public internet"):
            await ImageFetcher(ImageSettings(ports=(port,)))(upstream.root + "/v1/models")

        assert not upstream.connections


async def test_one_private_address_among_public_ones_is_enough() -> None:
    async def both(host: str, port: int) -> list[Address]:
        return [ipaddress.ip_address("93.184.215.14"), ipaddress.ip_address("10.0.0.1")]

    with pytest.raises(ApiError, match="not on the public internet"):
        await ImageFetcher(ImageSettings(), both)("http://example.com/a.png")


@respx.mock
async def test_a_connection_goes_to_the_address_that_was_checked_under_the_host_s_name() -> None:
    """TLS included: the certificate is the name's, and no other resolver is asked once more."""

    async def resolve(host: str, port: int) -> list[Address]:
        assert (host, port) == ("img.example", 443)
        return [ipaddress.ip_address("2606:4700::1111")]

    route = respx.get("https://[2606:4700::1111]:443/a.png?size=1").respond(content=PNG)
    fetcher = ImageFetcher(ImageSettings(), resolve)
    assert await fetcher("https://img.example/a.png?size=1#part") == ("image/png", PNG)
    await fetcher.aclose()

    (call,) = route.calls
    assert call.request.headers["host"] == "img.example"
    assert call.request.extensions["sni_hostname"] == "img.example"
