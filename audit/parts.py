"""Evidence as objects: what the checks of a round read. Read first: `evidence.py`. Read next: `played.py`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from audit.shape import DIGITS
from liquidity.events import Event, ReplayError
from liquidity.executions import Execution, execution_of
from liquidity.replay import Snapshot
from liquidity.rounds import Decision
from protocol import (
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    Code,
    JobSettings,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
)
from sim import MAX_TICK, PIPS, PoolError
from wire.codec import decode, from_plain
from wire.text import quoted

MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, ReplayError, PoolError)
BROKEN = (Code.VOID_INTERRUPTED, Code.VOID_CONTRADICTION, Code.VOID_GAP)  # a round that may have no close


@dataclass(frozen=True, slots=True)
class Ask:
    """One ask; `path` names it in messages, `answer` is what was accepted."""

    path: str
    stored: dict[str, Any]
    query: RebalanceQuery
    body: bytes
    answer: RebalanceAnswer | None

    @property
    def hotkey(self) -> str:
        return self.stored["hotkey"]

    @property
    def first(self) -> bool:
        """Whether it is the round's first ask, before the opening."""
        return self.query.block_time < self.query.window_start_time

    def decision(self) -> Decision:
        shown, desired = self.query.current_positions, self.answer.desired_positions
        return Decision(self.hotkey, self.stored["effective_block"], shown, desired)


@dataclass(frozen=True, slots=True)
class Parts:
    """Evidence of the right shape, as objects."""

    evidence: dict[str, Any]
    row: dict[str, Any]
    settings: JobSettings
    snapshot: Snapshot | None
    events: tuple[Event, ...]
    asks: list[Ask]
    executions: list[Execution]

    @property
    def live(self) -> bool:
        return self.row["round_type"] == "live"

    @property
    def played(self) -> bool:
        """Whether it came to its close, so that there is something to compute."""
        return self.row["close_block"] is not None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(ask.decision() for ask in self.asks if ask.answer)


def parts_of(evidence: dict[str, Any]) -> Parts:
    """Raises one of `MALFORMED`, naming the part."""
    snapshot, events, asks = None, [], []
    if evidence["snapshot"] is None and evidence["round"]["close_block"] is not None:
        raise ValueError("snapshot: null, and the round has a close_block")
    if evidence["snapshot"] is not None:
        snapshot = from_plain(Snapshot, evidence["snapshot"], "snapshot")
        if not (0 <= snapshot.fee < PIPS and 0 < snapshot.tick_spacing <= MAX_TICK):
            raise ValueError(f"snapshot.fee, tick_spacing: {snapshot.fee}, {snapshot.tick_spacing} are no pool's")
    for n, (block, log_index, time, kind, args) in enumerate(evidence["events"]):
        with _named(f"events[{n}]"):
            events.append(Event(int(block), int(log_index), int(time), kind, event_args(kind, args)))
    for n, ask in enumerate(evidence["asks"]):
        body, answer = base64.b64decode(ask["answer"]), None
        with _named(f"asks[{n}].query"):
            query = decode(RebalanceQuery, base64.b64decode(ask["query"]), MAX_QUERY_BYTES)
        if ask["effective_block"] is not None:
            with _named(f"asks[{n}].answer"):
                answer = decode(RebalanceAnswer, body, MAX_ANSWER_BYTES)
        asks.append(Ask(f"asks[{n}]", ask, query, body, answer))
    executions = []
    for n, stored in enumerate(evidence["executions"]):
        with _named(f"executions[{n}].execution"):
            executions.append(execution_of(stored["execution"]))
    settings = from_plain(JobSettings, evidence["round"]["settings"], "round.settings")
    return Parts(evidence, evidence["round"], settings, snapshot, tuple(events), asks, executions)


def event_args(kind: str, args: list[str]) -> tuple:
    """Event arguments from their decimal strings; calls and owners stay text."""
    textual = kind in ("swap", "mint", "burn", "collect", "stake", "unstake")
    if kind == "swap" and args[0] not in ("in", "out", "limit", "?"):
        raise ValueError(f"{quoted(args[0])} is no call of a swap")
    return tuple(arg if textual and n == 0 else integer(arg) for n, arg in enumerate(args))


def integer(text: str) -> int:
    if not DIGITS.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no integer")
    return int(text)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors inside begin with the path."""
    try:
        yield
    except MALFORMED as error:
        raise ValueError(f"{path}: {said(error)}") from error


def said(error: Exception) -> str:
    """An error as part of a message."""
    return error.detail if isinstance(error, ProtocolError) else f"{quoted(str(error) or type(error).__name__)}"
