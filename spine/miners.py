"""The reference miners of a local subnet, each a process of its own. Read next: `miner.py`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from chain.base import ChainError

MINER_START_SECONDS = 60


@asynccontextmanager
async def reference_miners(strategies: Sequence[str], folder: Path) -> AsyncIterator[dict[str, str]]:
    """Run `miner.py` once for each strategy, as processes of their own behind real signed HTTP on loopback.

    They end with the block, and also when this process is killed: their standard input closes then.

    Args:
        strategies: names that `miner.py --strategy` knows.
        folder: of the local subnet; each miner logs to `miner-STRATEGY.log` there.

    Yields:
        The strategy's name by hotkey.

    Raises:
        ChainError: a miner did not come up.
    """
    program = Path(__file__).parents[1] / "miner.py"
    names: dict[str, str] = {}
    processes: list[asyncio.subprocess.Process] = []
    try:
        for strategy in strategies:
            with open(folder / f"miner-{strategy}.log", "ab") as log_file:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    str(program),
                    *("--strategy", strategy, "--name", strategy, "--dir", str(folder), "--port", "0"),
                    *("--status-port", "0"),
                    "--exit-with-parent",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log_file,
                    env={**os.environ, "NETUID": ""},  # whatever a .env says: they are this subnet's
                )
            processes.append(process)
        for strategy, process in zip(strategies, processes, strict=True):
            try:
                async with asyncio.timeout(MINER_START_SECONDS):
                    line = (await process.stdout.readline()).decode()
            except TimeoutError:
                line = ""
            if "hotkey " not in line:
                raise ChainError(f"miner {strategy} did not start: see {folder / f'miner-{strategy}.log'}")
            names[line.split("hotkey ")[1].split(",")[0]] = strategy
        yield names
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(process.wait() for process in processes))
