"""What every process needs around its work: errors in one line, logging, signals, a stop that cleans up.

    def main(argv=None) -> int:
        options = parse_options(build_parser(), argv)      # a `Parser`; `options.py`
        return run(work(options), options.log_level, (), options.log_json, options.log_file)

Results go to stdout, diagnostics to stderr. Read next: `options.py` (where options come from).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import gc
import json
import logging
import math
import os
import re
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, NoReturn

from runtime.hidden import hide

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_AGAIN = 75  # sysexits.h: try again later; see docs/real-network.md
_PASSING_FILES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_PASSING_DATABASES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
LOG_LEVELS = ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR")  # TRACE: the libraries' DEBUG too
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_FILE_BYTES, LOG_FILES_KEPT = 10 * 2**20, 5
PROGRESS_WIDTH = 30  # characters
CLEAR_LINE = "\r\x1b[K"
LIBRARIES = ("asyncio", "aiohttp", "aiosqlite", "bittensor", "websockets")  # silent below WARNING unless traced

log = logging.getLogger("runtime")


class UserError(Exception):
    """Something only the user can mend; the message says what, with the value, and the fix, in one line."""


class Passing(Exception):
    """What may pass by itself: said in one line, and the program ends so that its unit starts it again."""


class Parser(argparse.ArgumentParser):
    """Options of a program; a mistake in them is one line on stderr and exit code 2."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple:
        """Also sets `given`: by attribute the options of the command line, as they were written.

        An option that nobody knows is blamed itself: argparse would take its value for a command, and blame that. One
        before a command that does not read it there is a mistake, too.
        """
        words = sys.argv[1:] if args is None else list(args)
        commands = self._subparsers._group_actions[0] if self._subparsers else None
        verbs = commands.choices if commands else {}
        for word in words[: words.index("--") if "--" in words else None]:
            number = self._negative_number_matcher.match(word)
            if word[:1] == "-" != word and not (number or self._theirs(word)):
                self.error(f"unrecognized arguments: {word}")
        namespace, rest = super().parse_known_args(words, namespace)
        name = getattr(namespace, commands.dest) if commands else None
        verb, begin, namespace.given = verbs.get(name, self), words.index(name) if name else 0, {}
        for at, word in enumerate(words):
            theirs = verb._theirs(word)
            if (option := self._named(word) if at < begin else theirs) is None:
                continue
            written = word.partition("=")[0]
            if theirs is None or theirs.dest != option.dest:
                self.error(f"{written} goes after {name}" if theirs else f"{written} is no option of {name}")
            namespace.given[option.dest] = written
        return namespace, rest

    def _named(self, word: str) -> argparse.Action | None:
        """The option that a word is, or begins, or has its value behind as in `-oFILE`."""
        word, options = word.partition("=")[0], self._option_string_actions
        begun = (options[one] for one in options if word[2:] and one.startswith(word))
        return options.get(word) or options.get(word[:2]) or next(begun, None)

    def _theirs(self, word: str) -> argparse.Action | None:
        """As `_named`, or of one of its commands."""
        groups = self._subparsers._group_actions if self._subparsers else ()
        found = (verb._theirs(word) for group in groups for verb in group.choices.values())
        return self._named(word) or next(filter(None, found), None)

    def error(self, message: str) -> NoReturn:
        """A word that is no option is not quoted, nor an address or what follows `=`: they may hold a secret."""
        said, unknown, words = message.partition("unrecognized arguments: ")
        if unknown:
            options = [word.partition("=")[0] for word in words.split() if word.startswith("-")]
            message = said + unknown + " ".join(options or ["words without an option"])
        message = re.sub(r"://(?!HOST)[^ ]+", "://*****", message)
        self.exit(EXIT_USAGE, f"{self.prog}: {hide(message)}; see --help\n")


def number(least: float, most: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """The type of an option that is a finite number from `least` to `most`, both included."""

    def parse(text: str) -> float:
        try:
            if least <= (value := kind(text)) <= most and value < math.inf:
                return value
        except ValueError:
            pass
        what, end = "whole number" if kind is int else "number", f" to {most}" if most < math.inf else ""
        raise argparse.ArgumentTypeError(f"{text!r} is no {what} from {least}{end}")

    return parse


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Inside, this process alone holds the lock file; the system frees it with the process, however that ends.

    Raises `UserError`, with `what` it stands for, where another process holds it or the system gives none.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process works with this {what}; stop it or choose another") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; choose another {what}") from None
        yield


def progress(done: int, total: int, what: str, step: int = 1) -> None:
    """Show how far a long work is: one line of the terminal, drawn anew; nothing where stderr is no terminal.

    Call it after each of the work's steps, named `what` in the plural, or after `step` of them. It draws once a
    percent, and ends the line at the total.
    """
    if sys.stderr.isatty() and (done * 100 // total > (done - step) * 100 // total):
        bar = "#" * (done * PROGRESS_WIDTH // total)
        line = f"[{bar:{PROGRESS_WIDTH}}] {done * 100 // total:3} %, {done:,} of {total:,} {what}"
        print(f"{CLEAR_LINE}{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def clear_progress() -> None:
    """Take an unfinished `progress` off the terminal before something else is printed there."""
    if sys.stderr.isatty():
        print(CLEAR_LINE, end="", file=sys.stderr, flush=True)


def raise_file_limit() -> int:
    """Let this process open as many files and connections as the system allows it; returns how many.

    An ask to each of 256 miners in several jobs at once is more than the usual 1,024 of a login allow. It may be
    refused, as macOS refuses more than its own bound whatever it says: then fewer do.
    """
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (most, 10_240):
        if most == resource.RLIM_INFINITY or soft < wanted <= most:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
                return wanted if wanted != resource.RLIM_INFINITY else 2**20
    return soft


class _Plain(logging.Formatter):
    """One line a record: control characters, which a peer may have chosen, cannot start another or steer a terminal.

    Like `_Json` it shows no secret that is known: a library's text may quote one.
    """

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        return hide(super().formatMessage(record)).translate(_ESCAPES)  # hidden before it is spelled in another way

    def formatException(self, ei) -> str:
        return hide(super().formatException(ei)).translate(_ESCAPES | {10: "\n"})


_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


class _Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and exception with its traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"
        plain = {"time": at, "level": record.levelname, "logger": record.name, "message": hide(record.getMessage())}
        if record.exc_info:
            plain["exception"] = hide(self.formatException(record.exc_info))
        return json.dumps(plain)  # ASCII: nothing in it can break the line or the encoding


def log_to(level: str, log_json: bool = False, log_file: str | None = None) -> None:
    """Send the log to stderr and, if named, to a file; for the process's start.

    Args:
        level: one of LOG_LEVELS.
        log_json: one JSON object a line; an uncaught exception and Python's warnings are such lines too.
        log_file: of one process alone. At LOG_FILE_BYTES it is put aside as FILE.1, and so on; LOG_FILES_KEPT are kept.

    Raises:
        UserError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file:
        kept = LOG_FILE_BYTES, LOG_FILES_KEPT
        try:
            handlers.append(RotatingFileHandler(log_file, "a", *kept, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise UserError(f"--log-file {log_file}: {error.strerror}; choose another") from None
    for handler, dates in zip(handlers, ("%H:%M:%S", "%Y-%m-%d %H:%M:%S"), strict=False):
        handler.setFormatter(_Json() if log_json else _Plain(LOG_FORMAT, dates))
    logging.basicConfig(level="DEBUG" if level == "TRACE" else level, handlers=handlers)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel("NOTSET" if level == "TRACE" else "WARNING")
    sys.excepthook = lambda *error: log.critical("ended by an error that nobody expected", exc_info=error)
    sys.unraisablehook = threading.excepthook = _log_ended
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # else a full disk prints what was to be logged as it is


def _log_ended(what: Any) -> None:
    log.error("an error that nobody could be told of", exc_info=what[:3])


def run(
    work: Coroutine,
    log_level: str,
    user_errors: tuple[type[Exception], ...] = (),
    log_json: bool = False,
    log_file: str | None = None,
) -> int:
    """Run a program's coroutine until it ends or a signal asks it to stop.

    SIGINT (Ctrl-C, PM2) and SIGTERM (systemd) cancel the coroutine, so that every `async with` closes what it opened.
    No core file is written, which would have the keys in it.

    Args:
        work: the program; its result is the exit code, None is 0.
        log_level, log_json, log_file: as `log_to` takes them.
        user_errors: exceptions that are said in one line, besides `UserError` and `Passing`: with exit code 75 if what
            they come from may pass by itself, else they are the user's to mend, and it is 2.
    """
    mendable = (UserError, Passing, *user_errors)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        log_to(log_level, log_json, log_file)
    except UserError as error:
        work.close()
        return _complain(error, logged=False)
    gc.freeze()  # what is loaded stays: to look through it for garbage stops the loop for a tenth of a second
    try:
        return asyncio.run(_until_signalled(work))
    except (BaseExceptionGroup, BrokenPipeError, *mendable) as error:
        leaves = _leaves(error)  # of a TaskGroup: the first that the user can mend, else all of them
        if any(isinstance(leaf, BrokenPipeError) for leaf in leaves):  # who read our output, `head` perhaps, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
            return EXIT_OK
        if not all(isinstance(leaf, mendable) for leaf in leaves):
            raise
        return _complain(leaves[0], bool(log_json or log_file))
    finally:
        gc.unfreeze()


def _complain(error: BaseException, logged: bool) -> int:
    line = hide(f"{error}".replace("\n", " "))
    if logged:
        log.error(line)
    else:
        print(line, file=sys.stderr)
    return EXIT_AGAIN if passes(error) else EXIT_USAGE


def passes(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, may pass by itself: a node, a lock, a full disk."""
    mistake = False
    while error:
        mistake |= isinstance(error, UserError)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says which kind of the same it is
        full = isinstance(error, OSError) and error.errno in _PASSING_FILES
        if full or code in _PASSING_DATABASES or (isinstance(error, Passing) and not mistake):
            return True
        error = error.__cause__ or error.__context__
    return False


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


async def _until_signalled(work: Coroutine) -> int:
    task, loop, asked = asyncio.ensure_future(work), asyncio.get_running_loop(), []

    def stop(number: int) -> None:
        asked.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task or EXIT_OK
    except asyncio.CancelledError:
        if not asked:
            raise
        log.info("stopped by %s; everything committed is kept", signal.Signals(asked[0]).name)
        return EXIT_OK
