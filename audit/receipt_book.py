"""A miner's receipt book: the answers it gave, and what validators signed about its scores, in one SQLite file.

    python miner.py receipts [--from URL]      fetch what is missing, verify all, print the newest: exit 0 or 1
    python miner.py receipts --export ROUND    one round's receipts as JSON, to hand to somebody else

The running miner keeps what validators post to its `/receipt`. Whatever is validly signed is kept, right or wrong, and
nothing is dropped for something newer: a wrong receipt is the proof of a wrong. So what is kept of each validator is
bounded, and one that fills its part is refused.
Read first: `receipts.py` (what a receipt says). Read next: `miner.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from audit.issuer import PAGE_BYTES, PAGE_RECEIPTS
from audit.receipts import MAX_PAGE_BYTES, problems, read, rules_of
from audit.shape import check_shape
from chain.base import ChainError
from chain.opening import joined, local_wallet, wallet_of
from protocol import MAX_QUERY_BYTES, Code, ProtocolError
from runtime.db import Database, StoreError, claim, connect
from runtime.options import file_path, is_local, refuse
from runtime.process import EXIT_FAILED, EXIT_OK, UserError, number, run
from wire.client import Reply, ask, client_session
from wire.codec import canonical, digest, parse_json
from wire.server import Handler
from wire.text import one_line

MAX_VALIDATOR_BYTES = 128 * 2**20  # what is kept of one validator: some 30,000 rounds
NOTE_BYTES = 400  # of one note of an answer, about
MAX_NOTES, NOTES_SECONDS = 10_000, 1.0  # answers not written yet; how often they are
FETCH_SECONDS, CALL_SECONDS, CALL_ATTEMPTS = 300.0, 15.0, 5  # a whole fetch; one of its requests, and its repetitions
GONE = (Code.UNREACHABLE, Code.TIMEOUT, Code.HTTP_STATUS)  # no fault, where an address is only known from the chain

SCHEMA = (
    """
    CREATE TABLE receipts (            -- whatever was validly signed, right or wrong; two of one round prove a fault
        validator TEXT NOT NULL,
        round_id TEXT NOT NULL,
        digest TEXT NOT NULL,          -- sha256 of the statement
        end_time INTEGER NOT NULL,
        statement TEXT NOT NULL,       -- canonical JSON
        signature TEXT NOT NULL,       -- over its digest
        PRIMARY KEY (validator, round_id, digest)
    ) STRICT;
    CREATE TABLE answers (             -- what this miner answered, noted when it did
        validator TEXT NOT NULL,
        round_id TEXT NOT NULL,
        query TEXT NOT NULL,           -- sha256 of the bytes
        answer TEXT NOT NULL,
        PRIMARY KEY (validator, round_id, query, answer)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE owner (id INTEGER PRIMARY KEY CHECK (id = 1), hotkey TEXT NOT NULL) STRICT;
    INSERT INTO owner SELECT 1, json_extract(statement, '$.hotkey') FROM receipts WHERE json_valid(statement) LIMIT 1
    """,
)

log = logging.getLogger("receipt_book")


def beside(path: Path, hotkey: str) -> Path:
    """Where a hotkey's book is if `path` is another's."""
    return path.with_name(f"{path.stem}-{hotkey[:8]}{path.suffix}")


class ReceiptBook:
    def __init__(self, db: Database, hotkey: str):
        """Use `ReceiptBook.open`."""
        self.hotkey, self._db = hotkey, db
        self._notes: list[tuple[str, str, str, str]] = []
        self._bytes: Counter[str] = Counter()  # kept, by validator

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, hotkey: str) -> AsyncIterator[ReceiptBook]:
        """Open the book of the miner `hotkey`, made if missing: the file, or where that is another hotkey's the one
        beside it that has this hotkey in its name. Raises `StoreError`."""
        with suppress(OSError):  # `connect` says why
            path.parent.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            for file in (path, beside(path, hotkey)):
                db = await stack.enter_async_context(connect(file, SCHEMA))
                if await db.write(partial(claim, table="owner", hotkey=hotkey)) == {"hotkey": hotkey}:
                    break
            else:
                raise StoreError(f"database {file}: is another hotkey's; choose another --dir")
            book = cls(db, hotkey)
            for size, table in (("sum(length(statement))", "receipts"), (f"count(*) * {NOTE_BYTES}", "answers")):
                book._bytes.update(dict(await db.rows(f"SELECT validator, {size} FROM {table} GROUP BY validator")))
            writing = asyncio.create_task(book._write_notes())
            try:
                yield book
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                await book.flush()

    def noting(self, handler: Handler) -> Handler:
        """The same handler of queries, with its answers noted; they are written in the background, a second later."""

        async def noted(caller: str, body: bytes) -> bytes:
            answer = await handler(caller, body)
            with suppress(ProtocolError, TypeError, KeyError):  # it is the handler who judges queries
                if len(self._notes) < MAX_NOTES and self._bytes[caller] < MAX_VALIDATOR_BYTES:
                    round_id = parse_json(body, MAX_QUERY_BYTES)["round_id"]
                    self._notes.append((caller, round_id, digest(body), digest(answer)))
                    self._bytes[caller] += NOTE_BYTES
            return answer

        return noted

    async def _write_notes(self) -> None:
        while True:
            await asyncio.sleep(NOTES_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Write the answers noted so far."""
        notes, self._notes = self._notes, []
        try:
            if notes:
                sql = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)"
                await self._db.write(lambda connection: connection.executemany(sql, notes))
        except sqlite3.Error as error:
            log.warning("%d answers could not be noted: %s", len(notes), error)

    async def take(self, caller: str, body: bytes) -> bytes:
        """Handle a post to `/receipt`: `{"receipts": [...]}` from the validator that signed them, all of them or none.

        Raises `ProtocolError`: `MALFORMED`, `RECEIPT_SIGNATURE`, `RECEIPT_FOREIGN` or `RECEIPTS_FULL`.
        """
        page = parse_json(body, PAGE_BYTES)
        check_shape(page, {"receipts": ["object"]}, "page")
        if len(page["receipts"]) > PAGE_RECEIPTS:
            raise ProtocolError(Code.MALFORMED, f"{len(page['receipts'])} receipts, at most {PAGE_RECEIPTS}")
        return canonical({"new": await self.keep(caller, page["receipts"])})

    async def keep(self, validator: str, receipts: Sequence[Any]) -> int:
        """Keep receipts of one validator about this miner; returns how many are new. Raises as `take`."""
        rows, size = [], 0
        for receipt in receipts:
            said = read(receipt)
            if (said["validator"], said["hotkey"]) != (validator, self.hotkey):
                what = f"a receipt of {said['validator']} about {said['hotkey']}"
                raise ProtocolError(Code.RECEIPT_FOREIGN, f"{what}, expected {validator} about {self.hotkey}")
            data = canonical(said)
            about = said["round"]["round_id"], digest(data), said["round"]["end_time"]
            rows.append((validator, *about, data.decode(), receipt["signature"]))
            size += len(data)
        if self._bytes[validator] + size > MAX_VALIDATOR_BYTES:  # none is dropped for another: it might be the proof
            limit = f"{MAX_VALIDATOR_BYTES} bytes are kept of one validator"
            raise ProtocolError(Code.RECEIPTS_FULL, f"{limit}; the miner's owner can move the file away")
        self._bytes[validator] += size  # before the write, in which others may come

        def work(connection: sqlite3.Connection) -> list[tuple]:
            sql = "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?, ?)"
            return [row for row in rows if connection.execute(sql, row).rowcount]

        new: list[tuple] = []
        try:
            new = await self._db.write(work)
        except asyncio.CancelledError:  # the caller left; it is written all the same
            new = rows
            raise
        finally:
            self._bytes[validator] -= size - sum(len(row[4]) for row in new)
        return len(new)

    async def held(self, validator: str) -> set[str]:
        """Ids of the rounds for which there is a receipt of this validator."""
        rows = await self._db.rows("SELECT round_id FROM receipts WHERE validator = ?", validator)
        return {row["round_id"] for row in rows}

    async def validators(self) -> set[str]:
        """Hotkeys of those that have asked this miner, or signed a receipt for it."""
        rows = await self._db.rows("SELECT validator FROM answers UNION SELECT validator FROM receipts")
        return {row["validator"] for row in rows}

    async def receipts(self, round_id: str | None = None) -> AsyncIterator[tuple[sqlite3.Row, dict[str, Any]]]:
        """All receipts, or one round's, the oldest first: the row, and the receipt as it was sent."""
        which, values = ("", ()) if round_id is None else (" WHERE round_id = ?", (round_id,))
        async with self._db.execute(f"SELECT * FROM receipts{which} ORDER BY end_time, round_id", values) as cursor:
            async for row in cursor:
                try:
                    said = parse_json(row["statement"].encode(), MAX_PAGE_BYTES)
                except ProtocolError:
                    said = None
                yield row, {"statement": said, "signature": row["signature"]}

    async def newest(self, most: int) -> list[dict[str, Any]]:
        """So many of the newest receipts' statements, the newest first."""
        sql = "SELECT statement FROM receipts ORDER BY end_time DESC, round_id DESC LIMIT ?"
        return [parse_json(row["statement"].encode(), MAX_PAGE_BYTES) for row in await self._db.rows(sql, most)]

    async def compare(self, said: dict[str, Any]) -> tuple[list[str], int]:
        """What a statement misquotes of the answers noted here, and how many of those it does not name as received.

        The latter may have come too late, or before a crash: they prove nothing.
        """
        sql = "SELECT query, answer FROM answers WHERE validator = ? AND round_id = ?"
        noted: dict[str, set[str]] = {}
        for row in await self._db.rows(sql, said["validator"], said["round"]["round_id"]):
            noted.setdefault(row["query"], set()).add(row["answer"])
        quoted = {asked["query"]: asked["answer"] for asked in said["asks"]}
        wrong = [
            f"asks: quotes an answer {answer} to query {query}, this miner noted {', '.join(sorted(noted[query]))}"
            for query, answer in quoted.items()
            if answer and query in noted and answer not in noted[query]
        ]
        return wrong, sum(not quoted.get(query) for query in noted)


# ---------------------------------------------------------------------------------------------------------------------
# The command


async def fetch(book: ReceiptBook, url: str, validator: str, keypair: Any, public_only: bool = False) -> int:
    """Fetch from a validator the receipts that the book lacks; returns how many.

    Args:
        url: of its server, `http://host:port`.
        keypair: the miner's.
        public_only: as `wire.client.ask`.

    Raises:
        ProtocolError: as `ask` and `ReceiptBook.keep`; `MALFORMED`, a page that makes no sense; `NOT_FOUND`, a
            receipt that is listed and not given; `TIMEOUT`, also of the whole. All pages before it are kept.
    """
    count, limits = 0, {"total_seconds": CALL_SECONDS, "max_reply_bytes": MAX_PAGE_BYTES, "public_only": public_only}
    try:
        async with client_session(1) as session, asyncio.timeout(FETCH_SECONDS):
            url = f"{url.rstrip('/')}/receipts"
            post = partial(ask, session, url, keypair=keypair, receiver=validator, **limits)
            have, after = await book.held(validator), 0
            while after is not None:
                page = await _call(post, {"after": after}, {"rounds": ["text"], "after": "number?"})
                if page["after"] is not None and page["after"] <= after:
                    raise ProtocolError(Code.MALFORMED, f"the list goes from {after} to {page['after']}")
                after, missing = page["after"], [name for name in page["rounds"] if name not in have]
                while missing:
                    asked = missing[:PAGE_RECEIPTS]
                    page = await _call(post, {"rounds": asked}, {"receipts": ["object"]})
                    await book.keep(validator, page["receipts"])
                    came = {receipt["statement"]["round"]["round_id"] for receipt in page["receipts"]}
                    if not came or not came <= set(asked):
                        raise ProtocolError(Code.NOT_FOUND, f"round {asked[0]} is listed, its receipt is not given")
                    count, have = count + len(came), have | came
                    missing = [name for name in missing if name not in came]
    except TimeoutError:
        raise ProtocolError(Code.TIMEOUT, f"not done within {FETCH_SECONDS:g} s; {count} came, try again") from None
    return count


async def _call(post: Callable[[bytes], Awaitable[Reply]], request: dict, shape: dict) -> dict[str, Any]:
    """One signed request, again while the server is busy; its answer has the shape. Raises `ProtocolError`."""
    for attempt in range(CALL_ATTEMPTS):
        await asyncio.sleep(attempt)
        reply = await post(canonical(request))
        if not (reply.code is Code.HTTP_STATUS and reply.detail[:3] in ("429", "503")):
            break
    if reply.code is not Code.ACCEPTED:
        raise ProtocolError(reply.code, reply.detail)
    page = parse_json(reply.body, MAX_PAGE_BYTES)
    check_shape(page, shape, "page")
    return page


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `miner.py receipts`; those that `miner.py` has too are only set when given."""
    add, given = parser.add_argument, {"default": argparse.SUPPRESS}
    add("--from", dest="url", metavar="URL", help="of the validator's server (default: as the chain shows them)")
    add("--validator", metavar="HOTKEY", help="the validator at that URL (default: whose published address it is)")
    add("--name", **given, help="of the miner (default: mine)")
    add("--dir", **given, type=file_path, help="folder of the local subnet (default: local)")
    add("--last", type=number(0), metavar="N", default=20, help="rounds to print, the newest (default: 20)")
    add("--export", metavar="ROUND", help="print one round's receipts as JSON instead, one a line; fetches nothing")


def command(options: argparse.Namespace) -> int:
    """`miner.py receipts`: exit code 0 only if every receipt is right."""
    expected = (ChainError, StoreError, sqlite3.Error)
    return run(_report(options), options.log_level, expected, options.log_json, options.log_file)


async def _report(options: argparse.Namespace) -> int:
    local = is_local(options)
    keypair = local_wallet(options.name)[0] if local else (await asyncio.to_thread(wallet_of, options)).hotkey
    if options.export:
        refuse(options, "is of no use with --export, which fetches and lists nothing", "url", "validator", "last")
    path, hotkey = Path(options.dir) / f"receipts-{options.name}.sqlite3", keypair.ss58_address
    sources = [] if options.export else await _sources(options, hotkey)
    if not path.exists() and not sources:
        raise UserError(f"no receipts in {path}, and no validator to fetch them from; name one with --from")
    failed = False
    async with ReceiptBook.open(path, hotkey) as book:
        if options.export:
            return await _export(book, options.export)
        known = await book.validators()
        for url, validator in sources:
            if known and validator not in known and not options.url:
                continue  # a neuron with a permit may be a miner
            try:
                count = await fetch(book, url, validator, keypair, public_only=not (local or options.url))
                print(f"{count} receipts fetched from {url}")
            except ProtocolError as error:
                log.warning("%s: %s", url, error)
                failed |= bool(options.url) or error.code not in GONE
        failed |= await _table(book, options.last)
    return EXIT_FAILED if failed else EXIT_OK


async def _sources(options: argparse.Namespace, hotkey: str) -> list[tuple[str, str]]:
    """(URL, hotkey) of the validators to fetch from."""
    if options.url and options.validator:
        return [(options.url, options.validator)]
    ledger, neurons = Path(options.dir) / "chain.sqlite3", ()
    if not is_local(options) or ledger.exists():
        async with joined(options) as (chain, _):
            neurons = (await chain.metagraph()).neurons
    published = [(f"http://{n.address}", n.hotkey) for n in neurons if n.permit and n.address and n.hotkey != hotkey]
    if not options.url:
        return [source for source in published if options.validator in (None, source[1])]
    if not (found := [source for source in published if source[0] == options.url.rstrip("/")]):
        raise UserError(f"--from {options.url}: no validator has published this address; name it with --validator")
    return found


async def _export(book: ReceiptBook, round_id: str) -> int:
    receipts = [receipt async for _, receipt in book.receipts(round_id)]
    if not receipts:
        raise UserError(f"--export {round_id}: there is no receipt of this round")
    for receipt in receipts:
        print(canonical(receipt).decode())
    return EXIT_OK


async def _table(book: ReceiptBook, last: int) -> bool:
    """Print the newest receipts, totals, and whatever is wrong with any; returns whether something is."""
    newest, wrong, seen, totals, markets = deque(maxlen=last), [], {}, {}, set()
    unheard = older = foreign = 0
    async for row, receipt in book.receipts():
        try:
            said = read(receipt)
        except ProtocolError as error:
            wrong.append((row["round_id"], str(error)))
            continue
        if said["hotkey"] != book.hotkey:  # of a time when two miners of one folder shared a book
            foreign += 1
            continue
        line, total = said["line"], totals.setdefault(said["round"]["job_id"], Counter())
        found = [*_misfiled(row, said, seen), *problems(said)]
        misquoted, late = await book.compare(said)
        wrong += [(row["round_id"], what) for what in found + misquoted]
        unheard, older = unheard + late, older + (rules_of(said) is None)
        cells = [row["round_id"], "", "", "", said["round"]["code"]]
        if line and not found:
            over = Decimal(line["score"]) - Decimal(said["baselines"]["keep"])
            cells[1:4] = f"{line['rank']} of {said['ranked']}", f"{Decimal(line['score']):.0f}", f"{over:+.0f}"
            total.update(ranked=1, won=line["rank"] == "1", over=over)
        total["rounds"] += 1
        markets.add(said["market"])
        newest.append(cells)
    for market in sorted(markets):
        print(one_line(f"on {market}"))
    width = max((len(cells[0]) for cells in newest), default=0)
    for name, *cells, code in [["round", "rank", "score", "over keep", "code"], *newest] if newest else ():
        print(one_line(f"{name:{width}}  {cells[0]:>10}  {cells[1]:>14}  {cells[2]:>14}  {code}"))
    for job, total in sorted(totals.items()):
        counts = f"{total['rounds']} rounds, {total['ranked']} ranked, {total['won']} won"
        print(one_line(f"{job}: {counts}, {total['over']:+.0f} over keep"))
    if unheard:
        print(f"{unheard} answers that this miner noted are not named as received: too late, or lost in a crash")
    if older:
        print(f"{older} receipts are of other rules than this program's: their scores were not computed again")
    if foreign:
        print(f"{foreign} receipts are about another miner, and not judged here")
    for name, what in wrong:
        print(one_line(f"WRONG {name}: {what}"))
    bad = len({name for name, _ in wrong})
    print(f"{sum(total['rounds'] for total in totals.values())} receipts are signed; {bad} rounds have a wrong one")
    return bool(wrong)


def _misfiled(row: sqlite3.Row, said: dict[str, Any], seen: dict) -> Iterator[str]:
    """What is wrong with a receipt among its miner's others."""
    about = said["validator"], said["round"]["round_id"]
    if about != (row["validator"], row["round_id"]):
        yield f"is by {about[0]} about {said['hotkey']} in {about[1]}"
    if seen.setdefault(about, row["digest"]) != row["digest"]:
        yield "the validator has signed two different statements about this round; keep both, they prove it"
