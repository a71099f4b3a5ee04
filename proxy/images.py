"""Images from the network, for engines that can't fetch them themselves: which URLs may be fetched, and the fetching.

A URL in a request must not reach what its sender can't reach. So the name is resolved once, every address it has must
be public, and the connection goes to exactly the address that was checked; each redirect starts over. What fails is
told without addresses or what a server answered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urljoin, urlsplit

if TYPE_CHECKING:
    import httpx  # 6 MB, for gateways that fetch images only: imported where the first one is

from proxy.errors import ApiError, error
from proxy.settings import ImageSettings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[Address]]]

REDIRECTS: Final = 3
TOTAL: Final = 10.0  # seconds, redirects and all
MAX_BYTES: Final = 20 * 1000 * 1000
NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
# The beginning of a file -> its media type: what the bytes show counts, not what a server says of them.
MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


class ImageFetcher:
    """Called with a URL, gives media type and bytes; raises a 400 for everything else. Whoever makes it calls
    `aclose`."""

    def __init__(self, settings: ImageSettings, resolve: Resolve | None = None) -> None:
        self._client: httpx.AsyncClient | None = None  # made for the first URL
        self._settings = settings
        self._resolve = resolve or resolved

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def __call__(self, url: str) -> tuple[str, bytes]:
        import httpx

        if self._client is None:
            self._client = _new_client()
        try:
            async with asyncio.timeout(TOTAL):
                return await self._follow(self._client, url)
        except TimeoutError:
            raise refused(f"it took longer than {TOTAL:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError):
            raise refused("its server can't be reached or broke off") from None

    async def _follow(self, client: httpx.AsyncClient, url: str) -> tuple[str, bytes]:
        for _ in range(REDIRECTS + 1):
            parts = checked(url, self._settings.ports)
            location, data = await _get(client, parts, await self._address(parts))
            if location is None:
                return media_type(data), data
            url = urljoin(url, location)
        raise refused(f"it redirects more than {REDIRECTS} times")

    async def _address(self, parts: SplitResult) -> Address:
        assert parts.hostname is not None
        addresses = await self._resolve(parts.hostname, _port(parts))
        if not addresses:
            raise refused("its host has no address")
        if not self._settings.allow_private and not all(is_public(address) for address in addresses):
            raise refused("its host is not on the public internet")
        return addresses[0]


def _new_client() -> httpx.AsyncClient:
    """It stores no cookie (httpx would send one server's to the next), ignores proxies and .netrc of the environment,
    follows no redirect, and trusts the system's certificates or `SSL_CERT_FILE`, all as the data path does."""
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    import httpx

    jar, trust = CookieJar(DefaultCookiePolicy(allowed_domains=[])), ssl.create_default_context()
    return httpx.AsyncClient(verify=trust, cookies=jar, trust_env=False, follow_redirects=False)


async def _get(client: httpx.AsyncClient, parts: SplitResult, address: Address) -> tuple[str | None, bytes]:
    """Where it redirects to, or the body."""
    host = f"[{address}]" if address.version == 6 else str(address)
    url = parts._replace(netloc=f"{host}:{_port(parts)}", fragment="").geturl()
    headers = {"host": parts.netloc, "accept": "image/*", "user-agent": "illm"}
    headers["connection"] = "close"  # another host at this address must not get a connection checked for this one
    extensions = {"sni_hostname": parts.hostname} if parts.scheme == "https" else {}
    async with client.stream("GET", url, headers=headers, extensions=extensions) as response:
        if response.is_redirect:
            return response.headers.get("location", ""), b""
        if response.status_code != 200:
            raise refused("its server doesn't give it out")
        return None, await _bounded(response)


async def resolved(host: str, port: int) -> list[Address]:
    """Every address of a host, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(address[4][0]).partition("%")[0]) for address in found]


def checked(url: str, ports: tuple[int, ...]) -> SplitResult:
    """The URL's parts. Raises where its form alone forbids it."""
    try:
        parts = urlsplit(url)
        port = _port(parts)
    except ValueError:
        raise refused("it is not a valid URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refused("only http and https URLs are fetched")
    if parts.username is not None or parts.password is not None:
        raise refused("it holds a user name or password")
    if port not in ports:
        raise refused(f"its port is none of {', '.join(map(str, ports))}")
    return parts


def is_public(address: Address) -> bool:
    """Is it routed on the internet? IPv6 forms that carry an IPv4 address are judged by that."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in NAT64):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def media_type(data: bytes) -> str:
    """By magic number. Raises for what is no PNG, JPEG, GIF or WebP."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    for magic, name in MAGIC:
        if data.startswith(magic):
            return name
    raise refused("it is no PNG, JPEG, GIF or WebP image")


def refused(why: str) -> ApiError:
    return error(
        "invalid_image_url", f"An image URL can't be used: {why}. Send the image as a data: URL.", param="messages"
    )


async def _bounded(response: httpx.Response) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_BYTES:
            raise refused(f"it is larger than {MAX_BYTES // 1_000_000} MB")
    return bytes(data)


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
