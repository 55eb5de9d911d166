"""Liquidity as a mechanism: miners propose positions of a vault, real swaps say what they earn.

What everything shared sees of `liquidity/`; see `spine/mechanism.py`, whose words these are.
Pure: markets come as arguments. Read first: `rounds.py`, `live.py`. Read next: `recheck.py` (what the audit adds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from liquidity import recheck, showing
from liquidity.events import Event
from liquidity.executions import EXECUTION_SECONDS, Order
from liquidity.live import LiveInputs, play_live
from liquidity.replay import Snapshot
from liquidity.rounds import Decision, Round, RoundInputs, plan, play
from protocol import (
    MAX_ANSWER_BYTES,
    MAX_TEXT_CHARS,
    Block,
    Code,
    Job,
    JobSettings,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    RoundResult,
    check_answer,
)
from scoring import RULES_VERSION
from wire.codec import decode


class Liquidity:
    """The first mechanism; its attributes and methods are explained at `spine.mechanism.Mechanism`."""

    name, path = "liquidity", "/rebalance"
    settings, state, query, answer = JobSettings, Snapshot, RebalanceQuery, RebalanceAnswer
    settle_seconds, live = 0, True
    game = Round
    showing = showing
    checks = recheck.CHECKS
    line_problems = staticmethod(recheck.line_problems)

    def __init__(self, rules_version: int = RULES_VERSION, *earlier: Liquidity):
        self.rules_version, self.earlier = rules_version, earlier

    def interval_blocks(self, settings: JobSettings) -> int:
        return settings.checkpoint_blocks

    async def observe(self, world: Any, job: Job, block: Block) -> Snapshot:
        return await world.market.snapshot(job.vault, block.number)

    async def events(self, world: Any, first: int, last: int) -> Sequence[Event]:
        return await world.market.events(first, last)

    async def settle(self, world: Any, job: Job, block: Block) -> None:
        """The events say it all."""

    def judge(self, body: bytes, query: RebalanceQuery) -> tuple[Code, str, RebalanceAnswer | None]:
        try:
            answer = decode(RebalanceAnswer, body, MAX_ANSWER_BYTES)
            check_answer(answer, query, keeps=self.rules_version > 1)
        except ProtocolError as error:
            return error.code, error.detail, None
        if not answer.accepted:  # the reason goes to terminals and logs
            return Code.REFUSED, ascii(answer.refusal_reason or "")[1:-1][:MAX_TEXT_CHARS], None
        return Code.ACCEPTED, "", answer

    def decision(self, hotkey: str, block: int, query: RebalanceQuery, answer: RebalanceAnswer) -> Decision:
        return Decision(hotkey, block, query.current_positions, answer.desired_positions)

    def play(self, settings, snapshot, close_block, events, entrants, decisions, settlement=None) -> RoundResult:
        return play(RoundInputs(settings, snapshot, close_block, tuple(events), tuple(entrants), tuple(decisions)))

    # -- live rounds, see `spine/live.py`

    def order(self, round_id: str, query: RebalanceQuery, answer: RebalanceAnswer) -> Order | None:
        """What an accepted answer wants done on the vault; None if it changes nothing."""
        _, close, mint = plan(query.current_positions, answer.desired_positions)
        if not (close or mint):
            return None
        decision, deadline = f"{round_id}:{query.block_number}", max(query.deadline, query.window_start_time)
        where = query.chain_id, query.pair_address, query.sn_liquidity_manager_address
        asked = query.current_positions, answer.desired_positions
        seen = query.block_number, query.sqrt_price_x96, query.tick
        return Order(decision, *where, *asked, *seen, deadline + EXECUTION_SECONDS)

    def play_live(self, settings, snapshot, close_block, events, hotkey, executions, closing) -> RoundResult:
        """The score of who managed the vault; arguments as of `LiveInputs`."""
        told = tuple(events), hotkey, tuple(executions), closing
        return play_live(LiveInputs(settings, snapshot, close_block, *told, self.rules_version))


MECHANISM = Liquidity(RULES_VERSION, Liquidity(1))
