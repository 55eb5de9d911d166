"""Trying a strategy before it is asked for real: `--check` plays one round, `--backtest` as many as the market has.

    python miner.py --check                                        one round of the market model, every rule applied;
                                                                   then whether a validator would reach you: `reach.py`
    python miner.py --check --events ../shared/data/NAME           the same on a recording of a real pool
    python miner.py --backtest                                     the model's first 7 days
    python miner.py --backtest 2025-06-28 2025-06-30 --events ../shared/data/NAME --target Balanced

Rounds are played as a validator plays them at full speed: the same queries from the same blocks, answers as the same
bytes through the same checks, the same scores to the last digit. No network, no keys; the vault is as the market has
it, no live round changes it. The reference strategies take part as the older registrations, so a strategy that only
repeats one of them is counted as a copy, as it would be there.

What is random here is the market, so a mean says little without its standard error: a strategy is called skilled or
worse only where Student's t leaves luck less than 5 % (two-sided, rounds taken as independent), and never on fewer
than 20 rounds. Sums are exact fractions.

A library for `miner.py` and its copies. Read next: `rounds.py` (a round), `evidence.py` (`judge`: what is valid).
"""

from __future__ import annotations

import argparse
import asyncio
import linecache
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import reach
from board import leaderboard
from books import Book, Tape
from evidence import judge
from market import Block, Market, MarketEnded, MarketError, RecordedMarket
from model import ModelMarket
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    FIRST_ASK_LEAD_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    TARGETS,
    Code,
    JobSettings,
    MinerMetadata,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    decode,
    encode,
)
from recording import RecordingError, ReplayError, read_recording
from rounds import PACE_BLOCKS, Decision, Entrant, Round, RoundResult, build_query
from runtime import EXIT_FAILED, EXIT_OK, UserError, clear_progress, number, progress, run
from scoring import CONTEXT, Standing, update_eval
from sim import PoolError
from store import Job

REFERENCES = ("keep", "wide", "preserve")
DAY_SECONDS = 86_400
LEVEL_PERCENT, Z = 95, Decimal("1.959963984540054")  # two-sided, and the normal distribution's quantile for it
FEWEST_ROUNDS = 20  # with fewer, nothing is said about skill
SLOW_SECONDS = 10  # an answer that takes longer gets a warning
CHECK_TRIES = 8  # rounds that `--check` tries until one has scores: a recording may begin with an unknown swap
YOURS = "yours"  # what the leaderboard of `--check` calls the strategy
# the market model and the jobs of `python validator.py`, so that the digits are the same; a test compares them
MODEL_SEED, MODEL_DAYS = 98, 7
MODEL_VAULTS = {"Balanced": "vault-balanced", "PoL": "vault-pol"}  # by target, in this order
MODEL_CAPITAL = 400_000 * 10**6
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
        name, query: who was asked what.
        body: the answer's bytes; of a strategy that failed, the keep that `miner.py` sends in its place.
        code, detail, answer: what a validator makes of the bytes; see `evidence.judge`.
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
            return line.score - self.result.keep.score if line else None


# ---------------------------------------------------------------------------------------------------------------------
# Playing rounds


async def backtest(
    market: Market,
    vault: str,
    settings: JobSettings,
    round_seconds: int,
    strategies: Mapping[str, Respond],
    first_time: int,
    last_time: int,
    progress: Callable[[int, int, Played, Sequence[Asked]], None] = lambda *_: None,
) -> list[Played]:
    """Play all whole rounds between two times, as a validator would at full speed.

    Args:
        market: at its start, and of full speed; its time moves on.
        vault, settings, round_seconds: the job. Its name is the target in small letters, as in local mode.
        strategies: who takes part, by name; the earlier one is the older registration.
        first_time, last_time: unix seconds; no round starts before the first or ends after the second. The first ask of
            a round needs a market 75 s before it.
        progress: called after each round with its number, how many there are at most, the round, and all its asks.

    Returns:
        The rounds, those without scores too. They end where the market does. Reputations break ties, as they would.
    """
    job = Job(settings.target.lower(), vault, round_seconds, settings)
    begins = (await market.block(market.first)).time + FIRST_ASK_LEAD_SECONDS
    first = -(-max(first_time, begins) // round_seconds) * round_seconds
    starts = range(first, last_time - round_seconds + 1, round_seconds)
    played: list[Played] = []
    standings = dict.fromkeys(strategies, Standing())

    async def one(start: int, entered: asyncio.Event) -> None:
        async with market.participant():
            entered.set()
            combined = {name: standing.combined(settings.reputation) for name, standing in standings.items()}
            try:
                done, asked = await play_round(market, job, start, strategies, combined)
            except MarketEnded:
                return
            for line in done.result.lines:
                standings[line.name] = update_eval(standings[line.name], line.score, done.result.keep.score)
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
    """Play one round, inside `market.participant()` and with the head where the first ask leaves.

    Args:
        combined: reputations before the round.
        hindsight: whether to look for the best range too, which takes ten times as long as all the rest.

    Returns:
        The round, and all its asks in order.

    Raises:
        MarketEnded: the market has no end of this round.
    """
    round_id, end, asked = f"{job.job_id}:evaluation:{start}", start + job.round_seconds, []
    close = (await market.first_block_at(end)).number

    async def ask(name: str, book: Book, head: Block) -> Asked:
        past = await market.block(max(market.first, head.number - PACE_BLOCKS))
        query = build_query(job, market.pair, round_id, "evaluation", start, book, head, past, book.changes)
        asked.append(_ask(name, strategies[name], query))
        return asked[-1]

    head = await market.head()
    if head.time >= start - FIRST_ASK_DEADLINE_SECONDS:  # who is asked now would know the opening price
        late = RoundResult(Code.VOID_INTERRUPTED, f"block {head.number} came too late to ask")
        return Played(round_id, start, late, {}), asked
    shown = Book(Tape(await market.snapshot(job.vault, head.number + 1)))
    first = {name: await ask(name, shown, head) for name in strategies}
    await market.reach_time(start)
    opening = (await market.first_block_at(start)).number
    game = Round(job.settings, await market.snapshot(job.vault, opening))
    entrants = [Entrant(name, n, combined[name]) for n, name in enumerate(strategies) if first[name].answer]
    for entrant in entrants:
        game.enter(entrant.hotkey)
        game.decide(_decision(first[entrant.hotkey], opening))
    fed, due = opening, opening
    try:
        while (due := due + job.settings.checkpoint_blocks) < close:
            head = await market.reach(due)
            game.feed(await market.events(fed, due))
            fed = due + 1
            for entrant in entrants:
                said = await ask(entrant.hotkey, game.books[entrant.hotkey].at(due + 1), head)
                if said.answer and due + 1 < close:  # it acts at the next block
                    game.decide(_decision(said, due + 1))
        await market.reach(close)
        game.feed(await market.events(fed, close - 1))
        result = game.finish(close, entrants, hindsight)
    except (ReplayError, PoolError) as error:
        result = RoundResult(Code.VOID_CONTRADICTION, str(error))
    return Played(round_id, start, result, {name: (said.code, said.detail) for name, said in first.items()}), asked


def _decision(said: Asked, block: int) -> Decision:
    return Decision(said.name, block, said.query.current_positions, said.answer.desired_positions)


def _ask(name: str, respond: Respond, query: RebalanceQuery) -> Asked:
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
    return Asked(name, query, body, *judge(body, query), time.perf_counter() - begun, error)


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


# ---------------------------------------------------------------------------------------------------------------------
# Skill or luck


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean of some rounds' excess and how sure it is.

    Attributes:
        rounds: how many.
        mean, error: of the excess a round, and its standard error; 0 rounds have mean 0, fewer than 2 no error.
        critical: how far |t| must be above for skill, see `critical_t`.
    """

    rounds: int
    mean: Decimal
    error: Decimal | None
    critical: Decimal | None

    @property
    def t(self) -> Decimal | None:
        """The mean in standard errors; None where there are none."""
        with localcontext(CONTEXT):
            return self.mean / self.error if self.error else None

    @property
    def verdict(self) -> str:
        """`too few`, `same` (in every round), `skill`, `worse` or `luck`."""
        if self.rounds < FEWEST_ROUNDS:
            return "too few"
        if not self.mean and not self.error:
            return "same"
        with localcontext(CONTEXT):
            beyond = abs(self.mean) > self.critical * self.error
        return ("skill" if self.mean > 0 else "worse") if beyond else "luck"

    @property
    def rounds_needed(self) -> int:
        """How many rounds like these would lift their mean, which must not be 0, beyond luck."""
        with localcontext(CONTEXT):
            return int(self.rounds * (Z * self.error / self.mean) ** 2) + 1


def summarise(excesses: Sequence[Decimal]) -> Summary:
    """Mean and standard error, from exact sums; only the root and the last division round, to 120 digits."""
    n, exact = len(excesses), [Fraction(excess) for excess in excesses]
    if not n:
        return Summary(0, Decimal(0), None, None)
    mean = sum(exact) / n
    if n == 1:
        return Summary(1, _decimal(mean), None, None)
    variance = sum((excess - mean) ** 2 for excess in exact) / (n - 1)
    with localcontext(CONTEXT):
        return Summary(n, _decimal(mean), _decimal(variance / n).sqrt(), critical_t(n - 1))


def critical_t(degrees: int) -> Decimal:
    """Student's t at the two-sided 95 % level for `degrees` of freedom, to 4 decimals from 19 on.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    z = Z
    with localcontext(CONTEXT):
        return (
            z
            + (z**3 + z) / (4 * degrees)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
        )


def _decimal(fraction: Fraction) -> Decimal:
    with localcontext(CONTEXT):
        return Decimal(fraction.numerator) / fraction.denominator


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with an answer


def problem(asked: Asked, strategy: Strategy) -> str:
    """What is wrong with an answer, in one sentence with the values and how to mend it; empty if nothing is."""
    error, block = asked.error, f"asked at block {asked.query.block_number}"
    if isinstance(error, TooLong):
        where = _where(error, strategy)
        return _one_line(f"{block}, your strategy gave no answer within {ASK_SECONDS} s{where}: make it faster")
    if isinstance(error, ProtocolError) or (error is None and asked.code not in (Code.ACCEPTED, Code.REFUSED)):
        code, detail = (error.code, error.detail) if error else (asked.code, asked.detail)
        return _one_line(f"{block}, your strategy's answer breaks the rule {code}: {detail}; {FIXES.get(code, '')}")
    if error and (where := _where(error, strategy)):
        return _one_line(f"{block}, your strategy fails with {type(error).__name__}: {error}{where}: mend that line")
    if error:
        fix = FIXES[Code.MALFORMED]
        return _one_line(f"{block}, your strategy's answer cannot be sent, {type(error).__name__}: {error}; {fix}")
    return ""


def _where(error: BaseException, strategy: Strategy) -> str:
    """The last line of the strategy's own file on the way to the error; empty if it happened outside of it."""
    code, found = getattr(strategy, "__code__", None), None
    inside = code is None  # not a function: every line counts
    for frame, line in traceback.walk_tb(error.__traceback__):
        inside = inside or frame.f_code is code
        if inside and (code is None or frame.f_code.co_filename == code.co_filename):
            found = frame.f_code.co_filename, line
    return f" in {Path(found[0]).name} line {found[1]} `{linecache.getline(*found).strip()}`" if found else ""


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 600 else f"{text[:600]} ..."


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both commands, for `miner.py`."""
    group = parser.add_argument_group("trying your strategy, without a subnet")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--check", action="store_true", help="play one round; says in one sentence what is wrong, or shows the score"
    )
    which.add_argument(
        "--backtest",
        nargs="*",
        type=_moment,
        metavar=("FROM", "TO"),
        help="play all rounds from one time to another, each YYYY-MM-DD, YYYY-MM-DDTHH:MM or unix seconds, in UTC, the"
        " end not included; without times all that a recording has, 7 days of the model",
    )
    group.add_argument(
        "--events", nargs="+", action="extend", metavar="PATH", help="recordings to play on (default: the market model)"
    )
    group.add_argument("--target", choices=TARGETS, default="PoL", help="the job's (default: PoL)")
    group.add_argument(
        "--round-seconds", type=number(1, DAY_SECONDS), default=900, help="length of a round (default: 900)"
    )
    group.add_argument("--vault", help="OWNER:LOWER:UPPER on a recording (default: as python validator.py chooses)")
    group.add_argument("--seed", type=int, default=MODEL_SEED, help=f"of the market model (default: {MODEL_SEED})")


def _moment(text: str) -> int:
    """The type of a time, unix seconds."""
    try:
        return int(text) if text.isdecimal() else int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: YYYY-MM-DD, or unix seconds, in UTC") from None


def main(
    options: argparse.Namespace,
    strategies: Mapping[str, Strategy],
    respond: Callable[[RebalanceQuery, Strategy, str], RebalanceAnswer],
    min_caller_stake_rao: int,
) -> int:
    """Run `--check`, with `reach.py` after it if the strategy is right, or `--backtest`.

    Args:
        options: of the program; see `add_options`. `options.strategy` names the strategy that is tried.
        strategies: by name, `REFERENCES` among them.
        respond: from a query, a strategy and its name to an answer; see `Respond`.
        min_caller_stake_rao: see `reach.report`.

    Returns:
        The exit code: 0; 1 for what fails the check; 2 for options that cannot work.
    """

    async def work() -> int:
        if not options.check:
            return await backtest_command(options, strategies, respond)
        return await check_command(options, strategies, respond) or await reach.report(options, min_caller_stake_rao)

    return run(work(), options.log_level, (RecordingError, MarketError))


def _job(options: argparse.Namespace) -> tuple[JobSettings, str]:
    """The rules, and a line about them."""
    settings = JobSettings.for_target(options.target, **LOCAL_RULES.get(options.target, {}))
    return settings, (
        f"target {options.target}, min_in_range {settings.min_in_range}, rounds of {options.round_seconds} s,"
        f" a checkpoint every {settings.checkpoint_blocks} blocks"
    )


def _markets(options: argparse.Namespace) -> Iterator[tuple[Market, str, int]]:
    """Each market with its vault and its end in unix seconds; the model's is where the demo ends."""
    paths = options.events or ()
    if options.vault and len(paths) > 1:
        raise UserError(f"--vault {options.vault} is of one recording, {len(paths)} are named: try them one by one")
    for path in paths:
        market = RecordedMarket(read_recording(path), options.vault)
        yield market, market.vault, market.time_of(market.last)
    if not paths:
        market = ModelMarket(options.seed, dict.fromkeys(MODEL_VAULTS.values(), MODEL_CAPITAL))
        vault = options.vault or MODEL_VAULTS.get(options.target, MODEL_VAULTS["PoL"])
        yield market, vault, market.time_of(market.first) + MODEL_DAYS * DAY_SECONDS


async def check_command(options: argparse.Namespace, strategies: Mapping[str, Strategy], respond: Callable) -> int:
    """`--check`: the first round with scores of the last market that was named."""
    *_, (market, vault, end) = _markets(options)
    (settings, rules), strategy = _job(options), strategies[options.strategy]
    job = Job(options.target.lower(), vault, options.round_seconds, settings)
    mine = partial(respond, strategy=strategy, name=options.strategy)
    print(f"CHECK of strategy {options.strategy} on {market.label}, vault {vault}")
    print(rules, flush=True)
    played, asked = await _first_scored(market, job, end, mine)
    again = []
    for said in asked:
        if not (wrong := problem(said, strategy)):
            again.append(_ask(YOURS, mine, said.query))
            wrong = problem(again[-1], strategy)
        if wrong:
            print(f"WRONG: {wrong}.")
            return EXIT_FAILED
    excess, unit = played.excess(YOURS), Decimal(10) ** market.pair.token1.decimals
    if excess is None:
        print(f"RIGHT: your strategy refuses ({played.first[YOURS][1]}), which is legal; there is no score then.")
    else:
        worth = _money(excess / unit, _places(played, unit))
        print(f"RIGHT: {len(asked)} asks, {len(asked)} legal answers; {worth} {market.pair.token1.symbol} over keep.")
    slowest = max(said.seconds for said in (*asked, *again))
    print(f"The slowest answer took {slowest:.3f} s, the deadline is {ASK_SECONDS} s.")
    if slowest > SLOW_SECONDS:
        print(f"WARNING: that is above {SLOW_SECONDS} s; network and a busy machine come on top: make it faster.")
    if differs := [one for one, two in zip(asked, again, strict=True) if one.body != two.body]:
        print(
            f"NOTE: the same query twice got different answers, {len(differs)} of {len(asked)} times, first at block"
            f" {differs[0].query.block_number}: what your strategy remembers or draws at random decides."
        )
    print("\n" + leaderboard(market.label, market.pair, job, played.round_id, played.result, {}, {}, {}, {}))
    return EXIT_OK


async def _first_scored(market: Market, job: Job, end: int, mine: Respond) -> tuple[Played, list[Asked]]:
    """The market's first round with scores; every second one is tried, so that each first ask leaves in time."""
    begins, length = (await market.block(market.first)).time + FIRST_ASK_LEAD_SECONDS, job.round_seconds
    first, step, why = -(-begins // length) * length, -(-(length + FIRST_ASK_LEAD_SECONDS) // length) * length, ""
    async with market.participant():
        for start in range(first, min(end - length, first + CHECK_TRIES * step) + 1, step):
            await market.reach_time(start - FIRST_ASK_LEAD_SECONDS)
            played, asked = await play_round(market, job, start, {YOURS: mine}, {YOURS: Decimal(0)}, hindsight=True)
            if played.result.keep:
                return played, asked
            why = f", {played.result.code} {played.result.detail}"
    raise UserError(f"{market.label}: no round with scores at its beginning{why}; name another market or a --vault")


async def backtest_command(options: argparse.Namespace, strategies: Mapping[str, Strategy], respond: Callable) -> int:
    """`--backtest`: each market by itself, and several of them together."""
    if len(options.backtest) not in (0, 2):
        raise UserError(f"--backtest takes two times, FROM and TO, or none; {len(options.backtest)} given")
    first_time, last_time = options.backtest or (0, sys.maxsize)
    (settings, rules), mine = _job(options), options.strategy
    names = tuple(dict.fromkeys((*REFERENCES, mine)))
    responds = {name: partial(respond, strategy=strategies[name], name=name) for name in names}
    markets, everything = 0, []
    for market, vault, end in _markets(options):
        unit, symbol = Decimal(10) ** market.pair.token1.decimals, market.pair.token1.symbol
        last = last_time if options.backtest and not options.events else min(end, last_time)
        print(f"BACKTEST of strategy {mine} on {market.label}, vault {vault}")
        print(f"{rules}; in {symbol}: keep's score, and the others' excess over it")
        progress = _Progress(names, strategies, unit)
        played = await backtest(market, vault, settings, options.round_seconds, responds, first_time, last, progress)
        if not played:
            begins = (await market.block(market.first)).time
            raise UserError(
                f"{market.label}: no whole round in these times; the market has {_utc(begins)} to {_utc(end)} UTC, and"
                f" the first ask leaves {FIRST_ASK_LEAD_SECONDS} s before a round"
            )
        print("\n" + overall(played, names, mine, lambda _, unit=unit: unit, symbol, progress.places))
        print("\n".join(_conduct(mine, played, progress)), end="\n\n", flush=True)
        everything += played
        markets += 1
    if markets > 1:
        print(f"ALL {markets} MARKETS together, in hundredths of a percent (bp) of the vault's value at each opening")
        print(overall(everything, names, mine, lambda p: p.result.keep.terms.initial_value / 10_000, "bp", 6))
    return EXIT_OK


class _Progress:
    """Prints a line for each round as it is played; remembers what went wrong and what took longest, by name."""

    def __init__(self, names: Sequence[str], strategies: Mapping[str, Strategy], unit: Decimal):
        self.names = [name for name in names if name != "keep"]  # its excess is always 0
        self.strategies, self.unit, self.places = strategies, unit, 0
        self.wrong: dict[str, list[str]] = {name: [] for name in names}
        self.slowest, self.asks = dict.fromkeys(names, 0.0), Counter()
        print(f"{'round, UTC':18}{'keep':>16}" + "".join(f" {name:>15}" for name in self.names), flush=True)

    def __call__(self, number: int, total: int, played: Played, asked: Sequence[Asked]) -> None:
        for said in asked:
            self.asks[said.name] += 1
            self.slowest[said.name] = max(self.slowest[said.name], said.seconds)
            if sentence := problem(said, self.strategies[said.name]):
                self.wrong[said.name].append(sentence)
        clear_progress()
        print(f"{_utc(played.start):18}" + "".join(f" {cell:>15}" for cell in self._cells(played)), flush=True)
        progress(number, total, "rounds")

    def _cells(self, played: Played) -> Iterator[str]:
        if not played.result.keep:
            yield f"{played.result.code} {played.result.detail}"
            return
        self.places = self.places or _places(played, self.unit)
        yield _money(played.result.keep.score / self.unit, self.places)
        for name in self.names:
            excess = played.excess(name)
            yield played.first[name][0] if excess is None else _money(excess / self.unit, self.places)


def overall(
    played: Sequence[Played],
    names: Sequence[str],
    mine: str,
    scale: Callable[[Played], Decimal],
    symbol: str,
    places: int,
) -> str:
    """A table of all strategies, and a sentence on one: is it skill or luck?

    Args:
        played: the rounds; those without scores count for nobody.
        names, mine: who took part, and whom the sentence is about.
        scale: what a round's excess is divided by, in token1 base units.
        symbol, places: what the result is then in, and its decimals.
    """
    rows = [f"{'over all rounds':18}{'rounds':>8}{'mean excess':>17}{'standard error':>17}{'t':>9}"]
    for name in names:
        with localcontext(CONTEXT):
            summary = summarise([e / scale(p) for p in played if (e := p.excess(name)) is not None])
        error = _money(summary.error, places)[1:] if summary.error is not None else "-"
        t = f"{summary.t:+.2f}" if summary.t is not None else "-"
        word = "" if name == "keep" else f"  {summary.verdict}"
        rows.append(f"{name:18}{summary.rounds:>8}  {_money(summary.mean, places):>15}  {error:>15} {t:>8}{word}")
        if name == mine:
            sentence = _sentence(name, summary, f"{_money(summary.mean, places)} {symbol}", t)
    return "\n".join([*rows, sentence])


def _sentence(name: str, summary: Summary, mean: str, t: str) -> str:
    n, critical = summary.rounds, f"{summary.critical:.3f}" if summary.critical else ""
    how = f"{LEVEL_PERCENT} % level, two-sided, {n} rounds taken as independent"
    match summary.verdict:
        case "too few":
            return f"TOO FEW: {n} rounds with {name}; skill and luck cannot be told apart below {FEWEST_ROUNDS}."
        case "same":
            return f"THE SAME: {name} scored what keep scored in each of {n} rounds."
        case "skill":
            return f"SKILL: {name} is {mean} a round over keep; t {t} is beyond {critical} ({how})."
        case "worse":
            return f"WORSE: {name} is {mean} a round against keep; t {t} is beyond -{critical} ({how})."
    more = f"; if it stays like this, {summary.rounds_needed} rounds would tell" if summary.mean else ""
    return f"LUCK: {name} cannot be told from keep, {mean} a round; t {t} is within {critical} ({how}){more}."


def _conduct(mine: str, played: Sequence[Played], progress: _Progress) -> Iterator[str]:
    """What else is to be said of a strategy's rounds."""
    if lost := Counter(f"{p.result.code}" for p in played if not p.result.keep):
        yield "Rounds without scores: " + ", ".join(f"{count} {code}" for code, count in lost.items()) + "."
    if out := Counter(p.first[mine][0] for p in played if p.first and p.first[mine][0] is not Code.ACCEPTED):
        yield f"Rounds without {mine}: " + ", ".join(f"{count} {code}" for code, count in out.items()) + "."
    if copies := Counter(line.copy_of for p in played for line in p.result.lines if line.name == mine and line.copy_of):
        older = ", ".join(f"{count} of {name}" for name, count in copies.items())
        yield f"Copies: {older}; a book that repeats an older registration's counts as keep at best."
    if wrong := progress.wrong[mine]:
        yield f"FAILED: {len(wrong)} of {progress.asks[mine]} answers, each became keep or came too late: {wrong[0]}."
    yield f"The slowest answer of {mine} took {progress.slowest[mine]:.3f} s, the deadline is {ASK_SECONDS} s."


def _places(played: Played, unit: Decimal) -> int:
    """Decimals that show a hundred millionth of the vault, 4 to 12."""
    return min(max(4, 8 - (played.result.keep.terms.initial_value / unit).adjusted()), 12)


def _money(value: Decimal, places: int) -> str:
    return f"{round(value, places) + 0:+,.{places}f}"  # + 0: no minus before a zero


def _utc(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
