"""Reading a pool's chain: its confirmed head, headers, and the logs of as many blocks at once as its nodes give.

With two endpoints or more, each chunk's logs are asked of two. With one, a mint or burn away from the price that it
leaves out is found when all ticks are compared, at the next snapshot; that a position was poked it can hide for good.
Read next: `event_file.py`, `follower.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from evm.abi import MANAGER_LOGS, TRANSFER, Header, Log, Malformed, header_call, read_header, read_log
from evm.manager import NamedToken
from evm.pool import Contract
from evm.rpc import Endpoint, Refusal, Rpc, RpcError

FIRST_CHUNK_BLOCKS, MAX_CHUNK_BLOCKS = 200, 5000  # of one eth_getLogs; grows while there is little in it
MANY_LOGS = 2000  # in one answer: the chunk does not grow any more
FAR_AHEAD_BLOCKS = 30

T = TypeVar("T")
log = logging.getLogger("follower")


class Contradiction(Exception):
    """What nodes said cannot be, or not together."""

    def __init__(self, what: str, endpoints: Iterable[Endpoint]):
        super().__init__(what)
        self.endpoints = set(endpoints)


class Reorganised(Exception):
    """The next block does not follow the last one that was read."""


class TooMany(Exception):
    """The nodes refuse a chunk of this size."""


class Reader:
    """Asks the nodes about a pool.

    Attributes:
        rpc, contract: what is read.
        chunk_blocks: how many blocks to ask for at once.
    """

    def __init__(self, rpc: Rpc, contract: Contract):
        self.rpc, self.contract, self.chunk_blocks = rpc, contract, FIRST_CHUNK_BLOCKS
        self._refused = 2 * MAX_CHUNK_BLOCKS  # so many blocks were too many at last: near it the chunk grows slowly

    async def confirmed(self, confirmations: int, known: int, stalls: bool) -> int:
        """The last block with enough on top of it: of what two endpoints say, or one where there is but one.

        An endpoint that is behind what was read already rests. One that is far ahead of all others is not believed,
        unless nothing has come for a while.

        Args:
            confirmations: how many blocks make enough.
            known: the last block that was read.
            stalls: whether nothing has come for a while.

        Raises:
            RpcError: no endpoint knows the head.
        """
        heads = {}
        for endpoint, raw in (await self.rpc.each(*header_call("latest"))).items():
            try:
                heads[endpoint] = read_header(raw).number
            except Malformed as error:
                endpoint.rest(str(error))
        for endpoint in [endpoint for endpoint, number in heads.items() if number < known]:
            endpoint.rest(f"its head is {heads.pop(endpoint)}, block {known} was read before")
        if not heads:
            raise RpcError("no endpoint knows the head")
        (furthest, head), *others = sorted(heads.items(), key=lambda pair: -pair[1])
        if others and not stalls:
            if head > others[0][1] + FAR_AHEAD_BLOCKS:
                log.warning("RPC %s: its head is %d, all others' at most %d", furthest.name, head, others[0][1])
            head = others[0][1]
        return head - confirmations

    async def logs(
        self, first: int, last: int, vaults: set[str], tokens: Mapping[int, NamedToken], endpoints: set[Endpoint]
    ) -> tuple[list[Log], dict[int, Header]]:
        """The logs of some blocks, in order, and the headers of those blocks that have any, and of both ends.

        Args:
            first, last: the blocks.
            vaults: of which all tokens that come to them are looked up.
            tokens: of the position manager, by id; what happens to them is looked up.
            endpoints: is given those that answered.

        Raises:
            TooMany: the nodes refuse so many; fewer will be asked for next time.
            Malformed, RpcError: what they say cannot be; none answers.
        """
        span = {"fromBlock": hex(first), "toBlock": hex(last)}
        addresses, kinds = self.contract.addresses, [kind.topic for kind in self.contract.log_types]
        pool = span | {"address": addresses if len(addresses) > 1 else addresses[0], "topics": [kinds]}
        calls = [header_call(first), header_call(last), ("eth_getLogs", [pool])]
        manager = span | {"address": self.contract.manager}
        if vaults and self.contract.manager:
            to = ["0x" + vault[2:].rjust(64, "0") for vault in sorted(vaults)]
            calls.append(("eth_getLogs", [manager | {"topics": [TRANSFER.topic, None, to]}]))
        from_block, to_block, *found = await self._ask(calls, first, last, endpoints)
        ids = {read_log(raw).values[2] for raw in found[1]} if len(found) > 1 else set()
        if ids := sorted(ids | tokens.keys()):
            topics = [[kind.topic for kind in MANAGER_LOGS], [f"0x{token_id:064x}" for token_id in ids]]
            found += await self._ask([("eth_getLogs", [manager | {"topics": topics}])], first, last, endpoints)
        logs = sorted(read_log(raw) for part in found for raw in part)
        places = [one[:2] for one in logs]
        if len(set(places)) != len(places):
            raise Malformed("a log is told twice")
        if logs and not first <= logs[0].block <= logs[-1].block <= last:
            raise Malformed(f"logs of other blocks than {first} to {last}")
        if any(one.address not in (*addresses, self.contract.manager) for one in logs):
            raise Malformed("logs of another contract")
        await self._compare(calls[2], found[0], endpoints)
        headers = {number: checked_header(raw, number) for number, raw in ((first, from_block), (last, to_block))}
        wanted = sorted({one.block for one in logs} - headers.keys())
        return logs, headers | await self.headers(wanted, endpoints)

    async def _compare(self, call: tuple[str, list], logs: list, endpoints: set[Endpoint]) -> None:
        """Where there is another endpoint, it must not know of a log that these left out: not all leave traces."""
        if len(self.rpc.endpoints) == 1 or not (second := await self.rpc.second([call], endpoints)):
            return
        try:
            places = {read_log(raw)[:2] for raw in second[0]}
        except (Malformed, TypeError) as error:
            self.rpc.distrust(second.endpoints, str(error))
            return
        mine = {read_log(raw)[:2] for raw in logs}
        if lost := mine - places:
            self.rpc.distrust(second.endpoints, f"{len(lost)} logs are missing, the first in block {min(lost)[0]}")
        if lost := places - mine:
            raise Malformed(f"{len(lost)} logs are missing, the first in block {min(lost)[0]}")

    async def _ask(self, calls: list, first: int, last: int, endpoints: set[Endpoint]) -> list:
        answers = await self.rpc.batch(calls, refusable=True)
        endpoints |= answers.endpoints
        for (method, _), answer in zip(calls, answers, strict=True):
            refused = isinstance(answer, Refusal)
            if method == "eth_getLogs" and refused and last > first:
                self._refused = last - first + 1
                self.chunk_blocks = self._refused // 2
                raise TooMany(f"logs of blocks {first} to {last}: {answer}")
            if refused or answer is None:
                raise Malformed(f"{method} of blocks {first} to {last}: {answer or 'no such block'}")
            if method == "eth_getLogs" and not isinstance(answer, list):
                raise Malformed(f"{method}: no list")
        return list(answers)

    async def headers(self, numbers: Sequence[int], endpoints: set[Endpoint] | None = None) -> dict[int, Header]:
        """Headers by number. Raises `RpcError`."""
        answers = await self.rpc.batch([header_call(number) for number in numbers], usable=bool)
        if endpoints is not None:
            endpoints |= answers.endpoints
        return {number: checked_header(raw, number) for number, raw in zip(numbers, answers, strict=True)}

    def grow(self, logs: int) -> None:
        """A chunk had so many logs: the next one may have more blocks."""
        if logs < MANY_LOGS:
            fast = 2 * self.chunk_blocks <= self._refused
            larger = 2 * self.chunk_blocks if fast else self.chunk_blocks + self.chunk_blocks // 8 + 1
            self.chunk_blocks = min(larger, MAX_CHUNK_BLOCKS)

    async def patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read something that can be told to be wrong, up to three times, each time from others."""
        for _ in range(2):
            try:
                return await read()
            except Malformed as error:
                self.rpc.distrust(error.endpoints, str(error))
        return await read()


def checked_header(raw: Any, number: int) -> Header:
    """The header of this block. Raises `Malformed`."""
    header = read_header(raw)
    if header.number != number:
        raise Malformed(f"block {header.number} instead of {number}")
    return header
