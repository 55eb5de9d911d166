"""Which call was behind a swap: found by trying each on a copy of the pool and comparing every digit.

    find_call(pool, event)                              # "in", "out" or "limit"

Pure. Read first: `events.py`. Read next: `replay.py`.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Iterable

from liquidity.events import Event, ReplayError, swap_call
from liquidity.slipstream import SlipstreamPool
from sim import PIPS, Pool, PoolError

CALLS = ("in", "out", "limit")


class _CopiedOnRead(dict):
    """Ticks for a trial swap: whatever it looks at, and may cross, is a copy from then on."""

    def __getitem__(self, index):
        mark = self[index] = copy.copy(super().__getitem__(index))
        return mark


def find_call(pool: Pool, event: Event) -> str:
    """Which call a swap event came from, at the fee that it names or else the pool's; the pool stays as it is.

    Exact output comes before a price limit: a limit at the right price explains every exact output too. Raises
    `ReplayError` where none of them gives the event's digits.
    """
    found, fee = "refused", event.args[6] if len(event.args) > 6 else None
    for how in CALLS:
        tried = _try_swap(pool, *swap_call(event, how, pool.sqrt_price_x96), fee=fee)
        if _is_result(event, *tried):
            return how
        found = (*tried[1], tried[0].sqrt_price_x96, tried[0].liquidity) if tried[1] else found
    raise ReplayError(event, "(by any call)", event.args[1:], found)


def with_call(pool: Pool, event: Event, likely: Iterable[int] = ()) -> Event:
    """The event with what its log does not tell: a swap's call, and Slipstream's fees.

    What the gauge takes of unstaked fees is the pool's. `likely`, and what is raised: as of `find_call_and_fee`.
    """
    args, slipstream = event.args, isinstance(pool, SlipstreamPool)
    if event.kind == "swap" and not args[0] and slipstream and len(args) == 6:
        how, fee = find_call_and_fee(pool, event, likely)
        args = (how, *args[1:], fee, pool.unstaked_fee)
    elif event.kind == "swap" and not args[0]:
        args = (find_call(pool, event), *args[1:])
    elif event.kind == "flash" and slipstream and len(args) == 4:
        args = (*args, pool.unstaked_fee)
    return event._replace(args=args)


def find_call_and_fee(pool: SlipstreamPool, event: Event, likely: Iterable[int] = ()) -> tuple[str, int]:
    """As `find_call`, and at which fee: on Slipstream it may change at any swap, and the event does not tell.

    Tried are the pool's fee, the likely ones, what the event's input is above that of the same move without a fee, and
    then all, by halving: with a higher fee the same input moves the price less, and the same move takes more input.
    Where several fees give the event's digits the first one found is taken: what two of them take of the input differs
    by less than a unit for each step of the swap, so that from 10**6 units of input a step on there is but one.

    Args:
        pool: in the state before the event; it stays as it is.
        likely: fees in pips, the likeliest first.

    Raises:
        ReplayError: no call at any fee gives the event's digits.
    """
    amount0, amount1, sqrt_price_x96 = event.args[1:4]
    side = 0 if amount0 > 0 or amount1 < 0 else 1
    paid, fees = event.args[1 + side], [pool.fee, *likely]

    def tried(how: str, fee: int) -> tuple[Pool, tuple[int, int] | None]:
        return _try_swap(pool, *swap_call(event, how, pool.sqrt_price_x96), fee=fee)

    def too_high(fee: int, how: str) -> bool:
        """Or just right."""
        fork, amounts = tried(how, fee)
        if how != "in" or not amounts:
            return not amounts or amounts[side] >= paid
        return fork.sqrt_price_x96 >= sqrt_price_x96 if side == 0 else fork.sqrt_price_x96 <= sqrt_price_x96

    _, free = tried("limit", 0)
    if free and paid:
        read_off = (paid - free[side]) * PIPS // paid
        fees += [read_off, read_off - 1, read_off + 1]
    for fee in dict.fromkeys(fee for fee in fees if 0 <= fee < PIPS):
        for how in CALLS:
            if _is_result(event, *tried(how, fee)):
                return how, fee
    for how in CALLS:
        fee = bisect_left(range(PIPS - 1), True, key=lambda fee, how=how: too_high(fee, how))
        if _is_result(event, *tried(how, fee)):
            return how, fee
    raise ReplayError(event, "(by any call at any fee)", event.args[1:6], "another")


def _try_swap(pool: Pool, *call, fee: int | None = None) -> tuple[Pool, tuple[int, int] | None]:
    """What a swap would make of the pool, and its amounts; None where it would be refused."""
    fork = copy.copy(pool)  # a swap changes numbers, and ticks: all else may be shared
    fork.legs, fork.ticks = None, _CopiedOnRead(pool.ticks)
    if fee is not None:
        fork.set_fees(fee, pool.unstaked_fee)
    try:
        return fork, fork.swap(*call)
    except PoolError:
        return fork, None


def _is_result(event: Event, after: Pool, amounts: tuple[int, int] | None) -> bool:
    """Whether a swap's amounts and the pool after it are the event's."""
    found = amounts and (*amounts, after.sqrt_price_x96, after.liquidity)
    return found == event.args[1:5] and after.stands_at(event.args[5])
