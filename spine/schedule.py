"""When rounds are played: all jobs side by side, each round begun in time, those that were open taken up again.

    schedule = Schedule(store, market, options, mechanisms, play, look)
    await schedule.run()

Rounds start at multiples of their length in market time; what follows from rounds (reputations, weights) follows in one
order, by end, job and type, whatever finishes first. Knows no mechanism but by name.
Read next: `asking.py`, `validator.py` (what a round is).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

from markets.base import Market, MarketEnded
from protocol import FIRST_ASK_LEAD_SECONDS, Code, Job
from spine.mechanism import Mechanism, by_rules
from store import Begun, Store
from wire.codec import encode

DAY_SECONDS = 86_400
SUPERVISE_SECONDS = 60  # market time between two looks at jobs and weights

log = logging.getLogger("validator")


class Turns:
    """Who waits for whom: inside `listed(key)`, those with a greater key wait in `turn`."""

    def __init__(self):
        self._open: dict[tuple, asyncio.Event] = {}

    def __bool__(self) -> bool:
        return bool(self._open)

    async def turn(self, key: tuple) -> None:
        """Wait for all before this key, which must not need market time any more: they are past their last block, or
        at this one."""
        while earlier := [over for other, over in self._open.items() if other < key]:
            await earlier[0].wait()

    @contextmanager
    def listed(self, key: tuple) -> Iterator[None]:
        over = self._open[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._open[key]
            over.set()


class Schedule:
    """Plays the rounds of all active jobs until it is stopped, or all that were asked for are played.

    Args:
        play: (job, round_id, round_type, start): play one round, whatever goes wrong in it.
        void: (round_id, code, detail): end a round without scores.
        look: (market time): weights, alerts, pruning; called every `SUPERVISE_SECONDS`.
    """

    def __init__(
        self,
        store: Store,
        market: Market,
        options: argparse.Namespace,
        mechanisms: Mapping[str, Mechanism],
        play: Callable[[Job, str, str, int], Awaitable[None]],
        void: Callable[[str, Code, str], Awaitable[None]],
        look: Callable[[int], Awaitable[None]],
    ):
        self.store, self.market, self.options, self.mechanisms = store, market, options, mechanisms
        self._play, self._void, self._look = play, void, look
        self.until = sys.maxsize  # no round ends after this market time
        self.open = Turns()  # the rounds that run, by `key`
        self.running: dict[str, asyncio.Task] = {}
        self.played: dict[str, int] = {}
        self._idle: set[str] = set()  # jobs that start no more rounds

    def key(self, job: Job, round_type: str, start: int) -> tuple[int, str, str]:
        """Where a round stands among others: when it is settled, job, type."""
        return start + job.round_seconds + self.mechanisms[job.mechanism].settle_seconds, job.job_id, round_type

    async def run(self) -> None:
        market = self.market
        if self.options.days:
            self.until = (await market.block(market.first)).time + self.options.days * DAY_SECONDS
        interrupted = await self._take_up()
        tick = -(-(await market.head()).time // SUPERVISE_SECONDS) * SUPERVISE_SECONDS
        looking: asyncio.Task | None = None
        silence = None if market.full_speed else 2 * SUPERVISE_SECONDS / self.options.pace
        async with asyncio.TaskGroup() as tasks, market.participant():
            while True:
                for job in await self.store.jobs():
                    task = self.running.get(job.job_id)
                    if job.active and not self._done(job.job_id) and (task is None or task.done()):
                        started = asyncio.Event()
                        self._idle.discard(job.job_id)
                        mine = [begun for begun in interrupted if begun.job_id == job.job_id]
                        interrupted = [begun for begun in interrupted if begun not in mine]
                        self.running[job.job_id] = tasks.create_task(self._run_job(job.job_id, mine, started))
                        await started.wait()
                try:
                    async with asyncio.timeout(silence):
                        now = (await market.reach_time(tick)).time
                        await self.open.turn((now + 1,))
                except MarketEnded:
                    break
                except TimeoutError:  # the market stands still; weights are due all the same, and so are alerts
                    now = await market.now()
                if self.running and self._idle >= self.running.keys() and not self.open:
                    break
                if market.full_speed:
                    await self._look(now)
                elif looking is None or looking.done():  # a chain may take minutes, and jobs need not wait for it
                    looking = tasks.create_task(self._look(now))
                tick = (now // SUPERVISE_SECONDS + 1) * SUPERVISE_SECONDS

    async def _take_up(self) -> list[Begun]:
        """What an earlier run left open: rounds go on if their window lasts and nothing changed, else they are void."""
        now, jobs = (await self.market.head()).time, {job.job_id: job for job in await self.store.jobs()}
        going_on = []
        for begun in await self.store.interrupted():
            job, length = jobs.get(begun.job_id), begun.end_time - begun.start_time
            settled = begun.end_time + (self.mechanisms[job.mechanism].settle_seconds if job else 0)
            if now >= settled:
                why = "its window is over"
            elif not job or not job.active:
                why = "its job was switched off"
            elif (begun.settings, length) != (encode(job.settings).decode(), job.round_seconds):
                why = "its job was changed"
            elif not by_rules(mechanism := self.mechanisms[job.mechanism], begun.rules_version):
                why = f"the rules are now version {mechanism.rules_version}"
            else:
                log.info("%s was interrupted and goes on", begun.round_id)
                going_on.append(begun)
                continue
            detail = f"the validator was stopped in this round, and {why}"
            await self._void(begun.round_id, Code.VOID_INTERRUPTED, detail)
        return going_on

    def _done(self, job_id: str) -> bool:
        return self.options.rounds is not None and self.played.get(job_id, 0) >= self.options.rounds

    async def _run_job(self, job_id: str, interrupted: list[Begun], started: asyncio.Event) -> None:
        """Start one job's rounds, each `FIRST_ASK_LEAD_SECONDS` before its nominal start, while the job is active."""
        async with asyncio.TaskGroup() as rounds, self.market.participant():
            started.set()
            await self._start_rounds(job_id, interrupted, rounds)
            self._idle.add(job_id)

    async def _start_rounds(self, job_id: str, interrupted: list[Begun], rounds: asyncio.TaskGroup) -> None:
        starts = sorted({begun.start_time for begun in interrupted})
        after = await self.store.newest_end(job_id) or 0
        job = await self._job(job_id)
        while job and not self._done(job_id):
            length, head = job.round_seconds, await self.market.head()
            earliest = max(after, head.time + FIRST_ASK_LEAD_SECONDS)
            start = starts.pop(0) if starts else -(-earliest // length) * length
            if start + length > self.until:
                return
            if not self.market.full_speed and job_id not in self.played and start > head.time:
                log.info("job %s: its next round begins at %s UTC", job_id, time.strftime("%T", time.gmtime(start)))
            try:
                await self.market.reach_time(start - FIRST_ASK_LEAD_SECONDS)
            except MarketEnded:
                return
            if (job := await self._job(job_id)) and job.round_seconds == length:
                self.played[job_id], after = self.played.get(job_id, 0) + 1, max(after, start + length)
                live = job.live and self.mechanisms[job.mechanism].live
                for round_type in ("evaluation", "live") if live else ("evaluation",):
                    entered = asyncio.Event()
                    rounds.create_task(self._listed(job, round_type, start, entered))
                    await entered.wait()
            else:  # rounds start at multiples of their length
                after = start

    async def _job(self, job_id: str) -> Job | None:
        """The job as its table has it now, None if it is not active."""
        job = next((job for job in await self.store.jobs() if job.job_id == job_id and job.active), None)
        if not job:
            log.info("job %s is switched off", job_id)
        return job

    async def _listed(self, job: Job, round_type: str, start: int, entered: asyncio.Event) -> None:
        """One round; whatever goes wrong in it stays in it."""
        async with self.market.participant():
            with self.open.listed(self.key(job, round_type, start)):
                entered.set()
                await self._play(job, f"{job.job_id}:{round_type}:{start}", round_type, start)
