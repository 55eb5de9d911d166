"""What a mechanism says of its rounds, and which columns a page's table has for the terms of its lines.

A mechanism may declare columns (`liquidity/showing.py` is one that does); of any other, a table shows every scalar term
that its lines have. Pure. Read first: `figures.py`. Read next: `pages.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

from markupsafe import Markup

from audit.shape import is_shown
from protocol import Job, Pair
from status.figures import Numbers, shown, step


class Column(NamedTuple):
    """A column of a table: the way to its values in a line's JSON, its head, and how to write them.

    `how` is one of `figures.FORMATS`, `base` alone an amount of token1; `text` is words.
    """

    member: str
    label: str
    how: str
    argument: str = ""


class Showing:
    """What a mechanism says of its rounds, for leaderboards in text, for pages in two tables; here of one that says
    nothing: the score, and every term as it is. A mechanism's own has the same members (`liquidity/showing.py`).

    Attributes:
        SIZE: the way to an amount of token1 from which all others get their digits; lines that have it are in token1.
        TABLES: columns of each table: `round` (a round's books), `job`, `miner` (its rounds), `receipts`.
    """

    SIZE: str = ""
    TABLES: Mapping[str, Sequence[tuple[str, ...]]] = {}

    def columns(self) -> Sequence[str]:
        """Heads of what `row` gives."""
        return ("terms",)

    def row(self, line: Any, pair: Pair) -> Sequence[str]:
        """A line's terms as texts."""
        return (", ".join(f"{name} {value}" for name, value in line.terms.items()),)

    def amount(self, value: Decimal, pair: Pair) -> str:
        """A score or a reputation as text."""
        return f"{round(value, 4) + 0:+,}"

    def unit(self, pair: Pair) -> str:
        """What amounts are in."""
        return "points"

    def about(self, job: Job, result: Any) -> Sequence[str]:
        """What a round was about, and what happened in it; either may be empty."""
        return "", ""

    def remarks(self, result: Any) -> Sequence[str]:
        """Lines below a round's table."""
        return ()


def found(line: Any, member: str) -> Any:
    """What a line has at the end of a way through its JSON, None if it leads nowhere."""
    for key in _steps(member):
        line = line.get(key) if isinstance(line, dict) else None
    return line


@lru_cache(1024)  # a page asks for the same few thousands of times
def _steps(member: str) -> list[str]:
    return [unquote(key) for key in member.split("/")]


def showing_of(shows: Iterable[Showing], line: Mapping[str, Any]) -> Showing | None:
    """The first declaration all of whose columns the line has."""
    return next((one for one in shows if all(found(line, way) is not None for way, *_ in one.TABLES["round"])), None)


class Columns:
    """One table's columns.

    `shows` is what mechanisms declare; several mechanisms' lines may stand in one table. Without any line, the columns
    are the first declaration's. `labels` are the heads, `blank` as many empty cells.
    """

    def __init__(self, shows: Sequence[Showing], table: str, lines: Iterable[Mapping[str, Any]]):
        self._shows, self._table = shows, table
        kinds = [self._own(line) for line in lines] or [_by_member(show.TABLES[table]) for show in shows[:1]]
        heads = {column.member: column.label for kind in kinds for column in reversed(kind.values())}
        self._members = [*dict.fromkeys(member for kind in kinds for member in kind)]
        self.labels = [heads[member] for member in self._members]
        self.blank = [""] * len(self.labels)

    def cells(self, num: Numbers, line: Mapping[str, Any], at: str = "") -> list[Markup]:
        """A line's cells; `at` leads to the line from what `num` is under."""
        own = self._own(line)
        return [_cell(num, at, own[member], line) if member in own else Markup() for member in self._members]

    def _own(self, line: Mapping[str, Any]) -> dict[str, Column]:
        if show := showing_of(self._shows, line):
            return _by_member(show.TABLES[self._table])
        terms = line.get("terms") or {}
        return _by_member(
            (f"terms/{step(name)}", name.replace("_", " "), "price" if _is_number(value) else "text")
            for name, value in terms.items()
            if isinstance(value, str | int)
        )


def _by_member(declared: Iterable[tuple[str, ...]]) -> dict[str, Column]:
    return {column[0]: Column(*column) for column in declared}


def _is_number(value: str | int) -> bool:
    return not isinstance(value, bool) and is_shown(value)


def _cell(num: Numbers, at: str, column: Column, line: Mapping[str, Any]) -> Markup:
    value = found(line, column.member)
    if column.how == "text":
        return shown(value)
    if column.how == "base":
        return num.base(at + column.member, value)
    return num(at + column.member, value, column.how, column.argument)
