"""Scoring: the seed's worked examples, the formulas against slower and independent ones, and the edges of each rule.

Run: `python -m pytest tests/test_scoring.py`. Golden numbers stand beside their derivation.
Read next: `scoring.py`.
"""

from __future__ import annotations

import _pydecimal
import ast
import decimal
import hashlib
import importlib.util
import random
import sys
import threading
from dataclasses import astuple, fields, replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from math import isqrt
from pathlib import Path

import pytest

import scoring
from scoring import (
    BURN,
    Candidate,
    Entry,
    Outcome,
    Standing,
    counted,
    job_shares,
    live_eligible,
    rank,
    score_outcome,
    smooth_max,
    to_uids,
    update_eval,
    update_live,
    value,
    weight_vector,
)

D = Decimal
Q96 = 2**96
ULP = Fraction(1, 10**40)  # values are multiples of it
WIDE = Context(prec=400)  # for oracles: far more digits than the code's 120


def sqrt_x96(price: int | Fraction) -> int:
    """Root of a price as Q64.96, rounded down: within 2**-96 of it."""
    price = Fraction(price)
    return isqrt((price.numerator << 192) // price.denominator)


def outcome(**changed) -> Outcome:
    """1,000 of token0 and 2,000 of token1 at price 10: the seed's 12,000; nothing happened unless `changed` says so."""
    start = {"initial0": 1000, "initial1": 2000, "final0": 1000, "final1": 2000, "fees0": 0, "fees1": 0}
    prices = {"sqrt_price_start_x96": sqrt_x96(10), "sqrt_price_end_x96": sqrt_x96(10)}
    return Outcome(**(start | prices | {"changes": 0, "in_range": D(1)} | changed))


def random_outcome(rng: random.Random) -> Outcome:
    """Any size the contract can hold: amounts to 2**128, prices over the whole range, losses and gains, few zeros."""

    def amount() -> int:
        return rng.getrandbits(rng.randrange(1, 129)) * (rng.random() < 0.95)

    initial0, initial1 = amount(), amount()
    if rng.random() < 0.5:  # ordinary rounds: most of it is still there
        final0, final1 = (initial0 * rng.randrange(80, 121) // 100, initial1 * rng.randrange(80, 121) // 100)
    else:
        final0, final1 = amount(), amount()
    start = rng.getrandbits(rng.randrange(33, 161)) + 1
    end = start * rng.randrange(90, 111) // 100 if rng.random() < 0.8 else rng.getrandbits(160)
    return Outcome(
        initial0,
        initial1,
        final0,
        final1,
        fees0=amount() >> 20,
        fees1=amount() >> 20,
        sqrt_price_start_x96=start,
        sqrt_price_end_x96=max(1, min(end, 2**160 - 1)),
        changes=rng.randrange(5),
        in_range=D(rng.randrange(1001)) / 1000,
    )


def exp_minus(x: Fraction, terms: int = 200) -> Fraction:
    """e**-x by its series in exact fractions: for 0 <= x <= 10 and 200 terms the error is below 1e-170."""
    total, term = Fraction(0), Fraction(1)
    for k in range(1, terms + 1):
        total += term
        term *= Fraction(-x) / k
    return total


def near(found: Decimal, expected: Fraction, tolerance: Fraction) -> bool:
    return abs(Fraction(found) - expected) <= tolerance


# ---------------------------------------------------------------------------------------------------------------------
# The seed's worked examples. Base units are whole tokens here; start price 10, so the initial value is 12,000.
# The end price is not in the seed: it follows from the final value, or is chosen where fees make up the difference.


def test_seed_example_1_no_inventory_loss_scores_the_whole_gain_of_2200():
    # 1,000 * p + 2,000 + 200 fees = 14,200  =>  p = 12
    terms = score_outcome(outcome(fees1=200, sqrt_price_end_x96=sqrt_x96(12)), "PoL", 0)
    assert near(terms.initial_value, Fraction(12_000), Fraction(1, 10**20))
    assert (terms.loss0, terms.loss1, terms.loss, terms.penalty) == (0, 0, 0, 1)
    assert terms.score == terms.value_gain
    assert near(terms.score, Fraction(2200), Fraction(1, 10**20))  # 1e-20: the root of a price has 96 binary places


def test_seed_example_2_ten_per_cent_lost_leaves_1397_94_of_3800():
    # 900 * 15 + 2,000 + 300 fees = 15,800, a gain of 3,800; 3,800 * e**-1 = 1,397.94 (the seed prints 1,398)
    terms = score_outcome(outcome(final0=900, fees1=300, sqrt_price_end_x96=sqrt_x96(15)), "PoL", 0)
    assert (terms.loss0, terms.loss1, terms.loss) == (D("0.1"), 0, D("0.1"))
    assert near(terms.value_gain, Fraction(3800), Fraction(1, 10**20))
    assert near(terms.score, 3800 * exp_minus(Fraction(1)), Fraction(1, 10**20))
    assert terms.score.quantize(D("0.01")) == D("1397.94")


def test_seed_example_3_a_loss_is_amplified_to_2718_28_where_the_seed_prints_2717():
    # 900 * 9.5 + 2,000 + 450 fees = 11,000, a loss of 1,000; -1,000 / e**-1 = -1,000 * e = -2,718.28
    terms = score_outcome(outcome(final0=900, fees1=450, sqrt_price_end_x96=sqrt_x96(Fraction(19, 2))), "PoL", 0)
    assert near(terms.value_gain, Fraction(-1000), Fraction(1, 10**20))
    assert near(terms.score, -1000 / exp_minus(Fraction(1)), Fraction(1, 10**19))
    assert terms.score.quantize(D("0.01")) == D("-2718.28")
    # the seed rounds the penalty to three digits first
    assert terms.penalty.quantize(D("0.001")) == D("0.368")
    assert (D(-1000) / D("0.368")).quantize(D(1)) == -2717


def test_seed_example_4_half_the_tokens_lost_leaves_33_69_where_the_seed_prints_33_5():
    # 500 * 30 + 2,000 = 17,000, a gain of 5,000; 5,000 * e**-5 = 33.69
    terms = score_outcome(outcome(final0=500, sqrt_price_end_x96=sqrt_x96(30)), "PoL", 0)
    assert near(terms.value_gain, Fraction(5000), Fraction(1, 10**20))
    assert near(terms.score, 5000 * exp_minus(Fraction(5)), Fraction(1, 10**20))
    assert terms.score.quantize(D("0.01")) == D("33.69")
    # the seed rounds the penalty to 0.0067 first
    assert terms.penalty.quantize(D("0.0001")) == D("0.0067")
    assert 5000 * D("0.0067") == D("33.5")


@pytest.mark.parametrize(
    ("loss", "printed"), [("0", "1.000"), ("0.05", "0.607"), ("0.1", "0.368"), ("0.2", "0.135"), ("0.5", "0.007")]
)
def test_the_seeds_table_of_penalties(loss, printed):
    # the seed prints 0.606 for 5 %, cut off where the others are rounded: e**-0.5 = 0.60653
    assert scoring.penalty_factor(D(loss)).quantize(D("0.001")) == D(printed)


def test_a_worked_example_with_exact_roots_has_exact_terms():
    # price 25 -> 36; 4 and 10 tokens held; 3 and 30 left; fees 1 and 2; two changes at 5 each:
    # initial 4*25 + 10 = 110; drift 4*(36 - 25) = 44; fees 36 + 2 = 38; divergence (3*36 + 30) - (4*36 + 10) = -16;
    # costs 10; gain 44 + 38 - 16 - 10 = 56 = (3*36 + 30 - 10 + 38) - 110; loss0 1/4
    book = Outcome(4, 10, 3, 30, 1, 2, 5 * Q96, 6 * Q96, 2, D("0.5"))
    terms = score_outcome(book, "PoL", 5)
    assert (terms.initial_value, terms.drift, terms.fees, terms.divergence, terms.costs) == (110, 44, 38, -16, 10)
    assert (terms.value_gain, terms.loss0, terms.loss1, terms.loss) == (56, D("0.25"), 0, D("0.25"))
    assert near(terms.score, 56 * exp_minus(Fraction(5, 2)), Fraction(1, 10**115))
    assert score_outcome(book, "MaxFees", 5).score == 38 - 10
    assert score_outcome(book, "MinIL", 5).score == D("-26") + D("0.0011")  # -16 - 10 + 110 * 1e-5
    assert score_outcome(book, "Balanced", 5).score == 38 - 16 - 10
    assert terms.in_range == D("0.5")


# ---------------------------------------------------------------------------------------------------------------------
# Values and losses


def test_value_terms_equal_exact_fractions_rounded_down_to_1e_40():
    rng = random.Random(1)

    def worth(amount0: int, amount1: int, sqrt_price_x96: int) -> Fraction:
        exact = amount0 * Fraction(sqrt_price_x96, Q96) ** 2 + amount1
        return exact // ULP * ULP

    for _ in range(1000):
        o, cost = random_outcome(rng), rng.getrandbits(40)
        start, end = o.sqrt_price_start_x96, o.sqrt_price_end_x96
        initial, holding = worth(o.initial0, o.initial1, start), worth(o.initial0, o.initial1, end)
        final, fees = worth(o.final0, o.final1 - cost * o.changes, end), worth(o.fees0, o.fees1, end)
        terms = score_outcome(o, "PoL", cost)
        assert Fraction(terms.initial_value) == initial
        assert Fraction(terms.drift) == holding - initial
        assert Fraction(terms.fees) == fees
        assert Fraction(terms.divergence) - Fraction(terms.costs) == final - holding
        assert Fraction(terms.value_gain) == final + fees - initial  # the seed's formula, every digit
        assert Fraction(score_outcome(o, "MaxFees", cost).score) == fees - cost * o.changes
        assert Fraction(score_outcome(o, "Balanced", cost).score) == final + fees - holding
        slack = final - holding + initial / 10**5
        assert near(score_outcome(o, "MinIL", cost).score, min(Fraction(0), slack), abs(slack) / 10**115)


def test_terms_add_up_exactly_and_each_is_read_back_from_its_text():
    rng = random.Random(2)
    for _ in range(1000):
        terms = score_outcome(random_outcome(rng), rng.choice(scoring.TARGETS), rng.getrandbits(30))
        parts = [Fraction(x) for x in (terms.drift, terms.fees, terms.divergence)]
        assert Fraction(terms.value_gain) == sum(parts) - Fraction(terms.costs)
        for number in astuple(terms):
            assert Decimal(str(number)).as_tuple() == number.as_tuple()


def test_the_largest_values_fit_the_precision():
    huge = 2**128 - 1
    top = 2**160 - 1
    for sign, book in ((1, Outcome(0, 0, huge, huge, huge, huge, top, top, 0, D(1))),
                       (-1, Outcome(huge, huge, 0, 0, 0, 0, top, top, 0, D(1)))):  # fmt: skip
        exact = huge * Fraction(top, Q96) ** 2 // ULP * ULP + huge
        expected = 2 * exact if sign > 0 else -exact
        assert Fraction(score_outcome(book, "PoL", 0).value_gain) == expected


def test_the_pol_score_equals_the_literal_formula_with_many_more_digits():
    rng = random.Random(3)
    for _ in range(300):
        o, cost = random_outcome(rng), rng.getrandbits(40)
        terms = score_outcome(o, "PoL", cost)
        worth0, worth1 = value(o.initial0, 0, o.sqrt_price_start_x96), o.initial1
        with localcontext(WIDE):
            losses = []
            for initial, final, worth in (
                (o.initial0, o.final0, worth0),
                (o.initial1, o.final1 - cost * o.changes, worth1),
            ):
                counts = initial > 0 and worth >= D("1e-6") * terms.initial_value
                losses.append(min(D(1), max(D(0), D(initial - final) / initial)) if counts else D(0))
            loss = ((100 * losses[0]).exp() + (100 * losses[1]).exp() - 1).ln() / 100
            penalty = (-10 * loss).exp()
            score = terms.value_gain * penalty if terms.value_gain >= 0 else terms.value_gain / penalty
            assert abs(terms.loss - loss) < D("1e-115")
            assert abs(terms.penalty / penalty - 1) < D("1e-115")
            assert abs(terms.score - score) <= abs(score) * D("1e-115")


def test_an_unchanged_book_at_an_unchanged_price_scores_0_under_every_target():
    for target in scoring.TARGETS:
        assert score_outcome(outcome(), target, 7).score == 0


def test_costs_leave_final1_whatever_the_target():
    # changes=3 at 100: 300 of token1, 15 % of the 2,000, also as a loss
    free = {target: score_outcome(outcome(changes=3), target, 0) for target in scoring.TARGETS}
    paid = {target: score_outcome(outcome(changes=3), target, 100) for target in scoring.TARGETS}
    for target in scoring.TARGETS:
        assert paid[target].costs == 300
        assert paid[target].loss1 == D("0.15")
        assert paid[target].value_gain == free[target].value_gain - 300
    assert paid["MaxFees"].score == paid["Balanced"].score == -300
    assert near(
        paid["MinIL"].score, Fraction(-300) + Fraction(12, 100), Fraction(1, 10**20)
    )  # forgiven: 1e-5 of 12,000
    assert near(paid["PoL"].score, -300 / exp_minus(Fraction(3, 2)), Fraction(1, 10**20))


def test_a_loss_is_capped_at_everything_when_costs_take_more_than_there_was():
    terms = score_outcome(outcome(changes=1), "PoL", 5000)
    assert (terms.loss1, terms.loss) == (1, 1)
    assert near(terms.penalty, exp_minus(Fraction(10)), Fraction(1, 10**115))


def test_gaining_a_token_is_no_loss_and_does_not_offset_the_other():
    terms = score_outcome(outcome(final0=1200, final1=1800), "PoL", 0)
    assert (terms.loss0, terms.loss1, terms.loss) == (0, D("0.1"), D("0.1"))


def test_an_initial_amount_below_a_millionth_of_the_value_counts_as_none():
    # token1 is 1 of 1,000,000 * 1 + 1: just below 1e-6 of the value; 1 of 999,999 + 1 is exactly 1e-6: it counts
    for initial0, loss1 in ((1_000_000, 0), (999_999, 1)):
        book = Outcome(initial0, 1, initial0, 0, 0, 0, Q96, Q96, 0, D(1))
        assert score_outcome(book, "PoL", 0).loss1 == loss1
    for initial1, loss0 in ((1_000_000, 0), (999_999, 1)):
        book = Outcome(1, initial1, 0, initial1, 0, 0, Q96, Q96, 0, D(1))
        assert score_outcome(book, "PoL", 0).loss0 == loss0


def test_dust_is_measured_at_the_start_price():
    # 1,000 of token0 at 1e-8 were 1e-5 of 1 token1 ... and at the end price of 1 they are nearly all
    book = Outcome(1000, 10**6, 0, 10**6, 0, 0, Q96 // 10**4, Q96, 0, D(1))
    assert score_outcome(book, "PoL", 0).loss0 == 0


def test_an_empty_book_has_no_loss_and_no_score():
    terms = score_outcome(Outcome(0, 0, 0, 0, 0, 0, Q96, 2 * Q96, 0, D(0)), "PoL", 0)
    assert (terms.initial_value, terms.loss, terms.penalty, terms.score) == (0, 0, 1, 0)


def test_min_il_forgives_a_hundred_thousandth_and_never_rewards():
    # 1,000,000 of token1 at price 1: 10 are forgiven
    for missing, score in ((0, 0), (9, 0), (10, 0), (11, -1), (1000, -990), (-1000, 0)):
        book = Outcome(0, 10**6, 0, 10**6 - missing, 0, 50, Q96, Q96, 0, D(1))
        terms = score_outcome(book, "MinIL", 0)
        assert (terms.score, terms.tie_fees) == (score, 50)


def test_only_min_il_breaks_ties_by_fees():
    tie_fees = {target: score_outcome(outcome(fees1=50), target, 0).tie_fees for target in scoring.TARGETS}
    assert tie_fees == {"PoL": 0, "MaxFees": 0, "MinIL": 50, "Balanced": 0}


def test_an_unknown_target_is_refused_by_name():
    with pytest.raises(scoring.UnknownTarget, match="'pol': one of PoL, MaxFees, MinIL, Balanced"):
        score_outcome(outcome(), "pol", 0)


# ---------------------------------------------------------------------------------------------------------------------
# The smooth maximum


def random_loss(rng: random.Random) -> Decimal:
    return rng.choice(
        (D(0), D(1), D(rng.getrandbits(64)) / 2**64, D(rng.getrandbits(30)).scaleb(-rng.randrange(10, 60)))
    )


def test_smooth_max_is_0_at_no_loss_and_exactly_x_for_a_single_loss():
    assert smooth_max(D(0), D(0)) == 0
    with localcontext(scoring.CONTEXT):
        losses = [D(n) / 997 for n in range(1, 998)] + [D("1e-30"), D("0.1"), D(1)]
    for x in losses:
        assert smooth_max(x, D(0)) == smooth_max(D(0), x) == x


def test_smooth_max_is_symmetric_and_between_the_maximum_and_ln2_over_b_above_it():
    rng = random.Random(4)
    with localcontext(scoring.CONTEXT):
        limit = D(2).ln() / scoring.SMOOTH_MAX_BETA
    for _ in range(500):
        x, y = random_loss(rng), random_loss(rng)
        found = smooth_max(x, y)
        assert found == smooth_max(y, x)
        assert max(x, y) <= found <= WIDE.add(max(x, y), limit)


def test_smooth_max_never_falls_when_a_loss_grows():
    rng = random.Random(5)
    for _ in range(500):
        x, low, high = random_loss(rng), *sorted((random_loss(rng), random_loss(rng)))
        assert smooth_max(x, low) <= smooth_max(x, high)


def test_smooth_max_equals_the_literal_log_sum_exp():
    rng = random.Random(6)
    for _ in range(200):
        x, y = random_loss(rng), random_loss(rng)
        with localcontext(WIDE):
            literal = ((100 * x).exp() + (100 * y).exp() - 1).ln() / 100
            assert abs(smooth_max(x, y) - literal) < D("1e-117")


def test_two_total_losses_do_not_overflow():
    # ln(2e^100 - 1) / 100 = 1 + (ln 2 + ln(1 - e^-100 / 2)) / 100 = 1.0069314718...
    assert str(smooth_max(D(1), D(1))).startswith("1.00693147180559945309417232121458")


# ---------------------------------------------------------------------------------------------------------------------
# What counts, and the ranking


def test_a_book_out_of_range_for_too_long_counts_as_keep_at_best():
    keep = score_outcome(outcome(fees1=10, in_range=D("0.2")), "PoL", 0)
    better, worse = replace(keep, score=D(50)), replace(keep, score=D(-50))
    for terms, expected in ((better, 10), (worse, -50), (keep, 10)):  # keep itself is below 0.5 too: exempt
        assert counted(terms, keep, D("0.5"), False)[0] == expected
    assert counted(better, keep, D("0.2"), False)[0] == 50  # exactly the minimum is enough
    assert counted(better, keep, D(0), False)[0] == 50  # the seed: no minimum


def test_a_duplicate_counts_as_keep_at_best_also_in_the_fees_of_the_tie_break():
    keep = score_outcome(outcome(fees1=10), "MinIL", 0)
    original = score_outcome(outcome(fees1=90), "MinIL", 0)
    assert counted(original, keep, D("0.5"), False) == (0, 90)
    assert counted(original, keep, D("0.5"), True) == (0, 10)
    bad = replace(original, score=D(-1))
    assert counted(bad, keep, D("0.5"), True) == (-1, 90)


def entry(hotkey: str, score: int = 0, tie_fees: int = 0, combined: int = 0, registered_block: int = 0) -> Entry:
    return Entry(hotkey, D(score), D(tie_fees), D(combined), registered_block)


def test_ranking_goes_by_score_fees_reputation_registration_and_hotkey_in_this_order():
    best_first = [
        entry("z", score=2, tie_fees=-9, combined=-9, registered_block=9),
        entry("y", score=1, tie_fees=5, combined=-9, registered_block=9),
        entry("x", score=1, tie_fees=4, combined=7, registered_block=9),
        entry("w", score=1, tie_fees=4, combined=6, registered_block=3),
        entry("a", score=1, tie_fees=4, combined=6, registered_block=4),
        entry("b", score=1, tie_fees=4, combined=6, registered_block=4),
        entry("c", score=-1, tie_fees=9, combined=9, registered_block=0),
    ]
    rng = random.Random(7)
    for _ in range(50):
        assert rank(rng.sample(best_first, len(best_first))) == best_first
    assert rank([]) == []


def test_scores_that_differ_in_the_120th_digit_are_no_tie():
    low, high = D("0." + "1" * 120), D("0." + "1" * 119 + "2")
    older, newer = entry("a"), entry("b", registered_block=5)
    with localcontext(Context(prec=5)):
        assert rank([replace(older, score=low), replace(newer, score=high)])[0].hotkey == "b"
        assert rank([replace(older, combined=low), replace(newer, combined=high)])[0].hotkey == "b"


# ---------------------------------------------------------------------------------------------------------------------
# Reputation


def test_moving_averages_start_at_0_and_remember_as_the_seed_says():
    standing = update_eval(Standing(), D(100), D(40))
    assert (standing.eval_seed, standing.eval_excess) == (10, 6)  # 0.1 * 100, 0.1 * 60
    standing = update_eval(standing, D(-50), D(40))
    assert (standing.eval_seed, standing.eval_excess) == (4, D("-3.6"))  # 9 - 5, 5.4 - 9
    standing = update_live(standing, D(20), D(-10))
    assert (standing.live_seed, standing.live_excess) == (6, 9)  # 0.3 * 20, 0.3 * 30
    standing = update_live(standing, D(0), D(1))
    assert standing == Standing(D(4), D("4.2"), D("-3.6"), D("6.0"))  # 0.7 * 6, 0.7 * 9 - 0.3
    assert standing.combined("seed") == D("4.08")  # 0.6 * 4 + 0.4 * 4.2
    assert standing.combined("excess") == D("0.24")  # 0.6 * -3.6 + 0.4 * 6


def test_a_small_constant_score_is_approached_and_never_stalls():
    # SN98 stored six decimals and stalled at 0 (its fault 9); here after n rounds it is x * (1 - 0.9**n), to 115 digits
    x, standing = D("0.000004"), Standing()
    for n in range(1, 301):
        standing = update_eval(standing, x, D(0))
        expected = Fraction(x) * (1 - Fraction(9, 10) ** n)
        assert near(standing.eval_seed, expected, expected / 10**115)


def test_keeping_is_worth_0_in_excess_whatever_the_market_does():
    standing = Standing()
    for drift in (D(-5000), D(3), D("7777.7")):
        standing = update_live(update_eval(standing, drift, drift), drift, drift)
        assert standing.combined("excess") == 0
        assert standing.combined("seed") != 0


def test_a_standing_is_read_back_from_its_text_and_goes_on_as_if_never_stored():
    rng, kept, stored = random.Random(8), Standing(), Standing()
    for _ in range(300):
        score, keep_score = D(rng.getrandbits(200)).scaleb(-90), D(rng.getrandbits(200)).scaleb(-90)
        update = rng.choice((update_eval, update_live))
        kept, stored = update(kept, score, keep_score), update(stored, score, keep_score)
        stored = Standing(*(Decimal(text) for text in map(str, astuple(stored))))
        assert stored == kept
    assert max(len(number.as_tuple().digits) for number in astuple(kept)) == 120


def test_an_unknown_kind_of_reputation_is_refused_by_name():
    with pytest.raises(scoring.UnknownReputation, match="'ema': one of excess, seed"):
        Standing().combined("ema")


def test_seven_of_the_last_fourteen_days_make_a_miner_eligible_and_today_is_one_of_them():
    today = 20_000
    assert live_eligible(range(today - 6, today + 1), today) == (True, 7)
    assert live_eligible(range(today - 6, today), today) == (False, 6)
    assert live_eligible(range(today - 13, today + 1, 2), today) == (True, 7)  # -13 is the oldest day that counts
    assert live_eligible(range(today - 14, today, 2), today) == (False, 6)  # -14 is too old
    assert live_eligible([today] * 9, today) == (False, 1)  # a day counts once
    assert live_eligible(range(today + 1, today + 10), today) == (False, 0)  # a day to come does not
    assert live_eligible(range(today + 1), today) == (True, 14)
    assert live_eligible((), today) == (False, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Shares and weights


def miner(hotkey: str, reputation: str = "1", rounds_ranked: int = 96, registered_block: int = 0) -> Candidate:
    return Candidate(hotkey, D(reputation), rounds_ranked, registered_block)


def test_the_winner_takes_all_by_default():
    assert job_shares((D(1),), [miner("a", "1"), miner("b", "2"), miner("c", "0.5")], 96) == {"b": 1, BURN: 0}


def test_places_go_by_reputation_then_older_registration_then_hotkey():
    shares = (D("0.4"), D("0.3"), D("0.2"), D("0.1"))
    candidates = [miner("d", registered_block=1), miner("c"), miner("b"), miner("a", "9", registered_block=7)]
    for order in (candidates, candidates[::-1]):
        assert list(job_shares(shares, order, 96).items()) == [
            ("a", D("0.4")),
            ("b", D("0.3")),
            ("c", D("0.2")),
            ("d", D("0.1")),
            (BURN, 0),
        ]


def test_places_of_nobody_burn():
    shares = (D("0.5"), D("0.3"), D("0.1"))
    assert job_shares(shares, [miner("a")], 96) == {"a": D("0.5"), BURN: D("0.5")}
    assert job_shares(shares, [], 96) == {BURN: 1}
    assert job_shares((), [miner("a")], 96) == {BURN: 1}


def test_a_reputation_of_0_or_less_earns_nothing():
    candidates = [miner("a", "0"), miner("b", "-1"), miner("c", "1e-100")]
    assert job_shares((D("0.6"), D("0.4")), candidates, 96) == {"c": D("0.6"), BURN: D("0.4")}


def test_a_miner_must_have_been_ranked_in_at_least_half_of_the_finished_rounds():
    for ranked, finished, earns in ((48, 96, True), (47, 96, False), (48, 95, True), (1, 1, True), (0, 1, False)):
        assert ("a" in job_shares((D(1),), [miner("a", rounds_ranked=ranked)], finished)) == earns
    # a better reputation that stopped coming does not hold the place of one that is there
    assert job_shares((D(1),), [miner("gone", "9", 40), miner("here", "1", 96)], 96) == {"here": 1, BURN: 0}


def test_without_a_finished_round_the_job_burns():
    assert job_shares((D(1),), [miner("a", rounds_ranked=0)], 0) == {BURN: 1}


def test_job_weights_divide_a_mechanism_and_mechanism_shares_the_total():
    a, b, nobody = {"a": D(1), BURN: D(0)}, {"b": D("0.5"), BURN: D("0.5")}, {BURN: D(1)}
    # 4/5 liquidity: job weights 3 : 1 for a and b; 1/5 index: one job nobody won
    found = weight_vector([(D(4), [(D(3), a), (D(1), b)]), (D(1), [(D(7), nobody)])])
    # a: 4/5 * 3/4; b: 4/5 * 1/4 * 1/2; the rest: 4/5 * 1/8 + 1/5
    assert found == {"a": D("0.6"), "b": D("0.1"), BURN: D("0.3")}


def test_who_wins_every_job_of_every_mechanism_gets_everything_without_a_rounding():
    win = {"a": D(1), BURN: D(0)}
    assert weight_vector([(D(1), [(D(1), win)] * 3)] * 3) == {"a": 1, BURN: 0}


def test_thirds_and_sixths_are_rounded_down_and_the_remainder_burns():
    jobs = [(D(1), {hotkey: D(1), BURN: D(0)}) for hotkey in "abc"]
    third = D("0." + "3" * 40)
    assert weight_vector([(D(1), jobs)]) == {"a": third, "b": third, "c": third, BURN: D("1e-40")}
    # six times 1/6 = 0.1666..., which rounded to nearest would come to more than 1 and leave a negative burn
    jobs = [(D(1), {hotkey: D(1), BURN: D(0)}) for hotkey in "abcdef"]
    assert weight_vector([(D(1), jobs)])[BURN] == D("4e-40")


@pytest.mark.parametrize(
    "mechanisms",
    [
        [],
        [(D(1), [])],
        [(D(0), [(D(1), {"a": D(1), BURN: D(0)})])],
        [(D(1), [(D(0), {"a": D(1), BURN: D(0)})])],
    ],
    ids=["no mechanism", "no job", "no share", "no weight"],
)
def test_what_nobody_can_earn_burns(mechanisms):
    vector = weight_vector(mechanisms)
    assert vector == {BURN: 1}
    assert to_uids(vector, {"a": 5}, burn_uid=0) == {0: 1}


def test_a_mechanism_of_share_0_takes_nothing_from_the_others():
    win = [(D(1), {"a": D(1), BURN: D(0)})]
    lose = [(D(1), {"b": D(1), BURN: D(0)})]
    assert weight_vector([(D(1), win), (D(0), lose)]) == {"a": 1, BURN: 0}


def test_hotkeys_become_uids_and_those_no_longer_registered_burn():
    vector = {"a": D("0.5"), "gone": D("0.2"), "owner": D("0.1"), "nothing": D(0), BURN: D("0.2")}
    uid_of = {"a": 7, "owner": 3, "nothing": 4}
    assert to_uids(vector, uid_of, burn_uid=3) == {3: D("0.5"), 7: D("0.5")}
    assert to_uids({"a": D(1), BURN: D(0)}, uid_of, burn_uid=3) == {7: 1}
    assert to_uids({"a": D(1), BURN: D(0)}, {}, burn_uid=3) == {3: 1}


def test_weights_sum_to_exactly_1_whatever_the_shares_and_never_fall_below_0():
    rng = random.Random(9)
    with localcontext(Context(prec=6)):  # the caller's context must not leak into the sums
        for _ in range(300):
            mechanisms = []
            for _ in range(rng.randrange(4)):
                jobs = []
                for _ in range(rng.randrange(4)):
                    finished = rng.randrange(5)
                    shares = [D(rng.getrandbits(60)).scaleb(-20) for _ in range(rng.randrange(4))]  # each < 0.0116
                    candidates = [
                        miner(hotkey, str(rng.randrange(-1, 3)), rng.randrange(6), rng.randrange(3))
                        for hotkey in "abcdef"
                    ]
                    vector = job_shares(shares, candidates, finished)
                    assert sum(map(Fraction, vector.values())) == 1
                    jobs.append((D(rng.randrange(30)) / 7, vector))
                mechanisms.append((D(rng.randrange(30)) / 9, jobs))
            vector = weight_vector(mechanisms)
            weights = to_uids(vector, {"a": 1, "c": 2, "e": 3}, burn_uid=rng.randrange(3))
            for numbers in (vector.values(), weights.values()):
                assert sum(map(Fraction, numbers)) == 1
                assert min(numbers) >= 0
            assert all(weights.values())


# ---------------------------------------------------------------------------------------------------------------------
# The same digits everywhere


def digits(module=scoring, decimal_type=Decimal, rounds: int = 60) -> list[str]:
    """Every number the module makes of seeded inputs, as text."""
    rng, numbers, standing = random.Random(10), [], module.Standing(*[decimal_type(0)] * 4)
    keep = None
    for _ in range(rounds):
        book = random_outcome(rng)
        plain = {f.name: getattr(book, f.name) for f in fields(book)} | {"in_range": decimal_type(str(book.in_range))}
        for target in module.TARGETS:
            terms = module.score_outcome(module.Outcome(**plain), target, rng.getrandbits(20))
            numbers += astuple(terms)
        keep = keep or terms
        score = module.counted(terms, keep, decimal_type("0.5"), rng.random() < 0.2)[0]
        standing = rng.choice((module.update_eval, module.update_live))(standing, score, keep.score)
        numbers += [*astuple(standing), standing.combined("seed"), standing.combined("excess")]
    thirds = [(decimal_type(1), {hotkey: decimal_type(1)}) for hotkey in "abc"]
    weights = module.weight_vector([(decimal_type(7), thirds), (decimal_type(4), thirds[1:])])
    numbers += module.to_uids(weights, {"a": 1, "b": 2}, 0).values()
    return [str(number) for number in numbers]


def test_the_digits_do_not_depend_on_the_callers_context_or_thread():
    expected = digits()
    hostile = Context(prec=5, rounding=decimal.ROUND_UP, Emin=-3, Emax=3, clamp=1, traps=[decimal.Inexact])
    with localcontext(hostile) as context:
        assert digits() == expected
        assert context.prec == 5  # and the caller's context is left as it was
        assert not context.flags[decimal.Inexact]
    found = []
    thread = threading.Thread(target=lambda: found.extend(digits()))
    thread.start()
    thread.join()
    assert found == expected


def test_the_digits_are_those_of_the_plain_python_decimal(monkeypatch):
    # `_pydecimal` is the standard library's second, independent implementation, used where the C one is not built
    monkeypatch.setitem(sys.modules, "decimal", _pydecimal)
    spec = importlib.util.spec_from_file_location("scoring_in_plain_python", scoring.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.Decimal is _pydecimal.Decimal
    assert digits(module, _pydecimal.Decimal, rounds=6) == digits(rounds=6)


def test_the_rules_did_not_change_without_a_new_number():
    # sha256 over every digit of 60 seeded rounds: when this line must change, so must RULES_VERSION
    found = hashlib.sha256("\n".join(digits()).encode()).hexdigest()
    assert (scoring.RULES_VERSION, found[:16]) == (2, "0a0d2df34d4414b1")


def test_a_float_among_the_amounts_scores_or_weights_is_refused():
    with pytest.raises(TypeError):
        score_outcome(outcome(final0=999.5), "PoL", 0)
    with pytest.raises(TypeError):
        update_eval(Standing(), 0.1, D(0))
    with pytest.raises(TypeError):
        weight_vector([(D(1), [(0.5, {"a": D(1), BURN: D(0)})])])


def test_the_source_has_no_float_and_imports_only_the_standard_library_and_the_protocol():
    nodes = list(ast.walk(ast.parse(Path(scoring.__file__).read_text())))
    assert not [n.lineno for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, float)]
    assert not [n.lineno for n in nodes if isinstance(n, ast.Name) and n.id in ("float", "round")]
    imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imported == {"__future__", "collections.abc", "dataclasses", "decimal", "protocol"}
    assert [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names] == ["decimal"]
