"""Follow a pool on a chain: its events land in a SQLite file, once each, held against replay and contract.

Logs are read in chunks, and every swap is made again on an exact pool. At the end of each chunk that must be the
contract's, fee growth and all: a node that left logs out, or told some twice, is found before anybody sees them. Block
hashes tie everything to one chain: where a reorganisation replaced blocks, they are forgotten and read again. What
cannot be mended is a *gap*: it is noted, stepped over, and whoever asks for its blocks is told.

With two endpoints or more, each chunk's logs are asked of two. With one, a mint or burn away from the price that it
leaves out is found when all ticks are compared, at the next snapshot; that a position was poked it can hide for good.

What a Slipstream gauge takes of unstaked fees is asked at each chunk's end: where it changed, blocks are read one by
one. Changed and changed back within a chunk it is a contradiction: chunks get smaller, and nobody is blamed for it.
Read first: `events.py`, `event_file.py`. Read next: `market.py`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from evm.abi import MANAGER_LOGS, NULL_ADDRESS, TRANSFER, Header, Log, Malformed, header_call, read_header, read_logs
from evm.event_file import Draft, EventFile, Tip
from evm.events import STRANGE, NamedToken, follow_to, name_tokens, to_events
from evm.minters import counts, read_minters, read_senders
from evm.pool import Contract, State, TokenPosition, read_pool, read_state, read_vault
from evm.rpc import Endpoint, Refusal, Rpc, RpcError
from liquidity.events import ReplayError
from liquidity.replay import Snapshot
from markets.base import MarketError
from protocol import Block
from sim import PoolError

CONFIRMATIONS = 3  # blocks on top of one before it is believed; a reorganisation that deep goes unseen
STRIKES = 6  # contradictions at one place before it is called a gap
STALL_SECONDS = 30.0  # without a new block before one endpoint's word is enough for the head
MAX_BACKWARDS_BLOCKS = 10_000  # stored blocks that are compared to find where a reorganisation began
MAX_KEPT_HEADERS = 10_000
FIRST_CHUNK_BLOCKS, MAX_CHUNK_BLOCKS = 200, 5000  # of one eth_getLogs; grows while there is little in it
MANY_LOGS = 2000  # in one answer: the chunk does not grow any more
FAR_AHEAD_BLOCKS = 30

T = TypeVar("T")
log = logging.getLogger("follower")


class Reorganised(Exception):
    """The next block does not follow the last one that was read."""


class TooMany(Exception):
    """This chunk must be read in smaller ones."""


class Reader:
    """Asks the nodes about a pool; `chunk_blocks` is how many blocks to ask for at once."""

    def __init__(self, rpc: Rpc, contract: Contract):
        self.rpc, self.contract, self.chunk_blocks = rpc, contract, FIRST_CHUNK_BLOCKS
        self._refused = 2 * MAX_CHUNK_BLOCKS  # so many blocks were too many at last: near it the chunk grows slowly

    async def logs(
        self, first: int, last: int, vaults: set[str], tokens: Mapping[int, NamedToken], endpoints: set[Endpoint]
    ) -> tuple[list[Log], dict[int, Header]]:
        """The logs of some blocks, in order, and the headers of those blocks that have any, and of both ends.

        Args:
            vaults: of which all tokens that come to them and go from them are looked up.
            tokens: of the position manager, by id; what happens to them is looked up.
            endpoints: is given those that answered.

        Raises `Malformed`, `RpcError`, and `TooMany`: fewer will be asked for next time.
        """
        span = {"fromBlock": hex(first), "toBlock": hex(last)}
        addresses, kinds = self.contract.addresses, [kind.topic for kind in self.contract.log_types]
        pool = span | {"address": addresses if len(addresses) > 1 else addresses[0], "topics": [kinds]}
        calls = [header_call(first), header_call(last), ("eth_getLogs", [pool])]
        manager = span | {"address": self.contract.manager}
        if vaults and self.contract.manager:
            words = ["0x" + vault[2:].rjust(64, "0") for vault in sorted(vaults)]
            topics = [TRANSFER.topic, words], [TRANSFER.topic, None, words]
            calls += [("eth_getLogs", [manager | {"topics": one}]) for one in topics]
        from_block, to_block, *found = await self._ask(calls, first, last, endpoints)
        if ids := sorted({one.values[2] for one in read_logs(*found[1:])} | tokens.keys()):
            topics = [[kind.topic for kind in MANAGER_LOGS], [f"0x{token_id:064x}" for token_id in ids]]
            found += await self._ask([("eth_getLogs", [manager | {"topics": topics}])], first, last, endpoints)
        logs = read_logs(*found)
        if logs and not first <= logs[0].block <= logs[-1].block <= last:
            raise Malformed(f"logs of other blocks than {first} to {last}")
        if any(one.address not in (*addresses, self.contract.manager) for one in logs):
            raise Malformed("logs of another contract")
        await self._compare(calls[2], [one for one in logs if one.address in addresses], endpoints)
        headers = {number: checked_header(raw, number) for number, raw in ((first, from_block), (last, to_block))}
        wanted = sorted({one.block for one in logs} - headers.keys())
        return logs, headers | await self.headers(wanted, endpoints)

    async def _compare(self, call: tuple[str, list], logs: list[Log], endpoints: set[Endpoint]) -> None:
        """Where there is another endpoint, it must not know of a log that these left out: not all leave traces."""
        second = await self.rpc.second([call], endpoints) if len(self.rpc.endpoints) > 1 else None
        if not second or isinstance(second[0], Refusal):  # it may take fewer blocks at once
            return
        mine = Counter(map(_without_index, logs))
        try:
            theirs = Counter(map(_without_index, read_logs(second[0])))
        except Malformed as error:
            self.rpc.distrust(second.endpoints, str(error))
            return
        if lost := mine - theirs:
            self.rpc.distrust(second.endpoints, f"{lost.total()} logs are missing, the first in block {min(lost)[0]}")
        if lost := theirs - mine:
            raise Malformed(f"{lost.total()} logs are missing, the first in block {min(lost)[0]}")

    async def _ask(self, calls: list, first: int, last: int, endpoints: set[Endpoint]) -> list:
        answers = await self.rpc.batch(calls, refusable=True, usable=lambda answer: answer is not None)
        endpoints |= answers.endpoints
        for (method, _), answer in zip(calls, answers, strict=True):
            if not isinstance(answer, Refusal):
                continue
            what = f"{method} of blocks {first} to {last}: {answer}"
            if not answer.too_large:  # another may know
                self.rpc.distrust(answers.endpoints, what)
            if method == "eth_getLogs" and last > first:
                self._refused = last - first + 1
                self.chunk_blocks = self._refused // 2
                raise TooMany(what)
            # what one node cannot tell now is no gap
            raise Malformed(what) if answer.too_large or answer.forgotten else RpcError(what)
        return list(answers)

    async def headers(self, numbers: Sequence[int], endpoints: set[Endpoint]) -> dict[int, Header]:
        """Headers by number; `endpoints` is given those that answered. Raises `RpcError`."""
        answers = await self.rpc.batch([header_call(number) for number in numbers], usable=read_header)
        endpoints |= answers.endpoints
        return {number: checked_header(raw, number) for number, raw in zip(numbers, answers, strict=True)}

    def grow(self, logs: int) -> None:
        """A chunk had so many logs: the next one may have more blocks."""
        if logs < MANY_LOGS:
            fast = 2 * self.chunk_blocks <= self._refused
            larger = 2 * self.chunk_blocks if fast else self.chunk_blocks + self.chunk_blocks // 8 + 1
            self.chunk_blocks = min(larger, MAX_CHUNK_BLOCKS)

    async def patiently(self, read: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Read something of the contract that can be told to be wrong, up to three times, each time from others."""
        for _ in range(2):
            try:
                return await read(self.rpc, self.contract, *arguments)
            except Malformed as error:
                self.rpc.distrust(error.endpoints, str(error))
        return await read(self.rpc, self.contract, *arguments)


def _without_index(log: Log) -> tuple:
    return log.block, *log[3:]  # nodes count it differently; what it says they cannot


def checked_header(raw: Any, number: int) -> Header:
    header = read_header(raw)
    if header.number != number:
        raise Malformed(f"block {header.number} instead of {number}")
    return header


class Follower:
    """Where reading a pool has come to, and how it goes on."""

    tip: Tip  # replaced as a whole, never changed

    def __init__(
        self,
        rpc: Rpc,
        file: EventFile,
        contract: Contract,
        confirmations: int,
        operators: Collection[str] | None = (),
    ):
        self.rpc, self.file, self.contract, self._confirmations = rpc, file, contract, confirmations
        self.reader = Reader(rpc, contract)
        self.first = 0  # events are known from the block after this one on
        self.vaults: set[str] = set()  # addresses whose tokens have names in the events
        self.operators = operators  # who may mint for them besides; None: whoever
        self.gaps: list[tuple[int, int, str]] = []  # first and last block whose events could not be had, and why
        self.replaced: list[tuple[int, int]] = []  # first and last block read and then replaced, since the start
        self.moved = asyncio.Condition()  # notified when the tip has moved
        self._moved_at = time.monotonic()
        self._blocks: dict[int, Block] = {}
        self._strikes, self._struck = 0, 0
        self._busy = asyncio.Lock()  # held while the tip changes

    async def begin(self, first: int | None, vaults: set[str], path: str | Path) -> None:
        """Start, or go on where the file ends. Raises `RpcError`, and `MarketError` for a file of something else."""
        found, pair = await self.file.facts(), self.contract.pair
        facts = {"chain": str(pair.chain_id), "pool": pair.pool_address}
        asked = facts | ({} if first is None else {"first": str(first)})
        if found and found | asked != found:
            raise MarketError(f"{path} was made for {found}, not {asked}; choose another file")
        if not found:
            number = await self._confirmed() if first is None else first
            found = facts | {"first": str(number)}
            await self.file.begin(found, *await self._read_pool(number))
        self.first, self.vaults = int(found["first"]), await self.file.vaults()
        await self._load()
        at = self.tip.block
        for vault in sorted(vaults - self.vaults):
            held, _ = await self.reader.patiently(read_vault, vault, at.hash)
            await self.name(vault, held, at)

    async def block(self, number: int) -> Block:
        """A block up to the tip. Raises `RpcError`."""
        if number not in self._blocks:
            block = await self.file.block(number)
            self._blocks[number] = block or (await self.reader.headers([number], set()))[number].block
        return self._blocks[number]

    # -- following

    async def catch_up(self, until: int | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Read on to the confirmed head, or to a block before it; `progress` is told each that is reached.

        Raises `RpcError` where no endpoint answers.
        """
        async with self._busy:
            target = await self._confirmed()
            target = target if until is None else min(target, until)
            draft = None
            while (tip := draft.tip if draft else self.tip).block.number < target:
                last = min(target, tip.block.number + self.reader.chunk_blocks)
                draft = draft or Draft(self.tip.copy())
                try:
                    sound = await self._extend(draft, last, last == target)
                except TooMany as error:
                    draft = None if draft.tip.block == self.tip.block else draft  # half read it may be
                    log.info("%s; %d blocks at a time now", error, self.reader.chunk_blocks)
                except Reorganised:
                    draft = None
                    await self._roll_back()
                    target = min(target, await self._confirmed())
                except Malformed as error:
                    draft = None
                    await self._strike(error, last)
                else:
                    if sound:
                        await self._commit(draft)
                        draft = None
                    if progress:
                        progress(last)

    async def follow(self, poll_seconds: float) -> None:
        """Catch up again and again; what fails is said and tried again."""
        while True:
            try:
                await self.catch_up()
            except Malformed as error:
                self.rpc.distrust_last(str(error))
            except (RpcError, MarketError, sqlite3.Error) as error:  # a full disk, say; nothing is half written
                log.warning("the chain cannot be followed just now: %s", error)
            except Exception:
                log.exception("the chain cannot be followed just now")
            await asyncio.sleep(poll_seconds)

    async def _confirmed(self) -> int:
        """The last block with enough on top of it: of what two endpoints say, or one where there is but one.

        An endpoint that is behind the last block that was read rests. One that is far ahead of all others is not
        believed, unless nothing has come for a while.
        """
        known, heads = self.tip.block.number if self.first else 0, {}
        for endpoint, raw in (await self.rpc.each(*header_call("latest"), read_header)).items():
            heads[endpoint] = read_header(raw).number
        for endpoint in [one for one, number in heads.items() if number < known]:
            endpoint.rest(f"its head is {heads.pop(endpoint)}, block {known} was read before")
        if not heads:
            raise RpcError("no endpoint knows the head")
        (furthest, head), *others = sorted(heads.items(), key=lambda pair: -pair[1])
        if others and time.monotonic() - self._moved_at < STALL_SECONDS:
            if head > others[0][1] + FAR_AHEAD_BLOCKS:
                log.warning("RPC %s: its head is %d, all others' at most %d", furthest.name, head, others[0][1])
            head = others[0][1]
        return head - self._confirmations

    async def _extend(self, draft: Draft, last: int, must_check: bool) -> bool:
        """Read a chunk into the draft; returns whether the pool is then known to be the contract's.

        Raises `TooMany`, and `Reorganised`, `Malformed` and `RpcError`, after which the draft is of no use; after
        `TooMany` neither where it holds no chunk yet.
        """
        tip, first = draft.tip, draft.tip.block.number + 1
        endpoints: set[Endpoint] = set()
        may_halve = False
        try:
            logs, headers = await self.reader.logs(first, last, self.vaults, tip.tokens, endpoints)
            if headers[first].parent != tip.block.hash:
                raise Reorganised
            times = {number: header.time for number, header in headers.items()}
            last_block = headers[last].block
            state = await read_state(self.rpc, self.contract, last_block.hash, must_check, endpoints)
            # Slipstream's gauge takes another part of unstaked fees than before: from where on matters
            turned = state and state.unstaked_fee is not None and state.unstaked_fee != tip.pool.unstaked_fee
            if turned and last > first and any(one.name in ("Swap", "Flash") for one in logs):
                self.reader.chunk_blocks = (last - first + 1) // 2
                raise TooMany(f"the unstaked fee changed in blocks {first} to {last}")
            if any(one.block_hash != headers[one.block].hash for one in logs):
                raise Malformed("logs of blocks that are not in the chain")
            strange = await self._strange(logs)
            named = name_tokens(logs, self.contract, self.vaults, tip.tokens, strange)
            mine = [one for one in logs if one.address in self.contract.addresses or one[:2] in named.moved]
            events, released = to_events(mine, self.contract, times, named, tip.released)
            # Slipstream's fee may have changed and changed back: in one block it is seen, and until then nobody lied
            may_halve = self.contract.slipstream and last > first and tip.block == self.tip.block
            tip.pool, events = await asyncio.to_thread(follow_to, tip.pool, events, state)
            tip.block = last_block
        except (TooMany, Reorganised, MarketError):
            raise
        except Exception as error:  # whatever an answer does to who reads it
            if isinstance(error, RpcError) and not isinstance(error, Malformed):
                raise
            ours, why = isinstance(error, Malformed | ReplayError | PoolError), type(error).__name__
            if not ours:
                log.exception("blocks up to %d cannot be read", last)
            elif may_halve:
                self.reader.chunk_blocks = (last - first + 1) // 2
                raise TooMany(f"blocks {first} to {last} contradict themselves: {error}") from error
            said_by = endpoints | getattr(error, "endpoints", set())
            raise Malformed(f"up to block {last}: {error if ours else why}", said_by) from error
        draft.events += events
        draft.blocks |= {number: header.block for number, header in headers.items()}
        draft.released += released
        draft.endpoints |= endpoints
        draft.tokens += named.rows
        self.reader.grow(len(logs))
        return state is not None

    async def _strange(self, logs: Sequence[Log]) -> set[str]:
        """The transactions in which strangers minted for a vault. Raises `RpcError`."""
        if self.operators is None:
            return set()
        mints = [one for one in logs if one.name == "Transfer" and one.values[0] == NULL_ADDRESS]
        to = {one.transaction: one.values[1] for one in mints if one.values[1] in self.vaults}
        senders = await read_senders(self.rpc, to) if to else {}
        return {one for one, sender in senders.items() if not counts(sender, to[one], self.operators)}

    async def _commit(self, draft: Draft) -> None:
        await self.file.commit(draft)
        self.rpc.trust(draft.endpoints)
        if draft.tip.block.number >= self._struck:
            self._strikes = 0
        await self._move(draft.tip)

    async def _load(self) -> None:
        tip, self.gaps = await self.file.load()
        await self._move(tip)

    async def _move(self, tip: Tip) -> None:
        self.tip, self._moved_at = tip, time.monotonic()
        if len(self._blocks) > MAX_KEPT_HEADERS:
            self._blocks.clear()
        async with self.moved:
            self.moved.notify_all()

    async def _read_pool(self, number: int) -> tuple[Block, Snapshot, tuple[int, int]]:
        """A block, and the contract's pool and protocol fees after it."""
        block = (await self.reader.headers([number], set()))[number].block
        snapshot, state = await self.reader.patiently(read_pool, block)
        return block, snapshot, state.protocol_fees

    # -- when something is wrong

    async def check(self, tip: Tip, snapshot: Snapshot, state: State) -> None:
        """Hold the replayed pool against the contract's, tick by tick: the one is where the other was read."""
        pool = tip.pool.copy()
        if self.contract.slipstream:  # what the factory answers now no event tells
            pool.set_fees(state.fee, state.unstaked_fee)
        mine = Snapshot.of(pool, (), (0, 0), snapshot.block, snapshot.block_time, snapshot.block_hash)
        sound = mine == snapshot and not State.of(pool).differences(state)
        async with self._busy:
            if sound:
                if self.tip is tip:
                    await self.file.put_anchor(tip.block, snapshot, state.protocol_fees)
                return
            wrong = sorted({tick.index for tick in set(mine.ticks) ^ set(snapshot.ticks)})[:5]
            anchor, after = await self.file.anchor(), tip.block.number
            what = "after block %d the replayed pool is not the contract's (ticks %s): blocks from %d on are read again"
            log.error(what, after, wrong, anchor + 1)
            if self.tip is tip:
                await self._forget_after(anchor)

    async def _strike(self, error: Malformed, last: int) -> None:
        """Somebody lied, or something is lost: ask others, then doubt what was read before, then give the place up."""
        first = self.tip.block.number + 1
        self._strikes, self._struck = self._strikes + 1, max(self._struck, first)
        self.rpc.distrust(error.endpoints, f"blocks {first} to {last}: {error}")
        self.reader.chunk_blocks = max(1, (last - first + 1) // 2)
        if self._strikes == STRIKES // 2:
            if (anchor := await self.file.anchor()) < first - 1:
                log.warning("blocks %d to %d are read again: something in them may be missing", anchor + 1, first - 1)
                await self._forget_after(anchor)
        elif self._strikes >= STRIKES:  # note a gap and go on behind it, from the contract's own state
            self._strikes = 0
            log.error("the events of blocks %d to %d cannot be had: %s", first, last, error)
            await self.file.put_gap(first, str(error), *await self._read_pool(last))
            await self._load()

    async def _roll_back(self) -> None:
        """Blocks were replaced: find the last one that was not, and forget all after it."""
        blocks, old = await self.file.newest_blocks(MAX_BACKWARDS_BLOCKS), self.tip.block.number
        for at in range(0, len(blocks), 100):
            part = blocks[at : at + 100]
            answers = await self.rpc.batch([header_call(block.number) for block in part])
            for block, raw in zip(part, answers, strict=True):
                if raw is not None and checked_header(raw, block.number).hash == block.hash:
                    count, first = await self._forget_after(block.number), block.number + 1
                    self.replaced.append((first, old))
                    what = "reorganisation: blocks %d to %d were replaced; %d events rolled back, read again"
                    log.warning(what, first, old, count)
                    return
        raise MarketError(f"no block up to {old} is in the chain any more; is it the same chain? Use a new file")

    async def _forget_after(self, block: int) -> int:
        """Go back to a block; returns how many events that took."""
        count = await self.file.forget_after(block)
        self._blocks = {number: kept for number, kept in self._blocks.items() if number <= block}
        await self._load()
        return count

    async def known(self, vault: str, block: int) -> list[int] | None:
        """A vault's own tokens after a block, as the logs tell; None where it is not followed yet."""
        tokens = await self.file.tokens(block) if vault in self.vaults else None
        return tokens and [token_id for token_id, token in tokens.items() if token.vault == vault]

    async def name(self, vault: str, held: Sequence[TokenPosition], at: Block) -> dict[int, NamedToken]:
        """Names for the tokens that a vault holds after a block, kept while it holds them; strangers' have none.

        What no log has told of who holds them is made good at the tip. Raises as `read_minters`.
        """
        strange, then = [], await self.file.tokens(at.number)
        if self.operators is not None:
            new = [one.token_id for one in held if one.token_id not in then or not then[one.token_id].owner]
            minters = await read_minters(self.rpc, self.contract, new, at.number) if new else {}
            strange = [token_id for token_id in new if not counts(minters[token_id], vault, self.operators)]
        held = [one for one in held if one.token_id not in strange and then.get(one.token_id) != STRANGE]
        async with self._busy:
            tokens = dict(self.tip.tokens)
            found, rows, newest = {}, [(str(token_id), *STRANGE, 0) for token_id in strange], at == self.tip.block
            for token_id in set(tokens) - {position.token_id for position in held} if newest else ():
                if tokens[token_id].vault == vault:
                    rows.append((str(token_id), *tokens.pop(token_id)._replace(owner=""), at.number))
            for token_id, lower, upper, *_ in held:
                known = [one[token_id] for one in (then, tokens) if token_id in one and one[token_id].vault == vault]
                found[token_id] = known[0] if known else NamedToken.of(vault, token_id, (lower, upper), tokens)
                if not known and (newest or token_id not in tokens):
                    tokens[token_id] = found[token_id]  # never known, it was there before: no way back forgets it
                    rows.append((str(token_id), *found[token_id], at.number if token_id in then else 0))
            if rows or vault not in self.vaults:
                await self.file.name(vault, rows)
                if vault not in self.vaults:
                    log.info("vault %s: its positions are followed from block %d on", vault, self.tip.block.number + 1)
                self.vaults.add(vault)
                self.tip = replace(self.tip, tokens=tokens)
            return found
