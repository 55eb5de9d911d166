"""The commands of evidence and receipts, for anybody, offline.

    python -m audit export ROUND > round.json                   one stored round's evidence; without ROUND: lists them
    python -m audit verify receipt.json --evidence round.json   exit 0 only if each receipt is right

The audit itself is `python validator.py audit`. Exit code 2: no such round, database or file.
Read next: `evidence.py`, `receipts.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from audit import stored
from audit.receipts import MAX_PAGE_BYTES, problems, read
from protocol import ProtocolError
from runtime.db import StoreError
from runtime.process import EXIT_FAILED, EXIT_OK, Parser, UserError, run
from store import Store
from wire.codec import canonical, parse_json
from wire.text import one_line


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m audit", description="Evidence and receipts.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("export", help="print a finished round's evidence; without a round, list them").add_argument
    add("round", nargs="?", help="a round's id, like pol:evaluation:1767229200")
    add("--db", default="local/validator.sqlite3", help="jobs database (default: local/validator.sqlite3)")
    add = verbs.add_parser("verify", help="verify receipts offline: exit 0 only if each is right").add_argument
    add("files", nargs="+", metavar="FILE", help="what `python miner.py receipts --export` prints")
    add("--evidence", metavar="FILE", help="the round's, as `python -m audit export ROUND` prints it")
    return parser


async def _verify(options: argparse.Namespace) -> int:
    evidence = None
    if options.evidence:
        try:
            evidence = json.loads(_bytes_of(options.evidence))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{options.evidence}: {error}; is it what `python -m audit export ROUND` wrote?") from error
    failed = False
    for path in options.files:
        for text in _bytes_of(path).splitlines():
            try:
                said = read(parse_json(text, MAX_PAGE_BYTES))
                wrong = list(problems(said, evidence))
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
    return 0


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    return run((_verify if options.verb == "verify" else _export)(options), "WARNING", (StoreError,))


if __name__ == "__main__":
    sys.exit(main())
