"""A round as a pure function: order and pieces do not matter, and every rule of DESIGN section 3 holds.

Run: `python -m pytest tests/test_rounds.py`. Rounds are played in the random worlds of `worlds.py`; what each book
must hold comes from the slow book of `test_books.py`, the ranking from a plain sort, the best range from trying them
all. Read next: `rounds.py`.
"""

from __future__ import annotations

import decimal
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, count
from math import ceil, floor
from operator import attrgetter
from random import Random

import pytest
from test_books import SlowBook, history_of
from worlds import VAULT, random_desired, random_world

import protocol
import scoring
import sim
from liquidity import hindsight
from liquidity.books import Book
from liquidity.events import Event
from liquidity.executions import Execution, Sent
from liquidity.hindsight import best_fixed_range
from liquidity.live import LiveInputs, gifts_of, play_live, words_of
from liquidity.replay import Snapshot
from liquidity.rounds import Decision, Round, RoundInputs, play
from liquidity.tape import SHARE_QUANTUM, Tape
from protocol import Code, Entrant, JobSettings, Position, RoundResult
from scoring import CONTEXT, Outcome, penalty_factor, pol_score, score_outcome, smooth_max
from sim import Q96, Pool, sqrt_ratio_at_tick, tick_at_sqrt_ratio

D = Decimal
by_block = attrgetter("block")
TARGETS = ("PoL", "MaxFees", "MinIL", "Balanced")
CLOSE = 110


def random_inputs(seed: int, settings: JobSettings | None = None, miners: int = 5, length: int = 24) -> RoundInputs:
    """A round of random miners in a random world; some copy the one before them, some never answer again.

    The price stays within 30 spacings: the search for the best range goes through all pairs of grid ticks.
    """
    for again in count():
        world = random_world(seed + again * 1_000_000, length=length)
        rng, snapshot = world.rng, world.snapshot
        tape = Tape(snapshot)
        tape.feed(world.events)
        ticks = [tick_at_sqrt_ratio(price) for price in (snapshot.sqrt_price_x96, *tape.stop_prices)]
        if max(ticks) - min(ticks) <= 30 * snapshot.tick_spacing:
            break
    due = [snapshot.block, *sorted(rng.randint(snapshot.block, world.close_block - 1) for _ in range(2))]
    decisions: list[list[Decision]] = []
    for name in (f"miner{n}" for n in range(miners)):
        if decisions and rng.random() < 0.25:
            decisions.append([replace(decision, hotkey=name) for decision in decisions[-1]])
            continue
        book, own = Book(tape), []
        for block in sorted(set(due)):
            if rng.random() < 0.7:
                asked = rng.randint(max([snapshot.block, *(d.block for d in own)]), block)
                price = tape.price_before(asked)
                seen = book.at(asked)
                shown = seen.shown(price)
                holdings = tuple(a + f for a, f in zip(seen.amounts(price), seen.fees(), strict=True))
                desired = random_desired(rng, world.pool, price, shown, holdings)
                own.append(Decision(name, block, tuple(shown), tuple(desired)))
                book.rebalance(block, desired, shown)
        decisions.append(own)
    entrants = tuple(
        Entrant(f"miner{n}", rng.choice([5, rng.randint(0, 10)]), D(rng.choice([0, 0, 1]))) for n in range(miners)
    )
    settings = settings or JobSettings(
        target=rng.choice(TARGETS), min_in_range=D(rng.choice(["0", "0.5"])), rebalance_cost=rng.choice([0, 10, 10**9])
    )
    flat = [decision for own in decisions for decision in own]
    return RoundInputs(settings, snapshot, world.close_block, tuple(world.events), entrants, tuple(flat))


@pytest.fixture(autouse=True)
def few_spacings(monkeypatch):
    """The search for the best range over a margin of 3 spacings, not 50: the same code, a fiftieth of the ranges."""
    monkeypatch.setattr(hindsight, "HINDSIGHT_SPACINGS", 3)


@pytest.fixture(scope="module")
def played() -> list[tuple[RoundInputs, RoundResult]]:
    """200 rounds, all results with the small margin, so that they equal what a test plays again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hindsight, "HINDSIGHT_SPACINGS", 3)
        return [(inputs, play(inputs)) for inputs in map(random_inputs, range(200))]


# ---------------------------------------------------------------------------------------------------------------------
# A pure function


def test_the_targets_and_reputations_of_all_modules_are_the_same():
    assert protocol.TARGETS == scoring.TARGETS == TARGETS
    assert protocol.REPUTATIONS == scoring.REPUTATIONS
    assert (protocol.MIN_TICK, protocol.MAX_TICK) == (sim.MIN_TICK, sim.MAX_TICK)


def test_play_gives_the_same_digits_again_whatever_the_callers_decimal_context(played):
    with decimal.localcontext(decimal.Context(prec=5, rounding=decimal.ROUND_UP)):
        for inputs, result in played[:50]:
            assert play(inputs) == result


def test_rounds_are_of_every_kind(played):
    seen = Counter(result.code for _, result in played)
    lines = [line for _, result in played for line in result.lines]
    seen["copies"] = sum(line.copy_of != "" for line in lines)
    seen["idlers"] = sum(line.score != line.terms.score and not line.copy_of for line in lines)
    seen["changes"] = sum(line.outcome.changes > 1 for line in lines)
    seen["earned"] = sum(line.outcome.fees0 + line.outcome.fees1 > 0 for line in lines)
    assert set(seen) == {Code.SCORED, Code.EMPTY_VAULT, "copies", "idlers", "changes", "earned"}
    assert min(seen.values()) > 20, seen


def test_the_order_of_decisions_and_entrants_in_the_input_does_not_matter(played):
    rng = Random(1)
    for inputs, result in played[:100]:
        entrants, decisions = list(inputs.entrants), list(inputs.decisions)
        rng.shuffle(entrants)
        rng.shuffle(decisions)
        assert play(replace(inputs, entrants=tuple(entrants), decisions=tuple(decisions))) == result


def test_play_equals_a_round_driven_in_pieces_by_somebody_who_cannot_see_the_future(played):
    """Events arrive in pieces; each decision is made as soon as all events before its block are there, or some pieces
    later. Between the pieces books are looked at, as queries do."""
    rng = Random(2)
    for inputs, result in played:
        game, fed = Round(inputs.settings, inputs.snapshot), 0
        for entrant in inputs.entrants:
            game.enter(entrant.hotkey)
        waiting = sorted(inputs.decisions, key=by_block)
        while fed < len(inputs.events) or waiting:
            if waiting and rng.random() < 0.8:
                ready = next(
                    (n for n, e in enumerate(inputs.events) if e.block >= waiting[0].block), len(inputs.events)
                )
                if fed < ready:
                    fed, piece = ready, inputs.events[fed:ready]
                    game.feed(piece)
                game.decide(waiting.pop(0))
            else:
                piece = inputs.events[fed : fed + rng.randint(1, 6)]
                game.feed(piece)
                fed += len(piece)
            head = inputs.events[fed - 1].block + 1 if fed else inputs.snapshot.block
            for book in game.books.values():
                book.at(head).shown(game.tape.price_before(head))
        assert game.finish(inputs.close_block, inputs.entrants) == result


def test_nothing_from_the_close_on_matters(played):
    """Neither events, even wrong ones, nor decisions: they belong to the next round."""
    for inputs, result in played[:60]:
        wrong = Event(inputs.close_block, 0, 0, "swap", ("?", 1, -1, Q96, 1, 0))
        worse = Event(inputs.close_block + 1, 0, 0, "mint", ("x", 0, 1, 5, 0, 0))
        late = tuple(Decision(e.hotkey, inputs.close_block, (), ()) for e in inputs.entrants)
        assert play(replace(inputs, events=(*inputs.events, wrong, worse), decisions=inputs.decisions + late)) == result


# ---------------------------------------------------------------------------------------------------------------------
# Every line, from slow parts


def test_every_line_is_what_the_slow_book_and_the_scoring_rules_give(played):
    for inputs, result in played:
        if result.code != Code.SCORED:
            continue
        settings, snapshot, close = inputs.settings, inputs.snapshot, inputs.close_block
        past = history_of(snapshot, inputs.events)
        price = past.stops[-1][1] if past.stops else snapshot.sqrt_price_x96

        def line_of(decisions, snapshot=snapshot, past=past, settings=settings, close=close, price=price):
            book = SlowBook(snapshot, past)
            for decision in sorted(decisions, key=by_block):
                book.decide(decision.block, decision.desired, decision.shown)
            book.walk(close)
            final = [t - e for t, e in zip(book.tokens(price), book.earned(), strict=True)]
            share = CONTEXT.divide(D(book.quanta), D(SHARE_QUANTUM * (close - snapshot.block)))
            outcome = Outcome(
                *book.initial, *final, *book.earned(), snapshot.sqrt_price_x96, price, book.changes, share
            )
            return outcome, score_outcome(outcome, settings.target, settings.rebalance_cost)

        keep, hold = line_of([]), line_of([Decision("", snapshot.block, (), ())])
        assert (result.baselines["keep"].outcome, result.baselines["keep"].terms) == keep and result.baselines[
            "keep"
        ].score == keep[1].score
        assert (result.baselines["hold"].outcome, result.baselines["hold"].terms) == hold and result.baselines[
            "hold"
        ].score == hold[1].score
        expected = []
        for entrant in inputs.entrants:
            outcome, terms = line_of([d for d in inputs.decisions if d.hotkey == entrant.hotkey])
            line = next(line for line in result.lines if line.name == entrant.hotkey)
            assert (line.outcome, line.terms) == (outcome, terms)
            own, other = (terms.score, terms.tie_fees), (keep[1].score, keep[1].tie_fees)
            counts = min(own, other) if line.copy_of or terms.in_range < settings.min_in_range else own
            assert line.score == counts[0]
            key = (-counts[0], -counts[1], -entrant.combined, entrant.registered_block, entrant.hotkey)
            expected.append((key, entrant.hotkey))
        assert [line.name for line in result.lines] == [name for _, name in sorted(expected)]
        assert [line.rank for line in result.lines] == list(range(1, len(inputs.entrants) + 1))
        assert result.baselines["keep"].rank == result.baselines["hold"].rank == result.baselines["best"].rank == 0
        assert result.swaps == sum(event.kind == "swap" for event in inputs.events)


def test_of_identical_books_only_the_oldest_registration_keeps_its_score(played):
    """Who decided the same at the same blocks with the same effect holds the same at every block."""
    for inputs, result in played:
        groups: dict[tuple, list] = {}
        tape = Tape(inputs.snapshot)
        tape.feed(inputs.events)
        for entrant in inputs.entrants:
            book = Book(tape)
            for decision in sorted(inputs.decisions, key=by_block):
                if decision.hotkey == entrant.hotkey:
                    book.rebalance(decision.block, decision.desired, decision.shown)
            groups.setdefault(tuple(book.history), []).append(entrant)
        originals = {}
        for group in groups.values():
            oldest = min(group, key=lambda e: (e.registered_block, e.hotkey))
            originals |= {e.hotkey: "" if e is oldest else oldest.hotkey for e in group}
        assert {line.name: line.copy_of for line in result.lines} == (originals if result.lines else {})


# ---------------------------------------------------------------------------------------------------------------------
# Void and empty rounds


def market(vault=((-100, 100, 10**18),), idle=(10**17, 10**17), swaps=8, seed=3) -> tuple[Snapshot, tuple[Event, ...]]:
    """Spacing 10, price 1, a crowd of 1e19 everywhere; a vault; swaps of 0.2 % or so up and down from block 100 on."""
    rng, pool = Random(seed), Pool(3000, 10)
    pool.initialize(Q96)
    pool.mint("crowd", -887270, 887270, 10**19)
    for position in vault:
        pool.mint(VAULT, *position)
    snapshot = Snapshot.of(pool, [(VAULT, lo, up) for lo, up, _ in vault], idle, 100, 1200, "synthetic")
    events = []
    for n in range(swaps):
        zero_for_one, far = rng.random() < 0.5, (sim.MIN_SQRT_RATIO + 1, sim.MAX_SQRT_RATIO - 1)
        amounts = pool.swap(zero_for_one, rng.randint(10**16, 2 * 10**16), far[not zero_for_one])
        args = ("in", *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick)
        events.append(Event(100 + n, 0, 1200 + 12 * n, "swap", args))
    return snapshot, tuple(events)


def one_round(desired=None, **changes) -> RoundInputs:
    """Two miners, `a` asks for `desired` at the opening (default: nothing), `b` keeps."""
    snapshot, events = changes.pop("market", None) or market()
    settings = changes.pop("settings", JobSettings())
    entrants = (Entrant("a", 1, D(0)), Entrant("b", 2, D(0)))
    shown = tuple(Book(Tape(snapshot)).shown(snapshot.sqrt_price_x96))
    decisions = () if desired is None else (Decision("a", snapshot.block, shown, tuple(desired)),)
    return replace(RoundInputs(settings, snapshot, CLOSE, events, entrants, decisions), **changes)


@pytest.mark.parametrize("what", ["missing", "doubled", "amount", "price", "swapped"])
def test_a_round_with_a_gap_or_a_contradiction_is_void_and_says_so(what):
    inputs = one_round()
    events, swap = list(inputs.events), inputs.events[3]
    how, amount0, amount1, price, *rest = swap.args
    wrong = {
        "missing": [*events[:3], *events[4:]],
        "doubled": [*events[:4], *events[3:]],
        "amount": [*events[:3], swap._replace(args=(how, amount0 * 2, amount1 * 2, price, *rest)), *events[4:]],
        "price": [*events[:3], swap._replace(args=(how, amount0, amount1, price + 1, *rest)), *events[4:]],
        "swapped": [*events[:3], events[4], events[3], *events[5:]],
    }[what]
    result = play(replace(inputs, events=tuple(wrong)))
    assert result.code == Code.VOID_CONTRADICTION and not result.lines and not result.baselines
    assert "block 10" in result.detail and "\n" not in result.detail


def test_a_round_with_a_swap_of_unknown_call_is_void_for_it():
    inputs = one_round()
    swap = inputs.events[-1]
    result = play(replace(inputs, events=(*inputs.events[:-1], swap._replace(args=("?", *swap.args[1:])))))
    assert result.code == Code.VOID_UNKNOWN_SWAP and not result.lines and not result.baselines


def test_an_empty_vault_skips_the_round_and_one_wei_does_not():
    for idle, code in (((0, 0), Code.EMPTY_VAULT), ((1, 0), Code.SCORED), ((0, 1), Code.SCORED)):
        assert play(one_round(market=market((), idle))).code == code


def test_a_round_that_nobody_accepted_has_baselines_and_no_ranks():
    result = play(one_round(entrants=()))
    assert (
        result.code == Code.NOBODY_RANKED
        and not result.lines
        and result.baselines["keep"]
        and result.baselines["hold"]
        and result.baselines["best"]
    )


def test_a_round_without_any_event_is_scored():
    result = play(one_round(events=()))
    assert result.code == Code.SCORED and result.swaps == 0
    assert all(line.terms.score == 0 and line.outcome.fees0 == 0 for line in result.lines)


# ---------------------------------------------------------------------------------------------------------------------
# Rules one at a time


def test_a_decision_acts_before_the_first_event_of_its_block():
    """Closing at block 100, where the first swap is, earns nothing; closing at 101 earns all of that swap; the same
    amounts of fees as a round that ends there."""
    earned = {}
    for block in (100, 101, 102):
        inputs = one_round()
        book = Book(Tape(inputs.snapshot))
        decision = Decision("a", block, tuple(book.shown(Q96)), ())
        result = play(replace(inputs, decisions=(decision,)))
        line = next(line for line in result.lines if line.name == "a")
        earned[block] = line.outcome.fees0, line.outcome.fees1
        keep = play(replace(inputs, close_block=block, events=inputs.events[: block - 100])).baselines["keep"]
        assert earned[block] == (keep.outcome.fees0, keep.outcome.fees1)
    assert earned[100] == (0, 0) and any(earned[101]) and sum(earned[102]) > sum(earned[101])


def test_the_start_price_is_the_openings_and_the_end_price_the_last_before_the_close():
    inputs = one_round()
    for blocks in range(len(inputs.events) + 1):
        result = play(replace(inputs, close_block=100 + blocks))
        prices = [Q96, *(event.args[3] for event in inputs.events)]
        assert result.baselines["keep"].outcome.sqrt_price_start_x96 == Q96
        assert result.baselines["keep"].outcome.sqrt_price_end_x96 == prices[blocks]


def test_who_was_in_range_too_little_counts_as_keep_at_best_and_keep_is_exempt():
    """Everything idle is never in range; where holding beats keeping, it does so in the score, not in the ranking."""
    for minimum in ("0", "0.5", "1"):
        settings = JobSettings(target="Balanced", min_in_range=D(minimum))
        result = play(one_round([], settings=settings, market=market(swaps=1)))
        line = next(line for line in result.lines if line.name == "a")
        assert line.terms.in_range == 0 and result.baselines["keep"].terms.in_range > 0
        capped = min(line.terms.score, result.baselines["keep"].terms.score)
        assert line.score == (line.terms.score if minimum == "0" else capped)
        keeper = next(line for line in result.lines if line.name == "b")
        assert keeper.score == keeper.terms.score == result.baselines["keep"].score


def test_the_share_in_range_is_weighted_by_blocks_and_value():
    """Half of the value in a range that the price leaves after 4 of 10 blocks, the rest idle: a fifth."""
    snapshot, _ = market((), (10**18, 10**18), swaps=0)
    pool = snapshot.open()
    amounts = pool.swap(True, 10**18, sim.MIN_SQRT_RATIO + 1)
    event = Event(104, 0, 0, "swap", ("in", *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick))
    assert pool.tick < -100
    inputs = one_round([Position(-100, 100, 5 * 10**17, 5 * 10**17)], market=(snapshot, (event,)))
    line = next(line for line in play(inputs).lines if line.name == "a")
    assert abs(line.terms.in_range - D("0.2")) < D("1e-15")


@pytest.mark.parametrize("target", TARGETS)
def test_the_rebalance_cost_is_taken_for_each_answer_that_changed_something_in_every_target(target):
    """An answer that changes nothing is free: keeping, or asking for positions that get no liquidity."""
    shown = tuple(Book(Tape(market()[0])).shown(Q96))
    nothing = Decision("a", 100, shown, (*shown, Position(-20, -10, 10**30, 0)))
    once = Decision("a", 101, shown, ())
    for decisions, changes in (((), 0), ((nothing,), 0), ((nothing, once), 1)):
        free, dear = (
            play(one_round(settings=JobSettings(target=target, rebalance_cost=cost), decisions=decisions)).lines
            for cost in (0, 10**15)
        )
        free, dear = (next(line for line in lines if line.name == "a") for lines in (free, dear))
        assert free.outcome == dear.outcome and dear.outcome.changes == changes
        assert dear.terms.costs == changes * 10**15
        assert (dear.score < free.score) == bool(changes)
        if target in ("MaxFees", "Balanced"):
            assert free.score - dear.score == changes * 10**15


def test_a_copy_counts_as_keep_at_best_whoever_is_listed_first():
    """`a` and `b` ask for the same better range; the younger registration is the copy, and one wei less is no copy."""
    snapshot, events = market()
    shown = tuple(Book(Tape(snapshot)).shown(Q96))
    desired = (Position(-400, 400, 10**17, 10**17), *shown)
    for young, old, fewer in (("a", "b", 0), ("b", "a", 0), ("a", "b", 1)):
        entrants = (Entrant(young, 9, D(5)), Entrant(old, 3, D(0)))
        other = (replace(desired[0], allocation0=10**17 - fewer, allocation1=10**17 - fewer), *shown)
        decisions = (Decision(young, 100, shown, other), Decision(old, 100, shown, desired))
        settings = JobSettings(target="MaxFees")
        result = play(one_round(settings=settings, entrants=entrants, decisions=decisions, market=(snapshot, events)))
        lines = {line.name: line for line in result.lines}
        assert lines[old].score == lines[old].terms.score > result.baselines["keep"].score and not lines[old].copy_of
        if fewer:
            assert lines[young].score == lines[young].terms.score and not lines[young].copy_of
        else:
            assert lines[young].score == result.baselines["keep"].score and lines[young].copy_of == old
            assert [line.name for line in result.lines] == [old, young]
            assert replace(lines[young].outcome) == lines[old].outcome


def test_equal_scores_go_by_reputation_then_registration_then_hotkey():
    terms = {"d": (7, 2), "c": (7, 1), "b": (3, 1), "a": (7, 1), "e": (1, 0)}
    entrants = tuple(Entrant(name, block, D(combined)) for name, (block, combined) in terms.items())
    result = play(one_round(entrants=entrants))
    assert [line.name for line in result.lines] == ["d", "b", "a", "c", "e"]
    assert len({line.score for line in result.lines}) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The best fixed range in hindsight


def grid_of(inputs: RoundInputs, margin: int) -> list[int]:
    """DESIGN: grid bounds within the visited ticks and so many spacings beyond, as far as there are ticks.

    Visited is where a block ended.
    """
    ends = {block: price for block, price, _ in history_of(inputs.snapshot, inputs.events).stops}
    prices = [inputs.snapshot.sqrt_price_x96, *(price for block, price in ends.items() if block < inputs.close_block)]
    spacing, most = inputs.snapshot.tick_spacing, sim.MAX_TICK // inputs.snapshot.tick_spacing
    low, high = (Fraction(tick_at_sqrt_ratio(price), spacing) for price in (min(prices), max(prices)))
    return [t * spacing for t in range(max(floor(low) - margin, -most), min(ceil(high) + margin, most) + 1)]


def try_all(inputs: RoundInputs, tape: Tape, margin: int) -> dict[tuple[int, int], Outcome]:
    """Every range on the grid, each as a book of its own."""
    outcomes, grid = {}, grid_of(inputs, margin)
    price = tape.price_before(inputs.close_block)
    for lower, upper in combinations(grid, 2):
        book = Book(tape)
        book.rebalance(inputs.snapshot.block, [Position(lower, upper, *book.initial)], ())
        if book.holdings:
            book.walk(inputs.close_block)
            outcomes[lower, upper] = Outcome(
                *book.initial, *book.final(price), *book.earned(), inputs.snapshot.sqrt_price_x96, price, 1, D(0)
            )
    return outcomes


def check_best(inputs: RoundInputs, margin: int, costs: tuple[int, ...]) -> Counter:
    """The search finds what trying everything finds, for all targets, and the line is that range's book."""
    seen: Counter = Counter()
    game = Round(inputs.settings, inputs.snapshot)
    game.feed(inputs.events)
    tape, keep = game.tape, Book(game.tape)
    outcomes = try_all(inputs, tape, margin)
    price = tape.price_before(inputs.close_block)
    for target in TARGETS:
        for cost in costs:
            settings = JobSettings(target=target, rebalance_cost=cost)
            found = best_fixed_range(tape, settings, keep.initial, inputs.close_block, price)
            terms = {range_: score_outcome(outcome, target, cost) for range_, outcome in outcomes.items()}
            keys = {range_: (t.score, t.tie_fees) for range_, t in terms.items()}
            assert (found is None) == (not keys)
            if found:
                assert keys[found] == max(keys.values()), (target, cost, found)
                line = play(replace(inputs, settings=settings)).baselines["best"]
                assert line.range_ == found and line.terms.score == keys[found][0]
                assert replace(line.outcome, in_range=D(0)) == outcomes[found]
                seen[target] += 1
                seen["a range earns"] += line.outcome.fees0 + line.outcome.fees1 > 0
                seen["losses"] += line.terms.loss > 0
                seen["not all the grid"] += found != (min(grid_of(inputs, margin)), max(grid_of(inputs, margin)))
    return seen


def test_the_best_fixed_range_is_the_best_of_all_of_them_for_every_target_and_cost():
    seen = Counter()
    for seed in range(60):
        inputs = random_inputs(90_000 + seed, miners=0, length=12)
        if len(grid_of(inputs, 3)) < 30:
            scale = max(Book(Tape(inputs.snapshot)).initial)
            seen += check_best(inputs, 3, (0, min(1 + scale // 10**4, 2**128 - 1)))
    assert min(seen[target] for target in TARGETS) > 30 and min(seen.values()) > 30, seen


def test_the_best_fixed_range_counts_no_loss_of_dust(monkeypatch):
    """One wei of a token among a fortune of the other: its loss is none, and no range may be passed over for it."""
    monkeypatch.setattr(hindsight, "HINDSIGHT_SPACINGS", 4)
    for seed in range(4):
        for idle in ((1, 10**15), (10**15, 1), (10**9, 10**15), (10**15, 10**9 - 1)):
            snapshot, events = market((), idle, seed=seed)
            check_best(one_round(market=(snapshot, events)), 4, (0,))


def test_the_best_fixed_range_is_searched_over_fifty_spacings_beyond_the_visited_ticks(monkeypatch):
    monkeypatch.undo()
    assert hindsight.HINDSIGHT_SPACINGS == 50
    inputs = one_round(market=market(swaps=2))
    assert check_best(inputs, 50, (0,))["a range earns"]


def test_the_ceiling_on_fees_is_never_below_what_a_range_earns():
    """Exactly reached by a lone leg, and for no range so far above that many ranges would have to be scored."""
    reached = 0
    for seed in range(60):
        inputs = random_inputs(95_000 + seed, miners=0)
        tape = Tape(inputs.snapshot)
        tape.feed(inputs.events)
        prices = [sqrt_ratio_at_tick(tick) for tick in grid_of(inputs, 3)]
        ceiling, last = hindsight._FeeCeiling(tape, prices, len(tape.blocks)), len(tape.blocks)
        for n, m in combinations(range(len(prices)), 2):
            for liquidity in (1, *(run.liquidity * factor for run in tape.runs[:3] for factor in (1, 10**6))):
                growth = tape.growth((prices[n], prices[m]), 1, liquidity, 0, last)
                most = ceiling.fees(n, m, liquidity)
                assert all(g * liquidity >> 128 <= fee for g, fee in zip(growth, most, strict=True)), seed
                reached += any(0 < g * liquidity >> 128 == fee - 1 for g, fee in zip(growth, most, strict=True))
    assert reached > 100


def test_the_bound_on_a_pol_score_is_above_every_such_score_and_near_where_little_is_lost():
    """Against `scoring`'s own penalty: the gain scaled by exp(-10 * loss), or a negative gain by its inverse."""
    rng, near = Random(5), 0
    for _ in range(2000):
        tokens = [rng.choice([0, 1, rng.randint(1, 10**6), rng.randint(1, 10**30)]) for _ in "01"]
        left = [have * rng.choice([0, 1, 2, rng.randint(900, 1000) / 1000]) for have in tokens]
        final = [int(amount) for amount in left]
        losses = [max(D(0), D(have - rest) / have) if have else D(0) for have, rest in zip(tokens, final, strict=True)]
        gain = rng.randint(-(10**40), 10**40)
        penalty = penalty_factor(smooth_max(*losses))
        score, bound = pol_score(D(gain), penalty), hindsight._pol_bound(gain, tokens, tuple(final))
        assert bound >= score
        if min(losses) == 0 and max(losses) < D("0.05"):
            assert bound <= (gain * penalty if gain > 0 else gain / penalty) + abs(gain) * D("0.01")
            near += max(losses) > 0
    assert near > 100


@pytest.mark.parametrize("target", TARGETS)
def test_the_search_scores_few_of_the_many_ranges(target, monkeypatch):
    monkeypatch.undo()
    scored = []
    monkeypatch.setattr(hindsight, "score_outcome", lambda *args: scored.append(args) or score_outcome(*args))
    inputs = one_round(market=market(swaps=40), settings=JobSettings(target=target))
    tape = Tape(inputs.snapshot)
    tape.feed(inputs.events)
    tokens, close = Book(tape).initial, inputs.close_block + 30
    assert best_fixed_range(tape, inputs.settings, tokens, close, tape.price_before(close))
    ranges = len(list(combinations(grid_of(replace(inputs, close_block=close), 50), 2)))
    assert ranges > 5000 and len(scored) < ranges // 20


def test_at_the_end_of_the_scale_the_grid_ends_too(monkeypatch):
    monkeypatch.setattr(hindsight, "HINDSIGHT_SPACINGS", 5)
    for tick in (sim.MIN_TICK + 30, sim.MAX_TICK - 30):
        pool = Pool(3000, 10)
        pool.initialize(sqrt_ratio_at_tick(tick))
        pool.mint("crowd", -887270, 887270, 10**19)
        snapshot = Snapshot.of(pool, [], (10**18, 10**18), 100, 0, "")
        check_best(one_round(market=(snapshot, ())), 5, (0,))


# ---------------------------------------------------------------------------------------------------------------------
# Live rounds


def live_round(
    seed: int, poke: bool = False, first: bool = True, token: str = "", gift: tuple[int, int] = (0, 0)
) -> tuple[LiveInputs, Decision]:
    """The vault closes its position in block 104 and mints another, on chain; the decision says the same.

    Args:
        poke: somebody settles the position's fees in block 102.
        first: the transaction comes before block 104's swap, as on the model, or after it.
        token: what the new position's owner is called beyond the vault.
        gift: what somebody gave the vault after the opening; the mint takes all that it can.
    """
    rng, pool = Random(seed), market(swaps=0)[0].open()
    idle, events = (10**17, 10**17), []
    pool.flash(0, 0, 10**9, 10**8)  # fees from before the round
    snapshot = Snapshot.of(pool, [(VAULT, -100, 100)], idle, 100, 1200, "synthetic", VAULT)

    def note(block: int, kind: str, args: tuple) -> None:
        events.append(Event(block, len(events), 12 * block, kind, args))

    def swap(block: int) -> None:
        zero_for_one = rng.random() < 0.5
        far = sim.MIN_SQRT_RATIO + 1 if zero_for_one else sim.MAX_SQRT_RATIO - 1
        amounts = pool.swap(zero_for_one, rng.randint(10**16, 2 * 10**16), far)
        note(block, "swap", ("in", *amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick))

    for block in range(100, 104):
        swap(block)
        if poke and block == 102:
            pool.burn(VAULT, -100, 100, 0)
            note(block, "burn", (VAULT, -100, 100, 0, 0, 0))
    shown = Book(Tape(snapshot)).shown(pool.sqrt_price_x96)
    if not first:
        swap(104)
    out = pool.burn(VAULT, -100, 100, 10**18)
    note(104, "burn", (VAULT, -100, 100, 10**18, *out))
    state = pool.positions[VAULT, -100, 100]
    fees = state.tokens_owed0 - out[0], state.tokens_owed1 - out[1]
    pool.collect(VAULT, -100, 100, 2**127, 2**127)
    note(104, "collect", (VAULT, -100, 100, *fees))
    had = tuple(map(sum, zip(idle, gift, strict=True)))
    have = tuple(i + o + f for i, o, f in zip(had, out, fees, strict=True))
    lower, upper = sqrt_ratio_at_tick(-200), sqrt_ratio_at_tick(200)
    liquidity = sim.liquidity_for(*have, pool.sqrt_price_x96, lower, upper)
    paid = pool.mint(VAULT + token, -200, 200, liquidity)
    note(104, "mint", (VAULT + token, -200, 200, liquidity, *paid))
    for block in range(104 if first else 105, 108):
        swap(block)
    left = tuple(h - p for h, p in zip(have, paid, strict=True))
    closing = Snapshot.of(pool, [(VAULT + token, -200, 200)], left, CLOSE, 12 * CLOSE, "synthetic", VAULT)
    plan = ((-100, 100),), ((-200, 200, *have),)
    execution = Execution(104, VAULT, (), *plan, had, out, fees, paid, left, ((-200, 200, liquidity),))
    inputs = LiveInputs(JobSettings(), snapshot, CLOSE, tuple(events), "a", (execution,), closing)
    return inputs, Decision("a", 104, tuple(shown), (Position(-200, 200, *have),))


def sent(inputs: LiveInputs, code: Code = Code.EXECUTED, gas0: int = 0, gas1: int = 0) -> LiveInputs:
    """The same, as it is told of a chain."""
    said = Sent(code, "", "0x" + "1" * 64, 300_000, max(gas0, gas1), gas0, gas1)
    return replace(inputs, executions=tuple(replace(execution, sent=said) for execution in inputs.executions))


@pytest.mark.parametrize("poke", [False, True])
def test_a_live_round_executed_to_the_letter_is_scored_as_its_simulation(poke):
    """To the wei: the vault's own liquidity is in the pool, so each leg's share is its own growth."""
    for seed in range(20):
        inputs, decision = live_round(seed, poke)
        result, game = play_live(inputs), Round(inputs.settings, inputs.snapshot)
        game.feed(inputs.events)
        book = Book(game.tape)
        book.rebalance(104, decision.desired, decision.shown)
        assert result.code == Code.SCORED and result.detail == "", seed
        (line,) = result.lines
        assert line.outcome == game.line("a", book, CLOSE).outcome, seed
        assert line.name == "a" and line.outcome.changes == 1 and any((line.outcome.fees0, line.outcome.fees1))
        assert play_live(replace(inputs, events=inputs.events[1:])).code == Code.VOID_CONTRADICTION
        wrong = Event(CLOSE, 0, 0, "mint", ("x", 0, 1, 5, 0, 0))
        assert line.rank == 1 and play_live(replace(inputs, events=(*inputs.events, wrong))) == result
        assert play_live(replace(inputs, closing=None)) == play_live(sent(inputs)) == result and line.gas is None


def test_the_share_in_range_is_of_the_positions_that_the_vault_really_had():
    """Block by block, in fractions: those after block 104's transaction, wherever in the block it stands."""
    differ = 0
    for seed in range(20):
        inputs, decision = live_round(seed, first=False, token="#9")
        tape = Tape(inputs.snapshot)
        tape.feed(inputs.events)
        (line,), (execution,) = play_live(inputs).lines, inputs.executions

        total = Fraction(0)
        for since, until, ticks, liquidity, idle in (
            (100, 104, (-100, 100), 10**18, execution.before),
            (104, CLOSE, execution.minted[0][:2], execution.minted[0][2], execution.after),
        ):
            price, bounds = tape.price_before(since), [sqrt_ratio_at_tick(tick) for tick in ticks]
            held = sim.amounts_of(liquidity, price, *bounds, round_up=False)
            worth = [a0 * Fraction(price, Q96) ** 2 + a1 for a0, a1 in (held, idle)]
            inside = sum(bounds[0] <= tape.price_before(block + 1) < bounds[1] for block in range(since, until))
            total += worth[0] / sum(worth) * inside
        assert abs(Fraction(line.outcome.in_range) * (CLOSE - 100) - total) < Fraction(1, 10**17), seed
        game = Round(inputs.settings, inputs.snapshot)
        game.feed(inputs.events)
        book = Book(game.tape)
        book.rebalance(104, decision.desired, decision.shown)
        differ += game.line("a", book, CLOSE).outcome != line.outcome
    assert differ > 10  # a simulated book knows nothing of what came before the transaction


def test_gas_is_deducted_in_token1_at_the_end_price_rounded_up_and_keep_pays_none():
    for seed, target in enumerate(TARGETS):
        inputs, _ = live_round(seed)
        inputs = replace(inputs, settings=JobSettings(target=target, rebalance_cost=1000))
        free = play_live(inputs)
        for gas0, gas1 in ((3 * 10**14 + 1, 0), (0, 2 * 10**14)):
            result = play_live(sent(inputs, gas0=gas0, gas1=gas1))
            (line,), (unpaid,) = result.lines, free.lines
            cost = ceil(gas0 * Fraction(line.outcome.sqrt_price_end_x96, Q96) ** 2) + gas1
            assert (
                line.outcome == unpaid.outcome
                and line.gas == (gas0, gas1)
                and result.baselines["keep"] == free.baselines["keep"]
            )
            assert line.terms.costs == 1000 + cost
            assert line.terms.value_gain == CONTEXT.subtract(unpaid.terms.value_gain, D(cost))
            assert line.terms == score_outcome(line.outcome, target, 1000, cost)
            assert line.score < unpaid.score


def test_a_failed_decision_costs_its_gas_and_changes_nothing():
    inputs, _ = live_round(1)
    quiet = replace(
        inputs, events=inputs.events[:4], close_block=104, closing=None, settings=JobSettings(min_in_range=D(0))
    )
    failed = replace(inputs.executions[0], released=(0, 0), fees=(0, 0), paid=(0, 0), minted=())
    result = play_live(sent(replace(quiet, executions=(failed,)), Code.EXECUTION_REVERTED, gas1=7))
    (line,) = result.lines
    assert line.outcome.changes == 0 and line.terms.costs == 7 and line.outcome == result.baselines["keep"].outcome
    (free,) = play_live(sent(replace(quiet, executions=(failed,)), Code.TURNOVER_LIMIT)).lines
    assert free.terms == result.baselines["keep"].terms and free.gas is None


def foreign(inputs: LiveInputs, **terms) -> str:
    result = play_live(replace(inputs, **terms))
    assert result.code == Code.LIVE_FOREIGN_TRANSFER and not result.lines and not result.baselines, result
    return result.detail


def test_what_the_chain_shows_at_the_close_and_no_event_explains_voids_the_round_with_the_amounts():
    inputs, _ = live_round(2)
    closing, (position,) = inputs.closing, inputs.closing.vault
    out = replace(closing, idle0=closing.idle0 - 1, idle1=closing.idle1 - 2)
    assert "-1 of token0, -2 of token1" in foreign(inputs, closing=out)
    gone = foreign(inputs, closing=replace(closing, vault=()))
    assert f"liquidity 0 from -200 to 200, {position.liquidity} by its events" in gone
    given = replace(position, owner=f"{VAULT}#3", tick_lower=-300, liquidity=5)
    assert "liquidity 5 from" in foreign(inputs, closing=replace(closing, vault=(position, given)))
    # fees that were released and not collected are idle to one reader and owed to another
    owed = replace(position, tokens_owed0=position.tokens_owed0 + 3)
    same = replace(closing, idle0=closing.idle0 - 3, vault=(owed,))
    assert play_live(replace(inputs, closing=same)) == play_live(inputs)


def random_gift(rng: Random) -> tuple[int, int]:
    gift = [rng.choice([0, 1, rng.randint(1, 10**17), 10**30]) for _ in "01"]
    return tuple(gift) if any(gift) else (0, 1)


def test_a_gift_is_named_and_changes_no_digit_and_what_went_out_beside_it_voids_the_round():
    for seed in range(20):
        rng, (inputs, _) = Random(seed), live_round(seed, token="#9")
        inputs = sent(inputs)
        gift, closing = random_gift(rng), inputs.closing
        fuller = replace(closing, idle0=closing.idle0 + gift[0], idle1=closing.idle1 + gift[1])
        if rng.random() < 0.5:  # it came before the bot's transaction, which says what it saw
            done = inputs.executions[0]
            seen = {name: tuple(map(sum, zip(getattr(done, name), gift, strict=True))) for name in ("before", "after")}
            inputs = replace(inputs, executions=(replace(done, **seen),))
        plain, result = play_live(inputs), play_live(replace(inputs, closing=fuller))
        assert result.code == Code.SCORED and result == replace(plain, detail=words_of(gift)), seed
        assert gifts_of(result.detail) == gift and gifts_of(plain.detail) == (0, 0) and plain.detail == ""
        side = rng.randrange(2)
        gone = replace(fuller, **{f"idle{side}": (closing.idle0, closing.idle1)[side] - rng.randint(1, 10**9)})
        assert f" of token{side}" in foreign(inputs, closing=gone)
        assert " that nothing in the round explains" in foreign(inputs, closing=fuller, rules_version=1)


def test_a_gift_that_the_bot_spent_is_taken_off_what_the_vault_ends_with():
    """What is there at the close, counted by itself, is what counts and the gift, however much of it was spent."""
    for seed in range(20):
        rng = Random(seed)
        gift = tuple(amount % 10**18 for amount in random_gift(rng))
        inputs, _ = live_round(seed, gift=gift)
        result, [line] = play_live(inputs), play_live(inputs).lines
        assert gifts_of(result.detail) == gift, (seed, result)
        outcome, there = line.outcome, Book(Tape(inputs.closing)).initial
        counted = outcome.final0 + outcome.fees0, outcome.final1 + outcome.fees1
        assert tuple(map(sum, zip(counted, gift, strict=True))) == there
        start = Book(Tape(inputs.snapshot)).initial
        assert (outcome.initial0, outcome.initial1) == start and 0 < outcome.in_range <= 1
        more = replace(inputs.closing, idle0=inputs.closing.idle0 + 7)
        assert play_live(replace(inputs, closing=more)).lines == result.lines
        foreign(inputs, closing=replace(inputs.closing, idle0=inputs.closing.idle0 - 1 - gift[0]))


def test_what_others_add_to_the_vaults_positions_is_a_gift_unless_the_vault_paid_for_it():
    for seed in range(10):
        inputs, _ = live_round(seed, token="#9")
        tape, key = Tape(inputs.snapshot), (f"{VAULT}#9", -200, 200)
        tape.feed(inputs.events)
        paid = tape.pool.mint(*key, more := 10 ** (seed + 6))
        mint = Event(CLOSE - 1, 999, 12 * CLOSE - 12, "mint", (*key, more, *paid))
        closing = inputs.closing
        held = Snapshot.of(tape.pool, [key], (closing.idle0, closing.idle1), CLOSE, 12 * CLOSE, "", VAULT)
        given = replace(inputs, events=(*inputs.events, mint), closing=held)
        (line,), (plain,) = play_live(given).lines, play_live(inputs).lines
        assert play_live(given).detail == words_of(paid)
        for n, there in enumerate(Book(Tape(held)).initial):
            final, fees, before = (
                getattr(one.outcome, f"{name}{n}") for one, name in ((line, "final"), (line, "fees"), (plain, "final"))
            )
            assert final + fees == there - paid[n] and abs(final - before) <= 2  # a wei is lost where it is minted
        out = replace(held, idle0=held.idle0 - paid[0], idle1=held.idle1 - paid[1])
        assert "that nothing in the round explains" in foreign(given, closing=out)


def test_a_change_of_the_vaults_positions_that_no_execution_explains_voids_the_round():
    inputs, _ = live_round(3, token="#9")
    (execution,), events = inputs.executions, inputs.events
    assert play_live(inputs).code == Code.SCORED
    assert "executions released 0 and 0, fees 0 and 0, paid 0 and 0" in foreign(inputs, executions=())
    for name in ("released", "fees", "paid"):
        amounts = getattr(execution, name)
        more = replace(execution, **{name: (amounts[0], amounts[1] + 1)})
        assert f"{name} {amounts[0]} and {amounts[1] + 1}" in foreign(inputs, executions=(more,))
    foreign(inputs, executions=(replace(execution, minted=()),))
    foreign(inputs, executions=(replace(execution, block=105),))
    foreign(inputs, executions=sent(inputs, Code.EXECUTION_UNKNOWN).executions)

    tape = Tape(inputs.snapshot)
    tape.feed(events)
    paid = tape.pool.copy().mint(VAULT, -200, 200, 10)
    for block, owner in ((108, VAULT), (109, f"{VAULT}#12")):
        dust = Event(block, 0, 12 * block, "mint", (owner, -200, 200, 10, *paid))
        assert f"block {block}: " in foreign(inputs, events=(*events, dust), rules_version=1)
    others = Event(108, 0, 1296, "mint", (f"{VAULT}x", -200, 200, 10, *paid))
    assert play_live(replace(inputs, events=(*events, others))).code == Code.SCORED
