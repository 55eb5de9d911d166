"""A live round's score, from what the vault really held.

    result = play_live(LiveInputs(settings, snapshot, close_block, events, hotkey, executions, closing))

Pure. Read first: `rounds.py`. Read next: `audit/checks.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add, gt, ne, sub

from liquidity.books import Book
from liquidity.events import OWN_KINDS, Event, ReplayError
from liquidity.executions import Execution
from liquidity.replay import Snapshot
from liquidity.rounds import Line, Round
from liquidity.tape import Tape
from protocol import Code, JobSettings, RoundResult
from scoring import RULES_VERSION, Outcome, counted, gas_cost, score_outcome
from sim import PoolError

FLOWS = ("released", "fees", "paid")  # of an execution: what burns, collects and mints of the vault come to
MAX_DETAIL_CHARS = 500
_GIFTS = "others gave the vault {} of token0 and {} of token1, which count for nobody"


@dataclass(frozen=True, slots=True)
class LiveInputs:
    """All that a live round's score depends on; see `RoundInputs`. The events have the vault's own transactions.

    Attributes:
        hotkey: of the miner that managed the vault.
        executions: what became of its decisions that change something.
        closing: what the chain itself shows before the close's first event; None where nobody can touch the vault.
        rules_version: by version 1 a gift voided the round, or counted where a mint took all of it.
    """

    settings: JobSettings
    snapshot: Snapshot
    close_block: int
    events: tuple[Event, ...]
    hotkey: str
    executions: tuple[Execution, ...]
    closing: Snapshot | None = None
    rules_version: int = RULES_VERSION


def play_live(inputs: LiveInputs) -> RoundResult:
    """Score a live round from what the vault really held from the opening to the close.

    All but gas follows from the vault's own events, wherever in their blocks they stand; gas from the executions, also
    of those that failed. What Slipstream's gauge holds earns nothing, as it does, and in *keep* neither. What others
    gave the vault counts for nobody, and is named. The round is void where executions do not explain the vault's own
    events, and where the vault has less than these.
    """
    close, given = inputs.close_block, ()
    events = [event for event in inputs.events if event.block < close]
    if inputs.rules_version > 1:
        given = given_mints(inputs.snapshot, events, inputs.executions)
    game = Round(inputs.settings, inputs.snapshot, live=True, given=given)
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
    done = [execution for execution in inputs.executions if acted(execution) and execution.block < close]
    detail, gifts = _unexplained(tape, events, done), tape.gifts
    if inputs.closing and not detail:
        detail, gifts = _transferred(tape, inputs)
    if detail:
        return RoundResult(Code.LIVE_FOREIGN_TRANSFER, detail)
    before, price = book.fees(), tape.price_before(close)
    book.mirror(events, close)
    tokens, owed = tape.vault_holds()
    earned = [owed[n] + tape.collected[n] - before[n] for n in (0, 1)]
    final = [tokens[n] + owed[n] - earned[n] for n in (0, 1)]
    if inputs.rules_version > 1:
        final, detail = list(map(sub, final, tape.gifts)), words_of(gifts)
    share = game.share(book, close)
    outcome = Outcome(*book.initial, *final, *earned, inputs.snapshot.sqrt_price_x96, price, len(done), share)
    sent = [execution.sent for execution in inputs.executions if execution.sent]
    gas = sum(one.gas0 for one in sent), sum(one.gas1 for one in sent)
    terms = score_outcome(outcome, inputs.settings.target, inputs.settings.rebalance_cost, gas_cost(*gas, price))
    score, _ = counted(terms, keep.terms, inputs.settings.min_in_range, False)
    line = Line(inputs.hotkey, outcome, terms, score, rank=1, gas=gas if any(gas) else None)
    return RoundResult(Code.SCORED, detail, (line,), {"keep": keep}, "keep", tape.swaps)


def words_of(gifts: tuple[int, int]) -> str:
    """A scored round's detail where others gave the vault so much of the two tokens; `gifts_of` reads it."""
    return _GIFTS.format(*gifts) if any(gifts) else ""


def gifts_of(detail: str) -> tuple[int, int]:
    """What a scored round's detail says that others gave the vault."""
    found = re.fullmatch(_GIFTS.format(*2 * ["([0-9]{1,78})"]), detail, re.ASCII)
    return tuple(map(int, found.groups())) if found else (0, 0)


def was_carried_out(execution: Execution) -> bool:
    """On the model always."""
    return execution.sent is None or execution.sent.code == Code.EXECUTED


def acted(execution: Execution) -> bool:
    """Whether it was carried out and changed the vault."""
    return was_carried_out(execution) and bool(execution.close or execution.minted)


def given_mints(snapshot: Snapshot, events: Iterable[Event], executions: Sequence[Execution]) -> set[tuple[int, int]]:
    """Where others minted for the vault's positions, as anybody may: what no execution did. If it was the vault that
    paid, tokens are missing at the close."""
    made = Counter((done.block, row) for done in executions if acted(done) for row in done.minted)
    found = set()
    for event in events:
        if event.kind == "mint" and event.args[3] and snapshot.is_vaults(event.args[0]):
            made[event.block, event.args[1:4]] -= 1
            if made[event.block, event.args[1:4]] < 0:
                found.add(event[:2])
    return found


def own_events(tape: Tape, events: Iterable[Event]) -> dict[int, list[Event]]:
    """The vault's own events that move anything, by block; all events since the opening are wanted.

    What a position without liquidity was owed at the opening counts as idle since then: no event of its own moves it.
    """
    own: dict[int, list[Event]] = {}
    keys = set(tape.vault_keys)
    for event in events:
        if event.kind == "mint" and tape.snapshot.is_vaults(event.args[0]):
            keys.add(event.args[:3])
        own_one = event.kind in OWN_KINDS and event[:2] not in tape.given
        if own_one and event.args[:3] in keys and any(event.args[3:]):
            own.setdefault(event.block, []).append(event)
    return own


def sums_of(own: Iterable[Event]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple]:
    """What a vault's own events come to: (released, fees, paid, minted), as `Execution` has them."""
    own = list(own)
    burnt, *flows, lost = (
        tuple(sum(event.args[side] for event in own if event.kind == kind) for side in (-2, -1))
        for kind in ("burn", "collect", "mint", "write_off")
    )
    return tuple(map(sub, burnt, lost)), *flows, tuple(event.args[1:4] for event in own if event.kind == "mint")


def _unexplained(tape: Tape, events: Sequence[Event], executions: Iterable[Execution]) -> str:
    """The first block in which the vault's own events are not what executions did there; empty if there is none."""
    for event in events:
        if event.kind in ("stake", "unstake") and event.args[:3] in tape.vault_keys:  # no bot does
            _, lower, upper, liquidity = event.args
            return f"block {event.block}: the vault's owner {event.kind}d liquidity {liquidity} from {lower} to {upper}"
    own, done = own_events(tape, events), {}
    for execution in executions:
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


def _transferred(tape: Tape, inputs: LiveInputs) -> tuple[str, tuple[int, int]]:
    """What of the vault's own events the chain does not show at the close, empty if all, and what it shows besides."""
    closing, mine, theirs = inputs.closing, Counter(), Counter()  # liquidity by range
    for key in tape.vault_keys:
        mine[key[1:]] += tape.pool.position(*key).liquidity
    for position in closing.vault:
        theirs[position.key[1:]] += position.liquidity
    for ticks in sorted(mine.keys() | theirs.keys()):
        if (expected := mine[ticks]) != (found := theirs[ticks]):
            range_ = f"from {ticks[0]} to {ticks[1]}"
            return f"at the close the vault has liquidity {found} {range_}, {expected} by its events", (0, 0)
    expected = tuple(map(add, *tape.vault_holds()))
    found = Book(Tape(closing)).initial  # what burns released and what fees paid may be told apart differently
    more = tuple(map(sub, found, expected))
    if any(map(gt if inputs.rules_version > 1 else ne, expected, found)):
        amounts = [f"{amount:+d} of token{n}" for n, amount in enumerate(more) if amount]
        return f"at the close the vault has {', '.join(amounts)} that nothing in the round explains", (0, 0)
    return "", tuple(map(add, more, tape.gifts))
