"""A live round: the proven winner on the vault itself, from its first ask to what the chain shows at the close.

Asked like everybody in an evaluation, but each decision is carried out by the market, and the score is what the vault
then really had. What an earlier run of the round has stored is not done again.
Read first: `asking.py`, `validator.py`. Read next: `liquidity/live.py` (the score), `executor/client.py` (the bot).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import scoring
from liquidity.live import acted, was_carried_out
from markets.base import MarketError
from protocol import FIRST_ASK_LEAD_SECONDS, Code, Job
from spine.asking import Asker, read
from spine.mechanism import Mechanism, World
from spine.schedule import DAY_SECONDS, Turns
from store import Opened, Prediction, Store

log = logging.getLogger("validator")


class Skipped(Exception):
    """This live round is not played: its code, why in words, and how many miners were asked."""

    def __init__(self, code: Code, detail: str, asked: int = 0):
        super().__init__(detail)
        self.code, self.detail, self.asked = code, detail, asked


class Live:
    """Plays live rounds of mechanisms that have them."""

    def __init__(self, store: Store, world: World, asker: Asker):
        self.store, self.world, self.market, self.asker = store, world, world.market, asker
        self.deciding = Turns()  # of all live rounds, those between a due block and what is done at it

    async def play(self, mechanism: Mechanism, job: Job, round_id: str, start: int, begun: Opened) -> tuple[Any, Any]:
        """Play one round; the inputs of `mechanism.play_live`, and why later asks had no accepted answer.

        Raises:
            Skipped: it has no manager, or that one does not want it.
            MarketError: the market, or the bot, does not say what happened.
        """
        market, end, stored = self.market, start + job.round_seconds, begun.predictions
        hotkey = next(iter(stored[min(stored)])) if stored else await self._manager(mechanism, job, start)
        peers = {name: peer for name, peer in (await self.asker.peers(start)).items() if name == hotkey}
        if not stored:
            if not peers:
                raise Skipped(Code.LIVE_WINNER_GONE, f"{hotkey} is not registered or has no endpoint")
            first = await self._ask(mechanism, job, round_id, start, hotkey, peers, 0)
        await market.reach_time(start)
        key, missed = (end, job.job_id), []
        with self.deciding.listed(key):
            opening = await market.first_block_at(start)
            if not stored:
                ask = first.row(round_id, opening.number, (await market.head()).number + 1, first=True)
                await self.store.add_predictions([ask])  # first: a decision is carried out at most once
                stored = {opening.number: {hotkey: ask}}
            ask = stored[opening.number][hotkey]
            if ask.code is not Code.ACCEPTED:
                raise Skipped(ask.code, f"{hotkey}: {ask.detail}", asked=1)
            snapshot = await mechanism.observe(self.world, job, opening)
            await self.store.open_window(round_id, market.pair.pool_address, snapshot)
            await self._execute(mechanism, key, ask)
        due, next_ask = opening.number, end - FIRST_ASK_LEAD_SECONDS - market.settle_seconds
        while True:
            due += mechanism.interval_blocks(job.settings)
            head = await market.reach_first(due, next_ask)
            over = head.time >= next_ask  # who is asked from now on for the next round is shown this vault
            if over and not (market.settle_seconds and due <= max(stored)):  # what was sent before a crash is settled
                break
            with self.deciding.listed(key):
                ask = stored.get(due, {}).get(hotkey)
                if not (ask or over) and head.number < due + mechanism.interval_blocks(job.settings):  # else: away
                    done = [e for e in await self.store.executions_of(round_id) if acted(e)]
                    changes = sum(execution.block <= head.number for execution in done)
                    said = await self._ask(mechanism, job, round_id, start, hotkey, peers, changes)
                    ask = said.row(round_id, due, (await market.head()).number + 1)
                    await self.store.add_predictions([ask])
                if ask and ask.code is Code.ACCEPTED:
                    await self._execute(mechanism, key, ask)
                elif ask:
                    missed.append(ask.detail)
        await market.reach_time(end)
        close = await market.first_block_at(end)
        events = await market.events(opening.number, close.number - 1)
        await self.store.add_events(market.pair.pool_address, opening.number, close.number - 1, events)
        executions = await self.store.executions_of(round_id)
        closing = await mechanism.observe(self.world, job, close) if market.settle_seconds else None
        return (job.settings, snapshot, close.number, events, hotkey, executions, closing), missed

    async def _ask(self, mechanism, job, round_id, start, hotkey, peers, changes):
        """Ask the manager about the vault as it is now."""
        head = await self.market.head()
        shown = mechanism.game(job.settings, await self.market.snapshot(job.vault, head.number + 1))
        moment = await self.asker.moment(job, round_id, "live", start, head)
        query = shown.query(moment, changes=changes)
        (said,) = await self.asker.ask(mechanism, {hotkey: query}, peers, await self.asker.patience(moment.deadline))
        return said

    async def _manager(self, mechanism: Mechanism, job: Job, start: int) -> str:
        """The winner of the newest evaluation, if it is proven. Raises `Skipped`."""
        head = await self.market.head()
        hotkey = await self.store.last_winner(job.job_id, head.time)
        if detail := self.market.read_only or await self._unfit(job):
            raise Skipped(Code.LIVE_READ_ONLY_MARKET, detail)
        if not hotkey:
            raise Skipped(Code.LIVE_NO_WINNER, "no evaluation has finished with a winner yet")
        if too_late := await self.asker.too_late(head, start):
            raise Skipped(Code.VOID_INTERRUPTED, too_late)
        days = await self.store.days(job.job_id, hotkey, head.time)
        eligible, count = scoring.live_eligible(days, head.time // DAY_SECONDS)
        if not eligible:
            window, needed = scoring.LIVE_WINDOW_DAYS, scoring.LIVE_MIN_DAYS
            detail = f"{hotkey} was ranked on {count} of the last {window} days, {needed} are needed"
            raise Skipped(Code.LIVE_NOT_ELIGIBLE, detail)
        return hotkey

    async def _unfit(self, job: Job) -> str:
        """Why a job has no live rounds although the market could execute; empty if it has."""
        if (settle := self.market.settle_seconds) and job.round_seconds < (needed := FIRST_ASK_LEAD_SECONDS + settle):
            return f"rounds of {job.round_seconds} s end before a decision is settled, which takes up to {needed} s"
        same = [other for other in await self.store.jobs() if other.active and other.live and other.vault == job.vault]
        manager = min((other.job_id for other in same), default=job.job_id)
        return "" if manager == job.job_id else f"job {manager} manages this vault"

    async def _execute(self, mechanism: Mechanism, key: tuple, ask: Prediction) -> None:
        """Carry an answer out on the market, unless it changes nothing or was carried out before a crash.

        What failed is noted too, and the round goes on with what the vault really has. Raises `MarketError` where
        nobody says how it ended: then nobody can say any more whose the vault's changes are.
        """
        if self.market.full_speed:  # in one order within a block, once all that woke with it have listed themselves
            await asyncio.sleep(0)
            await self.deciding.turn(key)
        order = mechanism.order(ask.round_id, *read(mechanism, ask))
        if order is None or await self.store.was_executed(ask.round_id, ask.effective_block):
            return
        execution = await self.market.execute(order)
        await self.store.add_execution(ask.round_id, ask.effective_block, execution)
        if not was_carried_out(execution):
            sent, what = execution.sent, f"{ask.round_id}: the decision at block {ask.due_block}"
            log.warning("%s was not carried out: %s, %s", what, sent.code, sent.detail)
            if sent.code == Code.EXECUTION_UNKNOWN:
                raise MarketError(f"the executor bot does not say what became of a decision: {sent.detail}")
