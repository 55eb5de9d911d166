"""Follow a pool on a chain: its events land in a SQLite file, once each, held against replay and contract.

Logs are read in chunks, and every swap is made again on an exact pool, which finds the call behind it. At the end of
each chunk the replayed pool must be the contract's, fee growth and all: a node that left logs out, or told some twice,
is found before anybody sees them. Events land together with the cursor, in one transaction. Block hashes tie everything
to one chain: where a reorganisation replaced blocks, they are forgotten and read again. What cannot be mended is a
*gap*: it is noted, stepped over, and whoever asks for its blocks is told.

With two endpoints or more, each chunk's logs are asked of two. With one, a mint or burn away from the price that it
leaves out is found when all ticks are compared, at the next snapshot; that a position was poked it can hide for good.
Of a Slipstream pool no log tells the fees. A swap's is found with its call. What the gauge takes of unstaked fees is
asked at each chunk's end: where it changed, blocks are read one by one, and its place is found as the one that makes
the contract's state. Changed and changed back within one chunk it is a contradiction, and chunks get smaller.
The file is a copy of the chain: it may be deleted, and is then fetched again.
Read next: `contracts.py`, `web3market.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import aiosqlite

from evm.abi import MANAGER_LOGS, TRANSFER, Header, Log, Malformed, header_call, read_header, read_log
from evm.manager import NamedToken, TokenPosition, name_tokens, read_vault, to_events
from evm.pool import Contract, State, read_state, read_ticks, snapshot_of
from evm.rpc import Endpoint, Refusal, Rpc, RpcError
from liquidity.calls import find_call, find_call_and_fee
from liquidity.events import Event, ReplayError
from liquidity.replay import Snapshot, apply_event
from liquidity.slipstream import SlipstreamPool
from markets.base import MarketError
from protocol import Block
from runtime.db import transaction, write_lock
from sim import Pool, PoolError
from wire.codec import encode, from_plain

CONFIRMATIONS = 3  # blocks on top of one before it is believed; a reorganisation that deep goes unseen
POLL_SECONDS = 1.0
FIRST_CHUNK_BLOCKS, MAX_CHUNK_BLOCKS = 200, 5000  # of one eth_getLogs; grows while there is little in it
MANY_LOGS = 2000  # in one answer: the chunk does not grow any more
STRIKES = 6  # contradictions at one place before it is called a gap
STALL_SECONDS = 30.0  # without a new block before one endpoint's word is enough for the head
FAR_AHEAD_BLOCKS = 30
KEPT_ANCHORS = 8
MAX_BACKWARDS_BLOCKS = 10_000  # stored blocks that are compared to find where a reorganisation began

SCHEMA = (
    """
    CREATE TABLE facts (               -- chain, pool, and the first block
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) STRICT;
    CREATE TABLE cursor (              -- one row: all events up to this block have landed
        id INTEGER PRIMARY KEY CHECK (id = 0),
        block INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE blocks (              -- those that were looked at: with events, and at the ends of chunks
        number INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        hash TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        block INTEGER NOT NULL,
        log_index INTEGER NOT NULL,
        time INTEGER NOT NULL,
        kind TEXT NOT NULL,
        args TEXT NOT NULL,            -- recording.Event.args as JSON
        PRIMARY KEY (block, log_index)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE released (            -- what a position's burns released and no collect has paid yet, after an event
        block INTEGER NOT NULL,
        log_index INTEGER NOT NULL,
        owner TEXT NOT NULL,
        tick_lower INTEGER NOT NULL,
        tick_upper INTEGER NOT NULL,
        amount0 TEXT NOT NULL,
        amount1 TEXT NOT NULL,
        PRIMARY KEY (block, log_index)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE vaults (              -- whose tokens of the position manager have names in the events
        vault TEXT PRIMARY KEY
    ) STRICT;
    CREATE TABLE tokens (
        token_id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,           -- the name in the events
        tick_lower INTEGER NOT NULL,
        tick_upper INTEGER NOT NULL,
        block INTEGER NOT NULL         -- where it came
    ) STRICT;
    CREATE TABLE anchors (             -- pools that were the contract's in every tick, after a block
        block INTEGER PRIMARY KEY,
        body BLOB NOT NULL             -- recording.Snapshot without a vault, and protocol fees; JSON, zlib
    ) STRICT;
    CREATE TABLE gaps (                -- blocks whose events could not be had
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        reason TEXT NOT NULL
    ) STRICT
    """,
)

log = logging.getLogger("follower")


def follow(pool: Pool, events: Iterable[Event], likely_fees: Iterable[int] = ()) -> list[Event]:
    """Make the events' calls again on a pool that knows no positions; returns them with every swap's call.

    On Slipstream also with every swap's fee, and with what the gauge takes of unstaked fees: the pool's `unstaked_fee`.

    Raises:
        ReplayError, PoolError: they are not this pool's, or some are missing.
    """
    done, slipstream = [], isinstance(pool, SlipstreamPool)
    for event in events:
        args = event.args
        if event.kind == "swap" and not args[0]:
            if slipstream:
                how, fee = find_call_and_fee(pool, event, likely_fees)
                args = (how, *args[1:], fee, pool.unstaked_fee)
            else:
                args = (find_call(pool, event), *args[1:])
        elif slipstream and event.kind == "flash" and len(args) == 4:
            args = (*args, pool.unstaked_fee)
        event = event._replace(args=args)
        apply_event(pool, event, ())
        done.append(event)
    return done


def follow_to(pool: Pool, events: Sequence[Event], state: State | None) -> tuple[Pool, list[Event]]:
    """As `follow`, up to the contract's state where it is known: the pool in it, which may be another, and the events.

    On Slipstream the factory may have changed what the gauge takes of unstaked fees. No log tells: it is tried before
    each event.

    Raises:
        ReplayError, PoolError, Malformed: they are not this pool's, or some are missing.
    """
    if state is None or state.unstaked_fee is None:
        done = follow(pool, events)
        if state and (differences := State.of(pool).differences(state)):
            raise Malformed(f"the logs and the contract differ: {differences}")
        return pool, done
    differences, turned = "", state.unstaked_fee != pool.unstaked_fee
    for turn in range(len(events) + 1 if turned else 1):
        trial = pool.copy() if turned else pool
        done = follow(trial, events[:turn], (state.fee,)) if turned else []
        trial.set_fees(trial.fee, state.unstaked_fee)
        done += follow(trial, events[turn:] if turned else events, (state.fee,))
        if not (differences := State.of(trial).differences(state)):
            trial.set_fees(state.fee, state.unstaked_fee)
            return trial, done
    raise Malformed(f"the logs and the contract differ: {differences}")


class _Contradiction(Exception):
    """What nodes said cannot be, or not together."""

    def __init__(self, what: str, endpoints: Iterable[Endpoint]):
        super().__init__(what)
        self.endpoints = set(endpoints)


class _Reorganised(Exception):
    """The next block does not follow the last one that was read."""


class _TooMany(Exception):
    """The nodes refuse a chunk of this size."""


@dataclass(slots=True)
class Tip:
    """Where reading has come to: the last block, the pool after it, and what the next events need.

    Attributes:
        block: the last one read.
        pool: replayed; it knows all ticks and no positions.
        released: by position: tokens that its burns released and no collect has paid.
        tokens: the vaults', by id.
    """

    block: Block
    pool: Pool
    released: dict[tuple, tuple[int, int]] = field(default_factory=dict)
    tokens: dict[int, NamedToken] = field(default_factory=dict)

    def copy(self) -> Tip:
        return Tip(self.block, self.pool.copy(), dict(self.released), dict(self.tokens))


@dataclass(slots=True)
class _Draft:
    """What was read beyond the tip and is not committed."""

    tip: Tip
    events: list[Event] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)
    released: list[tuple] = field(default_factory=list)
    tokens: list[tuple] = field(default_factory=list)
    endpoints: set[Endpoint] = field(default_factory=set)


class Follower:
    """Where reading a pool has come to, and how it goes on.

    Attributes:
        rpc, contract: what is read.
        tip: the last block, and all that the next events need; replaced as a whole, never changed.
        first: events are known from the block after this one on.
        vaults: addresses whose tokens have names in the events.
        gaps: (first, last, reason) of blocks whose events could not be had.
        replaced: (first, last) of blocks that were read and then replaced, since the start.
        moved: notified when the tip has moved.
    """

    tip: Tip

    def __init__(self, rpc: Rpc, db: aiosqlite.Connection, contract: Contract, confirmations: int):
        self.rpc, self._db, self.contract, self._confirmations = rpc, db, contract, confirmations
        self.first = 0
        self.vaults: set[str] = set()
        self.gaps: list[tuple[int, int, str]] = []
        self.replaced: list[tuple[int, int]] = []
        self.moved = asyncio.Condition()
        self._moved_at = time.monotonic()
        self._headers: dict[int, Block] = {}
        self._chunk, self._strikes, self._struck = FIRST_CHUNK_BLOCKS, 0, 0
        self._refused = 2 * MAX_CHUNK_BLOCKS  # so many blocks were too many at last: near it the chunk grows slowly
        self._busy = asyncio.Lock()  # held while the tip changes

    # -- what is known

    async def block(self, number: int) -> Block:
        """A block up to the tip. Raises `RpcError`."""
        if number not in self._headers:
            rows = await self._rows("SELECT number, time, hash FROM blocks WHERE number = ?", number)
            block = Block(*rows[0]) if rows else (await self._read_headers([number]))[number].block
            self._headers[number] = block
        return self._headers[number]

    async def events(self, first: int, last: int) -> list[Event]:
        """The events of these blocks, in order."""
        sql = "SELECT * FROM events WHERE block BETWEEN ? AND ? ORDER BY block, log_index"
        return [_event(row) for row in await self._rows(sql, first, last)]

    async def released(self, token: NamedToken, block: int) -> tuple[int, int]:
        """What a position's burns had released before a block and no collect had paid."""
        rows = await self._rows(
            "SELECT amount0, amount1 FROM released WHERE owner = ? AND tick_lower = ? AND tick_upper = ?"
            " AND block < ? ORDER BY block DESC, log_index DESC LIMIT 1",
            *token,
            block,
        )
        return (int(rows[0]["amount0"]), int(rows[0]["amount1"])) if rows else (0, 0)

    # -- following

    async def catch_up(self, until: int | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Read on to the chain's confirmed head, or to a block before it.

        Args:
            until: where to stop.
            progress: called with each block that was reached.

        Raises:
            RpcError: no endpoint answers.
        """
        async with self._busy:
            target = await self._confirmed()
            target = target if until is None else min(target, until)
            draft = None
            while (tip := draft.tip if draft else self.tip).block.number < target:
                last = min(target, tip.block.number + self._chunk)
                draft = draft or _Draft(self.tip.copy())
                try:
                    sound = await self._extend(draft, last, last == target)
                except _TooMany as error:
                    log.info("%s; %d blocks at a time now", error, self._chunk)
                except _Reorganised:
                    draft = None
                    await self._roll_back()
                    target = min(target, await self._confirmed())
                except _Contradiction as error:
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
            except (RpcError, MarketError, sqlite3.Error) as error:  # a full disk, say; nothing is half written
                log.warning("the chain cannot be followed just now: %s", error)
            except Exception:
                log.exception("the chain cannot be followed just now")
            await asyncio.sleep(poll_seconds)

    async def _confirmed(self) -> int:
        """The last block with enough on top of it: of what two endpoints say, or one where there is but one.

        An endpoint that is behind what was read already rests. One that is far ahead of all others is not believed,
        unless nothing has come for a while.
        """
        heads = {}
        for endpoint, raw in (await self.rpc.each(*header_call("latest"))).items():
            try:
                heads[endpoint] = read_header(raw).number
            except Malformed as error:
                endpoint.rest(str(error))
        known = self.tip.block.number if self.first else 0
        for endpoint in [endpoint for endpoint, number in heads.items() if number < known]:
            endpoint.rest(f"its head is {heads.pop(endpoint)}, block {known} was read before")
        if not heads:
            raise RpcError("no endpoint knows the head")
        (furthest, head), *others = sorted(heads.items(), key=lambda pair: -pair[1])
        if others and time.monotonic() - self._moved_at < STALL_SECONDS:
            if head > others[0][1] + FAR_AHEAD_BLOCKS:
                log.warning("RPC %s: its head is %d, all others' at most %d", furthest.name, head, others[0][1])
            head = others[0][1]
        return head - self._confirmations

    async def _extend(self, draft: _Draft, last: int, must_check: bool) -> bool:
        """Read a chunk into the draft; returns whether the pool is then known to be the contract's.

        Raises:
            _TooMany, _Reorganised, _Contradiction, RpcError: the draft is then of no use, except after `_TooMany`.
        """
        tip, first = draft.tip, draft.tip.block.number + 1
        endpoints: set[Endpoint] = set()
        try:
            logs, headers = await self._read_logs(first, last, tip.tokens, endpoints)
            if headers[first].parent != tip.block.hash:
                raise _Reorganised
            times = {number: header.time for number, header in headers.items()}
            last_block = headers[last].block
            state = await read_state(self.rpc, self.contract, last_block.hash, must_check, endpoints)
            if last > first and state and self._turned(tip.pool, state, logs):
                self._chunk = (last - first + 1) // 2
                raise _TooMany(f"the unstaked fee changed in blocks {first} to {last}")
            if any(one.block_hash != headers[one.block].hash for one in logs):
                raise Malformed("logs of blocks that are not in the chain")
            names, new = name_tokens(logs, self.contract, self.vaults, tip.tokens)
            mine = [one for one in logs if one.address in self.contract.addresses]
            events, released = to_events(mine, self.contract, times, names, tip.released)
            tip.pool, events = await asyncio.to_thread(follow_to, tip.pool, events, state)
            tip.block = last_block
        except (Malformed, ReplayError, PoolError) as error:
            what = f"up to block {last}: {error}"
            raise _Contradiction(what, endpoints | getattr(error, "endpoints", set())) from error
        draft.events += events
        draft.blocks |= {number: header.block for number, header in headers.items()}
        draft.released += released
        draft.endpoints |= endpoints
        draft.tokens += [(str(token_id), *tip.tokens[token_id], block) for token_id, block in new]
        if len(logs) < MANY_LOGS:
            fast = 2 * self._chunk <= self._refused
            self._chunk = min(2 * self._chunk if fast else self._chunk + self._chunk // 8 + 1, MAX_CHUNK_BLOCKS)
        return state is not None

    @staticmethod
    def _turned(pool: Pool, state: State, logs: Iterable[Log]) -> bool:
        """Whether Slipstream's gauge takes another part of unstaked fees than before, and it matters from where on."""
        turned = state.unstaked_fee is not None and state.unstaked_fee != pool.unstaked_fee
        return turned and any(one.name in ("Swap", "Flash") for one in logs)

    async def _read_logs(
        self, first: int, last: int, tokens: Mapping[int, NamedToken], endpoints: set[Endpoint]
    ) -> tuple[list[Log], dict[int, Header]]:
        """The logs of some blocks, in order, and the headers of those blocks that have any, and of both ends."""
        span = {"fromBlock": hex(first), "toBlock": hex(last)}
        addresses, kinds = self.contract.addresses, [kind.topic for kind in self.contract.log_types]
        pool = span | {"address": addresses if len(addresses) > 1 else addresses[0], "topics": [kinds]}
        calls = [header_call(first), header_call(last), ("eth_getLogs", [pool])]
        manager = span | {"address": self.contract.manager}
        if self.vaults and self.contract.manager:
            to = ["0x" + vault[2:].rjust(64, "0") for vault in sorted(self.vaults)]
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
        await self._compare([call for call in calls if call[0] == "eth_getLogs"][:1], found[0], endpoints)
        headers = {number: self._header(raw, number) for number, raw in ((first, from_block), (last, to_block))}
        wanted = sorted({one.block for one in logs} - headers.keys())
        return logs, headers | await self._read_headers(wanted, endpoints)

    async def _compare(self, calls: list, logs: list, endpoints: set[Endpoint]) -> None:
        """Where there is another endpoint, it must not know of a log that these left out: not all leave traces."""
        if len(self.rpc.endpoints) == 1 or not (second := await self.rpc.second(calls, endpoints)):
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
                self._chunk = self._refused // 2
                raise _TooMany(f"logs of blocks {first} to {last}: {answer}")
            if refused or answer is None:
                raise Malformed(f"{method} of blocks {first} to {last}: {answer or 'no such block'}")
            if method == "eth_getLogs" and not isinstance(answer, list):
                raise Malformed(f"{method}: no list")
        return list(answers)

    @staticmethod
    def _header(raw, number: int) -> Header:
        header = read_header(raw)
        if header.number != number:
            raise Malformed(f"block {header.number} instead of {number}")
        return header

    async def _read_headers(self, numbers: Sequence[int], endpoints: set[Endpoint] | None = None) -> dict[int, Header]:
        answers = await self.rpc.batch([header_call(number) for number in numbers], usable=bool)
        if endpoints is not None:
            endpoints |= answers.endpoints
        return {number: self._header(raw, number) for number, raw in zip(numbers, answers, strict=True)}

    async def _commit(self, draft: _Draft) -> None:
        """All that a draft brings, and the cursor, in one transaction."""
        tip = draft.tip
        async with transaction(self._db):
            await self._db.executemany(
                "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", [astuple(block) for block in draft.blocks.values()]
            )
            await self._db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                [(*event[:4], json.dumps(event.args, separators=(",", ":"))) for event in draft.events],
            )
            await self._db.executemany("INSERT INTO released VALUES (?, ?, ?, ?, ?, ?, ?)", draft.released)
            await self._db.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)", draft.tokens)
            await self._db.execute("UPDATE cursor SET block = ?", (tip.block.number,))
        self.rpc.trust(draft.endpoints)
        if tip.block.number >= self._struck:
            self._strikes = 0
        await self._move(tip)

    async def _move(self, tip: Tip) -> None:
        self.tip, self._moved_at = tip, time.monotonic()
        if len(self._headers) > 10_000:
            self._headers.clear()
        async with self.moved:
            self.moved.notify_all()

    # -- when something is wrong

    async def _strike(self, error: _Contradiction, last: int) -> None:
        """Somebody lied, or something is lost: ask others, then doubt what was read before, then give the place up."""
        first = self.tip.block.number + 1
        self._strikes, self._struck = self._strikes + 1, max(self._struck, first)
        self.rpc.distrust(error.endpoints, f"blocks {first} to {last}: {error}")
        self._chunk = max(1, (last - first + 1) // 2)
        if self._strikes == STRIKES // 2:
            [(anchor,)] = await self._rows("SELECT max(block) FROM anchors")
            if anchor < self.tip.block.number:
                log.warning("blocks %d to %d are read again: something in them may be missing", anchor + 1, first - 1)
                await self._forget_after(anchor)
        elif self._strikes >= STRIKES:
            self._strikes = 0
            await self._give_up(first, last, str(error))

    async def _give_up(self, first: int, last: int, reason: str) -> None:
        """Note a gap and go on behind it, from the contract's own state."""
        log.error("the events of blocks %d to %d cannot be had: %s", first, last, reason)
        header = (await self._read_headers([last]))[last]
        state, ticks = await self.read(lambda: read_ticks(self.rpc, self.contract, header.hash))
        pool = snapshot_of(self.contract, state, ticks, header.block).open()
        pool.protocol_fees = state.protocol_fees
        tip = Tip(header.block, pool, {}, dict(self.tip.tokens))
        async with transaction(self._db):
            await self._db.execute("INSERT INTO gaps VALUES (?, ?, ?)", (first, last, reason))
            await self._db.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?)", astuple(header.block))
            await self._db.execute("DELETE FROM released")  # who was paid what meanwhile nobody knows
            await self._db.execute("UPDATE cursor SET block = ?", (last,))
            await self._put_anchor(header.block, state, ticks)
        self.gaps.append((first, last, reason))
        await self._move(tip)

    async def _roll_back(self) -> None:
        """Blocks were replaced: find the last one that was not, and forget all after it."""
        rows = await self._rows(
            "SELECT number, time, hash FROM blocks ORDER BY number DESC LIMIT ?", MAX_BACKWARDS_BLOCKS
        )
        old = self.tip.block.number
        for at in range(0, len(rows), 100):
            part = rows[at : at + 100]
            answers = await self.rpc.batch([header_call(row["number"]) for row in part])
            for row, raw in zip(part, answers, strict=True):
                if raw is not None and self._header(raw, row["number"]).hash == row["hash"]:
                    count = await self._forget_after(row["number"])
                    self.replaced.append((row["number"] + 1, old))
                    log.warning(
                        "reorganisation: blocks %d to %d were replaced; %d events rolled back, read again",
                        row["number"] + 1,
                        old,
                        count,
                    )
                    return
        raise MarketError(f"no block up to {old} is in the chain any more; is it the same chain? Use a new file")

    async def _forget_after(self, block: int) -> int:
        """Go back to a block; returns how many events that took."""
        async with transaction(self._db):
            cursor = await self._db.execute("DELETE FROM events WHERE block > ?", (block,))
            for table, column in (("blocks", "number"), ("released", "block"), ("tokens", "block")):
                await self._db.execute(f"DELETE FROM {table} WHERE {column} > ?", (block,))
            await self._db.execute("DELETE FROM anchors WHERE block > ?", (block,))
            await self._db.execute("DELETE FROM gaps WHERE last > ?", (block,))
            await self._db.execute("UPDATE cursor SET block = ?", (block,))
        self._headers = {number: kept for number, kept in self._headers.items() if number <= block}
        await self._load()
        return cursor.rowcount

    async def check(self, tip: Tip, snapshot: Snapshot, state: State) -> None:
        """Hold the replayed pool against the contract's, tick by tick: the one is where the other was read."""
        pool = tip.pool.copy()
        if self.contract.slipstream:  # what the factory answers now no event tells
            pool.set_fees(state.fee, state.unstaked_fee)
        mine = Snapshot.of(pool, (), (0, 0), snapshot.block, snapshot.block_time, snapshot.block_hash)
        if mine == snapshot and not State.of(pool).differences(state):
            async with self._busy:
                if self.tip is tip:
                    async with transaction(self._db):
                        await self._put_anchor(tip.block, state, snapshot.ticks)
            return
        wrong = sorted({tick.index for tick in set(mine.ticks) ^ set(snapshot.ticks)})[:5]
        async with self._busy:
            [(anchor,)] = await self._rows("SELECT max(block) FROM anchors")
            log.error(
                "after block %d the replayed pool is not the contract's (ticks %s): blocks from %d on are read again",
                tip.block.number,
                wrong,
                anchor + 1,
            )
            if self.tip is tip:
                await self._forget_after(anchor)

    async def read(self, read: Callable[[], Awaitable]):
        """Read something that can be told to be wrong, up to three times, each time from others."""
        for _ in range(2):
            try:
                return await read()
            except Malformed as error:
                self.rpc.distrust(error.endpoints, str(error))
        return await read()

    # -- the file

    async def begin(self, first: int | None, vaults: set[str], path: str | Path) -> None:
        """Start, or go on where the file ends.

        Raises:
            MarketError: the file is of another pool or another first block.
            RpcError: the chain cannot be asked.
        """
        found = {row["key"]: row["value"] for row in await self._rows("SELECT * FROM facts")}
        pair = self.contract.pair
        facts = {"chain": str(pair.chain_id), "pool": pair.pool_address}
        asked = facts | ({} if first is None else {"first": str(first)})
        if found and found | asked != found:
            raise MarketError(f"{path} was made for {found}, not {asked}; choose another file")
        if not found:
            number = await self._confirmed() if first is None else first
            block = (await self._read_headers([number]))[number].block
            state, ticks = await self.read(lambda: read_ticks(self.rpc, self.contract, block.hash))
            async with transaction(self._db):
                await self._db.executemany("INSERT INTO facts VALUES (?, ?)", (facts | {"first": str(number)}).items())
                await self._db.execute("INSERT INTO cursor VALUES (0, ?)", (number,))
                await self._db.execute("INSERT INTO blocks VALUES (?, ?, ?)", astuple(block))
                await self._put_anchor(block, state, ticks)
        [(self.first,)] = await self._rows("SELECT CAST(value AS INTEGER) FROM facts WHERE key = 'first'")
        self.vaults = {row["vault"] for row in await self._rows("SELECT vault FROM vaults")}
        await self._load()
        at = self.tip.block
        for vault in sorted(vaults - self.vaults):
            held, _ = await self.read(lambda vault=vault: read_vault(self.rpc, self.contract, vault, at.hash))
            await self.name(vault, held, at)

    async def _load(self) -> None:
        """The tip from the file: the last anchor, and the events since."""
        [(number,)] = await self._rows("SELECT block FROM cursor")
        rows = await self._rows("SELECT * FROM anchors WHERE block <= ? ORDER BY block DESC LIMIT 1", number)
        body = json.loads(zlib.decompress(rows[0]["body"]))
        pool = from_plain(Snapshot, body["snapshot"]).open()
        pool.protocol_fees = tuple(map(int, body["protocol_fees"]))
        events = await self._rows(
            "SELECT * FROM events WHERE block BETWEEN ? AND ? ORDER BY block, log_index", rows[0]["block"] + 1, number
        )
        await asyncio.to_thread(follow, pool, map(_event, events))
        [block] = await self._rows("SELECT number, time, hash FROM blocks WHERE number = ?", number)
        released = {}
        for row in await self._rows("SELECT * FROM released ORDER BY block, log_index"):
            amounts = int(row["amount0"]), int(row["amount1"])
            released[row["owner"], row["tick_lower"], row["tick_upper"]] = amounts
        tokens = {
            int(row["token_id"]): NamedToken(row["owner"], row["tick_lower"], row["tick_upper"])
            for row in await self._rows("SELECT * FROM tokens")
        }
        self.gaps = [tuple(row) for row in await self._rows("SELECT * FROM gaps")]
        await self._move(Tip(Block(*block), pool, released, tokens))

    async def _put_anchor(self, block: Block, state: State, ticks: tuple) -> None:
        body = {
            "snapshot": json.loads(encode(snapshot_of(self.contract, state, ticks, block))),
            "protocol_fees": [str(fees) for fees in state.protocol_fees],
        }
        packed = zlib.compress(json.dumps(body).encode())
        await self._db.execute("INSERT OR REPLACE INTO anchors VALUES (?, ?)", (block.number, packed))
        await self._db.execute(
            "DELETE FROM anchors WHERE block NOT IN (SELECT block FROM anchors ORDER BY block DESC LIMIT ?)",
            (KEPT_ANCHORS,),
        )

    async def name(self, vault: str, held: Sequence[TokenPosition], at: Block) -> dict[int, NamedToken]:
        """Names for the tokens that a vault holds after a block, which they keep while it holds them."""
        async with self._busy:
            tokens = dict(self.tip.tokens)
            ids = {position.token_id for position in held}
            mine = {token_id for token_id, token in tokens.items() if token.owner.partition("#")[0] == vault}
            gone = mine - ids if at == self.tip.block else set()
            for token_id in gone:
                del tokens[token_id]
            new = []
            for token_id, lower, upper, *_ in held:
                if token_id not in tokens:
                    taken = NamedToken(vault, lower, upper) in tokens.values()
                    tokens[token_id] = NamedToken(f"{vault}#{token_id}" if taken else vault, lower, upper)
                    new.append((str(token_id), *tokens[token_id], 0))  # it was there before: no way back forgets it
            if gone or new or vault not in self.vaults:
                async with transaction(self._db):
                    await self._db.execute("INSERT OR IGNORE INTO vaults VALUES (?)", (vault,))
                    await self._db.executemany("DELETE FROM tokens WHERE token_id = ?", [(str(id_),) for id_ in gone])
                    await self._db.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?)", new)
                if vault not in self.vaults:
                    log.info("vault %s: its positions are followed from block %d on", vault, self.tip.block.number + 1)
                self.vaults.add(vault)
                self.tip = replace(self.tip, tokens=tokens)
            return {token_id: tokens[token_id] for token_id in ids}

    async def _rows(self, sql: str, *parameters) -> list:
        async with write_lock(self._db):
            return await self._db.execute_fetchall(sql, parameters)


def _event(row) -> Event:
    return Event(row["block"], row["log_index"], row["time"], row["kind"], tuple(json.loads(row["args"])))
