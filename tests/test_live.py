"""Live rounds end to end, on Uniswap's own contracts: what the winner decides becomes real positions.

A development chain runs on the loopback interface, thirty times as fast as ours; somebody trades in every block. Beside
it run a validator with evaluation and live rounds, two miners (`miner.py`, copied, with `propose` changed) and the
executor bot, all over real HTTP. At the end the chain is asked what the vault has.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import anvil
import pytest
from street import WALLET, Street, Subprocesses, executor, subprocesses, validating, work_until
from subnets import (
    DEADLINE_SECONDS,
    ROOT,
    a_job,
    hotkey_of,
    rows,
    standings,
    stored_lines,
    stored_standings,
    wait_for,
    write,
)

from audit import stored
from audit.checks import audit
from chain.local import LocalChain
from evm.abi import TRANSFER
from evm.audit import audit_chain
from store import Store

ROUND_SECONDS = 420
DAY = 86_400
RULES = {"target": "MaxFees", "checkpoint_blocks": 40}
REGISTERED = "SELECT 1 FROM neurons WHERE address != ''"
LIVE_ASKS = "SELECT 1 FROM predictions JOIN rounds USING (round_id) WHERE round_type = 'live'"
ENDED_LIVE = """
    SELECT DISTINCT round_id FROM predictions JOIN rounds USING (round_id)
    WHERE round_type = 'live' AND seal IS NOT NULL
"""
KEEPER = """
def propose(query):
    return list(query.current_positions)
"""
MOVER = """
def propose(query):
    step = query.tick_spacing * (4 + query.block_number % 3)
    middle = query.tick // query.tick_spacing * query.tick_spacing
    return [Position(middle - step, middle + step, *query.holdings())]
"""


def a_miner(programs: Subprocesses, name: str, propose: str) -> None:
    """As the README says: `miner.py` copied, `propose` changed, started beside the validator."""
    text = (ROOT / "miner.py").read_text()
    begin, end = text.index("def propose("), text.index("\n# ====", text.index("def propose("))
    copied = programs.folder / f"{name}_miner.py"
    copied.write_text(text[:begin] + propose.strip() + "\n\n" + text[end:])
    programs.start(name, copied, "--name", name, "--dir", programs.folder, "--port", 0, "--status-port", 0)


async def validate(folder: Path, street: Street, bot_url: str, until: str, count: int) -> None:
    """A validator beside trade in every block, until a query of its database gives so many rows."""
    async with validating(folder, street, bot_url) as validator:
        await work_until(
            validator, street, lambda: len(rows(folder / "validator.sqlite3", until)) >= count, DEADLINE_SECONDS
        )


async def prepare(folder: Path, street: Street, programs: Subprocesses) -> None:
    """A subnet with two miners, one job, and six days on which both miners were ranked (`test_eligibility.py`)."""
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(LocalChain.open(folder / "chain.sqlite3", *WALLET, clock=time.time))
        store = await stack.enter_async_context(Store.open(folder / "validator.sqlite3"))
        await chain.register(*WALLET, 100_000 * 10**9)
        await store.put_job(replace(a_job(live=True, round_seconds=ROUND_SECONDS, **RULES), vault=street.vault))
    for name, propose in (("mover", MOVER), ("keeper", KEEPER)):
        a_miner(programs, name, propose)
        for day in range(1, 7):
            sql, at = "INSERT INTO miner_participation VALUES ('job', ?, ?, ?)", street.time - day * DAY
            write(folder / "validator.sqlite3", sql, hotkey_of(name), at // DAY, at)
    wait_for("both miners", lambda: len(rows(folder / "chain.sqlite3", REGISTERED)) == 2, programs.running[-1])


@pytest.fixture(scope="module")
def played(tmp_path_factory, missing):
    """Two live rounds, the validator stopped in the first and started again; what is left of them."""
    if anvil.missing():
        missing(anvil.missing())
    folder = tmp_path_factory.mktemp("live")
    with anvil.Chain() as chain, subprocesses(folder) as programs:
        street = Street(chain, seed=3)
        street.warm_up(ROUND_SECONDS)
        with executor(programs, street) as bot:
            asyncio.run(prepare(folder, street, programs))
            street.warm_up(ROUND_SECONDS)
            asyncio.run(validate(folder, street, bot.url, LIVE_ASKS, 2))  # stopped with a decision on its way
            asyncio.run(validate(folder, street, bot.url, ENDED_LIVE, 2))
            yield folder, street, programs


def scored_rounds(folder: Path) -> list[str]:
    sql = "SELECT round_id FROM rounds WHERE round_type = 'live' AND code = 'scored' ORDER BY start_time"
    return [round_id for (round_id,) in rows(folder / "validator.sqlite3", sql)]


def executions(folder: Path, round_id: str) -> list[dict]:
    sql = "SELECT execution FROM live_executions WHERE round_id = ? ORDER BY block"
    return [json.loads(text) for (text,) in rows(folder / "validator.sqlite3", sql, round_id)]


def wei_of(receipt: dict) -> int:
    return int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)


@pytest.mark.costly("live rounds on anvil")
def test_what_the_vault_has_on_chain_at_the_close_is_what_was_recorded_to_the_wei(played):
    folder, street, _ = played
    rounds = scored_rounds(folder)
    assert len(rounds) == 2
    for round_id in rounds:
        [(close,)] = rows(folder / "validator.sqlite3", "SELECT close_block FROM rounds WHERE round_id = ?", round_id)
        outcome = stored_lines(folder / "validator.sqlite3", round_id)[hotkey_of("mover")]["outcome"]
        recorded = tuple(int(outcome[f"final{n}"]) + int(outcome[f"fees{n}"]) for n in (0, 1))
        assert asyncio.run(street.holds(folder, close - 1)) == recorded


def test_each_decision_is_on_the_chain_once_or_refused_with_its_gas_and_what_was_there_before_and_after(played):
    """The bot's operator lets four times the inventory be moved within an hour; what is beyond that is refused."""
    folder, street, _ = played
    every = [execution for round_id in scored_rounds(folder) for execution in executions(folder, round_id)]
    done = [execution for execution in every if execution["sent"]["code"] == "executed"]
    refusals = {execution["sent"]["code"] for execution in every if execution not in done}
    assert refusals - {"execution_reverted"} == {"turnover_limit"}, refusals  # the street may move the price too far
    assert len(done) >= 4 and all(
        execution["sent"]["transaction"] == "" for execution in every if execution not in done
    )
    assert len({execution["sent"]["transaction"] for execution in done}) == len(done)
    for execution in done:
        receipt = street.chain.receipt(execution["sent"]["transaction"])
        assert (receipt["from"], int(receipt["blockNumber"], 16)) == (street.vault, int(execution["block"]))
        paid_wei = wei_of(receipt), execution["sent"]["gas_wei"], execution["sent"]["gas0"]
        assert paid_wei[0] <= int(paid_wei[1]) == int(paid_wei[2]) and execution["sent"]["gas1"] == "0"
        assert street.balances(receipt["blockNumber"]) == tuple(map(int, execution["after"]))
        before, released, fees, paid, after = (
            tuple(map(int, execution[name])) for name in ("before", "released", "fees", "paid", "after")
        )
        assert after == tuple(before[n] + released[n] + fees[n] - paid[n] for n in (0, 1))
    [(close,)] = rows(folder / "validator.sqlite3", "SELECT max(close_block) FROM rounds WHERE round_type = 'live'")
    sent = [one for one in street.sent_by(street.vault, close - 1) if one["to"] == street.uniswap.manager.lower()]
    assert sum(map(wei_of, sent)) == sum(int(execution["sent"]["gas_wei"]) for execution in every)  # reverted ones too
    topics = [TRANSFER.topic, f"0x{0:064x}", f"0x{street.vault[2:]:0>64}"]
    born = street.chain.rpc("eth_getLogs", {"fromBlock": "0x0", "address": street.uniswap.manager, "topics": topics})
    first_mint, minted = born[0], born[1:]
    assert [one["transactionHash"] for one in minted] == [execution["sent"]["transaction"] for execution in done]
    assert all(len(execution["minted"]) == 1 for execution in done) and first_mint["blockNumber"] != "0x0"


def test_gas_is_a_cost_of_the_live_score_and_the_reputation_follows_from_it(played):
    folder, _, _ = played
    for round_id in scored_rounds(folder):
        terms = stored_lines(folder / "validator.sqlite3", round_id)[hotkey_of("mover")]["terms"]
        assert Decimal(terms["costs"]) > 0
    [(lives,)] = rows(
        folder / "validator.sqlite3", "SELECT lives FROM miner_scores WHERE hotkey = ?", hotkey_of("mover")
    )
    assert lives == 2
    assert stored_standings(folder / "validator.sqlite3") == standings(folder / "validator.sqlite3")


def test_every_round_can_be_recomputed_and_is_what_the_chain_has(played):
    folder, street, _ = played

    async def work() -> None:
        async with Store.open(folder / "validator.sqlite3") as store:
            open_seals = await store.finished(unsealed_only=True)  # where it was stopped; its next start seals them
            finished = set(await store.finished()) - set(open_seals)
            assert len(finished) >= 5
            for round_id in finished:
                evidence = await stored.evidence(store, round_id)
                assert audit(evidence) == []
                if evidence["round"]["code"] == "scored":
                    assert await audit_chain(evidence, [street.chain.url], street.uniswap.manager) == []

    asyncio.run(work())
