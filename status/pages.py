"""The pages: jobs, leaderboards, rounds and miners as HTML with inline SVG and CSS; every number is the API's.

Pure: objects of `reader.py` and of the servers in, text out. The HTML is in `templates/`: whatever a template writes is
made inert as `figures.plain` does it, unless it is markup that this program made. Nothing is fetched from anywhere; the
one script asks the page again for itself and puts what changed in place.

    python validator.py report -o report.html       the same in one file
Read first: `figures.py`, `columns.py`. Read next: `validator.py`, which serves them.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from status import figures
from status.board import miner_name
from status.columns import Columns, Showing, found, showing_of
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
    """Writes pages for one reader.

    Args:
        names: what to call hotkeys that are known here.
        pair: the pool's tokens, None if unknown.
        shows: what mechanisms declare of their lines.
        links: whether a server is behind the page.
    """

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
        """How to write amounts of a line; None for what has none."""
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
