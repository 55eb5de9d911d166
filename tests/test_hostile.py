"""Hostile miners and unlucky ones: whole rounds of the real validator with every kind of bad answer at once.

Each round has the same honest miners. Whatever the others do, it ends, their reason is stored and shown, memory stays
bounded, the audit agrees, and the honest miners' queries, scores, reputations and weights are those of the round
without anybody else, digit for digit. The bad ones are raw sockets in a thread of their own, with keys, so that their
signatures are right wherever the attack needs it.
Run: `python -m pytest tests/test_hostile.py`. Read next: `subnets.py`; `test_wire.py` (each refusal on its own).
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import threading
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from subnets import (
    DEADLINE_SECONDS,
    ROOT,
    Handler,
    Subnet,
    a_job,
    accept,
    hotkey_of,
    keep,
    model,
    play_subnet,
    refuse,
    rows,
    standings,
    start,
    stored_lines,
    stored_standings,
    wait_for,
    write_meanwhile,
)

import validator
from markets.model import FIRST_BLOCK
from protocol import MAX_ANSWER_BYTES, MAX_TICK, MIN_TICK, Code, Position, RebalanceQuery
from spine import asking
from status.board import miner_name
from wire.client import MAX_CONNECTION_BYTES, MAX_HEAD_BYTES
from wire.codec import canonical, decode, digest, encode, to_plain
from wire.server import Gate, build_app, serve
from wire.signing import ANSWER_HEADER, answer_payload, local_keypair

PATIENCE_SECONDS = 2.0  # of an ask, in the place of 60
FLOOD_BYTES = 100_000_000
SOCKET_BYTES = 16 * 2**20  # more than two kernels' buffers take of a flood before its sender notices
ROUND = "job:evaluation:1767226500"
HONEST = ("broad", "mover", "keeper")


# ---------------------------------------------------------------------------------------------------------------------
# Peers of raw bytes


class Peers:
    """Miners that are raw servers in a thread of their own, so that nothing they do waits in the validator's loop.

    Args:
        behaviours: by miner's name, what it does with each connection.
        honest_first: each answers its first connection correctly, with *keep*.
    """

    def __init__(self, behaviours: Mapping[str, Behaviour], honest_first: bool = False):
        self.behaviours, self.honest_first = behaviours, honest_first
        self.sent, self.calls, self.ports = Counter(), Counter(), {}
        self.replies: dict[tuple[str, int], bytes] = {}  # the lender's, by what was asked
        self.honest = self.own = ""  # addresses of an honest miner and of the validator
        self._servers: dict[str, asyncio.Server] = {}
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Peers:
        self._thread.start()
        assert self._ready.wait(DEADLINE_SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._over = asyncio.Event()

        async def nothing(caller: str, body: bytes) -> bytes:
            raise AssertionError("the validator does not answer asks")

        gate = Gate(lambda: ({}, 0.0), min_stake_rao=0, allow=frozenset({hotkey_of("validator")}))
        app = build_app(keypair=local_keypair("validator-hotkey"), gate=gate, routes={"/rebalance": nothing})
        async with serve(app, "127.0.0.1", 0) as port:
            self.own = f"127.0.0.1:{port}"
            for name in self.behaviours:
                await self._listen(name, 0)
            self._ready.set()
            await self._over.wait()
            for server in self._servers.values():
                server.close()

    async def _listen(self, name: str, port: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = Connection(self, name, reader, writer)
            self.calls[name] += 1
            try:
                if self.honest_first and self.calls[name] == 1:
                    await connection.request()
                    await connection.send(connection.reply())
                else:
                    await self.behaviours[name](connection)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        self._servers[name] = await asyncio.start_server(connected, "127.0.0.1", port)
        self.ports[name] = self._servers[name].sockets[0].getsockname()[1]

    def hang_up(self, name: str) -> None:
        """Nothing listens there any more."""
        self._servers[name].close()

    def listen_again(self, name: str) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(name, self.ports[name]), self._loop).result()

    async def join(self, subnet: Subnet, store, chain, market) -> None:
        """Register all of them and publish their endpoints; `prepare` of `play_subnet`."""
        ledger = subnet.folder / "chain.sqlite3"
        found = rows(ledger, "SELECT address FROM neurons WHERE hotkey = ?", hotkey_of(HONEST[0]))
        self.honest = found[0][0] if found else ""
        for name in self.behaviours:
            await chain.register(hotkey_of(name), f"coldkey of {name}")
            address = ENDPOINTS.get(name, lambda peers, name=name: f"127.0.0.1:{peers.ports[name]}")(self)
            sql = "UPDATE neurons SET address = ? WHERE hotkey = ?"
            await write_meanwhile(ledger, sql, address, hotkey_of(name))
            subnet.validator.board.names[hotkey_of(name)] = name


class Connection:
    """One connection of the validator to a peer."""

    def __init__(self, peers: Peers, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.peers, self.name, self.reader, self.writer = peers, name, reader, writer
        self.key = local_keypair(f"{name}-hotkey")

    async def request(self) -> RebalanceQuery:
        """Read the ask."""
        self.head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        self.headers = dict(line.split(": ", 1) for line in self.head.split("\r\n")[1:-2])
        self.body = await self.reader.readexactly(int(self.headers["Content-Length"]))
        self.query = decode(RebalanceQuery, self.body, len(self.body))
        return self.query

    def signature(self, answer: bytes, nonce: int = 0) -> str:
        """What `ANSWER_HEADER` must carry."""
        nonce = nonce or int(self.headers["X-Bittensor-Nonce"])
        asker = self.headers["X-Bittensor-Hotkey"]
        own = self.key.ss58_address
        return self.key.sign(answer_payload(digest(self.body), nonce, asker, own, answer)).hex()

    def reply(self, answer: bytes | None = None, **changes: object) -> bytes:
        """A correct reply, with *keep* unless told otherwise; `changes` of its headers, None leaves one out."""
        answer = encode(keep(self.query)) if answer is None else answer
        headers = {
            "Content-Type": "application/json",
            "Content-Length": len(answer),
            ANSWER_HEADER: self.signature(answer),
        } | {name.replace("_", "-"): value for name, value in changes.items() if name != "status"}
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        return http(str(changes.get("status", "200 OK")), *lines, body=answer)

    async def send(self, data: bytes, pause_seconds: float | None = None) -> None:
        """All at once, or byte by byte."""
        pieces = [data] if pause_seconds is None else [data[n : n + 1] for n in range(len(data))]
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            self.peers.sent[self.name] += len(piece)
            if pause_seconds:
                await asyncio.sleep(pause_seconds)

    async def flood(self, first: bytes, piece: bytes) -> None:
        """`FLOOD_BYTES` in pieces of about 64 kB behind the first bytes."""
        piece *= max(1, 2**16 // len(piece))
        await self.send(first + piece)
        for _ in range(FLOOD_BYTES // len(piece)):
            await self.send(piece)


Behaviour = Callable[[Connection], Awaitable[None]]
Say = Callable[[RebalanceQuery], bytes]


def http(status: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def chunked(connection: Connection, extension: str = "", behind: str = "", **changes: object) -> bytes:
    """A correct reply in one chunk, with this extension, and these trailers behind it."""
    whole = connection.reply(Content_Length=None, Transfer_Encoding="chunked", **changes)
    head, answer = whole.split(b"\r\n\r\n", 1)
    framed = f"{len(answer):x}{extension}\r\n".encode() + answer + f"\r\n0\r\n{behind}\r\n".encode()
    return head + b"\r\n\r\n" + framed


def says(make: Callable[[Connection], bytes]) -> Behaviour:
    """Reads the ask, sends these bytes, hangs up."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.send(make(connection))

    return behave


def after(seconds: float, make: Callable[[Connection], bytes]) -> Behaviour:
    async def behave(connection: Connection) -> None:
        await connection.request()
        await asyncio.sleep(seconds)
        await connection.send(make(connection))

    return behave


def floods(make: Callable[[Connection], bytes], piece: bytes, pause_seconds: float = 0) -> Behaviour:
    """Reads the ask, sends these bytes, then the piece for 100 MB."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        first = make(connection)
        if pause_seconds:
            await connection.send(first)
            await asyncio.sleep(pause_seconds)
        await connection.flood(b"" if pause_seconds else first, piece)

    return behave


def dribbles(at_once: Callable[[bytes], int]) -> Behaviour:
    """A correct reply, from some byte on a byte at a time."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        reply = connection.reply()
        await connection.send(reply[: at_once(reply)])
        await connection.send(reply[at_once(reply) :], pause_seconds=0.05)

    return behave


def resets(after_bytes: Callable[[bytes], int]) -> Behaviour:
    """Breaks off in the middle of a correct reply."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        reply = connection.reply()
        await connection.send(reply[: after_bytes(reply)])
        await asyncio.sleep(0.02)
        connection.writer.transport.abort()

    return behave


async def never(connection: Connection) -> None:
    await connection.request()
    await asyncio.sleep(3600)


async def never_reads(connection: Connection) -> None:
    await asyncio.sleep(3600)


async def resets_at_once(connection: Connection) -> None:
    connection.writer.transport.abort()


async def resets_in_the_request(connection: Connection) -> None:
    await connection.reader.readuntil(b"\r\n")
    connection.writer.transport.abort()


async def speaks_first(connection: Connection) -> None:
    await connection.send(http("200 OK", "Content-Type: application/json", f"{ANSWER_HEADER}: {'ab' * 64}"))
    await connection.request()


async def hangs_up(connection: Connection) -> None:
    """Is not there any more at the next ask, nor at this one."""
    connection.peers.hang_up(connection.name)
    connection.writer.transport.abort()


async def lends(connection: Connection) -> None:
    """An honest miner, but its replies go to another one too."""
    await connection.request()
    reply = connection.peers.replies[connection.query.round_id, connection.query.block_number] = connection.reply()
    await connection.send(reply)


async def borrows(connection: Connection) -> None:
    """Another miner's body and signature."""
    query = await connection.request()
    while (query.round_id, query.block_number) not in connection.peers.replies:
        await asyncio.sleep(0.01)
    await connection.send(connection.peers.replies[query.round_id, query.block_number])


async def relays(connection: Connection) -> None:
    """Lets an honest miner answer, and passes that on as its own."""
    await connection.request()
    host, port = connection.peers.honest.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(connection.head.encode() + connection.body)
    await connection.send(await reader.read())
    writer.close()


def replays() -> Behaviour:
    """The reply to its first ask, or before it has one a reply to an ask of a second ago."""
    kept: dict[str, bytes] = {}

    async def behave(connection: Connection) -> None:
        await connection.request()
        answer, nonce = encode(keep(connection.query)), int(connection.headers["X-Bittensor-Nonce"])
        stale = connection.reply(answer, **{ANSWER_HEADER: connection.signature(answer, nonce - 10**9)})
        await connection.send(kept.setdefault(connection.name, stale))

    return behave


# ---------------------------------------------------------------------------------------------------------------------
# What each does, and what must be stored of it


@dataclass(frozen=True)
class Attack:
    """What a miner does; the code and the whole of the detail (a pattern) that must come of it."""

    behave: Behaviour
    code: Code
    detail: str


JSON = "Content-Type: application/json"
SIGNED = f"{ANSWER_HEADER}: {'ab' * 64}"
NOT_SIGNED = r"not signed by \w{48} for this request"
TOO_LONG = rf"more than ({MAX_ANSWER_BYTES} bytes|{MAX_CONNECTION_BYTES} bytes with headers and framing)"
FRAMED = rf"more than {MAX_CONNECTION_BYTES} bytes with headers and framing"
UNREAD = "no connection, or no HTTP that can be read"
NOT_HTTP = rf"{UNREAD} \(ClientResponseError\)"
GONE = rf"{UNREAD} \((ServerDisconnected|ClientOS|ClientConnectionReset|ConnectionReset|ClientConnector)Error\)"
BROKEN_OFF = rf"{UNREAD} \(ClientPayloadError\)"
OTHERS = r"401 auth_receiver: the request is for \w{48}, here is \w{48}"
LATE = f"no complete answer within {PATIENCE_SECONDS:g} s"
ANSI = "\x1b[2J\x1b[31m\r\n== fake: rank 1"
CHUNKED = http("200 OK", JSON, SIGNED, "Transfer-Encoding: chunked")


WIRE = {
    "garbage": Attack(says(lambda _: b"SSH-2.0-OpenSSH_9.6\r\n"), Code.UNREACHABLE, NOT_HTTP),
    "bytes": Attack(says(lambda _: bytes(range(256)) * 40), Code.UNREACHABLE, NOT_HTTP),
    "endless-garbage": Attack(floods(lambda _: b"", b"\r\n"), Code.REPLY_TOO_LARGE, r"more than \d+ bytes .*"),
    "never": Attack(never, Code.TIMEOUT, LATE),
    "never-reads": Attack(never_reads, Code.TIMEOUT, LATE),
    "late": Attack(after(PATIENCE_SECONDS + 0.5, Connection.reply), Code.TIMEOUT, LATE),
    "in-time": Attack(after(PATIENCE_SECONDS / 3, Connection.reply), Code.ACCEPTED, ""),
    "slow-header": Attack(dribbles(lambda _: 0), Code.TIMEOUT, LATE),
    "slow-body": Attack(dribbles(lambda reply: reply.index(b"\r\n\r\n") + 4), Code.TIMEOUT, LATE),
    "half-body": Attack(says(lambda c: c.reply(b"{}", Content_Length=9)), Code.UNREACHABLE, BROKEN_OFF),
    "100-mb-declared": Attack(
        floods(lambda c: http("200 OK", JSON, SIGNED, f"Content-Length: {FLOOD_BYTES}"), b"x"),
        Code.REPLY_TOO_LARGE,
        f"{FLOOD_BYTES} bytes declared, at most {MAX_ANSWER_BYTES}",
    ),
    "100-mb": Attack(floods(lambda c: http("200 OK", JSON, SIGNED), b"x"), Code.REPLY_TOO_LARGE, TOO_LONG),
    "chunks": Attack(floods(lambda _: CHUNKED, b"1000\r\n" + bytes(4096) + b"\r\n"), Code.REPLY_TOO_LARGE, TOO_LONG),
    "tiny-chunks": Attack(floods(lambda _: CHUNKED, b"1\r\nx\r\n"), Code.REPLY_TOO_LARGE, FRAMED),
    "chunk-extension": Attack(floods(lambda _: CHUNKED + b"2;", b"x"), Code.REPLY_TOO_LARGE, FRAMED),
    "trailers": Attack(floods(lambda _: CHUNKED + b"0\r\n", b"X-T: 1\r\n"), Code.UNREACHABLE, NOT_HTTP),
    "interim": Attack(
        floods(lambda _: b"", http("100 Continue")),
        Code.REPLY_TOO_LARGE,
        rf"more than {MAX_HEAD_BYTES} bytes before an answer|{FRAMED}",
    ),
    "long-header": Attack(floods(lambda _: b"HTTP/1.1 200 OK\r\nX: ", b"x"), Code.UNREACHABLE, NOT_HTTP),
    "headers": Attack(floods(lambda _: b"HTTP/1.1 200 OK\r\n", b"X-H: 1\r\n"), Code.UNREACHABLE, NOT_HTTP),
    "unasked": Attack(
        floods(Connection.reply, http("200 OK", "Content-Length: 0"), pause_seconds=0.1), Code.ACCEPTED, ""
    ),
    "bomb": Attack(
        says(lambda c: c.reply(gzip.compress(bytes(10**7)), Content_Encoding="gzip")),
        Code.CONTENT_TYPE,
        "compressed with gzip",
    ),
    "quiet-bomb": Attack(
        says(lambda c: c.reply(gzip.compress(bytes(10**7)))), Code.MALFORMED, "not JSON: it is no UTF-8"
    ),
    "bad-chunk": Attack(says(lambda _: CHUNKED + b"zz\r\n"), Code.UNREACHABLE, NOT_HTTP),
    "redirect": Attack(
        says(lambda c: http("307 Go", f"Location: http://{c.peers.honest}/rebalance", "Content-Length: 0")),
        Code.REDIRECT,
        r"307 to http://127.0.0.1:\d+/rebalance",
    ),
    "moved": Attack(
        says(lambda c: http("301 Go", f"Location: http://{c.peers.honest}/rebalance", "Content-Length: 0")),
        Code.REDIRECT,
        r"301 to http://127.0.0.1:\d+/rebalance",
    ),
    "html": Attack(
        says(lambda c: c.reply(Content_Type="text/html")), Code.CONTENT_TYPE, "text/html, not application/json"
    ),
    "no-type": Attack(says(lambda c: c.reply(Content_Type=None)), Code.CONTENT_TYPE, "none, not application/json"),
    "reset-at-once": Attack(resets_at_once, Code.UNREACHABLE, GONE),
    "reset-in-request": Attack(resets_in_the_request, Code.UNREACHABLE, GONE),
    "reset-in-status": Attack(resets(lambda _: 7), Code.UNREACHABLE, GONE),
    "reset-in-headers": Attack(resets(lambda _: 30), Code.UNREACHABLE, GONE),
    "reset-after-headers": Attack(resets(lambda r: r.index(b"\r\n\r\n") + 4), Code.UNREACHABLE, BROKEN_OFF),
    "reset-in-body": Attack(resets(lambda r: len(r) - 1), Code.UNREACHABLE, BROKEN_OFF),
    "hangs-up": Attack(hangs_up, Code.UNREACHABLE, GONE),
    "speaks-first": Attack(speaks_first, Code.REPLY_SIGNATURE, NOT_SIGNED),
    "another-key": Attack(
        says(lambda c: c.reply(**{ANSWER_HEADER: local_keypair("eve").sign(c.body).hex()})),
        Code.REPLY_SIGNATURE,
        NOT_SIGNED,
    ),
    "no-signature": Attack(
        says(lambda c: c.reply(**{ANSWER_HEADER: None})),
        Code.REPLY_SIGNATURE,
        f"0 headers {ANSWER_HEADER}, one is expected",
    ),
    "two-signatures": Attack(
        says(lambda c: c.reply(Server=f"x\r\n{SIGNED}")),
        Code.REPLY_SIGNATURE,
        f"2 headers {ANSWER_HEADER}, one is expected",
    ),
    "replays": Attack(replays(), Code.REPLY_SIGNATURE, NOT_SIGNED),
    "lends": Attack(lends, Code.ACCEPTED, ""),
    "borrows": Attack(borrows, Code.REPLY_SIGNATURE, NOT_SIGNED),
    "relays": Attack(relays, Code.HTTP_STATUS, OTHERS),
    "no-content": Attack(says(lambda _: http("204 No Content")), Code.HTTP_STATUS, "204"),
    "switches": Attack(
        says(lambda _: http("101 Switching Protocols", "Upgrade: websocket", "Connection: upgrade")),
        Code.HTTP_STATUS,
        "101",
    ),
    "long-refusal": Attack(floods(lambda _: http("500 Oops"), b"x"), Code.HTTP_STATUS, "500"),
    "painted-refusal": Attack(
        says(lambda _: http("403 No", JSON, body=canonical({"code": "busy", "detail": ANSI}))),
        Code.HTTP_STATUS,
        re.escape("403 busy: ?[2J?[31m??== fake: rank 1"),
    ),
    "painted-redirect": Attack(
        says(lambda _: http("302 Go", f"Location: {ANSI[:9]}")), Code.REDIRECT, re.escape("302 to ?[2J?[31m")
    ),
}

ODD = {  # heads and refusals that no library would write
    "type-continued": (lambda c: c.reply(Content_Type=";a*0*"), Code.CONTENT_TYPE, r";a\*0\*, not application/json"),
    "type-brackets": (
        lambda c: c.reply(Content_Type="application/json " + "(" * 1000),
        Code.CONTENT_TYPE,
        r"application/json \({183}",
    ),
    "type-escapes": (lambda c: c.reply(Content_Type='application/json;a="' + '\\"' * 1900), Code.ACCEPTED, ""),
    "type-twice": (lambda c: c.reply(Server="x\r\nContent-Type: text/html"), Code.ACCEPTED, ""),
    "type-bytes": (lambda c: c.reply(Content_Type="\x80"), Code.CONTENT_TYPE, r"\\x80, not application/json"),
    "length-endless": (lambda c: c.reply(Content_Length="9" * 4000), Code.UNREACHABLE, NOT_HTTP),
    "length-minus": (lambda c: c.reply(Content_Length="-1"), Code.UNREACHABLE, NOT_HTTP),
    "length-raised": (lambda c: c.reply(Content_Length="\u00b2"), Code.UNREACHABLE, NOT_HTTP),
    "length-twice": (lambda c: c.reply(Server="x\r\nContent-Length: 1"), Code.UNREACHABLE, NOT_HTTP),
    "length-and-chunks": (lambda c: c.reply(Transfer_Encoding="chunked"), Code.UNREACHABLE, NOT_HTTP),
    "chunked-twice": (
        lambda c: c.reply(Content_Length=None, Transfer_Encoding="chunked, chunked"),
        Code.UNREACHABLE,
        NOT_HTTP,
    ),
    "transfer-gzip": (lambda c: c.reply(Content_Length=None, Transfer_Encoding="gzip"), Code.ACCEPTED, ""),
    "chunk-endless": (lambda _: CHUNKED + b"F" * 40 + b"\r\nx", Code.UNREACHABLE, NOT_HTTP),
    "chunk-minus": (lambda _: CHUNKED + b"-1\r\nx\r\n", Code.UNREACHABLE, NOT_HTTP),
    "chunk-raised": (lambda _: CHUNKED + b"\xc2\xb2\r\nxx\r\n", Code.UNREACHABLE, NOT_HTTP),
    "encoding": (
        lambda c: c.reply(Content_Encoding="\u0130dentity"),
        Code.CONTENT_TYPE,
        r"compressed with \\u0130dentity",
    ),
    "cookies": (lambda c: c.reply(Set_Cookie="a=(" * 1000 + '"\\'), Code.ACCEPTED, ""),
    "status-long": (lambda _: http("2000000000000000000000 OK"), Code.UNREACHABLE, NOT_HTTP),
    "status-minus": (lambda _: http("-200 OK"), Code.UNREACHABLE, NOT_HTTP),
    "status-zero": (lambda _: http("000 OK"), Code.HTTP_STATUS, "0"),
    "status-raised": (lambda _: http("20\u00b2 OK"), Code.UNREACHABLE, NOT_HTTP),
    "version": (lambda _: b"HTTP/9.99 200 OK\r\n\r\n", Code.UNREACHABLE, NOT_HTTP),
    "version-text": (lambda _: b"HTTP/x 200 OK\r\n\r\n", Code.UNREACHABLE, NOT_HTTP),
    "http-2": (lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100), Code.UNREACHABLE, NOT_HTTP),
    "tls": (lambda _: b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500), Code.UNREACHABLE, NOT_HTTP),
    "no-colon": (lambda _: b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n", Code.UNREACHABLE, NOT_HTTP),
    "nul": (lambda c: c.reply(X="a\0b"), Code.UNREACHABLE, NOT_HTTP),
    "folded": (lambda c: c.reply(X="a\r\n " + "b" * 100), Code.ACCEPTED, ""),
    "name-bytes": (lambda _: b"HTTP/1.1 200 OK\r\n\xff\xfe: x\r\n\r\n", Code.UNREACHABLE, NOT_HTTP),
    "signature-bytes": (lambda c: c.reply(**{ANSWER_HEADER: "\u00b2" * 128}), Code.REPLY_SIGNATURE, NOT_SIGNED),
    "signature-0x": (lambda c: c.reply(**{ANSWER_HEADER: "0x" + "ab" * 64}), Code.REPLY_SIGNATURE, NOT_SIGNED),
    "refusal-escapes": (lambda _: http("400 No", body=b'"' + b'\\"' * 1000), Code.HTTP_STATUS, "400"),
    "refusal-nested": (lambda _: http("400 No", body=b"[" * 2000), Code.HTTP_STATUS, "400"),
    "refusal-list": (
        lambda _: http("400 No", body=b'{"code":[[{}]],"detail":{"a":"\\ud800"}}'),
        Code.HTTP_STATUS,
        r"400 \[\[\{\}\]\]: \{'a': '\\ud800'\}",
    ),
    "refusal-digits": (
        lambda _: http("400 No", body=b'{"code":' + b"9" * 1900 + b',"detail":1}'),
        Code.HTTP_STATUS,
        "400",
    ),
    "location": (lambda _: http("302 Go", "Location: http://[::1" + "%" * 3000), Code.REDIRECT, r"302 to http://.*"),
    "upgrade": (lambda c: c.reply(Upgrade="websocket", Connection="Upgrade"), Code.ACCEPTED, ""),
    "hints": (lambda c: http("103 Early Hints", "Link: <" * 100) + c.reply(), Code.ACCEPTED, ""),
    "switches-and-talks": (
        lambda _: http("101 Switching Protocols", "Upgrade: h2c", "Connection: upgrade") + bytes(30_000),
        Code.HTTP_STATUS,
        "101",
    ),
}
ODD |= {
    "chunks-named": (lambda c: chunked(c, ';a="b;c"'), Code.ACCEPTED, ""),
    "chunks-unclosed": (lambda c: chunked(c, ';a="' + '\\"' * 500), Code.TIMEOUT, LATE),
    "signed-behind": (
        lambda c: chunked(
            c, behind=f"{ANSWER_HEADER}: {c.signature(encode(keep(c.query)))}\r\n", **{ANSWER_HEADER: None}
        ),
        Code.REPLY_SIGNATURE,
        f"0 headers {ANSWER_HEADER}, one is expected",
    ),
    "length-behind": (lambda c: chunked(c, behind="Content-Length: 9\r\n"), Code.UNREACHABLE, NOT_HTTP),
    "length-plus": (lambda c: c.reply(Content_Length="+5"), Code.UNREACHABLE, NOT_HTTP),
    "length-spaced": (lambda c: c.reply(Content_Length="1_0"), Code.UNREACHABLE, NOT_HTTP),
    "length-list": (lambda c: c.reply(Content_Length="5, 5"), Code.UNREACHABLE, NOT_HTTP),
    "brotli": (lambda c: c.reply(Content_Encoding="br"), Code.CONTENT_TYPE, "compressed with br"),
    "encoded-twice": (
        lambda c: c.reply(Content_Encoding="identity, gzip"),
        Code.CONTENT_TYPE,
        "compressed with identity, gzip",
    ),
    "answers-twice": (lambda c: c.reply() + c.reply(b"{}"), Code.ACCEPTED, ""),
    "space-before-colon": (
        lambda c: c.reply().replace(b"Content-Type:", b"Content-Type :"),
        Code.UNREACHABLE,
        NOT_HTTP,
    ),
    "type-folded": (lambda c: c.reply(Content_Type="application/json;\r\n a=b"), Code.ACCEPTED, ""),
    "http-1.0": (lambda c: c.reply().replace(b"HTTP/1.1", b"HTTP/1.0"), Code.ACCEPTED, ""),
    "painted-reason": (lambda c: c.reply(status="200 \xff\x1b[2J"), Code.ACCEPTED, ""),
    "partial": (lambda c: c.reply(status="206 Part", Content_Range="bytes 0-1/2"), Code.HTTP_STATUS, "206"),
    "not-modified": (lambda _: http("304 Not Modified", "Content-Length: 5"), Code.REDIRECT, "304 to nowhere"),
    "to-a-file": (
        lambda _: http("303 Go", "Location: file:///etc/passwd", "Content-Length: 0"),
        Code.REDIRECT,
        "303 to file:///etc/passwd",
    ),
    "asks-for-a-key": (
        lambda _: http("401 No", 'WWW-Authenticate: Digest realm="', "Content-Length: 0"),
        Code.HTTP_STATUS,
        "401",
    ),
    "later": (lambda _: http("503 No", "Retry-After: \u00b2", "Content-Length: 0"), Code.HTTP_STATUS, "503"),
}
WIRE |= {name: Attack(says(make), code, detail) for name, (make, code, detail) in ODD.items()}

ENDPOINTS = {  # whose address they publish as theirs: these cannot be honest at first
    "as-honest": lambda peers: peers.honest,
    "as-honest-too": lambda peers: peers.honest,
    "as-validator": lambda peers: peers.own,
    "as-lender": lambda peers: f"127.0.0.1:{peers.ports['lends']}",
    "nobody": lambda peers: "127.0.0.1:9",
    "nowhere": lambda peers: "0.0.0.0:0",
    "no-address": lambda peers: "[::1/x:y",
}
ENDPOINT_ATTACKS = {
    "as-honest": Attack(never, Code.HTTP_STATUS, OTHERS),
    "as-honest-too": Attack(never, Code.HTTP_STATUS, OTHERS),
    "as-validator": Attack(never, Code.HTTP_STATUS, OTHERS),
    "as-lender": Attack(never, Code.REPLY_SIGNATURE, NOT_SIGNED),
    "nobody": Attack(never, Code.UNREACHABLE, GONE),
    "nowhere": Attack(never, Code.UNREACHABLE, ".+"),
    "no-address": Attack(never, Code.UNREACHABLE, ".+"),
}


def plain(query: RebalanceQuery, **changes: object) -> bytes:
    """*Keep* as JSON, with other fields."""
    return json.dumps(to_plain(keep(query)) | changes).encode()


def one(lower: object, upper: object, amount0: object = "0", amount1: object = "0") -> Say:
    """One position, of whatever types."""
    position = {"tick_lower": lower, "tick_upper": upper, "allocation0": amount0, "allocation1": amount1}
    return lambda query: plain(query, desired_positions=[position])


def raw(field: str, text: str) -> Say:
    """A field with this JSON text, which no library would write."""
    return lambda query: plain(query, **{field: "@"}).replace(b'"@"', text.encode())


def forged(query: RebalanceQuery) -> bytes:
    """What it holds, one position grown by a unit of token0 beyond all that there is."""
    first, *others = query.current_positions
    amount0, _ = query.holdings()
    return encode(accept([replace(first, allocation0=amount0 + 1), *others]))


def twice(query: RebalanceQuery) -> bytes:
    """Everything, twice."""
    everything = Position(-600, 600, *query.holdings())
    return encode(accept([everything, everything]))


KEY = '{"accepted": true, "accepted": true, "refusal_reason": null, "desired_positions": [], "miner_metadata": {}}'
AMOUNT = r"a decimal string 0 to 2\*\*128 - 1 is expected"
POSITION = r"RebalanceAnswer\.desired_positions\[0\]"
NOT_BOOL = "RebalanceAnswer.accepted is {}, bool is expected"
SAID = {
    "escapes": (lambda _: (b'"' + b'a\\"' * MAX_ANSWER_BYTES)[:MAX_ANSWER_BYTES], Code.MALFORMED, "not JSON"),
    "quotes": (lambda _: b'"' * (MAX_ANSWER_BYTES - 1), Code.MALFORMED, "not JSON"),
    "nested": (lambda _: b"[" * 16000 + b"]" * 16000, Code.MALFORMED, "nested too deeply"),
    "nested-objects": (lambda _: b'{"a":' * 5000 + b"1" + b"}" * 5000, Code.MALFORMED, "nested too deeply"),
    "duplicate": (lambda _: KEY.encode(), Code.MALFORMED, "an object names a key twice"),
    "nan": (one(float("nan"), 600), Code.MALFORMED, r"NaN or Infinity \(NaN\)"),
    "infinity": (one(-600, float("inf")), Code.MALFORMED, r"NaN or Infinity \(Infinity\)"),
    "minus-infinity": (one(float("-inf"), 600), Code.MALFORMED, r"NaN or Infinity \(-Infinity\)"),
    "exponent": (raw("desired_positions", "1e400"), Code.MALFORMED, r"a number with a fraction .* \(1e400\)"),
    "digits": (raw("desired_positions", "9" * 400), Code.MALFORMED, "an integer of 400 digits: .*"),
    "digits-30000": (raw("desired_positions", "9" * 30_000), Code.MALFORMED, "an integer of 30000 digits: .*"),
    "fraction": (one(-600.0, 600), Code.MALFORMED, r"a number with a fraction .* \(-600\.0\)"),
    "2-to-128": (one(-600, 600, str(2**128)), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '3402.*{AMOUNT}"),
    "long-amount": (one(-600, 600, "9" * 20_000), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '9{{50}}', {AMOUNT}"),
    "negative": (one(-600, 600, "-1"), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '-1', {AMOUNT}"),
    "number": (one(-600, 600, 1), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is an integer, {AMOUNT}"),
    "other-digits": (one(-600, 600, "\u0663"), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '\\u0663', {AMOUNT}"),
    "too-much": (
        lambda q: encode(accept([Position(-600, 600, q.holdings()[0] + 1, 0)])),
        Code.OVER_ALLOCATED,
        r"declared \d+ / 0 of token0 / token1, holdings \d+ / \d+",
    ),
    "twice": (twice, Code.OVER_ALLOCATED, r"declared \d+ / \d+ of token0 / token1, holdings \d+ / \d+"),
    "forged": (forged, Code.OVER_ALLOCATED, r"declared \d+ / \d+ of token0 / token1, holdings \d+ / \d+"),
    "off-grid": (one(-605, 600), Code.TICK_SPACING, r"position 0: ticks -605, 600 are not multiples of 10"),
    "reversed": (one(600, -600), Code.TICK_ORDER, r"position 0: tick_lower 600 >= tick_upper -600"),
    "no-width": (one(600, 600), Code.TICK_ORDER, r"position 0: tick_lower 600 >= tick_upper 600"),
    "below": (one(MIN_TICK - 8, 600), Code.TICK_RANGE, r"position 0: ticks -887280, 600; bounds -887272, 887272"),
    "above": (one(-600, MAX_TICK + 8), Code.TICK_RANGE, r"position 0: ticks -600, 887280; bounds -887272, 887272"),
    "far": (one(-(10**18), 10**19), Code.TICK_RANGE, r"position 0: ticks -10{18}, 10{19}; bounds .*"),
    "tick-text": (one("-600", 600), Code.MALFORMED, rf"{POSITION}\.tick_lower is a string, int is expected"),
    "tick-true": (one(True, 600), Code.MALFORMED, rf"{POSITION}\.tick_lower is a boolean, int is expected"),
    "1000-positions": (
        lambda _: encode(accept([Position(-600, 600, 0, 0)] * 1000)),
        Code.REPLY_TOO_LARGE,
        rf"\d+ bytes declared, at most {MAX_ANSWER_BYTES}",
    ),
    "400-positions": (
        lambda _: encode(accept([Position(-600, 600, 0, 0)] * 400)),
        Code.TOO_MANY_POSITIONS,
        "400 positions, at most 10",
    ),
    "unknown-field": (
        lambda q: plain(q, **{"\x1b[31m" + "x" * 9000: 1}),
        Code.MALFORMED,
        r"RebalanceAnswer has an unknown field '\\x1b\[31mx{35}'",
    ),
    "missing": (lambda _: b'{"accepted": true}', Code.MALFORMED, "RebalanceAnswer lacks the field 'refusal_reason'"),
    "utf-8": (lambda _: b'{"accepted": "\xff\xfe"}', Code.MALFORMED, "not JSON: it is no UTF-8"),
    "utf-16": (lambda q: plain(q).decode().encode("utf-16"), Code.MALFORMED, "not JSON: it is no UTF-8"),
    "empty": (lambda _: b"", Code.MALFORMED, "not JSON"),
    "null": (lambda _: b"null", Code.MALFORMED, "RebalanceAnswer is null, an object is expected"),
    "more": (lambda q: plain(q) + b"{}", Code.MALFORMED, "not JSON"),
    "yes": (lambda q: plain(q, accepted=1), Code.MALFORMED, NOT_BOOL.format("an integer")),
    "yes-text": (
        lambda q: plain(q, accepted="true"),
        Code.MALFORMED,
        NOT_BOOL.format("a string"),
    ),
    "painted": (
        lambda _: encode(refuse(ANSI)),
        Code.MALFORMED,
        r"RebalanceAnswer\.refusal_reason has the character U\+001B, which is not text",
    ),
    "painted-name": (
        lambda q: plain(q, miner_metadata={"version": "1", "model_info": "\x9b2J"}),
        Code.MALFORMED,
        r"RebalanceAnswer\.miner_metadata\.model_info has the character U\+009B, which is not text",
    ),
    "half-a-pair": (
        lambda q: plain(q, miner_metadata={"version": "\ud800", "model_info": ""}),
        Code.MALFORMED,
        r"RebalanceAnswer\.miner_metadata\.version has the character U\+D800, which is not text",
    ),
    "novel": (
        lambda _: encode(refuse("x" * 301)),
        Code.MALFORMED,
        r"RebalanceAnswer\.refusal_reason has 301 characters, at most 300",
    ),
    "key-escaped": (
        lambda q: plain(q).replace(b'{"accepted"', b'{"\\u0061ccepted": false, "accepted"', 1),
        Code.MALFORMED,
        "an object names a key twice",
    ),
    "half-a-key": (
        lambda q: plain(q, **{"\ud800": 1}),
        Code.MALFORMED,
        r"RebalanceAnswer has an unknown field '\\ud800'",
    ),
    "marked": (lambda q: b"\xef\xbb\xbf" + plain(q), Code.MALFORMED, "not JSON"),
    "nul-in-text": (
        lambda q: plain(q, miner_metadata={"version": "a\0b", "model_info": ""}),
        Code.MALFORMED,
        r"RebalanceAnswer\.miner_metadata\.version has the character U\+0000, which is not text",
    ),
    "wide-digits": (one(-600, 600, "\uff15"), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '\\uff15', {AMOUNT}"),
    "underscore": (one(-600, 600, "1_000"), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '1_000', {AMOUNT}"),
    "power": (one(-600, 600, "1E+999999999"), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '1E.9+', {AMOUNT}"),
    "zeros": (one(-600, 600, "00"), Code.AMOUNT_RANGE, rf"{POSITION}.allocation0 is '00', {AMOUNT}"),
    "tick-digits": (raw("desired_positions", "\u0663"), Code.MALFORMED, "not JSON"),
    "lists": (lambda _: b"[" + b"[]," * 10_000 + b"[]]", Code.MALFORMED, "RebalanceAnswer is a list, an object .*"),
    "comment": (lambda q: b"/* */" + plain(q), Code.MALFORMED, "not JSON"),
    "turned": (lambda _: encode(refuse("\u202e\u2066no")), Code.REFUSED, re.escape(r"\u202e\u2066no")),
}  # fmt: skip


def answers(make: Say) -> Behaviour:
    """A correct reply with this body."""
    return says(lambda connection: connection.reply(make(connection.query)))


ATTACKS = WIRE | {name: Attack(answers(make), code, detail) for name, (make, code, detail) in SAID.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Rounds with them, and without


def all_in(query: RebalanceQuery, half_width: int = 600) -> list[Position]:
    """Everything in one range around the price."""
    middle = query.tick // query.tick_spacing * query.tick_spacing
    return [Position(middle - half_width, middle + half_width, *query.holdings())]


def mover(query: RebalanceQuery) -> list[Position]:
    return all_in(query, 400 + query.block_number % 7 * 100)


HONEST_MINERS = dict(zip(HONEST, (all_in, mover, keep), strict=True))


def behaviours_of(attacks: Mapping[str, Attack]) -> dict[str, Behaviour]:
    return {name: attack.behave for name, attack in attacks.items()}


def played(
    folder: Path, behaviours: Mapping[str, Behaviour] = {}, patience: float = PATIENCE_SECONDS, **options: bool
) -> tuple[Subnet, str, Peers]:
    """One round of honest miners and these; the subnet, what was printed, and the peers."""
    folder.mkdir()
    with (
        pytest.MonkeyPatch.context() as patch,
        Peers(behaviours, **options) as peers,
        redirect_stdout(io.StringIO()) as out,
    ):
        patch.setattr(asking, "ASK_SECONDS", patience)
        subnet = play_subnet(folder, HONEST_MINERS, [a_job(target="Balanced")], prepare=peers.join)
    return subnet, out.getvalue(), peers


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Subnet:
    """The round without anybody hostile."""
    return played(tmp_path_factory.mktemp("undisturbed") / "local")[0]


@pytest.fixture(scope="module")
def from_the_first_ask(tmp_path_factory) -> tuple[Subnet, str, Peers]:
    """All of them at once, hostile from the first ask on."""
    behaviours = behaviours_of(ATTACKS | ENDPOINT_ATTACKS)
    return played(tmp_path_factory.mktemp("first") / "local", behaviours)


@pytest.fixture(scope="module")
def from_the_second_ask(tmp_path_factory) -> tuple[Subnet, str, Peers]:
    """All that can be honest at first, then hostile."""
    return played(tmp_path_factory.mktemp("later") / "local", behaviours_of(ATTACKS), honest_first=True)


def honest_digits(subnet: Subnet, names: Sequence[str] = HONEST) -> dict:
    """All that these miners were asked, scored and paid; their places among the others are the others'."""
    mine = {hotkey_of(name) for name in names}
    lines = stored_lines(subnet.path, ROUND)
    sql = "SELECT hotkey, due_block, query, answer, code, detail, effective_block FROM predictions ORDER BY 1, 2"
    ranks = subnet.rows("SELECT hotkey FROM scores ORDER BY rank")
    return {
        "asks": [row for row in subnet.rows(sql) if row[0] in mine],
        "lines": {
            name: {part: value for part, value in line.items() if part not in ("rank", "copy_of")}
            for name, line in lines.items()
            if name in mine or name in ("keep", "hold", "best")
        },
        "order": [hotkey for (hotkey,) in ranks if hotkey in mine],
        "reputations": {who: numbers for who, numbers in stored_standings(subnet.path).items() if who[1] in mine},
        "weights": subnet.rows("SELECT vector FROM weights"),
    }


def audits(subnet: Subnet, capsys: pytest.CaptureFixture) -> bool:
    """Whether the auditor recomputes every stored round of it."""
    capsys.readouterr()
    code = validator.main(["audit", "all", "--db", str(subnet.path)])
    return code == 0 and "0 differ" in capsys.readouterr().out


def test_the_honest_miners_digits_are_those_of_the_round_without_anybody_hostile(
    undisturbed, from_the_first_ask, from_the_second_ask
):
    expected = honest_digits(undisturbed)
    assert len(expected["asks"]) == 9 and len(expected["lines"]) == 6 and len(expected["reputations"]) == 3
    assert expected["weights"] != []
    for subnet, _, _ in (from_the_first_ask, from_the_second_ask):
        assert subnet.codes() == ["scored"]
        assert honest_digits(subnet) == expected
        assert {name: len(asked) for name, asked in subnet.asked.items()} == dict.fromkeys(HONEST, 3)


def test_the_audit_agrees_with_rounds_full_of_hostile_answers(from_the_first_ask, from_the_second_ask, capsys):
    for subnet, _, _ in (from_the_first_ask, from_the_second_ask):
        assert audits(subnet, capsys)
        assert standings(subnet.path) == stored_standings(subnet.path)


@pytest.mark.parametrize("name", ATTACKS | ENDPOINT_ATTACKS)
def test_a_hostile_first_answer_is_stored_and_shown_with_its_reason(from_the_first_ask, name):
    subnet, shown, _ = from_the_first_ask
    attack = (ATTACKS | ENDPOINT_ATTACKS)[name]
    (code, detail, acts, _), *later = subnet.asks(name)
    assert code == attack.code and re.fullmatch(attack.detail, detail), (code, detail)
    assert detail.isascii() and detail.isprintable() and len(detail) <= 600
    ranked = subnet.rows("SELECT 1 FROM scores WHERE hotkey = ?", hotkey_of(name))
    on_the_board = f"   not ranked: {miner_name(hotkey_of(name), {hotkey_of(name): name})}: {code} {detail}\n"
    if code == Code.ACCEPTED:
        assert ranked and acts is not None and on_the_board not in shown
    else:
        assert not ranked and acts is None and not later and on_the_board in shown


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_later_answer_means_keep_and_its_reason_is_stored_and_shown(from_the_second_ask, name):
    subnet, shown, _ = from_the_second_ask
    first, *later = subnet.asks(name)
    assert first[0] == "accepted" and len(later) == 2
    attack = ATTACKS[name]
    expected, why = (attack.code, "") if attack.code is Code.ACCEPTED else (Code.KEPT, f"{attack.code}: ")
    for code, detail, acts, _ in later:
        assert code == expected and re.fullmatch(f"{why}(?:{attack.detail})", detail), (code, detail)
        assert (acts is None) == (code == Code.KEPT)
        who = miner_name(hotkey_of(name), {hotkey_of(name): name})
        assert (f"   kept what it had: {who}: 2 asks, last {later[-1][1]}\n" in shown) == (code == Code.KEPT)
    lines = stored_lines(subnet.path, ROUND)
    assert lines[hotkey_of(name)]["outcome"] == lines["keep"]["outcome"]


def test_what_is_shown_of_them_is_inert(from_the_first_ask):
    _, shown, _ = from_the_first_ask
    assert shown.isascii() and "\x1b" not in shown and "\r" not in shown
    assert ("\n" + shown).count("\n== ") == 1 and len(shown.splitlines()) < len(ATTACKS) + 36


def test_floods_are_cut_off_and_no_ask_outlasts_its_deadline(from_the_first_ask, from_the_second_ask):
    for subnet, _, peers in (from_the_first_ask, from_the_second_ask):
        asks = Counter(hotkey for (hotkey,) in subnet.rows("SELECT hotkey FROM predictions"))
        for name in ATTACKS:
            assert peers.sent[name] <= SOCKET_BYTES * asks[hotkey_of(name)], name
        ((slowest,),) = subnet.rows("SELECT max(response_seconds) FROM predictions")
        assert slowest < 5 * PATIENCE_SECONDS  # the rest is for a busy machine


@pytest.mark.parametrize("name", ["never", "100-mb", "relays", "twice"])
def test_one_hostile_miner_alone_changes_no_digit_either(undisturbed, tmp_path, capsys, name):
    attack = ATTACKS[name]
    for folder, options in (("first", {}), ("later", {"honest_first": True})):
        subnet, _, _ = played(tmp_path / folder, {name: attack.behave}, patience=1, **options)
        assert [ask[0] for ask in subnet.asks(name)] == (["accepted", "kept", "kept"] if options else [attack.code])
        assert honest_digits(subnet) == honest_digits(undisturbed)
        assert audits(subnet, capsys)


def test_a_hundred_miners_that_send_100_mb_each_at_once_fill_neither_memory_nor_the_round(
    undisturbed, tmp_path, capsys
):
    kinds = [name for name, attack in WIRE.items() if attack.behave.__qualname__.startswith("floods.")]
    assert len(kinds) >= 10
    behaviours = {f"{kind}.{n}": ATTACKS[kind].behave for n in range(100 // len(kinds) + 1) for kind in kinds}
    tracemalloc.start()
    try:
        subnet, _, peers = played(tmp_path / "local", behaviours, patience=20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(behaviours) >= 100 and peak_bytes < 40 * 2**20  # of 10 GB, and with the hundred senders' own buffers
    assert max(peers.sent.values()) <= SOCKET_BYTES * 3 and min(peers.sent.values()) > 0
    for name in behaviours:
        code, detail, *_ = subnet.asks(name)[0]
        attack = ATTACKS[name.partition(".")[0]]
        assert code == attack.code and re.fullmatch(attack.detail, detail), (name, code, detail)
    assert honest_digits(subnet) == honest_digits(undisturbed) and audits(subnet, capsys)


def test_on_a_clock_a_silent_miner_delays_neither_the_checkpoints_of_others_nor_the_close(tmp_path, capsys):
    """A minute is a second here; the silent one's ask is open until the close, and the others are asked meanwhile."""
    with Peers({"never": never}, honest_first=True) as peers:
        subnet = play_subnet(
            tmp_path,
            {"broad": all_in},
            [a_job(round_seconds=150, checkpoint_blocks=25)],
            lambda: model(pace=60, head=FIRST_BLOCK + 412),
            prepare=peers.join,
            pace=60,
        )
    assert subnet.codes() == ["scored"] and audits(subnet, capsys)
    assert len(subnet.asks("broad")) == 3 and [ask[0] for ask in subnet.asks("never")] == ["accepted", "kept"]


# ---------------------------------------------------------------------------------------------------------------------
# Honest but unlucky


def scripted(*handlers: Handler) -> Handler:
    """A miner that does one thing after the other."""
    script = iter(handlers)
    return lambda query: next(script)(query)


async def asleep(query: RebalanceQuery) -> None:
    await asyncio.sleep(2 * PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def without_that_moment(tmp_path_factory) -> dict:
    """What everybody gets when a miner decides, at the second of its three asks, to change nothing."""
    miners = {**HONEST_MINERS, "unlucky": scripted(narrow, keep, narrow)}
    subnet = play_subnet(tmp_path_factory.mktemp("moment"), miners, [a_job(target="Balanced")])
    return unlucky_digits(subnet)


def narrow(query: RebalanceQuery) -> list[Position]:
    return all_in(query, 200 + query.block_number % 5 * 100)


def unlucky_digits(subnet: Subnet) -> dict:
    """All but what was answered, which is what differs."""
    digits = honest_digits(subnet, [*HONEST, "unlucky"])
    return digits | {"asks": [(hotkey, due, query) for hotkey, due, query, *_ in digits["asks"]]}


def test_a_miner_that_is_slow_once_loses_only_that_decision(tmp_path, monkeypatch, without_that_moment, capsys):
    monkeypatch.setattr(asking, "ASK_SECONDS", PATIENCE_SECONDS)
    miners = {**HONEST_MINERS, "unlucky": scripted(narrow, asleep, narrow)}
    subnet = play_subnet(tmp_path, miners, [a_job(target="Balanced")])
    assert [ask[:2] for ask in subnet.asks("unlucky")] == [
        ("accepted", ""),
        ("kept", f"timeout: {LATE}"),
        ("accepted", ""),
    ]
    assert unlucky_digits(subnet) == without_that_moment and audits(subnet, capsys)


def test_a_miner_that_restarts_in_a_round_loses_only_that_decision(tmp_path, without_that_moment, capsys):
    async def unlucky(connection: Connection) -> None:
        query = await connection.request()
        if query.block_time < query.window_start_time:
            connection.peers.hang_up(connection.name)  # after this ask
        await connection.send(connection.reply(encode(accept(narrow(query)))))

    async def until_it_was_missed(query: RebalanceQuery) -> list[Position]:
        await asyncio.sleep(1)  # asked side by side; whoever does not listen is refused at once
        peers.listen_again("unlucky")
        return all_in(query)

    with Peers({"unlucky": unlucky}) as peers:
        miners = {**HONEST_MINERS, "broad": scripted(all_in, until_it_was_missed, all_in)}
        subnet = play_subnet(tmp_path, miners, [a_job(target="Balanced")], prepare=peers.join)
    assert [ask[0] for ask in subnet.asks("unlucky")] == ["accepted", "kept", "accepted"]
    assert "ClientConnectorError" in subnet.asks("unlucky")[1][1]
    assert unlucky_digits(subnet) == without_that_moment and audits(subnet, capsys)


def test_a_miner_that_is_slow_at_a_first_ask_loses_that_round_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "ASK_SECONDS", 1)
    found = []
    for folder, first in (("slow", asleep), ("abstains", lambda _: refuse())):
        (tmp_path / folder).mkdir()
        miners = {**HONEST_MINERS, "unlucky": scripted(first, narrow, narrow, narrow)}
        subnet = play_subnet(tmp_path / folder, miners, [a_job(target="Balanced")], rounds=2)
        found.append((stored_standings(subnet.path), subnet.ranked()))
        assert [ask[0] for ask in subnet.asks("unlucky")][1:] == ["accepted"] * 3
    assert found[0] == found[1] and found[0][1].count("unlucky") == 1


SHIFTED = """
import sys, time
seconds = float(sys.argv.pop(1))
sys.path.insert(0, sys.argv.pop(1))
for name, unit in (("time", 1), ("time_ns", 10**9)):
    setattr(time, name, lambda real=getattr(time, name), off=type(unit)(seconds * unit): real() + off)
import miner
sys.exit(miner.main(sys.argv[1:]))
"""


def test_a_miner_whose_clock_is_three_seconds_off_loses_nothing_and_one_far_off_is_told_so(tmp_path, monkeypatch):
    """The real miner, three times, each on its own clock."""
    monkeypatch.setattr(asking, "ASK_SECONDS", 20)
    (tmp_path / "miner.py").write_text(SHIFTED)
    ledger = tmp_path / "chain.sqlite3"
    clocks = {"behind": -3, "ahead": 3, "far-behind": -8}

    with ExitStack() as stack:

        async def join(*_: object) -> None:
            for name, seconds in clocks.items():
                arguments = ("--name", name, "--port", 0, "--dir", tmp_path, "--strategy", "wide")
                command = (tmp_path / "miner.py", seconds, ROOT, *arguments)
                stack.enter_context(start(*command, folder=tmp_path / name))
            sql = "SELECT 1 FROM neurons WHERE address IS NOT NULL"
            await asyncio.to_thread(wait_for, "their endpoints", lambda: len(rows(ledger, sql)) == len(clocks))

        subnet = play_subnet(tmp_path, {}, [a_job()], prepare=join)
    for name in ("behind", "ahead"):
        assert [ask[:2] for ask in subnet.asks(name)] == [("accepted", "")] * 3
    ((code, detail, *_),) = subnet.asks("far-behind")
    told = r"[78]\.\d s ahead of the server's clock, at most 5: the two clocks differ; set both by NTP"
    assert code == Code.HTTP_STATUS and re.fullmatch(f"401 auth_stale: the request is {told}", detail), detail
