"""A round in four figures, as LPs look at it, in inline SVG; and how numbers and strangers' text are written.

Pure: objects of `views.py` in, text out. A number shows rounded what its `title` has in full, and `data-at` says where
the API has it: URL, `#`, and the way through the JSON, each step percent-encoded. Text that came from others goes
through `shown`.
Read first: `views.py`. Read next: `page.py`, which puts figures, tables and text together.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from typing import Any
from urllib.parse import quote

MOST_CHARS = 300  # of a text that came from others
WIDTH, HEIGHT, STRIP = 440, 190, 74  # of a chart, in its own units
DRAWN_BEYOND = 3  # ranges are drawn where a bound is at most so many times the price's span away from it
BASELINES = {"keep": "baseline keep", "hold": "baseline hold", "best": "best in hindsight"}
CURVES = {"with_fees": "with fees", "without_fees": "without fees", "holding": "holding"}
WIDE = Context(prec=200)


# ---------------------------------------------------------------------------------------------------------------------
# Text and numbers


def shown(text: Any) -> str:
    """Text from anybody, safe and plain in HTML: markup, control and direction characters are spelt out, length cut."""
    return f"<bdi>{plain(text)}</bdi>"


def plain(text: Any) -> str:
    """The same for where no element can stand: titles and attributes."""
    text = str(text)
    spelt = "".join(
        char if char == " " or unicodedata.category(char)[0] not in "CZ" else f"\\u{ord(char):04x}"
        for char in text[:MOST_CHARS]
    )
    return html.escape(spelt + (f" … ({len(text)} characters)" if len(text) > MOST_CHARS else ""))


def step(key: str) -> str:
    """A member's name in `data-at`, where names are percent-encoded."""
    return quote(key, safe="")


def _decimals(value: Decimal, places: int, sign: bool) -> str:
    text = f"{round(value, places) + 0:{'+' if sign else ''},.{places}f}"  # + 0: no minus before a zero
    return text.replace("-", "−") if value else text


def _age(seconds: Decimal) -> str:
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} s"


def _bytes(value: Decimal) -> str:
    for size, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value} B"


def _price(value: Decimal) -> str:
    if not value:
        return "0"
    places = 5 - value.adjusted()
    return f"{value:,.{places}f}" if 0 <= places <= 12 else f"{value:,.0f}" if places < 0 else f"{value:.5e}"


FORMATS = {  # name: (value, argument) -> text; `data-as` names them
    "int": lambda value, _: f"{value:,.0f}",
    "base": lambda value, arg: _decimals(value.scaleb(-int(arg.split(",")[0])), int(arg.split(",")[1]), sign=True),
    "amount": lambda value, arg: _decimals(value.scaleb(-int(arg.split(",")[0])), int(arg.split(",")[1]), sign=False),
    "percent": lambda value, arg: _decimals(value * 100, int(arg), sign=False) + " %",
    "change": lambda value, arg: _decimals(value * 100, int(arg), sign=True) + " %",
    "plain": lambda value, arg: _decimals(value, int(arg), sign=False),
    "price": lambda value, _: _price(value),
    "time": lambda value, _: f"{datetime.fromtimestamp(int(value), UTC):%Y-%m-%d %H:%M}",
    "age": lambda value, _: _age(value),
    "bytes": lambda value, _: _bytes(value),
}


@dataclass(frozen=True, slots=True)
class Numbers:
    """How numbers are written here: where the API has them, and the tokens' units.

    Attributes:
        at: what `data-at` begins with: URL and way to the object whose members follow.
        decimals0, decimals1, symbol0, symbol1: the tokens'; empty symbols mean base units.
        places: decimals of token1 amounts.
    """

    at: str = ""
    decimals0: int = 0
    decimals1: int = 0
    symbol0: str = ""
    symbol1: str = ""
    places: int = 2

    @classmethod
    def of(cls, pair: Mapping[str, Any] | None, value: str | None = None) -> Numbers:
        """For a pair, with eight digits of `value`, an amount of token1 base units."""
        if not pair:
            return cls(places=0)
        zero, one = pair["token0"], pair["token1"]
        whole = len(f"{abs(Decimal(value)).scaleb(-one['decimals']):.0f}") if value else 6
        return cls("", zero["decimals"], one["decimals"], zero["symbol"], one["symbol"], max(2, 8 - whole))

    def under(self, at: str) -> Numbers:
        """The same, for members of another object; what begins with `/` and no `#` before it is a URL."""
        at = at if "#" in at else f"{self.at}/{at}"
        return replace(self, at=at)

    def __call__(self, name: str, value: Any, how: str = "int", argument: str = "", tone: bool = False) -> str:
        """A number of the API, rounded for people."""
        if value is None:
            return ""
        with localcontext(WIDE):
            number = Decimal(str(value))
            text = FORMATS[how](number, argument)
        quiet = not tone or not any(digit in text for digit in "123456789")
        mood = "" if quiet else " good" if number > 0 else " bad"
        exact = "" if text == str(value) else f' title="{value}"'  # it is a number, and a URL is percent-encoded
        argument = f' data-arg="{argument}"' if argument else ""
        return f'<span class="n{mood}"{exact} data-at="{self.at}/{name}" data-as="{how}"{argument}>{text}</span>'

    def base(self, name: str, value: Any, tone: bool = False) -> str:
        """A signed amount of token1."""
        return self(name, value, "base", f"{self.decimals1},{self.places}", tone)

    def worth(self, name: str, value: Any) -> str:
        """An amount of token1 without a plus."""
        return self(name, value, "amount", f"{self.decimals1},{self.places}")

    def token0(self, name: str, value: Any) -> str:
        """An amount of token0."""
        return self(name, value, "amount", f"{self.decimals0},{6 if self.decimals0 else 0}")


# ---------------------------------------------------------------------------------------------------------------------
# Charts


class _Scale:
    """Blocks and values onto a chart."""

    def __init__(self, first: float, last: float, low: float, high: float, height: int = HEIGHT):
        pad = (high - low) * 0.12 or abs(high) * 1e-6 or 1.0
        self.first, self.width = first, (last - first) or 1
        self.low, self.span, self.height = low - pad, high - low + 2 * pad, height - 14

    def x(self, block: float) -> str:
        return f"{(block - self.first) / self.width * WIDTH:.1f}"

    def y(self, value: float) -> str:
        part = min(1.0, max(0.0, (value - self.low) / self.span))
        return f"{4 + (1 - part) * (self.height - 4):.1f}"

    def inside(self, value: float) -> bool:
        return self.low <= value <= self.low + self.span


def _svg(parts: Iterable[str], label: str, height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def _label(x: float | str, y: float | str, anchor: str, number: str) -> str:
    """A number inside a chart: the same span's attributes on an SVG text."""
    inner = number.replace("<span", "<tspan", 1).replace("</span>", "</tspan>")
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{inner}</text>'


def _ends(scale: _Scale, panels: Mapping[str, Any], num: Numbers) -> list[str]:
    bottom = scale.height
    return [
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"/>',
        _label(0, bottom + 12, "start", num("opening_block", panels["opening_block"])),
        _label(WIDTH, bottom + 12, "end", num("close_block", panels["close_block"])),
        f'<text x="{WIDTH / 2}" y="{bottom + 12}" text-anchor="middle">blocks</text>',
    ]


def price_figure(panels: Mapping[str, Any], lines: Mapping[str, Any], num: Numbers, named: Callable[[str], str]) -> str:
    path = [(block, float(price)) for block, price in panels["path"]]
    prices = [price for _, price in path]
    low, high = min(prices), max(prices)
    at_low, at_high = prices.index(low), prices.index(high)
    reach = DRAWN_BEYOND * (high - low)
    bounds = [float(p) for segments in panels["ranges"].values() for s in segments for r in s[2] for p in r[2:4]]
    near = [p for p in bounds if low - reach <= p <= high + reach]
    scale = _Scale(path[0][0], path[-1][0], min([low, *near]), max([high, *near]))
    drawn, keys = [], []
    for n, (name, segments) in enumerate(panels["ranges"].items()):
        main = name == panels["miner"]
        for m, (begin, end, ranges) in enumerate(segments):
            if m:
                x = scale.x(begin)
                drawn.append(
                    f'<line class="s s{n}" x1="{x}" x2="{x}" y1="{scale.height - 8}" y2="{scale.height}"><title>'
                    f"rebalance at block {begin}</title></line>"
                )
            for _, _, lower, upper in ranges:
                x, top, bottom = scale.x(begin), scale.y(float(upper)), scale.y(float(lower))
                if main:
                    width = float(scale.x(end)) - float(x)
                    height = max(0.0, float(bottom) - float(top))
                    drawn.insert(
                        0, f'<rect class="band f{n}" x="{x}" y="{top}" width="{width:.1f}" height="{height:.1f}"/>'
                    )
                for price, y in ((float(upper), top), (float(lower), bottom)):
                    if scale.inside(price):
                        style = f"s s{n}" + ("" if main else " thin dash")
                        drawn.append(f'<line class="{style}" x1="{x}" x2="{scale.x(end)}" y1="{y}" y2="{y}"/>')
        keys.append(_range_row(n, name, segments, lines[name], num, named))
    steps = "".join(f"H{scale.x(block)}V{scale.y(price)}" for block, price in path[1:])
    drawn.append(f'<path class="path" d="M{scale.x(path[0][0])} {scale.y(path[0][1])}{steps}"/>')
    for n, above in ((at_high, True), (at_low, False)):
        x = min(WIDTH - 60.0, max(60.0, float(scale.x(path[n][0]))))
        y = float(scale.y(path[n][1])) + (-5 if above else 13)
        drawn.append(
            _label(f"{x:.1f}", f"{max(10.0, y):.1f}", "middle", num(f"path/{n}/1", panels["path"][n][1], "price"))
        )
    head = "<tr><th></th><th class=l>ranges at the close</th><th>in range</th><th>changes</th></tr>"
    pair = f"{shown(num.symbol1)} per {shown(num.symbol0)}" if num.symbol1 else "base units"
    return (
        f"<figure><h3>Price, and where the liquidity was</h3>"
        f"{_svg([*drawn, *_ends(scale, panels, num)], 'price path with ranges and rebalances')}"
        f"<figcaption>{pair}; {num('swaps', panels['swaps'])} swaps. The filled band is the chosen book's, dashed lines"
        " bound the others'; ticks on the axis are rebalances.</figcaption>"
        f"<table>{head}{''.join(keys)}</table></figure>"
    )


def _range_row(n: int, name: str, segments: Sequence, line: Mapping[str, Any], num: Numbers, named: Callable) -> str:
    ranges, at = (segments[-1][2], len(segments) - 1) if segments else ((), 0)
    texts = [
        num(f"ranges/{step(name)}/{at}/2/{m}/2", r[2], "price")
        + " – "
        + num(f"ranges/{step(name)}/{at}/2/{m}/3", r[3], "price")
        for m, r in enumerate(ranges[:3])
    ]
    more = f" and {len(ranges) - 3} more" if len(ranges) > 3 else ""
    key = f'<svg class="key" viewBox="0 0 16 8"><rect class="f{n}" width="16" height="8"/></svg>'
    own = line["num"]
    return (
        f"<tr><td>{key}{named(name)}</td><td class=l>{', '.join(texts) or 'none'}{more}</td>"
        f"<td>{own('terms/in_range', line['terms']['in_range'], 'percent', '1')}</td>"
        f"<td>{own('outcome/changes', line['outcome']['changes'])}</td></tr>"
    )


def value_figure(panels: Mapping[str, Any], num: Numbers) -> str:
    samples, names = panels["value"], ("with_fees", "without_fees", "holding")
    values = [[float(sample[name]) for sample in samples] for name in names]
    scale = _Scale(samples[0]["block"], samples[-1]["block"], min(map(min, values)), max(map(max, values)))
    start = scale.y(values[2][0])
    drawn = [f'<line class="axis" x1="0" x2="{WIDTH}" y1="{start}" y2="{start}"/>']
    for style, series in zip(("s s0", "s s1 dash", "s s6"), values, strict=True):
        points = " ".join(f"{scale.x(s['block'])},{scale.y(v)}" for s, v in zip(samples, series, strict=True))
        drawn.append(f'<polyline class="{style}" points="{points}"/>')
    over = [[value - held for value, held in zip(series, values[2], strict=True)] for series in values[:2]]
    low, high, least = min(0.0, *map(min, over)), max(0.0, *map(max, over)), values[2][0] * 1e-6
    strip = _Scale(samples[0]["block"], samples[-1]["block"], min(low, -least), max(high, least), STRIP)
    apart = [f'<line class="s s6" x1="0" x2="{WIDTH}" y1="{strip.y(0)}" y2="{strip.y(0)}"/>']
    for style, series in zip(("s s0", "s s1 dash"), over, strict=True):
        points = " ".join(f"{strip.x(s['block'])},{strip.y(v)}" for s, v in zip(samples, series, strict=True))
        apart.append(f'<polyline class="{style}" points="{points}"/>')
    rows = []
    for name, colour in zip(names, (0, 1, 6), strict=True):
        end = panels["ends"][name]
        key = f'<svg class="key" viewBox="0 0 16 8"><rect class="f{colour}" width="16" height="8"/></svg>'
        rows.append(
            f"<tr><td>{key}{CURVES[name]}</td><td>{num.worth(f'ends/{name}/value', end['value'])}</td>"
            f"<td>{num.base(f'ends/{name}/change', end['change'], True)}</td>"
            f"<td>{num(f'ends/{name}/part', end['part'], 'change', '4')}</td></tr>"
        )
    begin = num.worth("value/0/holding", samples[0]["holding"])
    unit = shown(num.symbol1) if num.symbol1 else "base units"
    return (
        "<figure><h3>Value: with fees, without, and of holding</h3>"
        f"{_svg([*drawn, *_ends(scale, panels, num)], 'value with fees, without fees, and of holding')}"
        f"<figcaption>In {unit}, each moment at its own price; all three begin at {begin}.</figcaption>"
        f"{_svg(apart, 'the same less holding', STRIP)}<figcaption>The same less holding: with fees, and divergence"
        " alone.</figcaption>"
        f"<table><tr><th></th><th>at the close</th><th>change</th><th></th></tr>{''.join(rows)}</table></figure>"
    )


def apart_figure(panels: Mapping[str, Any], num: Numbers) -> str:
    parts = [(name, float(amount)) for name, amount in panels["apart"]]
    reached, spans = 0.0, []
    for _, amount in parts:
        spans.append((reached, reached + amount))
        reached += amount
    spans.append((0.0, reached))
    low, high = min(min(s) for s in spans), max(max(s) for s in spans)
    width = (high - low) or 1.0
    rows, zero = [], (0 - low) / width * 200
    for n, (begin, end) in enumerate(spans):
        last = n == len(parts)
        left, right = sorted(((begin - low) / width * 200, (end - low) / width * 200))
        kind = "sum" if last else "up" if end >= begin else "down"
        bar = (
            f'<svg viewBox="0 0 200 14" preserveAspectRatio="none"><line class="axis" x1="{zero:.1f}" x2="{zero:.1f}"'
            f' y1="0" y2="14"/><rect class="{kind}" x="{left:.1f}" y="2" width="{max(right - left, 0.8):.1f}"'
            ' height="10"/></svg>'
        )
        name = "score" if last else panels["apart"][n][0]
        where, amount = ("score", panels["score"]) if last else (f"apart/{n}/1", panels["apart"][n][1])
        rows.append(
            f"<tr{' class=total' if last else ''}><td>{shown(name)}</td><td>{num.base(where, amount, True)}</td>"
            f'<td class="bar">{bar}</td></tr>'
        )
    rows += [
        f'<tr class="mute"><td>{shown(name)}</td><td>{num.base(f"not_counted/{n}/1", amount)}</td>'
        "<td class=l>not counted by this target</td></tr>"
        for n, (name, amount) in enumerate(panels["not_counted"])
    ]
    return (
        f"<figure><h3>The score taken apart</h3><table>{''.join(rows)}</table><figcaption>Target"
        f" {shown(panels['target'])}. Drift is what the price did to the tokens held at the opening; divergence"
        " (impermanent loss) is what providing lost to holding. The parts add up to the score exactly."
        "</figcaption></figure>"
    )


def inventory_figure(panels: Mapping[str, Any], num: Numbers) -> str:
    samples = panels["inventory"]
    height = 130
    scale = _Scale(samples[0]["block"], samples[-1]["block"], 0.0, 1.0, height)
    scale.low, scale.span = 0.0, 1.0
    top, bottom = scale.y(1.0), scale.y(0.0)
    line = " ".join(f"{scale.x(s['block'])},{scale.y(float(s['share0']))}" for s in samples)
    first, last = scale.x(samples[0]["block"]), scale.x(samples[-1]["block"])
    half = scale.y(0.5)
    drawn = [
        f'<polygon class="f0" opacity=".55" points="{first},{bottom} {line} {last},{bottom}"/>',
        f'<polygon class="f1" opacity=".45" points="{first},{top} {line} {last},{top}"/>',
        f'<line class="axis dash" x1="0" x2="{WIDTH}" y1="{half}" y2="{half}"/>',
    ]
    rows, end = [], len(samples) - 1
    for n, symbol in enumerate((num.symbol0 or "token0", num.symbol1 or "token1")):
        key = f'<svg class="key" viewBox="0 0 16 8"><rect class="f{n}" width="16" height="8"/></svg>'
        how = num.token0 if n == 0 else num.worth
        first_, last_ = (how(f"inventory/{at}/amount{n}", samples[at][f"amount{n}"]) for at in (0, end))
        share = num(f"inventory/{end}/share0", samples[end]["share0"], "percent", "1") if n == 0 else "the rest"
        rows.append(f"<tr><td>{key}{shown(symbol)}</td><td>{first_}</td><td>{last_}</td><td>{share}</td></tr>")
    return (
        "<figure><h3>Inventory</h3>"
        f"{_svg([*drawn, *_ends(scale, panels, num)], 'shares of both tokens through time', height)}"
        "<figcaption>Shares of the value, without this round's fees; the dashed line is one half.</figcaption><table>"
        "<tr><th></th><th>at the opening</th><th>at the close</th><th>of the value</th></tr>"
        f"{''.join(rows)}</table></figure>"
    )
