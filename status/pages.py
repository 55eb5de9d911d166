"""The page: jobs, leaderboards, rounds and miners as plain HTML with inline SVG and CSS; every number is the API's.

Pure: objects of `views.py` and `status.py` in, text out. Nothing is fetched from anywhere; the one script asks the page
again for itself and puts what changed in place.

    python validator.py report -o report.html       the same in one file
Read first: `figures.py`. Read next: `status.py`.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from status.board import miner_name
from status.figures import (
    BASELINES,
    STRIP,
    WIDTH,
    Numbers,
    apart_figure,
    inventory_figure,
    plain,
    price_figure,
    shown,
    step,
    value_figure,
)

BOARD_ROWS = 10  # of a job's leaderboard; the round has all of them
REASON_ROWS = 100
REFRESH_SECONDS = 5

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --soft: #f6f7f9; --line: #e2e5ea; --fg: #1b1f24; --mute: #5d6673;
  --accent: #0a5fc2; --good: #19703a; --bad: #b3261e; --warn: #8a5a00;
  --c0: #0a5fc2; --c1: #b45309; --c2: #0f766e; --c3: #9d2f8c; --c4: #5b6b00; --c5: #6941c6; --c6: #7a828e }
@media (prefers-color-scheme: dark) { :root { --bg: #101317; --soft: #171b21; --line: #2a3038; --fg: #d9dee5;
  --mute: #929caa; --accent: #6cb0ff; --good: #5fc983; --bad: #ff8a80; --warn: #e5b454;
  --c0: #6cb0ff; --c1: #f0a35e; --c2: #4fd0c0; --c3: #ea8fd8; --c4: #c3d154; --c5: #b9a1ff; --c6: #8b95a3 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--fg); font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", sans-serif; -webkit-text-size-adjust: 100% }
header, main, footer { max-width: 1320px; margin: 0 auto; padding: 0 16px }
header { padding-top: 14px }
h1 { font-size: 17px; margin: 0; display: inline-block; margin-right: 10px }
h2 { font-size: 15px; margin: 30px 0 6px; padding-top: 14px; border-top: 1px solid var(--line) }
h3 { font-size: 13px; margin: 0 0 6px; font-weight: 600 }
p { margin: 4px 0 }
a { color: var(--accent); text-decoration: none }
a:hover { text-decoration: underline }
.mute, figcaption, th, dt, footer { color: var(--mute) }
.good { color: var(--good) } .bad { color: var(--bad) } .warn { color: var(--warn) }
.n, td, dd { font-variant-numeric: tabular-nums } .n { white-space: nowrap }
bdi { overflow-wrap: anywhere }
code { font: 12px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere }
.tag { border: 1px solid var(--line); border-radius: 3px; padding: 0 5px; font-size: 12px; color: var(--mute);
  white-space: nowrap }
.tag.good, .tag.bad, .tag.warn { border-color: currentColor }
.tag.good { color: var(--good) } .tag.bad { color: var(--bad) } .tag.warn { color: var(--warn) }
.notice { background: var(--soft); border-left: 3px solid var(--warn); padding: 6px 10px; margin: 10px 0 }
dl { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); margin: 12px 0 0; gap: 0 18px;
  border-top: 1px solid var(--line) }
dl div { padding: 6px 0; min-width: 0; border-bottom: 1px solid var(--line) }
dt { font-size: 12px } dd { margin: 0; overflow-wrap: anywhere }
dl.loose { border: 0; margin: 2px 0 6px } dl.loose div { padding: 0; border: 0 }
.wide { overflow-x: auto; margin: 6px 0; border: 1px solid var(--line) }
table { border-collapse: collapse; width: 100%; white-space: nowrap; font-size: 13px }
th { font-weight: 500; font-size: 12px; text-align: right; padding: 5px 8px; border-bottom: 1px solid var(--line) }
td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--line) }
tr:last-child td { border-bottom: 0 }
th.l, td.l { text-align: left }
td.text { text-align: left }
td.text bdi { display: block; max-width: 90ch; overflow: hidden; text-overflow: ellipsis }
td.text a bdi { display: inline }
tr.base td { color: var(--mute); background: var(--soft) }
tr.on td { background: var(--soft); font-weight: 600 }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--bg); text-align: left }
tr.base td:first-child, tr.on td:first-child { background: var(--soft) }
.panels { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; margin: 10px 0 }
figure.strip { margin: 8px 0 } figure.strip h3 { display: inline } figure.strip svg { height: 70px }
figure { margin: 0; border: 1px solid var(--line); padding: 10px 12px; min-width: 0 }
figure table { font-size: 13px; white-space: normal; margin-top: 6px }
figure th, figure td { padding: 3px 6px; border: 0; position: static; vertical-align: top }
figure td:first-child, figure th:first-child { padding-left: 0; background: none }
figcaption { font-size: 12px; margin-top: 4px }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font-size: 9.5px; fill: var(--mute); paint-order: stroke; stroke: var(--bg); stroke-width: 3px }
.axis { stroke: var(--line); stroke-width: 1; vector-effect: non-scaling-stroke }
.path { fill: none; stroke: var(--fg); stroke-width: 1.6; vector-effect: non-scaling-stroke; stroke-linejoin: round }
.s { fill: none; stroke-width: 1.6; vector-effect: non-scaling-stroke; stroke-linejoin: round }
.thin { stroke-width: 1; opacity: .8 } .dash { stroke-dasharray: 5 4 }
.band { opacity: .16 }
.s0 { stroke: var(--c0) } .s1 { stroke: var(--c1) } .s2 { stroke: var(--c2) } .s3 { stroke: var(--c3) }
.s4 { stroke: var(--c4) } .s5 { stroke: var(--c5) } .s6 { stroke: var(--c6) } .s7 { stroke: var(--good) }
.f0 { fill: var(--c0) } .f1 { fill: var(--c1) } .f2 { fill: var(--c2) } .f3 { fill: var(--c3) }
.f4 { fill: var(--c4) } .f5 { fill: var(--c5) } .f6 { fill: var(--c6) } .f7 { fill: var(--good) }
.up { fill: var(--good) } .down { fill: var(--bad) } .sum { fill: var(--c0) }
.key { display: inline-block; width: 16px; height: 8px; margin-right: 6px } .key rect { stroke: none }
td.bar { width: 42%; min-width: 90px } td.bar svg { height: 14px }
tr.total td { border-top: 1px solid var(--line); font-weight: 600 }
details { margin: 8px 0 } summary { cursor: pointer; color: var(--accent) }
nav { margin: 8px 0 } nav a { margin-right: 14px }
footer { padding-top: 26px; padding-bottom: 40px; font-size: 12px }
body.stale main { opacity: .55 } body.stale .live::after { content: " not answering"; color: var(--bad) }
@media (max-width: 760px) { .panels { grid-template-columns: minmax(0, 1fr) } header, main, footer { padding: 0 10px }
  header { padding-top: 10px } td, th { padding-left: 7px; padding-right: 7px } svg text { font-size: 12px }
  dl { grid-template-columns: repeat(2, minmax(0, 1fr)) } figure { padding: 8px } }
"""

SCRIPT = f"""
"use strict";
const open = () => [...document.querySelectorAll("details[open]")].map(d => d.id);
setInterval(async () => {{
  if (document.hidden) return;
  try {{
    const answer = await fetch(location.href, {{ cache: "no-store", signal: AbortSignal.timeout(4000) }});
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html"), was = open();
    for (const name of ["header", "main"]) {{
      const old = document.querySelector(name), young = next.querySelector(name);
      if (old.innerHTML === young.innerHTML) continue;
      const left = [...old.querySelectorAll(".wide")].map(w => w.scrollLeft);
      old.replaceWith(young);
      young.querySelectorAll(".wide").forEach((w, n) => {{ w.scrollLeft = left[n] || 0; }});
    }}
    for (const id of was) if (id && document.getElementById(id)) document.getElementById(id).open = true;
    document.body.classList.remove("stale");
  }} catch {{ document.body.classList.add("stale"); }}
}}, {REFRESH_SECONDS * 1000});
"""

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


def _tag(code: str | None) -> str:
    good = ("scored", "accepted", "executed", "weights_set", "weights_dry_run")
    mood = "good" if code in good else "bad" if code and ("void" in code or "rejected" in code) else ""
    return f'<span class="tag {mood}">{shown(code or "running")}</span>'


def round_url(round_id: str, miner: str = "") -> str:
    """The page's address of a round, and of one book in it."""
    return f"/?round={quote(round_id, safe='')}" + (f"&miner={quote(miner, safe='')}" if miner else "")


def miner_url(hotkey: str, before: str = "") -> str:
    """The page's address of a miner's rounds."""
    return f"/?miner={quote(hotkey, safe='')}" + (f"&before={quote(before, safe='')}" if before else "")


def _api(kind: str, key: str, query: str = "") -> str:
    return f"/{kind}/{quote(key, safe='')}{query}#"


def _before(round_id: str | None) -> str:
    return "" if round_id is None else f"?before={quote(round_id, safe='')}"


def _table(head: Sequence[str], rows: Iterable[str], left: int = 1) -> str:
    cells = "".join(f'<th class="l">{name}</th>' if n < left else f"<th>{name}</th>" for n, name in enumerate(head))
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _facts(facts: Iterable[tuple[str, str]], loose: bool = False) -> str:
    inside = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f"<dl{' class=loose' if loose else ''}>{inside}</dl>"


def document(title: str, header: str, main: str, script: bool) -> str:
    """A whole page. Without `script` it is one that is kept: it says itself what a server's header would."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">'
    again = f'<noscript><meta http-equiv="refresh" content="{6 * REFRESH_SECONDS}"></noscript>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"{'' if script else policy}{again if script else ''}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="{ICON}"><style>{STYLE}</style></head><body>'
        f"<header>{header}</header><main>{main}</main>"
        "<footer>Times are UTC. Numbers are rounded; point at one for all of its digits.</footer>"
        f"{f'<script>{SCRIPT}</script>' if script else ''}</body></html>"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Parts of pages


class Pages:
    """Writes pages for one reader.

    Args:
        names: what to call hotkeys that are known here.
        pair: the pool's tokens, None if unknown.
        links: whether there is a server behind the page that the links lead to.
    """

    def __init__(self, names: Mapping[str, str], pair: Mapping[str, Any] | None, links: bool = True):
        self.names, self.pair, self.links = names, pair, links

    def name(self, hotkey: str) -> str:
        """A miner's short name, linked to its rounds; baselines as words."""
        if hotkey in BASELINES:
            return BASELINES[hotkey]
        name = shown(miner_name(hotkey, self.names))
        return f'<a href="{html.escape(miner_url(hotkey))}">{name}</a>' if self.links else name

    def chosen(self, round_id: str, hotkey: str) -> str:
        """The same, linked to its panels in a round."""
        text = BASELINES.get(hotkey) or shown(miner_name(hotkey, self.names))
        return f'<a href="{html.escape(round_url(round_id, hotkey))}">{text}</a>' if self.links else text

    def numbers(self, seen: Mapping[str, Any] | None = None) -> Numbers:
        """How to write amounts; `seen`, a round, says how large they are."""
        keep = (seen or {}).get("baselines", {}).get("keep")
        return Numbers.of(self.pair, keep["terms"]["initial_value"] if keep else None)

    # -- a validator

    def header(self, status: Mapping[str, Any]) -> str:
        """Whose this is, and whether it is well."""
        health, home = status["health"], '<a href="/">' if self.links else "<a>"
        state = (
            '<span class="tag good live">healthy</span>' if health["ok"] else '<span class="tag bad live">behind</span>'
        )
        problems = "".join(f'<p class="notice">{shown(problem)}</p>' for problem in health["problems"])
        return f"<h1>{home}ALM validator</a></h1>{state} {shown(status['market'])}{problems}"

    def facts(self, status: Mapping[str, Any]) -> str:
        """The validator's own figures."""
        num, chain, weights, data = Numbers("/status#"), status["chain"], status["weights"], status["database"]
        own = [f"uid {num('chain/uid', chain['uid'])}" if chain["uid"] is not None else "not registered"]
        own.append("permit" if chain["permit"] else "no permit")
        set_at = (
            f"{_tag(weights['code'])} at block {num('weights/block', weights['block'])}"
            if weights
            else "none tried yet"
        )
        due = f"block {num('weights/next_block', weights['next_block'])}" if weights else "after the first scored round"
        vector = ""
        if weights:
            vector = ", ".join(
                f"{'burn' if key == 'burn' else self.name(key)}"
                f" {num(f'weights/vector/{step(key)}', part, 'percent', '1')}"
                for key, part in weights["vector"].items()
                if Decimal(part)
            )
            if weights["name"]:
                vector += f"; {shown(weights['name'])}: {shown(weights['detail'])}"
        ages = [
            num(f"{name}/{member}", status[name][member], "age")
            for name, member in (("chain", "block_age_seconds"), ("head", "age_seconds"))
        ]
        counts = ", ".join(
            f"{num(f'rounds/{step(what)}', count)} {shown(what)}" for what, count in status["rounds"].items()
        )
        oldest = data["oldest_evidence"]
        evidence = (
            f"from {num('database/oldest_evidence_time', oldest.rsplit(':', 1)[1], 'time')}" if oldest else "none yet"
        )
        return _facts(
            (
                ("network, netuid", f"{shown(status['network'])}, {num('netuid', status['netuid'])}"),
                ("hotkey", f"<code>{shown(status['hotkey'])}</code>"),
                (
                    "on the chain",
                    f"{', '.join(own)}, stake {num('chain/stake_rao', chain['stake_rao'], 'amount', '9,2')}",
                ),
                ("chain block, its age", f"{num('chain/block', chain['block'])}, {ages[0]}"),
                ("market, its head's age", f"{num('head/time', status['head']['time'], 'time')}, {ages[1]}"),
                ("last weights", set_at),
                ("weights", vector or "none yet"),
                ("next weights", due),
                (
                    "databases",
                    f"jobs {num('database/bytes/jobs', data['bytes']['jobs'], 'bytes')}, events"
                    f" {num('database/bytes/events', data['bytes']['events'], 'bytes')}",
                ),
                ("evidence kept", f"{evidence}; {num('database/pruned', data['pruned'])} rounds pruned"),
                ("rounds", counts or "none yet"),
                ("version", f"<code>{shown(status['version'])}</code>"),
            )
        )

    def board(
        self,
        job: Mapping[str, Any],
        standings: Sequence[Mapping],
        seen: Mapping[str, Any] | None,
        whole: bool = False,
    ) -> str:
        """A job and its miners: reputation, and the newest evaluation beside it."""
        num, rules = self.numbers(seen), job["settings"]
        flags = [f"target {rules['target']}", f"rounds of {job['round_seconds'] // 60} min"]
        flags += ["live" if job["live"] else "no live rounds"] + ([] if job["active"] else ["switched off"])
        last, own = {}, None
        if seen:
            own = self.numbers(seen)
            last = {score["hotkey"]: (k, score) for k, score in enumerate(seen["scores"])}
            keep = seen["baselines"].get("keep")
        rows = []
        kind = f"combined_{rules['reputation']}"
        for place, line in enumerate(standings if whole else standings[:BOARD_ROWS]):
            at = num.under(f"{_api('jobs', job['job_id'])}/standings/{place}")
            cells = [self.name(line["hotkey"]), at.base(kind, line[kind], True)]
            k, score = last.get(line["hotkey"], (None, None))
            if score:
                scored = own.under(f"{_api('rounds', seen['round']['round_id'])}/scores/{k}")
                cells += [scored("rank", score["rank"]), scored.base("score", score["score"])]
                cells += [scored.base("line/terms/fees", score["line"]["terms"]["fees"])]
                cells += [scored("line/terms/in_range", score["line"]["terms"]["in_range"], "percent", "1")]
            else:
                cells += ["", "", "", ""]
            cells += [at("evaluations", line["evaluations"]), at("lives", line["lives"]), at("days", line["days"])]
            rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        more = len(standings) - len(rows)
        text = f"<h2>{shown(job['job_id'])} <span class=mute>{shown(', '.join(flags))}</span></h2>"
        if seen:
            text += f"<p class=mute>Newest evaluation: {self.round_link(seen['round'])}"
            if keep and not more < 0:
                base = own.under(f"{_api('rounds', seen['round']['round_id'])}/baselines")
                parts = [
                    f"{BASELINES[b]} {base.base(f'{b}/score', seen['baselines'][b]['score'])}"
                    for b in BASELINES
                    if b in seen["baselines"]
                ]
                text += "; " + ", ".join(parts)
            text += f", in {shown(num.symbol1 or 'base units')}.</p>"
        head = ("miner", f"reputation ({rules['reputation']})", "rank", "score", "fees", "in range")
        head += ("evaluations", "live", "days of 14")
        text += _table(head, rows) if rows else "<p class=mute>No miner has been ranked yet.</p>"
        return text + (f"<p class=mute>and {more} more, in the round and in /jobs</p>" if more > 0 else "")

    def round_link(self, row: Mapping[str, Any], text: str = "") -> str:
        """A round, by its time or a text, linked."""
        text = text or f"{datetime.fromtimestamp(row['start_time'], UTC):%Y-%m-%d %H:%M}"
        return f'<a href="{html.escape(round_url(row["round_id"]))}">{text}</a>' if self.links else text

    def recent(self, rounds: Mapping[str, Any], before: str | None = None) -> str:
        """The list of rounds, from the newest or from those before one."""
        api = f"/rounds{_before(before)}#/rounds"
        rows = []
        for n, row in enumerate(rounds["rounds"]):
            winner = self.name(row["winner"]) if row["winner"] else shown(row["detail"])
            cells = [self.round_link(row), shown(row["job_id"]), row["round_type"], _tag(row["code"])]
            asked = Numbers(f"{api}/{n}")("asked", row["asked"])
            inside = "".join(f"<td class=l>{cell}</td>" for cell in cells)
            rows.append(f'<tr>{inside}<td class="text">{winner}</td><td>{asked}</td></tr>')
        head = ("start", "job", "type", "result", "winner, or why there is none", "asked")
        more = f'<nav><a href="/?before={html.escape(quote(rounds["next"] or "", safe=""))}">older rounds</a></nav>'
        return f"<h2>Rounds</h2>{_table(head, rows, 5)}{more if rounds['next'] and self.links else ''}"

    # -- a round

    def round(self, seen: Mapping[str, Any], panels: Mapping[str, Any] | str, whole: bool = True) -> str:
        """A round with the four figures of one book, its table, and why miners are missing.

        Args:
            seen: `views.Reader.round`.
            panels: what is drawn, or why nothing is.
            whole: all books and reasons; else the first `BOARD_ROWS` books, and no reasons.
        """
        row, api = seen["round"], _api("rounds", seen["round"]["round_id"])
        num = self.numbers(seen).under(api)
        lines = self._lines(seen, num)
        begin, end = (datetime.fromtimestamp(row[name], UTC) for name in ("start_time", "end_time"))
        facts = [
            ("target", shown(row["settings"]["target"])),
            (
                "blocks",
                f"{num('round/opening_block', row['opening_block'])} to {num('round/close_block', row['close_block'])}",
            ),
            ("swaps", num("round/swaps", row["swaps"])),
            ("asked", num("round/asked", row["asked"])),
        ]
        text = (
            f"<h2>{shown(row['job_id'])}, {row['round_type']}"
            f" {begin:%Y-%m-%d %H:%M} to {end:%H:%M} {_tag(row['code'])}</h2>"
        )
        text += _facts(facts, loose=True) + (f"<p>{shown(row['detail'])}</p>" if row["detail"] else "")
        if isinstance(panels, str):
            text += f'<p class="notice">No panels: {shown(panels)}</p>'
        else:
            text += self.panels(seen, panels, lines)
        if not whole:
            first = [*lines][:BOARD_ROWS]
            lines = {name: line for name, line in lines.items() if name in first or name in BASELINES}
        if lines:
            text += self._scores(seen, lines, panels["miner"] if isinstance(panels, Mapping) else "")
        if len(seen["scores"]) > len(lines):
            text += f"<p>{self.round_link(row, 'all books of this round')}</p>"
        text += self._executions(seen)
        link = f'<nav><a href="{html.escape(api[:-1])}">all evidence as JSON</a></nav>' if self.links else ""
        return text + (self._reasons(seen) if whole else "") + link

    def _lines(self, seen: Mapping[str, Any], num: Numbers) -> dict[str, Any]:
        found = {
            score["hotkey"]: score["line"] | {"num": num.under(f"{num.at}/scores/{n}/line")}
            for n, score in enumerate(seen["scores"])
        }
        return found | {
            name: line | {"num": num.under(f"{num.at}/baselines/{name}")}
            for name in BASELINES
            if (line := seen["baselines"].get(name))
        }

    def panels(self, seen: Mapping[str, Any], panels: Mapping[str, Any], lines: Mapping[str, Any] | None = None) -> str:
        """The four panels of one book."""
        round_id = seen["round"]["round_id"]
        lines = lines or self._lines(seen, self.numbers(seen).under(_api("rounds", round_id)))
        num = self.numbers(seen).under(f"/panels/{quote(round_id, safe='')}?miner={quote(panels['miner'], safe='')}#")
        figures = (
            price_figure(panels, lines, num, lambda name: self.chosen(round_id, name)),
            value_figure(panels, num),
            apart_figure(panels, num),
            inventory_figure(panels, num),
        )
        live, other = "", " Another book's name leads to its own figures." if self.links else ""
        if seen["round"]["round_type"] == "live":
            live = (
                " A live round: the score is from what the vault really held; the curves are simulated, with the"
                " decisions that were carried out."
            )
        return (
            f"<p>Of {self.name(panels['miner'])}.<span class=mute>{other}{live}</span></p>"
            f'<div class="panels">{"".join(figures)}</div>'
        )

    def _scores(self, seen: Mapping[str, Any], lines: Mapping[str, Any], chosen: str) -> str:
        unit = shown(self.numbers(seen).symbol1 or "base units")
        rows = []
        for name, line in lines.items():
            terms, num = line["terms"], line["num"]
            copied = f" <span class=mute>same book as {self.name(line['copy_of'])}</span>" if line["copy_of"] else ""
            cells = [
                f"{self.chosen(seen['round']['round_id'], name)}{copied}",
                "" if name in BASELINES else num("rank", line["rank"]),
                num.base("score", line["score"], True),
                *(num.base(f"terms/{term}", terms[term]) for term in ("fees", "drift", "divergence", "costs")),
                num("terms/loss", terms["loss"], "percent", "3"),
                num("terms/penalty", terms["penalty"], "plain", "4"),
                num("terms/in_range", terms["in_range"], "percent", "1"),
                num("outcome/changes", line["outcome"]["changes"]),
            ]
            kind = " class=on" if name == chosen else " class=base" if name in BASELINES else ""
            rows.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        head = (
            "book",
            "rank",
            "score",
            "fees",
            "drift",
            "divergence",
            "costs",
            "inventory loss",
            "penalty",
            "in range",
        )
        return f"<p class=mute>All books, in {unit}</p>{_table((*head, 'changes'), rows)}"

    def _executions(self, seen: Mapping[str, Any]) -> str:
        """What became of a live round's decisions, with the vault's idle tokens before and after each."""
        rows, api = [], _api("rounds", seen["round"]["round_id"])
        for n, item in enumerate(seen["executions"]):
            num, done = self.numbers(seen).under(f"{api}/executions/{n}"), item["execution"]
            sent = done.get("sent") or {"code": "executed"}  # the model says nothing of sending

            def amounts(name: str, num: Numbers = num, done: Mapping[str, Any] = done) -> str:
                (amount0, amount1), at = done[name], f"execution/{name}"
                return f"{num.token0(f'{at}/0', amount0)} {num.worth(f'{at}/1', amount1)}"

            cells = [
                num("block", item["block"]),
                num("execution/block", done["block"]),
                num("execution/sent/gas_wei", sent.get("gas_wei"), "amount", "18,6"),
                amounts("before"),
                amounts("after"),
            ]
            said = " ".join(shown(sent[name]) for name in ("transaction", "detail") if sent.get(name))
            rows.append(
                f'<tr><td class=l>{_tag(sent["code"])}</td><td class="text">{said}</td>'
                f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
            )
        pair = f"{shown(self.pair['token0']['symbol'])} and {shown(self.pair['token1']['symbol'])}" if self.pair else ""
        head = (
            "decision",
            "transaction, or why there is none",
            "acts from",
            "in block",
            "gas, native coin",
            "idle before",
        )
        return f"<h3>Live decisions, {pair}</h3>{_table((*head, 'idle after'), rows, 2)}" if rows else ""

    def _reasons(self, seen: Mapping[str, Any]) -> str:
        api = _api("rounds", seen["round"]["round_id"])
        rows = []
        for n, ask in enumerate(seen["asks"]):
            if ask["code"] == "accepted":
                continue
            if len(rows) == REASON_ROWS:
                rows.append('<tr><td colspan="4">and more: see the evidence</td></tr>')
                break
            num = Numbers(f"{api}/asks/{n}")
            rows.append(
                f"<tr><td>{self.name(ask['hotkey'])}</td><td>{num('due_block', ask['due_block'])}</td>"
                f'<td class=l>{_tag(ask["code"])}</td><td class="text">{shown(ask["detail"])}</td></tr>'
            )
        head = ("miner", "asked at block", "code", "detail")
        return f"<h3>Answers that were not accepted</h3>{_table(head, rows)}" if rows else ""

    # -- a miner

    def miner(
        self,
        scores: Mapping[str, Any],
        says: Mapping[str, str] | None,
        standings: Sequence[tuple],
        before: str | None = None,
    ) -> str:
        """A miner's rounds; `standings` are (job, place, its line there)."""
        hotkey, api = scores["hotkey"], _api("scores", scores["hotkey"], _before(before))
        text = f"<h2>{shown(miner_name(hotkey, self.names))}</h2><p><code>{shown(hotkey)}</code></p>"
        if says:
            text += f"<p class=mute>It calls itself {shown(says['model_info'])}, version {shown(says['version'])}.</p>"
        keep = next((row["keep"] for row in scores["rounds"] if row["keep"]), None)
        rows, sizes = [], self.numbers({"baselines": {"keep": keep}})
        for job, place, line in standings:
            num = sizes.under(f"{_api('jobs', job['job_id'])}/standings/{place}")
            cells = [num.base(f"combined_{kind}", line[f"combined_{kind}"], True) for kind in ("excess", "seed")]
            cells += [num(name, line[name]) for name in ("evaluations", "lives", "days")]
            rows.append(
                f"<tr><td>{shown(job['job_id'])}, place {place + 1}</td>{''.join(f'<td>{c}</td>' for c in cells)}</tr>"
            )
        head = ("job", "reputation (excess)", "reputation (seed)", "evaluations", "live", "days of 14")
        text += _table(head, rows) if rows else "<p class=mute>It has not been ranked yet.</p>"
        return text + self._excesses(scores) + self._history(scores, api)

    def _excesses(self, scores: Mapping[str, Any]) -> str:
        ranked: dict[str, list] = {}
        for row in reversed(scores["rounds"]):
            if row["line"]:
                ranked.setdefault(f"{row['job_id']}, {row['round_type']}", []).append(row)
        return "".join(self._strip(name, rows) for name, rows in sorted(ranked.items()))

    def _strip(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        values = [float(row["excess"]) for row in rows]
        most = max(map(abs, values)) or 1.0
        middle, step = STRIP / 2, 2 * WIDTH / max(len(values), 24)
        bars = [f'<line class="axis" x1="0" x2="{2 * WIDTH}" y1="{middle}" y2="{middle}"/>']
        for n, (row, value) in enumerate(zip(rows, values, strict=True)):
            tall = abs(value) / most * (middle - 2)
            bars.append(
                f'<rect class="{"up" if value >= 0 else "down"}" x="{n * step + 1:.1f}"'
                f' y="{middle - tall if value >= 0 else middle:.1f}" width="{max(step - 2, 1):.1f}"'
                f' height="{max(tall, 0.6):.1f}"><title>{plain(row["round_id"])}</title></rect>'
            )
        svg = f'<svg viewBox="0 0 {2 * WIDTH} {STRIP}" preserveAspectRatio="none" role="img">{"".join(bars)}</svg>'
        return (
            f"<figure class=strip><h3>{shown(name)}</h3> <span class=mute>over keep, oldest first</span>{svg}</figure>"
        )

    def _history(self, scores: Mapping[str, Any], api: str) -> str:
        num, rows = self.numbers(), []
        for n, row in enumerate(scores["rounds"]):
            at = f"{api}/rounds/{n}"
            keep = row["keep"]
            num = Numbers.of(self.pair, keep["terms"]["initial_value"] if keep else None).under(at)
            url = html.escape(round_url(row["round_id"], scores["hotkey"] if row["line"] else ""))
            when = f"{datetime.fromtimestamp(row['start_time'], UTC):%Y-%m-%d %H:%M}"
            cells = [
                f'<a href="{url}">{when}</a>' if self.links else when,
                f"{shown(row['job_id'])}, {row['round_type']}",
            ]
            if row["line"]:
                terms = row["line"]["terms"]
                cells += [
                    f"{num('rank', row['rank'])}",
                    num.base("line/score", row["line"]["score"]),
                    num.base("excess", row["excess"], True),
                    *(num.base(f"line/terms/{t}", terms[t]) for t in ("fees", "drift", "divergence", "costs")),
                    num("line/terms/loss", terms["loss"], "percent", "3"),
                    num("line/terms/penalty", terms["penalty"], "plain", "4"),
                    num("line/terms/in_range", terms["in_range"], "percent", "1"),
                ]
            else:
                cells += [_tag(row["code"]), *[""] * 9]
            cells += [num.base(f"{name}/score", row[name]["score"]) if row.get(name) else "" for name in BASELINES]
            inside = "".join(f"<td{' class=l' if n == 1 else ''}>{cell}</td>" for n, cell in enumerate(cells))
            rows.append(f"<tr>{inside}</tr>")
            for ask in row["asks"]:
                if ask["code"] != "accepted":
                    rows.append(
                        f"<tr><td></td><td class=l>{_tag(ask['code'])}</td>"
                        f'<td colspan="13" class="text">{shown(ask["detail"])}</td></tr>'
                    )
        head = ("round", "job", "rank", "score", "over keep", "fees", "drift", "divergence", "costs", "loss")
        head += ("penalty", "in range", "keep", "hold", "best")
        more = f'<nav><a href="{html.escape(miner_url(scores["hotkey"], scores["next"] or ""))}">older rounds</a></nav>'
        unit = shown(num.symbol1 or "base units")
        looked = Numbers(api)("looked_at", scores["looked_at"])
        text = f"<h3>Rounds</h3><p class=mute>In {unit}; of {looked} rounds those in which it was asked.</p>"
        return text + _table(head, rows, 2) + (more if scores["next"] and self.links else "")


# ---------------------------------------------------------------------------------------------------------------------
# A miner's own page


def miner_process(status: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """What a miner knows of itself: what it was asked and answered, and what validators signed about its scores."""
    num, health = Numbers("/status#"), status["health"]
    state = '<span class="tag good live">healthy</span>' if health["ok"] else '<span class="tag bad live">behind</span>'
    problems = "".join(f'<p class="notice">{shown(problem)}</p>' for problem in health["problems"])
    header = f"<h1>ALM miner {shown(status['name'])}</h1>{state}{problems}"
    counts = ", ".join(
        f"{num(f'answers/{step(what)}', count)} {shown(what)}" for what, count in status["answers"].items()
    )
    last = status["asks"][0] if status["asks"] else None
    read = num("callers_age_seconds", status["callers_age_seconds"], "age")
    facts = _facts(
        (
            ("network, netuid", f"{shown(status['network'])}, {num('netuid', status['netuid'])}"),
            ("hotkey, uid", f"<code>{shown(status['hotkey'])}</code>, {num('uid', status['uid'])}"),
            ("strategy", shown(status["strategy"])),
            ("listens at", f"<code>{shown(status['address'])}</code>"),
            ("callers known, read", f"{num('callers', status['callers'])}, {read} ago"),
            (
                "last asked",
                f"{num('asks/0/age_seconds', last['age_seconds'], 'age')} ago" if last else "nobody has asked yet",
            ),
            ("answers", counts or "none yet"),
            ("last failure of the strategy", shown(status["last_error"] or "none")),
        )
    )
    rows = []
    for n, ask in enumerate(status["asks"]):
        at = num.under(f"/status#/asks/{n}")
        cells = [shown(ask["round_id"]), at("block", ask["block"]), at("age_seconds", ask["age_seconds"], "age")]
        cells += [
            at("milliseconds", ask["milliseconds"], "plain", "1"),
            shown(ask["answer"]),
            shown(miner_name(ask["caller"], {})),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = ("round", "block", "age", "ms", "answer", "asked by")
    asks = _table(head, rows) if rows else "<p class=mute>Nobody has asked yet.</p>"
    return document("ALM miner", header, f"{facts}{_signed(status, scores)}<h2>Newest asks</h2>{asks}", script=True)


def _signed(status: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    line = next((row["line"] for row in scores["rounds"] if row["line"]), None)
    rows, sizes = [], Numbers.of(status["pair"], line["terms"]["initial_value"] if line else None)
    for n, row in enumerate(scores["rounds"]):
        num = sizes.under(f"/scores#/rounds/{n}")
        cells = [shown(row["round_id"]), _tag(row["code"])]
        if line := row["line"]:
            cells += [
                num("rank", row["rank"]),
                num("ranked", row["ranked"]),
                num.base("line/score", line["score"], True),
            ]
            cells += [num.base(f"line/terms/{t}", line["terms"][t]) for t in ("fees", "drift", "divergence", "costs")]
            cells.append(num("line/terms/in_range", line["terms"]["in_range"], "percent", "1"))
            cells += [num.base(f"baselines/{b}", row["baselines"][b]) for b in BASELINES]
        cells += [""] * (13 - len(cells)) + [shown(miner_name(row["validator"], {}))]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = ("round", "result", "rank", "of", "score", "fees", "drift", "divergence", "costs", "in range", *BASELINES)
    unit = shown(sizes.symbol1 or "base units")
    text = f"<h2>Newest scores, as validators signed them <span class=mute>in {unit}</span></h2>"
    return text + (_table((*head, "signed by"), rows) if rows else "<p class=mute>No receipt has come yet.</p>")
