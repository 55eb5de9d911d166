"""Bytes: canonical JSON, and a codec that reads the dataclasses' own annotations.

    decode(RebalanceAnswer, body, MAX_ANSWER_BYTES)     # untrusted bytes -> a checked message, or ProtocolError
    encode(query)                                       # the one spelling of a message

Pure: standard library and `protocol` only. Read next: `signing.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from protocol import DECIMAL_TEXT, MAX_TEXT_CHARS, Amount, Code, ProtocolError, SqrtPrice, Word

MAX_JSON_INT_DIGITS = 20
MAX_JSON_DEPTH = 64
T = TypeVar("T")

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one that nobody closed too; possessive: read once
_BRACKETS = re.compile(rb"[\[\]{}]")
_UINT = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, lone surrogates


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a plain value: sorted keys, no spaces, ASCII, no NaN; what is hashed and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(data: bytes) -> str:
    """sha256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def encode(message: Any) -> bytes:
    """A message as canonical JSON."""
    return canonical(to_plain(message))


def decode(cls: type[T], data: bytes, max_bytes: int) -> T:
    """Parse untrusted bytes into the dataclass `cls`, or say what is wrong with them.

    Args:
        cls: `RebalanceQuery`, `RebalanceAnswer` or any other dataclass of such fields.
        data: UTF-8 JSON, one object.
        max_bytes: the size limit, checked before anything is parsed.

    Raises:
        ProtocolError: `MALFORMED`, naming the field; `AMOUNT_RANGE` for amounts that are not uint128.
    """
    return from_plain(cls, parse_json(data, max_bytes))


def parse_json(data: bytes, max_bytes: int) -> Any:
    """Strict JSON: no duplicate keys, no floats, no NaN, no integer beyond 20 digits, no deep nesting.

    What is refused, and in which words, is the same on every Python: an audit elsewhere says it again.
    """
    if len(data) > max_bytes:
        raise ProtocolError(Code.MALFORMED, f"{len(data)} bytes, at most {max_bytes}")
    if _depth(data) > MAX_JSON_DEPTH:
        raise ProtocolError(Code.MALFORMED, "nested too deeply")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_float=_refuse("a number with a fraction or exponent: amounts are decimal strings"),
            parse_constant=_refuse("NaN or Infinity"),
            parse_int=_short_int,
        )
    except ProtocolError:
        raise
    except UnicodeDecodeError:
        raise ProtocolError(Code.MALFORMED, "not JSON: it is no UTF-8") from None
    except ValueError:
        raise ProtocolError(Code.MALFORMED, "not JSON") from None


def _depth(data: bytes) -> int:
    """The deepest nesting of brackets outside of strings."""
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError(Code.MALFORMED, "an object names a key twice")
    return found


def _refuse(what: str):
    def refuse(text: str):
        raise ProtocolError(Code.MALFORMED, f"{what} ({text[:40]})")

    return refuse


def _short_int(text: str) -> int:
    if len(text) > MAX_JSON_INT_DIGITS:
        raise ProtocolError(Code.MALFORMED, f"an integer of {len(text)} digits: amounts are decimal strings")
    return int(text)


def to_plain(value: Any) -> Any:
    """A message as dicts, lists, strings, ints, bools and None; amounts and decimals become strings."""
    if is_dataclass(value):
        parts = [(name, getattr(value, name), write, left_out) for name, write, _, left_out in _codec(type(value))]
        return {name: write(part) for name, part, write, left_out in parts if not left_out or part is not None}
    return value


def from_plain(cls: type[T], value: Any, where: str = "") -> T:
    """The inverse of `to_plain`, checking every type; `where` is the path for error messages."""
    where = where or cls.__name__
    if not isinstance(value, dict):
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, an object is expected")
    known = _codec(cls)
    if unknown := value.keys() - {name for name, *_ in known}:
        raise ProtocolError(Code.MALFORMED, f"{where} has an unknown field {min(unknown)[:40]!r}")
    if missing := [name for name, _, _, left_out in known if name not in value and not left_out]:
        raise ProtocolError(Code.MALFORMED, f"{where} lacks the field {missing[0]!r}")
    return cls(**{name: read(value[name], f"{where}.{name}") for name, _, read, _ in known if name in value})


@cache
def _codec(cls: type) -> tuple[tuple[str, Any, Any, bool], ...]:
    """By field: name, writer, reader, whether None is left out."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((f.name, *_field_codec(hints[f.name]), "left_out" in f.metadata) for f in fields(cls))


def _field_codec(hint: Any) -> tuple[Any, Any]:
    """Writer and reader for one annotation."""
    if hint in (Amount, SqrtPrice, Word):
        bits = hint.__metadata__[1]
        return str, lambda value, where: _read_amount(value, where, bits)
    if hint is Decimal:
        return lambda value: format(value, "f"), _read_decimal
    if get_origin(hint) in (Union, types.UnionType):  # X | None
        write, read = _field_codec(get_args(hint)[0])
        return (
            lambda value: None if value is None else write(value),
            lambda value, where: None if value is None else read(value, where),
        )
    if get_origin(hint) is tuple:  # tuple[X, ...]
        write, read = _field_codec(get_args(hint)[0])
        return lambda value: [write(v) for v in value], lambda value, where: _read_list(value, where, read)
    if is_dataclass(hint):
        return to_plain, lambda value, where: from_plain(hint, value, where)
    return (lambda value: value), lambda value, where: _read_scalar(hint, value, where)


def _read_amount(value: Any, where: str, bits: int) -> int:
    if not isinstance(value, str) or not _UINT.fullmatch(value) or int(value) >> bits:
        shown = repr(value[:50]) if isinstance(value, str) else _kind(value)
        raise ProtocolError(Code.AMOUNT_RANGE, f"{where} is {shown}, a decimal string 0 to 2**{bits} - 1 is expected")
    return int(value)


def _read_decimal(value: Any, where: str) -> Decimal:
    if not isinstance(value, str) or not DECIMAL_TEXT.fullmatch(value):
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, a decimal string like '0.5' is expected")
    return Decimal(value)


def _read_list(value: Any, where: str, read: Any) -> tuple:
    if not isinstance(value, list):
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, a list is expected")
    return tuple(read(item, f"{where}[{n}]") for n, item in enumerate(value))


def _read_scalar(cls: type, value: Any, where: str) -> Any:
    if type(value) is not cls:  # not isinstance: True is an int
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, {cls.__name__} is expected")
    if cls is str and len(value) > MAX_TEXT_CHARS:
        raise ProtocolError(Code.MALFORMED, f"{where} has {len(value)} characters, at most {MAX_TEXT_CHARS}")
    if cls is str and (found := _UNSHOWABLE.search(value)):
        raise ProtocolError(Code.MALFORMED, f"{where} has the character U+{ord(found[0]):04X}, which is not text")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "a boolean"}
    return names.get(type(value), "null")


ONLY_ON_A_CHAIN = ("sent", "gas")  # of an execution and of a line: left out where there is none, as before chains


def to_json(value):
    """Result dataclasses as plain JSON: numbers as decimal strings, nested dataclasses as objects."""
    if is_dataclass(value):
        members = {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
        return {name: member for name, member in members.items() if member is not None or name not in ONLY_ON_A_CHAIN}
    if isinstance(value, Mapping):
        return {name: to_json(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value if value is None or isinstance(value, bool) else str(value)
