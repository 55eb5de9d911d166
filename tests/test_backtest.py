"""A backtest is a validator's rounds without the network: the same queries, the same digits; and a mean with its error.

Run: `python -m pytest tests/test_backtest.py`. The oracle for the rounds is a real validator with scripted miners
behind real signed HTTP (`subnets.py`); for the sums, `statistics` on exact fractions and the printed
table of Student's t; for the verdicts, a market that is made so that one can know which side will pay.
Read next: `backtest.py`.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from random import Random

import pytest
from subnets import CAPITAL, VAULT, a_job, accept, hotkey_of, model, play_subnet, refuse, stored_lines, stored_rounds

import miner
import validator
from doctor import trial
from doctor.backtest import FEWEST_ROUNDS, critical_t, overall, summarise
from doctor.trial import backtest, problem
from liquidity.events import Event
from markets.memory import InMemoryMarket, Purse
from markets.model import ModelMarket
from markets.recordings import RecordedMarket, read_recording
from protocol import Code, Job, JobSettings, Pair, Position, RebalanceAnswer, RebalanceQuery, Token
from sim import MAX_SQRT_RATIO, Pool, sqrt_ratio_at_tick
from spine import ground
from wire.codec import encode, to_json

ROUND_SECONDS = 900
TABLE = {19: "2.0930", 24: "2.0639", 29: "2.0452", 60: "2.0003", 120: "1.9799", 1000: "1.9623"}  # two-sided, 5 %


def responds(strategy: Callable) -> Callable[[RebalanceQuery], RebalanceAnswer]:
    return lambda query: miner.respond(query, strategy, "test")


def play(market, strategies: Mapping[str, Callable], rounds: int = 1, settings: JobSettings | None = None, **options):
    """Rounds of a market from its start."""
    first = market.time_of(market.first)
    last, settings = first + (rounds + 1) * ROUND_SECONDS, settings or JobSettings()
    job = Job(settings.target.lower(), options.pop("vault", VAULT), ROUND_SECONDS, settings)
    return asyncio.run(backtest(market, job, strategies, first, last, **options))


# ---------------------------------------------------------------------------------------------------------------------
# The same as a validator


def cast() -> dict[str, Callable[[RebalanceQuery], RebalanceAnswer]]:
    """Miners of every kind, made anew for each run: some remember, so the order in which they are asked matters."""
    calls = {"moody": 0, "restless": 0}

    def moody(query: RebalanceQuery) -> RebalanceAnswer:
        """Refuses, is wrong, and proposes, in turn; at first asks it is then out, at later ones kept."""
        calls["moody"] += 1
        wrong = Position(query.tick_spacing + 1, 5 * query.tick_spacing, 0, 0)
        turn = calls["moody"] % 4
        return refuse("enough") if turn == 1 else accept([wrong]) if turn == 2 else accept(miner.wide(query))

    def restless(query: RebalanceQuery) -> RebalanceAnswer:
        calls["restless"] += 1
        reach = 100 * (1 + calls["restless"] % 5)
        return accept([Position(*miner.grid_range(query, query.tick - reach, query.tick + reach), *query.holdings())])

    found = {name: lambda query, s=miner.STRATEGIES[name]: accept(s(query)) for name in ("keep", "wide", "preserve")}
    found |= {"copy": lambda query: accept(miner.wide(query)), "moody": moody, "restless": restless}
    return dict(sorted(found.items(), key=lambda pair: hotkey_of(pair[0])))  # of equal registration blocks, as ranked


@pytest.mark.parametrize("target", ["PoL", "Balanced"])
def test_a_backtest_gives_the_digits_and_the_queries_of_a_validator_that_asks_over_the_wire(tmp_path, target):
    # a checkpoint every 60 blocks is asked until 840 s: after the next round's first ask at 825 s
    job = a_job(target.lower(), target=target, checkpoint_blocks=60, min_in_range=Decimal("0.5"))
    subnet = play_subnet(tmp_path, cast(), [job], market=lambda: model(7), rounds=3)
    asked = {name: [] for name in cast()}

    def listen(number, total, played, asks):
        for said in asks:
            asked[said.name].append(said.query)

    played = play(model(7), cast(), 3, job.settings, progress=listen)
    assert [done.round_id for done in played] == stored_rounds(subnet.path)
    for done in played:
        stored = stored_lines(subnet.path, done.round_id)
        lines = {hotkey_of(line.name): line for line in done.result.lines}
        lines |= {"keep": done.result.baselines["keep"], "hold": done.result.baselines["hold"]}
        assert stored.keys() == lines.keys() | {"best"}  # which a backtest does not look for
        for name, line in lines.items():
            plain = to_json(line)
            if name not in ("keep", "hold"):
                plain |= {"name": name, "copy_of": line.copy_of and hotkey_of(line.copy_of)}
            assert plain == stored[name]
    ranked = [{line.name for line in done.result.lines} for done in played]
    assert any("moody" in names for names in ranked) and any("moody" not in names for names in ranked)
    assert any(line.copy_of for done in played for line in done.result.lines)
    for name, queries in asked.items():
        for round_id in (done.round_id for done in played):
            mine = [encode(query) for query in queries if query.round_id == round_id]
            assert mine == [encode(query) for query in subnet.asked[name] if query.round_id == round_id]


def test_on_a_recording_too(tmp_path, recording_path):
    recording = read_recording(recording_path("polygon_usdc_weth_500_2022-01-05"))
    vault = RecordedMarket(recording).vault
    job = a_job("maxfees", target="MaxFees")
    job = replace(job, vault=vault)
    subnet = play_subnet(tmp_path, cast(), [job], market=lambda: RecordedMarket(recording), rounds=2)
    played = play(RecordedMarket(recording), cast(), 2, job.settings, vault=vault)
    assert len(played) == 2
    for done in played:
        stored = stored_lines(subnet.path, done.round_id)
        assert {hotkey_of(line.name): str(line.score) for line in done.result.lines} == {
            name: line["score"] for name, line in stored.items() if name not in ("keep", "hold", "best")
        }


def test_the_tool_plays_on_the_market_and_by_the_rules_of_the_local_validator():
    assert validator.build_parser().parse_args([]).seed == trial.MODEL_SEED
    options = miner.build_parser().parse_args([])
    for job in ground._first_jobs(None, 900, None):
        options.target = job.settings.target
        ((_, vault, _),) = trial.markets_of(options)
        assert replace(trial.job_of(options, vault), live=job.live) == job


# ---------------------------------------------------------------------------------------------------------------------
# Which rounds, and who is in them


def test_rounds_lie_between_the_times_and_begin_when_a_first_ask_could_leave():
    market = model()
    begin = market.time_of(market.first)
    assert [done.start - begin for done in play(model(), {}, 3)] == [900, 1800, 2700]
    starts = asyncio.run(backtest(model(), Job("pol", VAULT, 900, JobSettings()), {}, begin + 901, begin + 3600))
    assert [done.start - begin for done in starts] == [1800, 2700]
    assert asyncio.run(backtest(model(), Job("pol", VAULT, 900, JobSettings()), {}, begin, begin + 1799)) == []


def test_it_ends_where_the_recording_ends(recording_path):
    market = RecordedMarket(read_recording(recording_path("polygon_usdc_weth_500_2022-01-05")))
    end = market.time_of(market.last)
    job = Job("pol", market.vault, 3600, JobSettings())
    played = asyncio.run(backtest(market, job, {}, end - 3 * 3600, end + 86_400))
    assert [done.start for done in played] == [end // 3600 * 3600 - 7200, end // 3600 * 3600 - 3600]


def test_a_strategy_that_raises_keeps_as_the_miners_server_does_and_one_that_is_too_slow_is_out(monkeypatch):
    monkeypatch.setattr(trial, "ASK_SECONDS", 0.05)

    def raises(query):
        raise ZeroDivisionError

    def hangs(query):
        while True:
            try:
                while True:
                    pass
            except Exception:  # a strategy may swallow what it can
                pass

    def stops(query):
        raise SystemExit("bye")

    found = []
    strategies = {strategy.__name__: responds(strategy) for strategy in (raises, hangs, stops)}
    (done,) = play(model(), strategies, progress=lambda *news: found.extend(news[3]))
    assert {name: code for name, (code, _) in done.first.items()} == {
        "raises": Code.ACCEPTED,
        "hangs": Code.TIMEOUT,
        "stops": Code.ACCEPTED,
    }
    assert {line.name for line in done.result.lines} == {"raises", "stops"}
    assert done.excess("raises") == 0 and done.excess("hangs") is None
    assert "ZeroDivisionError" in problem(found[0], raises) and "within 0.05 s" in problem(found[1], hangs)


def test_a_round_whose_first_block_to_ask_at_comes_too_late_is_void_as_the_validators_is(tmp_path):
    class Slow(Seesaw):  # a block every two minutes: every second round's first ask could leave at its opening only
        def time_of(self, number):
            return 1_800_000_000 + (number - 1) * 120

        def number_at(self, time_seconds):
            return max(1, -((1_800_000_000 - time_seconds) // 120) + 1)

    strategies = {"wide": lambda query: accept(miner.wide(query))}
    subnet = play_subnet(tmp_path, strategies, [a_job("pol")], market=lambda: Slow(1, 1), rounds=4)
    codes = subnet.codes()
    played = play(Slow(1, 1), strategies, 4)
    assert codes == [done.result.code for done in played] and len(set(codes)) == 2
    late = [done.result.detail for done in played if not done.first]
    assert late == ["block 16 came too late to ask", "block 31 came too late to ask"]


def test_a_round_without_scores_says_why_and_counts_for_nobody():
    class Broken(ModelMarket):
        async def events(self, first, last):
            events = await super().events(first, last)
            return [event for n, event in enumerate(events) if event.kind != "swap" or n % 3]

    (done,) = play(Broken(5, {VAULT: CAPITAL}), {"keep": responds(miner.keep)})
    assert done.result.code is Code.VOID_CONTRADICTION and done.excess("keep") is None
    text = overall([done], ["keep"], "keep", lambda _: Decimal(1), "X", 4)
    assert "TOO FEW: 0 rounds" in text


def test_of_two_strategies_alike_the_later_one_is_the_copy():
    (done,) = play(model(), {"wide": responds(miner.wide), "mine": responds(miner.wide)})
    assert {line.name: line.copy_of for line in done.result.lines} == {"wide": "", "mine": "wide"}


# ---------------------------------------------------------------------------------------------------------------------
# Skill or luck


def test_mean_and_standard_error_are_exact_sums():
    rng = Random(3)
    for n in (2, 3, 20, 100):
        numbers = [Decimal(rng.randrange(-(10**60), 10**60)).scaleb(-rng.randrange(50)) for _ in range(n)]
        summary, exact = summarise(numbers), [Fraction(number) for number in numbers]
        mean, variance = statistics.mean(exact), statistics.variance(exact)
        tolerance = Fraction(1, 10**100)
        assert abs(Fraction(summary.mean) - mean) <= abs(mean) * tolerance
        assert abs(Fraction(summary.error) ** 2 - variance / n) <= variance / n * tolerance
        assert summary.rounds == n and abs(float(summary.t) - float(mean) / (float(variance) / n) ** 0.5) < 1e-9


def test_the_critical_t_is_the_printed_tables():
    for degrees, expected in TABLE.items():
        assert abs(critical_t(degrees) - Decimal(expected)) < Decimal("0.00006")


def test_nothing_is_said_of_fewer_than_twenty_rounds_and_nothing_of_no_difference():
    always = [Decimal(5)] * (FEWEST_ROUNDS - 1)
    assert summarise(always).verdict == "too few" and summarise([]).verdict == "too few"
    assert summarise([Decimal(5)]).error is None
    assert summarise([*always, Decimal(5)]).verdict == "skill"
    assert summarise([Decimal(-5)] * 20).verdict == "worse"
    assert summarise([Decimal(0)] * 20).verdict == "same"


def test_the_verdict_changes_at_the_critical_t():
    # ten rounds of a, ten of -b: the mean and its error follow by hand
    for nudge, verdict in ((Decimal("-0.001"), "luck"), (Decimal("0.001"), "skill")):
        spread = [Decimal(1), Decimal(-1)] * 10
        error = summarise(spread).error  # shifting all by the same leaves it as it is
        shift = (critical_t(19) + nudge) * error
        assert summarise([value + shift for value in spread]).verdict == verdict
        assert summarise([value - shift for value in spread]).verdict == {"luck": "luck", "skill": "worse"}[verdict]


def test_a_coin_is_called_skill_in_one_of_twenty_backtests_or_so():
    rng = Random(11)
    verdicts = [summarise([Decimal(rng.choice((-1, 1))) for _ in range(40)]).verdict for _ in range(1000)]
    assert 20 <= verdicts.count("luck") - 900 <= 80  # 5 %, within four standard errors of 0.7 %


class Seesaw(InMemoryMarket):
    """Each round the price goes out by 40 ticks to one side, and comes back: the sides are drawn from a seed."""

    def __init__(self, seed: int, rounds: int):
        pool = Pool(3000, 10)
        pool.initialize(sqrt_ratio_at_tick(0))
        for owner, liquidity in (("others", 10**24), (VAULT, 10**20)):
            pool.mint(owner, -80, 80, liquidity)
        pair = Pair(1, "seesaw", Token("", "AAA", 18), Token("", "BBB", 18), 3000, 10)
        super().__init__("a crafted market", pair, pool.copy(), first=1, hash_key="seesaw", last=(rounds + 3) * 450)
        self.up = [Random(f"{seed}:{n}").random() < 0.5 for n in range(rounds + 3)]
        for n, up in enumerate(self.up):
            for block, tick, zero_for_one in ((n * 450 + 100, 40 if up else -40, not up), (n * 450 + 400, 0, up)):
                amounts = pool.swap(zero_for_one, MAX_SQRT_RATIO, sqrt_ratio_at_tick(tick))
                args = ("limit", *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick)
                self._history.append(Event(block, 0, self.time_of(block), "swap", args))

    def time_of(self, number: int) -> int:
        return 1_800_000_000 + (number - 1) * 2

    def number_at(self, time_seconds: int) -> int:
        return max(1, -((1_800_000_000 - time_seconds) // 2) + 1)

    def _new_purse(self, vault: str) -> Purse:
        return Purse(lambda key: key[0] == vault, (0, 0), vault)

    def _grow(self, last: int) -> None:
        """All events are there from the start."""


def bet(side: Callable[[int], bool]) -> Callable[[RebalanceQuery], list[Position]]:
    """All of one token in half of the vault's range, on the side that it names: twice the vault's fees, or none."""

    def strategy(query: RebalanceQuery) -> list[Position]:
        if query.rebalances_so_far:
            return list(query.current_positions)
        amount0, amount1 = query.holdings()
        up = side((query.window_start_time - 1_800_000_000) // 900)
        return [Position(10, 40, amount0, 0) if up else Position(-40, -10, 0, amount1)]

    return strategy


def test_a_strategy_that_knows_the_side_is_skill_one_that_flips_a_coin_is_luck_one_that_errs_is_worse():
    coin, sides = Random(0), Seesaw(1, 40).up
    flips = [coin.random() < 0.5 for _ in sides]
    bets = {"knows": lambda n: sides[n], "coin": lambda n: flips[n], "errs": lambda n: not sides[n]}
    said = {}
    for name, side in bets.items():  # each by itself: who is right together with another would be its copy
        played = play(Seesaw(1, 40), {name: responds(bet(side))}, 40, JobSettings(target="MaxFees"))
        assert len(played) == 40
        said[name] = overall(played, [name], name, lambda _: Decimal(10**18), "BBB", 6).splitlines()[-1]
    assert said["knows"].startswith("SKILL: knows is +") and said["errs"].startswith("WORSE: errs is -")
    assert said["coin"].startswith("LUCK: coin cannot be told from keep") and "rounds would tell" in said["coin"]
    assert all("95 % level, two-sided, 40 rounds taken as independent" in sentence for sentence in said.values())


def test_rounds_of_different_tokens_are_added_up_as_parts_of_the_vaults_value():
    played = play(model(), {"wide": responds(miner.wide)}, 3)
    parts = [10_000 * done.excess("wide") / done.result.baselines["keep"].terms.initial_value for done in played]
    text = overall(
        played, ["wide"], "wide", lambda done: done.result.baselines["keep"].terms.initial_value / 10_000, "bp", 9
    )
    assert f"{sum(parts) / 3:+.9f}" in text
