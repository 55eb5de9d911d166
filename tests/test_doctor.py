"""What keeps the programs from running is found, named with its value, and comes with its fix; nothing is changed.

Run: `python -m pytest tests/test_doctor.py`. Ports, files and locks are real ones of this machine; versions, clocks and
disks, which a test cannot have, are given. Read next: `doctor.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import anvil
import pytest
from aiohttp import web
from bittensor.keyfiles import Keyfile, Keypair
from subnets import ROOT, command, start, wait_for
from test_evm_rpc import Server

from chain.base import BLOCK_SECONDS, Metagraph, Neuron
from chain.local import LocalChain
from doctor import __main__ as doctor_main
from doctor import machine, network
from doctor import nodes as nodes_module
from doctor.machine import FAIL, OK, WARN, Finding
from evm import pool as pool_module
from evm import rpc
from evm.abi import Function
from evm.pool import SLOT0
from miner import build_parser
from runtime.options import parse_options, resolve
from runtime.process import Parser
from runtime.tables import JOBS_SCHEMA
from store import Store

NOBODY = "0x" + "12" * 20
HOLD = (  # a process that has the databases open, as a validator has between two rounds
    "import asyncio, sys; from store import Store\n"
    "async def main():\n"
    "    async with Store.open(sys.argv[1]) as store:\n"
    "        await store.claim('held', 'yes'); print('open', flush=True); await asyncio.sleep(600)\n"
    "asyncio.run(main())"
)


@pytest.fixture
def database(tmp_path) -> Path:
    """A jobs database as a validator leaves it, with its events database beside it."""

    async def make() -> None:
        async with Store.open(tmp_path / "validator.sqlite3") as store:
            for n in range(200):
                await store.claim(f"key {n}", "x" * 200)

    asyncio.run(make())
    return tmp_path / "validator.sqlite3"


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)


def checked(path: Path, newest: int | None = len(JOBS_SCHEMA)) -> list[Finding]:
    return list(machine.check_database("jobs database", path, newest))


# ---------------------------------------------------------------------------------------------------------------------
# Python and packages


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 13), FAIL), ((3, 11, 0), OK), ((3, 12, 1), OK), ((3, 13, 9), OK), ((3, 14, 0), FAIL), ((4, 0, 0), FAIL)],
)
def test_python_is_one_of_three(version, level):
    (found,) = machine.check_python(version)
    assert found.level == level and ".".join(map(str, version)) in found.what
    assert level == OK or "python3.12 -m venv" in found.fix


def test_the_packages_of_this_machine_are_those_that_are_needed():
    found = list(machine.check_packages(ROOT / "requirements.txt"))
    assert [finding.level for finding in found] == [OK] * len(found) and len(found) >= 3


@pytest.mark.parametrize(
    ("installed", "level", "said"),
    [
        (None, FAIL, "is missing"),
        ("11.2.9", FAIL, "11.2.9"),
        ("11.3", OK, ""),
        ("11.3.0", OK, ""),
        ("11.20.1rc2", OK, ""),
        ("12.0", FAIL, "12.0"),
        ("12", FAIL, "12"),
    ],
)
def test_a_package_that_is_missing_too_old_or_too_new_fails_with_the_command_that_mends_it(
    monkeypatch, tmp_path, installed, level, said
):
    (tmp_path / "requirements.txt").write_text("# what we need\nbittensor>=11.3,<12  # keys\n\n")
    monkeypatch.setattr(machine, "_installed", lambda name: installed if name == "bittensor" else None)
    (found,) = machine.check_packages(tmp_path / "requirements.txt")
    assert (
        found.level == level
        and said in found.what
        and (level == OK or "pip install 'bittensor>=11.3,<12'" in found.fix)
    )


def test_web3_8_beside_bittensor_11_fails(monkeypatch, tmp_path):
    (tmp_path / "requirements.txt").write_text("")
    for versions, levels in (
        ({"web3": "8.0.1", "bittensor": "11.3.0"}, [FAIL]),
        ({"web3": "7.16.0", "bittensor": "11.3.0"}, []),
        ({"bittensor": "11.3.0"}, []),
    ):
        monkeypatch.setattr(machine, "_installed", versions.get)
        assert [found.level for found in machine.check_packages(tmp_path / "requirements.txt")] == levels


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def test_a_port_that_is_taken_is_a_warning(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        (found,) = machine.check_port(port)
        assert found.level == WARN and str(port) in found.what and "--port 0" in found.fix
    (found,) = machine.check_port(port)
    assert found.level == OK
    assert parse_options(build_parser(), [], {}, tmp_path / "none").port == doctor_main.DEFAULT_PORT


def clock(tmp_path: Path, now: float, jump: float = 0.0) -> list[Finding]:
    walls = iter((now, now + 0.1 + jump))
    ticks = iter((5.0, 5.1))
    options = {"wall": lambda: next(walls), "monotonic": lambda: next(ticks), "sleep": lambda _: None}
    return list(machine.check_clock(tmp_path / "chain.sqlite3", **options))


def test_a_clock_in_the_past_fails_and_one_that_jumps_is_a_warning(tmp_path):
    now = machine.PLAUSIBLE_SINCE + 1e6
    (found,) = clock(tmp_path, now)
    assert found.level == OK and "not compared with a time server" in found.what
    (found,) = clock(tmp_path, 86_400)
    assert found.level == FAIL and "1970-01-02" in found.what and "timedatectl" in found.fix
    for jump in (0.2, -0.2):
        (found,) = clock(tmp_path, now, jump)
        assert found.level == WARN and f"{jump:+.3f} s" in found.what


def test_a_ledger_ahead_of_the_clock_is_a_warning(tmp_path):
    now = machine.PLAUSIBLE_SINCE + 1e6
    block = int(now // BLOCK_SECONDS)

    async def make() -> None:
        async with LocalChain.open(tmp_path / "chain.sqlite3", "hot", "cold", genesis_block=block):
            pass

    asyncio.run(make())
    assert [found.level for found in clock(tmp_path, now)] == [OK, OK]
    _, found = clock(tmp_path, now - 1000)
    assert found.level == WARN and "s ahead of the clock" in found.what and "market time" in found.fix
    assert machine.BLOCK_SECONDS == BLOCK_SECONDS


def test_a_folder_that_is_not_there_yet_a_file_and_one_that_cannot_be_written(tmp_path):
    assert [found.level for found in machine.check_folder(tmp_path)] == [OK, OK]
    found, _ = machine.check_folder(tmp_path / "a" / "b")
    assert found.level == OK and "can be made" in found.what and not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    (found,) = machine.check_folder(tmp_path / "file" / "b")
    assert found.level == FAIL and "is a file" in found.what
    if sys.platform == "linux":  # where nobody can make a file, root included
        found, _ = machine.check_folder(Path("/proc/self"))
        assert found.level == FAIL and "cannot be written" in found.what and "--dir" in found.fix


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    for free, level in ((50e6, FAIL), (1e9, WARN), (50e9, OK)):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=int(free)))
        found = list(machine.check_folder(tmp_path))[-1]
        assert found.level == level and f"{free / 1e9:.1f} GB free" in found.what


# ---------------------------------------------------------------------------------------------------------------------
# The databases


def test_a_whole_database_is_fine_and_stays_as_it_is(database):
    before = database.read_bytes()
    (found,) = checked(database)
    assert found == Finding(OK, f"jobs database {database}: whole, schema version {len(JOBS_SCHEMA)}")
    assert database.read_bytes() == before
    (found,) = checked(database.with_name("other.sqlite3"))
    assert found.level == OK and "not there yet" in found.what and not database.with_name("other.sqlite3").exists()


def test_versions_older_newer_and_of_another_program(database):
    (found,) = checked(database, len(JOBS_SCHEMA) + 1)
    assert found.level == OK and f"the next start brings it to {len(JOBS_SCHEMA) + 1}" in found.what
    change(database, f"PRAGMA user_version = {len(JOBS_SCHEMA) + 1}")
    (found,) = checked(database)
    assert found.level == FAIL and f"schema version {len(JOBS_SCHEMA) + 1}, this program knows" in found.what
    (found,) = checked(database, None)
    assert found.level == OK
    change(database, "PRAGMA user_version = 0")
    (found,) = checked(database)
    assert found.level == FAIL and "another program" in found.what


def test_a_damaged_page_and_a_file_that_is_no_database_fail(database):
    data = bytearray(database.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 + 1 : page * 4096 + 60] = b"\xff" * 59
    database.write_bytes(data)
    (found,) = checked(database)
    assert found.level == FAIL and ("damaged" in found.what or "malformed" in found.what) and "restore" in found.fix
    assert "\n" not in found.what
    database.write_text("these are notes" * 1000)
    (found,) = checked(database)
    assert found.level == FAIL and "not a database" in found.what


def test_another_process_that_has_it_open_is_named_and_after_a_kill_its_log_is_mentioned(database):
    process = subprocess.Popen([sys.executable, "-c", HOLD, database], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        whole, used = checked(database)
        assert whole.level == OK and used.level == WARN
        if sys.platform == "linux":
            assert f"in use by process {process.pid}" in used.what
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    (found,) = checked(database)
    assert found.level == OK and "bytes of its log wait for the next start" in found.what
    with closing(sqlite3.connect(database)) as db:  # nothing of it was lost by looking
        assert db.execute("SELECT value FROM meta WHERE key = 'held'").fetchone() == ("yes",)


def test_a_writer_in_the_middle_of_a_transaction_does_not_stop_the_doctor(database):
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO meta VALUES ('half', 'done')")
        assert checked(database)[0].level == OK


# ---------------------------------------------------------------------------------------------------------------------
# The wallet and the chain


@pytest.fixture
def wallets(tmp_path) -> Path:
    """A folder with wallet `alice`: hotkey `hot` is //Alice, the encrypted coldkey //Bob, its password `pass word`."""
    for name, uri, password in (
        ("hotkeys/hot", "//Alice", None), ("coldkey", "//Bob", "pass word"), ("coldkeypub.txt", "//Bob", None)
    ):  # fmt: skip
        file = Keyfile(tmp_path / "wallets" / "alice" / name)
        file.set_keypair(Keypair.create_from_uri(uri), encrypt=password is not None, password=password)
    return tmp_path / "wallets"


def examined(monkeypatch, line: str, environ: dict | None = None) -> list[Finding]:
    """What is found of wallet and chain with these options; a chain that does not answer is given up soon."""
    monkeypatch.setattr(network, "CHAIN_SECONDS", 0.5)
    parser = Parser()
    doctor_main.add_options(parser)
    options = parser.parse_args(line.split())
    resolve(options, environ or {}, Path("no.env"))
    return list(network.check_subnet(options))


def test_nothing_is_asked_of_a_chain_where_no_subnet_is_named(monkeypatch):
    (found,) = examined(monkeypatch, "", {"BT_NETWORK": "finney", "BT_WALLET": "alice"})
    assert found.level == OK and "stays on this machine" in found.what


def test_a_wallet_is_found_with_its_addresses_and_a_wrong_name_or_password_fails(monkeypatch, wallets):
    alice, bob = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"
    line = (
        f"--netuid 98 --wallet alice --wallet.hotkey hot --wallet.path {wallets} --chain-endpoint ws://127.0.0.1:9/KEY"
    )
    wallet, chain = examined(monkeypatch, line)
    assert wallet == Finding(OK, f"wallet alice: hotkey {alice}, coldkey {bob}")
    assert chain.level == FAIL and chain.what.startswith("chain ws://127.0.0.1:9/*****: ") and chain.fix
    wallet, _ = examined(monkeypatch, line, {"BT_WALLET_PASSWORD": "pass word"})
    assert wallet.level == OK and wallet.what.endswith("the password opens it")
    for changed, environ, said in (
        (line, {"BT_WALLET_PASSWORD": "hunter2"}, "wrong password"),
        (f"{line} --wallet.hotkey cold", {}, "no key file"),
        (f"{line} --wallet bob", {}, "no key file"),
        (f"{line} --password-file {wallets}", {}, "directory"),
    ):
        (wallet,) = examined(monkeypatch, changed, environ)
        assert wallet.level == FAIL and said in wallet.what and "hunter2" not in str(wallet) and wallet.fix


def test_a_key_that_others_can_read_is_a_warning_with_the_command_that_mends_it(tmp_path):
    hot, cold = tmp_path / "hot", tmp_path / "cold"
    for path in (hot, cold):
        path.write_text("{}")
        path.chmod(0o600)
    assert list(network.check_key_files(hot, cold, tmp_path / "none")) == []
    hot.chmod(0o644)
    (found,) = network.check_key_files(cold, hot)
    assert found == Finding(WARN, f"key file {hot} can be read by others", f"chmod 600 {hot}")


def test_registration_permit_and_stake_are_what_the_chain_says(tmp_path):
    """On the embedded chain, which speaks the same protocol as the real one."""

    async def look(folder: Path, *registered: tuple[str, str, int]) -> list[Finding]:
        async with LocalChain.open(folder / "chain.sqlite3", "hot", "cold", genesis_block=1000) as chain:
            for hotkey, coldkey, stake in registered:
                await chain.register(hotkey, coldkey, stake)
            return await network.check_chain(chain, "embedded")

    def levels(found: list[Finding]) -> dict[str, str]:
        words = ("answers", "register", "belongs", "permit", "stake ")
        return {word: finding.level for word in words for finding in found if word in finding.what}

    found = asyncio.run(look(tmp_path, ("other", "cold", 10**12)))
    assert levels(found) == {"answers": OK, "register": FAIL}
    assert "btcli subnets register --netuid 98" in found[-1].fix
    for name, mine, expected in (
        ("staked", ("hot", "cold", 5 * 10**12), {"register": OK, "permit": OK, "stake ": OK}),
        ("poor", ("hot", "cold", 0), {"register": OK, "permit": WARN, "stake ": WARN}),
        ("sold", ("hot", "another", 5 * 10**12), {"register": OK, "belongs": WARN, "permit": OK, "stake ": OK}),
    ):
        (tmp_path / name).mkdir()
        found = asyncio.run(look(tmp_path / name, mine))
        assert levels(found) == {"answers": OK, **expected}, (name, found)
    assert any("stake 5000.0000 alpha" in finding.what for finding in found)


def test_a_free_balance_too_small_for_fees_is_a_warning():
    class Chain:
        """What `check_chain` asks, with the balance given: the embedded chain has no fees."""

        hotkey = coldkey = "x"

        def __init__(self, balance: int):
            self.balance = balance

        async def metagraph(self) -> Metagraph:
            return Metagraph(98, 5, 360, "owner", "owner", (Neuron(0, "x", "x", True, 10**9, None, 1, 1),))

        async def free_balance(self) -> int:
            return self.balance

    for balance, level in ((0, WARN), (network.GOOD_BALANCE_RAO - 1, WARN), (network.GOOD_BALANCE_RAO, OK)):
        found = asyncio.run(network.check_chain(Chain(balance), "test"))[-1]
        assert found.level == level and "TAO" in found.what and bool(found.fix) == (level == WARN)


# ---------------------------------------------------------------------------------------------------------------------
# A pool of a real chain


@dataclass
class Node:
    """A node of which something may be wrong; it knows nothing but headers, and that no contract stands anywhere."""

    chain_id: int = 8453
    height: int = 100_000  # blocks of two seconds
    age: float = 1
    fork: str = "f"
    by_hash: bool = True
    most_logs: int = 10**9
    most_calls: int = 10**9
    remembers: int = 10**9  # blocks
    broken: tuple = ()

    def __call__(self, calls: list[dict]):
        if len(calls) > self.most_calls:
            return web.Response(status=413)
        if any(call["method"] in self.broken for call in calls):
            return web.Response(status=500, text="SECRET")
        return [{"jsonrpc": "2.0", "id": call["id"]} | self.one(call["method"], call["params"]) for call in calls]

    def one(self, method: str, parameters: list) -> dict:
        match method:
            case "eth_chainId":
                return {"result": hex(self.chain_id)}
            case "eth_getBlockByNumber":
                number = self.height if parameters[0] == "latest" else int(parameters[0], 16)
                at = int(time.time() - self.age) - 2 * (self.height - number)
                words = {"hash": f"0x{number:063x}{self.fork}", "parentHash": "0x" + "0" * 64}
                return {"result": {"number": hex(number), "timestamp": hex(at)} | words}
            case "eth_getLogs":
                blocks = int(parameters[0]["toBlock"], 16) - int(parameters[0]["fromBlock"], 16) + 1
                if blocks > self.most_logs:
                    return {"error": {"code": -32600, "message": "too many blocks"}}
                return {"result": []}
        if not self.by_hash:
            return {"error": {"code": -32602, "message": "invalid block number"}}
        if int(parameters[1]["blockHash"][:-1], 16) < self.height - self.remembers:
            return {"error": {"code": -32000, "message": "missing trie node"}}
        return {"result": "0x"}


def looked_at(*nodes: Node) -> list[Finding]:
    """What is found of nodes on the loopback interface, and of whether they agree; their addresses hold secrets."""

    async def look() -> list[Finding]:
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(Server(node)) for node in nodes]
            looks = [await nodes_module.check_node(url, None) for url in urls]
            heads = [head for _, head in looks if head]
            found = [finding for part, _ in looks for finding in part]
            return found + (await nodes_module.check_agreement(heads, 3) if len(heads) > 1 else [])

    found = asyncio.run(look())
    for finding in found:
        assert not any(secret in str(finding) for secret in ("SECRET", "secret-key", "password", "\n")), finding
        assert bool(finding.fix) == (finding.level != OK), finding
    return found


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(nodes_module, "NODE_SECONDS", 0.5)
    monkeypatch.setattr(rpc, "FIRST_REST_SECONDS", 0.1)


def test_of_a_node_that_can_do_all_nothing_is_wrong():
    found = looked_at(Node())
    assert [finding.level for finding in found] == [OK] * 6
    for said in (
        "chain 8453, block 100000",
        "EIP-1898",
        "5000 blocks at a time",
        "1000 calls in a request",
        "a day ago",
    ):
        assert any(said in finding.what for finding in found), said
    assert any("younger than a day" in finding.what for finding in looked_at(Node(height=2000)))
    assert any("gives 10 blocks" in finding.what for finding in looked_at(Node(height=12)))  # all that there are: fine


@pytest.mark.parametrize(
    ("wrong", "level", "said", "fix"),
    [
        ({"broken": ("eth_chainId",)}, FAIL, "HTTP 500", "name another node"),
        ({"age": 90}, WARN, "its newest block is 9", "keeps up"),
        ({"age": 700}, FAIL, "its newest block is 70", "keeps up"),
        ({"age": -40}, WARN, "s ahead of this clock", "synchronise"),
        ({"by_hash": False}, FAIL, "(EIP-1898) is refused: invalid block number", "name another node"),
        ({"most_logs": 0}, FAIL, "eth_getLogs is refused: too many blocks", "gives no events"),
        ({"most_logs": 10}, WARN, "eth_getLogs gives 10 blocks at a time", "takes long"),
        ({"broken": ("eth_getLogs",)}, FAIL, "eth_getLogs: no answer within 0.5 s", "name another node"),
        ({"most_calls": 20}, WARN, "takes 15 calls in a request", "700 calls"),
        ({"remembers": 128}, WARN, "an hour ago is gone (missing trie node", "more history"),
    ],
)
def test_what_a_node_cannot_do_is_named_with_its_fix(impatient, wrong, level, said, fix):
    found = looked_at(Node(**wrong))
    bad = [finding for finding in found if finding.level != OK]
    assert any(finding.level == level and said in finding.what and fix in finding.fix for finding in bad), found
    if wrong.keys() & {"age", "most_logs", "most_calls", "remembers"}:
        assert len(bad) == 1 and len(found) == 6


def test_a_node_that_prunes_after_some_hours_is_enough_for_rounds():
    found = looked_at(Node(remembers=5000))
    assert [finding.level for finding in found] == [OK] * 6 and "archive" in found[-1].what


def test_a_node_that_is_slow_is_a_warning(monkeypatch):
    monkeypatch.setattr(nodes_module, "SLOW_NODE_SECONDS", 0.0)
    assert looked_at(Node())[0].level == WARN


def test_nodes_of_two_chains_and_nodes_that_disagree_about_a_block_fail():
    *_, found = looked_at(Node(), Node(height=99_990))
    assert found == Finding(OK, "all 2 nodes have the same block 99987")
    *_, found = looked_at(Node(), Node(), Node(chain_id=1))
    assert found.level == FAIL and "different chains" in found.what and found.what.count("8453") == 2
    *_, found = looked_at(Node(), Node(fork="e"))
    assert found.level == FAIL and "disagree about block 99997" in found.what and f"{99_997:x}e" in found.what


@pytest.fixture(scope="module")
def uniswap(request):
    """Uniswap's contracts on a development chain, with a position of accounts[1] in a pool."""
    if anvil.missing():
        request.getfixturevalue("missing")(anvil.missing())
    with anvil.Chain() as chain:
        uniswap = anvil.Uniswap(chain)
        uniswap.mint(chain.accounts[1], -600, 600, 10**18, 10**18)
        uniswap.swap(True, 10**15)
        chain.mine()
        yield uniswap


def of_pool(uniswap, executes: bool = False, **changes: str | None) -> list[Finding]:
    named = {"pool": uniswap.address, "manager": uniswap.manager, "vault": uniswap.chain.accounts[1]} | changes
    return asyncio.run(nodes_module.check_pool([uniswap.chain.url], **named, executes=executes))


def test_pool_oracle_manager_and_vault_are_what_the_contracts_say(uniswap):
    pool, oracle, manager, vault = of_pool(uniswap)
    assert pool == Finding(OK, f"pool {uniswap.address}: AAA/BBB, fee 0.3 %, spacing 60")
    assert oracle.level == WARN and "does not reach back 10 minutes" in oracle.what and "OLD" in oracle.what
    assert of_pool(uniswap, executes=True)[1].level == FAIL
    assert manager.level == OK and uniswap.manager in manager.what
    token0, token1 = (
        uniswap.chain.call(token, Function("balanceOf(address)", "uint256"), uniswap.chain.accounts[1])[0] / 1e18
        for token in (uniswap.token0, uniswap.token1)
    )
    said = f"1 positions in this pool, 1 with liquidity, idle {token0:.6g} "
    assert vault.level == OK and said in vault.what and f" and {token1:.6g} " in vault.what
    uniswap.chain.mine(2, 700)  # the only observation is now old enough
    oracle = of_pool(uniswap)[1]
    [_, tick, *_] = uniswap.chain.call(uniswap.address, SLOT0)
    assert oracle.level == OK and oracle.what.endswith(f"average tick of 10 minutes {tick}, now {tick}"), oracle


@pytest.mark.parametrize(
    ("changes", "level", "said", "fix"),
    [
        ({"manager": None}, FAIL, "no position manager is known on chain 31337", "--manager 0x..."),
        ({"manager": "token0"}, FAIL, "no position manager stands there", "--manager 0x..."),
        ({"manager": "another"}, FAIL, "of another factory's pools", "--manager 0x..."),
        ({"pool": "manager"}, FAIL, "does not answer as a Uniswap V3 pool", "--pool"),
        ({"pool": NOBODY}, FAIL, "does not answer as a Uniswap V3 pool", "--pool"),
        ({"vault": NOBODY}, WARN, "0 positions in this pool, 0 with liquidity, idle 0 ", "is it the right address"),
        ({"vault": None}, WARN, "no vault is named", "--vault 0x..."),
    ],
)
def test_a_wrong_address_is_named_with_its_fix(uniswap, changes, level, said, fix):
    if changes.get("manager") == "another":
        arguments = f"{NOBODY[2:]:0>64}{uniswap.token0[2:]:0>64}{0:064x}"
        changes = {"manager": uniswap.chain.deploy(anvil.bytecode("manager") + arguments)}
    named = {name: getattr(uniswap, value or "", value) for name, value in changes.items()}
    found = of_pool(uniswap, **named)
    assert any(finding.level == level and said in finding.what and fix in finding.fix for finding in found), found


def test_a_token_that_takes_a_fee_on_transfer_is_refused_in_a_sentence(uniswap):
    saved = uniswap.chain.rpc("evm_snapshot")
    assert not any("fee on transfer" in one.what for one in of_pool(uniswap))
    anvil.make_odd(uniswap.chain, uniswap.token0, "taxed")
    [found] = [one for one in of_pool(uniswap) if "fee on transfer" in one.what]
    sent, arrived = map(int, re.search(r"of (\d+) base units (\d+) arrive", found.what).groups())
    assert found.level == FAIL and arrived == sent - (sent >> 7) and "other tokens" in found.fix
    uniswap.chain.rpc("evm_revert", saved)


def test_the_usual_manager_of_a_chain_is_none_for_another_exchanges_pool(uniswap, monkeypatch):
    monkeypatch.setitem(pool_module.POSITION_MANAGERS, 31337, uniswap.manager)
    assert of_pool(uniswap, manager=None)[2].level == OK
    found = of_pool(uniswap, pool=uniswap.elsewhere(), manager=None)
    assert [one.fix for one in found if one.level == FAIL and "another factory's pools" in one.what] == [
        "name the pool's own with --manager 0x..."
    ]


def test_tokens_that_the_position_manager_may_not_take_are_a_warning_where_a_bot_will_need_it(uniswap):
    """accounts[1] approved both when the contracts were made; accounts[4] nothing, and has tokens of one kind alone."""
    assert [finding.level for finding in of_pool(uniswap, executes=True)[-2:]] == [OK, OK]
    poor = uniswap.chain.accounts[4]
    uniswap.send(uniswap.token0, "transfer(address,uint256)", poor, 5)
    uniswap.chain.mine()
    *_, first, second = of_pool(uniswap, executes=True, vault=poor)
    for finding, have in ((first, 5), (second, 0)):
        assert finding.level == WARN and f"0 of {have} base units" in finding.what and "approve" in finding.fix
    assert len(of_pool(uniswap, vault=poor)) == 4


def test_the_command_examines_nodes_pool_and_vault_and_prints_no_secret(uniswap, tmp_path):
    line = ["--pool", uniswap.address, "--manager", uniswap.manager, "--vault", uniswap.chain.accounts[1]]
    line += ["--dir", tmp_path, "--port", 0]
    environ = os.environ | {"ALM_RPC_URLS": uniswap.chain.url.replace("//", "//user:SECRET@")}
    done = command("validator.py", "doctor", *line, env=environ)
    assert done.returncode == 0 and not done.stderr and "chain 31337, block " in done.stdout, done
    assert "1 with liquidity" in done.stdout and "evaluation only, no live rounds" in done.stdout
    assert "SECRET" not in done.stdout
    environ |= {"EXECUTOR_BOT_URL": "http://127.0.0.1:9/SECRET", "EXECUTOR_API_KEY": "SECRET"}
    done = command("-m", "doctor", *line, env=environ)
    assert done.returncode == 1 and not done.stderr and "SECRET" not in done.stdout
    assert "FAIL executor http://127.0.0.1:9/*****: Connect call failed" in done.stdout
    done = command("-m", "doctor", "--pool", uniswap.address, env=os.environ | {"ALM_RPC_URLS": ""})
    assert "FAIL --pool is given, but no node of the chain; add --rpc URL" in done.stdout


def bot_options(url: str, *line: str) -> argparse.Namespace:
    parser = Parser()
    doctor_main.add_options(parser)
    named = ["--rpc", "http://127.0.0.1:9", "--pool", NOBODY, "--vault", NOBODY, "--executor-url", url, *line]
    options = parser.parse_args(named)
    resolve(options, {}, Path("no.env"))
    return options


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({}, "right", [(OK, "answers, is live, and is of this pool and vault", "")]),
        ({"live": False}, "right", [(WARN, "a dry run", "--live")]),
        ({"paused": True}, "right", [(WARN, "paused", "python -m executor resume")]),
        ({"live": False, "paused": True}, "right", [(WARN, "a dry run", "--live"), (WARN, "paused", "resume")]),
        ({"vault": "0x1"}, "wrong", [(FAIL, f"of vault '0x1', not {NOBODY}", "the right bot")]),
        ({"pool": None}, "wrong", [(FAIL, f"of pool 'None', not {NOBODY}", "the right bot")]),
        ({}, "wrong", [(FAIL, "does not take the key, HTTP 401", "--executor-key-file")]),
        (
            {"paused": True},
            "wrong",
            [(WARN, "paused", "resume"), (FAIL, "does not take the key", "give both the same")],
        ),
    ],
)
def test_an_executor_must_be_of_this_vault_and_take_the_key_which_no_other_bot_is_shown(
    tmp_path, changes, key, expected
):
    path, shown = tmp_path / "key", []
    path.write_text(key)
    path.chmod(0o600)

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"paused": False, "live": True, "pool": NOBODY, "vault": NOBODY} | changes)

    async def order(request: web.Request) -> web.Response:
        shown.append(request.headers["Authorization"])
        return web.json_response({}, status=404 if shown[-1] == "Bearer right" else 401)

    async def look() -> list[Finding]:
        app = web.Application()
        app.router.add_get("/health", health)
        app.router.add_get("/orders/doctor", order)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            options = bot_options(f"http://127.0.0.1:{port}", "--executor-key-file", str(path))
            return await network.check_executor(options)
        finally:
            await runner.cleanup()

    found = asyncio.run(look())
    assert [finding.level for finding in found] == [level for level, _, _ in expected], found
    assert all(said in f.what and fix in f.fix for f, (_, said, fix) in zip(found, expected, strict=True)), found
    assert bool(shown) == (not changes.keys() & {"vault", "pool"})


def test_an_executor_answers_with_json_or_fails(monkeypatch):
    monkeypatch.setattr(network, "BOT_SECONDS", 0.3)

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(60)

    async def look(answer) -> Finding:
        async def health(request: web.Request) -> web.Response:
            return await answer(request) if asyncio.iscoroutinefunction(answer) else answer

        app = web.Application()
        app.router.add_get("/SECRET/health", health)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            (finding,) = await network.check_executor(bot_options(f"http://127.0.0.1:{port}/SECRET"))
            return finding
        finally:
            await runner.cleanup()

    health = {"paused": False, "live": True, "pool": NOBODY, "vault": NOBODY}
    good = asyncio.run(look(web.json_response(health)))
    assert good.what.endswith("/***** answers, is live, and is of this pool and vault")
    for answer, said in (
        (web.json_response([health]), "HTTP 200"),
        (web.json_response({}, status=401), "HTTP 401"),
        (web.Response(text="<html>"), "HTTP 200, b'<html>'"),
        (web.Response(status=302, headers={"Location": "/SECRET/health"}), "HTTP 302"),
        (hang, "no answer within 0.3 s"),
    ):
        finding = asyncio.run(look(answer))
        assert finding.level == FAIL and said in finding.what and "--executor-url" in finding.fix
        assert "SECRET" not in str(finding)


def test_an_executors_key_is_there_for_nobody_else_to_read_and_not_sent_in_the_clear(tmp_path):
    path = tmp_path / "key"
    path.write_text("k3y")
    path.chmod(0o600)

    def found(url: str, environ: dict | None = None, *line: str) -> list[tuple[str, str]]:
        parser = Parser()
        doctor_main.add_options(parser)
        options = parser.parse_args(["--rpc", "http://127.0.0.1:9", "--executor-url", url, *line])
        resolve(options, environ or {}, Path("no.env"))
        findings = list(network.check_executor_key(options))
        assert "k3y" not in str(findings) and "SECRET" not in str(findings)
        return [(finding.level, finding.what + finding.fix) for finding in findings]

    for url in ("http://127.0.0.1:8095", "http://[::1]:8095", "http://localhost:8095", "https://bot.example/SECRET"):
        assert [level for level, _ in found(url, {"EXECUTOR_API_KEY": "k3y"})] == [OK]
        assert [level for level, _ in found(url, {}, "--executor-key-file", str(path))] == [OK]
    for url in ("http://10.1.2.3:8095/SECRET", "http://bot.example/SECRET"):
        (level, what), _ = found(url, {"EXECUTOR_API_KEY": "k3y"})
        assert level == WARN and "travels in the clear" in what and "https" in what
    ((level, what),) = found("https://bot.example")
    assert level == FAIL and "--executor-key-file" in what
    path.chmod(0o644)
    ((level, what),) = found("https://bot.example", {}, "--executor-key-file", str(path))
    assert level == FAIL and f"chmod 600 {path}" in what


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_exits_0_where_all_is_well_and_1_where_something_fails(tmp_path, database):
    done = command("validator.py", "doctor", "--dir", tmp_path, "--port", 0)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr and lines[-1].startswith("0 FAIL, ")
    assert all(line[:5].strip() in (OK, WARN) for line in lines[:-1])
    for name in ("validator.sqlite3", "validator.events.sqlite3", "chain.sqlite3"):
        assert any(name in line for line in lines)
    change(database, "PRAGMA user_version = 99")
    done = command("validator.py", "--dir", tmp_path, "doctor", "--port", 0)
    assert done.returncode == 1 and "1 FAIL" in done.stdout and "update the program" in done.stdout
    elsewhere = tmp_path / "elsewhere.sqlite3"
    assert command("validator.py", "doctor", "--dir", tmp_path, "--db", elsewhere, "--port", 0).returncode == 0


@pytest.mark.parametrize("program", [("-m", "doctor"), (ROOT / "validator.py", "doctor")], ids=["module", "validator"])
def test_of_a_network_it_examines_the_folder_that_the_validator_would_use(tmp_path, program):
    for line, variable, folder in (("--netuid 77", "", "netuid-77"), ("", "78", "netuid-78"), ("", "", "local")):
        ended = command(
            *program,
            *line.split(),
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "NETUID": variable,
                "HOME": str(tmp_path),
            },  # no wallet
        )
        assert f"jobs database {folder}/validator.sqlite3: not there yet" in ended.stdout, ended


def test_it_runs_where_no_package_is_installed(tmp_path):
    """`-S`: without site-packages, as on a machine where nobody has run pip yet."""
    done = command("-S", "-m", "doctor", "--dir", tmp_path, "--port", 0)
    assert done.returncode == 1 and not done.stderr
    assert "FAIL package aiohttp is missing" in done.stdout and "pip install 'aiohttp" in done.stdout
    assert "jobs database" in done.stdout and "versions are not compared" not in done.stdout
    done = command("-S", "-m", "doctor", "--dir", tmp_path, "--port", 0, "--netuid", 98)
    assert "wallet and chain are not checked" in done.stdout and not done.stderr
    done = command("-S", "-m", "doctor", "--dir", tmp_path, "--port", 0, "--rpc", "http://127.0.0.1:9/SECRET")
    assert "nodes, pool and executor are not checked" in done.stdout and "SECRET" not in done.stdout + done.stderr


def test_a_wrong_setting_is_a_line_of_the_report(tmp_path):
    for line, said in (
        (["--wallet", "x"], "FAIL --wallet is given, but not which subnet"),
        ([], "FAIL NETUID (environment)"),
    ):
        done = command(
            "-m", "doctor", "--dir", tmp_path, "--port", 0, *line, env=os.environ | {"NETUID": "" if line else "x"}
        )
        assert done.returncode == 1 and said in done.stdout and not done.stderr


def test_a_validator_at_work_is_found(tmp_path):
    process = start("validator.py", "--dir", tmp_path / "local", "--no-miners", "--pace", 1, folder=tmp_path)
    try:
        path = tmp_path / "local" / "chain.sqlite3"
        wait_for(
            "a ledger", lambda: path.exists() and list(machine.check_database("chain ledger", path, 1))[1:], process
        )
        found = list(doctor_main.examine(tmp_path / "local", tmp_path / "local" / "validator.sqlite3", 0))
        used = [finding for finding in found if "validator.py" in finding.what]
        assert {"jobs database", "chain ledger"} <= {finding.what.split(" /")[0] for finding in used}
        assert FAIL not in {finding.level for finding in found} and all(finding.level == WARN for finding in used)
    finally:
        process.terminate()
        process.wait()
