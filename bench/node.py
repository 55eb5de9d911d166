"""A chain with one pool on it, as a node would show it: our own exact pool behind JSON-RPC, on the loopback interface.

No contract runs here: it is for measuring the follower, whose answers must come faster than a real chain makes them.
What real contracts answer is compared in `tests/test_evm_market.py`. Read next: `bench/follower.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aiohttp import web

from evm import abi
from evm import pool as pool_module
from liquidity.fast import FastPool
from liquidity.replay import Snapshot
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, PIPS, sqrt_ratio_at_tick

POOL, TOKEN0, TOKEN1, SOMEBODY = (f"0x{n:040x}" for n in range(1, 5))
FEE, SPACING, CHAIN_ID, BLOCK_SECONDS = 500, 10, 31337, 1
SWAP = next(kind for kind in abi.POOL_LOGS if kind.name == "Swap")
_SELECTORS = {
    f.selector.hex(): f
    for f in (
        *(pool_module.TOKEN0, pool_module.TOKEN1, pool_module.FEE, pool_module.TICK_SPACING, pool_module.SLOT0),
        *(pool_module.LIQUIDITY, pool_module.GROWTH0, pool_module.GROWTH1, pool_module.PROTOCOL_FEES),
        *(pool_module.TICK_BITMAP, pool_module.TICKS, pool_module.SYMBOL, pool_module.DECIMALS),
    )
}


def words(*values: int) -> str:
    """ABI words, without 0x."""
    return "".join(f"{value % (1 << 256):064x}" for value in values)


def block_hash(number: int) -> str:
    return "0x" + hashlib.sha256(str(number).encode()).hexdigest()


class Node:
    """Blocks of swaps on a pool of 200 positions, from a seed.

    Attributes:
        head: the last block that is shown.
    """

    def __init__(self, blocks: int, swaps: int, seed: int = 1):
        self._rng, self.pool, self.head = Random(seed), FastPool(FEE, SPACING), 0
        self.pool.initialize(sqrt_ratio_at_tick(3))
        self.pool.mint("founder", -887_270, 887_270, 10**18)
        for _ in range(200):
            lower = self._rng.randint(-60, 55) * SPACING
            self.pool.mint("lp", lower, lower + self._rng.randint(1, 40) * SPACING, self._rng.randint(1, 99) * 10**17)
        self._start = Snapshot.of(self.pool, (), (0, 0), 1, 0, block_hash(0))
        self._states, self._logs = [pool_module.State.of(self.pool)], [[]]
        for number in range(1, blocks + 1):
            self._logs.append([self._swap(number, index) for index in range(swaps)])
            self._states.append(pool_module.State.of(self.pool))

    def _swap(self, block: int, index: int) -> dict:
        pool, rng = self.pool, self._rng
        down = rng.random() < 0.3 + 0.4 * (pool.tick > 0)
        amount, limit = int(10 ** rng.uniform(12, 16.5)), MIN_SQRT_RATIO + 1 if down else MAX_SQRT_RATIO - 1
        how = rng.random()
        if how < 0.3:
            limit = pool.sqrt_price_x96 * (PIPS - (1 if down else -1) * rng.randint(1, 300)) // PIPS
            amount = 10**30
        amounts = pool.swap(down, -amount if how > 0.9 else amount, limit)
        return {
            "address": POOL,
            "topics": [SWAP.topic, *("0x" + SOMEBODY[2:].rjust(64, "0") for _ in range(2))],
            "data": "0x" + words(*amounts, pool.sqrt_price_x96, pool.liquidity, pool.tick),
            "blockNumber": hex(block),
            "blockHash": block_hash(block),
            "transactionHash": "0x" + words(block << 32 | index),
            "transactionIndex": hex(index),
            "logIndex": hex(index),
            "removed": False,
        }

    def answer(self, method: str, parameters: list):
        if method == "eth_chainId":
            return hex(CHAIN_ID)
        if method == "eth_getBlockByNumber":
            number = self.head if parameters[0] == "latest" else int(parameters[0], 16)
            times = {"timestamp": hex(1_700_000_000 + number * BLOCK_SECONDS)}
            hashes = {"hash": block_hash(number), "parentHash": block_hash(number - 1)}
            return {"number": hex(number)} | times | hashes if number <= self.head else None
        if method == "eth_getLogs":
            first, last = (int(parameters[0][key], 16) for key in ("fromBlock", "toBlock"))
            return [one for logs in self._logs[first : last + 1] for one in logs]
        call, at = parameters
        number = next(n for n in range(self.head, -1, -1) if block_hash(n) == at["blockHash"])
        return "0x" + self._call(call["data"][2:10], call["data"][10:], self._states[number])

    def _call(self, selector: str, arguments: str, state: pool_module.State) -> str:
        name = _SELECTORS[selector].name
        if name == "tickBitmap":
            word = int.from_bytes(bytes.fromhex(arguments), "big", signed=True)
            places = (tick.index // SPACING - word * 256 for tick in self._start.ticks)
            return words(sum(1 << place for place in places if 0 <= place < 256))
        if name == "ticks":
            index = int.from_bytes(bytes.fromhex(arguments), "big", signed=True)
            [tick] = [tick for tick in self._start.ticks if tick.index == index]
            outside = tick.fee_growth_outside0_x128, tick.fee_growth_outside1_x128
            return words(tick.liquidity_gross, int(tick.liquidity_net), *outside, 0, 0, 0, 1)
        fixed = {"token0": int(TOKEN0, 16), "token1": int(TOKEN1, 16), "fee": FEE, "tickSpacing": SPACING}
        fixed |= {"decimals": 18, "liquidity": state.liquidity}
        fixed |= {f"feeGrowthGlobal{n}X128": getattr(state, f"fee_growth_global{n}_x128") for n in (0, 1)}
        if name == "slot0":
            return words(state.sqrt_price_x96, state.tick, 0, 1, 1, 0, 1)
        if name == "symbol":
            return words(32, 3) + b"AAA".hex().ljust(64, "0")
        return words(*state.protocol_fees) if name == "protocolFees" else words(fixed[name])


@asynccontextmanager
async def serve(node: Node):
    """Answer on a free port; gives the address."""

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        calls = body if isinstance(body, list) else [body]
        answers = [{"jsonrpc": "2.0", "id": c["id"], "result": node.answer(c["method"], c["params"])} for c in calls]
        return web.json_response(answers if isinstance(body, list) else answers[0])

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/", handle)
    app.router.add_post("/head/{number}", lambda request: _set_head(node, request))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/"
    finally:
        await runner.cleanup()


async def _set_head(node: Node, request: web.Request) -> web.Response:
    node.head = int(request.match_info["number"])
    return web.Response()


async def _main(blocks: int, swaps: int) -> None:
    """Serve, print the address, and stop when standard input is closed."""
    async with serve(Node(blocks, swaps)) as url:
        print(json.dumps(url), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2])))
