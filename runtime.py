"""What every process needs around its work: errors in one line, logging, signals, a stop that cleans up.

    def main(argv=None) -> int:
        options = build_parser().parse_args(argv)         # a `Parser`
        return run(work(options), options.log_level)

Results go to stdout, diagnostics to stderr. Read next: `validator.py`, `miner.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


class UserError(Exception):
    """Something only the user can mend; the message says what, with the value, and the fix, in one line."""


class Parser(argparse.ArgumentParser):
    """Options of a program; a mistake in them is one line on stderr and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see --help\n")


def number(least: float, most: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """The type of an option that is a finite number from `least` to `most`, both included."""

    def parse(text: str) -> float:
        try:
            if least <= (value := kind(text)) <= most and value < math.inf:
                return value
        except ValueError:
            pass
        what = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(
            f"{text!r} is no {what} from {least}{f' to {most}' if most < math.inf else ''}"
        )

    return parse


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Inside, this process alone holds the lock file; the system frees it with the process, however that ends.

    Raises:
        UserError: another process holds it; `what` says what it stands for.
        OSError: it cannot be made.
    """
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process works with this {what}; stop it or choose another") from None
        yield


def raise_file_limit() -> int:
    """Let this process open as many files and connections as the system allows it; returns how many.

    An ask to each of 256 miners in several jobs at once is more than the usual 1,024 of a login allow.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def run(work: Coroutine, log_level: str, user_errors: tuple[type[Exception], ...] = ()) -> int:
    """Run a program's coroutine until it ends or a signal asks it to stop.

    SIGINT (Ctrl-C, PM2) and SIGTERM (systemd) cancel the coroutine, so that every `async with` closes what it opened.

    Args:
        work: the program; its result is the exit code, None is 0.
        log_level: `DEBUG`, `INFO`, `WARNING` or `ERROR`, for stderr.
        user_errors: exceptions that are the user's to mend, besides `UserError`: one line on stderr, exit code 2.

    Returns:
        The exit code.
    """
    logging.basicConfig(
        level=log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("asyncio").setLevel("WARNING")
    try:
        return asyncio.run(_until_signalled(work))
    except BaseExceptionGroup as group:  # from a TaskGroup: the first that the user can mend, else all of them
        if group.subgroup(BrokenPipeError):
            return _silent()
        mendable, rest = group.split((UserError, *user_errors))
        if rest or not mendable:
            raise
        return _complain(_leaves(mendable)[0])
    except (UserError, *user_errors) as error:
        return _complain(error)
    except BrokenPipeError:  # whoever read our standard output, `head` perhaps, has enough
        return _silent()


def _silent() -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    return EXIT_OK


def _complain(error: BaseException) -> int:
    print(f"{error}".replace("\n", " "), file=sys.stderr)
    return EXIT_USAGE


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
        logging.getLogger("runtime").info("stopped by %s; everything committed is kept", signal.Signals(asked[0]).name)
        return EXIT_OK
