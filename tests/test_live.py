"""Live rounds end to end, on Uniswap's own contracts: what the winner decides becomes real positions.

A development chain runs on the loopback interface, twenty times as fast as ours; somebody trades in every block. Beside
it run a validator with evaluation and live rounds, two miners (`miner.py`, copied, with `propose` changed) and the
executor bot, all over real HTTP. At the end the chain is asked what the vault has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random

import aiohttp
import anvil
import pytest
from anvil import ETHER
from subnets import hotkey_of, rows, stored_lines, wait_for, write

from contracts import BALANCE_OF
from evidence import audit
from local import LocalChain
from orders import Bot
from protocol import JobSettings
from sim import amounts_of, sqrt_ratio_at_tick
from store import Job, Store
from validator import Validator, build_parser
from web3market import Web3Market, audit_chain
from wire import client_session, local_keypair

PACE = 20  # chain seconds per second
BLOCK_SECONDS = 2
ROUND_SECONDS = 300
LEAD_SECONDS = 100  # before the first round's start, when the validator comes up
DAY = 86_400
MOVER = """
def propose(query):
    step = query.tick_spacing * (20 + query.block_number % 5 * 8)
    middle = query.tick // query.tick_spacing * query.tick_spacing
    return [Position(middle - step, middle + step, *query.holdings())]
"""


class Street:
    """A pool with a vault and others in it, and trade in every block, which comes when its time has come.

    Attributes:
        time: of the newest block: the clock of all who go by this chain.
    """

    def __init__(self, chain: anvil.Chain, seed: int):
        self.chain, self.rng, self.uniswap = chain, Random(seed), anvil.Uniswap(chain, 3000, 60)
        self.vault = chain.accounts[1]
        self.uniswap.mint_direct(-12_000, 12_000, 100 * ETHER)
        self.uniswap.send(self.uniswap.address, "increaseObservationCardinalityNext(uint16)", 400)
        self.uniswap.mint(self.vault, -1200, 900, ETHER, ETHER)
        chain.mine()
        block = chain.rpc("eth_getBlockByNumber", "latest", False)
        self.time = int(block["timestamp"], 16)

    def block(self, seconds: int = BLOCK_SECONDS) -> None:
        for _ in range(self.rng.randint(0, 2)):
            self.uniswap.swap(self.rng.random() < 0.5, int(10 ** self.rng.uniform(15, 17.8)))
        self.time += seconds
        self.chain.rpc("evm_setNextBlockTimestamp", self.time)
        self.chain.rpc("evm_mine")

    def warm_up(self) -> None:
        """Enough history for a ten-minute average; then wait for a round that is about to be asked for."""
        for _ in range(40):
            self.block(20)
        start = -(-(self.time + LEAD_SECONDS + 1) // ROUND_SECONDS) * ROUND_SECONDS
        self.block(start - LEAD_SECONDS - self.time)

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.to_thread(self.block)
            await asyncio.sleep(max(0.0, began + BLOCK_SECONDS / PACE - time.monotonic()))

    def balances(self, block: str = "latest") -> tuple[int, int]:
        tokens = self.uniswap.token0, self.uniswap.token1
        _, (call, _) = BALANCE_OF.call("", "", self.vault)
        return tuple(int(self.chain.rpc("eth_call", call | {"to": token}, block), 16) for token in tokens)
