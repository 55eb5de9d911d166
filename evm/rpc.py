"""JSON-RPC to the nodes of an EVM chain: several endpoints, batches, and a deadline for everything.

    async with open_rpc(["https://one.example", "https://two.example"]) as rpc:
        [head] = await rpc.batch([("eth_blockNumber", [])])

Plain aiohttp rather than web3's providers: those have no limit on an answer's size, no deadline over their retries, and
no failover. What comes back is checked here as JSON-RPC, and a contract's answer as bytes; what it says is checked
where it is used.

An endpoint that fails, in whatever way, rests, longer each time, while the next in the list is asked. One that refuses
a large batch gets smaller ones for a while. An endpoint is called by its host's domain in all messages: the rest of an
address may be a secret, and so no message quotes the HTTP library.
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

from runtime.hidden import conceal, hide, masked_host
from runtime.process import Passing
from wire.body import read_at_most

TOTAL_SECONDS = 60.0  # for one batch with all its retries
ATTEMPT_SECONDS = 15.0  # for one HTTP request
MAX_REPLY_BYTES = 32 << 20
MAX_BATCH = 1000  # calls in one HTTP request; what most public endpoints take
FIRST_REST_SECONDS, MAX_REST_SECONDS = 0.5, 30.0  # doubled with every failure in a row
RELAX_SECONDS = 600.0  # then an endpoint that refused a batch is given twice as many calls again
MAX_MESSAGE_CHARS, MAX_READ_CHARS = 200, 1000  # of a node's words: shown, and looked at
_WORDS = {  # of clients and providers, links left out; the first row that fits says what a refusal is
    "reverted": r"revert|invalid[_ ]?(op|jump|code)|bad ?(instruction|jump)|op ?code.*not|code is invalid|precompile"
    r"|stack ?(under|over|limit)|out ?of ?(stack|gas)|gas uint64 overflow|call depth|write protection|out of bounds"
    r"|(illegal state|static ?call|access) ?(change|violation)|(evm|vm execution) error(?!; database)|vm exception"
    r"|execution halted|processing could not be completed",
    "limited": r"\brates?\b|rate[ _-]?limit|too many requests(?!.*batch)|requests? (count|limit|per)|\brps\b|concurren"
    r"|per (second|minute|hour|day|month)|\d ?/ ?(s|sec|second|m|min|minute)\b|throughput|compute units?|\bcus?\b"
    r"|\bquotas?\b|\bcredits?\b|\b(over)?capacity\b|throttl|(daily|monthly|usage) .*(limit|usage)|too much load"
    r"|overload|\bbusy\b|slow down|error code: 1015",
    "too_large": r"more than|too (many|large|big|wide|long|high)|(long|larg|bigg|great)er than|\blimited to|\bat most"
    r"|\bup to\b|max(imum)?( (block|range|result|log|address|allowed|is)|:)|must not exceed|limit the (query|range)"
    r"|ranges? (over|limit|allowed)|exceeds? (the )?(range|limit|size)|(size|range|results?|logs?) (limit )?exceed"
    r"|current limit is|query timeout|less number of",
    "forgotten": r"missing trie node|prun|archive|histor|state (is )?(not|un) ?available|no state available|too old"
    r"|state .*not (found|available)|data (before .* is )?not available|distance to target block|recent blocks"
    r"|(unknown|first available) state|state[_ ]unavailable|trie does not",
}
_DATA = re.compile("0x[0-9a-fA-F]*")  # no pairs of digits: a repeated group takes a hundred times its text
_NO_REQUEST = (-32600, -32602, -32700)  # what servers say of a batch that know none
_RATE_CODES = (-32005, -32007, -32029, -32090, 429)  # EIP-1474 "limit exceeded", and what providers use beside it

log = logging.getLogger("rpc")


class RpcError(Passing):
    """No endpoint gave a usable answer in time; the message says what each of them did, in one line."""


class Refusal(Exception):
    """A node answered a call with an error, its message cut to a line. Returned in the place of a result, not raised.

    Attributes:
        code, message: as the node gave them, cut to a line.
        reverted: the contract refused the call or ran into an error, wherever it is asked; else it is this node's
            own trouble.
        limited: the node was asked too often. It says nothing about the call, and is never a result.
        too_large: fewer blocks or calls at once may be answered.
        forgotten: the node no longer has the state that it was asked about.
        of_batch: it speaks of how many calls came together.
    """

    def __init__(self, code: int, message: str, more: str = ""):
        self.code, self.message = code, ascii(hide(message))[1:-1][:MAX_MESSAGE_CHARS]
        super().__init__(f"an error (code {code})")  # what leaves the process has nobody's words but ours
        text = re.sub(r"https?://\S+", "", f"{message[:MAX_READ_CHARS]} {more[:MAX_READ_CHARS]}")
        self.of_batch = "batch" in text.lower()
        kind = next((name for name, words in _WORDS.items() if re.search(words, text, re.IGNORECASE)), "")
        if code == 3 and not self.of_batch:
            kind = "reverted"
        elif code in _RATE_CODES:
            kind = kind or "limited"
        self.reverted, self.limited, self.too_large, self.forgotten = (kind == name for name in _WORDS)


class Answers(list):
    """Results in the order of the calls, and the endpoints they came from."""

    def __init__(self):
        super().__init__()
        self.endpoints: set[Endpoint] = set()


class _Failed(Exception):
    """An attempt came to nothing; `rest_seconds` is what the endpoint asked for, `words` what it said, for the log."""

    def __init__(self, why: str, rest_seconds: float = 0.0, words: str = ""):
        super().__init__(why)
        self.rest_seconds, self.logged = rest_seconds, f"{why}, {words!r}" if words else why


class _TooLarge(_Failed):
    """The endpoint takes no batch of this size, or its answer is too long."""


class _Limited(_Failed):
    """The endpoint was asked too often."""


class Endpoint:
    """One address, its host as its name, and how it has behaved.

    Attributes:
        failures: in a row.
        lies: how often what it said turned out to be wrong, since it last was right; who has fewer is asked first.
        rests_until: on `time.monotonic()`; it is not asked before, unless all rest.
    """

    def __init__(self, url: str):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RpcError(
                f"RPC address of {parts.scheme or 'no'} scheme: http://HOST... or https://HOST... is expected"
            )
        conceal(url)
        self.url, self.name = url, masked_host(parts.hostname) + (f":{parts.port}" if parts.port else "")
        self.most_calls, self.failures, self.lies, self.rests_until = MAX_BATCH, 0, 0, 0.0
        self._cut_at = 0.0

    def cut(self, calls: int) -> None:
        """It takes no more calls in a batch: for a while it is given no more."""
        if calls < self.most_calls:
            self.most_calls, self._cut_at = calls, time.monotonic()
            log.info("RPC %s: %d calls at a time now", self.name, calls)

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
        answers, deadline, said = Answers(), time.monotonic() + self._total, {}
        most: dict[Endpoint, int] = {}  # calls that one is given now, after it failed at more
        told: set[Endpoint] = set()  # who said that it was too much; of logs it may have meant its answer
        learns = all(method != "eth_getLogs" for method, _ in calls)
        while len(answers) < len(calls):
            now = time.monotonic()
            endpoint = min(self.endpoints, key=lambda one: (max(one.rests_until, now), one.lies))
            wait = max(0.0, endpoint.rests_until - now)
            if now + wait >= deadline:
                reasons = "; ".join(f"{one.name}: {why}" for one, why in said.items()) or "all rest after failures"
                raise RpcError(f"{calls[0][0]}: no answer within {self._total:g} s ({reasons})")
            await asyncio.sleep(wait)
            part = calls[len(answers) : len(answers) + min(most.get(endpoint, MAX_BATCH), endpoint.takes())]
            try:
                found = await self._post(endpoint, part, min(self._attempt, deadline - now - wait), refusable)
                _check(part[0][0], found, usable)
            except _Failed as error:
                said[endpoint], large = str(error), isinstance(error, _TooLarge)
                if len(part) > 1:  # so many may be what it cannot do, whatever it says
                    most[endpoint] = len(part) // 2
                    if learns and isinstance(error, _TooLarge | _Limited):
                        told.add(endpoint)
                if large and len(part) == 1 and refusable:
                    found = [Refusal(0, str(error))]
                else:
                    if not large or len(part) == 1:
                        endpoint.rest(error.logged, error.rest_seconds)
                    continue
            endpoint.failures = 0
            if endpoint in told:
                endpoint.cut(most[endpoint])
            self.last = endpoint
            answers += found
            answers.endpoints.add(endpoint)
        return answers

    async def each(
        self, method: str, parameters: list, usable: Callable[[Any], bool] | None = None
    ) -> dict[Endpoint, Any]:
        """Ask all endpoints that do not rest the same, side by side; results of those that answer, else `RpcError`.

        `usable` as of `batch`.
        """
        now = time.monotonic()
        awake = [one for one in self.endpoints if one.rests_until <= now]
        if not awake:
            [result] = answers = await self.batch([(method, parameters)], usable=usable)
            return dict.fromkeys(answers.endpoints, result)
        found = {}

        async def ask(endpoint: Endpoint) -> None:
            try:
                [result] = await self._post(endpoint, [(method, parameters)], self._attempt, False)
                _check(method, [result], usable)
                endpoint.failures, found[endpoint] = 0, result
            except _Failed as error:
                endpoint.rest(error.logged, error.rest_seconds)

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
                    endpoint.rest(error.logged, error.rest_seconds)
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
        asked = float(retry_after) if re.fullmatch("[0-9]{1,9}", retry_after) else 0.0
        if status == 429:
            raise _Limited("too many requests (HTTP 429)", asked)
        if status == 413:
            raise _TooLarge(f"a batch of {len(calls)} is too large (HTTP 413)")
        try:
            results = _results(raw, len(calls), status)
        except _Failed:
            raise
        except Exception as error:
            why = f"HTTP {status}" if status != 200 else f"not JSON-RPC ({type(error).__name__})"
            raise _Failed(why, asked) from None
        for (method, _), refusal in zip(calls, results, strict=True):
            if not isinstance(refusal, Refusal):
                if method == "eth_call" and not (isinstance(refusal, str) and _DATA.fullmatch(refusal)):
                    raise _Failed("eth_call: the result is no bytes")
                continue
            if len(calls) > 1 and method != "eth_getLogs" and (refusal.of_batch or refusal.too_large):
                raise _TooLarge(f"of {len(calls)} calls some are refused: {refusal}")
            if refusal.limited:
                raise _Limited(f"too many requests: {refusal}", asked, refusal.message)
            if status > 400 and not (refusal.reverted or refusal.too_large or refusal.forgotten):
                raise _Failed(f"HTTP {status}: {refusal}", asked, refusal.message)
            if not (refusable or refusal.reverted):
                raise _Failed(f"{method}: {refusal}", words=refusal.message)
        if status != 200 and not any(isinstance(result, Refusal) for result in results):
            raise _Failed(f"HTTP {status}", asked)
        return results


def _results(raw: bytes, count: int, status: int) -> list[Any]:
    """A result or `Refusal` for each call of what a node said, in the order of the calls.

    Raises:
        _Failed: it refuses all of them together, in any shape, or does not answer the calls.
        Exception: it is no JSON-RPC.
    """
    try:
        said = json.loads(raw)
    except ValueError:  # plain words, or a page of who stands before the node
        said = raw[:MAX_READ_CHARS].decode(errors="replace")
    items = said if isinstance(said, list) else [said]
    refused = [_refusal(item) for item in items]
    whole = len(items) < count or all(isinstance(item, str) or item.get("id") is None for item in items)
    if any(refused) and whole and (count > 1 or isinstance(items[0], str)):
        first = next(filter(None, refused))
        why = f"HTTP {status}" if isinstance(said, str) else f"HTTP {status}: {first}"  # who knows what a page says
        if count > 1 and (first.of_batch or first.too_large or status == 400 or first.code in _NO_REQUEST):
            raise _TooLarge(f"a batch of {count} is refused ({why})")
        kind, what = (_Limited, "too many requests") if first.limited else (_Failed, "no answer")
        raise kind(f"{what} ({why})", words="" if isinstance(said, str) else first.message)
    if len(items) != count:
        raise _Failed(f"{len(items)} answers to {count} calls")
    found = [refusal or item["result"] for item, refusal in zip(items, refused, strict=True)]
    if count == 1 and refused[0]:
        return found  # an error may come without an id
    by_id = {str(item["id"]): one for item, one in zip(items, found, strict=True)}
    if by_id.keys() != set(map(str, range(count))):
        raise _Failed(f"answers to other calls than these {count}")
    return [by_id[str(n)] for n in range(count)]


def _refusal(item: Any) -> Refusal | None:
    """What a part of an answer refuses: an error as it should be, as words alone, or without the object around it."""
    error = item
    if isinstance(item, dict):
        error = item.get("error") or ("message" in item and "result" not in item and item)
    if not error or not isinstance(item, dict | str):
        return None
    error = error if isinstance(error, dict) else {"message": error}
    code, data = str(error.get("code")).removesuffix(".0"), error.get("data")
    more = data.get("message") if isinstance(data, dict) else data
    message = error.get("message") or more
    message = message if isinstance(message, str) else "an error without words"
    code = int(code) if re.fullmatch("-?[0-9]{1,9}", code) else 0
    return Refusal(code, message, more if isinstance(more, str) else "")


def _check(method: str, found: Sequence[Any], usable: Callable[[Any], bool] | None) -> None:
    try:
        sound = usable is None or all(map(usable, found))
    except Exception as error:
        raise _Failed(f"{method}: a result that cannot be read ({type(error).__name__})") from error
    if not sound:
        raise _Failed(f"{method} has no usable result")


@asynccontextmanager
async def open_rpc(urls: Sequence[str], **limits: float) -> AsyncIterator[Rpc]:
    """A session for `Rpc`; see there. Raises `RpcError` for what is no address."""
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield Rpc(session, urls, **limits)
