"""JSON-RPC to the nodes of an EVM chain: several endpoints, batches, and a deadline for everything.

    async with open_rpc(["https://one.example", "https://two.example"]) as rpc:
        [head] = await rpc.batch([("eth_blockNumber", [])])

Not web3's providers: those have no limit on an answer's size, no deadline over their retries, and no failover. What
comes back is checked here only as JSON-RPC; what it says is checked where it is used.
An endpoint that fails rests, longer each time, while the next in the list is asked. One that refuses a large batch gets
smaller ones from then on. An endpoint is called by its host in all messages: the rest of an address may be a secret.
Read next: `abi.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from wire.body import read_at_most

TOTAL_SECONDS = 60.0  # for one batch with all its retries
ATTEMPT_SECONDS = 15.0  # for one HTTP request
MAX_REPLY_BYTES = 32 << 20
MAX_BATCH = 1000  # calls in one HTTP request; what most public endpoints take
FIRST_REST_SECONDS, MAX_REST_SECONDS = 0.5, 30.0  # doubled with every failure in a row
MAX_MESSAGE_CHARS = 200
RATE_LIMIT_CODES = (-32005, -32007, -32029, 429)  # EIP-1474 "limit exceeded", and what providers use beside it

log = logging.getLogger("rpc")


class RpcError(Exception):
    """No endpoint gave a usable answer in time; the message says what each of them did, in one line."""


class Refusal(Exception):
    """A node answered a call with an error, its message cut to a line. Returned in the place of a result, not raised.

    `reverted`: the contract refused the call, wherever it is asked; else it is this node's own trouble.
    """

    def __init__(self, code: int, message: str):
        super().__init__(f"{message} (code {code})")
        self.code, self.message = code, message
        self.reverted = code in (3, -32015) or "revert" in message.lower()


class Answers(list):
    """Results in the order of the calls, and the endpoints they came from."""

    def __init__(self):
        super().__init__()
        self.endpoints: set[Endpoint] = set()


class _Failed(Exception):
    """An attempt came to nothing; `rest_seconds` is what the endpoint asked for, if it did."""

    def __init__(self, why: str, rest_seconds: float = 0.0):
        super().__init__(why)
        self.rest_seconds = rest_seconds


class _TooLarge(_Failed):
    """The endpoint takes no batch of this size, or its answer is too long."""


class Endpoint:
    """One address, its host as its name, and how it has behaved.

    Attributes:
        failures: in a row.
        lies: how often what it said turned out to be wrong, since it last was right.
        rests_until: on `time.monotonic()`; it is not asked before, unless all rest.
    """

    def __init__(self, url: str):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RpcError(
                f"RPC address of {parts.scheme or 'no'} scheme: http://HOST... or https://HOST... is expected"
            )
        self.url, self.name = url, parts.netloc.rpartition("@")[2]
        self.most_calls, self.failures, self.lies, self.rests_until = MAX_BATCH, 0, 0, 0.0

    def rest(self, why: str, seconds: float = 0.0) -> None:
        """Leave it alone for a while, each time for longer."""
        self.failures += 1
        rest = min(max(seconds, FIRST_REST_SECONDS * 2 ** min(self.failures + self.lies - 1, 16)), MAX_REST_SECONDS)
        self.rests_until = time.monotonic() + rest
        log.warning("RPC %s: %s; it rests for %.1f s", self.name, why, rest)


class Rpc:
    """Several endpoints of one chain, in order of preference.

    Args:
        urls: http or https.
        total_seconds: deadline of a batch, with all retries.
        attempt_seconds: deadline of one HTTP request.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        urls: Sequence[str],
        total_seconds: float = TOTAL_SECONDS,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ):
        self.endpoints = [Endpoint(url) for url in urls]
        if not self.endpoints:
            raise RpcError("no RPC address: at least one is needed")
        self._session, self._total, self._attempt = session, total_seconds, attempt_seconds
        self.requests = 0  # in HTTP, made so far

    async def batch(
        self, calls: Sequence[tuple[str, list]], refusable: bool = False, usable: Callable[[Any], bool] | None = None
    ) -> Answers:
        """Make calls (method, parameters) together, in as few requests as the endpoints take.

        Args:
            refusable: whether every refusal is a result; else only a contract's own, and other refusals are a failure
                of the endpoint.
            usable: tells whether a result is one; an endpoint that gives another has failed.

        Returns:
            A result or `Refusal` for each call.

        Raises:
            RpcError: the deadline passed.
        """
        answers, deadline, said = Answers(), time.monotonic() + self._total, {}
        while len(answers) < len(calls):
            now = time.monotonic()
            endpoint = min(self.endpoints, key=lambda one: max(one.rests_until, now))
            wait = max(0.0, endpoint.rests_until - now)
            if now + wait >= deadline:
                reasons = "; ".join(f"{name}: {why}" for name, why in said.items()) or "all rest after failures"
                raise RpcError(f"{calls[0][0]}: no answer within {self._total:g} s ({reasons})")
            await asyncio.sleep(wait)
            part = calls[len(answers) : len(answers) + endpoint.most_calls]
            try:
                found = await self._post(endpoint, part, min(self._attempt, deadline - now - wait), refusable)
                if usable and not all(map(usable, found)):
                    raise _Failed(f"{part[0][0]} has no usable result")
            except _TooLarge as error:
                said[endpoint.name] = str(error)
                if len(part) > 1:
                    endpoint.most_calls = len(part) // 2
                    log.info("RPC %s: %s; %d calls at a time now", endpoint.name, error, endpoint.most_calls)
                    continue
                if not refusable:
                    endpoint.rest(str(error))
                    continue
                found = [Refusal(0, str(error))]
            except _Failed as error:
                said[endpoint.name] = str(error)
                endpoint.rest(str(error), error.rest_seconds)
                continue
            else:
                endpoint.failures = 0
            answers += found
            answers.endpoints.add(endpoint)
        return answers

    async def each(self, method: str, parameters: list) -> dict[Endpoint, Any]:
        """Ask all endpoints that do not rest the same, side by side; results of those that answer, else `RpcError`."""
        now = time.monotonic()
        awake = [one for one in self.endpoints if one.rests_until <= now]
        if not awake:
            [result] = answers = await self.batch([(method, parameters)])
            return dict.fromkeys(answers.endpoints, result)
        found = {}

        async def ask(endpoint: Endpoint) -> None:
            try:
                [found[endpoint]] = await self._post(endpoint, [(method, parameters)], self._attempt, False)
                endpoint.failures = 0
            except _Failed as error:
                endpoint.rest(str(error), error.rest_seconds)

        await asyncio.gather(*map(ask, awake))
        if not found:
            names = ", ".join(one.name for one in awake)
            raise RpcError(f"{method}: no answer from {names}; is it up, and is the address (--rpc) right?")
        return found

    async def second(self, calls: Sequence[tuple[str, list]], apart_from: set[Endpoint]) -> Answers | None:
        """A second opinion: the same calls to one endpoint that is not among these; None where none is at hand."""
        now = time.monotonic()
        for endpoint in self.endpoints:
            if endpoint not in apart_from and endpoint.rests_until <= now and len(calls) <= endpoint.most_calls:
                answers = Answers()
                try:
                    answers += await self._post(endpoint, calls, self._attempt, True)
                except _Failed as error:
                    endpoint.rest(str(error), error.rest_seconds)
                    continue
                answers.endpoints.add(endpoint)
                return answers
        return None

    def distrust(self, endpoints: Iterable[Endpoint], why: str) -> None:
        """What these said turned out to be wrong: ask others next."""
        for endpoint in endpoints:
            endpoint.rest(why)
            endpoint.lies += 1

    def trust(self, endpoints: Iterable[Endpoint]) -> None:
        """What these said turned out to be right."""
        for endpoint in endpoints:
            endpoint.lies = 0

    async def _post(
        self, endpoint: Endpoint, calls: Sequence[tuple[str, list]], seconds: float, refusable: bool
    ) -> list[Any]:
        body = [
            {"jsonrpc": "2.0", "id": n, "method": method, "params": parameters}
            for n, (method, parameters) in enumerate(calls)
        ]
        body = body if len(body) > 1 else body[0]  # some endpoints take no batches at all
        self.requests += 1
        try:
            async with asyncio.timeout(seconds):
                async with self._session.post(endpoint.url, json=body, allow_redirects=False) as reply:
                    raw = await read_at_most(reply.content, MAX_REPLY_BYTES)
                    status, retry_after = reply.status, reply.headers.get("Retry-After", "")
        except TimeoutError:
            raise _Failed(f"no answer within {seconds:.3g} s") from None
        except aiohttp.ClientError as error:
            raise _Failed(f"{type(error).__name__}: {error}"[:MAX_MESSAGE_CHARS]) from error
        if raw is None:
            raise _TooLarge(f"the answer is longer than {MAX_REPLY_BYTES >> 20} MB")
        if status == 413:
            raise _TooLarge(f"a batch of {len(calls)} is too large (HTTP 413)")
        if status == 429:
            raise _Failed("too many requests (HTTP 429)", float(retry_after) if retry_after.isdigit() else 0.0)
        if status != 200:
            raise _Failed(f"HTTP {status}")
        try:
            items = json.loads(raw)
            if len(calls) == 1:
                items = [items]
            elif not isinstance(items, list):
                raise _TooLarge(f"a batch of {len(calls)} is refused: {_refusal(items['error'])}")
            by_id = {item["id"]: item for item in items}
            if len(items) != len(calls) or by_id.keys() != set(range(len(calls))):
                raise _Failed(f"{len(items)} answers to {len(calls)} calls")
            results = [
                _refusal(item["error"]) if item.get("error") else item["result"] for _, item in sorted(by_id.items())
            ]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _Failed(f"not JSON-RPC ({type(error).__name__})") from error
        for result in results:
            if isinstance(result, Refusal):
                if result.code in RATE_LIMIT_CODES and not refusable:
                    raise _Failed(f"too many requests: {result}")
                if not (refusable or result.reverted):
                    raise _Failed(f"{calls[0][0]}: {result}")
        return results


def _refusal(error: Any) -> Refusal:
    message = error["message"] if isinstance(error["message"], str) else "an error without words"
    return Refusal(int(error["code"]), ascii(message)[1:-1][:MAX_MESSAGE_CHARS])


@asynccontextmanager
async def open_rpc(urls: Sequence[str], **limits: float) -> AsyncIterator[Rpc]:
    """A session for `Rpc`; see there. Raises `RpcError` for what is no address."""
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield Rpc(session, urls, **limits)
