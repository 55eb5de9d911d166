"""What the doctor says of one thing: how it stands, and the fix. Read next: `machine.py`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

OK, WARN, FAIL = "ok", "warn", "FAIL"


class Finding(NamedTuple):
    """One line: `OK`, `WARN` or `FAIL`, what was found, and what to do about it (empty if nothing)."""

    level: str
    what: str
    fix: str = ""


def tell(findings: Iterable[Finding]) -> list[str]:
    """Print each as it is found; returns their levels."""
    levels = []
    for finding in findings:
        levels.append(finding.level)
        print(f"{finding.level:5}{finding.what}" + (f"; {finding.fix}" if finding.fix else ""), flush=True)
    return levels


def utc(seconds: float) -> str:
    """A time for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
