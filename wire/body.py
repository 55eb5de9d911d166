"""Bodies of HTTP messages, read within a size and a deadline. Read next: `client.py`, `server.py`."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from protocol import Code, ProtocolError


async def read_at_most(stream: aiohttp.StreamReader, max_bytes: int) -> bytes | None:
    """The whole stream, or None as soon as it is longer than `max_bytes`."""
    data = bytearray()
    async for chunk in stream.iter_any():
        data += chunk
        if len(data) > max_bytes:
            return None
    return bytes(data)


async def read_body(request: web.Request, max_bytes: int, seconds: float) -> bytes:
    """A request's raw body within its size and total deadline.

    Raises:
        ProtocolError: `CONTENT_TYPE` (compressed), `BODY_TOO_LARGE`, `BODY_TIMEOUT` or `MALFORMED` (broken off).
    """
    if "Content-Encoding" in request.headers:
        raise ProtocolError(Code.CONTENT_TYPE, "compressed; the body must be plain")
    if (request.content_length or 0) > max_bytes:
        raise ProtocolError(Code.BODY_TOO_LARGE, f"{request.content_length} bytes declared, at most {max_bytes}")
    try:
        async with asyncio.timeout(seconds):
            body = await read_at_most(request.content, max_bytes)
    except TimeoutError:
        raise ProtocolError(Code.BODY_TIMEOUT, f"the body took more than {seconds:g} s") from None
    except (ConnectionError, web.RequestPayloadError):
        raise ProtocolError(Code.MALFORMED, "the body was broken off") from None
    if body is None:
        raise ProtocolError(Code.BODY_TOO_LARGE, f"more than {max_bytes} bytes")
    return body
