"""Who minted a position token: of those that a vault holds only its own and its operators' count.

Anybody may mint for a vault, and send it what he has: what he can make of a vault he does not.
Read first: `pool.py`. Read next: `follower.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

from evm.abi import TRANSFER, address, read_logs
from evm.pool import Contract
from evm.rpc import Rpc, RpcError
from markets.base import MarketError

MAX_IDS = 100  # token ids in one filter of logs


def counts(minter: str, vault: str, operators: Collection[str] | None) -> bool:
    """Whether a token that `minter` made is the vault's; with `operators` None whoever made it."""
    return operators is None or minter == vault or minter in operators


async def read_minters(rpc: Rpc, contract: Contract, ids: Sequence[int], block: int) -> dict[int, str]:
    """Who sent the transaction in which each token was minted, up to a block: one request for 100 tokens, and one.

    Raises `MarketError` where no node tells: whose a token is cannot be guessed.
    """
    transactions: dict[int, str] = {}
    span = {"fromBlock": "0x0", "toBlock": hex(block), "address": contract.manager}
    try:
        for at in range(0, len(ids), MAX_IDS):
            part = ids[at : at + MAX_IDS]
            topics = [TRANSFER.topic, f"0x{0:064x}", None, [f"0x{token_id:064x}" for token_id in part]]
            whole = partial(_tells, part)
            found = await rpc.batch([("eth_getLogs", [span | {"topics": topics}])], usable=whole)
            transactions |= {one.values[2]: one.transaction for one in read_logs(*found)}
        senders = await read_senders(rpc, transactions.values())
    except RpcError as error:
        fix = "one RPC node must tell the logs of one token over all blocks, and old transactions"
        raise MarketError(f"nobody says who minted the vault's position tokens ({error}); {fix}") from error
    return {token_id: senders[transactions[token_id]] for token_id in ids}


async def read_senders(rpc: Rpc, hashes: Iterable[str]) -> dict[str, str]:
    """Who sent transactions that were mined, by hash. Raises `RpcError`."""
    hashes = sorted(set(hashes))
    answers = await rpc.batch([("eth_getTransactionByHash", [one]) for one in hashes], usable=_sender)
    return dict(zip(hashes, map(_sender, answers), strict=True))


def _tells(ids: Sequence[int], answer: Any) -> bool:
    """Whether these logs are of all these tokens."""
    return {one.values[2] for one in read_logs(answer)} == set(ids)


def _sender(answer: Any) -> str:
    return address(answer["from"], "sender")
