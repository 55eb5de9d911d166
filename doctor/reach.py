"""Would a validator reach this miner? The second half of `python miner.py --check`, line by line, each with its fix.

The running miner is asked as a validator would ask it: at the address that the chain has, with a signed request. It is
signed by the miner's own key, which may not call, so the right answer is a refusal that says so. What this cannot
see is a firewall outside that lets this machine in and others not; who asked last, the last line, can.
Read next: `wire/server.py` (what a server checks).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

from audit.receipt_book import beside
from chain.base import ChainError, Metagraph, Neuron
from chain.opening import joined
from doctor.machine import FAIL, OK, WARN, Finding, judged, tell, utc
from doctor.network import RAO
from protocol import Code
from runtime.db import StoreError, look
from runtime.options import is_local
from runtime.process import EXIT_FAILED, EXIT_OK, UserError
from wire.client import Reply, ask, client_session, is_public
from wire.signing import MAX_AGE_SECONDS, MAX_SKEW_SECONDS

ASK_SECONDS, MAX_REPLY_BYTES = 10.0, 4096
TIME_SERVER = ("time.cloudflare.com", 123)
TIME_SECONDS = 5.0
GOOD_SKEW_SECONDS = 1.0
NTP_REQUEST = b"\x23"  # version 4, from a client
NTP_EPOCH_SECONDS = 2_208_988_800  # from 1900 to 1970; RFC 4330
REACHED = (Code.NO_PERMIT, Code.MALFORMED)  # MALFORMED: this key may call, but it asked nothing
FIXES = {
    Code.UNREACHABLE: "start the miner; open and forward its port; publish where it is with --external-ip and --port",
    Code.TIMEOUT: "open and forward its port; if it is open, see the miner's log: it hangs",
    Code.AUTH_RECEIVER: "another miner is there: start this one, on a --port of its own",
    Code.AUTH_STALE: "synchronise the clocks here and there: timedatectl set-ntp true",
    Code.NOT_REGISTERED: "its list of who may call is up to a minute old, try again; else it serves another subnet",
    Code.BUSY: "it has too much to do, or cannot read the chain: see the miner's log",
    Code.RATE_LIMITED: "too many requests from here: try again in a minute",
}
OTHER_FIX = "this is no miner of this version: see what listens there"


async def report(options: argparse.Namespace, min_caller_stake_rao: int) -> int:
    """Print all findings; the exit code is 1 if a line is FAIL. Where nothing runs on this machine that is none.

    Args:
        options: of `miner.py`.
        min_caller_stake_rao: with so much stake the miner lets somebody without a permit call.
    """
    print("\nWould a validator reach you?", flush=True)
    return EXIT_FAILED if FAIL in tell(await examine(options, min_caller_stake_rao)) else EXIT_OK


async def examine(options: argparse.Namespace, min_caller_stake_rao: int) -> list[Finding]:
    """What a validator would need to reach this miner, each as a finding; arguments as for `report`."""
    local = is_local(options)
    try:
        async with joined(options) as (chain, keypair):
            graph = await chain.metagraph()
    except (UserError, ChainError, StoreError) as error:
        return [Finding(WARN if local else FAIL, str(error))]
    me = graph.by_hotkey(keypair.ss58_address)
    if me is None:  # a real network's `joined` has refused
        return [Finding(WARN, f"miner {options.name} has not joined the subnet in {options.dir}", _start(options))]
    if not me.address:
        return [Finding(WARN if local else FAIL, f"uid {me.uid} has published no address", _start(options))]
    async with client_session(1) as session:
        whose = {"keypair": keypair, "receiver": keypair.ss58_address}
        bounds = {"total_seconds": ASK_SECONDS, "max_reply_bytes": MAX_REPLY_BYTES}
        reply = await ask(session, f"http://{me.address}/rebalance", b"{}", **whose, **bounds)
    if local and reply.code is Code.UNREACHABLE:
        return [Finding(WARN, f"miner {options.name} does not run: nobody listens at {me.address}", _start(options))]
    return [
        Finding(OK, f"registered: uid {me.uid} of netuid {graph.netuid} since block {me.registered_block}"),
        *([] if local else [check_address(me.address)]),
        check_reply(reply, me.address),
        Finding(OK, "clock: a local subnet has only this one") if local else await check_clock(),
        check_callers(graph, me, min_caller_stake_rao),
        check_asked(Path(options.dir) / f"receipts-{options.name}.sqlite3", keypair.ss58_address),
    ]


def _start(options: argparse.Namespace) -> str:
    if is_local(options):
        return f"start it: python miner.py --name {options.name} --dir {options.dir}"
    return "start it with --host 0.0.0.0 and --external-ip, your public address: it publishes that"


def check_address(address: str) -> Finding:
    """Whether validators connect to what is published, `host:port`."""
    public = is_public(address.rpartition(":")[0].strip("[]"))
    what = f"published address {address} is {'public' if public else 'not public, no validator connects to it'}"
    return judged(public, what, "start the miner with --host 0.0.0.0 and --external-ip, your public address", FAIL)


def check_reply(reply: Reply, address: str) -> Finding:
    """Whether the miner answered as it should: that whoever asks with this key may not."""
    refused = re.match(r"\d{3} (\w+):", reply.detail) if reply.code is Code.HTTP_STATUS else None
    code = refused[1] if refused else reply.code
    if refused and code in REACHED:
        return Finding(OK, f"{address} answers a signed request, rightly with {code}, in {reply.elapsed_seconds:.2f} s")
    return Finding(FAIL, f"{address} does not answer as it should: {code}, {reply.detail}", FIXES.get(code, OTHER_FIX))


async def check_clock(server: tuple[str, int] = TIME_SERVER) -> Finding:
    """Whether this machine's clock is near enough to a time server's for signed requests."""
    try:
        async with asyncio.timeout(2 * TIME_SECONDS):
            ahead = await asyncio.to_thread(clock_ahead, *server)
    except (OSError, TimeoutError, ValueError) as error:
        fix = "see that it is synchronised: timedatectl"
        return Finding(WARN, f"clock not compared with {server[0]}: {error or 'no answer'}", fix)
    what = f"clock {ahead:+.2f} s against {server[0]}"
    if abs(ahead) <= GOOD_SKEW_SECONDS:
        return Finding(OK, what)
    limits = f"requests are refused when it is {MAX_AGE_SECONDS:g} s ahead or {MAX_SKEW_SECONDS:g} s behind"
    level = WARN if -MAX_SKEW_SECONDS < ahead < MAX_AGE_SECONDS else FAIL
    return Finding(level, f"{what}: {limits}", "synchronise it: timedatectl set-ntp true")


def clock_ahead(host: str, port: int) -> float:
    """By how many seconds this machine's clock is ahead of a time server's; RFC 4330, section 5.

    Raises:
        OSError, ValueError: no answer in time, or none that makes sense.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, kind, protocol)) as asking:
        asking.settimeout(TIME_SECONDS)
        asking.connect(address)
        sent = time.time()
        stamp = struct.pack("!d", sent)  # the server gives it back as it is: it need not be a time of NTP's form
        asking.send(NTP_REQUEST + bytes(39) + stamp)
        answer = asking.recv(512)
        came = time.time()
    if len(answer) < 48 or answer[0] & 7 != 4 or not answer[1] or answer[24:32] != stamp:
        raise ValueError("the answer is none of a time server to this request")
    heard, said = (whole - NTP_EPOCH_SECONDS + part / 2**32 for whole, part in struct.iter_unpack("!II", answer[32:48]))
    return ((sent - heard) + (came - said)) / 2


def check_callers(graph: Metagraph, me: Neuron, min_stake_rao: int) -> Finding:
    """Whether there is anybody whom the miner lets in."""
    others = [neuron for neuron in graph.neurons if neuron.hotkey != me.hotkey]
    may = [neuron for neuron in others if neuron.permit or neuron.stake_rao >= min_stake_rao]
    rule = f"with a validator permit, or a stake of {min_stake_rao / RAO:,.0f}"
    what = f"{len(may)} of {len(others)} others may call: {rule}"
    fix = "wait for a validator to get its permit, or lower MIN_CALLER_STAKE_RAO in your miner.py"
    return judged(bool(may), what, fix)


def check_asked(book: Path, hotkey: str) -> Finding:
    """Who asked last, as far as this miner noted it."""
    own = beside(book, hotkey)
    try:
        rows = look(own if own.exists() else book, "SELECT DISTINCT validator, round_id FROM answers")
    except sqlite3.Error:
        rows = []
    rows = [row for row in rows if re.fullmatch(r"[ -~]+:\d{1,10}", row[1])]  # a caller wrote these
    if not rows:
        fix = "wait for a round; the lines above say what is in the way"
        return Finding(WARN, "no validator was answered so far", fix)
    validator, round_id = max(rows, key=lambda row: int(row[1].rpartition(":")[2]))
    start = utc(int(round_id.rpartition(":")[2]))
    return Finding(OK, f"last answered: validator {validator}, in round {round_id}, {start} UTC")
