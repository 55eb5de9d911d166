"""Asking one peer over signed HTTP: every way in which it can fail is a code, none is an exception.

Read first: `signing.py`. Read next: `server.py`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from bittensor import http_auth
from yarl import URL

from protocol import Code, ProtocolError
from wire.body import read_at_most
from wire.codec import digest, parse_json
from wire.connections import Sliced
from wire.signing import ANSWER_HEADER, verify_answer
from wire.text import one_line

PARSER_LIMITS = {  # of aiohttp, both ways: one header line, how many, what is buffered
    "max_line_size": 4096,
    "max_field_size": 4096,
    "max_headers": 64,
    "read_bufsize": 16 * 1024,
}
MAX_REFUSAL_BYTES = 2048  # what is read of a peer's refusal
MAX_HEAD_BYTES = 16 * 1024  # what is parsed of a peer's reply to an ask before its headers are complete
MAX_CONNECTION_BYTES = 128 * 1024  # all that is taken of a peer in one ask: headers, chunk frames, answer
MAX_DETAIL_CHARS = 200
_UNICAST = [ipaddress.ip_network(text) for text in ("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "2000::/3")]
_SPECIAL = [  # IANA's special-purpose registries, by hand: what `ipaddress` takes for global differs between Pythons
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "168.63.129.16/32", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one ask.

    Attributes:
        code: `ACCEPTED` when a correctly signed answer arrived (what it says is the caller's to decode), else why not.
        detail: for people: printable ASCII, at most `MAX_DETAIL_CHARS`; empty when accepted.
        body: the answer, raw; empty unless accepted.
        signature: the miner's, 128 hex digits; empty unless accepted.
        request_digest: sha256 of the request's body, hex.
        nonce: of the request, unix nanoseconds.
        elapsed_seconds: from the signing of the request to the last byte of the answer, or to the failure.
        arrived_ns: when that last byte (or the failure) was seen, unix nanoseconds.
    """

    code: Code
    detail: str
    body: bytes
    signature: str
    request_digest: str
    nonce: int
    elapsed_seconds: float
    arrived_ns: int


def client_session(limit: int) -> aiohttp.ClientSession:
    """A client for `ask`: no cookies, no proxies from the environment, no decompression, small buffers.

    Every ask has a connection of its own: what a peer sends on an idle one would be parsed and kept.
    Use it as `async with client_session(n) as session`.

    Args:
        limit: connections open at once, 0 for any number. An ask that waits for one spends its deadline, so slow peers
            would cost the others: give it at least the number of simultaneous asks.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=limit, force_close=True),
        response_class=_Response,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),  # ask() has the only deadline
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
        skip_auto_headers=("User-Agent", "Accept"),
        auto_decompress=False,
        trust_env=False,
        **PARSER_LIMITS,
    )


class _Meter(Sliced):
    """Stands between a connection and aiohttp, and cuts off.

    aiohttp bounds headers and buffers, but parses whatever has arrived at once, and as many messages as there are in
    it: endless interim replies (100 Continue), or replies nobody asked for behind the first, would fill the memory and
    keep the loop busy until nobody is heard in time. Between two slices the reader sees that its reply is complete.
    """

    def __init__(self, response: aiohttp.ClientResponse, inner: Any, transport: asyncio.Transport):
        super().__init__()
        self.response, self.inner, self.transport = response, inner, transport
        self.pause_writing, self.resume_writing = inner.pause_writing, inner.resume_writing
        self.taken = 0
        self.over: ProtocolError | None = None

    def buffer_updated(self, size: int) -> None:
        self.taken += size
        if self.taken > MAX_CONNECTION_BYTES:
            return self._end(Code.REPLY_TOO_LARGE, f"more than {MAX_CONNECTION_BYTES} bytes with headers and framing")
        super().buffer_updated(size)

    def parse(self, piece: bytes) -> None:
        if self.response.closed:  # nobody reads any more
            return self.waiting.clear()
        try:
            super().parse(piece)
        except Exception as error:
            self._end(Code.UNREACHABLE, _unread(error))
        if self.response.status is None and self.fed > MAX_HEAD_BYTES:
            self._end(Code.REPLY_TOO_LARGE, f"more than {MAX_HEAD_BYTES} bytes before an answer")

    def _end(self, code: Code, why: str) -> None:
        self.over = self.over or ProtocolError(code, why)
        self.waiting.clear()
        self.transport.abort()


class _Response(aiohttp.ClientResponse):
    """A response that is metered from its first byte."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        self.meter = _Meter(self, connection.protocol, connection.transport)
        connection.transport.set_protocol(self.meter)
        with self.metered():
            await super().start(connection)
        return self

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Says why the connection was lost, when it was the meter."""
        try:
            yield
        except Exception:
            if not self.meter.over:
                raise
        if self.meter.over:
            raise self.meter.over


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    *,
    keypair: Any,
    receiver: str,
    total_seconds: float,
    max_reply_bytes: int,
    public_only: bool = False,
) -> Reply:
    """POST signed bytes to one peer and take its signed answer: one attempt, with a fresh nonce and signature.

    Never raises for what the peer does or where it says it is: that is the reply's code. The deadline is total, from
    connecting to the last byte.

    Args:
        session: from `client_session`.
        url: sent as it is, already percent-encoded.
        body: the request, JSON.
        keypair: the asking hotkey's sr25519 `Keypair` (`wallet.hotkey`).
        receiver: the peer's hotkey, ss58; it must have signed the answer.
        total_seconds: the deadline.
        max_reply_bytes: the longest answer taken, first by its declared length, then by counting.
        public_only: on a real network: connect to public IP addresses only, and to no names. Miners publish their
            addresses themselves, and this machine's own network is none of their business.

    Returns:
        A `Reply` with `ACCEPTED`, `TIMEOUT`, `UNREACHABLE` (no connection, broken off, or not HTTP),
        `ADDRESS_REFUSED` (`public_only`; nothing was sent), `HTTP_STATUS` (with the peer's own code), `REDIRECT`,
        `CONTENT_TYPE` (not JSON, or compressed), `REPLY_TOO_LARGE` or `REPLY_SIGNATURE`.
    """
    nonce, started, request_digest = time.time_ns(), time.monotonic(), digest(body)
    code, detail, answer, signature = Code.ACCEPTED, "", b"", ""
    try:
        target = _target(url)
        if public_only and not is_public(target.raw_host):
            raise ProtocolError(Code.ADDRESS_REFUSED, f"{target.raw_host} is not a public IP address")
        headers = http_auth.sign(
            keypair, method="POST", path=target.raw_path_qs, body=body, receiver_ss58=receiver, nonce_ns=nonce
        )
        async with asyncio.timeout(total_seconds):
            answer, signature = await _post(session, target, body, headers, max_reply_bytes)
    except ProtocolError as error:
        code, detail = error.code, error.detail
    except TimeoutError:
        code, detail = Code.TIMEOUT, f"no complete answer within {total_seconds:g} s"
    elapsed_seconds, arrived_ns = time.monotonic() - started, time.time_ns()
    sent = {"request_digest": request_digest, "nonce": nonce, "validator_hotkey": keypair.ss58_address}
    if code is Code.ACCEPTED and not verify_answer(**sent, miner_hotkey=receiver, body=answer, signature=signature):
        code, detail, answer, signature = Code.REPLY_SIGNATURE, f"not signed by {receiver} for this request", b"", ""
    return Reply(
        code, one_line(detail, MAX_DETAIL_CHARS), answer, signature, request_digest, nonce, elapsed_seconds, arrived_ns
    )


def is_public(host: str) -> bool:
    """Is this the literal of a public unicast IP address, that is, of none that leads into somebody's own network?

    Not so: names (they may resolve to anything), private, shared, loopback, link-local, multicast, unspecified and
    reserved addresses, and IPv6 forms that carry an IPv4 address.
    """
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    special = "%" in host or any(ip in network for network in _SPECIAL)  # %: on a link of this machine
    return not special and any(ip in network for network in _UNICAST)


def _target(url: str) -> URL:
    try:
        target = URL(url, encoded=True)
        if target.port is None:  # yarl reads the port, and objects to it, here
            raise ValueError("no host")
    except ValueError as error:
        raise ProtocolError(Code.UNREACHABLE, f"{url}: no address ({type(error).__name__})") from None
    return target


async def _post(
    session: aiohttp.ClientSession, target: URL, body: bytes, headers: dict[str, str], max_reply_bytes: int
) -> tuple[bytes, str]:
    """Body and signature header of the reply to one POST; ProtocolError when the reply is not what it should be."""
    try:
        response = await session.post(target, data=body, headers=headers, allow_redirects=False)
        try:
            with response.metered():
                taken = await _take(response, max_reply_bytes)
            return taken
        finally:
            response.close()
    except (ProtocolError, TimeoutError):
        raise
    except Exception as error:  # not only aiohttp's own: its parsers raise anything on what a peer can send
        raise ProtocolError(Code.UNREACHABLE, _unread(error)) from None


def _unread(error: Exception) -> str:
    """Of a library's error only its kind: its words go into receipts."""
    return f"no connection, or no HTTP that can be read ({type(error).__name__})"


async def _take(response: _Response, max_reply_bytes: int) -> tuple[bytes, str]:
    status, told = response.status, response.headers
    if 300 <= status < 400:
        raise ProtocolError(Code.REDIRECT, f"{status} to {told.get('Location', 'nowhere')}")
    if status != 200:
        refusal = await read_at_most(response.content, MAX_REFUSAL_BYTES)
        raise ProtocolError(Code.HTTP_STATUS, f"{status} {_refusal_text(refusal or b'')}".rstrip())
    # Raw: aiohttp's parser of this header raises, or takes seconds, on what a peer can put there.
    if told.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise ProtocolError(Code.CONTENT_TYPE, f"{told.get('Content-Type', 'none')}, not application/json")
    if told.get("Content-Encoding", "identity") != "identity":
        raise ProtocolError(Code.CONTENT_TYPE, f"compressed with {told['Content-Encoding']}")
    signatures = told.getall(ANSWER_HEADER, [])
    if len(signatures) != 1:
        raise ProtocolError(Code.REPLY_SIGNATURE, f"{len(signatures)} headers {ANSWER_HEADER}, one is expected")
    declared = response.content_length or 0
    if declared > max_reply_bytes:
        raise ProtocolError(Code.REPLY_TOO_LARGE, f"{declared} bytes declared, at most {max_reply_bytes}")
    answer = await read_at_most(response.content, max_reply_bytes)
    if answer is None:
        raise ProtocolError(Code.REPLY_TOO_LARGE, f"more than {max_reply_bytes} bytes")
    return answer, signatures[0]


def _refusal_text(body: bytes) -> str:
    """`code: detail` of a peer's refusal, or nothing when it is not one of ours."""
    try:
        refusal = parse_json(body, MAX_REFUSAL_BYTES)
        return f"{refusal['code']}: {refusal['detail']}"
    except (ProtocolError, KeyError, TypeError):
        return ""
