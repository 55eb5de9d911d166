"""Asking miners: who can be asked, what each is asked, how long it may take, and what came back.

Every answer ends as a row of the table `predictions`, whatever the mechanism.
Read first: `mechanism.py`, `wire/client.py`. Read next: `validator.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from chain.base import Chain, ChainError, Neuron
from markets.base import Market, MarketEnded
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    PACE_BLOCKS,
    Block,
    Code,
    Job,
    Moment,
)
from spine.mechanism import Game, Mechanism
from store import Prediction
from wire.client import Reply, ask
from wire.codec import decode, encode

PEERS_RETRY_SECONDS = 5.0  # until a chain that did not say who can be asked is asked again

log = logging.getLogger("validator")


@dataclass(frozen=True, slots=True)
class Said:
    """One ask and its reply: what was asked, the raw reply, what it amounts to, and the answer if it was accepted."""

    hotkey: str
    query: Any
    body: bytes
    reply: Reply
    code: Code
    detail: str
    answer: Any

    def row(self, round_id: str, due_block: int, effective_block: int | None, first: bool = False) -> Prediction:
        """As it is stored; a miner that takes part and does not answer keeps what it has, the detail says why."""
        code, detail = (self.code, self.detail) if first else kept(self.code, self.detail)
        acts = effective_block if code is Code.ACCEPTED else None
        reply = self.reply
        sent = reply.body, reply.signature, reply.nonce
        return Prediction(round_id, self.hotkey, due_block, self.body, *sent, code, detail, acts, reply.elapsed_seconds)


def kept(code: Code, detail: str) -> tuple[Code, str]:
    """Once a miner takes part, an answer that is not accepted means *keep*; the detail begins with the code of why."""
    return (code, detail) if code is Code.ACCEPTED else (Code.KEPT, f"{code}: {detail}")


def judged(mechanism: Mechanism, body: bytes, query: Any) -> tuple[Code, str, Any]:
    """What an answer amounts to; whatever goes wrong while it is read is its miner's fault, and costs nobody else."""
    try:
        return mechanism.judge(body, query)
    except Exception as error:
        return Code.MALFORMED, f"cannot be judged: {type(error).__name__}", None


def read(mechanism: Mechanism, row: Prediction) -> tuple[Any, Any]:
    """Query and answer of an accepted ask."""
    return decode(mechanism.query, row.query, MAX_QUERY_BYTES), decode(mechanism.answer, row.answer, MAX_ANSWER_BYTES)


def decision_of(mechanism: Mechanism, row: Prediction, heard: tuple[Any, Any] | None = None) -> Any:
    """What an accepted answer decides: read from its row, unless query and answer are still at hand."""
    return mechanism.decision(row.hotkey, row.effective_block, *(heard or read(mechanism, row)))


@dataclass(slots=True)
class Playing:
    """An evaluation round in progress."""

    mechanism: Mechanism
    job: Job
    round_id: str
    start: int
    peers: dict[str, Neuron]
    entered: set[str]
    game: Game | None = None
    busy: set[str] = field(default_factory=set)  # miners with an open ask
    waiting: dict[str, Any] = field(default_factory=dict)  # answers that do not act yet
    missed: dict[str, list[str]] = field(default_factory=dict)  # why later asks meant *keep*

    @property
    def end(self) -> int:
        return self.start + self.job.round_seconds

    def act(self, block: int) -> None:
        """Let the answers act whose block has come; everything before it has been fed."""
        for hotkey in [hotkey for hotkey, decision in self.waiting.items() if decision.block <= block]:
            self.game.decide(self.waiting.pop(hotkey))

    def take(self, asks: Iterable[Prediction], said: Iterable[Said] = ()) -> None:
        """Take in a due block's answers, of now (`said`) or stored by an earlier run of this round."""
        heard = {one.hotkey: (one.query, one.answer) for one in said}
        for row in asks:
            if row.code is Code.ACCEPTED:
                self.waiting[row.hotkey] = decision_of(self.mechanism, row, heard.get(row.hotkey))
            else:
                self.missed.setdefault(row.hotkey, []).append(row.detail)


class Asker:
    """Asks the subnet's miners, in market time; with `public_only`, as on a real network, only at public addresses."""

    def __init__(
        self,
        market: Market,
        chain: Chain,
        session: aiohttp.ClientSession,
        keypair: Any,
        options: argparse.Namespace,
        public_only: bool,
    ):
        self.market, self.chain = market, chain
        self.session, self.keypair, self.options, self.public_only = session, keypair, options, public_only
        self._peers: dict[str, Neuron] | None = None  # as last read

    async def peers(self, start: int) -> dict[str, Neuron]:
        """Every other neuron with an endpoint, by hotkey, from the newest metagraph, for a round from `start`.

        A chain that does not answer is asked again in half of the time that is left, then the last list serves. Raises
        `ChainError` without one.
        """
        until = time.monotonic() + await self._peers_seconds(start)
        while True:
            try:
                async with asyncio.timeout(None if self.market.full_speed else max(5.0, until - time.monotonic())):
                    neurons = (await self.chain.metagraph()).neurons
                own = self.keypair.ss58_address
                self._peers = {n.hotkey: n for n in neurons if n.address and n.hotkey != own}
                break
            except (ChainError, TimeoutError) as error:
                why = str(error) or "no answer in time"
            if time.monotonic() + PEERS_RETRY_SECONDS >= until:
                if self._peers is None:
                    raise ChainError(why)
                log.warning("who can be asked is not known anew (%s): the last list serves, %d", why, len(self._peers))
                break
            await asyncio.sleep(PEERS_RETRY_SECONDS)
        return dict(self._peers)

    async def _peers_seconds(self, start: int) -> float:
        """For how many real seconds the chain may be asked for miners; a round that goes on has time."""
        if self.market.full_speed:
            return 0.0
        left = (start - FIRST_ASK_DEADLINE_SECONDS - await self.market.now()) / self.options.pace
        return left / 2 if left > 0 else ASK_SECONDS

    async def moment(self, job: Job, round_id: str, round_type: str, start: int, head: Block) -> Moment:
        past = await self.market.block(max(self.market.first, head.number - PACE_BLOCKS))
        return Moment(job, self.market.pair, round_id, round_type, start, head, past)

    async def ask(
        self, mechanism: Mechanism, queries: Mapping[str, Any], peers: Mapping[str, Neuron], seconds: float
    ) -> list[Said]:
        """Ask miners side by side, each its own query, and wait for all."""
        bodies = {id(query): encode(query) for query in queries.values()}  # what all are asked is written once

        async def one(hotkey: str, query: Any) -> Said:
            body, url = bodies[id(query)], "no endpoint"
            if hotkey in peers:
                url = f"http://{peers[hotkey].address}{mechanism.path}"
            reply = await self.exchange(hotkey, url, body, seconds)
            if reply.code is Code.ACCEPTED:
                return Said(hotkey, query, body, reply, *judged(mechanism, reply.body, query))
            return Said(hotkey, query, body, reply, reply.code, reply.detail, None)

        return list(await asyncio.gather(*(one(*item) for item in queries.items())))

    async def exchange(self, hotkey: str, url: str, body: bytes, seconds: float) -> Reply:
        """One signed request and its reply, whatever comes back; see `wire.client.ask`."""
        limits = {"total_seconds": seconds, "max_reply_bytes": MAX_ANSWER_BYTES, "public_only": self.public_only}
        return await ask(self.session, url, body, keypair=self.keypair, receiver=hotkey, **limits)

    async def too_late(self, head: Block, start: int) -> str:
        """Why a round can not begin any more; who is asked from then on could know the opening."""
        late = await self.market.now() >= start - FIRST_ASK_DEADLINE_SECONDS
        return f"block {head.number} came too late to ask" if late else ""

    async def patience(self, until: int) -> float:
        """How many real seconds an answer may take that must be there at this market time."""
        if self.market.full_speed:
            return ASK_SECONDS
        return min(ASK_SECONDS, max(0, until - await self.market.now()) / self.options.pace)

    async def effective_block(self, asked: Block) -> int:
        """The first block above the head whose time is later than the arrival of an answer that came now."""
        market = self.market
        if market.full_speed and not self.options.latency_seconds:
            return (await market.head()).number + 1
        arrived = asked.time + self.options.latency_seconds if market.full_speed else await market.now()
        try:
            if not market.full_speed:  # on a chain that block is not there yet
                await market.reach_time(arrived + 1)
            return max(asked.number + 1, (await market.first_block_at(arrived + 1)).number)
        except MarketEnded:
            return sys.maxsize


def accepted(rows: Iterable[Prediction]) -> list[Prediction]:
    return [row for row in rows if row.code is Code.ACCEPTED]
