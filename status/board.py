"""What a mechanism says of its rounds, and leaderboards in plain text: each miner's terms beside the baselines'.

Only shows; nothing here decides anything. Read next: `pages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from protocol import Code, Job, Pair, RoundResult
from spine.ground import Ground
from store import Reputation

DAY_SECONDS = 86_400


class Showing:
    """What a mechanism says of its rounds, for leaderboards in text, for pages in two tables; here of one that says
    nothing: the score, and every term as it is. A mechanism's own has the same members (`liquidity/showing.py`).

    Attributes:
        SIZE: the way to an amount of token1 from which all others get their digits; lines that have it are in token1.
        TABLES: columns of each table: `round` (a round's books), `job`, `miner` (its rounds), `receipts`.
    """

    SIZE: str = ""
    TABLES: Mapping[str, Sequence[tuple[str, ...]]] = {}

    def columns(self) -> Sequence[str]:
        """Heads of what `row` gives."""
        return ("terms",)

    def row(self, line: Any, pair: Pair) -> Sequence[str]:
        """A line's terms as texts."""
        return (", ".join(f"{name} {value}" for name, value in line.terms.items()),)

    def amount(self, value: Decimal, pair: Pair) -> str:
        """A score or a reputation as text."""
        return f"{round(value, 4) + 0:+,}"

    def unit(self, pair: Pair) -> str:
        """What amounts are in."""
        return "points"

    def about(self, job: Job, result: Any) -> Sequence[str]:
        """What a round was about, and what happened in it; either may be empty."""
        return "", ""

    def remarks(self, result: Any) -> Sequence[str]:
        """Lines below a round's table."""
        return ()


class Board:
    """What goes to stdout: of each job the first leaderboard of every market day, or `every` one; at the end the
    newest. `label`, `pair` and `names` are as `leaderboard` takes them."""

    def __init__(self, label: str, pair: Pair, names: Mapping[str, str], every: bool):
        self._label, self._pair, self.names, self._every = label, pair, names, every
        self._printed: set[tuple] = set()
        self._latest: dict[tuple[str, str], str] = {}  # those that were not printed

    def show(self, showing: Showing | None, job: Job, round_id: str, *what: Any) -> None:
        """Of a round that was scored; arguments as `leaderboard`'s."""
        job_id, round_type, start = round_id.rsplit(":", 2)
        text = leaderboard(showing or Showing(), self._label, self._pair, self.names, job, round_id, *what)
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
    showing: Showing,
    label: str,
    pair: Pair,
    names: Mapping[str, str],
    job: Job,
    round_id: str,
    result: RoundResult,
    reputations: Mapping[str, Reputation] = MappingProxyType({}),
    asked: Mapping[str, tuple[Code, str]] = MappingProxyType({}),
    missed: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """One round as a table, lines of text.

    Args:
        showing: how the mechanism's rounds are written.
        label: of the market; says whether it is real, recorded or a model.
        names: what to call hotkeys that are known here.
        reputations: after the round, by hotkey.
        asked: code and detail of each first ask, by hotkey; those not accepted are listed below the table.
        missed: why later asks had no accepted answer and meant *keep*, by hotkey.
    """
    start = int(round_id.rsplit(":", 1)[1])
    rows = [("rank", "miner", "score", *showing.columns(), "rep. excess", "rep. seed")]
    for line in (*result.lines, *result.baselines.values()):
        name = miner_name(line.name, names) + (f" = {miner_name(line.copy_of, names)}" if line.copy_of else "")
        found = reputations.get(line.name)
        standing = [showing.amount(found.standing.combined(kind), pair) if found else "" for kind in ("excess", "seed")]
        score = showing.amount(line.score, pair)
        rows.append((str(line.rank or ""), name, score, *showing.row(line, pair), *standing))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(f"{cell:{'<' if n == 1 else '>'}{widths[n]}}" for n, cell in enumerate(row))  # names to the left
        for row in rows
    ]
    live = "LIVE, on the vault itself" if ":live:" in round_id else "evaluation"
    about, happened = showing.about(job, result)
    time = f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} UTC for {job.round_seconds} s"
    head = [
        f"== {job.job_id}: {', '.join(filter(None, (about, live, time, happened)))}",
        f"   {label}; amounts in {showing.unit(pair)}; ranked by score, paid by reputation ({job.settings.reputation})",
    ]
    below = [
        *(
            f"not ranked: {miner_name(hotkey, names)}: {code} {detail}"
            for hotkey, (code, detail) in asked.items()
            if code is not Code.ACCEPTED
        ),
        *(
            f"kept what it had: {miner_name(hotkey, names)}: {len(reasons)} asks, last {reasons[-1]}"
            for hotkey, reasons in missed.items()
        ),
        *showing.remarks(result),
    ]
    return "\n".join([*head, *table, *(f"   {line}".rstrip() for line in below)])


def miner_name(hotkey: str, names: Mapping[str, str]) -> str:
    """A hotkey short enough for a table, with its name if it has one here."""
    if known := names.get(hotkey):
        return f"{known} {hotkey[:4]}..{hotkey[-4:]}"
    return f"{hotkey[:6]}..{hotkey[-6:]}" if len(hotkey) == 48 else hotkey


async def farewell(ground: Ground) -> None:
    """The last lines of a run: how its rounds ended, whom the chain now pays, where to look next."""
    chain, counts = ground.chain, await ground.store.counts()
    print("ROUNDS: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    metagraph = await chain.metagraph()
    me, burn_uid = metagraph.by_hotkey(chain.hotkey), metagraph.burn_uid()
    weights = await chain.weights_of(me.uid) if me else {}
    hotkeys = {neuron.uid: neuron.hotkey for neuron in metagraph.neurons}
    shares = [
        f"{'burn' if uid == burn_uid else miner_name(hotkeys[uid], ground.names)} {weight / sum(weights.values()):.3f}"
        for uid, weight in weights.items()
    ]
    print(f"WEIGHTS on the {'embedded ' * ground.local}chain: " + (", ".join(shares) or "none yet"))
    print(f"NEXT: every ask, answer and score is in {ground.path}; all logs and databases are in {ground.folder}.")
    print("      Copy miner.py, change propose(), run it beside `python validator.py`, and find yourself on the board.")
