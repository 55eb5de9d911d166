"""A strategy tried as a validator would try it: asked, judged, played round after round on a market in memory.

Read next: `backtest.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import linecache
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

from liquidity.events import ReplayError
from liquidity.mechanism import MECHANISM
from liquidity.rounds import Decision, Round
from markets.base import Market, MarketEnded
from markets.model import ModelMarket
from markets.recordings import RecordedMarket, read_recording
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    FIRST_ASK_LEAD_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    PACE_BLOCKS,
    Block,
    Code,
    Entrant,
    Job,
    JobSettings,
    MinerMetadata,
    Moment,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    RoundResult,
)
from runtime.options import refuse
from runtime.process import UserError
from scoring import CONTEXT, Standing, update_eval
from sim import PoolError
from spine.ground import MODEL_CAPITAL, MODEL_DAYS, MODEL_VAULTS
from wire.codec import decode, encode

DAY_SECONDS = 86_400
MODEL_SEED = 98  # of `python validator.py`, as the rules of its jobs: so the digits are the same; a test compares them
LOCAL_RULES = {"Balanced": {"min_in_range": Decimal("0.5")}}
FIXES = {
    Code.TOO_MANY_POSITIONS: "return at most query.settings.max_positions",
    Code.TICK_RANGE: "keep both ticks within the bounds, grid_range(query, lower, upper) does",
    Code.TICK_ORDER: "tick_lower must be the smaller one, grid_range(query, lower, upper) sees to it",
    Code.TICK_SPACING: "round both ticks to multiples of query.tick_spacing, grid_range(query, lower, upper) does",
    Code.AMOUNT_RANGE: "allocations are whole numbers of base units from 0, use max(0, int(amount))",
    Code.OVER_ALLOCATED: "the allocations of all positions together may not exceed query.holdings()",
    Code.MALFORMED: "return a list of Position(tick_lower, tick_upper, allocation0, allocation1), four whole numbers"
    f" each, of at most {MAX_ANSWER_BYTES} bytes as JSON, or Refusal('why')",
}

Strategy = Callable[[RebalanceQuery], Any]
"""`propose`: from a query to a list of positions or a refusal."""
Respond = Callable[[RebalanceQuery], RebalanceAnswer]
"""What a miner makes of a query; raises whatever its strategy raises, and `ProtocolError` for what is not legal."""


class TooLong(BaseException):
    """A strategy is still at work at the deadline; no `Exception`, or a strategy's own `except` would hide it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One ask and what came of it.

    Attributes:
        body: the answer's bytes; of a strategy that failed, the keep that `miner.py` sends in its place.
        code, detail, answer: what a validator makes of the bytes; see `Liquidity.judge`.
        seconds: how long it took.
        error: what the strategy raised, `TooLong` at the deadline; None if it answered.
    """

    name: str
    query: RebalanceQuery
    body: bytes
    code: Code
    detail: str
    answer: RebalanceAnswer | None
    seconds: float
    error: BaseException | None = None

    def decision(self, block: int) -> Decision:
        """What an accepted answer decides, from this block on."""
        return MECHANISM.decision(self.name, block, self.query, self.answer)


@dataclass(frozen=True, slots=True)
class Played:
    """One round: nominal start in unix seconds, result, and by name the code and detail of each first ask."""

    round_id: str
    start: int
    result: RoundResult
    first: dict[str, tuple[Code, str]]

    def excess(self, name: str) -> Decimal | None:
        """Score less *keep*'s, token1 base units; None if it was not ranked."""
        line = next((line for line in self.result.lines if line.name == name), None)
        with localcontext(CONTEXT):
            return line.score - self.result.benchmark_score if line else None


async def backtest(
    market: Market,
    job: Job,
    strategies: Mapping[str, Respond],
    first_time: int,
    last_time: int,
    progress: Callable[[int, int, Played, Sequence[Asked]], None] = lambda *_: None,
) -> list[Played]:
    """Play all whole rounds between two times, as a validator would at full speed.

    Args:
        market: at its start, and of full speed; its time moves on.
        strategies: by name; the earlier one is the older registration.
        first_time, last_time: unix seconds; no round starts before the first or ends after the second. The first ask of
            a round needs a market 75 s before it.
        progress: called after each round with its number, how many there are at most, the round, and all its asks.

    Returns:
        The rounds, those without scores too. They end where the market does. Reputations break ties, as they would.
    """
    length = job.round_seconds
    begins = (await market.block(market.first)).time + FIRST_ASK_LEAD_SECONDS
    first = -(-max(first_time, begins) // length) * length
    starts = range(first, last_time - length + 1, length)
    played: list[Played] = []
    standings = dict.fromkeys(strategies, Standing())

    async def one(start: int, entered: asyncio.Event) -> None:
        async with market.participant():
            entered.set()
            combined = {name: standing.combined(job.settings.reputation) for name, standing in standings.items()}
            try:
                done, asked = await play_round(market, job, start, strategies, combined)
            except MarketEnded:
                return
            for line in done.result.lines:
                standings[line.name] = update_eval(standings[line.name], line.score, done.result.benchmark_score)
            played.append(done)
            progress(len(played), len(starts), done, asked)

    async with asyncio.TaskGroup() as rounds, market.participant():
        for start in starts:
            try:
                await market.reach_time(start - FIRST_ASK_LEAD_SECONDS)
            except MarketEnded:
                break
            entered = asyncio.Event()
            rounds.create_task(one(start, entered))
            await entered.wait()
    return played


async def play_round(
    market: Market,
    job: Job,
    start: int,
    strategies: Mapping[str, Respond],
    combined: Mapping[str, Decimal],
    hindsight: bool = False,
) -> tuple[Played, list[Asked]]:
    """Play one round and tell all its asks, inside `market.participant()` and with the head where the first ask leaves.

    Args:
        combined: reputations before the round.
        hindsight: whether to look for the best range too, which takes ten times as long as all the rest.

    Raises:
        MarketEnded: the market has no end of this round.
    """
    round_id, end, asked = f"{job.job_id}:evaluation:{start}", start + job.round_seconds, []
    close = (await market.first_block_at(end)).number

    async def moment(head: Block) -> Moment:
        past = await market.block(max(market.first, head.number - PACE_BLOCKS))
        return Moment(job, market.pair, round_id, "evaluation", start, head, past)

    def ask(name: str, query: RebalanceQuery) -> Asked:
        asked.append(ask_strategy(name, strategies[name], query))
        return asked[-1]

    head = await market.head()
    if head.time >= start - FIRST_ASK_DEADLINE_SECONDS:  # who is asked now would know the opening price
        late = RoundResult(Code.VOID_INTERRUPTED, f"block {head.number} came too late to ask")
        return Played(round_id, start, late, {}), asked
    shown = Round(job.settings, await market.snapshot(job.vault, head.number + 1)).query(await moment(head))
    first = {name: ask(name, shown) for name in strategies}
    await market.reach_time(start)
    opening = (await market.first_block_at(start)).number
    game = Round(job.settings, await market.snapshot(job.vault, opening))
    entrants = [Entrant(name, n, combined[name]) for n, name in enumerate(strategies) if first[name].answer]
    for entrant in entrants:
        game.enter(entrant.hotkey)
        game.decide(first[entrant.hotkey].decision(opening))
    fed, due = opening, opening
    try:
        while (due := due + job.settings.checkpoint_blocks) < close:
            head = await market.reach(due)
            game.feed(await market.events(fed, due))
            fed, now = due + 1, await moment(head)
            for entrant in entrants:
                said = ask(entrant.hotkey, game.query(now, entrant.hotkey))
                if said.answer and due + 1 < close:  # it acts at the next block
                    game.decide(said.decision(due + 1))
        await market.reach(close)
        game.feed(await market.events(fed, close - 1))
        result = game.finish(close, entrants, hindsight)
    except (ReplayError, PoolError) as error:
        result = RoundResult(Code.VOID_CONTRADICTION, str(error))
    return Played(round_id, start, result, {name: (said.code, said.detail) for name, said in first.items()}), asked


def ask_strategy(name: str, respond: Respond, query: RebalanceQuery) -> Asked:
    """Ask as the wire does: bytes both ways, within the deadline; in the main thread only."""
    heard, error, begun = decode(RebalanceQuery, encode(query), MAX_QUERY_BYTES), None, time.perf_counter()
    try:
        with _deadline(ASK_SECONDS):
            body = encode(respond(heard))
    except TooLong as late:
        detail = f"no answer within {ASK_SECONDS} s"
        return Asked(name, query, b"", Code.TIMEOUT, detail, None, time.perf_counter() - begun, late)
    except (Exception, SystemExit) as failure:  # whatever a strategy does: `miner.py` answers keep then
        error = failure
        body = encode(RebalanceAnswer(True, None, query.current_positions, MinerMetadata("", name)))
    return Asked(name, query, body, *MECHANISM.judge(body, query), time.perf_counter() - begun, error)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `TooLong` wherever the block is after so many seconds, and each second again: it may be swallowed."""

    def expired(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def problem(asked: Asked, strategy: Strategy) -> str:
    """What is wrong with an answer, in one sentence with the values and how to mend it; empty if nothing is."""
    error = asked.error
    if error is None and asked.code in (Code.ACCEPTED, Code.REFUSED):
        return ""
    if isinstance(error, TooLong):
        what = f" gave no answer within {ASK_SECONDS} s{_where(error, strategy)}: make it faster"
    elif error is None or isinstance(error, ProtocolError):
        code, detail = (error.code, error.detail) if error else (asked.code, asked.detail)
        what = f"'s answer breaks the rule {code}: {detail}; {FIXES.get(code, '')}"
    elif where := _where(error, strategy):
        what = f" fails with {type(error).__name__}: {error}{where}: mend that line"
    else:
        what = f"'s answer cannot be sent, {type(error).__name__}: {error}; {FIXES[Code.MALFORMED]}"
    text = " ".join(f"asked at block {asked.query.block_number}, your strategy{what}".split())
    return text if len(text) <= 600 else f"{text[:600]} ..."


def _where(error: BaseException, strategy: Strategy) -> str:
    """The last line of the strategy's own file on the way to the error; empty if it happened outside of it."""
    code, found = getattr(strategy, "__code__", None), None
    inside = code is None  # not a function: every line counts
    for frame, line in traceback.walk_tb(error.__traceback__):
        inside = inside or frame.f_code is code
        if inside and (code is None or frame.f_code.co_filename == code.co_filename):
            found = frame.f_code.co_filename, line
    return f" in {Path(found[0]).name} line {found[1]} `{linecache.getline(*found).strip()}`" if found else ""


def job_of(options: argparse.Namespace, vault: str) -> Job:
    """As in local mode, its name is the target in small letters."""
    settings = JobSettings.for_target(options.target, **LOCAL_RULES.get(options.target, {}))
    return Job(options.target.lower(), vault, options.round_seconds, settings)


def rules_of(job: Job) -> str:
    settings = job.settings
    return (
        f"target {settings.target}, min_in_range {settings.min_in_range}, rounds of {job.round_seconds} s,"
        f" a checkpoint every {settings.checkpoint_blocks} blocks"
    )


def markets_of(options: argparse.Namespace) -> Iterator[tuple[Market, str, int]]:
    """Each market with its vault and its end in unix seconds; the model's is where the demo ends."""
    paths = options.events or ()
    if paths:
        refuse(options, "is of the market model; leave it out, or --events", "seed")
    if options.vault and len(paths) > 1:
        raise UserError(f"--vault {options.vault} is of one recording, {len(paths)} are named: try them one by one")
    for path in paths:
        market = RecordedMarket(read_recording(path), options.vault)
        yield market, market.vault, market.time_of(market.last)
    if not paths:
        market = ModelMarket(options.seed, dict.fromkeys(MODEL_VAULTS.values(), MODEL_CAPITAL))
        vault = options.vault or MODEL_VAULTS.get(options.target.lower(), MODEL_VAULTS["pol"])
        yield market, vault, market.time_of(market.first) + MODEL_DAYS * DAY_SECONDS


def places(played: Played, unit: Decimal) -> int:
    """Decimals that show a hundred millionth of the vault, 4 to 12."""
    return min(max(4, 8 - (played.result.baselines["keep"].terms.initial_value / unit).adjusted()), 12)


def money(value: Decimal, places: int) -> str:
    return f"{round(value, places) + 0:+,.{places}f}"  # + 0: no minus before a zero
