"""How fast the status server answers with 256 miners and 30 days of rounds, in how much memory, and what pruning frees.

    python bench/status.py              about a minute, 3 GB in a temporary folder; `--quick`: 4 miners, 8 days

One round is really played, by 256 miners on the market model, and stored once for every 15 minutes of 30 days: with its
evidence for the newest `EVIDENCE_DAYS`, as the pruned summary before that. The server is a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has a status.py too

import aiohttp

from audit import stored
from audit.evidence import seal
from chain.local import LocalChain, block_at
from chain.weights import add_weights
from liquidity.rounds import Decision, Round
from markets.model import BLOCK_SECONDS, FIRST_BLOCK, FIRST_TIME, ModelMarket
from protocol import Code, Entrant, Job, JobSettings, MinerMetadata, Moment, Position, RebalanceAnswer
from scoring import RULES_VERSION, Standing, update_eval
from spine.mechanism import load
from status import validator as validator_module
from store import Prediction, Store
from wire.codec import canonical, encode
from wire.signing import local_keypair

MINERS, DAYS = (4, 8) if "--quick" in sys.argv else (256, 30)
EVIDENCE_DAYS, ROUND_SECONDS, ASKS = 7, 900, 3
PRUNED_SECONDS = (EVIDENCE_DAYS + DAYS) // 2 * 86_400  # before the newest round: pruned
ROUNDS = DAYS * 86_400 // ROUND_SECONDS
REPEATS, TARGET_MS = 30, 100
JOB = Job("job", "vault", ROUND_SECONDS, JobSettings.for_target("Balanced"), live=False)
VALIDATOR = local_keypair("validator-hotkey").ss58_address
KEYS = sorted(local_keypair(f"bench-{n}").ss58_address for n in range(MINERS))


def a_market() -> ModelMarket:
    """The model, two hours on."""
    return ModelMarket(98, {"vault": 400_000 * 10**6}, head=FIRST_BLOCK + 7_200 // BLOCK_SECONDS)


async def one_round(store: Store, market: ModelMarket) -> str:
    """Play the round that is then stored again and again: every miner another range, moved at every ask."""
    start = FIRST_TIME + 2 * ROUND_SECONDS
    round_id = f"{JOB.job_id}:evaluation:{start}"
    await store.put_job(JOB)
    await store.begin_round(round_id, JOB, "evaluation", start, RULES_VERSION)
    opening, close = await market.first_block_at(start), await market.first_block_at(start + ROUND_SECONDS)
    snapshot = await market.snapshot(JOB.vault, opening.number)
    events = await market.events(opening.number, close.number - 1)
    await store.open_window(round_id, market.pair.pool_address, snapshot)
    await store.add_events(market.pair.pool_address, opening.number, close.number - 1, events)
    entrants = [Entrant(key, n, Decimal(0)) for n, key in enumerate(KEYS)]
    game = Round(JOB.settings, snapshot)
    for key in KEYS:
        game.enter(key)
    at, asks = 0, []
    for checkpoint in range(ASKS):
        block = opening.number + checkpoint * JOB.settings.checkpoint_blocks
        until = next((n for n, event in enumerate(events) if event.block >= block), len(events))
        game.feed(events[at:until])
        at, head = until, await market.block(block - 1)
        moment = Moment(JOB, market.pair, round_id, "evaluation", start, head, head)
        for n, key in enumerate(KEYS):
            query = game.query(moment, key)
            centre = query.tick // query.tick_spacing * query.tick_spacing
            reach = (n + 2) * query.tick_spacing
            desired = (Position(centre - reach, centre + reach, *query.holdings()),)
            answer = RebalanceAnswer(True, None, desired, MinerMetadata("1.0.0", "bench"))
            game.decide(Decision(key, block, query.current_positions, desired))
            said = encode(query), encode(answer), "ab" * 64
            asks.append(Prediction(round_id, key, block, *said, 1, Code.ACCEPTED, "", block, 0.1))
    game.feed(events[at:])
    await store.add_predictions(asks, entrants)
    result = game.finish(close.number, entrants)
    standings = {
        line.name: update_eval(Standing(), line.score, result.baselines["keep"].score) for line in result.lines
    }
    await store.finish_round(round_id, JOB.job_id, result, close.number, MINERS, standings, start // 86_400)
    evidence = await stored.evidence(store, round_id)
    await store.add_seal(round_id, seal(evidence, local_keypair("validator-hotkey"))["seal"])
    return round_id


def repeat(path: Path, first: str) -> str:
    """Store the round once for every other quarter of an hour of the 30 days; returns the newest one's id."""
    shift = ROUND_SECONDS // BLOCK_SECONDS
    start, newest = int(first.rpartition(":")[2]), first
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(events_of(path))) as events:
        for one in (db, events):
            one.execute("PRAGMA synchronous = OFF")
        columns = [column[1] for column in db.execute("PRAGMA table_info(rounds)")]
        row = dict(zip(columns, db.execute("SELECT * FROM rounds").fetchone(), strict=True))
        state = json.loads(row["vault_state"])
        tables = {
            name: db.execute(f"SELECT * FROM {name}").fetchall() for name in ("scores", "entrants", "predictions")
        }
        (body,), happened = (
            events.execute("SELECT body FROM snapshots").fetchone(),
            events.execute("SELECT * FROM events"),
        )
        happened = happened.fetchall()
        before = start + (ROUNDS - EVIDENCE_DAYS * 86_400 // ROUND_SECONDS) * ROUND_SECONDS
        for n in range(1, ROUNDS):
            begin, blocks = start + n * ROUND_SECONDS, n * shift
            newest, old = f"{first.rpartition(':')[0]}:{begin}", begin < before
            opened = canonical(state | {"block": state["block"] + blocks}).decode()
            db.execute(
                f"INSERT INTO rounds VALUES ({', '.join('?' * len(columns))})",
                [
                    *{
                        **row,
                        "round_id": newest,
                        "start_time": begin,
                        "end_time": begin + ROUND_SECONDS,
                        "opening_block": row["opening_block"] + blocks,
                        "close_block": row["close_block"] + blocks,
                        "vault_state": None if old else opened,
                    }.values()
                ],
            )
            db.executemany(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?)", [(newest, *line[1:]) for line in tables["scores"]]
            )
            db.executemany(
                f"INSERT INTO predictions VALUES ({', '.join('?' * 11)})",
                [
                    (
                        newest,
                        ask[1],
                        ask[2] + blocks,
                        *((b"", b"", "") if old else ask[3:6]),
                        *ask[6:9],
                        ask[9] + blocks,
                        ask[10],
                    )
                    for ask in tables["predictions"]
                ],
            )
            if old:
                db.execute("INSERT INTO pruned VALUES (?, ?)", (newest, before))
            else:
                db.executemany(
                    "INSERT INTO entrants VALUES (?, ?, ?, ?)", [(newest, *e[1:]) for e in tables["entrants"]]
                )
                moved = [(e[0], e[1] + blocks, e[2], e[3] + n * ROUND_SECONDS, *e[4:]) for e in happened]
                events.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", moved)
                pool = json.loads(zlib.decompress(body)) | {"block": state["block"] + blocks}
                values = happened[0][0], state["block"] + blocks, zlib.compress(canonical(pool))
                events.execute("INSERT INTO snapshots VALUES (?, ?, ?)", values)
            for day in {begin // 86_400}:
                rows = [("job", key, day, begin + ROUND_SECONDS) for key in KEYS]
                db.executemany("INSERT OR IGNORE INTO miner_participation VALUES (?, ?, ?, ?)", rows)
            db.commit()
            events.commit()
    return newest


def events_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.events.sqlite3")


async def make(folder: Path) -> str:
    """The ledger with its neurons, and the databases."""
    path, market = folder / "validator.sqlite3", a_market()
    own = VALIDATOR, local_keypair("validator-coldkey").ss58_address
    until = FIRST_TIME + DAYS * 86_400
    async with LocalChain.open(folder / "chain.sqlite3", *own, genesis_block=block_at(until)) as chain:
        await chain.register(*own, 10**14)
        for key in KEYS[: MINERS - 2]:  # the owner and the validator have the other two
            await chain.register(key, own[1])
    async with Store.open(path) as store:
        for key, value in (("market", market.label), ("pool", market.pair.pool_address), ("validator", VALIDATOR)):
            await store.claim(key, value)
        first = await one_round(store, market)
        share = Decimal(1) / MINERS
        vector = dict.fromkeys(KEYS, share) | {"burn": Decimal(0)}
        await add_weights(store, until, block_at(until), vector, {}, Code.WEIGHTS_SET, "", "", block_at(until) + 360)
    return await asyncio.to_thread(repeat, path, first)


async def serve(folder: Path) -> None:
    """The server, until its standard input closes."""
    options = SimpleNamespace(status_host="127.0.0.1", status_port=0, pace=None)
    own = VALIDATOR, local_keypair("validator-coldkey").ss58_address

    def ground(chain: LocalChain) -> SimpleNamespace:
        path, key = folder / "validator.sqlite3", local_keypair("validator-hotkey")
        return SimpleNamespace(path=path, chain=chain, market=a_market(), keypair=key, names={}, local=True)

    async with (
        LocalChain.open(folder / "chain.sqlite3", *own) as chain,
        validator_module.serve_validator(ground(chain), options, load()) as url,
    ):
        print(url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def measure(url: str, newest: str, pid: int) -> bool:
    """Ask for everything, print how long it took; returns whether all medians are within the target."""
    job, start = newest.rpartition(":")[0], int(newest.rpartition(":")[2])
    others = [f"{job}:{start - n * ROUND_SECONDS}" for n in range(1, REPEATS + 1)]
    paths = {
        "page": ["/"] * REPEATS,
        "page, a round": [f"/?round={newest}"] * REPEATS,
        "page, a round not seen before": [f"/?round={other}" for other in others],
        "page, a miner": [f"/?miner={key}" for key in KEYS[:REPEATS]],
        "/health": ["/health"] * REPEATS,
        "/status": ["/status"] * REPEATS,
        "/metrics": ["/metrics"] * REPEATS,
        "/jobs/JOB": ["/jobs/job"] * REPEATS,
        "/rounds": ["/rounds"] * REPEATS,
        "/rounds/ID": [f"/rounds/{other}" for other in others],
        "/panels/ID": [f"/panels/{newest}?miner={key}" for key in KEYS[:REPEATS]],
        "/scores/HOTKEY": [f"/scores/{key}" for key in KEYS[:REPEATS]],
        "/scores/HOTKEY, pruned": [f"/scores/{key}?before={job}:{start - PRUNED_SECONDS}" for key in KEYS[:REPEATS]],
    }
    well = True
    print(f"{'':32}{'median':>9}{'slowest':>9}{'size':>10}")
    async with aiohttp.ClientSession() as session:
        for name, asked in paths.items():
            took, size = [], 0
            for path in asked:
                began = time.perf_counter()
                async with session.get(url + path) as answer:
                    size = len(await answer.read())
                    assert answer.status == 200, (path, answer.status)
                took.append((time.perf_counter() - began) * 1000)
            median = statistics.median(took)
            well &= median < TARGET_MS
            print(f"{name:32}{median:6.1f} ms{max(took):6.0f} ms{size / 1000:7.0f} kB")
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(f"peak memory of the server's process: {int(peak.split()[1]) * 1024 / 1e6:.0f} MB")
    return well


async def prune(path: Path) -> None:
    """What pruning one more day does."""
    with closing(sqlite3.connect(path)) as db:
        (until,) = db.execute("SELECT max(before) FROM pruned").fetchone()
    async with Store.open(path) as store:
        began = time.perf_counter()
        count = await stored.prune(store, until + 86_400)
        seconds = time.perf_counter() - began
    print(
        f"pruning a day: {count} rounds in {seconds:.1f} s, {seconds / count * 1000:.0f} ms a round, each its own step"
    )


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        return asyncio.run(serve(Path(sys.argv[2])))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        began = time.perf_counter()
        newest = asyncio.run(make(folder))
        path = folder / "validator.sqlite3"
        total = (os.path.getsize(path) + os.path.getsize(events_of(path))) / 1e9
        print(
            f"{MINERS} miners, {ROUNDS} rounds in {DAYS} days, {ASKS} asks each; evidence of {EVIDENCE_DAYS} days:"
            f" {total:.1f} GB (made in {time.perf_counter() - began:.0f} s)"
        )
        command = [sys.executable, __file__, "--serve", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            try:
                url = server.stdout.readline().strip()
                well = asyncio.run(measure(url, newest, server.pid))
            finally:
                server.stdin.close()
        asyncio.run(prune(path))
    print(f"target: every median below {TARGET_MS} ms: {'met' if well else 'MISSED'}")


if __name__ == "__main__":
    main()
