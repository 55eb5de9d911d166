"""The page and its API: the same digits, in a real browser, whatever miners write into it; and what pruning leaves.

Run with `python -m pytest tests/test_status.py`. With ALM_SCREENSHOTS=FOLDER the screenshots stay there.
Read next: `browser.py` (headless Chromium), `subnets.py` (the subnet that is looked at).
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
import re
import socket
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from types import SimpleNamespace
from urllib.parse import unquote

import aiohttp
import browser
import pytest
from subnets import ROOT, a_job, accept, command, hotkey_of, model, play_subnet, refuse, rows, stored_rounds, write

import miner
from audit import stored
from audit.checks import audit
from audit.receipts import statement
from chain.base import ChainError
from chain.local import LocalChain
from liquidity import showing
from liquidity.executions import Execution, Sent
from liquidity.rounds import Line
from markets.base import MarketError
from protocol import Code, MinerMetadata, Position, RebalanceAnswer
from runtime.db import StoreError
from scoring import CONTEXT, Outcome, score_outcome
from spine.mechanism import load
from status import miner as miner_module
from status import pages, server
from status import validator as validator_module
from status.figures import Numbers, shown
from status.panels import Panels, apart
from status.reader import NotShown, Reader
from store import Store
from wire.codec import to_json
from wire.signing import local_keypair

VALIDATOR_KEY = local_keypair("validator-hotkey")
VALIDATOR = VALIDATOR_KEY.ss58_address
MARKUP = "<script>window.hit=1</script><img src=x onerror='window.hit=1'>\"'&\u202eevil"
NAMES = {hotkey_of("mover"): "mover"}


def mover(query):
    """Another range at every ask."""
    centre = query.tick // query.tick_spacing * query.tick_spacing
    reach = (20 + 5 * query.rebalances_so_far) * query.tick_spacing
    return [Position(centre - reach, centre + reach, *query.holdings())]


def boaster(query):
    return RebalanceAnswer(True, None, query.current_positions, MinerMetadata("1", MARKUP))


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Three rounds of two jobs, with a live one that nobody is eligible for, and miners that write markup."""
    jobs = (a_job("job", live=True, min_in_range=Decimal("0.5")), a_job("other", "Balanced", round_seconds=1800))
    miners = {
        "keep": lambda query: query.current_positions,
        "mover": mover,
        "boaster": boaster,
        "refuser": lambda query: refuse(MARKUP),
        "liar": lambda query: accept([Position(7, 3, 1, 1)]),
    }
    return play_subnet(tmp_path_factory.mktemp("played"), miners, jobs, rounds=3)


def copied(subnet, folder):
    """The same subnet in another folder, to change."""
    folder.mkdir(exist_ok=True)
    for file in subnet.folder.glob("*.sqlite3*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return replace(subnet, folder=folder)


def ground(path, chain, market):
    """What a local validator stands on, as far as the status server looks at it."""
    return SimpleNamespace(path=path, chain=chain, market=market, keypair=VALIDATOR_KEY, names=NAMES, local=True)


@asynccontextmanager
async def serving(subnet, **options):
    """The validator's status server over a subnet that has worked; yields its URL and a function that gets JSON."""
    chosen = {"status_host": "127.0.0.1", "status_port": 0, "pace": None} | options
    key = local_keypair("validator-coldkey").ss58_address
    market = model(head=model().last_block_by(rows(subnet.path, "SELECT max(end_time) FROM rounds")[0][0]))
    async with (
        LocalChain.open(subnet.folder / "chain.sqlite3", VALIDATOR, key) as chain,
        validator_module.serve_validator(ground(subnet.path, chain, market), SimpleNamespace(**chosen), load()) as url,
        aiohttp.ClientSession() as session,
    ):

        async def get(path, want=200, **more):
            async with session.get(url + path, **more) as answer:
                body = await answer.read()
                assert answer.status == want, (path, answer.status, body[:300])
                return json.loads(body) if answer.content_type == "application/json" else body.decode()

        yield url, get


def watching(subnet, work, **options):
    """Run `await work(url, get)` with the server up."""

    async def main():
        async with serving(subnet, **options) as (url, get):
            return await asyncio.wait_for(work(url, get), 120)

    return asyncio.run(main())


def reading(path, work):
    """Run `await work(reader)` on the databases at `path`."""

    async def main():
        async with Reader.open(path) as reader:
            return await work(reader)

    return asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Numbers: what is shown against what the API answers

FOUND = """[...document.querySelectorAll('[data-at]')].map(
    e => [e.dataset.at, e.dataset.as, e.dataset.arg || '', e.getAttribute('title'), e.textContent])"""
LEFT_OVER = """(() => { const walk = document.createTreeWalker(document.querySelector('main'), 4), left = [];
    while (walk.nextNode()) { const e = walk.currentNode.parentElement;
        if (/[0-9]/.test(walk.currentNode.data) && !e.closest('[data-at], bdi, code, title, h2, a'))
            left.push(walk.currentNode.data) }
    return left })()"""
KNOWN_TAGS = (
    *(
        "html",
        "head",
        "meta",
        "noscript",
        "title",
        "link",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "nav",
        "script",
    ),
    *("h1", "h2", "h3", "p", "a", "span", "bdi", "code", "div", "dl", "dt", "dd", "details", "summary", "figure"),
    *("figcaption", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "path", "line", "polyline", "polygon", "rect", "text", "tspan"),
)
NO_NUMBERS = r"days of 14|, place \d+"  # what has digits and is no number of the API


def follow(value, way: str):
    """What an API object has at the end of the way."""
    while way:
        step, _, way = way.partition("/")
        value = value[int(step)] if isinstance(value, list) else value[unquote(step)]
    return value


def says(text: str, how: str, argument: str, exact: str) -> bool:
    """Whether a text is what people would round the exact value to; shares no code with the page."""
    plain = text.replace("−", "-").replace(",", "").replace(" %", "")
    if how == "time":
        stamp = datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()
        return 0 <= int(exact) - stamp < 60
    if how in ("age", "bytes"):
        size = {"s": 1, "min": 60, "h": 3600, "d": 86400, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[text.split()[-1]]
        return abs(float(text.split()[0]) * size - float(exact)) <= size / 2
    value = Decimal(exact)
    if how in ("base", "amount"):
        value = value.scaleb(-int(argument.split(",")[0]))
    if how in ("percent", "change"):
        value *= 100
    if how in ("base", "change") and value > 0 and not plain.startswith("+"):
        return False
    written = Decimal(plain)
    return abs(written - value) <= Decimal(1).scaleb(written.as_tuple().exponent) / 2


async def compare(found, get, api):
    """Every number of a page with the API's; `api` caches what was asked."""
    for at, how, argument, title, text in found:
        url, _, way = at.partition("#")
        if url not in api:
            api[url] = await get(url)
        value, exact = str(follow(api[url], way.lstrip("/"))), text if title is None else title
        if how == "age":  # it goes on between the two questions
            assert abs(int(value) - int(exact)) < 60, (at, value, exact)
        else:
            assert value == exact, (at, value, exact)
        assert says(text, how, argument, exact), (at, how, text, exact)
    return len(found)


class Tags(HTMLParser):
    """Which elements a page has; attributes that act, and any script but the page's own, fail."""

    @classmethod
    def of(cls, text: str, scripts: tuple = (pages.SCRIPT,), links: str = "/") -> set[str]:
        parser = cls()
        parser.tags, parser.scripts, parser.links = set(), [], (links, pages.ICON)
        parser.feed(text)
        assert parser.scripts == [*scripts]
        return parser.tags

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on") and name not in ("style", "src", "srcdoc"), (tag, name)
            assert name != "href" or value.startswith(self.links), (tag, value)

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)


needs_browser = pytest.mark.skipif(
    not browser.find() and os.environ.get("CI") != "true", reason="no browser here: apt-get install chromium"
)


@needs_browser
@pytest.mark.costly("a browser")
def test_a_browser_shows_rounds_and_miners_without_an_error_or_a_foreign_request_and_every_number_is_the_apis(
    played, tmp_path
):
    pictures = Path(os.environ.get("ALM_SCREENSHOTS") or tmp_path)
    pictures.mkdir(exist_ok=True)

    async def work(url, get):
        api, seen = {}, 0
        async with browser.browser(tmp_path) as open_tab:
            for name, size in (("desktop", {}), ("phone", {"width": 390, "height": 844}), ("dark", {"dark": True})):
                tab = await open_tab(**size)
                for place in ("home", "round", "book", "miner", "older"):
                    if place == "home":
                        await tab.go(url + "/")
                    elif place == "round":
                        assert await tab.click("main p a[href*='round=']")
                        assert await tab.js("document.querySelectorAll('.panels figure').length") == 4
                    elif place == "book":
                        assert await tab.click("tr.base a") == "baseline keep"
                        assert await tab.js("document.querySelector('tr.on').textContent.includes('baseline keep')")
                    elif place == "miner":
                        assert "mover" in await tab.click(f".wide a[href*='{hotkey_of('mover')}']")
                        await tab.go(await tab.js("location.href.replace(/round=[^&]*&/, '')"))
                        assert await tab.js("document.querySelector('code').textContent") == hotkey_of("mover")
                    else:
                        await tab.go(f"{url}/?before={stored_rounds(played.path)[-1]}")
                    seen += await compare(await tab.js(FOUND), get, api)
                    left = [text for text in await tab.js(LEFT_OVER) if not re.fullmatch(NO_NUMBERS, text.strip())]
                    assert not left
                    width, room = await tab.js("[document.documentElement.scrollWidth, innerWidth]")
                    assert width <= room, f"{place} is {width} wide on a {name} of {room}"
                    await tab.screenshot(pictures / f"{name}-{place}.png")
                light = await tab.js("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
                assert (sum(light) < 120) == (name == "dark")
                assert tab.errors == []
                assert tab.requests and all(asked.startswith(f"{url}/") for asked in tab.requests)
        assert seen > 1000

    watching(played, work)


@needs_browser
@pytest.mark.costly("a browser")
def test_the_page_follows_what_happens_and_its_static_parts_need_no_script(played, tmp_path):
    subnet = copied(played, tmp_path / "copy")

    async def work(url, get):
        async with browser.browser(tmp_path) as open_tab:
            still = await open_tab(script=False)
            await still.go(url + "/")
            assert await still.js("document.querySelectorAll('figure svg').length") >= 3
            assert await still.js("document.querySelectorAll('table').length") >= 4
            live = await open_tab()
            await live.go(url + "/")
            await live.js("window.same = true")
            await asyncio.to_thread(
                write, subnet.path, "UPDATE rounds SET detail = 'seen at once' WHERE code LIKE 'live%'"
            )
            for _ in range(100):
                if await live.js("document.body.textContent.includes('seen at once')"):
                    break
                await asyncio.sleep(0.2)
            else:
                raise AssertionError("the page stayed as it was")
            assert await live.js("window.same"), "it was loaded anew"
            assert live.errors == []

    watching(subnet, work)


@needs_browser
@pytest.mark.costly("a browser")
def test_whatever_miners_write_is_shown_and_does_nothing(played, tmp_path):
    """Markup from a refusal, in metadata and, past all checks, in the database: also control characters, megabytes."""
    subnet = copied(played, tmp_path / "copy")
    worst = (MARKUP + "\x1b[31m\x00\u2028\ud7ff") * 20_000
    write(subnet.path, "UPDATE predictions SET detail = ? WHERE hotkey = ?", worst, hotkey_of("liar"))
    write(subnet.path, "UPDATE rounds SET detail = ?, winner = NULL WHERE code LIKE 'live%'", worst)
    evil = f"{MARKUP}/?#"
    write(subnet.path, "UPDATE scores SET hotkey = ? WHERE hotkey = ?", evil, hotkey_of("boaster"))
    write(subnet.path, "UPDATE miner_scores SET hotkey = ? WHERE hotkey = ?", evil, hotkey_of("boaster"))
    newest = stored_rounds(subnet.path)[-1]

    async def work(url, get):
        texts = []
        for path in ("/", f"/?round={newest}", f"/?miner={hotkey_of('liar')}", f"/?miner={hotkey_of('boaster')}"):
            text = await get(path)
            assert len(text) < 400_000 and not re.search(r"[\x00-\x09\x0b-\x1f\u2028\u202e]", text)
            assert Tags.of(text) <= {*KNOWN_TAGS}
            texts.append(text)
        assert all(html.escape("<script>window.hit=1") in text for text in texts)
        assert r"\u202e" in texts[3] and "characters)" in texts[1] and "characters)" in texts[2]
        async with browser.browser(tmp_path) as open_tab:
            tab = await open_tab()
            for path in ("/", f"/?round={newest}", f"/?miner={hotkey_of('boaster')}"):
                await tab.go(url + path)
                assert await tab.js("window.hit === undefined && !document.querySelector('img')")
            assert tab.errors == []
        metrics = await get("/metrics")
        assert "<script>" not in metrics

    watching(subnet, work)


def executed(round_id: str, n: int, sent: Sent | None) -> tuple:
    block, amounts = 1_000_500 + n, ((10**18 + n, 2 * 10**9), (5, 6), (1, 0), (6, 7), (10**18, 2 * 10**9 - 1))
    one = Execution(block + 2, "vault", (), ((-10, 10),), ((-20, 20, 5, 6),), *amounts, ((-20, 20, 77),), sent)
    return round_id, block, "vault", json.dumps(to_json(one))


def test_a_live_rounds_decisions_are_shown_with_what_became_of_them(played, tmp_path):
    """Numbers as the API has them; whatever the executor bot writes does nothing."""
    subnet, hash_ = copied(played, tmp_path / "copy"), "0x" + "8" * 64
    [(round_id,), *_] = rows(subnet.path, "SELECT round_id FROM rounds WHERE round_type = 'live'")
    for n, sent in enumerate(
        (
            Sent(Code.EXECUTED, "", hash_, 412_000, 123_456_789_000_000, 123_456_789_000_000, 0),
            Sent(Code.PRICE_MOVED, MARKUP * 50, "", 0, 0, 0, 0),
            Sent(Code.EXECUTED, "", MARKUP, 1, 1, 1, 0),
            None,
        )
    ):
        write(subnet.path, "INSERT INTO live_executions VALUES (?, ?, ?, ?)", *executed(round_id, n, sent))
    number = re.compile(
        r'<span class="n[^"]*"(?: title="([^"]*)")? data-at="([^"]*/executions/[^"]*)" data-as="(\w+)"'
        r'(?: data-arg="([^"]*)")?>([^<]*)<'
    )

    async def work(url, get):
        text = await get(f"/?round={round_id}")
        assert (
            Tags.of(text) <= {*KNOWN_TAGS} and html.escape("<script>window.hit=1") in text and "<script>w" not in text
        )
        assert hash_ in text and text.count(">executed<") == 3 and "price_moved" in text and "0.000123" in text
        found = [(at, how, arg, title or None, said) for title, at, how, arg, said in number.findall(text)]
        assert await compare(found, get, {}) == 4 * (2 + 4) + 3
        assert "Live decisions" not in await get(f"/?round={stored_rounds(subnet.path)[-1]}")

    watching(subnet, work)


def test_the_curves_of_a_live_round_are_of_the_decisions_that_were_carried_out(played, tmp_path):
    """Played as a live round by its winner: as many ranges as decisions, without those that failed."""
    subnet = copied(played, tmp_path / "copy")
    round_id, mover = next(n for n in stored_rounds(subnet.path) if n.startswith("other:")), hotkey_of("mover")
    write(subnet.path, "UPDATE rounds SET round_type = 'live' WHERE round_id = ?", round_id)
    acts = [
        b
        for (b,) in rows(
            subnet.path,
            "SELECT effective_block FROM predictions WHERE round_id = ? AND hotkey = ? ORDER BY 1",
            round_id,
            mover,
        )
    ]

    async def ranges(reader):
        panels = await Panels(reader).of(await reader.round(round_id), mover)
        return [begin for begin, _, _ in panels["ranges"][mover]]

    assert len(acts) > 2 and reading(subnet.path, ranges) == acts
    for block, code, where in ((acts[1], Code.PRICE_MOVED, 0), (acts[2], Code.EXECUTED, 3)):
        sent = Sent(code, "", "", 0, 0, 0, 0)
        *_, text = executed(round_id, 0, sent)
        text = json.dumps(json.loads(text) | {"block": str(block + where)})
        write(subnet.path, "INSERT INTO live_executions VALUES (?, ?, 'vault', ?)", round_id, block, text)
    assert reading(subnet.path, ranges) == [acts[0], acts[2] + 3, *acts[3:]]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain words", "plain words"),
        ("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;"),
        ("a\x1b[0m\n\tb\u200bc", "a\\u001b[0m\\u000a\\u0009b\\u200bc"),
        ("Grüße 你好", "Grüße 你好"),
    ],
)
def test_text_from_strangers_is_spelt_out(text, seen):
    assert shown(text) == f"<bdi>{seen}</bdi>"
    assert len(shown("<" * 10**6)) < 2000 and "(1000000 characters)" in shown("<" * 10**6)


@pytest.mark.parametrize("places", [0, 2, 6])
def test_a_rounded_number_carries_all_of_its_digits_and_no_minus_before_a_zero(places):
    rng = Random(places)
    for _ in range(300):
        exact = f"{rng.choice(['', '-'])}{rng.randrange(10 ** rng.randrange(1, 25))}.{rng.randrange(10**30)}"
        text = Numbers("/x#", decimals1=6, places=places).base("y", exact)
        title = re.search(r'title="([^"]*)"', text)
        visible = re.search(r">([^<]*)<", text)[1]
        assert title[1] == exact and says(visible, "base", f"6,{places}", exact)
        assert not re.fullmatch(r"[−-][0.]*", visible)


# ---------------------------------------------------------------------------------------------------------------------
# A round taken apart


@pytest.mark.parametrize("target", ["PoL", "MaxFees", "MinIL", "Balanced"])
def test_the_parts_of_a_score_add_up_exactly(target):
    rng, job = Random(target), a_job(target=target)
    for _ in range(200):
        amounts = [rng.randrange(10 ** rng.randrange(1, 25)) for _ in range(6)]
        prices = [rng.randrange(1, 2 ** rng.randrange(60, 130)) for _ in range(2)]
        terms = score_outcome(Outcome(*amounts, *prices, rng.randrange(4), Decimal(1) / 3), target, 10**5)
        line = Line("x", None, terms, min(terms.score, Decimal(rng.choice(["1e60", "-1e7"]))))
        taken = apart(to_json(line), job.settings)
        assert sum(Fraction(amount) for _, amount in taken["apart"]) == Fraction(line.score) == Fraction(taken["score"])
        named = {name: Decimal(amount) for name, amount in taken["apart"] + taken["not_counted"]}
        assert {"fees", "drift", "divergence"} <= named.keys()
        for name in ("fees", "drift", "divergence"):
            assert named[name] == getattr(terms, name)
        assert named.get("costs", -terms.costs) == -terms.costs


def test_panels_end_where_the_stored_lines_end_and_hold_through_time_to_what_each_book_must(played):
    async def work(reader):
        drawing, looked = Panels(reader), 0
        for round_id in stored_rounds(played.path):
            seen = await reader.round(round_id)
            lines = {score["hotkey"]: score["line"] for score in seen["scores"]} | seen["baselines"]
            for name, line in lines.items():
                drawn = await drawing.of(seen, name)
                terms = {key: Fraction(value) for key, value in line["terms"].items()}
                first, last = drawn["value"][0], drawn["value"][-1]
                assert first["block"] == drawn["opening_block"] and last["block"] == drawn["close_block"]
                held = terms["initial_value"] + terms["drift"]
                assert Fraction(first["holding"]) == terms["initial_value"] and Fraction(last["holding"]) == held
                assert Fraction(last["without_fees"]) == held + terms["divergence"]
                assert Fraction(last["with_fees"]) == held + terms["divergence"] + terms["fees"]
                amounts = drawn["inventory"][-1]
                assert [amounts["amount0"], amounts["amount1"]] == [line["outcome"][f"final{n}"] for n in (0, 1)]
                if name == "hold":  # tokens that lie still are worth what they are worth
                    assert all(sample["with_fees"] == sample["holding"] for sample in drawn["value"])
                    assert drawn["ranges"]["hold"][0][2] == []
                if name == hotkey_of("mover"):
                    sql = "SELECT effective_block FROM predictions WHERE round_id = ? AND hotkey = ?"
                    acted = {block for (block,) in rows(played.path, sql, round_id, name)}
                    begins = {begin for begin, _, _ in drawn["ranges"][name]}
                    assert acted & begins == begins and len(begins) > 2
                blocks = [block for block, _ in drawn["path"]]
                assert blocks == sorted(blocks)
                looked += 1
        assert looked > 20

    reading(played.path, work)


def test_panels_say_why_there_are_none(played):
    async def work(reader):
        skipped = rows(played.path, "SELECT round_id FROM rounds WHERE code LIKE 'live%'")[0][0]
        seen = await reader.round(skipped)
        with pytest.raises(NotShown, match="no book was played in it"):
            await Panels(reader).of(seen)
        with pytest.raises(NotShown, match="it runs"):
            await Panels(reader).of(seen | {"round": seen["round"] | {"code": None}})
        seen = await reader.round(stored_rounds(played.path)[0])
        with pytest.raises(NotShown, match="'nobody' was not ranked"):
            await Panels(reader).of(seen, "nobody")
        with pytest.raises(NotShown, match="not in this database"):
            await reader.round("no:such:1")

    reading(played.path, work)


def test_a_round_that_was_skipped_shows_why_and_no_blocks_or_books_and_who_was_not_ranked_has_no_green_tag(played):
    async def work(url, get):
        skipped = rows(played.path, "SELECT round_id, detail FROM rounds WHERE code LIKE 'live%'")[0]
        text = await get(f"/?round={skipped[0]}")
        assert text.count(html.escape(skipped[1])) == 1 and "No panels: <bdi>no book was played in it" in text
        assert "<dt>blocks" not in text and "<dt>swaps" not in text and 'class="tag good"' not in text
        text = (await get(f"/?miner={hotkey_of('refuser')}")).partition("<h3>Rounds</h3>")[2]
        assert ">not_ranked<" in text and 'class="tag good"' not in text

    watching(played, work)


# ---------------------------------------------------------------------------------------------------------------------
# The API


def test_scores_are_every_round_of_a_miner_with_its_reasons_and_the_baselines_beside(played):
    async def work(url, get):
        for name in ("mover", "refuser", "liar"):
            hotkey = hotkey_of(name)
            said = (await get(f"/scores/{hotkey}"))["rounds"]
            sql = "SELECT DISTINCT round_id FROM predictions WHERE hotkey = ?"
            assert {row["round_id"] for row in said} == {r for (r,) in rows(played.path, sql, hotkey)}
            for row in said:
                which = "WHERE round_id = ? AND hotkey = ?", row["round_id"], hotkey
                stored = rows(played.path, f"SELECT rank, line FROM scores {which[0]}", *which[1:])
                sql = f"SELECT due_block, code, detail FROM predictions {which[0]} ORDER BY due_block"
                asks = rows(played.path, sql, *which[1:])
                ((summary,),) = rows(played.path, "SELECT summary FROM rounds WHERE round_id = ?", row["round_id"])
                assert [(ask["due_block"], ask["code"], ask["detail"]) for ask in row["asks"]] == asks
                assert [row[b] for b in ("keep", "hold", "best")] == [
                    json.loads(summary)[b] for b in ("keep", "hold", "best")
                ]
                assert (row["rank"], row["line"]) == (
                    (stored[0][0], json.loads(stored[0][1])) if stored else (None, None)
                )
                if stored:
                    score, keep = Decimal(row["line"]["score"]), Decimal(row["keep"]["score"])
                    assert Decimal(row["excess"]) == CONTEXT.subtract(score, keep)  # to the rule's 120 digits
            assert bool(said[0]["line"]) == (name == "mover")

    watching(played, work)


def test_a_rounds_answer_is_its_evidence_and_passes_the_audit(played):
    async def work(url, get):
        for round_id in stored_rounds(played.path):
            assert audit(await get(f"/rounds/{round_id}")) == []

    watching(played, work)


def test_lists_lead_from_the_newest_to_the_oldest_without_a_gap(played):
    async def work(reader):
        ids, before = [], None
        while True:
            part = await reader.rounds(before, 4)
            ids += [row["round_id"] for row in part["rounds"]]
            if (before := part["next"]) is None:
                break
        assert ids == [
            r for (r,) in rows(played.path, "SELECT round_id FROM rounds ORDER BY start_time DESC, round_id DESC")
        ]

    reading(played.path, work)


def test_status_and_metrics_say_what_the_databases_and_the_chain_say(played):
    async def work(url, get):
        said = await get("/status")
        ledger = played.folder / "chain.sqlite3"
        ((staked,),) = rows(ledger, "SELECT sum(rao) FROM stakes WHERE hotkey = ?", VALIDATOR)
        assert (said["hotkey"], said["network"], said["netuid"]) == (VALIDATOR, "local", 98)
        assert said["chain"]["permit"] is True and said["chain"]["stake_rao"] == str(staked)
        assert said["rounds"] == dict(
            rows(played.path, "SELECT round_type || ' ' || code, count(*) FROM rounds GROUP BY 1 ORDER BY 1")
        )
        for job in said["jobs"]:
            sql = "SELECT round_id FROM rounds WHERE job_id = ? AND round_type = 'evaluation' ORDER BY start_time DESC"
            assert job["newest"]["evaluation"] == rows(played.path, sql, job["job_id"])[0][0]
        ((block, code, due),) = rows(
            played.path, "SELECT block, code, next_block FROM weights ORDER BY id DESC LIMIT 1"
        )
        assert [said["weights"][key] for key in ("block", "code", "next_block")] == [block, code, due]
        assert said["database"]["bytes"]["jobs"] >= os.path.getsize(played.path)
        metrics = {}
        for line in (await get("/metrics")).splitlines():
            assert re.fullmatch(
                r'# (HELP|TYPE) alm_validator_\w+ .+|alm_validator_\w+(\{(\w+="[^"]*",?)+\})? -?[\d.]+', line
            )
            if not line.startswith("#"):
                metrics[line.rpartition(" ")[0]] = line.rpartition(" ")[2]
        assert metrics["alm_validator_healthy"] == "1" and metrics["alm_validator_weights_block"] == str(block)
        scored = said["rounds"]["evaluation scored"]
        assert metrics['alm_validator_rounds_total{type="evaluation",code="scored"}'] == str(scored)
        standings = (await get("/jobs/job"))["standings"]
        assert [line["hotkey"] for line in standings] == [
            row[0]
            for row in sorted(
                rows(played.path, "SELECT hotkey, eval_excess FROM miner_scores WHERE job_id = 'job'"),
                key=lambda row: (-Decimal(row[1]), row[0]),
            )
        ]

    watching(played, work)


def test_only_get_for_names_of_this_machine_with_headers_that_forbid_everything_else(played):
    async def work(url, get):
        port = int(url.rpartition(":")[2])
        for name in ("localhost", "127.0.0.1", f"localhost:{port}", f"[::1]:{port}", "127.0.0.2:80"):
            assert (await get("/health", headers={"Host": name}))["ok"]
        for name in ("evil.example", f"evil.example:{port}", "10.0.0.1", "127.0.0.1.evil.example", "", "localhost."):
            assert "machine" in (await get("/health", 403, headers={"Host": name}))["error"]
        async with aiohttp.ClientSession() as session:
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
                async with session.request(method, url + "/status") as answer:
                    assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD"
            async with session.head(url + "/") as answer:
                assert answer.status == 200 and await answer.read() == b""
            for path in ("/", "/status", "/nothing", "/rounds/none"):
                async with session.get(url + path) as answer:
                    policy = answer.headers["Content-Security-Policy"]
                    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert "Access-Control-Allow-Origin" not in answer.headers
        for path in ("/nothing", "/rounds/none", "/scores/x?before=none", "/jobs/none", "/?round=none", "/panels/none"):
            assert "error" in await get(path, 404)
        assert "characters" in (await get("/?miner=" + "x" * 301, 404))["error"]
        assert (await get("/scores/x"))["rounds"] == []

    watching(played, work)


def test_listening_for_others_takes_addresses_but_still_no_foreign_names(played):
    async def work(url, get):
        assert (await get("/health", headers={"Host": "192.0.2.7:8081"}))["ok"]
        await get("/health", 403, headers={"Host": "evil.example"})

    watching(played, work, status_host="0.0.0.0")


def test_so_many_questions_at_once_and_no_more(played, monkeypatch):
    async def work(url, get):
        async def one():
            async with session.get(url + "/?round=" + stored_rounds(played.path)[0]) as answer:
                return answer.status

        async with aiohttp.ClientSession() as session:
            asked = asyncio.gather(*(one() for _ in range(60)))
            healthy = await asyncio.gather(*(get("/health") for _ in range(60)))
            said = await asked
        assert set(said) == {200, 503} and said.count(200) >= server.MAX_AT_ONCE
        assert all(health["ok"] for health in healthy)

    watching(played, work)


def test_a_port_that_is_taken_stops_nobody(played, caplog):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def work():
            names = ("status_host", "status_port", "pace")
            chosen = SimpleNamespace(**dict(zip(names, ("127.0.0.1", port, None), strict=True)))
            shown_ = miner_module.MinerStatus(lambda: (1, 0.0), None, "hotkey", SimpleNamespace(name="n", strategy="s"))
            async with shown_.serving(chosen) as url:
                return url

        assert asyncio.run(work()) is None
        assert [r.message for r in caplog.records] == [
            f"no status page: cannot listen on 127.0.0.1 port {port}: the port is in use; stop the other process or"
            " choose another port"
        ]


class Silent:
    """A chain and a market that answer while they are told to."""

    def __init__(self, chain, market):
        self.chain, self.market, self.well = chain, market, {"chain", "market"}

    def __getattr__(self, name):
        async def call(*arguments):
            part = "market" if name == "head" else "chain"
            if part not in self.well:
                raise ChainError("nobody answers") if part == "chain" else MarketError("gone")
            return await getattr(getattr(self, part), name)(*arguments)

        return call


def test_health_turns_when_chain_market_or_a_round_is_older_than_its_limit_and_back(played, tmp_path):
    now, subnet = [1000.0], copied(played, tmp_path)
    limit = 2 * 900 + 120
    ((ended,),) = rows(played.path, "SELECT max(end_time) FROM rounds WHERE job_id = 'job'")
    write(subnet.path, "UPDATE jobs SET active = 0 WHERE job_id = 'other'")
    key = local_keypair("validator-coldkey").ss58_address

    async def main():
        market = model(head=model().last_block_by(ended))
        async with (
            LocalChain.open(subnet.folder / "chain.sqlite3", VALIDATOR, key) as chain,
            Reader.open(subnet.path) as reader,
        ):
            both = Silent(chain, market)
            watch = validator_module.Watch(both, both, lambda: now[0])
            shown_ = validator_module.ValidatorStatus(reader, watch, VALIDATOR, {}, "local", None, [showing])

            async def health(want):
                await watch.look()
                answer = await shown_.health(None)
                assert answer.status == (503 if want else 200), answer.body
                problems = json.loads(answer.body)["problems"]
                assert len(problems) == len(want)
                assert all(re.search(what, problem) for what, problem in zip(want, problems, strict=True)), problems

            await health([])
            both.well = {"market"}
            now[0] += validator_module.CHAIN_LIMIT_SECONDS + 1
            await health(["chain was last read 241 s ago, the limit is 240 s"])
            both.well = {"chain"}
            now[0] += validator_module.MARKET_LIMIT_SECONDS + 1
            await health(["chain's block last moved", "market's head last moved"])
            both.well = {"chain", "market"}
            write(subnet.folder / "chain.sqlite3", "UPDATE subnet SET block = block + 1")
            both.market = model(head=model().last_block_by(ended + limit))
            await health([])
            both.market = model(head=model().last_block_by(ended + limit + 2))
            await health([f"job job: no round ended for {limit + 2} s of market time, the limit is {limit} s"])

    asyncio.run(main())


def test_what_looks_on_cannot_write_and_refuses_what_it_cannot_read(played, tmp_path):
    async def work(reader):
        with pytest.raises(StoreError, match="readonly"):
            await reader.put_job(a_job("new"))

    reading(played.path, work)
    with pytest.raises(StoreError, match="unable to open"):
        reading(tmp_path / "nothing.sqlite3", work)
    for version in (1, 99):
        for name in ("old.sqlite3", "old.events.sqlite3"):
            write(tmp_path / name, f"PRAGMA user_version = {version}")
        with pytest.raises(StoreError, match=f"schema version {version}"):
            reading(tmp_path / "old.sqlite3", work)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def test_the_report_is_one_file_that_asks_for_nothing_and_needs_nothing(played, tmp_path):
    target = tmp_path / "report.html"
    done = command("validator.py", "report", "--db", played.path, "-o", target)
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    text = target.read_text()
    assert Tags.of(text, (), "#") <= {*KNOWN_TAGS} - {"script"}
    assert f'content="{html.escape(pages.POLICY)}"' in text and text.count("<figure>") >= 4 * 2 * 3
    for round_id in (stored_rounds(played.path)[-1],):
        for line in rows(played.path, "SELECT line FROM scores WHERE round_id = ?", round_id):
            assert f'title="{json.loads(line[0])["terms"]["fees"]}"' in text
    one = command("validator.py", "report", stored_rounds(played.path)[0], "--db", played.path, "-o", target)
    assert one.returncode == 0 and len(target.read_text()) < len(text)
    for arguments, said in (
        (["no:such:1"], "not in this database"),
        (["-o", tmp_path / "no" / "x.html"], "another file"),
    ):
        wrong = command("validator.py", "report", *arguments, "--db", played.path)
        assert wrong.returncode == 2 and said in wrong.stderr and len(wrong.stderr.splitlines()) == 1
    missing = command("validator.py", "report", "--db", tmp_path / "none.sqlite3")
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# The miner's


def test_a_miner_shows_what_it_was_asked_what_it_said_and_how_its_strategy_failed(played):
    now, callers = [50.0], [3, 0.0]

    def broken(query):
        raise ValueError(MARKUP)

    async def receipts(most):
        async with Store.open(played.path) as store:
            ids = stored_rounds(played.path)[::-1][:most]
            return [statement(await stored.evidence(store, r), hotkey_of("mover"), "seal") for r in ids]

    async def main():
        options = SimpleNamespace(name="<i>mine", strategy="mine", status_host="127.0.0.1", status_port=0)
        hotkey = hotkey_of("mover")
        known = (receipts, hotkey, options, "local", [showing])
        own = miner_module.MinerStatus(lambda: tuple(callers), *known, clock=lambda: now[0])
        own.joined(4, 98, "127.0.0.1:8091")
        queries = played.asked["keep"][:3]
        for query, strategy in zip(queries, (miner.keep, mover, broken), strict=True):
            own.note(VALIDATOR, query, miner.answer(query, strategy, "mine", own.failed), 0.0125)
        refusal = miner.answer(queries[0], lambda query: miner.Refusal(MARKUP), "mine", own.failed)
        own.note(VALIDATOR, queries[0], refusal, 0.001)
        now[0] += 7
        async with own.serving(options) as url, aiohttp.ClientSession() as session:

            async def get(path, want=200):
                async with session.get(url + path) as answer:
                    assert answer.status == want
                    return await answer.text()

            said = json.loads(await get("/status"))
            assert said["answers"] == {"keep": 2, "changed": 1, "failed": 1, "refused": 1}
            assert [ask["answer"][:11] for ask in said["asks"]] == ["refused: <s", "keep", "1 position(", "keep"]
            assert said["asks"][0]["age_seconds"] == 7 and said["asks"][1]["milliseconds"] == "12.5"
            assert said["last_error"].startswith(f"{queries[2].round_id} block {queries[2].block_number}: ValueError")
            text = await get("/")
            assert Tags.of(text) <= {*KNOWN_TAGS} and "&lt;i&gt;mine" in text and r"\u202e" in text
            scores = json.loads(await get("/scores"))["rounds"]
            sql = "SELECT line FROM scores WHERE round_id = ? AND hotkey = ?"
            for row in scores:
                assert row["line"] == json.loads(rows(played.path, sql, row["round_id"], hotkey)[0][0])
                assert f'title="{row["line"]["score"]}"' in text and f'title="{row["baselines"]["best"]}"' in text
            assert len(scores) == len(stored_rounds(played.path))
            assert 'alm_miner_answers_total{kind="refused"} 1' in await get("/metrics")
            await get("/health")
            callers[1] = miner_module.CALLERS_LIMIT_SECONDS + 1
            assert "list of callers" in json.loads(await get("/health", 503))["problems"][0]

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------------------------
# Pruning


def test_pruned_rounds_keep_their_scores_and_say_so_and_the_others_their_audits(played, tmp_path):
    subnet = copied(played, tmp_path)
    path, events = subnet.path, subnet.path.with_name("validator.events.sqlite3")
    stored_ends = rows(path, "SELECT round_id, end_time, seal FROM rounds ORDER BY start_time, round_id")
    until = min(end for _, end, _ in stored_ends)
    old = [round_id for round_id, end, _ in stored_ends if end <= until]
    kept = [round_id for round_id, end, _ in stored_ends if end > until]
    before = {table: rows(path, f"SELECT * FROM {table}") for table in ("scores", "miner_scores", "weights")}
    seals = rows(path, "SELECT round_id, seal, summary FROM rounds")
    codes = rows(path, "SELECT round_id, hotkey, due_block, code, detail FROM predictions")
    assert old and kept

    async def work():
        async with Store.open(path) as store:
            seal = next(seal for round_id, _, seal in stored_ends if round_id == old[0])
            write(path, "UPDATE rounds SET seal = NULL WHERE round_id = ?", old[0])
            assert await stored.prune(store, until) == len(old) - 1  # a round is sealed first
            write(path, "UPDATE rounds SET seal = ? WHERE round_id = ?", seal, old[0])
            assert [await stored.prune(store, until) for _ in range(2)] == [1, 0]
            assert await store.finished() == kept
            for round_id in old:
                with pytest.raises(stored.Pruned, match=f"round {round_id}: was pruned with all that ended by"):
                    await stored.evidence(store, round_id)
                assert await stored.evidence_about(store, round_id, hotkey_of("mover")) is None
            listed, _ = await stored.asked_rounds(store, hotkey_of("mover"), 0, 100)
            assert [round_id for _, round_id in listed if round_id not in kept] == [] and listed
            for round_id in kept:
                assert audit(await stored.evidence(store, round_id)) == []

    asyncio.run(work())
    for table, held in before.items():
        assert rows(path, f"SELECT * FROM {table}") == held
    assert rows(path, "SELECT round_id, seal, summary FROM rounds") == seals
    assert rows(path, "SELECT round_id, hotkey, due_block, code, detail FROM predictions") == codes
    marks = ", ".join("?" * len(old))
    held = (
        f"SELECT sum(length(query) + length(answer) + length(signature)) FROM predictions WHERE round_id IN ({marks})"
    )
    assert rows(path, held, *old) == [(0,)]
    needed = rows(path, f"SELECT min(opening_block) FROM rounds WHERE round_id NOT IN ({marks})", *old)[0][0]
    assert rows(events, "SELECT min(block) >= ? FROM events", needed) == [(1,)]
    assert rows(events, "SELECT min(block) FROM snapshots") == [(needed,)]
    named = command("validator.py", "audit", old[0], "--db", path)
    assert named.returncode == 1 and f"{old[0]}: cannot be audited: round {old[0]}: was pruned" in named.stdout
    assert command("validator.py", "audit", "all", "--db", path).returncode == 0

    async def look(url, get):
        scored = next(round_id for round_id in old if ":evaluation:" in round_id)
        said = await get(f"/rounds/{scored}")
        assert said["pruned"] == until and said["scores"] and "events" not in said
        text = await get(f"/?round={scored}")
        assert "its evidence was dropped" in text and "All books" in text
        assert (await get("/status"))["database"]["pruned"] == len(old)
        assert (await get(f"/scores/{hotkey_of('mover')}"))["rounds"][-1]["line"]

    watching(subnet, look)


def test_the_two_programs_take_the_servers_options():
    for program, port in (("validator.py", 8081), ("miner.py", 8080)):
        text = " ".join(command(program, "--help").stdout.split())
        assert "--status-port" in text and f"default: {port}" in text and "--status-host" in text
        wrong = command(program, "--status-port", "70000")
        assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1
    parser = argparse.ArgumentParser()
    server.add_options(parser.add_argument, 1)
    assert parser.parse_args([]).status_host == "127.0.0.1"
    assert ROOT.exists()
