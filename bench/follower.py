"""How much of a core it takes to follow a pool with 1,000 swaps a second.

Run: `python bench/follower.py [--blocks N]`. A second process is the node (`bench/node.py`); each block brings 1,000
swaps and is read as soon as the last one is done: logs parsed, every swap's call found by replay, the pool compared
with the contract's, events committed. The figure is this process's CPU time, so other work on the machine hardly shows.
Read next: `follower.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp

from bench import node
from evm.market import Web3Market

SWAPS = 1000  # a block, and so a second


async def measure(url: str, blocks: int) -> tuple[float, float, int]:
    """CPU seconds, wall seconds and events of following so many blocks."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            aiohttp.ClientSession() as session,
            Web3Market.open(
                [url], node.POOL, Path(folder) / "pool.sqlite3", first=0, confirmations=0, following=False
            ) as market,
        ):
            cpu, wall = time.process_time(), time.perf_counter()
            for block in range(1, blocks + 1):
                async with session.post(f"{url}head/{block}"):
                    await market.catch_up()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            events = await market.events(1, blocks)
    return cpu, wall, len(events)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU share of following 1,000 swaps a second.")
    parser.add_argument("--blocks", type=int, default=10, help="so many thousand swaps (default: 10)")
    blocks = parser.parse_args().blocks
    command = [sys.executable, node.__file__, str(blocks), str(SWAPS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as served:
        try:
            cpu, wall, events = asyncio.run(measure(json.loads(served.stdout.readline()), blocks))
        finally:
            served.stdin.close()
    if events != blocks * SWAPS:
        sys.exit(f"{events} events landed, {blocks * SWAPS} happened")
    print(f"Python {platform.python_version()}: following a pool with {SWAPS:,} swaps a second")
    print(f"takes {cpu / blocks:.0%} of one core ({events:,} swaps, {cpu / events * 1e6:.0f} us each; {wall:.1f} s)")


if __name__ == "__main__":
    main()
