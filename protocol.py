"""The messages between validator and miner: what may be said, in which bytes, and why an answer is refused.

One exchange, as it travels (canonical JSON inside signed HTTP, see `wire.py`)::

    validator -> miner   POST /rebalance   RebalanceQuery   "this is the market, these are your positions and tokens"
    miner -> validator   200               RebalanceAnswer  "accepted; these positions, please"    or a refusal

`RebalanceQuery` and `RebalanceAnswer` are the two halves of the seeds' single synapse: the request fields the validator
fills and the response fields the miner fills. Amounts are integers of token base units; in JSON they are decimal
strings, because JSON numbers lose digits above 2**53. Ticks, blocks and times are plain JSON integers. There are no
floats.

Pure: standard library only, no clock, no I/O. `python -m pytest tests/test_protocol.py` shows each rule at work.
Read next: `sim.py` (what a position earns), `scoring.py` (what that is worth), `rounds.py` (both, over one round).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

PROTOCOL_VERSION = "alm/1"
MIN_TICK, MAX_TICK = -887272, 887272  # Uniswap v3-core TickMath: sqrt(1.0001**tick) fits a Q64.96
UINT128_MAX = 2**128 - 1
ASK_SECONDS = 60  # total deadline of one ask (seed 000, "Timeout: 60 seconds")
FIRST_ASK_LEAD_SECONDS = 75  # the first ask leaves at the first head at or after t0 - 75 s ...
FIRST_ASK_DEADLINE_SECONDS = 15  # ... and must be answered by t0 - 15 s
MAX_QUERY_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 32 * 1024
MAX_POSITIONS = 64  # the most that any job may allow in `max_positions`
MAX_TEXT_CHARS = 300  # refusal reason, model info
MAX_JSON_INT_DIGITS = 20
MAX_JSON_DEPTH = 64


class Code(StrEnum):
    """Every reason this system gives for not doing something: a closed list, stored and shown as is."""

    # an ask, as the validator saw it
    ACCEPTED = "accepted"
    REFUSED = "refused"
    KEPT = "kept"  # committed earlier this round; a later refusal, silence or invalid answer means keep
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    NO_ENDPOINT = "no_endpoint"
    ADDRESS_REFUSED = "address_refused"  # a published address that is not public, on a real network
    HTTP_STATUS = "http_status"
    REDIRECT = "redirect"
    CONTENT_TYPE = "content_type"
    REPLY_TOO_LARGE = "reply_too_large"
    REPLY_SIGNATURE = "reply_signature"
    # an answer, as bytes and as a proposal
    MALFORMED = "malformed"
    AMOUNT_RANGE = "amount_range"
    TICK_RANGE = "tick_range"
    TICK_ORDER = "tick_order"
    TICK_SPACING = "tick_spacing"
    TOO_MANY_POSITIONS = "too_many_positions"
    OVER_ALLOCATED = "over_allocated"
    # a caller, as a server saw it
    AUTH_MISSING = "auth_missing"
    AUTH_MALFORMED = "auth_malformed"
    AUTH_RECEIVER = "auth_receiver"
    AUTH_STALE = "auth_stale"
    AUTH_SIGNATURE = "auth_signature"
    AUTH_REPLAYED = "auth_replayed"
    NOT_REGISTERED = "not_registered"
    NO_PERMIT = "no_permit"
    RATE_LIMITED = "rate_limited"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TIMEOUT = "body_timeout"
    BUSY = "busy"
    HANDLER_FAILED = "handler_failed"
    NOT_FOUND = "not_found"
    # a receipt, as its miner saw it
    RECEIPT_SIGNATURE = "receipt_signature"
    RECEIPT_FOREIGN = "receipt_foreign"
    RECEIPTS_FULL = "receipts_full"
    # a round
    SCORED = "scored"
    EMPTY_VAULT = "empty_vault"
    VOID_GAP = "void_gap"
    VOID_CONTRADICTION = "void_contradiction"
    VOID_UNKNOWN_SWAP = "void_unknown_swap"
    VOID_INTERRUPTED = "void_interrupted"
    NOBODY_RANKED = "nobody_ranked"
    LIVE_NO_WINNER = "live_no_winner"
    LIVE_NOT_ELIGIBLE = "live_not_eligible"
    LIVE_WINNER_GONE = "live_winner_gone"
    LIVE_READ_ONLY_MARKET = "live_read_only_market"
    LIVE_FOREIGN_TRANSFER = "live_foreign_transfer"
    # a live decision, as the executor bot carried it out or refused it
    EXECUTED = "executed"
    EXECUTION_DRY_RUN = "execution_dry_run"
    EXECUTION_PENDING = "execution_pending"
    EXECUTION_EXPIRED = "execution_expired"
    EXECUTION_REVERTED = "execution_reverted"
    EXECUTION_UNKNOWN = "execution_unknown"
    EXECUTOR_KEY = "executor_key"
    EXECUTOR_PAUSED = "executor_paused"
    ORDER_CONFLICT = "order_conflict"
    ORDER_STALE = "order_stale"
    FOREIGN_POOL = "foreign_pool"
    FOREIGN_VAULT = "foreign_vault"
    VAULT_CHANGED = "vault_changed"
    PRICE_MOVED = "price_moved"
    PRICE_MANIPULATED = "price_manipulated"
    PRICE_UNKNOWN = "price_unknown"
    GAS_PRICE_LIMIT = "gas_price_limit"
    TURNOVER_LIMIT = "turnover_limit"
    # weights
    WEIGHTS_SET = "weights_set"
    WEIGHTS_DRY_RUN = "weights_dry_run"
    WEIGHTS_COMMITTED = "weights_committed"
    WEIGHTS_TOO_SOON = "weights_too_soon"
    WEIGHTS_UNKNOWN = "weights_unknown"
    WEIGHTS_REJECTED = "weights_rejected"


class ProtocolError(ValueError):
    """A message broke a rule. `code` names the rule, `detail` carries the offending values, in one line."""

    def __init__(self, code: Code, detail: str):
        detail = detail.encode("ascii", "backslashreplace").decode()  # it may quote a peer, and goes to terminals
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


# ---------------------------------------------------------------------------------------------------------------------
# Messages

Amount = Annotated[int, "decimal string", 128]
"""Token base units or liquidity, 0 to 2**128 - 1; a decimal string in JSON."""
SqrtPrice = Annotated[int, "decimal string", 160]
"""Square root of the price, Q64.96, 0 to 2**160 - 1; a decimal string in JSON."""
Word = Annotated[int, "decimal string", 256]
"""A 256-bit word of the pool (fee growth, X128, modulo 2**256); a decimal string in JSON."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """A price range and the tokens in it (or meant for it).

    In a query the allocations are what closing the position would release now, without fees. In an answer they are what
    the miner puts in at most: the contract takes both tokens in the ratio of price and range, the rest goes back to
        idle.
    """

    tick_lower: int
    tick_upper: int
    allocation0: Amount
    allocation1: Amount


@dataclass(frozen=True, slots=True)
class Inventory:
    """Amounts of both tokens in base units."""

    amount0: Amount
    amount1: Amount


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the pair: on-chain address (empty for recordings and models), symbol, decimals."""

    address: str
    symbol: str
    decimals: int


@dataclass(frozen=True, slots=True)
class MinerMetadata:
    """What a miner says of itself: shown, never scored."""

    version: str
    model_info: str


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The rules of one job (DESIGN section 3, "Job settings"), the same for all its miners.

    Attributes:
        target: `PoL` (the seed's formula), `MaxFees`, `MinIL` or `Balanced`.
        checkpoint_blocks: blocks between two asks of a round, > 0.
        min_in_range: block-weighted share of value in range below which a round counts as at most *keep*'s, 0 to 1.
        rebalance_cost: token1 base units taken from the final amount for each answer that changed something.
        max_positions: the most positions an answer may hold, 1 to `MAX_POSITIONS`.
        weight: this job's part of its mechanism's weights, relative to the other jobs.
        reputation: `excess` over *keep*, or the `seed`'s plain score, ranks the miners.
        shares: fractions of the job's weight by place; they sum to at most 1, the rest burns.
    """

    target: str = "PoL"
    checkpoint_blocks: int = 150
    min_in_range: Decimal = Decimal(0)
    rebalance_cost: Amount = 0
    max_positions: int = 10
    weight: Decimal = Decimal(1)
    reputation: str = "excess"
    shares: tuple[Decimal, ...] = (Decimal(1),)

    @classmethod
    def for_target(cls, target: str, **changes: Any) -> JobSettings:
        """The defaults for a target; MinIL asks for half of the value in range, else idling would win it."""
        return cls(**({"target": target, "min_in_range": Decimal("0.5" if target == "MinIL" else 0)} | changes))

    def __post_init__(self):
        for value in (self.min_in_range, self.weight, *self.shares):
            if not _DECIMAL.fullmatch(format(value, "f")):
                raise ProtocolError(Code.MALFORMED, f"job setting {value}: a number like 0.5, at most 40 decimals")
        problems = (
            (self.target in TARGETS, f"target {self.target!r}: one of {', '.join(TARGETS)}"),
            (self.checkpoint_blocks > 0, f"checkpoint_blocks {self.checkpoint_blocks}: at least 1"),
            (0 <= self.min_in_range <= 1, f"min_in_range {self.min_in_range}: 0 to 1"),
            (0 <= self.rebalance_cost <= UINT128_MAX, f"rebalance_cost {self.rebalance_cost}: 0 to 2**128 - 1"),
            (1 <= self.max_positions <= MAX_POSITIONS, f"max_positions {self.max_positions}: 1 to {MAX_POSITIONS}"),
            (self.reputation in REPUTATIONS, f"reputation {self.reputation!r}: one of {', '.join(REPUTATIONS)}"),
            (sum(map(Fraction, self.shares)) <= 1, f"shares {self.shares}: their sum is at most 1"),
        )
        for fine, problem in problems:
            if not fine:
                raise ProtocolError(Code.MALFORMED, f"job setting {problem}")


TARGETS = ("PoL", "MaxFees", "MinIL", "Balanced")
REPUTATIONS = ("excess", "seed")
ROUND_TYPES = ("evaluation", "live")


@dataclass(frozen=True, slots=True)
class RebalanceQuery:
    """What one miner is asked at one checkpoint: the market, and *its own* positions and tokens.

    Attributes (the seeds' first, then what they leave open):
        job_id, sn_liquidity_manager_address, pair_address, chain_id, round_id: whose money, which pool, which round.
        round_type: `evaluation` (simulated) or `live` (executed).
        block_number: the head this query describes; an answer acts later, see `rounds.py`.
        current_price: token1 per token0 in human units (decimals applied), as a decimal string of 18 significant
            digits.
        current_positions: this miner's positions, allocations being what closing each would release, without fees.
        inventory_remaining: this miner's idle tokens.
        rebalances_so_far: answers of this round that changed something.
        uncollected_fees: fees earned by the positions and not yet collected; spendable in the answer.
        block_hash, block_time: of `block_number`; time in unix seconds.
        sqrt_price_x96, tick, liquidity: the pool's state at `block_number`.
        fee, tick_spacing: the pool's, fee in pips (1e-6).
        token0, token1: address, symbol and decimals.
        window_start_time, window_end_time: the round's nominal start and end, unix seconds.
        window_start_block, window_end_block: the same in blocks, as expected at `block_number`: on a chain the opening
            is only known once it is mined.
        deadline: unix seconds by which the answer must be here.
        settings: the job's rules.
        version: of this protocol.
    """

    job_id: str
    sn_liquidity_manager_address: str
    pair_address: str
    chain_id: int
    round_id: str
    round_type: str
    block_number: int
    current_price: str
    current_positions: tuple[Position, ...]
    inventory_remaining: Inventory
    rebalances_so_far: int
    uncollected_fees: Inventory
    block_hash: str
    block_time: int
    sqrt_price_x96: SqrtPrice
    tick: int
    liquidity: Amount
    fee: int
    tick_spacing: int
    token0: Token
    token1: Token
    window_start_time: int
    window_end_time: int
    window_start_block: int
    window_end_block: int
    deadline: int
    settings: JobSettings
    version: str = PROTOCOL_VERSION

    def __post_init__(self):
        """A miner divides by the spacing and raises ten to the decimals: whoever asks is not trusted with that."""
        problems = (
            (0 < self.tick_spacing <= MAX_TICK, f"tick_spacing {self.tick_spacing}: 1 to {MAX_TICK}"),
            (MIN_TICK <= self.tick <= MAX_TICK, f"tick {self.tick}: {MIN_TICK} to {MAX_TICK}"),
            *((0 <= n <= 255, f"decimals {n}: 0 to 255") for n in (self.token0.decimals, self.token1.decimals)),
        )
        for fine, problem in problems:
            if not fine:
                raise ProtocolError(Code.MALFORMED, f"query {problem}")

    def holdings(self) -> tuple[int, int]:
        """All that an answer may spend: idle tokens, uncollected fees, and what closing every position releases."""
        idle, fees, held = self.inventory_remaining, self.uncollected_fees, self.current_positions
        return (
            idle.amount0 + fees.amount0 + sum(p.allocation0 for p in held),
            idle.amount1 + fees.amount1 + sum(p.allocation1 for p in held),
        )


@dataclass(frozen=True, slots=True)
class RebalanceAnswer:
    """What a miner says: a refusal, or the complete list of positions it wants to hold from now on.

    A desired position equal to a queried one (same ticks, same two amounts) keeps it untouched; queried positions that
    are not asked for are closed. So returning `current_positions` keeps everything, and `()` closes everything.
    """

    accepted: bool
    refusal_reason: str | None
    desired_positions: tuple[Position, ...]
    miner_metadata: MinerMetadata


def check_answer(answer: RebalanceAnswer, query: RebalanceQuery) -> None:
    """Hold an answer against the rules of its query; a refusal needs no further check.

    Args:
        answer: decoded, so of the right shape.
        query: what the miner was asked.

    Raises:
        ProtocolError: one code a rule, with the offending values: `TOO_MANY_POSITIONS`, `TICK_RANGE`, `TICK_ORDER`,
            `TICK_SPACING`, `AMOUNT_RANGE`, `OVER_ALLOCATED`. The sum that is checked is what was *declared*, not what
            the contract would use at today's price: a token that is not there must not wait in a range for the price to
            come.

    Source: DESIGN section 3, "Validity"; SN98's faults 4, 4b, 6 and 13, which these rules exclude.
    """
    if not answer.accepted:
        return
    spacing, positions = query.tick_spacing, answer.desired_positions
    if len(positions) > query.settings.max_positions:
        raise ProtocolError(
            Code.TOO_MANY_POSITIONS, f"{len(positions)} positions, at most {query.settings.max_positions}"
        )
    for n, p in enumerate(positions):
        if not (MIN_TICK <= p.tick_lower <= MAX_TICK and MIN_TICK <= p.tick_upper <= MAX_TICK):
            raise ProtocolError(
                Code.TICK_RANGE, f"position {n}: ticks {p.tick_lower}, {p.tick_upper}; bounds {MIN_TICK}, {MAX_TICK}"
            )
        if p.tick_lower >= p.tick_upper:
            raise ProtocolError(
                Code.TICK_ORDER, f"position {n}: tick_lower {p.tick_lower} >= tick_upper {p.tick_upper}"
            )
        if p.tick_lower % spacing or p.tick_upper % spacing:
            raise ProtocolError(
                Code.TICK_SPACING, f"position {n}: ticks {p.tick_lower}, {p.tick_upper} are not multiples of {spacing}"
            )
        if not (0 <= p.allocation0 <= UINT128_MAX and 0 <= p.allocation1 <= UINT128_MAX):
            raise ProtocolError(Code.AMOUNT_RANGE, f"position {n}: allocations {p.allocation0}, {p.allocation1}")
    held0, held1 = query.holdings()
    sum0, sum1 = sum(p.allocation0 for p in positions), sum(p.allocation1 for p in positions)
    if sum0 > held0 or sum1 > held1:
        raise ProtocolError(
            Code.OVER_ALLOCATED, f"declared {sum0} / {sum1} of token0 / token1, holdings {held0} / {held1}"
        )


def human_price(sqrt_price_x96: int, decimals0: int, decimals1: int) -> str:
    """Token1 per token0 in human units as a decimal string of 18 significant digits, rounded down, without exponent.

    Args:
        sqrt_price_x96: square root of token1 base units per token0 base unit, Q64.96.
        decimals0, decimals1: the tokens' decimals.
    """
    numerator, denominator = sqrt_price_x96**2 * 10**decimals0, 10**decimals1 << 192
    price = Context(prec=18, rounding=ROUND_DOWN).divide(Decimal(numerator), Decimal(denominator))
    text = format(price, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


# ---------------------------------------------------------------------------------------------------------------------
# Bytes: canonical JSON, and a codec that reads the dataclasses' own annotations

_STRING, _BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL), re.compile(rb"[\[\]{}]")
_UINT = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, lone surrogates
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,38})(\.[0-9]{1,40})?", re.ASCII)


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a plain value: sorted keys, no spaces, ASCII, no NaN; what is hashed and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(data: bytes) -> str:
    """sha256 of `data` in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def encode(message: Any) -> bytes:
    """A message (one of this module's dataclasses) as canonical JSON."""
    return canonical(to_plain(message))


def decode(cls: type[T], data: bytes, max_bytes: int) -> T:
    """Parse untrusted bytes into the dataclass `cls`, or say what is wrong with them.

    Args:
        cls: `RebalanceQuery`, `RebalanceAnswer` or any dataclass of this module.
        data: UTF-8 JSON, one object.
        max_bytes: the size limit, checked before anything is parsed.

    Raises:
        ProtocolError: `MALFORMED`, naming the field; `AMOUNT_RANGE` for amounts that are not uint128.
    """
    return from_plain(cls, parse_json(data, max_bytes))


def parse_json(data: bytes, max_bytes: int) -> Any:
    """Strict JSON: no duplicate keys, no floats, no NaN, no integer beyond 20 digits, no deep nesting.

    What is refused, and in which words, is the same on every Python: an audit elsewhere says it again.
    """
    if len(data) > max_bytes:
        raise ProtocolError(Code.MALFORMED, f"{len(data)} bytes, at most {max_bytes}")
    if _depth(data) > MAX_JSON_DEPTH:
        raise ProtocolError(Code.MALFORMED, "nested too deeply")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_float=_refuse("a number with a fraction or exponent: amounts are decimal strings"),
            parse_constant=_refuse("NaN or Infinity"),
            parse_int=_short_int,
        )
    except ProtocolError:
        raise
    except UnicodeDecodeError:
        raise ProtocolError(Code.MALFORMED, "not JSON: it is no UTF-8") from None
    except ValueError:
        raise ProtocolError(Code.MALFORMED, "not JSON") from None


def _depth(data: bytes) -> int:
    """The deepest nesting of brackets outside of strings."""
    deepest = depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProtocolError(Code.MALFORMED, "an object names a key twice")
    return found


def _refuse(what: str):
    def refuse(text: str):
        raise ProtocolError(Code.MALFORMED, f"{what} ({text[:40]})")

    return refuse


def _short_int(text: str) -> int:
    if len(text) > MAX_JSON_INT_DIGITS:
        raise ProtocolError(Code.MALFORMED, f"an integer of {len(text)} digits: amounts are decimal strings")
    return int(text)


def to_plain(value: Any) -> Any:
    """A message as dicts, lists, strings, ints, bools and None; amounts and decimals become strings."""
    if dataclasses.is_dataclass(value):
        parts = [(name, getattr(value, name), write, left_out) for name, write, _, left_out in _codec(type(value))]
        return {name: write(part) for name, part, write, left_out in parts if not left_out or part is not None}
    return value


def from_plain(cls: type[T], value: Any, where: str = "") -> T:
    """The inverse of `to_plain`, checking every type; `where` is the path for error messages."""
    where = where or cls.__name__
    if not isinstance(value, dict):
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, an object is expected")
    fields = _codec(cls)
    if unknown := value.keys() - {name for name, *_ in fields}:
        raise ProtocolError(Code.MALFORMED, f"{where} has an unknown field {min(unknown)[:40]!r}")
    if missing := [name for name, _, _, left_out in fields if name not in value and not left_out]:
        raise ProtocolError(Code.MALFORMED, f"{where} lacks the field {missing[0]!r}")
    return cls(**{name: read(value[name], f"{where}.{name}") for name, _, read, _ in fields if name in value})


LEFT_OUT = {"left_out": True}  # metadata of a dataclass's field that is not written at all while it is None


@cache
def _codec(cls: type) -> tuple[tuple[str, Any, Any, bool], ...]:
    """By field: name, writer, reader, whether None is left out."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((f.name, *_field_codec(hints[f.name]), "left_out" in f.metadata) for f in dataclasses.fields(cls))


def _field_codec(hint: Any) -> tuple[Any, Any]:
    """Writer and reader for one annotation."""
    if hint in (Amount, SqrtPrice, Word):
        bits = hint.__metadata__[1]
        return str, lambda value, where: _read_amount(value, where, bits)
    if hint is Decimal:
        return lambda value: format(value, "f"), _read_decimal
    if get_origin(hint) in (Union, types.UnionType):  # X | None
        write, read = _field_codec(get_args(hint)[0])
        return (
            lambda value: None if value is None else write(value),
            lambda value, where: None if value is None else read(value, where),
        )
    if get_origin(hint) is tuple:  # tuple[X, ...]
        write, read = _field_codec(get_args(hint)[0])
        return lambda value: [write(v) for v in value], lambda value, where: _read_list(value, where, read)
    if dataclasses.is_dataclass(hint):
        return to_plain, lambda value, where: from_plain(hint, value, where)
    return (lambda value: value), lambda value, where: _read_scalar(hint, value, where)


def _read_amount(value: Any, where: str, bits: int) -> int:
    if not isinstance(value, str) or not _UINT.fullmatch(value) or int(value) >> bits:
        shown = repr(value[:50]) if isinstance(value, str) else _kind(value)
        raise ProtocolError(Code.AMOUNT_RANGE, f"{where} is {shown}, a decimal string 0 to 2**{bits} - 1 is expected")
    return int(value)


def _read_decimal(value: Any, where: str) -> Decimal:
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, a decimal string like '0.5' is expected")
    return Decimal(value)


def _read_list(value: Any, where: str, read: Any) -> tuple:
    if not isinstance(value, list):
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, a list is expected")
    return tuple(read(item, f"{where}[{n}]") for n, item in enumerate(value))


def _read_scalar(cls: type, value: Any, where: str) -> Any:
    if type(value) is not cls:  # not isinstance: True is an int
        raise ProtocolError(Code.MALFORMED, f"{where} is {_kind(value)}, {cls.__name__} is expected")
    if cls is str and len(value) > MAX_TEXT_CHARS:
        raise ProtocolError(Code.MALFORMED, f"{where} has {len(value)} characters, at most {MAX_TEXT_CHARS}")
    if cls is str and (found := _UNSHOWABLE.search(value)):
        raise ProtocolError(Code.MALFORMED, f"{where} has the character U+{ord(found[0]):04X}, which is not text")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "a boolean"}
    return names.get(type(value), "null")
