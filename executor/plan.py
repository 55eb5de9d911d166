"""What a vault must do to hold the positions of an order, and the position manager's calls for that.

    keep, close, wanted = match_tokens(order.shown, order.desired, held)
    mints = size(wanted, keep, there, price, slippage_ticks, most_liquidity)
    data = multicall([*close_calls(...), *mint_calls(...)])

The rules are those of `books.Book.rebalance`; the sizes are exact at one price. Pure: no clock, no I/O.
Read next: `drafting.py`, which holds it against the limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evm.abi import Function
from evm.pool import COLLECT, Contract, TokenPosition
from liquidity.rounds import match
from protocol import Code, Position, ProtocolError
from sim import MASK_128, MAX_SQRT_RATIO, MIN_SQRT_RATIO, Q96, amounts_of, liquidity_for, sqrt_ratio_at_tick

Amounts = tuple[int, int]  # of token0 and token1, base units

DECREASE = Function("decreaseLiquidity((uint256,uint128,uint256,uint256,uint256))", "uint256", "uint256")
BURN = Function("burn(uint256)")
INCREASE = Function(
    "increaseLiquidity((uint256,uint256,uint256,uint256,uint256,uint256))", "uint128", "uint256", "uint256"
)
MINT = Function(  # token0, token1, fee, ticks, most, least, recipient, deadline
    "mint((address,address,uint24,int24,int24,uint256,uint256,uint256,uint256,address,uint256))",
    *("uint256", "uint128", "uint256", "uint256"),
)
SLIPSTREAM_MINT = Function(  # the tick spacing in the place of the fee; at the end a price, for a pool that has none
    "mint((address,address,int24,int24,int24,uint256,uint256,uint256,uint256,address,uint256,uint160))",
    *("uint256", "uint128", "uint256", "uint256"),
)
MULTICALL = Function("multicall(bytes[])", "bytes[]")
MOST_RESULT_BYTES = 8 * 32  # of one call in it: pointer, length and up to four words


@dataclass(frozen=True, slots=True)
class Mint:
    """Liquidity to add.

    Attributes:
        token_id: of the kept position in that range, which gets more; 0 makes a new one.
        most: what the manager may take, and sizes the liquidity by: no more than it needs while the price stays
            within the bound. Else dust of one token would hold back all of the other only until somebody moved the
            price out of the range, and then all of that would be sold there.
        least: what it must take, else it reverts.
        liquidity, paid: what comes of it at the price of the plan.
    """

    token_id: int
    tick_lower: int
    tick_upper: int
    most: Amounts
    least: Amounts
    liquidity: int
    paid: Amounts


def match_tokens(
    shown: Sequence[Position], desired: Sequence[Position], held: Sequence[TokenPosition]
) -> tuple[list[TokenPosition], list[TokenPosition], list[Position]]:
    """`rounds.match` on the vault's tokens: those to keep, those to close, positions to mint as they were answered.

    A shown position is the token in its range; of several in one range the larger is the larger. Amounts are not
    compared: the price moved since, and anybody may add liquidity to anybody's position. Staked tokens are not shown.

    Raises:
        ProtocolError: `VAULT_CHANGED`, the ranges are not those that the vault holds.
    """
    movable = (token for token in held if token.liquidity and not token.staked)
    tokens = sorted(movable, key=lambda token: (_ticks(token), token.liquidity))
    # both amounts of a range grow with its liquidity
    positions = sorted(shown, key=lambda position: (_ticks(position), position.allocation0, position.allocation1))
    ours, theirs = list(map(_ticks, tokens)), list(map(_ticks, positions))
    if ours != theirs:
        raise ProtocolError(Code.VAULT_CHANGED, f"shown were the ranges {theirs}, it holds {ours}")
    tokens_of = defaultdict(list)
    for position, token in zip(positions, tokens, strict=True):
        tokens_of[position].append(token)
    keep, close, wanted = match(shown, desired)
    return [tokens_of[one].pop(0) for one in keep], sorted(tokens_of[one].pop(0) for one in close), wanted


def size(
    wanted: Sequence[Position],
    keep: Sequence[TokenPosition],
    there: Amounts,
    sqrt_price_x96: int,
    slippage_ticks: int,
    most_liquidity: int,
) -> list[Mint]:
    """What can be minted.

    Args:
        wanted: in order; each takes at most its allocation, and at most what those before it left.
        keep: a range that is wanted and kept gets more liquidity in the kept token.
        there: tokens that can be spent.
        slippage_ticks: how far the price may move until it is mined.
        most_liquidity: that a tick may hold; who would get more, or none, is skipped.
    """
    found = []
    for position in wanted:
        most = min(position.allocation0, there[0]), min(position.allocation1, there[1])
        bounds = _bounds(position)
        # the higher the price, the less of token0 and the more of token1
        low, high = ((p, liquidity_for(*most, p, *bounds)) for p in around(sqrt_price_x96, slippage_ticks))
        most = (
            min(most[0], amounts_of(low[1] + 1, low[0], *bounds, round_up=True)[0]),
            min(most[1], amounts_of(high[1] + 1, high[0], *bounds, round_up=True)[1]),
        )
        liquidity = liquidity_for(*most, sqrt_price_x96, *bounds)
        if not 0 < liquidity <= most_liquidity:
            continue
        paid = amounts_of(liquidity, sqrt_price_x96, *bounds, round_up=True)
        least = (  # one unit of liquidity is left to rounding
            amounts_of(max(0, high[1] - 1), high[0], *bounds, round_up=False)[0],
            amounts_of(max(0, low[1] - 1), low[0], *bounds, round_up=False)[1],
        )
        mine = (token.token_id for token in keep if _ticks(token) == _ticks(position))
        found.append(Mint(next(mine, 0), *_ticks(position), most, least, liquidity, paid))
        there = there[0] - paid[0], there[1] - paid[1]
    return found


def around(sqrt_price_x96: int, ticks: int) -> tuple[int, int]:
    """The prices so many ticks below and above."""
    low, high = (sqrt_price_x96 * sqrt_ratio_at_tick(by) // Q96 for by in (-ticks, ticks))
    return max(low, MIN_SQRT_RATIO), min(high, MAX_SQRT_RATIO - 1)


def worst_release(token: TokenPosition, sqrt_price_x96: int, slippage_ticks: int) -> Amounts:
    """The least of each token that closing a position gives back while the price stays within the bound, no fees."""
    low, high = (
        amounts_of(token.liquidity, price, *_bounds(token), round_up=False)
        for price in around(sqrt_price_x96, slippage_ticks)
    )
    return high[0], low[1]


def _ticks(position: Position | TokenPosition | Mint) -> tuple[int, int]:
    return position.tick_lower, position.tick_upper


def _bounds(position: Position | TokenPosition) -> tuple[int, int]:
    return sqrt_ratio_at_tick(position.tick_lower), sqrt_ratio_at_tick(position.tick_upper)


# ---------------------------------------------------------------------------------------------------------------------
# The calls


def data_of(function: Function, *arguments: Any) -> bytes:
    """A call's data."""
    return bytes.fromhex(function.call("", "", *arguments)[1][0]["data"][2:])


def close_calls(
    close: Sequence[TokenPosition], vault: str, sqrt_price_x96: int, slippage_ticks: int, deadline: int
) -> list[bytes]:
    """Three for each position: take the liquidity out, collect all to the vault, burn the empty token."""
    calls = []
    for token in close:
        least = worst_release(token, sqrt_price_x96, slippage_ticks)
        calls.append(data_of(DECREASE, token.token_id, token.liquidity, *least, deadline))
        calls.append(collect_call(token, vault))
        calls.append(data_of(BURN, token.token_id))
    return calls


def collect_call(token: TokenPosition, vault: str) -> bytes:
    """All that it is owed, to the vault."""
    return data_of(COLLECT, token.token_id, vault, MASK_128, MASK_128)


def read_closed(results: Sequence[bytes], closed: int) -> tuple[Amounts, Amounts, Amounts]:
    """Of the calls to close so many and to collect from others: released, collected with fees, collected of others."""
    collected = [COLLECT.read(result.hex()) for result in results[1 : 3 * closed : 3]]
    burnt = [DECREASE.read(result.hex()) for result in results[0 : 3 * closed : 3]]
    released = [apart(out, got)[0] for out, got in zip(burnt, collected, strict=True)]
    return add(*released), add(*collected), add(*(COLLECT.read(result.hex()) for result in results[3 * closed :]))


def apart(released: Amounts, collected: Amounts) -> tuple[Amounts, Amounts]:
    """What was collected, as what was released and fees; a pool may pay some wei less than the manager asks for."""
    fees = tuple(max(0, got - out) for got, out in zip(collected, released, strict=True))
    return tuple(got - fee for got, fee in zip(collected, fees, strict=True)), fees


def mint_calls(mints: Sequence[Mint], contract: Contract, vault: str, deadline: int) -> list[bytes]:
    """One for each."""
    pair, calls = contract.pair, []
    for mint in mints:
        amounts = *mint.most, *mint.least
        tokens, ticks = (pair.token0.address, pair.token1.address), (mint.tick_lower, mint.tick_upper)
        if mint.token_id:
            calls.append(data_of(INCREASE, mint.token_id, *amounts, deadline))
        elif contract.slipstream:
            calls.append(data_of(SLIPSTREAM_MINT, *tokens, pair.tick_spacing, *ticks, *amounts, vault, deadline, 0))
        else:
            calls.append(data_of(MINT, *tokens, pair.fee, *ticks, *amounts, vault, deadline))
    return calls


def multicall(calls: Sequence[bytes]) -> str:
    """All of them as one call, which happens as a whole or not at all."""
    return "0x" + data_of(MULTICALL, list(calls)).hex()


def add(*amounts: Amounts) -> Amounts:
    """The sum, token by token."""
    return sum(amount for amount, _ in amounts), sum(amount for _, amount in amounts)
