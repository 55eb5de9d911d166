"""The bot's door: who may order, what an order may be, how many wait.

Read next: `execution.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from executor.client import MAX_ORDER_BYTES
from executor.execution import Executor
from liquidity.executions import Order, Report
from protocol import MAX_TEXT_CHARS, Code, ProtocolError
from runtime.hidden import hide
from runtime.passwords import first_line, header_key, read_private
from runtime.process import UserError
from wire.body import read_body
from wire.codec import decode, encode
from wire.text import one_line

ANSWER_SECONDS = 5.0  # how long a request waits for its order's end
BODY_SECONDS = 5.0
MIN_API_KEY_CHARS = 16
MAX_WAITING = 64  # requests at once
STATUS = {
    Code.EXECUTOR_KEY: 401,
    Code.NOT_FOUND: 404,
    Code.BODY_TIMEOUT: 408,
    Code.ORDER_CONFLICT: 409,
    Code.BODY_TOO_LARGE: 413,
    Code.CONTENT_TYPE: 415,
    Code.BUSY: 503,
}  # of a refusal at the door; MALFORMED: 400

log = logging.getLogger("executor")


class Door:
    """HTTP before an executor: orders in, reports out.

    Args:
        key_file: read again at each request, so that a key that was stolen and replaced opens no more.
    """

    def __init__(self, bot: Executor, key_file: Path, answer_seconds: float = ANSWER_SECONDS):
        self._bot, self._key_file, self._answer_seconds = bot, key_file, answer_seconds
        self._slots = asyncio.Semaphore(MAX_WAITING)
        self.app = web.Application()
        self.app.router.add_route("*", "/{anything:(?s:.*)}", self._respond)

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            match request.method, request.path.split("/")[1:]:
                case "GET", ["health"]:
                    return web.json_response(self._health())
                case "POST", ["orders"]:
                    work = self._place
                case "GET", ["orders", _, *_]:
                    work = self._look_up
                case _:
                    raise ProtocolError(Code.NOT_FOUND, "POST /orders, GET /orders/ID or GET /health")
            if self._slots.locked():
                raise ProtocolError(Code.BUSY, "too many requests at the same time; try later")
            async with self._slots:
                self._check_key(request)
                report = await work(request)
            status = 200
        except ProtocolError as error:
            log.warning("refused to %s: %s, %s", request.remote, error.code, error.detail)
            report, status = Report("", error.code, one_line(error.detail, MAX_TEXT_CHARS)), STATUS.get(error.code, 400)
        except Exception:
            log.exception("request to %s failed", request.path)
            report, status = Report("", Code.HANDLER_FAILED, "it failed; see the bot's log"), 500
        return web.Response(body=encode(report), status=status, content_type="application/json")

    def _health(self) -> dict[str, Any]:
        wallet, pair = self._bot.wallet, self._bot.wallet.contract.pair
        whose = {"chain_id": pair.chain_id, "pool": pair.pool_address, "vault": wallet.vault}
        return {"live": self._bot.live, "paused": wallet.paused, **whose}

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.getall("Authorization", [])
        try:
            key = read_api_key(self._key_file)
        except UserError as error:
            log.error("%s; nobody is let in", error)
            raise ProtocolError(Code.EXECUTOR_KEY, "the bot's key file cannot be read; see its log") from None
        if not given:
            raise ProtocolError(Code.EXECUTOR_KEY, "no Authorization: Bearer KEY")
        sent = given[0].encode("utf-8", "surrogateescape")
        if len(given) > 1 or not hmac.compare_digest(sent, f"Bearer {key}".encode()):
            raise ProtocolError(Code.EXECUTOR_KEY, "the API key is wrong")

    async def _place(self, request: web.Request) -> Report:
        order = decode(Order, await read_body(request, MAX_ORDER_BYTES, BODY_SECONDS), MAX_ORDER_BYTES)
        if not order.decision:
            raise ProtocolError(Code.MALFORMED, "Order.decision is empty")
        if report := await self._bot.journal.accept(order):
            return report
        self._bot.woken.set()
        return await self._wait(order.decision)

    async def _wait(self, decision: str) -> Report:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._answer_seconds), self._bot.ended:
                while True:
                    _, report = await self._bot.journal.report(decision)
                    if report:
                        return report
                    await self._bot.ended.wait()
        return self._pending(decision)

    async def _look_up(self, request: web.Request) -> Report:
        decision = request.path.removeprefix("/orders/")
        known, report = await self._bot.journal.report(decision)
        if not known:
            raise ProtocolError(Code.NOT_FOUND, "no order of this name was accepted")
        return report or self._pending(decision)

    def _pending(self, decision: str) -> Report:
        detail = one_line(hide(self._bot.said) or "its turn has not come", MAX_TEXT_CHARS)
        return Report(decision, Code.EXECUTION_PENDING, detail)


def read_api_key(path: Path) -> str:
    """The first line of a file that nobody else may read, as `read_executor_key` reads it. Raises `UserError`."""
    key = header_key(first_line(read_private(path, "API key file"), path, "key"), path)
    if len(key) < MIN_API_KEY_CHARS:
        raise UserError(f"API key file {path}: its first line must be a key of at least {MIN_API_KEY_CHARS} characters")
    return key
