"""Receipts: what a validator signs about a miner's own score, so that the miner can prove it to anyone.

    python miner.py receipts                        fetch what is missing, verify all, print the newest: exit 0 or 1
    python miner.py receipts --export ROUND         one receipt as JSON, to hand to somebody else
    python receipts.py FILE [--evidence ROUND.json] verify receipts offline, also against the round's evidence

A receipt is `{"statement": {...}, "signature": ...}`: the validator's sr25519 signature over the statement's canonical
JSON (`wire.sign_statement`). Every miner that was asked in a round gets one, ranked or not, of void rounds too:

    format, rules_version, market, pool  `alm-receipt/1`; by which rules, on what
    validator, hotkey                    who says it, about whom
    round                                id, times, opening, close, settings, code and detail
    entrant                              registration block and reputation before the round, null if not accepted
    ranked, line                         how many were ranked; the miner's `rounds.Line` with rank, score and all its
                                         terms, and a live round's gas, null if it was not ranked
    baselines                            scores of keep, hold and best
    asks                                 each ask of this miner: sha256 of query and answer, nonce, code, when it acted
    seal                                 sha256 of the digests that seal the round's evidence

It follows from the round's evidence alone, so a validator that ever signs two different statements about one miner and
round has proved its own fault. Offline anyone can check the signature, that score and terms follow from the line's
amounts, and that who accepted was ranked; the miner also that its answers are quoted as it gave them; and who has the
evidence, everything else (`validator.py audit`).
Read next: `evidence.py` (what the statement is taken from), `wire.py` (how it travels).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from types import NoneType
from typing import Any

import aiohttp

from chain import Chain, ChainError
from protocol import (
    MAX_QUERY_BYTES,
    Code,
    JobSettings,
    ProtocolError,
    canonical,
    digest,
    from_plain,
    parse_json,
)
from runtime import EXIT_FAILED, EXIT_OK, Parser, UserError, run
from scoring import RULES_VERSION, Outcome, Terms, gas_cost, score_outcome
from store import Store, to_json
from wire import Gate, Limits, WireError, ask, build_app, client_session, serve, sign_statement, verify_statement

FORMAT = SCHEME = "alm-receipt/1"
DEFAULT_PORT = 8090
PAGE_BYTES = MAX_QUERY_BYTES  # receipts travel in pages of at most this much; a longer receipt is a page of its own
MAX_PAGE_BYTES = 2**20  # which can only be fetched; nothing longer is taken
PAGE_RECEIPTS = 32  # the most in a page: each costs its reader a verification
PAGE_ROUNDS = 1000  # looked through for one page of a list
POSTS, POST_SECONDS = 16, 5.0  # posts at once; the deadline of one
MAX_ROUNDS = 16  # whose receipts are not signed yet; of further ones they are not posted
MAX_WAITING = 4 * PAGE_RECEIPTS  # receipts that wait for one miner; further ones are not posted
MAX_POST_REPLY_BYTES = 1024
DRAIN_SECONDS = 3.0  # how long the end of the validator waits for posts
REST = 3  # after a page the server rests so many times as long as it took: fetching takes a quarter of a core at most
SERVER_LIMITS = Limits(handler_seconds=10.0, max_handling=16, hotkey_per_second=10.0)

ROUND_FIELDS = (
    *("round_id", "job_id", "round_type", "start_time", "end_time", "settings"),
    *("opening_block", "opening_hash", "close_block", "code", "detail", "asked"),
)
MAX_DIGITS = 100  # before the point, of a score: more are no score, and hard to print
ASK_FIELDS = ("due_block", "nonce", "code", "detail", "effective_block", "response_seconds")
BASELINES = ("keep", "hold", "best")
MAYBE_INT, MAYBE_TEXT = (int, NoneType), (str, NoneType)
_NULLABLE, _OPTIONAL = ("entrant", "line"), {"gas"}
_SHAPE = {
    **dict.fromkeys(("format", "market", "pool", "validator", "hotkey", "seal"), str),
    **dict.fromkeys(("rules_version", "ranked"), int),
    "round": dict.fromkeys(ROUND_FIELDS, str)
    | dict.fromkeys(("start_time", "end_time", "asked"), int)
    | {"opening_block": MAYBE_INT, "close_block": MAYBE_INT, "opening_hash": MAYBE_TEXT, "settings": JobSettings},
    "entrant": {"registered_block": int, "combined": str},
    "line": dict.fromkeys(("name", "score", "rank", "copy_of"), str)
    | {"range_": (NoneType,), "gas": [str]}
    | {name: {field.name: str for field in fields(cls)} for name, cls in (("outcome", Outcome), ("terms", Terms))},
    "baselines": dict.fromkeys(BASELINES, MAYBE_TEXT),
    "asks": [dict.fromkeys((*ASK_FIELDS, "query", "answer"), str) | {"due_block": int, "effective_block": MAYBE_INT}],
}

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# The statement


def seal_digest(evidence: dict[str, Any]) -> str:
    """What a statement names as its round's seal: sha256 of the sealed digests' canonical JSON."""
    return digest(canonical(evidence["seal"]["digests"]))


def statement(evidence: dict[str, Any], hotkey: str, seal: str) -> dict[str, Any]:
    """What the validator says about one miner in one round; the same evidence gives the same statement.

    Args:
        evidence: of the round, see `evidence.py`; what is read of it is `market`, `pool`, `validator`, `rules_version`,
            `round`, `baselines`, and of `asks`, `entrants` and `scores` the miner's own and the number of scores.
        hotkey: of a miner that was asked.
        seal: `seal_digest` of the evidence.
    """
    row, baselines = evidence["round"], evidence["baselines"]
    entrant = next((e for e in evidence["entrants"] if e["hotkey"] == hotkey), None)
    return {
        "format": FORMAT,
        **{name: evidence[name] for name in ("rules_version", "market", "pool", "validator")},
        "hotkey": hotkey,
        "round": {name: row[name] for name in ROUND_FIELDS},
        "entrant": entrant and {name: entrant[name] for name in ("registered_block", "combined")},
        "ranked": len(evidence["scores"]),
        "line": next((score["line"] for score in evidence["scores"] if score["hotkey"] == hotkey), None),
        "baselines": {name: baselines[name]["score"] if name in baselines else None for name in BASELINES},
        "asks": [
            {name: asked[name] for name in ASK_FIELDS}
            | {name: digest(data) if (data := base64.b64decode(asked[name])) else "" for name in ("query", "answer")}
            for asked in evidence["asks"]
            if asked["hotkey"] == hotkey
        ],
        "seal": seal,
    }


def issue(evidence: dict[str, Any], hotkey: str, seal: str, keypair: Any) -> dict[str, Any]:
    """The signed statement; arguments as for `statement`, and the validator's `Keypair`."""
    said = statement(evidence, hotkey, seal)
    return {"statement": said, "signature": sign_statement(keypair, SCHEME, canonical(said))}


def read(receipt: Any) -> dict[str, Any]:
    """The statement of a receipt from anywhere, once its shape and its signature are right.

    What it says may still be wrong: that is `problems`, and then the signature is what proves it.

    Raises:
        ProtocolError: `MALFORMED`, or `RECEIPT_SIGNATURE` when it is not signed by the validator it names.
    """
    check_shape(receipt, {"statement": _SHAPE, "signature": str}, "receipt")
    said = receipt["statement"]
    if said["format"] != FORMAT:
        raise ProtocolError(Code.MALFORMED, f"format {said['format']!r}, this program reads {FORMAT}")
    if not verify_statement(said["validator"], SCHEME, canonical(said), receipt["signature"]):
        raise ProtocolError(Code.RECEIPT_SIGNATURE, f"not signed by {said['validator']}")
    return said


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Compare plain JSON with a shape: objects by their members, lists by their items, the rest by type.

    Raises:
        ProtocolError: `MALFORMED`, naming the place.
    """
    if shape is JobSettings:
        from_plain(JobSettings, value, where)
    elif (
        isinstance(shape, dict) and isinstance(value, dict) and shape.keys() - _OPTIONAL <= value.keys() <= shape.keys()
    ):
        for name in value:
            if not (value[name] is None and name in _NULLABLE):
                check_shape(value[name], shape[name], f"{where}.{name}")
    elif isinstance(shape, list) and isinstance(value, list):
        for n, item in enumerate(value):
            check_shape(item, shape[0], f"{where}[{n}]")
    elif isinstance(shape, dict | list) or type(value) not in (shape if isinstance(shape, tuple) else (shape,)):
        wanted = f"an object of {', '.join(shape)}" if isinstance(shape, dict) else "of the expected type"
        raise ProtocolError(Code.MALFORMED, f"{where} is not {wanted}")
    elif isinstance(value, int) and abs(value) >> 63:
        raise ProtocolError(Code.MALFORMED, f"{where} is {value}, beyond 64 bits")
    elif isinstance(value, str) and not _is_text(value):
        raise ProtocolError(Code.MALFORMED, f"{where} has a lone surrogate, which is not text")


def _is_text(value: str) -> bool:
    """JSON can spell strings that are no text, and SQLite does not take."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def problems(said: dict[str, Any], evidence: dict[str, Any] | None = None) -> Iterator[str]:
    """What a statement of the right shape gets wrong, by itself and against the round's evidence.

    Scores of other rules than this program's are not computed again.
    """
    line, asks, row = said["line"], said["asks"], said["round"]
    dues = [asked["due_block"] for asked in asks]
    if not asks or dues != sorted(set(dues)):
        yield "asks: none, or not one for each due block in order"
        return
    for n, asked in enumerate(asks):
        accepted = asked["code"] == Code.ACCEPTED
        if accepted != (asked["effective_block"] is not None) or (accepted and not asked["answer"]):
            yield f"asks[{n}]: {asked['code']}, but an answer acts if and only if it came and was accepted"
    entered = asks[0]["code"] == Code.ACCEPTED
    if (line is not None) != (entered and row["code"] in (Code.SCORED, Code.NOBODY_RANKED)):
        yield (
            f"line: {'none' if line is None else 'a score'} in a round that ended with {row['code']},"
            f" the first answer being {asks[0]['code']}"
        )
    if (said["entrant"] is not None) != (entered and row["round_type"] == "evaluation"):
        yield f"entrant: {said['entrant']}, the first answer being {asks[0]['code']}"
    try:
        for text in (*said["baselines"].values(), line and line["score"]):
            if text is not None and not (Decimal(text).is_finite() and Decimal(text).adjusted() < MAX_DIGITS):
                yield f"a score is {text[:50]}"
        if line is not None and said["rules_version"] == RULES_VERSION:
            yield from _wrong_digits(said)
    except (ValueError, ArithmeticError, TypeError) as error:  # TypeError: there is a line, and no score of keep
        yield f"line: cannot be computed: {type(error).__name__}: {error}"
    if evidence is not None:
        try:
            again = statement(evidence, said["hotkey"], seal_digest(evidence))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            yield f"evidence: malformed, {type(error).__name__}: {error}"
        else:
            yield from (f"{name}: is not what the evidence says" for name in again if again[name] != said[name])


def _wrong_digits(said: dict[str, Any]) -> Iterator[str]:
    """What of a line does not follow from its amounts by the rules of `scoring.py`."""
    line, settings = said["line"], from_plain(JobSettings, said["round"]["settings"])
    plain = line["outcome"]
    outcome = Outcome(**{name: Decimal(text) if name == "in_range" else int(text) for name, text in plain.items()})
    gas0, gas1 = map(int, line.get("gas", (0, 0)))
    if "gas" in line and (min(gas0, gas1) < 0 or said["round"]["round_type"] != "live"):
        yield f"line.gas: {gas0} and {gas1} in a round of type {said['round']['round_type']}"
    gas = gas_cost(gas0, gas1, outcome.sqrt_price_end_x96)
    terms = score_outcome(outcome, settings.target, settings.rebalance_cost, gas)
    for name, computed in to_json(terms).items():
        if line["terms"][name] != computed:
            yield f"line.terms.{name}: {line['terms'][name]}, its amounts give {computed}"
    capped = bool(line["copy_of"]) or terms.in_range < settings.min_in_range
    counts = min(terms.score, Decimal(said["baselines"]["keep"])) if capped else terms.score
    if Decimal(line["score"]) != counts:
        yield f"line.score: {line['score']}, the rules give {counts}"
    if line["name"] != said["hotkey"] or not 1 <= int(line["rank"]) <= said["ranked"] <= said["round"]["asked"]:
        yield f"line: rank {line['rank']} of {said['ranked']} for {line['name']}"


def _fitting(items: Iterable[Any], most: int) -> list[Any]:
    """The longest beginning of some plain values that fits a page, at least one of them if there is one."""
    page, size = [], 64  # what the page itself needs around them
    for item in items:
        size += len(canonical(item)) + 1
        if page and (size > PAGE_BYTES or len(page) == most):
            break
        page.append(item)
    return page


# ---------------------------------------------------------------------------------------------------------------------
# The validator's side


class Issuer:
    """Posts the receipts of each sealed round to its miners, and serves every miner its own.

    Posting is best effort: a miner that is dead, slow or hostile costs one attempt with a short deadline at a time, and
    what could not be posted can be fetched. Served receipts are made anew from the database, on a connection of their
    own, so that nobody's fetching keeps a round waiting.
    """

    def __init__(self, store: Store, chain: Chain, keypair: Any, session: aiohttp.ClientSession, public_only=False):
        """Use `issuing`."""
        self.store, self.chain, self.keypair, self.session = store, chain, keypair, session
        self.public_only = public_only
        self.unposted = 0
        self.callers: dict[str, tuple[bool, int]] = {}  # who may fetch: `wire.Callers`
        self._addresses: dict[str, str] = {}
        self._tasks: set[asyncio.Task] = set()
        self._unsigned = 0  # rounds
        self._signing, self._paging, self._slots = asyncio.Lock(), asyncio.Lock(), asyncio.Semaphore(POSTS)
        self._waiting: dict[str, list[dict]] = {}  # by miner, while a task posts to it

    def post(self, evidence: dict[str, Any]) -> None:
        """Post a sealed round's receipts in the background; returns at once."""
        if self._unsigned >= MAX_ROUNDS:
            self.unposted += len({asked["hotkey"] for asked in evidence["asks"]})
            return
        self._unsigned += 1
        self._start(self._sign(evidence | {"snapshot": None, "events": None}))  # which is most of it

    def _start(self, work) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception:  # whatever goes wrong with receipts, the rounds go on
                log.exception("receipts could not be posted")

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sign(self, evidence: dict[str, Any]) -> None:
        """Sign a round's receipts and give each to the task that posts to its miner."""
        try:
            async with self._signing:
                receipts = await asyncio.to_thread(self._receipts, evidence)
            await self.refresh()
        except ChainError as error:
            log.warning("no receipts of %s are posted: %s", evidence["round"]["round_id"], error)
            return
        finally:
            self._unsigned -= 1
        for hotkey, receipt in receipts.items():
            waiting = self._waiting.get(hotkey, [])
            if hotkey not in self._addresses or len(waiting) >= MAX_WAITING:
                self.unposted += 1
                continue
            waiting.append(receipt)
            if hotkey not in self._waiting:
                self._waiting[hotkey] = waiting
                self._start(self._post(hotkey))

    def _receipts(self, evidence: dict[str, Any]) -> dict[str, dict]:
        seal, asked = seal_digest(evidence), dict.fromkeys(asked["hotkey"] for asked in evidence["asks"])
        return {hotkey: issue(evidence, hotkey, seal, self.keypair) for hotkey in asked}

    async def _post(self, hotkey: str) -> None:
        """Post what waits for one miner, a page at a time; the first failure gives all of it up."""
        waiting, page = self._waiting[hotkey], []
        try:
            while waiting:
                page = _fitting(waiting, PAGE_RECEIPTS)
                del waiting[: len(page)]
                body = canonical({"receipts": page})
                if len(body) > PAGE_BYTES:  # one long receipt
                    self.unposted, page = self.unposted + 1, []
                    continue
                async with self._slots:
                    reply = await ask(
                        self.session,
                        f"http://{self._addresses.get(hotkey, '')}/receipt",
                        body,
                        keypair=self.keypair,
                        receiver=hotkey,
                        total_seconds=POST_SECONDS,
                        max_reply_bytes=MAX_POST_REPLY_BYTES,
                        public_only=self.public_only,
                    )
                if reply.code is not Code.ACCEPTED:
                    log.debug("receipts for %s: %s %s", hotkey, reply.code, reply.detail)
                    return
                page = []
        finally:
            self.unposted += len(page) + len(waiting)
            del self._waiting[hotkey]

    async def refresh(self) -> None:
        """Read from the chain who may fetch, and where miners listen. Raises `ChainError`."""
        neurons = (await self.chain.metagraph()).neurons
        self._addresses = {neuron.hotkey: neuron.address for neuron in neurons if neuron.address}
        self.callers |= {neuron.hotkey: (True, 0) for neuron in neurons}

    async def drain(self) -> None:
        """Wait a little for what is being posted, and leave the rest to be fetched."""
        until = time.monotonic() + DRAIN_SECONDS
        while self._tasks and (left := until - time.monotonic()) > 0:  # a task that signs starts others that post
            await asyncio.wait(self._tasks, timeout=left)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.unposted:
            log.info("%d receipts did not reach their miners, who can fetch them", self.unposted)

    async def answer(self, caller: str, body: bytes) -> bytes:
        """Handle a signed request of one miner about itself.

        `{"after": N}` lists sealed rounds in which it was asked, from the first with N = 0:
        `{"rounds": [ids], "after": next N, null at the end}`. `{"rounds": [ids]}` gives their receipts in this order,
        of the first `PAGE_RECEIPTS` as many as fit a page, at least one if there is one: `{"receipts": [...]}`. Rounds
        in which the caller was not asked are passed over.

        Raises:
            ProtocolError: `MALFORMED`.
        """
        asked = parse_json(body, MAX_QUERY_BYTES)
        if isinstance(asked, dict) and "after" in asked:
            check_shape(asked, {"after": int}, "request")
            handle, argument = self._list, max(0, asked["after"])
        else:
            check_shape(asked, {"rounds": [str]}, "request")
            handle, argument = self._page, asked["rounds"][:PAGE_RECEIPTS]
        async with self._paging:
            started = time.monotonic()
            try:
                return canonical(await handle(caller, argument))
            finally:
                await asyncio.sleep(REST * (time.monotonic() - started))

    async def _list(self, caller: str, after: int) -> dict[str, Any]:
        found, reached = await self.store.asked_rounds(caller, after, PAGE_ROUNDS)
        page = _fitting((round_id for _, round_id in found), PAGE_ROUNDS)
        if len(page) < len(found):
            reached = found[len(page) - 1][0]
        return {"rounds": page, "after": reached}

    async def _page(self, caller: str, ids: Sequence[str]) -> dict[str, Any]:
        page, size = [], 0
        for round_id in ids:
            if about := await self.store.evidence_about(round_id, caller):
                evidence, seal = about
                page.append(issue(evidence, caller, seal, self.keypair))
                size += len(canonical(page[-1]))
                if size > PAGE_BYTES:
                    break
        return {"receipts": _fitting(page, PAGE_RECEIPTS)}


@asynccontextmanager
async def issuing(
    path: Path,
    chain: Chain,
    keypair: Any,
    host: str | None,
    port: int | None,
    published: str | None = None,
    public_only: bool = False,
) -> AsyncIterator[Issuer]:
    """Post receipts inside the block, and serve them to their miners; at its end wait a little for posts.

    Args:
        path: the validator's jobs database.
        host: to listen on; None serves nobody.
        port: to listen on, 0 any free one; None is `DEFAULT_PORT`, or any free one if that is taken.
        published: the IP address at which others reach this port, which the chain is told; None tells it nothing.
        public_only: as `wire.ask`, of the addresses that are posted to.

    Raises:
        WireError: the port cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store, session = await enter(Store.open(path)), await enter(client_session(POSTS))
        issuer = Issuer(store, chain, keypair, session, public_only)
        issuer.callers |= dict.fromkeys(await store.ranked_ever(), (True, 0))
        if host is not None:
            listening = await enter(_serving(issuer, host, port))
            if published is not None:
                await _publish(chain, published, listening)
        with suppress(ChainError):
            await issuer.refresh()
        try:
            yield issuer
        finally:
            await issuer.drain()


@asynccontextmanager
async def _serving(issuer: Issuer, host: str, port: int | None) -> AsyncIterator[int]:
    """The server, and the port that it has got."""
    gate = Gate(lambda: (issuer.callers, 0.0), min_stake_rao=0)
    choices = [DEFAULT_PORT, 0] if port is None else [port]
    async with AsyncExitStack() as stack:
        for choice in choices:
            routes = {"/receipts": issuer.answer}
            app = build_app(keypair=issuer.keypair, gate=gate, routes=routes, limits=SERVER_LIMITS)
            try:
                listening = await stack.enter_async_context(serve(app, host, choice))
                break
            except WireError as error:
                if choice == choices[-1]:
                    raise
                log.info("%s; receipts are served on a free one", error)
        log.info("receipts are served to their miners at http://%s:%d/receipts", host, listening)
        yield listening


async def _publish(chain: Chain, address: str, port: int) -> None:
    """Without it miners do not find what they could fetch; the rounds go on."""
    try:
        outcome = await chain.serve(address, port)
        problem = "" if outcome.ok else f"{outcome.name} {outcome.detail}"
    except ChainError as error:
        problem = str(error)
    if problem:
        log.warning("the chain did not take the address %s:%d: %s", address, port, problem)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def shown(text: str) -> str:
    """Text that others may have chosen, as one line of ASCII for terminals."""
    return text.encode("ascii", "backslashreplace").decode().translate(dict.fromkeys((*range(32), 127), "?"))


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="receipts.py", description="Verify receipts offline: exit 0 only if each is right.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="what `python miner.py receipts --export` prints")
    parser.add_argument("--evidence", metavar="FILE", help="the round's, as `python store.py export ROUND` prints it")
    return parser


async def _verify(options: argparse.Namespace) -> int:
    evidence = None
    if options.evidence:
        try:
            evidence = json.loads(_bytes_of(options.evidence))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{options.evidence}: {error}; is it what `python store.py export ROUND` wrote?") from error
    failed = False
    for path in options.files:
        for text in _bytes_of(path).splitlines():
            try:
                said = read(parse_json(text, MAX_PAGE_BYTES))
                wrong = list(problems(said, evidence))
                line, row = said["line"], said["round"]
                rank = f"rank {line['rank']} of {said['ranked']}, score {line['score']}" if line else "not ranked"
                who = f"{said['validator']} of {said['hotkey']}"
                print(shown(f"{path}: {who}: {row['round_id']} {row['code']}, {rank}"))
            except ProtocolError as error:
                wrong = [str(error)]
            for what in wrong:
                print(shown(f"{path}: WRONG {what}"))
            failed |= bool(wrong)
    return EXIT_FAILED if failed else EXIT_OK


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that can be read") from error


def main(argv: list[str] | None = None) -> int:
    return run(_verify(build_parser().parse_args(argv)), "INFO")


if __name__ == "__main__":
    sys.exit(main())
