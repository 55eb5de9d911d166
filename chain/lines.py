"""The one client of the SDK's that all calls of a process share: dialed when needed, given up when it fails.

    async with lines.client() as client: ...

Read next: `subtensor.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import bittensor as bt

CLOSE_SECONDS = 5.0
LOST = (bt.RpcConnectionError, bt.ConnectionNotReady, OSError, TimeoutError)


@dataclass(slots=True)
class _Line:
    """One client: the task that opens it, and how many calls are using it."""

    dialing: asyncio.Task
    users: int = 0
    given_up: bool = False


class Lines:
    """One open client at a time; one that failed is closed after its last call, and the next call opens another."""

    def __init__(self, make_client: Callable[[], Any]):
        self._make_client = make_client
        self._line: _Line | None = None
        self._closing: set[asyncio.Task] = set()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """The open client, or a new one; when it fails or does not answer in time, the next call dials anew."""
        if self._line is None:
            self._line = _Line(asyncio.create_task(self._dial()))
            self._line.dialing.add_done_callback(lambda task: task.cancelled() or task.exception())  # it is seen here
        line = self._line
        line.users += 1
        try:
            yield await asyncio.shield(line.dialing)  # a deadline stops the call, not the dialing: the SDK ends that
        except BaseException as error:
            dialed = line.dialing.done() and not line.dialing.cancelled()
            if dialed and (line.dialing.exception() or isinstance(error, (asyncio.CancelledError, *LOST))):
                self._give_up(line)
            raise
        finally:
            line.users -= 1
            if line.given_up and not line.users:
                self._hang_up(line)

    async def _dial(self) -> Any:
        client = self._make_client()
        try:
            return await client.connect()
        except BaseException:
            await client.close()
            raise

    def _give_up(self, line: _Line | None) -> None:
        if line and not line.given_up:
            line.given_up, self._line = True, None if self._line is line else self._line
            if not line.users:
                self._hang_up(line)

    def _hang_up(self, line: _Line) -> None:
        async def close() -> None:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_SECONDS):
                    if line.dialing.done():
                        await line.dialing.result().close()
                    else:
                        line.dialing.cancel()

        task = asyncio.create_task(close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self._give_up(self._line)
        if self._closing:
            await asyncio.wait(self._closing, timeout=2 * CLOSE_SECONDS)
