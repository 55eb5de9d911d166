"""The commands of evidence and receipts, for anybody.

    python -m audit export ROUND > round.json                   one stored round's evidence; without ROUND: lists them
    python -m audit verify receipt.json --evidence round.json   exit 0 only if each receipt is right
    python validator.py audit ROUND|FILE|all [--rpc URL]        rounds recomputed: exit 0 only if every digit agrees

Exit code 2: no such round, database or file. Read next: `evidence.py`, `receipts.py`, `checks.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import runtime.home  # noqa: F401
from audit import evidence, stored
from audit.checks import audit
from audit.receipts import MAX_PAGE_BYTES, problems, read
from markets.base import MarketError
from protocol import ProtocolError
from runtime.db import StoreError
from runtime.hidden import hide
from runtime.options import add_logging_options, evm_address, file_path, refuse, url
from runtime.process import EXIT_FAILED, EXIT_OK, Parser, UserError, run
from spine.mechanism import load
from store import Store
from wire.codec import canonical, parse_json
from wire.text import one_line

HELP = "recompute rounds; exit 0 only if every digit agrees, else 1 and what differs or is refused"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `validator.py audit`; one that the program has too is only set when given."""
    add = parser.add_argument
    add(
        "rounds_or_files", nargs="+", type=file_path, metavar="ROUND|FILE", help="stored rounds, exported files, or all"
    )
    usual, about = "local/validator.sqlite3", "jobs database for stored rounds"
    add("--db", dest="audit_db", type=file_path, default=usual, metavar="FILE", help=about)
    rpc = "compare with the chain too, as this node tells it; it must have the old state (archive); give several"
    add("--rpc", dest="audit_rpc", action="append", type=url("http", "https"), metavar="URL", help=rpc)
    manager = "the position manager's address, where it is not the chain's usual one"
    add("--manager", dest="audit_manager", type=evm_address, metavar="0x...", help=manager)
    operators = "who besides the vault mints positions that count as its own; give several"
    operator = {"action": "append", "default": [], "type": evm_address}
    add("--vault-operator", dest="audit_operators", metavar="0x...", help=operators, **operator)
    also = "also audit rounds of the mechanism of this Python module"
    add("--mechanism", action="append", metavar="MODULE", default=argparse.SUPPRESS, help=also)
    add_logging_options(parser)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m audit", description="Evidence and receipts.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("export", help="print a finished round's evidence; without a round, list them").add_argument
    add("round", nargs="?", help="a round's id, like pol:evaluation:1767229200")
    about = "jobs database (default: local/validator.sqlite3)"
    add("--db", type=file_path, default="local/validator.sqlite3", metavar="FILE", help=about)
    add = verbs.add_parser("verify", help="verify receipts offline: exit 0 only if each is right").add_argument
    add("files", nargs="+", type=file_path, metavar="FILE", help="what `python miner.py receipts --export` prints")
    add("--evidence", type=file_path, metavar="FILE", help="the round's, as `python -m audit export ROUND` prints it")
    return parser


async def _verify(options: argparse.Namespace) -> int:
    of_round = None
    if options.evidence:
        try:
            of_round = json.loads(_bytes_of(options.evidence))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{options.evidence}: {error}; is it what `python -m audit export ROUND` wrote?") from error
    failed = False
    for path in options.files:
        if not (texts := _bytes_of(path).splitlines()):
            raise UserError(f"{path}: it is empty; is it what `python miner.py receipts --export` printed?")
        for text in texts:
            try:
                said = read(parse_json(text, MAX_PAGE_BYTES))
                wrong = list(problems(said, of_round))
                line, row = said["line"], said["round"]
                rank = f"rank {line['rank']} of {said['ranked']}, score {line['score']}" if line else "not ranked"
                who = f"{said['validator']} of {said['hotkey']}"
                print(one_line(f"{path}: {who}: {row['round_id']} {row['code']}, {rank}"))
            except ProtocolError as error:
                wrong = [str(error)]
            for what in wrong:
                print(one_line(f"{path}: WRONG {what}"))
            failed |= bool(wrong)
    return EXIT_FAILED if failed else EXIT_OK


def _bytes_of(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file that can be read") from error


async def _export(options: argparse.Namespace) -> int:
    if not Path(options.db).exists():
        raise StoreError(f"database {options.db} does not exist; name it with --db")
    async with Store.open(options.db) as store:
        if options.round is None:
            print("\n".join(await store.finished()))
        else:
            sys.stdout.write(canonical(await stored.evidence(store, options.round)).decode() + "\n")
    return EXIT_OK


async def run_audit(options: argparse.Namespace) -> int:
    """Audit stored rounds and exported files, one line each; those that agree also on the chain, if one is named."""
    wrong, refused, idle, mechanisms = 0, 0, 0, load(options.mechanism)
    if not options.audit_rpc:
        refuse(options, "is asked for on the chain alone; add --rpc URL", "audit_manager", "audit_operators")
    async with AsyncExitStack() as stack:
        store, names = None, []
        for name in options.rounds_or_files:
            if Path(name).is_file():
                names.append(name)
                continue
            if store is None:
                if not Path(options.audit_db).exists():
                    raise UserError(f"{name}: no such file, and no database {options.audit_db}; name it with --db")
                store = await stack.enter_async_context(Store.open(options.audit_db))
            names.extend(await store.finished() if name == "all" else [name])
        for name in names:
            try:
                if Path(name).is_file():
                    found = await asyncio.to_thread(evidence.read, Path(name))
                else:
                    found = await stored.evidence(store, name)
                differ, on_chain = await asyncio.to_thread(audit, found, mechanisms), ""
                if options.audit_rpc and not differ:
                    differ, on_chain = await _audit_on_chain(found, options)
            except (evidence.EvidenceError, stored.Pruned, MarketError) as error:
                refused += 1
                print(hide(f"{name}: cannot be audited: {error}"))
                continue
            wrong += bool(differ)
            said = f"{len(differ)} differences" if differ else "every digit agrees"
            if not differ and found["round"]["close_block"] is None:
                idle, said = idle + 1, f"no digit to recompute, it was not played: {found['round']['code']}"
            print(f"{name}: {said}{on_chain}")
            for problem in differ:
                print(f"  {problem}")
    counts = ((wrong, "differ"), (idle, "were not played"), (refused, "not audited"))
    said = "".join(f", {count} {what}" for count, what in counts if count or what == "differ")
    print(f"{len(names) - refused} rounds audited{said}")
    return EXIT_FAILED if wrong or refused else EXIT_OK


async def _audit_on_chain(found: dict[str, Any], options: argparse.Namespace) -> tuple[list[str], str]:
    """What differs, and what to say of the chain."""
    vault = (found["snapshot"] or {}).get("vault_owner", "")
    if not re.fullmatch("0x[0-9a-f]{40}", vault, re.ASCII):
        return [], "; nothing of a chain is in this round to compare with"
    from evm.audit import audit_chain  # it needs web3, which takes seconds to import

    wrong = await audit_chain(found, options.audit_rpc, options.audit_manager, options.audit_operators)
    return wrong, " with the chain" if wrong else ", also with the chain"


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    return run((_verify if options.verb == "verify" else _export)(options), "WARNING", (StoreError,))


if __name__ == "__main__":
    sys.exit(main())
