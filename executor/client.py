"""What a validator asks of its executor bot, the bot's answer, and the client between them.

    report = await place(Bot(session, "http://127.0.0.1:8095", key), order, seconds=90)

An order says what a miner answered and what it had been shown, nothing else: no address that tokens could go to, no
call of a contract. So whoever steals the key to this door can move the vault's tokens between its own positions, within
the limits of the bot's operator, and nowhere else.
Read next: `door.py`, which answers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiohttp

from liquidity.executions import Order, Report
from protocol import Code, ProtocolError
from runtime.hidden import hide
from wire.body import read_at_most
from wire.codec import decode, encode

MAX_ORDER_BYTES = MAX_REPORT_BYTES = 64 << 10
POLL_SECONDS = 0.5  # between two questions about an order that is on its way


@dataclass(frozen=True, slots=True)
class Bot:
    """An executor bot as its client knows it: a session to ask through, where it listens, the key to its door."""

    session: aiohttp.ClientSession
    url: str
    key: str


async def place(bot: Bot, order: Order, seconds: float) -> Report:
    """Give an order to the bot and wait for how it ended; the same order may be given again at any time.

    Args:
        seconds: how long to ask in all; what is lost on the way is asked again.

    Returns:
        The final report; where there is none in time, one of code `EXECUTION_UNKNOWN`: the bot may still do it.
    """
    until, said = time.monotonic() + seconds, "no answer in time"
    body, headers = encode(order), {"Authorization": f"Bearer {bot.key}", "Content-Type": "application/json"}
    while (left := until - time.monotonic()) > 0:
        try:
            async with (
                asyncio.timeout(left),
                bot.session.post(f"{bot.url}/orders", data=body, headers=headers, allow_redirects=False) as reply,
            ):
                raw = await read_at_most(reply.content, MAX_REPORT_BYTES)
            if raw is None:
                raise ProtocolError(Code.REPLY_TOO_LARGE, f"more than {MAX_REPORT_BYTES} bytes")
            report = decode(Report, raw, MAX_REPORT_BYTES)
            if not report.decision and report.code in set(Code):
                raise ProtocolError(Code(report.code), f"{report.code}: {report.detail}")  # refused at the door
            if report.decision != order.decision or report.code not in set(Code):
                raise ProtocolError(Code.MALFORMED, f"a report of {report.decision[:60]}")
            if report.code != Code.EXECUTION_PENDING:
                return report
            said = report.detail
        except TimeoutError:
            break
        except ProtocolError as error:
            said = f"HTTP {reply.status}, {error.code}"
        except Exception as error:  # whatever it does to the client
            said = f"the bot cannot be reached ({type(error).__name__})"
        await asyncio.sleep(max(0.0, min(POLL_SECONDS, until - time.monotonic())))
    return Report(order.decision, Code.EXECUTION_UNKNOWN, f"no final report within {seconds:g} s: {hide(said)}"[:500])
