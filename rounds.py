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

from books import SHARE_QUANTUM, Book, Tape, worth
from protocol import Code, JobSettings, Position
from recording import Event, ReplayError, Snapshot
from scoring import CONTEXT, Entry, Outcome, Terms, counted, rank, score_outcome
from sim import MAX_TICK, MIN_TICK, PoolError, amounts_of, liquidity_for, sqrt_ratio_at_tick, tick_at_sqrt_ratio

HINDSIGHT_SPACINGS = 50  # how far beyond the visited ticks the best fixed range is searched


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
    """

    name: str
    outcome: Outcome
    terms: Terms
    score: Decimal
    rank: int = 0
    copy_of: str = ""
    range_: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A round's outcome: `code` is `SCORED` or says why there are no scores, `detail` in words.

    `lines` holds the miners in order of rank; keep, hold and best are None only when there are no scores.
    """

    code: Code
    detail: str
    lines: tuple[Line, ...] = ()
    keep: Line | None = None
    hold: Line | None = None
    best: Line | None = None
    swaps: int = 0


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

    def finish(self, close_block: int, entrants: Iterable[Entrant]) -> RoundResult:
        """Score and rank all books at the close."""
        if self.tape.unknown_swaps:
            return RoundResult(Code.VOID_UNKNOWN_SWAP, f"{self.tape.unknown_swaps} swaps of unknown call in the window")
        price = self.tape.price_before(close_block)
        keep, hold_book = self.keep(close_block), Book(self.tape)
        if not any(hold_book.initial):
            return RoundResult(Code.EMPTY_VAULT, "the vault holds no tokens at the opening")
        hold_book.rebalance(self.snapshot.block, (), ())
        hold = self.line("hold", hold_book, close_block)
        best = self._best(hold_book.initial, close_block, price)

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
        price = self.tape.price_before(close_block)
        blocks = close_block - self.snapshot.block
        share = CONTEXT.divide(Decimal(book.in_range()), Decimal(SHARE_QUANTUM * blocks)) if blocks else Decimal(0)
        outcome = Outcome(
            *book.initial, *book.final(price), *book.earned(), self.snapshot.sqrt_price_x96, price, book.changes, share
        )
        terms = score_outcome(outcome, self.settings.target, self.settings.rebalance_cost)
        return Line(name, outcome, terms, terms.score)


def play(inputs: RoundInputs) -> RoundResult:
    """Score a round from its inputs: the whole rule, in one call.

    Returns:
        The result; a stream of events with a gap or a contradiction gives a void one, never an exception.
    """
    game = Round(inputs.settings, inputs.snapshot)
    try:
        game.feed(inputs.events)
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
        decisions: what was executed; `block` is where its transactions came first.
    """

    settings: JobSettings
    snapshot: Snapshot
    close_block: int
    events: tuple[Event, ...]
    hotkey: str
    decisions: tuple[Decision, ...]


def play_live(inputs: LiveInputs) -> RoundResult:
    """Score a live round from what the vault really held at both ends.

    The miner's book is walked too, but only for the share of value that was in range and the number of changes: amounts
    and fees are the vault's, as its events left them.
    """
    game = Round(inputs.settings, inputs.snapshot)
    try:
        game.feed(inputs.events)
    except (ReplayError, PoolError) as error:
        return RoundResult(Code.VOID_CONTRADICTION, str(error))
    keep, book = game.keep(inputs.close_block), Book(game.tape)
    before = book.fees()
    for decision in sorted(inputs.decisions, key=lambda decision: decision.block):
        book.rebalance(decision.block, decision.desired, decision.shown)
    simulated = game.line(inputs.hotkey, book, inputs.close_block).outcome
    tokens, owed = game.tape.vault_holds()
    earned = [owed[n] + game.tape.collected[n] - before[n] for n in (0, 1)]
    final = [tokens[n] + owed[n] - earned[n] for n in (0, 1)]
    outcome = replace(simulated, final0=final[0], final1=final[1], fees0=earned[0], fees1=earned[1])
    terms = score_outcome(outcome, inputs.settings.target, inputs.settings.rebalance_cost)
    detail = "" if outcome == simulated else f"the vault's simulated book would have ended with {simulated}"
    line = Line(inputs.hotkey, outcome, terms, terms.score, rank=1)
    return RoundResult(Code.SCORED, detail, (line,), keep, swaps=game.tape.swaps)


def best_fixed_range(
    tape: Tape, settings: JobSettings, tokens: tuple[int, int], close_block: int, price: int
) -> tuple[int, int] | None:
    """The best that one position of all tokens, opened at the opening and left alone, could have scored.

    All ranges on the tick grid from `HINDSIGHT_SPACINGS` below the lowest visited tick to as many above the highest are
    tried. Nothing is estimated: the ranges are put in order by integers that order their scores, or under PoL bound
    them from above, and then scored in that order until no better one can come.

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
    grid = range(lowest, highest + 1, spacing)
    prices = [sqrt_ratio_at_tick(tick) for tick in grid]
    last = tape.leg_at(close_block)
    initial_worth, hold_worth = worth(tokens, start), worth(tokens, price)
    found = []
    for n, lower in enumerate(prices):
        for m in range(n + 1, len(prices)):
            upper = prices[m]
            liquidity = liquidity_for(*tokens, start, lower, upper)
            if not 0 < liquidity <= tape.pool.max_liquidity_per_tick:
                continue
            used0, used1 = amounts_of(liquidity, start, lower, upper, round_up=True)
            end0, end1 = amounts_of(liquidity, price, lower, upper, round_up=False)
            growth0, growth1 = tape.growth((lower, upper), 1, liquidity, 0, last)
            fees = growth0 * liquidity >> 128, growth1 * liquidity >> 128
            final = tokens[0] - used0 + end0, tokens[1] - used1 + end1
            earned, left = worth(fees, price), worth(final, price)
            if settings.target == "PoL":
                key = (_pol_bound(left + earned - initial_worth, tokens, final), 0)
            elif settings.target == "MaxFees":
                key = (earned, 0)
            elif settings.target == "MinIL":  # the tolerance is 1e-5 of the initial value
                key = (min(0, (left - hold_worth) * 10**5 + initial_worth), earned)
            else:
                key = (left + earned, 0)
            found.append((key, n, m, final, fees))
    found.sort(key=lambda row: row[0], reverse=True)
    best_score, best_range = None, None
    for key, n, m, final, fees in found:
        if settings.target != "PoL":
            return grid[n], grid[m]
        if best_range and key[0] < CONTEXT.multiply(best_score, Decimal(1 << 192)):
            break
        outcome = Outcome(*tokens, *final, *fees, start, price, 1, Decimal(0))
        score = score_outcome(outcome, settings.target, settings.rebalance_cost).score
        if best_range is None or score > best_score:
            best_score, best_range = score, (grid[n], grid[m])
    return best_range


def _pol_bound(gain: int, tokens: tuple[int, int], final: tuple[int, int]) -> int:
    """No PoL score can be above this; both in 2**-192 token1 base units.

    With x = 10 * the larger loss, rounded down, `e**x >= 1 + x + x**2/2 + x**3/6`; the penalty is at most its inverse.
    """
    unit = 10**9
    x = max(0, *(10 * unit * (have - left) // have for have, left in zip(tokens, final, strict=True) if have), 0)
    grown = unit**3 + x * unit**2 + x * x * unit // 2 + x**3 // 6
    return gain * unit**3 // grown + 1 if gain >= 0 else gain * grown // unit**3 + 1
