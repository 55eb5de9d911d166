"""`validator.py jobs` as a stranger uses it, a bad row among good ones while rounds run, and each alert told once.

Run: `python -m pytest tests/test_jobs.py`. Read next: `spine/jobs.py`, `spine/troubles.py`, `chain/notify.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from subnets import a_job, hotkey_of, keep, play_subnet, rows, write
from substrate import Node
from test_chain import _sdk_caches, cold, hot  # noqa: F401

import validator
from chain.notify import AlertRules
from chain.opening import gone
from chain.subtensor import BittensorChain
from chain.wallets import Wallet
from markets.base import MarketError
from markets.model import ModelMarket
from protocol import Code, JobSettings, RoundResult
from spine import jobs
from spine.troubles import MARKET_SILENT_SECONDS, ROUNDS_IN_A_ROW, Troubles
from store import Store
from validator import Validator, build_parser
from wire.codec import decode
from wire.signing import local_keypair


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a validator that has played a round of one job."""
    play_subnet(tmp_path, {"a": keep}, [a_job("first")])
    write(tmp_path / "validator.sqlite3", "UPDATE jobs SET vault = 'vault-pol'")
    return tmp_path


def said(capsys, folder: Path, line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    verb, *rest = line.split()
    try:
        code = validator.main([verb, *rest, "--dir", str(folder)])
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err, err
    return code, out, err


def table(folder: Path) -> list[tuple]:
    return rows(folder / "validator.sqlite3", "SELECT * FROM jobs ORDER BY job_id")


def test_a_stranger_sets_up_a_job_by_what_each_answer_says(folder, capsys):
    code, out, _ = said(capsys, folder, "jobs list")
    assert code == 0 and out.startswith("first: on, not live, liquidity, vault vault-pol, rounds of 900 s, target=PoL ")
    before = table(folder)
    for line, fix in (
        ("jobs add tight", "--vault"),
        ("jobs add tight --vault v", "is like vault-balanced|vault-pol"),
        ("jobs add first --vault vault-pol", "change it with `jobs set`"),
        ("jobs add sp:ace --vault vault-pol", "letters, digits"),
        ("jobs add tight --vault vault-pol --set target=Best", "one of PoL"),
        (
            "jobs add tight --vault vault-pol --set colour=red",
            "NAME=VALUE is expected, of target=PoL, checkpoint_blocks",
        ),
        ("jobs add tight --vault vault-pol --set weight", "NAME=VALUE is expected"),
        ("jobs add tight --vault vault-pol --set weight=heavy", "weight"),
        ("jobs add tight --vault vault-pol --set shares=0.7,0.7", "their sum is at most 1"),
        ("jobs add tight --vault vault-pol --set checkpoint_blocks=0", "at least 1"),
        ("jobs add tight --vault vault-pol --round-seconds 5", "--round-seconds"),
        ("jobs add tight --vault vault-pol --of guessing", "no mechanism 'guessing'; one of liquidity"),
        ("jobs set tight --set weight=2", "there are first; add it with `jobs add`"),
        ("jobs off tight", "there are first"),
    ):
        code, _, err = said(capsys, folder, line)
        assert code == 2 and fix in err and err.count("\n") == 1, (line, err)
        assert table(folder) == before
    line = "jobs add tight --vault vault-pol --set target=MinIL --set checkpoint_blocks=50 --set shares=0.7,0.3"
    code, out, _ = said(capsys, folder, line)
    assert code == 0 and "tight: on, not live" in out
    assert said(capsys, folder, "jobs set tight --round-seconds 1800 --set weight=2 --live yes")[0] == 0
    assert said(capsys, folder, "jobs off tight")[0] == 0
    *_, (job_id, vault, seconds, settings, live, active, mechanism) = table(folder)
    assert (job_id, vault, seconds, live, active, mechanism) == ("tight", "vault-pol", 1800, 1, 0, "liquidity")
    rules = decode(JobSettings, settings.encode(), 10_000)
    assert (rules.target, rules.min_in_range, rules.checkpoint_blocks, rules.weight) == ("MinIL", 0.5, 50, 2)
    assert said(capsys, folder, "jobs set tight --active yes")[0] == 0 and table(folder)[1][5] == 1
    assert table(folder)[0] == before[0]


def test_a_bad_row_is_off_and_is_mended_by_the_command_that_it_names(folder, capsys):
    path = folder / "validator.sqlite3"
    for column, value in (("settings", "{"), ("round_seconds", 7), ("mechanism", "guessing")):
        write(path, f"UPDATE jobs SET {column} = ? WHERE job_id = 'first'", value)
        code, out, _ = said(capsys, folder, "jobs list")
        assert code == 1 and "first: WRONG, therefore off: " in out and "jobs set first" in out
        assert said(capsys, folder, "jobs set first --round-seconds 900 --of liquidity --set weight=1")[0] == 0
        assert said(capsys, folder, "jobs list")[0] == 0


def test_a_bad_row_among_good_ones_stops_nothing_and_a_job_that_is_added_meanwhile_plays(tmp_path, caplog, monkeypatch):
    path = tmp_path / "validator.sqlite3"

    async def prepare(subnet, store, chain, market) -> None:
        look = subnet.validator.schedule._look

        async def looked(now: int) -> None:
            looks.append(now)
            if len(looks) == 20:  # minutes: a round has ended
                write(path, "UPDATE jobs SET settings = 'x' WHERE job_id = 'bad'")
                line = f"jobs add new --vault vault --db {path} --dir {tmp_path}"
                assert await asyncio.to_thread(run_beside, line) == 1  # the list that it prints names the bad one
            await look(now)

        looks: list[int] = []
        subnet.validator.schedule._look = looked

    def run_beside(line: str) -> int:
        return asyncio.run(jobs.command(build_parser().parse_args(line.split())))

    monkeypatch.setitem(jobs._VAULTS, "MODEL", "vault")
    played = play_subnet(tmp_path, {"a": keep}, [a_job("bad"), a_job("good")], prepare=prepare, rounds=3)
    ended = played.rows("SELECT job_id, code FROM rounds ORDER BY job_id, start_time")
    assert [code for job, code in ended if job == "good"] == ["scored"] * 3
    assert [code for job, code in ended if job == "new"] == ["scored"] * 3
    assert 0 < sum(job == "bad" for job, _ in ended) < 3
    assert caplog.text.count("job bad is off: not JSON") == 2  # by the command too


def test_a_database_goes_over_to_the_hotkey_that_a_swap_named(folder, capsys):
    old, new = hotkey_of("v"), hotkey_of("w")
    mine = rows(folder / "validator.sqlite3", "SELECT value FROM meta WHERE key = 'validator'")[0][0]
    code, _, err = said(capsys, folder, f"adopt {old} {new}")
    assert code == 2 and f"is of hotkey {mine}, not {old}" in err
    scores = rows(folder / "validator.sqlite3", "SELECT * FROM miner_scores")
    code, out, _ = said(capsys, folder, f"adopt {mine} {new}")
    assert code == 0 and f"now {new}'s" in out
    assert rows(folder / "validator.sqlite3", "SELECT value FROM meta WHERE key = 'validator'") == [(new,)]
    assert rows(folder / "validator.sqlite3", "SELECT * FROM miner_scores") == scores
    assert said(capsys, folder, f"adopt {new} nonsense")[0] == 2


# ---------------------------------------------------------------------------------------------------------------------
# Alerts


def watched(tmp_path, monkeypatch, work) -> list[tuple[str, str]]:
    """What a validator on a real network (a fake node) tells while `work(look, node, validator)` provokes it."""
    told, clock = [], [0.0]

    async def main() -> None:
        node = Node(netuid=98, owner=("", ""))
        node.register(hot("v"), cold("v"), 10**13)
        wallet = Wallet(local_keypair("v-hotkey"), cold("v"))
        async with (
            BittensorChain.open(netuid=98, wallet=wallet, substrate=node.substrate) as chain,
            Store.open(tmp_path / "validator.sqlite3") as store,
        ):
            market = ModelMarket(5, {"vault": 10**12}, pace=1.0)
            options = build_parser().parse_args(["--pace", "1"])
            one = Validator(store, chain, market, None, wallet.hotkey, options, {})
            one.notifier = SimpleNamespace(notify=lambda kind, text: told.append((kind, text)))
            one.alerts, one.troubles = AlertRules(0.0, 4320), Troubles(store, market, 1.0, lambda: clock[0])
            monkeypatch.setattr(validator, "time", SimpleNamespace(monotonic=lambda: clock[0], time=lambda: 1.8e9))

            async def look(minutes: int = 1) -> None:
                for _ in range(minutes):
                    clock[0] += 60
                    await one._weigh(0)

            await look()
            assert told == []
            await work(look, node, one)

    asyncio.run(main())
    return told


def dissolved(node: Node) -> None:
    node.netuid = 77


def upgraded(node: Node) -> None:
    node.faults["get_metagraph"].extend([ValueError("Invalid type for data: 98")] * 99)


def silent(node: Node) -> None:
    node.faults["get_metagraph"].extend([ConnectionRefusedError("no")] * 99)


@pytest.mark.parametrize(
    ("prepare", "cause"),
    [
        (dissolved, "netuid 98 does not exist on this network"),
        (upgraded, "metagraph: ValueError; the SDK may be older than the chain's runtime: update bittensor"),
        (silent, "metagraph: "),
    ],
)
def test_the_alert_of_a_chain_that_cannot_be_read_says_why(tmp_path, monkeypatch, prepare, cause):
    async def work(look, node, one) -> None:
        prepare(node)
        await look(12)

    chain = [text for kind, text in watched(tmp_path, monkeypatch, work) if kind == "chain"]
    assert len(chain) == 1 and chain[0].startswith("ALERT: the chain could not be read for 1") and cause in chain[0]
    assert ("update bittensor" in chain[0]) == (prepare is upgraded)


async def ended(store: Store, job_id: str, code: Code, count: int, first: int = 1) -> None:
    job = next(job for job in await store.jobs() if job.job_id == job_id)
    for start in range(first * 900, (first + count) * 900, 900):
        round_id = f"{job_id}:evaluation:{start}"
        await store.begin_round(round_id, job, "evaluation", start, 1)
        await store.finish_round(round_id, job_id, RoundResult(code, "as it was"), None, 2, {}, 0)


def test_each_trouble_of_jobs_rounds_miners_and_market_is_told_with_its_cause_and_its_end(tmp_path, monkeypatch):
    async def work(look, node, one) -> None:
        store, head = one.store, one.market.head
        for name in ("bad", "void", "alone"):
            await store.put_job(a_job(name))
        await ended(store, "void", Code.VOID_GAP, ROUNDS_IN_A_ROW - 1)
        await ended(store, "alone", Code.NOBODY_RANKED, ROUNDS_IN_A_ROW - 1)
        await look()
        await ended(store, "void", Code.VOID_INTERRUPTED, 1, first=9)
        await ended(store, "alone", Code.NOBODY_RANKED, 1, first=9)
        await store.write(lambda db: db.execute("UPDATE jobs SET settings = '{' WHERE job_id = 'bad'"))
        await look()
        await ended(store, "void", Code.NOBODY_RANKED, 1, first=20)
        await ended(store, "alone", Code.VOID_GAP, 1, first=20)
        await store.put_job(a_job("bad"))
        await look()

        async def no_head():
            raise MarketError("no answer from node.example")

        one.market.head = no_head
        await look(MARKET_SILENT_SECONDS // 60 + 1)
        one.market.head = head
        one.troubles._head = -1  # it has moved
        await look()

    told = [(kind, text) for kind, text in watched(tmp_path, monkeypatch, work) if kind != "weights"]
    begun = {kind: text for kind, text in told if text.startswith("ALERT: ")}
    assert begun.keys() == {"job bad", "evaluation rounds of void", "miners of alone", "market"}
    assert "job bad is off: not JSON" in begun["job bad"] and "jobs set bad" in begun["job bad"]
    assert "are void, the newest: void_interrupted, as it was" in begun["evaluation rounds of void"]
    assert "no miner answered in the last 3 evaluation rounds of job alone" in begun["miners of alone"]
    assert "has not moved for 10 min" in begun["market"] and "no answer from node.example" in begun["market"]
    assert {kind for kind, text in told if text.startswith("RECOVERED")} == begun.keys()


def test_a_lost_registration_says_what_a_swap_asks_for(tmp_path, monkeypatch):
    async def work(look, node, one) -> None:
        node.state.uids[0].hotkey = hot("new")  # the chain swapped the coldkey's hotkey
        await look()

    told = dict(watched(tmp_path, monkeypatch, work))
    assert told.keys() == {"registration"} and f"uid 0 {hot('new')}: if it was swapped" in told["registration"]
    assert f"adopt {hot('v')} {hot('new')}" in told["registration"]


def test_a_bad_share_of_a_mechanism_is_a_refused_vector_and_stops_nothing(tmp_path, monkeypatch):
    async def work(look, node, one) -> None:
        await one.store.put_job(a_job("job"))
        await ended(one.store, "job", Code.SCORED, 1)
        await one.store.write(lambda db: db.execute("INSERT INTO mechanisms VALUES ('liquidity', '-1')"))
        one.weigher.next_block = 0
        monkeypatch.setattr(validator, "block_at", lambda now: 0)
        await one._weigh(10**9)

    (alert,) = [text for kind, text in watched(tmp_path, monkeypatch, work) if kind == "weights"]
    assert "its share is '-1'" in alert


def test_nobody_else_of_the_coldkey_is_no_swap():
    graph = SimpleNamespace(neurons=[SimpleNamespace(uid=1, hotkey="x", coldkey="other")])
    assert gone(graph, SimpleNamespace(hotkey="mine", coldkey="cold")).startswith("register it")
