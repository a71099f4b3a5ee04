"""What a Python server costs before it proxies anything: uvicorn, set up as the gateway sets it up, answering the
stand-in's constants itself. Run as `python -m benchmarks.floor PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn

from benchmarks.upstream import BODY, CHUNKS, LAST, PACE, TOKEN


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if b'"stream":true' in body:
        await _stream(send)
        return
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": BODY})


async def _stream(send: Any) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for number in range(1, CHUNKS):
        await send({"type": "http.response.body", "body": TOKEN, "more_body": True})
        await asyncio.sleep(begin + number * PACE - loop.time())
    await send({"type": "http.response.body", "body": LAST})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=2048,
    )
