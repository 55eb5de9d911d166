"""Signed HTTP, both ways: `ask()` sends a signed request and takes a signed answer; `build_app()` serves them.

A request is a POST of JSON bytes signed with btauth/1 (`bittensor.http_auth`): who asks, whom, exactly which bytes,
when. btauth signs no answers, so the miner signs its own, bound to the request (`answer_payload`): whoever has the
stored bytes can check later, with `verify_answer`, what a miner said to which question. Whatever a peer does becomes a
`Reply` with a `protocol.Code`; whatever a caller does wrong becomes a JSON refusal `{"code": ..., "detail": ...}`.

A library, without a command: `python -m pytest tests/test_wire.py` shows every refusal, `python bench/wire.py` the
speed.
Read next: `miner.py` (a server), `validator.py` (the asks).
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import ipaddress
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from aiohttp import web
from bittensor import http_auth
from bittensor.sp_core import CRYPTO_SR25519

from protocol import MAX_QUERY_BYTES, Code, ProtocolError
from runtime.process import number, raise_file_limit
from wire.body import read_body
from wire.client import MAX_DETAIL_CHARS, PARSER_LIMITS
from wire.codec import canonical, digest
from wire.connections import Connections, Networks, address_key, within
from wire.signing import (
    ANSWER_HEADER,
    HOTKEY_TEXT,
    MAX_AGE_SECONDS,
    MAX_SKEW_SECONDS,
    WireError,
    answer_payload,
    is_wrapped,
)
from wire.text import one_line

NONCE_RETENTION_SECONDS = 2 * (MAX_AGE_SECONDS + MAX_SKEW_SECONDS)
IDLE_SECONDS = 15.0  # server: a connection without a complete request header for this long is closed
LINGER_SECONDS = 2.0  # how long a refused body is still read, so that the peer sees the refusal and not a reset
SHUTDOWN_SECONDS = 5.0
ACCEPTED, QUEUED = 16, 512  # connections taken up in one turn of the event loop, and waiting for that
_REQUIRED_HEADERS = {
    http_auth.HEADER_VERSION: re.compile(re.escape(http_auth.VERSION)),
    http_auth.HEADER_HOTKEY: HOTKEY_TEXT,
    http_auth.HEADER_RECEIVER: HOTKEY_TEXT,
    http_auth.HEADER_NONCE: re.compile(r"[1-9][0-9]{0,19}"),  # int() would also take " 12", "1_0" and "+5"
    http_auth.HEADER_SIGNATURE: re.compile(r"0x[0-9a-f]{128}"),
}
_AUTH_CODES = {
    http_auth.MalformedAuth: Code.AUTH_MALFORMED,
    http_auth.WrongReceiver: Code.AUTH_RECEIVER,
    http_auth.StaleRequest: Code.AUTH_STALE,
    http_auth.BadSignature: Code.AUTH_SIGNATURE,
    http_auth.ReplayedRequest: Code.AUTH_REPLAYED,
}
_CODES = {  # by HTTP status; every other code a handler refuses with: 400
    401: (Code.AUTH_MISSING, *_AUTH_CODES.values()),
    403: (Code.NOT_REGISTERED, Code.NO_PERMIT),
    404: (Code.NOT_FOUND,),
    408: (Code.BODY_TIMEOUT,),
    413: (Code.BODY_TOO_LARGE,),
    415: (Code.CONTENT_TYPE,),
    429: (Code.RATE_LIMITED,),
    503: (Code.BUSY,),
}
_STATUS = {code: status for status, codes in _CODES.items() for code in codes}
_DENDRITE_HEADER = "bt_header_dendrite_signature"
_DENDRITE_DETAIL = (
    "a Dendrite of bittensor 10 or older; this server takes HTTP signed with btauth/1 (bittensor 11), see wire.py"
)
_http_log = logging.getLogger(f"{__name__}.http")
_http_log.setLevel(logging.CRITICAL)  # aiohttp's tracebacks about strangers' broken HTTP must not fill the log

Handler = Callable[[str, bytes], Awaitable[bytes]]
"""`await handler(caller_hotkey, body)` gives the answer's bytes; it refuses by raising `ProtocolError`."""
Callers = Mapping[str, tuple[bool, int]]
"""Every registered hotkey: has it a validator permit, and its stake in rao."""

log = logging.getLogger("wire")


class Gate:
    """Who may call: registered, and with a validator permit or enough stake.

    Args:
        callers: gives the registered hotkeys (`Callers`) and the age of that list in seconds; asked at every call, so a
            plain look-up.
        min_stake_rao: stake that does for a permit.
        max_age_seconds: an older list admits nobody: fail closed.
        allow: hotkeys admitted whatever the list says, such as the operator's own validator.
    """

    def __init__(
        self,
        callers: Callable[[], tuple[Callers, float]],
        *,
        min_stake_rao: int,
        max_age_seconds: float = 600.0,
        allow: frozenset[str] = frozenset(),
    ):
        self.callers, self.allow = callers, allow
        self.min_stake_rao, self.max_age_seconds = min_stake_rao, max_age_seconds

    def check(self, hotkey: str) -> None:
        """Raises ProtocolError: `BUSY` (the list is too old), `NOT_REGISTERED` or `NO_PERMIT`."""
        if hotkey in self.allow:
            return
        callers, age_seconds = self.callers()
        if age_seconds > self.max_age_seconds:
            raise ProtocolError(
                Code.BUSY,
                f"the list of callers is {age_seconds:.0f} s old, at most {self.max_age_seconds:.0f}; try later",
            )
        if hotkey not in callers:
            raise ProtocolError(Code.NOT_REGISTERED, f"{hotkey} is not registered on this subnet")
        permit, stake_rao = callers[hotkey]
        if not permit and stake_rao < self.min_stake_rao:
            raise ProtocolError(
                Code.NO_PERMIT, f"no validator permit, and stake {stake_rao} rao is below {self.min_stake_rao} rao"
            )


class RateLimit:
    """A token bucket for each key: `burst` at once, `per_second` in the long run. Full buckets are forgotten."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float]):
        self.per_second, self.burst, self.clock = per_second, burst, clock
        self.buckets: dict[str, tuple[float, float]] = {}  # tokens and when; the longest untouched first

    def has(self, key: str) -> bool:
        return self._refilled(key, self.clock()) >= 1

    def take(self, key: str) -> bool:
        """One token of `key`'s bucket: was there one?"""
        now = self.clock()
        while self.buckets and self._refilled(next(iter(self.buckets)), now) >= self.burst:
            del self.buckets[next(iter(self.buckets))]
        tokens = self._refilled(key, now)
        self.buckets.pop(key, None)
        self.buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    def _refilled(self, key: str, now: float) -> float:
        tokens, then = self.buckets.get(key, (self.burst, now))
        return min(self.burst, tokens + (now - then) * self.per_second)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller, and all of them together, may take of a server.

    Attributes:
        max_body_bytes, body_seconds: of a request's body, and the total deadline for reading it.
        handler_seconds: total deadline of a handler.
        max_reading: requests being read and verified at once. Anyone can take these, at most
            `address_burst + address_per_second * body_seconds` for each address.
        max_handling: requests past all checks at once; only admitted callers can take these.
        address_per_second, address_burst: requests of one IP address (IPv6: one /64) that are refused before their
            caller is known and admitted; when they are used up, nobody is heard from there until there are more.
        max_connections, address_connections: open at once, in all and of one address.
        trusted_proxies: whose `X-Forwarded-For` says the address, and whose connections are capped only in all.
        hotkey_per_second, hotkey_burst: admitted requests of one hotkey.
    """

    max_body_bytes: int = MAX_QUERY_BYTES
    body_seconds: float = 3.0
    handler_seconds: float = 55.0
    max_reading: int = 512
    max_handling: int = 64
    address_per_second: float = 50.0
    address_burst: float = 100.0
    max_connections: int = 1024
    address_connections: int = 256
    trusted_proxies: Networks = ()
    hotkey_per_second: float = 20.0
    hotkey_burst: float = 40.0


LIMITS = web.AppKey("limits", Limits)


def add_limit_options(add: Callable) -> None:
    """`--trusted-proxy` and `--address-limit` for a parser's or group's `add_argument`; read by `limited`."""
    add(
        "--trusted-proxy",
        action="append",
        type=ipaddress.ip_network,
        metavar="CIDR",
        help="address or network of a proxy before this server, whose X-Forwarded-For says who calls; give several",
    )
    add(
        "--address-limit",
        type=number(0, 1e6, float),
        metavar="N",
        help="refused requests per second that one address may make before nobody is heard from there, 0 any number"
        f" (default: {Limits().address_per_second:g}); raise it where callers share an address",
    )


def limited(limits: Limits, options: Any) -> Limits:
    """The same limits as the options change them."""
    limits = replace(limits, trusted_proxies=tuple(options.trusted_proxy or ()))
    if options.address_limit is not None:
        rate = options.address_limit or 1e9
        limits = replace(limits, address_per_second=rate, address_burst=2 * rate)
    return limits


def build_app(
    *,
    keypair: Any,
    gate: Gate,
    routes: Mapping[str, Handler],
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> web.Application:
    """A server that answers signed POSTs with signed answers, and everything else with a code.

    Args:
        keypair: the hotkey's sr25519 `Keypair`: requests must be signed for it, and it signs the answers.
        gate: who may call.
        routes: handler by path.
        limits: sizes, deadlines, rates; the defaults suit a miner on the public internet.
        clock: seconds, for the rates.
    """
    app = web.Application()
    app[LIMITS] = limits = limits or Limits()
    app.router.add_route("*", "/{anything:(?s:.*)}", _Server(keypair, gate, routes, limits, clock).respond)
    return app


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve `app` inside the block and give the port it listens on; 0 means any free one.

    Connections are capped, take one request each, and end with a stalled answer; handlers of an app that has LIMITS
    end when their caller left.

    Raises:
        WireError: the address cannot be listened on.
    """
    limits = app.get(LIMITS, Limits())
    if not app.frozen:  # else it has been served before
        app.on_response_prepare.append(_close)
    runner = web.AppRunner(
        app,
        handler_cancellation=LIMITS in app,
        access_log=None,
        logger=_http_log,
        auto_decompress=False,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        **PARSER_LIMITS,
    )
    await runner.setup()
    try:
        try:
            connections = Connections(
                runner.server,
                min(limits.max_connections, max(64, raise_file_limit() // 2)),
                limits.address_connections,
                limits.trusted_proxies,
            )
            loop = asyncio.get_running_loop()
            listening = await loop.create_server(connections, host, port, backlog=ACCEPTED)
            for one in listening.sockets:
                with one.dup() as same:
                    same.listen(QUEUED)
        except (OSError, OverflowError) as error:
            busy = getattr(error, "errno", None) == errno.EADDRINUSE
            problem = "the port is in use; stop the other process" if busy else f"{error}; choose another address"
            raise WireError(f"cannot listen on {host} port {port}: {problem} or choose another port") from error
        try:
            yield listening.sockets[0].getsockname()[1]
        finally:
            listening.close()
    finally:
        await runner.cleanup()


async def _close(request: web.Request, response: web.StreamResponse) -> None:
    """One request a connection: another costs both sides as much, and nobody sends a flood of them in one stream."""
    if request.transport and "Transfer-Encoding" in request.headers:
        request.transport.get_protocol().drop()
    response.force_close()
    response.headers["Connection"] = "close"


class _Server:
    """One request's way, cheapest check first: receiver, rates, headers, body, signature, gate, handler."""

    def __init__(
        self, keypair: Any, gate: Gate, routes: Mapping[str, Handler], limits: Limits, clock: Callable[[], float]
    ):
        self.keypair, self.gate, self.routes, self.limits = keypair, gate, routes, limits
        self.hotkey = keypair.ss58_address
        self.nonces = http_auth.InMemoryNonceStore(retention=NONCE_RETENTION_SECONDS)
        self.addresses = RateLimit(limits.address_per_second, limits.address_burst, clock)
        self.callers = RateLimit(limits.hotkey_per_second, limits.hotkey_burst, clock)
        self.reading, self.handling = asyncio.Semaphore(limits.max_reading), asyncio.Semaphore(limits.max_handling)

    async def respond(self, request: web.Request) -> web.Response:
        """The answer, or the refusal that says why not."""
        source, admitted = address_key(self._source(request)), False
        try:
            # A validator asks every published endpoint. Who publishes this one as theirs must not spend its rate here.
            receiver = request.headers.get(http_auth.HEADER_RECEIVER, self.hotkey)
            if receiver != self.hotkey and HOTKEY_TEXT.fullmatch(receiver):
                raise ProtocolError(Code.AUTH_RECEIVER, f"the request is for {receiver}, here is {self.hotkey}")
            if not self.addresses.has(source):
                limit = f"more than {self.limits.address_per_second:g} refused requests/s"
                raise ProtocolError(Code.RATE_LIMITED, f"{limit} from here")
            if _DENDRITE_HEADER in request.headers:
                self.addresses.take(source)
                return _refusal(Code.AUTH_MISSING, _DENDRITE_DETAIL, status=426)
            handler = self.routes.get(request.raw_path.partition("?")[0])
            if handler is None or request.method != "POST":
                raise ProtocolError(Code.NOT_FOUND, f"POST to one of: {', '.join(self.routes)}")
            async with _slot(self.reading):
                headers = _auth_headers(request)
                body = await read_body(request, self.limits.max_body_bytes, self.limits.body_seconds)
                nonce, caller = _verify(headers, body, request.raw_path, self.hotkey, self.nonces)
            self.gate.check(caller)
            admitted = True  # from here on the limit by hotkey decides
            if not self.callers.take(caller):
                limit = f"more than {self.limits.hotkey_per_second:g} requests/s"
                raise ProtocolError(Code.RATE_LIMITED, f"{limit} by {caller}")
            async with _slot(self.handling), asyncio.timeout(self.limits.handler_seconds):
                answer = await handler(caller, body)
            signature = self.keypair.sign(answer_payload(digest(body), nonce, caller, self.hotkey, answer))
            return web.Response(body=answer, content_type="application/json", headers={ANSWER_HEADER: signature.hex()})
        except ProtocolError as error:
            if not admitted and error.code not in (Code.AUTH_RECEIVER, Code.BUSY):
                self.addresses.take(source)
            return _refusal(error.code, error.detail, status=_STATUS.get(error.code, 400))
        except Exception:
            log.exception("request to %s failed", request.path)
            detail = "the handler failed or took too long; see the server's log"
            return _refusal(Code.HANDLER_FAILED, detail, status=500)

    def _source(self, request: web.Request) -> str:
        """Who calls: the last address that no trusted proxy has."""
        address, trusted = request.remote or "", self.limits.trusted_proxies
        told = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",") if trusted else []
        while told and within(address, trusted):
            address = told.pop().strip() or address
        return address


def _refusal(code: Code, detail: str, *, status: int) -> web.Response:
    headers = {"Upgrade": http_auth.PROTOCOL} if status == 426 else None
    body = canonical({"code": code, "detail": one_line(detail, MAX_DETAIL_CHARS)})
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of the slots at once, or `BUSY`: a queue would only make every caller late."""
    if slots.locked():
        raise ProtocolError(Code.BUSY, "too many requests at the same time; try later")
    async with slots:
        yield


def _auth_headers(request: web.Request) -> dict[str, str]:
    """The btauth headers, each there once and of the right shape; before any signature work.

    Raises:
        ProtocolError: `AUTH_MISSING` or `AUTH_MALFORMED`.
    """
    found = {}
    for name, shape in _REQUIRED_HEADERS.items():
        values = request.headers.getall(name, [])
        if not values:
            raise ProtocolError(Code.AUTH_MISSING, f"header {name} is missing")
        if len(values) > 1 or not shape.fullmatch(values[0]):
            found_is = f"header {name}, {len(values)} times, {len(values[0])} characters"
            raise ProtocolError(Code.AUTH_MALFORMED, f"{found_is}: expected one {shape.pattern}")
        found[name] = values[0]
    if request.headers.getall(http_auth.HEADER_CRYPTO, ["sr25519"]) != ["sr25519"]:
        raise ProtocolError(Code.AUTH_MALFORMED, f"header {http_auth.HEADER_CRYPTO}: only sr25519 is taken")
    return found


def _verify(
    headers: dict[str, str], body: bytes, target: str, receiver: str, nonces: http_auth.NonceStore
) -> tuple[int, str]:
    """Nonce and hotkey of whoever signed this request: the one place that calls btauth's `verify`.

    Raises:
        ProtocolError: `AUTH_RECEIVER`, `AUTH_STALE`, `AUTH_SIGNATURE`, `AUTH_REPLAYED` or `AUTH_MALFORMED`.
    """
    try:
        caller = http_auth.verify(
            headers,
            body,
            method="POST",
            path=target,
            self_hotkey_ss58=receiver,
            max_age=MAX_AGE_SECONDS,
            allowed_skew=MAX_SKEW_SECONDS,
            nonce_store=nonces,
            **_crypto_argument(http_auth.verify),
        )
    except http_auth.StaleRequest:
        ahead = (int(headers[http_auth.HEADER_NONCE]) - time.time_ns()) / 1e9
        if ahead > 0:
            off = f"{ahead:.1f} s ahead of the server's clock, at most {MAX_SKEW_SECONDS:g}: the two clocks differ"
        else:
            off = f"{-ahead:.1f} s old by the server's clock, at most {MAX_AGE_SECONDS:g}: late, or the clocks differ"
        raise ProtocolError(Code.AUTH_STALE, f"the request is {off}; set both by NTP") from None
    except http_auth.AuthError as error:
        raise ProtocolError(_AUTH_CODES.get(type(error), Code.AUTH_SIGNATURE), str(error)) from None
    payload = http_auth.build_payload(
        scheme="sr25519",
        method="POST",
        path=target,
        body=body,
        nonce_ns=caller.nonce_ns,
        sender_ss58=caller.hotkey_ss58,
        receiver_ss58=receiver,
    )
    signature = bytes.fromhex(headers[http_auth.HEADER_SIGNATURE].removeprefix("0x"))
    if is_wrapped(payload, signature, caller.hotkey_ss58):
        detail = "the signature is over <Bytes>...</Bytes>, not over the request itself"
        raise ProtocolError(Code.AUTH_SIGNATURE, detail)
    return caller.nonce_ns, caller.hotkey_ss58


@cache
def _crypto_argument(verify_request: Callable[..., Any]) -> dict[str, int]:
    """bittensor 11.3.2 and later refuse every request unless told the scheme; 11.3.0 does not know the argument."""
    takes_it = "expected_crypto_type" in inspect.signature(verify_request).parameters
    return {"expected_crypto_type": CRYPTO_SR25519} if takes_it else {}
