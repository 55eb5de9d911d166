"""Connections of strangers, capped by address and in all; who never reads what it is answered is cut off.

Read first: `server.py`, which serves with it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

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


class Connections:
    """The open connections of one server; called, it makes the protocol of the next.

    When there are as many as may be, the oldest of whoever has the most gives way.

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

    def enter(self, connection: _Connection, address: str) -> bool:
        """Whether it may stay."""
        connection.key = address_key(address)
        mine = self._by_address[connection.key]
        if len(mine) >= self.most_of_address and not within(address, self.trusted):
            return False
        if self.open >= self.most:
            oldest = next(iter(max(self._by_address.values(), key=len)))
            self.leave(oldest)
            oldest.transport.abort()
            mine = self._by_address[connection.key]
        mine[connection] = None
        self.open += 1
        return True

    def leave(self, connection: _Connection) -> None:
        if connection in self._by_address[connection.key]:
            del self._by_address[connection.key][connection]
            self.open -= 1
        if not self._by_address[connection.key]:
            del self._by_address[connection.key]


class _Connection(asyncio.Protocol):
    """Stands between a transport and the protocol that does the work."""

    def __init__(self, all_: Connections):
        self.all, self.key = all_, ""
        self.inner: Any = None
        self.stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        if not self.all.enter(self, (transport.get_extra_info("peername") or ("",))[0]):
            return transport.abort()
        transport.set_write_buffer_limits(0)  # paused as soon as something is not taken, resumed when all is
        self.inner = self.all.make()
        self.data_received, self.eof_received = self.inner.data_received, self.inner.eof_received
        self.inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.stalled:
            self.stalled.cancel()
        self.all.leave(self)
        if self.inner:
            self.inner.connection_lost(error)

    def pause_writing(self) -> None:
        self.stalled = asyncio.get_running_loop().call_later(STALL_SECONDS, self.transport.abort)
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.stalled.cancel()
        self.inner.resume_writing()
