"""A validator's receipts on their way: signed after each round, posted to their miners, served to them again.

Read first: `receipts.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from audit import stored
from audit.receipts import issue, seal_digest
from audit.shape import check_shape
from chain.base import Chain, ChainError
from chain.opening import Published
from protocol import MAX_QUERY_BYTES, Code
from spine.ground import DEFAULT_PORT
from store import Store
from wire.client import ask, client_session
from wire.codec import canonical, parse_json
from wire.server import Gate, Limits, build_app, serve
from wire.signing import WireError

PAGE_BYTES = MAX_QUERY_BYTES  # receipts travel in pages of at most this much; a longer receipt is a page of its own
PAGE_RECEIPTS = 32  # the most in a page: each costs its reader a verification
PAGE_ROUNDS = 1000  # looked through for one page of a list
POSTS, POST_SECONDS = 16, 5.0  # posts at once; the deadline of one
MAX_ROUNDS = 16  # whose receipts are not signed yet; of further ones they are not posted
MAX_WAITING = 4 * PAGE_RECEIPTS  # receipts that wait for one miner; further ones are not posted
MAX_POST_REPLY_BYTES = 1024
DRAIN_SECONDS = 3.0  # how long the end of the validator waits for posts
REST = 3  # after a page the server rests so many times as long as it took: fetching takes a quarter of a core at most
SERVER_LIMITS = Limits(handler_seconds=10.0, max_handling=16, hotkey_per_second=10.0)

log = logging.getLogger("receipts")


def _fitting(items: Iterable[Any], most: int) -> list[Any]:
    """The longest beginning of some plain values that fits a page, at least one of them if there is one."""
    page, size = [], 64  # what the page itself needs around them
    for item in items:
        size += len(canonical(item)) + 1
        if page and (size > PAGE_BYTES or len(page) == most):
            break
        page.append(item)
    return page


class Issuer:
    """Posts the receipts of each sealed round to its miners, and serves every miner its own.

    Posting is best effort: a miner that is dead, slow or hostile costs one short attempt at a time, and what was not
    posted can be fetched. Served receipts are made anew from the database, on a connection of their own, so that
    nobody's fetching keeps a round waiting.
    """

    def __init__(self, store: Store, chain: Chain, keypair: Any, session: aiohttp.ClientSession, public_only=False):
        """Use `issuing`."""
        self.store, self.chain, self.keypair, self.session = store, chain, keypair, session
        self.public_only, self.unposted = public_only, 0
        self.callers: dict[str, tuple[bool, int]] = {}  # who may fetch: `wire.Callers`
        self.published: Published | None = None
        self.known: set[str] = set()  # who has receipts, registered or not
        self._addresses: dict[str, str] = {}
        self._tasks: set[asyncio.Task] = set()
        self._unsigned = 0  # rounds
        self._signing, self._paging, self._slots = asyncio.Lock(), asyncio.Lock(), asyncio.Semaphore(POSTS)
        self._waiting: dict[str, list[dict]] = {}  # by miner, while a task posts to it

    def post(self, evidence: dict[str, Any]) -> None:
        """Post a sealed round's receipts in the background; returns at once."""
        if self._unsigned >= MAX_ROUNDS:
            self.unposted += len({asked["hotkey"] for asked in evidence["asks"]})
            return
        self._unsigned += 1
        self._start(self._sign(evidence | {"snapshot": None, "events": None}))  # which is most of it

    def _start(self, work) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception:  # whatever goes wrong with receipts, the rounds go on
                log.exception("receipts could not be posted")

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sign(self, evidence: dict[str, Any]) -> None:
        """Sign a round's receipts and give each to the task that posts to its miner."""
        try:
            async with self._signing:
                receipts = await asyncio.to_thread(self._receipts, evidence)
            await self.refresh()
        except ChainError as error:
            log.warning("no receipts of %s are posted: %s", evidence["round"]["round_id"], error)
            return
        finally:
            self._unsigned -= 1
        self.known |= receipts.keys()
        for hotkey, receipt in receipts.items():
            waiting = self._waiting.get(hotkey, [])
            if hotkey not in self._addresses or len(waiting) >= MAX_WAITING:
                self.unposted += 1
                continue
            waiting.append(receipt)
            if hotkey not in self._waiting:
                self._waiting[hotkey] = waiting
                self._start(self._post(hotkey))

    def _receipts(self, evidence: dict[str, Any]) -> dict[str, dict]:
        seal = seal_digest(evidence)
        asked = dict.fromkeys(row["hotkey"] for row in (*evidence["asks"], *evidence["scores"]))
        return {hotkey: issue(evidence, hotkey, seal, self.keypair) for hotkey in asked}

    async def _post(self, hotkey: str) -> None:
        """Post what waits for one miner, a page at a time; the first failure gives all of it up."""
        waiting, page = self._waiting[hotkey], []
        try:
            while waiting:
                page = _fitting(waiting, PAGE_RECEIPTS)
                del waiting[: len(page)]
                body = canonical({"receipts": page})
                if len(body) > PAGE_BYTES:  # one long receipt
                    self.unposted, page = self.unposted + 1, []
                    continue
                url = f"http://{self._addresses.get(hotkey, '')}/receipt"
                limits = {"total_seconds": POST_SECONDS, "max_reply_bytes": MAX_POST_REPLY_BYTES}
                limits["public_only"] = self.public_only
                async with self._slots:
                    reply = await ask(self.session, url, body, keypair=self.keypair, receiver=hotkey, **limits)
                if reply.code is not Code.ACCEPTED:
                    log.debug("receipts for %s: %s %s", hotkey, reply.code, reply.detail)
                    return
                page = []
        finally:
            self.unposted += len(page) + len(waiting)
            del self._waiting[hotkey]

    async def refresh(self) -> None:
        """Read from the chain who may fetch, where miners listen, and whether it says where we do. Raises `ChainError`.

        Without that miners do not find what they could fetch; the rounds go on.
        """
        neurons = (graph := await self.chain.metagraph()).neurons
        self._addresses = {neuron.hotkey: neuron.address for neuron in neurons if neuron.address}
        self.callers = dict.fromkeys([*self.known, *(neuron.hotkey for neuron in neurons)], (True, 0))
        if self.published and (problem := await self.published.keep(graph)):
            log.warning("%s", problem)

    async def drain(self) -> None:
        """Wait a little for what is being posted, and leave the rest to be fetched."""
        until = time.monotonic() + DRAIN_SECONDS
        while self._tasks and (left := until - time.monotonic()) > 0:  # a task that signs starts others that post
            await asyncio.wait(self._tasks, timeout=left)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.unposted:
            log.info("%d receipts did not reach their miners, who can fetch them", self.unposted)

    async def answer(self, caller: str, body: bytes) -> bytes:
        """Handle a signed request of one miner about itself. Raises `ProtocolError` of code `MALFORMED`.

        `{"after": N}` lists sealed rounds in which it was asked, from the first with N = 0:
        `{"rounds": [ids], "after": next N, null at the end}`. `{"rounds": [ids]}` gives their receipts in this order,
        of the first `PAGE_RECEIPTS` as many as fit a page, at least one if there is one: `{"receipts": [...]}`. Rounds
        in which the caller was not asked are passed over.
        """
        asked = parse_json(body, MAX_QUERY_BYTES)
        if isinstance(asked, dict) and "after" in asked:
            check_shape(asked, {"after": "number"}, "request")
            handle, argument = self._list, max(0, asked["after"])
        else:
            check_shape(asked, {"rounds": ["text"]}, "request")
            handle, argument = self._page, asked["rounds"][:PAGE_RECEIPTS]
        async with self._paging:
            started = time.monotonic()
            try:
                return canonical(await handle(caller, argument))
            finally:
                await asyncio.sleep(REST * (time.monotonic() - started))

    async def _list(self, caller: str, after: int) -> dict[str, Any]:
        found, reached = await stored.asked_rounds(self.store, caller, after, PAGE_ROUNDS)
        page = _fitting((round_id for _, round_id in found), PAGE_ROUNDS)
        if len(page) < len(found):
            reached = found[len(page) - 1][0]
        return {"rounds": page, "after": reached}

    async def _page(self, caller: str, ids: Sequence[str]) -> dict[str, Any]:
        page, size = [], 0
        for round_id in ids:
            if about := await stored.evidence_about(self.store, round_id, caller):
                page.append(issue(about[0], caller, about[1], self.keypair))
                size += len(canonical(page[-1]))
                if size > PAGE_BYTES:
                    break
        return {"receipts": _fitting(page, PAGE_RECEIPTS)}


@asynccontextmanager
async def issuing(
    path: Path,
    chain: Chain,
    keypair: Any,
    host: str | None,
    port: int | None,
    published: str | None = None,
    published_port: int | None = None,
    public_only: bool = False,
    limits: Limits = SERVER_LIMITS,
) -> AsyncIterator[Issuer]:
    """Post receipts inside the block, and serve them to their miners; at its end wait a little for posts.

    Args:
        host: to listen on; None serves nobody.
        port: to listen on, 0 any free one; None is `DEFAULT_PORT`, or any free one if it is taken. Raises `WireError`.
        published, published_port: the IP address and port (None: the same) at which others reach this port, which the
            chain is told; without an address it is told nothing.
        public_only: as `wire.client.ask`, of the addresses that are posted to.
        limits: of the server.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store, session = await enter(Store.open(path)), await enter(client_session(POSTS))
        issuer = Issuer(store, chain, keypair, session, public_only)
        issuer.known = await store.ranked_ever()
        issuer.callers = dict.fromkeys(issuer.known, (True, 0))
        if host is not None:
            listening = await _serve(issuer, stack, host, port, limits)
            if published is not None:
                issuer.published = Published(chain, published, published_port or listening)
        with suppress(ChainError):
            await issuer.refresh()
        try:
            yield issuer
        finally:
            await issuer.drain()


async def _serve(issuer: Issuer, stack: AsyncExitStack, host: str, port: int | None, limits: Limits) -> int:
    """Serve until the stack ends; returns the port that it has got."""
    gate, routes = Gate(lambda: (issuer.callers, 0.0), min_stake_rao=0), {"/receipts": issuer.answer}
    for choice in (DEFAULT_PORT, 0) if port is None else (port,):
        app = build_app(keypair=issuer.keypair, gate=gate, routes=routes, limits=limits)
        try:
            listening = await stack.enter_async_context(serve(app, host, choice))
            break
        except WireError as error:
            if port is not None or choice == 0:
                raise
            log.info("%s; receipts are served on a free one", error)
    log.info("receipts are served to their miners at http://%s:%d/receipts", host, listening)
    return listening
