"""Evidence as objects: what the checks of a round read. Read first: `evidence.py`. Read next: `checks.py`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from liquidity.events import Event, ReplayError, event_args
from liquidity.executions import Execution, execution_of
from protocol import MAX_ANSWER_BYTES, MAX_QUERY_BYTES, ProtocolError
from sim import PoolError
from spine.mechanism import Mechanism
from wire.codec import decode, from_plain
from wire.text import quoted

MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, ReplayError, PoolError)


@dataclass(frozen=True, slots=True)
class Ask:
    """One ask; `path` names it in messages, `first` says whether it came before the opening, `answer` is what was
    accepted."""

    path: str
    stored: dict[str, Any]
    first: bool
    query: Any
    body: bytes
    answer: Any

    @property
    def hotkey(self) -> str:
        return self.stored["hotkey"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Evidence of the right shape, as objects."""

    evidence: dict[str, Any]
    mechanism: Mechanism
    row: dict[str, Any]
    settings: Any
    snapshot: Any
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
    def decisions(self) -> tuple[Any, ...]:
        read = self.mechanism.decision
        return tuple(
            read(ask.hotkey, ask.stored["effective_block"], ask.query, ask.answer) for ask in self.asks if ask.answer
        )


def parts_of(evidence: dict[str, Any], mechanism: Mechanism) -> Parts:
    """Raises one of `MALFORMED`, naming the part."""
    snapshot, events, asks, opening = None, [], [], evidence["round"]["opening_block"]
    if evidence["snapshot"] is None and evidence["round"]["close_block"] is not None:
        raise ValueError("snapshot: null, and the round has a close_block")
    if evidence["snapshot"] is not None:
        snapshot = from_plain(mechanism.state, evidence["snapshot"], "snapshot")
    for n, (block, log_index, time, kind, args) in enumerate(evidence["events"]):
        with _named(f"events[{n}]"):
            events.append(Event(int(block), int(log_index), int(time), kind, event_args(kind, args)))
    for n, ask in enumerate(evidence["asks"]):
        body, answer = base64.b64decode(ask["answer"]), None
        with _named(f"asks[{n}].query"):
            query = decode(mechanism.query, base64.b64decode(ask["query"]), MAX_QUERY_BYTES)
        if ask["effective_block"] is not None:
            with _named(f"asks[{n}].answer"):
                answer = decode(mechanism.answer, body, MAX_ANSWER_BYTES)
        first = opening is None or query.block_number < opening
        asks.append(Ask(f"asks[{n}]", ask, first, query, body, answer))
    executions = []
    for n, stored in enumerate(evidence["executions"]):
        with _named(f"executions[{n}].execution"):
            executions.append(execution_of(stored["execution"]))
    settings = from_plain(mechanism.settings, evidence["round"]["settings"], "round.settings")
    return Parts(evidence, mechanism, evidence["round"], settings, snapshot, tuple(events), asks, executions)


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
