"""What is wrong with a validator's jobs, their newest rounds and its market: what its alerts tell beside the chain's.

    troubles = Troubles(store, market, pace)
    await troubles.now()                         # {"job pol": "job pol is off: ..."}, empty when all is well

Read next: `chain/notify.py` (`AlertRules`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from markets.base import Market, MarketEnded, MarketError
from protocol import Code
from store import Store

ROUNDS_IN_A_ROW = 3  # of a job that are void, or that no miner answered
MARKET_SILENT_SECONDS = 600  # of market time


class Troubles:
    """Looks when asked; `pace` is market seconds a second, `clock` gives seconds."""

    def __init__(self, store: Store, market: Market, pace: float, clock: Callable[[], float] = time.monotonic):
        self.store, self.market, self.pace, self._clock = store, market, pace, clock
        self._head, self._head_at = -1, clock()

    async def now(self) -> dict[str, str]:
        """By kind of alert, what is wrong."""
        jobs = await self.store.jobs()
        found = {f"job {job_id}": f"job {job_id} is off: {why}" for job_id, why in self.store.wrong.items()}
        for job_id in [job.job_id for job in jobs if job.active]:
            for kind in ("evaluation", "live"):
                found |= await self._rounds(job_id, kind)
        return found | await self._market()

    async def _rounds(self, job_id: str, kind: str) -> dict[str, str]:
        ended = await self.store.newest_codes(job_id, kind, ROUNDS_IN_A_ROW)
        what, codes = f"the last {len(ended)} {kind} rounds of job {job_id}", [code for code, _ in ended]
        if len(ended) == ROUNDS_IN_A_ROW and all(code.startswith("void") for code in codes):
            return {f"{kind} rounds of {job_id}": f"{what} are void, the newest: {codes[0]}, {ended[0][1]}"}
        if codes == [Code.NOBODY_RANKED] * ROUNDS_IN_A_ROW:
            return {f"miners of {job_id}": f"no miner answered in {what}: look at this machine's way out"}
        return {}

    async def _market(self) -> dict[str, str]:
        head, why = self._head, "; the log says why"
        try:
            head = (await self.market.head()).number
        except (MarketError, MarketEnded) as error:
            why = f": {error}"
        if head != self._head:
            self._head, self._head_at = head, self._clock()
        silent = self._clock() - self._head_at
        if silent < MARKET_SILENT_SECONDS / self.pace:
            return {}
        return {"market": f"the market has not moved for {silent / 60:.0f} min, since block {head}{why}"}
