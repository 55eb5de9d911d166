"""What a validator asks of its executor bot, the bot's answer, and the client between them.

    report = await place(Bot(session, "http://127.0.0.1:8095", key), order, seconds=90)

An order says what a miner answered and what it had been shown, nothing else: no address that tokens could go to, no
call of a contract. So whoever steals the key to this door can move the vault's tokens between its own positions, within
the limits of the bot's operator, and nowhere else.
Read next: `web3market.py`, which asks.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiohttp

from protocol import Amount, Code, Inventory, Position, ProtocolError, SqrtPrice, decode, encode

MAX_ORDER_BYTES = 64 << 10
MAX_REPORT_BYTES = 64 << 10
NOTHING = Inventory(0, 0)
EXECUTION_SECONDS = 120  # chain time: from a live answer's deadline until its transaction must be in a block
POLL_SECONDS = 0.5  # between two questions about an order that is on its way


@dataclass(frozen=True, slots=True)
class Order:
    """A decision to carry out on a vault.

    Attributes:
        decision: its name; what was carried out under a name is never carried out again.
        chain_id, pool, vault: where; addresses in lower case.
        shown: the vault's positions as the miner was shown them.
        desired: those that it wants; one that is equal to a shown one is left untouched, see `rounds.plan`.
        block_number, sqrt_price_x96, tick: the block that the miner was shown, and the pool's state after it.
        deadline: unix seconds of chain time; nothing happens in a later block.
    """

    decision: str
    chain_id: int
    pool: str
    vault: str
    shown: tuple[Position, ...]
    desired: tuple[Position, ...]
    block_number: int
    sqrt_price_x96: SqrtPrice
    tick: int
    deadline: int


@dataclass(frozen=True, slots=True)
class Minted:
    """Liquidity that was added in a range."""

    tick_lower: int
    tick_upper: int
    liquidity: Amount


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an order.

    Attributes:
        decision: whose report this is.
        code: `EXECUTED`, `EXECUTION_PENDING` while it is on its way, or why nothing was or will be done.
        detail: in words, one line.
        block, transaction: where it was done, and by which; 0 and empty if it was not.
        gas_used, gas_wei, gas0, gas1: see `market.Sent`.
        before, after: the vault's idle tokens before and after the transaction.
        released, fees, paid: what closing gave back, and paid in fees, and what the new positions took.
        minted: the liquidity that was added.

    Always `before + released + fees - paid == after` of an executed one.
    """

    decision: str
    code: str
    detail: str
    block: int = 0
    transaction: str = ""
    gas_used: int = 0
    gas_wei: Amount = 0
    gas0: Amount = 0
    gas1: Amount = 0
    before: Inventory = NOTHING
    after: Inventory = NOTHING
    released: Inventory = NOTHING
    fees: Inventory = NOTHING
    paid: Inventory = NOTHING
    minted: tuple[Minted, ...] = ()

    @property
    def final(self) -> bool:
        """Whether it will not change any more."""
        return self.code != Code.EXECUTION_PENDING


@dataclass(frozen=True, slots=True)
class Bot:
    """An executor bot as its client knows it: a session to ask through, where it listens, the key to its door."""

    session: aiohttp.ClientSession
    url: str
    key: str


async def place(bot: Bot, order: Order, seconds: float) -> Report:
    """Give an order to the bot and wait for how it ended; the same order may be given again at any time.

    Args:
        bot: whom to ask.
        order: what to do.
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
                raw = bytearray()
                async for chunk in reply.content.iter_any():
                    raw += chunk
                    if len(raw) > MAX_REPORT_BYTES:
                        break
            report = decode(Report, bytes(raw), MAX_REPORT_BYTES)
            if not report.decision and report.code in set(Code):
                raise ProtocolError(Code(report.code), f"{report.code}: {report.detail}")  # refused at the door
            if report.decision != order.decision or report.code not in set(Code):
                raise ProtocolError(Code.MALFORMED, f"a report of {report.decision[:60]}")
            if report.final:
                return report
            said = report.detail
        except TimeoutError:
            break
        except (aiohttp.ClientError, OSError) as error:
            said = f"{type(error).__name__} {error}"
        except ProtocolError as error:
            said = f"HTTP {reply.status}, {error.detail}"
        await asyncio.sleep(max(0.0, min(POLL_SECONDS, until - time.monotonic())))
    return Report(order.decision, Code.EXECUTION_UNKNOWN, f"no final report within {seconds:g} s: {said}"[:500])
