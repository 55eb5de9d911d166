"""Whether a validator would reach a miner: a real local subnet, then each thing that may be in the way.

Run: `python -m pytest tests/test_reach.py`. Read next: `reach.py`.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import struct
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from subnets import command, hotkey_of, rows, start, wait_for, write

import miner
from chain.base import Metagraph, Neuron
from doctor import reach
from doctor.machine import FAIL, OK, WARN
from protocol import Code
from wire.client import Reply
from wire.server import Gate, Limits, build_app, serve
from wire.signing import local_keypair

ADDRESS = "SELECT address FROM neurons WHERE hotkey = ? AND address IS NOT NULL"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A local subnet that played one round; its miners are gone."""
    folder = tmp_path_factory.mktemp("reach") / "local"
    assert command("validator.py", "--dir", folder, "--rounds", 1).returncode == 0
    return folder


def examine(folder, name) -> list:
    options = SimpleNamespace(dir=str(folder), name=name, netuid=None)
    return asyncio.run(reach.examine(options, 1_000 * 10**9))


def test_where_nothing_runs_it_is_one_line_with_the_command_and_no_failure(folder, tmp_path):
    for place, name, said, fix in (
        (tmp_path / "nowhere", "mine", "no local subnet in", "python validator.py"),
        (folder, "mine", "miner mine has not joined the subnet in", "python miner.py --name mine --dir"),
        (folder, "wide", "miner wide does not run: nobody listens at 127.0.0.1:", "python miner.py --name wide --dir"),
    ):
        (finding,) = examine(place, name)
        assert finding.level == WARN and said in finding.what and fix in finding.what + finding.fix
    ended = command("miner.py", "--check", "--dir", tmp_path / "nowhere")
    assert ended.returncode == 0 and "RIGHT: 3 asks" in ended.stdout
    assert ended.stdout.splitlines()[-2:] == ["Would a validator reach you?", ended.stdout.splitlines()[-1]]
    assert ended.stdout.splitlines()[-1].startswith("warn no local subnet in ")


def test_a_wrong_strategy_is_mended_first(monkeypatch, capsys, tmp_path):

    monkeypatch.setitem(miner.STRATEGIES, "mine", lambda query: None)
    assert miner.main(["--check", "--dir", str(tmp_path)]) == 1
    assert "Would a validator reach you?" not in capsys.readouterr().out


def test_a_running_miner_is_asked_as_a_validator_would_ask_it(folder, tmp_path):
    """The stranger's miner answers its own signed request with a refusal, and in a round it answers the validator."""
    with start("miner.py", "--dir", folder, "--name", "stranger", "--port", 0, folder=tmp_path) as process:
        wait_for("its endpoint", lambda: rows(folder / "chain.sqlite3", ADDRESS, hotkey_of("stranger")), process)
        before = examine(folder, "stranger")
        assert command("validator.py", "--dir", folder, "--rounds", 1, "--no-miners").returncode == 0
        book = folder / "receipts-stranger.sqlite3"
        wait_for("its notes", lambda: rows(book, "SELECT 1 FROM answers"), process)
        after = command("miner.py", "--check", "--dir", folder, "--name", "stranger")
        ((address,),) = rows(folder / "chain.sqlite3", ADDRESS, hotkey_of("stranger"))
        process.terminate()
        process.wait()
    assert [finding.level for finding in before] == [OK, OK, OK, OK, WARN], before
    lines = after.stdout.split("Would a validator reach you?\n")[1].splitlines()
    assert after.returncode == 0 and [line[:5] for line in lines] == ["ok   "] * 5
    assert (
        "uid 5 of netuid 98" in lines[0] and f"{address} answers a signed request, rightly with no_permit" in lines[1]
    )
    assert (
        "2 of 5 others may call: with a validator permit, or a stake of 1,000" in lines[3]
    )  # the owner and the validator
    assert f"validator {hotkey_of('validator')}, in round " in lines[4] and "2026-01-01" in lines[4]


def test_what_answers_at_the_published_address_but_not_as_it_should_is_a_failure_with_its_fix(folder, tmp_path):
    """Another miner's server, one that serves another subnet, one that lost the chain, and no miner at all."""
    path, hotkey = folder / "chain.sqlite3", hotkey_of("keep")
    mine, other = local_keypair("keep-hotkey"), local_keypair("wide-hotkey")

    async def nothing(caller: str, body: bytes) -> bytes:
        return b"{}"

    async def seen(keypair, callers, age=0.0, routes=("/rebalance",)):
        gate = Gate(lambda: (callers, age), min_stake_rao=1)
        app = build_app(keypair=keypair, gate=gate, routes=dict.fromkeys(routes, nothing), limits=Limits())
        async with serve(app, "127.0.0.1", 0) as port:
            await asyncio.to_thread(
                write, path, "UPDATE neurons SET address = ? WHERE hotkey = ?", f"127.0.0.1:{port}", hotkey
            )
            options = SimpleNamespace(dir=str(folder), name="keep", netuid=None)
            return (await reach.examine(options, 1))[1]

    listed = {hotkey: (False, 0)}
    for wrong, said, fix in (
        (seen(other, listed), "auth_receiver", "a --port of its own"),
        (seen(mine, {}), "not_registered", "another subnet"),
        (seen(mine, listed, age=1e6), "busy", "the miner's log"),
        (seen(mine, listed, routes=("/other",)), "not_found", "no miner of this version"),
        (seen(mine, {hotkey: (True, 0)}), "accepted", "no miner of this version"),
    ):
        finding = asyncio.run(wrong)
        assert finding.level == FAIL and said in finding.what and fix in finding.fix, finding
    right = asyncio.run(seen(mine, listed))
    assert right.level == OK and "no_permit" in right.what


def test_a_published_address_must_be_public_on_a_real_network():
    assert reach.check_address("8.8.8.8:8091").level == reach.check_address("[2606:4700::1111]:8091").level == OK
    for address in ("127.0.0.1:8091", "192.168.1.5:8091", "[::1]:8091", "0.0.0.0:8091"):
        finding = reach.check_address(address)
        assert finding.level == FAIL and address in finding.what and "--external-ip" in finding.fix


def test_every_way_not_to_answer_has_a_fix():
    def finding(code: Code, detail: str = ""):
        return reach.check_reply(Reply(code, detail, b"", "", "", 0, 0.1, 0), "8.8.8.8:8091")

    assert "open and forward its port" in finding(Code.UNREACHABLE, "ClientConnectorError: refused").fix
    assert "it hangs" in finding(Code.TIMEOUT).fix
    stale = finding(Code.HTTP_STATUS, "401 auth_stale: the request is 12.0 s old by the server's clock")
    assert stale.level == FAIL and "12.0 s old" in stale.what and "timedatectl" in stale.fix
    assert finding(Code.HTTP_STATUS, "404").fix == finding(Code.REPLY_SIGNATURE).fix == reach.OTHER_FIX
    assert finding(Code.HTTP_STATUS, "400 malformed: {} lacks fields").level == OK


@contextmanager
def time_server(answer):
    """A time server on loopback that answers one request with `answer(its 48 bytes)`."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(30)

        def work():
            request, peer = server.recvfrom(512)
            server.sendto(answer(request), peer)

        thread = threading.Thread(target=work)
        thread.start()
        yield server.getsockname()
        thread.join()


def stamped(ahead: float, **changes):
    """What a time server says when this machine's clock is `ahead` of it."""

    def answer(request: bytes) -> bytes:
        now = time.time() - ahead + 2_208_988_800
        stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
        first, stratum = changes.get("first", 0x24), changes.get("stratum", 2)
        return bytes([first, stratum]) + bytes(22) + changes.get("echo", request[40:48]) + stamp * 2

    return answer


@pytest.mark.parametrize(
    ("ahead", "level"), [(0, OK), (3, WARN), (-3, WARN), (9, WARN), (11, FAIL), (-6, FAIL), (-100_000, FAIL)]
)
def test_the_clock_is_compared_with_a_time_server(ahead, level):
    with time_server(stamped(ahead)) as server:
        finding = asyncio.run(reach.check_clock(server))
    assert finding.level == level and abs(float(finding.what.split()[1]) - ahead) < 0.5
    assert (level == OK) == (not finding.fix)


def test_a_time_server_that_does_not_answer_this_request_proves_nothing(monkeypatch):
    for answer in (stamped(0, stratum=0), stamped(0, first=0x23), stamped(0, echo=bytes(8)), lambda request: b"no"):
        with time_server(answer) as server:
            finding = asyncio.run(reach.check_clock(server))
        assert finding.level == WARN and "not compared" in finding.what
    monkeypatch.setattr(reach, "TIME_SECONDS", 0.1)
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as silent:
        silent.bind(("127.0.0.1", 0))
        assert asyncio.run(reach.check_clock(silent.getsockname())).level == WARN


def test_who_may_call_is_counted_without_oneself():
    def neuron(uid, permit=False, stake=0):
        return Neuron(uid, f"hotkey{uid}", "coldkey", permit, stake, None, 0, 0)

    me, *others = [neuron(0, True, 10**13), neuron(1), neuron(2, True), neuron(3, stake=10**12)]
    graph = Metagraph(98, 1, 360, "owner", "owner", (me, *others))
    assert "2 of 3 others may call" in reach.check_callers(graph, me, 10**12).what
    nobody = reach.check_callers(replace(graph, neurons=(me, others[0])), me, 10**12)
    assert nobody.level == WARN and "0 of 1 others" in nobody.what and "MIN_CALLER_STAKE_RAO" in nobody.fix


def test_the_last_answer_is_the_newest_round_and_what_a_caller_wrote_cannot_break_the_line(tmp_path):
    book = tmp_path / "receipts.sqlite3"
    assert reach.check_asked(book, "5Hot").level == WARN and not book.exists()
    with closing(sqlite3.connect(book)) as db, db:
        db.execute("CREATE TABLE answers (validator, round_id)")
        names = ["pol:evaluation:900", "pol:live:86400", "x:1" + "0" * 40, "\x1b[2J:99", "no number"]
        db.executemany("INSERT INTO answers VALUES ('V', ?)", [(name,) for name in names])
    assert (
        reach.check_asked(book, "5Hot").what
        == "last answered: validator V, in round pol:live:86400, 1970-01-02 00:00 UTC"
    )
