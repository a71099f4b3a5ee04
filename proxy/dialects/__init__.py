"""Wire formats, one package each, sans-IO: bytes in, bytes out; no socket, no clock, no asyncio."""
