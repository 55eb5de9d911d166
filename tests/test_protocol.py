"""The messages: every rule with its reason code, hostile bytes, and a plain second version of the validity check.

Run: `python -m pytest tests/test_protocol.py`. Read next: `protocol.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import string
from collections import Counter
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Context, Decimal
from fractions import Fraction
from random import Random
from typing import Any

import pytest

from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    FIRST_ASK_LEAD_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_POSITIONS,
    MAX_QUERY_BYTES,
    MAX_TEXT_CHARS,
    MAX_TICK,
    MIN_TICK,
    PROTOCOL_VERSION,
    REPUTATIONS,
    TARGETS,
    UINT128_MAX,
    Code,
    Inventory,
    JobSettings,
    MinerMetadata,
    Position,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    SqrtPrice,
    Token,
    Word,
    check_answer,
    human_price,
)
from wire.codec import canonical, decode, digest, encode, parse_json, to_plain

D = Decimal


def query(**changes) -> RebalanceQuery:
    """One position of 1,000 and 2,000, idle 100 and 200, fees 10 and 20: holdings of 1,110 and 2,220."""
    fields = {
        "job_id": "job",
        "sn_liquidity_manager_address": "0xvault",
        "pair_address": "0xpool",
        "chain_id": 1,
        "round_id": "job/7",
        "round_type": "evaluation",
        "block_number": 100,
        "current_price": "2450.5",
        "current_positions": (Position(-100, 100, 1000, 2000),),
        "inventory_remaining": Inventory(100, 200),
        "rebalances_so_far": 0,
        "uncollected_fees": Inventory(10, 20),
        "block_hash": "0xhash",
        "block_time": 1_700_000_000,
        "sqrt_price_x96": 1 << 96,
        "tick": 0,
        "liquidity": 10**20,
        "fee": 500,
        "tick_spacing": 10,
        "token0": Token("0xa", "WETH", 18),
        "token1": Token("0xb", "USDT", 6),
        "window_start_time": 1_700_000_075,
        "window_end_time": 1_700_003_675,
        "window_start_block": 101,
        "window_end_block": 401,
        "deadline": 1_700_000_060,
        "settings": JobSettings(),
    }
    return RebalanceQuery(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tick_spacing": 0}, "tick_spacing 0: 1 to 887272"),
        ({"tick_spacing": -60}, "tick_spacing -60: 1 to 887272"),
        ({"tick": 10**19}, "tick 10000000000000000000: -887272 to 887272"),
        ({"token1": Token("", "EVIL", 10**19)}, "decimals 10000000000000000000: 0 to 255"),
        ({"token0": Token("", "EVIL", -1)}, "decimals -1: 0 to 255"),
    ],
)
def test_a_query_that_nobody_can_compute_with_is_malformed_for_the_miner_that_gets_it(changes, told):
    data = json.loads(encode(query())) | {name: to_plain(value) for name, value in changes.items()}
    with pytest.raises(ProtocolError) as error:
        decode(RebalanceQuery, canonical(data), MAX_QUERY_BYTES)
    assert (error.value.code, error.value.detail) == (Code.MALFORMED, f"query {told}")


def answer(*positions: Position, accepted: bool = True) -> RebalanceAnswer:
    return RebalanceAnswer(accepted, None, positions, MinerMetadata("1", "wide"))


def refused(code: Code, work, *arguments, says: str = "") -> str:
    """The detail with which `work` is refused for the reason `code`: one line, and not a long one."""
    with pytest.raises(ProtocolError) as caught:
        work(*arguments)
    assert caught.value.code is code
    detail = caught.value.detail
    assert says in detail and len(detail) < 400 and detail.isprintable()
    return detail


# ---------------------------------------------------------------------------------------------------------------------
# Round trips and the canonical form


def random_text(rng: Random, most: int = MAX_TEXT_CHARS) -> str:
    letters = string.printable.strip() + ' äß中文é🦄\u202e\u200d"\\'
    return "".join(rng.choice(letters) for _ in range(rng.choice([0, 1, 8, most])))


def random_uint(rng: Random, bits: int) -> int:
    return rng.choice([0, 1, (1 << bits) - 1, rng.getrandbits(bits), rng.getrandbits(rng.randint(1, bits))])


def random_position(rng: Random) -> Position:
    ticks = sorted(rng.sample(range(MIN_TICK, MAX_TICK + 1), 2))
    return Position(*ticks, random_uint(rng, 128), random_uint(rng, 128))


def random_decimal(rng: Random, top: int) -> Decimal:
    """0 to `top`, with up to 40 decimals: all that can be written."""
    digits = rng.randint(0, 40)
    return Decimal(rng.randint(0, top * 10**digits)).scaleb(-digits, Context(prec=100))


def random_settings(rng: Random) -> JobSettings:
    part = D(1) / rng.choice([1, 2, 3, 8])
    return JobSettings(
        target=rng.choice(TARGETS),
        checkpoint_blocks=rng.randint(1, 10**6),
        min_in_range=random_decimal(rng, 1),
        rebalance_cost=random_uint(rng, 128),
        max_positions=rng.randint(1, MAX_POSITIONS),
        weight=random_decimal(rng, 1000),
        reputation=rng.choice(REPUTATIONS),
        shares=tuple(part for _ in range(rng.randint(0, int(1 / part)))),
    )


def random_query(rng: Random) -> RebalanceQuery:
    changes = {
        field.name: random_text(rng) if field.type == "str" else rng.randint(-(10**19) + 1, 10**20 - 1)
        for field in dataclasses.fields(RebalanceQuery)
        if field.type in ("str", "int")
    }
    changes |= {"tick": rng.randint(MIN_TICK, MAX_TICK), "tick_spacing": rng.randint(1, MAX_TICK)}
    return query(
        **changes,
        current_positions=tuple(random_position(rng) for _ in range(rng.randint(0, 10))),
        inventory_remaining=Inventory(random_uint(rng, 128), random_uint(rng, 128)),
        uncollected_fees=Inventory(random_uint(rng, 128), random_uint(rng, 128)),
        sqrt_price_x96=random_uint(rng, 160),
        liquidity=random_uint(rng, 128),
        token0=Token(random_text(rng), random_text(rng), rng.randint(0, 255)),
        settings=random_settings(rng),
    )


def random_answer(rng: Random) -> RebalanceAnswer:
    return RebalanceAnswer(
        rng.random() < 0.5,
        rng.choice([None, random_text(rng)]),
        tuple(random_position(rng) for _ in range(rng.randint(0, 64))),
        MinerMetadata(random_text(rng), random_text(rng)),
    )


def test_what_is_encoded_decodes_to_the_same_message_and_the_same_bytes():
    rng = Random(1)
    for _ in range(300):
        for message in (random_query(rng), random_answer(rng)):
            data = encode(message)
            assert decode(type(message), data, 10**6) == message
            assert encode(decode(type(message), data, 10**6)) == data


def test_the_largest_legal_messages_fit_the_limits():
    most = Position(MIN_TICK, MAX_TICK, UINT128_MAX, UINT128_MAX)
    text = "x" * MAX_TEXT_CHARS
    full = RebalanceAnswer(False, text, (most,) * MAX_POSITIONS, MinerMetadata(text, text))
    assert len(encode(full)) <= MAX_ANSWER_BYTES
    assert len(encode(query(current_positions=(most,) * MAX_POSITIONS))) <= MAX_QUERY_BYTES


def test_the_canonical_form_is_sorted_tight_ascii_json():
    """By hand for one message; amounts are strings, ticks are numbers, absence is null."""
    message = RebalanceAnswer(True, None, (Position(-20, 10, 2**64, 0),), MinerMetadata("1", "é"))
    assert encode(message) == (
        b'{"accepted":true,"desired_positions":[{"allocation0":"18446744073709551616","allocation1":"0",'
        b'"tick_lower":-20,"tick_upper":10}],"miner_metadata":{"model_info":"\\u00e9","version":"1"},'
        b'"refusal_reason":null}'
    )
    assert canonical({"b": [1, True, None], "a": "x"}) == b'{"a":"x","b":[1,true,null]}'
    with pytest.raises(ValueError):
        canonical(float("nan"))


def test_the_digest_is_sha256_in_lower_case_hex():
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert digest(encode(query())) == hashlib.sha256(encode(query())).hexdigest()


def test_key_order_and_spaces_do_not_change_what_is_read():
    plain = to_plain(answer(Position(0, 10, 5, 6)))
    loose = json.dumps(dict(reversed(plain.items())), indent=4).encode()
    assert decode(RebalanceAnswer, loose, 10**6) == answer(Position(0, 10, 5, 6))


def test_the_times_of_an_ask_are_the_designs():
    """DESIGN, Timeline and Ask: the first leaves 75 s before the start and ends 15 s before it; 60 s in all, as any."""
    assert (ASK_SECONDS, FIRST_ASK_LEAD_SECONDS, FIRST_ASK_DEADLINE_SECONDS) == (60, 75, 15)


def test_messages_cannot_be_changed_once_made():
    for message in (query(), answer(), Position(0, 1, 2, 3), Inventory(1, 2), JobSettings(), MinerMetadata("", "")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(message, dataclasses.fields(message)[0].name, 5)


def test_the_settings_a_query_carries_are_the_seeds_unless_the_job_says_otherwise():
    settings = JobSettings()
    assert (settings.target, settings.checkpoint_blocks, settings.max_positions) == ("PoL", 150, 10)
    assert (settings.min_in_range, settings.rebalance_cost, settings.weight) == (0, 0, 1)
    assert (settings.reputation, settings.shares) == ("excess", (1,))
    assert {t: JobSettings.for_target(t).min_in_range for t in TARGETS} == {
        t: D("0.5") * (t == "MinIL") for t in TARGETS
    }
    assert JobSettings.for_target("MinIL", min_in_range=D(0)).min_in_range == 0
    assert query().version == PROTOCOL_VERSION


# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def altered(**changes) -> bytes:
    return canonical(to_plain(answer(Position(0, 10, 5, 6))) | changes)


def with_position(**changes) -> bytes:
    return altered(desired_positions=[to_plain(Position(0, 10, 5, 6)) | changes])


def malformed(data: bytes, says: str = "") -> str:
    return refused(Code.MALFORMED, decode, RebalanceAnswer, data, MAX_ANSWER_BYTES, says=says)


def test_the_size_limit_comes_before_everything_else():
    data = encode(answer())
    assert decode(RebalanceAnswer, data, len(data)) == answer()
    refused(Code.MALFORMED, decode, RebalanceAnswer, data, len(data) - 1, says=f"{len(data)} bytes, at most")
    malformed(b"\xff" * (MAX_ANSWER_BYTES + 1), says="bytes, at most")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b'{"accepted":tru}',
        b"{'accepted':true}",
        b'{"accepted":true,}',
        b"\xff\xfe",
        b'"\xc3\x28"',  # broken UTF-8
        b'"\xed\xa0\x80"',  # a surrogate in UTF-8
        "\ufeff{}".encode(),  # byte order mark
        b'"a\nb"',  # a raw line break in a string
        b"\x00",
        '{"accepted":true}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_malformed(data):
    malformed(data, says="not JSON")


@pytest.mark.parametrize("data", [b"[]", b"1", b'"x"', b"null", b"true", b"[{}]"])
def test_json_that_is_no_object_is_malformed(data):
    malformed(data, says="an object is expected")


@pytest.mark.parametrize(
    "number", ["1.0", "1e3", "1E400", "-0.0", "NaN", "Infinity", "-Infinity", "1" * 21, "9" * 30_000]
)
def test_floats_nan_and_endless_integers_are_malformed_wherever_they_stand(number):
    for frame in ('{"tick_lower":%s}', "[[%s]]", "%s"):
        refused(Code.MALFORMED, parse_json, (frame % number).encode(), 10**6)


def test_a_key_named_twice_is_malformed_even_with_the_same_value():
    data = encode(answer())
    malformed(data.replace(b'"accepted":true', b'"accepted":true,"accepted":true'), says="twice")
    malformed(data.replace(b'"version":"1"', b'"version":"1","\\u0076ersion":"1"'), says="twice")


def test_brackets_in_strings_are_no_nesting():
    """Of 3,000 random documents: their depth is that of the values."""
    random = Random(7)

    def document(most: int) -> tuple[Any, int]:
        kind = random.randrange(3) if most else 2
        parts = [document(most - 1) for _ in range(random.randrange(4) if most else 0)]
        depth = 1 + max((depth for _, depth in parts), default=0)
        if kind == 0:
            return [value for value, _ in parts], depth
        if kind == 1:
            return {text() + str(n): value for n, (value, _) in enumerate(parts)}, depth
        return random.choice([text(), random.randrange(10**9), None, True]), 0

    def text() -> str:
        return "".join(random.choice('"\\[]{}aé\n/') for _ in range(random.randrange(8)))

    for _ in range(3000):
        value, depth = document(4)
        data = json.dumps(value, ensure_ascii=random.random() < 0.5).encode()
        assert parse_json(b"[" * (64 - depth) + data + b"]" * (64 - depth), 10**6)
        refused(Code.MALFORMED, parse_json, b"[" * (65 - depth) + data + b"]" * (65 - depth), 10**6, says="too deeply")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"desired_positions":['])
def test_deep_nesting_is_malformed_and_does_not_exhaust_the_stack(opening):
    data = opening * (MAX_ANSWER_BYTES // len(opening))
    malformed(data)
    closing = {b"[": b"]", b'{"a":': b"1" + b"}", b'{"desired_positions":[': b"]}"}[opening]
    malformed(opening * 1000 + closing * 1000)


def test_a_hundred_thousand_positions_are_refused_at_the_first_thing_that_is_wrong():
    """Within a byte limit that would let them in, and within the real one as many as fit."""
    position = to_plain(Position(0, 10, 5, 6))
    crowd = altered(desired_positions=[position] * 100_000)
    refused(Code.MALFORMED, decode, RebalanceAnswer, crowd, MAX_ANSWER_BYTES, says="bytes")
    decoded = decode(RebalanceAnswer, crowd, len(crowd))
    refused(Code.TOO_MANY_POSITIONS, check_answer, decoded, query(), says="100000 positions, at most 10")
    malformed(altered(desired_positions=[0] * 16_000), says="desired_positions[0] is an integer")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(RebalanceAnswer)])
def test_a_missing_field_is_named(field):
    plain = to_plain(answer())
    del plain[field]
    malformed(canonical(plain), says=f"lacks the field '{field}'")


def test_an_unknown_field_is_named_and_cut():
    malformed(altered(hotkey="x"), says="unknown field 'hotkey'")
    assert len(malformed(altered(**{"k" * 5000: 1}))) < 120
    malformed(altered(**{"\x1b[2J": 1}), says="\\x1b")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accepted": 1}, "RebalanceAnswer.accepted is an integer, bool is expected"),
        ({"accepted": "true"}, "is a string, bool"),
        ({"accepted": None}, "is null, bool"),
        ({"refusal_reason": 5}, "refusal_reason is an integer, str"),
        ({"refusal_reason": False}, "refusal_reason is a boolean, str"),
        ({"desired_positions": {}}, "desired_positions is an object, a list"),
        ({"desired_positions": None}, "desired_positions is null, a list"),
        ({"desired_positions": [[]]}, "desired_positions[0] is a list, an object"),
        ({"miner_metadata": None}, "miner_metadata is null, an object"),
        ({"miner_metadata": {"version": "1"}}, "miner_metadata lacks the field 'model_info'"),
        ({"miner_metadata": {"version": 1, "model_info": ""}}, "miner_metadata.version is an integer, str"),
        ({"refusal_reason": "x" * 301}, "refusal_reason has 301 characters, at most 300"),
    ],
)
def test_a_wrong_type_is_malformed_and_says_where(change, says):
    malformed(altered(**change), says=says)


@pytest.mark.parametrize("tick", [True, False, "5", None, [], {}])
def test_a_tick_is_an_integer_and_nothing_that_looks_like_one(tick):
    malformed(with_position(tick_lower=tick), says="desired_positions[0].tick_lower is")


@pytest.mark.parametrize(
    "amount",
    [
        5, 0, True, None, [], {}, "", " ", "-1", "-0", "+1", "00", "01", "1.0", "1e3", "0x10", " 1", "1 ", "1\n",
        "1_000", "٣", "１", "²", "x", str(2**128), "1" * 39 + "0", "9" * 5000,
    ],
)  # fmt: skip
def test_an_amount_is_a_decimal_string_of_a_uint128_in_its_only_spelling(amount):
    for field in ("allocation0", "allocation1"):
        data = with_position(**{field: amount})
        refused(Code.AMOUNT_RANGE, decode, RebalanceAnswer, data, MAX_ANSWER_BYTES, says=f"[0].{field} is")
    read = decode(RebalanceAnswer, with_position(allocation0=str(UINT128_MAX)), MAX_ANSWER_BYTES)
    assert read.desired_positions[0].allocation0 == UINT128_MAX


def test_each_kind_of_amount_has_its_own_width():
    @dataclass(frozen=True)
    class Widths:
        price: SqrtPrice
        word: Word

    top = Widths(2**160 - 1, 2**256 - 1)
    assert decode(Widths, encode(top), 1000) == top
    for wrong in (replace(top, price=2**160), replace(top, word=2**256)):
        refused(Code.AMOUNT_RANGE, decode, Widths, encode(wrong), 1000)


@pytest.mark.parametrize("text", ["\x00", "\n", "\x1b[31m", "\x7f", "\x85", "\ud800", "\udfff", "ok\udc00ok"])
def test_control_characters_and_lone_surrogates_are_no_text(text):
    """A terminal, a log line and a database each have trouble with one of them."""
    for change in ({"refusal_reason": text}, {"miner_metadata": {"version": "1", "model_info": text}}):
        malformed(altered(**change), says="U+")


def test_whatever_decodes_can_be_written_as_utf_8():
    for text in ("🦄", "\U0001f984", "é", "\u2028", "\u202e", "\ufeff", "\uffff"):
        read = decode(RebalanceAnswer, altered(refusal_reason=text), MAX_ANSWER_BYTES)
        assert read.refusal_reason == text and read.refusal_reason.encode("utf-8")
    pair = altered().replace(b'"refusal_reason":null', b'"refusal_reason":"\\ud83e\\udd84"')
    assert decode(RebalanceAnswer, pair, MAX_ANSWER_BYTES).refusal_reason == "🦄"


@pytest.mark.parametrize(
    "number", [0.5, 5, "", "-1", ".5", "5.", "1e1", "NaN", "Infinity", "0." + "1" * 41, "1" * 40, "٣", "01"]
)
def test_a_settings_decimal_is_a_plain_decimal_string(number):
    plain = to_plain(query())
    plain["settings"]["weight"] = number
    data = json.dumps(plain).encode()
    refused(Code.MALFORMED, decode, RebalanceQuery, data, MAX_QUERY_BYTES)


def test_random_damage_is_refused_or_read_but_never_anything_else():
    rng, seen = Random(2), Counter()
    for _ in range(3000):
        data = bytearray(encode(random_answer(rng) if rng.random() < 0.5 else answer(Position(0, 10, 5, 6))))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 5])] = rng.choice(
                [b"", b'"', b"{", b"[", b"9", b"-", b"e", bytes([rng.randrange(256)])]
            )
        try:
            message = decode(RebalanceAnswer, bytes(data), MAX_ANSWER_BYTES)
            assert decode(RebalanceAnswer, encode(message), MAX_ANSWER_BYTES) == message
            seen["read"] += 1
        except ProtocolError as error:
            assert error.code in (Code.MALFORMED, Code.AMOUNT_RANGE)
            seen[error.code] += 1
    assert min(seen.values()) > 20 and len(seen) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("target", ["pol", "", "MaxFees "]),
        ("checkpoint_blocks", [0, -1]),
        ("min_in_range", [D("-0.1"), D("1.000001"), D("NaN"), D("Infinity"), D("-0")]),
        ("rebalance_cost", [-1, 2**128]),
        ("max_positions", [0, MAX_POSITIONS + 1]),
        ("weight", [D(-1), D("NaN"), D("sNaN"), D("Infinity"), D("1e-41"), D("1e39")]),
        ("reputation", ["eval", ""]),
        ("shares", [(D("0.5"), D("-0.1")), (D(1), D("1e-40")), (D("NaN"),), (D("0.5"),) * 3]),
    ],
)
def test_job_settings_outside_their_bounds_are_refused_by_name(name, wrong):
    for value in wrong:
        refused(Code.MALFORMED, lambda value=value: JobSettings(**{name: value}), says="job setting")
        if name not in ("min_in_range", "weight", "shares"):
            refused(Code.MALFORMED, lambda value=value: JobSettings(**{name: value}), says=name)


def test_job_settings_at_their_bounds_are_fine():
    JobSettings(checkpoint_blocks=1, min_in_range=D(1), rebalance_cost=UINT128_MAX, max_positions=MAX_POSITIONS)
    JobSettings(weight=D(0), shares=(), max_positions=1, min_in_range=D("1e-40"))
    JobSettings(shares=(D("0.5"), D("0.3"), D("0.2")))


def test_settings_are_checked_when_they_arrive_too():
    plain = to_plain(query())
    plain["settings"]["max_positions"] = 65
    refused(Code.MALFORMED, decode, RebalanceQuery, canonical(plain), MAX_QUERY_BYTES, says="max_positions 65")


# ---------------------------------------------------------------------------------------------------------------------
# Validity of an answer


@pytest.mark.parametrize(
    ("code", "position"),
    [
        (Code.TICK_RANGE, Position(MIN_TICK - 8, 0, 1, 1)),
        (Code.TICK_RANGE, Position(0, MAX_TICK + 8, 1, 1)),
        (Code.TICK_RANGE, Position(-(10**19), 10**19, 1, 1)),
        (Code.TICK_ORDER, Position(10, 10, 1, 1)),
        (Code.TICK_ORDER, Position(20, 10, 1, 1)),
        (Code.TICK_SPACING, Position(-5, 10, 1, 1)),
        (Code.TICK_SPACING, Position(-10, 11, 1, 1)),
        (Code.TICK_SPACING, Position(MIN_TICK, MAX_TICK, 1, 1)),  # 887272 is no multiple of 10
        (Code.AMOUNT_RANGE, Position(-10, 10, -1, 1)),
        (Code.AMOUNT_RANGE, Position(-10, 10, 1, 2**128)),
        (Code.OVER_ALLOCATED, Position(-10, 10, 1111, 0)),
        (Code.OVER_ALLOCATED, Position(-10, 10, 0, 2221)),
    ],
)
def test_each_rule_has_its_code_and_shows_the_offending_values(code, position):
    """Also behind a good position, and never when the miner refuses anyway."""
    detail = refused(code, check_answer, answer(position), query())
    values = dataclasses.astuple(position)
    shown = {Code.OVER_ALLOCATED: values[2:], Code.AMOUNT_RANGE: values[2:]}.get(code, values[:2])
    assert all(str(value) in detail for value in shown)
    refused(code, check_answer, answer(Position(-10, 10, 0, 0), position), query())
    check_answer(answer(position, accepted=False), query())


def test_holdings_are_idle_fees_and_what_closing_everything_releases_and_all_of_it_may_be_declared():
    assert query().holdings() == (1110, 2220)
    check_answer(answer(Position(-10, 10, 1110, 2220)), query())
    check_answer(answer(Position(-10, 10, 1000, 0), Position(10, 20, 110, 2220)), query())
    refused(Code.OVER_ALLOCATED, check_answer, answer(*[Position(-10, 10, 556, 0)] * 2), query(), says="1112 / 0")


def test_an_empty_answer_and_the_shown_positions_are_always_valid():
    check_answer(answer(), query())
    check_answer(answer(*query().current_positions), query())
    many = query(current_positions=(*[Position(-10, 10, 1, 1)] * 150, *[Position(10, 20, 0, 1)] * 150))
    check_answer(answer(*many.current_positions), many)
    check_answer(answer(*many.current_positions[:170]), many)  # some are closed
    refused(Code.TOO_MANY_POSITIONS, check_answer, answer(*many.current_positions), many, False, says="300 positions")
    moved = (*many.current_positions[1:], Position(-20, 10, 1, 1))
    refused(Code.TOO_MANY_POSITIONS, check_answer, answer(*moved), many, says="300 positions, at most 10")


def test_the_position_limit_is_the_jobs():
    ten = [Position(-10, 10, 1, 1)] * 10
    check_answer(answer(*ten), query())
    refused(Code.TOO_MANY_POSITIONS, check_answer, answer(*ten, ten[0]), query(), says="11 positions, at most 10")
    check_answer(answer(*ten[:1]), query(settings=JobSettings(max_positions=1)))
    refused(Code.TOO_MANY_POSITIONS, check_answer, answer(*ten[:2]), query(settings=JobSettings(max_positions=1)))


def plainly_valid(given: RebalanceAnswer, asked: RebalanceQuery) -> bool:
    """DESIGN section 3, "Validity", once more: as sets of what is allowed instead of a list of what is not."""
    if not given.accepted:
        return True
    spacing = asked.tick_spacing
    usable = range(-(-MIN_TICK // spacing) * spacing, MAX_TICK + 1, spacing)
    amounts = range(UINT128_MAX + 1)
    left0 = asked.inventory_remaining.amount0 + asked.uncollected_fees.amount0
    left1 = asked.inventory_remaining.amount1 + asked.uncollected_fees.amount1
    for held in asked.current_positions:
        left0, left1 = left0 + held.allocation0, left1 + held.allocation1
    for p in given.desired_positions:
        if not (p.tick_lower in usable and p.tick_upper in usable and p.tick_lower < p.tick_upper):
            return False
        if p.allocation0 not in amounts or p.allocation1 not in amounts:
            return False
        left0, left1 = left0 - p.allocation0, left1 - p.allocation1
    return left0 >= 0 and left1 >= 0 and len(given.desired_positions) <= asked.settings.max_positions


def test_the_check_agrees_with_a_plain_version_on_random_answers():
    rng, seen = Random(3), Counter()
    for _ in range(20_000):
        spacing = rng.choice([1, 10, 60, 200])
        asked = query(tick_spacing=spacing, settings=JobSettings(max_positions=rng.choice([1, 3, 10])))
        positions = []
        for _ in range(rng.randint(0, 4)):
            lower, upper = (
                rng.choice([-2, -1, 0, 1, 2, MIN_TICK // spacing, MAX_TICK // spacing]) * spacing for _ in "01"
            )
            if rng.random() < 0.2:
                upper += rng.choice([-1, 1, spacing])
            amounts = (
                rng.choice([0, 1, 370, 740, 1110, 2220, UINT128_MAX + 1] if rng.random() < 0.3 else [0, 1, 370])
                for _ in "01"
            )
            positions.append(Position(lower, upper, *amounts))
        given = answer(*positions, accepted=rng.random() < 0.95)
        try:
            check_answer(given, asked)
            code = "valid" if given.accepted else "refusal"
        except ProtocolError as error:
            code = error.code
        assert (code in ("valid", "refusal")) == plainly_valid(given, asked), given
        seen[code] += 1
    assert len(seen) == 8 and min(seen.values()) > 50, seen  # six codes, valid, refusal


# ---------------------------------------------------------------------------------------------------------------------
# The price in human units


def test_the_human_price_is_the_exact_ratio_cut_to_18_digits():
    """Against fractions: digits are never wrong, only missing, and fewer than 18 only where the price has no more."""
    rng = Random(4)
    for _ in range(2000):
        root, decimals = rng.getrandbits(rng.randint(33, 160)) | 1, (rng.randint(0, 24), rng.randint(0, 24))
        exact = Fraction(root**2 * 10 ** decimals[0], 10 ** decimals[1] << 192)
        text = human_price(root, *decimals)
        assert set(text) <= set("0123456789.") and text == text.strip() and not text.endswith(".")
        assert 0 <= exact - Fraction(text) < exact / 10**17
        context = Context(prec=18, rounding=ROUND_DOWN)
        assert Fraction(text) == Fraction(context.divide(D(exact.numerator), D(exact.denominator)))
        assert len(text.replace(".", "").strip("0")) <= 18


@pytest.mark.parametrize(
    ("root", "decimals", "text"),
    [
        (1 << 96, (18, 18), "1"),
        (1 << 97, (18, 18), "4"),
        (1 << 95, (18, 18), "0.25"),
        (1 << 96, (18, 6), "1000000000000"),
        (1 << 96, (6, 18), "0.000000000001"),
        (10 << 96, (0, 0), "100"),
        (1 << 159, (0, 0), "85070591730234615800000000000000000000"),  # 2**126, cut after 18 digits
        (0, (18, 18), "0"),
    ],
)
def test_human_prices_by_hand(root, decimals, text):
    assert human_price(root, *decimals) == text
