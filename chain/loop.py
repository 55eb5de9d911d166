"""The loop that the burn and the sweep run in: nothing outside ends it, and it tells who asked.

    await follow(Burner(...).step, poll_seconds, teller(notifier, AlertRules(time.monotonic()), journal))

Read next: `stake.py`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from chain.base import BLOCK_SECONDS, ChainError
from chain.journal import Journal
from chain.notify import AlertRules, Notifier
from runtime.db import StoreError
from runtime.process import EXIT_FAILED, EXIT_OK

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
            result, news = Result(1, f"the chain: {error}", {}), {"chain": str(error)}
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
