"""`python validator.py audit ROUND|FILE|all`: rounds recomputed, one line each; exit 0 only if every digit agrees.

With `--rpc` also against the chain. Read first: `evidence.py`. Read next: `checks.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from audit.checks import audit
from audit.evidence import EvidenceError, read
from audit.stored import Pruned
from audit.stored import evidence as stored
from markets.base import MarketError
from runtime.options import evm_address, url
from runtime.process import EXIT_FAILED, EXIT_OK, UserError
from spine.mechanism import load
from store import Store

HELP = "recompute rounds; exit 0 only if every digit agrees, else 1 and what differs or is refused"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "rounds_or_files", nargs="+", metavar="ROUND|FILE", help="stored rounds, exported files, or all"
    )
    parser.add_argument(
        "--db", dest="audit_db", default="local/validator.sqlite3", help="jobs database for stored rounds"
    )
    parser.add_argument(
        "--rpc",
        dest="audit_rpc",
        action="append",
        type=url("http", "https"),
        metavar="URL",
        help="compare with the chain too, as this node tells it; it must have the old state (archive); give several",
    )
    parser.add_argument(
        "--manager",
        dest="audit_manager",
        type=evm_address,
        metavar="0x...",
        help="the position manager's address, where it is not the chain's usual one",
    )


async def run_audit(options: argparse.Namespace) -> int:
    """Audit stored rounds and exported files, one line each; those that agree also on the chain, if one is named."""
    wrong, refused, mechanisms = 0, 0, load(options.mechanism)
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
                    evidence = await asyncio.to_thread(read, Path(name))
                else:
                    evidence = await stored(store, name)
                problems, on_chain = await asyncio.to_thread(audit, evidence, mechanisms), ""
                if options.audit_rpc and not problems:
                    problems, on_chain = await _audit_on_chain(evidence, options)
            except (EvidenceError, Pruned, MarketError) as error:
                refused += 1
                print(f"{name}: cannot be audited: {error}")
                continue
            wrong += bool(problems)
            agrees = f"every digit agrees{on_chain}"
            print(f"{name}: " + (agrees if not problems else f"{len(problems)} differences{on_chain}"))
            for problem in problems:
                print(f"  {problem}")
    print(f"{len(names) - refused} rounds audited, {wrong} differ" + (f", {refused} not audited" if refused else ""))
    return EXIT_FAILED if wrong or refused else EXIT_OK


async def _audit_on_chain(evidence: dict[str, Any], options: argparse.Namespace) -> tuple[list[str], str]:
    """What differs, and what to say of the chain."""
    vault = (evidence["snapshot"] or {}).get("vault_owner", "")
    if not re.fullmatch("0x[0-9a-f]{40}", vault, re.ASCII):
        return [], "; nothing of a chain is in this round to compare with"
    from evm.audit import audit_chain  # it needs web3, which takes seconds to import

    wrong = await audit_chain(evidence, options.audit_rpc, options.audit_manager or options.manager)
    return wrong, " with the chain" if wrong else ", also with the chain"
