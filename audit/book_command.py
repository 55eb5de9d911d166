"""`python miner.py receipts`: fetch what is missing, verify all offline, show the newest.

Read first: `receipt_book.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from audit.issuer import PAGE_RECEIPTS
from audit.receipt_book import ReceiptBook
from audit.receipts import MAX_PAGE_BYTES, problems, read
from audit.shape import check_shape
from chain.base import ChainError
from chain.opening import joined, local_wallet, wallet_of
from protocol import Code, ProtocolError
from runtime.db import StoreError
from runtime.options import is_local
from runtime.process import EXIT_FAILED, EXIT_OK, UserError, number, run
from scoring import RULES_VERSION
from wire.client import Reply, ask, client_session
from wire.codec import canonical, parse_json
from wire.text import one_line

FETCH_SECONDS, CALL_SECONDS, CALL_ATTEMPTS = 300.0, 15.0, 5  # a whole fetch; one of its requests, and its repetitions
GONE = (Code.UNREACHABLE, Code.TIMEOUT, Code.HTTP_STATUS)  # no fault, where an address is only known from the chain

log = logging.getLogger("receipt_book")


async def fetch(book: ReceiptBook, url: str, validator: str, keypair: Any, public_only: bool = False) -> int:
    """Fetch from a validator the receipts that the book lacks.

    Args:
        url: of its server, `http://host:port`.
        validator: its hotkey.
        keypair: the miner's.
        public_only: as `wire.client.ask`.

    Returns:
        How many were fetched. All pages that came before an error are kept.

    Raises:
        ProtocolError: as `ask` and `ReceiptBook.keep`; `MALFORMED`, a page that makes no sense; `NOT_FOUND`, a
            receipt that is listed and not given; `TIMEOUT`, also of the whole.
    """
    count = 0
    try:
        async with client_session(1) as session, asyncio.timeout(FETCH_SECONDS):
            post = partial(
                ask,
                session,
                f"{url.rstrip('/')}/receipts",
                keypair=keypair,
                receiver=validator,
                total_seconds=CALL_SECONDS,
                max_reply_bytes=MAX_PAGE_BYTES,
                public_only=public_only,
            )
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
    add("--dir", **given, help="folder of the local subnet (default: local)")
    add("--last", type=number(0), metavar="N", default=20, help="rounds to print, the newest (default: 20)")
    add("--export", metavar="ROUND", help="print one round's receipts as JSON instead, one a line; fetches nothing")


def command(options: argparse.Namespace) -> int:
    """`miner.py receipts`: exit code 0 only if every receipt is right."""
    problems = (ChainError, StoreError, sqlite3.Error)
    return run(_report(options), options.log_level, problems, options.log_json, options.log_file)


async def _report(options: argparse.Namespace) -> int:
    local = is_local(options)
    keypair = local_wallet(options.name)[0] if local else (await asyncio.to_thread(wallet_of, options)).hotkey
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
    unheard = older = 0
    async for row, receipt in book.receipts():
        try:
            said = read(receipt)
        except ProtocolError as error:
            wrong.append((row["round_id"], str(error)))
            continue
        line, total = said["line"], totals.setdefault(said["round"]["job_id"], Counter())
        found = [*_misfiled(book, row, said, seen), *problems(said)]
        misquoted, late = await book.compare(said)
        wrong += [(row["round_id"], what) for what in found + misquoted]
        unheard, older = unheard + late, older + (said["rules_version"] != RULES_VERSION)
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
    for name, what in wrong:
        print(one_line(f"WRONG {name}: {what}"))
    bad = len({name for name, _ in wrong})
    print(f"{sum(total['rounds'] for total in totals.values())} receipts are signed; {bad} rounds have a wrong one")
    return bool(wrong)


def _misfiled(book: ReceiptBook, row: sqlite3.Row, said: dict[str, Any], seen: dict) -> Iterator[str]:
    """What is wrong with a receipt among its miner's others."""
    about = said["validator"], said["round"]["round_id"], said["hotkey"]
    if about != (row["validator"], row["round_id"], book.hotkey):
        yield f"is by {about[0]} about {about[2]} in {about[1]}"
    if seen.setdefault(about[:2], row["digest"]) != row["digest"]:
        yield "the validator has signed two different statements about this round; keep both, they prove it"
