"""One round as a pure function of its inputs: validator, miner and auditor run this very code.

    inputs = RoundInputs(settings, snapshot, close_block, events, entrants, decisions)
    result = play(inputs)                 # same inputs, same digits, on any machine, at any time

Timeline: `snapshot` is the market before the opening's first event; a decision acts before the first event of its
block; `close_block` is the next round's opening and not part of this one. Every miner's book starts as the vault's.
Besides the miners, three books that nobody proposed are scored: *keep* (the vault's positions, untouched), *hold* (all
tokens idle) and *best* (the best single range in hindsight).

Pure: standard library only. Read next: `validator.py`, which collects the inputs and acts on the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from operator import add, sub
from typing import Any

from books import SHARE_QUANTUM, Book, Tape, worth
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    Code,
    Inventory,
    JobSettings,
    Position,
    RebalanceQuery,
    human_price,
)
from recording import Event, ReplayError, Snapshot
from scoring import CONTEXT, Entry, Outcome, Terms, counted, gas_cost, rank, score_outcome
from sim import MAX_TICK, MIN_TICK, PoolError, amounts_of, liquidity_for, sqrt_ratio_at_tick, tick_at_sqrt_ratio

HINDSIGHT_SPACINGS = 50  # how far beyond the visited ticks the best fixed range is searched
HINDSIGHT_BOUNDS = 240  # on so many bounds; where the price travelled far, each n-th of the tick grid is one
ROUNDING = 1 << 64  # 2**-128 token1 base units: more than the roundings to 1e-40 of all terms of a score together
FLOWS = ("released", "fees", "paid")  # of an execution: what burns, collects and mints of the vault come to
MAX_DETAIL_CHARS = 500
PACE_BLOCKS = 1000  # a query's expected blocks go by the pace of so many blocks before it


@dataclass(frozen=True, slots=True)
class Decision:
    """An accepted, valid answer and when it acts.

    Attributes:
        hotkey: whose.
        block: it acts before this block's first event.
        shown: the positions its query showed.
        desired: the positions it asks for.
    """

    hotkey: str
    block: int
    shown: tuple[Position, ...]
    desired: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Entrant:
    """A miner that accepted the first ask.

    Attributes:
        hotkey: whose.
        registered_block: on the subnet's chain; the older of two equal books keeps its score.
        combined: reputation before this round, which breaks ties.
    """

    hotkey: str
    registered_block: int
    combined: Decimal


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """All that a round's scores depend on.

    Attributes:
        settings: the job's rules.
        snapshot: market and vault before the first event of the opening block, `snapshot.block`.
        close_block: the first block of the next round.
        events: of the blocks from the opening to before the close, in order.
        entrants: the miners that are scored.
        decisions: theirs, in any order; of one miner at most one a block.
    """

    settings: JobSettings
    snapshot: Snapshot
    close_block: int
    events: tuple[Event, ...]
    entrants: tuple[Entrant, ...]
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One book's result.

    Attributes:
        name: hotkey, or `keep`, `hold`, `best`.
        outcome, terms: amounts, and what they are worth; see `scoring.py`.
        score: what counts for rank and reputation: `terms.score`, or less for an idler's or a copier's book.
        rank: 1 is best; 0 for the baselines.
        copy_of: hotkey of the older registration whose book was the same at every block, else empty.
        range_: the best fixed range's ticks; None for all other books.
        gas: of a live round, in base units of both tokens; None where there is none to deduct.
    """

    name: str
    outcome: Outcome
    terms: Terms
    score: Decimal
    rank: int = 0
    copy_of: str = ""
    range_: tuple[int, int] | None = None
    gas: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A round's outcome: `code` is `SCORED` or says why there are no scores, `detail` in words.

    `lines` holds the miners in order of rank; keep and hold are None only when there are no scores, best also when
    nobody looked for it.
    """

    code: Code
    detail: str
    lines: tuple[Line, ...] = ()
    keep: Line | None = None
    hold: Line | None = None
    best: Line | None = None
    swaps: int = 0


def plan(shown: Iterable[Position], desired: Iterable[Position]) -> tuple[list, list, list]:
    """What a decision wants of a vault: ranges to keep, ranges to close, (range, most of each token) to mint.

    Of equal positions each one asked for keeps one.
    """
    closing, keep, mint = list(shown), [], []
    for position in desired:
        if position in closing:
            closing.remove(position)
            keep.append((position.tick_lower, position.tick_upper))
        else:
            mint.append((position.tick_lower, position.tick_upper, position.allocation0, position.allocation1))
    return keep, [(position.tick_lower, position.tick_upper) for position in closing], mint


def build_query(
    job: Any, pair: Any, round_id: str, round_type: str, start: int, book: Book, head: Any, past: Any, changes: int
) -> RebalanceQuery:
    """What a miner is shown: the pool after the block `head`, and a book as it then stands.

    Args:
        job, pair: the `store.Job` and the market's `market.Pair`.
        round_id, round_type, start: the round and its nominal start, unix seconds.
        book: the miner's, walked to the block after the head; its tape is fed to the head and no further.
        head, past: `market.Block`: the last complete block, and one `PACE_BLOCKS` before it or the market's first.
        changes: answers of this round that changed something.
    """
    pool, price, end = book.tape.pool, book.tape.price_before(head.number + 1), start + job.round_seconds
    pace = max(1, head.time - past.time) / max(1, head.number - past.number)  # seconds a block
    window = [head.number + round((when - head.time) / pace) for when in (start, end)]
    deadline = head.time + ASK_SECONDS
    return RebalanceQuery(
        job_id=job.job_id,
        sn_liquidity_manager_address=job.vault,
        pair_address=pair.pool_address,
        chain_id=pair.chain_id,
        round_id=round_id,
        round_type=round_type,
        block_number=head.number,
        current_price=human_price(price, pair.token0.decimals, pair.token1.decimals),
        current_positions=tuple(book.shown(price)),
        inventory_remaining=Inventory(book.idle0, book.idle1),
        rebalances_so_far=changes,
        uncollected_fees=Inventory(*book.fees()),
        block_hash=head.hash,
        block_time=head.time,
        sqrt_price_x96=price,
        tick=pool.tick,
        liquidity=pool.liquidity,
        fee=pool.fee,
        tick_spacing=pool.tick_spacing,
        token0=pair.token0,
        token1=pair.token1,
        window_start_time=start,
        window_end_time=end,
        window_start_block=window[0],
        window_end_block=window[1],
        deadline=min(deadline, start - FIRST_ASK_DEADLINE_SECONDS) if head.time < start else deadline,
        settings=job.settings,
    )


class Round:
    """A round in progress: feed it events, ask what a miner's book holds, finish it."""

    def __init__(self, settings: JobSettings, snapshot: Snapshot):
        self.settings, self.snapshot = settings, snapshot
        self.tape = Tape(snapshot)
        self.books: dict[str, Book] = {}

    def feed(self, events: Iterable[Event]) -> None:
        """Advance the market. Raises as `Tape.feed`."""
        self.tape.feed(events)

    def enter(self, hotkey: str) -> None:
        """Give a miner a book: the vault's positions and tokens."""
        self.books[hotkey] = Book(self.tape)

    def decide(self, decision: Decision) -> bool:
        """Let a decision act; all events before its block must have been fed. Returns whether it changed anything."""
        return self.books[decision.hotkey].rebalance(decision.block, decision.desired, decision.shown)

    def finish(self, close_block: int, entrants: Iterable[Entrant], hindsight: bool = True) -> RoundResult:
        """Score and rank all books at the close; the search for the best range, nearly all of the work, is optional."""
        if self.tape.unknown_swaps:
            return RoundResult(Code.VOID_UNKNOWN_SWAP, f"{self.tape.unknown_swaps} swaps of unknown call in the window")
        price = self.tape.price_before(close_block)
        keep, hold_book = self.keep(close_block), Book(self.tape)
        if not any(hold_book.initial):
            return RoundResult(Code.EMPTY_VAULT, "the vault holds no tokens at the opening")
        hold_book.rebalance(self.snapshot.block, (), ())
        hold = self.line("hold", hold_book, close_block)
        best = self._best(hold_book.initial, close_block, price) if hindsight else None

        entrants = sorted(entrants, key=lambda entrant: (entrant.registered_block, entrant.hotkey))
        lines, entries, known = {}, [], {}
        for entrant in entrants:
            book = self.books[entrant.hotkey]
            owner, line = known.get(history := tuple(book.history), (None, None))
            line = line or self.line(entrant.hotkey, book, close_block)
            if owner is None:
                known[history] = entrant.hotkey, line
            score, tie_fees = counted(line.terms, keep.terms, self.settings.min_in_range, owner is not None)
            lines[entrant.hotkey] = replace(line, name=entrant.hotkey, score=score, copy_of=owner or "")
            entries.append(Entry(entrant.hotkey, score, tie_fees, entrant.combined, entrant.registered_block))
        ranked = tuple(replace(lines[entry.hotkey], rank=place) for place, entry in enumerate(rank(entries), 1))
        return RoundResult(Code.SCORED if ranked else Code.NOBODY_RANKED, "", ranked, keep, hold, best, self.tape.swaps)

    def keep(self, close_block: int) -> Line:
        """The book that keeps the vault's positions untouched."""
        return self.line("keep", Book(self.tape), close_block)

    def _best(self, tokens: tuple[int, int], close_block: int, price: int) -> Line:
        range_ = best_fixed_range(self.tape, self.settings, tokens, close_block, price)
        book = Book(self.tape)
        book.rebalance(self.snapshot.block, [Position(*range_, *tokens)] if range_ else [], ())
        return replace(self.line("best", book, close_block), range_=range_)

    def line(self, name: str, book: Book, close_block: int) -> Line:
        """Walk a book to the close and score it."""
        book.walk(close_block)
        price, share = self.tape.price_before(close_block), self.share(book, close_block)
        outcome = Outcome(
            *book.initial, *book.final(price), *book.earned(), self.snapshot.sqrt_price_x96, price, book.changes, share
        )
        terms = score_outcome(outcome, self.settings.target, self.settings.rebalance_cost)
        return Line(name, outcome, terms, terms.score)

    def share(self, book: Book, close_block: int) -> Decimal:
        """The block-weighted share of a book's value that was in range, once it has been walked to the close."""
        blocks = close_block - self.snapshot.block
        return CONTEXT.divide(Decimal(book.in_range()), Decimal(SHARE_QUANTUM * blocks)) if blocks else Decimal(0)


def play(inputs: RoundInputs) -> RoundResult:
    """Score a round from its inputs: the whole rule, in one call.

    Returns:
        The result; a stream of events with a gap or a contradiction gives a void one, never an exception.
    """
    game = Round(inputs.settings, inputs.snapshot)
    try:
        game.feed(event for event in inputs.events if event.block < inputs.close_block)
    except (ReplayError, PoolError) as error:
        return RoundResult(Code.VOID_CONTRADICTION, str(error))
    for entrant in inputs.entrants:
        game.enter(entrant.hotkey)
    for decision in sorted(inputs.decisions, key=lambda decision: decision.block):
        if decision.block < inputs.close_block:  # what would act later came too late
            game.decide(decision)
    return game.finish(inputs.close_block, inputs.entrants)


@dataclass(frozen=True, slots=True)
class LiveInputs:
    """All that a live round's score depends on.

    Attributes:
        settings, snapshot, close_block, events: as for `RoundInputs`; the events have the vault's own transactions.
        hotkey: of the miner that managed the vault.
        executions: what became of its decisions that change something: each a `market.Execution`.
        closing: what the chain itself shows before the close's first event; None where nobody can touch the vault.
    """

    settings: JobSettings
    snapshot: Snapshot
    close_block: int
    events: tuple[Event, ...]
    hotkey: str
    executions: tuple[Any, ...]
    closing: Snapshot | None = None


def play_live(inputs: LiveInputs) -> RoundResult:
    """Score a live round from what the vault really held from the opening to the close.

    Amounts, fees and the share of value in range follow from the vault's own events, wherever in their blocks they
    stand; gas from the executions, also of those that failed. The round is void where executions do not explain the
    vault.
    """
    game, close = Round(inputs.settings, inputs.snapshot), inputs.close_block
    events = [event for event in inputs.events if event.block < close]
    try:
        game.feed(events)
    except (ReplayError, PoolError) as error:
        return RoundResult(Code.VOID_CONTRADICTION, str(error))
    tape = game.tape
    if tape.unknown_swaps:
        return RoundResult(Code.VOID_UNKNOWN_SWAP, f"{tape.unknown_swaps} swaps of unknown call in the window")
    keep, book = game.keep(close), Book(tape)
    if not any(book.initial):
        return RoundResult(Code.EMPTY_VAULT, "the vault holds no tokens at the opening")
    carried_out = [
        execution for execution in inputs.executions if was_carried_out(execution) and execution.block < close
    ]
    if detail := _unexplained(tape, events, carried_out) or (inputs.closing and _transferred(tape, inputs.closing)):
        return RoundResult(Code.LIVE_FOREIGN_TRANSFER, detail)
    before, price = book.fees(), tape.price_before(close)
    book.mirror(events, close)
    tokens, owed = tape.vault_holds()
    earned = [owed[n] + tape.collected[n] - before[n] for n in (0, 1)]
    final = [tokens[n] + owed[n] - earned[n] for n in (0, 1)]
    changes, share = sum(map(changed, carried_out)), game.share(book, close)
    outcome = Outcome(*book.initial, *final, *earned, inputs.snapshot.sqrt_price_x96, price, changes, share)
    sent = [execution.sent for execution in inputs.executions if execution.sent]
    gas = sum(one.gas0 for one in sent), sum(one.gas1 for one in sent)
    terms = score_outcome(outcome, inputs.settings.target, inputs.settings.rebalance_cost, gas_cost(*gas, price))
    score, _ = counted(terms, keep.terms, inputs.settings.min_in_range, False)
    line = Line(inputs.hotkey, outcome, terms, score, rank=1, gas=gas if any(gas) else None)
    return RoundResult(Code.SCORED, "", (line,), keep, swaps=tape.swaps)


def was_carried_out(execution: Any) -> bool:
    """Whether a `market.Execution` took place: on the model always."""
    return execution.sent is None or execution.sent.code == Code.EXECUTED


def changed(execution: Any) -> bool:
    """Whether a `market.Execution` that was carried out changed the vault."""
    return bool(execution.close or execution.minted)


def own_events(tape: Tape, events: Iterable[Event]) -> dict[int, list[Event]]:
    """The vault's own events that move anything, by block."""
    own: dict[int, list[Event]] = {}
    for event in events:
        if event.kind in ("mint", "burn", "collect") and tape.is_vaults(event.args[0]) and any(event.args[3:]):
            own.setdefault(event.block, []).append(event)
    return own


def sums_of(own: Iterable[Event]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple]:
    """What a vault's own events come to: (released, fees, paid, minted), as `market.Execution` has them."""
    own = list(own)
    flows = (
        tuple(sum(event.args[side] for event in own if event.kind == kind) for side in (-2, -1))
        for kind in ("burn", "collect", "mint")
    )
    return *flows, tuple(event.args[1:4] for event in own if event.kind == "mint")


def _unexplained(tape: Tape, events: Iterable[Event], executions: Iterable[Any]) -> str:
    """The first block in which the vault's own events are not what executions did there; empty if there is none."""
    own, done = own_events(tape, events), {}
    for execution in filter(changed, executions):
        done.setdefault(execution.block, []).append(execution)
    for block in sorted(own.keys() | done.keys()):
        *found, minted = sums_of(own.get(block, ()))
        here = done.get(block, ())
        said = [tuple(sum(getattr(one, name)[n] for one in here) for n in (0, 1)) for name in FLOWS]
        theirs = sorted(row for one in here for row in one.minted)
        if not (block in own and block in done and said == found and theirs == sorted(minted)):
            detail = f"block {block}: the vault's positions {_flows(found, minted)}; executions {_flows(said, theirs)}"
            return detail[:MAX_DETAIL_CHARS]
    return ""


def _flows(amounts: Iterable[tuple[int, int]], minted: Iterable[tuple]) -> str:
    words = [f"{name} {amount0} and {amount1}" for name, (amount0, amount1) in zip(FLOWS, amounts, strict=True)]
    return ", ".join(words + [f"minted {liquidity} from {lower} to {upper}" for lower, upper, liquidity in minted])


def _transferred(tape: Tape, closing: Snapshot) -> str:
    """What the chain shows at the close and the vault's own events do not explain; empty if nothing."""
    mine, theirs = {}, {}
    for key in sorted(tape.vault_keys):
        mine[key[1:]] = mine.get(key[1:], 0) + tape.pool.position(*key).liquidity
    for position in closing.vault:
        ticks = position.key[1:]
        theirs[ticks] = theirs.get(ticks, 0) + position.liquidity
    for ticks in sorted(mine.keys() | theirs.keys()):
        if (expected := mine.get(ticks, 0)) != (found := theirs.get(ticks, 0)):
            return (
                f"at the close the vault has liquidity {found} from {ticks[0]} to {ticks[1]}, {expected} by its events"
            )
    expected = tuple(map(add, *tape.vault_holds()))
    found = Book(Tape(closing)).initial  # what burns released and what fees paid may be told apart differently
    if found != expected:
        more = ", ".join(
            f"{a - b:+d} of token{n}" for n, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b
        )
        return f"at the close the vault has {more} that nothing in the round explains"
    return ""


def best_fixed_range(
    tape: Tape, settings: JobSettings, tokens: tuple[int, int], close_block: int, price: int
) -> tuple[int, int] | None:
    """The best that one position of all tokens, opened at the opening and left alone, could have scored.

    All ranges on the tick grid from `HINDSIGHT_SPACINGS` below the lowest visited tick to as many above the highest are
    tried. Nothing is estimated: the ranges are put in order by integers that bound their scores from above, and then
    scored in that order until no better one can come.

    Args:
        tape: of the round.
        settings: the job's; its target decides what is best.
        tokens: the holdings at the opening, base units.
        close_block, price: the end.

    Returns:
        Its ticks; None if no range on the grid can be minted.
    """
    start, spacing = tape.snapshot.sqrt_price_x96, tape.snapshot.tick_spacing
    visited = [start, *tape.prices_until(close_block)]
    margin = HINDSIGHT_SPACINGS * spacing
    lowest = max(tick_at_sqrt_ratio(min(visited)) // spacing * spacing - margin, -(-MIN_TICK // spacing) * spacing)
    highest = min(-(-tick_at_sqrt_ratio(max(visited)) // spacing) * spacing + margin, MAX_TICK // spacing * spacing)
    step = spacing * -(-(highest - lowest) // (spacing * HINDSIGHT_BOUNDS))
    grid = range(lowest, highest + 1, step)
    prices = [sqrt_ratio_at_tick(tick) for tick in grid]
    last, cost = tape.leg_at(close_block), settings.rebalance_cost << 192
    ceiling = _FeeCeiling(tape, prices, last)
    initial_worth, hold_worth = worth(tokens, start), worth(tokens, price)
    alone = (tokens[0], 0), (0, tokens[1])  # losing dust is no loss: a bound must not count what may be dust
    losable = [sum(one) if worth(one, start) * 10**6 >= 2 * initial_worth else 0 for one in alone]
    found = []
    for n, lower in enumerate(prices):
        for m in range(n + 1, len(prices)):
            upper = prices[m]
            liquidity = liquidity_for(*tokens, start, lower, upper)
            if not 0 < liquidity <= tape.pool.max_liquidity_per_tick:
                continue
            used0, used1 = amounts_of(liquidity, start, lower, upper, round_up=True)
            end0, end1 = amounts_of(liquidity, price, lower, upper, round_up=False)
            final = tokens[0] - used0 + end0, tokens[1] - used1 + end1
            left = worth(final, price) + ROUNDING
            earned = worth(ceiling.fees(n, m, liquidity), price) + ROUNDING
            match settings.target:
                case "PoL":
                    bound = _pol_bound(left + earned - initial_worth - cost, losable, final), 0
                case "MaxFees":
                    bound = earned - cost, 0
                case "MinIL":  # the tolerance is 1e-5 of the initial value
                    bound = min(0, left - hold_worth - cost + initial_worth // 10**5), earned
                case _:
                    bound = left + earned - hold_worth - cost, 0
            found.append((bound, n, m, liquidity, final))
    found.sort(key=lambda row: row[0], reverse=True)
    best, best_range = None, None
    for bound, n, m, liquidity, final in found:
        if best and bound < best:
            break
        growth0, growth1 = tape.growth((prices[n], prices[m]), 1, liquidity, 0, last)
        fees = growth0 * liquidity >> 128, growth1 * liquidity >> 128
        outcome = Outcome(*tokens, *final, *fees, start, price, 1, Decimal(0))
        terms = score_outcome(outcome, settings.target, settings.rebalance_cost)
        score = tuple(CONTEXT.multiply(x, Decimal(1 << 192)) for x in (terms.score, terms.tie_fees))
        if best is None or score > best:
            best, best_range = score, (grid[n], grid[m])
    return best_range


class _FeeCeiling:
    """The most that a range can have earned, from sums over legs that are made once for all ranges.

    Of a leg that touches the range the book gets at most `fee * L / (L_leg + d)`, with d what L exceeds the vault by.
    With x = 1 / L_leg that is `fee * L * x / (1 + d * x)`, which is concave in x. So all legs together give at most
    what legs of their mean x would (Jensen): `L * G * F / (F + d * G)`, F being the sum of fees and G the sum of fee
    / L_leg.
    """

    def __init__(self, tape: Tape, prices: list[int], last: int):
        self.vault = max((run.vault for run in tape.runs), default=0)
        rows = []
        for run in tape.runs:
            for leg in range(run.first, min(run.last, last)):
                sums = tape.fee[leg], -(-(tape.fee[leg] << 128) // run.liquidity)
                rows.append((tape.lo[leg], tape.hi[leg], (*sums, 0, 0) if tape.zero_for_one[leg] else (0, 0, *sums)))
        self.begun, self.ended = [], []  # by price: sums over the legs that begin, and that end, below it
        for by_price, end in ((self.begun, 0), (self.ended, 1)):
            rows.sort(key=lambda row, end=end: row[end])
            total, at = (0, 0, 0, 0), 0
            for price in prices:
                while at < len(rows) and rows[at][end] < price + end:  # a leg that ends at the price is below it
                    total, at = tuple(map(add, total, rows[at][2])), at + 1
                by_price.append(total)

    def fees(self, n: int, m: int, liquidity: int) -> tuple[int, int]:
        """For the range from price `n` to price `m`, in base units of both tokens."""
        fee0, growth0, fee1, growth1 = map(sub, self.begun[m], self.ended[n])
        above = max(0, liquidity - self.vault)
        return (
            liquidity * growth0 * fee0 // ((fee0 << 128) + above * growth0) + 1 if fee0 else 0,
            liquidity * growth1 * fee1 // ((fee1 << 128) + above * growth1) + 1 if fee1 else 0,
        )


def _pol_bound(gain: int, losable: list[int], final: tuple[int, int]) -> int:
    """No PoL score can be above this; both in 2**-192 token1 base units.

    `losable` are the initial amounts, 0 instead of dust. With x = 10 * the larger loss, rounded down,
    `e**x >= 1 + x + x**2/2 + x**3/6`; the penalty is at most its inverse.
    """
    unit = 10**9
    x = max(0, *(10 * unit * (have - left) // have for have, left in zip(losable, final, strict=True) if have), 0)
    grown = unit**3 + x * unit**2 + x * x * unit // 2 + x**3 // 6
    return gain * unit**3 // grown + 1 if gain >= 0 else gain * grown // unit**3 + 1
