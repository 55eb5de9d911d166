"""`sim.Pool` against the contract itself: the same random operations in both, every digit of both compared.

The contract's bytecode runs in a Rust EVM; `bench/evm.py` says what to install. There are no wheels for Python 3.13.
"""

from __future__ import annotations

import sys
from random import Random

import pytest
from random_calls import outcome, random_operation, random_terms

from bench import evm
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, Q96, Pool


@pytest.fixture(autouse=True)
def needs_the_evm(missing):
    if evm.missing():
        if sys.version_info >= (3, 13):
            pytest.skip("pyrevm has no wheel for Python 3.13 and later; 3.11 and 3.12 compare with the contract")
        missing(evm.missing())


def differences(pool: Pool, real: evm.RealPool, ticks: set[int]) -> list[tuple]:
    names = "sqrt_price_x96", "tick", "liquidity", "fee_growth_global0_x128", "fee_growth_global1_x128", "protocol_fees"
    pairs = [(name, getattr(pool, name), getattr(real, name)) for name in names]
    for index in ticks:
        mark = pool.ticks.get(index)
        ours = (
            (mark.liquidity_gross, mark.liquidity_net, mark.fee_growth_outside0_x128, mark.fee_growth_outside1_x128)
            if mark
            else (0, 0, 0, 0)
        )
        pairs.append((f"tick {index}", ours, real.tick_state(index)))
    for key, state in pool.positions.items():
        ours = (
            state.liquidity,
            state.fee_growth_inside0_last_x128,
            state.fee_growth_inside1_last_x128,
            state.tokens_owed0,
            state.tokens_owed1,
        )
        pairs.append((f"position {key}", ours, real.position_state(*key)))
    return [pair for pair in pairs if pair[1] != pair[2]]


@pytest.mark.parametrize("seed", range(60))
def test_random_operations_leave_the_pool_and_the_contract_in_the_same_state(seed):
    rng = Random(seed)
    fee, spacing, price = random_terms(rng)
    pool, real = Pool(fee, spacing), evm.RealPool(fee, spacing)
    used: set[int] = set()
    for each in (pool, real):
        each.initialize(price)
    for _ in range(80):
        name, arguments = random_operation(rng, pool)
        assert outcome(pool, name, arguments) == outcome(real, name, arguments), (name, arguments)
        assert (pool.sqrt_price_x96, pool.tick, pool.liquidity) == (real.sqrt_price_x96, real.tick, real.liquidity)
        used |= pool.ticks.keys()
    assert not differences(pool, real, used)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mint", (0, 60, -60, 0)),
        ("burn", (0, 60, -60, 1 << 127)),
        ("collect", (0, -60, 60, 1, 1)),
        ("swap", (True, 1, 0)),
        ("swap", (True, 0, 0)),
        ("flash", (1, 1, -5, 0)),
        ("set_fee_protocol", (3, 0)),
        ("collect_protocol", (1, 1)),
        ("initialize", (0,)),
    ],
)
def test_a_pool_without_a_price_refuses_as_the_contract_does(name, arguments):
    refused = outcome(Pool(3000, 60), name, arguments)
    assert refused == outcome(evm.RealPool(3000, 60), name, arguments)
    assert refused[0] == "refused"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[("mint", (0, -600, 600, amount)) for amount in (0, (1 << 127) - 1, 1 << 127, (1 << 128) - 1)],
        *[("burn", (0, -600, 600, amount)) for amount in (10**18 + 1, (1 << 127) - 1, 1 << 127, (1 << 128) - 1)],
        *[("burn", (1, -600, 600, amount)) for amount in (0, 1, (1 << 128) - 1)],
        *[("mint", (0, *ticks, 1)) for ticks in ((60, 60), (60, -60), (-601, 600), (-600, 601), (-887_280, 887_280))],
        *[("swap", (True, 1, limit)) for limit in (0, MIN_SQRT_RATIO, MIN_SQRT_RATIO + 1, Q96 - 1, Q96, Q96 + 1)],
        *[("swap", (False, -1, limit)) for limit in (Q96 - 1, Q96, Q96 + 1, MAX_SQRT_RATIO - 1, MAX_SQRT_RATIO)],
        *[("swap", (True, amount, MIN_SQRT_RATIO + 1)) for amount in (-(1 << 255), -(1 << 254), 1 << 248)],
        *[("set_fee_protocol", (n, 4)) for n in (1, 3, 4, 10, 11, 255)],
        *[("collect_protocol", (amount, amount)) for amount in (0, 1, (1 << 128) - 1)],
        ("initialize", (Q96,)),
    ],
)
def test_calls_at_the_edge_of_the_legal_end_as_in_the_contract(name, arguments):
    pools = Pool(3000, 60), evm.RealPool(3000, 60)
    for pool in pools:
        pool.initialize(Q96)
        pool.mint(0, -600, 600, 10**18)
    outcomes = [outcome(pool, name, arguments) for pool in pools]
    assert outcomes[0] == outcomes[1]
    assert not differences(*pools, {-600, 600})


@pytest.mark.parametrize(("tip0", "tip1"), [(-1, -1), (0, -1), (-1, 0), (0, 0), (1 << 200, 5)])
def test_a_flash_repaid_short_is_refused_as_by_the_contract(tip0, tip1):
    pools = Pool(3000, 60), evm.RealPool(3000, 60)
    for pool in pools:
        pool.initialize(Q96)
        pool.mint(0, -600, 600, 10**18)
    flashes = [outcome(pool, "flash", (10**6, 10**6, tip0, tip1)) for pool in pools]
    assert flashes[0] == flashes[1]
    assert not differences(*pools, {-600, 600})
