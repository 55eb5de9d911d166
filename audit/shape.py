"""The shape of plain JSON from anywhere: which members, of which type, each in its one spelling.

    SHAPE = {"close_block": "number?", "asks": [{"due_block": "number", "query": "base64"}]}
    misshapen(value, SHAPE, "round")                    # each part that is not so: "round.asks[2].query: missing", ...
    check_shape(value, SHAPE, "page")                   # the first of them as `ProtocolError`

An object names its members, of which `name?` may be missing; `[shape]` is a list of any number, a tuple one of exactly
these; text names one of `KINDS`, with `?` null does too; so does it with `Maybe(shape)`.
Read next: `evidence.py`, `receipts.py` (the shapes).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import NoneType
from typing import Any, NamedTuple

from protocol import Code, ProtocolError
from wire.text import DIGITS, quoted, quoted_name

MAX_DIGITS = 100  # before the point, of a number from others: more are no score, and hard to print
_SECONDS = re.compile(r"[0-9]{1,12}\.[0-9]{6}", re.ASCII)
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*+(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?")
_TEXT = re.compile("[^\ud800-\udfff]*")  # JSON can spell lone surrogates, which are no text, and SQLite does not take


def is_shown(value: Any) -> bool:
    """Is this, as text, a number that can be written out: finite, short, and not of a billion zeros?"""
    try:
        number = Decimal(text) if len(text := str(value)) < 200 else Decimal("NaN")
        return number.is_finite() and -1000 < number.adjusted() < MAX_DIGITS
    except (ArithmeticError, ValueError):  # ValueError: an int of more digits than Python spells
        return False


KINDS: dict[str, tuple[type, Callable[[Any], Any], str]] = {  # the type, which values of it are meant, and their name
    "any": (object, lambda _: True, "anything"),
    "null": (NoneType, lambda _: True, "null"),
    "object": (dict, lambda _: True, "an object"),  # the inside of these two is looked at elsewhere
    "list": (list, lambda _: True, "a list"),
    "number": (int, lambda value: abs(value) < 2**63, "a JSON integer of 64 bits"),
    "text": (str, _TEXT.fullmatch, "text"),
    "digits": (str, DIGITS.fullmatch, "an integer as a decimal string"),
    "decimal": (str, lambda value: is_shown(value) and str(Decimal(value)) == value, "a number as a string"),
    "seconds": (str, _SECONDS.fullmatch, "seconds with six decimals"),
    "base64": (str, _BASE64.fullmatch, "base64"),
}


class Maybe(NamedTuple):
    shape: Any  # or null


def each(shape: Any, *names: str) -> dict[str, Any]:
    """Members of one shape."""
    return dict.fromkeys(names, shape)


def check_shape(value: Any, shape: Any, path: str) -> None:
    """Raises `ProtocolError` of code `MALFORMED`, which names the first part that is not of its shape."""
    for problem in misshapen(value, shape, path):
        raise ProtocolError(Code.MALFORMED, problem)


def misshapen(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Every part that is not of its type, missing, or unknown."""
    match shape:
        case Maybe(inner):
            if value is not None:
                yield from misshapen(value, inner, path)
        case dict() if isinstance(value, dict):
            known = {name.rstrip("?"): name for name in shape}
            for key in [*known, *sorted(value.keys() - known.keys(), key=str)]:
                at = f"{path}.{quoted_name(key)}".lstrip(".")
                if key in known and key in value:
                    yield from misshapen(value[key], shape[known[key]], at)
                elif not known.get(key, "").endswith("?"):
                    yield f"{at}: {'missing' if key in known else 'unknown'}"
        case [inner] if type(shape) is list and isinstance(value, list):
            for n, item in enumerate(value):
                yield from misshapen(item, inner, f"{path}[{n}]")
        case tuple() if isinstance(value, list) and len(value) == len(shape):
            for n, (item, inner) in enumerate(zip(value, shape, strict=True)):
                yield from misshapen(item, inner, f"{path}[{n}]")
        case str() if (value is None and shape.endswith("?")) or _is(value, shape.rstrip("?")):
            return
        case _:
            yield f"{path}: {quoted(value)}, {_called(shape)} is expected"


def _called(shape: Any) -> str:
    if isinstance(shape, str):
        return KINDS[shape.rstrip("?")][2]
    return {dict: "an object", list: "a list"}.get(type(shape), f"a list of {len(shape)}")


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of one of `KINDS`, in its one spelling."""
    cls, fits, _ = KINDS[kind]
    return cls in (object, type(value)) and bool(fits(value))  # not isinstance: True is an int
