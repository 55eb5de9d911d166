"""Connections of strangers: what they send is parsed a little at a time, and so many of them may be open.

Read first: `server.py`, which serves with it, and `client.py`, which asks with the first half.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

SLICE_BYTES, RECEIVE_BYTES = 1024, 16 * 1024
TURN_SLICES, TURN_SECONDS = 8, 0.002  # parsed in one turn of the event loop, of all connections together
STALL_SECONDS = 10.0  # an answer that is not taken for so long ends the connection

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


def address_key(address: str) -> str:
    """Whose bucket: an IPv4 address, or the /64 of an IPv6 address, which one host has to itself."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ip) if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


def within(address: str, networks: Networks) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any((getattr(ip, "ipv4_mapped", None) or ip) in network for network in networks)


class _Turns:
    """Whose bytes are parsed next: a few slices in each turn of one event loop, of the newest and of the oldest.

    Parsers take up to a thousand times longer for some bytes than for others, and have no deadline. So the loop is
    never theirs for long; who comes new is heard at once beside any number that flood, and who waits gets on.
    """

    def __init__(self):
        self.buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._waiting: deque[Callable[[], None]] = deque()
        self._planned = False

    def add(self, parse: Callable[[], None]) -> None:
        """Have one slice parsed."""
        self._waiting.append(parse)
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        until = time.monotonic() + TURN_SECONDS
        for n in range(min(TURN_SLICES, len(self._waiting))):
            (self._waiting.popleft if n % 2 else self._waiting.pop)()()
            if time.monotonic() > until:
                break
        self._planned = bool(self._waiting)
        if self._planned:
            asyncio.get_running_loop().call_soon(self._turn)


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


class Sliced(asyncio.BufferedProtocol):
    """Stands between a transport and the protocol that parses: feeds it slices, as it is this connection's turn, and
    reads no more before that."""

    inner: Any
    transport: asyncio.Transport

    def __init__(self):
        loop = asyncio.get_running_loop()
        self.turns = _turns.get(loop) or _turns.setdefault(loop, _Turns())
        self.waiting, self.fed = bytearray(), 0
        self.lost: Callable[[], None] | None = None

    def get_buffer(self, _: int) -> memoryview:
        return self.turns.buffer

    def buffer_updated(self, size: int) -> None:
        if not self.waiting:
            self.transport.pause_reading()
            self.turns.add(self._feed)
        self.waiting += self.turns.buffer[:size]

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = partial(self.inner.connection_lost, error)
        if not self.waiting:
            self.lost()

    def parse(self, piece: bytes) -> None:
        self.inner.data_received(piece)

    def _feed(self) -> None:
        if not (piece := bytes(self.waiting[:SLICE_BYTES])):
            return
        self.fed += len(piece)
        self.parse(piece)
        del self.waiting[:SLICE_BYTES]
        if self.waiting:
            self.turns.add(self._feed)
        elif self.lost:
            self.lost()
        else:
            self.transport.resume_reading()


class Connections:
    """The open connections of one server; called, it makes the protocol of the next.

    When an address has as many as it may, its oldest gives way; when there are as many as may be in all, the oldest of
    whoever has the most. So who comes new is always heard, also beside somebody hostile of the same address.

    Args:
        make: gives the protocol that does the work.
        most, most_of_address: in all, and of one address (IPv6: one /64).
        trusted: proxies, which stand for many and are capped only in all.
    """

    def __init__(self, make: Callable[[], Any], most: int, most_of_address: int, trusted: Networks = ()):
        self.make, self.most, self.most_of_address, self.trusted = make, most, most_of_address, trusted
        self.open = 0
        self._by_address: defaultdict[str, dict[_Connection, None]] = defaultdict(dict)  # the oldest first

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self)

    def enter(self, connection: _Connection, address: str) -> None:
        connection.key = address_key(address)
        mine = self._by_address[connection.key]
        full = len(mine) >= self.most_of_address and not within(address, self.trusted)
        if full or self.open >= self.most:
            oldest = next(iter(mine if full else max(self._by_address.values(), key=len)))
            self.leave(oldest)
            oldest.transport.abort()
        self._by_address[connection.key][connection] = None
        self.open += 1

    def leave(self, connection: _Connection) -> None:
        if connection in self._by_address[connection.key]:
            del self._by_address[connection.key][connection]
            self.open -= 1
        if not self._by_address[connection.key]:
            del self._by_address[connection.key]


class _Connection(Sliced):
    """One of them."""

    def __init__(self, all_: Connections):
        super().__init__()
        self.all, self.key, self.dropping = all_, "", False
        self.stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.all.enter(self, (transport.get_extra_info("peername") or ("",))[0])
        transport.set_write_buffer_limits(0)  # paused as soon as something is not taken, resumed when all is
        self.inner = self.all.make()
        self.inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.stalled:
            self.stalled.cancel()
        self.all.leave(self)
        self.waiting.clear()
        super().connection_lost(error)

    def buffer_updated(self, size: int) -> None:
        if not self.dropping:
            super().buffer_updated(size)

    def drop(self) -> None:
        """From now on what it sends is taken and not parsed: chunks that nobody waits for can be many and small."""
        self.dropping = True
        self.waiting.clear()
        self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.stalled = asyncio.get_running_loop().call_later(STALL_SECONDS, self.transport.abort)
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.stalled.cancel()
        self.inner.resume_writing()
