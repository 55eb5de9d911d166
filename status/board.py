"""Leaderboards in plain text: every miner's terms beside *keep*, *hold* and the best fixed range in hindsight.

Only shows; nothing here decides anything. Read next: `scoring.py`, where each column comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from liquidity.rounds import Line, RoundResult
from protocol import Code, Job, Pair
from store import Reputation

COLUMNS = (
    "rank", "miner", "score", "fees", "drift", "divergence", "costs", "inventory loss", "penalty", "in range",
    "changes", "rep. excess", "rep. seed",
)  # fmt: skip


DAY_SECONDS = 86_400


class Board:
    """What goes to stdout: of each job the first leaderboard of every market day, at the end the newest.

    Args:
        label, pair: of the market; the label says whether it is real, recorded or a model.
        names: what to call hotkeys that are known here.
        every: whether to print the leaderboard of every round.

    Attributes:
        names: as given.
    """

    def __init__(self, label: str, pair: Pair, names: Mapping[str, str], every: bool):
        self._label, self._pair, self.names, self._every = label, pair, names, every
        self._printed: set[tuple] = set()
        self._latest: dict[tuple[str, str], str] = {}  # those that were not printed

    def show(
        self,
        job: Job,
        round_id: str,
        result: RoundResult,
        reputations: Mapping[str, Reputation],
        asked: Mapping[str, tuple[Code, str]],
        missed: Mapping[str, Sequence[str]],
    ) -> None:
        """Of a round that was scored; arguments as `leaderboard`'s."""
        job_id, round_type, start = round_id.rsplit(":", 2)
        text = leaderboard(self._label, self._pair, job, round_id, result, reputations, asked, missed, self.names)
        day = (job_id, round_type, int(start) // DAY_SECONDS)
        if self._every or day not in self._printed:
            self._printed.add(day)
            self._latest.pop((job_id, round_type), None)
            print(text, end="\n\n", flush=True)
        else:
            self._latest[job_id, round_type] = text

    def show_latest(self) -> None:
        """The newest of each job, where it has not been printed yet."""
        for text in self._latest.values():
            print(text, end="\n\n")


def leaderboard(
    label: str,
    pair: Pair,
    job: Job,
    round_id: str,
    result: RoundResult,
    reputations: Mapping[str, Reputation],
    asked: Mapping[str, tuple[Code, str]],
    missed: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
) -> str:
    """One round as a table.

    Args:
        label: of the market; says whether it is real, recorded or a model.
        pair, job, round_id, result: what was played.
        reputations: after the round, by hotkey.
        asked: code and detail of each first ask, by hotkey; those not accepted are listed below the table.
        missed: why later asks had no accepted answer and meant *keep*, by hotkey.
        names: what to call hotkeys that are known here.

    Returns:
        Lines of text; amounts in human units of token1.
    """
    unit = Decimal(10) ** pair.token1.decimals
    start = int(round_id.rsplit(":", 1)[1])
    rows = [COLUMNS]
    for line in (*result.lines, *(line for line in (result.keep, result.hold, result.best) if line)):
        rows.append(_row(line, unit, reputations.get(line.name), names))
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    table = [
        "  ".join(
            cell.rjust(w) if n != 1 else cell.ljust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    live = "LIVE, on the vault itself" if ":live:" in round_id else "evaluation"
    head = [
        f"== {job.job_id}: target {job.settings.target}, {live},"
        f" {datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} UTC for {job.round_seconds} s, {result.swaps} swaps",
        f"   {label}; amounts in {pair.token1.symbol}; ranked by score, paid by reputation ({job.settings.reputation})",
    ]
    out = [
        f"   not ranked: {miner_name(hotkey, names)}: {code} {detail}".rstrip()
        for hotkey, (code, detail) in asked.items()
        if code is not Code.ACCEPTED
    ]
    for hotkey, reasons in missed.items():
        out.append(
            f"   kept what it had: {miner_name(hotkey, names)}: {len(reasons)} asks, last {reasons[-1]}".rstrip()
        )
    if result.best and result.best.range_:
        out.append(f"   best fixed range in hindsight: ticks {result.best.range_[0]} to {result.best.range_[1]}")
    return "\n".join([*head, *table, *out])


def _row(line: Line, unit: Decimal, reputation: Reputation | None, names: Mapping[str, str]) -> tuple[str, ...]:
    terms = line.terms

    def money(value: Decimal) -> str:
        return f"{round(value / unit, 4) + 0:+,.4f}"  # + 0: no minus before a zero

    standing = reputation.standing if reputation else None
    name = miner_name(line.name, names) + (f" = {miner_name(line.copy_of, names)}" if line.copy_of else "")
    return (
        str(line.rank or ""),
        name,
        money(line.score),
        money(terms.fees),
        money(terms.drift),
        money(terms.divergence),
        money(terms.costs),
        f"{terms.loss:.4%}",
        f"{terms.penalty:.4f}",
        f"{terms.in_range:.1%}",
        str(line.outcome.changes),
        money(standing.combined("excess")) if standing else "",
        money(standing.combined("seed")) if standing else "",
    )


def miner_name(hotkey: str, names: Mapping[str, str]) -> str:
    """A hotkey short enough for a table, with its name if it has one here."""
    if known := names.get(hotkey):
        return f"{known} {hotkey[:4]}..{hotkey[-4:]}"
    return f"{hotkey[:6]}..{hotkey[-6:]}" if len(hotkey) == 48 else hotkey
