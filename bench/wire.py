"""How many signed asks a second one validator process makes: sign, HTTP, verify the signed answer.

Run: `python bench/wire.py [--rounds N]`. A second process serves 64 miners, each on its own port of the loopback
interface with the real pipeline of `wire.build_app`. This one asks all of them at the same time, each again as soon as
it has answered; every answer is verified. Queries are 2 kB, answers 600 bytes, about as long as real ones.
Two figures each, because other work may share the cores: asks per wall second, and per second of this process's CPU.
Read next: `wire.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a wire.py too

import aiohttp
from bittensor.sp_core import Keypair

from protocol import MAX_ANSWER_BYTES, Code
from wire import client, server
from wire import signing as signing_module

MINERS = 64
QUERY, ANSWER = b"q" * 2048, b"a" * 600
NO_LIMITS = server.Limits(address_per_second=1e9, address_burst=1e9, hotkey_per_second=1e9, hotkey_burst=1e9)


def keypair_of(name: str) -> Keypair:
    return Keypair.create_from_uri(f"//{name}")


async def serve_miners() -> None:
    """Serve every miner, print their ports as one JSON line, and stop when standard input is closed."""
    callers = {keypair_of("validator").ss58_address: (True, 0)}
    gate = server.Gate(lambda: (callers, 0.0), min_stake_rao=0)

    async def answer(caller: str, body: bytes) -> bytes:
        return ANSWER

    async with AsyncExitStack() as stack:
        ports = []
        for n in range(MINERS):
            app = server.build_app(
                keypair=keypair_of(f"miner{n}"), gate=gate, routes={"/rebalance": answer}, limits=NO_LIMITS
            )
            ports.append(await stack.enter_async_context(server.serve(app, "127.0.0.1", 0)))
        print(json.dumps(ports), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def measure(ports: list[int], rounds: int) -> None:
    """Ask every miner `rounds` times, each ask on a connection of its own as always, and print the rate."""
    validator = keypair_of("validator")
    peers = [(f"http://127.0.0.1:{p}/rebalance", keypair_of(f"miner{n}").ss58_address) for n, p in enumerate(ports)]

    async def ask_one(session: aiohttp.ClientSession, url: str, hotkey: str, times: int) -> None:
        for _ in range(times):
            reply = await client.ask(
                session,
                url,
                QUERY,
                keypair=validator,
                receiver=hotkey,
                total_seconds=60,
                max_reply_bytes=MAX_ANSWER_BYTES,
            )
            if reply.code is not Code.ACCEPTED or reply.body != ANSWER:
                sys.exit(f"an ask failed: {reply.code} {reply.detail}")

    async def ask_all(times: int) -> None:
        async with client.client_session(MINERS) as session:
            await asyncio.gather(*(ask_one(session, url, hotkey, times) for url, hotkey in peers))

    await ask_all(10)  # warm up
    print_rate("signed asks", await timed(ask_all(rounds)), rounds * MINERS)


async def timed(work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    await work
    return time.perf_counter() - wall, time.process_time() - cpu


def print_rate(what: str, seconds: tuple[float, float], count: int) -> None:
    wall, cpu = seconds
    print(f"{what} {count / wall:7,.0f} /s wall  {count / cpu:7,.0f} /s CPU  {cpu / count * 1e6:4.0f} us CPU each")


def print_signing() -> None:
    """The part of an ask that is cryptography, in the same process and minute."""
    keypair, nonce = keypair_of("validator"), 1
    signature = keypair.sign(
        signing_module.answer_payload("0" * 64, nonce, keypair.ss58_address, keypair.ss58_address, ANSWER)
    )
    stored = {
        "request_digest": "0" * 64,
        "nonce": nonce,
        "validator_hotkey": keypair.ss58_address,
        "miner_hotkey": keypair.ss58_address,
        "body": ANSWER,
        "signature": signature.hex(),
    }
    count, cpu = 2000, time.process_time()
    for _ in range(count):
        server.http_auth.sign(
            keypair, method="POST", path="/rebalance", body=QUERY, receiver_ss58=stored["miner_hotkey"]
        )
    signing = time.process_time() - cpu
    for _ in range(count):
        assert signing_module.verify_answer(**stored)
    verifying = time.process_time() - cpu - signing
    print(f"of that: signing {signing / count * 1e6:.0f} us, verifying the answer {verifying / count * 1e6:.0f} us")


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help=f"asks of each of the {MINERS} miners")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve_miners())
        return
    print(
        f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"aiohttp {version('aiohttp')}, bittensor {version('bittensor')}"
    )
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as miners:
        asyncio.run(measure(json.loads(miners.stdout.readline()), options.rounds))
        miners.stdin.close()
    print_signing()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory of this process: {peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MB")


if __name__ == "__main__":
    main()
