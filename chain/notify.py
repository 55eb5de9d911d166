"""Who is told of trouble that begins, lasts and ends, and of each day, by any webhook that takes Slack's JSON.

    python -m chain notify --slack-webhook-url URL "hello"      send one message, to see that the webhook works

`AlertRules` and `summary_due` say what there is to say, and are pure: a clock's readings are arguments; `Notifier`
sends it off the main path. Read next: `base.py` (`WriteOutcome`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import aiohttp

from chain.base import Next, WriteOutcome
from runtime.hidden import hide
from runtime.options import Setting, add_settings, url
from runtime.passwords import Secret

REPEAT_SECONDS = 6 * 3600  # an alert that lasts is told again
WEIGHTS_LATE_SECONDS = 3600  # overdue: so much later than they should have been set
CHAIN_SILENT_SECONDS = 600
FAILURES_IN_A_ROW = 2  # of a kind that may pass by itself
POST_SECONDS = 10  # the total deadline of one message
CLOSE_SECONDS = 5  # what a stopping program waits for its last messages
KIND_SECONDS = 600  # between two messages of one kind
GAP_SECONDS = 1  # between any two: Slack takes one a second
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 5, 600  # doubled from one failure to the next
MAX_WAIT_SECONDS = 3600  # of what a server asks for with Retry-After
MAX_PENDING, MAX_TEXT, MAX_REPLY_BYTES = 100, 3000, 200

NOTIFY_SETTINGS = (
    Setting(
        "slack_webhook_url", ("--slack-webhook-url", "--slack_webhook_url"), "where alerts and the daily summary go",
        ("SLACK_WEBHOOK_URL",), type=url("http", "https"), metavar="URL", secret=True,
    ),
)  # fmt: skip

log = logging.getLogger("notify")


def add_notify_options(parser: argparse.ArgumentParser) -> None:
    """`--slack-webhook-url`, for `Notifier.open`."""
    add_settings(parser, "alerts", NOTIFY_SETTINGS)


# ---------------------------------------------------------------------------------------------------------------------
# Sending


class Reply(NamedTuple):
    """What became of one message: `problem` is empty if it was delivered; `again_seconds` is None if that is final."""

    problem: str = ""
    again_seconds: float | None = None


class Notifier:
    """Sends messages one after the other in a task of its own; made by `Notifier.open`."""

    def __init__(self, webhook: Secret | None, sender: str):
        self._webhook, self._sender = webhook, sender
        self._pending: dict[str, tuple[str, int]] = {}  # by kind: the newest text, how many before it were left out
        self._not_before: dict[str, float] = {}  # by kind
        self._paused_until = 0.0
        self._failures = 0
        self._closing = False
        self._wake = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, webhook: Secret | None, sender: str) -> AsyncIterator[Notifier]:
        """A notifier for the time of an `async with`; at its end what is still waiting has CLOSE_SECONDS.

        Without a webhook messages are only logged; `sender` stands before each: which program, hotkey, subnet.
        """
        notifier = cls(webhook, sender)
        if webhook is None:
            yield notifier
            return
        async with posting_session() as session:
            task = asyncio.create_task(notifier._work(session))
            try:
                yield notifier
            finally:
                notifier._closing = True
                notifier._wake.set()
                await asyncio.wait({task}, timeout=CLOSE_SECONDS)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def notify(self, kind: str, text: str) -> None:
        """Log a message and have it sent; returns at once and never raises. Call it in the event loop's thread.

        Args:
            kind: at most one message of a kind goes out in KIND_SECONDS; of those that come meanwhile the newest
                follows, so that the last state is always told.
            text: plain; what Slack would take for markup is escaped.
        """
        log.warning("%s", text)
        if self._webhook is None:
            return
        _, left_out = self._pending.pop(kind, ("", -1))
        if len(self._pending) >= MAX_PENDING:
            self._pending.pop(next(iter(self._pending)))
        self._pending[kind] = (text, left_out + 1)
        self._wake.set()

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            kind = min(self._pending, key=lambda kind: self._not_before.get(kind, 0.0), default=None)
            if kind is None:
                if self._closing:
                    return
                await self._sleep(None)
                continue
            wait = max(self._not_before.get(kind, 0.0), self._paused_until) - time.monotonic()
            if wait > 0 and not self._closing:
                await self._sleep(wait)
                continue
            text, left_out = self._pending.pop(kind)
            note = f" ({left_out} earlier messages of this kind were left out)" if left_out else ""
            reply = await post(session, self._webhook, f"{self._sender}: {text}{note}")
            now = time.monotonic()
            if reply.again_seconds is None:
                self._failures = 0
                self._paused_until = now + GAP_SECONDS
                self._not_before = {name: at for name, at in self._not_before.items() if at > now}
                self._not_before[kind] = now + KIND_SECONDS
            else:
                newer, more = self._pending.get(kind, (text, -1))
                self._pending[kind] = newer, left_out + more + 1
                retry = min(FIRST_RETRY_SECONDS * 2**self._failures, LAST_RETRY_SECONDS)
                self._failures = min(self._failures + 1, 10)
                self._paused_until = now + max(retry, reply.again_seconds)
                if self._closing:
                    return
            if reply.problem:
                log.warning("the webhook %r %s", self._webhook, reply.problem)

    async def _sleep(self, seconds: float | None) -> None:
        """Until then, or until something new is there."""
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()


def posting_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=POST_SECONDS), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )


async def post(session: aiohttp.ClientSession, webhook: Secret, text: str) -> Reply:
    """Send one message; never raises, and what it returns never holds the address."""
    text = hide(text)
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 4] + " ..."
    plain = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    escaped = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    try:
        async with session.post(webhook.reveal(), json={"text": escaped}, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return Reply()
            body = (await response.content.read(MAX_REPLY_BYTES)).decode("ascii", "replace")
    except Exception as error:  # whatever a server does to the client: a message may be lost, the program may not
        return Reply(f"did not answer ({type(error).__name__})", 0.0)
    problem = f"answered {response.status} {body!r}"
    if response.status == 429 or response.status >= 500:
        asked = response.headers.get("Retry-After", "")
        return Reply(problem, float(min(int(asked), MAX_WAIT_SECONDS)) if asked.isdecimal() and len(asked) < 9 else 0.0)
    return Reply(f"{problem}; the message is dropped, correct --slack-webhook-url")


# ---------------------------------------------------------------------------------------------------------------------
# When there is something to say


class Alert(NamedTuple):
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
        self._weights_seconds, self._weights_at, self._chain_at = weights_seconds, now, now
        self._failures = {"weights": 0, "sweep": 0}
        self._others: Mapping[str, str] = {}
        self._troubles: dict[str, str] = {}  # what is wrong now, by kind
        self._told: dict[str, tuple[float, float]] = {}  # by kind: told first, told last

    def observe(
        self,
        now: float,
        *,
        chain: bool | str | None = None,
        registered: bool | str | None = None,
        permit: bool | None = None,
        weights: WriteOutcome | None = None,
        sweep: WriteOutcome | None = None,
        income: str | None = None,
        others: Mapping[str, str] | None = None,
    ) -> list[Alert]:
        """Take in what is newly known (None: nothing new) and say what is to be told.

        Args:
            chain: whether the last read was answered, or why it was not; trouble after CHAIN_SILENT_SECONDS.
            registered, permit: of our hotkey; or, in words, what follows where it is not registered.
            weights, sweep: how the last try ended. "Too soon" is no trouble; what only a person can mend is one at
                once; the rest, which may pass, is one at the second time in a row. Weights that are late are one, too.
            income: what is wrong with where the wallet's income lands; empty: nothing.
            others: all other troubles that there are now, by kind.
        """
        news: dict[str, str | None] = {}  # by kind: what is wrong, None: nothing
        if chain is True:
            self._chain_at = now
            news["chain"] = None
        elif chain is not None and (silent := now - self._chain_at) >= CHAIN_SILENT_SECONDS:
            what = f"the chain could not be read for {_span(silent)}: {chain}"
            news["chain"] = what if chain else f"the chain has not answered for {_span(silent)}"
        if registered is not None:
            missing = f"the hotkey is not registered on the subnet; {registered or 'register it'}"
            news["registration"] = None if registered is True else missing
        if permit is not None:
            news["permit"] = None if permit else "the hotkey has no validator permit, its weights count for nothing"
        if income is not None:
            news["income"] = income or None
        for kind, outcome in (("weights", weights), ("sweep", sweep)):
            if outcome is not None:
                news |= self._judge(kind, outcome)
        if weights is not None and weights.ok:
            self._weights_at = now
        if others is not None:
            gone = self._others.keys() - others.keys()
            news, self._others = dict.fromkeys(gone) | dict(others) | news, others
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

    Of several missed days the last: older numbers are in the databases.

    Args:
        last_day: of the last summary; the caller keeps it over restarts, and begins with `day_before` of its first
            start, so that the first midnight brings the first summary.
    """
    day = day_before(now_seconds)
    return day if day > last_day else None
