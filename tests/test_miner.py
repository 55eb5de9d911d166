"""The miner to copy: strategies that are legal for any pool, an answer whatever they do, and the server around them.

Run with `python -m pytest tests/test_miner.py`. Read next: `miner.py`.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import socket
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from random_calls import magnitude
from subnets import ROOT, Process, a_job, hotkey_of, play_subnet

import miner
import protocol
from chain.local import LocalChain
from miner import STRATEGIES, Refusal, answer, grid_range
from protocol import (
    MAX_ANSWER_BYTES,
    MAX_TICK,
    MIN_TICK,
    UINT128_MAX,
    Code,
    Inventory,
    JobSettings,
    Position,
    RebalanceAnswer,
    RebalanceQuery,
    Token,
    check_answer,
    human_price,
)
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, sqrt_ratio_at_tick
from wire.client import ask, client_session
from wire.codec import decode, encode
from wire.signing import local_keypair

REFERENCES = [name for name in STRATEGIES if name != "mine"]


def a_query(
    rng: Random, spacing: int | None = None, tick: int | None = None, most: int | None = None
) -> RebalanceQuery:
    """What a validator might ask anywhere: any grid, any price, nothing or everything in hand."""
    spacing = spacing or rng.choice([1, 2, 10, 50, 60, 100, 200, 2000, rng.randint(1, 2000)])
    edges = [MIN_TICK, MIN_TICK + 1, MAX_TICK - 1, MAX_TICK - rng.randint(1, 3000), MIN_TICK + rng.randint(0, 3000)]
    tick = (
        tick
        if tick is not None
        else rng.choice([*edges, 0, rng.randint(-300_000, 300_000), rng.randint(MIN_TICK, MAX_TICK - 1)])
    )
    most = most or rng.choice([1, 1, 2, 10, 64])
    first, last = -(-MIN_TICK // spacing), MAX_TICK // spacing
    bits, held = rng.choice([1, 40, 90, 120]), []
    for _ in range(rng.randint(0, min(most, 6))):
        lower = rng.choice(
            [rng.randint(first, last - 1), min(max(tick // spacing - rng.randint(0, 5), first), last - 1)]
        )
        upper = min(lower + rng.choice([1, magnitude(rng, 8), last - first]), last)
        amounts = (rng.choice([0, magnitude(rng, bits)]) for _ in range(2))
        held.append(Position(lower * spacing, upper * spacing, *amounts))
    price = min(max(sqrt_ratio_at_tick(tick), MIN_SQRT_RATIO), MAX_SQRT_RATIO - 1)
    return RebalanceQuery(
        job_id="job",
        sn_liquidity_manager_address="vault",
        pair_address="pool",
        chain_id=1,
        round_id="job:evaluation:900",
        round_type=rng.choice(["evaluation", "live"]),
        block_number=100,
        current_price=human_price(price, 18, 6),
        current_positions=tuple(held),
        inventory_remaining=Inventory(*(rng.choice([0, 1, magnitude(rng, bits)]) for _ in range(2))),
        rebalances_so_far=rng.randint(0, 3),
        uncollected_fees=Inventory(*(rng.choice([0, magnitude(rng, 30)]) for _ in range(2))),
        block_hash="0x" + "ab" * 32,
        block_time=800,
        sqrt_price_x96=price,
        tick=tick,
        liquidity=magnitude(rng, 100),
        fee=500,
        tick_spacing=spacing,
        token0=Token("", "WETH", 18),
        token1=Token("", "USDC", 6),
        window_start_time=900,
        window_end_time=1800,
        window_start_block=150,
        window_end_block=600,
        deadline=860,
        settings=JobSettings(max_positions=most),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Strategies


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_legal_for_any_pool(name, caplog):
    rng = Random(f"legal {name}")
    for _ in range(1000):
        query = a_query(rng)
        proposal = RebalanceAnswer(True, None, tuple(STRATEGIES[name](query)), protocol.MinerMetadata("1", name))
        check_answer(proposal, query)
        assert answer(query, STRATEGIES[name], name).desired_positions == proposal.desired_positions
    assert caplog.records == []  # nothing fell back to keep


@pytest.mark.parametrize("spacing", [1, 10, 60, 200, 2000])
@pytest.mark.parametrize("tick", [MIN_TICK, -1, 0, MAX_TICK - 1])
def test_strategies_are_legal_at_both_ends_of_the_scale_and_with_a_single_position(spacing, tick):
    rng = Random(spacing)
    for name in REFERENCES:
        for most in (1, 2):
            query = a_query(rng, spacing, tick, most)
            check_answer(
                RebalanceAnswer(True, None, tuple(STRATEGIES[name](query)), protocol.MinerMetadata("1", name)), query
            )


def test_each_strategy_is_shorter_than_25_lines():
    tree = ast.parse(Path(miner.__file__).read_text())
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert all(lengths[STRATEGIES[name].__name__] < 25 for name in STRATEGIES), lengths
    assert lengths["grid_range"] < 10


def test_the_one_function_to_change_is_marked_and_keeps_until_it_is_changed():
    text = Path(miner.__file__).read_text()
    assert text.index("YOUR STRATEGY") < text.index("def propose") < text.index("# Reference strategies")
    query = a_query(Random(1))
    assert miner.propose(query) == list(query.current_positions)


def test_keep_returns_what_it_was_given():
    rng = Random(7)
    for _ in range(100):
        query = a_query(rng)
        assert miner.keep(query) == list(query.current_positions)


def test_wide_holds_everything_around_the_price_and_leaves_it_while_the_price_stays_in_the_middle():
    for spacing in (1, 10, 60, 200, 2000):
        query = a_query(Random(spacing), spacing, tick=12_345)
        (position,) = miner.wide(query)
        assert position.tick_lower <= query.tick - 960 and query.tick + 960 <= position.tick_upper
        assert position.tick_upper - position.tick_lower <= 2 * 960 + 2 * spacing
        assert (position.allocation0, position.allocation1) == query.holdings()
        for moved, stays in ((0, True), (400, True), (-400, True), (3000, False), (-3000, False)):
            later = _replace(query, current_positions=(position,), tick=query.tick + moved)
            assert (miner.wide(later) == [position]) is stays, (spacing, moved)


def test_preserve_lets_each_token_wait_on_its_side_of_the_price_until_the_price_comes_near():
    query = _replace(a_query(Random(2), 10, tick=0, most=10), rebalances_so_far=0)
    above, below = miner.preserve(query)
    assert above.tick_lower >= query.tick + 200 and below.tick_upper <= query.tick - 200
    assert (above.allocation0, above.allocation1, below.allocation0, below.allocation1) == (
        query.holdings()[0], 0, 0, query.holdings()[1],
    )  # fmt: skip
    held = {"current_positions": (above, below), "rebalances_so_far": 1}
    assert miner.preserve(_replace(query, **held)) == [above, below]
    assert miner.preserve(_replace(query, **held, tick=140)) == [above, below]
    assert miner.preserve(_replace(query, **held, tick=170)) != [above, below]
    assert miner.preserve(_replace(query, **held, tick=-170)) != [above, below]


def _replace(query: RebalanceQuery, **changes) -> RebalanceQuery:
    return type(query)(**{name: changes.get(name, getattr(query, name)) for name in query.__slots__})


def test_a_range_is_put_on_the_grid_outwards_and_into_the_bounds():
    rng = Random(11)
    for _ in range(2000):
        query = a_query(rng)
        lower = rng.randint(2 * MIN_TICK, 2 * MAX_TICK)
        upper = lower + rng.randint(-10, 10_000)
        low, high = grid_range(query, lower, upper)
        assert MIN_TICK <= low < high <= MAX_TICK and low % query.tick_spacing == high % query.tick_spacing == 0
        first, last = (
            -(-MIN_TICK // query.tick_spacing) * query.tick_spacing,
            MAX_TICK // query.tick_spacing * query.tick_spacing,
        )
        if first <= lower < upper <= last:
            assert low <= lower < low + query.tick_spacing
            assert high - query.tick_spacing < upper <= high or high == low + query.tick_spacing


# ---------------------------------------------------------------------------------------------------------------------
# The answer


class _Odd(int):
    """What a numerical library might return instead of an integer."""

    __str__ = int.__repr__


@pytest.mark.parametrize(
    "wrong",
    [
        lambda query: 1 / 0,
        lambda query: None,
        lambda query: 5,
        lambda query: [None],
        lambda query: ["position"],
        lambda query: [Position(-600, 600, 1.5, 0)],
        lambda query: [Position(-600, 600, Decimal("1.5"), Fraction(1, 2))],
        lambda query: [Position(-600.0, 600, 1, 1)],
        lambda query: [Position(True, 600, 1, 1)],
        lambda query: [Position("-600", "600", 1, 1)],
        lambda query: [Position(-601, 600, 0, 0)],
        lambda query: [Position(600, -600, 0, 0)],
        lambda query: [Position(-600, 600, -1, 0)],
        lambda query: [Position(-600, 600, query.holdings()[0] + 1, 0)],
        lambda query: [Position(-600, 600, UINT128_MAX + 1, 0)],
        lambda query: [Position(-600, 600, 0, 0)] * 65,
        lambda query: Refusal(None),
        lambda query: (_ for _ in ()).throw(ZeroDivisionError),
        lambda query: _deep(),
    ],
)
def test_a_strategy_that_fails_or_proposes_what_is_not_legal_keeps_what_it_has_and_says_so_in_the_log(wrong, caplog):
    query = _replace(a_query(Random(3), 60, 120, 10), inventory_remaining=Inventory(10**9, 10**9))
    said = answer(query, wrong, "wrong")
    assert said.accepted and said.desired_positions == query.current_positions and said.refusal_reason is None
    check_answer(decode(RebalanceAnswer, encode(said), MAX_ANSWER_BYTES), query)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and "wrong failed" in record.message and "keep" in record.message


def _deep():
    return _deep()


def test_a_refusal_travels_with_its_reason_cut_to_what_fits(caplog):
    query = a_query(Random(4))
    said = answer(query, lambda _: Refusal("no " * 200), "shy")
    assert (said.accepted, said.refusal_reason, said.desired_positions) == (False, ("no " * 200)[:300], ())
    assert decode(RebalanceAnswer, encode(said), MAX_ANSWER_BYTES) == said and caplog.records == []


def test_tuples_and_integers_of_other_types_are_fine():
    query = a_query(Random(5), 60, 120, 10)
    said = answer(query, lambda q: (Position(-600, 600, _Odd(0), _Odd(0)),), "odd")
    assert said.desired_positions == (Position(-600, 600, 0, 0),)


def test_a_miners_answers_over_the_wire_are_scored(tmp_path):
    handlers = {name: lambda query, name=name: answer(query, STRATEGIES[name], name) for name in REFERENCES}
    handlers["buggy"] = lambda query: answer(query, lambda _: 1 / 0, "buggy")
    subnet = play_subnet(tmp_path, handlers, [a_job()])
    assert sorted(subnet.ranked()) == sorted(handlers)
    assert {ask[0] for name in handlers for ask in subnet.asks(name)} == {"accepted"}


# ---------------------------------------------------------------------------------------------------------------------
# The process


def a_ledger(folder: Path, *callers: tuple[str, int]) -> None:
    """A local subnet's ledger, with registered callers and their stake in alpha."""

    async def make():
        async with LocalChain.open(folder / "chain.sqlite3", "v", "w", genesis_block=1000) as chain:
            for name, stake in callers:
                await chain.register(hotkey_of(name), f"{name}'s coldkey", stake * 10**9)

    asyncio.run(make())


def a_miner(folder: Path, *options: str, **streams) -> Process:
    """Start one; it ends when its standard input closes."""
    command = [sys.executable, "miner.py", "--dir", str(folder), "--port", "0", "--exit-with-parent", *options]
    return Process(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **streams)


def mistake(capsys, *arguments: object) -> tuple[int, str]:
    try:
        code = miner.main(list(map(str, arguments)))
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error, error
    return code, error[:-1]


@pytest.mark.parametrize(
    "option", ["--strategy x", "--port 65536", "--port -1", "--port x", "--log-level LOUD", "--nonsense", "surplus"]
)
def test_a_bad_option_is_one_line_and_exit_code_2(capsys, option):
    code, error = mistake(capsys, *option.split())
    assert code == 2 and option.split()[0] in error and "see --help" in error


def test_without_a_local_subnet_it_says_how_to_start_one_and_leaves_no_file(capsys, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, error = mistake(capsys, "--dir", folder)
        assert code == 2 and "start `python validator.py` first" in error and str(folder) in error
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_or_an_address_of_nobody_is_one_line(capsys, tmp_path):
    a_ledger(tmp_path)
    with closing(socket.create_server(("127.0.0.1", 0))) as busy:
        port = busy.getsockname()[1]
        code, error = mistake(capsys, "--dir", tmp_path, "--port", port)
    assert code == 2 and f"port {port}" in error and "in use" in error and "another port" in error
    code, error = mistake(capsys, "--dir", tmp_path, "--host", "localhost", "--port", 0)
    assert code == 2 and "InvalidIpAddress" in error and "'localhost'" in error


def test_it_answers_who_may_call_refuses_who_may_not_and_ends_with_its_parent(tmp_path):
    a_ledger(tmp_path, ("rich", 5000), ("poor", 1))
    query = a_query(Random(6), 60, 120, 10)
    with a_miner(tmp_path, "--strategy", "wide", "--name", "m", stderr=subprocess.PIPE) as process:
        first, second = process.stdout.readline(), process.stdout.readline()
        url = f"http://{first.rsplit(' ', 1)[1].strip()}/rebalance"
        (good, poor, stranger), malformed = asyncio.run(_asked(url, encode(query)))
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        log = process.stderr.read()
    assert hotkey_of("m") in first and "strategy wide" in first and "uid " in first and "LOCAL" in second
    assert good.code is Code.ACCEPTED
    assert decode(RebalanceAnswer, good.body, MAX_ANSWER_BYTES).desired_positions == tuple(miner.wide(query))
    assert "no_permit" in poor.detail and "not_registered" in stranger.detail
    assert malformed.code is Code.HTTP_STATUS and "malformed" in malformed.detail
    assert "job:evaluation:900 block 100: 1 positions" in log and "Traceback" not in log


async def _asked(url: str, body: bytes):
    """The replies to three callers, and to one of them that says nothing sensible."""
    async with client_session(4) as session:

        def by(name, body):
            keys = {"keypair": local_keypair(f"{name}-hotkey"), "receiver": hotkey_of("m")}
            return ask(session, url, body, **keys, total_seconds=30, max_reply_bytes=10**5)

        return [await by(name, body) for name in ("rich", "poor", "stranger")], await by("rich", b"{}")


def test_registering_again_keeps_the_uid_and_moves_the_endpoint(tmp_path):
    a_ledger(tmp_path)
    shown = []
    for _ in range(2):
        with a_miner(tmp_path, stderr=subprocess.DEVNULL) as process:
            shown.append(process.stdout.readline().split(","))
            process.terminate()
            assert process.wait(timeout=60) == 0
    assert shown[0][:3] == shown[1][:3] and f"hotkey {hotkey_of('mine')}" in shown[0][1]
