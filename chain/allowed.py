"""The addresses that a sweep may pay: those given must also stand in a file that nobody but its owner may write.

Read next: `sweeping.py`.
"""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path

from chain.base import ChainError
from chain.wallets import check_address
from runtime.process import UserError

MAX_ALLOW_LIST_CHARS = 2**16
ROLES = ("aggregator-hotkey", "destination-coldkey")  # the options, and the words of the allow-list


def read_allow_list(path: Path) -> set[tuple[str, str]]:
    """The pairs of an allow-list file: lines `aggregator-hotkey SS58` or `destination-coldkey SS58`, `#` begins a note.

    Raises:
        UserError: it is missing, others may write it, or a line is not one of the two.
    """
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UserError(f"allow-list {path} can be written by others; run: chmod go-w {path}")
            text = file.read(MAX_ALLOW_LIST_CHARS)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"allow-list {path}: {reason}; write the lines `aggregator-hotkey SS58` and `destination-coldkey SS58` into"
            " it, or name another with --allow-list"
        ) from None
    pairs = set()
    for at, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in ROLES:
            raise UserError(f"allow-list {path} line {at}: not `{' SS58` or `'.join(ROLES)} SS58`")
        try:
            pairs.add((words[0], check_address(words[1])))
        except ChainError as error:
            raise UserError(f"allow-list {path} line {at}: {error}") from None
    return pairs


def checked_addresses(options: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Aggregator and destination, as given and allowed.

    Raises:
        UserError: one is no address, or not in the allow-list.
    """
    given = dict(zip(ROLES, (options.aggregator_hotkey, options.destination_coldkey), strict=True))
    for role, address in given.items():
        try:
            check_address(address)
        except ChainError as error:
            raise UserError(f"--{role}: {error}") from None
    path = Path(options.allow_list) if options.allow_list else folder / "stake-allow.txt"
    allowed = read_allow_list(path)
    for role, address in given.items():
        if (role, address) not in allowed:
            raise UserError(f"--{role} {address} is not in allow-list {path}; add it there if it is right")
    return options.aggregator_hotkey, options.destination_coldkey
