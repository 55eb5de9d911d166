"""Opening the chain that a program's options name: the ledger of a local subnet, or a real network through the SDK.

    async with joined(options) as (chain, keypair): ...            a miner's
    async with network(options, wallet, RETRY_SECONDS) as (chain, graph): ...

Read next: `local.py`, `subtensor.py`, `wallets.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from chain.base import Chain, ChainError, Metagraph, NoSuchSubnet
from chain.local import LocalChain
from chain.subtensor import BittensorChain
from chain.wallets import Wallet, load_wallet
from runtime.options import is_local, refuse
from runtime.passwords import read_password
from runtime.process import UserError
from wire.signing import local_keypair

RETRY_SECONDS = 30  # until a chain that did not answer at the start is dialed again

log = logging.getLogger("chain")


def local_wallet(name: str) -> tuple[Any, str]:
    """The development hotkey of a name, and its coldkey's address."""
    return local_keypair(f"{name}-hotkey"), local_keypair(f"{name}-coldkey").ss58_address


def wallet_of(options: argparse.Namespace, need_coldkey: bool = False) -> Wallet:
    """The wallet that the options name, unlocked as needed; may take a while. Raises `UserError`, `ChainError`."""
    names = options.wallet, options.wallet_hotkey, options.wallet_path
    return load_wallet(*names, read_password(options), need_coldkey)


def ledger_of(options: argparse.Namespace) -> Path:
    """The ledger of the local subnet in `options.dir`; raises `UserError` if there is none."""
    ledger = Path(options.dir) / "chain.sqlite3"
    if not ledger.exists():
        fix = "start `python validator.py` first, or name its folder with --dir"
        raise UserError(f"no local subnet in {ledger}: {fix}")
    return ledger


@asynccontextmanager
async def network(
    options: argparse.Namespace, wallet: Wallet, retry_seconds: float | None = None
) -> AsyncIterator[tuple[BittensorChain, Metagraph]]:
    """The subnet of a real network, and its metagraph when it was opened; raises `ChainError`, `NoSuchSubnet`.

    Args:
        retry_seconds: how often a network that does not answer is dialed again; None: that is an error.
    """
    while True:
        async with AsyncExitStack() as stack:
            try:
                where = {"network": options.network or "", "endpoint": options.chain_endpoint}
                opening = BittensorChain.open(**where, netuid=options.netuid, wallet=wallet)
                chain = await stack.enter_async_context(opening)
                graph = await chain.metagraph()
            except ChainError as error:
                if retry_seconds is None or isinstance(error, NoSuchSubnet):
                    raise
                log.warning("the chain: %s; trying again in %g s", error, retry_seconds)
            else:
                yield chain, graph
                return
        await asyncio.sleep(retry_seconds)


@asynccontextmanager
async def registered(options: argparse.Namespace, wallet: Wallet) -> AsyncIterator[Chain]:
    """`network`, waited for, with the wallet's hotkey on the subnet; raises `UserError` if it is not registered."""
    async with network(options, wallet, RETRY_SECONDS) as (chain, graph):
        if graph.by_hotkey(chain.hotkey) is None:
            fix = f"btcli subnets register --netuid {options.netuid} with this wallet"
            raise UserError(f"hotkey {chain.hotkey} is not registered on netuid {options.netuid}; {fix}")
        yield chain


@asynccontextmanager
async def joined(options: argparse.Namespace) -> AsyncIterator[tuple[Chain, Any]]:
    """A miner's chain and hotkey: of the local subnet in `options.dir`, or of a real network.

    Raises `UserError` (no such subnet, a hotkey that is not registered), `ChainError` (wallet or chain fail).
    """
    if is_local(options):
        ledger, (keypair, coldkey) = ledger_of(options), local_wallet(options.name)
        async with LocalChain.open(ledger, keypair.ss58_address, coldkey) as chain:
            yield chain, keypair
    else:
        wallet = await asyncio.to_thread(wallet_of, options)
        async with registered(options, wallet) as chain:
            yield chain, wallet.hotkey


@asynccontextmanager
async def open_chain(
    options: argparse.Namespace, need_coldkey: bool = False, patient: bool = False
) -> AsyncIterator[tuple[Chain, int, Path]]:
    """The chain that `stake.py`'s options name, its netuid, and the folder of journal and allow-list.

    Args:
        need_coldkey: unlock it.
        patient: wait for a network that does not answer; else that is an error.

    Raises `UserError`, `ChainError`: the wallet, the network or the local subnet cannot be used as named.
    """
    folder = Path(options.dir)
    if is_local(options):
        keypair, coldkey = local_wallet(options.name)
        hotkey = keypair.ss58_address
    else:
        refuse(options, "is a wallet of the local subnet; with --netuid name one with --wallet", "name")
        wallet = await asyncio.to_thread(wallet_of, options, need_coldkey)
        hotkey, coldkey = wallet.hotkey.ss58_address, wallet.coldkey_address
    if not (is_local(options) or options.local):
        async with network(options, wallet, options.poll_interval if patient else None) as (chain, graph):
            yield chain, graph.netuid, folder
        return
    ledger, named = ledger_of(options), {} if is_local(options) else {"netuid": options.netuid}
    print("LOCAL: this is the embedded chain of `python validator.py`, no real subnet.", flush=True)
    async with LocalChain.open(ledger, hotkey, coldkey, **named) as chain:
        yield chain, (await chain.metagraph()).netuid, folder
