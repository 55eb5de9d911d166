"""The doctor on this machine: Python, packages, ports, clock, folder, databases. Standard library only.

Each check gives `Finding`s, which `tell` prints. Read next: `network.py`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import sqlite3
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from runtime.hidden import hide

OK, WARN, FAIL = "ok", "warn", "FAIL"
FIRST_PYTHON, LAST_PYTHON = (3, 11), (3, 13)
LEAST_DISK_BYTES, GOOD_DISK_BYTES = 100 * 10**6, 2 * 10**9  # two jobs and three miners write 11 MB a market day
CLOCK_SAMPLE_SECONDS, CLOCK_DRIFT_SECONDS = 0.1, 0.05
PLAUSIBLE_SINCE = 1_760_000_000  # October 2025, before this was written
SIGNED_SECONDS = "10 s late or 2 s early"  # btauth: signatures outside of this are refused
BLOCK_SECONDS = 12  # of the subnet's chain
F_GETLK_FORMAT = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, length, pid


class Finding(NamedTuple):
    """One line: `OK`, `WARN` or `FAIL`, what was found, and what to do about it (empty if nothing)."""

    level: str
    what: str
    fix: str = ""


def judged(good: bool, what: str, fix: str, bad: str = WARN) -> Finding:
    """`OK`, or how bad it is with the fix."""
    return Finding(OK, what) if good else Finding(bad, what, fix)


def tell(findings: Iterable[Finding]) -> list[str]:
    """Print each as it is found; returns their levels."""
    levels = []
    for finding in findings:
        levels.append(finding.level)
        print(hide(f"{finding.level:5}{finding.what}" + (f"; {finding.fix}" if finding.fix else "")), flush=True)
    return levels


def utc(seconds: float) -> str:
    """A time for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))


def check_python(version: tuple = sys.version_info[:3]) -> Iterator[Finding]:
    """Whether this is a Python that the programs are tested on."""
    good, text = FIRST_PYTHON <= version[:2] <= LAST_PYTHON, "Python " + ".".join(map(str, version))
    text += "" if good else ", 3.11 to 3.13 is needed"
    yield judged(good, text, "make a venv with one of them: python3.12 -m venv .venv", FAIL)


def check_packages(requirements: Path) -> Iterator[Finding]:
    """Whether the installed packages are those of `requirements.txt`, by the numbers of their versions."""
    for line in requirements.read_text().splitlines():
        line = line.split("#")[0].split(";")[0].strip()
        if not line:
            continue
        name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", line).groups()
        found = _installed(name)
        if found and all(_within(found, bound) for bound in bounds.split(",") if bound):
            yield Finding(OK, f"package {name} {found}")
        else:
            yield Finding(FAIL, f"package {name} {found or 'is missing'}, {line} is needed", f"pip install '{line}'")
    web3, bittensor = _installed("web3"), _installed("bittensor")
    if web3 and bittensor and _within(web3, ">=8") and _within(bittensor, ">=11"):
        fix = "pip install 'web3>=7.16,<8'"
        yield Finding(FAIL, f"web3 {web3} and bittensor {bittensor} cannot work together: their websockets differ", fix)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _within(version: str, bound: str) -> bool:
    sign, limit = re.fullmatch(r"\s*(>=|<=|==|<|>)\s*(\S+)\s*", bound).groups()
    one, two = _numbers(version), _numbers(limit)
    width = max(len(one), len(two))
    one, two = (numbers + (0,) * (width - len(numbers)) for numbers in (one, two))
    return {">=": one >= two, "<=": one <= two, "==": one == two, "<": one < two, ">": one > two}[sign]


def _numbers(version: str) -> tuple:
    return tuple(map(int, re.match(r"\d+(\.\d+)*", version).group().split(".")))


def check_port(port: int) -> Iterator[Finding]:
    """Whether a miner could listen on its default port."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
            yield Finding(OK, f"port {port} is free for a miner")
        except OSError as error:
            fix = "fine if your miner runs there, else start it with --port 0"
            yield Finding(WARN, f"port {port} of 127.0.0.1 is not free ({error.strerror})", fix)


def check_clock(ledger: Path, wall=time.time, monotonic=time.monotonic, sleep=time.sleep) -> Iterator[Finding]:
    """Whether the clock is plausible and runs evenly; the time zone does not matter."""
    wall_begin, monotonic_begin = wall(), monotonic()
    sleep(CLOCK_SAMPLE_SECONDS)
    now = wall()
    drift = (now - wall_begin) - (monotonic() - monotonic_begin)
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    sync = f"synchronise it (timedatectl set-ntp true): signatures {SIGNED_SECONDS} are refused"
    if now < PLAUSIBLE_SINCE:
        yield Finding(FAIL, f"the clock says {date}, which is in the past", sync)
    elif abs(drift) > CLOCK_DRIFT_SECONDS:
        yield Finding(WARN, f"the clock jumped by {drift:+.3f} s in {CLOCK_SAMPLE_SECONDS} s", sync)
    else:
        yield Finding(OK, f"clock {date}, runs evenly; not compared with a time server, nothing leaves this machine")
    try:
        (block,) = _read(ledger, "SELECT block FROM subnet")[0]
    except (sqlite3.Error, IndexError, ValueError):
        return
    ahead, what = block * BLOCK_SECONDS - now, "the ledger's newest block"
    if ahead <= BLOCK_SECONDS:
        yield Finding(OK, f"{what}, {utc(block * BLOCK_SECONDS)} UTC, is not ahead of the clock")
    else:
        fix = "right if it was played at full speed, in market time; else " + sync
        yield Finding(WARN, f"{what} is {ahead:.0f} s ahead of the clock", fix)


def check_folder(folder: Path) -> Iterator[Finding]:
    """Whether the folder, or the one it would be made in, can be written and has room."""
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield Finding(FAIL, f"{place} is a file, a folder is needed", "remove it or choose another --dir")
        return
    try:
        with tempfile.TemporaryFile(dir=str(place)) as probe:
            probe.write(b"doctor")
        yield Finding(OK, f"folder {folder}: {'can be written' if place == folder else 'can be made'}")
    except OSError as error:
        fix = "give yourself write permission or choose another --dir"
        yield Finding(FAIL, f"folder {place} cannot be written ({error.strerror})", fix)
    free = shutil.disk_usage(place).free
    what, fix = (
        f"disk of {place}: {free / 10**9:.1f} GB free",
        f"free some, {GOOD_DISK_BYTES / 10**9:.0f} GB are comfortable",
    )
    yield judged(free >= GOOD_DISK_BYTES, what, fix, FAIL if free < LEAST_DISK_BYTES else WARN)


def check_database(what: str, path: Path, newest: int | None) -> Iterator[Finding]:
    """Whether a database is whole, of a version that this program knows, and nobody else's at the moment.

    Args:
        newest: the schema version of this program, None if it could not be asked.
    """
    if not path.exists() or not path.stat().st_size:
        yield Finding(OK, f"{what} {path}: not there yet, the first start makes it")
        return
    pid = _holder(path)  # before it is opened here: closing any descriptor of it gives up this process's own locks
    log = Path(f"{path}-wal")
    waiting = log.stat().st_size if log.exists() else 0
    restore = "restore a copy, or move it away (with it go its scores) and start anew"
    try:
        (version,) = _read(path, "PRAGMA user_version")[0]
        tables = _read(path, "SELECT count(*) FROM sqlite_master")[0][0]
        damage = [row[0] for row in _read(path, "PRAGMA quick_check(3)") if row[0] != "ok"]
    except (sqlite3.Error, ValueError) as error:
        busy = "locked" in str(error)
        fix = "stop the process that writes to it, then try again" if busy else restore
        yield Finding(FAIL, f"{what} {path}: {error}", fix)
        return
    if damage:
        yield Finding(FAIL, f"{what} {path} is damaged: {'; '.join(damage)}".replace("\n", " "), restore)
    elif version == 0 and tables:
        yield Finding(FAIL, f"{what} {path}: tables of another program", "choose another --dir or --db")
    elif newest is not None and version > newest:
        fix = "update the program, or choose another --dir or --db"
        yield Finding(FAIL, f"{what} {path}: schema version {version}, this program knows {newest}", fix)
    else:
        older = newest is not None and version < newest
        note = f", the next start brings it to {newest}" if older else ""
        note += f"; {waiting} bytes of its log wait for the next start" if waiting and pid is None else ""
        yield Finding(OK, f"{what} {path}: whole, schema version {version}{note}")
    if pid is not None:
        fix = "let it end before you start another validator on this folder"
        yield Finding(WARN, f"{what} {path} is in use by process {pid}{_command(pid)}", fix)


def _read(path: Path, sql: str) -> list:
    """Rows of a query on a connection that cannot write."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2)) as db:
        return db.execute(sql).fetchall()


def _holder(path: Path) -> int | None:
    """The process that holds one of SQLite's locks on a file; None if nobody does, or this system does not say."""
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        asked = struct.pack(F_GETLK_FORMAT, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(F_GETLK_FORMAT, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return f" ({' '.join(words).strip()[:80]})"
