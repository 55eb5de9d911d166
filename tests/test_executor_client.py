"""The client of the executor bot, against bots on loopback that are slow, wrong, or no bots at all.

The bot itself is `test_executor.py`'s; here a server says what a test wants it to say.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from aiohttp import web

from executor import client
from executor.client import MAX_REPORT_BYTES, Bot, place
from liquidity.executions import Minted, Order, Report
from protocol import Code, Inventory, Position
from wire import server
from wire.client import client_session
from wire.codec import decode, encode
from wire.server import serve

ORDER = Order(
    decision="job:live:900:7",
    chain_id=1,
    pool="0x" + "aa" * 20,
    vault="0x" + "bb" * 20,
    shown=(Position(-10, 10, 5, 6),),
    desired=(Position(-20, 20, 5, 6),),
    block_number=7,
    sqrt_price_x96=1 << 96,
    tick=0,
    deadline=1000,
)
DONE = Report(
    ORDER.decision, Code.EXECUTED, "", 8, "0x" + "cc" * 32, minted=(Minted(-20, 20, 9),), after=Inventory(1, 2)
)
PENDING = Report(ORDER.decision, Code.EXECUTION_PENDING, "in block 8, 3 more are awaited")


def asked(answer, seconds: float = 5.0, key: str = "a key", url: str = "") -> tuple[Report, list]:
    """What `place` returns, and the requests that came: (key as sent, body)."""
    requests = []

    async def handler(request: web.Request) -> web.StreamResponse:
        requests.append((request.headers.get("Authorization"), await request.read()))
        return await answer(request, len(requests))

    async def work() -> Report:
        app = web.Application()
        app.router.add_post("/orders", handler)
        async with serve(app, "127.0.0.1", 0) as port, client_session(0) as session:
            return await place(Bot(session, url or f"http://127.0.0.1:{port}", key), ORDER, seconds)

    return asyncio.run(asyncio.wait_for(work(), 60)), requests


def saying(report: Report, status: int = 200):
    async def answer(request, n) -> web.Response:
        return web.Response(body=encode(report), status=status)

    return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(server, "SHUTDOWN_SECONDS", 0.1)  # nobody waits for a bot that is silent on purpose


def test_the_order_goes_as_it_is_with_the_key_and_the_report_comes_back():
    report, requests = asked(saying(DONE))
    assert report == DONE and requests == [("Bearer a key", encode(ORDER))]
    assert decode(Order, requests[0][1], client.MAX_ORDER_BYTES) == ORDER


def test_the_same_order_is_given_again_until_it_is_final():
    async def answer(request, n) -> web.Response:
        return web.Response(body=encode(DONE if n == 4 else PENDING))

    report, requests = asked(answer)
    assert report == DONE and len(requests) == 4 and len({body for _, body in requests}) == 1


def test_a_report_that_comes_in_pieces_is_read_to_its_end():
    large = replace(DONE, minted=tuple(Minted(-n, n, 10**30 + n) for n in range(1, 300)))

    async def answer(request, n) -> web.StreamResponse:
        reply = web.StreamResponse()
        await reply.prepare(request)
        body = encode(large)
        for at in range(0, len(body), 1000):
            await reply.write(body[at : at + 1000])
            await asyncio.sleep(0.001)
        return reply

    assert asked(answer)[0] == large


async def _garbage(request, n) -> web.Response:
    return web.Response(body=b"<html>", status=502)


async def _redirect(request, n) -> web.Response:
    return web.Response(status=307, headers={"Location": "/orders"})


async def _endless(request, n) -> web.StreamResponse:
    reply = web.StreamResponse()
    await reply.prepare(request)
    while True:
        await reply.write(b"[" * MAX_REPORT_BYTES)


async def _silent(request, n) -> web.Response:
    await asyncio.sleep(30)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (saying(PENDING), "in block 8, 3 more are awaited"),
        (saying(replace(DONE, decision="another")), "HTTP 200, malformed"),
        (saying(replace(DONE, code="no code")), "HTTP 200, malformed"),
        (saying(Report("", Code.EXECUTOR_KEY, "the API key is wrong"), 401), "HTTP 401, executor_key"),
        (_garbage, "HTTP 502, malformed"),
        (_redirect, "HTTP 307"),
        (_endless, ""),  # cut off by whoever counts first
        (_silent, "no answer in time"),
    ],
)
def test_what_nobody_knows_is_said_to_be_unknown_after_the_total_deadline_and_why(answer, says):
    began = time.monotonic()
    report, _ = asked(answer, seconds=0.3)
    assert (report.decision, report.code) == (ORDER.decision, Code.EXECUTION_UNKNOWN) and says in report.detail
    assert time.monotonic() - began < 20  # of the 30 that a silent one takes


def test_a_bot_that_is_not_there_is_asked_until_the_deadline():
    report, _ = asked(None, seconds=0.2, url="http://127.0.0.1:9")
    assert report.code == Code.EXECUTION_UNKNOWN and "Connect" in report.detail


def test_the_key_is_in_no_report_and_no_error():
    for answer in (_garbage, _silent):
        assert "a key" not in str(asked(answer, seconds=0.1)[0])
