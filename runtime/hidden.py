"""What must not be shown: every secret that was configured, and its replacement in words that leave the process.

    conceal(key)                            # once, where it is read
    hide(f"{error}")                        # in a log, a round's detail, a page: a library's text may quote an address

Of an address user, password, path and query are secret. Read next: `passwords.py`, which reads them.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

HIDDEN = "*****"
MIN_SECRET_CHARS = 4  # of a password or key; shorter ones are part of too many words
MIN_PART_CHARS = 6  # of an address

_known: set[str] = set()
_pattern: re.Pattern | None = None


def conceal(secret: str) -> None:
    """From now on `hide` replaces it, and where it is an address, each part of it that may be secret."""
    global _pattern
    found = [secret.strip()]
    try:
        parts = urlsplit(secret) if "://" in secret else None
    except ValueError:
        parts = None
    if parts:
        beside = [parts.path.strip("/"), parts.query, *parts.path.split("/"), *(v for _, v in parse_qsl(parts.query))]
        found = [text for text in beside if len(text) >= MIN_PART_CHARS]
        found += [text for text in (parts.netloc.rpartition("@")[0], parts.username, parts.password) if text]
    _known.update(one for text in found for one in (text, unquote(text)) if len(one) >= MIN_SECRET_CHARS)
    longest_first = sorted(_known, key=lambda text: (-len(text), text))
    _pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def hide(text: str) -> str:
    """The text with `*****` in the place of every secret that is known."""
    return _pattern.sub(HIDDEN, text) if _pattern else text
