"""The status server: what a validator or a miner is doing, for people, scripts and Prometheus. It only answers.

    GET /                      the page: jobs, leaderboards, rounds, miners; with ?round=ID and ?miner=HOTKEY
    GET /health                200, or 503 and why: a round, the chain or the market is older than its limit
    GET /status                JSON: who and where this is, the chain, jobs, weights, databases
    GET /metrics               the same for Prometheus
    GET /jobs/JOB              a job and its miners by reputation
    GET /rounds                the newest rounds; /rounds/ID all of a round's evidence; /panels/ID?miner= what is drawn
    GET /scores/HOTKEY         a miner's rounds: every term, rank, reason codes, keep, hold and best beside them

`python validator.py` serves it at port 8081 and `python miner.py` (/, /health, /status, /metrics, /scores: what
validators signed) at 8080, on loopback unless told otherwise. Lists come 50 rounds at a time: `next` is the next one's
`?before=`. Nothing here can change anything: the databases are opened for reading only. Names that are not this
machine's are refused, so that no web page can read it through a name of its own; at most `MAX_AT_ONCE` answers are made
at once.
Read first: `reader.py`, `server.py`. Read next: `pages.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from chain.base import BLOCK_SECONDS, Chain, ChainError
from markets.base import Market, MarketEnded, MarketError
from spine.mechanism import Mechanism, showings
from status.board import Showing
from status.pages import Pages
from status.panels import Panels
from status.reader import Reader
from status.server import VALIDATOR_PORT, Status, html_answer, labels, version, whole

CHAIN_LIMIT_SECONDS = 20 * BLOCK_SECONDS  # real time since the chain was last read, and since its block moved
MARKET_LIMIT_SECONDS = 300  # real time since the market's head moved
ROUND_LIMIT_LENGTHS, ROUND_LIMIT_SECONDS = 2, 120  # market time since a job's newest round ended: 2 lengths and 2 min
LOOK_SECONDS, LOOK_DEADLINE_SECONDS = BLOCK_SECONDS / 2, 10.0  # between two looks at chain and market; for one of them
METAGRAPH_SECONDS = 120.0
HOME_ROUNDS = 24  # in the list on the first page

log = logging.getLogger("status")


class Watch:
    """Looks at chain and market every few seconds, so that their ages are known also when they stop answering.

    `seen` is market time at the first look: no job's round is late before it had its time since then.
    """

    def __init__(self, chain: Chain, market: Market, clock: Callable[[], float] = time.monotonic):
        self.chain, self.market, self._clock = chain, market, clock
        self.read_at = self.block_at = self.head_at = clock()
        self.block = self.head = self.metagraph = self.seen = None
        self._metagraph_at = -METAGRAPH_SECONDS

    async def look(self) -> None:
        """One look at both; what does not answer stays as it was, and grows older."""
        with suppress(ChainError, TimeoutError):
            async with asyncio.timeout(LOOK_DEADLINE_SECONDS):
                block = await self.chain.block()
                if self._clock() - self._metagraph_at >= METAGRAPH_SECONDS:
                    self.metagraph, self._metagraph_at = await self.chain.metagraph(), self._clock()
                self.read_at = self._clock()
                if block != self.block:
                    self.block, self.block_at = block, self.read_at
        with suppress(MarketError, MarketEnded, TimeoutError):
            async with asyncio.timeout(LOOK_DEADLINE_SECONDS):
                head = await self.market.head()
                if head != self.head:
                    self.head, self.head_at = head, self._clock()
                    self.seen = self.seen or head.time

    async def run(self) -> None:
        """Look until cancelled; an error that nobody expected is said once for each look, and changes nothing."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("a look at chain and market failed")
            await asyncio.sleep(LOOK_SECONDS)

    def age(self, since: float) -> int:
        """Whole seconds of real time."""
        return int(self._clock() - since)

    def problems(self, jobs: list[Mapping[str, Any]], pace: float) -> list[str]:
        """What is older than its limit, each in a sentence."""
        found, slow = [], max(1.0, 1 / pace)
        for what, since, limit in (
            ("the chain was last read", self.read_at, CHAIN_LIMIT_SECONDS),
            ("the chain's block last moved", self.block_at, max(CHAIN_LIMIT_SECONDS, MARKET_LIMIT_SECONDS * slow)),
            ("the market's head last moved", self.head_at, MARKET_LIMIT_SECONDS * slow),
        ):
            if (age := self.age(since)) > limit:
                found.append(f"{what} {age} s ago, the limit is {limit:.0f} s")
        for job in jobs:
            if job["active"] and self.head:
                limit = ROUND_LIMIT_LENGTHS * job["round_seconds"] + ROUND_LIMIT_SECONDS
                age, job_id = self.head.time - max(job["newest_end"] or 0, self.seen), job["job_id"]
                if age > limit:
                    found.append(f"job {job_id}: no round ended for {age} s of market time, the limit is {limit} s")
        return found


class ValidatorStatus(Status):
    """What a validator's status server answers.

    `names` and `network` are what to call hotkeys and the chain; `pace` is market seconds a second, None where the
    market's clock is the wall's; `shows` is what mechanisms declare of their lines (`board.py`).
    """

    prefix, port = "alm_validator", VALIDATOR_PORT

    def __init__(
        self,
        reader: Reader,
        watch: Watch,
        hotkey: str,
        names: Mapping[str, str],
        network: str,
        pace: float | None,
        shows: Sequence[Showing],
    ):
        super().__init__()
        self.reader, self.watch, self.hotkey, self.names, self.network = reader, watch, hotkey, names, network
        self.pace, self.shows, self.panels = pace or 1.0, shows, Panels(reader)
        self.routes |= {
            "/jobs/{job}": self.job,
            "/rounds": self.rounds,
            "/rounds/{round}": self.round,
            "/panels/{round}": self.panel,
            "/scores/{hotkey}": self.scores,
        }

    async def now(self) -> dict[str, Any]:
        """`/status`."""
        reader, watch, subnet, head = self.reader, self.watch, self.watch.metagraph, self.watch.head
        jobs, meta = await reader.jobs_now(), await reader.meta()
        problems = watch.problems(jobs, self.pace)
        own = subnet and subnet.by_hotkey(self.hotkey)
        return {
            "version": version(),
            "network": self.network,
            "netuid": subnet and subnet.netuid,
            "hotkey": self.hotkey,
            "market": meta.get("market", ""),
            "pool": meta.get("pool", ""),
            "health": {"ok": not problems, "problems": problems},
            "chain": {
                "block": watch.block,
                "block_age_seconds": watch.age(watch.block_at),
                "read_age_seconds": watch.age(watch.read_at),
                "uid": own and own.uid,
                "permit": bool(own and own.permit),
                "stake_rao": str(own.stake_rao if own else 0),
                "last_update_block": own and own.last_update_block,
                "neurons": subnet and len(subnet.neurons),
            },
            "head": {
                "block": head and head.number,
                "time": head and head.time,
                "age_seconds": watch.age(watch.head_at),
            },
            "pair": await reader.pair(),
            "jobs": jobs,
            "weights": await reader.last_weights(),
            "rounds": await reader.counts(),
            "database": await reader.database(),
        }

    def _today(self) -> int:
        return self.watch.head.time // 86_400 if self.watch.head else 0

    def measured(self, now: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
        """See `Status`."""
        chain, head, jobs, data, weights = (now[name] for name in ("chain", "head", "jobs", "database", "weights"))
        weights = weights or {"block": None, "next_block": None, "code": None}
        ended = {labels(job=job["job_id"]): job["newest_end"] for job in jobs}
        running = {labels(job=job["job_id"]): len(job["running"]) for job in jobs}
        ends = [(*what.split(" "), count) for what, count in now["rounds"].items()]
        rounds = {labels(type=kind, code=code): count for kind, code, count in ends}
        return [
            ("chain_block", "Newest block of the subnet's chain.", chain["block"]),
            ("chain_block_age_seconds", "Since the block moved.", chain["block_age_seconds"]),
            ("chain_read_age_seconds", "Since the chain answered.", chain["read_age_seconds"]),
            ("permit", "Whether this hotkey may set weights.", int(chain["permit"])),
            ("stake_rao", "Stake on this hotkey.", chain["stake_rao"]),
            ("neurons", "Neurons of the subnet.", chain["neurons"]),
            ("market_block", "The market's head.", head["block"]),
            ("market_time_seconds", "Its time.", head["time"]),
            ("market_age_seconds", "Since the head moved.", head["age_seconds"]),
            ("round_end_seconds", "When a job's newest evaluation ended, market time.", ended),
            ("rounds_running", "Rounds of a job that run.", running),
            ("rounds_total", "Rounds by type and how they ended.", rounds),
            ("rounds_pruned_total", "Rounds whose evidence was dropped.", data["pruned"]),
            ("weights_block", "Block of the last attempt to set weights.", weights["block"]),
            ("weights_next_block", "Block of the next one.", weights["next_block"]),
            ("weights_code", "How it ended.", {labels(code=weights["code"]): 1} if weights["code"] else None),
            ("database_bytes", "Size of the databases.", {labels(file=k): v for k, v in data["bytes"].items()}),
        ]

    async def job(self, request: web.Request) -> dict[str, Any]:
        """`/jobs/JOB`."""
        job_id = request.match_info["job"]
        standings = await self.reader.standings(job_id, self._today())
        (job,) = (job for job in await self.reader.jobs_now() if job["job_id"] == job_id)
        return job | {"standings": standings}

    async def rounds(self, request: web.Request) -> dict[str, Any]:
        return await self.reader.rounds(whole(request, "before"))

    async def round(self, request: web.Request) -> dict[str, Any]:
        return await self.reader.all_of(request.match_info["round"])

    async def panel(self, request: web.Request) -> dict[str, Any]:
        return await self.panels.of(await self.reader.round(request.match_info["round"]), whole(request, "miner"))

    async def scores(self, request: web.Request) -> dict[str, Any]:
        return await self.reader.scores_of(request.match_info["hotkey"], whole(request, "before"))

    async def page(self, request: web.Request) -> web.Response:
        """`/`: everything, or with `?round=` a round, with `?miner=` a miner, with both the miner in the round."""
        round_id, miner, before = (whole(request, name) for name in ("round", "miner", "before"))
        status = await self.now()
        if round_id is not None:
            seen = await self.reader.round(round_id)
            template, shown = "round.html", {"seen": seen, "drawn": await self.panels.drawn(seen, miner)}
        elif miner is not None:
            template, shown = "miner.html", await self._miner(status["jobs"], miner, before)
        elif before is not None:
            template, shown = "older.html", {"listed": await self.reader.rounds(before), "before": before}
        else:
            template, shown = "home.html", await self._home(status["jobs"])
        pages = Pages(self.names, status["pair"], self.shows)
        return await html_answer(pages, template, "ALM validator", status=status, **shown)

    async def _miner(self, jobs: Sequence[Mapping[str, Any]], miner: str, before: str | None) -> dict[str, Any]:
        standings = [
            (job, place, line)
            for job in jobs
            for place, line in enumerate(await self.reader.standings(job["job_id"], self._today()))
            if line["hotkey"] == miner
        ]
        scores, says = await self.reader.scores_of(miner, before), await self.reader.says(miner)
        return {"scores": scores, "says": says, "standings": standings, "before": before}

    async def _home(self, jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        shown = await boards(self.reader, jobs, self._today())
        rounds = [seen for _, _, seen in shown if seen]
        newest = max(rounds, key=lambda seen: seen["round"]["start_time"], default=None)
        drawn = await self.panels.drawn(newest) if newest else ""
        return {"jobs": shown, "newest": newest, "drawn": drawn, "listed": await self.reader.rounds(limit=HOME_ROUNDS)}


async def boards(reader: Reader, jobs: Sequence[Mapping[str, Any]], today: int) -> list[tuple]:
    """Every job with its standings and its newest evaluation, None before the first."""
    found = []
    for job in jobs:
        newest = job["newest"]["evaluation"]
        seen = await reader.round(newest) if newest else None
        found.append((job, await reader.standings(job["job_id"], today), seen))
    return found


@asynccontextmanager
async def serve_validator(ground: Any, options: Any, mechanisms: Mapping[str, Mechanism]) -> AsyncIterator[str | None]:
    """Serve the status of a `spine.ground.Ground` inside the block; gives what `Status.serving` gives."""
    watch, hotkey = Watch(ground.chain, ground.market), ground.keypair.ss58_address
    async with Reader.open(ground.path, mechanisms) as reader:
        network = "local" if ground.local else options.network or options.chain_endpoint
        shown = ValidatorStatus(reader, watch, hotkey, ground.names, network, options.pace, showings(mechanisms))
        await watch.look()
        looking = asyncio.create_task(watch.run())
        try:
            async with shown.serving(options) as url:
                yield url
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
