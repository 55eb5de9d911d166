"""Foreign text as a terminal, a log or a message may show it, and the naming of what differs.

    one_line(text, 200)                                 # printable ASCII in one line, whatever a peer chose
    quoted(value)                                       # any plain JSON value, short
    differences("scores", stored, again)                # "scores[0].line.terms.fees: 5, recomputed 6", ...

Pure: standard library only. Read next: `codec.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_SHOWN_CHARS, MAX_NAME_CHARS = 120, 60  # of a value, of a member's name, in a message
DIGITS = re.compile(r"0|-?[1-9][0-9]{0,77}", re.ASCII)  # of an integer in its one spelling
_ABSENT = "(absent)"


def one_line(text: str, max_chars: int | None = None) -> str:
    """Text as printable ASCII in one line: others are escaped, control characters become `?`; cut at `max_chars`."""
    return re.sub(r"[^ -~]", "?", text[:max_chars].encode("ascii", "backslashreplace").decode())[:max_chars]


def quoted(value: Any, max_chars: int = MAX_SHOWN_CHARS) -> str:
    """A plain JSON value from anywhere, for a message: printable ASCII, at most `max_chars` and three dots."""
    if isinstance(value, str):
        value = value if value.isascii() and value.isprintable() else ascii(value)[1:-1]
    elif isinstance(value, dict | list):
        value = f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    elif type(value) is int and abs(value) >= 10**100:  # past 4300 digits Python refuses to spell it
        value = "an integer of more than 100 digits"
    text = "null" if value is None else str(value)
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."


def quoted_name(key: Any) -> str:
    """The same of a member's name, as part of a path."""
    return quoted(key)[:MAX_NAME_CHARS]


def differences(path: str, stored: Any, again: Any) -> Iterator[str]:
    """Where two plain values differ, each as `path: stored, recomputed again`; 1, true and "1" are three things."""
    if isinstance(stored, dict) and isinstance(again, dict):
        for key in sorted(stored.keys() | again.keys(), key=str):
            yield from differences(f"{path}.{quoted_name(key)}", stored.get(key, _ABSENT), again.get(key, _ABSENT))
    elif isinstance(stored, list) and isinstance(again, list):
        if len(stored) != len(again):
            yield f"{path}: {len(stored)} items, recomputed {len(again)}"
        for n, (one, other) in enumerate(zip(stored, again, strict=False)):
            yield from differences(f"{path}[{n}]", one, other)
    elif stored != again or type(stored) is not type(again):
        yield f"{path}: {quoted(stored)}, recomputed {quoted(again)}"


def ordered(path: str, keys: list) -> Iterator[str]:
    """Which of a list's items is not after the one before it: out of order, or there twice."""
    for n in range(1, len(keys)):
        if not keys[n - 1] < keys[n]:
            yield f"{path}[{n}]: out of order, or there twice"


def integer(text: str) -> int:
    """An integer in its one decimal spelling, of at most 78 digits. Raises `ValueError`."""
    if not DIGITS.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no integer")
    return int(text)
