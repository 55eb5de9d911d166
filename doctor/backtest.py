"""Trying a strategy before it is asked for real: `--check` plays one round, `--backtest` as many as the market has.

    python miner.py --check                 one round of the market model, every rule applied; then `reach.py`
    python miner.py --backtest              the model's first 7 days
    python miner.py --backtest 2025-06-28 2025-06-30 --events ../shared/data/NAME --target Balanced

Rounds are played as a validator plays them at full speed, the same to the last digit, the reference strategies as the
older registrations: who only repeats one of them is a copy, as there. What is random here is the market: a strategy is
called skilled or worse only where Student's t leaves luck less than 5 % (two-sided, rounds taken as independent), and
never on fewer than 20 rounds. Read next: `trial.py` (a round).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial

from doctor import reach, trial
from doctor.machine import utc
from doctor.trial import Asked, Played, Respond, Strategy, money, places, problem
from liquidity import showing
from markets.base import Market, MarketError
from markets.recordings import RecordingError
from protocol import ASK_SECONDS, FIRST_ASK_LEAD_SECONDS, TARGETS, Code, Job, RebalanceAnswer, RebalanceQuery
from runtime.options import AXON_NAMES, CHAIN_NAMES, file_path, refuse
from runtime.process import EXIT_FAILED, EXIT_OK, UserError, clear_progress, number, progress, run
from scoring import CONTEXT
from spine.ground import REFERENCE_STRATEGIES
from status.board import leaderboard

LEVEL_PERCENT, Z = 95, Decimal("1.959963984540054")  # two-sided, and the normal distribution's quantile for it
FEWEST_ROUNDS = 20  # with fewer, nothing is said about skill
SLOW_SECONDS = 10  # an answer that takes longer gets a warning
CHECK_TRIES = 8  # rounds that `--check` tries until one has scores: a recording may begin with an unknown swap
TRYING = ("events", "target", "round_seconds", "vault", "seed")  # options of the two commands, and of a miner
SERVING = (*AXON_NAMES, "trusted_proxy", "address_limit", "status_port", "status_host", "exit_with_parent")
YOURS = "yours"  # what the leaderboard of `--check` calls the strategy


@dataclass(frozen=True, slots=True)
class Summary:
    """The mean of some rounds' excess and how sure it is.

    Attributes:
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
    """Student's t at the two-sided 95 % level, to 4 decimals from 19 on; Abramowitz and Stegun, 26.7.5."""
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both commands, for `miner.py`."""
    group = parser.add_argument_group("trying your strategy, without a subnet")
    add, which = group.add_argument, group.add_mutually_exclusive_group().add_argument
    which("--check", action="store_true", help="play one round; says in one sentence what is wrong, or shows the score")
    help_ = (
        "play all rounds from one time to another, each YYYY-MM-DD, YYYY-MM-DDTHH:MM or unix seconds, in UTC, the end"
        " not included; of what the market has, which is 7 days of the model; without times all of it"
    )
    which("--backtest", nargs="*", type=_moment, metavar=("FROM", "TO"), help=help_)
    help_ = "recordings to play on (default: the market model)"
    add("--events", nargs="+", action="extend", type=file_path, metavar="PATH", help=help_)
    parser.set_defaults(check_options=check_options)
    add("--target", choices=TARGETS, default="PoL", help="the job's (default: PoL)")
    add("--round-seconds", type=number(1, trial.DAY_SECONDS), default=900, help="length of a round (default: 900)")
    add("--vault", help="OWNER:LOWER:UPPER on a recording (default: as python validator.py chooses)")
    add("--seed", type=int, default=trial.MODEL_SEED, help=f"of the market model (default: {trial.MODEL_SEED})")


def check_options(options: argparse.Namespace) -> None:
    """Refuse what the work that a miner is asked for would not use; for `parse_options`."""
    if options.check or options.backtest is not None:
        refuse(options, "is of the running miner; leave it out", *SERVING)
    elif not options.command:
        refuse(options, "is of --check and --backtest; add one of them", *TRYING)
    if options.backtest is not None:
        refuse(options, "is of a subnet, --backtest plays without one; leave it out", *CHAIN_NAMES, "dir", "name")


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
        strategies: by name, `REFERENCE_STRATEGIES` among them; `options.strategy` is the one that is tried.
        respond: from a query, a strategy and its name to an answer; see `Respond`.
        min_caller_stake_rao: see `reach.report`.

    Returns:
        The exit code: 0; 1 for what fails the check; 2 for options that cannot work.
    """

    async def work() -> int:
        if not options.check:
            return await backtest_command(options, strategies, respond)
        return await check_command(options, strategies, respond) or await reach.report(options, min_caller_stake_rao)

    return run(work(), options.log_level, (RecordingError, MarketError), options.log_json, options.log_file)


async def check_command(options: argparse.Namespace, strategies: Mapping[str, Strategy], respond: Callable) -> int:
    """`--check`: the first round with scores of the last market that was named."""
    *_, (market, vault, end) = trial.markets_of(options)
    job, strategy = trial.job_of(options, vault), strategies[options.strategy]
    mine = partial(respond, strategy=strategy, name=options.strategy)
    print(f"CHECK of strategy {options.strategy} on {market.label}, vault {vault}")
    print(trial.rules_of(job), flush=True)
    played, asked = await _first_scored(market, job, end, mine)
    again = []
    for said in asked:
        if not (wrong := problem(said, strategy)):
            again.append(trial.ask_strategy(YOURS, mine, said.query))
            wrong = problem(again[-1], strategy)
        if wrong:
            print(f"WRONG: {wrong}.")
            return EXIT_FAILED
    excess, unit = played.excess(YOURS), Decimal(10) ** market.pair.token1.decimals
    if excess is None:
        print(f"RIGHT: your strategy refuses ({played.first[YOURS][1]}), which is legal; there is no score then.")
    else:
        worth = money(excess / unit, places(played, unit))
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
    print("\n" + leaderboard(showing, market.label, market.pair, {}, job, played.round_id, played.result))
    return EXIT_OK


async def _first_scored(market: Market, job: Job, end: int, mine: Respond) -> tuple[Played, list[Asked]]:
    """The market's first round with scores; every second one is tried, so that each first ask leaves in time."""
    begins, length = (await market.block(market.first)).time + FIRST_ASK_LEAD_SECONDS, job.round_seconds
    first, step, why = -(-begins // length) * length, -(-(length + FIRST_ASK_LEAD_SECONDS) // length) * length, ""
    async with market.participant():
        for start in range(first, min(end - length, first + CHECK_TRIES * step) + 1, step):
            await market.reach_time(start - FIRST_ASK_LEAD_SECONDS)
            played, asked = await trial.play_round(
                market, job, start, {YOURS: mine}, {YOURS: Decimal(0)}, hindsight=True
            )
            if played.result.baselines:
                return played, asked
            why = f", {played.result.code} {played.result.detail}"
    raise UserError(f"{market.label}: no round with scores at its beginning{why}; name another market or a --vault")


async def backtest_command(options: argparse.Namespace, strategies: Mapping[str, Strategy], respond: Callable) -> int:
    """`--backtest`: each market by itself, and several of them together."""
    if len(options.backtest) not in (0, 2):
        raise UserError(f"--backtest takes two times, FROM and TO, or none; {len(options.backtest)} given")
    first_time, last_time = options.backtest or (0, sys.maxsize)
    mine = options.strategy
    names = tuple(dict.fromkeys((*REFERENCE_STRATEGIES, mine)))
    responds = {name: partial(respond, strategy=strategies[name], name=name) for name in names}
    markets, everything = 0, []
    for market, vault, end in trial.markets_of(options):
        job = trial.job_of(options, vault)
        unit, symbol = Decimal(10) ** market.pair.token1.decimals, market.pair.token1.symbol
        print(f"BACKTEST of strategy {mine} on {market.label}, vault {vault}")
        print(f"{trial.rules_of(job)}; in {symbol}: keep's score, and the others' excess over it")
        progress = _Progress(names, strategies, unit)
        played = await trial.backtest(market, job, responds, first_time, min(end, last_time), progress)
        if not played:
            begins = (await market.block(market.first)).time
            raise UserError(
                f"{market.label}: no whole round in these times; the market has {utc(begins)} to {utc(end)} UTC, and"
                f" the first ask leaves {FIRST_ASK_LEAD_SECONDS} s before a round"
            )
        print("\n" + overall(played, names, mine, lambda _, unit=unit: unit, symbol, progress.places))
        print("\n".join(_conduct(mine, played, progress)), end="\n\n", flush=True)
        everything += played
        markets += 1
    if markets > 1:
        print(f"ALL {markets} MARKETS together, in hundredths of a percent (bp) of the vault's value at each opening")
        print(
            overall(everything, names, mine, lambda p: p.result.baselines["keep"].terms.initial_value / 10_000, "bp", 6)
        )
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
        print(f"{utc(played.start):18}" + "".join(f" {cell:>15}" for cell in self._cells(played)), flush=True)
        progress(number, total, "rounds")

    def _cells(self, played: Played) -> Iterator[str]:
        if not played.result.baselines:
            yield f"{played.result.code} {played.result.detail}"
            return
        self.places = self.places or places(played, self.unit)
        yield money(played.result.baselines["keep"].score / self.unit, self.places)
        for name in self.names:
            excess = played.excess(name)
            yield played.first[name][0] if excess is None else money(excess / self.unit, self.places)


def overall(
    played: Sequence[Played],
    names: Sequence[str],
    mine: str,
    scale: Callable[[Played], Decimal],
    symbol: str,
    places: int,
) -> str:
    """A table of all strategies, and a sentence on `mine`: is it skill or luck?

    Args:
        played: the rounds; those without scores count for nobody.
        scale: what a round's excess is divided by, in token1 base units.
        symbol, places: what the result is then in, and its decimals.
    """
    rows = [f"{'over all rounds':18}{'rounds':>8}{'mean excess':>17}{'standard error':>17}{'t':>9}"]
    for name in names:
        with localcontext(CONTEXT):
            summary = summarise([e / scale(p) for p in played if (e := p.excess(name)) is not None])
        error = money(summary.error, places)[1:] if summary.error is not None else "-"
        t = f"{summary.t:+.2f}" if summary.t is not None else "-"
        word = "" if name == "keep" else f"  {summary.verdict}"
        rows.append(f"{name:18}{summary.rounds:>8}  {money(summary.mean, places):>15}  {error:>15} {t:>8}{word}")
        if name == mine:
            sentence = _sentence(name, summary, f"{money(summary.mean, places)} {symbol}", t)
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
    if lost := Counter(f"{p.result.code}" for p in played if not p.result.baselines):
        yield "Rounds without scores: " + ", ".join(f"{count} {code}" for code, count in lost.items()) + "."
    if out := Counter(p.first[mine][0] for p in played if p.first and p.first[mine][0] is not Code.ACCEPTED):
        yield f"Rounds without {mine}: " + ", ".join(f"{count} {code}" for code, count in out.items()) + "."
    if copies := Counter(line.copy_of for p in played for line in p.result.lines if line.name == mine and line.copy_of):
        older = ", ".join(f"{count} of {name}" for name, count in copies.items())
        yield f"Copies: {older}; a book that repeats an older registration's counts as keep at best."
    if wrong := progress.wrong[mine]:
        yield f"FAILED: {len(wrong)} of {progress.asks[mine]} answers, each became keep or came too late: {wrong[0]}."
    yield f"The slowest answer of {mine} took {progress.slowest[mine]:.3f} s, the deadline is {ASK_SECONDS} s."
