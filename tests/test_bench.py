"""Every benchmark runs to its end, and the figures that `docs/` quotes are what they print."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from liquidity.events import Event
from markets.recordings import read_recording
from sim import Pool, sqrt_ratio_at_tick

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs/market.md").read_text()

SMALL = {
    "sim": "--rounds 1",
    "scoring": "--passes 1",
    "wire": "--rounds 1",
    "hostile": "--quick",
    "memory": "--rounds 1 none",
    "status": "--quick",
    "follower": "--blocks 1",
    "sweep": "--days 20",
}


@pytest.mark.costly("benchmarks")
@pytest.mark.parametrize("name", re.findall(r"bench/(\w+)\.py", (ROOT / "Makefile").read_text()))
def test_every_benchmark_runs_to_its_end_in_small(name):
    command = [sys.executable, f"bench/{name}.py", *SMALL[name].split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def bench():
    """`bench/market.py`, by a name that is not that of `market.py`."""
    spec = importlib.util.spec_from_file_location("bench_market", ROOT / "bench/market.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(bench) -> dict[str, float]:
    return bench.measure_model(bench.SEED)


@pytest.fixture(scope="module")
def real(bench, recording_path) -> dict[str, dict[str, float]]:
    recordings = [read_recording(recording_path(name)) for name in bench.DEFAULT]
    return {recording.name.replace("_", " "): bench.measure_recording(recording) for recording in recordings}


def test_the_table_of_differences_quotes_how_far_drift_exceeds_skill_as_the_benchmark_prints_it():
    printed = subprocess.run(
        [sys.executable, "bench/drift.py"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert printed.startswith("MODEL")
    measured = next(line.split()[-1] for line in printed.splitlines() if line.startswith("PoL"))
    quoted = re.search(r"median drift of a round is (\d+) times", (ROOT / "docs/differences.md").read_text())
    assert quoted and quoted[1] == measured


def test_the_document_has_the_models_figures_of_today(bench, model):
    rows = [[cell.strip(" *") for cell in line.split("|")] for line in DOCUMENT.splitlines() if line.startswith("| ")]
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    assert columns["model"] == tuple(format(model[name], form) for name, (form, _) in bench.MEASURES.items())


def test_the_document_is_what_the_benchmark_prints(bench, model, real):
    others = [bench.measure_model(seed) for seed in bench.OTHER_SEEDS]
    assert bench.document(real, model, others) == DOCUMENT


def test_the_model_lies_among_the_recordings_but_for_what_the_document_explains(bench, model, real):
    beyond = bench.outside(model, list(real.values()))
    assert set(beyond) | set(bench.far(model, real[next(iter(real))])) == set(bench.WHY)
    assert len(beyond) <= 3


def test_a_flow_made_by_hand_has_the_figures_that_paper_gives(bench):
    """An hour of a pool whose tick 100 begins a second position: up across it, down, down, and a position cut."""
    pool, hand = Pool(500, 10), Pool(500, 10)
    for each in (pool, hand):
        each.initialize(sqrt_ratio_at_tick(95))
        each.mint("wide", -10_000, 10_000, 10**15)
        each.mint("near", 100, 200, 10**14)
    liquidity, events = hand.liquidity, []

    def swap(time: int, how: str, *call) -> None:
        amounts = hand.swap(*call)
        events.append(Event(time, 0, time, "swap", (how, *amounts, hand.sqrt_price_x96, hand.liquidity, hand.tick)))

    swap(10, "limit", False, 10**18, sqrt_ratio_at_tick(105))
    swap(70, "in", True, 10**6, 4295128740)
    swap(72, "out", True, -(10**6), 4295128740)
    released = hand.burn("near", 100, 200, 10**13)
    events.append(Event(80, 0, 80, "burn", ("near", 100, 200, 10**13, *released)))
    events.append(Event(81, 0, 81, "burn", ("near", 100, 200, 0, *hand.burn("near", 100, 200, 0))))
    dollars = [abs(event.args[2]) / 1e6 for event in events[:3]]

    found = bench.measure(pool, events, start=0, seconds=3600, blocks=1800, dollar=1)
    assert found["block time, seconds"] == 2
    assert found["swaps a block"] == pytest.approx(3 / 1800) and found["swaps a minute"] == pytest.approx(3 / 60)
    assert found["size, mean USD"] == pytest.approx(sum(dollars) / 3)
    assert found["exact output"] == found["price limit"] == pytest.approx(1 / 3)
    assert found["reversals"] == found["bursts"] == pytest.approx(1 / 3)  # up, down; down, down two seconds later
    assert found["ticks crossed a swap"] == pytest.approx(1 / 3)
    assert (found["mints an hour"], found["burns an hour"]) == (0, 1)
    ratios = [1.0001 ** (tick / 2) for tick in (95, 105)]
    price = [ratios[0] ** 2, ratios[1] ** 2]  # before, and, but for two tiny swaps, after
    assert found["volatility, 1 minute"] == pytest.approx(
        (abs(price[1] / price[0] - 1) ** 2 / 60 * 525_600) ** 0.5, 0.01
    )
    assert found["volatility, 1 hour"] == pytest.approx(abs(price[1] / price[0] - 1) * 8_760**0.5, 0.01)
    lower, middle, upper = (1.0001 ** (105 / 2) * k**0.5 for k in (1 / 1.01, 1, 1.01))
    both = liquidity * 1.1 * ((1 / middle - 1 / upper) * middle**2 + middle - lower) / 1e6
    assert found["active liquidity, USD"] == pytest.approx(both, 0.02)
    assert found["fees a day"] == pytest.approx(sum(dollars) * 0.0005 * 24 / found["active liquidity, USD"])


def test_a_recording_that_is_missing_is_named_with_the_fix():
    ended = subprocess.run(
        [sys.executable, "bench/market.py", "nowhere/none"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2 and not ended.stdout
    assert "nowhere/none" in ended.stderr and "ALM_RECORDINGS" in ended.stderr and "Traceback" not in ended.stderr
