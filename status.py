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
import hashlib
import ipaddress
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from aiohttp import web

import page
from chain import BLOCK_SECONDS, Chain, ChainError
from market import Market, MarketEnded, MarketError
from page import Pages, document
from protocol import PROTOCOL_VERSION, RebalanceAnswer, RebalanceQuery, canonical, to_plain
from runtime import number
from scoring import RULES_VERSION
from store import StoreError
from views import NotShown, Panels, Reader
from wire import WireError, serve

VALIDATOR_PORT, MINER_PORT = 8081, 8080
LOOPBACK = "127.0.0.1"
CHAIN_LIMIT_SECONDS = 20 * BLOCK_SECONDS  # real time since the chain was last read, and since its block moved
MARKET_LIMIT_SECONDS = 300  # real time since the market's head moved
ROUND_LIMIT_LENGTHS, ROUND_LIMIT_SECONDS = 2, 120  # market time since a job's newest round ended: 2 lengths and 2 min
CALLERS_LIMIT_SECONDS = 300  # of a miner's list of who may call
LOOK_SECONDS, LOOK_DEADLINE_SECONDS = BLOCK_SECONDS / 2, 10.0  # between two looks at chain and market; for one of them
METAGRAPH_SECONDS = 120.0
MAX_AT_ONCE = 8
ANSWER_SECONDS = 20.0
HOME_ROUNDS = 24  # in the list on the first page
KEPT_ASKS = 50  # a miner's page shows so many
HEADERS = {
    "Content-Security-Policy": f"{page.POLICY}; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

log = logging.getLogger("status")


@cache
def version() -> str:
    """Protocol, rules, and the first digits of a digest over this program's files: who runs the same says the same."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{PROTOCOL_VERSION}, rules {RULES_VERSION}, code {digest.hexdigest()[:12]}"


# ---------------------------------------------------------------------------------------------------------------------
# The server, for both


class _App:
    """GET and HEAD on a few paths, for this machine's names, so many at once; every answer with the same headers."""

    def __init__(self, host: str, routes: Mapping[str, Callable]):
        self._host, self._working = host, asyncio.Semaphore(MAX_AT_ONCE)
        self.app = web.Application(middlewares=[self._guard])
        for path, handler in routes.items():
            self.app.router.add_get(path, handler)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        response = await self._respond(request, handler)
        response.headers.update(HEADERS)
        return response

    async def _respond(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return _refused(405, "only GET and HEAD", {"Allow": "GET, HEAD"})
        if not self._known(request.headers.getall("Host", [])):
            return _refused(403, "this name is not this machine's: use its address, or localhost")
        if self._working.locked():
            return _refused(503, "busy; try again", {"Retry-After": "1"})
        try:
            async with self._working, asyncio.timeout(ANSWER_SECONDS):
                return await handler(request)
        except web.HTTPException as error:
            return _refused(error.status, error.reason)
        except NotShown as error:
            return _refused(404, str(error))
        except TimeoutError:
            return _refused(503, f"not done within {ANSWER_SECONDS:g} s; try again", {"Retry-After": "5"})
        except Exception as error:
            log.exception("%s failed", request.path)
            what = str(error) if isinstance(error, StoreError) else "it failed; see the log"
            return _refused(500, what)

    def _known(self, hosts: list[str]) -> bool:
        """Whether a `Host` can only be this machine: an address, localhost, or the name it was told to listen on."""
        if len(hosts) != 1:
            return False
        name = hosts[0].rpartition(":")[0] if hosts[0].rpartition(":")[2].isdecimal() else hosts[0]
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in ("localhost", self._host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not _loopback(self._host)


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _refused(status: int, why: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=canonical({"error": why}) + b"\n", status=status, content_type="application/json", headers=headers
    )


async def _json(value: Any, status: int = 200) -> web.Response:
    body = await asyncio.to_thread(canonical, value)
    return web.Response(body=body + b"\n", status=status, content_type="application/json")


async def _html(make: Callable[[], str]) -> web.Response:
    return web.Response(text=await asyncio.to_thread(make), content_type="text/html")


@asynccontextmanager
async def _serving(
    routes: Mapping[str, Callable], host: str, port: int | None, usual: int
) -> AsyncIterator[str | None]:
    """Serve inside the block and give the URL; a port that cannot be had stops nobody: that is said, and it is None."""
    async with AsyncExitStack() as stack:
        url = None
        for attempt in (usual, 0) if port is None else (port,):
            try:
                found = await stack.enter_async_context(serve(_App(host, routes).app, host, attempt))
            except WireError as error:
                problem = error
            else:
                url = f"http://[{host}]:{found}" if ":" in host else f"http://{host}:{found}"
                log.info("status page: %s/", url)
                break
        else:
            log.warning("no status page: %s", problem)
        yield url


def add_options(add: Callable, port: int) -> None:
    """`--status-port` and `--status-host` for a parser's or group's `add_argument`."""
    add(
        "--status-port",
        type=number(0, 65535),
        metavar="PORT",
        help=f"of the status page, 0 for any free one (default: {port}, or any free one if it is in use)",
    )
    add("--status-host", default=LOOPBACK, help=f"address it listens on (default: {LOOPBACK}: this machine only)")


def _metrics(prefix: str, values: Mapping[str, tuple[str, str, Any]]) -> str:
    """Prometheus' text format. By name: type, help, and a value or values by labels; None is left out."""
    lines = []
    for name, (kind, about, value) in values.items():
        series = value if isinstance(value, Mapping) else {(): value}
        given = {labels: size for labels, size in series.items() if size is not None}
        lines += [f"# HELP {prefix}_{name} {about}", f"# TYPE {prefix}_{name} {kind}"] if given else []
        for labels, size in given.items():
            text = ",".join(f'{key}="{_label(what)}"' for key, what in labels)
            lines.append(f"{prefix}_{name}{f'{{{text}}}' if text else ''} {size}")
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _whole(request: web.Request, name: str) -> str | None:
    value = request.query.get(name)
    if value is not None and len(value) > 300:
        raise NotShown(f"{name}: {len(value)} characters")
    return value


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
        return await _json({"ok": not problems, "problems": problems}, 503 if problems else 200)

    async def status(self, request: web.Request) -> web.Response:
        """`/status`."""
        return await _json(await self.now())

    async def metrics(self, request: web.Request) -> web.Response:
        """`/metrics`."""
        return web.Response(text=validator_metrics(await self.now()), content_type="text/plain")

    async def job(self, request: web.Request) -> web.Response:
        """`/jobs/JOB`."""
        return await _json(await self._job(request.match_info["job"]))

    async def _job(self, job_id: str) -> dict[str, Any]:
        standings = await self.reader.standings(job_id, self._today())
        (job,) = (job for job in await self.reader.jobs_now() if job["job_id"] == job_id)
        return job | {"standings": standings}

    async def rounds(self, request: web.Request) -> web.Response:
        """`/rounds`."""
        return await _json(await self.reader.rounds(_whole(request, "before")))

    async def round(self, request: web.Request) -> web.Response:
        """`/rounds/ID`."""
        return await _json(await self.reader.all_of(request.match_info["round"]))

    async def panel(self, request: web.Request) -> web.Response:
        """`/panels/ID`."""
        seen = await self.reader.round(request.match_info["round"])
        return await _json(await self.panels.of(seen, _whole(request, "miner")))

    async def scores(self, request: web.Request) -> web.Response:
        """`/scores/HOTKEY`."""
        return await _json(await self.reader.scores_of(request.match_info["hotkey"], _whole(request, "before")))

    # -- the page

    async def page(self, request: web.Request) -> web.Response:
        """`/`: everything, or with `?round=` a round, with `?miner=` a miner, with both the miner in the round."""
        round_id, miner, before = (_whole(request, name) for name in ("round", "miner", "before"))
        status = await self.now()
        pages = Pages(self.names, status["pair"])
        if round_id is not None:
            seen = await self.reader.round(round_id)
            drawn = await self._drawn(seen, miner)
            return await _html(partial(self._document, pages, status, lambda: pages.round(seen, drawn)))
        if miner is not None:
            scores, says = await self.reader.scores_of(miner, before), await self.reader.says(miner)
            places = []
            for job in status["jobs"]:
                for place, line in enumerate(await self.reader.standings(job["job_id"], self._today())):
                    if line["hotkey"] == miner:
                        places.append((job, place, line))
            return await _html(
                partial(self._document, pages, status, lambda: pages.miner(scores, says, places, before))
            )
        if before is not None:
            rounds = await self.reader.rounds(before)
            return await _html(partial(self._document, pages, status, lambda: pages.recent(rounds, before)))
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

        return await _html(partial(self._document, pages, status, main))

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
    return _metrics(
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
            async with _serving(shown.routes, options.status_host, options.status_port, VALIDATOR_PORT) as url:
                yield url
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------------------------
# The miner's


class MinerStatus:
    """What a miner knows of itself, and what its status server answers.

    Args:
        callers: how many may call, and how old the list is in seconds.
        receipts: so many of the newest statements that validators signed about its scores.
        hotkey: the miner's.
        options: `name` and `strategy`.
        network: what to call the chain.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        callers: Callable[[], tuple[int, float]],
        receipts: Callable[[int], Awaitable[list[Mapping[str, Any]]]],
        hotkey: str,
        options: Any,
        network: str = "local",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._callers, self._receipts, self._clock = callers, receipts, clock
        self._who = {"network": network, "name": options.name, "hotkey": hotkey, "strategy": options.strategy}
        self._asks: deque[dict[str, Any]] = deque(maxlen=KEPT_ASKS)
        self._answers: Counter[str] = Counter()
        self._last_error = ""
        self._pair: dict[str, Any] | None = None
        self.routes = {
            "/": self.page,
            "/health": self.health,
            "/status": self.status,
            "/metrics": self.metrics,
            "/scores": self.scores,
        }

    def joined(self, uid: int, netuid: int, address: str) -> None:
        """Where it is, once it is."""
        self._who |= {"uid": uid, "netuid": netuid, "address": address}

    def note(self, caller: str, query: RebalanceQuery, said: RebalanceAnswer, seconds: float) -> None:
        """Take note of an ask and its answer."""
        kept = said.desired_positions == query.current_positions
        kind = "refused" if not said.accepted else "keep" if kept else "changed"
        self._answers[kind] += 1
        self._pair = {"token0": to_plain(query.token0), "token1": to_plain(query.token1)}
        text = f"refused: {said.refusal_reason}" if kind == "refused" else kind
        self._asks.appendleft(
            {
                "caller": caller,
                "round_id": query.round_id,
                "block": query.block_number,
                "answer": f"{len(said.desired_positions)} position(s)" if kind == "changed" else text,
                "milliseconds": f"{seconds * 1000:.1f}",
                "at": self._clock(),
            }
        )

    def failed(self, query: RebalanceQuery, error: Exception) -> None:
        """Take note that the strategy failed, or proposed what is not legal."""
        self._answers["failed"] += 1
        self._last_error = f"{query.round_id} block {query.block_number}: {type(error).__name__}: {error}"

    def now(self) -> dict[str, Any]:
        """`/status`."""
        count, age = self._callers()
        problems = []
        if age > CALLERS_LIMIT_SECONDS:
            problems.append(f"the list of callers was read {age:.0f} s ago, the limit is {CALLERS_LIMIT_SECONDS} s")
        asks = [ask | {"age_seconds": int(self._clock() - ask["at"])} for ask in self._asks]
        for ask in asks:
            del ask["at"]
        return self._who | {
            "version": version(),
            "health": {"ok": not problems, "problems": problems},
            "pair": self._pair,
            "callers": count,
            "callers_age_seconds": int(age),
            "answers": dict(self._answers),
            "last_error": self._last_error,
            "asks": asks,
        }

    async def health(self, request: web.Request) -> web.Response:
        """`/health`."""
        health = self.now()["health"]
        return await _json(health, 200 if health["ok"] else 503)

    async def status(self, request: web.Request) -> web.Response:
        """`/status`."""
        return await _json(self.now())

    async def metrics(self, request: web.Request) -> web.Response:
        """`/metrics`."""
        status = self.now()
        text = _metrics(
            "alm_miner",
            {
                "info": (
                    "gauge",
                    "What runs here.",
                    {(("version", status["version"]), ("hotkey", status["hotkey"])): 1},
                ),
                "healthy": ("gauge", "1, or 0 where /health is 503.", int(status["health"]["ok"])),
                "callers": ("gauge", "Hotkeys that are known.", status["callers"]),
                "callers_age_seconds": ("gauge", "Since they were read.", status["callers_age_seconds"]),
                "answers_total": (
                    "counter",
                    "Answers by kind.",
                    {(("kind", kind),): count for kind, count in status["answers"].items()},
                ),
                "last_ask_age_seconds": (
                    "gauge",
                    "Since the last ask.",
                    status["asks"][0]["age_seconds"] if status["asks"] else None,
                ),
            },
        )
        return web.Response(text=text, content_type="text/plain")

    async def page(self, request: web.Request) -> web.Response:
        """`/`."""
        return await _html(partial(page.miner_process, self.now(), await self._scores()))

    async def scores(self, request: web.Request) -> web.Response:
        """`/scores`."""
        return await _json(await self._scores())

    async def _scores(self) -> dict[str, Any]:
        names = ("round_id", "code", "start_time")
        rounds = [
            {name: said["round"][name] for name in names}
            | {"validator": said["validator"], "rank": said["line"] and said["line"]["rank"]}
            | {name: said[name] for name in ("ranked", "line", "baselines")}
            for said in await self._receipts(KEPT_ASKS)
        ]
        return {"rounds": rounds}


@asynccontextmanager
async def serve_miner(shown: MinerStatus, options: Any) -> AsyncIterator[str | None]:
    """Serve a miner's status inside the block; `options` and what is given as for the validator."""
    async with _serving(shown.routes, options.status_host, options.status_port, MINER_PORT) as url:
        yield url


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
                for score in seen["scores"][1 : page.BOARD_ROWS]:
                    other = await drawing.of(seen, score["hotkey"])
                    inside = pages.panels(seen, other)
                    name = pages.name(score["hotkey"])
                    parts.append(f"<details><summary>{name}, rank {score['rank']}</summary>{inside}</details>")
        parts.append(pages.recent(listed))
        counts = ", ".join(f"{count} {page.shown(what)}" for what, count in (await reader.counts()).items())
        header = f"<h1>ALM validator, report</h1> {page.shown(meta['market'])}"
        header += f"<p class=mute>Validator <code>{page.shown(meta['validator'])}</code>. Rounds: {counts}.</p>"
        return document("ALM report", header, "".join(parts), script=False)
