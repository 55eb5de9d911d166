"""What the doctor says of one thing: how it stands, and the fix."""

from __future__ import annotations

from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "FAIL"


class Finding(NamedTuple):
    """One line: `OK`, `WARN` or `FAIL`, what was found, and what to do about it (empty if nothing)."""

    level: str
    what: str
    fix: str = ""
