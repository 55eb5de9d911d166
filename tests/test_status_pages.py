"""Pages of rounds that are of no liquidity: whatever terms a mechanism's lines have is shown, and nothing is drawn.

Run with `python -m pytest tests/test_status_pages.py`. Read first: `test_status.py`, whose subnet this changes.
"""

from __future__ import annotations

import asyncio
import html
import re
import zlib
from types import SimpleNamespace

import pytest
from jinja2 import UndefinedError
from subnets import a_job, hotkey_of, model, play_subnet, stored_rounds, write
from test_status import KNOWN_TAGS, MARKUP, NAMES, Tags, compare, copied, mover, reading, watching

from liquidity import showing
from spine.mechanism import load
from status import reporting
from status.board import leaderboard
from status.figures import Numbers
from status.pages import Columns, Pages, found
from wire.codec import canonical

NUMBER = re.compile(
    r'<t?span class="n[^"]*"(?: title="([^"]*)")? data-at="([^"]*)" data-as="(\w+)"(?: data-arg="([^"]*)")?>([^<]*)<'
)
TERMS = {"yield": "0.051234567891", "pools/used": 3, "in favour": True, "says": MARKUP, "parts": ["1"], "loss": "-2E-9"}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Two rounds; the newest one becomes one of another mechanism: other terms, no outcome, no baselines, no market."""
    miners = {"keep": lambda query: query.current_positions, "mover": mover}
    before = play_subnet(tmp_path_factory.mktemp("played"), miners, (a_job("job"),), rounds=2)
    subnet = copied(before, tmp_path_factory.mktemp("changed"))
    newest = stored_rounds(subnet.path)[-1]
    for name, score in (("keep", "0.25"), ("mover", "12.5")):
        line = {"name": hotkey_of(name), "score": score, "rank": 1 + (name == "keep"), "copy_of": "", "terms": TERMS}
        where = canonical(line).decode(), score, line["rank"], newest, hotkey_of(name)
        write(subnet.path, "UPDATE scores SET line = ?, score = ?, rank = ? WHERE round_id = ? AND hotkey = ?", *where)
    write(
        subnet.path,
        "UPDATE rounds SET summary = '{}', settings = '{\"guess\":7}', vault_state = NULL, mechanism = 'guessing'"
        " WHERE round_id = ?",
        newest,
    )
    write(subnet.path, "UPDATE jobs SET settings = '{\"guess\":7}', mechanism = 'guessing'")
    asked = zlib.compress(canonical({"guess": "what?"}))
    write(subnet.path, "UPDATE predictions SET query = ?, answer = x'00' WHERE round_id = ?", asked, newest)
    return subnet


def numbers(text: str) -> list[tuple]:
    """The page's numbers as `test_status.compare` takes them."""
    return [(at, how, arg, html.unescape(title) or None, said) for title, at, how, arg, said in NUMBER.findall(text)]


def test_a_mechanism_that_no_page_knows_is_shown_by_its_scalar_terms_with_the_apis_digits(played):
    newest, mover_key = stored_rounds(played.path)[-1], hotkey_of("mover")

    async def work(url, get):
        for path in ("/", f"/?round={newest}", f"/?miner={mover_key}", f"/?round={newest}&miner={mover_key}"):
            text = await get(path)
            assert Tags.of(text) <= {*KNOWN_TAGS} and await compare(numbers(text), get, {}) > 10
            assert "yield" in text and "pools/used" in text and ">parts<" not in text
            assert '/terms/yield" data-as="price">0.0512346<' in text and ">True<" in text
            assert html.escape("<script>window.hit=1") in text and r"\u202e" in text and "\u202e" not in text
        text = await get("/")
        assert ">guessing, rounds of 15 min, no live rounds<" in text and "reputation (excess)" in text
        text = await get(f"/?round={newest}")
        assert "<dt>mechanism</dt><dd><bdi>guessing</bdi></dd>" in text and "<dt>target" not in text
        assert "<figure>" not in text and "No panels" not in text and "All books, in" in text and "points" in text
        assert f'title="{TERMS["loss"]}"' in text and ">+12.500000<" in text
        drawn = await get(f"/?round={stored_rounds(played.path)[0]}")
        assert drawn.count("<figure>") == 4 and "inventory loss" in drawn and "pools/used" not in drawn
        assert "nothing to draw" in (await get(f"/panels/{newest}", 404))["error"]
        assert (await get("/status"))["pair"]["token0"], "the newest query is of no pool, an older one is"
        new, old = (await get(f"/scores/{mover_key}"))["rounds"]
        assert new["line"]["terms"] == TERMS and (new["keep"], new["excess"]) == (None, None) and old["excess"]
        assert (await get("/jobs/job"))["settings"] == {"guess": 7}
        assert (await get(f"/rounds/{newest}"))["scores"][0]["line"]["terms"] == TERMS

    watching(played, work)


def test_a_report_has_rounds_of_both_kinds(played):
    text = asyncio.run(reporting.report(played.path, stored_rounds(played.path), NAMES, load()))
    assert text.count("<figure>") == 4 * 3 - 4 and "inventory loss" in text and "pools/used" in text
    assert Tags.of(text, (), "#") <= {*KNOWN_TAGS}


def test_one_table_holds_the_columns_of_all_its_lines(played):
    async def lines(reader):
        seen = [await reader.round(round_id) for round_id in stored_rounds(played.path)]
        return [one["scores"][0]["line"] for one in seen]

    ours, theirs = reading(played.path, lines)
    table = Columns([showing], "receipts", [ours, theirs])
    known = [label for _, label, *_ in showing.TABLES["receipts"]]
    assert table.labels == [*known, *(name for name in sorted(TERMS) if name != "parts")]
    for line, filled in ((ours, range(5)), (theirs, range(5, 10))):
        cells = table.cells(Numbers("/x#"), line)
        assert [n for n, cell in enumerate(cells) if cell] == [*filled]
        assert all(re.search(r'data-at="/x#/terms/|<bdi>', cell) for cell in cells if cell)
    assert Columns([showing], "receipts", []).labels == known and Columns([], "receipts", []).labels == []
    assert found(theirs, "terms/pools%2Fused") == 3 and found(theirs, "terms/yield/more") is None


def test_what_a_template_writes_is_inert_unless_it_is_our_own_markup_and_what_is_missing_is_an_error():
    status = {"name": MARKUP, "health": {"ok": False, "problems": [MARKUP]}}
    with pytest.raises(UndefinedError):
        Pages({}, None, []).write("process.html", MARKUP, status=status, scores={"rounds": []})
    listed = {"rounds": [], "next": None}
    shown = {"status": {"health": status["health"], "market": MARKUP}, "listed": listed, "before": MARKUP}
    text = Pages({}, None, []).write("older.html", MARKUP, **shown)
    assert Tags.of(text) <= {*KNOWN_TAGS} and text.count(r"\u202eevil") == 3 and "\u202e" not in text


class Guessing:
    """How another mechanism's leaderboard is written: no tokens, no baselines."""

    columns = staticmethod(lambda: ("guess",))
    row = staticmethod(lambda line, pair: (str(line.terms["guess"]),))
    amount = staticmethod(lambda value, pair: str(value))
    unit = staticmethod(lambda pair: "points")
    about = staticmethod(lambda job, result: ("", ""))
    remarks = staticmethod(lambda result: ("the number was 7",))


def test_a_leaderboard_is_written_as_its_mechanism_says():
    line = SimpleNamespace(name="a", copy_of="", score=3, rank=1, terms={"guess": 9})
    result = SimpleNamespace(lines=(line,), baselines={})
    text = leaderboard(Guessing, "label", model().pair, {}, a_job(), "job:evaluation:900", result)
    assert text.splitlines() == [
        "== job: evaluation, 1970-01-01 00:15 UTC for 900 s",
        "   label; amounts in points; ranked by score, paid by reputation (excess)",
        "rank  miner  score  guess  rep. excess  rep. seed",
        "   1  a          3      9                        ",
        "   the number was 7",
    ]
