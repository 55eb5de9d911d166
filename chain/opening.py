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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chain.base import Chain, ChainError, ChainMistake, Metagraph, Next, Refused, served_address
from chain.local import LocalChain
from chain.subtensor import BittensorChain
from chain.wallets import Wallet, load_wallet
from runtime.options import is_local, refuse
from runtime.passwords import read_password
from runtime.process import UserError
from wire.signing import local_keypair

RETRY_BLOCKS = 25  # after a refusal that nothing on our side removes
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
    """The subnet of a real network, and its metagraph when it was opened; raises `ChainError`.

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
                if retry_seconds is None or isinstance(error, ChainMistake):
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
            fix = f"btcli subnets register --netuid {options.netuid} with this wallet; {gone(graph, chain)}"
            raise UserError(f"hotkey {chain.hotkey} is not registered on netuid {options.netuid}; {fix}")
        yield chain


@dataclass
class Published:
    """Where this hotkey's server is reached, kept on the chain: a hotkey registered anew has no address there."""

    chain: Chain
    address: str
    port: int
    _not_before: int = 0  # the chain's block
    _problem: str = ""

    async def keep(self, graph: Metagraph) -> str:
        """Publish it if the chain does not have it; what is wrong, empty if nothing.

        Raises `ChainError`, and `UserError` for what is no address.
        """
        if (me := graph.by_hotkey(self.chain.hotkey)) is None:
            return f"hotkey {self.chain.hotkey} is not registered any more; {gone(graph, self.chain)}"
        try:
            address, already = served_address(graph, me.hotkey, self.address, self.port)
        except Refused as wrong:
            raise UserError(f"the chain refused the endpoint: {wrong.args[0]}: {wrong.args[1]}") from None
        if already:
            return ""
        if graph.block >= self._not_before:
            outcome = await self.chain.serve(self.address, self.port)
            rest = RETRY_BLOCKS if outcome.next is Next.NOTHING else outcome.wait_blocks
            self._not_before = 0 if outcome.ok else max(outcome.block, graph.block) + rest
            refused = f"the chain refused the endpoint {address}: {outcome.detail or outcome.name}"
            self._problem = "" if outcome.ok else refused
            if outcome.ok:
                log.info("%s is published for uid %d", address, me.uid)
        return self._problem


def gone(graph: Metagraph, chain: Chain) -> str:
    """What follows for a hotkey that is not on the subnet: of a swap its coldkey's others tell."""
    others = [neuron for neuron in graph.neurons if neuron.coldkey == chain.coldkey]
    if not others:
        return "register it; what it publishes is published again then"
    named = ", ".join(f"uid {neuron.uid} {neuron.hotkey}" for neuron in others)
    once = f"python validator.py adopt {chain.hotkey} {others[0].hotkey if len(others) == 1 else 'NEW'}"
    fix = f"stop, run `{once}` where this is a validator, and start with the new key (--wallet-hotkey)"
    return f"its coldkey has {named}: if it was swapped for that, {fix}; else register it"


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
