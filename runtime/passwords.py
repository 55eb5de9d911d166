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
from runtime.process import Passing, UserError

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
        Passing: the command failed, or did not end in time.
    """
    match _given(options, "password", "password_file", "password_command"):
        case "password":
            return options.password.reveal()
        case "password_file":
            return first_line(read_private(options.password_file, "password file"), options.password_file)
        case "password_command":
            return first_line(_output_of(options.password_command), "--password-command")
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
        key = Secret(first_line(read_private(what, "key file"), what, "key"))
    return Secret(header_key(key.reveal(), what))


def header_key(key: str, what: str | Path) -> str:
    """The same key; raises `UserError` if an HTTP header cannot carry it."""
    if not re.fullmatch(r"[!-~]+", key):
        why = "the key has a space or another character that an HTTP header cannot carry"
        raise UserError(f"{what}: {why}{unseen(key)}")
    return key


def without_ends(value: str) -> str:
    """A value without the mark before it and the end of a line after it that an editor or `echo` left there."""
    return value.removeprefix("\ufeff").rstrip("\r\n")


def unseen(secret: str) -> str:
    """What cannot be seen in a secret that was refused, to be added to the refusal."""
    found = {f"U+{ord(letter):04X}" for letter in secret if not letter.isprintable()}
    found |= {"a space at an end"} if secret.strip(" ") != secret else set()
    return f"; it has what cannot be seen: {', '.join(sorted(found))}" if found else ""


def _given(options: argparse.Namespace, *names: str) -> str | None:
    """Which of these was given nearest to the command line. Raises `UserError` for two in the same place."""
    given = sorted((options.sources[name], name) for name in names if getattr(options, name) is not None)
    if len(given) > 1 and given[0][0].rank == given[1][0].rank:
        raise UserError(f"both {given[0][1]} and {given[1][1]} are given ({given[0][0].name}); name one")
    return given[0][1] if given else None


def read_private(
    path: str | Path, what: str, most_bytes: int = MAX_PASSWORD_BYTES, forbidden: int = 0o077, fix: str = ""
) -> bytes:
    """The first `most_bytes + 1` bytes of a file. Raises `UserError` if it is not ours alone, as `check_own` says, or
    cannot be read, with the `fix` of that."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe would wait for its writer

    try:
        with open(path, "rb", opener=opener) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                fix = "; use --password-command for anything else" if what.startswith("password") else ""
                raise UserError(f"{what} {path} is no regular file{fix}")
            check_own(file.fileno(), f"{what} {path}", path, forbidden)
            return file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}{fix}") from None


def check_own(file: int, what: str, path: str | Path, forbidden: int = 0o077) -> None:
    """Raises `UserError` where an open file is another user's, or others have one of the forbidden permissions.

    Not asked of what nobody here could mend: systemd guards its credentials with an ACL, which shows as permission for
    the group, and containers have their secrets on a mount that is read-only, for everybody in them.
    """
    found, guarded = os.fstat(file), os.environ.get("CREDENTIALS_DIRECTORY") == str(Path(path).parent)
    if guarded or os.fstatvfs(file).f_flag & os.ST_RDONLY:
        return
    if found.st_uid not in (0, os.geteuid()):
        raise UserError(f"{what} belongs to another user, number {found.st_uid}; run: chown {os.geteuid()} {path}")
    if found.st_mode & forbidden:
        how, fix = ("read", "600") if forbidden & 0o044 else ("written", "go-w")
        raise UserError(f"{what} can be {how} by others; run: chmod {fix} {path}")


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
                    raise Passing(f"--password-command ({program}) ended with code {code}; run it to see why")
                break
            output += read
        return output
    except subprocess.TimeoutExpired:
        raise Passing(f"--password-command ({program}) did not end within {PASSWORD_COMMAND_SECONDS} s") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def first_line(data: bytes, what: str | Path, kind: str = "password") -> str:
    """The secret that a file or command holds. Raises `UserError`."""
    if len(data) > MAX_PASSWORD_BYTES:
        raise UserError(f"{what}: more than {MAX_PASSWORD_BYTES} bytes, that is no {kind}")
    try:
        line = without_ends(data.decode().split("\n")[0])
    except UnicodeDecodeError:
        raise UserError(f"{what}: the {kind} is no UTF-8") from None
    if not line:
        raise UserError(f"{what}: the first line, which should be the {kind}, is empty")
    conceal(line)
    return line
