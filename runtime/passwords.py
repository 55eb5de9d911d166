"""Secrets: read from the environment, a private file or a command; never shown, never asked for.

Read next: `options.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shlex
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from runtime.hidden import HIDDEN, conceal
from runtime.process import UserError

MAX_PASSWORD_BYTES = 2**12
PASSWORD_COMMAND_SECONDS = 60  # in all; a first `gcloud` call takes several


class Secret:
    """A value that no print, log or traceback shows; `reveal()` where it is used."""

    def __init__(self, value: str, shown: str = HIDDEN):
        self._value, self._shown = value, shown
        conceal(value)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return self._shown


def read_password(options: argparse.Namespace) -> str | None:
    """The wallet's password from a variable, a file or a command, whichever was given nearest to the command line;
    None if nobody gave one: right for keys that are not encrypted.

    It blocks until the command has ended, at most PASSWORD_COMMAND_SECONDS.

    Raises:
        UserError: two were given in the same place, or the one given does not yield a password; contains no output.
    """
    match _given(options, "password", "password_file", "password_command"):
        case "password":
            return options.password.reveal()
        case "password_file":
            return _first_line(read_private(options.password_file, "password file"), options.password_file)
        case "password_command":
            return _first_line(_output_of(options.password_command), "--password-command")
    return None


def read_executor_key(options: argparse.Namespace) -> Secret | None:
    """The executor bot's key from a variable or a file, whichever was given nearest to the command line. Raises
    `UserError`: both were given in the same place, or the file yields no key that fits into an HTTP header."""
    name = _given(options, "executor_key", "executor_key_file")
    if name is None:
        return None
    key, what = options.executor_key, "EXECUTOR_API_KEY"
    if name == "executor_key_file":
        what = options.executor_key_file
        key = Secret(_first_line(read_private(what, "key file"), what, "key"))
    if not re.fullmatch(r"[!-~]+", key.reveal()):
        raise UserError(f"{what}: the key has a space or another character that an HTTP header cannot carry")
    return key


def _given(options: argparse.Namespace, *names: str) -> str | None:
    """Which of these was given nearest to the command line. Raises `UserError` for two in the same place."""
    given = sorted((options.sources[name], name) for name in names if getattr(options, name) is not None)
    if len(given) > 1 and given[0][0].rank == given[1][0].rank:
        raise UserError(f"both {given[0][1]} and {given[1][1]} are given ({given[0][0].name}); name one")
    return given[0][1] if given else None


def read_private(name: str | Path, what: str) -> bytes:
    """The first `MAX_PASSWORD_BYTES + 1` bytes of a file. Raises `UserError` if others may read it or we cannot."""
    path = Path(name).expanduser()

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe would wait for its writer

    try:
        with open(path, "rb", opener=opener) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                fix = "; use --password-command for anything else" if what.startswith("password") else ""
                raise UserError(f"{what} {path} is no regular file{fix}")
            # systemd guards its credentials with an ACL, which shows as permission for the group
            by_systemd = os.environ.get("CREDENTIALS_DIRECTORY") == str(path.parent)
            if mode & 0o077 and not by_systemd:
                raise UserError(f"{what} {path} can be read by others; run: chmod 600 {path}")
            return file.read(MAX_PASSWORD_BYTES + 1)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None


def _output_of(command: str) -> bytes:
    """What a command writes to stdout within the deadline; its stderr, which may hold a secret, is dropped."""
    try:
        words = shlex.split(command)
        nothing, pipe = subprocess.DEVNULL, subprocess.PIPE  # in a session of its own its own children end with it
        process = subprocess.Popen(words, stdin=nothing, stdout=pipe, stderr=nothing, start_new_session=True)
    except (OSError, ValueError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "it cannot be split into words"
        raise UserError(f"--password-command cannot be run: {reason}") from None
    program, deadline, output = words[0], time.monotonic() + PASSWORD_COMMAND_SECONDS, b""
    try:
        while len(output) <= MAX_PASSWORD_BYTES:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise subprocess.TimeoutExpired(program, PASSWORD_COMMAND_SECONDS)
            if not (read := os.read(process.stdout.fileno(), MAX_PASSWORD_BYTES)):
                if code := process.wait(max(deadline - time.monotonic(), 0.1)):
                    raise UserError(f"--password-command ({program}) ended with code {code}; run it to see why")
                break
            output += read
        return output
    except subprocess.TimeoutExpired:
        raise UserError(f"--password-command ({program}) did not end within {PASSWORD_COMMAND_SECONDS} s") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def _first_line(data: bytes, what: str, kind: str = "password") -> str:
    if len(data) > MAX_PASSWORD_BYTES:
        raise UserError(f"{what}: more than {MAX_PASSWORD_BYTES} bytes, that is no {kind}")
    try:
        line = data.decode().split("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise UserError(f"{what}: the {kind} is no UTF-8") from None
    if not line:
        raise UserError(f"{what}: the first line, which should be the {kind}, is empty")
    conceal(line)
    return line
