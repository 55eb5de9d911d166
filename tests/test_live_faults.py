"""Live rounds where everything goes wrong: foreign transfers, a bot that dies, a killed validator, reorganisations.

One chain, one bot and the jobs of five vaults live through eight rounds, thirty times as fast as ours; the functions
from `killed_between_answer_and_execution` on say what goes wrong in which. The miners run in this process, and look at
the chain's newest block before they answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anvil
import pytest
from street import (
    API_KEY,
    PACE,
    WALLET,
    ExecutorBot,
    Street,
    Subprocesses,
    executor,
    subprocesses,
    validating,
    work_until,
)
from subnets import (
    CAPITAL,
    VAULT,
    Served,
    a_job,
    accept,
    forked,
    hotkey_of,
    play_subnet,
    rows,
    standings,
    stored_lines,
    stored_standings,
    wait_for,
    write,
)

from audit import stored
from audit.checks import audit
from chain.local import LocalChain
from evm.abi import Function
from evm.audit import audit_chain
from evm.market import Web3Market
from executor import client
from liquidity.executions import Order, Report
from liquidity.live import gifts_of, words_of
from markets.base import MarketError
from markets.model import FIRST_BLOCK, ModelMarket
from protocol import Block, Code, Position, RebalanceQuery
from spine.asking import Asker
from store import Store
from validator import build_parser

pytestmark = pytest.mark.costly("live rounds on anvil")  # of which `test_live.py` plays some on every Python

ROUND_SECONDS = 330
DAY = 86_400
CONFIRMATIONS = 3
KILLS, FOREIGN, CLEAN, SHALLOW, DEEP, DEAD = range(2, 8)  # rounds, counted from the first one
DEADLINE_SECONDS = 180
TOKEN_OF = Function("tokenOfOwnerByIndex(address,uint256)", "uint256")
POSITION = Function("positions(uint256)", *["uint256"] * 7, "uint128", *["uint256"] * 4)


class Line:
    """A way to the chain that can be cut."""

    def __init__(self, url: str):
        self._host, self._port = url.removeprefix("http://").split(":")
        self.dead, self._writers = False, set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """End all connections; nothing passes before `dead` is False again."""
        self.dead = True
        for writer in self._writers:
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.dead:
            return writer.transport.abort()
        there, back = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._writers -= {writer, back}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


class World:
    """What outlives a validator: the street, the bot, all files, and what the miners saw."""

    def __init__(self, folder: Path, street: Street, programs: Subprocesses, bot: ExecutorBot):
        self.folder, self.street, self.programs, self.bot = folder, street, programs, bot
        self.path, self.line = folder / "validator.sqlite3", Line(street.chain.url)
        self.first = 0  # the first round's start
        self.seen: list[tuple[str, str, int, int]] = []  # round, miner, block of the query, newest block at the answer
        self.replaced = 0, ""  # number and old hash of a block that a reorganisation replaced
        self.before_deep: dict = {}  # evidence of the round before the deep reorganisation

    def start(self, n: int) -> int:
        return self.first + n * ROUND_SECONDS

    def live(self, job: str, n: int) -> str:
        return f"{job}:live:{self.start(n)}"

    def ended(self, round_id: str) -> tuple[str, str] | None:
        """Code and detail of a round that is over."""
        sql = "SELECT code, detail FROM rounds WHERE round_id = ? AND code IS NOT NULL"
        return next(iter(rows(self.path, sql, round_id)), None)

    def executions(self, round_id: str) -> list[dict]:
        sql = "SELECT execution FROM live_executions WHERE round_id = ? ORDER BY block"
        return [json.loads(text) for (text,) in rows(self.path, sql, round_id)]

    async def until(self, time_seconds: int) -> None:
        while self.street.time < time_seconds:
            await asyncio.sleep(0.02)

    def token(self, vault: str) -> int:
        return self.street.chain.call(self.street.uniswap.manager, TOKEN_OF, vault, 0)[0]

    def nonce(self, block: str) -> int:
        return int(self.street.chain.rpc("eth_getTransactionCount", self.street.vault, block), 16)

    # -- who is asked

    async def mover(self, query: RebalanceQuery):
        """Moves the first vault at every ask, the others never."""
        self.look(query, "mover")
        if query.sn_liquidity_manager_address != self.street.vault:
            return accept(query.current_positions)
        step = query.tick_spacing * (4 + query.block_number % 3)
        middle = query.tick // query.tick_spacing * query.tick_spacing
        return accept([Position(middle - step, middle + step, *query.holdings())])

    async def keeper(self, query: RebalanceQuery):
        """Answers late, and knows the chain's newest block when it does; never wins where the other one moves."""
        if query.block_time > query.window_start_time:
            await asyncio.sleep(query.block_number % 5 / 10)
        self.look(query, "keeper")
        return accept(() if query.sn_liquidity_manager_address == self.street.vault else query.current_positions)

    def look(self, query: RebalanceQuery, name: str) -> None:
        self.seen.append((query.round_id, name, query.block_number, self.street.chain.height))


async def prepare(world: World) -> None:
    """Jobs, and seven days on which both miners were ranked."""
    vaults = world.street.vaults
    jobs = {"main": vaults[0], "twin": vaults[0], "wei": vaults[1], "token": vaults[2], "dust": vaults[3]}
    jobs |= {"hand": vaults[4], "short": vaults[4]}
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(
            LocalChain.open(world.folder / "chain.sqlite3", *WALLET, clock=time.time)
        )
        store = await stack.enter_async_context(Store.open(world.path))
        await chain.register(*WALLET, 100_000 * 10**9)
        for job_id, vault in jobs.items():
            length = 240 if job_id == "short" else ROUND_SECONDS
            job = a_job(job_id, "MaxFees", live=True, round_seconds=length, checkpoint_blocks=20)
            await store.put_job(replace(job, vault=vault))
    for name in ("mover", "keeper"):
        for day in range(1, 8):
            for job_id in jobs:
                sql, at = "INSERT INTO miner_participation VALUES (?, ?, ?, ?)", world.street.time - day * DAY
                write(world.path, sql, job_id, hotkey_of(name), at // DAY, at)


async def play(world: World, done, troubles=None) -> None:
    """A validator with two miners, until something is so; `troubles` go on beside it."""
    async with AsyncExitStack() as stack:
        enter, ledger = stack.enter_async_context, world.folder / "chain.sqlite3"
        url, chain = await enter(world.line.open()), await enter(LocalChain.open(ledger, *WALLET))
        for name, handler in (("mover", world.mover), ("keeper", world.keeper)):
            await enter(Served(name, handler, [], chain, ledger, WALLET[0], {}))
        limits = {"total_seconds": 60 / PACE, "attempt_seconds": 15 / PACE}
        validator = await enter(validating(world.folder, world.street, world.bot.url, CONFIRMATIONS, url=url, **limits))
        task = asyncio.create_task(troubles(world)) if troubles else None
        if task:
            stack.push_async_callback(_ended, task)

        def over() -> bool:
            if task and task.done():
                task.result()
            return done() and (task is None or task.done())

        await work_until(validator, world.street, over, DEADLINE_SECONDS)


async def _ended(task: asyncio.Task) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_between_answer_and_execution(world: World) -> None:
    """In a forked process: all rounds up to the first live decision of `KILLS`."""
    Web3Market.execute = die
    asyncio.run(play(world, lambda: False))


def killed_between_execution_and_note(world: World) -> None:
    """In a forked process: goes on, and dies when the next decision is on the chain and not yet in the database."""
    add_execution, noted, world.street.pace = Store.add_execution, [], 12

    async def add(store, round_id, block, execution):
        if noted:
            die()
        noted.append(await add_execution(store, round_id, block, execution))

    Store.add_execution = add
    asyncio.run(play(world, lambda: False))


async def foreign(world: World) -> None:
    """In one round: the bot's key is wrong for a while, then it dies with an order on its way and comes back;
    strangers send one wei, a position, and dust into a position; an owner moves one by hand."""
    street, uniswap, key_file = world.street, world.street.uniswap, world.folder / "api.key"
    await world.until(world.start(FOREIGN) - 20)
    key_file.write_text("not what the validator was told")
    await world.until(world.start(FOREIGN) - 4)
    street.pace = 10
    await world.until(world.start(FOREIGN) + 24)
    dead = asyncio.Event()
    loop = asyncio.get_running_loop()

    def kill_when_sent() -> None:
        if world.nonce("pending") > world.nonce("latest"):
            world.bot.kill()
            street.before = None
            loop.call_soon_threadsafe(dead.set)

    street.before = kill_when_sent
    key_file.write_text(API_KEY)
    await dead.wait()
    await world.until(street.time + 10)
    await back(world)
    await world.until(world.start(FOREIGN) + 100)
    _, wei, token, dust, hand = street.vaults
    uniswap.send(uniswap.token0, "transfer(address,uint256)", wei, 1)
    uniswap.mint(uniswap.boss, -600, 600, 10**15, 10**15)
    uniswap.increase(uniswap.boss, world.token(dust), 10**12, 10**12)
    uniswap.decrease(hand, world.token(hand), 10**12)
    await world.until(street.time + 8)
    signature = "transferFrom(address,address,uint256)"
    uniswap.send(uniswap.manager, signature, uniswap.boss, token, world.token(uniswap.boss))


async def back(world: World) -> None:
    """The bot comes up; meanwhile chain time hardly passes."""
    world.street.pace = 5
    world.bot.begin()
    while not world.bot.ready():
        await asyncio.sleep(0.02)
    world.street.pace = PACE


async def clean(world: World) -> None:
    """The bot is dead from before the opening until nobody asks it any more; the chain is silent for a minute."""
    await world.until(world.start(CLEAN) - 30)
    world.bot.kill()
    await world.until(world.start(CLEAN) + 110)
    world.line.cut()
    await world.until(world.start(CLEAN) + 170)
    world.line.dead = False
    while not world.ended(world.live("main", CLEAN)):
        await asyncio.sleep(0.05)
    await back(world)
    await world.until(world.start(CLEAN + 1) - 100)
    write(world.path, "UPDATE jobs SET active = 0 WHERE job_id != 'main'")


async def shallow(world: World) -> None:
    """When two blocks are on top of the first one in which the bot has done something, all three are replaced."""
    street, done, kept = world.street, asyncio.Event(), []
    rpc, loop = street.chain.rpc, asyncio.get_running_loop()
    await world.until(world.start(SHALLOW) - 4)
    nonce = world.nonce("latest")

    def replace_three() -> None:
        height = street.chain.height
        if len(kept) >= 3 and world.nonce("latest") > nonce and world.nonce(hex(height - 3)) == nonce:
            world.replaced = height - 2, rpc("eth_getBlockByNumber", hex(height - 2), False)["hash"]
            assert rpc("evm_revert", kept[-3]) and world.nonce("latest") == nonce
            street.before = None
            loop.call_soon_threadsafe(done.set)
        else:
            kept.append(rpc("evm_snapshot"))

    street.before = replace_three
    await done.wait()


async def deep(world: World) -> None:
    """When the round before is finished and a decision of this one is noted, more than this round is replaced."""
    street, done, kept = world.street, asyncio.Event(), []
    rpc, loop = street.chain.rpc, asyncio.get_running_loop()
    await world.until(world.start(DEEP) - 14)

    def remember() -> None:
        kept.extend((rpc("evm_snapshot"), street.time))
        street.before = None

    street.before = remember
    before = [world.live("main", SHALLOW), f"main:evaluation:{world.start(SHALLOW)}"]
    while not (world.executions(world.live("main", DEEP)) and all(map(world.ended, before))):
        await asyncio.sleep(0.05)
    async with Store.open(world.path) as store:
        world.before_deep = {round_id: await stored.evidence(store, round_id) for round_id in before}

    def replace_all() -> None:
        street.before, until = None, street.time
        assert rpc("evm_revert", kept[0])
        street.time = kept[1]
        while street.time < until:
            street.block()
        loop.call_soon_threadsafe(done.set)

    street.before = replace_all
    await done.wait()


async def dead(world: World) -> None:
    """Nobody answers for the chain from before a round's first ask until after its opening."""
    await world.until(world.start(DEAD) - 80)
    world.line.cut()
    await world.until(world.start(DEAD) + 10)
    world.line.dead = False


async def every_trouble(world: World) -> None:
    for trouble in (foreign, clean, shallow, deep, dead):
        await trouble(world)


@pytest.fixture(scope="module")
def by_the_clock(tmp_path_factory, missing):
    """`validator.py --rpc` as its user starts it, on a chain that goes by our clock; it works while all others do."""
    if anvil.missing():
        missing(anvil.missing())
    folder = tmp_path_factory.mktemp("clock")
    with anvil.Chain() as chain, subprocesses(folder) as programs:
        road = Street(chain, seed=6)
        chain.rpc("evm_setIntervalMining", 2)
        options = ["--rpc", chain.url, "--pool", road.uniswap.address, "--manager", road.uniswap.manager]
        options += ["--vault", road.vault, "--confirmations", 1, "--round-seconds", 60, "--dir", folder / "local"]
        process = programs.start("validator", "validator.py", *options, "--port", 0, "--status-port", 0)
        yield folder, road, programs, process


@pytest.fixture(scope="module")
def lived(tmp_path_factory, by_the_clock):
    """All eight rounds; what is left of them."""
    folder, patch = tmp_path_factory.mktemp("faults"), pytest.MonkeyPatch()
    with anvil.Chain() as chain, subprocesses(folder) as programs, patch.context() as patch:
        road = Street(chain, seed=4, vaults=5, largest=16.2)
        place = client.place
        patch.setattr(client, "place", lambda bot, order, s: place(bot, order, s / road.pace))
        patch.setattr("evm.rpc.MAX_REST_SECONDS", 1.0)
        limits = "--turnover-percent", 100_000, "--shown-ticks", 2000, "--confirmations", CONFIRMATIONS
        road.warm_up(ROUND_SECONDS)
        with executor(programs, road, *limits) as bot:
            world = World(folder, road, programs, bot)
            asyncio.run(prepare(world))
            road.warm_up(ROUND_SECONDS)
            world.first = -(-road.time // ROUND_SECONDS) * ROUND_SECONDS
            for killed in (killed_between_answer_and_execution, killed_between_execution_and_note):
                assert os.WTERMSIG(forked(lambda killed=killed: killed(world))) == signal.SIGKILL
                road.catch_up()
                write(world.path, "UPDATE jobs SET active = 0 WHERE job_id IN ('twin', 'short')")
            while road.time < world.start(KILLS) + ROUND_SECONDS - 250:  # too late to ask in this round
                road.block()
            ends = [world.live("main", DEAD), f"main:evaluation:{world.start(DEAD)}"]
            asyncio.run(play(world, lambda: all(map(world.ended, ends)), every_trouble))
            yield world


def test_a_foreign_transfer_of_any_kind_voids_that_live_round_says_what_it_was_and_nothing_else(lived):
    """The owner's own hand; not one wei, nor what is added to a position: gifts; nor a stranger's position. The rounds
    before and after are scored."""
    said = {
        "hand": r"block \d+: the vault's positions released [1-9]\d* and [1-9]\d*, .*; executions released 0 and 0, .*",
    }
    for job, words in said.items():
        code, detail = lived.ended(lived.live(job, FOREIGN))
        assert code == "live_foreign_transfer" and re.fullmatch(words, detail), (job, detail)
        assert lived.ended(f"{job}:evaluation:{lived.start(FOREIGN)}") == ("scored", "")
        for other in (KILLS, CLEAN):
            assert lived.ended(lived.live(job, other)) == ("scored", "")
        sql = "SELECT sum(lives) FROM miner_scores WHERE job_id = ?"
        assert rows(lived.path, sql, job) == [(2,)]
    assert lived.ended(lived.live("wei", FOREIGN)) == ("scored", words_of((1, 0)))
    assert lived.ended(lived.live("token", FOREIGN)) == ("scored", "")
    code, detail = lived.ended(lived.live("dust", FOREIGN))
    assert code == "scored" and max(gifts_of(detail)) == 10**12
    assert stored_standings(lived.path) == standings(lived.path)


@pytest.mark.parametrize("n", [KILLS, FOREIGN])
def test_a_decision_is_executed_once_and_counted_to_the_wei_whoever_dies(lived, n):
    """The validator between answer and execution, and between execution and note; the bot with an order on its way."""
    round_id = lived.live("main", n)
    assert lived.ended(round_id) == ("scored", "")
    asked = rows(lived.path, "SELECT due_block FROM predictions WHERE round_id = ? AND code = 'accepted'", round_id)
    done = [execution["sent"] for execution in lived.executions(round_id)]
    assert len(done) == len(asked) >= 1 + (n == KILLS) and {one["code"] for one in done} == {"executed"}
    [(opening, close)] = rows(lived.path, "SELECT opening_block, close_block FROM rounds WHERE round_id = ?", round_id)
    receipts = [one for one in lived.street.sent_by(lived.street.vault, close - 1, opening) if one["status"] == "0x1"]
    assert [one["transactionHash"] for one in receipts] == [one["transaction"] for one in done]
    outcome = next(
        line["outcome"] for name, line in stored_lines(lived.path, round_id).items() if name == hotkey_of("mover")
    )
    recorded = tuple(int(outcome[f"final{n}"]) + int(outcome[f"fees{n}"]) for n in (0, 1))
    assert asyncio.run(lived.street.holds(lived.folder, close - 1)) == recorded


def test_a_bot_that_does_not_come_back_voids_its_round_says_why_and_harms_nobody_elses(lived):
    code, detail = lived.ended(lived.live("main", CLEAN))
    assert code == "void_interrupted" and re.match(r"the executor bot does not say .*cannot be reached", detail)
    assert lived.ended(f"main:evaluation:{lived.start(CLEAN)}") == ("scored", "")
    assert lived.ended(lived.live("main", SHALLOW)) == ("scored", "")  # it is back


def test_what_is_skipped_says_why(lived):
    first, short = lived.start(0), -(-lived.start(0) // 240) * 240
    assert lived.ended(f"main:live:{first}") == ("live_no_winner", "no evaluation has finished with a winner yet")
    assert lived.ended(f"twin:live:{first}") == ("live_read_only_market", "job main manages this vault")
    said = "rounds of 240 s end before a decision is settled, which takes up to 255 s"
    assert lived.ended(f"short:live:{short}") == ("live_read_only_market", said)


def test_an_execution_that_a_reorganisation_moved_is_noted_where_it_stayed(lived):
    """Three blocks with three confirmations: nobody had believed them yet."""
    round_id, chain = lived.live("main", SHALLOW), lived.street.chain
    first = lived.executions(round_id)[0]
    assert first["sent"]["code"] == "executed" and int(first["block"]) > lived.replaced[0]
    [(opening, close)] = rows(lived.path, "SELECT opening_block, close_block FROM rounds WHERE round_id = ?", round_id)
    assert opening < lived.replaced[0] < close
    assert lived.ended(round_id) == lived.ended(f"main:evaluation:{lived.start(SHALLOW)}") == ("scored", "")
    assert chain.rpc("eth_getBlockByNumber", hex(lived.replaced[0]), False)["hash"] != lived.replaced[1]


def test_a_reorganisation_deeper_than_believed_voids_what_is_open_and_leaves_what_is_finished_alone(lived):
    code, detail = lived.ended(f"main:evaluation:{lived.start(DEEP)}")
    assert code == "void_gap" and "reorganis" in detail
    code, detail = lived.ended(lived.live("main", DEEP))
    # else of a decision that had followed a transaction which is gone, or of the state of a block which is gone
    other = re.search("executor bot does not say|the chain cannot be asked: eth_call", detail)
    assert (code, "reorganis" in detail) == ("void_gap", True) or (code == "void_interrupted" and other)

    async def now() -> dict:
        async with Store.open(lived.path) as store:
            return {round_id: await stored.evidence(store, round_id) for round_id in lived.before_deep}

    assert len(lived.before_deep) == 2 and asyncio.run(now()) == lived.before_deep


def test_rounds_outlive_a_minute_without_the_chain_and_one_that_could_not_ask_is_void_and_says_so(lived):
    for job in ("wei", "token", "dust", "hand"):
        assert lived.ended(f"{job}:evaluation:{lived.start(CLEAN)}") == ("scored", "")
        assert lived.ended(lived.live(job, CLEAN)) == ("scored", "")
    for kind in ("evaluation", "live"):
        code, detail = lived.ended(f"main:{kind}:{lived.start(DEAD)}")
        assert code == "void_interrupted" and re.fullmatch(r"block \d+ came too late to ask", detail)


def test_no_answer_acts_in_a_block_that_was_known_when_it_was_given(lived):
    """The miners look at the chain's newest block, which is ahead of what the validator believes."""
    sql = (
        "SELECT due_block, effective_block FROM predictions JOIN rounds USING (round_id) WHERE round_id = ?"
        " AND hotkey = ? AND due_block BETWEEN ? AND ? AND predictions.code = 'accepted' AND round_type = 'evaluation'"
    )
    unbelieved = 0
    for round_id, name, query, newest in lived.seen:
        for _, acts in rows(lived.path, sql, round_id, hotkey_of(name), query - 19, query):
            assert acts > newest, (round_id, name, query)
            unbelieved += newest > query + 1
    assert unbelieved > 50


def test_every_round_audits_clean_also_on_the_chain_where_it_is_still_the_same(lived):
    async def work() -> int:
        held = 0
        async with Store.open(lived.path) as store:
            unsealed = await store.finished(unsealed_only=True)  # it may have been stopped just before a seal
            assert len(unsealed) <= 2
            for round_id in sorted({*await store.finished()} - {*unsealed}):
                evidence = await stored.evidence(store, round_id)
                assert audit(evidence) == [], round_id
                row = evidence["round"]
                still = row["code"] == "scored" and row["end_time"] <= lived.start(SHALLOW)
                if still and row["job_id"] in ("main", "token"):
                    found = await audit_chain(evidence, [lived.street.chain.url], lived.street.uniswap.manager)
                    assert found == [], round_id
                    held += 1
        return held

    assert asyncio.run(work()) >= 6


# ---------------------------------------------------------------------------------------------------------------------
# One fault at a time, without a street


@pytest.mark.parametrize("ahead", [0, 2, 5])
def test_late_answers_and_rounds_go_by_the_clock_however_far_the_believed_head_is_behind(ahead):
    """Blocks of 2 s, believed three later; the chain's clock may be ahead of the validator's."""

    class Lagging:
        full_speed, time = False, 1000

        async def head(self) -> Block:
            return await self.block((self.time + ahead) // 2 - 3)

        async def now(self) -> int:
            return self.time

        async def block(self, number: int) -> Block:
            return Block(number, 2 * number, "")

        async def reach_time(self, seconds: int) -> Block:
            while (head := await self.head()).time < seconds:
                self.time += 1
            return head

        async def first_block_at(self, seconds: int) -> Block:
            assert seconds <= (await self.head()).time
            return await self.block(-(-seconds // 2))

    async def work() -> None:
        market, options = Lagging(), build_parser().parse_args(["--pace=1"])
        asker = Asker(market, None, None, None, options, False)
        for waits in (0, 1, 7, 60):
            asked = await market.head()
            market.time = arrived = market.time + waits
            acts = await asker.effective_block(asked)
            assert 2 * (acts - 1) <= max(arrived, asked.time) < 2 * acts
        head, now = await market.head(), market.time
        assert head.time < now
        assert await asker.too_late(head, now + 15) == f"block {head.number} came too late to ask"
        assert await asker.too_late(head, now + 16) == ""
        assert await asker.patience(now + 20) == 20 and await asker.patience(head.time) == 0

    asyncio.run(work())


def test_weights_and_alerts_go_on_while_the_market_stands_still(tmp_path, monkeypatch):
    class Silent(ModelMarket):
        async def reach_time(self, time_seconds: int):
            await asyncio.Event().wait()

    class Enough(Exception):
        pass

    seen = []

    class Scales:
        async def weigh(self, now: int, block: int) -> None:
            seen.append(now)
            if len(seen) == 3:
                raise Enough

    async def prepare(subnet, *_) -> None:
        subnet.validator.weigher = Scales()

    monkeypatch.setattr("spine.schedule.SUPERVISE_SECONDS", 2)
    with pytest.raises(ExceptionGroup) as error:
        play_subnet(
            tmp_path, {}, [a_job()], lambda: Silent(5, {VAULT: CAPITAL}, pace=60, head=FIRST_BLOCK), prepare, pace=60
        )
    assert error.value.split(Enough)[0] and len(seen) == 3 and seen == sorted(seen) and seen[0] < seen[-1]


def test_a_bot_that_names_a_block_after_the_deadline_is_not_believed_and_not_waited_for(tmp_path, missing):
    if anvil.missing():
        missing(anvil.missing())

    async def liar(order, seconds):
        return Report(order.decision, Code.EXECUTED, "", block=10**9, transaction="0x" + "1" * 64)

    async def work(street: Street) -> None:
        options = {"poll_seconds": 0.02, "clock": lambda: street.time, "place": liar}
        async with street.market(tmp_path / "a.sqlite3", **options) as market:
            pool, head = street.uniswap.address, await market.head()
            order = Order("one", 31337, pool, street.vault, (), (), head.number, 1 << 96, 0, street.time + 10)
            going = asyncio.create_task(street.run())
            try:
                async with asyncio.timeout(DEADLINE_SECONDS / 8):
                    with pytest.raises(MarketError, match="says that one was done in block 1000000000, and block"):
                        await market.execute(order)
            finally:
                going.cancel()

    with anvil.Chain() as chain:
        asyncio.run(work(Street(chain, seed=5)))


# ---------------------------------------------------------------------------------------------------------------------
# As its user starts it


def test_the_program_comes_up_on_a_chain_says_what_it_is_asks_and_ends_at_a_signal(by_the_clock):
    folder, road, programs, process = by_the_clock
    path = folder / "local" / "validator.sqlite3"
    sql = "SELECT job_id, round_type, code, detail FROM rounds WHERE round_type = 'live' OR code IS NULL"
    wait_for("a round of both jobs and a live one", lambda: len(rows(path, sql)) >= 3, process)
    begun, said = rows(path, sql), programs.said("validator")
    no_bot = "no executor bot moves this vault; --executor-url names one"
    assert ("pol", "live", "live_read_only_market", no_bot) in begun
    assert {job for job, kind, *_ in begun if kind == "evaluation"} == {"balanced", "pol"}
    assert said.startswith("LOCAL MODE: ") and f"MARKET: Uniswap V3 pool {road.uniswap.address}" in said
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    said = programs.said("validator")
    assert "stopped by SIGTERM" in said and "Traceback" not in said
