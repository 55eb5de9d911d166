"""Whole subnets for tests: the programs as processes, or a validator in this process with scripted miners on loopback.

Nothing is faked: the same validator, ledger, market and signed HTTP; only what a miner says is the test's. `rebuilt`
and `standings` are oracles: they know the databases' columns and the published formulas, and share no code with the
validator. Used by `test_validator.py`, `test_miner.py` and `test_runtime.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import lzma
import os
import socket
import sqlite3
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from chain.local import LocalChain, block_at
from liquidity.events import Event
from liquidity.executions import execution_of
from liquidity.live import LiveInputs, play_live
from liquidity.replay import Snapshot
from liquidity.rounds import Decision, RoundInputs, play
from markets.base import Market
from markets.model import ModelMarket
from protocol import Entrant, Job, JobSettings, MinerMetadata, Position, RebalanceAnswer, RebalanceQuery, RoundResult
from spine.mechanism import Mechanism, load, settings_of
from store import Store
from validator import Validator, build_parser
from wire.client import client_session
from wire.codec import decode, encode, from_plain
from wire.server import Gate, Limits, build_app, serve
from wire.signing import local_keypair

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_SECONDS = 120  # for anything that a test waits for; reached only when something hangs
VAULT, CAPITAL = "vault", 400_000 * 10**6
FAST = Limits(address_per_second=1e6, address_burst=1e6, hotkey_per_second=1e6, hotkey_burst=1e6)

Handler = Callable[[RebalanceQuery], Any]
"""What a scripted miner says: an answer, a list of positions, bytes, or an awaitable of one of them."""


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess:
    """Run one of the programs to its end: `command("validator.py", "--rounds", 3)`."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": DEADLINE_SECONDS, **options},
    )


def called(words: Sequence[str]) -> tuple[ModuleType, Sequence[str]]:
    """Which module `python WORDS` runs, and the words that are for it: `miner.py --port 0`, `-m executor serve`."""
    if words[0] == "-m":
        return importlib.import_module(f"{words[1]}.__main__"), words[2:]
    assert (ROOT / words[0]).is_file(), words
    return importlib.import_module(words[0].removesuffix(".py").replace("/", ".")), words[1:]


class Process(subprocess.Popen):
    """One that does not outlive its `with`, whatever a test finds."""

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(*error)


def start(*arguments: object, folder: Path) -> Process:
    """Start one of the programs; its output goes to `PROGRAM.out` and `PROGRAM.err` in `folder`."""
    folder.mkdir(exist_ok=True)
    name = Path(str(arguments[0])).stem
    with open(folder / f"{name}.out", "ab") as out, open(folder / f"{name}.err", "ab") as err:
        return Process([sys.executable, *map(str, arguments)], cwd=ROOT, stdout=out, stderr=err)


def wait_for(what: str, look: Callable[[], Any], process: subprocess.Popen | None = None) -> Any:
    """Look until there is something; fails when a process that must live is gone, and after the deadline."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not (found := look()):
        assert process is None or process.poll() is None, f"the process ended before {what}"
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


def forked(work) -> int:
    """Run `work` in a process of its own; returns its exit status."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def rows(path: Path, sql: str, *parameters: object) -> list[tuple]:
    """What another program sees in the file; nothing while it is not there yet."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return db.execute(sql, parameters).fetchall()
    return []


def write(path: Path, sql: str, *parameters: object) -> None:
    """A second connection changes something."""
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        db.execute(sql, parameters)


async def write_meanwhile(path: Path, sql: str, *parameters: object) -> None:
    """The same while a subnet runs in this process, which goes on."""
    await asyncio.to_thread(write, path, sql, *parameters)


def listening(addresses: Sequence[str]) -> list[str]:
    """Which of these `host:port` still take connections."""
    found = []
    for address in addresses:
        host, port = address.rsplit(":", 1)
        with suppress(OSError), closing(socket.create_connection((host, int(port)), timeout=5)):
            found.append(address)
    return found


def endpoints(folder: Path) -> list[str]:
    """The addresses of the miners and of the validator, as the ledger has them."""
    return [address for (address,) in rows(folder / "chain.sqlite3", "SELECT address FROM neurons WHERE address != ''")]


def cut_recording(source: Path, target: Path, seconds: int, change: Callable = list) -> Path:
    """The first `seconds` of a recording, without the final state; `change` gets its lines as lists of fields."""
    meta = json.loads(Path(f"{source}.json").read_text())
    del meta["final"]
    until = meta["start"]["time"] + seconds
    header, *lines = lzma.decompress(Path(f"{source}.events.csv.xz").read_bytes()).decode().splitlines()
    cut = change([fields for line in lines if int((fields := line.split(","))[2]) < until])
    Path(f"{target}.json").write_text(json.dumps(meta))
    Path(f"{target}.events.csv").write_text("\n".join([header, *map(",".join, cut), ""]))
    return target


def swaps_between(lines: list[list[str]], first: int, last: int) -> list[list[str]]:
    """Swaps of a part of the recording, in seconds from its first line."""
    begin = int(lines[0][2])
    return [fields for fields in lines if fields[3] == "swap" and first < int(fields[2]) - begin < last]


# ---------------------------------------------------------------------------------------------------------------------
# A validator in this process


def hotkey_of(name: str) -> str:
    return local_keypair(f"{name}-hotkey").ss58_address


def accept(positions: Sequence[Position], accepted: bool = True, reason: str | None = None) -> RebalanceAnswer:
    return RebalanceAnswer(accepted, reason, tuple(positions), MinerMetadata("1", "scripted"))


def refuse(reason: str = "not today") -> RebalanceAnswer:
    return accept((), accepted=False, reason=reason)


def keep(query: RebalanceQuery) -> RebalanceAnswer:
    return accept(query.current_positions)


def a_job(job_id: str = "job", target: str = "PoL", live: bool = False, round_seconds: int = 900, **settings) -> Job:
    return Job(job_id, VAULT, round_seconds, JobSettings.for_target(target, **settings), live)


def model(seed: int = 5, **options) -> ModelMarket:
    return ModelMarket(seed, {VAULT: CAPITAL}, **options)


@dataclass
class Subnet:
    """A validator that has worked, and what is left of it.

    Attributes:
        path, folder: its jobs database, and where all its files are.
        asked: by miner's name, the queries it got, in order.
        validator: the object itself.
    """

    folder: Path
    asked: dict[str, list[RebalanceQuery]] = field(default_factory=dict)
    validator: Validator | None = None

    @property
    def path(self) -> Path:
        return self.folder / "validator.sqlite3"

    def rows(self, sql: str, *parameters: object) -> list[tuple]:
        return rows(self.path, sql, *parameters)

    def codes(self, round_type: str = "evaluation") -> list[str]:
        """How the rounds of one type ended, in order."""
        sql = "SELECT code FROM rounds WHERE round_type = ? ORDER BY start_time, round_id"
        return [code for (code,) in self.rows(sql, round_type)]

    def asks(self, name: str, round_type: str = "evaluation") -> list[tuple]:
        """(code, detail, effective block, due block) of a miner's asks, in order."""
        sql = (
            "SELECT p.code, p.detail, p.effective_block, p.due_block FROM predictions p JOIN rounds r USING (round_id)"
            " WHERE hotkey = ? AND round_type = ? ORDER BY start_time, due_block"
        )
        return self.rows(sql, hotkey_of(name), round_type)

    def ranked(self) -> list[str]:
        """Names of the ranked miners of all rounds, by round and rank."""
        names = {hotkey_of(name): name for name in self.asked}
        return [names[hotkey] for (hotkey,) in self.rows("SELECT hotkey FROM scores ORDER BY round_id, rank")]


def play_subnet(
    folder: Path,
    miners: Mapping[str, Handler],
    jobs: Sequence[Job] = (),
    market: Callable[[], Market] = model,
    prepare: Callable[[Subnet, Store, LocalChain, Market], Awaitable[None]] | None = None,
    rounds: int | None = 1,
    mechanisms: Mapping[str, Mechanism] | None = None,
    routes: Callable[[str], dict] = lambda name: {},
    **options: object,
) -> Subnet:
    """Let a validator work over a ledger, a market and scripted miners until it ends.

    Args:
        folder: of all files; an earlier subnet there goes on.
        miners: what each says, by name; its key is the one that `miner.py --name NAME` would have.
        jobs: added before the start.
        prepare: awaited with the parts before the start.
        rounds: `--rounds`.
        mechanisms: those that there are, by name; None for those that come with the program.
        routes: what else a miner's server answers, by the miner's name.
        options: further options of the program, by their names.
    """
    subnet = Subnet(folder, {name: [] for name in miners})
    arguments = [] if rounds is None else ["--rounds", str(rounds)]
    arguments += [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]

    async def work() -> None:
        async with AsyncExitStack() as stack:
            enter, venue = stack.enter_async_context, market()
            known = mechanisms or load()
            store = await enter(Store.open(subnet.path, settings_of(known)))
            key = local_keypair("validator-hotkey")
            for name, value in (
                ("market", venue.label),
                ("pool", venue.pair.pool_address),
                ("validator", key.ss58_address),
            ):
                await store.claim(name, value)
            wallet = key.ss58_address, local_keypair("validator-coldkey").ss58_address
            ledger, now = folder / "chain.sqlite3", (await venue.head()).time
            chain = await enter(
                LocalChain.open(
                    ledger,
                    *wallet,
                    clock=None if venue.full_speed else time.time,
                    genesis_block=block_at(now) if venue.full_speed else None,
                )
            )
            await chain.register(*wallet, 100_000 * 10**9)
            for name, handler in miners.items():
                await enter(Served(name, handler, subnet.asked[name], chain, ledger, wallet[0], routes(name)))
            for job in jobs:
                await store.put_job(job)
            session = await enter(client_session(0))
            subnet.validator = Validator(
                store,
                chain,
                venue,
                session,
                key,
                build_parser().parse_args(arguments),
                {hotkey_of(n): n for n in miners},
                mechanisms=known,
            )
            if prepare:
                await prepare(subnet, store, chain, venue)
            await subnet.validator.work()
            subnet.validator.board.show_latest()

    asyncio.run(asyncio.wait_for(work(), DEADLINE_SECONDS))
    return subnet


class Served:
    """A scripted miner, registered and listening."""

    def __init__(
        self, name: str, handler: Handler, asked: list, chain: LocalChain, ledger: Path, validator: str, routes: dict
    ):
        self.routes = routes
        self.name, self.handler, self.asked, self.chain, self.ledger = name, handler, asked, chain, ledger
        self.gate = Gate(lambda: ({}, 0.0), min_stake_rao=0, allow=frozenset({validator}))
        self.stack = AsyncExitStack()

    async def _answer(self, caller: str, body: bytes) -> bytes:
        query = decode(RebalanceQuery, body, len(body))
        self.asked.append(query)
        said = self.handler(query)
        if asyncio.iscoroutine(said):
            said = await said
        return said if isinstance(said, bytes) else encode(said if isinstance(said, RebalanceAnswer) else accept(said))

    async def __aenter__(self) -> None:
        wallet = [local_keypair(f"{self.name}-{kind}").ss58_address for kind in ("hotkey", "coldkey")]
        await self.chain.register(*wallet)
        key = local_keypair(f"{self.name}-hotkey")
        app = build_app(keypair=key, gate=self.gate, routes={"/rebalance": self._answer, **self.routes}, limits=FAST)
        port = await self.stack.enter_async_context(serve(app, "127.0.0.1", 0))
        own = await self.stack.enter_async_context(LocalChain.open(self.ledger, *wallet))
        assert (await own.serve("127.0.0.1", port)).ok

    async def __aexit__(self, *error: object) -> None:
        await self.stack.aclose()


# ---------------------------------------------------------------------------------------------------------------------
# Oracles: a round from its two databases, reputations from the scores


def stored_rounds(path: Path, round_type: str = "evaluation", code: str = "scored") -> list[str]:
    sql = "SELECT round_id FROM rounds WHERE round_type = ? AND code = ? ORDER BY start_time, round_id"
    return [round_id for (round_id,) in rows(path, sql, round_type, code)]


def stored_lines(path: Path, round_id: str) -> dict[str, dict]:
    """Every line of a round as it is stored: miners by hotkey, and the baselines."""
    lines = {
        hotkey: json.loads(line)
        for hotkey, line in rows(path, "SELECT hotkey, line FROM scores WHERE round_id = ?", round_id)
    }
    ((summary,),) = rows(path, "SELECT summary FROM rounds WHERE round_id = ?", round_id)
    return lines | {name: line for name, line in json.loads(summary).items() if name in ("keep", "hold", "best")}


def rebuilt(path: Path, round_id: str) -> RoundResult:
    """Play a stored round again from nothing but what the two databases hold of it."""
    ((settings, opening, close, vault, round_type),) = rows(
        path,
        "SELECT settings, opening_block, close_block, vault_state, round_type FROM rounds WHERE round_id = ?",
        round_id,
    )
    events_path = path.with_name(f"{path.stem}.events.sqlite3")
    ((pool, body),) = rows(events_path, "SELECT pool, body FROM snapshots WHERE block = ?", opening)
    market_state, vault_state = json.loads(zlib.decompress(body)), json.loads(vault)
    for name in ("vault", "idle0", "idle1", "vault_owner"):
        market_state[name] = vault_state[name]
    snapshot = from_plain(Snapshot, market_state)
    events = []
    for block, log, when, kind, text in rows(
        events_path,
        "SELECT block, log_index, time, kind, args FROM events WHERE pool = ? AND block >= ? AND block < ?"
        " ORDER BY block, log_index",
        pool,
        opening,
        close,
    ):
        first, *rest = json.loads(text)
        first = int(first) if kind in ("flash", "set_fee_protocol", "collect_protocol") else first
        events.append(Event(block, log, when, kind, (first, *map(int, rest))))
    decisions = []
    for hotkey, query, answer, block in rows(
        path,
        "SELECT hotkey, query, answer, effective_block FROM predictions WHERE round_id = ? AND code = 'accepted'",
        round_id,
    ):
        asked = decode(RebalanceQuery, zlib.decompress(query), 1 << 20)
        said = decode(RebalanceAnswer, answer, 1 << 20)
        if block < close:
            decisions.append(Decision(hotkey, block, asked.current_positions, said.desired_positions))
    rules = from_plain(JobSettings, json.loads(settings))
    if round_type == "live":
        winner = decisions[0].hotkey
        executions = [
            execution_of(json.loads(text))
            for (text,) in rows(
                path, "SELECT execution FROM live_executions WHERE round_id = ? ORDER BY block", round_id
            )
        ]
        return play_live(LiveInputs(rules, snapshot, close, tuple(events), winner, tuple(executions)))
    entrants = tuple(
        Entrant(hotkey, registered, Decimal(combined))
        for hotkey, registered, combined in rows(
            path, "SELECT hotkey, registered_block, combined FROM entrants WHERE round_id = ?", round_id
        )
    )
    return play(RoundInputs(rules, snapshot, close, tuple(events), entrants, tuple(decisions)))


def standings(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Reputations from the stored scores alone, by job and hotkey: 0.9 old + 0.1 new, live 0.7 and 0.3, 120 digits."""
    found: dict[tuple[str, str], list[Decimal]] = {}
    with localcontext(prec=120, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999):
        for job, round_type, hotkey, score, summary in rows(
            path,
            "SELECT job_id, round_type, hotkey, score, summary FROM scores JOIN rounds USING (round_id)"
            " ORDER BY end_time, round_id",
        ):
            mine = found.setdefault((job, hotkey), [Decimal(0)] * 4)
            at, old = (0, Decimal("0.9")) if round_type == "evaluation" else (1, Decimal("0.7"))
            excess = Decimal(score) - Decimal(json.loads(summary)["keep"]["score"])
            mine[at] = old * mine[at] + (1 - old) * Decimal(score)
            mine[at + 2] = old * mine[at + 2] + (1 - old) * excess
    return {key: tuple(map(str, numbers)) for key, numbers in found.items()}


def stored_standings(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """The same as the validator remembers them."""
    sql = "SELECT job_id, hotkey, eval_seed, live_seed, eval_excess, live_excess FROM miner_scores"
    return {(job, hotkey): tuple(numbers) for job, hotkey, *numbers in rows(path, sql)}
