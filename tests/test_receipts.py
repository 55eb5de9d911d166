"""Receipts: what is signed follows from the evidence, nothing in it can be changed, and no peer gains by misbehaving.

Run with `python -m pytest tests/test_receipts.py`. Read next: `receipts.py`, `receipt_book.py`.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import random
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from subnets import (
    FAST,
    ROOT,
    a_job,
    command,
    hotkey_of,
    keep,
    play_subnet,
    refuse,
    rows,
    start,
    wait_for,
    write,
    write_meanwhile,
)

import miner
from audit import __main__ as audit_main
from audit import issuer as issuer_module
from audit import receipt_book, stored
from audit import receipts as receipts_module
from audit.issuer import Issuer
from audit.receipt_book import ReceiptBook, fetch
from audit.receipts import issue, problems, read, seal_digest, statement
from chain.local import LocalChain
from markets.model import FIRST_TIME
from protocol import Code, JobSettings, Position, ProtocolError, RebalanceQuery
from scoring import Outcome, gas_cost, score_outcome
from store import Store
from wire.client import ask, client_session
from wire.codec import canonical, digest, encode, to_json
from wire.server import Gate, build_app, serve
from wire.signing import WireError, local_keypair, sign_statement

VALIDATOR, EVE = local_keypair("validator-hotkey"), local_keypair("eve-hotkey")


def changing(query: RebalanceQuery):
    """Accepts, then answers one checkpoint with nonsense: kept."""
    return b"nonsense" if query.block_time > query.window_start_time else everything(query)


def everything(query: RebalanceQuery):
    reach = 100 * query.tick_spacing
    lower = query.tick // query.tick_spacing * query.tick_spacing - reach
    return [Position(lower, lower + 2 * reach, *query.holdings())]


MINERS = {
    "keeps": keep,
    "copies": keep,
    "moves": everything,
    "changes": changing,
    "idles": lambda query: [],
    "shy": lambda query: refuse(),
    "odd": lambda query: b"[]",
}


class Played:
    """A subnet that has played: the sealed evidence of each round in which miners were asked, and who was asked."""

    def __init__(self, folder: Path):
        sealed: list[dict] = []

        async def watch(subnet, store, chain, market) -> None:
            subnet.validator.on_sealed = sealed.append
            for name in ("moves", "changes"):  # one of them wins, and soon manages the vault
                for n in range(1, 7):
                    row = "fees", hotkey_of(name), FIRST_TIME // 86_400 - n
                    await write_meanwhile(subnet.path, "INSERT INTO miner_participation VALUES (?, ?, ?, 0)", *row)

        jobs = [
            a_job("pol", rebalance_cost=1000, min_in_range=Decimal("0.5")),
            a_job("fees", "MaxFees", live=True, checkpoint_blocks=40),
        ]
        self.subnet = play_subnet(folder, MINERS, jobs, prepare=watch, rounds=4)
        self.path = self.subnet.path
        self.evidence = {evidence["round"]["round_id"]: evidence for evidence in sealed if evidence["asks"]}
        self.asked = sorted(
            {(round_id, a["hotkey"]) for round_id, evidence in self.evidence.items() for a in evidence["asks"]}
        )

    def receipt(self, round_id: str, hotkey: str) -> dict:
        evidence = self.evidence[round_id]
        return issue(evidence, hotkey, seal_digest(evidence), VALIDATOR)

    def receipts(self, name: str) -> list[dict]:
        return [self.receipt(round_id, hotkey) for round_id, hotkey in self.asked if hotkey == hotkey_of(name)]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Played:
    return Played(tmp_path_factory.mktemp("played"))


def signed(said: Any) -> dict:
    """What a validator that says anything would sign."""
    return {"statement": said, "signature": sign_statement(VALIDATOR, receipts_module.SCHEME, canonical(said))}


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a plain value that is no object and no list."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from leaves(value[key], (*path, key))
    if not isinstance(value, dict | list):
        yield path


def with_change(value: Any, path: tuple, change) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner[path[-1]])
    return changed


def other(leaf: Any) -> Any:
    """Something else of the same type."""
    return 1 if leaf is None else leaf + 1 if isinstance(leaf, int) else ("1" if leaf != "1" else "2")


def refusal(work) -> Code:
    with pytest.raises(ProtocolError) as caught:
        asyncio.run(work) if asyncio.iscoroutine(work) else work()
    return caught.value.code


# ---------------------------------------------------------------------------------------------------------------------
# The statement


def test_every_miner_that_was_asked_has_a_right_statement_in_every_round_ranked_or_not(played):
    codes = {}
    for round_id, hotkey in played.asked:
        receipt = played.receipt(round_id, hotkey)
        said = read(receipt)
        assert said == receipt["statement"] and list(problems(said, played.evidence[round_id])) == []
        assert (said["hotkey"], said["validator"], said["round"]["round_id"]) == (
            hotkey,
            VALIDATOR.ss58_address,
            round_id,
        )
        codes.setdefault(hotkey, set()).update(asked["code"] for asked in said["asks"])
        stored = played.subnet.rows("SELECT rank, line FROM scores WHERE round_id = ? AND hotkey = ?", round_id, hotkey)
        assert (
            [(int(said["line"]["rank"]), said["line"])] == [(rank, json.loads(line)) for rank, line in stored]
            if (said["line"])
            else not stored
        )
    asked = played.subnet.rows("SELECT DISTINCT round_id, hotkey FROM predictions ORDER BY round_id, hotkey")
    assert played.asked == asked and len({round_id for round_id, _ in asked if ":evaluation:" in round_id}) == 8
    assert len([round_id for round_id, _ in asked if ":live:" in round_id]) == 2
    assert codes[hotkey_of("shy")] == {"refused"} and codes[hotkey_of("odd")] == {"malformed"}
    assert codes[hotkey_of("changes")] == {"accepted", "kept"}


def test_it_quotes_each_ask_by_the_digests_of_the_bytes_that_travelled(played):
    for round_id, hotkey in played.asked:
        said = played.receipt(round_id, hotkey)["statement"]
        name = next(name for name in MINERS if hotkey_of(name) == hotkey)
        got = {digest(encode(query)) for query in played.subnet.asked[name] if query.round_id == round_id}
        assert {asked["query"] for asked in said["asks"]} == got
        stored = played.subnet.rows(
            "SELECT answer, nonce FROM predictions WHERE round_id = ? AND hotkey = ? ORDER BY due_block",
            round_id,
            hotkey,
        )
        assert [(a["answer"], a["nonce"]) for a in said["asks"]] == [
            (digest(b) if b else "", str(n)) for b, n in stored
        ]


def test_the_database_alone_gives_the_same_bytes_again(played):
    async def again() -> None:
        async with Store.open(played.path) as store:
            for round_id, hotkey in played.asked:
                evidence, seal = await stored.evidence_about(store, round_id, hotkey)
                assert canonical(statement(evidence, hotkey, seal)) == canonical(
                    played.receipt(round_id, hotkey)["statement"]
                )
            assert await stored.evidence_about(store, round_id, hotkey_of("eve")) is None
            assert await stored.evidence_about(store, "no:evaluation:1", hotkey) is None

    asyncio.run(again())


def test_a_void_round_in_which_a_miner_was_asked_has_a_receipt_without_a_score(played):
    round_id, hotkey = next(pair for pair in played.asked if pair[1] == hotkey_of("keeps"))
    void = copy.deepcopy(played.evidence[round_id])
    void["round"] |= {"code": "void_contradiction", "detail": "block 1: " + "x" * 1000, "close_block": None}
    void |= {"scores": [], "baselines": {}}
    said = read(signed(statement(void, hotkey, seal_digest(void))))
    assert said["line"] is None and set(said["baselines"].values()) == {None} and list(problems(said, void)) == []
    assert list(problems(played.receipt(round_id, hotkey)["statement"] | {"round": void["round"]}))


def test_no_field_can_be_changed_without_its_signature_failing(played):
    rng = random.Random(4)
    for round_id, hotkey in rng.sample(played.asked, 6):
        receipt = played.receipt(round_id, hotkey)
        paths = list(leaves(receipt))
        assert len(paths) > 30
        for path in paths:
            code = refusal(lambda path=path, receipt=receipt: read(with_change(receipt, path, other)))
            assert code in (Code.RECEIPT_SIGNATURE, Code.MALFORMED), path
        for path in paths:  # nor left out, nor given another type
            assert refusal(lambda path=path, receipt=receipt: read(with_change(receipt, path, lambda leaf: [leaf])))
    for wrong in (None, [], {}, "x", {"statement": receipt["statement"]}, receipt | {"more": 1}):
        assert refusal(lambda wrong=wrong: read(wrong)) is Code.MALFORMED
    assert refusal(lambda: read(receipt | {"signature": "0" * 128})) is Code.RECEIPT_SIGNATURE
    assert refusal(lambda: read(receipt | {"signature": "0x"})) is Code.RECEIPT_SIGNATURE


def test_what_is_validly_signed_and_differs_from_the_evidence_is_named(played):
    for round_id, hotkey in random.Random(5).sample(played.asked, 6):
        said, evidence = played.receipt(round_id, hotkey)["statement"], played.evidence[round_id]
        for path in leaves(said):
            found = list(problems(with_change(said, path, other), evidence))
            assert path[0] in ("hotkey", "format") or any(what.startswith(f"{path[0]}: ") for what in found), path


def test_a_wrong_score_is_found_without_the_evidence(played):
    """Each term follows from the amounts, the score from the terms, and being ranked from the first answer."""
    seen = set()
    for round_id, hotkey in played.asked:
        said = played.receipt(round_id, hotkey)["statement"]
        if not (line := said["line"]):
            continue
        seen.add((said["round"]["job_id"], bool(line["copy_of"]), line["score"] == line["terms"]["score"]))
        for path in [("terms", name) for name in line["terms"]] + [("score",), ("name",)]:
            assert list(problems(with_change(said, ("line", *path), other))), path
        for name in ("final0", "fees1", "sqrt_price_end_x96"):
            assert list(problems(with_change(said, ("line", "outcome", name), lambda text: str(int(text) * 2 + 10**9))))
        for rank in ("0", str(said["ranked"] + 1), "x"):
            assert list(problems(with_change(said, ("line", "rank"), lambda _, rank=rank: rank)))
        swapped = None if said["entrant"] else {"registered_block": 1, "combined": "0"}  # live rounds have none
        assert list(problems(said | {"line": None})) and list(problems(said | {"entrant": swapped}))
    assert {("pol", True, True), ("pol", False, True), ("pol", False, False), ("fees", False, True)} <= seen


def test_the_gas_of_a_live_round_is_said_and_its_score_follows_from_it(played):
    round_id, hotkey = next(pair for pair in played.asked if ":live:" in pair[0])
    said = copy.deepcopy(played.receipt(round_id, hotkey)["statement"])
    assert "gas" not in said["line"]
    line, settings = said["line"], JobSettings.for_target("MaxFees")
    outcome = Outcome(**{k: Decimal(v) if k == "in_range" else int(v) for k, v in line["outcome"].items()})
    gas = 3 * 10**14, 5
    terms = score_outcome(outcome, "MaxFees", settings.rebalance_cost, gas_cost(*gas, outcome.sqrt_price_end_x96))
    line |= {"gas": to_json(gas), "terms": to_json(terms), "score": str(terms.score)}
    assert list(problems(read(signed(said)))) == [] and terms.costs > 10**5
    for n in (0, 1):  # a unit of token0 is less than one of token1 here
        more = with_change(said, ("line", "gas", n), lambda text: str(int(text) + 10**14))
        assert any(what.startswith("line.terms.costs: ") for what in problems(more))
    for wrong in ([], ["1"], ["1", "2", "3"], ["x", "1"], ["-1", "5"]):
        assert list(problems(with_change(said, ("line", "gas"), lambda _, wrong=wrong: wrong))), wrong
    assert list(problems(with_change(said, ("line",), lambda line: {k: v for k, v in line.items() if k != "gas"})))
    evaluated = with_change(said, ("round", "round_type"), lambda _: "evaluation")
    assert any(what.startswith("line.gas: ") for what in problems(evaluated))
    assert refusal(lambda: read(signed(with_change(said, ("line", "gas"), lambda _: [3, 5])))) is Code.MALFORMED


def test_numbers_that_are_none_or_too_long_to_print_are_named_and_cost_nothing(played):
    round_id, hotkey = next(pair for pair in played.asked if pair[1] == hotkey_of("moves"))
    said = played.receipt(round_id, hotkey)["statement"]
    for text in ("1E+999999999", "NaN", "Infinity", "x", ""):
        for path in (("baselines", "keep"), ("baselines", "best"), ("line", "score"), ("line", "outcome", "final0")):
            assert list(problems(with_change(said, path, lambda _, text=text: text))), (text, path)


def test_a_receipt_with_numbers_that_cannot_be_written_out_is_no_receipt_however_well_signed(played):
    round_id, hotkey = next(pair for pair in played.asked if pair[1] == hotkey_of("moves"))
    said = played.receipt(round_id, hotkey)["statement"]
    assert read(signed(said)) == said
    paths = [path for path in leaves(said) if path[0] in ("line", "baselines", "entrant", "asks")]
    numbers = [path for path in paths if path[-1] not in ("name", "copy_of", "code", "detail", "query", "answer")]
    assert len(numbers) > 30
    for path in numbers:
        for text in ("1E+300000000", "9" * 300, "NaN", "-Infinity", "1E-999999"):
            assert refusal(lambda path=path, text=text: read(signed(with_change(said, path, lambda _: text)))) == (
                Code.MALFORMED
            ), (path, text)


# ---------------------------------------------------------------------------------------------------------------------
# The validator's server


@asynccontextmanager
async def serving(played: Played, folder: Path, *registered: str):
    """The receipts of the played rounds, served; gives the issuer and its URL."""
    async with LocalChain.open(folder / "chain.sqlite3", VALIDATOR.ss58_address, "cold", genesis_block=1) as chain:
        await chain.register(VALIDATOR.ss58_address, "cold", 10**15)
        for name in registered:
            await chain.register(hotkey_of(name), f"{name}'s coldkey")
        async with issuer_module.issuing(played.path, chain, VALIDATOR, "127.0.0.1", 0, "127.0.0.1") as issuer:
            (own,) = [n for n in (await chain.metagraph()).neurons if n.hotkey == VALIDATOR.ss58_address]
            yield issuer, f"http://{own.address}"


async def answered(issuer: Issuer, name: str, request: Any) -> Any:
    return json.loads(await issuer.answer(hotkey_of(name), canonical(request)))


async def listed(issuer: Issuer, name: str) -> list[list[str]]:
    pages, after = [], 0
    while after is not None:
        page = await answered(issuer, name, {"after": after})
        pages.append(page["rounds"])
        assert page["after"] is None or page["after"] > after
        after = page["after"]
    return pages


@pytest.mark.parametrize("scan", [1, 3, 8, 1000])
@pytest.mark.parametrize("page_bytes", [64, 160, 64 * 1024])
def test_the_pages_of_a_list_have_no_gap_and_no_double(played, tmp_path, monkeypatch, scan, page_bytes):
    monkeypatch.setattr(issuer_module, "PAGE_ROUNDS", scan)
    monkeypatch.setattr(issuer_module, "PAGE_BYTES", page_bytes)

    async def look() -> None:
        async with serving(played, tmp_path) as (issuer, _):
            for name in MINERS:
                pages = await listed(issuer, name)
                mine = sorted(round_id for round_id, hotkey in played.asked if hotkey == hotkey_of(name))
                assert sorted(round_id for page in pages for round_id in page) == mine and mine
                assert all(len(page) <= 1 or len(canonical(page)) <= page_bytes for page in pages)
            assert await listed(issuer, "nobody") == [[]] * len(await listed(issuer, "nobody"))

    asyncio.run(look())


def test_pages_of_receipts_fit_and_give_nobody_anothers(played, tmp_path, monkeypatch):
    monkeypatch.setattr(issuer_module, "PAGE_BYTES", 9000)

    async def look() -> None:
        async with serving(played, tmp_path) as (issuer, _):
            every = sorted({round_id for round_id, _ in played.asked})
            for name in [*MINERS, "nobody"]:
                wanted, got = [*every, "no:evaluation:1"], []
                while came := (await answered(issuer, name, {"rounds": wanted}))["receipts"]:
                    assert len(came) == 1 or len(canonical({"receipts": came})) <= 9000
                    got += came
                    wanted = [w for w in wanted if w not in {r["statement"]["round"]["round_id"] for r in came}]
                assert {read(receipt)["hotkey"] for receipt in got} <= {hotkey_of(name)}
                assert [r["statement"] for r in got] == [
                    played.receipt(round_id, hotkey)["statement"]
                    for round_id, hotkey in played.asked
                    if hotkey == hotkey_of(name)
                ]

    asyncio.run(look())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"after": -1e3}',
        b'{"after": "0"}',
        b'{"after": true}',
        b'{"after": 18446744073709551616}',
        b'{"after": 0, "rounds": []}',
        b'{"rounds": "x"}',
        b'{"rounds": [1]}',
        b'{"rounds": ["\\ud800"]}',
        b'{"rounds": [], "hotkey": "x"}',
        b"[" * 60_000,
    ],
)
def test_a_request_that_makes_no_sense_is_malformed(played, tmp_path, body):
    async def look() -> None:
        async with serving(played, tmp_path) as (issuer, _):
            await issuer.answer(hotkey_of("keeps"), body)

    assert refusal(look()) is Code.MALFORMED


def test_only_registered_or_once_ranked_hotkeys_may_fetch(played, tmp_path):
    async def look() -> list[tuple[Code, Any]]:
        found = []
        async with serving(played, tmp_path, "newcomer") as (_, url), client_session(4) as session:
            for name in ("newcomer", "keeps", "eve"):  # keeps is no longer registered: it needs its receipts most
                reply = await ask(
                    session,
                    f"{url}/receipts",
                    b'{"after": 0}',
                    keypair=local_keypair(f"{name}-hotkey"),
                    receiver=VALIDATOR.ss58_address,
                    total_seconds=30,
                    max_reply_bytes=2**20,
                )
                found.append((reply.code, len(json.loads(reply.body)["rounds"]) if reply.body else reply.detail))
        return found

    newcomer, once_ranked, stranger = asyncio.run(look())
    assert newcomer == (Code.ACCEPTED, 0) and once_ranked == (Code.ACCEPTED, 8)
    assert stranger[0] is Code.HTTP_STATUS and "not_registered" in stranger[1]


# ---------------------------------------------------------------------------------------------------------------------
# Posting


class Ledger:
    """A chain that knows where these miners listen."""

    def __init__(self, **ports: int):
        self.neurons = [type("N", (), {"hotkey": hotkey_of(n), "address": f"127.0.0.1:{p}"}) for n, p in ports.items()]

    async def metagraph(self):
        return self


@asynccontextmanager
async def a_book(folder: Path, name: str):
    """A miner's book behind its `/receipt`; gives both the book and the port."""
    key, gate = (
        local_keypair(f"{name}-hotkey"),
        Gate(lambda: ({}, 0.0), min_stake_rao=0, allow=frozenset({VALIDATOR.ss58_address, EVE.ss58_address})),
    )
    async with ReceiptBook.open(folder / f"receipts-{name}.sqlite3", key.ss58_address) as book:
        app = build_app(keypair=key, gate=gate, routes={"/receipt": book.take}, limits=FAST)
        async with serve(app, "127.0.0.1", 0) as port:
            yield book, port


@asynccontextmanager
async def hostile(behave):
    """A raw server: `await behave(writer)` once a request's head is there. Gives its port."""
    tasks = []

    async def connected(reader, writer):
        tasks.append(asyncio.current_task())
        try:
            await reader.readuntil(b"\r\n\r\n")
            await behave(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for task in tasks:  # from Python 3.12 on a server waits for its connections
                task.cancel()


async def silence(writer) -> None:
    await asyncio.sleep(3600)


async def flood(writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Alm-Answer: 0\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def redirect(writer) -> None:
    writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def until(look) -> None:
    async with asyncio.timeout(60):
        while not await look():
            await asyncio.sleep(0.01)


def test_miners_that_are_dead_slow_or_hostile_keep_no_receipt_from_the_others(played, tmp_path, monkeypatch):
    mine = {receipt["statement"]["round"]["round_id"] for receipt in played.receipts("keeps")}
    monkeypatch.setattr(issuer_module, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(issuer_module, "POST_SECONDS", 60)

    async def post() -> tuple[int, set[str], list[bool]]:
        async with (
            a_book(tmp_path, "keeps") as (book, port),
            hostile(silence) as slow,
            hostile(flood) as huge,
            hostile(redirect) as moved,
            client_session(issuer_module.POSTS) as session,
        ):
            ledger = Ledger(keeps=port, moves=slow, copies=huge, changes=moved, shy=1)  # odd has no address
            issuer = Issuer(None, ledger, VALIDATOR, session)
            for evidence in played.evidence.values():
                issuer.post(evidence)

            async def all_there() -> bool:
                return await book.held(VALIDATOR.ss58_address) == mine

            await until(all_there)  # while the slow one has not answered yet
            pending = [hotkey in issuer._waiting for hotkey in map(hotkey_of, ("moves", "keeps"))]
            await issuer.drain()
            assert not issuer._waiting and not issuer._unsigned
            return issuer.unposted, await book.held(VALIDATOR.ss58_address), pending

    unposted, held, pending = asyncio.run(post())
    assert pending[0] and unposted == len(played.asked) - 8 and held == mine


def test_one_miner_has_one_post_at_a_time_and_what_waits_travels_together(played, tmp_path, monkeypatch):
    monkeypatch.setattr(issuer_module, "POST_SECONDS", 60)

    async def post() -> list[int]:
        sizes, release = [], asyncio.Event()
        async with a_book(tmp_path, "keeps") as (book, _):

            async def slow_take(caller: str, body: bytes) -> bytes:
                sizes.append(len(json.loads(body)["receipts"]))
                await release.wait()
                return await book.take(caller, body)

            gate = Gate(lambda: ({}, 0.0), min_stake_rao=0, allow=frozenset({VALIDATOR.ss58_address}))
            app = build_app(
                keypair=local_keypair("keeps-hotkey"), gate=gate, routes={"/receipt": slow_take}, limits=FAST
            )
            async with serve(app, "127.0.0.1", 0) as port, client_session(4) as session:
                issuer = Issuer(None, Ledger(keeps=port), VALIDATOR, session)
                for evidence in played.evidence.values():
                    issuer.post(evidence)

                async def signed_all() -> bool:
                    return not issuer._unsigned

                await until(signed_all)
                release.set()
                await issuer.drain()
                assert len(await book.held(VALIDATOR.ss58_address)) == 8
        return sizes

    sizes = asyncio.run(post())
    assert sum(sizes) == 8 and len(sizes) < 8


def test_too_many_rounds_at_once_are_not_posted_and_counted(played, monkeypatch):
    async def post() -> tuple[int, int]:
        issuer = Issuer(None, Ledger(), VALIDATOR, None)
        evidence = next(iter(played.evidence.values()))
        for _ in range(issuer_module.MAX_ROUNDS + 5):
            issuer.post(evidence)
        waiting, dropped = issuer._unsigned, issuer.unposted
        await issuer.drain()
        assert issuer.unposted == (issuer_module.MAX_ROUNDS + 5) * len(MINERS)  # nobody has an address
        return waiting, dropped

    assert asyncio.run(post()) == (issuer_module.MAX_ROUNDS, 5 * len(MINERS))


# ---------------------------------------------------------------------------------------------------------------------
# The miner's book


def kept(folder: Path, name: str = "keeps") -> list[tuple]:
    return rows(folder / f"receipts-{name}.sqlite3", "SELECT * FROM receipts ORDER BY round_id, digest")


def test_a_page_is_kept_once_however_often_it_comes(played, tmp_path):
    page = canonical({"receipts": played.receipts("keeps")})

    async def take() -> list[bytes]:
        async with a_book(tmp_path, "keeps") as (book, _):
            return [await book.take(VALIDATOR.ss58_address, page) for _ in range(3)]

    assert asyncio.run(take()) == [b'{"new":8}', b'{"new":0}', b'{"new":0}']
    assert [row[2] for row in kept(tmp_path)] == [digest(canonical(r["statement"])) for r in played.receipts("keeps")]
    assert asyncio.run(take()) == [b'{"new":0}'] * 3  # after a restart


def test_two_miners_of_one_folder_have_two_books_and_neither_accuses_a_validator(played, tmp_path, capsys):
    path = tmp_path / "receipts-mine.sqlite3"

    async def keep_and_judge(*names: str) -> list[bool]:
        found = []
        for name in names:
            async with ReceiptBook.open(path, hotkey_of(name)) as book:
                await book.keep(VALIDATOR.ss58_address, played.receipts(name))
                found.append(await receipt_book._table(book, 3))
        return found

    assert asyncio.run(keep_and_judge("keeps", "moves", "keeps")) == [False] * 3
    files = path, receipt_book.beside(path, hotkey_of("moves"))
    owners = [rows(file, "SELECT hotkey, count(*) FROM owner, receipts") for file in files]
    assert owners == [[(hotkey_of(name), len(played.receipts(name)))] for name in ("keeps", "moves")]
    assert sorted(tmp_path.glob("*.sqlite3")) == sorted(files)
    # a book that two shared in the release before belongs to one of them, and the other's receipts prove nothing in it
    write(path, "DROP TABLE owner")
    write(path, "PRAGMA user_version = 1")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("ATTACH ? AS other", (str(files[1]),))
        db.execute("INSERT INTO receipts SELECT * FROM other.receipts WHERE true ON CONFLICT DO NOTHING")
    capsys.readouterr()
    assert asyncio.run(keep_and_judge("keeps")) == [False]
    assert (
        f"{len(played.receipts('moves'))} receipts are about another miner, and not judged" in capsys.readouterr().out
    )


def hostile_pages(played: Played) -> list[tuple[Code, Any]]:
    good = played.receipts("keeps")[0]
    said = good["statement"]
    foreign = {"statement": said, "signature": sign_statement(EVE, receipts_module.SCHEME, canonical(said))}
    eves = said | {"validator": EVE.ss58_address}
    return [
        (Code.MALFORMED, b"no JSON"),
        (Code.MALFORMED, []),
        (Code.MALFORMED, {"receipts": "x"}),
        (Code.MALFORMED, {"receipts": [good], "more": 1}),
        (Code.MALFORMED, {"receipts": [good] * (issuer_module.PAGE_RECEIPTS + 1)}),
        (Code.MALFORMED, {"receipts": [None]}),
        (Code.MALFORMED, {"receipts": [{}]}),
        (Code.MALFORMED, {"receipts": [good | {"statement": {}}]}),
        (Code.MALFORMED, {"receipts": [signed(said | {"format": "alm-receipt/2"})]}),
        (Code.MALFORMED, {"receipts": [signed(said | {"round": said["round"] | {"end_time": 2**63}})]}),
        (Code.MALFORMED, {"receipts": [signed(said | {"round": said["round"] | {"round_id": "\ud800"}})]}),
        (Code.MALFORMED, {"receipts": [signed(said | {"round": said["round"] | {"settings": {}}})]}),
        (Code.MALFORMED, b'{"receipts": [' + b"[" * 30_000 + b"]" * 30_000 + b"]}"),
        (Code.MALFORMED, b'{"receipts": []}' + b" " * issuer_module.PAGE_BYTES),
        (Code.RECEIPT_SIGNATURE, {"receipts": [foreign]}),
        (Code.RECEIPT_SIGNATURE, {"receipts": [good, good | {"signature": "00" * 64}]}),
        (Code.RECEIPT_SIGNATURE, {"receipts": [{"statement": said | {"seal": "0"}, "signature": good["signature"]}]}),
        (Code.RECEIPT_FOREIGN, {"receipts": [good, played.receipts("moves")[0]]}),
        (
            Code.RECEIPT_FOREIGN,
            {
                "receipts": [
                    {"statement": eves, "signature": sign_statement(EVE, receipts_module.SCHEME, canonical(eves))}
                ]
            },
        ),
    ]


def test_a_post_that_is_not_the_callers_word_about_this_miner_is_refused_with_its_code_and_nothing_is_kept(
    played, tmp_path
):
    async def take() -> None:
        async with a_book(tmp_path, "keeps") as (book, port), client_session(4) as session:
            for code, page in hostile_pages(played):
                body = page if isinstance(page, bytes) else canonical(page)
                with pytest.raises(ProtocolError) as caught:
                    await book.take(VALIDATOR.ss58_address, body)
                assert caught.value.code is code, (code, page)
            good = canonical({"receipts": played.receipts("keeps")[:1]})
            for key, code in ((EVE, "receipt_foreign"), (local_keypair("nobody-hotkey"), "not_registered")):
                url, limits = f"http://127.0.0.1:{port}/receipt", {"total_seconds": 30, "max_reply_bytes": 1024}
                reply = await ask(session, url, good, keypair=key, receiver=book.hotkey, **limits)
                assert reply.code is Code.HTTP_STATUS and code in reply.detail
            assert kept(tmp_path) == [] and book._bytes.total() == 0

    asyncio.run(take())


def test_one_validator_cannot_fill_the_disk_nor_push_out_what_another_signed(played, tmp_path, monkeypatch):
    mine = played.receipts("keeps")
    size = [len(canonical(receipt["statement"])) for receipt in mine]
    monkeypatch.setattr(receipt_book, "MAX_VALIDATOR_BYTES", sum(size[:3]))
    eves = mine[3]["statement"] | {"validator": EVE.ss58_address}

    async def take() -> None:
        for part in (mine[:2], mine[2:3]):  # reopened in between: what is on disk counts
            async with a_book(tmp_path, "keeps") as (book, _):
                await book.keep(VALIDATOR.ss58_address, part)
        async with a_book(tmp_path, "keeps") as (book, _):
            with pytest.raises(ProtocolError) as caught:
                await book.keep(VALIDATOR.ss58_address, mine[3:4])
            assert caught.value.code is Code.RECEIPTS_FULL
            theirs = {"statement": eves, "signature": sign_statement(EVE, receipts_module.SCHEME, canonical(eves))}
            assert await book.keep(EVE.ss58_address, [theirs]) == 1
            noted = book.noting(lambda caller, body: asyncio.sleep(0, b"{}"))
            assert await noted(VALIDATOR.ss58_address, b'{"round_id": "r"}') == b"{}" and book._notes == []

    asyncio.run(take())
    assert len(kept(tmp_path)) == 4


def test_answers_are_noted_as_given_and_a_receipt_that_misquotes_one_is_found(played, tmp_path):
    receipt = played.receipts("moves")[0]
    said = receipt["statement"]
    evidence = played.evidence[said["round"]["round_id"]]
    asks = [(a["query"], a["answer"]) for a in evidence["asks"] if a["hotkey"] == said["hotkey"]]

    async def note() -> list[tuple[list[str], int]]:
        found = []
        async with a_book(tmp_path, "moves") as (book, _):
            bodies = [tuple(map(base64.b64decode, pair)) for pair in asks]
            answers = dict(bodies)
            noted = book.noting(lambda caller, body: asyncio.sleep(0, answers.get(body, b"more")))
            for query, answer in bodies:
                assert await noted(VALIDATOR.ss58_address, query) == answer
            await book.flush()
            found.append(await book.compare(said))
            wrong = with_change(said, ("asks", 1, "answer"), lambda _: digest(b"never said"))
            found.append(await book.compare(wrong))
            unheard = with_change(said, ("asks", 1, "answer"), lambda _: "")
            found.append(await book.compare(unheard))
            found.append(await book.compare(said | {"asks": said["asks"][1:]}))
            with pytest.raises(ProtocolError):  # what the handler refuses is not noted, and stays refused
                await book.noting(refusing)(VALIDATOR.ss58_address, b"{}")
            assert await noted(VALIDATOR.ss58_address, b"no JSON") == b"more"  # a handler may take what it likes
            assert book._notes == []
        return found

    right, misquoted, unheard, left_out = asyncio.run(note())
    assert right == ([], 0) and unheard == ([], 1) and left_out == ([], 1)
    assert len(misquoted[0]) == 1 and digest(b"never said") in misquoted[0][0]
    assert len(rows(tmp_path / "receipts-moves.sqlite3", "SELECT * FROM answers")) == len(asks) > 2


async def refusing(caller: str, body: bytes) -> bytes:
    raise ProtocolError(Code.MALFORMED, "no")


# ---------------------------------------------------------------------------------------------------------------------
# Fetching


@asynccontextmanager
async def validator_says(answer):
    """A validator's server whose route says what a test wants, correctly signed; gives its URL."""

    async def handler(caller: str, body: bytes) -> bytes:
        said = answer(json.loads(body))
        return said if isinstance(said, bytes) else canonical(said)

    gate = Gate(lambda: ({}, 0.0), min_stake_rao=0, allow=frozenset({hotkey_of("keeps")}))
    app = build_app(keypair=VALIDATOR, gate=gate, routes={"/receipts": handler}, limits=FAST)
    async with serve(app, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


def fetched(folder: Path, answer, validator=VALIDATOR) -> int:
    async def work() -> int:
        async with validator_says(answer) as url, a_book(folder, "keeps") as (book, _):
            return await fetch(book, url, validator.ss58_address, local_keypair("keeps-hotkey"))

    return asyncio.run(work())


def test_fetching_brings_what_is_missing_and_no_more(played, tmp_path, monkeypatch):
    monkeypatch.setattr(issuer_module, "PAGE_ROUNDS", 3)
    monkeypatch.setattr(issuer_module, "PAGE_BYTES", 9000)  # two receipts a page
    mine = played.receipts("keeps")

    async def work() -> list[int]:
        async with serving(played, tmp_path) as (_, url), a_book(tmp_path, "keeps") as (book, _):
            await book.keep(VALIDATOR.ss58_address, mine[3:5])
            about = book, url, VALIDATOR.ss58_address, local_keypair("keeps-hotkey")
            return [await fetch(*about), await fetch(*about)]

    assert asyncio.run(work()) == [6, 0]
    assert [row[4] for row in kept(tmp_path)] == [canonical(receipt["statement"]).decode() for receipt in mine]


def test_the_default_port_gives_way_and_a_port_that_was_asked_for_does_not(played, tmp_path, monkeypatch):
    async def serve_on(port: int | None, *outside: int) -> int:
        async with LocalChain.open(
            tmp_path / "chain.sqlite3", VALIDATOR.ss58_address, "cold", genesis_block=1
        ) as chain:
            await chain.register(VALIDATOR.ss58_address, "cold", 10**15)
            async with issuer_module.issuing(played.path, chain, VALIDATOR, "127.0.0.1", port, "127.0.0.1", *outside):
                (own,) = [n for n in (await chain.metagraph()).neurons if n.address]
                return int(own.address.rpartition(":")[2])

    with closing(socket.create_server(("127.0.0.1", 0))) as busy:
        taken = busy.getsockname()[1]
        monkeypatch.setattr(issuer_module, "DEFAULT_PORT", taken)
        assert asyncio.run(serve_on(None)) not in (0, taken)
        with pytest.raises(WireError, match=str(taken)):
            asyncio.run(serve_on(taken))
    assert asyncio.run(serve_on(None)) == taken
    assert asyncio.run(serve_on(0, 41090)) == 41090  # published as the port that leads there


def receipts_of(good: list[dict], **changes: Any):
    """An honest server of these receipts, but for what it says to a list or a page."""

    def answer(request: dict) -> Any:
        kind = "list" if "after" in request else "page"
        if kind in changes:
            return changes[kind](request) if callable(changes[kind]) else changes[kind]
        if kind == "list":
            return {"rounds": [r["statement"]["round"]["round_id"] for r in good], "after": None}
        return {"receipts": [r for r in good if r["statement"]["round"]["round_id"] in request["rounds"]]}

    return answer


def test_a_server_that_lies_is_found_out_and_nothing_of_the_lie_is_kept(played, tmp_path):
    mine, others = played.receipts("keeps"), played.receipts("moves")
    said = mine[0]["statement"]
    forged = [mine[0], mine[1] | {"signature": mine[0]["signature"]}]
    eves = {"statement": said, "signature": sign_statement(EVE, receipts_module.SCHEME, canonical(said))}
    cases = [
        (Code.MALFORMED, {"list": b"garbage"}),
        (Code.MALFORMED, {"list": {}}),
        (Code.MALFORMED, {"list": {"rounds": [1], "after": None}}),
        (Code.MALFORMED, {"list": {"rounds": [], "after": 0}}),
        (Code.MALFORMED, {"list": lambda request: {"rounds": [], "after": 5}}),  # 5 again and again
        (Code.MALFORMED, {"page": {"receipts": [1]}}),
        (Code.MALFORMED, {"page": {"receipts": [{}]}}),
        (Code.REPLY_TOO_LARGE, {"page": {"receipts": [], "x": "x" * 2**20}}),
        (Code.RECEIPT_SIGNATURE, {"page": {"receipts": forged}}),
        (Code.RECEIPT_SIGNATURE, {"page": {"receipts": [eves]}}),
        (Code.RECEIPT_FOREIGN, {"page": {"receipts": others[:1]}}),
        (Code.NOT_FOUND, {"page": {"receipts": []}}),
    ]
    for code, lie in cases:
        assert refusal(lambda lie=lie: fetched(tmp_path, receipts_of(mine, **lie))) is code, (code, lie)
    assert kept(tmp_path) == []
    assert refusal(lambda: fetched(tmp_path, receipts_of(mine), validator=EVE)) is Code.HTTP_STATUS  # not for it
    assert fetched(tmp_path, receipts_of(mine)) == 8 == len(kept(tmp_path))
    assert fetched(tmp_path, receipts_of(mine)) == 0


def test_receipts_that_were_not_asked_for_are_no_answer(played, tmp_path):
    mine = played.receipts("keeps")
    answer = receipts_of(mine[:2], page={"receipts": mine[2:3]})
    assert refusal(lambda: fetched(tmp_path, answer)) is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("behave", "code"), [(redirect, Code.REDIRECT), (flood, Code.REPLY_TOO_LARGE), (silence, Code.TIMEOUT)]
)
def test_a_server_that_redirects_floods_or_hangs_ends_the_fetch_with_its_code(tmp_path, monkeypatch, behave, code):
    monkeypatch.setattr(receipt_book, "CALL_SECONDS", 20 if behave is flood else 0.3)

    async def work() -> None:
        async with hostile(behave) as port, a_book(tmp_path, "keeps") as (book, _):
            url = f"http://127.0.0.1:{port}"
            await fetch(book, url, VALIDATOR.ss58_address, local_keypair("keeps-hotkey"))

    assert refusal(work()) is code


def test_a_busy_server_is_asked_again(played, tmp_path, monkeypatch):
    monkeypatch.setattr(receipt_book.asyncio, "sleep", lambda seconds, real=asyncio.sleep: real(min(seconds, 0.01)))
    mine, refused = played.receipts("keeps"), []

    def answer(request: dict) -> Any:
        if len(refused) < 3:
            refused.append(request)
            raise ProtocolError(Code.BUSY if len(refused) < 3 else Code.RATE_LIMITED, "later")
        return receipts_of(mine)(request)

    assert fetched(tmp_path, answer) == 8 and len(refused) == 3


# ---------------------------------------------------------------------------------------------------------------------
# The programs


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The folder of a local subnet of processes that has played four rounds and ended."""
    folder = tmp_path_factory.mktemp("local")
    ended = command("validator.py", "--rounds", 4, "--dir", folder, "--port", 0)
    assert ended.returncode == 0 and "receipts are served" in ended.stderr and "did not reach" not in ended.stderr
    return folder


@pytest.fixture
def call(capsys):
    """Run a program's `main` in this process: (exit code, stdout, stderr)."""

    def call(main, *arguments: object) -> tuple[int, str, str]:
        try:
            code = main(list(map(str, arguments)))
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def report(call):
    return lambda folder, *options: call(miner.main, "receipts", "--dir", folder, *options)


def book_of(folder: Path, name: str) -> Path:
    return folder / f"receipts-{name}.sqlite3"


def test_every_miner_holds_a_receipt_of_every_round_it_was_asked_in(local, report):
    for name in ("keep", "wide", "preserve"):
        asked = rows(
            local / "validator.sqlite3", "SELECT DISTINCT round_id FROM predictions WHERE hotkey = ?", hotkey_of(name)
        )
        assert sorted(rows(book_of(local, name), "SELECT round_id FROM receipts")) == sorted(asked) and len(asked) == 8
        answers = rows(book_of(local, name), "SELECT count(*) FROM answers")
        asks = rows(local / "validator.sqlite3", "SELECT count(*) FROM predictions WHERE hotkey = ?", hotkey_of(name))
        assert answers == asks
        code, shown, _ = report(local, "--name", name)
        assert code == 0 and "8 receipts are signed; 0 rounds have a wrong one" in shown
        assert "on MODEL of a market" in shown and "not named as received" not in shown
        for round_id, rank, score in rows(
            local / "validator.sqlite3", "SELECT round_id, rank, score FROM scores WHERE hotkey = ?", hotkey_of(name)
        ):
            (line,) = [line for line in shown.splitlines() if line.startswith(f"{round_id} ")]
            assert line.split()[1:5] == [str(rank), "of", "3", f"{Decimal(score):.0f}"] and line.endswith(" scored")
    _, shorter, _ = report(local, "--name", "wide", "--last", 3)
    assert sum(text.endswith(" scored") for text in shorter.splitlines()) == 3


def test_what_a_miner_lost_is_fetched_from_the_running_validator(local, report, tmp_path, caplog):
    folder = shutil.copytree(local, tmp_path / "local")
    before = rows(book_of(folder, "wide"), "SELECT * FROM receipts ORDER BY round_id")
    write(book_of(folder, "wide"), "DELETE FROM receipts WHERE round_id IN (?, ?, ?)", *(row[1] for row in before[2:5]))
    book_of(folder, "keep").unlink()

    def published() -> list[tuple]:
        return rows(folder / "chain.sqlite3", "SELECT address FROM neurons WHERE hotkey = ?", hotkey_of("validator"))

    earlier = published()
    with start("validator.py", "--dir", folder, "--days", 0, "--pace", 1, "--port", 0, folder=tmp_path) as process:
        (address,) = wait_for("a new address in the ledger", lambda: published() != earlier and published(), process)
        ended = command("miner.py", "receipts", "--dir", folder, "--name", "wide")
        assert ended.returncode == 0 and f"3 receipts fetched from http://{address[0]}" in ended.stdout, ended
        code, shown, _ = report(folder, "--name", "keep", "--from", f"http://{address[0]}/")
        assert code == 0 and "8 receipts fetched" in shown
        assert report(folder, "--name", "nobody", "--from", f"http://{address[0]}")[0] == 1
        assert "not_registered" in caplog.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    after = rows(book_of(folder, "wide"), "SELECT * FROM receipts ORDER BY round_id")
    assert [row[:5] for row in after if row[1] in {b[1] for b in before}] == [row[:5] for row in before]


def test_a_receipt_that_was_tampered_with_is_named_with_exit_code_1(local, report, tmp_path):
    folder = shutil.copytree(local, tmp_path / "local")
    ((round_id,),) = rows(book_of(folder, "wide"), "SELECT max(round_id) FROM receipts")
    write(
        book_of(folder, "wide"),
        """UPDATE receipts SET statement = replace(statement, '"ranked":3', '"ranked":9') WHERE round_id = ?""",
        round_id,
    )
    code, shown, _ = report(folder, "--name", "wide")
    assert code == 1 and f"WRONG {round_id}: receipt_signature" in shown
    assert "7 receipts are signed; 1 rounds have a wrong one" in shown
    write(book_of(folder, "wide"), "UPDATE receipts SET statement = 'no JSON' WHERE round_id = ?", round_id)
    code, shown, _ = report(folder, "--name", "wide")
    assert code == 1 and f"WRONG {round_id}: malformed" in shown


def test_what_a_validator_signed_wrongly_twice_or_about_another_is_kept_and_named(local, report, tmp_path):
    folder = shutil.copytree(local, tmp_path / "local")
    path = book_of(folder, "wide")
    (text,), (later,) = rows(path, "SELECT statement FROM receipts ORDER BY end_time, round_id LIMIT 2")
    said, misquoting = json.loads(text), json.loads(later)
    first_query = misquoting["asks"][0]["query"]
    misquoting["asks"][0]["answer"] = "ab" * 32
    line = said["line"]
    lying = said | {"line": line | {"score": "12345"}}

    async def keep_them() -> None:
        async with ReceiptBook.open(path, hotkey_of("wide")) as book:
            assert await book.keep(VALIDATOR.ss58_address, [signed(lying), signed(misquoting)]) == 2

    asyncio.run(keep_them())
    code, shown, _ = report(folder, "--name", "wide")
    wrong = [text for text in shown.splitlines() if text.startswith("WRONG")]
    assert code == 1 and len(wrong) == 4, shown
    assert sum("two different statements" in text for text in wrong) == 2
    assert sum("line.score: 12345" in text for text in wrong) == 1
    assert sum(f"quotes an answer {'ab' * 32} to query {first_query}" in text for text in wrong) == 1


def test_a_receipt_can_be_handed_on_and_verified_by_anyone_with_and_without_the_evidence(local, report, call, tmp_path):
    round_id = rows(local / "validator.sqlite3", "SELECT round_id FROM scores ORDER BY round_id")[0][0]
    code, exported, _ = report(local, "--name", "wide", "--export", round_id)
    evidence = command("-m", "audit", "export", round_id, "--db", local / "validator.sqlite3").stdout
    assert code == 0 and exported.count("\n") == 1
    receipt, of_round = tmp_path / "receipt.json", tmp_path / "round.json"
    receipt.write_text(exported)
    of_round.write_text(evidence)
    alone = command("-m", "audit", "verify", receipt)
    assert alone.returncode == 0 and f"{round_id} scored, rank " in alone.stdout
    assert call(audit_main.main, "verify", receipt, "--evidence", of_round)[:2] == (0, alone.stdout)
    changed = json.loads(evidence)
    changed["seal"]["digests"]["snapshot"] = "0" * 64
    of_round.write_text(json.dumps(changed))
    code, shown, _ = call(audit_main.main, "verify", receipt, "--evidence", of_round)
    assert code == 1 and "WRONG seal: is not what the evidence says" in shown
    of_round.write_text("{}")
    assert "evidence: malformed" in call(audit_main.main, "verify", receipt, "--evidence", of_round)[1]
    receipt.write_text(exported.replace('"ranked":3', '"ranked":4'))
    code, shown, _ = call(audit_main.main, "verify", receipt)
    assert code == 1 and "WRONG receipt_signature" in shown


def test_mistakes_are_one_line_and_exit_code_2(local, call, tmp_path):
    for main, arguments, told in (
        (miner.main, ("receipts", "--dir", tmp_path), "name one with --from"),
        (miner.main, ("receipts", "--dir", tmp_path / "none"), "name one with --from"),
        (miner.main, ("--dir", local, "receipts", "--from", "http://127.0.0.1:1"), "name it with --validator"),
        (miner.main, ("receipts", "--dir", local, "--name", "wide", "--export", "x"), "no receipt of this round"),
        (miner.main, ("receipts", "--last", "x"), "--last"),
        (audit_main.main, ("verify", "/dev/null"), "it is empty"),
        (
            audit_main.main,
            (
                "verify",
                tmp_path / "none",
            ),
            "name a file",
        ),
        (audit_main.main, ("verify", ROOT / "README.md", "--evidence", ROOT / "README.md"), "python -m audit export"),
    ):
        code, shown, error = call(main, *arguments)
        assert (code, shown) == (2, "") and told in error and error.count("\n") == 1, (arguments, error)
    assert list(tmp_path.iterdir()) == []


def test_a_validator_that_is_named_and_not_there_is_a_failure_one_that_is_only_published_is_not(local, report, caplog):
    named = ("--from", "http://127.0.0.1:1", "--validator", hotkey_of("validator"))
    for options, expected in ((named, 1), ((), 0)):
        caplog.clear()
        code, shown, _ = report(local, "--name", "wide", *options)
        assert code == expected and "unreachable" in caplog.text and "8 receipts are signed" in shown


def test_a_fresh_subnet_forgets_the_receipts_of_the_earlier_one(local, tmp_path):
    folder = shutil.copytree(local, tmp_path / "local")
    ended = command("validator.py", "--fresh", "--rounds", 1, "--no-miners", "--dir", folder, "--port", 0)
    assert ended.returncode == 0 and list(folder.glob("receipts-*")) == []
