"""A backend whose certificate a private authority has signed: probes and requests trust the same.

`tests/data/tls` has that authority's certificate, and a server's of 127.0.0.1 with its key; both hold until 2120.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from proxy.ask import asking
from proxy.discovery import probe
from tests.faults.support import CHAT, ok
from tests.proxy.harness import engine, gateway, one_backend, until

TLS = Path(__file__).parents[1] / "data" / "tls"


@pytest.fixture
def server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    return context


async def test_an_authority_that_is_named_is_trusted(server: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "authority.pem"))
    async with engine(ok, tls=server) as upstream, gateway(one_backend(upstream.root)) as gate:
        await until(lambda: gate.gateway.registry.backends["b"].state == "ready")
        reply = await gate.client.post("/v1/chat/completions", json=CHAT)

        assert (reply.status_code, reply.json()["model"]) == (200, "pub")


async def test_any_other_is_not(server: ssl.SSLContext) -> None:
    async with engine(ok, tls=server) as upstream, gateway(one_backend(upstream.root)) as gate:
        with asking() as asker:
            found = await probe(asker, upstream.root, "vllm", None, 5.0)
        reply = await gate.client.post("/v1/chat/completions", json=CHAT)

        assert (found.state, found.detail[:10]) == ("down", "TLS failed")
        assert reply.status_code == 503
        assert "TLS with 127.0.0.1" in reply.json()["error"]["message"]
        assert upstream.got == []
