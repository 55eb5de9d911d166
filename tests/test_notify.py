"""Messages reach a webhook or are tried again, nothing waits for them, and alerts say each thing once.

Run: `python -m pytest tests/test_notify.py`. The webhook is a real server on loopback. Read next: `notify.py`.
"""

from __future__ import annotations

import asyncio
import calendar
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from aiohttp import web
from subnets import command

from chain import notify
from chain.base import Next, WriteCode, WriteOutcome
from chain.notify import Alert, AlertRules, Notifier, Reply, day_before, post, summary_due
from runtime.passwords import Secret

HOUR = 3600
FIXED = WriteOutcome(True, WriteCode.OK, "", Next.NOTHING, "", 1)


def failed(following: Next, detail: str = "Oops: it failed") -> WriteOutcome:
    return WriteOutcome(False, WriteCode.UNKNOWN, "Oops", following, detail, 1)


class Webhook:
    """What a server got, and what it answers: one entry of `answers` after the other, then 200."""

    def __init__(self, *answers: web.Response):
        self.got: list[str] = []
        self.answers = list(answers)
        self.url = Secret("")

    async def receive(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/json"
        plain = await request.json()
        assert set(plain) == {"text"}
        self.got.append(plain["text"])
        return self.answers.pop(0) if self.answers else web.Response(text="ok")

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def listening(webhook: Webhook):
    app = web.Application()
    app.router.add_post("/services/SECRET", webhook.receive)
    app.router.add_route("*", "/elsewhere", webhook.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    webhook.url = Secret(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/services/SECRET")
    try:
        yield webhook
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable], port: int = 0):
    """A server below HTTP, that may behave as badly as it likes; gives its address."""
    tasks: set[asyncio.Task] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.CancelledError):
            await behave(reader, writer)
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    try:
        yield Secret(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/services/SECRET")
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of minutes, here of milliseconds."""
    for name, seconds in (("GAP_SECONDS", 0), ("FIRST_RETRY_SECONDS", 0.01), ("LAST_RETRY_SECONDS", 0.05)):
        monkeypatch.setattr(notify, name, seconds)


def with_webhook(work: Callable[[Webhook], Awaitable], *answers: web.Response) -> Webhook:
    async def main() -> Webhook:
        async with listening(Webhook(*answers)) as webhook:
            await work(webhook)
        return webhook

    return asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Sending


def test_a_message_says_who_sent_it_and_cannot_be_taken_for_markup():
    async def work(webhook):
        async with Notifier.open(webhook.url, "validator 5F on netuid 98") as notifier:
            notifier.notify("a", "<!channel> a & b\x1b[31m <https://evil|click>\nsecond \ud800 line")
            await webhook.has(1)

    (text,) = with_webhook(work).got
    assert text == (
        "validator 5F on netuid 98: &lt;!channel&gt; a &amp; b [31m &lt;https://evil|click&gt;\nsecond   line"
    )


def test_a_long_message_is_cut_before_it_is_escaped():
    async def work(webhook):
        async with Notifier.open(webhook.url, "s") as notifier:
            notifier.notify("a", "<" * 1_000_000)
            await webhook.has(1)

    (text,) = with_webhook(work).got
    assert text.endswith("&lt; ...") and text.count("&lt;") + len("s: ") + len(" ...") == notify.MAX_TEXT


def test_of_one_kind_the_first_goes_at_once_and_then_only_the_newest(monkeypatch):
    monkeypatch.setattr(notify, "KIND_SECONDS", 0.5)

    async def work(webhook):
        async with Notifier.open(webhook.url, "s") as notifier:
            notifier.notify("a", "begins")
            await webhook.has(1)
            for text in ("one", "two", "ends"):
                notifier.notify("a", text)
            notifier.notify("b", "another kind")
            await webhook.has(2)
            assert webhook.got[1:] == ["s: another kind"]
            await webhook.has(3)

    assert with_webhook(work).got == [
        "s: begins",
        "s: another kind",
        "s: ends (2 earlier messages of this kind were left out)",
    ]


def test_memory_is_bounded_however_many_kinds_there_are():
    async def work(webhook):
        async with Notifier.open(Secret("http://127.0.0.1:9/"), "s") as notifier:
            for n in range(10 * notify.MAX_PENDING):
                notifier.notify(f"kind {n}", "text")
            assert len(notifier._pending) == notify.MAX_PENDING
            notifier._pending.clear()

    with_webhook(work)


def test_what_was_not_taken_is_tried_again_until_it_is():
    answers = [web.Response(status=500), web.Response(status=503, text="x" * 10**6), web.Response(status=429)]

    async def work(webhook):
        async with Notifier.open(webhook.url, "s") as notifier:
            notifier.notify("a", "important")
            await webhook.has(4)

    assert with_webhook(work, *answers).got == ["s: important"] * 4


def test_a_server_that_is_not_there_yet_gets_the_newest_message_when_it_comes():
    async def main():
        async with listening(Webhook()) as first:
            url = first.url
        async with Notifier.open(url, "s") as notifier:
            notifier.notify("a", "begins")
            await asyncio.sleep(0.1)
            notifier.notify("a", "ends")
            port = int(url.reveal().split(":")[2].split("/")[0])
            got: list[str] = []

            async def serve(reader, writer):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r")[0])
                got.append(json.loads(await reader.readexactly(length))["text"])
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await reader.read()

            async with serving(serve, port), asyncio.timeout(20):
                while not got:
                    await asyncio.sleep(0.005)
        return got

    assert asyncio.run(main()) == ["s: ends (1 earlier messages of this kind were left out)"]


def test_an_answer_says_when_to_try_again_and_a_foolish_one_is_bounded():
    async def work(webhook):
        async with notify.posting_session() as session:
            for asked, seconds in (("7", 7), ("0", 0), ("999999", notify.MAX_WAIT_SECONDS), ("9" * 5000, 0), ("-5", 0),
                                   ("Wed, 21 Oct 2025 07:28:00 GMT", 0), ("nan", 0)):  # fmt: skip
                webhook.answers = [web.Response(status=429, headers={"Retry-After": asked})]
                assert (await post(session, webhook.url, "x")).again_seconds == seconds, asked

    with_webhook(work)


def test_the_wait_that_a_server_asks_for_is_kept_for_all_kinds(monkeypatch):
    async def work(webhook):
        async with Notifier.open(webhook.url, "s") as notifier:
            notifier.notify("a", "first")
            await webhook.has(1)
            notifier.notify("b", "second")
            await asyncio.sleep(0.3)
            assert len(webhook.got) == 1
            notifier._paused_until = 0.0
            notifier._wake.set()
            await webhook.has(3)

    got = with_webhook(work, web.Response(status=429, headers={"Retry-After": "3000"})).got
    assert sorted(got[1:]) == ["s: first", "s: second"]


def test_a_redirect_or_a_refusal_is_final_is_not_followed_and_is_told_without_the_address(caplog):
    answers = [
        web.Response(status=302, headers={"Location": "/elsewhere"}),
        web.Response(status=307, headers={"Location": "/elsewhere"}),
        web.Response(status=404, text="no_service\n"),
    ]

    async def work(webhook):
        async with Notifier.open(webhook.url, "s") as notifier:
            for n in range(4):
                notifier.notify(f"kind {n}", f"message {n}")
            await webhook.has(4)

    assert with_webhook(work, *answers).got == [f"s: message {n}" for n in range(4)]
    told = [record.getMessage() for record in caplog.records if "answered" in record.getMessage()]
    assert len(told) == 3 and "'no_service\\n'" in told[2] and "correct --slack-webhook-url" in told[0]
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    "behaviour",
    [
        b"",  # closes at once
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10**6,  # a header without end
        b"HTTP/1.1 500 no\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\nzz",
        None,  # reads and never answers
    ],
)
def test_a_hostile_server_costs_a_retry_and_no_more(monkeypatch, behaviour):
    monkeypatch.setattr(notify, "POST_SECONDS", 0.3)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if behaviour is None:
            await asyncio.sleep(30)
        writer.write(behaviour)
        await writer.drain()

    async def main() -> Reply:
        async with serving(serve) as url, notify.posting_session() as session, asyncio.timeout(20):
            return await post(session, url, "x")

    reply = asyncio.run(main())
    assert reply.problem and reply.again_seconds == 0.0 and "SECRET" not in reply.problem


def test_a_head_that_says_200_is_enough_though_the_body_never_comes():
    """Else the same message would be sent again and again."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        await reader.read()

    async def main() -> Reply:
        async with serving(serve) as url, notify.posting_session() as session:
            return await post(session, url, "x")

    assert asyncio.run(main()) == Reply()


def test_notify_never_waits_and_closing_waits_for_a_dead_server_only_so_long(monkeypatch):
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 0.2)

    async def never(reader, writer):
        await asyncio.sleep(3600)

    async def main() -> None:
        limit = asyncio.timeout(notify.POST_SECONDS / 2)
        async with limit, serving(never) as url, Notifier.open(url, "s") as notifier:
            for n in range(1000):
                notifier.notify(str(n), "text")
            await asyncio.sleep(0.05)  # it is being sent

    asyncio.run(main())


def test_the_last_words_of_a_stopping_program_are_sent():
    async def work(webhook):
        async with Notifier.open(webhook.url, "s") as notifier:
            notifier.notify("a", "one")
            await webhook.has(1)
            notifier.notify("a", "stopped")  # within the time of its kind

    assert with_webhook(work).got == ["s: one", "s: stopped"]


def test_without_a_webhook_messages_are_in_the_log_alone(caplog):
    async def main() -> None:
        async with Notifier.open(None, "s") as notifier:
            notifier.notify("a", "trouble")

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == ["trouble"]


def test_the_command_sends_one_message_and_says_how_that_went():
    async def work(webhook):
        for url, code, said in (
            (webhook.url.reveal(), 0, "/***** has the message"),
            (webhook.url.reveal(), 1, "answered 403"),
            ("http://127.0.0.1:9/SECRET", 1, "did not answer"),
            ("hooks.slack.com/SECRET", 2, "is no address like https://HOST"),
        ):
            webhook.answers = [web.Response(status=403 if code else 200)]
            done = await asyncio.to_thread(command, "-m", "chain", "notify", "--slack-webhook-url", url, "hello")
            assert done.returncode == code and said in done.stdout + done.stderr, done
            assert "SECRET" not in done.stdout + done.stderr

    assert with_webhook(work).got == ["hello", "hello"]
    done = command("-m", "chain", "notify", "hello")
    assert done.returncode == 2 and "set SLACK_WEBHOOK_URL" in done.stderr and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# When there is something to say


def told(rules: AlertRules, *steps: tuple[float, dict]) -> list[str]:
    """All texts of a sequence of observations."""
    return [alert.text for now, facts in steps for alert in rules.observe(now, **facts)]


@pytest.mark.parametrize(
    ("kind", "bad", "good", "said"),
    [
        ("registration", {"registered": False}, {"registered": True}, "not registered"),
        ("permit", {"permit": False}, {"permit": True}, "no validator permit"),
        ("weights", {"weights": failed(Next.NOTHING)}, {"weights": FIXED}, "weights failed, 1 in a row: Oops"),
        ("sweep", {"sweep": failed(Next.NOTHING)}, {"sweep": FIXED}, "sweep failed, 1 in a row: Oops"),
    ],
)
def test_each_trouble_is_told_once_when_it_begins_again_while_it_lasts_and_once_when_it_ends(kind, bad, good, said):
    rules, repeat = AlertRules(0), notify.REPEAT_SECONDS
    assert rules.observe(0, **good) == []
    (begins,) = rules.observe(60, **bad)
    assert begins.kind == kind and begins.text.startswith("ALERT: ") and said in begins.text
    assert told(rules, *((60 + n * 60, {}) for n in range(repeat // 60))) == []  # nothing new is known
    (again,) = rules.observe(60 + repeat, **bad)
    assert again.kind == kind and again.text.startswith("STILL, since 6 h 00 min: ")
    assert rules.observe(60 + repeat + 1, **bad) == []
    (end,) = rules.observe(60 + repeat + 60, **good)
    assert end == Alert(kind, f"RECOVERED: {kind}, after 6 h 01 min")
    assert rules.observe(60 + repeat + 120, **good) == []
    assert [alert.text[:5] for alert in rules.observe(9 * repeat, **bad)] == ["ALERT"]


def test_a_failure_that_may_pass_is_trouble_at_the_second_time_in_a_row_and_too_soon_never():
    for kind in ("weights", "sweep"):
        for following in (Next.SIGN_AGAIN, Next.READ_STATE_FIRST):
            passing, soon = {kind: failed(following)}, {kind: failed(Next.WAIT_BLOCKS)}
            assert told(AlertRules(0), *((n, soon) for n in range(50))) == []
            assert told(AlertRules(0), (1, passing), (2, {kind: FIXED}), (3, passing), (4, soon)) == []
            assert len(told(AlertRules(0), (1, passing), (2, soon), (3, passing), (4, passing))) == 1
            assert told(AlertRules(0), (1, passing), (2, passing), (3, {kind: FIXED}))[1].startswith("RECOVERED")


def test_weights_are_overdue_an_hour_after_their_time_whatever_kept_them():
    late = 4320 + notify.WEIGHTS_LATE_SECONDS
    for facts in ({}, {"weights": failed(Next.WAIT_BLOCKS)}, {"chain": False}):
        rules = AlertRules(1000, weights_seconds=4320)
        assert not [alert for alert in rules.observe(1000 + late - 1, **facts) if alert.kind == "weights"]
        (alert,) = [alert for alert in rules.observe(1000 + late, **facts) if alert.kind == "weights"]
        assert "overdue: none were set for 2 h 12 min" in alert.text
        assert "RECOVERED: weights, after 1 min" in told(rules, (1000 + late + 60, {"weights": FIXED, "chain": True}))
        assert rules.observe(1000 + 2 * late + 59) == []  # counted from the success
    assert told(AlertRules(0), (10**6, {"registered": True, "permit": True, "chain": True})) == []  # it sets none


def test_what_follows_from_a_lost_registration_is_not_told_beside_it():
    rules = AlertRules(0, weights_seconds=60)
    lost = {"registered": False, "permit": False, "weights": failed(Next.NOTHING)}
    assert [alert.kind for now in range(0, 5 * HOUR, 600) for alert in rules.observe(now, **lost)] == ["registration"]
    back = rules.observe(5 * HOUR, registered=True, permit=False)
    assert {alert.kind: alert.text[:5] for alert in back} == {
        "registration": "RECOV",
        "permit": "ALERT",
        "weights": "ALERT",
    }


def test_a_chain_is_silent_after_ten_minutes_not_at_the_first_missed_read():
    rules = AlertRules(0)
    assert told(rules, (100, {"chain": True}), (110, {"chain": False}), (690, {"chain": False})) == []
    (alert,) = rules.observe(700, chain=False)
    assert alert == Alert("chain", "ALERT: the chain has not answered for 10 min")
    assert told(rules, (760, {"chain": True})) == ["RECOVERED: chain, after 1 min"]


# ---------------------------------------------------------------------------------------------------------------------
# The daily summary


def at(text: str) -> float:
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


def test_a_summary_comes_at_midnight_utc_of_every_day_of_four_years_once():
    """The reference computed the next midnight as day + 1 and lost the summary of each month's last day."""
    begin = at("2023-12-31T12:00")
    last, days = day_before(begin), []
    for hour in range(4 * 366 * 24):
        if day := summary_due(begin + hour * HOUR, last):
            assert datetime.fromtimestamp(begin + hour * HOUR, UTC).hour == 0
            days.append(day)
            last = day
    assert days[0] == "2023-12-31" and {"2024-02-29", "2024-10-31", "2025-12-31"} <= set(days)
    for one, two in pairwise(days):
        assert datetime.fromisoformat(two) - datetime.fromisoformat(one) == timedelta(days=1)
    assert len([day for day in days if day.startswith("2024")]) == 366
    assert all(
        sum(day.startswith(f"2025-{m:02}") for day in days) == calendar.monthrange(2025, m)[1] for m in range(1, 13)
    )


def test_a_summary_missed_while_it_was_down_comes_once_at_the_next_start():
    assert summary_due(at("2025-10-31T23:59:59"), "2025-10-30") is None
    assert summary_due(at("2025-11-01T00:00:00"), "2025-10-30") == "2025-10-31"
    assert summary_due(at("2025-11-01T07:15:00"), "2025-10-30") == "2025-10-31"
    assert summary_due(at("2025-11-01T07:15:00"), "2025-10-31") is None
    assert summary_due(at("2025-11-09T07:15:00"), "2025-10-31") == "2025-11-08"
    assert summary_due(at("2025-10-20T00:00:00"), "2025-10-31") is None  # a clock set back
    assert summary_due(at("2025-11-01T07:15:00"), day_before(at("2025-11-01T07:15:00"))) is None  # the first start
