"""The pages: jobs, leaderboards, rounds and miners as HTML with inline SVG and CSS; every number is the API's.

Pure: objects of `reader.py` and of the servers in, text out. The HTML is in `templates/`: whatever a template writes is
made inert as `figures.plain` does it, unless it is markup that this program made. Nothing is fetched from anywhere; the
one script asks the page again for itself and puts what changed in place.

    python validator.py report -o report.html       the same in one file
Read first: `figures.py`, `board.py`. Read next: `validator.py`, which serves them.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.shape import is_shown
from status import figures
from status.board import Showing, miner_name
from status.figures import Numbers, plain, shown, step

BOARD_ROWS = 10  # of a job's leaderboard; the round has all of them
REASON_ROWS = 100
REFRESH_SECONDS = 5
POINTS_PLACES = 6  # decimals of scores that are no amounts of a token
BASELINES = {"keep": "baseline keep", "hold": "baseline hold", "best": "best in hindsight"}

TEMPLATES = Path(__file__).parent / "templates"
STYLE = (TEMPLATES / "style.css").read_text(encoding="utf-8")
SCRIPT = (TEMPLATES / "script.js").read_text(encoding="utf-8").replace("REFRESH_SECONDS", str(REFRESH_SECONDS))
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='%230a5fc2'"
    " d='M1 13V9h3V5h4V2h3v5h4v6z'/%3E%3C/svg%3E"
)


def _source(code: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"


POLICY = (  # nothing from anywhere but this very style, this very script, and the page itself again
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}; connect-src 'self'; img-src data:;"
    " base-uri 'none'; form-action 'none'"
)


def query(**members: str | None) -> Markup:
    """`?name=value&...` of those that are there, for an attribute."""
    given = {name: value for name, value in members.items() if value}
    return Markup(html.escape("?" + urlencode(given, quote_via=quote, safe="") if given else ""))


def api(kind: str, key: str, asked: str = "") -> str:
    """What `data-at` begins with: the API's address of an object."""
    return f"/{kind}/{step(key)}{asked}#"


def mood(code: str | None) -> str:
    """How a code is coloured."""
    good = ("scored", "accepted", "executed", "weights_set", "weights_dry_run")
    return "good" if code in good else "bad" if code and ("void" in code or "rejected" in code) else ""


def clock(time: int, form: str = "%Y-%m-%d %H:%M") -> str:
    """Unix seconds, UTC."""
    return f"{datetime.fromtimestamp(time, UTC):{form}}"


_TEMPLATES = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    finalize=plain,  # of every value that a template writes
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_TEMPLATES.filters |= {"shown": shown, "step": step, "time": clock, "decimal": Decimal}
_TEMPLATES.globals |= {
    "api": api,
    "mood": mood,
    "query": query,
    "numbers": Numbers,
    "charts": figures,
    "board_rows": BOARD_ROWS,
    "reason_rows": REASON_ROWS,
    "refresh_seconds": REFRESH_SECONDS,
    "policy": Markup(html.escape(POLICY)),
    "icon": Markup(ICON),
    "style": Markup(STYLE),
    "script_text": Markup(SCRIPT),
}


class Pages:
    """Writes pages, with `names` of hotkeys that are known here; `links` where a server is behind them."""

    def __init__(
        self, names: Mapping[str, str], pair: Mapping[str, Any] | None, shows: Sequence[Showing], links: bool = True
    ):
        self.names, self.pair, self.shows, self.links = names, pair, shows, links

    def write(self, template: str, title: str, **shown_here: Any) -> str:
        """A page by one of the templates. One with links follows what happens; one without is a file to keep."""
        return _TEMPLATES.get_template(template).render(page=self, title=title, script=self.links, **shown_here)

    def short(self, hotkey: str) -> str:
        """A miner's short name."""
        return BASELINES.get(hotkey) or miner_name(hotkey, self.names)

    def name(self, hotkey: str) -> Markup:
        """A miner's short name, linked to its rounds; baselines as words."""
        return self._words(hotkey) if hotkey in BASELINES else self._link(query(miner=hotkey), self._words(hotkey))

    def chosen(self, round_id: str, hotkey: str) -> Markup:
        """The same, linked to its figures in a round."""
        return self._link(query(round=round_id, miner=hotkey), self._words(hotkey))

    def _words(self, hotkey: str) -> Markup:
        return plain(BASELINES[hotkey]) if hotkey in BASELINES else shown(self.short(hotkey))

    def round_link(self, row: Mapping[str, Any], text: str = "", miner: str = "") -> Markup:
        """A round, by its time or a text, linked, with `miner` to that book in it."""
        return self._link(query(round=row["round_id"], miner=miner), plain(text or clock(row["start_time"])))

    def _link(self, to: Markup, text: Markup) -> Markup:
        return Markup(f'<a href="/{to}">{text}</a>') if self.links else text

    def numbers_of(self, line: Mapping[str, Any] | None) -> Numbers:
        """How to write amounts of a line, or of nothing."""
        if line is None:
            return Numbers.of(self.pair)
        show = showing_of(self.shows, line)
        return Numbers.of(self.pair, found(line, show.SIZE)) if show else Numbers(places=POINTS_PLACES)

    def numbers(self, seen: Mapping[str, Any] | None) -> Numbers:
        """How to write amounts in a round: its baselines say how large they are, else its miners."""
        lines = [*seen["baselines"].values(), *(score["line"] for score in seen["scores"])] if seen else []
        return self.numbers_of(next(iter(lines), None))

    def ranked(self, seen: Mapping[str, Any] | None) -> dict[str, Any]:
        """A round's scores by hotkey, each with how to write its numbers."""
        if not seen:
            return {}
        num = self.numbers(seen).under(api("rounds", seen["round"]["round_id"]))
        places = ((score, num.under(f"{num.at}/scores/{n}")) for n, score in enumerate(seen["scores"]))
        return {score["hotkey"]: score | {"num": place} for score, place in places}

    def baselines(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """A round's baselines by name, each with how to write its numbers."""
        num, lines = self.numbers(seen).under(api("rounds", seen["round"]["round_id"])), seen["baselines"]
        names = [name for name in BASELINES if name in lines] + sorted(lines.keys() - BASELINES.keys())
        return {name: lines[name] | {"num": num.under(f"{num.at}/baselines/{step(name)}")} for name in names}

    def lines(self, seen: Mapping[str, Any]) -> dict[str, Any]:
        """The lines of both by name."""
        ranked = self.ranked(seen)
        own = {name: s["line"] | {"num": s["num"].under(f"{s['num'].at}/line")} for name, s in ranked.items()}
        return own | self.baselines(seen)

    def first(self, seen: Mapping[str, Any], lines: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the first `BOARD_ROWS` lines, and the baselines'."""
        names = {*[*lines][:BOARD_ROWS], *seen["baselines"]}
        return {name: line for name, line in lines.items() if name in names}

    def columns(self, table: str, lines: Iterable[Mapping[str, Any]]) -> Columns:
        """A table's columns for its lines' terms."""
        return Columns(self.shows, table, lines)

    def terms_of(self, scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """All lines of a miner's rounds: its own, or at least *keep*'s."""
        return [line for row in scores["rounds"] if (line := row["line"] or row["keep"])]

    def beside(self, scores: Mapping[str, Any]) -> list[str]:
        """Which baselines stand beside a miner's scores: all of them where nothing has been scored."""
        rounds = [row.get("baselines") or row for row in scores["rounds"]]
        return [name for name in BASELINES if any(row.get(name) for row in rounds)] or (
            [] if any(row["line"] for row in scores["rounds"]) else [*BASELINES]
        )

    def strips(self, scores: Mapping[str, Any]) -> list[tuple[str, list]]:
        """A miner's rounds with an excess over *keep*, oldest first, by job and type."""
        ranked: dict[str, list] = {}
        for row in reversed(scores["rounds"]):
            if row["excess"] is not None:
                ranked.setdefault(f"{row['job_id']}, {row['round_type']}", []).append(row)
        return sorted(ranked.items())

    def refused(self, seen: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
        """A round's asks that were not accepted, with their places among all."""
        return [(n, ask) for n, ask in enumerate(seen["asks"]) if ask["code"] != "accepted"]


class Column(NamedTuple):
    """A column of a table: the way to its values in a line's JSON, its head, and how to write them: one of
    `figures.FORMATS`, where `base` alone is an amount of token1, or `text`."""

    member: str
    label: str
    how: str
    argument: str = ""


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
