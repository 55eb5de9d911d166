"""The burn, and the loop that it and the sweep run in: nothing outside ends it, and it tells who asked.

    await follow(Burner(chain, journal).step, poll_seconds, teller(notifier, AlertRules(time.monotonic()), journal))

A burn is a validator's whole weight on one target, by default the subnet's owner, for whom the chain pays nobody.
Read next: `sweeping.py`, `weights.py` (weights that pay miners).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chain.base import BLOCK_SECONDS, ERA_BLOCKS, U16_MAX, Chain, ChainError, Metagraph, Neuron, Next, refusal
from chain.journal import Journal
from chain.notify import AlertRules, Notifier
from runtime.db import StoreError
from runtime.process import EXIT_FAILED, EXIT_OK

SET_WEIGHTS_INTERVAL_BLOCKS = 720  # two epochs, 2.4 hours
RETRY_BLOCKS = 10  # after a refusal that waiting may not mend
FATE_BLOCKS = 2 * ERA_BLOCKS  # then a write of unknown fate cannot land any more: its era, and half for signing it

log = logging.getLogger("stake")


class Result(NamedTuple):
    """What one step of a loop came to."""

    wait_blocks: int  # before there is something to do again, as far as is known
    problem: str  # what it waits for or what is wrong, in one line; empty if nothing
    news: dict[str, Any]  # for `AlertRules.observe`


async def follow(
    step: Callable[[], Awaitable[Result]],
    poll_seconds: float,
    tell: Callable[[dict[str, Any]], Awaitable[None]],
    once: bool = False,
    longest_polls: int = 1,
) -> int:
    """Step for ever, whatever fails outside, saying what is wrong when that changes; `tell` gets each step's news.

    Args:
        longest_polls: sleep so many polls at most when a step knows that nothing is due.

    Returns:
        With `once`, after one step: EXIT_FAILED if something was wrong or is still to come, else EXIT_OK.
    """
    said = ""
    while True:
        try:
            result = await step()
            news = {"chain": True, **result.news}
        except ChainError as error:
            result, news = Result(1, f"the chain: {error}", {}), {"chain": False}
        except (sqlite3.Error, StoreError) as error:
            result, news = Result(1, f"the journal: {error}; is the disk full or the file in use?", {}), {}
        if result.problem != said:
            log.warning("%s", result.problem or "all is well again")
        said = result.problem
        try:
            await tell(news)
        except (sqlite3.Error, StoreError) as error:
            log.warning("the journal: %s; the daily summary waits", error)
        if once:
            log.info("nothing else to do for %d blocks", result.wait_blocks)
            return EXIT_FAILED if result.problem else EXIT_OK
        await asyncio.sleep(min(max(poll_seconds, result.wait_blocks * BLOCK_SECONDS), poll_seconds * longest_polls))


def teller(notifier: Notifier, rules: AlertRules, journal: Journal) -> Callable[[dict[str, Any]], Awaitable[None]]:
    """Alerts, and at 00:00 UTC or at the first start after it the summary of the day."""

    async def tell(news: dict[str, Any]) -> None:
        for alert in rules.observe(time.monotonic(), **news):
            notifier.notify(*alert)
        if text := await journal.summary(time.time()):
            notifier.notify("summary", text)

    return tell


@dataclass
class Burner:
    """Keeps a validator's whole weight on one target, once an interval, measured from the chain's last update.

    The target is `target_hotkey`, else who has `target_uid` now and had it when it was first given, else the owner now.
    """

    chain: Chain
    journal: Journal
    interval_blocks: int = SET_WEIGHTS_INTERVAL_BLOCKS
    target_uid: int | None = None
    target_hotkey: str | None = None
    _fate_block: int = field(default=0, init=False)

    async def step(self) -> Result:
        """Set the weights if they are due and the chain would take them; raises `ChainError` if it cannot be read."""
        chain, graph = self.chain, await self.chain.metagraph()
        where = f"netuid {graph.netuid} at block {graph.block}"
        me = graph.by_hotkey(chain.hotkey)
        if me is None:
            problem = f"hotkey {chain.hotkey} is not registered on {where}: register it"
            return Result(RETRY_BLOCKS, problem, {"registered": False})
        standing = {"registered": True, "permit": me.permit}
        if not me.permit:
            epoch_block = (await chain.epoch()).next_epoch_block or graph.block + RETRY_BLOCKS
            problem = f"hotkey {chain.hotkey} has no validator permit on {where}: it needs more stake; permits change"
            return Result(max(1, epoch_block - graph.block), f"{problem} at the next epoch, {epoch_block}", standing)
        target = await self._target(graph)
        params = await chain.weight_params(chain.hotkey)
        last = me.last_update_block if params.last_update_block is None else params.last_update_block
        interval_blocks = max(self.interval_blocks, params.rate_limit_blocks)
        due = last + (params.rate_limit_blocks if last == me.registered_block else interval_blocks)  # or never set yet
        if isinstance(target, Neuron) and (wait := max(due, self._fate_block) - graph.block) > 0:
            return Result(wait, "", standing)
        if isinstance(target, Neuron) and target != me:
            fewest = min(params.min_allowed_weights, len(graph.neurons))
            if fewest > 1:
                target = f"{where} takes no vector of 1 weight, at least {fewest} (min_allowed_weights): ask its owner"
            elif params.max_weight < U16_MAX:
                target = f"{where} takes at most {params.max_weight}/{U16_MAX} on one uid (max_weight): ask its owner"
        if not isinstance(target, Neuron):
            problem = f"no weights sent: {target}"
            return Result(RETRY_BLOCKS, problem, standing | {"weights": refusal("NotSent", problem, graph.block)})
        outcome = await chain.set_weights({target.uid: 1}, params.version_key)
        await self.journal.add_burn(target.uid, target.hotkey, outcome)
        standing["weights"] = outcome
        if outcome.ok:
            note = " (the owner: burned)" if target.coldkey == graph.owner_coldkey else ""
            said = f"all weight of uid {me.uid} on uid {target.uid}, {target.hotkey}{note}"
            print(f"block {outcome.block}: {said}", flush=True)
            return Result(interval_blocks, "", standing)
        if outcome.next is Next.WAIT_BLOCKS:
            return Result(max(1, outcome.wait_blocks), "", standing)
        if outcome.next is Next.READ_STATE_FIRST:  # if it happened, the chain's last update will say so
            self._fate_block = max(graph.block, outcome.block) + FATE_BLOCKS
            return Result(1, f"the fate of the weights is unknown: {outcome.detail}", standing)
        wait = 1 if outcome.next is Next.SIGN_AGAIN else RETRY_BLOCKS
        return Result(wait, f"weights refused: {outcome.detail}", standing)

    async def _target(self, graph: Metagraph) -> Neuron | str:
        """Whom to weigh, or why there is nobody."""
        hotkey, uid = self.target_hotkey, self.target_uid
        if hotkey is None and uid is None:
            burn_uid = graph.burn_uid()
            no_uid = f"the owner's hotkey {graph.owner_hotkey} is not registered, no uid burns; name a --target-uid"
            return next((neuron for neuron in graph.neurons if neuron.uid == burn_uid), no_uid)
        if hotkey is None:
            now = next((neuron.hotkey for neuron in graph.neurons if neuron.uid == uid), None)
            if now is None:
                return f"the subnet has no uid {uid}: choose another --target-uid"
            hotkey = await self.journal.bind_target(uid, now)
            if now != hotkey:  # what the journal says may stop it, and lead it nowhere else
                return f"uid {uid} was {hotkey} and is now {now}: to pay one of them, say --target-hotkey"
        return graph.by_hotkey(hotkey) or f"the target {hotkey} is not registered: choose another --target-hotkey"
