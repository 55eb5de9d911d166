"""What a miner's status server answers.

Read first: `server.py`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from protocol import RebalanceAnswer, RebalanceQuery
from status.board import Showing
from status.pages import Pages
from status.server import MINER_PORT, Status, html_answer, labels, version
from wire.codec import to_plain

CALLERS_LIMIT_SECONDS = 300  # of a miner's list of who may call
KEPT_ASKS = 50  # a miner's page shows so many


class MinerStatus(Status):
    """What a miner knows of itself, and what its status server answers.

    `callers` says how many may call, and how old the list is in seconds; `receipts` gives so many of the newest
    statements that validators signed about its scores; `shows` is what mechanisms declare of their lines (`board.py`).
    """

    prefix, port = "alm_miner", MINER_PORT

    def __init__(
        self,
        callers: Callable[[], tuple[int, float]],
        receipts: Callable[[int], Awaitable[list[Mapping[str, Any]]]],
        hotkey: str,
        options: Any,
        network: str = "local",
        shows: Sequence[Showing] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self.routes["/scores"] = self.scores
        self._callers, self._receipts, self._shows, self._clock = callers, receipts, shows, clock
        self._who = {"network": network, "name": options.name, "hotkey": hotkey, "strategy": options.strategy}
        self._asks: deque[tuple[float, dict[str, Any]]] = deque(maxlen=KEPT_ASKS)
        self._answers: Counter[str] = Counter()
        self._last_error = ""
        self._pair: dict[str, Any] | None = None

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
        text = f"{len(said.desired_positions)} position(s)" if kind == "changed" else text
        ask = {"caller": caller, "round_id": query.round_id, "block": query.block_number, "answer": text}
        self._asks.appendleft((self._clock(), ask | {"milliseconds": f"{seconds * 1000:.1f}"}))

    def failed(self, query: RebalanceQuery, error: Exception) -> None:
        """Take note that the strategy failed, or proposed what is not legal."""
        self._answers["failed"] += 1
        self._last_error = f"{query.round_id} block {query.block_number}: {type(error).__name__}; the log has it"

    async def now(self) -> dict[str, Any]:
        """`/status`."""
        count, age = self._callers()
        problems = []
        if age > CALLERS_LIMIT_SECONDS:
            problems.append(f"the list of callers was read {age:.0f} s ago, the limit is {CALLERS_LIMIT_SECONDS} s")
        return self._who | {
            "version": version(),
            "health": {"ok": not problems, "problems": problems},
            "pair": self._pair,
            "callers": count,
            "callers_age_seconds": int(age),
            "answers": dict(self._answers),
            "last_error": self._last_error,
            "asks": [ask | {"age_seconds": int(self._clock() - at)} for at, ask in self._asks],
        }

    def measured(self, now: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
        """See `Status`."""
        answers = {labels(kind=kind): count for kind, count in now["answers"].items()}
        return [
            ("callers", "Hotkeys that are known.", now["callers"]),
            ("callers_age_seconds", "Since they were read.", now["callers_age_seconds"]),
            ("answers_total", "Answers by kind.", answers),
            ("last_ask_age_seconds", "Since the last ask.", now["asks"][0]["age_seconds"] if now["asks"] else None),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """`/`."""
        pages = Pages({}, self._pair, self._shows)
        shown = {"status": await self.now(), "scores": await self.scores(request)}
        return await html_answer(pages, "process.html", "ALM miner", **shown)

    async def scores(self, request: web.Request) -> dict[str, Any]:
        """`/scores`."""
        names = ("round_id", "code", "start_time")
        rounds = [
            {name: said["round"][name] for name in names}
            | {name: said[name] for name in ("validator", "ranked", "line", "baselines")}
            | {"rank": said["line"] and said["line"]["rank"]}
            for said in await self._receipts(KEPT_ASKS)
        ]
        return {"rounds": rounds}
