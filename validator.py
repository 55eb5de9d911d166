"""The validator: asks miners, replays the market on their answers, scores, remembers, sets weights.

    python validator.py                                     a whole local subnet on this machine, on a market model
    python validator.py --events ../shared/data/NAME        the same on the recorded swaps of a real pool
    python validator.py --rounds 3 --dry-run                three rounds, weights are printed and not set
    python validator.py audit all                           recompute every stored round, to the last digit
    python validator.py report                              all that the status page shows, as one file
    python validator.py doctor                              what is needed to run, each with its fix

Every round goes through the same phases, marked in the code: observe, ask, simulate, score, store, weigh. Evaluation
and live rounds of all jobs run side by side; each is one coroutine that reads from top to bottom. After a crash it runs
again, with what the database has of it in place of asking: a market in memory goes back to the first ask of the oldest
round that was open, a market that did not wait finds the round where it now is.
Read first: `protocol.py`, `liquidity/rounds.py`. Read next: `store.py` (what is kept), `miner.py` (the other end).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

import scoring
from audit.checks import audit
from audit.evidence import EvidenceError, seal
from audit.evidence import read as read_evidence
from audit.issuer import issuing
from audit.stored import Pruned, prune
from audit.stored import evidence as stored_evidence
from chain.alerts import AlertRules, day_before, summary_due
from chain.base import BLOCK_SECONDS, Chain, ChainError
from chain.local import block_at
from chain.notify import Notifier, add_notify_options
from chain.weights import INTERVAL_BLOCKS, Weigher, last_weights
from doctor import __main__ as doctor_main
from doctor import finding as finding_module
from doctor import pool
from liquidity import showing
from liquidity.books import Book
from liquidity.events import Event, ReplayError
from liquidity.executions import EXECUTION_SECONDS, Order
from liquidity.judging import judge, kept
from liquidity.live import LiveInputs, acted, play_live, was_carried_out
from liquidity.replay import Snapshot
from liquidity.rounds import PACE_BLOCKS, Decision, Entrant, Round, RoundResult, build_query, plan
from liquidity.tape import Tape
from markets.base import Market, MarketEnded, MarketError, MarketGap
from markets.recordings import RecordingError
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    FIRST_ASK_LEAD_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    UINT128_MAX,
    Block,
    Code,
    Job,
    RebalanceAnswer,
    RebalanceQuery,
)
from runtime.db import StoreError
from runtime.options import add_chain_options, add_logging_options, add_market_options, evm_address, parse_options, url
from runtime.process import EXIT_FAILED, EXIT_OK, Parser, UserError, number, raise_file_limit, run
from scoring import Standing
from sim import PoolError
from spine.ground import REFERENCE_STRATEGIES, Ground, opened, receipts_door
from status import server
from status import validator as validator_module
from status.board import Board, miner_name
from status.reader import NotShown
from store import AlreadyFinished, Opened, Prediction, Reputation, Store
from wire.client import Reply, ask, client_session
from wire.codec import decode, encode
from wire.signing import WireError, local_keypair

DAY_SECONDS = 86_400
LOCAL_HOST = "127.0.0.1"
KEEP_DAYS = 30  # of evidence: what can be audited
SUPERVISE_SECONDS = 60  # market time between two looks at jobs and weights

log = logging.getLogger("validator")


@dataclass(frozen=True, slots=True)
class Peer:
    """A miner as the subnet's chain shows it."""

    hotkey: str
    url: str
    registered_block: int


class _Contradiction(Exception):
    """The market's events contradict the replay: (the block after the last one fed, what contradicts)."""


@dataclass(slots=True)
class _Playing:
    """An evaluation round in progress.

    `busy` miners have an open ask, `waiting` answers do not act yet, `missed` says why later asks meant *keep*.
    """

    job: Job
    round_id: str
    start: int
    game: Round
    peers: dict[str, Peer]
    busy: set[str] = field(default_factory=set)
    waiting: dict[str, Decision] = field(default_factory=dict)
    missed: dict[str, list[str]] = field(default_factory=dict)

    def act(self, block: int) -> None:
        """Let the answers act whose block has come; everything before it has been fed."""
        for hotkey in [hotkey for hotkey, decision in self.waiting.items() if decision.block <= block]:
            self.game.decide(self.waiting.pop(hotkey))

    def take(self, asks: Iterable[Prediction]) -> None:
        """Take in a due block's answers, of now or stored by an earlier run of this round."""
        for row in asks:
            if row.code is Code.ACCEPTED:
                self.waiting[row.hotkey] = _decision(row)
            else:
                self.missed.setdefault(row.hotkey, []).append(row.detail)


class Validator:
    """The orchestrator: what it talks to, and one coroutine for each thing that goes on.

    With `public_only`, as on a real network, no miner is asked at an address that is not public. A `notifier`, if there
    is one, is told of what is wrong.
    """

    def __init__(
        self,
        store: Store,
        chain: Chain,
        market: Market,
        session: aiohttp.ClientSession,
        keypair,
        options,
        names,
        public_only: bool = False,
    ):
        self.store, self.chain, self.market, self.session, self.keypair = store, chain, market, session, keypair
        self.options, self.public_only = options, public_only
        self.notifier: Notifier | None = None
        self.alerts = AlertRules(time.monotonic(), INTERVAL_BLOCKS * BLOCK_SECONDS)
        self.weigher = Weigher(store, chain, options.dry_run)
        self.pool = market.pair.pool_address
        self.running: dict[str, asyncio.Task] = {}
        self.played: dict[str, int] = {}
        self.board = Board(market.label, market.pair, names, options.all_leaderboards, showing)
        self.on_sealed = lambda evidence: None  # told of each round's evidence once it is stored and sealed
        self.until = sys.maxsize  # no round ends after this market time
        self._skips: set[tuple[str, Code]] = set()
        self._open: dict[tuple, asyncio.Event] = {}  # rounds that run, by (end, job, type)
        self._deciding: dict[tuple, asyncio.Event] = {}  # live rounds between a due block and what is done at it
        self._idle: set[str] = set()  # jobs that start no more rounds

    # -- what goes on at once

    async def work(self) -> None:
        """Run all active jobs, watch for new ones, set weights; until stopped, or all rounds asked for are played."""
        market = self.market
        if self.options.days:
            self.until = (await market.block(market.first)).time + self.options.days * DAY_SECONDS
        await self._take_up()
        tick = -(-(await market.head()).time // SUPERVISE_SECONDS) * SUPERVISE_SECONDS
        weighing: asyncio.Task | None = None
        pruned, silence = 0, None if market.full_speed else 2 * SUPERVISE_SECONDS / self.options.pace
        async with asyncio.TaskGroup() as tasks, market.participant():
            while True:
                for job in await self.store.jobs():
                    task = self.running.get(job.job_id)
                    if job.active and not self._done(job.job_id) and (task is None or task.done()):
                        started = asyncio.Event()
                        self._idle.discard(job.job_id)
                        self.running[job.job_id] = tasks.create_task(self._run_job(job.job_id, started))
                        await started.wait()
                try:
                    async with asyncio.timeout(silence):
                        now = (await market.reach_time(tick)).time
                        await self._turn((now + 1,), self._open)
                except MarketEnded:
                    break
                except TimeoutError:  # the market stands still; weights are due all the same, and so are alerts
                    now = await market.now()
                if self.running and self._idle >= self.running.keys() and not self._open:
                    break
                if market.full_speed:
                    await self._weigh(now)
                elif weighing is None or weighing.done():  # a chain may take minutes, and jobs need not wait for it
                    weighing = tasks.create_task(self._weigh(now))
                if (day := now // DAY_SECONDS) != pruned and self.options.keep_days:
                    await prune(self.store, (day - self.options.keep_days) * DAY_SECONDS)
                    pruned = day
                tick = (now // SUPERVISE_SECONDS + 1) * SUPERVISE_SECONDS
        if ended := await self.store.last_end():
            await self._weigh(ended)

    async def _take_up(self) -> None:
        """What an earlier run left open: rounds go on if their window lasts and nothing changed, else they are void."""
        now, jobs = (await self.market.head()).time, {job.job_id: job for job in await self.store.jobs()}
        for begun in await self.store.interrupted():
            job, length = jobs.get(begun.job_id), begun.end_time - begun.start_time
            if now >= begun.end_time:
                why = "its window is over"
            elif not job or not job.active:
                why = "its job was switched off"
            elif (begun.settings, length) != (encode(job.settings).decode(), job.round_seconds):
                why = "its job was changed"
            elif begun.rules_version != scoring.RULES_VERSION:
                why = f"the rules are now version {scoring.RULES_VERSION}"
            else:
                log.info("%s was interrupted and goes on", begun.round_id)
                continue
            detail = f"the validator was stopped in this round, and {why}"
            await self._void(begun.round_id, Code.VOID_INTERRUPTED, detail)
        for round_id in await self.store.finished(unsealed_only=True):
            await self._seal(round_id)

    def _done(self, job_id: str) -> bool:
        return self.options.rounds is not None and self.played.get(job_id, 0) >= self.options.rounds

    async def _run_job(self, job_id: str, started: asyncio.Event) -> None:
        """Start one job's rounds, each `FIRST_ASK_LEAD_SECONDS` before its nominal start, while the job is active."""
        async with asyncio.TaskGroup() as rounds, self.market.participant():
            started.set()
            await self._start_rounds(job_id, rounds)
            self._idle.add(job_id)

    async def _start_rounds(self, job_id: str, rounds: asyncio.TaskGroup) -> None:
        interrupted = sorted({begun.start_time for begun in await self.store.interrupted() if begun.job_id == job_id})
        after = await self.store.newest_end(job_id) or 0
        while not self._done(job_id):
            if not (job := await self._job(job_id)):
                return
            length, head = job.round_seconds, await self.market.head()
            earliest = max(after, head.time + FIRST_ASK_LEAD_SECONDS)
            start = interrupted.pop(0) if interrupted else -(-earliest // length) * length
            if start + length > self.until:
                return
            if not self.market.full_speed and job_id not in self.played and start > head.time:
                log.info("job %s: its next round begins at %s UTC", job_id, time.strftime("%T", time.gmtime(start)))
            try:
                await self.market.reach_time(start - FIRST_ASK_LEAD_SECONDS)
            except MarketEnded:
                return
            if not (job := await self._job(job_id)):
                return
            if job.round_seconds != length:
                after = start
                continue  # rounds start at multiples of their length
            self.played[job_id], after = self.played.get(job_id, 0) + 1, max(after, start + length)
            for play in (self._evaluation, self._live) if job.live else (self._evaluation,):
                entered = asyncio.Event()
                rounds.create_task(self._guarded(play, job, start, entered))
                await entered.wait()

    async def _job(self, job_id: str) -> Job | None:
        """The job as its table has it now, None if it is not active."""
        job = next((job for job in await self.store.jobs() if job.job_id == job_id and job.active), None)
        if not job:
            log.info("job %s is switched off", job_id)
        return job

    async def _turn(self, key: tuple, among: dict[tuple, asyncio.Event]) -> None:
        """Wait for the rounds before this (end, job, type): what follows from rounds follows in one order.

        Those waited for must not need market time any more: they are at or past their last block, or at this one.
        """
        while earlier := [over for other, over in among.items() if other < key]:
            await earlier[0].wait()

    @contextmanager
    def _listed(self, among: dict[tuple, asyncio.Event], key: tuple) -> Iterator[None]:
        """Inside, others wait for this round in `_turn`."""
        over = among[key] = asyncio.Event()
        try:
            yield
        finally:
            del among[key]
            over.set()

    async def _guarded(self, play, job: Job, start: int, entered: asyncio.Event) -> None:
        """One round; whatever goes wrong in it stays in it."""
        round_type = "evaluation" if play == self._evaluation else "live"
        round_id, key = f"{job.job_id}:{round_type}:{start}", (start + job.round_seconds, job.job_id, round_type)
        async with self.market.participant():
            with self._listed(self._open, key):
                entered.set()
                try:
                    rules = scoring.RULES_VERSION
                    if opened := await self.store.begin_round(round_id, job, round_type, start, rules):
                        await play(job, round_id, start, opened)
                except MarketGap as error:
                    await self._void(round_id, Code.VOID_GAP, str(error))
                except (MarketEnded, MarketError, ChainError) as error:
                    await self._void(round_id, Code.VOID_INTERRUPTED, str(error))
                except _Contradiction as error:
                    close_block, detail = error.args
                    first = min((await self.store.predictions(round_id)).items())[1]
                    await self._void(round_id, Code.VOID_CONTRADICTION, detail, len(first), close_block)
                except (StoreError, BrokenPipeError):
                    raise  # without its memory, or its reader, the validator must not go on
                except Exception as error:
                    log.exception("%s failed", round_id)
                    with suppress(AlreadyFinished):  # it failed after its result was stored
                        await self._void(round_id, Code.VOID_INTERRUPTED, f"{type(error).__name__}: {error}")

    async def _void(
        self, round_id: str, code: Code, detail: str, asked: int = 0, close_block: int | None = None
    ) -> None:
        await self._finish(round_id, RoundResult(code, detail), close_block, asked, {})
        skip = round_id.rsplit(":", 2)[0], code
        skipped, known = code.startswith("live"), skip in self._skips
        self._skips.add(skip)
        log.log(
            logging.DEBUG if skipped and known else logging.INFO if skipped else logging.WARNING,
            "%s: %s, %s%s",
            round_id,
            code,
            detail,
            "; further rounds that are skipped for this are noted in the database only" if skipped else "",
        )

    async def _finish(
        self,
        round_id: str,
        result: RoundResult,
        close_block: int | None,
        asked: int,
        standings: dict[str, Standing],
        day: int = 0,
    ) -> dict[str, Reputation]:
        """Store and seal a result; the job's reputations after it."""
        job_id = round_id.rsplit(":", 2)[0]
        reputations = await self.store.finish_round(round_id, job_id, result, close_block, asked, standings, day)
        await self._seal(round_id)
        return reputations

    async def _seal(self, round_id: str) -> None:
        """Sign the evidence; a crash before this leaves a finished round unsealed, and the next start seals it."""
        evidence = await asyncio.to_thread(seal, await stored_evidence(self.store, round_id), self.keypair)
        await self.store.add_seal(round_id, evidence["seal"])
        self.on_sealed(evidence)

    # -- a round

    async def _evaluation(self, job: Job, round_id: str, start: int, opened: Opened) -> None:
        """All miners, simulated. What an earlier run of this round has stored is not asked again."""
        market, end = self.market, start + job.round_seconds
        stored, entrants = opened.predictions, opened.entrants

        # observe
        head = await market.head()
        if not stored and (too_late := await self._too_late(head, start)):
            return await self._void(round_id, Code.VOID_INTERRUPTED, too_late)
        peers = {peer.hotkey: peer for peer in await self._peers()}

        # ask
        if not stored:
            shown = Book(Tape(await market.snapshot(job.vault, head.number + 1)))
            query = await self._query(job, round_id, "evaluation", start, shown, head, 0)
            said = await self._ask_all(dict.fromkeys(peers, query), peers, await self._patience(query.deadline))
        await market.reach_time(start)
        opening = await market.first_block_at(start)
        if not stored:
            await self._turn((start + 1,), self._open)  # reputations before a round are those after all that ended
            reputations = await self.store.reputations(job.job_id)
            asked = [
                _prediction(round_id, h, opening.number, query, *said[h][:3], opening.number) for h in sorted(said)
            ]
            entrants = [
                Entrant(
                    ask.hotkey,
                    peers[ask.hotkey].registered_block,
                    _standing(reputations, ask.hotkey).combined(job.settings.reputation),
                )
                for ask in asked
                if ask.code is Code.ACCEPTED
            ]
            await self.store.add_predictions(asked, entrants)
            stored = {opening.number: {ask.hotkey: ask for ask in asked}}
        first = stored.pop(opening.number, {})

        # simulate
        snapshot = await market.snapshot(job.vault, opening.number)
        await self.store.open_window(round_id, self.pool, snapshot)
        game, fed = Round(job.settings, snapshot), opening.number
        playing = _Playing(job, round_id, start, game, peers)
        for entrant in entrants:
            game.enter(entrant.hotkey)
            game.decide(_decision(first[entrant.hotkey]))
        due, asks = opening.number, []
        try:
            while True:
                due += job.settings.checkpoint_blocks
                head = await market.reach_first(due, end)
                if head.time >= end:
                    break
                events = await self._feed(game, fed, head.number)
                playing.act(head.number)
                before, queries = stored.pop(due, {}), {}
                playing.take(before.values())
                if head.number < due + job.settings.checkpoint_blocks:  # else the validator was away at this block
                    for hotkey in sorted(game.books.keys() - playing.busy - playing.waiting.keys() - before.keys()):
                        book = game.books[hotkey].at(head.number + 1)
                        queries[hotkey] = await self._query(
                            job, round_id, "evaluation", start, book, head, book.changes
                        )
                playing.busy |= queries.keys()
                asks.append(asyncio.create_task(self._checkpoint(playing, due, head, queries, fed, events)))
                fed = head.number + 1
                if market.full_speed:
                    await asks[-1]
            await asyncio.gather(*asks)  # their last deadline is the close
        finally:
            for task in asks:
                task.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        close = await market.first_block_at(end)
        events = await self._feed(game, fed, close.number - 1)
        if market.full_speed:
            await self.store.add_events(self.pool, fed, close.number - 1, events)
        playing.act(close.number - 1)
        for due in sorted(stored):  # the window ended while the round was taken up again
            playing.take(stored[due].values())
            playing.act(close.number - 1)

        await self._check_shown(round_id, snapshot)

        # score
        result = await asyncio.to_thread(game.finish, close.number, entrants)

        # store
        await self._turn((end, job.job_id, "evaluation"), self._open)
        reputations = await self.store.reputations(job.job_id)
        standings = {
            line.name: scoring.update_eval(_standing(reputations, line.name), line.score, result.keep.score)
            for line in result.lines
        }
        day = close.time // DAY_SECONDS
        reputations = await self._finish(round_id, result, close.number, len(first), standings, day)
        asked = {ask.hotkey: (ask.code, ask.detail) for ask in first.values()}
        self._show(job, round_id, result, reputations, asked, playing.missed)

    async def _feed(self, game: Round, first: int, last: int) -> list[Event]:
        """Give the round the events of some blocks; at full speed they are kept with the answers that come next."""
        events = list(await self.market.events(first, last))
        if not self.market.full_speed:
            await self.store.add_events(self.pool, first, last, events)
        try:
            game.feed(events)
        except (ReplayError, PoolError) as error:
            await self.store.add_events(self.pool, first, last, events)  # of a contradiction they are the proof
            raise _Contradiction(last + 1, str(error)) from error
        return events

    async def _checkpoint(
        self,
        playing: _Playing,
        due: int,
        head: Block,
        queries: dict[str, RebalanceQuery],
        first: int,
        events: list[Event],
    ) -> None:
        """Ask these miners about their own books; the answers wait in `playing` for their block."""
        together = self.market.full_speed  # one call into the database; where time goes on nobody waits for another
        round_id, end = playing.round_id, playing.start + playing.job.round_seconds
        patience = await self._patience(min(head.time + ASK_SECONDS, end))

        async def one(hotkey: str, query: RebalanceQuery) -> Prediction:
            try:
                reply, code, detail, _ = (await self._ask_all({hotkey: query}, playing.peers, patience))[hotkey]
                acts = await self._effective_block(head)
                ask = _prediction(round_id, hotkey, due, query, reply, *kept(code, detail), acts)
                if not together:
                    await self.store.add_predictions([ask])
                    playing.take([ask])
                return ask
            finally:
                playing.busy.discard(hotkey)

        asks = await asyncio.gather(*(one(hotkey, query) for hotkey, query in queries.items()))
        if together:
            await self.store.add_block(self.pool, first, head.number, events, asks)
            playing.take(asks)

    async def _check_shown(self, round_id: str, opening: Snapshot) -> None:
        """Whether the blocks that miners were shown are still in the chain. Raises `MarketGap` for one that is not."""
        if self.market.full_speed:
            return
        shown = {opening.block: opening.block_hash}
        for body in await self.store.shown(round_id):
            query = decode(RebalanceQuery, body, MAX_QUERY_BYTES)
            shown[query.block_number] = query.block_hash
        for block, hash_ in sorted(shown.items()):
            if (await self.market.block(block)).hash != hash_:
                raise MarketGap(f"block {block} was replaced after it had been shown to miners (reorganisation)")

    async def _live(self, job: Job, round_id: str, start: int, opened: Opened) -> None:
        """The proven winner, on the vault itself. What an earlier run of this round has stored is not done again."""
        market, end = self.market, start + job.round_seconds
        head, stored = await market.head(), opened.predictions
        if stored:
            hotkey = next(iter(stored[min(stored)]))
        else:
            hotkey = await self.store.last_winner(job.job_id, head.time)
            if detail := market.read_only or await self._unfit_for_live(job):
                return await self._void(round_id, Code.LIVE_READ_ONLY_MARKET, detail)
            if not hotkey:
                detail = "no evaluation has finished with a winner yet"
                return await self._void(round_id, Code.LIVE_NO_WINNER, detail)
            if too_late := await self._too_late(head, start):
                return await self._void(round_id, Code.VOID_INTERRUPTED, too_late)
            days = await self.store.days(job.job_id, hotkey, head.time)
            eligible, count = scoring.live_eligible(days, head.time // DAY_SECONDS)
            if not eligible:
                window, needed = scoring.LIVE_WINDOW_DAYS, scoring.LIVE_MIN_DAYS
                detail = f"{hotkey} was ranked on {count} of the last {window} days, {needed} are needed"
                return await self._void(round_id, Code.LIVE_NOT_ELIGIBLE, detail)
        peers = {peer.hotkey: peer for peer in await self._peers() if peer.hotkey == hotkey}

        # observe, ask
        if not stored:
            if not peers:
                detail = f"{hotkey} is not registered or has no endpoint"
                return await self._void(round_id, Code.LIVE_WINNER_GONE, detail)
            shown = Book(Tape(await market.snapshot(job.vault, head.number + 1)))
            query = await self._query(job, round_id, "live", start, shown, head, 0)
            said = await self._ask_all({hotkey: query}, peers, await self._patience(query.deadline))
        await market.reach_time(start)

        # simulate: here the market itself does
        key, missed = (end, job.job_id), []
        with self._listed(self._deciding, key):
            opening = await market.first_block_at(start)
            if not stored:
                acts = (await market.head()).number + 1
                ask = _prediction(round_id, hotkey, opening.number, query, *said[hotkey][:3], acts)
                await self.store.add_predictions([ask])  # first: a decision is carried out at most once
                stored = {opening.number: {hotkey: ask}}
            ask = stored[opening.number][hotkey]
            if ask.code is not Code.ACCEPTED:
                return await self._void(round_id, ask.code, f"{hotkey}: {ask.detail}", asked=1)
            snapshot = await market.snapshot(job.vault, opening.number)
            await self.store.open_window(round_id, self.pool, snapshot)
            await self._execute(key, ask)
        due, next_ask = opening.number, end - FIRST_ASK_LEAD_SECONDS - market.settle_seconds
        while True:
            due += job.settings.checkpoint_blocks
            head = await market.reach_first(due, next_ask)
            over = head.time >= next_ask  # who is asked from now on for the next round is shown this vault
            if over and not (market.settle_seconds and due <= max(stored)):  # what was sent before a crash is settled
                break
            with self._listed(self._deciding, key):
                ask = stored.get(due, {}).get(hotkey)
                if not (ask or over) and head.number < due + job.settings.checkpoint_blocks:  # else it was away
                    shown = Book(Tape(await market.snapshot(job.vault, head.number + 1)))
                    done = [e for e in await self.store.executions_of(round_id) if acted(e)]
                    changes = sum(execution.block <= head.number for execution in done)
                    query = await self._query(job, round_id, "live", start, shown, head, changes)
                    said = await self._ask_all({hotkey: query}, peers, await self._patience(query.deadline))
                    reply, code, detail, _ = said[hotkey]
                    acts = (await market.head()).number + 1
                    ask = _prediction(round_id, hotkey, due, query, reply, *kept(code, detail), acts)
                    await self.store.add_predictions([ask])
                if ask and ask.code is Code.ACCEPTED:
                    await self._execute(key, ask)
                elif ask:
                    missed.append(ask.detail)

        await market.reach_time(end)
        close = await market.first_block_at(end)
        events = await market.events(opening.number, close.number - 1)
        await self.store.add_events(self.pool, opening.number, close.number - 1, events)
        await self._check_shown(round_id, snapshot)

        # score: from what the vault really holds at both ends
        executions = tuple(await self.store.executions_of(round_id))
        closing = await market.snapshot(job.vault, close.number) if market.settle_seconds else None
        inputs = LiveInputs(job.settings, snapshot, close.number, tuple(events), hotkey, executions, closing)
        result = await asyncio.to_thread(play_live, inputs)
        if result.detail or result.code is not Code.SCORED:
            log.warning("%s: %s, %s", round_id, result.code, result.detail)

        # store
        await self._turn((end, job.job_id, "live"), self._open)
        standing = _standing(await self.store.reputations(job.job_id), hotkey)
        standings = {line.name: scoring.update_live(standing, line.score, result.keep.score) for line in result.lines}
        reputations = await self._finish(round_id, result, close.number, 1, standings, close.time // DAY_SECONDS)
        self._show(job, round_id, result, reputations, {}, {hotkey: missed} if missed else {})

    async def _unfit_for_live(self, job: Job) -> str:
        """Why a job has no live rounds although the market could execute; empty if it has."""
        if (settle := self.market.settle_seconds) and job.round_seconds < (needed := FIRST_ASK_LEAD_SECONDS + settle):
            return f"rounds of {job.round_seconds} s end before a decision is settled, which takes up to {needed} s"
        same = [other for other in await self.store.jobs() if other.active and other.live and other.vault == job.vault]
        manager = min((other.job_id for other in same), default=job.job_id)
        return "" if manager == job.job_id else f"job {manager} manages this vault"

    async def _execute(self, key: tuple, ask: Prediction) -> None:
        """Carry an answer out on the market, unless it changes nothing or was carried out before a crash.

        What failed is noted too, and the round goes on with what the vault really has. Raises `MarketError` where
        nobody says how it ended: then nobody can say any more whose the vault's changes are.
        """
        if self.market.full_speed:  # in one order within a block, once all that woke with it have listed themselves
            await asyncio.sleep(0)
            await self._turn(key, self._deciding)
        order = _order(ask)
        _, close, mint = plan(order.shown, order.desired)
        if not (close or mint) or await self.store.was_executed(ask.round_id, ask.effective_block):
            return
        execution = await self.market.execute(order)
        await self.store.add_execution(ask.round_id, ask.effective_block, execution)
        if not was_carried_out(execution):
            code, detail = execution.sent.code, execution.sent.detail
            log.warning(
                "%s: the decision at block %d was not carried out: %s, %s", ask.round_id, ask.due_block, code, detail
            )
            if code == Code.EXECUTION_UNKNOWN:
                raise MarketError(f"the executor bot does not say what became of a decision: {detail}")

    # -- asking

    async def _peers(self) -> list[Peer]:
        """Every other neuron with an endpoint, from the newest metagraph."""
        metagraph = await self.chain.metagraph()
        return [
            Peer(neuron.hotkey, f"http://{neuron.address}/rebalance", neuron.registered_block)
            for neuron in metagraph.neurons
            if neuron.address and neuron.hotkey != self.keypair.ss58_address
        ]

    async def _query(
        self, job: Job, round_id: str, round_type: str, start: int, book: Book, head, changes: int
    ) -> RebalanceQuery:
        """What a miner is shown; see `rounds.build_query`."""
        past = await self.market.block(max(self.market.first, head.number - PACE_BLOCKS))
        return build_query(job, self.market.pair, round_id, round_type, start, book, head, past, changes)

    async def _ask_all(
        self, queries: dict[str, RebalanceQuery], peers: dict[str, Peer], seconds: float
    ) -> dict[str, tuple[Reply, Code, str, RebalanceAnswer | None]]:
        """Ask miners side by side. By hotkey: the raw reply, the code, its detail, and the answer if accepted."""
        bodies: dict[int, bytes] = {}

        async def one(hotkey: str, query: RebalanceQuery) -> tuple[Reply, Code, str, RebalanceAnswer | None]:
            body = bodies.get(id(query)) or bodies.setdefault(id(query), encode(query))
            reply = await ask(
                self.session,
                peers[hotkey].url if hotkey in peers else "no endpoint",
                body,
                keypair=self.keypair,
                receiver=hotkey,
                total_seconds=seconds,
                max_reply_bytes=MAX_ANSWER_BYTES,
                public_only=self.public_only,
            )
            if reply.code is not Code.ACCEPTED:
                return reply, reply.code, reply.detail, None
            return reply, *judge(reply.body, query)

        said = await asyncio.gather(*(one(hotkey, query) for hotkey, query in queries.items()))
        return dict(zip(queries, said, strict=True))

    async def _too_late(self, head: Block, start: int) -> str:
        """Why a round can not begin any more; who is asked from then on could know the opening."""
        late = await self.market.now() >= start - FIRST_ASK_DEADLINE_SECONDS
        return f"block {head.number} came too late to ask" if late else ""

    async def _patience(self, until: int) -> float:
        """How many real seconds an answer may take that must be there at this market time."""
        if self.market.full_speed:
            return ASK_SECONDS
        return min(ASK_SECONDS, max(0, until - await self.market.now()) / self.options.pace)

    async def _effective_block(self, asked: Block) -> int:
        """The first block above the head whose time is later than the arrival of an answer that came now."""
        market = self.market
        if market.full_speed and not self.options.latency_seconds:
            return (await market.head()).number + 1
        arrived = asked.time + self.options.latency_seconds if market.full_speed else await market.now()
        try:
            if not market.full_speed:  # on a chain that block is not there yet
                await market.reach_time(arrived + 1)
            return max(asked.number + 1, (await market.first_block_at(arrived + 1)).number)
        except MarketEnded:
            return sys.maxsize

    # -- weights

    async def _weigh(self, now: int) -> None:
        """Set weights if they are due; on a chain that is somebody's, tell of what is wrong."""
        seen = {"chain": True}
        try:
            block = block_at(now) if self.market.full_speed else await self.chain.block()
            if self.market.full_speed:
                await self.chain.advance_to(block)
            seen["weights"] = await self.weigher.weigh(now, block)
            if self.notifier:
                own = (await self.chain.metagraph()).by_hotkey(self.keypair.ss58_address)
                seen |= {"registered": own is not None, "permit": own.permit if own else None}
        except ChainError as error:
            seen["chain"] = False
            log.warning("the chain does not answer (%s); weights are tried again later", error)
        if self.notifier:
            for alert in self.alerts.observe(time.monotonic(), **seen):
                self.notifier.notify(*alert)
            await self._summarise(time.time())

    async def _summarise(self, now: float) -> None:
        """The daily summary, at the first look after 00:00 UTC."""
        last = await self.store.recall("last summary")
        if day := summary_due(now, last or day_before(now)):
            counts, attempt = await self.store.counts(int(now) - DAY_SECONDS), await last_weights(self.store)
            rounds = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no round ended"
            weights = f"{attempt.code} at block {attempt.block}, next at {attempt.next_block}" if attempt else "none"
            self.notifier.notify("summary", f"{day}: {rounds}; weights: {weights}")
        if day or not last:
            await self.store.remember("last summary", day or day_before(now))

    def _show(
        self,
        job: Job,
        round_id: str,
        result: RoundResult,
        reputations: dict[str, Reputation],
        asked: dict[str, tuple[Code, str]],
        missed: dict[str, list[str]],
    ) -> None:
        """A line for every round in the log, and its leaderboard."""
        winner = result.lines[0] if result.lines else None
        log.info(
            "%s: %s, %d of %d ranked, %d swaps%s",
            round_id,
            result.code,
            len(result.lines),
            max(len(asked), len(result.lines)),
            result.swaps,
            f", winner {winner.name}" if winner else f" {result.detail}",
        )
        if result.keep:
            self.board.show(job, round_id, result, reputations, asked, missed)


def _prediction(
    round_id: str,
    hotkey: str,
    due: int,
    query: RebalanceQuery,
    reply: Reply,
    code: Code,
    detail: str,
    effective: int | None,
) -> Prediction:
    return Prediction(
        round_id,
        hotkey,
        due,
        encode(query),
        reply.body,
        reply.signature,
        reply.nonce,
        code,
        detail,
        effective if code is Code.ACCEPTED else None,
        reply.elapsed_seconds,
    )


def _decision(ask: Prediction) -> Decision:
    """What an accepted answer says."""
    query = decode(RebalanceQuery, ask.query, MAX_QUERY_BYTES)
    answer = decode(RebalanceAnswer, ask.answer, MAX_ANSWER_BYTES)
    return Decision(ask.hotkey, ask.effective_block, query.current_positions, answer.desired_positions)


def _order(ask: Prediction) -> Order:
    """What an accepted answer wants done on the vault."""
    query, decision = decode(RebalanceQuery, ask.query, MAX_QUERY_BYTES), _decision(ask)
    return Order(
        decision=f"{ask.round_id}:{query.block_number}",
        chain_id=query.chain_id,
        pool=query.pair_address,
        vault=query.sn_liquidity_manager_address,
        shown=decision.shown,
        desired=decision.desired,
        block_number=query.block_number,
        sqrt_price_x96=query.sqrt_price_x96,
        tick=query.tick,
        deadline=max(query.deadline, query.window_start_time) + EXECUTION_SECONDS,
    )


def _standing(reputations, hotkey: str) -> Standing:
    return reputations[hotkey].standing if hotkey in reputations else Standing()


# ---------------------------------------------------------------------------------------------------------------------
# The command


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="validator.py",
        description="Without options: a local subnet on this machine, with three reference miners and a market model.",
    )
    market = parser.add_argument_group("market")
    market.add_argument("--events", metavar="PATH", help="replay this recording of a real pool instead of the model")
    market.add_argument(
        "--idle", type=_amounts, metavar="A0,A1", default="0,0", help="the recorded vault's idle tokens, base units"
    )
    market.add_argument("--seed", type=int, default=98, help="of the market model (default: 98)")
    market.add_argument(
        "--days",
        type=number(0),
        help="stop so many days after the market's first block, 0 never (default: 7 on the model)",
    )
    market.add_argument(
        "--pace",
        type=number(0.01, 60, kind=float),
        help="market seconds per second, at most 60 so that miners have a second to answer (default: full speed)",
    )
    market.add_argument(
        "--latency-seconds", type=number(0), default=0, help="market time an answer takes at full speed (default: 0)"
    )
    rounds = parser.add_argument_group("rounds")
    rounds.add_argument("--rounds", type=number(1), metavar="N", help="stop after N evaluation rounds of each job")
    rounds.add_argument("--once", action="store_const", const=1, dest="rounds", help="the same as --rounds 1")
    rounds.add_argument(
        "--round-seconds",
        type=number(60, DAY_SECONDS),
        default=900,
        help="length of a round in new local jobs, from 60 (default: 900)",
    )
    rounds.add_argument(
        "--dry-run", action="store_true", help="compute and print weights, send none; give no orders to a bot"
    )
    rounds.add_argument(
        "--all-leaderboards", action="store_true", help="print one for every round, not one a market day"
    )
    rounds.add_argument(
        "--keep-days",
        type=number(0),
        default=KEEP_DAYS,
        metavar="N",
        help=f"drop the evidence of rounds older than N days, not their scores; 0 never (default: {KEEP_DAYS})",
    )
    local = parser.add_argument_group("this machine")
    local.add_argument("--dir", help="folder of databases and logs (default: local, or netuid-N on a real network)")
    local.add_argument("--db", metavar="FILE", help="jobs database (default: DIR/validator.sqlite3)")
    local.add_argument("--fresh", action="store_true", help="forget the folder's earlier local subnet first")
    local.add_argument("--no-miners", action="store_true", help="start no reference miners")
    local.add_argument(
        "--port",
        type=number(0, 65535),
        help="where miners fetch their receipts, 0 for any free port (default: 8090, or any free one if that is taken)",
    )
    local.add_argument(
        "--external-ip", metavar="IP", help="on a real network: publish this address, and serve receipts at --port"
    )
    local.add_argument("--host", default=LOCAL_HOST, help="where to listen then; 0.0.0.0 is all (default: 127.0.0.1)")
    server.add_options(local.add_argument, server.VALIDATOR_PORT)
    add_market_options(parser)
    add_chain_options(parser)
    add_notify_options(parser)
    add_logging_options(parser)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="audit | report | doctor")
    audits = commands.add_parser(
        "audit", help="recompute rounds; exit 0 only if every digit agrees, else 1 and what differs or is refused"
    )
    audits.add_argument(
        "rounds_or_files", nargs="+", metavar="ROUND|FILE", help="stored rounds, exported files, or all"
    )
    audits.add_argument(
        "--db", dest="audit_db", default="local/validator.sqlite3", help="jobs database for stored rounds"
    )
    audits.add_argument(
        "--rpc",
        dest="audit_rpc",
        action="append",
        type=url("http", "https"),
        metavar="URL",
        help="compare with the chain too, as this node tells it; it must have the old state (archive); give several",
    )
    audits.add_argument(
        "--manager",
        dest="audit_manager",
        type=evm_address,
        metavar="0x...",
        help="the position manager's address, where it is not the chain's usual one",
    )
    reports = commands.add_parser("report", help="write jobs, leaderboards and rounds as one self-contained HTML file")
    reports.add_argument(
        "rounds_shown", nargs="*", metavar="ROUND", help="whose panels to draw (default: each job's newest)"
    )
    reports.add_argument("-o", "--output", default="report.html", help="the file (default: report.html)")
    reports.add_argument("--db", dest="report_db", default="local/validator.sqlite3", help="jobs database")
    doctor_main.add_options(
        commands.add_parser("doctor", help="what is needed to run, each with its fix; exit 1 on a FAIL")
    )
    return parser


def _amounts(text: str) -> tuple[int, int]:
    """The type of `--idle`."""
    parts = text.split(",")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) <= UINT128_MAX for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: two whole numbers of base units are expected, like 0,0")
    return int(parts[0]), int(parts[1])


async def validate(options: argparse.Namespace) -> None:
    """Work on what the options name until it ends."""
    raise_file_limit()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ground = await enter(opened(options))
        session = await enter(client_session(0))
        if options.rpc and options.executor_url:  # it may be days until somebody is eligible and it is needed
            for finding in [*pool.check_executor_key(options), *await pool.check_executor(options)]:
                if finding.level != finding_module.OK:
                    log.warning("%s; %s", finding.what, finding.fix)
        parts = ground.store, ground.chain, ground.market, session, ground.keypair
        validator = Validator(*parts, options, ground.names, public_only=not ground.local)
        if not ground.market.full_speed:
            sender = f"validator {ground.keypair.ss58_address}, netuid {options.netuid or 'local'}"
            validator.notifier = await enter(Notifier.open(options.slack_webhook_url, sender))
        door = (LOCAL_HOST, options.port, LOCAL_HOST) if ground.local else receipts_door(options)
        issuer = await enter(issuing(ground.path, ground.chain, ground.keypair, *door, public_only=not ground.local))
        validator.on_sealed = issuer.post
        await enter(validator_module.serve_validator(ground, options, [showing]))
        await validator.work()
        validator.board.show_latest()
        await _farewell(ground)


async def run_audit(options: argparse.Namespace) -> int:
    """Audit stored rounds and exported files, one line each; those that agree also on the chain, if one is named."""
    wrong, refused = 0, 0
    async with AsyncExitStack() as stack:
        store, names = None, []
        for name in options.rounds_or_files:
            if Path(name).is_file():
                names.append(name)
                continue
            if store is None:
                if not Path(options.audit_db).exists():
                    raise UserError(f"{name}: no such file, and no database {options.audit_db}; name it with --db")
                store = await stack.enter_async_context(Store.open(options.audit_db))
            names.extend(await store.finished() if name == "all" else [name])
        for name in names:
            try:
                if Path(name).is_file():
                    evidence = await asyncio.to_thread(read_evidence, Path(name))
                else:
                    evidence = await stored_evidence(store, name)
                problems, on_chain = await asyncio.to_thread(audit, evidence), ""
                if options.audit_rpc and not problems:
                    problems, on_chain = await _audit_on_chain(evidence, options)
            except (EvidenceError, Pruned, MarketError) as error:
                refused += 1
                print(f"{name}: cannot be audited: {error}")
                continue
            wrong += bool(problems)
            agrees = f"every digit agrees{on_chain}"
            print(f"{name}: " + (agrees if not problems else f"{len(problems)} differences{on_chain}"))
            for problem in problems:
                print(f"  {problem}")
    print(f"{len(names) - refused} rounds audited, {wrong} differ" + (f", {refused} not audited" if refused else ""))
    return EXIT_FAILED if wrong or refused else EXIT_OK


async def _audit_on_chain(evidence: dict[str, Any], options: argparse.Namespace) -> tuple[list[str], str]:
    """What differs, and what to say of the chain."""
    vault = (evidence["snapshot"] or {}).get("vault_owner", "")
    if not re.fullmatch("0x[0-9a-f]{40}", vault, re.ASCII):
        return [], "; nothing of a chain is in this round to compare with"
    from evm.audit import audit_chain  # it needs web3, which takes seconds to import

    wrong = await audit_chain(evidence, options.audit_rpc, options.audit_manager or options.manager)
    return wrong, " with the chain" if wrong else ", also with the chain"


async def write_report(options: argparse.Namespace) -> None:
    """Write the status page's contents as one file that needs no server, and name it."""
    names = {local_keypair(f"{name}-hotkey").ss58_address: name for name in REFERENCE_STRATEGIES}
    text = await validator_module.report(Path(options.report_db), options.rounds_shown, names, [showing])
    try:
        Path(options.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"-o {options.output}: {error.strerror}; choose another file") from error
    print(f"REPORT: {options.output}, {len(text) // 1000} kB, one file; open it in any browser")


async def _farewell(ground: Ground) -> None:
    chain, counts = ground.chain, await ground.store.counts()
    print("ROUNDS: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    metagraph = await chain.metagraph()
    me, burn_uid = metagraph.by_hotkey(chain.hotkey), metagraph.burn_uid()
    weights = await chain.weights_of(me.uid) if me else {}
    hotkeys = {neuron.uid: neuron.hotkey for neuron in metagraph.neurons}
    shares = [
        f"{'burn' if uid == burn_uid else miner_name(hotkeys[uid], ground.names)} {weight / sum(weights.values()):.3f}"
        for uid, weight in weights.items()
    ]
    print(f"WEIGHTS on the {'embedded ' * ground.local}chain: " + (", ".join(shares) or "none yet"))
    print(f"NEXT: every ask, answer and score is in {ground.path}; all logs and databases are in {ground.folder}.")
    print("      Copy miner.py, change propose(), run it beside `python validator.py`, and find yourself on the board.")


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    if options.command == "doctor":
        return doctor_main.report(options)
    problems = (RecordingError, MarketError, StoreError, ChainError, WireError, NotShown)
    work = {"audit": run_audit, "report": write_report}.get(options.command, validate)
    return run(work(options), options.log_level, problems, options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
