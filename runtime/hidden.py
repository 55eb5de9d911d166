"""What must not be shown: every secret that was configured, and its replacement in logs and printed words.

    conceal(key)                            # once, where it is read
    hide(f"{error}")                        # in a log, on a terminal: a library's or a node's text may quote an address

Of an address user, password, path and query are secret, and of its host what stands before the provider's own domain,
where some have their keys. A page, receipt, detail or alert has nobody's words but ours;
there `hide` is the second guard. Read next: `passwords.py`, which reads secrets.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "*****"
MIN_SECRET_CHARS = 4  # of a password or key; shorter ones are part of too many words
MIN_PART_CHARS = 6  # of an address
MIN_CUT_CHARS = 20  # what is shorter is hidden whole only: half of it may be a word

_IS_IP = re.compile(r"[\d.]+|.*:.*")

_known: set[str] = set()
_forms: list[str] | None = []  # of all that is known, longest first; None: to be made


def conceal(secret: str) -> None:
    """From now on `hide` replaces it, and where it is an address, each part of it that may be secret."""
    global _forms
    found = [secret.strip()]
    try:
        parts = urlsplit(secret) if "://" in secret else None
    except ValueError:
        parts = None
    if parts:
        beside = [parts.path.strip("/"), parts.query, *parts.path.split("/"), *(v for _, v in parse_qsl(parts.query))]
        found = [text for text in beside if len(text) >= MIN_PART_CHARS]
        found += [text for text in (parts.netloc.rpartition("@")[0], parts.username, parts.password) if text]
        found += [label for label in (parts.hostname or "").split(".")[:-2] if len(label) >= MIN_CUT_CHARS]
    _known.update(one for text in found for one in (text, unquote(text)) if len(one) >= MIN_SECRET_CHARS)
    _forms = None


def masked_host(host: str) -> str:
    """A host without what may be secret in it: of a name its last two labels stay."""
    labels = host.split(".")
    return host if len(labels) < 3 or _IS_IP.fullmatch(host) else ".".join(("*", *labels[-2:]))


def hide(text: str) -> str:
    """The text with `*****` in the place of every secret that is known, also as others spell it, or a half of that."""
    global _forms
    if _forms is None:
        found = {form for secret in _known for form in _spellings(secret)}
        cut = [(form, len(form) // 2) for form in found if len(form) >= MIN_CUT_CHARS]
        found |= {half for form, middle in cut for half in (form[:middle], form[middle:])}
        _forms = sorted(found, key=lambda form: (-len(form), form))
    for form in _forms:
        text = text.replace(form, HIDDEN)
    return text


def _spellings(secret: str) -> Iterator[str]:
    """As it is, and in an address, in JSON, in Python, hex and base64."""
    raw = secret.encode("utf-8", "surrogatepass")
    yield from (secret, quote(raw, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1])
    yield from (secret.lower(), secret.upper(), raw.hex(), raw.hex().upper())
    yield from (encode(raw).decode().rstrip("=") for encode in (b64encode, urlsafe_b64encode))
