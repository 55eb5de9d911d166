"""What a round was worth: targets, the smooth penalty, reputation, ranking, shares and the weight vector.

One miner's way through this file, in order::

    Outcome -> score_outcome -> Terms -> counted -> rank               one round: who won it
                                         counted -> update_eval/live   many rounds: Standing, the miner's reputation
                                                    job_shares         one job: its winners' fractions
                                                    weight_vector      all jobs and mechanisms: fractions of everything
                                                    to_uids            what the chain is told

The same inputs give the same digits on every platform: amounts are integers, everything else is `decimal` under this
module's own context (120 digits, half even), whatever context the caller has set, and of the functions that are not
plain arithmetic only `exp` and `ln` are used, which `decimal` rounds correctly. There are no floats.

Pure: no clock, no I/O. `python -m pytest tests/test_scoring.py` shows each rule at work, worked examples first.
Read next: `liquidity/rounds.py`, which makes the outcomes.
"""

from __future__ import annotations

import decimal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Context, Decimal, localcontext

from protocol import REPUTATIONS, TARGETS

RULES_VERSION = 2  # part of a round's evidence: any change below that can change a digit needs the next number
_TRAPS = [decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
CONTEXT = Context(  # every field is named, so that a caller's decimal.DefaultContext changes nothing here
    prec=120, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, capitals=1, clamp=0, flags=[], traps=_TRAPS
)

# Score
PENALTY_RATE = 10  # penalty = exp(-10 * loss)
SMOOTH_MAX_BETA = 100  # the larger it is, the closer smooth_max comes to max
DUST = Decimal("1e-6")  # an initial amount worth less than this part of the initial value counts as none
MIN_IL_TOLERANCE = Decimal("1e-5")  # MinIL forgives a loss against holding up to this part of the initial value
VALUE_DECIMALS = 40  # a value below 2**257 (78 digits) and 40 decimals fit 120 digits: adding values is exact
WEIGHT_QUANTUM = Decimal("1e-40")  # weights are multiples of it, so that they sum to exactly 1

# Reputation
EVAL_KEEP = Decimal("0.9")  # eval = 0.9 * old + 0.1 * new
LIVE_KEEP = Decimal("0.7")  # live = 0.7 * old + 0.3 * new
EVAL_SHARE, LIVE_SHARE = Decimal("0.6"), Decimal("0.4")  # combined = 0.6 * eval + 0.4 * live
LIVE_MIN_DAYS, LIVE_WINDOW_DAYS = 7, 14  # participation days needed, out of how many

BURN = "burn"  # stands among hotkeys for what nobody earned; no hotkey can be spelt so


class UnknownTarget(ValueError):
    """The target is none of `TARGETS`."""


class UnknownReputation(ValueError):
    """The kind of reputation is none of `REPUTATIONS`."""


# ---------------------------------------------------------------------------------------------------------------------
# Score: one book over one round


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one book began and ended a round. Amounts are token base units.

    Attributes:
        initial0, initial1: all holdings at the opening, fees uncollected by then included.
        final0, final1: all holdings at the close, without any fee earned since the opening and before costs.
        fees0, fees1: earned since the opening, collected or not.
        sqrt_price_start_x96, sqrt_price_end_x96: of the pool, at the opening and at the close, Q64.96, > 0.
        changes: answers that changed something; each costs the job's `rebalance_cost`.
        in_range: block-weighted share of the value that was in range, 0 to 1.
    """

    initial0: int
    initial1: int
    final0: int
    final1: int
    fees0: int
    fees1: int
    sqrt_price_start_x96: int
    sqrt_price_end_x96: int
    changes: int
    in_range: Decimal


@dataclass(frozen=True, slots=True)
class Terms:
    """A score and all that it is made of. Values are token1 base units; `value_gain` is exactly the sum of its terms.

    Attributes:
        initial_value: the initial holdings at the start price.
        drift: what the price did to the initial holdings: worth at the end price less worth at the start price.
        fees: earned in the round, at the end price.
        divergence: the final holdings without fees and costs, less the initial ones, both at the end price; what
            providing liquidity lost to holding (impermanent loss), so rarely above 0.
        costs: `rebalance_cost` times the answers that changed something, and a live round's gas.
        value_gain: `drift + fees + divergence - costs`.
        loss0, loss1: part of each initial amount that is gone, after costs, 0 to 1.
        loss, penalty: both in one by `smooth_max`, 0 to 1 + ln(2) / 100; `penalty_factor` of it.
        tie_fees: what orders equal scores first: `fees` for MinIL, where most scores are 0; else 0.
    """

    initial_value: Decimal
    drift: Decimal
    fees: Decimal
    divergence: Decimal
    costs: Decimal
    value_gain: Decimal
    loss0: Decimal
    loss1: Decimal
    loss: Decimal
    penalty: Decimal
    score: Decimal
    tie_fees: Decimal
    in_range: Decimal


def value(amount0: int, amount1: int, sqrt_price_x96: int) -> Decimal:
    """What two amounts, up to 2**128, are worth in token1 base units, rounded down to 1e-40 of one.

    Rounding here, once, to a fixed number of decimals is what makes every later sum and difference exact.
    """
    scale = 10**VALUE_DECIMALS
    scaled = (amount0 * sqrt_price_x96**2 * scale >> 192) + amount1 * scale
    with localcontext(CONTEXT):
        return Decimal(scaled).scaleb(-VALUE_DECIMALS)


def smooth_max(loss0: Decimal, loss1: Decimal) -> Decimal:
    """`ln(e^(b*loss0) + e^(b*loss1) - 1) / b` with `b = SMOOTH_MAX_BETA`: the larger loss, and a little of the smaller.

    It is 0 at no loss, exactly `x` for a single loss `x`, and between the maximum and the maximum + ln(2) / b: the "-1"
    is what plain log-sum-exp lacks for that. Computed with the larger loss `m` taken out of the
    logarithm, so that no power of e exceeds 1. The losses are 0 to 1.
    """
    b, m, n = SMOOTH_MAX_BETA, max(loss0, loss1), min(loss0, loss1)
    if n == 0:  # the usual case; the line below gives the same digits, three times as slowly
        return m
    with localcontext(CONTEXT):
        return m + (1 + ((b * (n - m)).exp() - (-b * m).exp())).ln() / b


def penalty_factor(loss: Decimal) -> Decimal:
    """`exp(-10 * loss)`: 1 at no loss, 0.368 at 10 %, 0.007 at 50 %."""
    with localcontext(CONTEXT):
        return (-PENALTY_RATE * loss).exp()


def pol_score(value_gain: Decimal, penalty: Decimal) -> Decimal:
    """A gain shrinks by the penalty, a loss grows by it."""
    with localcontext(CONTEXT):
        return value_gain * penalty if value_gain >= 0 else value_gain / penalty


def gas_cost(gas0: int, gas1: int, sqrt_price_x96: int) -> int:
    """What gas is worth at the close in token1 base units, rounded up; only the wrapped native token's is not 0."""
    return gas1 - (-gas0 * sqrt_price_x96**2 >> 192)


def score_outcome(outcome: Outcome, target: str, rebalance_cost: int, gas: int = 0) -> Terms:
    """Score one book over one round.

    Costs are taken from `final1` whatever the target: they lower the value and raise `loss1`. MaxFees looks at fees
    alone, so there they are taken from the fees' value instead: the score may be below 0.

    Args:
        target: `PoL`: `value_gain` times or divided by the penalty; `MaxFees`: fees less costs; `MinIL`: value without
            fees less holding, plus 1e-5 of the initial value, at most 0; `Balanced`: final value less holding.
        rebalance_cost: token1 base units for each answer that changed something, >= 0.
        gas: of a live round's executions, token1 base units, >= 0; see `gas_cost`.

    Raises:
        UnknownTarget: `target` is none of the four.
    """
    o = outcome
    with localcontext(CONTEXT):
        initial_value = value(o.initial0, o.initial1, o.sqrt_price_start_x96)
        holding = value(o.initial0, o.initial1, o.sqrt_price_end_x96)
        costs = Decimal(rebalance_cost * o.changes + gas)
        drift = holding - initial_value
        fees = value(o.fees0, o.fees1, o.sqrt_price_end_x96)
        divergence = value(o.final0, o.final1, o.sqrt_price_end_x96) - holding
        value_gain = drift + fees + divergence - costs

        dust = DUST * initial_value
        final1 = o.final1 - rebalance_cost * o.changes - gas
        loss0 = _loss(o.initial0, o.final0, value(o.initial0, 0, o.sqrt_price_start_x96) < dust)
        loss1 = _loss(o.initial1, final1, o.initial1 < dust)
        loss = smooth_max(loss0, loss1)
        penalty = penalty_factor(loss)

        match target:
            case "PoL":
                score = pol_score(value_gain, penalty)
            case "MaxFees":
                score = fees - costs
            case "MinIL":
                score = min(Decimal(0), divergence - costs + MIN_IL_TOLERANCE * initial_value)
            case "Balanced":
                score = fees + divergence - costs
            case _:
                raise UnknownTarget(f"target {target!r}: one of {', '.join(TARGETS)}")
    tie_fees = fees if target == "MinIL" else Decimal(0)
    made_of = initial_value, drift, fees, divergence, costs, value_gain, loss0, loss1, loss, penalty
    return Terms(*made_of, score, tie_fees, o.in_range)


def _loss(initial: int, final: int, is_dust: bool) -> Decimal:
    """Part of an initial amount that is gone, 0 to 1; nothing can be lost of nothing, or of dust."""
    if is_dust or initial == 0 or final >= initial:
        return Decimal(0)
    return min(Decimal(1), Decimal(initial - final) / initial)  # costs can take more than there was: capped


# ---------------------------------------------------------------------------------------------------------------------
# Rank: many books over one round


@dataclass(frozen=True, slots=True)
class Entry:
    """One miner in a round's ranking: its score and fees by `counted`, and its reputation before this round."""

    hotkey: str
    score: Decimal
    tie_fees: Decimal
    combined: Decimal
    registered_block: int


def counted(terms: Terms, keep_terms: Terms, min_in_range: Decimal, duplicate: bool) -> tuple[Decimal, Decimal]:
    """The score and the fees of the tie break that count for rank and reputation.

    A book that was in range for less than the minimum, or that repeats an older registration's book, counts as *keep*
    at best. The tie break follows the score: a book counted as *keep* has *keep*'s fees at most, or under MinIL, where
    all good scores are 0, a copy would tie with its original. *Keep* itself is exempt, without a case of its own: the
    smaller of it and itself is itself.

    Args:
        min_in_range: the job's setting, 0 to 1; 0 disables the rule.
        duplicate: an older registration's book was identical at every block.
    """
    own, keep = (terms.score, terms.tie_fees), (keep_terms.score, keep_terms.tie_fees)
    return min(own, keep) if duplicate or terms.in_range < min_in_range else own


def rank(entries: Iterable[Entry]) -> list[Entry]:
    """Best first: higher score, then (MinIL) higher fees, higher reputation, older registration, then hotkey."""
    oldest_first = sorted(entries, key=lambda entry: (entry.registered_block, entry.hotkey))
    return sorted(oldest_first, key=lambda entry: (entry.score, entry.tie_fees, entry.combined), reverse=True)


# ---------------------------------------------------------------------------------------------------------------------
# Reputation: one miner over many rounds


@dataclass(frozen=True, slots=True)
class Standing:
    """A miner's reputation in one job: moving averages from 0, never rounded to fewer than 120 digits.

    `str` of each number reads back as the same number; that is how they are stored. `_seed` is of the scores
    themselves, `_excess` of the scores less *keep*'s: abstaining is worth 0.
    """

    eval_seed: Decimal = Decimal(0)
    live_seed: Decimal = Decimal(0)
    eval_excess: Decimal = Decimal(0)
    live_excess: Decimal = Decimal(0)

    def combined(self, kind: str) -> Decimal:
        """`0.6 * eval + 0.4 * live` of one kind. Raises `UnknownReputation`."""
        if kind not in REPUTATIONS:
            raise UnknownReputation(f"reputation {kind!r}: one of {', '.join(REPUTATIONS)}")
        excess = kind == "excess"
        evaluation, live = (self.eval_excess, self.live_excess) if excess else (self.eval_seed, self.live_seed)
        with localcontext(CONTEXT):
            return EVAL_SHARE * evaluation + LIVE_SHARE * live


def update_eval(standing: Standing, score: Decimal, keep_score: Decimal) -> Standing:
    """The standing after an evaluation round that ranked the miner, from its counted score and *keep*'s score."""
    seed, excess = _moved(EVAL_KEEP, (standing.eval_seed, standing.eval_excess), score, keep_score)
    return replace(standing, eval_seed=seed, eval_excess=excess)


def update_live(standing: Standing, score: Decimal, keep_score: Decimal) -> Standing:
    """The standing after a live round that the miner managed."""
    seed, excess = _moved(LIVE_KEEP, (standing.live_seed, standing.live_excess), score, keep_score)
    return replace(standing, live_seed=seed, live_excess=excess)


def _moved(keep: Decimal, old: tuple[Decimal, Decimal], score: Decimal, keep_score: Decimal) -> tuple[Decimal, Decimal]:
    """Both moving averages, of the score and of its excess."""
    with localcontext(CONTEXT):
        return keep * old[0] + (1 - keep) * score, keep * old[1] + (1 - keep) * (score - keep_score)


def live_eligible(days: Collection[int], today: int) -> tuple[bool, int]:
    """Whether a miner took part long enough to manage the vault, and on how many of the last 14 UTC days; 7 are enough.

    Today is the last of the 14 and counts once it has a ranked round, as what happened today has happened; so a miner
    ranked every day can manage the vault on its seventh day.

    Args:
        days: UTC day ordinals (unix seconds of block time // 86400) with a ranked round in this job, in any order.
        today: that of the block at which the live ask leaves.
    """
    count = len({day for day in days if today - LIVE_WINDOW_DAYS < day <= today})
    return count >= LIVE_MIN_DAYS, count


# ---------------------------------------------------------------------------------------------------------------------
# Weights: from reputations to what the chain is told


@dataclass(frozen=True, slots=True)
class Candidate:
    """One miner of one job when weights are set.

    Attributes:
        reputation: combined, of the kind that ranks in this job.
        rounds_ranked: of the job's finished, non-void evaluation rounds of the last 24 h, those that ranked it.
    """

    hotkey: str
    reputation: Decimal
    rounds_ranked: int
    registered_block: int


def job_shares(shares: Sequence[Decimal], candidates: Iterable[Candidate], rounds_finished: int) -> dict[str, Decimal]:
    """Divide one job among its best miners by reputation.

    A place counts only for a miner with a reputation above 0 that was ranked in at least half of the finished rounds;
    equal reputations go by older registration, then hotkey. The place of nobody burns, and so does the whole job when
    no round finished.

    Args:
        shares: fractions by place, each >= 0, their sum at most 1.
        rounds_finished: the job's finished, non-void evaluation rounds of the last 24 h of block time.

    Returns fractions by hotkey, and the rest under `BURN`; they sum to exactly 1.
    """
    present = [c for c in candidates if 0 < rounds_finished <= 2 * c.rounds_ranked and c.reputation > 0]
    oldest_first = sorted(present, key=lambda c: (c.registered_block, c.hotkey))
    best_first = sorted(oldest_first, key=lambda c: c.reputation, reverse=True)
    vector = {c.hotkey: share for c, share in zip(best_first, shares, strict=False)}
    with localcontext(CONTEXT):
        return vector | {BURN: 1 - sum(vector.values())}


def weight_vector(
    mechanisms: Iterable[tuple[Decimal, Sequence[tuple[Decimal, Mapping[str, Decimal]]]]],
) -> dict[str, Decimal]:
    """Put all jobs of all mechanisms into one vector.

    Mechanism shares and job weights are relative: each divides by the sum over its siblings. A mechanism without an
    active job burns its part; without any mechanism everything burns.

    Args:
        mechanisms: for each its share, >= 0, and its active jobs, each as its weight, >= 0, and its `job_shares`.

    Returns fractions by hotkey, in its order, rounded down to `WEIGHT_QUANTUM`, and the rest under `BURN`; they sum to
    exactly 1.
    """
    earned: dict[str, Decimal] = {}
    share_sum = Decimal(0)
    with localcontext(CONTEXT):
        for share, jobs in mechanisms:
            share_sum += share
            weight_sum = sum(weight for weight, _ in jobs)
            won: dict[str, Decimal] = {}
            for weight, vector in jobs:
                for hotkey, fraction in vector.items():
                    won[hotkey] = won.get(hotkey, Decimal(0)) + weight * fraction
            won.pop(BURN, None)
            for hotkey, part in won.items():
                if part:  # multiplied before divided: who wins all of a mechanism gets its share without a rounding
                    earned[hotkey] = earned.get(hotkey, Decimal(0)) + share * part / weight_sum
        weights = {
            hotkey: (part / share_sum).quantize(WEIGHT_QUANTUM, ROUND_DOWN)
            for hotkey, part in sorted(earned.items())
            if part
        }
        return weights | {BURN: 1 - sum(weights.values())}


def to_uids(vector: Mapping[str, Decimal], uid_of: Mapping[str, int], burn_uid: int) -> dict[int, Decimal]:
    """Weights above 0 by uid, in its order, as the metagraph of this very block has them; their sum is exactly 1.

    What has no uid any more burns.
    """
    weights: dict[int, Decimal] = {}
    with localcontext(CONTEXT):
        for hotkey, weight in vector.items():
            uid = uid_of.get(hotkey, burn_uid)
            weights[uid] = weights.get(uid, Decimal(0)) + weight
    return {uid: weights[uid] for uid in sorted(weights) if weights[uid]}
