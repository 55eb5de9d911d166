"""The validator: asks miners, plays what they answered on what then happened, scores, remembers, sets weights.

    python validator.py                                     a whole local subnet on this machine, on a market model
    python validator.py --events ../shared/data/NAME        the same on the recorded swaps of a real pool
    python validator.py --rounds 3 --dry-run                three rounds, weights are printed and not set
    python validator.py audit all                           recompute every stored round, to the last digit
    python validator.py report                              all that the status page shows, as one file
    python validator.py jobs list                           the jobs; `jobs add`, `set` and `off` change them
    python validator.py doctor                              what is needed to run, each with its fix

Every round goes through the same phases, marked in the code: observe, ask, simulate, score, store, weigh; what they
mean is its mechanism's (`spine/mechanism.py`). Rounds of all jobs run side by side (`spine/schedule.py`), each one
coroutine that reads from top to bottom. After a crash it runs again, with what the database has of it in place of
asking: a market in memory goes back to the first ask of the oldest open round, another finds the round under way.
Read first: `protocol.py`, `scoring.py`, `liquidity/rounds.py`. Read next: `store.py`, `miner.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import aiohttp

import runtime.home  # noqa: F401
import audit.__main__ as auditing
import doctor.__main__ as doctor
import scoring
from audit import stored as on_record
from audit.evidence import seal
from audit.issuer import SERVER_LIMITS, issuing
from chain.base import BLOCK_SECONDS, Chain, ChainError, Neuron
from chain.local import block_at
from chain.notify import AlertRules, Notifier, add_notify_options
from chain.opening import gone
from chain.weights import INTERVAL_BLOCKS, Weigher, daily_summary, earned
from doctor.machine import OK
from doctor.network import check_executor, check_executor_key
from liquidity.events import Event, ReplayError
from markets.base import Market, MarketEnded, MarketError, MarketGap
from markets.recordings import RecordingError
from protocol import ASK_SECONDS, MAX_QUERY_BYTES, Block, Code, Entrant, Job, RoundResult
from runtime.db import StoreError
from runtime.hidden import hide
from runtime.options import add_chain_options, add_logging_options, add_market_options, parse_options
from runtime.process import Parser, raise_file_limit, run
from scoring import Standing
from sim import PoolError
from spine import jobs
from spine.asking import Asker, Playing, Said, accepted, decision_of
from spine.ground import LOCAL_HOST, add_local_options, add_memory_options, add_round_options, opened, receipts_door
from spine.live import Live, Skipped
from spine.mechanism import Mechanism, World, by_rules, load
from spine.schedule import DAY_SECONDS, Schedule
from spine.troubles import Troubles
from status import reporting
from status.board import Board, farewell
from status.reader import NotShown
from status.server import VALIDATOR_PORT, add_options
from status.validator import serve_validator
from store import AlreadyFinished, Opened, Prediction, Reputation, Store
from wire.client import client_session
from wire.codec import decode
from wire.server import add_limit_options, limited
from wire.signing import WireError

log = logging.getLogger("validator")


class _Contradiction(Exception):
    """The events contradict the replay: (the block after the last one fed, what contradicts)."""


class Validator:
    """The orchestrator: what it talks to, and the phases of a round.

    Args:
        names: of miners, by hotkey, for leaderboards.
        public_only: as on a real network: no miner is asked at an address that is not public.
    """

    def __init__(
        self,
        store: Store,
        chain: Chain,
        market: Market,
        session: aiohttp.ClientSession,
        keypair: Any,
        options: argparse.Namespace,
        names: Mapping[str, str],
        public_only: bool = False,
        mechanisms: Mapping[str, Mechanism] | None = None,
    ):
        self.store, self.chain, self.market, self.keypair, self.options = store, chain, market, keypair, options
        self.mechanisms = mechanisms or load()
        self.asker = Asker(market, chain, session, keypair, options, public_only)
        self.world = World(market, chain, self.asker.exchange)
        self.live = Live(store, self.world, self.asker)
        self.notifier: Notifier | None = None  # told of what is wrong
        self.alerts = AlertRules(time.monotonic(), INTERVAL_BLOCKS * BLOCK_SECONDS)
        self.weigher = Weigher(store, chain, earned, options.dry_run)
        self.pool = market.pair.pool_address
        self.board = Board(market.label, market.pair, names, options.all_leaderboards)
        self.on_sealed: Callable[[dict], None] = lambda evidence: None  # told of each round once it is sealed
        self.schedule = Schedule(store, market, options, self.mechanisms, self._guarded, self._void, self._look)
        self.troubles = Troubles(store, market, options.pace or 1.0)
        self._skips: set[tuple[str, Code]] = set()
        self._pruned = 0

    async def work(self) -> None:
        """Run all active jobs, watch for new ones, set weights; until stopped, or all rounds asked for are played."""
        for round_id in await self.store.finished(unsealed_only=True):
            await self._seal(round_id)
        await self.schedule.run()
        if ended := await self.store.last_end():
            await self._weigh(ended)

    # -- a round

    async def _guarded(self, job: Job, round_id: str, round_type: str, start: int) -> None:
        """One round; whatever goes wrong in it stays in it."""
        mechanism = self.mechanisms[job.mechanism]
        try:
            play = self._evaluation if round_type == "evaluation" else self._live
            if begun := await self.store.begin_round(round_id, job, round_type, start, mechanism.rules_version):
                await play(by_rules(mechanism, begun.rules_version), job, round_id, start, begun)
        except Skipped as why:
            await self._void(round_id, why.code, str(why), why.asked)
        except MarketGap as error:
            await self._void(round_id, Code.VOID_GAP, str(error))
        except (MarketEnded, MarketError, ChainError) as error:
            await self._void(round_id, Code.VOID_INTERRUPTED, str(error))
        except _Contradiction as error:
            close_block, detail = error.args
            first = min((await self.store.predictions(round_id)).items(), default=(0, ()))[1]
            await self._void(round_id, Code.VOID_CONTRADICTION, detail, len(first), close_block)
        except (StoreError, BrokenPipeError):
            raise  # without its memory, or its reader, the validator must not go on
        except Exception as error:
            log.exception("%s failed", round_id)
            with suppress(AlreadyFinished):  # it failed after its result was stored
                await self._void(
                    round_id, Code.VOID_INTERRUPTED, f"an unexpected {type(error).__name__}; the log says where"
                )

    async def _evaluation(self, mechanism: Mechanism, job: Job, round_id: str, start: int, begun: Opened) -> None:
        """All miners, simulated. What an earlier run of this round has stored is not asked again."""
        market, stored, entrants = self.market, begun.predictions, begun.entrants

        # observe
        head = await market.head()
        if not stored and (too_late := await self.asker.too_late(head, start)):
            return await self._void(round_id, Code.VOID_INTERRUPTED, too_late)
        peers = await self.asker.peers(start) if mechanism.query else {}

        # ask
        said = []
        if not stored and peers:
            shown = await mechanism.observe(self.world, job, Block(head.number + 1, head.time, ""))
            moment = await self.asker.moment(job, round_id, "evaluation", start, head)
            query = mechanism.game(job.settings, shown).query(moment)
            patience = await self.asker.patience(moment.deadline)
            said = await self.asker.ask(mechanism, dict.fromkeys(peers, query), peers, patience)
        await market.reach_time(start)
        opening = await market.first_block_at(start)
        if not stored:
            await self.schedule.open.turn((start + 1,))  # reputations before a round are those after all that ended
            stored, entrants = await self._enter(job, round_id, opening.number, said, peers)
        first = stored.pop(opening.number, {})

        # simulate
        entered = {entrant.hotkey for entrant in entrants}
        playing = Playing(mechanism, job, round_id, start, peers, entered)
        taking_part = [first[hotkey] for hotkey in sorted(entered)]
        close, settlement = await self._simulate(playing, opening, taking_part, stored)

        # score
        result = await asyncio.to_thread(playing.game.finish, close.number, entrants)

        # store
        await self.schedule.open.turn(self.schedule.key(job, "evaluation", start))
        reputations = await self.store.reputations(job.job_id)
        standings = {
            line.name: scoring.update_eval(_standing(reputations, line.name), line.score, result.benchmark_score)
            for line in result.lines
        }
        day = close.time // DAY_SECONDS
        reputations = await self._finish(round_id, result, close.number, len(first), standings, day, settlement)
        asked = {ask.hotkey: (ask.code, ask.detail) for ask in first.values()}
        self._show(job, round_id, result, reputations, asked, playing.missed)

    async def _enter(
        self, job: Job, round_id: str, opening: int, said: Sequence, peers: Mapping[str, Neuron]
    ) -> tuple[dict[int, dict[str, Prediction]], list[Entrant]]:
        """Store the first asks, and who takes part: all first answers act at the opening."""
        reputations = await self.store.reputations(job.job_id)
        asks = [one.row(round_id, opening, opening, first=True) for one in sorted(said, key=lambda one: one.hotkey)]
        standings = {ask.hotkey: _standing(reputations, ask.hotkey) for ask in accepted(asks)}
        entrants = [
            Entrant(hotkey, peers[hotkey].registered_block, standing.combined(job.settings.reputation))
            for hotkey, standing in standings.items()
        ]
        await self.store.add_predictions(asks, entrants)
        return {opening: {ask.hotkey: ask for ask in asks}}, sorted(entrants, key=lambda entrant: entrant.hotkey)

    async def _simulate(
        self, playing: Playing, opening: Block, first: Sequence[Prediction], stored: dict[int, dict[str, Prediction]]
    ) -> tuple[Block, Any]:
        """Play a round from its opening to its close; returns the close, and what it is settled by besides."""
        market, mechanism, job = self.market, playing.mechanism, playing.job
        state = await mechanism.observe(self.world, job, opening)
        await self.store.open_window(playing.round_id, self.pool, state)
        playing.game = mechanism.game(job.settings, state)
        for ask in first:
            playing.game.decide(decision_of(mechanism, ask))
        fed = await self._checkpoints(playing, opening.number, stored)
        close = await market.first_block_at(playing.end)
        await self._feed(playing, fed, close.number - 1, keep=True)
        playing.act(close.number - 1)
        for due in sorted(stored):  # the window ended while the round was taken up again
            playing.take(stored[due].values())
            playing.act(close.number - 1)
        await self._check_shown(mechanism, playing.round_id, state)
        await market.reach_time(settled := playing.end + mechanism.settle_seconds)
        settlement = await mechanism.settle(self.world, job, await market.first_block_at(settled))
        if settlement is not None:
            playing.game.settle(settlement)
        return close, settlement

    async def _checkpoints(self, playing: Playing, opening: int, stored: dict[int, dict[str, Prediction]]) -> int:
        """Ask at every due block until the close; returns the first block that was not fed."""
        market, interval = self.market, playing.mechanism.interval_blocks(playing.job.settings)
        fed, due, asks = opening, opening, []
        try:
            while interval:
                due += interval
                head = await market.reach_first(due, playing.end)
                if head.time >= playing.end:
                    break
                events = await self._feed(playing, fed, head.number, keep=not market.full_speed)
                playing.act(head.number)
                before, queries = stored.pop(due, {}), {}
                playing.take(before.values())
                if head.number < due + interval:  # else the validator was away at this block
                    moment = await self.asker.moment(playing.job, playing.round_id, "evaluation", playing.start, head)
                    asked = playing.entered - playing.busy - playing.waiting.keys() - before.keys()
                    queries = {hotkey: playing.game.query(moment, hotkey) for hotkey in sorted(asked)}
                playing.busy |= queries.keys()
                if market.full_speed:  # nobody waits for another: what the block brings is stored in one call
                    rows, said = await self._answers(playing, due, head, queries)
                    await self.store.add_block(self.pool, fed, head.number, events, rows)
                    playing.take(rows, said)
                else:
                    parts = ({hotkey: query} for hotkey, query in queries.items())
                    asks += [asyncio.create_task(self._ask_one(playing, due, head, part)) for part in parts]
                fed = head.number + 1
            await market.reach_time(playing.end)
            await asyncio.gather(*asks)  # their last deadline is the close
        finally:
            for task in asks:
                task.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        return fed

    async def _feed(self, playing: Playing, first: int, last: int, keep: bool) -> Sequence[Event] | None:
        """Give the round the events of some blocks, and keep them, unless they are kept with the answers that come."""
        events = await playing.mechanism.events(self.world, first, last)
        if events is None:
            return None
        if keep:
            await self.store.add_events(self.pool, first, last, events)
        try:
            playing.game.feed(events)
        except (ReplayError, PoolError) as error:
            await self.store.add_events(self.pool, first, last, events)  # of a contradiction they are the proof
            raise _Contradiction(last + 1, str(error)) from error
        return events

    async def _answers(
        self, playing: Playing, due: int, head: Block, queries: dict[str, Any]
    ) -> tuple[list[Prediction], list[Said]]:
        """Ask these miners about their own books."""
        try:
            patience = await self.asker.patience(min(head.time + ASK_SECONDS, playing.end))
            said = await self.asker.ask(playing.mechanism, queries, playing.peers, patience)
            acts = await self.asker.effective_block(head)
            return [one.row(playing.round_id, due, acts) for one in said], said
        finally:
            playing.busy -= queries.keys()

    async def _ask_one(self, playing: Playing, due: int, head: Block, query: dict[str, Any]) -> None:
        """Where time does not wait each answer is stored as it comes, and waits in `playing` for its block."""
        rows, said = await self._answers(playing, due, head, query)
        await self.store.add_predictions(rows)
        playing.take(rows, said)

    async def _check_shown(self, mechanism: Mechanism, round_id: str, opening: Any) -> None:
        """Whether the blocks that miners were shown are still in the chain. Raises `MarketGap` for one that is not."""
        if self.market.full_speed:
            return
        shown = {opening.block: opening.block_hash}
        for body in await self.store.shown(round_id):
            query = decode(mechanism.query, body, MAX_QUERY_BYTES)
            shown[query.block_number] = query.block_hash
        for block, hash_ in sorted(shown.items()):
            if (await self.market.block(block)).hash != hash_:
                raise MarketGap(f"block {block} was replaced after it had been shown to miners (reorganisation)")

    async def _live(self, mechanism: Mechanism, job: Job, round_id: str, start: int, begun: Opened) -> None:
        """The proven winner, on the vault itself; see `spine/live.py`."""
        inputs, missed = await self.live.play(mechanism, job, round_id, start, begun)
        _, snapshot, close_block, _, hotkey, *_ = inputs
        await self._check_shown(mechanism, round_id, snapshot)

        # score: from what the vault really holds at both ends
        result = await asyncio.to_thread(mechanism.play_live, *inputs)
        if result.detail or result.code is not Code.SCORED:
            log.warning("%s: %s, %s", round_id, result.code, result.detail)

        # store
        await self.schedule.open.turn(self.schedule.key(job, "live", start))
        standing = _standing(await self.store.reputations(job.job_id), hotkey)
        benchmark = result.benchmark_score
        standings = {line.name: scoring.update_live(standing, line.score, benchmark) for line in result.lines}
        day = (await self.market.block(close_block)).time // DAY_SECONDS
        reputations = await self._finish(round_id, result, close_block, 1, standings, day)
        self._show(job, round_id, result, reputations, {}, {hotkey: missed} if missed else {})

    # -- what comes of it

    async def _void(self, round_id: str, code: Code, detail: str, asked=0, close_block: int | None = None) -> None:
        detail = hide(detail)
        await self._finish(round_id, RoundResult(code, detail), close_block, asked, {}, 0)
        skip = round_id.rsplit(":", 2)[0], code
        skipped, known = code.startswith("live"), skip in self._skips
        self._skips.add(skip)
        level = logging.DEBUG if skipped and known else logging.INFO if skipped else logging.WARNING
        more = "; further rounds that are skipped for this are noted in the database only" if skipped else ""
        log.log(level, "%s: %s, %s%s", round_id, code, detail, more)

    async def _finish(self, round_id: str, result: RoundResult, *more: Any) -> dict[str, Reputation]:
        """Store and seal a result, with what `Store.finish_round` takes more; the job's reputations after it."""
        reputations = await self.store.finish_round(round_id, round_id.rsplit(":", 2)[0], result, *more)
        await self._seal(round_id)
        return reputations

    async def _seal(self, round_id: str) -> None:
        """Sign the evidence; a crash before this leaves a finished round unsealed, and the next start seals it."""
        evidence = await asyncio.to_thread(seal, await on_record.evidence(self.store, round_id), self.keypair)
        await self.store.add_seal(round_id, evidence["seal"])
        self.on_sealed(evidence)

    def _show(
        self,
        job: Job,
        round_id: str,
        result: RoundResult,
        reputations: dict[str, Reputation],
        asked: dict,
        missed: dict,
    ) -> None:
        """A line for every round in the log, and its leaderboard; `asked` and `missed` as `status.board` takes them."""
        ranked = len(result.lines)
        what = f", winner {result.lines[0].name}" if ranked else f" {result.detail}"
        counts = ranked, max(len(asked), ranked), result.swaps
        log.info("%s: %s, %d of %d ranked, %d swaps%s", round_id, result.code, *counts, what)
        if result.lines or result.baselines:
            self.board.show(self.mechanisms[job.mechanism].showing, job, round_id, result, reputations, asked, missed)

    # -- weights

    async def _look(self, now: int) -> None:
        """What is due from time to time: weights, alerts, old evidence."""
        if not self.market.full_speed or block_at(now) >= self.weigher.next_block:
            await self._weigh(now)
        if (day := now // DAY_SECONDS) != self._pruned and self.options.keep_days:
            await on_record.prune(self.store, (day - self.options.keep_days) * DAY_SECONDS)
            self._pruned = day

    async def _weigh(self, now: int) -> None:
        """Set weights if they are due; on a chain that is somebody's, tell of what is wrong."""
        seen = {"chain": True}
        try:
            block = block_at(now) if self.market.full_speed else await self.chain.block()
            if self.market.full_speed:
                await self.chain.advance_to(block)
            seen["weights"] = await self.weigher.weigh(now, block)
            if self.notifier:
                graph = await self.chain.metagraph()
                own = graph.by_hotkey(self.chain.hotkey)
                seen |= {"registered": bool(own) or gone(graph, self.chain), "permit": own.permit if own else None}
        except ChainError as error:
            seen["chain"] = str(error)
            log.warning("the chain does not answer (%s); weights are tried again later", error)
        if self.notifier:
            seen["others"] = await self.troubles.now()
            for alert in self.alerts.observe(time.monotonic(), **seen):
                self.notifier.notify(*alert)
            if summary := await daily_summary(self.store, time.time()):
                self.notifier.notify("summary", summary)


def _standing(reputations: Mapping[str, Any], hotkey: str) -> Standing:
    return reputations[hotkey].standing if hotkey in reputations else Standing()


# ---------------------------------------------------------------------------------------------------------------------
# The command


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="validator.py",
        description="Without options: a local subnet on this machine, with three reference miners and a market model.",
    )
    add_memory_options(parser)
    add_round_options(parser)
    add = add_local_options(parser)
    add_limit_options(add)
    add_options(add, VALIDATOR_PORT)
    add_market_options(parser)
    add_chain_options(parser)
    add_notify_options(parser)
    add_logging_options(parser)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="audit | report | doctor | jobs")
    auditing.add_options(commands.add_parser("audit", help=auditing.HELP))
    reporting.add_options(commands.add_parser("report", help=reporting.HELP))
    doctor.add_options(commands.add_parser("doctor", help="what is needed to run, each with its fix; exit 1 on a FAIL"))
    jobs.add_options(commands)
    return parser


async def validate(options: argparse.Namespace) -> None:
    """Work on what the options name until it ends."""
    raise_file_limit()
    mechanisms = load(options.mechanism)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ground = await enter(opened(options, mechanisms))
        session = await enter(client_session(0))
        if options.rpc and options.executor_url:  # it may be days until somebody is eligible and it is needed
            for finding in [*check_executor_key(options), *await check_executor(options)]:
                if finding.level != OK:
                    log.warning("%s; %s", finding.what, finding.fix)
        parts = ground.store, ground.chain, ground.market, session, ground.keypair
        validator = Validator(*parts, options, ground.names, not ground.local, mechanisms)
        if not ground.market.full_speed:
            sender = f"validator {ground.keypair.ss58_address}, netuid {options.netuid or 'local'}"
            validator.notifier = await enter(Notifier.open(options.slack_webhook_url, sender))
        door = (LOCAL_HOST, options.port, LOCAL_HOST) if ground.local else receipts_door(options)
        limits = limited(SERVER_LIMITS, options)
        issuer = await enter(
            issuing(ground.path, ground.chain, ground.keypair, *door, public_only=not ground.local, limits=limits)
        )
        validator.on_sealed = issuer.post
        await enter(serve_validator(ground, options, mechanisms))
        await validator.work()
        validator.board.show_latest()
        await farewell(ground)


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    if options.command == "doctor":
        return doctor.report(options)
    problems = (RecordingError, MarketError, StoreError, ChainError, WireError, NotShown)
    work = {"audit": auditing.run_audit, "report": reporting.write_report}
    work = (work | dict.fromkeys(("jobs", "adopt"), jobs.command)).get(options.command, validate)
    return run(work(options), options.log_level, problems, options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
