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
Read first: `views.py`. Read next: `page.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from chain.base import BLOCK_SECONDS, Chain, ChainError
from markets.base import Market, MarketEnded, MarketError
from status import figures as figures_module
from status import pages as pages_module
from status.pages import Pages, document
from status.panels import Panels
from status.reader import NotShown, Reader
from status.server import VALIDATOR_PORT, html_answer, json_answer, metrics_answer, serving, version, whole

CHAIN_LIMIT_SECONDS = 20 * BLOCK_SECONDS  # real time since the chain was last read, and since its block moved
MARKET_LIMIT_SECONDS = 300  # real time since the market's head moved
ROUND_LIMIT_LENGTHS, ROUND_LIMIT_SECONDS = 2, 120  # market time since a job's newest round ended: 2 lengths and 2 min
LOOK_SECONDS, LOOK_DEADLINE_SECONDS = BLOCK_SECONDS / 2, 10.0  # between two looks at chain and market; for one of them
METAGRAPH_SECONDS = 120.0
HOME_ROUNDS = 24  # in the list on the first page

log = logging.getLogger("status")


# ---------------------------------------------------------------------------------------------------------------------
# The validator's


class Watch:
    """Looks at chain and market every few seconds, so that their ages are known also when they stop answering.

    Args:
        chain, market: the validator's.
        clock: seconds, from any start.

    Attributes:
        seen: market time at the first look: no job's round is late before it had its time since then.
    """

    def __init__(self, chain: Chain, market: Market, clock: Callable[[], float] = time.monotonic):
        self.chain, self.market, self._clock = chain, market, clock
        self.began = self.read_at = self.block_at = self.head_at = clock()
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
                age = self.head.time - max(job["newest_end"] or 0, self.seen)
                if age > limit:
                    found.append(
                        f"job {job['job_id']}: no round ended for {age} s of market time, the limit is {limit} s"
                    )
        return found


class ValidatorStatus:
    """What a validator's status server answers."""

    def __init__(
        self, reader: Reader, watch: Watch, hotkey: str, names: Mapping[str, str], network: str, pace: float | None
    ):
        self.reader, self.watch, self.hotkey, self.names, self.network = reader, watch, hotkey, names, network
        self.pace, self.panels = pace or 1.0, Panels(reader)
        self.routes = {
            "/": self.page,
            "/health": self.health,
            "/status": self.status,
            "/metrics": self.metrics,
            "/jobs/{job}": self.job,
            "/rounds": self.rounds,
            "/rounds/{round}": self.round,
            "/panels/{round}": self.panel,
            "/scores/{hotkey}": self.scores,
        }

    async def now(self) -> dict[str, Any]:
        """`/status`."""
        reader, watch = self.reader, self.watch
        jobs, oldest, meta = await reader.jobs_now(), await reader.oldest_evidence(), await reader.meta()
        problems = watch.problems(jobs, self.pace)
        own = watch.metagraph.by_hotkey(self.hotkey) if watch.metagraph else None
        return {
            "version": version(),
            "network": self.network,
            "netuid": watch.metagraph.netuid if watch.metagraph else None,
            "hotkey": self.hotkey,
            "market": meta.get("market", ""),
            "pool": meta.get("pool", ""),
            "health": {"ok": not problems, "problems": problems},
            "chain": {
                "block": watch.block,
                "block_age_seconds": watch.age(watch.block_at),
                "read_age_seconds": watch.age(watch.read_at),
                "uid": own.uid if own else None,
                "permit": bool(own and own.permit),
                "stake_rao": str(own.stake_rao if own else 0),
                "last_update_block": own.last_update_block if own else None,
                "neurons": len(watch.metagraph.neurons) if watch.metagraph else None,
            },
            "head": {
                "block": watch.head.number if watch.head else None,
                "time": watch.head.time if watch.head else None,
                "age_seconds": watch.age(watch.head_at),
            },
            "pair": await reader.pair(),
            "jobs": jobs,
            "weights": await reader.last_weights(),
            "rounds": await reader.counts(),
            "database": {
                "bytes": reader.sizes(),
                "oldest_evidence": oldest,
                "oldest_evidence_time": int(oldest.rsplit(":", 1)[1]) if oldest else None,
                "pruned": await reader.pruned(),
            },
        }

    def _today(self) -> int:
        return self.watch.head.time // 86_400 if self.watch.head else 0

    # -- JSON and metrics

    async def health(self, request: web.Request) -> web.Response:
        """`/health`."""
        problems = self.watch.problems(await self.reader.jobs_now(), self.pace)
        return await json_answer({"ok": not problems, "problems": problems}, 503 if problems else 200)

    async def status(self, request: web.Request) -> web.Response:
        """`/status`."""
        return await json_answer(await self.now())

    async def metrics(self, request: web.Request) -> web.Response:
        """`/metrics`."""
        return web.Response(text=validator_metrics(await self.now()), content_type="text/plain")

    async def job(self, request: web.Request) -> web.Response:
        """`/jobs/JOB`."""
        return await json_answer(await self._job(request.match_info["job"]))

    async def _job(self, job_id: str) -> dict[str, Any]:
        standings = await self.reader.standings(job_id, self._today())
        (job,) = (job for job in await self.reader.jobs_now() if job["job_id"] == job_id)
        return job | {"standings": standings}

    async def rounds(self, request: web.Request) -> web.Response:
        """`/rounds`."""
        return await json_answer(await self.reader.rounds(whole(request, "before")))

    async def round(self, request: web.Request) -> web.Response:
        """`/rounds/ID`."""
        return await json_answer(await self.reader.all_of(request.match_info["round"]))

    async def panel(self, request: web.Request) -> web.Response:
        """`/panels/ID`."""
        seen = await self.reader.round(request.match_info["round"])
        return await json_answer(await self.panels.of(seen, whole(request, "miner")))

    async def scores(self, request: web.Request) -> web.Response:
        """`/scores/HOTKEY`."""
        return await json_answer(await self.reader.scores_of(request.match_info["hotkey"], whole(request, "before")))

    # -- the page

    async def page(self, request: web.Request) -> web.Response:
        """`/`: everything, or with `?round=` a round, with `?miner=` a miner, with both the miner in the round."""
        round_id, miner, before = (whole(request, name) for name in ("round", "miner", "before"))
        status = await self.now()
        pages = Pages(self.names, status["pair"])
        if round_id is not None:
            seen = await self.reader.round(round_id)
            drawn = await self._drawn(seen, miner)
            return await html_answer(partial(self._document, pages, status, lambda: pages.round(seen, drawn)))
        if miner is not None:
            scores, says = await self.reader.scores_of(miner, before), await self.reader.says(miner)
            places = []
            for job in status["jobs"]:
                for place, line in enumerate(await self.reader.standings(job["job_id"], self._today())):
                    if line["hotkey"] == miner:
                        places.append((job, place, line))
            return await html_answer(
                partial(self._document, pages, status, lambda: pages.miner(scores, says, places, before))
            )
        if before is not None:
            rounds = await self.reader.rounds(before)
            return await html_answer(partial(self._document, pages, status, lambda: pages.recent(rounds, before)))
        rounds = await self.reader.rounds(limit=HOME_ROUNDS)
        boards = []
        for job in status["jobs"]:
            newest = job["newest"]["evaluation"]
            seen = await self.reader.round(newest) if newest else None
            boards.append((job, await self.reader.standings(job["job_id"], self._today()), seen))
        newest = max(
            (seen for _, _, seen in boards if seen), key=lambda seen: seen["round"]["start_time"], default=None
        )
        drawn = await self._drawn(newest) if newest else None

        def main() -> str:
            parts = [pages.board(*board) for board in boards]
            parts += [pages.round(newest, drawn, whole=False)] if newest else []
            return pages.facts(status) + "".join(parts) + pages.recent(rounds)

        return await html_answer(partial(self._document, pages, status, main))

    async def _drawn(self, seen: Mapping[str, Any], miner: str | None = None) -> Mapping[str, Any] | str:
        try:
            return await self.panels.of(seen, miner)
        except NotShown as error:
            return str(error)

    def _document(self, pages: Pages, status: Mapping[str, Any], main: Callable[[], str]) -> str:
        return document("ALM validator", pages.header(status), main(), script=True)


def validator_metrics(status: Mapping[str, Any]) -> str:
    """`/status` as Prometheus reads it."""
    chain, data, weights = status["chain"], status["database"], status["weights"] or {}
    return metrics_answer(
        "alm_validator",
        {
            "info": ("gauge", "What runs here.", {(("version", status["version"]), ("hotkey", status["hotkey"])): 1}),
            "healthy": ("gauge", "1, or 0 where /health is 503.", int(status["health"]["ok"])),
            "chain_block": ("gauge", "Newest block of the subnet's chain.", chain["block"]),
            "chain_block_age_seconds": ("gauge", "Since the block moved.", chain["block_age_seconds"]),
            "chain_read_age_seconds": ("gauge", "Since the chain answered.", chain["read_age_seconds"]),
            "permit": ("gauge", "Whether this hotkey may set weights.", int(chain["permit"])),
            "stake_rao": ("gauge", "Stake on this hotkey.", chain["stake_rao"]),
            "neurons": ("gauge", "Neurons of the subnet.", chain["neurons"]),
            "market_block": ("gauge", "The market's head.", status["head"]["block"]),
            "market_time_seconds": ("gauge", "Its time.", status["head"]["time"]),
            "market_age_seconds": ("gauge", "Since the head moved.", status["head"]["age_seconds"]),
            "round_end_seconds": (
                "gauge",
                "When a job's newest evaluation ended, market time.",
                {(("job", job["job_id"]),): job["newest_end"] for job in status["jobs"]},
            ),
            "rounds_running": (
                "gauge",
                "Rounds of a job that run.",
                {(("job", job["job_id"]),): len(job["running"]) for job in status["jobs"]},
            ),
            "rounds_total": (
                "counter",
                "Rounds by type and how they ended.",
                {
                    (("type", what.split(" ")[0]), ("code", what.split(" ")[1])): count
                    for what, count in status["rounds"].items()
                },
            ),
            "rounds_pruned_total": ("counter", "Rounds whose evidence was dropped.", data["pruned"]),
            "weights_block": ("gauge", "Block of the last attempt to set weights.", weights.get("block")),
            "weights_next_block": ("gauge", "Block of the next one.", weights.get("next_block")),
            "weights_code": ("gauge", "How it ended.", {(("code", weights["code"]),): 1} if weights else None),
            "database_bytes": (
                "gauge",
                "Size of the databases.",
                {(("file", name),): size for name, size in data["bytes"].items()},
            ),
        },
    )


@asynccontextmanager
async def serve_validator(ground: Any, options: Any) -> AsyncIterator[str | None]:
    """Serve a validator's status inside the block, and give its URL, None if the port could not be had.

    Args:
        ground: a `subnet.Ground`: whose database, chain, market, key and names.
        options: `status_host`, `status_port`, `pace`, `network`.
    """
    watch, hotkey = Watch(ground.chain, ground.market), ground.keypair.ss58_address
    async with Reader.open(ground.path) as reader:
        network = "local" if ground.local else options.network or options.chain_endpoint
        shown = ValidatorStatus(reader, watch, hotkey, ground.names, network, options.pace)
        await watch.look()
        looking = asyncio.create_task(watch.run())
        try:
            async with serving(shown.routes, options.status_host, options.status_port, VALIDATOR_PORT) as url:
                yield url
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------------------------
# The report


async def report(path: Path, round_ids: list[str], names: Mapping[str, str]) -> str:
    """The page of a validator's database as one file that needs no server.

    Args:
        path: the jobs database.
        round_ids: whose panels to draw; empty for the newest scored round of each job and type.
        names: what to call hotkeys that are known here.

    Raises:
        StoreError: the database cannot be read.
        NotShown: there is no such round.
    """
    async with Reader.open(path) as reader:
        drawing, meta, pair = Panels(reader), await reader.meta(), await reader.pair()
        pages, listed = Pages(names, pair, links=False), await reader.rounds()
        jobs, parts = await reader.jobs_now(), []
        today = max((row["end_time"] for row in listed["rounds"]), default=0) // 86_400
        for job in jobs:
            newest = job["newest"]["evaluation"]
            seen = await reader.round(newest) if newest else None
            parts.append(pages.board(job, await reader.standings(job["job_id"], today), seen, whole=True))
        if not round_ids:
            scored = [row for row in listed["rounds"] if row["code"] == "scored"]
            round_ids = list({(row["job_id"], row["round_type"]): row["round_id"] for row in reversed(scored)}.values())
        for round_id in round_ids:
            seen = await reader.round(round_id)
            try:
                drawn = await drawing.of(seen)
            except NotShown as error:
                drawn = str(error)
            parts.append(pages.round(seen, drawn))
            if isinstance(drawn, Mapping):
                for score in seen["scores"][1 : pages_module.BOARD_ROWS]:
                    other = await drawing.of(seen, score["hotkey"])
                    inside = pages.panels(seen, other)
                    name = pages.name(score["hotkey"])
                    parts.append(f"<details><summary>{name}, rank {score['rank']}</summary>{inside}</details>")
        parts.append(pages.recent(listed))
        counts = ", ".join(f"{count} {figures_module.shown(what)}" for what, count in (await reader.counts()).items())
        header = f"<h1>ALM validator, report</h1> {figures_module.shown(meta['market'])}"
        header += (
            f"<p class=mute>Validator <code>{figures_module.shown(meta['validator'])}</code>. Rounds: {counts}.</p>"
        )
        return document("ALM report", header, "".join(parts), script=False)
