"""What a pool and its position manager answer, Uniswap V3 or Slipstream: state, ticks, a snapshot, a vault's tokens.

Read first: `abi.py`. Read next: `events.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from web3 import Web3

from evm import abi
from evm.abi import CL_LOGS, NULL_ADDRESS, POOL_LOGS, Function, LogType, Malformed, address, header_call, read_header
from evm.rpc import MAX_BATCH, Endpoint, Refusal, Rpc
from liquidity.replay import SlipstreamState, Snapshot, TickState
from liquidity.slipstream import SlipstreamPool
from markets.base import MarketError, MarketMistake
from protocol import Block, Pair, Token
from sim import MAX_TICK, Pool, sqrt_ratio_at_tick

POSITION_MANAGERS = {  # Uniswap's own, by chain id; a Slipstream pool names its own
    **dict.fromkeys((1, 10, 137, 42161), "0xc36442b4a4522e871399cd717abdd847ab11fe88"),
    8453: "0x03a520b32c04bf3beef7beb72e919cf822ed34f1",
}
MAX_VAULT_TOKENS = 256  # position tokens of one owner that are asked for one by one, where it is known which count
MAX_LISTED_TOKENS = 10_000  # at the start, when nobody knows; anybody may send more

TOKEN0, TOKEN1 = Function("token0()", "address"), Function("token1()", "address")
FEE, TICK_SPACING = Function("fee()", "uint24"), Function("tickSpacing()", "int24")
SLOT0 = Function("slot0()", "uint160", "int24", "uint16", "uint16", "uint16", "uint8", "bool")
LIQUIDITY = Function("liquidity()", "uint128")
GROWTH0, GROWTH1 = (Function(f"feeGrowthGlobal{n}X128()", "uint256") for n in (0, 1))
PROTOCOL_FEES = Function("protocolFees()", "uint128", "uint128")
_STATE = SLOT0, LIQUIDITY, GROWTH0, GROWTH1, PROTOCOL_FEES
CL_SLOT0 = Function("slot0()", "uint160", "int24", "uint16", "uint16", "uint16", "bool")  # CL: Slipstream's
STAKED_LIQUIDITY, GAUGE_FEES = Function("stakedLiquidity()", "uint128"), Function("gaugeFees()", "uint128", "uint128")
UNSTAKED_FEE = Function("unstakedFee()", "uint24")
FACTORY = Function("factory()", "address")
GAUGE, NFT = Function("gauge()", "address"), Function("nft()", "address")
_CL_STATE = CL_SLOT0, LIQUIDITY, GROWTH0, GROWTH1, STAKED_LIQUIDITY, GAUGE_FEES, FEE, UNSTAKED_FEE
TICK_BITMAP = Function("tickBitmap(int16)", "uint256")
TICKS = Function("ticks(int24)", "uint128", "int128", "uint256", "uint256", "int56", "uint160", "uint32", "bool")
CL_TICKS = Function(  # gross, net, staked net, outside: fee growth 0 and 1, reward growth, and what the oracle keeps
    "ticks(int24)",
    *("uint128", "int128", "int128", "uint256", "uint256", "uint256", "int56", "uint160", "uint32", "bool"),
)
SYMBOL, DECIMALS = Function("symbol()", "string"), Function("decimals()", "uint8")
POOL_POSITIONS = Function("positions(bytes32)", "uint128", "uint256", "uint256", "uint128", "uint128")
BALANCE_OF = Function("balanceOf(address)", "uint256")
TOKEN_OF_OWNER = Function("tokenOfOwnerByIndex(address,uint256)", "uint256")
OWNER_OF = Function("ownerOf(uint256)", "address")
STAKED_VALUES = Function("stakedValues(address)", "uint256[]")
TOKEN_POSITIONS = Function(  # the fifth is the fee, Slipstream's the tick spacing
    "positions(uint256)",
    *("uint96", "address", "address", "address", "uint24", "int24", "int24"),
    *("uint128", "uint256", "uint256", "uint128", "uint128"),
)
COLLECT = Function("collect((uint256,address,uint128,uint128))", "uint256", "uint256")


@dataclass(frozen=True)
class Contract:
    """A pool's contract: all of it that never changes.

    Attributes:
        manager: the position manager's address, in lower case; empty if none is known.
        gauge: of a Slipstream pool, in lower case; empty for Uniswap's.
    """

    pair: Pair
    manager: str
    gauge: str = ""

    @property
    def slipstream(self) -> bool:
        return bool(self.gauge)

    @property
    def remark(self) -> str:
        """For people: that it is Slipstream, and who keeps its positions."""
        return f", Slipstream, gauge {self.gauge}, nft {self.manager}" if self.gauge else ""

    @property
    def no_manager(self) -> str:
        """Why none is known, and the fix."""
        chain = self.pair.chain_id
        why = f"no position manager is known on chain {chain}"
        if chain in POSITION_MANAGERS:
            why = f"chain {chain}'s usual position manager is of another factory's pools"
        return f"{why}, a vault's positions would not be seen; name the pool's own with --manager 0x..."

    @property
    def addresses(self) -> list[str]:
        """Of the contracts whose logs, of these `log_types`, make the pool's events."""
        return [self.pair.pool_address, *([self.gauge] if self.gauge else [])]

    @property
    def log_types(self) -> list[LogType]:
        return POOL_LOGS + CL_LOGS if self.gauge else POOL_LOGS

    @cached_property
    def words(self) -> range:
        """The words of the tick bitmap that can hold anything."""
        most = MAX_TICK // self.pair.tick_spacing
        return range(-most >> 8, (most >> 8) + 1)

    def state_calls(self, block_hash: str) -> list[tuple[str, list]]:
        """For `Rpc.batch`: what `state` reads."""
        return [function.call(self.pair.pool_address, block_hash) for function in self._state_functions]

    def state(self, answers: Sequence[Any], endpoints: set[Endpoint]) -> State:
        """Raises `Malformed`, with the endpoints that answered."""
        try:
            values = [f.read(answer) for f, answer in zip(self._state_functions, answers, strict=True)]
            (price, tick, *more), (liquidity,), (growth0,), (growth1,), *rest = values
            common = price, tick, liquidity, growth0, growth1
            if self.slipstream:
                staked, gauge_fees, fee, unstaked_fee = rest
                return State(*common, (0, 0), (0, 0), *staked, *gauge_fees, *fee, *unstaked_fee)
            *_, fee_protocol, _ = more
            return State(*common, (fee_protocol % 16, fee_protocol >> 4), *rest)
        except (TypeError, Malformed) as error:
            why = "no contract was there at that block" if "0x" in answers else error
            raise Malformed(f"the pool's state cannot be: {why}", endpoints) from error

    @property
    def _state_functions(self) -> tuple[Function, ...]:
        return _CL_STATE if self.slipstream else _STATE


class State(NamedTuple):
    """What a pool's contract says of itself; see `sim.Pool`. Any event but a burn changes one of these or a tick.

    Attributes:
        staked_liquidity, gauge_fees0, gauge_fees1: as of `SlipstreamPool`; 0 on Uniswap.
        fee, unstaked_fee: what the factory answers now, pips: no replay knows them. None on Uniswap.
    """

    sqrt_price_x96: int
    tick: int
    liquidity: int
    fee_growth_global0_x128: int
    fee_growth_global1_x128: int
    fee_protocol: tuple[int, int]
    protocol_fees: tuple[int, int]
    staked_liquidity: int = 0
    gauge_fees0: int = 0
    gauge_fees1: int = 0
    fee: int | None = None
    unstaked_fee: int | None = None

    @classmethod
    def of(cls, pool: Pool) -> State:
        return cls(*(getattr(pool, name) for name in cls._fields[: -2 if isinstance(pool, SlipstreamPool) else -5]))

    def differences(self, other: State) -> str:
        """In words, but for the factory's fees; empty if there are none."""
        named = zip(self._fields[:-2], self, other, strict=False)
        return ", ".join(f"{name} {mine}, {theirs}" for name, mine, theirs in named if mine != theirs)


async def describe(rpc: Rpc, pool_address: str, manager: str | None = None) -> Contract:
    """Find out what kind of pool stands at an address.

    Args:
        manager: the position manager's address, where it is not the one that everybody uses; a Slipstream pool names
            its own. Of a pool that is not of that one's factory none is known.

    Raises:
        MarketError: there is no pool of a known kind, or a Slipstream pool without a gauge, the named manager is of
            other pools, or not all endpoints are of the same chain.
    """
    pool_address = address(pool_address, "pool")
    for _ in rpc.endpoints[1:]:
        try:
            return await _describe(rpc, pool_address, manager)
        except Malformed as error:  # another may know better
            rpc.distrust_last(str(error))
    try:
        return await _describe(rpc, pool_address, manager)
    except Malformed as error:
        raise MarketMistake(str(error)) from error


async def _describe(rpc: Rpc, pool_address: str, manager: str | None) -> Contract:
    chains = await rpc.each("eth_chainId", [], abi.integer)
    if len({str(chain) for chain in chains.values()}) > 1:
        said = ", ".join(f"{endpoint.name} {int(chain, 16)}" for endpoint, chain in chains.items())
        raise MarketError(f"the RPC endpoints are of different chains ({said}); leave the wrong ones out")
    chain_id = int(next(iter(chains.values())), 16)
    at = read_header((await rpc.batch([header_call("latest")], usable=read_header))[0]).hash
    found = await rpc.batch([SLOT0.call(pool_address, at)])
    slipstream = isinstance(found[0], str) and len(found[0]) == 2 + 6 * 64  # there is no protocol fee in it
    functions = TOKEN0, TOKEN1, FEE, TICK_SPACING, *((GAUGE, NFT, *_CL_STATE) if slipstream else _STATE)
    found = await rpc.batch([function.call(pool_address, at) for function in functions])
    kind = "Slipstream" if slipstream else "Uniswap V3"
    not_one = f"{pool_address} on chain {chain_id} does not answer as a {kind} pool; check the address (--pool)"
    try:
        values = [function.read(result) for function, result in zip(functions, found, strict=True)]
    except Malformed as error:
        raise Malformed(f"{not_one}: {error}") from error
    if None in values:
        raise MarketError(not_one)
    (token0,), (token1,), (fee,), (tick_spacing,), *rest = values
    gauge, usual = "", POSITION_MANAGERS.get(chain_id, "")
    if slipstream:
        gauge, usual = rest[0][0].lower(), rest[1][0].lower()
        if NULL_ADDRESS in (gauge, usual):
            raise MarketError(f"the Slipstream pool {pool_address} has no gauge yet: stakes could not be followed")
    tokens = [await _describe_token(rpc, token.lower(), at) for token in (token0, token1)]
    pair = Pair(chain_id, pool_address, *tokens, fee, tick_spacing)
    used, wrong = address(manager, "position manager") if manager else usual, ""
    if slipstream:
        wrong = used != usual and f"the pool's own is {usual}"
    elif used:
        answers = await rpc.batch([FACTORY.call(one, at) for one in (pool_address, used)])
        of_pool, of_manager = map(FACTORY.read, answers)
        if of_manager is None or of_manager != of_pool:
            wrong = "no position manager stands there" if of_manager is None else "it is of another factory's pools"
    if manager and wrong:
        raise MarketError(f"position manager {used}: {wrong}; name the pool's own with --manager 0x...")
    return Contract(pair, "" if wrong else used, gauge)


async def _describe_token(rpc: Rpc, token: str, at: str) -> Token:
    symbol, decimals = await rpc.batch([SYMBOL.call(token, at), DECIMALS.call(token, at)])
    try:
        (text,) = SYMBOL.read(symbol) or ("",)
    except Malformed:  # some of the first tokens have bytes32
        text = bytes.fromhex(symbol[2:66]).decode("ascii", "replace")
    try:
        (places,) = DECIMALS.read(decimals) or (0,)
    except Malformed:  # whatever a token says of itself, its pool can be followed
        places = 0
    return Token(token, re.sub(r"[^A-Za-z0-9.+$-]", "", text)[:16] or "?", places)


async def read_state(
    rpc: Rpc, contract: Contract, block_hash: str, patient: bool, endpoints: set[Endpoint]
) -> State | None:
    """The pool's state after a block; None where a node no longer has it and `patient` is off.

    `endpoints` is given those that answered. Raises `RpcError`, and `Malformed` where one answers nonsense.
    """
    answers = await rpc.batch(contract.state_calls(block_hash), refusable=not patient)
    endpoints |= answers.endpoints
    if any(isinstance(answer, Refusal) for answer in answers):
        return None
    return contract.state(answers, answers.endpoints)


async def read_pool(rpc: Rpc, contract: Contract, after: Block) -> tuple[Snapshot, State]:
    """The pool after a block, without a vault, in `1 + words / 1000 + ticks / 1000` requests or so.

    The next block's time and hash are left to fill in. Raises `RpcError`, and `Malformed` where what they answer
    contradicts itself.
    """
    pool, spacing, slipstream = contract.pair.pool_address, contract.pair.tick_spacing, None
    first = contract.state_calls(after.hash)
    answers = await rpc.batch(first + [TICK_BITMAP.call(pool, after.hash, word) for word in contract.words])
    endpoints = answers.endpoints
    try:
        state = contract.state(answers[: len(first)], endpoints)
        if not state.sqrt_price_x96:
            raise MarketError(f"{pool} has no price there yet: begin after it was initialised")
        bitmap = [TICK_BITMAP.read(answer)[0] for answer in answers[len(first) :]]
        indices = [
            ((number << 8) + bit) * spacing
            for number, word in zip(contract.words, bitmap, strict=True)
            if word
            for bit in range(256)
            if word >> bit & 1
        ]
        if indices and not -MAX_TICK <= indices[0] <= indices[-1] <= MAX_TICK:
            raise Malformed("ticks that no pool has are initialised")
        function, rows = CL_TICKS if contract.slipstream else TICKS, []
        for at in range(0, len(indices), MAX_BATCH):  # an invented bitmap is found out after the first of them
            part = indices[at : at + MAX_BATCH]
            answers = await rpc.batch([function.call(pool, after.hash, index) for index in part])
            endpoints = endpoints | answers.endpoints
            rows += [function.read(answer) for answer in answers]
            if not all(gross for gross, *_ in rows[at:]):
                raise Malformed("ticks are initialised that have no liquidity")
        ticks = tuple(_tick(index, row, contract.slipstream) for index, row in zip(indices, rows, strict=True))
    except (TypeError, Malformed) as error:
        raise Malformed(f"the pool's ticks cannot be: {error}", endpoints) from error
    in_range = sum(int(tick.liquidity_net) for tick in ticks if tick.index <= state.tick)
    total = sum(int(tick.liquidity_net) for tick in ticks)
    on_price = sqrt_ratio_at_tick(state.tick) <= state.sqrt_price_x96 <= sqrt_ratio_at_tick(state.tick + 1)
    if in_range != state.liquidity or total or not on_price or not all(tick.liquidity_gross for tick in ticks):
        raise Malformed(f"ticks with {in_range} in range and {total} left over, liquidity {state.liquidity}", endpoints)
    staked = sum(int(tick.staked_liquidity_net or 0) for tick in ticks if tick.index <= state.tick)
    if staked != state.staked_liquidity:
        raise Malformed(f"ticks with {staked} staked in range, staked liquidity {state.staked_liquidity}", endpoints)
    if contract.slipstream:
        of_gauge = state.staked_liquidity, state.gauge_fees0, state.gauge_fees1
        slipstream = SlipstreamState(contract.manager, contract.gauge, state.unstaked_fee, *of_gauge)
    terms = state.fee if contract.slipstream else contract.pair.fee, spacing, *state.fee_protocol
    at, vault = (after.number + 1, after.time, after.hash), ((), 0, 0)
    return Snapshot(*at, *terms, *state[:5], ticks, *vault, slipstream=slipstream), state


def _tick(index: int, row: tuple, slipstream: bool) -> TickState:
    gross, net, *rest = row
    staked = str(rest.pop(0)) if slipstream else None
    return TickState(index, gross, str(net), *rest[:2], staked)


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

    @property
    def owed(self) -> tuple[int, int] | None:
        """What an empty one was never paid."""
        owed = self.tokens_owed0, self.tokens_owed1
        return owed if any(owed) and not (self.liquidity or self.staked) else None


async def read_vault(
    rpc: Rpc, contract: Contract, vault: str, block_hash: str, known: Collection[int] | None = None
) -> tuple[list[TokenPosition], tuple[int, int]]:
    """The positions in this pool that an address holds as tokens of the position manager, and its idle tokens.

    On Slipstream also the tokens that it has staked: the gauge holds them. Of more than `MAX_VAULT_TOKENS` only those
    `known` are looked for. Raises as `read_pool`, and `MarketError` where it holds too many and none are known.
    """
    pair, manager = contract.pair, contract.manager
    holders = [pair.token0.address, pair.token1.address, *([manager] if manager else [])]
    stakes = [STAKED_VALUES.call(contract.gauge, block_hash, vault)] if contract.slipstream else []
    answers = await rpc.batch([BALANCE_OF.call(one, block_hash, vault) for one in holders] + stakes)
    try:
        balances = [BALANCE_OF.read(answer)[0] for answer in answers[: len(holders)]]
        count = balances[2] if manager else 0
        staked = STAKED_VALUES.read(answers[-1])[0] if stakes else ()
        if count > MAX_VAULT_TOKENS and known is not None:
            answers = await rpc.batch([OWNER_OF.call(manager, block_hash, token_id) for token_id in sorted(known)])
            owners = zip(sorted(known), map(OWNER_OF.read, answers), strict=True)
            ids = [token_id for token_id, owner in owners if owner and owner[0].lower() == vault]
        elif count > MAX_LISTED_TOKENS:
            raise MarketError(f"vault {vault} holds {count} position tokens, at most {MAX_LISTED_TOKENS} are read")
        else:
            answers = await rpc.batch([TOKEN_OF_OWNER.call(manager, block_hash, vault, n) for n in range(count)])
            ids = [TOKEN_OF_OWNER.read(answer)[0] for answer in answers]
        ids += staked
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
    with abi.reading("position"):
        return [POOL_POSITIONS.read(answer)[0] for answer in answers]
