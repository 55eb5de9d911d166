"""How fast the exact pool is, beside the real contract in a Rust EVM, on the same work in the same run.

    python bench/sim.py                  about a minute; --rounds 1 for a quick look

Three pieces of work: `real` and `cross` (20,000 swaps each over 200 initialised ticks, 0.10 and 3.81 crossings a swap) and
five days of a real pool, every swap, mint and burn, each held against the recorded digits. Times are CPU time of this process,
on one core. The passes of both sides alternate, so that whatever else the machine does falls on both.

Workloads are looked for in `ALM_BENCH` (default `../shared/bench`) and `ALM_RECORDINGS` (default `../shared/data`), the
contract as `bench/evm.py` says. What is missing is left out and named. Exit code 1 if an end state is wrong.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # instead of this folder, where `sim` would be this file

from bench import evm  # noqa: E402
from recording import RecordingError, apply_event, read_recording, swap_calls  # noqa: E402
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, Pool  # noqa: E402

BENCH = Path(os.environ.get("ALM_BENCH") or ROOT / "../shared/bench")
RECORDINGS = Path(os.environ.get("ALM_RECORDINGS") or ROOT / "../shared/data")
ARBITRUM = "arbitrum_weth_usdt_500_2025-06-27_07-01"
PASSES_PER_ROUND = 5  # of ours, to one of the contract
FINAL_KEYS = {
    "sqrtPriceX96": "sqrt_price_x96",
    "tick": "tick",
    "liquidity": "liquidity",
    "feeGrowthGlobal0X128": "fee_growth_global0_x128",
    "feeGrowthGlobal1X128": "fee_growth_global1_x128",
}


@dataclass
class Work:
    """Something to do to a pool, and where it must lead.

    Attributes:
        name: as printed.
        count: of swaps or events.
        target, target_ratio: how many a second, and how many times the contract's speed.
        open: a pool of the given class in the state before; not timed.
        run, run_real: the work on a `Pool`, on a `RealPool`.
        final: attribute name to value afterwards.
    """

    name: str
    count: int
    target: int
    target_ratio: int | None
    open: Callable
    run: Callable
    run_real: Callable
    final: dict[str, int]


def swaps(name: str, target: int, target_ratio: int) -> Work:
    """The workload of `NAME.json.gz`: positions, exact-input swaps, and the end state of the real bytecode."""
    load = json.loads(gzip.decompress((BENCH / f"{name}.json.gz").read_bytes()))
    calls = [(bool(z), amount, MIN_SQRT_RATIO + 1 if z else MAX_SQRT_RATIO - 1) for z, amount in load["swaps"]]

    def open_pool(kind):
        pool = kind(load["fee"], load["spacing"])
        pool.initialize(load["sqrtPriceX96"])
        for position in load["positions"]:
            pool.mint(0, *position)
        return pool

    def run(pool):
        swap = pool.swap
        for zero_for_one, amount, limit in calls:
            swap(zero_for_one, amount, limit)

    final = {ours: load["final"][theirs] for theirs, ours in FINAL_KEYS.items()}
    return Work(name, len(calls), target, target_ratio, open_pool, run, run, final)


def events(name: str, target: int, target_ratio: None) -> Work:
    """A recording, replayed as `sim.py replay` does: each digit of each event is compared. The contract is only called."""
    recording = read_recording(RECORDINGS / name)
    numbers = {owner: number for number, owner in enumerate({position[0] for position in recording.positions})}
    calls = []
    for event in recording.events:
        if event.kind == "swap":
            calls.append(("swap", swap_calls(event)[event.args[0]]))
        else:
            owner, *arguments = event.args[:4]
            calls.append((event.kind, (numbers.setdefault(owner, len(numbers)), *arguments)))

    def open_pool(kind):
        if kind is Pool:
            return recording.open_pool()
        pool = kind(recording.fee, recording.tick_spacing)
        pool.initialize(recording.sqrt_price_x96)
        for owner, *arguments in recording.positions:
            pool.mint(numbers[owner], *arguments)
        return pool

    def run(pool):
        for event in recording.events:
            apply_event(pool, event)

    def run_real(pool):
        for call, arguments in calls:
            getattr(pool, call)(*arguments)

    return Work("arbitrum", len(calls), target, target_ratio, open_pool, run, run_real, recording.final)


WORK = ((swaps, "real", (700_000, 40)), (swaps, "cross", (130_000, 13)), (events, ARBITRUM, (300_000, None)))


def timed(kind, work: Work) -> tuple[float, bool]:
    """One pass: CPU seconds, and whether it led to where it must."""
    pool = work.open(kind)
    run = work.run if kind is Pool else work.run_real
    start = time.process_time()
    run(pool)
    seconds = time.process_time() - start
    return seconds, all(getattr(pool, name) == value for name, value in work.final.items())


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of the exact pool, beside the real contract's.")
    parser.add_argument("--rounds", type=int, default=4, help=f"of {PASSES_PER_ROUND} passes and one of the contract")
    options = parser.parse_args(argv)
    print(f"{machine()}; one core, CPU time, best and median of {options.rounds * PASSES_PER_ROUND} passes")
    lacking = evm.missing()
    if lacking:
        print(f"no comparison with the contract: {lacking}")
    print(
        f"{'work':<10}{'best/s':>10}{'median/s':>10}{'target/s':>10}{'contract/s':>12}{'ratio':>7}{'target':>7}  end state"
    )
    failed = False
    for load, name, targets in WORK:
        try:
            work = load(name, *targets)
        except (OSError, RecordingError) as error:
            print(f"{name}: left out, {error}")
            continue
        kinds = [Pool] * PASSES_PER_ROUND + ([] if lacking else [evm.RealPool])
        passes = [(kind, *timed(kind, work)) for kind in kinds * options.rounds]
        ours = [work.count / seconds for kind, seconds, _ in passes if kind is Pool]
        theirs = [work.count / seconds for kind, seconds, _ in passes if kind is not Pool]
        wrong = sum(not right for *_, right in passes)
        failed |= bool(wrong)
        line = f"{work.name:<10}{max(ours):>10,.0f}{median(ours):>10,.0f}{work.target:>10,}"
        line += f"{max(theirs):>12,.0f}{max(ours) / max(theirs):>7.1f}" if theirs else f"{'-':>12}{'-':>7}"
        line += f"{work.target_ratio or '-':>7}"
        print(line, f" wrong in {wrong} of {len(passes)} passes" if wrong else f" equal in all {len(passes)} passes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
