"""A node that serves a trace of Slipstream's bytecode as a chain: JSON-RPC on the loopback interface.

    chain = TracedChain(path, vault=3)
    async with chain.node() as url: ...                     # blocks, logs, calls; `chain.head` is the head it tells

What is real, that is, recorded from the bytecode: the operations and their times; what swaps, mints, burns, flashes and
collects paid; after every operation price, tick, liquidity, fee growth, gauge fees, staked liquidity and both fees.

What is computed: ticks, and positions where no operation has just shown them, by `sim.SlipstreamPool`, which makes
every operation too, is held against all that is recorded of it, and against the dumps of all ticks and positions.

What is put around it, for the traces have no tokens, no factory and no blocks: operations of one second are one block.
Logs are encoded as the contracts encode them; their order is that of the operations. The trace's plain accounts are the
position manager and the gauge: a stake or an unstake of theirs is told as the gauge's Deposit or Withdraw of a token of
just that liquidity, with the collect that a gauge makes before it (of nothing). What the gauge mints or burns and then
stakes alone is what older gauges' `increaseStakedLiquidity` and `decreaseStakedLiquidity` do, and needs no log of its
own. One owner of the trace, the vault, is told as a holder of tokens: its operations as the position manager's, one
token a range. Everything of token contracts is invented.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from web3 import Web3

from evm import abi
from evm import pool as pool_module
from evm.abi import Function, LogType
from executor import readback, wallet
from liquidity.slipstream import SlipstreamPool

FIRST_BLOCK = 100  # the pool is there, and nothing has happened
POOL, TOKEN0, TOKEN1 = ("0x" + digit * 40 for digit in "789")
USER = "0x" + "ab" * 20
NAMES = {kind.name: kind for kind in (*abi.POOL_LOGS, *abi.CL_LOGS)}
MANAGER_NAMES = {kind.name: kind for kind in (*abi.MANAGER_LOGS, abi.TRANSFER)}
OF_POOL = [
    pool_module.TOKEN0,
    pool_module.TOKEN1,
    pool_module.FEE,
    pool_module.TICK_SPACING,
    pool_module.CL_SLOT0,
    pool_module.LIQUIDITY,
    pool_module.GROWTH0,
    pool_module.GROWTH1,
    pool_module.UNSTAKED_FEE,
]
OF_POOL += [
    pool_module.STAKED_LIQUIDITY,
    pool_module.GAUGE_FEES,
    pool_module.GAUGE,
    pool_module.NFT,
    pool_module.TICK_BITMAP,
    pool_module.CL_TICKS,
]
OF_TOKENS = [
    pool_module.SYMBOL,
    pool_module.DECIMALS,
    pool_module.BALANCE_OF,
    pool_module.TOKEN_OF_OWNER,
    pool_module.TOKEN_POSITIONS,
    pool_module.COLLECT,
    pool_module.STAKED_VALUES,
    pool_module.POOL_POSITIONS,
    readback.OBSERVE,
    wallet.ALLOWANCE,
    wallet.TOTAL_SUPPLY,
]
FUNCTIONS = {function.selector: function for function in (*OF_POOL, *OF_TOKENS)}
CALLS = {  # the trace's arguments in the order of the method's
    "mint": ("owner", "lo", "hi", "amount"),
    "burn": ("owner", "lo", "hi", "amount"),
    "collect": ("owner", "lo", "hi", "max0", "max1"),
    "swap": ("z", "amount", "limit"),
    "flash": ("amount0", "amount1", "tip0", "tip1"),
    "set_fees": ("fee", "unstaked"),
    "stake": ("d", "lo", "hi", "upd"),
    "collect_fees": (),
    "sync_reward": ("rate", "reserve", "finish"),
    "update_rewards": (),
}


@dataclass
class TracedBlock:
    """A block: its operations, its logs, and the pool after it."""

    number: int
    time: int
    hash: str
    parent: str
    operations: list[dict] = field(default_factory=list)
    logs: list[dict] = field(default_factory=list)
    pool: SlipstreamPool | None = None
    tokens: dict[tuple[int, int], int] = field(default_factory=dict)
    staked: tuple[int, ...] = ()
    words: dict[int, int] = field(default_factory=dict)  # of the tick bitmap, once asked for


class TracedChain:
    """A trace as a chain.

    Args:
        path: of the trace.
        vault: index of the owner whose positions are told as tokens.

    Attributes:
        vault, manager, gauge: addresses.
        blocks: by number, from `FIRST_BLOCK` on.
        head: number of the block that the node says is the last.
    """

    def __init__(self, path: Path, vault: int = 3):
        header, *lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        self.owners, self._keys = header["owners"], header["sKeys"]
        self.manager, self.gauge, self.vault = self.owners[0], self.owners[1], self.owners[vault]
        self.spacing = header["tickSpacing"]
        self._pool = SlipstreamPool(header["fee"], self.spacing, nft=self.manager, gauge=self.gauge)
        self._pool.initialize(header["sqrtPriceX96"])
        self._tokens: dict[tuple[int, int], int] = {}
        self._staked: tuple[int, ...] = ()
        self.blocks: dict[int, TracedBlock] = {}
        self._seal(self._begin(FIRST_BLOCK, header["t"]))
        for line in lines:
            if line.get("err") == "TF":
                break  # a token without balance; see the traces' README
            if line["op"] == "dump":
                self._check_dump(line)
            elif line["op"] in CALLS and "err" not in line:
                self._make(line)
        self._seal(self.last)
        self.head = max(self.blocks)
        self._by_hash = {block.hash: block for block in self.blocks.values()}

    @property
    def last(self) -> TracedBlock:
        return self.blocks[max(self.blocks)]

    def operations(self) -> list[tuple[TracedBlock, dict]]:
        """All operations that were accepted, with their blocks."""
        return [(block, line) for block in self.blocks.values() for line in block.operations]

    # -- making blocks

    def _begin(self, number: int, time: int) -> TracedBlock:
        parent = self.blocks[number - 1].hash if number - 1 in self.blocks else "0x" + "00" * 32
        hash_ = "0x" + hashlib.sha256(f"{self.gauge}{number}".encode()).hexdigest()
        block = self.blocks[number] = TracedBlock(number, time, hash_, parent)
        return block

    def _seal(self, block: TracedBlock) -> None:
        block.pool, block.tokens, block.staked = self._pool.copy(), dict(self._tokens), self._staked

    def _make(self, line: dict) -> None:
        """One operation: by our pool, held against the recorded outcome, and into a block."""
        if line["t"] != self.last.time or self.last.number == FIRST_BLOCK:
            assert line["op"] != "stake" or line["upd"], "it belongs to the block of what was minted or burned"
            self._seal(self.last)
            self._begin(self.last.number + 1, max(line["t"], self.last.time + 1))
        arguments = [self.owners[line[name]] if name == "owner" else line[name] for name in CALLS[line["op"]]]
        self._pool.timestamp = line["t"]
        result = getattr(self._pool, line["op"])(*arguments)
        result = list(result or ())
        assert line.setdefault("ret", result) == result, line  # of flashes the trace says only what they did
        recorded = dict(zip(self._keys, line["s"], strict=True))
        for name, value in recorded.items():
            if not name.startswith("obs"):
                assert getattr(self._pool, re.sub("([A-Z])", r"_\1", name).lower()) == value, (line, name)
        for name, owner in (("p", line.get("owner")), ("p0", 0), ("p1", 1)):
            if isinstance(line.get(name), list):
                assert self._position(self.owners[owner], line["lo"], line["hi"]) == line[name], line
        self.last.operations.append(line)
        getattr(self, f"_log_{line['op']}", lambda _: None)(line)

    def _check_dump(self, line: dict) -> None:
        names = "liquidity_gross", "liquidity_net", "staked_liquidity_net"
        names = *names, "fee_growth_outside0_x128", "fee_growth_outside1_x128"
        recorded = {int(index): values[:5] for index, values in line["ticks"].items() if values[-1]}
        assert {i: [getattr(mark, name) for name in names] for i, mark in self._pool.ticks.items()} == recorded
        for owner, lower, upper, values in line["positions"]:
            assert self._position(self.owners[owner], lower, upper) == values

    def _position(self, owner: str, lower: int, upper: int, pool: SlipstreamPool | None = None) -> list[int]:
        state = (pool or self._pool).position(owner, lower, upper)
        growth = state.fee_growth_inside0_last_x128, state.fee_growth_inside1_last_x128
        return [state.liquidity, *growth, state.tokens_owed0, state.tokens_owed1]

    # -- logs

    def _log(self, address: str, kind: LogType, line: dict, indexed: tuple, data: tuple) -> None:
        block = self.last
        words = [abi._codec.encode([kind_], [value]).hex() for kind_, value in zip(kind.indexed, indexed, strict=True)]
        block.logs.append(
            {
                "address": address,
                "topics": [kind.topic, *("0x" + word for word in words)],
                "data": "0x" + abi._codec.encode(kind.data, data).hex(),
                "blockNumber": hex(block.number),
                "blockHash": block.hash,
                "logIndex": hex(len(block.logs)),
                "transactionHash": "0x" + f"{line['i']:064x}",
            }
        )

    def _owner(self, line: dict) -> tuple[str, int | None]:
        """Who the pool says owns the position, and the vault's token if it is the vault's."""
        owner, token = self.owners[line["owner"]], None
        if owner == self.vault:
            owner, range_ = self.manager, (line["lo"], line["hi"])
            if range_ not in self._tokens:
                self._tokens[range_] = 1 + len(self._tokens)
            token = self._tokens[range_]
        return owner, token

    def _log_mint(self, line: dict) -> None:
        known = dict(self._tokens)
        owner, token = self._owner(line)
        sender = self.manager if owner in (self.manager, self.gauge) else owner
        range_ = line["lo"], line["hi"]
        self._log(POOL, NAMES["Mint"], line, (owner, *range_), (sender, line["amount"], *line["ret"]))
        if token and range_ not in known:
            self._log(self.manager, abi.TRANSFER, line, (abi.NULL_ADDRESS, self.vault, token), ())
        if token:
            amounts = line["amount"], *line["ret"]
            self._log(self.manager, MANAGER_NAMES["IncreaseLiquidity"], line, (token,), amounts)

    def _log_burn(self, line: dict) -> None:
        owner, token = self._owner(line)
        amounts = line["amount"], *line["ret"]
        self._log(POOL, NAMES["Burn"], line, (owner, line["lo"], line["hi"]), amounts)
        if token and line["amount"]:
            self._log(self.manager, MANAGER_NAMES["DecreaseLiquidity"], line, (token,), amounts)
        elif token:  # the position manager settles fees only to collect some
            self._log(POOL, NAMES["Collect"], line, (owner, line["lo"], line["hi"]), (USER, 0, 0))
            self._log(self.manager, MANAGER_NAMES["Collect"], line, (token,), (USER, 0, 0))

    def _log_collect(self, line: dict) -> None:
        owner, token = self._owner(line)
        self._log(POOL, abi.POOL_LOGS[4], line, (owner, line["lo"], line["hi"]), (USER, *line["ret"]))
        if token:
            self._log(self.manager, MANAGER_NAMES["Collect"], line, (token,), (USER, *line["ret"]))

    def _log_swap(self, line: dict) -> None:
        after = line["s"][0], line["s"][2], line["s"][1]
        self._log(POOL, NAMES["Swap"], line, (USER, USER), (*line["ret"], *after))

    def _log_flash(self, line: dict) -> None:
        self._log(POOL, NAMES["Flash"], line, (USER, USER), (line["amount0"], line["amount1"], *line["ret"]))

    def _log_collect_fees(self, line: dict) -> None:
        self._log(POOL, NAMES["CollectFees"], line, (self.gauge,), tuple(line["ret"]))

    def _log_stake(self, line: dict) -> None:
        if not line["upd"]:
            return
        range_ = line["lo"], line["hi"]
        name, holder = ("Deposit", self.manager) if line["d"] > 0 else ("Withdraw", self.gauge)
        self._log(POOL, NAMES["Burn"], line, (holder, *range_), (0, 0, 0))
        self._log(POOL, NAMES["Collect"], line, (holder, *range_), (USER, 0, 0))
        self._log(self.gauge, NAMES[name], line, (USER, 10_000 + line["i"], abs(line["d"])), ())

    # -- the node

    @asynccontextmanager
    async def node(self, fault: Callable[[str, Any], Any] = lambda method, result: result) -> AsyncIterator[str]:
        """Serve; `fault` may change what a method answers. Yields the URL."""

        async def serve(request: web.Request) -> web.Response:
            body = await request.json()
            answers = [self._answer(call, fault) for call in (body if isinstance(body, list) else [body])]
            return web.json_response(answers if isinstance(body, list) else answers[0])

        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/", serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
        finally:
            await runner.cleanup()

    def _answer(self, call: dict, fault: Callable[[str, Any], Any]) -> dict:
        result = fault(call["method"], getattr(self, f"_{call['method']}")(*call["params"]))
        return {"jsonrpc": "2.0", "id": call["id"], "result": result}

    def _eth_chainId(self) -> str:
        return "0x2105"

    def _eth_getBlockByNumber(self, number: str, full: bool) -> dict | None:
        block = self.blocks.get(self.head if number == "latest" else int(number, 16))
        if not block or block.number > self.head:
            return None
        times = {"number": hex(block.number), "timestamp": hex(block.time), "baseFeePerGas": "0x1"}
        return times | {"hash": block.hash, "parentHash": block.parent}

    def _eth_getBalance(self, holder: str, at: str) -> str:
        return "0x0"

    def _eth_getLogs(self, wanted: dict) -> list[dict]:
        addresses = wanted["address"] if isinstance(wanted["address"], list) else [wanted["address"]]
        first, last = int(wanted["fromBlock"], 16), min(int(wanted["toBlock"], 16), self.head)
        found = [log for number, block in self.blocks.items() if first <= number <= last for log in block.logs]
        return [log for log in found if log["address"] in addresses and _match(log["topics"], wanted["topics"])]

    def _eth_getTransactionByHash(self, name: str) -> dict:
        return {"hash": name, "from": self.vault}

    def _eth_call(self, transaction: dict, at: dict) -> str:
        block = self._by_hash[at["blockHash"]]
        data = bytes.fromhex(transaction["data"][2:])
        function = FUNCTIONS[data[:4]]
        answer = getattr(self, f"_call_{function.name}", None)
        arguments = abi._codec.decode(function.takes, data[4:])
        values = self._of_pool(function, block.pool) if answer is None else answer(transaction["to"], block, *arguments)
        return "0x" + (abi._codec.encode(function.returns, values).hex() if values is not None else "")

    def _of_pool(self, function: Function, pool: SlipstreamPool) -> tuple:
        return {
            "token0": (TOKEN0,),
            "token1": (TOKEN1,),
            "fee": (pool.fee,),
            "tickSpacing": (self.spacing,),
            "slot0": (pool.sqrt_price_x96, pool.tick, 0, 1, 1, True),
            "liquidity": (pool.liquidity,),
            "feeGrowthGlobal0X128": (pool.fee_growth_global0_x128,),
            "feeGrowthGlobal1X128": (pool.fee_growth_global1_x128,),
            "unstakedFee": (pool.unstaked_fee,),
            "stakedLiquidity": (pool.staked_liquidity,),
            "gaugeFees": (pool.gauge_fees0, pool.gauge_fees1),
            "gauge": (self.gauge,),
            "nft": (self.manager,),
        }[function.name]

    def _call_tickBitmap(self, to: str, block: TracedBlock, word: int) -> tuple:
        if not block.words:
            for place, bit in (divmod(index // self.spacing, 256) for index in block.pool.ticks):
                block.words[place] = block.words.get(place, 0) | 1 << bit
        return (block.words.get(word, 0),)

    def _call_ticks(self, to: str, block: TracedBlock, index: int) -> tuple:
        mark = block.pool.ticks[index]
        growth = mark.fee_growth_outside0_x128, mark.fee_growth_outside1_x128, mark.reward_growth_outside_x128
        return mark.liquidity_gross, mark.liquidity_net, mark.staked_liquidity_net, *growth, 0, 0, 0, True

    def _call_observe(self, to: str, block: TracedBlock, ages: tuple[int, ...]) -> tuple:
        return [-block.pool.tick * age for age in ages], [0] * len(ages)

    def _call_allowance(self, to: str, block: TracedBlock, holder: str, spender: str) -> tuple:
        return (0,)

    def _call_totalSupply(self, to: str, block: TracedBlock) -> tuple:
        return (1 << 100,)

    def _call_symbol(self, to: str, block: TracedBlock) -> tuple:
        return ("ONE" if to == TOKEN1 else "NIL",)

    def _call_decimals(self, to: str, block: TracedBlock) -> tuple:
        return (18,)

    def _call_balanceOf(self, to: str, block: TracedBlock, holder: str) -> tuple:
        return (len(self._held(block)) if to == self.manager and holder == self.vault else 0,)

    def _held(self, block: TracedBlock) -> list[int]:
        return [token for token in block.tokens.values() if token not in block.staked]

    def _call_tokenOfOwnerByIndex(self, to: str, block: TracedBlock, holder: str, at: int) -> tuple:
        return (self._held(block)[at],)

    def _call_stakedValues(self, to: str, block: TracedBlock, holder: str) -> tuple:
        return (list(block.staked) if holder == self.vault else [],)

    def _call_positions(self, to: str, block: TracedBlock, token: int | bytes) -> tuple:
        if to == POOL:
            return self._pool_position(block.pool, token)
        range_ = next(range_ for range_, number in block.tokens.items() if number == token)
        state = self._position(self.vault, *range_, block.pool)
        return 0, abi.NULL_ADDRESS, TOKEN0, TOKEN1, self.spacing, *range_, *state

    def _pool_position(self, pool: SlipstreamPool, name: bytes) -> tuple:
        """The position manager's have the vault's in them; of others nothing is read than how much there is."""
        liquidity = 0
        for (owner, *range_), state in pool.positions.items():
            owner = self.manager if owner == self.vault else owner
            if Web3.solidity_keccak(["address", "int24", "int24"], [Web3.to_checksum_address(owner), *range_]) == name:
                liquidity += state.liquidity
        return liquidity, 0, 0, 0, 0

    def _call_collect(self, to: str, block: TracedBlock, token: int, *_: Any) -> tuple:
        range_ = next(range_ for range_, number in block.tokens.items() if number == token)
        return self.earned(block, range_)

    def earned(self, block: TracedBlock, range_: tuple[int, int]) -> tuple[int, int]:
        """What the vault's position in a range is owed after a block, once its fees are settled."""
        pool = block.pool.copy()
        if pool.position(self.vault, *range_).liquidity:
            pool.burn(self.vault, *range_, 0)
        return tuple(self._position(self.vault, *range_, pool)[3:])


def _match(topics: list[str], wanted: list) -> bool:
    """As eth_getLogs does it: each place null, a topic, or a list of which one must be it."""
    if len(topics) < len(wanted):
        return False
    for topic, want in zip(topics, wanted, strict=False):
        if want is not None and topic not in (want if isinstance(want, list) else [want]):
            return False
    return True
