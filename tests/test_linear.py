"""Reading foreign bytes takes time linear in their length, whoever chose them.

Run: `python -m pytest tests/test_linear.py`.

Each reader gets the worst of each kind, and four times as much of it: four times the time is linear, sixteen quadratic.
Read next: `wire/codec.py`, `test_hostile.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from audit import evidence
from audit.checks import SHAPE
from audit.evidence import EvidenceError, read
from audit.receipts import read as read_receipt
from audit.shape import KINDS, misshapen
from evm.rpc import _results as node_results
from liquidity.executions import Order, Report
from markets.recordings import RecordingError, parse_recording
from protocol import ProtocolError, RebalanceAnswer, RebalanceQuery
from runtime.options import MAX_DOTENV_BYTES, read_dotenv
from runtime.process import UserError
from wire.codec import decode, parse_json
from wire.text import one_line, quoted

LARGE = 1 << 17
MOST = 8  # times, for four times the length: between linear and quadratic
NOISE_SECONDS = 0.01  # what is faster than this is fast
EXPECTED = (ProtocolError, EvidenceError, RecordingError, UserError, ValueError, TypeError, RecursionError)


def seconds(read: Callable, data: object) -> float:
    began = time.process_time()
    with suppress(*EXPECTED):
        read(data)
    return time.process_time() - began


def assert_linear(read: Callable, make: Callable[[int], object], large: int = LARGE) -> None:
    small, big = make(large // 4), make(large)
    if seconds(read, big) < NOISE_SECONDS:
        return
    small_seconds, big_seconds = (min(seconds(read, data) for _ in range(3)) for data in (small, big))
    assert big_seconds < MOST * small_seconds, f"{small_seconds:.4f} s, {big_seconds:.4f} s for four times the length"


BYTES = {
    "escaped quotes": lambda n: b'"' + b'\\"' * (n // 2),
    "letters and escaped quotes": lambda n: b'"' + b'a\\"' * (n // 3),
    "an odd number of quotes": lambda n: b'"' * (n | 1),
    "backslashes": lambda n: b'"' + b"\\" * n,
    "quotes and brackets": lambda n: b'["' * (n // 2),
    "brackets": lambda n: b"[" * n,
    "shallow brackets": lambda n: b"[" + b"[]," * (n // 3) + b"1]",
    "objects": lambda n: b"[" + b"{}," * (n // 3) + b"1]",
    "keys": lambda n: b"{" + b",".join(b'"%d":1' % k for k in range(n // 10)) + b"}",
    "strings": lambda n: b"[" + b'"ab",' * (n // 5) + b"1]",
    "spaces": lambda n: b"[1" + b" " * n,
    "commas": lambda n: b"[1" + b"," * n,
    "digits": lambda n: b"[" + b"9" * n + b"]",
    "a fraction": lambda n: b"[0." + b"9" * n + b"e" + b"9" * n + b"]",
    "surrogates": lambda n: b'["' + b"\\ud800" * (n // 6) + b'"]',
    "no UTF-8": lambda n: b'"' + b"\xff" * n,
    "zeros": lambda n: bytes(n),
    "equal signs": lambda n: b"A=" + b"=" * n,
    "values and spaces": lambda n: b"A=b" + b" " * n + b"'",
    "only spaces": lambda n: b"A=" + b" " * n + b"'",
    "a quoted escape": lambda n: b'A="' + b"\\n" * (n // 2),
    "fields": lambda n: b"1,1,1,swap,in" + b",1" * (n // 2),
}
READERS = {
    "parse_json": lambda data: parse_json(data, len(data)),
    "a query": lambda data: decode(RebalanceQuery, data, len(data)),
    "an answer": lambda data: decode(RebalanceAnswer, data, len(data)),
    "evidence": lambda data: list(misshapen(parse_json(data, len(data)), SHAPE, "")),
    "a receipt": lambda data: read_receipt(parse_json(data, len(data))),
    "a recording's description": lambda data: parse_recording("x", data, []),
    "an order": lambda data: decode(Order, data, len(data)),
    "a report": lambda data: decode(Report, data, len(data)),
    "a node's answer": lambda data: node_results(json.loads(data), 1),
    "one_line": lambda data: one_line(data.decode("latin-1"), 200),
    "quoted": lambda data: quoted(data.decode("latin-1")),
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("reader", READERS)
def test_the_time_of_reading_is_linear_in_the_length(reader, kind):
    assert_linear(READERS[reader], BYTES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_time_of_judging_one_value_is_linear_in_its_length(kind):
    _, fits, _ = KINDS[kind]
    for text in ("A", "9", "A=", "1.", "1E", "\ud800", "é"):
        if KINDS[kind][0] is str:
            assert_linear(fits, lambda n, text=text: text * (n // len(text)))


@pytest.mark.parametrize("kind", BYTES)
def test_the_time_of_reading_files_is_linear_in_their_length(tmp_path, kind):
    def file(n: int):
        path = tmp_path / str(n)
        path.write_bytes(BYTES[kind](n)[: n - 1])
        return path

    assert_linear(read, file)
    assert_linear(read_dotenv, file, MAX_DOTENV_BYTES)


@pytest.mark.parametrize("kind", BYTES)
def test_the_time_of_reading_a_recordings_table_is_linear_in_its_length(kind):
    """One line of that length, and that many lines."""
    meta = (
        b'{"chain":"c","pool":"0x","fee":3000,"tickSpacing":60,"token0":"A (18)","token1":"B (6)",'
        b'"start":{"block":1,"time":1,"sqrtPriceX96":"79228162514264337593543950336"},"background":[],"preexisting":[]}'
    )
    assert_linear(lambda data: parse_recording("x", meta, [b"head", data]), BYTES[kind])
    lines = lambda n: [b"head", *(b"%d,0,1,swap,in,1,2,3,4,5" % k for k in range(n // 25))]  # noqa: E731
    assert_linear(lambda table: parse_recording("x", meta, table), lines)


@pytest.mark.parametrize(("data", "says"), [(b"[" + b"{}," * 2000 + b"1]", "values"), ('["é"]'.encode(), "not ASCII")])
def test_evidence_that_would_take_many_times_its_size_in_memory_is_refused(tmp_path, monkeypatch, data, says):
    monkeypatch.setattr(evidence, "MAX_EVIDENCE_VALUES", 1000)
    (tmp_path / "round.json").write_bytes(data)
    with pytest.raises(EvidenceError, match=says):
        read(tmp_path / "round.json")
