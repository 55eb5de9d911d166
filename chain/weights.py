"""Weights: set on the chain when they are due, each attempt and its fate on record, whatever they are for.

    weigher = Weigher(store, chain, earned, dry_run=False)
    outcome = await weigher.weigh(now, block)          # None: nothing is known yet

An attempt ends in one row of the table `weights`: its code, the chain's name of the error, the block of the next try.
What may pass by itself is tried again when `WriteOutcome.next` says; what only a person can mend as well, which costs
nothing, for both chains refuse it before anything is signed. Under commit-reveal a vector is committed first, and read
back once it should have been revealed. Read next: `base.py`, `scoring.py` (`job_shares`, `weight_vector`).
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import scoring
from chain.base import Chain, Metagraph, Next, Refused, WriteOutcome, done, vector_in_force
from chain.journal import Journal
from chain.notify import day_before, summary_due
from protocol import Code
from runtime.db import StoreError, insert
from store import Store
from wire.codec import canonical

DAY_SECONDS = 86_400
RANKED_WINDOW_SECONDS = DAY_SECONDS  # who was ranked in half of this window's rounds shares the weights
INTERVAL_BLOCKS = 360  # one tempo of the subnet's chain
RETRY_BLOCKS = 25
VERSION_KEY = 1000  # of the code that makes the vector; the subnet's owner may demand a least one

Vector = dict[str, Decimal]  # by hotkey
Uids = dict[int, Decimal]
Memory = Store | Journal  # where the table `weights` remembers each attempt

log = logging.getLogger("weights")


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to set weights: at which block of the subnet's chain, how it ended, what was sent, the next try."""

    block: int
    code: Code
    uids: Uids
    next_block: int


async def last_weights(store: Memory) -> Attempt | None:
    """The newest attempt to set weights."""
    sql = "SELECT block, code, uids, next_block FROM weights ORDER BY id DESC LIMIT 1"
    for block, code, uids, next_block in await store.read(lambda db: db.execute(sql).fetchall()):
        parts = {int(uid): Decimal(part) for uid, part in json.loads(uids).items()}
        return Attempt(block, Code(code), parts, next_block)
    return None


def has_scored(db: sqlite3.Connection, by: int) -> bool:
    """Whether any round that ended by then was scored."""
    return bool(db.execute("SELECT 1 FROM rounds WHERE code = 'scored' AND end_time <= ? LIMIT 1", (by,)).fetchall())


async def weights_noted(store: Memory) -> int:
    """The subnet chain's block of the newest attempt that the chain took; 0 before the first."""
    sql = "SELECT max(block) FROM weights WHERE code IN ('weights_set', 'weights_committed')"
    return (await store.read(lambda db: db.execute(sql).fetchone()))[0] or 0


async def add_weights(
    store: Memory, now: int, block: int, vector: Vector, uids: Uids, code: Code, name: str, detail: str, next_block: int
) -> None:
    """An attempt to set weights and how it ended."""
    row = {"market_time": now, "block": block, "code": code, "name": name, "detail": detail, "next_block": next_block}
    for column, parts in (("vector", vector), ("uids", uids)):
        row[column] = canonical({str(key): str(part) for key, part in parts.items()}).decode()
    await store.write(lambda db: insert(db, "weights", [row]))


async def daily_summary(store: Store, now: float) -> str | None:
    """What to tell of the day, at the first look after 00:00 UTC; None at all others."""
    last = await store.recall("last summary")
    day, text = summary_due(now, last or day_before(now)), None
    if day:
        counts, attempt = await store.counts(int(now) - DAY_SECONDS), await last_weights(store)
        rounds = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no round ended"
        weights = f"{attempt.code} at block {attempt.block}, next at {attempt.next_block}" if attempt else "none"
        text = f"{day}: {rounds}; weights: {weights}"
    if day or not last:
        await store.remember("last summary", day or day_before(now))
    return text


async def earned(store: Store, now: int, metagraph: Metagraph) -> Vector | None:
    """What reputations are worth, by each mechanism's share and each active job's weight; None before any is known."""
    if not await store.read(lambda db: has_scored(db, now)):
        return None
    try:
        shares = await store.mechanism_shares()
    except StoreError as wrong:
        if wrong.__cause__:  # the database itself
            raise
        raise Refused("ValueError", wrong) from None
    won: dict[str, list[tuple[Decimal, dict]]] = {name: [] for name in shares}
    for job in [job for job in await store.jobs() if job.active]:
        finished, ranked = await store.ranked_since(job.job_id, now - RANKED_WINDOW_SECONDS, now)
        reputations, rules = await store.reputations(job.job_id), job.settings.reputation
        candidates = [
            scoring.Candidate(hotkey, reputations[hotkey].standing.combined(rules), rounds, neuron.registered_block)
            for hotkey, rounds in ranked.items()
            if (neuron := metagraph.by_hotkey(hotkey))
        ]
        part = scoring.job_shares(job.settings.shares, candidates, finished)
        won[job.mechanism].append((job.settings.weight, part))
    return scoring.weight_vector([(shares[name], jobs) for name, jobs in won.items()])


@dataclass
class Weigher:
    """Sets one hotkey's weights."""

    store: Memory
    chain: Chain
    wanted: Callable[[Any, int, Metagraph], Awaitable[Vector | None]]  # as `earned`; may raise `Refused`
    dry_run: bool = False  # compute and note the vector, and send nothing
    interval_blocks: int = INTERVAL_BLOCKS
    version_key: int | None = VERSION_KEY  # None: whatever the subnet asks for
    next_block: int = field(default=0, init=False)  # of the subnet's chain; before it nobody needs to look

    async def weigh(self, now: int, block: int) -> WriteOutcome | None:
        """Set the wanted weights if they are due, and note how it went.

        Args:
            now: unix seconds, for `wanted`: of the market where there is one.
            block: the subnet chain's at that time.

        Returns:
            How the attempt, or the reading back of an earlier one, ended; None if nothing was due, or if it was
            committed: what becomes of it is known when it is read back. After a `ChainError` nothing was sent or noted.
        """
        if block < self.next_block:
            return None
        last, begun = await last_weights(self.store), self.next_block == 0
        self.next_block = last.next_block if last else 0
        if block < self.next_block and not (begun and last.code is Code.WEIGHTS_REJECTED):  # perhaps it was mended
            return None
        if last and last.code is Code.WEIGHTS_COMMITTED:
            outcome = await vector_in_force(self.chain, last.uids)  # revealed, not yet, or dropped by the chain
            return await self._note_fate(now, block, last.block, {}, last.uids, outcome)
        metagraph, vector = await self.chain.metagraph(), {}
        try:
            vector = await self.wanted(self.store, now, metagraph)
            if vector is None:
                return None
            burn_uid, known = metagraph.burn_uid(), {neuron.hotkey: neuron.uid for neuron in metagraph.neurons}
            if burn_uid is None and not vector.keys() <= known.keys():
                raise Refused("NoBurnUid", "the owner has no neuron to burn to")
            uids = scoring.to_uids(vector, known, burn_uid)
        except Refused as refused:
            outcome, due = refused.outcome(block), block + RETRY_BLOCKS
            return await self._note(now, block, vector, {}, Code.WEIGHTS_REJECTED, outcome, due)
        if self.dry_run:
            due = block + self.interval_blocks
            return await self._note(now, block, vector, uids, Code.WEIGHTS_DRY_RUN, done(block), due)
        lost = last is not None and last.code is Code.WEIGHTS_UNKNOWN
        sent = ({}, last.uids) if lost else (vector, uids)
        if outcome := await self._landed(now, block, metagraph, *sent, lost):
            return outcome
        params = await self.chain.weight_params(self.chain.hotkey)
        version_key = params.version_key if self.version_key is None else self.version_key
        outcome = await self.chain.set_weights(uids, version_key)
        at = max(block, outcome.block)  # the chain went on while it was written; it counts from there
        if outcome.ok and params.commit_reveal:
            due = at + max(RETRY_BLOCKS, metagraph.tempo)
            await self._note(now, at, vector, uids, Code.WEIGHTS_COMMITTED, outcome, due)
            return None
        code, wait = self._verdict(outcome)
        return await self._note(now, at, vector, uids, code, outcome, at + max(1, wait))

    async def _landed(
        self, now: int, block: int, metagraph: Metagraph, vector: Vector, uids: Uids, lost: bool
    ) -> WriteOutcome | None:
        """Note this vector if the chain took it since the last one noted, and nobody knew; else None.

        `lost`: it was sent and its fate is unknown. Else a crash may have come between sending and noting: then only a
        vector in force is believed, for of a commit nobody can see what is in it.
        """
        own = metagraph.by_hotkey(self.chain.hotkey)
        if own is None or own.last_update_block <= await weights_noted(self.store):
            return None
        outcome = await vector_in_force(self.chain, uids)
        if not outcome.ok and not (lost and outcome.next is Next.WAIT_BLOCKS):
            return None
        return await self._note_fate(now, block, own.last_update_block, vector, uids, outcome)

    async def _note_fate(
        self, now: int, block: int, taken_block: int, vector: Vector, uids: Uids, outcome: WriteOutcome
    ) -> WriteOutcome:
        """Note what `vector_in_force` says of a vector that the chain took at `taken_block`: the interval's start."""
        if outcome.ok:
            due = max(block + 1, taken_block + self.interval_blocks)
            return await self._note(now, block, vector, uids, Code.WEIGHTS_SET, outcome, due)
        if outcome.next is Next.WAIT_BLOCKS:
            due = block + max(RETRY_BLOCKS, outcome.wait_blocks)
            return await self._note(now, taken_block, {}, uids, Code.WEIGHTS_COMMITTED, outcome, due)
        return await self._note(now, block, {}, uids, Code.WEIGHTS_REJECTED, outcome, block + RETRY_BLOCKS)

    async def _note(
        self, now: int, block: int, vector: Vector, uids: Uids, code: Code, outcome: WriteOutcome, due: int
    ) -> WriteOutcome:
        await add_weights(self.store, now, block, vector, uids, code, outcome.name, outcome.detail, due)
        self.next_block = due
        bad = code in (Code.WEIGHTS_REJECTED, Code.WEIGHTS_UNKNOWN)
        shown = ", ".join(f"uid {uid} {float(weight):.3f}" for uid, weight in uids.items()) or "no weights"
        reason = f" ({outcome.detail})" if outcome.name else ""
        level = logging.WARNING if bad else logging.INFO
        log.log(level, "%s at block %d: %s%s; next try at block %d", code, block, shown, reason, due)
        return outcome

    def _verdict(self, outcome: WriteOutcome) -> tuple[Code, int]:
        """What an attempt's outcome is called, and after how many blocks the next one follows."""
        if outcome.ok:
            return Code.WEIGHTS_SET, self.interval_blocks
        code, wait = {
            Next.WAIT_BLOCKS: (Code.WEIGHTS_TOO_SOON, outcome.wait_blocks),
            Next.SIGN_AGAIN: (Code.WEIGHTS_REJECTED, 1),
            Next.READ_STATE_FIRST: (Code.WEIGHTS_UNKNOWN, outcome.wait_blocks),
            Next.NOTHING: (Code.WEIGHTS_REJECTED, RETRY_BLOCKS),
        }[outcome.next]
        return code, self.interval_blocks if outcome.paid else wait
