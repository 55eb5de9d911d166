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

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal

from liquidity.books import Book
from liquidity.events import Event, ReplayError
from liquidity.hindsight import best_fixed_range
from liquidity.replay import Snapshot
from liquidity.tape import SHARE_QUANTUM, Tape
from protocol import Code, Entrant, Inventory, JobSettings, Moment, Position, RebalanceQuery, RoundResult, human_price
from scoring import CONTEXT, Entry, Outcome, Terms, counted, rank, score_outcome
from sim import PoolError


@dataclass(frozen=True, slots=True)
class Decision:
    """An accepted, valid answer: it acts before the first event of `block`; `shown` is what its query showed."""

    hotkey: str
    block: int
    shown: tuple[Position, ...]
    desired: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class RoundInputs:
    """All that a round's scores depend on.

    Attributes:
        snapshot: market and vault before the first event of the opening block, `snapshot.block`.
        close_block: the first block of the next round.
        events: of the blocks from the opening to before the close, in order.
        decisions: in any order; of one miner at most one a block.
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


def plan(shown: Iterable[Position], desired: Iterable[Position]) -> tuple[list, list, list]:
    """What a decision wants of a vault: ranges to keep, ranges to close, (range, most of each token) to mint."""
    keep, close, mint = match(shown, desired)
    ranges = ([(position.tick_lower, position.tick_upper) for position in found] for found in (keep, close))
    return *ranges, [(p.tick_lower, p.tick_upper, p.allocation0, p.allocation1) for p in mint]


def match(shown: Iterable[Position], desired: Iterable[Position]) -> tuple[list, list, list]:
    """Positions to keep, to close, and to mint; of equal positions each one asked for keeps one."""
    closing, keep, mint = list(shown), [], []
    for position in desired:
        if position in closing:
            closing.remove(position)
            keep.append(position)
        else:
            mint.append(position)
    return keep, closing, mint


def build_query(moment: Moment, book: Book, changes: int) -> RebalanceQuery:
    """What a miner is shown: the pool after the newest block, and a book as it then stands.

    Args:
        book: the miner's, walked to the block after the head; its tape is fed to the head and no further.
        changes: answers of this round that changed something.
    """
    job, pair, start, head, past = moment.job, moment.pair, moment.start, moment.head, moment.past
    pool, price, end = book.tape.pool, book.tape.price_before(head.number + 1), start + job.round_seconds
    pace = max(1, head.time - past.time) / max(1, head.number - past.number)  # seconds a block
    window = [head.number + round((when - head.time) / pace) for when in (start, end)]
    return RebalanceQuery(
        job_id=job.job_id,
        sn_liquidity_manager_address=job.vault,
        pair_address=pair.pool_address,
        chain_id=pair.chain_id,
        round_id=moment.round_id,
        round_type=moment.round_type,
        block_number=head.number,
        current_price=human_price(price, pair.token0.decimals, pair.token1.decimals),
        current_positions=tuple(book.shown(price, moment.round_type == "live")),
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
        deadline=moment.deadline,
        settings=job.settings,
    )


class Round:
    """A round in progress: feed it events, ask what a miner's book holds, finish it."""

    def __init__(self, settings: JobSettings, snapshot: Snapshot, live: bool = False, given: Collection = ()):
        self.settings, self.snapshot = settings, snapshot
        self.tape = Tape(snapshot, live, given)
        self.books: dict[str, Book] = {}

    def feed(self, events: Iterable[Event]) -> None:
        """Advance the market. Raises as `Tape.feed`."""
        self.tape.feed(events)

    def enter(self, hotkey: str) -> Book:
        """Give a miner a book: the vault's positions and tokens."""
        return self.books.setdefault(hotkey, Book(self.tape))

    def query(self, moment: Moment, hotkey: str | None = None, changes: int = 0) -> RebalanceQuery:
        """What a miner is asked at the moment's head, up to which the market was fed; None: about the vault itself."""
        if hotkey is None:
            return build_query(moment, Book(self.tape), changes)
        book = self.books[hotkey].at(moment.head.number + 1)
        return build_query(moment, book, book.changes)

    def decide(self, decision: Decision) -> bool:
        """Let a decision act; all events before its block must have been fed. Returns whether it changed anything."""
        return self.enter(decision.hotkey).rebalance(decision.block, decision.desired, decision.shown)

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
        baselines = {"keep": keep, "hold": hold} | ({"best": best} if best else {})
        code = Code.SCORED if ranked else Code.NOBODY_RANKED
        return RoundResult(code, "", ranked, baselines, "keep", self.tape.swaps)

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
        start, price = self.snapshot.sqrt_price_x96, self.tape.price_before(close_block)
        amounts, share = (*book.initial, *book.final(price), *book.earned()), self.share(book, close_block)
        outcome = Outcome(*amounts, start, price, book.changes, share)
        terms = score_outcome(outcome, self.settings.target, self.settings.rebalance_cost)
        return Line(name, outcome, terms, terms.score)

    def share(self, book: Book, close_block: int) -> Decimal:
        """The block-weighted share of a book's value that was in range, once it has been walked to the close."""
        blocks = close_block - self.snapshot.block
        return CONTEXT.divide(Decimal(book.in_range), Decimal(SHARE_QUANTUM * blocks)) if blocks else Decimal(0)


def play(inputs: RoundInputs) -> RoundResult:
    """Score a round from its inputs; events that contradict themselves give a void result, never an exception."""
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
