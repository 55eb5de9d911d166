"""How fast the exact pool is, beside the real contract in a Rust EVM, on the same work in the same run.

    python bench/sim.py                  about a minute; `--rounds 1` for a quick look

Three pieces of work: `real` and `cross` (20,000 swaps each over some 200 initialised ticks, 0.10 and 3.81 crossings a
swap), and `arbitrum`, five days of a real pool: every swap, mint and burn, each held against the recorded digits as a
replay does. Times are CPU time of this one process. Our passes and the contract's alternate, so that whatever else the
machine does falls on both. Every pass must end in the stated state, else the exit code is 1.

Workloads: `ALM_BENCH`, default `../shared/bench`. Recording: `ALM_RECORDINGS`, default `../shared/data`. The contract:
see `bench/evm.py`. What is missing is left out, with the reason. Read next: `liquidity/fast.py`.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, where `sim` would be this file

from bench import evm
from liquidity.events import swap_call
from liquidity.fast import FastPool
from liquidity.replay import apply_event
from markets.recordings import RecordingError, read_recording
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO

ROOT = Path(__file__).resolve().parent.parent
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
        target, target_ratio: wanted a second, and times the contract's speed.
        open: from `FastPool` or `RealPool`, a pool in the state before; not timed.
        run, run_real: the work, on a `FastPool` and on a `RealPool`.
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
    """The workload of `NAME.json.gz`: positions, exact-input swaps, and the end state that the bytecode reached."""
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


def replay(name: str, target: int, target_ratio: None) -> Work:
    """A recording: ours compares each digit of each event, the contract is only called."""
    recording = read_recording(RECORDINGS / name)
    numbers = {owner: number for number, owner in enumerate({position[0] for position in recording.positions})}
    calls = []
    for event in recording.events:
        if event.kind == "swap":
            calls.append(("swap", swap_call(event, event.args[0])))
        else:
            owner, *arguments = event.args[:4]
            calls.append((event.kind, (numbers.setdefault(owner, len(numbers)), *arguments)))

    def open_pool(kind):
        if kind is FastPool:
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

    return Work(name.partition("_")[0], len(calls), target, target_ratio, open_pool, run, run_real, recording.final)


WORK = ((swaps, "real", 700_000, 40), (swaps, "cross", 130_000, 13), (replay, ARBITRUM, 300_000, None))


def timed(kind: type, work: Work) -> tuple[float, bool]:
    """One pass: CPU seconds, and whether it led where it must."""
    pool = work.open(kind)
    run = work.run if kind is FastPool else work.run_real
    start = time.process_time()
    run(pool)
    seconds = time.process_time() - start
    return seconds, all(getattr(pool, name) == value for name, value in work.final.items())


def machine() -> str:
    """CPU model, cores and Python, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, {platform.python_implementation()} {platform.python_version()}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of the exact pool, beside the real contract's.")
    parser.add_argument("--rounds", type=int, default=4, help=f"{PASSES_PER_ROUND} passes, then one of the contract; 4")
    rounds = max(1, parser.parse_args(argv).rounds)
    print(f"{machine()}; CPU time of one process; {rounds * PASSES_PER_ROUND} passes")
    if lacking := evm.missing():
        print(f"no comparison with the real bytecode: {lacking}")
    print("            best/s  median/s  target/s  bytecode/s  ratio  target  end state")
    failed = False
    for load, name, target, target_ratio in WORK:
        try:
            work = load(name, target, target_ratio)
        except (OSError, RecordingError) as error:
            print(f"{name}: left out, {error}")
            continue
        kinds = [FastPool] * PASSES_PER_ROUND + ([] if lacking else [evm.RealPool])
        passes = [(kind, *timed(kind, work)) for kind in kinds * rounds]
        ours = [work.count / seconds for kind, seconds, _ in passes if kind is FastPool]
        theirs = [work.count / seconds for kind, seconds, _ in passes if kind is not FastPool]
        wrong = sum(not right for *_, right in passes)
        failed = failed or wrong > 0
        line = f"{work.name:<9}{max(ours):>9,.0f}{median(ours):>10,.0f}{work.target:>10,}"
        line += f"{max(theirs):>12,.0f}{max(ours) / max(theirs):>7.1f}" if theirs else f"{'-':>12}{'-':>7}"
        line += f"{work.target_ratio or '-':>8}"
        print(f"{line}  {f'wrong in {wrong} of' if wrong else 'as stated in all'} {len(passes)} passes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
