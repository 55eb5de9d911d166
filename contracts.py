"""What the contracts answer: calls, logs, a pool and a vault's positions as they stood at a block.

    contract = await describe(rpc, "0xd0b5...")             # Uniswap V3 or Slipstream: told by what it answers
    state = await read_state(rpc, contract, block_hash)
    ticks = await read_ticks(rpc, contract, block_hash)     # every initialised tick, through the bitmap

Every read names the block by its hash (EIP-1898), so that a chain that was reorganised meanwhile cannot mix two states.
web3 is used for what it is good at, keccak and the strict ABI codec; the requests are `rpc.py`'s.
Read next: `web3market.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from web3 import Web3

from market import Block, MarketError, Pair
from protocol import Token
from recording import Event, SlipstreamState, Snapshot, TickState
from rpc import Endpoint, Refusal, Rpc, RpcError
from sim import MASK_128, MAX_TICK, Pool, SlipstreamPool, sqrt_ratio_at_tick

POSITION_MANAGERS = {  # Uniswap's own, by chain id; a Slipstream pool names its own
    1: "0xc36442b4a4522e871399cd717abdd847ab11fe88",
    10: "0xc36442b4a4522e871399cd717abdd847ab11fe88",
    137: "0xc36442b4a4522e871399cd717abdd847ab11fe88",
    42161: "0xc36442b4a4522e871399cd717abdd847ab11fe88",
    8453: "0x03a520b32c04bf3beef7beb72e919cf822ed34f1",
}
NULL_ADDRESS = "0x" + "0" * 40
MAX_VAULT_TOKENS = 256  # position tokens of one owner; anybody may send more
ADDRESS = re.compile(r"0x[0-9a-f]{40}", re.ASCII)
HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
QUANTITY = re.compile("0x[0-9a-fA-F]{1,64}")

_codec = Web3().codec


class Malformed(RpcError):
    """An answer that no contract or node could have given. `endpoints`: where it came from, as far as known."""

    def __init__(self, what: str, endpoints: Iterable[Endpoint] = ()):
        super().__init__(what)
        self.endpoints = set(endpoints)


def address(text: str, what: str) -> str:
    """An address in lower case. Raises `MarketError` for what is none."""
    if not ADDRESS.fullmatch(text.lower()):
        raise MarketError(f"{what} {text[:60]!r}: 0x and 40 hexadecimal digits are expected")
    return text.lower()


def integer(answer: Any) -> int:
    """A quantity of JSON-RPC, 0 to 2**256 - 1. Raises `Malformed`."""
    if not isinstance(answer, str) or not QUANTITY.fullmatch(answer):
        raise Malformed(f"{str(answer)[:60]!r} is no number")
    return int(answer, 16)


def _decode(types: Sequence[str], data: bytes) -> tuple:
    """Strict: numbers within their types, no dirt in the padding. Raises `Malformed`."""
    try:
        return _codec.decode(types, data)
    except Exception as error:  # the codec's errors are of a package that web3 brings along
        raise Malformed(f"{len(data)} bytes are not {', '.join(types)} ({type(error).__name__})") from error


# ---------------------------------------------------------------------------------------------------------------------
# Calls and logs


class Function:
    """A contract's view function: its signature, and the types of what it returns."""

    def __init__(self, signature: str, *returns: str):
        self.name, _, takes = signature.partition("(")
        self.takes = [kind for kind in re.sub(r"[()]", "", takes).split(",") if kind]  # a static tuple is its members
        self.selector, self.returns = Web3.keccak(text=signature)[:4], returns

    def call(self, to: str, block_hash: str, *arguments: Any, sender: str | None = None) -> tuple[str, list]:
        """For `Rpc.batch`: the call, in the state after this block."""
        data = "0x" + (self.selector + _codec.encode(self.takes, arguments)).hex()
        transaction = {"to": to, "data": data} | ({"from": sender} if sender else {})
        return "eth_call", [transaction, {"blockHash": block_hash, "requireCanonical": True}]

    def read(self, result: Any) -> tuple | None:
        """What it returned; None where the contract has no such function. Raises `Malformed`."""
        if isinstance(result, Refusal) or result == "0x":
            return None
        try:
            return _decode(self.returns, bytes.fromhex(result.removeprefix("0x")))
        except (ValueError, AttributeError, Malformed) as error:
            raise Malformed(f"{self.name}() returned {str(result)[:80]!r}: {error}") from error


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
POOL_POSITIONS = Function("positions(bytes32)", "uint128", "uint256", "uint256", "uint128", "uint128")
SYMBOL, DECIMALS = Function("symbol()", "string"), Function("decimals()", "uint8")
BALANCE_OF = Function("balanceOf(address)", "uint256")
TOKEN_OF_OWNER = Function("tokenOfOwnerByIndex(address,uint256)", "uint256")
STAKED_VALUES = Function("stakedValues(address)", "uint256[]")
TOKEN_POSITIONS = Function(  # the fifth is the fee, Slipstream's the tick spacing
    "positions(uint256)",
    *("uint96", "address", "address", "address", "uint24", "int24", "int24"),
    *("uint128", "uint256", "uint256", "uint128", "uint128"),
)
COLLECT = Function("collect((uint256,address,uint128,uint128))", "uint256", "uint256")


class LogType:
    """An event of a contract: its signature, with `*` before each indexed type."""

    def __init__(self, signature: str):
        self.name, _, takes = signature.removesuffix(")").partition("(")
        kinds = takes.split(",")
        self.indexed = [kind[1:] for kind in kinds if kind[0] == "*"]
        self.data = [kind for kind in kinds if kind[0] != "*"]
        self.topic = "0x" + Web3.keccak(text=signature.replace("*", "")).hex().removeprefix("0x")

    def read(self, topics: Sequence[str], data: str) -> tuple:
        """The indexed values, then the others."""
        if len(topics) != len(self.indexed) + 1:
            raise ValueError(f"{self.name} has {len(topics)} topics")
        words = b"".join(bytes.fromhex(topic[2:]) for topic in topics[1:])
        return *_decode(self.indexed, words), *_decode(self.data, bytes.fromhex(data[2:]))


POOL_LOGS = [
    LogType("Initialize(uint160,int24)"),
    LogType("Swap(*address,*address,int256,int256,uint160,uint128,int24)"),
    LogType("Mint(address,*address,*int24,*int24,uint128,uint256,uint256)"),
    LogType("Burn(*address,*int24,*int24,uint128,uint256,uint256)"),
    LogType("Collect(*address,address,*int24,*int24,uint128,uint128)"),
    LogType("Flash(*address,*address,uint256,uint256,uint256,uint256)"),
    LogType("SetFeeProtocol(uint8,uint8,uint8,uint8)"),
    LogType("CollectProtocol(*address,*address,uint128,uint128)"),
]
CL_LOGS = [  # of a Slipstream pool besides, and of its gauge: user, token id, liquidity
    LogType("CollectFees(*address,uint128,uint128)"),
    LogType("Deposit(*address,*uint256,*uint128)"),
    LogType("Withdraw(*address,*uint256,*uint128)"),
]
TRANSFER = LogType("Transfer(*address,*address,*uint256)")
MANAGER_LOGS = [
    LogType("IncreaseLiquidity(*uint256,uint128,uint256,uint256)"),
    LogType("DecreaseLiquidity(*uint256,uint128,uint256,uint256)"),
    LogType("Collect(*uint256,address,uint256,uint256)"),
]
_LOG_TYPES = {kind.topic: kind for kind in (*POOL_LOGS, *CL_LOGS, TRANSFER, *MANAGER_LOGS)}


class Log(NamedTuple):
    """A contract's event as a node returns it; `values`: first those that are indexed."""

    block: int
    index: int
    block_hash: str
    transaction: str
    address: str
    name: str
    values: tuple


def read_log(raw: Any) -> Log:
    """Check one log of an answer. Raises `Malformed`."""
    try:
        kind = _LOG_TYPES[raw["topics"][0]]
        log = Log(
            integer(raw["blockNumber"]),
            integer(raw["logIndex"]),
            raw["blockHash"],
            raw["transactionHash"],
            raw["address"].lower(),
            kind.name,
            kind.read(raw["topics"], raw["data"]),
        )
        if raw.get("removed") or not HASH.fullmatch(log.block_hash):
            raise ValueError("it is not in the chain")
        return log
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, Malformed) as error:
        raise Malformed(f"a log that cannot be: {type(error).__name__} {error}"[:160]) from error


class Header(NamedTuple):
    """A block's header, as far as it is needed."""

    number: int
    time: int
    hash: str
    parent: str

    @property
    def block(self) -> Block:
        return Block(self.number, self.time, self.hash)


def read_header(raw: Any) -> Header:
    """Check one block of an answer. Raises `Malformed`."""
    try:
        header = Header(integer(raw["number"]), integer(raw["timestamp"]), raw["hash"], raw["parentHash"])
        if not (HASH.fullmatch(header.hash) and HASH.fullmatch(header.parent)):
            raise ValueError("its hash is none")
        return header
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"a block that cannot be: {type(error).__name__} {error}"[:160]) from error


class Receipt(NamedTuple):
    """What became of a transaction.

    Attributes:
        block, success, sender: where it is, whether it did what it was to do, and from which address.
        gas_used, gas_wei: what it cost, a layer 2's fee for data included.
        places: (block, log index) of its logs.
    """

    block: int
    success: bool
    sender: str
    gas_used: int
    gas_wei: int
    places: frozenset[tuple[int, int]]


def read_receipt(raw: Any) -> Receipt:
    """Check one receipt of an answer. Raises `Malformed`."""
    try:
        block, gas_used = integer(raw["blockNumber"]), integer(raw["gasUsed"])
        gas_wei = gas_used * integer(raw["effectiveGasPrice"]) + integer(raw.get("l1Fee") or "0x0")
        places = frozenset((block, integer(log["logIndex"])) for log in raw["logs"])
        return Receipt(block, integer(raw["status"]) == 1, raw["from"].lower(), gas_used, gas_wei, places)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"a receipt that cannot be: {type(error).__name__} {error}"[:160]) from error


def header_call(number: int | str) -> tuple[str, list]:
    """For `Rpc.batch`: a block's header."""
    return "eth_getBlockByNumber", [hex(number) if isinstance(number, int) else number, False]


# ---------------------------------------------------------------------------------------------------------------------
# A pool


@dataclass(frozen=True)
class Contract:
    """A pool's contract: all of it that never changes.

    Attributes:
        pair: what it trades, on which chain.
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
    def addresses(self) -> list[str]:
        """Of the contracts whose logs make the pool's events."""
        return [self.pair.pool_address, *([self.gauge] if self.gauge else [])]

    @property
    def log_types(self) -> list[LogType]:
        """Of the logs that make the pool's events."""
        return POOL_LOGS + CL_LOGS if self.gauge else POOL_LOGS

    @cached_property
    def words(self) -> range:
        """The words of the tick bitmap that can hold anything."""
        most = MAX_TICK // self.pair.tick_spacing
        return range(-most >> 8, (most >> 8) + 1)


@dataclass(frozen=True, slots=True)
class State:
    """What a pool's contract says of itself; see `sim.Pool`. Any event but a burn changes one of these or a tick.

    Attributes:
        staked_liquidity, gauge_fees0, gauge_fees1: as of `sim.SlipstreamPool`; 0 on Uniswap.
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
        names = cls.__slots__[: -2 if isinstance(pool, SlipstreamPool) else -5]
        return cls(*(getattr(pool, name) for name in names))

    def differences(self, other: State) -> str:
        """In words, but for the factory's fees; empty if there are none."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__slots__[:-2])
        return ", ".join(f"{name} {mine}, {theirs}" for name, mine, theirs in pairs if mine != theirs)


async def describe(rpc: Rpc, pool_address: str, manager: str | None = None) -> Contract:
    """Find out what kind of pool stands at an address.

    Args:
        rpc: the chain.
        pool_address: the pool's.
        manager: the position manager's address, where it is not the one that everybody uses; a Slipstream pool names
            its own.

    Raises:
        MarketError: there is no pool of a known kind, or a Slipstream pool without a gauge, the named manager is of
            other pools, or not all endpoints are of the same chain.
        RpcError: the chain cannot be asked.
    """
    pool_address = address(pool_address, "pool")
    chains = await rpc.each("eth_chainId", [])
    if len({str(chain) for chain in chains.values()}) > 1:
        said = ", ".join(f"{endpoint.name} {int(chain, 16)}" for endpoint, chain in chains.items())
        raise MarketError(f"the RPC endpoints are of different chains ({said}); leave the wrong ones out")
    chain_id = int(next(iter(chains.values())), 16)
    at = read_header((await rpc.batch([header_call("latest")]))[0]).hash
    found = await rpc.batch([SLOT0.call(pool_address, at)])
    slipstream = isinstance(found[0], str) and len(found[0]) == 2 + 6 * 64  # there is no protocol fee in it
    functions = TOKEN0, TOKEN1, FEE, TICK_SPACING, *((GAUGE, NFT, *_CL_STATE) if slipstream else _STATE)
    found = await rpc.batch([function.call(pool_address, at) for function in functions])
    kind = "Slipstream" if slipstream else "Uniswap V3"
    not_one = f"{pool_address} on chain {chain_id} does not answer as a {kind} pool; check the address (--pool)"
    try:
        values = [function.read(result) for function, result in zip(functions, found, strict=True)]
    except Malformed as error:
        raise MarketError(f"{not_one}: {error}") from error
    if None in values:
        raise MarketError(not_one)
    (token0,), (token1,), (fee,), (tick_spacing,), *rest = values
    gauge = ""
    if slipstream:
        gauge, manager = rest[0][0].lower(), rest[1][0].lower()
        if NULL_ADDRESS in (gauge, manager):
            raise MarketError(f"the Slipstream pool {pool_address} has no gauge yet: stakes could not be followed")
    tokens = [await _describe_token(rpc, token.lower(), at) for token in (token0, token1)]
    pair = Pair(chain_id, pool_address, *tokens, fee, tick_spacing)
    if manager and not slipstream:
        manager = address(manager, "position manager")
        answers = await rpc.batch([FACTORY.call(one, at) for one in (pool_address, manager)], refusable=True)
        of_pool, of_manager = map(FACTORY.read, answers)
        if of_manager is None or of_manager != of_pool:
            what = "no position manager stands there" if of_manager is None else "it is of another factory's pools"
            raise MarketError(f"position manager {manager}: {what}; name the pool's own with --manager 0x...")
    return Contract(pair, manager or POSITION_MANAGERS.get(chain_id, ""), gauge)


async def _describe_token(rpc: Rpc, token: str, at: str) -> Token:
    symbol, decimals = await rpc.batch([SYMBOL.call(token, at), DECIMALS.call(token, at)])
    try:
        (text,) = SYMBOL.read(symbol) or ("",)
    except Malformed:  # some of the first tokens have bytes32
        text = bytes.fromhex(symbol.removeprefix("0x"))[:32].decode("ascii", "replace")
    (decimals,) = DECIMALS.read(decimals) or (0,)
    return Token(token, re.sub(r"[^A-Za-z0-9.+$-]", "", text)[:16] or "?", decimals)


def _state_calls(contract: Contract, at: str) -> list[tuple[str, list]]:
    functions = _CL_STATE if contract.slipstream else _STATE
    return [function.call(contract.pair.pool_address, at) for function in functions]


async def read_state(
    rpc: Rpc, contract: Contract, block_hash: str, patient: bool, endpoints: set[Endpoint]
) -> State | None:
    """The pool's state after a block; None where a node no longer has it and `patient` is off.

    `endpoints` is given those that answered.

    Raises:
        RpcError: no endpoint answers.
        Malformed: one answers nonsense.
    """
    answers = await rpc.batch(_state_calls(contract, block_hash), refusable=not patient)
    endpoints |= answers.endpoints
    if any(isinstance(answer, Refusal) for answer in answers):
        return None
    return _state(contract, answers, answers.endpoints)


def _state(contract: Contract, answers: Sequence[Any], endpoints: set[Endpoint]) -> State:
    try:
        functions = _CL_STATE if contract.slipstream else _STATE
        values = [f.read(answer) for f, answer in zip(functions, answers, strict=True)]
        if contract.slipstream:
            (price, tick, *_), (liquidity,), (growth0,), (growth1,), staked, gauge_fees, fee, unstaked_fee = values
            besides = *staked, *gauge_fees, *fee, *unstaked_fee
            return State(price, tick, liquidity, growth0, growth1, (0, 0), (0, 0), *besides)
        (price, tick, *_, fee_protocol, _), *single, protocol_fees = values
        numbers = [value for (value,) in single]
        return State(price, tick, *numbers, (fee_protocol % 16, fee_protocol >> 4), protocol_fees)
    except (TypeError, Malformed) as error:
        why = "no contract was there at that block" if "0x" in answers else error
        raise Malformed(f"the pool's state cannot be: {why}", endpoints) from error


def _tick(index: int, row: tuple, slipstream: bool) -> TickState:
    gross, net, *rest = row
    staked = str(rest.pop(0)) if slipstream else None
    return TickState(index, gross, str(net), *rest[:2], staked)


async def read_ticks(rpc: Rpc, contract: Contract, block_hash: str) -> tuple[State, tuple[TickState, ...]]:
    """The pool's state and all initialised ticks after a block, in `1 + words / 1000 + ticks / 1000` requests or so.

    Raises:
        RpcError: no endpoint answers.
        Malformed: what they answer contradicts itself.
    """
    pool, spacing = contract.pair.pool_address, contract.pair.tick_spacing
    first = _state_calls(contract, block_hash)
    answers = await rpc.batch(first + [TICK_BITMAP.call(pool, block_hash, word) for word in contract.words])
    endpoints = answers.endpoints
    try:
        state = _state(contract, answers[: len(first)], endpoints)
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
        function = CL_TICKS if contract.slipstream else TICKS
        answers = await rpc.batch([function.call(pool, block_hash, index) for index in indices])
        endpoints = endpoints | answers.endpoints
        rows = [function.read(answer) for answer in answers]
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
    return state, ticks


def snapshot_of(contract: Contract, state: State, ticks: tuple[TickState, ...], after: Block) -> Snapshot:
    """The pool after a block, without a vault; the next block's time and hash are left to fill in."""
    return Snapshot(
        block=after.number + 1,
        block_time=after.time,
        block_hash=after.hash,
        fee=state.fee if contract.slipstream else contract.pair.fee,
        tick_spacing=contract.pair.tick_spacing,
        fee_protocol0=state.fee_protocol[0],
        fee_protocol1=state.fee_protocol[1],
        sqrt_price_x96=state.sqrt_price_x96,
        tick=state.tick,
        liquidity=state.liquidity,
        fee_growth_global0_x128=state.fee_growth_global0_x128,
        fee_growth_global1_x128=state.fee_growth_global1_x128,
        ticks=ticks,
        vault=(),
        idle0=0,
        idle1=0,
        slipstream=SlipstreamState(
            contract.manager,
            contract.gauge,
            state.unstaked_fee,
            state.staked_liquidity,
            state.gauge_fees0,
            state.gauge_fees1,
        )
        if contract.slipstream
        else None,
    )


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


async def read_uncollected(
    rpc: Rpc, contract: Contract, vault: str, token_ids: Sequence[int], block_hash: str
) -> list[tuple[int, int]]:
    """What `collect` would pay the vault for each token right after a block, both tokens, to the wei.

    The contract itself says so: the call is made, and its effects forgotten.
    """
    answers = await rpc.batch(
        [
            COLLECT.call(contract.manager, block_hash, token_id, vault, MASK_128, MASK_128, sender=vault)
            for token_id in token_ids
        ]
    )
    found = [COLLECT.read(answer) for answer in answers]
    if None in found:
        raise MarketError(f"position {token_ids[found.index(None)]} is not {vault}'s to collect from")
    return found


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
            vault = arriving.pop(token_id)
            taken = NamedToken(vault, *ticks) in tokens.values()
            tokens[token_id] = NamedToken(f"{vault}#{token_id}" if taken else vault, *ticks)
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
        values, index = one.values, one.index
        owner = names.get((one.block, one.index), values[0])
        key = (owner, *values[1:3])
        if contract.slipstream and one.name == "Collect":
            collects[one.transaction, values[0]] = one
            if values[0] == contract.gauge:
                continue
        match one.name:
            case "Swap":
                kind, args = "swap", ("", *values[2:])
            case "Mint":
                if contract.slipstream and owner == contract.gauge and values[3] != contract.manager:
                    key = (f"{owner}#", *values[1:3])  # somebody's gift to the gauge, which nobody stakes
                kind, args = "mint", (*key, *values[4:])
            case "Burn":
                kind, args = "burn", (*key, *values[3:])
            case "Collect":
                kind, args = "collect", (*key, *values[4:])
            case "Flash":
                kind, args = "flash", values[2:]
            case "SetFeeProtocol":
                kind, args = "set_fee_protocol", values[2:]
            case "CollectProtocol":
                kind, args = "collect_protocol", values[2:]
            case "CollectFees":
                kind, args = "collect_fees", values[1:]
            case "Deposit" | "Withdraw":
                kind = "stake" if one.name == "Deposit" else "unstake"
                collect = collects.get((one.transaction, contract.manager if kind == "stake" else contract.gauge))
                if not collect:
                    raise Malformed(f"block {one.block} log {one.index}: {one.name} without the collect before it")
                if not values[2]:
                    continue
                owner = names.get((one.block, one.index), contract.manager)
                args = (owner, *collect.values[1:3], values[2])
                index = one.index if kind == "stake" else collect.index
            case _:
                raise Malformed(f"block {one.block} log {one.index}: {one.name} in a pool that has a price")
        if kind in ("burn", "collect") and owner != contract.gauge and any(args[-2:]):
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
            events.append(Event(one.block, index, times[one.block], kind, args))
    return sorted(events, key=lambda event: event[:2]), rows
