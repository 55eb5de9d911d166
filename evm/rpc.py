"""JSON-RPC to the nodes of an EVM chain: several endpoints, batches, and a deadline for everything.

    async with open_rpc(["https://one.example", "https://two.example"]) as rpc:
        [head] = await rpc.batch([("eth_blockNumber", [])])

Plain aiohttp rather than web3's providers: those have no limit on an answer's size, no deadline over their retries, and
no failover. What comes back is checked here only as JSON-RPC; what it says is checked where it is used.

An endpoint that fails, in whatever way, rests, longer each time, while the next in the list is asked. One that refuses
a large batch gets smaller ones for a while. An endpoint is called by its host in all messages: the rest of an address
may be a secret, and so no message quotes the HTTP library.
Read next: `abi.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from runtime.hidden import conceal, hide
from wire.body import read_at_most

TOTAL_SECONDS = 60.0  # for one batch with all its retries
ATTEMPT_SECONDS = 15.0  # for one HTTP request
MAX_REPLY_BYTES = 32 << 20
MAX_BATCH = 1000  # calls in one HTTP request; what most public endpoints take
FIRST_REST_SECONDS, MAX_REST_SECONDS = 0.5, 30.0  # doubled with every failure in a row
RELAX_SECONDS = 600.0  # then an endpoint that refused a batch is given twice as many calls again
MAX_MESSAGE_CHARS = 200
_RATE_CODES = (-32005, -32007, -32029, -32090, 429)  # EIP-1474 "limit exceeded", and what providers use beside it
_RATE_WORDS = re.compile(
    r"\brates?\b|too many requests|requests? (count|limit)|requests? per|per second|/sec|throughput|compute unit"
    r"|\bquota\b|\bcredits?\b|\bcapacity\b|throttl|daily (limit|request)",
    re.IGNORECASE,
)
_SIZE_WORDS = re.compile(
    r"more than|too many(?! requests)|\bresults?\b|\branges?\b|\bblocks?\b|\blogs?\b|batch|response size", re.IGNORECASE
)
_EVM_FAILURES = re.compile(  # of geth, Erigon, Nethermind, Reth, anvil
    r"revert|invalid (op ?code|jump)|stack (underflow|overflow)|stack limit|out of ?gas|gas uint64 overflow"
    r"|write protection|bad (instruction|jump)|return data out of bounds|invalid code|opcode.*not (defined|supported)"
    r"|(evm|vm execution) error|vm exception",
    re.IGNORECASE,
)
_FORGOTTEN = re.compile(
    r"missing trie node|prun|archive|histor|state (is )?(not|un) ?available|no state available|old data not available"
    r"|distance to target block|state .*not found|block is out of range|too old",
    re.IGNORECASE,
)

log = logging.getLogger("rpc")


class RpcError(Exception):
    """No endpoint gave a usable answer in time; the message says what each of them did, in one line."""


class Refusal(Exception):
    """A node answered a call with an error, its message cut to a line. Returned in the place of a result, not raised.

    Attributes:
        code, message: as the node gave them, cut to a line.
        reverted: the contract refused the call or ran into an error, wherever it is asked; else it is this node's
            own trouble.
        forgotten: the node no longer has the state that it was asked about.
        of_call: it is plainly about the call, whatever HTTP status it came with.
        limited: the node was asked too often. It says nothing about the call, and is never a result.
    """

    def __init__(self, code: int, message: str):
        super().__init__(f"{message} (code {code})")
        self.code, self.message = code, message
        self.reverted = code in (3, -32015) or bool(_EVM_FAILURES.search(message))
        self.forgotten = not self.reverted and bool(_FORGOTTEN.search(message))
        too_often = bool(_RATE_WORDS.search(message)) or (code in _RATE_CODES and not _SIZE_WORDS.search(message))
        self.limited = too_often and not self.reverted
        self.of_call = self.reverted or self.forgotten or bool(_SIZE_WORDS.search(message))


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


class _Limited(_Failed):
    """The endpoint was asked too often."""


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
        conceal(url)
        self.url, self.name = url, parts.netloc.rpartition("@")[2]
        self.most_calls, self.failures, self.lies, self.rests_until = MAX_BATCH, 0, 0, 0.0
        self._cut_at = 0.0

    def cut(self, calls: int, why: str) -> None:
        """It takes no batch of so many calls: for a while it is given half as many."""
        self.most_calls, self._cut_at = max(1, calls // 2), time.monotonic()
        log.info("RPC %s: %s; %d calls at a time now", self.name, why, self.most_calls)

    def takes(self) -> int:
        """How many calls to put into a batch: what was learnt is doubted after a while."""
        if self.most_calls < MAX_BATCH and time.monotonic() > self._cut_at + RELAX_SECONDS:
            self.most_calls, self._cut_at = min(2 * self.most_calls, MAX_BATCH), time.monotonic()
        return self.most_calls

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

    Attributes:
        requests: HTTP requests made so far.
        last: the endpoint that answered last.
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
        self.requests, self.last = 0, None

    async def batch(
        self, calls: Sequence[tuple[str, list]], refusable: bool = False, usable: Callable[[Any], bool] | None = None
    ) -> Answers:
        """Make calls (method, parameters) together, in as few requests as the endpoints take.

        Args:
            refusable: whether every refusal is a result; else only a contract's own, and other refusals are a failure
                of the endpoint.
            usable: tells whether a result is one; an endpoint that gives another, or that it raises at, has failed.

        Returns:
            A result or `Refusal` for each call.

        Raises:
            RpcError: the deadline passed.
        """
        answers, deadline, said, most = Answers(), time.monotonic() + self._total, {}, len(calls)
        while len(answers) < len(calls):
            now = time.monotonic()
            endpoint = min(self.endpoints, key=lambda one: max(one.rests_until, now))
            wait = max(0.0, endpoint.rests_until - now)
            if now + wait >= deadline:
                reasons = "; ".join(f"{name}: {why}" for name, why in said.items()) or "all rest after failures"
                raise RpcError(f"{calls[0][0]}: no answer within {self._total:g} s ({reasons})")
            await asyncio.sleep(wait)
            part = calls[len(answers) : len(answers) + min(most, endpoint.takes())]
            try:
                found = await self._post(endpoint, part, min(self._attempt, deadline - now - wait), refusable)
                _check(part[0][0], found, usable)
            except _TooLarge as error:
                said[endpoint.name] = str(error)
                if len(part) > 1:
                    most = len(part) // 2
                    if all(method != "eth_getLogs" for method, _ in part):  # its answer may have been what was large
                        endpoint.cut(len(part), str(error))
                    continue
                if not refusable:
                    endpoint.rest(str(error))
                    continue
                found = [Refusal(0, str(error))]
            except _Failed as error:
                said[endpoint.name] = str(error)
                endpoint.rest(str(error), error.rest_seconds)
                if isinstance(error, _Limited) and len(part) > 1:
                    most = -(-len(part) // 2)  # some count calls, and never take so many
                continue
            else:
                endpoint.failures = 0
            self.last = endpoint
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

    def distrust_last(self, why: str) -> None:
        """What was answered last cannot be read: ask others next."""
        self.distrust([self.last] if self.last else [], why)

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
        except aiohttp.ClientConnectorError:
            raise _Failed("no connection") from None
        except Exception as error:  # whatever it does to the client; the library's words would quote its address
            raise _Failed(f"no HTTP answer that can be read ({type(error).__name__})") from None
        if raw is None:
            raise _TooLarge(f"the answer is longer than {MAX_REPLY_BYTES >> 20} MB")
        if status == 429:
            asked = float(retry_after) if re.fullmatch("[0-9]{1,9}", retry_after) else 0.0
            raise _Limited("too many requests (HTTP 429)", asked)
        if status == 413 or (status == 400 and len(calls) > 1 and not raw.lstrip().startswith((b"{", b"["))):
            raise _TooLarge(f"a batch of {len(calls)} is too large (HTTP {status})")
        try:
            results = _results(json.loads(raw), len(calls))
        except _Failed:
            raise
        except Exception as error:
            raise _Failed(f"HTTP {status}" if status != 200 else f"not JSON-RPC ({type(error).__name__})") from None
        refusals = [result for result in results if isinstance(result, Refusal)]
        if status != 200 and not refusals:
            raise _Failed(f"HTTP {status}")
        for refusal in refusals:
            if refusal.limited:
                raise _Limited(f"too many requests: {refusal}")
        for refusal in refusals:
            if (status >= 500 or 401 <= status <= 404) and not refusal.of_call:
                raise _Failed(f"HTTP {status}: {refusal}")
            if not (refusable or refusal.reverted):
                raise _Failed(f"{calls[0][0]}: {refusal}")
        return results


def _results(said: Any, count: int) -> list[Any]:
    """A result or `Refusal` for each call of what a node said, in the order of the calls.

    Raises:
        _Failed: it refuses the batch as a whole, in any shape, or does not answer the calls.
        Exception: it is no JSON-RPC.
    """
    items = said if isinstance(said, list) else [said]
    if count > 1:
        refused = [_refusal(item["error"]) for item in items if isinstance(item, dict) and item.get("error")]
        unanswered = len(items) < count or all(item.get("id") is None for item in items)
        of_batch = len(refused) == count and all("batch" in one.message.lower() for one in refused)
        if refused and (unanswered or of_batch):
            kind = _Limited if refused[0].limited else _TooLarge
            raise kind(f"a batch of {count} is refused: {refused[0]}")
    by_id = {item["id"]: item for item in items}
    if count == 1 and len(items) == 1 and items[0].get("error"):
        by_id = {0: items[0]}  # an error may come without an id
    if len(items) != count or by_id.keys() != set(range(count)):
        raise _Failed(f"{len(items)} answers to {count} calls")
    return [_refusal(item["error"]) if item.get("error") else item["result"] for _, item in sorted(by_id.items())]


def _refusal(error: Any) -> Refusal:
    code, message = error["code"], error["message"]
    message = message if isinstance(message, str) else "an error without words"
    code = code if isinstance(code, int) and abs(code) < 10**9 else 0
    return Refusal(code, ascii(hide(message))[1:-1][:MAX_MESSAGE_CHARS])


def _check(method: str, found: Sequence[Any], usable: Callable[[Any], bool] | None) -> None:
    try:
        sound = usable is None or all(map(usable, found))
    except Exception as error:
        raise _Failed(f"{method}: {error}"[:MAX_MESSAGE_CHARS]) from error
    if not sound:
        raise _Failed(f"{method} has no usable result")


@asynccontextmanager
async def open_rpc(urls: Sequence[str], **limits: float) -> AsyncIterator[Rpc]:
    """A session for `Rpc`; see there. Raises `RpcError` for what is no address."""
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield Rpc(session, urls, **limits)
