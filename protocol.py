"""The messages between validator and miner: what may be said, in which bytes, and why an answer is refused.

One exchange, as it travels (canonical JSON inside signed HTTP, see `wire/codec.py`)::

    validator -> miner   POST /rebalance   RebalanceQuery   "this is the market, these are your positions and tokens"
    miner -> validator   200               RebalanceAnswer  "accepted; these positions, please"    or a refusal

Amounts are integers of token base units; in JSON they are decimal strings, because JSON numbers lose digits above
2**53. Ticks, blocks and times are plain JSON integers. There are no floats.

Pure: no clock, no I/O. `python -m pytest tests/test_protocol.py` shows each rule at work.
Read next: `sim.py` (what a position earns), `scoring.py` (what that is worth), `liquidity/rounds.py` (both together).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Context, Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Any

PROTOCOL_VERSION = "alm/1"
MIN_TICK, MAX_TICK = -887272, 887272  # Uniswap v3-core TickMath: sqrt(1.0001**tick) fits a Q64.96
UINT128_MAX = 2**128 - 1
ASK_SECONDS = 60  # total deadline of one ask
FIRST_ASK_LEAD_SECONDS = 75  # the first ask leaves at the first head at or after t0 - 75 s ...
FIRST_ASK_DEADLINE_SECONDS = 15  # ... and must be answered by t0 - 15 s
PACE_BLOCKS = 1000  # a query's expected blocks go by the pace of so many blocks before it
MAX_QUERY_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 32 * 1024
MAX_POSITIONS = 64  # the most that any job may allow in `max_positions`
MAX_TEXT_CHARS = 300  # refusal reason, model info
TARGETS = ("PoL", "MaxFees", "MinIL", "Balanced")
REPUTATIONS = ("excess", "seed")
ROUND_TYPES = ("evaluation", "live")
DECIMAL_TEXT = re.compile(r"(0|[1-9][0-9]{0,38})(\.[0-9]{1,40})?", re.ASCII)
LEFT_OUT = {"left_out": True}  # metadata of a dataclass's field that is not written at all while it is None


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
    EXECUTION_REFUSED = "execution_refused"  # no node takes the transaction
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


def _require(what: str, rules: Iterable[tuple[bool, str]]) -> None:
    for kept, problem in rules:
        if not kept:
            raise ProtocolError(Code.MALFORMED, f"{what} {problem}")


# ---------------------------------------------------------------------------------------------------------------------
# Messages

# what is a decimal string in JSON, and its bits
Amount = Annotated[int, "decimal string", 128]  # token base units or liquidity
SqrtPrice = Annotated[int, "decimal string", 160]  # square root of the price, Q64.96
Word = Annotated[int, "decimal string", 256]  # of the pool: fee growth, X128, modulo 2**256


@dataclass(frozen=True, slots=True)
class Position:
    """A price range, and the tokens that closing it would release now, without fees.

    In an answer the allocations are what the miner puts in at most: the contract takes both tokens in the ratio of
    price and range, the rest goes back to idle.
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
    """The rules of one job, the same for all its miners.

    Attributes:
        target: of `TARGETS`; see `scoring.score_outcome`.
        checkpoint_blocks: blocks between two asks of a round, > 0.
        min_in_range: block-weighted share of value in range below which a round counts as at most *keep*'s, 0 to 1.
        rebalance_cost: token1 base units taken from the final amount for each answer that changed something.
        max_positions: the most positions an answer may hold, 1 to `MAX_POSITIONS`.
        weight: this job's part of its mechanism's weights, relative to the other jobs.
        reputation: `excess` over *keep*, or the plain score (`seed`), ranks the miners.
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
            if not DECIMAL_TEXT.fullmatch(format(value, "f")):
                raise ProtocolError(Code.MALFORMED, f"job setting {value}: a number like 0.5, at most 40 decimals")
        rules = (
            (self.target in TARGETS, f"target {self.target!r}: one of {', '.join(TARGETS)}"),
            (self.checkpoint_blocks > 0, f"checkpoint_blocks {self.checkpoint_blocks}: at least 1"),
            (0 <= self.min_in_range <= 1, f"min_in_range {self.min_in_range}: 0 to 1"),
            (0 <= self.rebalance_cost <= UINT128_MAX, f"rebalance_cost {self.rebalance_cost}: 0 to 2**128 - 1"),
            (1 <= self.max_positions <= MAX_POSITIONS, f"max_positions {self.max_positions}: 1 to {MAX_POSITIONS}"),
            (self.reputation in REPUTATIONS, f"reputation {self.reputation!r}: one of {', '.join(REPUTATIONS)}"),
            (sum(map(Fraction, self.shares)) <= 1, f"shares {self.shares}: their sum is at most 1"),
        )
        _require("job setting", rules)


@dataclass(frozen=True, slots=True)
class RebalanceQuery:
    """What one miner is asked at one checkpoint: the market, and *its own* positions and tokens.

    Attributes:
        sn_liquidity_manager_address, pair_address: the vault, and the pool.
        round_type: `evaluation` (simulated) or `live` (executed).
        block_number: the head this query describes; an answer acts later, see `rounds.py`.
        current_price: see `human_price`.
        current_positions, inventory_remaining: this miner's positions and idle tokens.
        rebalances_so_far: answers of this round that changed something.
        uncollected_fees: earned by the positions and not yet collected; spendable in the answer.
        block_time, deadline, window_start_time, window_end_time: unix seconds; the window is the round's nominal one.
        window_start_block, window_end_block: the same in blocks, as expected at `block_number`: on a chain the opening
            is only known once it is mined.
        fee: in pips (1e-6).
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
        rules = (
            (0 < self.tick_spacing <= MAX_TICK, f"tick_spacing {self.tick_spacing}: 1 to {MAX_TICK}"),
            (MIN_TICK <= self.tick <= MAX_TICK, f"tick {self.tick}: {MIN_TICK} to {MAX_TICK}"),
            *((0 <= n <= 255, f"decimals {n}: 0 to 255") for n in (self.token0.decimals, self.token1.decimals)),
        )
        _require("query", rules)

    def holdings(self) -> tuple[int, int]:
        """All that an answer may spend: idle tokens, uncollected fees, and what closing every position releases."""
        idle, fees, held = self.inventory_remaining, self.uncollected_fees, self.current_positions
        held0, held1 = sum(p.allocation0 for p in held), sum(p.allocation1 for p in held)
        return idle.amount0 + fees.amount0 + held0, idle.amount1 + fees.amount1 + held1


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


def check_answer(answer: RebalanceAnswer, query: RebalanceQuery, keeps: bool = True) -> None:
    """Hold a decoded answer against the rules of its query; a refusal needs no further check.

    What only keeps shown positions may keep any number of them; by the rules of version 1, without `keeps`, not.

    Raises:
        ProtocolError: one code a rule, with the offending values: `TOO_MANY_POSITIONS`, `TICK_RANGE`, `TICK_ORDER`,
            `TICK_SPACING`, `AMOUNT_RANGE`, `OVER_ALLOCATED`. The sum that is checked is what was *declared*, not what
            the contract would use at today's price: a token that is not there must not wait in a range for the price to
            come.
    """
    if not answer.accepted:
        return
    spacing, positions, most = query.tick_spacing, answer.desired_positions, query.settings.max_positions
    if len(positions) > most and not (keeps and Counter(positions) <= Counter(query.current_positions)):
        raise ProtocolError(Code.TOO_MANY_POSITIONS, f"{len(positions)} positions, at most {most}")
    for n, p in enumerate(positions):
        lower, upper, ticks = p.tick_lower, p.tick_upper, f"position {n}: ticks {p.tick_lower}, {p.tick_upper}"
        if not (MIN_TICK <= lower <= MAX_TICK and MIN_TICK <= upper <= MAX_TICK):
            raise ProtocolError(Code.TICK_RANGE, f"{ticks}; bounds {MIN_TICK}, {MAX_TICK}")
        if lower >= upper:
            raise ProtocolError(Code.TICK_ORDER, f"position {n}: tick_lower {lower} >= tick_upper {upper}")
        if lower % spacing or upper % spacing:
            raise ProtocolError(Code.TICK_SPACING, f"{ticks} are not multiples of {spacing}")
        if not (0 <= p.allocation0 <= UINT128_MAX and 0 <= p.allocation1 <= UINT128_MAX):
            raise ProtocolError(Code.AMOUNT_RANGE, f"position {n}: allocations {p.allocation0}, {p.allocation1}")
    held0, held1 = query.holdings()
    sum0, sum1 = sum(p.allocation0 for p in positions), sum(p.allocation1 for p in positions)
    if sum0 > held0 or sum1 > held1:
        text = f"declared {sum0} / {sum1} of token0 / token1, holdings {held0} / {held1}"
        raise ProtocolError(Code.OVER_ALLOCATED, text)


def human_price(sqrt_price_x96: int, decimals0: int, decimals1: int) -> str:
    """Token1 per token0 in human units as a decimal string of 18 significant digits, rounded down, without exponent."""
    numerator, denominator = sqrt_price_x96**2 * 10**decimals0, 10**decimals1 << 192
    price = Context(prec=18, rounding=ROUND_DOWN).divide(Decimal(numerator), Decimal(denominator))
    text = format(price, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


# ---------------------------------------------------------------------------------------------------------------------
# A round: what every mechanism's rounds share, see `spine/mechanism.py`


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, time in unix seconds, and hash (0x and 64 hex digits)."""

    number: int
    time: int
    hash: str


@dataclass(frozen=True, slots=True)
class Pair:
    """What a market trades, and where; fee in pips (1e-6)."""

    chain_id: int
    pool_address: str
    token0: Token
    token1: Token
    fee: int
    tick_spacing: int


@dataclass(frozen=True, slots=True)
class Job:
    """One task: whose vault, which rules, how long a round is."""

    job_id: str
    vault: str
    round_seconds: int
    settings: JobSettings
    live: bool = True
    active: bool = True
    mechanism: str = "liquidity"


@dataclass(frozen=True, slots=True)
class Moment:
    """When and for what a miner is asked.

    Attributes:
        start: of the round, nominal, unix seconds.
        head, past: the last complete block, and one `PACE_BLOCKS` before it or the market's first: blocks to come are
            expected at this pace.
    """

    job: Job
    pair: Pair
    round_id: str
    round_type: str
    start: int
    head: Block
    past: Block

    @property
    def deadline(self) -> int:
        """By when the answer must be here, unix seconds: of a first ask so early that nobody knows the opening yet."""
        deadline = self.head.time + ASK_SECONDS
        return min(deadline, self.start - FIRST_ASK_DEADLINE_SECONDS) if self.head.time < self.start else deadline


@dataclass(frozen=True, slots=True)
class Entrant:
    """A miner that accepted the first ask.

    Attributes:
        registered_block: on the subnet's chain; the older of two equal books keeps its score.
        combined: reputation before this round, which breaks ties.
    """

    hotkey: str
    registered_block: int
    combined: Decimal


@dataclass(frozen=True, slots=True)
class RoundResult:
    """A round's outcome: `code` is `SCORED` or says why there are no scores, `detail` in words.

    Attributes:
        lines: by rank; each has `name` (the hotkey), `score`, `rank`, `copy_of`, and its mechanism's own terms.
        baselines: lines of what nobody proposed, by name, in the order in which they are shown.
        benchmark: the baseline's name whose score is subtracted for the excess; empty where the excess is the score.
        swaps: events of the market that moved its price.
    """

    code: Code
    detail: str
    lines: tuple[Any, ...] = ()
    baselines: Mapping[str, Any] = field(default_factory=dict)
    benchmark: str = ""
    swaps: int = 0

    @property
    def benchmark_score(self) -> Decimal:
        return self.baselines[self.benchmark].score if self.benchmark else Decimal(0)
