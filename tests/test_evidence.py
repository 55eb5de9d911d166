"""Evidence and audit: every field of every kind of round changed in turn, sealed or not, in the file and the database.

Run with `python -m pytest tests/test_evidence.py`. Read next: `evidence.py`, whose table `FALSEHOODS` below is.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import copy
import functools
import importlib
import inspect
import json
import lzma
import pkgutil
import re
import shutil
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from decimal import Context, Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from subnets import CAPITAL, VAULT, a_job, hotkey_of, keep, play_subnet, refuse, write, write_meanwhile

import liquidity
import protocol
import scoring
import sim
import validator
from audit import checks, evidence, stored
from audit.checks import audit
from audit.evidence import EvidenceError, seal
from liquidity import mechanism
from liquidity.executions import Execution, Sent
from liquidity.live import words_of
from liquidity.rounds import plan
from markets import model
from markets.model import FIRST_TIME, ModelMarket
from protocol import Code, Position
from spine.mechanism import by_rules
from store import Store
from wire import codec
from wire.codec import canonical
from wire.signing import local_keypair

ROUND_SECONDS, CHECKPOINT_BLOCKS, PLAYED_ROUNDS = 160, 20, 5
KEY = local_keypair("validator-hotkey")


# ---------------------------------------------------------------------------------------------------------------------
# A small subnet in which every kind of round and answer comes up


class _Market(ModelMarket):
    """The model; of the swaps in the last round nobody knows the call."""

    async def events(self, first, last):
        since = FIRST_TIME + ROUND_SECONDS * PLAYED_ROUNDS
        return [
            event._replace(args=("?", *event.args[1:])) if event.kind == "swap" and event.time >= since else event
            for event in await super().events(first, last)
        ]


class _Chain(ModelMarket):
    """The model behind an executor bot: what it carries out comes two blocks late and costs gas, much of it fails."""

    orders = 0

    async def execute(self, order):
        self.orders += 1
        keep, close, mint = (tuple(part) for part in plan(order.shown, order.desired))
        failed = Execution(order.block_number + 1, order.vault, keep, close, mint)
        if self.orders == 2:
            return replace(failed, sent=Sent(Code.PRICE_MOVED, "12 ticks, at most 10", "", 0, 0, 0, 0))
        if self.orders == 4:
            amounts = {"before": (5, 6), "released": (1, 2), "after": (6, 8), "minted": ((-10, 10, 7),)}
            return replace(failed, **amounts, sent=Sent(Code.EXECUTION_DRY_RUN, "", "", 0, 0, 0, 0))
        if self.orders == 3:
            return replace(failed, sent=Sent(Code.EXECUTION_REVERTED, "Price slippage check", "", 21000, 7, 7, 0))
        if self.orders == 5:
            assert mint and not close
            nothing = replace(failed, block=(await self.head()).number, before=(9, 8), after=(9, 8))
            return replace(nothing, sent=Sent(Code.EXECUTED, "nothing to do", "", 0, 0, 0, 0))
        head = await self.reach((await self.head()).number + 2)
        done = await super().execute(order)
        assert done.block > head.number > order.block_number
        sent = Sent(Code.EXECUTED, "", f"0x{self.orders:064x}", 412_345, 98_765_432_100_000, 98_765_432_100_000, 0)
        return replace(done, sent=sent)


def _all_in(query, half_width):
    middle = query.tick // 10 * 10
    return [Position(middle - half_width, middle + half_width, *query.holdings())]


def _first(query) -> bool:
    return query.block_time < query.window_start_time


def _leads(query):
    """Moves at every checkpoint; of its live rounds it refuses the second, and fails at a checkpoint of the first."""
    if query.round_type == "live":
        if query.window_start_time == FIRST_TIME + ROUND_SECONDS * 4:
            return refuse("not with real money")
        if not _first(query) and query.block_number % 40 >= 20:
            raise RuntimeError("a bug")
    return _all_in(query, 300 + query.block_number // 20 % 5 * 100)


def _too_much(query):
    amount0, amount1 = query.holdings()
    return [Position(-600, 600, amount0 + 1, amount1)]


def _broken(query):
    raise RuntimeError("a bug")


def _then(first, later):
    return lambda query: (first if _first(query) else later)(query)


MINERS = {
    "leader": _leads,
    "copy": _leads,
    "keeper": keep,
    "refuses": lambda _: refuse("not today"),
    "lies": _too_much,
    "silent": _broken,
    "mute": _then(lambda query: _all_in(query, 2000), _broken),
    "late": _then(keep, lambda _: refuse("no more")),
    "wrong": _then(lambda query: _all_in(query, 3000), _too_much),
}


@pytest.fixture(scope="session")
def played(tmp_path_factory):
    """The subnet's folder, after five rounds of three jobs."""

    async def proven(subnet, *_):
        for name in MINERS:
            for n in range(1, 7):
                row = ("job", hotkey_of(name), FIRST_TIME // 86_400 - n)
                await write_meanwhile(subnet.path, "INSERT INTO miner_participation VALUES (?, ?, ?, 0)", *row)

    every = {"round_seconds": ROUND_SECONDS, "checkpoint_blocks": CHECKPOINT_BLOCKS}
    jobs = [
        a_job(target="MaxFees", live=True, min_in_range=Decimal("0.2"), **every),
        replace(a_job("empty", **every), vault="empty"),
        replace(a_job("lost", **every), vault="unknown to the market"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "PROVIDERS", 6)  # few ticks: each is changed in turn below
        folder = tmp_path_factory.mktemp("evidence")
        # a seed whose second round has two swaps in a block and none in the first, whose third begins with an event
        market = functools.partial(_Market, 28, {VAULT: CAPITAL, "empty": 0})
        return play_subnet(folder, MINERS, jobs, market, proven, rounds=PLAYED_ROUNDS)


@pytest.fixture(scope="session")
def on_a_chain(tmp_path_factory) -> dict[str, Any]:
    """Evidence of a live round of which a chain's market told."""

    async def proven(subnet, *_):
        for n in range(1, 7):
            row = ("job", hotkey_of("leader"), FIRST_TIME // 86_400 - n)
            await write_meanwhile(subnet.path, "INSERT INTO miner_participation VALUES (?, ?, ?, 0)", *row)

    def leads(query):
        if query.round_type == "live" and query.rebalances_so_far == 2:
            raise RuntimeError("a bug")
        if query.round_type == "live" and query.block_number - query.window_start_block == 80:  # asks for nothing
            return [*query.current_positions, Position(query.tick // 10 * 10, query.tick // 10 * 10 + 10, 0, 0)]
        return _all_in(query, 300 + query.block_number // 20 % 5 * 100)

    job = a_job(target="MaxFees", live=True, round_seconds=320, checkpoint_blocks=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "PROVIDERS", 6)
        folder, market = tmp_path_factory.mktemp("chain"), functools.partial(_Chain, 5, {VAULT: CAPITAL})
        subnet = play_subnet(folder, {"leader": leads, "keeper": keep}, [job], market, proven, rounds=3)
    return exported(subnet.path, f"job:live:{FIRST_TIME + 320 * 3}")


def exported(path: Path, round_id: str) -> dict[str, Any]:
    async def export():
        async with Store.open(path) as store:
            return await stored.evidence(store, round_id)

    return json.loads(canonical(asyncio.run(export())))


@pytest.fixture(scope="session")
def ids(played) -> dict[str, str]:
    """A round's id by what kind of round it is."""
    starts = [FIRST_TIME + ROUND_SECONDS * n for n in range(1, PLAYED_ROUNDS + 1)]
    return {
        "evaluation": f"job:evaluation:{starts[1]}",
        "live": f"job:live:{starts[2]}",
        "refused": f"job:live:{starts[3]}",
        "skipped": f"job:live:{starts[0]}",
        "void": f"empty:evaluation:{starts[4]}",
        "void live": f"job:live:{starts[4]}",
        "contradicted": f"job:evaluation:{starts[4]}",
        "interrupted": f"lost:evaluation:{starts[0]}",
        "empty": f"empty:evaluation:{starts[1]}",
    }


@pytest.fixture(scope="session")
def rounds(played, ids, on_a_chain) -> dict[str, dict[str, Any]]:
    """Evidence by kind; tests change copies, or take back what they change."""
    return {kind: exported(played.path, round_id) for kind, round_id in ids.items()} | {"chain": on_a_chain}


@pytest.fixture
def quick(monkeypatch):
    """The same audit, but what is pure and costs most is computed once for the same arguments."""
    for module, name in ((mechanism, "play"), (mechanism, "play_live"), (checks, "verify_answer")):
        monkeypatch.setattr(module, name, functools.cache(getattr(module, name)))


KINDS = (
    "evaluation",
    "live",
    "chain",
    "refused",
    "skipped",
    "void",
    "void live",
    "contradicted",
    "interrupted",
    "empty",
)


def test_the_rounds_are_of_the_kinds_that_the_tests_below_speak_of(rounds, played):
    assert {kind: rounds[kind]["round"]["code"] for kind in KINDS} == {
        "evaluation": "scored",
        "live": "scored",
        "chain": "scored",
        "refused": "refused",
        "skipped": "live_no_winner",
        "void": "void_unknown_swap",
        "void live": "void_contradiction",
        "contradicted": "void_contradiction",
        "interrupted": "void_interrupted",
        "empty": "empty_vault",
    }
    asked = {ask["code"] for ask in rounds["evaluation"]["asks"]}
    assert asked == {"accepted", "refused", "over_allocated", "http_status", "kept"}
    assert any(score["line"]["copy_of"] for score in rounds["evaluation"]["scores"])
    assert rounds["live"]["executions"] and "kept" in {ask["code"] for ask in rounds["live"]["asks"]}
    assert set(rounds) == set(KINDS)
    sent = [execution["execution"]["sent"]["code"] for execution in rounds["chain"]["executions"]]
    assert Counter(sent) == {"executed": 3, "price_moved": 1, "execution_reverted": 1, "execution_dry_run": 1}
    assert all(
        int(execution["execution"]["block"]) == execution["block"] + 2
        for execution in rounds["chain"]["executions"]
        if execution["execution"]["sent"]["transaction"]
    )
    assert "kept" in {ask["code"] for ask in rounds["chain"]["asks"]} and audit(rounds["chain"]) == []


# ---------------------------------------------------------------------------------------------------------------------
# The audit agrees


def test_the_audit_agrees_with_every_round_from_the_database_and_from_the_exported_file(played, tmp_path, capsys):
    everything = [round_id for (round_id,) in played.rows("SELECT round_id FROM rounds")]
    assert len(everything) == 4 * PLAYED_ROUNDS
    codes = [code for (code,) in played.rows("SELECT code FROM rounds")]
    idle = sum(code not in ("scored", "void_unknown_swap", "void_contradiction", "empty_vault") for code in codes)
    ended = f"{len(everything)} rounds audited, 0 differ, {idle} were not played\n"
    files = []
    for n, round_id in enumerate(everything):
        files.append(tmp_path / f"{n}.json")
        files[-1].write_bytes(canonical(exported(played.path, round_id)) + b"\n")
    assert validator.main(["audit", "all", "--db", str(played.path)]) == 0
    assert capsys.readouterr().out.endswith(ended)
    assert validator.main(["audit", *map(str, files)]) == 0
    assert capsys.readouterr().out.endswith(ended)


# ---------------------------------------------------------------------------------------------------------------------
# Changes


def others(value: Any) -> Iterator[Any]:
    """What a value could be changed to, by as little as possible: one digit, one character, one byte."""
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
        case None:
            yield "x"
        case "":
            yield "x"
        case str():
            digits = [n for n, character in enumerate(value) if character in "0123456789"]
            at = digits[-1] if digits else len(value) // 2
            new = str((int(value[at]) + 1) % 10) if digits else "y" if value[at] == "x" else "x"
            yield value[:at] + new + value[at + 1 :]


def changed_bytes(value: str) -> Iterator[str]:
    """A query or an answer with one digit changed, wherever the middle one stands; or one where there was none."""
    raw = bytearray(base64.b64decode(value))
    if not raw:
        yield base64.b64encode(b"{}").decode()
        return
    digits = [n for n, byte in enumerate(raw) if 48 <= byte <= 57]
    at = digits[len(digits) // 2] if digits else len(raw) // 2
    raw[at] ^= 1
    yield base64.b64encode(raw).decode()


def changes(node: Any, path: str = "", shape: bool = True) -> Iterator[str]:
    """Change a JSON value in each place in turn; yields the place, and takes the change back afterwards.

    Args:
        node: changed in place.
        path: of the node.
        shape: also remove and add members, and remove, double and exchange items.
    """
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        value = node[key]
        at = f"{path}.{key}".lstrip(".") if isinstance(node, dict) else f"{path}[{key}]"
        if isinstance(value, dict | list):
            yield from changes(value, at, shape)
        else:
            blob = re.fullmatch(r"asks\[\d+\]\.(query|answer)", at)
            for new in (changed_bytes if blob else others)(value):
                node[key] = new
                yield at
            node[key] = value
        if shape and isinstance(node, dict):
            del node[key]
            yield at
            node[key] = value
        elif shape:
            del node[key]
            yield at
            node[key:key] = [value, copy.deepcopy(value)]
            yield f"{path}[{key + 1}]"
            del node[key]
            if key and node[key - 1] != value:
                node[key - 1], node[key] = value, node[key - 1]
                yield at
                node[key - 1], node[key] = node[key], value
    if shape and isinstance(node, dict):
        node["added"] = 1
        yield f"{path}.added".lstrip(".")
        del node["added"]


def named(problems: list[str], path: str) -> bool:
    """Whether a problem begins with the path's part: a member or item of the evidence, or something inside it."""
    part = re.match(r"(seal|\w+(\.\w+|\[\d+\])?)", path)[0]
    return any(problem.startswith(part) for problem in problems)


def test_the_changes_are_taken_back_and_reach_every_leaf():
    value = {"a": [1, "x", {"b": None}], "c": {}, "d": "12"}
    before = copy.deepcopy(value)
    found = [(path, json.dumps(value)) for path in changes(value)]
    assert value == before and all(text != json.dumps(before) for _, text in found)
    assert {path for path, _ in found} >= {"a[0]", "a[1]", "a[2].b", "a", "c", "c.added", "d", "added"}
    assert len(found) == len(set(found))


@pytest.mark.parametrize("kind", ["evaluation", "live", "chain", "refused", "skipped", "interrupted"])
def test_whatever_is_changed_after_the_validator_sealed_it_is_named(kind, rounds, monkeypatch):
    """By shape and seal alone: nothing is recomputed here."""
    monkeypatch.setattr(checks, "checks_of", lambda mechanism: ())
    monkeypatch.setattr(checks, "parts_of", lambda *_: None)
    subject = copy.deepcopy(rounds[kind])
    assert audit(subject) == []
    places = 0
    for path in changes(subject):
        places += 1
        try:
            problems = audit(subject)
        except EvidenceError as error:
            assert path in ("format", "rules_version") and path.partition("_")[0] in str(error)
        else:
            assert named(problems, path), (path, problems[:5])
    assert subject == rounds[kind] and places > 100


# ---------------------------------------------------------------------------------------------------------------------
# Falsehoods that the validator has sealed itself


def in_query(text: str) -> Iterator[tuple[str, str]]:
    """Each field of a query changed in turn: (its path inside, the query as base64)."""
    query = json.loads(base64.b64decode(text))
    for path in changes(query, shape=False):
        yield path, base64.b64encode(canonical(query)).decode()


def falsehoods(subject: dict[str, Any]) -> Iterator[str]:
    """Change each value in turn, and whole items of lists; yields what kind of place it is."""
    for path in changes(subject, shape=False):
        if (place := kind_of(path, subject)) not in ("seal", "asks[silent].query"):
            yield place
    for ask in subject["asks"]:
        query = ask["query"]
        if not ask["answer"]:
            for path, ask["query"] in in_query(query):
                yield f"asks[silent].query.{kind_of(path, subject)}"
        ask["query"] = query
    for name in ("asks", "entrants", "events", "executions", "scores"):
        for n, item in enumerate(subject[name]):
            which = kind_of(f"{name}[{n}]", subject)
            del subject[name][n]
            yield f"{which} removed"
            subject[name][n:n] = [item, item]
            yield f"{name}[] doubled"
            del subject[name][n]


def kind_of(path: str, subject: dict[str, Any]) -> str:
    if found := re.match(r"asks\[(\d+)\]", path):
        which = "answered" if subject["asks"][int(found[1])]["answer"] else "silent"
        return f"asks[{which}]{path[found.end() :]}"
    if found := re.fullmatch(r"executions\[(\d+)\]\.execution\.(minted|sent)\b\.?(.*)", path):
        code = subject["executions"][int(found[1])]["execution"].get("sent", {"code": ""})["code"]
        if found[2] == "minted":
            return "minted of a dry run" if code == "execution_dry_run" else "executions"
        return f"sent.{found[3]}" + " of a failed one" * (code != "executed" and found[3] != "code")
    if found := re.match(r"seal|scores(?=\[)|baselines|executions(?=\[)|round\.settings", path):
        return found[0]
    if found := re.fullmatch(r"events\[\d+\]\[(\d)\](.*)", path):
        return f"events[].{('block', 'log_index', 'time', 'kind', 'args')[int(found[1])]}{found[2]}"
    return re.sub(r"\[\d+\]", "[]", path)


def verdicts(subject: dict[str, Any]) -> dict[str, str]:
    """By kind of place: whether a falsehood there is caught always, sometimes or never; of many, some are tried."""
    tried, seen = defaultdict(lambda: [0, 0]), Counter()
    for place in falsehoods(subject):
        seen[place] += 1
        if seen[place] > 25 and seen[place] % 12:
            continue
        try:
            caught = bool(audit(seal(subject, KEY)))
        except EvidenceError:
            caught = True
        tried[place][caught] += 1
    return {place: "never" if not yes else "always" if not no else "sometimes" for place, (no, yes) in tried.items()}


FALSEHOODS = {  # the table in evidence.py, field by field; what is not here is always caught
    "market": "never",
    "asks[answered].response_seconds": "never",
    "asks[silent].response_seconds": "never",
    "asks[silent].detail": "never",
    "asks[silent].nonce": "never",
    "snapshot.fee_growth_global0_x128": "never",  # the last digit; the first ones move the vault's fees
    "snapshot.fee_growth_global1_x128": "never",
    "snapshot.ticks[].fee_growth_outside0_x128": "never",
    "snapshot.ticks[].fee_growth_outside1_x128": "never",
    "snapshot.vault[].fee_growth_inside0_last_x128": "never",
    "snapshot.vault[].fee_growth_inside1_last_x128": "never",
}
EVALUATION_FALSEHOODS = FALSEHOODS | {
    "snapshot.block_time": "never",  # no event in the opening block
    "snapshot.vault_owner": "never",  # nobody mints for it
    "snapshot.vault[].owner": "never",
    "asks[answered].effective_block": "sometimes",  # not where the answer changes nothing
    "asks[answered] removed": "sometimes",
    "asks[silent] removed": "sometimes",
    "asks[silent].hotkey": "sometimes",
    "asks[silent].query.block_number": "sometimes",
    "entrants[].combined": "never",  # it breaks no tie here
    "entrants[].registered_block": "sometimes",
    "events[].block": "sometimes",  # not where liquidity out of range comes or goes
    "events[].log_index": "sometimes",  # only the order counts
    "events[].time": "sometimes",
    "events[].args[3]": "sometimes",  # the last digit of liquidity that is never in range
}
LIVE_FALSEHOODS = FALSEHOODS | {
    "asks[silent] removed": "never",
    "asks[silent].query.block_number": "never",  # the next block, in which nothing happens
    "asks[silent].query.block_hash": "never",  # of the only query at that block
    "asks[silent].query.window_start_block": "never",
    "asks[silent].query.window_end_block": "never",
    "events[].block": "sometimes",
    "events[].args[3]": "sometimes",
    "events[].log_index": "sometimes",
    "events[].time": "sometimes",
}
CHAIN_FALSEHOODS = {k: v for k, v in LIVE_FALSEHOODS.items() if k != "asks[silent].query.block_number"} | {
    "sent.detail": "never",
    "sent.transaction": "sometimes",  # there is none where there was nothing to do
    "sent.gas_used": "never",
    "sent.detail of a failed one": "never",
    "sent.gas_used of a failed one": "never",
    "minted of a dry run": "never",
}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("evaluation", EVALUATION_FALSEHOODS), ("live", LIVE_FALSEHOODS), ("chain", CHAIN_FALSEHOODS)],
)
def test_a_falsehood_that_the_validator_sealed_is_caught_where_the_table_says_so_and_not_elsewhere(
    kind, expected, rounds, quick
):
    subject = copy.deepcopy(rounds[kind])
    found = verdicts(subject)
    assert subject == rounds[kind] and len(found) > 100
    assert {place: verdict for place, verdict in found.items() if verdict != "always"} == expected


@pytest.mark.parametrize("kind", ["void", "void live", "empty", "refused", "skipped", "interrupted", "contradicted"])
def test_a_round_without_scores_cannot_be_given_any_and_its_code_follows_from_what_is_there(kind, rounds, quick):
    subject = copy.deepcopy(rounds[kind])
    score = copy.deepcopy(rounds["evaluation"]["scores"][0])
    foreign = "empty_vault" if kind in ("void live", "refused", "skipped") else "live_no_winner"
    for part, name, value in (
        *(("round", "code", code) for code in ("scored", "nobody_ranked", "timeout", "accepted", foreign)),
        *(("round", name, value) for name, value in (("winner", score["hotkey"]), ("swaps", 1000), ("asked", 1000))),
        ("", "scores", [score]),
        ("", "baselines", {"keep": score["line"]}),
        ("", "executions", [{"block": 1, "vault": "", "execution": {}}]),
    ):
        if (kind, name) == ("void live", "executions"):
            continue  # it had some; what contradicts itself does not tell which
        holder = subject[part] if part else subject
        was, holder[name] = holder[name], value
        problems = audit(seal(subject, KEY))
        places = [f"{part}.{name}".lstrip("."), *(["round.close_block"] if name == "code" else [])]
        assert any(named(problems, place) for place in places), (name, value, problems)
        holder[name] = was
    assert subject == rounds[kind]


def test_a_live_round_is_void_by_the_vaults_own_events_or_by_the_validators_word_of_a_transfer(rounds):
    """The word is taken for what only the chain shows; the amounts of executions are then part of it."""
    subject = copy.deepcopy(rounds["chain"])
    detail = "at the close the vault has +5 of token0 that nothing in the round explains"
    void = {"code": "live_foreign_transfer", "detail": detail, "winner": None, "swaps": 0}
    subject["round"] |= void
    subject |= {"scores": [], "baselines": {}}
    assert audit(seal(subject, KEY)) == audit(seal(subject | {"rules_version": 1}, KEY)) == []
    said = subject["executions"][-1]["execution"]
    for name in ("block", "keep", "close", "vault"):
        was, said[name] = said[name], next(others(said[name])) if isinstance(said[name], str) else [["1", "2"]]
        assert named(audit(seal(subject, KEY)), "round.detail" if name == "block" else "executions[5]"), name
        said[name] = was
    said["released"][0] = str(int(said["released"][0]) + 1)
    problems = audit(seal(subject, KEY))
    assert [p.partition(":")[0] for p in problems] == ["executions[5].execution.after[0]", "round.detail"], problems
    said["after"][0] = str(int(said["after"][0]) + 1)
    (problem,) = audit(seal(subject, KEY))  # the events say what the detail must be
    assert problem.startswith("round.detail: ") and f"recomputed block {said['block']}: " in problem

    modelled = copy.deepcopy(rounds["live"])  # where nobody else can touch the vault
    modelled["round"] |= void
    modelled |= {"scores": [], "baselines": {}}
    assert named(audit(seal(modelled, KEY)), "round.code")


def test_a_gift_is_the_validators_word_which_its_queries_and_executions_must_fit(rounds):
    """By no rules more than the round's detail names may be shown; on the model there is none."""
    subject = copy.deepcopy(rounds["chain"])
    subject["round"]["detail"] = words_of((5, 7))
    assert audit(seal(subject, KEY)) == []
    said = subject["executions"][-1]["execution"]
    ask = next(ask for ask in reversed(subject["asks"]) if not ask["answer"])
    query = json.loads(base64.b64decode(ask["query"]))
    for more in ((5, 7), (0, 7), (5, 8), (6, 0), (-1, 0)):
        for name in ("before", "after"):
            was = rounds["chain"]["executions"][-1]["execution"][name]
            said[name] = [str(int(amount) + gift) for amount, gift in zip(was, more, strict=True)]
        idle = query["inventory_remaining"]
        had = {name: str(int(idle[name]) + gift) for name, gift in zip(sorted(idle), more, strict=True)}
        ask["query"] = base64.b64encode(canonical(query | {"inventory_remaining": had})).decode()
        problems = audit(seal(subject, KEY))
        assert (problems == []) == (more in ((5, 7), (0, 7))), (more, problems)
        if problems:
            assert named(problems, "executions[5].execution.after")
            assert named(problems, f"asks[{subject['asks'].index(ask)}].query.inventory_remaining")
    subject["round"]["detail"] = words_of((5, 7)).replace("7", "07")
    assert named(audit(seal(subject, KEY)), "round.detail")
    modelled = copy.deepcopy(rounds["live"])
    modelled["round"]["detail"] = words_of((5, 7))
    assert named(audit(seal(modelled, KEY)), "round.detail")


def test_who_seals_with_another_key_is_named_by_every_signed_answer(rounds):
    subject, other = rounds["evaluation"], local_keypair("another-hotkey")
    problems = audit(seal(subject | {"validator": other.ss58_address}, other))
    assert not named(problems, "seal") and sum(".signature: " in problem for problem in problems) > 10
    assert named(audit(seal(subject, other)), "seal.signature")


def test_a_key_spelt_like_a_part_does_not_stand_in_for_it(rounds):
    """The seal names parts by paths: an object's own key must not be taken for the path of another part."""
    subject = copy.deepcopy(rounds["evaluation"])
    subject["round.asked"] = subject["round"]["asked"]
    subject["round"]["asked"] += 1
    assert named(audit(subject), "round.asked")


# ---------------------------------------------------------------------------------------------------------------------
# The command line, from the file and from the database


def audited(capsys, *arguments: object) -> tuple[int, str]:
    code = validator.main(["audit", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, captured.out


def test_one_changed_digit_in_the_file_is_exit_code_1_and_named(rounds, tmp_path, capsys):
    subject, file = copy.deepcopy(rounds["evaluation"]), tmp_path / "round.json"
    samples = ["rules_version", "round.settings", "snapshot.liquidity", "events[3]", "asks[4]", "entrants[0]"]
    samples += ["scores[1]", "baselines.best", "seal.signature", "seal.digests"]
    for path in changes(subject, shape=False):
        if samples and path.startswith(samples[0]):
            sample = samples.pop(0).replace("rules_version", "rules version")
            file.write_bytes(canonical(subject))
            code, out = audited(capsys, file)
            assert code == 1 and (sample in out or "seal.signature" in out), (path, out)
    file.write_bytes(canonical(subject))
    assert audited(capsys, file)[0] == 0


COLUMNS = {  # of every table that evidence is made of: where a change in each column shows
    "rounds": {
        "round_id": "round.round_id",
        "job_id": "round.job_id",
        "round_type": "round.round_type",
        "start_time": "round.start_time",
        "end_time": "round.end_time",
        "settings": "round.settings",
        "rules_version": "rules version",
        "opening_block": "round.opening_block",
        "opening_hash": "round.opening_hash",
        "vault_state": "snapshot",
        "close_block": "round.close_block",
        "code": "round.code",
        "detail": "round.detail",
        "winner": "round.winner",
        "asked": "round.asked",
        "summary": "baselines|round.swaps",
        "seal": "seal",
        "mechanism": "mechanism|round.mechanism",
        "settlement": "settlement",
    },
    "predictions": "asks",
    "entrants": "entrants",
    "scores": "scores",
    "live_executions": "executions",
    "meta": "market|pool|validator",
    "events": "events",
    "snapshots": "snapshot",
}
OF_A_ROUND = ("rounds", "predictions", "entrants", "scores", "live_executions")


def stored_changes(path: Path, round_id: str) -> Iterator[tuple[str, str, str, tuple]]:
    """Every column of the first, and of the last, row of each table: (table, column, statement, its values)."""
    with closing(sqlite3.connect(path)) as jobs, closing(sqlite3.connect(events_of(path))) as pools:
        for table in COLUMNS:
            db = pools if table in ("events", "snapshots") else jobs
            names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            found = db.execute(f"SELECT * FROM {table}").fetchall()
            if table in OF_A_ROUND:
                found = [row for row in found if row[0] == round_id]
            elif table != "meta":
                opening, close = jobs.execute(
                    "SELECT opening_block, close_block FROM rounds WHERE round_id = ?", (round_id,)
                ).fetchone()
                last = opening if table == "snapshots" else close - 1
                found = [row for row in found if opening <= row[1] <= last]
            for row in (found[:1] + found[-1:])[: 1 + (len(found) > 1)]:
                where = " AND ".join(f"{name} IS ?" for name in names)
                for name, value in zip(names, row, strict=True):
                    for new in damaged(name, value):
                        yield table, name, f"UPDATE {table} SET {name} = ? WHERE {where}", (new, *row)


def damaged(column: str, value: Any) -> Iterator[Any]:
    if column == "round_type":
        yield "live" if value == "evaluation" else "evaluation"
    elif isinstance(value, int | float):
        yield value + 1000  # one digit; the next block or event may be there
    elif isinstance(value, bytes):
        yield value[:-1] + bytes([value[-1] ^ 1]) if value else b"{}"
        yield b"x"
    elif value is None:
        yield 1 if column.endswith("block") else "x"
    else:
        yield from others(value)
        if str(value)[:1] in ("{", "["):
            yield value[:-1]
            yield "[]" if value[0] == "{" else "{}"


def events_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.events.sqlite3")


@pytest.mark.parametrize("kind", ["evaluation", "live"])
def test_a_change_in_any_column_of_the_database_is_exit_code_1_and_named(kind, played, ids, tmp_path, capsys, quick):
    path, tables = tmp_path / "validator.sqlite3", set()
    for table, column, statement, values in stored_changes(played.path, ids[kind]):
        shutil.copy(played.path, path)
        shutil.copy(events_of(played.path), events_of(path))
        write(path, "DELETE FROM rounds WHERE round_id != ?", ids[kind])  # or a changed type or time is another's
        write(events_of(path) if table in ("events", "snapshots") else path, statement, *values)
        round_id = values[0] if (table, column) == ("rounds", "round_id") else ids[kind]
        code, out = audited(capsys, round_id, "--db", path)
        where = COLUMNS[table] if isinstance(COLUMNS[table], str) else COLUMNS[table][column]
        assert code == 1 and re.search(rf"^  ({where})|: ({where})", out, re.M), (table, column, out)
        tables.add(table)
    assert tables >= COLUMNS.keys() - {"entrants" if kind == "live" else "live_executions"}


# ---------------------------------------------------------------------------------------------------------------------
# Rules


def test_a_round_of_other_rules_is_refused_by_name_and_the_other_rounds_are_audited(played, ids, tmp_path, capsys):
    path = tmp_path / "validator.sqlite3"
    shutil.copy(played.path, path)
    shutil.copy(events_of(played.path), events_of(path))
    write(path, "UPDATE rounds SET rules_version = 0 WHERE round_id = ?", ids["evaluation"])
    code, out = audited(capsys, "all", "--db", path)
    said = "cannot be audited: rules version 0, this program has 2: use the release that has them"
    assert code == 1 and f"{ids['evaluation']}: {said}\n" in out
    with closing(sqlite3.connect(path)) as db:
        skipped = dict(db.execute("SELECT round_id, code FROM rounds WHERE close_block IS NULL"))
    assert skipped and all(
        f"{name}: no digit to recompute, it was not played: {skipped[name]}\n" in out for name in skipped
    )
    assert out.count("every digit agrees") == 4 * PLAYED_ROUNDS - 1 - len(skipped)
    assert out.endswith(f"19 rounds audited, 0 differ, {len(skipped)} were not played, 1 not audited\n")


# what decides no digit
NO_RULES = ("RULES_VERSION", "CHUNK", "ONLY_ON_A_CHAIN", "EXECUTION_SECONDS", "BROKEN", "CHECKS", "CALLS", "_HASH")


def pure_modules() -> Iterator[ModuleType]:
    """All that decides a digit, wherever in its room it stands; `showing` says only how digits are shown."""
    yield from (protocol, sim, scoring, codec)
    names = {found.name for found in pkgutil.iter_modules(liquidity.__path__)} - {"showing"}
    yield from (importlib.import_module(f"liquidity.{name}") for name in sorted(names))


def assigned(module) -> set[str]:
    """Names that the module itself gives values to, not those it imports."""
    targets = [node.targets for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.Assign)]
    return {node.id for group in targets for target in group for node in ast.walk(target) if isinstance(node, ast.Name)}


def constants() -> Iterator[str]:
    """Every constant of the core, and the settings that a job has by default."""
    for module in pure_modules():
        for name in sorted(assigned(module)):
            value = getattr(module, name)
            if isinstance(value, Context):
                value = value.prec, value.rounding, value.Emin, value.Emax, value.clamp
            elif isinstance(value, re.Pattern):
                value = value.pattern
            known = isinstance(value, int | str | Decimal | tuple) and name not in NO_RULES
            if known and re.fullmatch(r"_?[A-Z][A-Z0-9_]+", name):
                yield f"{name} = {value!r}"
    for target in protocol.TARGETS:
        yield repr(protocol.JobSettings.for_target(target))


def test_a_constant_that_decides_a_score_does_not_change_without_a_new_rules_version():
    file = Path(__file__).parent / "golden" / f"rules_{scoring.RULES_VERSION}.txt"
    found, pinned = set(constants()), set(file.read_text().splitlines()) if file.exists() else set()
    assert {"PENALTY_RATE = 10", "HINDSIGHT_SPACINGS = 50", "MAX_POSITIONS = 64"} <= pinned
    assert not pinned - found, (
        f"changed or gone: {sorted(pinned - found)}; give scoring.RULES_VERSION the next number, write a new"
        " rules_N.txt and new round_rules_N files, and keep the old ones: they replay by their rules, or are refused"
    )
    assert not found - pinned, f"new: {sorted(found - pinned)}; if it decides a digit, as above, else add it to {file}"


def golden() -> list[Path]:
    return sorted((Path(__file__).parent / "golden").glob("round_rules_*.json.xz"))


@pytest.mark.parametrize("path", golden(), ids=lambda path: path.name.partition(".")[0])
def test_a_round_that_was_exported_elsewhere_replays_to_the_last_digit_or_is_refused_by_its_rules(
    path, tmp_path, capsys
):
    """Made on Python 3.11; where a score is computed otherwise than it was then, `RULES_VERSION` must have changed."""
    file, version = tmp_path / "round.json", int(path.name.split("_")[2])
    file.write_bytes(lzma.decompress(path.read_bytes()))
    code, out = audited(capsys, file)
    if by_rules(mechanism.MECHANISM, version):
        assert code == 0 and out == f"{file}: every digit agrees\n1 rounds audited, 0 differ\n", out
    else:
        assert code == 1 and f"rules version {version}, this program has {scoring.RULES_VERSION}" in out


def test_there_are_golden_rounds_of_these_rules():
    """New ones: run these tests with `--basetemp DIR`, then `python -m audit export ROUND --db DIR/evidence0/...`."""
    names = [path.name.partition(".")[0] for path in golden()]
    wanted = [f"round_rules_{scoring.RULES_VERSION}_{kind}" for kind in ("evaluation", "live")]
    assert set(wanted) <= set(names)
    assert all(path.stat().st_size < 100_000 for path in golden())


# ---------------------------------------------------------------------------------------------------------------------
# Evidence from anywhere

ANYTHING = (None, [], {}, "x", "", -1, 0, 2**63 - 1, 10**400, 10**5000, True, 1.5, float("nan"), [[]], {"x": {}})
EXTREME_NUMBERS = (0, -1, 2**63 - 1, 1 - 2**63)
EXTREME_TEXTS = ("0", "-1", "1" + "0" * 77, "-" + "9" * 78, "NaN", "1E+999999", "-0", "\ud800")


def replaced(node: Any, values, path: str = "") -> Iterator[str]:
    """Put each of some values in the place of every node in turn; yields the place."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        value = node[key]
        at = f"{path}.{key}".lstrip(".") if isinstance(node, dict) else f"{path}[{key}]"
        for new in values(value):
            if new != value or type(new) is not type(value):
                node[key] = new
                yield at
        node[key] = value
        if isinstance(value, dict | list):
            yield from replaced(value, values, at)


def extremes(value: Any) -> tuple:
    return EXTREME_NUMBERS if type(value) is int else EXTREME_TEXTS if isinstance(value, str) else ()


@pytest.mark.parametrize("values", [lambda _: ANYTHING, extremes], ids=["anything", "extremes"])
def test_evidence_with_anything_in_any_place_is_never_an_error_and_never_agrees(values, rounds, quick):
    subject, seen = copy.deepcopy(rounds["live"]), Counter()
    for path in replaced(subject, values):
        place = kind_of(path, rounds["live"])
        seen[place] += 1
        if seen[place] > 2 * len(ANYTHING):
            continue
        try:
            problems = audit(subject)
        except EvidenceError:
            assert path in ("format", "rules_version")
        else:
            assert problems and all(isinstance(p, str) and p.isascii() and p.isprintable() for p in problems), path
    assert subject == rounds["live"] and len(seen) > 70


@pytest.mark.parametrize("kind", ["evaluation", "live", "chain"])
def test_extreme_numbers_that_the_validator_sealed_do_not_break_the_replay(kind, rounds, quick):
    subject, seen = copy.deepcopy(rounds[kind]), Counter()
    for path in replaced(subject, extremes):
        place = kind_of(path, rounds[kind])
        seen[place] += 1
        if place in ("seal", "scores", "baselines") or seen[place] > 4:
            continue
        try:
            problems = audit(seal(subject, KEY))
        except EvidenceError:
            problems = []
        assert all(problem.isascii() and problem.isprintable() for problem in problems), path


@pytest.mark.parametrize(
    "bytes_", [b"", b"x", b"[" * 60_000, b'{"a":' * 10_000, b"\xff\xfe", b"{}" + b" " * 70_000, b"1" * 5000, b"null"]
)
def test_a_sealed_query_or_answer_of_any_bytes_is_named(bytes_, rounds):
    subject, text = copy.deepcopy(rounds["evaluation"]), base64.b64encode(bytes_).decode()
    for name in ("query", "answer"):
        was, subject["asks"][0][name] = subject["asks"][0][name], text
        assert named(audit(seal(subject, KEY)), "asks[0]")
        subject["asks"][0][name] = was


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": "alm-round/0"}',
        b'{"format": NaN}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1.5}',
        b'{"format": "alm-round/1", "format": "alm-round/1"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe\x00",
        b"\x1b[2J",
        b'{"format": "\\u001b[2J"}',
    ],
)
def test_a_file_that_is_no_evidence_is_refused_in_one_line(content, tmp_path, capsys):
    file = tmp_path / "round.json"
    file.write_bytes(content)
    code, out = audited(capsys, file)
    assert code == 1 and out.startswith(f"{file}: cannot be audited: ") and len(out.splitlines()) == 2
    assert out.replace("\n", "").isprintable() and len(out) < 500


def test_a_file_beyond_the_limit_is_not_even_read(tmp_path, capsys):
    file = tmp_path / "round.json"
    with file.open("wb") as sparse:
        sparse.truncate(evidence.MAX_EVIDENCE_BYTES + 1)
    code, out = audited(capsys, file)
    assert code == 1 and f"{evidence.MAX_EVIDENCE_BYTES + 1} bytes, at most {evidence.MAX_EVIDENCE_BYTES}" in out
