"""What hostile peers cost: how fast their bytes are read, how long a loop stands still, and `/health` beside them.

    python bench/hostile.py [--quick]       the first kinds of each only

Three tables. Each reader of foreign bytes gets the worst that `tests/test_linear.py` knows, and four times as much of
it. Another process is all miners of `tests/test_hostile.py` at once, which are asked here as a validator asks them, and
is then 256 hostile connections to a server of signed requests here. Last, 256 connections of each kind to each door of
a validator, a miner and an executor bot, whose `/health` is asked for meanwhile. Read next: `tests/test_hostile.py`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import multiprocessing
import os
import platform
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has a wire.py too

from subnets import start, wait_for
from test_hostile import ATTACKS, Behaviour, Connection, Peers, behaviours_of, says
from test_linear import BYTES, LARGE, READERS, seconds
from test_protocol import query

from bench.wire import cpu_model
from executor.door import Door
from protocol import MAX_ANSWER_BYTES
from spine.asking import judged
from spine.mechanism import load
from wire.client import ask, client_session
from wire.codec import encode
from wire.server import Gate, build_app, serve
from wire.signing import local_keypair

AT_ONCE, HEALTH_MS, STALL_MS, ASK_SECONDS = 256, 100, 50, 3
MOST, SECONDS = (2, 0.1) if "--quick" in sys.argv else (None, 1.0)  # kinds, and of each
FORK = multiprocessing.get_context("fork")
VALIDATOR = local_keypair("validator-hotkey")


# ---------------------------------------------------------------------------------------------------------------------
# Readers


def print_readers() -> None:
    """Of each reader its slowest kind of bytes, and how many times longer four times as many take."""
    print(f"{'reader':28}{'slowest at':30}{'ns a byte':>10}{'times for 4 x':>15}")
    for name, read in READERS.items():
        took = {}
        for kind, make in list(BYTES.items())[:MOST]:
            small, large = make(LARGE // 4), make(LARGE)
            took[kind] = [min(seconds(read, data) for _ in range(3)) for data in (small, large)]
        kind, (small, large) = max(took.items(), key=lambda one: one[1][1])
        print(f"{name:28}{kind:30}{large / LARGE * 1e9:10.0f}{large / small:15.1f}")


# ---------------------------------------------------------------------------------------------------------------------
# Connections


class Kind(NamedTuple):
    """What a connection sends at once, `@` being now in nanoseconds, and then again and again; made anew at its end."""

    first: str
    then: str = ""
    pause_seconds: float = 0.0
    reads: bool = True
    half: bool = False  # closes its own side


def kinds(path: str, receiver: str) -> dict[str, Kind]:
    """All of them, at a door that takes POST of this path, for this hotkey."""
    post, get = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    told = {"Version": 1, "Hotkey": VALIDATOR.ss58_address, "Receiver": receiver, "Nonce": "@"}
    told["Signature"] = "0x" + "ab" * 64
    forged = "".join(f"X-Bittensor-{name}: {value}\r\n" for name, value in told.items())
    return {
        "silent": Kind(""),
        "slow header": Kind(post, "X", 0.2),
        "endless header": Kind(f"{post}X: ", "x" * 1000),
        "endless headers": Kind(post, "X: x\r\n" * 100),
        "slow body": Kind(f"{post}Content-Length: 60000\r\n\r\n", "x", 0.2),
        "chunks of a byte": Kind(f"{post}Transfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n" * 100),
        "half-closed": Kind(get, half=True),
        "never reads": Kind(get, get * 50, reads=False),
        "pipelines": Kind(get, get * 50),
        "unsigned": Kind(f"{post}Content-Length: 2\r\n\r\n{{}}"),
        "forged": Kind(f"{post}{forged}Content-Length: 2\r\n\r\n{{}}"),
        "pages": Kind(get.replace("/health", "/")),
        "no HTTP": Kind("\x16\x03\x01" * 1000),
    }


async def connect(port: int, kind: Kind) -> None:
    """One connection after the other, for ever."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(kind.first.replace("@", str(time.time_ns())).encode("latin-1"))
        if kind.half:
            writer.write_eof()
        while kind.then:
            writer.write(kind.then.encode())
            await writer.drain()
            await asyncio.sleep(kind.pause_seconds)

    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writing = asyncio.create_task(write(writer))
            try:
                if kind.reads:
                    while await reader.read(2**16):
                        pass
                else:
                    writer.transport.pause_reading()
                    await writing
            finally:
                writing.cancel()
                writer.transport.abort()
                await asyncio.gather(writing, return_exceptions=True)


@contextmanager
def attacked(port: int, kind: Kind | None) -> Iterator[None]:
    """Inside the block another process has so many connections of this kind to this port."""

    async def all_at_once() -> None:
        await asyncio.gather(*(connect(port, kind) for _ in range(AT_ONCE if kind else 0)))

    attacker = FORK.Process(target=lambda: asyncio.run(all_at_once()), daemon=True)
    attacker.start()
    try:
        yield
    finally:
        attacker.kill()
        attacker.join()


# ---------------------------------------------------------------------------------------------------------------------
# The loop


@asynccontextmanager
async def stall(what: str) -> AsyncIterator[None]:
    """Print for how long the loop stood still at most inside the block."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    yield
    ticking.cancel()
    print(f"{what:40}{longest * 1000:6.0f} ms{'' if longest * 1000 < STALL_MS else '   MISSED'}", flush=True)


def be_miners(behaviours: dict[str, Behaviour], pipe: Pipe) -> None:
    """Say the ports, and answer until told to stop."""
    logging.disable()
    with Peers(behaviours) as peers:
        peers.honest = peers.own
        pipe.send(peers.ports)
        pipe.recv()


async def print_replies(what: str, ports: dict[str, int]) -> None:
    """Every miner is asked at once, each answer judged, as in a round."""
    asked, mechanism = query(), load()["liquidity"]
    body, limits = encode(asked), {"total_seconds": ASK_SECONDS, "max_reply_bytes": MAX_ANSWER_BYTES}
    miners = [
        (f"http://127.0.0.1:{port}/rebalance", local_keypair(f"{name}-hotkey").ss58_address)
        for name, port in ports.items()
    ]

    async def one(session: object, url: str, key: str) -> None:
        judged(mechanism, (await ask(session, url, body, keypair=VALIDATOR, receiver=key, **limits)).body, asked)

    async with client_session(0) as session, stall(what):
        await asyncio.gather(*(one(session, *miner) for miner in miners))


async def print_stalls() -> None:
    """Of hostile replies, beside as many honest ones, and of hostile requests."""
    for what, behaviours in {
        "honest": {name: says(Connection.reply) for name in ATTACKS},
        "hostile": behaviours_of(ATTACKS),
    }.items():
        here, there = FORK.Pipe()
        miners = FORK.Process(target=be_miners, args=(behaviours, there))
        miners.start()
        ports = here.recv()
        await print_replies(f"{len(ATTACKS)} {what} replies", ports)
        here.send("stop")
        miners.join()

    async def echo(caller: str, body: bytes) -> bytes:
        return body

    app = build_app(keypair=VALIDATOR, gate=Gate(lambda: ({}, 0.0), min_stake_rao=0), routes={"/receipts": echo})
    async with serve(app, "127.0.0.1", 0) as port:
        for name, kind in list(kinds("/receipts", VALIDATOR.ss58_address).items())[:MOST]:
            with attacked(port, kind):
                async with stall(f"{AT_ONCE} connections: {name}"):
                    await asyncio.sleep(SECONDS)


# ---------------------------------------------------------------------------------------------------------------------
# The doors


def be_bot(pipe: Pipe) -> None:
    """The executor bot's door, with no bot behind it."""
    contract = SimpleNamespace(pair=SimpleNamespace(chain_id=1, pool_address="0x"))
    logging.disable()
    bot = SimpleNamespace(live=False, wallet=SimpleNamespace(paused=False, vault="0x", contract=contract))

    async def main() -> None:
        with tempfile.NamedTemporaryFile("w") as key:
            key.write("k" * 32)
            key.flush()
            async with serve(Door(bot, Path(key.name)).app, "127.0.0.1", 0) as port:
                pipe.send(port)
                await asyncio.to_thread(pipe.recv)

    asyncio.run(main())


@contextmanager
def running() -> Iterator[dict[str, tuple[int, str, str, int]]]:
    """The programs; of each door its port, a path to post to, whose key it has, and its program's port of `/health`."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, local = Path(name), ("--dir", name, "--port", 0, "--status-port", 0, "--address-limit", 50)

        def port(file: str, pattern: str) -> int:
            found = lambda: re.search(pattern, (folder / file).read_text())  # noqa: E731
            return int(wait_for(pattern, found)[1])

        page, mine = r"status page: http://127.0.0.1:(\d+)", local_keypair("mine-hotkey").ss58_address
        stack.enter_context(start("validator.py", "--no-miners", "--pace", 1, *local, folder=folder))
        receipts, status = port("validator.err", r"their miners at http://127.0.0.1:(\d+)"), port("validator.err", page)
        stack.enter_context(start("miner.py", *local, folder=folder))
        answers, miner = port("miner.out", r"strategy \S+, 127.0.0.1:(\d+)"), port("miner.err", page)
        here, there = FORK.Pipe()
        FORK.Process(target=be_bot, args=(there,), daemon=True).start()
        door = here.recv()
        yield {
            "validator's status": (status, "/", "", status),
            "receipts": (receipts, "/receipts", VALIDATOR.ss58_address, status),
            "miner's status": (miner, "/", "", miner),
            "answers": (answers, "/rebalance", mine, miner),
            "executor's door": (door, "/orders", "", door),
        }


def health_ms(port: int) -> list[float]:
    """How long each answer of `/health` takes, infinite where there is none."""
    took, until = [], time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < until or len(took) < 5:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=3) as answer:
                answer.read()
            took.append((time.perf_counter() - began) * 1000)
        except OSError:
            took.append(math.inf)
        time.sleep(0.02)
    return took


def print_doors() -> None:
    """Median and slowest `/health` of the program while each kind is at each of its doors."""
    missed = []
    with running() as doors:
        print(f"{'/health, ms':20}" + "".join(f"{name:>20}" for name in doors))
        for name in ["nobody", *kinds("", "")][:MOST]:
            print(f"{name:20}", end="")
            for place, (port, path, receiver, status) in doors.items():
                with attacked(port, kinds(path, receiver).get(name)):
                    time.sleep(0.5)
                    took = health_ms(status)
                print(f"{f'{statistics.median(took):.0f} ({max(took):.0f})':>20}", end="", flush=True)
                missed += [f"{name} at {place}"] * (statistics.median(took) >= HEALTH_MS)
            print()
    well = f"MISSED: {', '.join(missed)}" if missed else "met"
    print(f"median (slowest); target: every median below {HEALTH_MS} ms: {well}")


def main() -> None:
    print(f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print_readers()
    gc.freeze()  # as `runtime/process.py` does
    print(f"\nthe loop stands still for at most (goal {STALL_MS} ms)")
    asyncio.run(print_stalls())
    print()
    print_doors()


if __name__ == "__main__":
    main()
