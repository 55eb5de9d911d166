"""What a position manager answers and logs: a vault's tokens, who owns them, and a pool's logs as events.

Read first: `pool.py`. Read next: `follower.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from web3 import Web3

from evm.abi import NULL_ADDRESS, Function, Log, Malformed
from evm.pool import Contract
from evm.rpc import Rpc
from liquidity.events import Event
from markets.base import MarketError

MAX_VAULT_TOKENS = 256  # position tokens of one owner; anybody may send more
POOL_POSITIONS = Function("positions(bytes32)", "uint128", "uint256", "uint256", "uint128", "uint128")
BALANCE_OF = Function("balanceOf(address)", "uint256")
TOKEN_OF_OWNER = Function("tokenOfOwnerByIndex(address,uint256)", "uint256")
STAKED_VALUES = Function("stakedValues(address)", "uint256[]")
TOKEN_POSITIONS = Function(  # the fifth is the fee, Slipstream's the tick spacing
    "positions(uint256)",
    *("uint96", "address", "address", "address", "uint24", "int24", "int24"),
    *("uint128", "uint256", "uint256", "uint128", "uint128"),
)
COLLECT = Function("collect((uint256,address,uint128,uint128))", "uint256", "uint256")


# ---------------------------------------------------------------------------------------------------------------------
# A vault


class TokenPosition(NamedTuple):
    """A position manager's token: its position as the manager keeps it, apart from others in the same range."""

    token_id: int
    tick_lower: int
    tick_upper: int
    liquidity: int
    fee_growth_inside0_last_x128: int
    fee_growth_inside1_last_x128: int
    tokens_owed0: int
    tokens_owed1: int
    staked: bool = False


async def read_vault(
    rpc: Rpc, contract: Contract, vault: str, block_hash: str
) -> tuple[list[TokenPosition], tuple[int, int]]:
    """The positions in this pool that an address holds as tokens of the position manager, and its idle tokens.

    On Slipstream also the tokens that it has staked: the gauge holds them.

    Raises:
        MarketError: it holds too many.
        RpcError, Malformed: as `read_ticks`.
    """
    pair, manager = contract.pair, contract.manager
    holders = [pair.token0.address, pair.token1.address, *([manager] if manager else [])]
    stakes = [STAKED_VALUES.call(contract.gauge, block_hash, vault)] if contract.slipstream else []
    answers = await rpc.batch([BALANCE_OF.call(one, block_hash, vault) for one in holders] + stakes)
    try:
        balances = [BALANCE_OF.read(answer)[0] for answer in answers[: len(holders)]]
        count = balances[2] if manager else 0
        staked = STAKED_VALUES.read(answers[-1])[0] if stakes else ()
        if count + len(staked) > MAX_VAULT_TOKENS:
            held = count + len(staked)
            raise MarketError(f"vault {vault} holds {held} position tokens, at most {MAX_VAULT_TOKENS} are read")
        answers = await rpc.batch([TOKEN_OF_OWNER.call(manager, block_hash, vault, n) for n in range(count)])
        ids = [TOKEN_OF_OWNER.read(answer)[0] for answer in answers] + list(staked)
        answers = await rpc.batch([TOKEN_POSITIONS.call(manager, block_hash, token_id) for token_id in ids])
        rows = [TOKEN_POSITIONS.read(answer) for answer in answers]
        here = pair.token0.address, pair.token1.address, pair.tick_spacing if contract.slipstream else pair.fee
        found = [
            TokenPosition(token_id, *rest, token_id in staked)
            for token_id, (_, _, token0, token1, terms, *rest) in zip(ids, rows, strict=True)
            if (token0.lower(), token1.lower(), terms) == here
        ]
    except (TypeError, Malformed) as error:
        raise Malformed(f"the vault {vault} cannot be: {error}", answers.endpoints) from error
    return sorted(found), (balances[0], balances[1])


async def read_liquidity(
    rpc: Rpc, contract: Contract, keys: Sequence[tuple[str, int, int]], block_hash: str
) -> list[int]:
    """Liquidity of positions (owner, tick_lower, tick_upper) as the pool itself keeps them."""
    names = [
        Web3.solidity_keccak(["address", "int24", "int24"], [Web3.to_checksum_address(owner), *ticks])
        for owner, *ticks in keys
    ]
    answers = await rpc.batch([POOL_POSITIONS.call(contract.pair.pool_address, block_hash, name) for name in names])
    return [POOL_POSITIONS.read(answer)[0] for answer in answers]


# ---------------------------------------------------------------------------------------------------------------------
# From logs to events


class NamedToken(NamedTuple):
    """A vault's token of the position manager: whose position it is in the events."""

    owner: str
    tick_lower: int
    tick_upper: int

    @classmethod
    def of(cls, vault: str, token_id: int, ticks: tuple[int, int], others: Mapping[int, NamedToken]) -> NamedToken:
        """The vault's plain name, or one with the token's number where another in the same range has that."""
        taken = cls(vault, *ticks) in others.values()
        return cls(f"{vault}#{token_id}" if taken else vault, *ticks)


def name_tokens(
    logs: Sequence[Log], contract: Contract, vaults: Iterable[str], tokens: dict[int, NamedToken]
) -> tuple[dict[tuple[int, int], str], list[tuple[int, int]]]:
    """Whose positions the position manager changed: in the pool's own logs it is the owner of them all.

    The manager logs what it did for a token after the pool logged the same, in one transaction.

    Args:
        logs: in order, the pool's and the manager's.
        contract: the pool.
        vaults: whose tokens get names.
        tokens: those known; new ones are added.

    Returns:
        Names of owners by (block, log index) of the pool's logs, and (token id, block) of the new tokens.
    """
    names, arriving, new = {}, {}, []
    unclaimed: dict[str, list[Log]] = {}
    for one in logs:
        mine = unclaimed.setdefault(one.transaction, [])
        if one.address != contract.manager:
            if one.name in ("Mint", "Burn", "Collect") and one.values[0] == contract.manager:
                mine.append(one)
            elif one.name in ("Deposit", "Withdraw") and one.values[1] in tokens:
                names[one.block, one.index] = tokens[one.values[1]].owner
            continue
        if one.name == "Transfer":
            sender, to, token_id = one.values
            if sender == NULL_ADDRESS and to in vaults:
                arriving[token_id] = to
            continue
        token_id, *amounts = one.values
        if token_id not in tokens and token_id not in arriving:
            continue
        kind = {"IncreaseLiquidity": "Mint", "DecreaseLiquidity": "Burn", "Collect": "Collect"}[one.name]
        for log_ in reversed(mine):
            same_amounts = list(log_.values[-3:]) == amounts
            if kind == "Collect":  # the pool pays at most what the manager asks for
                same_amounts = all(paid <= asked for paid, asked in zip(log_.values[-2:], amounts[-2:], strict=True))
            ticks = log_.values[1:3]
            if log_.name == kind and same_amounts and (token_id in arriving or tokens[token_id][1:] == ticks):
                break
        else:
            continue  # a position in another pool
        if token_id in arriving:
            tokens[token_id] = NamedToken.of(arriving.pop(token_id), token_id, ticks, tokens)
            new.append((token_id, one.block))
        mine.remove(log_)
        names[log_.block, log_.index] = tokens[token_id].owner
        if kind == "Collect":  # before it the manager lets the pool settle fees, by burning nothing
            for log_ in reversed(mine):
                if log_.name == "Burn" and log_.values[1:3] == ticks and not log_.values[3]:
                    mine.remove(log_)
                    names[log_.block, log_.index] = tokens[token_id].owner
                    break
    return names, new


def to_events(
    logs: Iterable[Log],
    contract: Contract,
    times: Mapping[int, int],
    names: Mapping[tuple[int, int], str],
    released: dict[tuple, tuple[int, int]],
) -> tuple[list[Event], list[tuple]]:
    """The pool's logs as events; a collect is what it pays beyond what burns released before.

    Slipstream's gauge tells of a token that it staked or gave back; its ticks are those of the collect that the gauge
    makes before, in the same transaction. A stake follows that collect at once, and its log comes at once too. When a
    token goes back the receiver is called before the log is written, and may trade: the event stands where the collect
    stood, which pays nothing to a gauge.

    Args:
        logs: the pool's and its gauge's, in order.
        contract: the pool.
        times: of their blocks.
        names: of owners, where they are not as logged; see `name_tokens`.
        released: by position, before the first log; brought up to date.

    Returns:
        The events, swaps without their call, and the new rows of the table `released`.

    Raises:
        Malformed: a log that the pool cannot have made.
    """
    events, rows, collects = [], [], {}
    for one in logs:
        owner = names.get((one.block, one.index), one.values[0])
        if contract.slipstream and one.name == "Collect":
            collects[one.transaction, one.values[0]] = one
            if one.values[0] == contract.gauge:
                continue
        if one.name in ("Deposit", "Withdraw"):
            if stake := _stake(one, contract, collects, times, names):
                events.append(stake)
            continue
        kind, args = _kind_and_args(one, owner, contract)
        if kind in ("burn", "collect") and owner != contract.gauge and any(args[-2:]):
            key = args[:3]
            held = released.get(key, (0, 0))
            if kind == "burn":
                left = held[0] + args[-2], held[1] + args[-1]
            else:
                paid = tuple(map(min, held, args[-2:]))
                left = held[0] - paid[0], held[1] - paid[1]
                args = (*key, args[-2] - paid[0], args[-1] - paid[1])
            if left != held:
                released[key] = left
                rows.append((one.block, one.index, *key, *map(str, left)))
        if kind != "collect" or any(args[-2:]):
            events.append(Event(one.block, one.index, times[one.block], kind, args))
    return sorted(events, key=lambda event: event[:2]), rows


def _kind_and_args(one: Log, owner: str, contract: Contract) -> tuple[str, tuple]:
    """A pool's own log as an event; a swap without its call."""
    values = one.values
    key = (owner, *values[1:3])
    match one.name:
        case "Swap":
            return "swap", ("", *values[2:])
        case "Mint":
            if contract.slipstream and owner == contract.gauge and values[3] != contract.manager:
                key = (f"{owner}#", *values[1:3])  # somebody's gift to the gauge, which nobody stakes
            return "mint", (*key, *values[4:])
        case "Burn":
            return "burn", (*key, *values[3:])
        case "Collect":
            return "collect", (*key, *values[4:])
        case "Flash":
            return "flash", values[2:]
        case "SetFeeProtocol":
            return "set_fee_protocol", values[2:]
        case "CollectProtocol":
            return "collect_protocol", values[2:]
        case "CollectFees":
            return "collect_fees", values[1:]
    raise Malformed(f"block {one.block} log {one.index}: {one.name} in a pool that has a price")


def _stake(
    one: Log,
    contract: Contract,
    collects: Mapping[tuple[str, str], Log],
    times: Mapping[int, int],
    names: Mapping[tuple[int, int], str],
) -> Event | None:
    """What the gauge logged of a token; None where it has no liquidity."""
    kind, by = ("stake", contract.manager) if one.name == "Deposit" else ("unstake", contract.gauge)
    collect = collects.get((one.transaction, by))
    if not collect:
        raise Malformed(f"block {one.block} log {one.index}: {one.name} without the collect before it")
    _, _, liquidity = one.values
    if not liquidity:
        return None
    owner = names.get((one.block, one.index), contract.manager)
    index = one.index if kind == "stake" else collect.index
    return Event(one.block, index, times[one.block], kind, (owner, *collect.values[1:3], liquidity))
