"""What leaderboards and pages show of a round of liquidity: which terms, in which order, under which names.

Pure: it writes text of what `rounds.py` made. Read first: `rounds.py`, whose lines these are; `scoring.py`, where each
term comes from. Read next: `status/board.py` and `status/pages.py`, which put them among what all mechanisms share.
"""

from __future__ import annotations

from decimal import Decimal

from liquidity.rounds import Line
from protocol import Job, Pair, RoundResult

# ---------------------------------------------------------------------------------------------------------------------
# Leaderboards in plain text


def columns() -> tuple[str, ...]:
    """Heads of what `row` gives."""
    return "fees", "drift", "divergence", "costs", "inventory loss", "penalty", "in range", "changes"


def row(line: Line, pair: Pair) -> tuple[str, ...]:
    """A line's terms as texts, amounts in human units of token1."""
    terms = line.terms
    return (
        *(amount(value, pair) for value in (terms.fees, terms.drift, terms.divergence, terms.costs)),
        f"{terms.loss:.4%}",
        f"{terms.penalty:.4f}",
        f"{terms.in_range:.1%}",
        str(line.outcome.changes),
    )


def amount(value: Decimal, pair: Pair) -> str:
    """Base units of token1, scores and reputations too, in human units."""
    return f"{round(value / Decimal(10) ** pair.token1.decimals, 4) + 0:+,.4f}"  # + 0: no minus before a zero


def unit(pair: Pair) -> str:
    """What amounts are in."""
    return pair.token1.symbol


def about(job: Job, result: RoundResult) -> tuple[str, str]:
    """What a round was about, and what happened in it."""
    return f"target {job.settings.target}", f"{result.swaps} swaps"


def remarks(result: RoundResult) -> list[str]:
    """Lines below a round's table."""
    best = result.baselines.get("best")
    found = best and best.range_
    return [f"best fixed range in hindsight: ticks {found[0]} to {found[1]}"] if found else []


# ---------------------------------------------------------------------------------------------------------------------
# Pages: the way to a value in a line's JSON, its head, how to write it and with what argument

SIZE = "terms/initial_value"  # amounts get their digits from it
_AMOUNTS = tuple((f"terms/{name}", name, "base") for name in ("fees", "drift", "divergence", "costs"))
_LOSS, _INVENTORY_LOSS = (("terms/loss", head, "percent", "3") for head in ("loss", "inventory loss"))
_PENALTY = ("terms/penalty", "penalty", "plain", "4")
_IN_RANGE = ("terms/in_range", "in range", "percent", "1")
TABLES = {
    "round": (*_AMOUNTS, _INVENTORY_LOSS, _PENALTY, _IN_RANGE, ("outcome/changes", "changes", "int")),
    "miner": (*_AMOUNTS, _LOSS, _PENALTY, _IN_RANGE),
    "receipts": (*_AMOUNTS, _IN_RANGE),
    "job": (_AMOUNTS[0], _IN_RANGE),
}
