"""What the bot reads from the chain: the pool's price and its averages, and what a mined transaction did to the vault.

    price, tick, averages = await read_prices(rpc, contract, tip.hash)
    did = await read_back(rpc, contract, vault, attempt, tip)
    report = did.fill(report)

Read next: `execution.py`, which reports it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median_low
from typing import Any, NamedTuple

from evm import abi
from evm.abi import Function, LogType, Malformed, header_call, integer, read_header, read_receipt, reading
from evm.pool import BALANCE_OF, Contract, read_state
from evm.rpc import Rpc, RpcError
from executor.journal import Attempt
from executor.plan import Amounts, add, apart
from liquidity.executions import Minted, Report
from protocol import Inventory
from sim import MASK_128

AVERAGE_SECONDS = 600  # of the time-weighted average that the spot price is held against
AVERAGE_PARTS = 10  # of it, and the median of their averages: one block at an absurd price moves the average, not that

OBSERVE = Function("observe(uint32[])", "int56[]", "uint160[]")
ERC20_TRANSFER = LogType("Transfer(*address,*address,uint256)")

log = logging.getLogger("readback")


class Tip(NamedTuple):
    """The latest block: number, time, hash, and what a unit of gas costs in it."""

    number: int
    time: int
    hash: str
    base_fee_wei: int


async def read_prices(rpc: Rpc, contract: Contract, block_hash: str) -> tuple[int, int, tuple[int, int] | None]:
    """The pool's price and tick after a block; its average tick and the median of its parts' averages, if known."""
    pool, part = contract.pair.pool_address, AVERAGE_SECONDS // AVERAGE_PARTS
    state = await read_state(rpc, contract, block_hash, True, set())
    [answer] = await rpc.batch([OBSERVE.call(pool, block_hash, list(range(AVERAGE_SECONDS, -1, -part)))])
    found = OBSERVE.read(answer)
    if found is None:
        return state.sqrt_price_x96, state.tick, None
    sums, _ = found
    if len(sums) != AVERAGE_PARTS + 1:
        raise Malformed(f"observe() returned {len(sums)} sums")
    parts = [(later - earlier) // part for earlier, later in pairwise(sums)]
    return state.sqrt_price_x96, state.tick, ((sums[-1] - sums[0]) // AVERAGE_SECONDS, median_low(parts))


def unknown_average(contract: Contract) -> str:
    """Why there is no average, and the fix."""
    return (
        f"pool {contract.pair.pool_address} does not remember its price of {AVERAGE_SECONDS} s ago;"
        " call its increaseObservationCardinalityNext with 600 or more, from any account, and wait as long"
    )


@dataclass(frozen=True, slots=True)
class Done:
    """What a transaction did; `before + released + fees - paid == after`.

    Attributes:
        before, after: the vault's idle tokens in the state before and after it; what empty tokens owed, which it
            collected, was idle before.
        released, fees, paid: what closing gave back, and paid in fees, and what was minted.
        trouble: what the tokens' contracts say otherwise; empty if they agree.
    """

    block: int
    transaction: str
    before: Amounts
    after: Amounts
    released: Amounts
    fees: Amounts
    paid: Amounts
    minted: tuple[Minted, ...]
    trouble: str = ""

    def fill(self, report: Report) -> Report:
        """The report with all this in it."""
        names = "before", "after", "released", "fees", "paid"
        amounts = {name: Inventory(*getattr(self, name)) for name in names}
        return replace(report, block=self.block, transaction=self.transaction, minted=self.minted, **amounts)


async def read_back(rpc: Rpc, contract: Contract, vault: str, mined: Attempt, tip: Tip) -> Done:
    """Read back what a transaction did: from the pool's logs, held against the vault's balances."""
    released = collected = owed = paid = (0, 0)
    minted, burnt = [], None
    for name, values in pool_logs(mined.receipt, contract):
        match name:
            case "Mint":
                paid = add(paid, values[-2:])
                minted.append(Minted(*values[1:3], values[4]))
            case "Burn":
                burnt = values[-2:]
            case "Collect" if burnt:
                released, collected = add(released, apart(burnt, values[-2:])[0]), add(collected, values[-2:])
                burnt = None
            case "Collect":  # from an empty token: a full one's fees are settled before, by burning nothing
                owed = add(owed, values[-2:])
    released, fees = apart(released, collected)
    net = tuple(got + had - out for got, had, out in zip(collected, owed, paid, strict=True))
    before, after, trouble = await _balances_around(rpc, contract, vault, mined, tip, net)
    block = integer(mined.receipt["blockNumber"])
    return Done(block, mined.hash, add(before, owed), after, released, fees, paid, tuple(minted), trouble)


def pool_logs(receipt: dict[str, Any], contract: Contract) -> list[tuple[str, tuple]]:
    """What the pool logged in a transaction; the manager's logs may be some wei more. Raises `Malformed`."""
    pool, kinds = contract.pair.pool_address, {kind.topic: kind for kind in abi.POOL_LOGS}
    with reading("receipt"):
        own = [raw for raw in receipt["logs"] if raw["address"].lower() == pool]
        found = [(raw, kinds.get((*raw["topics"], "")[0])) for raw in own]
        return [(kind.name, kind.read(raw["topics"], raw["data"])) for raw, kind in found if kind]


async def _balances_around(
    rpc: Rpc, contract: Contract, vault: str, mined: Attempt, tip: Tip, net: Amounts
) -> tuple[Amounts, Amounts, str]:
    """The vault's tokens in the state before and after a transaction, which changed them by `net`.

    From the balances after its block and the tokens' logs in it; of a node that has forgotten that state from the
    latest balances, back through all logs since. Where the parent block's balances are remembered all must agree.
    """
    receipt, tokens = mined.receipt, (contract.pair.token0.address.lower(), contract.pair.token1.address.lower())
    block, place = integer(receipt["blockNumber"]), integer(receipt["transactionIndex"])
    if tip.number < block:
        raise RpcError(f"the node is at block {tip.number}, the transaction is in {block}")
    [parent] = await rpc.batch([header_call(block - 1)], usable=bool)
    at_end = [BALANCE_OF.call(token, receipt["blockHash"], vault) for token in tokens]
    have, end = [BALANCE_OF.read(answer) for answer in await rpc.batch(at_end, refusable=True)], block
    if None in have:
        at_end, end = [BALANCE_OF.call(token, tip.hash, vault) for token in tokens], tip.number
        have = [BALANCE_OF.read(answer) for answer in await rpc.batch(at_end)]
    word = f"0x{vault[2:]:0>64}"
    span = {"fromBlock": hex(block), "toBlock": hex(end), "address": list(tokens)}
    topics = [ERC20_TRANSFER.topic, word], [ERC20_TRANSFER.topic, None, word]
    logs = await rpc.batch([("eth_getLogs", [span | {"topics": one}]) for one in topics])
    earlier, own, later = [0, 0], [0, 0], [0, 0]
    with reading("log"):
        for sign, raw in ((sign, raw) for sign, found in zip((-1, 1), logs, strict=True) for raw in found):
            *_, amount = ERC20_TRANSFER.read(raw["topics"], raw["data"])
            at = integer(raw["blockNumber"]), integer(raw["transactionIndex"])
            where = own if at == (block, place) else earlier if at < (block, place) else later
            where[tokens.index(raw["address"].lower())] += sign * amount
    old = [BALANCE_OF.call(token, read_header(parent).hash, vault) for token in tokens]
    had = [BALANCE_OF.read(answer) for answer in await rpc.batch(old, refusable=True)]
    after = tuple(one(a) - b for a, b in zip(have, later, strict=True))
    before = tuple(a - b for a, b in zip(after, net, strict=True))
    if not all(0 <= amount <= MASK_128 for amount in (*before, *after)):
        raise Malformed(f"balances of {before} before and {after} after {mined.hash}")
    trouble = ""
    if tuple(own) != net:
        trouble = f"the tokens' logs say {own[0]}, {own[1]}, the pool's {net[0]}, {net[1]}"
    elif None not in had and (found := tuple(a + b for (a,), b in zip(had, earlier, strict=True))) != before:
        trouble = f"before it the balances were {found[0]}, {found[1]}, by the logs {before[0]}, {before[1]}"
    if trouble:
        log.error("%s: %s", mined.hash, trouble)
    return before, after, trouble


def gas_of(attempts: Sequence[Attempt]) -> tuple[int, int]:
    """Gas used by all that were mined, and the wei paid for it, a layer 2's own fees included."""
    receipts = [read_receipt(attempt.receipt) for attempt in attempts if attempt.receipt]
    return sum(receipt.gas_used for receipt in receipts), sum(receipt.gas_wei for receipt in receipts)


def checked_receipt(receipt: Any, attempt: Attempt, contract: Contract) -> int:
    """The block of a receipt that has all that will be read of it. Raises `Malformed`."""
    with reading("receipt"):
        if receipt["transactionHash"] != attempt.hash or receipt["status"] not in ("0x0", "0x1"):
            raise ValueError("it is of another transaction, or has no status")
        integer(receipt["transactionIndex"])
        if not abi.HASH.fullmatch(receipt["blockHash"]):
            raise ValueError("its hash is none")
        pool_logs(receipt, contract)
        return read_receipt(receipt).block


def one(found: tuple | None) -> Any:
    """The only value of what a contract returned. Raises `Malformed` where there is none."""
    if found is None:
        raise Malformed("a contract that must be there does not answer")
    return found[0]
