"""What the figures of a round are drawn from: the round played again, book by book.

Read first: `reader.py`. Read next: `figures.py`.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from operator import itemgetter
from typing import Any

import scoring
from liquidity.books import Book
from liquidity.events import Event, ReplayError, event_args
from liquidity.replay import Snapshot
from liquidity.rounds import Decision
from liquidity.tape import Tape
from protocol import (
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    JobSettings,
    Position,
    RebalanceAnswer,
    RebalanceQuery,
    human_price,
)
from sim import PoolError, sqrt_ratio_at_tick
from status.reader import NotShown, Reader
from wire.codec import decode, from_plain
from wire.text import quoted

SAMPLES = 64  # moments of a round at which a book is looked at
PATH_POINTS = 240  # of a price path; where there are more, the lowest and highest of each stretch
SHOWN_MINERS = 6  # whose ranges are drawn beside the one that is looked at
CACHED_PANELS = 64
COUNTED = {  # the terms of which a target's score is the sum, before what the target makes of it
    "PoL": ("drift", "fees", "divergence", "costs"),
    "MaxFees": ("fees", "costs"),
    "MinIL": ("divergence", "costs"),
    "Balanced": ("fees", "divergence", "costs"),
}
EXACT = Context(prec=2000, traps=[Inexact, InvalidOperation])  # a sum that would have to be rounded raises


class Panels:
    """Panels of rounds, the newest asked for kept, made one at a time outside the event loop."""

    def __init__(self, reader: Reader):
        self._reader, self._making = reader, asyncio.Lock()
        self._made: OrderedDict[tuple[str, str], dict] = OrderedDict()

    async def of(self, seen: Mapping[str, Any], miner: str | None = None) -> dict[str, Any]:
        """The four panels of a round of `Reader.round`, see `panels`, for one book: a hotkey's, `keep`, `hold` or
        `best`; by default the winner's, or keep where nobody won. Raises `NotShown` where there is nothing to draw."""
        lines = _lines(seen)
        miner = miner or next(iter(lines), "keep")
        if not lines:
            raise NotShown("no book was played in it" if seen["round"]["code"] else "it runs: see it when it has ended")
        if miner not in lines:
            raise NotShown(f"'{quoted(miner)}' was not ranked in this round")
        if not all(map(_drawable, lines.values())):
            raise NotShown("there is nothing to draw of rounds of this kind")
        key = seen["round"]["round_id"], miner
        async with self._making:
            if key not in self._made:
                names = dict.fromkeys([miner, *list(lines)[: SHOWN_MINERS - 1], "keep", "best"])
                shown = [name for name in names if name in lines]
                rows, pair = await self._reader.replayable(key[0], shown), await self._reader.pair()
                self._made[key] = await asyncio.to_thread(panels, rows, lines, shown, miner, pair)
                if len(self._made) > CACHED_PANELS:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]

    async def drawn(self, seen: Mapping[str, Any], miner: str | None = None) -> Mapping[str, Any] | str:
        """The same, or why there is none: nothing is said of a round that is of no book of liquidity."""
        if not all(map(_drawable, _lines(seen).values())):
            return ""
        try:
            return await self.of(seen, miner)
        except NotShown as error:
            return str(error)


def _lines(seen: Mapping[str, Any]) -> dict[str, dict]:
    return {score["hotkey"]: score["line"] for score in seen["scores"]} | seen["baselines"]


def _drawable(line: Mapping[str, Any]) -> bool:
    return "outcome" in line


def panels(
    rows: Mapping, lines: Mapping[str, dict], shown: Sequence[str], miner: str, pair: Mapping | None
) -> dict[str, Any]:
    """What liquidity providers look at, from playing the round again: the ranges of all that are `shown`, value, score
    and inventory of one of them, the `miner`. Raises `NotShown` where the events contradict the replay.

    Args:
        rows: as `Reader.replayable` gives them.
        lines: the round's stored lines by name, the baselines' too.
        pair: the tokens; None shows prices of base units.

    Returns:
        `path`: [block, price]. `ranges`: by name, [from, to, [[tick_lower, tick_upper, price_low, price_high]]] between
        rebalances. `value`: at some blocks, with fees, without, and of holding the first tokens, all at that block's
        price; `ends`: each at the close, and its change since the opening, also as a part of the value then.
        `inventory`: at the same blocks both amounts, without this round's fees, and token0's share of the value.
        `apart`: see there. Prices are token1 per token0 in human units.
    """
    settings = from_plain(JobSettings, json.loads(rows["settings"]))
    plain = json.loads(rows["vault_state"]) | {"ticks": json.loads(zlib.decompress(rows["pool"]))["ticks"]}
    snapshot = from_plain(Snapshot, plain)
    tape, close = Tape(snapshot), rows["close_block"]
    events = (dict(row) | {"args": event_args(row["kind"], json.loads(row["args"]))} for row in rows["events"])
    try:
        tape.feed(Event(e["block"], e["log_index"], e["time"], e["kind"], e["args"]) for e in events)
    except (ReplayError, PoolError) as error:
        raise NotShown(str(error)) from error
    decimals = (pair["token0"]["decimals"], pair["token1"]["decimals"]) if pair else (0, 0)

    def price_of(sqrt_price_x96: int) -> str:
        return human_price(sqrt_price_x96, *decimals)

    steps = max(1, min(SAMPLES, close - snapshot.block))  # the state before each block's first event
    blocks = [snapshot.block + (close - snapshot.block) * n // steps for n in range(steps + 1)]
    books, sampled = {}, []
    for name in shown:
        book = books[name] = Book(tape)
        acts = _decisions(name, rows["asks"], lines, snapshot)
        for until in (*sorted({act.block for act in acts}), close + 1):
            if name == miner:  # before the next decision acts
                done = sampled[-1]["block"] if sampled else -1
                sampled += [_sample(book, tape, block) for block in blocks if done < block < until]
            for act in (act for act in acts if act.block == until):
                book.rebalance(act.block, act.desired, act.shown)
    amounts, values = ("block", "amount0", "amount1", "share0"), ("block", "with_fees", "without_fees", "holding")
    return {
        "miner": miner,
        "target": settings.target,
        "opening_block": snapshot.block,
        "close_block": close,
        "swaps": tape.swaps,
        "path": [[block, price_of(price)] for block, price in _path(tape, snapshot, close)],
        "ranges": {name: _ranges(books[name], close, price_of) for name in shown},
        "value": [{name: sample[name] for name in values} for sample in sampled],
        "ends": {name: _change(sampled[0]["holding"], sampled[-1][name]) for name in values[1:]},
        "inventory": [{name: sample[name] for name in amounts} for sample in sampled],
        **apart(lines[miner], settings),
    }


def _change(start: str, end: str) -> dict[str, str]:
    with localcontext(scoring.CONTEXT):
        change = Decimal(end) - Decimal(start)
        part = round(change / Decimal(start), 12) if Decimal(start) else Decimal(0)
        return {"value": end, "change": str(change), "part": str(part)}


def _decisions(name: str, asks: Sequence[Mapping], lines: Mapping[str, dict], snapshot: Snapshot) -> list[Decision]:
    opening = snapshot.block
    if name == "hold":
        return [Decision(name, opening, (), ())]
    if name == "best":
        ticks, outcome = lines[name]["range_"], lines[name]["outcome"]
        tokens = int(outcome["initial0"]), int(outcome["initial1"])
        return [Decision(name, opening, (), (Position(*map(int, ticks), *tokens),) if ticks else ())]
    decisions = []
    for ask in asks:
        if ask["hotkey"] == name:
            query = decode(RebalanceQuery, zlib.decompress(ask["query"]), MAX_QUERY_BYTES)
            answer = decode(RebalanceAnswer, ask["answer"], MAX_ANSWER_BYTES)
            decisions.append(Decision(name, ask["effective_block"], query.current_positions, answer.desired_positions))
    return decisions


def _sample(book: Book, tape: Tape, block: int) -> dict[str, Any]:
    twin, price = book.at(block), tape.price_before(block)
    (final0, final1), (fees0, fees1) = twin.final(price), twin.earned()
    with localcontext(scoring.CONTEXT):
        without = scoring.value(final0, final1, price)
        share0 = round(scoring.value(final0, 0, price) / without, 6) if without else Decimal(0)
        return {
            "block": block,
            "with_fees": str(without + scoring.value(fees0, fees1, price)),
            "without_fees": str(without),
            "holding": str(scoring.value(*book.initial, price)),
            "amount0": str(final0),
            "amount1": str(final1),
            "share0": str(share0),
        }


def _path(tape: Tape, snapshot: Snapshot, close: int) -> list[tuple[int, int]]:
    """Where the price stood: at the start of the opening, after each block that touched it, at the close."""
    stops = list(zip(tape.stop_blocks, tape.stop_prices, strict=True))
    if len(stops) > PATH_POINTS:
        size, kept = -(-len(stops) // (PATH_POINTS // 2)), []
        for at in range(0, len(stops), size):
            stretch = stops[at : at + size]
            kept += sorted({min(stretch, key=itemgetter(1)), max(stretch, key=itemgetter(1))})
        stops = kept
    return [(snapshot.block, snapshot.sqrt_price_x96), *stops, (close, tape.price_before(close))]


def _ranges(book: Book, close: int, price_of: Callable[[int], str]) -> list[list]:
    def priced(lower: int, upper: int) -> list:
        return [lower, upper, *(price_of(sqrt_ratio_at_tick(tick)) for tick in (lower, upper))]

    ends = [entry[0] for entry in book.history[1:]] + [close]
    return [
        [entry[0], end, [priced(lower, upper) for lower, upper, _ in entry[3]]]
        for entry, end in zip(book.history, ends, strict=True)
        if entry[0] < end
    ]


def apart(line: Mapping[str, Any], settings: JobSettings) -> dict[str, Any]:
    """A stored line's score as a sum of its parts, never rounded (`decimal.Inexact` is raised, but for no line of
    `scoring.py`).

    Returns:
        `apart`: [name, amount] in order; `score`: their sum, what counts; `not_counted`: terms the target leaves out.
    """
    terms = {name: Decimal(value) for name, value in line["terms"].items()}
    with localcontext(EXACT):
        counted = COUNTED[settings.target]
        parts = [(name, -terms[name] if name == "costs" else terms[name]) for name in counted]
        reached = sum(amount for _, amount in parts)
        match settings.target:
            case "PoL":
                parts.append(("inventory penalty", terms["score"] - reached))
            case "MinIL":
                forgiven = scoring.MIN_IL_TOLERANCE * terms["initial_value"]
                parts += [("tolerance", forgiven), ("at most 0", terms["score"] - reached - forgiven)]
        if withheld := Decimal(line["score"]) - terms["score"]:
            parts.append(("counts as keep at most", withheld))
        assert sum(amount for _, amount in parts) == Decimal(line["score"])
        left_out = [name for name in ("drift", "fees", "divergence") if name not in counted]
        return {
            "apart": [[name, str(amount)] for name, amount in parts],
            "score": line["score"],
            "not_counted": [[name, str(terms[name])] for name in left_out],
        }
