"""What a page's templates write with: strangers' text made inert, numbers rounded for people, a round's charts in SVG.

Pure: objects of `reader.py` and `panels.py` in, markup out. A number shows rounded what its `title` has in full, and
`data-at` says where the API has it: URL, `#`, and the way through the JSON, each step percent-encoded.
Read first: `panels.py`. Read next: `pages.py`; `templates/figures.html` puts the charts among their numbers.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from itertools import accumulate, pairwise
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from audit.shape import is_shown

MOST_CHARS = 300  # of a text that came from others
WIDTH, HEIGHT, STRIP = 440, 190, 74  # of a chart, in its own units
DRAWN_BEYOND = 3  # ranges are drawn where a bound is at most so many times the price's span away from it
WIDE = Context(prec=200)


def shown(text: Any) -> Markup:
    """Text from anybody, safe and plain in HTML: markup, control and direction characters are spelt out, length cut."""
    return Markup(f"<bdi>{plain(text)}</bdi>")


def plain(text: Any) -> Markup:
    """The same for where no element can stand: titles and attributes. Markup that is ours stays as it is."""
    if isinstance(text, Markup):
        return text
    text = str(text)
    spelt = "".join(
        char if char == " " or unicodedata.category(char)[0] not in "CZ" else f"\\u{ord(char):04x}"
        for char in text[:MOST_CHARS]
    )
    return Markup(html.escape(spelt + (f" … ({len(text)} characters)" if len(text) > MOST_CHARS else "")))


def step(key: str) -> str:
    """A member's name in `data-at`, where names are percent-encoded."""
    return quote(key, safe="")


def _decimals(value: Decimal, places: int, sign: bool) -> str:
    text = f"{round(value, places) + 0:{'+' if sign else ''},.{places}f}"  # + 0: no minus before a zero
    return text.replace("-", "−") if value else text


def _amount(value: Decimal, decimals: int, places: int, sign: bool) -> str:
    return _decimals(value.scaleb(-decimals), places, sign)


def _in_units(value: Decimal, least: int, units: Iterable[tuple[int, str]], smallest: str) -> str:
    """In the first unit of which there are `least` or more."""
    large = (f"{value / size:.1f} {name}" for size, name in units if value >= least * size)
    return next(large, f"{value:.0f} {smallest}")


def _price(value: Decimal) -> str:
    if not value:
        return "0"
    places = 5 - value.adjusted()
    return f"{value:,.{places}f}" if 0 <= places <= 12 else f"{value:,.0f}" if places < 0 else f"{value:.5e}"


def _time(value: Decimal) -> str:
    """In UTC; what is no time of the next eight thousand years, which others may say, as it stands."""
    if not 0 <= value < 253402300800:
        return f"{value:.0f}"
    return f"{datetime.fromtimestamp(int(value), UTC):%Y-%m-%d %H:%M}"


FORMATS = {  # name: (value, argument) -> text; `data-as` names them
    "int": lambda value, _: f"{value:,.0f}",
    "base": lambda value, arg: _amount(value, *map(int, arg.split(",")), sign=True),
    "amount": lambda value, arg: _amount(value, *map(int, arg.split(",")), sign=False),
    "percent": lambda value, arg: _decimals(value * 100, int(arg), sign=False) + " %",
    "change": lambda value, arg: _decimals(value * 100, int(arg), sign=True) + " %",
    "plain": lambda value, arg: _decimals(value, int(arg), sign=False),
    "price": lambda value, _: _price(value),
    "time": lambda value, _: _time(value),
    "age": lambda value, _: _in_units(value, 2, ((86_400, "d"), (3_600, "h"), (60, "min")), "s"),
    "bytes": lambda value, _: _in_units(value, 1, ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")), "B"),
}


@dataclass(frozen=True, slots=True)
class Numbers:
    """How numbers are written here: where the API has them, and the tokens' units."""

    at: str = ""  # what `data-at` begins with: URL and way to the object whose members follow
    decimals0: int = 0
    decimals1: int = 0
    symbol0: str = ""  # both are empty where amounts are in base units
    symbol1: str = ""
    places: int = 2  # of token1 amounts

    @classmethod
    def of(cls, pair: Mapping[str, Any] | None, value: str | None = None) -> Numbers:
        """For a pair, with eight digits of `value`, an amount of token1 base units."""
        if not pair:
            return cls(places=0)
        zero, one = pair["token0"], pair["token1"]
        whole = len(f"{abs(Decimal(value)).scaleb(-one['decimals']):.0f}") if value else 6
        return cls("", zero["decimals"], one["decimals"], zero["symbol"], one["symbol"], max(2, 8 - whole))

    @property
    def unit(self) -> str:
        """What amounts are in."""
        return self.symbol1 or ("points" if self.places else "base units")

    def under(self, at: str) -> Numbers:
        """The same, for members of another object; what begins with `/` and no `#` before it is a URL."""
        return replace(self, at=at if "#" in at else f"{self.at}/{at}")

    def __call__(self, name: str, value: Any, how: str = "int", argument: str = "", tone: bool = False) -> Markup:
        """A number of the API, rounded for people."""
        if value is None:
            return Markup()
        if not is_shown(value):  # somebody else's; others are, or it would take a gigabyte
            return shown(value)
        with localcontext(WIDE):
            number = Decimal(str(value))
            text = FORMATS[how](number, argument)
        quiet = not tone or not any(digit in text for digit in "123456789")
        mood = "" if quiet else " good" if number > 0 else " bad"
        exact = "" if text == str(value) else f' title="{value}"'  # it is a number, and a URL is percent-encoded
        argument = f' data-arg="{argument}"' if argument else ""
        at = f'data-at="{self.at}/{name}" data-as="{how}"{argument}'
        return Markup(f'<span class="n{mood}"{exact} {at}>{text}</span>')

    def base(self, name: str, value: Any, tone: bool = False) -> Markup:
        """A signed amount of token1."""
        return self(name, value, "base", f"{self.decimals1},{self.places}", tone)

    def worth(self, name: str, value: Any) -> Markup:
        """An amount of token1 without a plus."""
        return self(name, value, "amount", f"{self.decimals1},{self.places}")

    def token0(self, name: str, value: Any) -> Markup:
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

    def points(self, samples: Sequence[Mapping[str, Any]], values: Iterable[float]) -> str:
        return " ".join(f"{self.x(s['block'])},{self.y(v)}" for s, v in zip(samples, values, strict=True))

    def curves(self, samples: Sequence[Mapping[str, Any]], series: Iterable[Iterable[float]]) -> Iterator[str]:
        for style, values in zip(("s s0", "s s1 dash", "s s6"), series, strict=False):
            yield _shape("polyline", style, points=self.points(samples, values))


def _svg(parts: Iterable[str], label: str, height: int = HEIGHT) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>')


def _label(x: float | str, y: float | str, anchor: str, number: str) -> str:
    """A number inside a chart: the same span's attributes on an SVG text."""
    inner = str(number).replace("<span", "<tspan", 1).replace("</span>", "</tspan>")
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{inner}</text>'


def _shape(name: str, style: str, about: str = "", **attributes: float | str) -> str:
    """An element of a chart; fractions with one decimal."""
    texts = {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in attributes.items()}
    start = f'<{name} class="{style}"' + "".join(f' {key}="{text}"' for key, text in texts.items())
    return f"{start}><title>{about}</title></{name}>" if about else f"{start}/>"


def _line(style: str, x1: float | str, x2: float | str, y1: float | str, y2: float | str, about: str = "") -> str:
    return _shape("line", style, about, x1=x1, x2=x2, y1=y1, y2=y2)


def _across(style: str, y: float | str, width: int = WIDTH) -> str:
    return _line(style, 0, width, y, y)


def _bar(style: str, x: float, y: float, width: float, height: float, about: str = "") -> str:
    return _shape("rect", style, about, x=x, y=y, width=width, height=height)


def _ends(scale: _Scale, panels: Mapping[str, Any], num: Numbers) -> list[str]:
    bottom = scale.height
    return [
        _across("axis", bottom),
        _label(0, bottom + 12, "start", num("opening_block", panels["opening_block"])),
        _label(WIDTH, bottom + 12, "end", num("close_block", panels["close_block"])),
        f'<text x="{WIDTH / 2}" y="{bottom + 12}" text-anchor="middle">blocks</text>',
    ]


def price_chart(panels: Mapping[str, Any], num: Numbers) -> Markup:
    """The price's path, the chosen book's ranges as bands, the others' bounds, and rebalances on the axis."""
    path = [(block, float(price)) for block, price in panels["path"]]
    prices = [price for _, price in path]
    low, high = min(prices), max(prices)
    reach = DRAWN_BEYOND * (high - low)
    bounds = [float(p) for segments in panels["ranges"].values() for s in segments for r in s[2] for p in r[2:4]]
    near = [p for p in bounds if low - reach <= p <= high + reach]
    scale = _Scale(path[0][0], path[-1][0], min([low, *near]), max([high, *near]))
    drawn: list[str] = []
    for n, (name, segments) in enumerate(panels["ranges"].items()):
        _draw_ranges(drawn, scale, n, segments, name == panels["miner"])
    steps = "".join(f"H{scale.x(block)}V{scale.y(price)}" for block, price in path[1:])
    drawn.append(_shape("path", "path", d=f"M{scale.x(path[0][0])} {scale.y(path[0][1])}{steps}"))
    for n, shift in ((prices.index(high), -5), (prices.index(low), 13)):
        x = min(WIDTH - 60.0, max(60.0, float(scale.x(path[n][0]))))
        y = max(10.0, float(scale.y(path[n][1])) + shift)
        drawn.append(_label(f"{x:.1f}", f"{y:.1f}", "middle", num(f"path/{n}/1", panels["path"][n][1], "price")))
    return _svg([*drawn, *_ends(scale, panels, num)], "price path with ranges and rebalances")


def _draw_ranges(drawn: list[str], scale: _Scale, n: int, segments: Sequence, main: bool) -> None:
    """One book's ranges; the bands of the `main` one go below all that was drawn."""
    for m, (begin, end, ranges) in enumerate(segments):
        x, until = scale.x(begin), scale.x(end)
        if m:
            drawn.append(_line(f"s s{n}", x, x, scale.height - 8, scale.height, f"rebalance at block {begin}"))
        for _, _, lower, upper in ranges:
            top, bottom = scale.y(float(upper)), scale.y(float(lower))
            height = max(0.0, float(bottom) - float(top))
            if main:
                drawn.insert(0, _bar(f"band f{n}", float(x), float(top), float(until) - float(x), height))
            style = f"s s{n}" + ("" if main else " thin dash")
            for price, y in ((float(upper), top), (float(lower), bottom)):
                if scale.inside(price):
                    drawn.append(_line(style, x, until, y, y))


def value_charts(panels: Mapping[str, Any], num: Numbers) -> tuple[Markup, Markup]:
    """Value with fees, without, and of holding; and the first two less the third."""
    samples, names = panels["value"], ("with_fees", "without_fees", "holding")
    values = [[float(sample[name]) for sample in samples] for name in names]
    ends = samples[0]["block"], samples[-1]["block"]
    scale = _Scale(*ends, min(map(min, values)), max(map(max, values)))
    drawn = [_across("axis", scale.y(values[2][0])), *scale.curves(samples, values)]
    over = [[value - held for value, held in zip(series, values[2], strict=True)] for series in values[:2]]
    low, high, least = min(0.0, *map(min, over)), max(0.0, *map(max, over)), values[2][0] * 1e-6
    strip = _Scale(*ends, min(low, -least), max(high, least), STRIP)
    apart = [_across("s s6", strip.y(0)), *strip.curves(samples, over)]
    whole = _svg([*drawn, *_ends(scale, panels, num)], "value with fees, without fees, and of holding")
    return whole, _svg(apart, "the same less holding", STRIP)


def apart_bars(panels: Mapping[str, Any]) -> list[Markup]:
    """A bar for every part of the score, each from where the one before ended, and one for their sum."""
    reached = [0.0, *accumulate(float(amount) for _, amount in panels["apart"])]
    spans = [*pairwise(reached), (0.0, reached[-1])]
    low, high = min(map(min, spans)), max(map(max, spans))
    width = (high - low) or 1.0
    bars, zero = [], (0 - low) / width * 200
    for n, (begin, end) in enumerate(spans):
        left, right = sorted(((begin - low) / width * 200, (end - low) / width * 200))
        kind = "sum" if n == len(spans) - 1 else "up" if end >= begin else "down"
        drawn = _line("axis", zero, zero, 0, 14) + _bar(kind, left, 2, max(right - left, 0.8), 10)
        bars.append(Markup(f'<svg viewBox="0 0 200 14" preserveAspectRatio="none">{drawn}</svg>'))
    return bars


def inventory_chart(panels: Mapping[str, Any], num: Numbers) -> Markup:
    """Both tokens' shares of a book's value through time."""
    samples, height = panels["inventory"], 130
    scale = _Scale(samples[0]["block"], samples[-1]["block"], 0.0, 1.0, height)
    scale.low, scale.span = 0.0, 1.0
    top, half, bottom = scale.y(1.0), scale.y(0.5), scale.y(0.0)
    line = scale.points(samples, (float(s["share0"]) for s in samples))
    first, last = scale.x(samples[0]["block"]), scale.x(samples[-1]["block"])
    drawn = [
        _shape("polygon", "f0", opacity=".55", points=f"{first},{bottom} {line} {last},{bottom}"),
        _shape("polygon", "f1", opacity=".45", points=f"{first},{top} {line} {last},{top}"),
        _across("axis dash", half),
    ]
    return _svg([*drawn, *_ends(scale, panels, num)], "shares of both tokens through time", height)


def excess_strip(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A bar for each of a miner's rounds: how far above or below its *keep* it scored."""
    values = [float(row["excess"]) for row in rows]
    most = max(map(abs, values)) or 1.0
    middle, wide = STRIP / 2, 2 * WIDTH / max(len(values), 24)
    bars = [_across("axis", middle, 2 * WIDTH)]
    for n, (row, value) in enumerate(zip(rows, values, strict=True)):
        tall = abs(value) / most * (middle - 2)
        style, top = ("up", middle - tall) if value >= 0 else ("down", middle)
        bars.append(_bar(style, n * wide + 1, top, max(wide - 2, 1.0), max(tall, 0.6), plain(row["round_id"])))
    box = f'viewBox="0 0 {2 * WIDTH} {STRIP}" preserveAspectRatio="none" role="img"'
    return Markup(f"<svg {box}>{''.join(bars)}</svg>")
