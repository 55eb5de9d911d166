"""What validator and miner stand on when a real network is named: mistakes, `.env`, a silent chain, a round, a miner.

The programs run in this process through their own `main`, over the fake node of `substrate.py`; nothing leaves this
machine. Run: `python -m pytest tests/test_subnet.py`. Read next: `subnet.py`.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from bittensor.keyfiles import Keyfile
from subnets import FAST, ROOT, accept, command, hotkey_of, rows
from substrate import LOST, Node, Uid
from test_chain import _sdk_caches, cold, hot  # noqa: F401

import miner
import validator
from audit import receipt_book, receipts
from audit.receipt_book import ReceiptBook
from chain import opening, subtensor
from chain.base import ChainError
from chain.local import LocalChain
from chain.subtensor import BittensorChain
from evm import market as market_module
from markets.model import FIRST_BLOCK, ModelMarket
from protocol import RebalanceQuery
from runtime import options as options_module
from runtime.options import parse_options
from runtime.process import UserError
from spine import ground as ground_module
from spine.ground import reference_miners
from spine.mechanism import load
from wire import client
from wire.codec import decode, encode
from wire.server import Gate, build_app, serve
from wire.signing import local_keypair

NETUID = 98


@pytest.fixture(scope="session")
def wallets(tmp_path_factory) -> Path:
    """Wallet `w`: hotkeys `v` and `m`, which are registered, `stranger`, which is not, and `locked`, encrypted."""
    folder = tmp_path_factory.mktemp("wallets")
    for name, key, password in (
        ("hotkeys/v", "v-hotkey", None),
        ("hotkeys/m", "m-hotkey", None),
        ("hotkeys/stranger", "stranger-hotkey", None),
        ("hotkeys/locked", "v-hotkey", "pass word"),
        ("coldkeypub.txt", "v-coldkey", None),
    ):
        file = Keyfile(folder / "w" / name)
        file.set_keypair(local_keypair(key), encrypt=password is not None, password=password)
    return folder


@pytest.fixture
def node(monkeypatch, tmp_path) -> Node:
    """The network that every program of this test finds, whichever it names; the current folder has no `.env` yet."""
    node = Node(netuid=NETUID, owner=(hot("owner"), cold("owner")))
    for name, tao in (("owner", 10_000), ("v", 3000), ("m", 0)):
        node.register(hot(name), cold(name), tao * 10**9)
    real = BittensorChain.open
    monkeypatch.setattr(subtensor.BittensorChain, "open", functools.partial(real, substrate=node.substrate))
    monkeypatch.setattr(opening, "RETRY_SECONDS", 0.01)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return node


def mistake(program, capsys, line: str) -> str:
    """The one line that is the program's answer to a command line."""
    try:
        code = program.main(line.split())
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and "Traceback" not in error, (code, error)
    return error[:-1]


POOL = "0x" + "ab" * 20
VALIDATOR = "--netuid 98 --wallet w --wallet-hotkey v --dir new --dry-run"
MINER = "--netuid 98 --wallet w --wallet-hotkey m --dir new --external-ip 5.6.7.8 --port 0"


@pytest.mark.parametrize(
    ("program", "line", "says"),
    [
        (validator, f"{VALIDATOR} --wallet nobody", "no key file"),
        (validator, f"{VALIDATOR} --wallet-hotkey nobody", "no key file"),
        (validator, f"{VALIDATOR} --wallet-hotkey locked", "is encrypted; give its password"),
        (validator, f"{VALIDATOR} --wallet-hotkey locked --password-file wrong", "wrong password for"),
        (validator, f"{VALIDATOR} --wallet-hotkey stranger", "not registered on netuid 98; btcli subnets register"),
        (validator, f"{VALIDATOR} --netuid 77", "netuid 77 does not exist"),
        (validator, f"{VALIDATOR} --netuid x", "--netuid"),
        (validator, f"{VALIDATOR} --network nosuch", "'nosuch' is no network"),
        (validator, f"{VALIDATOR} --chain-endpoint http://node", "--chain-endpoint"),
        (validator, VALIDATOR.replace("--dry-run", ""), "--dry-run shows what would be sent"),
        (validator, f"{VALIDATOR} --fresh", "move its files away"),
        (validator, f"{VALIDATOR} --no-miners", "a real one has the miners that registered"),
        (validator, f"{VALIDATOR} --external-ip 10.1.2.3", "--external-ip 10.1.2.3 is no public IP address"),
        (validator, VALIDATOR.replace("--netuid 98", ""), "add --netuid N"),
        (validator, "--dir new --external-ip 5.6.7.8", "--external-ip is for a real network"),
        (validator, f"--dir new --rpc http://n --pool {POOL} --vault {POOL} --pace 2", "--pace is for a recording"),
        (validator, f"{VALIDATOR} --rpc http://n --pool {POOL}", "add --vault 0x..., the address whose positions"),
        (miner, f"{MINER} --wallet nobody", "no key file"),
        (miner, f"{MINER} --wallet-hotkey locked --password-file wrong", "wrong password for"),
        (miner, f"{MINER} --wallet-hotkey stranger", "not registered on netuid 98; btcli subnets register"),
        (miner, f"{MINER} --netuid 77", "netuid 77 does not exist"),
        (miner, f"{MINER} --network nosuch", "'nosuch' is no network"),
        (miner, f"{MINER} --external-ip 10.1.2.3", "10.1.2.3 is no public IP address"),
        (miner, f"{MINER} --external-ip example.org", "name the address to publish with --external-ip"),
        (miner, MINER.replace("--external-ip 5.6.7.8", ""), "127.0.0.1 is no public IP address"),
        (miner, MINER.replace("--external-ip 5.6.7.8", "--host 0.0.0.0"), "name the address to publish with --ext"),
        (miner, "--host 0.0.0.0 --port 0", "name the address to publish with --external-ip"),  # a local one too
        (miner, "--host :: --port 0", "name the address to publish with --external-ip"),
        (miner, MINER.replace("--netuid 98", ""), "add --netuid N"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_a_mistake_is_one_line_exit_code_2_nothing_sent_and_no_file_made(
    node, wallets, capsys, monkeypatch, program, line, says
):
    monkeypatch.setenv("BT_WALLET_PATH", str(wallets))
    wrong = Path("wrong")
    wrong.write_text("not the password")
    wrong.chmod(0o600)
    assert says in (error := mistake(program, capsys, line)) and "not the password" not in error
    assert node.submitted == 0 and node.connections == node.closed
    assert [path.name for path in Path().iterdir()] == ["wrong"]  # a database would belong to the wrong hotkey


@pytest.mark.parametrize("program", [validator, miner])
def test_what_leads_to_a_network_comes_from_the_option_the_environment_or_the_file_in_this_order(
    node, wallets, capsys, monkeypatch, program
):
    Path(".env").write_text(f"NETUID=77\nBT_WALLET=from_file\nBT_WALLET_PATH={wallets}\n")
    line = "--dry-run" if program is validator else "--external-ip 5.6.7.8"
    monkeypatch.delenv("NETUID")
    assert "from_file/hotkeys/default" in mistake(program, capsys, line)
    monkeypatch.setenv("BT_WALLET", "from_environment")
    assert "from_environment/hotkeys/default" in mistake(program, capsys, line)
    assert "from_option/hotkeys/default" in mistake(program, capsys, f"{line} --wallet from_option")
    line = f"{line} --wallet w --wallet-hotkey v"
    assert "netuid 77 does not exist" in mistake(program, capsys, line)
    monkeypatch.setenv("NETUID", "78")
    assert "netuid 78 does not exist" in mistake(program, capsys, line)
    assert "netuid 79 does not exist" in mistake(program, capsys, f"{line} --netuid 79")
    monkeypatch.setenv("NETUID", "")  # hides the file: local again, where a wallet option makes no sense
    assert "add --netuid N" in mistake(program, capsys, line)


def test_the_miners_of_a_local_subnet_stay_in_it_whatever_a_file_says(tmp_path, monkeypatch):
    monkeypatch.delenv("NETUID")
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("NETUID=98\nBT_WALLET=real\nBT_AXON_IP=0.0.0.0\nBT_AXON_EXTERNAL_IP=5.6.7.8\n")

    async def main():
        ledger = LocalChain.open(tmp_path / "chain.sqlite3", hot("v"), cold("v"), genesis_block=1000)
        async with ledger, reference_miners(("keep",), tmp_path) as names:
            assert names == {hotkey_of("keep"): "keep"}

    asyncio.run(main())


def test_a_validator_that_is_local_by_an_empty_variable_has_local_miners_beside_a_file(tmp_path):
    """`NETUID= python validator.py`, as `make demo` does it."""
    (tmp_path / ".env").write_text("NETUID=98\n")
    line = ("--once", "--round-seconds", 60, "--dir", tmp_path / "local")
    ended = command(ROOT / "validator.py", *line, cwd=tmp_path)  # conftest.py has emptied the variable
    assert ended.returncode == 0 and "LOCAL MODE" in ended.stdout and " wide " in ended.stdout, ended.stderr


def test_a_reference_miner_that_cannot_be_started_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")

    async def start() -> None:
        async with reference_miners(("keep",), tmp_path):
            raise AssertionError("it runs")

    with pytest.raises(ChainError, match="miner keep cannot be started: /no/python: No such file"):
        asyncio.run(start())


def options_of(program, line: str):
    return parse_options(program.build_parser(), line.split(), {}, Path("no.env"))


def test_a_chain_that_does_not_answer_at_the_start_is_waited_for(node, wallets, caplog):
    options = options_of(validator, f"{VALIDATOR} --wallet-path {wallets}")
    node.faults["connect"] = [LOST, LOST]
    node.faults["get_metagraph"] = [LOST]

    async def main():
        async with ground_module.opened(options, load()) as ground:
            assert ground.chain.hotkey == hot("v") and not ground.local and ground.names == {}

    asyncio.run(asyncio.wait_for(main(), 60))
    assert len([record for record in caplog.records if "trying again" in record.getMessage()]) == 3
    assert node.connections >= 4 and node.submitted == 0


def test_a_dry_run_on_a_network_plays_rounds_asks_no_private_address_and_sends_nothing(node, wallets, capsys, caplog):
    calls = []

    async def called(reader, writer):
        calls.append(writer.get_extra_info("peername"))
        writer.close()

    async def main():
        async with await asyncio.start_server(called, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            node.state.uids[2].axon = {
                "ip": int(ipaddress.IPv4Address("127.0.0.1")),
                "port": port,
                "ip_type": 4,
                "block": 1,
            }
            line = f"{VALIDATOR} --wallet-path {wallets} --pace 60 --rounds 1 --round-seconds 60 --log-level ERROR"
            await validator.validate(options_of(validator, line))

    with caplog.at_level(logging.INFO, logger="subnet"):
        asyncio.run(asyncio.wait_for(main(), 60))
    path = Path("new/validator.sqlite3")
    asks = rows(path, "SELECT code, detail, answer FROM predictions")
    assert asks == [("address_refused", "127.0.0.1 is not a public IP address", b"")] * 2  # two jobs
    assert set(rows(path, "SELECT round_type, code FROM rounds")) == {
        ("evaluation", "nobody_ranked"),
        ("live", "live_no_winner"),
    }
    assert calls == [] and node.submitted == 0
    out = capsys.readouterr().out
    assert "NETUID 98, DRY RUN: nothing is sent" in out and "MARKET: MODEL" in out and "LOCAL" not in out
    assert "SETTING wallet = w (option)" in caplog.messages and "WEIGHTS on the chain: none yet" in out
    assert validator.main(["audit", "all", "--db", str(path)]) == 0
    assert "4 rounds audited, 0 differ" in capsys.readouterr().out


@pytest.mark.parametrize("port", [None, 41091])
def test_a_miner_joins_a_network_with_the_address_it_is_told_to_publish(node, wallets, capsys, port):
    async def main():
        line = f"{MINER} --wallet-path {wallets}" + (f" --axon.external_port {port}" if port else "")
        task = asyncio.create_task(miner.mine(options_of(miner, line)))
        while not node.state.uids[2].axon["port"]:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), 60))
    axon, out = node.state.uids[2].axon, capsys.readouterr().out
    assert ipaddress.ip_address(axon["ip"]) == ipaddress.ip_address("5.6.7.8") and node.submitted == 1
    assert port in (None, axon["port"])
    assert f"uid 2, hotkey {hot('m')}, strategy mine, 5.6.7.8:{axon['port']}" in out and "LOCAL" not in out


def limited_yet(node: Node) -> None:
    node.state.uids[2].axon = {"ip": 84281096, "port": 8091, "ip_type": 4, "block": node.state.block - 5}


def mining(node: Node, wallets: Path, monkeypatch, work) -> None:
    """Run `work` beside a miner that looks at the chain all the time, and must outlive it."""

    async def main() -> None:
        task = asyncio.create_task(miner.mine(options_of(miner, f"{MINER} --wallet-path {wallets} --status-port 0")))
        steps = work()
        for _ in range(1000):
            assert not task.done(), task.exception()
            if next(steps, "over") == "over":
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("it did not come to that")
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    monkeypatch.setattr(miner, "CALLERS_SECONDS", 0.01)
    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("prepare", "blocks"),
    [
        (limited_yet, 50),
        (lambda node: node.faults["submit"].append("lost before"), 60),
        (lambda node: node.faults["get_metagraph"].extend(["", LOST]), 0),
    ],
    ids=["the address was changed a minute ago", "lost as it is sent", "lost after the first answer"],
)
def test_a_fault_that_passes_as_a_miner_starts_is_waited_for(node, wallets, monkeypatch, caplog, prepare, blocks):
    def until_it_is_published():
        yield
        if blocks:
            while not any("the chain refused the endpoint" in said for said in caplog.messages):
                yield
            sent = node.submitted
            for _ in range(20):
                yield
            assert node.submitted == sent and sum("refused the endpoint" in said for said in caplog.messages) == 1
            node.advance(blocks)
        while node.state.uids[2].axon["ip"] != int(ipaddress.ip_address("5.6.7.8")):
            yield

    prepare(node)
    mining(node, wallets, monkeypatch, until_it_is_published)


def test_what_a_miner_published_is_published_again_when_it_is_registered_anew(node, wallets, monkeypatch, caplog):
    def lost_and_registered_anew():
        while not node.state.uids[2].axon["port"]:
            yield
        port = node.state.uids[2].axon["port"]
        node.state.uids[2] = Uid("5Stranger", "5Other", node.state.block)
        while not any("is not registered any more" in said for said in caplog.messages):
            yield
        node.advance(100)
        uid = node.register(hot("m"), cold("m"))
        while node.state.uids[uid].axon["port"] != port:
            yield
        assert node.submitted == 2 and sum("not registered any more" in said for said in caplog.messages) == 1

    caplog.set_level("INFO")
    mining(node, wallets, monkeypatch, lost_and_registered_anew)
    assert f"hotkey {hot('m')} is not registered any more; its coldkey has uid 1 {hot('v')}: if it was" in caplog.text


def test_a_market_of_a_real_chain_needs_no_dry_run(wallets):
    options = options_of(validator, VALIDATOR.replace("--dry-run", ""))
    with pytest.raises(UserError, match="name a real one with --rpc, or --dry-run"):
        ground_module._check_real(options)
    options.rpc = ["http://127.0.0.1:8545"]
    ground_module._check_real(options)


@pytest.mark.parametrize("dry", ["", "--dry-run"])
def test_a_dry_run_gives_no_orders_to_an_executor_bot(monkeypatch, tmp_path, dry):
    """Only the chain is replaced: what is asked for, and what the market then says of itself."""
    asked = []

    @asynccontextmanager
    async def opened(urls, pool, path, place, **options):
        asked.append(place)
        yield SimpleNamespace(read_only="" if place else "no bot")

    monkeypatch.setattr(market_module.Web3Market, "open", opened)
    key = tmp_path / "api.key"
    key.write_text("sixteen-or-more-characters")
    key.chmod(0o600)
    line = (
        f"--rpc http://n --pool {POOL} --vault {POOL} --executor-url http://127.0.0.1:1 --executor-key-file {key} {dry}"
    )
    options = options_of(validator, line)

    async def read_only() -> str:
        async with ground_module._open_chain(
            options_module.real_market(options), options, tmp_path / "pool.sqlite3", []
        ) as market:
            return market.read_only

    said = asyncio.run(read_only())
    assert (said, asked) == ("in a dry run no order is given", [None]) if dry else (said == "" and asked[0].args[0].key)


@pytest.mark.parametrize(
    ("line", "door"),
    [
        ("", (None, 8090, None, None)),
        ("--external-ip 5.6.7.8 --external-port 41090", ("127.0.0.1", 8090, "5.6.7.8", 41090)),
        ("--external-ip 5.6.7.8 --host 0.0.0.0 --port 99", ("0.0.0.0", 99, "5.6.7.8", None)),
        ("--external-ip 5.6.7.8 --dry-run", ("127.0.0.1", 8090, None, None)),
    ],
)
def test_receipts_are_served_where_miners_reach_them_and_published_unless_nothing_is_sent(line, door):
    assert ground_module.receipts_door(options_of(validator, f"--netuid 98 {line}")) == door


async def on_the_network(node, wallets, monkeypatch, tmp_path, line: str, after):
    """A validator's round on the network with a miner that keeps what is posted; then `after(book)`, while both serve.

    The model stands for a real pool, and the loopback interface for the public network.
    """
    monkeypatch.setattr(ground_module, "_open_chain", model_market)
    for module in (client, miner):
        monkeypatch.setattr(module, "is_public", lambda host: True)
    line = f"--netuid 98 --wallet w --wallet-hotkey v --dir new --wallet-path {wallets} {line}"
    options = options_of(validator, f"{line} --rounds 1 --round-seconds 60 --log-level ERROR")
    options.rpc, options.pool, options.vault = ["http://127.0.0.1:9"], "unused", "vault-pol"
    ready, done = asyncio.Event(), asyncio.Event()

    async def farewell(ground) -> None:
        ready.set()
        await done.wait()

    monkeypatch.setattr(validator, "farewell", farewell)

    async def rebalance(caller: str, body: bytes) -> bytes:
        return encode(accept(decode(RebalanceQuery, body, len(body)).current_positions))

    async with ReceiptBook.open(tmp_path / "receipts-mine.sqlite3", hot("m")) as book:
        gate = Gate(lambda: ({}, 0.0), min_stake_rao=0, allow=frozenset({hot("v")}))
        routes = {"/rebalance": book.noting(rebalance), "/receipt": book.take}
        app = build_app(keypair=local_keypair("m-hotkey"), gate=gate, routes=routes, limits=FAST)
        async with serve(app, "127.0.0.1", 0) as port:
            node.state.uids[2].axon = axon("127.0.0.1", port)
            running = asyncio.create_task(validator.validate(options))
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            assert ready.is_set(), running.result()
            await after(book)
            done.set()
            await running


def axon(ip: str, port: int) -> dict:
    return {"ip": int(ipaddress.IPv4Address(ip)), "port": port, "ip_type": 4, "block": 1}


@asynccontextmanager
async def model_market(real, options, path, jobs):
    options.pace = 60.0
    yield ModelMarket(5, {real.vault: ground_module.MODEL_CAPITAL}, head=FIRST_BLOCK, pace=60)


def test_receipts_are_posted_to_the_miners_of_a_network_and_served_to_nobody_without_an_address(
    node, wallets, monkeypatch, tmp_path
):
    async def posted(book: ReceiptBook) -> None:
        while len(held := await book.held(hot("v"))) < 2:  # one of each job, or the deadline below passes
            await asyncio.sleep(0.01)
        assert {name.split(":")[1] for name in held} == {"evaluation"}
        assert [wrong async for _, one in book.receipts() for wrong in receipts.problems(receipts.read(one))] == []

    work = on_the_network(node, wallets, monkeypatch, tmp_path, "--dry-run", posted)
    asyncio.run(asyncio.wait_for(work, 60))
    assert not node.state.uids[1].axon["port"] and node.submitted == 0


def test_a_miner_finds_a_validators_receipts_by_its_published_address(node, wallets, monkeypatch, tmp_path, capsys):
    async def fetched(book: ReceiptBook) -> None:
        public = node.state.uids[1].axon
        assert public["ip"] == int(ipaddress.IPv4Address("5.6.7.8"))
        node.state.uids[1].axon = axon("127.0.0.1", port := public["port"])  # where the public network would lead
        line = f"--netuid 98 --wallet w --wallet-hotkey m --wallet-path {wallets} --dir new receipts"
        assert await receipt_book._report(options_of(miner, line)) == 0
        out = capsys.readouterr().out
        assert f"2 receipts fetched from http://127.0.0.1:{port}\n" in out and "2 receipts are signed; 0 rounds" in out

    line = "--external-ip 5.6.7.8 --port 0"
    asyncio.run(asyncio.wait_for(on_the_network(node, wallets, monkeypatch, tmp_path, line, fetched), 60))
    assert node.submitted >= 1  # the address; and weights, if they were due


def test_a_chain_that_does_not_take_the_address_stops_no_round(node, wallets, monkeypatch, tmp_path, caplog):
    async def nothing(book: ReceiptBook) -> None:
        assert not node.state.uids[1].axon["port"]

    async def refused(self, host: str, port: int):
        raise ChainError("it is silent")

    monkeypatch.setattr(BittensorChain, "serve", refused)
    line = "--external-ip 5.6.7.8 --port 0"
    asyncio.run(asyncio.wait_for(on_the_network(node, wallets, monkeypatch, tmp_path, line, nothing), 60))
    assert "it is silent" in caplog.text
    assert set(rows(Path("new/validator.sqlite3"), "SELECT code FROM rounds WHERE round_type = 'evaluation'")) == {
        ("scored",)
    }
