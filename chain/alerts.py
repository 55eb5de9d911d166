"""When somebody is told: what begins, lasts and ends, from what a validator saw of its chain.

Pure: a clock's readings are arguments. Read next: `notify.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from chain.base import Next, WriteOutcome

REPEAT_SECONDS = 6 * 3600  # an alert that lasts is told again
WEIGHTS_LATE_SECONDS = 3600  # overdue: so much later than they should have been set
CHAIN_SILENT_SECONDS = 600
FAILURES_IN_A_ROW = 2  # of a kind that may pass by itself


# ---------------------------------------------------------------------------------------------------------------------
# When there is something to say


class Alert(NamedTuple):
    """For `Notifier.notify(*alert)`."""

    kind: str
    text: str


class AlertRules:
    """What is told of a validator or sweeper: each trouble once when it begins, again while it lasts, and its end.

    Nothing is kept over a restart: a trouble that lasts is told again then.

    Args:
        now: seconds of any clock that `observe` gets too.
        weights_seconds: how often weights should be set; None: this program sets none.
    """

    def __init__(self, now: float, weights_seconds: float | None = None):
        self._weights_seconds, self._weights_at = weights_seconds, now
        self._chain_at = now
        self._failures = {"weights": 0, "sweep": 0}
        self._troubles: dict[str, str] = {}  # what is wrong now, by kind
        self._told: dict[str, tuple[float, float]] = {}  # by kind: told first, told last

    def observe(
        self,
        now: float,
        *,
        chain: bool | None = None,
        registered: bool | None = None,
        permit: bool | None = None,
        weights: WriteOutcome | None = None,
        sweep: WriteOutcome | None = None,
    ) -> list[Alert]:
        """Take in what is newly known (None: nothing new) and say what is to be told.

        Args:
            now: seconds.
            chain: whether the last read was answered; trouble after CHAIN_SILENT_SECONDS.
            registered, permit: of our hotkey.
            weights, sweep: how the last try ended. "Too soon" is no trouble; what only a person can mend is one at
                once; the rest, which may pass, is one at the second time in a row. Weights that are late are one, too.
        """
        news: dict[str, str | None] = {}  # by kind: what is wrong, None: nothing
        if chain:
            self._chain_at = now
            news["chain"] = None
        elif chain is not None and (silent := now - self._chain_at) >= CHAIN_SILENT_SECONDS:
            news["chain"] = f"the chain has not answered for {_span(silent)}"
        if registered is not None:
            news["registration"] = None if registered else "the hotkey is not registered on the subnet; register it"
        if permit is not None:
            news["permit"] = None if permit else "the hotkey has no validator permit, its weights count for nothing"
        for kind, outcome in (("weights", weights), ("sweep", sweep)):
            if outcome is not None:
                news |= self._judge(kind, outcome)
        if weights is not None and weights.ok:
            self._weights_at = now
        self._troubles = {kind: text for kind, text in (self._troubles | news).items() if text is not None}
        late = now - self._weights_at
        if self._weights_seconds is not None and late >= self._weights_seconds + WEIGHTS_LATE_SECONDS:
            self._troubles.setdefault("weights", f"weights are overdue: none were set for {_span(late)}")
        return list(self._tell(now))

    def _judge(self, kind: str, outcome: WriteOutcome) -> dict[str, str | None]:
        """What a write's outcome says of its kind; nothing if it leaves that as it was."""
        if outcome.ok:
            self._failures[kind] = 0
            return {kind: None}
        if outcome.next == Next.WAIT_BLOCKS:
            return {}
        self._failures[kind] += 1
        if outcome.next != Next.NOTHING and self._failures[kind] < FAILURES_IN_A_ROW:
            return {}
        return {kind: f"{kind} failed, {self._failures[kind]} in a row: {outcome.detail or outcome.name}"}

    def _tell(self, now: float) -> Iterator[Alert]:
        for kind, text in self._troubles.items():
            if kind in _OF_THE_REGISTERED and "registration" in self._troubles:
                continue
            first, last = self._told.get(kind, (now, None))
            if last is None or now - last >= REPEAT_SECONDS:
                self._told[kind] = first, now
                yield Alert(kind, f"ALERT: {text}" if last is None else f"STILL, since {_span(now - first)}: {text}")
        for kind in [kind for kind in self._told if kind not in self._troubles]:
            yield Alert(kind, f"RECOVERED: {kind}, after {_span(now - self._told.pop(kind)[0])}")


_OF_THE_REGISTERED = ("permit", "weights")  # without a registration there is neither, and that is told already


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def day_before(now_seconds: float) -> str:
    """The UTC day that ended last, like 2025-10-31."""
    return (datetime.fromtimestamp(now_seconds, UTC).date() - timedelta(days=1)).isoformat()


def summary_due(now_seconds: float, last_day: str) -> str | None:
    """The UTC day whose summary is due: at its end, 00:00 UTC, or at the first start after that.

    Args:
        now_seconds: Unix time.
        last_day: of the last summary; the caller keeps it over restarts, and begins with `day_before` of its first
            start, so that the first midnight brings the first summary.

    Returns:
        The day, or None. Of several missed days the last: older numbers are in the databases.
    """
    day = day_before(now_seconds)
    return day if day > last_day else None
