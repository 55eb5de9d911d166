"""Messages to people through any webhook that takes Slack's JSON: alerts, recoveries, and a summary a day.

    python -m chain notify --slack-webhook-url URL "hello"      send one message, to see that the webhook works

`Notifier` sends off the main path, `AlertRules` and `summary_due` decide when there is something to say; they are pure.
Read next: `runtime/options.py`, `base.py` (`WriteOutcome`).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import aiohttp

from runtime.options import Setting, add_settings, url
from runtime.passwords import Secret

POST_SECONDS = 10  # the total deadline of one message
CLOSE_SECONDS = 5  # what a stopping program waits for its last messages
KIND_SECONDS = 600  # between two messages of one kind
GAP_SECONDS = 1  # between any two: Slack takes one a second
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 5, 600  # doubled from one failure to the next
MAX_WAIT_SECONDS = 3600  # of what a server asks for with Retry-After
MAX_PENDING, MAX_TEXT, MAX_REPLY_BYTES = 100, 3000, 200

NOTIFY_SETTINGS = (
    Setting(
        "slack_webhook_url",
        ("--slack-webhook-url", "--slack_webhook_url"),
        "where alerts and the daily summary go",
        ("SLACK_WEBHOOK_URL",),
        type=url("http", "https"),
        metavar="URL",
        secret=True,
    ),
)

log = logging.getLogger("notify")


def add_notify_options(parser: argparse.ArgumentParser) -> None:
    """`--slack-webhook-url`; it fills `slack_webhook_url` for `Notifier.open`."""
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

        Args:
            webhook: None: messages are only logged.
            sender: stands before each message: which program, hotkey, subnet.
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
