"""Jobs set up from the command line, checked before they are written, also while the validator runs.

    python validator.py jobs list                                 what there is, and what is wrong with it
    python validator.py jobs add tight --vault V --set target=MinIL --set checkpoint_blocks=50
    python validator.py jobs set tight --round-seconds 1800 --set weight=2
    python validator.py jobs off tight                            `set tight --active yes` starts it again
    python validator.py adopt OLD_HOTKEY NEW_HOTKEY               after a hotkey swap: the database changes its owner

A change counts from the next round on. Which database: `--dir` or `--db`, behind the verb, as for the validator.
Read next: `store.py` (`put_job`), `mechanism.py` (`settings`).
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from chain.wallets import check_address
from protocol import MAX_QUERY_BYTES, JobSettings, ProtocolError
from runtime.db import as_json, insert
from runtime.options import file_path
from runtime.process import EXIT_FAILED, EXIT_OK, UserError, number, only_one
from spine.ground import MODEL_VAULTS, folder_of
from spine.mechanism import load, settings_of
from store import LEAST_ROUND_SECONDS, MOST_ROUND_SECONDS, Store
from wire.codec import canonical, decode, to_plain

# by a market label's first word
_VAULTS = {"recording": r"[0-9]+:-?[0-9]+:-?[0-9]+", "MODEL": "|".join(MODEL_VAULTS.values())}


def add_options(commands: Any) -> None:
    """The commands `jobs` and `adopt` of `validator.py`."""
    what = "list, add, change or switch off jobs, also while the validator runs"
    jobs = commands.add_parser("jobs", help=what, description=what)
    verbs = jobs.add_subparsers(dest="verb", required=True, metavar="list | add | set | off")
    for verb, what in (
        ("list", "what there is; exit 1 if a row cannot be used"),
        ("add", "a new job"),
        ("set", "change a job from its next round on"),
        ("off", "switch a job off"),
    ):
        add = (parser := verbs.add_parser(verb, help=what, description=what)).add_argument
        _where(parser)
        if verb != "list":
            add("job", help="its name")
        if verb in ("add", "set"):
            add("--vault", dest="its_vault", required=verb == "add", help="whose positions, like 0x...")
            seconds = number(LEAST_ROUND_SECONDS, MOST_ROUND_SECONDS)
            add("--round-seconds", dest="its_seconds", type=seconds, help="length of a round (default: 900)")
            add("--live", choices=("yes", "no"), help="whether its proven winner manages the vault (default: no)")
            add("--active", choices=("yes", "no"), help="whether it plays (default: yes)")
            add("--of", metavar="MECHANISM", help="its mechanism's name (default: liquidity)")
            setting = "a setting of its mechanism; may be repeated"
            add("--set", dest="settings", metavar="NAME=VALUE", action="append", default=[], help=setting)
    what = "after a hotkey swap: give the old hotkey's database to the new one"
    adopt = commands.add_parser("adopt", help=what, description=what)
    _where(adopt)
    adopt.add_argument("old", help="ss58 address that the database was made for")
    adopt.add_argument("new", help="ss58 address that works with it from now on")


def _where(parser: argparse.ArgumentParser) -> None:
    for name in ("--dir", "--db"):
        parser.add_argument(name, type=file_path, default=argparse.SUPPRESS, help="as for the validator")
    parser.add_argument("--mechanism", action="append", default=argparse.SUPPRESS, help="as for the validator")


async def command(options: argparse.Namespace) -> int:
    """`validator.py jobs` and `validator.py adopt`; raises `UserError`, `StoreError`."""
    folder, path = folder_of(options)
    if not path.exists():
        raise UserError(f"no database {path}: start the validator once, or name its folder with --dir")
    kinds = settings_of(load(options.mechanism))
    async with Store.open(path, kinds) as store:
        if options.command == "adopt":
            with only_one(folder / "validator.lock", "--dir"):
                await _adopt(store, check_address(options.old), check_address(options.new))
            return EXIT_OK
        rows = {row["job_id"]: dict(row) for row in await store.rows("SELECT * FROM jobs ORDER BY job_id")}
        if options.verb != "list":
            await _change(store, rows, options, kinds)
        return await _list(store)


async def _list(store: Store) -> int:
    for job in await store.jobs():
        rules = " ".join(f"{name}={_shown(value)}" for name, value in to_plain(job.settings).items())
        state = f"{'on' if job.active else 'off'}, {'live' if job.live else 'not live'}"
        print(f"{job.job_id}: {state}, {job.mechanism}, vault {job.vault}, rounds of {job.round_seconds} s, {rules}")
    for job_id, why in store.wrong.items():
        print(f"{job_id}: WRONG, therefore off: {why}")
    return EXIT_FAILED if store.wrong else EXIT_OK


async def _change(store: Store, rows: Mapping[str, dict], options: Any, kinds: Mapping[str, type]) -> None:
    """Write what the options make of a job; raises `UserError` if it would not be one."""
    name, old = options.job, rows.get(options.job)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) and not old:
        raise UserError(f"job {name!r}: letters, digits, `_`, `.` and `-`, at most 64")
    if bool(old) == (options.verb == "add"):
        fix = "change it with `jobs set`" if old else f"there are {', '.join(rows) or 'none'}; add it with `jobs add`"
        raise UserError(f"job {name}: {'it is there' if old else 'there is none of this name'}; {fix}")
    if options.verb == "off":  # whatever else is wrong with it
        await store.write(lambda db: db.execute("UPDATE jobs SET active = 0 WHERE job_id = ?", (name,)))
        return
    row = old or {"job_id": name, "round_seconds": 900, "live": 0, "active": 1, "mechanism": "liquidity"}
    given = {"vault": options.its_vault, "round_seconds": options.its_seconds, "mechanism": options.of}
    given |= {key: value and int(value == "yes") for key, value in (("live", options.live), ("active", options.active))}
    row |= {key: value for key, value in given.items() if value is not None}
    if row["mechanism"] not in kinds:
        raise UserError(f"job {name}: there is no mechanism {row['mechanism']!r}; one of {', '.join(kinds)}")
    if row["mechanism"] == "liquidity":
        await _check_vault(store, row["vault"])
    row["settings"] = _settings(kinds[row["mechanism"]], old and as_json(old["settings"]), options.settings)
    try:
        store._job(row)
    except ProtocolError as error:
        raise UserError(f"job {name}: {error.detail}") from None
    await store.write(lambda db: insert(db, "jobs", [row], update="job_id"))


def _settings(kind: type, stored: Any, given: Sequence[str]) -> str:
    """A job's settings as they are stored: the old ones, else the defaults, with those that are given."""
    words = dict(word.partition("=")[::2] for word in given)
    target = {"target": words["target"]} if "target" in words else {}
    try:
        first = kind.for_target(**target) if kind is JobSettings and target and not stored else kind()
        plain = to_plain(first)
    except TypeError:  # a mechanism whose settings have no defaults
        plain = {}
    except ProtocolError as error:
        raise UserError(error.detail) from None
    known = ", ".join(f"{name}={_shown(value)}" for name, value in plain.items())
    plain |= {name: value for name, value in stored.items() if name in plain} if isinstance(stored, dict) else {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or (plain and name not in plain):
            raise UserError(f"--set {word}: NAME=VALUE is expected, of {known}")
        plain[name] = _read(plain.get(name), text)
    try:
        decode(kind, canonical(plain), MAX_QUERY_BYTES)
    except ProtocolError as error:
        raise UserError(f"--set: {error.detail}; the defaults are {known}") from None
    return canonical(plain).decode()


def _read(now: Any, text: str) -> Any:
    """A value as its type is written: what it has now says which."""
    if isinstance(now, str):
        return text
    if isinstance(now, list):
        return text.split(",")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


async def _check_vault(store: Store, vault: str) -> None:
    """Whether the database's market can have such a vault; raises `UserError`."""
    label = await store.recall("market") or ""
    shape = _VAULTS.get(label.partition(" ")[0], "0x[0-9a-fA-F]{40}")
    if not re.fullmatch(shape, vault, re.ASCII):
        raise UserError(f"vault {vault!r}: on the market {label!r} it is like {shape}")


async def _adopt(store: Store, old: str, new: str) -> None:
    """Note the new owner; scores, seals and receipts of before stay as the old hotkey signed them."""

    def work(db: sqlite3.Connection) -> int:
        sql = "UPDATE meta SET value = ? WHERE key = 'validator' AND value = ?"
        return db.execute(sql, (new, old)).rowcount

    if not await store.write(work):
        raise UserError(f"this database is of hotkey {await store.recall('validator')}, not {old}")
    print(f"the database is now {new}'s; start the validator with that key")
