"""The audit: a round recomputed from its evidence, every part that differs named by its path.

    problems = audit(evidence)                          # empty: every digit agrees

What it can and cannot find is at the top of `evidence.py`. Read first: `evidence.py`.
"""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from decimal import Decimal
from itertools import islice
from typing import Any

from audit.evidence import FORMAT, SEAL_SCHEME, EvidenceError, digests_of
from liquidity.events import Event, ReplayError
from liquidity.executions import Execution, Sent, execution_of
from liquidity.judging import judge, kept
from liquidity.live import FLOWS, LiveInputs, acted, own_events, play_live, sums_of, was_carried_out
from liquidity.replay import Snapshot
from liquidity.rounds import Decision, Entrant, Round, RoundInputs, RoundResult, plan, play
from liquidity.tape import Holding, Tape
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    PROTOCOL_VERSION,
    ROUND_TYPES,
    Code,
    Inventory,
    JobSettings,
    Position,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    human_price,
)
from scoring import RULES_VERSION
from sim import MAX_TICK, MIN_TICK, PIPS, PoolError, sqrt_ratio_at_tick
from wire.codec import canonical, decode, digest, from_plain, to_json, to_plain
from wire.signing import verify_answer, verify_statement
from wire.text import differences, ordered, quoted, quoted_name

MAX_MALFORMED = 100  # so many malformed parts are named; the rest adds nothing
PLAYED = (  # these ends are recomputed, the last one as far as the table above says
    Code.SCORED,
    Code.NOBODY_RANKED,
    Code.VOID_UNKNOWN_SWAP,
    Code.EMPTY_VAULT,
    Code.LIVE_FOREIGN_TRANSFER,
)
BROKEN = (Code.VOID_INTERRUPTED, Code.VOID_CONTRADICTION, Code.VOID_GAP)  # a round that may have no close
SKIPPED = (Code.LIVE_NO_WINNER, Code.LIVE_NOT_ELIGIBLE, Code.LIVE_WINNER_GONE, Code.LIVE_READ_ONLY_MARKET)
SILENT = (  # what an ask without an answer may have ended with; of a committed miner it is KEPT for one of these
    Code.TIMEOUT,
    Code.UNREACHABLE,
    Code.NO_ENDPOINT,
    Code.ADDRESS_REFUSED,
    Code.HTTP_STATUS,
    Code.REDIRECT,
    Code.CONTENT_TYPE,
    Code.REPLY_TOO_LARGE,
    Code.REPLY_SIGNATURE,
)

SHAPE = {  # a list of one: any number of them; "?": or null; "object" and "list": looked at elsewhere
    "format": "text",
    "rules_version": "number",
    "validator": "text",
    "market": "text",
    "pool": "text",
    "round": {
        "round_id": "text",
        "job_id": "text",
        "round_type": "text",
        "start_time": "number",
        "end_time": "number",
        "settings": "object",
        "opening_block": "number?",
        "opening_hash": "text?",
        "close_block": "number?",
        "code": "text",
        "detail": "text",
        "winner": "text?",
        "asked": "number",
        "swaps": "number",
    },
    "snapshot": "object?",
    "events": [("digits", "digits", "digits", "text", ["text"])],
    "asks": [
        {
            "round_id": "text",
            "hotkey": "text",
            "due_block": "number",
            "query": "base64",
            "answer": "base64",
            "signature": "text",
            "nonce": "digits",
            "code": "text",
            "detail": "text",
            "effective_block": "number?",
            "response_seconds": "seconds",
        }
    ],
    "entrants": [{"round_id": "text", "hotkey": "text", "registered_block": "number", "combined": "decimal"}],
    "executions": [{"block": "number", "vault": "text", "execution": "object"}],
    "scores": "list",
    "baselines": "object",
    "seal": {"digests": "object", "signature": "text"},
}
_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,77}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,12}\.[0-9]{6}", re.ASCII)
_HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
_SPELLING = {"number": "a JSON integer", "digits": "an integer as a decimal string", "decimal": "a number as a string"}
_MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, ReplayError, PoolError)


def audit(evidence: Any) -> list[str]:
    """Recompute a round from its evidence.

    Args:
        evidence: parsed JSON of the format above, from anywhere.

    Returns:
        What differs, each as `path: what`; empty when everything agrees to the last digit.

    Raises:
        EvidenceError: another format, or rules that this version does not have.
    """
    if not isinstance(evidence, dict):
        raise EvidenceError(f"not an object, this program audits {FORMAT}")
    if evidence.get("format") != FORMAT:
        raise EvidenceError(f"format {quoted(evidence.get('format'))}, this program audits {FORMAT}")
    rules_version = evidence.get("rules_version")
    if type(rules_version) is not int or rules_version != RULES_VERSION:
        found = quoted(rules_version)
        raise EvidenceError(f"rules version {found}, this program has {RULES_VERSION}: use the release that has them")
    if problems := list(islice(_malformed(evidence, SHAPE, ""), MAX_MALFORMED)):
        return problems
    problems = []
    try:
        problems.extend(_check_seal(evidence))
        parts = _parts(evidence)
    except _MALFORMED as error:
        return [*problems, _said(error)]
    for check in CHECKS:
        try:
            for problem in check(parts):
                problems.append(problem)
        except _MALFORMED as error:
            problems.append(f"{check.__name__.removeprefix('_check_')}: cannot be recomputed: {_said(error)}")
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# Shape and seal


def _malformed(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Every part that is not of its type, missing, or unknown."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{path}: {quoted(value)}, an object is expected"
            return
        for key in [*shape, *sorted(value.keys() - shape.keys(), key=str)]:
            at = f"{path}.{quoted_name(key)}".lstrip(".")
            if key not in shape or key not in value:
                yield f"{at}: " + ("missing" if key in shape else "unknown")
            else:
                yield from _malformed(value[key], shape[key], at)
    elif isinstance(shape, list | tuple):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            what = f"a list of {len(shape)}" if isinstance(shape, tuple) else "a list"
            yield f"{path}: {quoted(value)}, {what} is expected"
            return
        for n, item in enumerate(value):
            yield from _malformed(item, shape[n if isinstance(shape, tuple) else 0], f"{path}[{n}]")
    elif not (shape.endswith("?") and value is None) and not _is(value, shape.rstrip("?")):
        yield f"{path}: {quoted(value)}, {_SPELLING.get(shape.rstrip('?'), shape)} is expected"


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of one of the kinds in `SHAPE`, in its one spelling."""
    types = {"number": int, "object": dict, "list": list}
    if type(value) is not types.get(kind, str):  # not isinstance: True is an int
        return False
    match kind:
        case "number":
            return abs(value) < 2**63
        case "digits":
            return bool(_DIGITS.fullmatch(value))
        case "seconds":
            return bool(_SECONDS.fullmatch(value))
        case "decimal":
            try:
                return len(value) < 200 and str(number := Decimal(value)) == value and number.is_finite()
            except ArithmeticError:
                return False
        case "base64":
            try:
                return base64.b64encode(base64.b64decode(value, validate=True)).decode() == value
            except ValueError:
                return False
    return True


def _check_seal(evidence: dict[str, Any]) -> Iterator[str]:
    found, sealed = dict(digests_of(evidence)), evidence["seal"]["digests"]
    if not verify_statement(evidence["validator"], SEAL_SCHEME, canonical(sealed), evidence["seal"]["signature"]):
        yield "seal.signature: not the validator's over these digests"
    for path in found | sealed:
        if found.get(path) != sealed.get(path):
            yield f"{quoted_name(path)}: is not what the validator sealed"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True, slots=True)
class _Ask:
    """One ask; `path` names it in messages, `answer` is what was accepted."""

    path: str
    stored: dict[str, Any]
    query: RebalanceQuery
    body: bytes
    answer: RebalanceAnswer | None

    @property
    def hotkey(self) -> str:
        return self.stored["hotkey"]

    @property
    def first(self) -> bool:
        """Whether it is the round's first ask, before the opening."""
        return self.query.block_time < self.query.window_start_time

    def decision(self) -> Decision:
        shown, desired = self.query.current_positions, self.answer.desired_positions
        return Decision(self.hotkey, self.stored["effective_block"], shown, desired)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Evidence of the right shape, as objects."""

    evidence: dict[str, Any]
    row: dict[str, Any]
    settings: JobSettings
    snapshot: Snapshot | None
    events: tuple[Event, ...]
    asks: list[_Ask]
    executions: list[Execution]

    @property
    def live(self) -> bool:
        return self.row["round_type"] == "live"

    @property
    def played(self) -> bool:
        """Whether it came to its close, so that there is something to compute."""
        return self.row["close_block"] is not None

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(ask.decision() for ask in self.asks if ask.answer)


def _parts(evidence: dict[str, Any]) -> _Parts:
    """Raises one of `_MALFORMED`, naming the part."""
    snapshot, events, asks = None, [], []
    if evidence["snapshot"] is None and evidence["round"]["close_block"] is not None:
        raise ValueError("snapshot: null, and the round has a close_block")
    if evidence["snapshot"] is not None:
        snapshot = from_plain(Snapshot, evidence["snapshot"], "snapshot")
        if not (0 <= snapshot.fee < PIPS and 0 < snapshot.tick_spacing <= MAX_TICK):
            raise ValueError(f"snapshot.fee, tick_spacing: {snapshot.fee}, {snapshot.tick_spacing} are no pool's")
    for n, (block, log_index, time, kind, args) in enumerate(evidence["events"]):
        with _named(f"events[{n}]"):
            events.append(Event(int(block), int(log_index), int(time), kind, event_args(kind, args)))
    for n, ask in enumerate(evidence["asks"]):
        body, answer = base64.b64decode(ask["answer"]), None
        with _named(f"asks[{n}].query"):
            query = decode(RebalanceQuery, base64.b64decode(ask["query"]), MAX_QUERY_BYTES)
        if ask["effective_block"] is not None:
            with _named(f"asks[{n}].answer"):
                answer = decode(RebalanceAnswer, body, MAX_ANSWER_BYTES)
        asks.append(_Ask(f"asks[{n}]", ask, query, body, answer))
    executions = []
    for n, stored in enumerate(evidence["executions"]):
        with _named(f"executions[{n}].execution"):
            executions.append(execution_of(stored["execution"]))
    settings = from_plain(JobSettings, evidence["round"]["settings"], "round.settings")
    return _Parts(evidence, evidence["round"], settings, snapshot, tuple(events), asks, executions)


def event_args(kind: str, args: list[str]) -> tuple:
    """Event arguments from their decimal strings; calls and owners stay text."""
    textual = kind in ("swap", "mint", "burn", "collect", "stake", "unstake")
    if kind == "swap" and args[0] not in ("in", "out", "limit", "?"):
        raise ValueError(f"{quoted(args[0])} is no call of a swap")
    return tuple(arg if textual and n == 0 else _integer(arg) for n, arg in enumerate(args))


def _integer(text: str) -> int:
    if not _DIGITS.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no integer")
    return int(text)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors inside begin with the path."""
    try:
        yield
    except _MALFORMED as error:
        raise ValueError(f"{path}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """An error as part of a message."""
    return error.detail if isinstance(error, ProtocolError) else f"{quoted(str(error) or type(error).__name__)}"


# ---------------------------------------------------------------------------------------------------------------------
# The round


def _check_round(parts: _Parts) -> Iterator[str]:
    """Names, times and blocks fit together, and how it ended allows for what came of it."""
    evidence, row, snapshot = parts.evidence, parts.row, parts.snapshot
    start, end, opening, close = (row[name] for name in ("start_time", "end_time", "opening_block", "close_block"))
    if row["round_type"] not in ROUND_TYPES:
        yield f"round.round_type: {quoted(row['round_type'])}, one of {', '.join(ROUND_TYPES)} is expected"
    yield from differences("round.round_id", row["round_id"], f"{row['job_id']}:{row['round_type']}:{start}")
    if not start < end or start % (end - start):
        yield f"round.end_time: {start} to {end}, a round starts at a multiple of its length"
    yield from differences("round.settings", row["settings"], to_plain(parts.settings))
    for name in ("asks", "entrants"):
        for n, item in enumerate(evidence[name]):
            yield from differences(f"{name}[{n}].round_id", item["round_id"], row["round_id"])
    yield from ordered("asks", [(ask["due_block"], ask["hotkey"]) for ask in evidence["asks"]])
    yield from ordered("entrants", [entrant["hotkey"] for entrant in evidence["entrants"]])
    yield from ordered("executions", [execution["block"] for execution in evidence["executions"]])
    yield from _check_end(parts)
    if (snapshot is None) != (opening is None) or (opening is None) != (row["opening_hash"] is None):
        yield f"round.opening_block, opening_hash: {opening}, {'a' if snapshot else 'no'} snapshot"
    elif snapshot:
        yield from differences("round.opening_block", opening, snapshot.block)
        yield from differences("round.opening_hash", row["opening_hash"], snapshot.block_hash)
        yield from differences("snapshot", evidence["snapshot"], to_plain(snapshot))
        yield from _check_pool(snapshot)
        if not start <= snapshot.block_time < end:
            yield f"snapshot.block_time: {snapshot.block_time}, the round is from {start} to {end}"
        if parts.played and not opening < close:
            yield f"round.close_block: {close}, it opened at {opening}"
        yield from _check_events(parts)


def _check_pool(snapshot: Snapshot) -> Iterator[str]:
    """Price, tick, liquidity and the initialised ticks are those of one pool."""
    price, tick, liquidity, sum_of_nets = snapshot.sqrt_price_x96, snapshot.tick, 0, 0
    if not (MIN_TICK <= tick < MAX_TICK and sqrt_ratio_at_tick(tick) <= price <= sqrt_ratio_at_tick(tick + 1)):
        yield f"snapshot.tick: {tick} is not at sqrt_price_x96 {price}"
    yield from ordered("snapshot.ticks", [mark.index for mark in snapshot.ticks])
    known, staked = snapshot.slipstream, 0
    for n, mark in enumerate(snapshot.ticks):
        if (mark.staked_liquidity_net is None) != (known is None):
            yield f"snapshot.ticks[{n}].staked_liquidity_net: {quoted(mark.staked_liquidity_net)} in such a pool"
        elif known and mark.index <= tick:
            staked += _integer(mark.staked_liquidity_net)
        net = _integer(mark.liquidity_net)
        sum_of_nets += net
        liquidity += net if mark.index <= tick else 0
        if mark.index % snapshot.tick_spacing or not MIN_TICK <= mark.index <= MAX_TICK:
            yield f"snapshot.ticks[{n}].index: {mark.index} cannot be initialised"
        if mark.liquidity_gross < abs(net) or (mark.liquidity_gross - net) % 2:
            yield f"snapshot.ticks[{n}].liquidity_gross: {mark.liquidity_gross} with a net of {net}"
    if sum_of_nets or liquidity != snapshot.liquidity:
        yield f"snapshot.liquidity: {snapshot.liquidity}, the ticks give {liquidity} and leave {sum_of_nets} at the end"
    if known and staked != known.staked_liquidity:
        yield f"snapshot.slipstream.staked_liquidity: {known.staked_liquidity}, the ticks give {staked}"
    if known and not 0 <= known.unstaked_fee <= PIPS:
        yield f"snapshot.slipstream.unstaked_fee: {known.unstaked_fee} is no fee"


def _check_end(parts: _Parts) -> Iterator[str]:
    """A round ends in one of few ways; before its close nothing comes of it."""
    evidence, row, code = parts.evidence, parts.row, parts.row["code"]
    if parts.played:
        if code not in (*PLAYED, Code.VOID_CONTRADICTION):
            yield f"round.code: {quoted(code)}, such a round has no close_block"
        return
    ended = {"winner": None, "swaps": 0, "asked": 0}
    if parts.live and len(parts.asks) == 1 and parts.snapshot is None and code not in BROKEN:
        ask = parts.asks[0].stored  # it ended with its first ask
        ended |= {"code": ask["code"], "detail": f"{ask['hotkey']}: {ask['detail']}", "asked": 1}
        if ask["code"] == Code.ACCEPTED:
            yield "round.code: accepted, and yet nothing came of it"
    elif code in PLAYED:
        yield f"round.close_block: null, a round that ended with {code} has one"
    elif code not in BROKEN and not (parts.live and code in SKIPPED):
        yield f"round.code: {quoted(code)}, no {quoted(row['round_type'])} round ends so"
    yield from differences("round", {name: row[name] for name in ended}, ended)
    for name in ("scores", "baselines", "events"):
        if evidence[name]:
            yield f"{name}: a round that ended before its close has none"


def _check_events(parts: _Parts) -> Iterator[str]:
    snapshot, events, last = parts.snapshot, parts.events, None
    yield from ordered("events", [(event.block, event.log_index) for event in events])
    for n, event in enumerate(events):
        if not snapshot.block <= event.block < parts.row["close_block"]:
            yield f"events[{n}]: block {event.block} is not of the round"
        block, time = (last.block, last.time) if last else (snapshot.block, snapshot.block_time)
        if not time <= event.time < parts.row["end_time"] or (event.block == block and event.time != time):
            yield f"events[{n}]: time {event.time} in block {event.block}, block {block} was at {time}"
        last = event


# ---------------------------------------------------------------------------------------------------------------------
# The asks


def _check_asks(parts: _Parts) -> Iterator[str]:
    """Each answer is the miner's, its code follows from its bytes, and it was asked for when it was due."""
    evidence, opening, asks = parts.evidence, parts.row["opening_block"], parts.asks
    entered = {entrant["hotkey"] for entrant in evidence["entrants"]}
    for ask in asks:
        path, code, due, acts = ask.path, *(ask.stored[name] for name in ("code", "due_block", "effective_block"))
        head = ask.query.block_number
        yield from _check_answer(evidence["validator"], ask)
        if (code == Code.ACCEPTED) != (acts is not None):
            yield f"{path}.effective_block: {acts}, an answer acts if and only if it is accepted"
        elif acts is not None and ask.first and not parts.live:
            yield from differences(f"{path}.effective_block", acts, opening)
        elif acts is not None and not acts > max(head, opening or 0):
            yield f"{path}.effective_block: {acts} is not after block {head}, which the query shows"
        if code == Code.KEPT if ask.first else code not in (Code.ACCEPTED, Code.KEPT):
            yield f"{path}.code: {quoted(code)} {'at a first ask' if ask.first else 'from a miner that is committed'}"
        if ask.hotkey != asks[0].hotkey if parts.live else not ask.first and ask.hotkey not in entered:
            yield f"{path}.hotkey: {quoted(ask.hotkey)} is not in the round"
        since = due - opening if opening is not None else 0
        if since if ask.first else not 0 < since <= head - opening or since % parts.settings.checkpoint_blocks:
            yield f"{path}.due_block: {due}, the round opened at {opening}, the query shows block {head}"
    accepted = set() if parts.live else {ask.hotkey for ask in asks if ask.first and ask.answer}
    for n, entrant in enumerate(evidence["entrants"]):
        if entrant["hotkey"] not in accepted:
            yield f"entrants[{n}].hotkey: {quoted(entrant['hotkey'])} did not accept a first ask"
    for hotkey in sorted(accepted - entered):
        yield f"entrants: {quoted(hotkey)} accepted the first ask and is not among them"


def _check_answer(validator: str, ask: _Ask) -> Iterator[str]:
    path, stored, body = ask.path, ask.stored, ask.body
    if not body and not stored["signature"]:
        why = stored["code"] if ask.first else stored["detail"].partition(":")[0]
        if stored["code"] not in (*SILENT, Code.KEPT) or why not in SILENT:
            yield f"{path}.code: {quoted(stored['code'])}, {quoted(stored['detail'])} without an answer"
        return
    signed = verify_answer(
        request_digest=digest(base64.b64decode(stored["query"])),
        nonce=int(stored["nonce"]),
        validator_hotkey=validator,
        miner_hotkey=ask.hotkey,
        body=body,
        signature=stored["signature"],
    )
    if not signed:
        yield f"{path}.signature: not {quoted(ask.hotkey)}'s over this answer to this query"
    code, detail, _ = judge(body, ask.query)
    code, detail = (code, detail) if ask.first else kept(code, detail)
    if stored["code"] != code:
        yield f"{path}.code: {quoted(stored['code'])}, the answer's bytes say {code}"
    if stored["detail"] != detail:
        yield f"{path}.detail: {quoted(stored['detail'])}, the answer's bytes say {quoted(detail)}"


def _check_queries(parts: _Parts) -> Iterator[str]:
    """Every query is of this round, and says what the others of the round, and of its block, say."""
    row, at_head = parts.row, {}
    for ask in parts.asks:
        query, other = ask.query, parts.asks[0].query
        same = at_head.setdefault(query.block_number, query)
        if ask.first and query != same:  # one for all; the market before the opening is not in the evidence
            yield from differences(f"{ask.path}.query", to_plain(query), to_plain(same))
        deadline = query.block_time + ASK_SECONDS
        again = replace(
            query,
            job_id=row["job_id"],
            round_id=row["round_id"],
            round_type=row["round_type"],
            pair_address=parts.evidence["pool"],
            sn_liquidity_manager_address=other.sn_liquidity_manager_address,
            chain_id=other.chain_id,
            token0=other.token0,
            token1=other.token1,
            tick_spacing=other.tick_spacing,
            block_hash=same.block_hash,
            block_time=same.block_time,
            window_start_block=same.window_start_block,
            window_end_block=same.window_end_block,
            window_start_time=row["start_time"],
            window_end_time=row["end_time"],
            deadline=min(deadline, row["start_time"] - FIRST_ASK_DEADLINE_SECONDS) if ask.first else deadline,
            current_price=human_price(query.sqrt_price_x96, other.token0.decimals, other.token1.decimals),
            rebalances_so_far=0 if ask.first else query.rebalances_so_far,
            settings=parts.settings,
            version=PROTOCOL_VERSION,
        )
        if again != query:
            yield from differences(f"{ask.path}.query", to_plain(query), to_plain(again))
    if len({ask.query.block_number for ask in parts.asks if ask.first}) > 1:
        yield "asks: the first asks show different blocks"


def _check_shown(parts: _Parts) -> Iterator[str]:
    """Every later query showed the market, and the miner its own book, as they then stood: advance from ask to ask."""
    if not parts.played:
        return
    game, events = Round(parts.settings, parts.snapshot), deque(parts.events)
    for entrant in parts.evidence["entrants"]:
        game.enter(entrant["hotkey"])
    waiting = deque(sorted((d for d in parts.decisions if d.hotkey in game.books), key=lambda decision: decision.block))
    for ask in sorted((ask for ask in parts.asks if not ask.first), key=lambda ask: ask.query.block_number):
        query, head = ask.query, ask.query.block_number
        try:
            while events and events[0].block <= head:
                game.feed([events.popleft()])
        except (ReplayError, PoolError):
            return  # then the round is void, which is looked at with its result
        while waiting and waiting[0].block <= head:
            game.decide(waiting.popleft())
        pool, price = game.tape.pool, game.tape.price_before(head + 1)
        again = replace(query, sqrt_price_x96=price, tick=pool.tick, liquidity=pool.liquidity, fee=pool.fee)
        if parts.live:
            done = sum(acted(execution) and execution.block <= head for execution in parts.executions)
            untouched = not game.tape.unknown_swaps and parts.row["code"] != Code.LIVE_FOREIGN_TRANSFER
            vault = _vault_shown(game.tape, query) if untouched else {}
            again = replace(again, **vault, rebalances_so_far=done)
        elif ask.hotkey in game.books:
            book = game.books[ask.hotkey].at(head + 1)
            again = replace(
                again,
                current_positions=tuple(book.shown(price)),
                inventory_remaining=Inventory(book.idle0, book.idle1),
                uncollected_fees=Inventory(*book.fees()),
                rebalances_so_far=book.changes,
            )
        if again != query:
            yield from differences(f"{ask.path}.query", to_plain(query), to_plain(again))


def _vault_shown(tape: Tape, query: RebalanceQuery) -> dict[str, Any]:
    """What a live query shows of the vault, as its own events left it; in which order positions are listed is free."""
    held = [Holding(*key[1:], tape.pool.position(*key).liquidity) for key in tape.vault_keys]
    price = tape.pool.sqrt_price_x96
    shown = tuple(Position(h.tick_lower, h.tick_upper, *h.amounts(price)) for h in held if h.liquidity)
    if sorted(map(astuple, shown)) == sorted(map(astuple, query.current_positions)):
        shown = query.current_positions
    fees = tape.vault_holds()[1]
    return {
        "current_positions": shown,
        "inventory_remaining": Inventory(*tape.idle),
        "uncollected_fees": Inventory(*fees),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What came of it


def _check_executions(parts: _Parts) -> Iterator[str]:
    """Each answer of a live round that changes something was acted on, and the vault's own events say the same."""
    stored_ones, void = parts.evidence["executions"], parts.row["code"] == Code.LIVE_FOREIGN_TRANSFER
    if not (parts.live and parts.played):
        if stored_ones and not (parts.live and parts.row["code"] in BROKEN):
            yield f"executions: {len(stored_ones)} in a round that has none"
        return
    if parts.row["code"] == Code.VOID_CONTRADICTION:
        return  # the events say nothing for certain
    asks = [ask for ask in parts.asks if ask.answer]
    plans = [(ask, *plan(ask.query.current_positions, ask.answer.desired_positions)) for ask in asks]
    plans = [found for found in plans if found[2] or found[3]]
    if len(plans) != len(stored_ones):
        yield f"executions: {len(stored_ones)} items, {len(plans)} answers change something"
    tape, events, newest, transactions = Tape(parts.snapshot), deque(parts.events), 0, set()
    for n, ((ask, *orders), stored, said) in enumerate(zip(plans, stored_ones, parts.executions, strict=False)):
        path, acts, vault = f"executions[{n}]", ask.stored["effective_block"], ask.query.sn_liquidity_manager_address
        yield from differences(f"{path}.vault", stored["vault"], vault)
        if stored["block"] not in ((acts,) if said.sent else (acts, said.block)):  # once it was where the model acted
            yield f"{path}.block: {stored['block']}, the answer acts from {acts} on"
        again = Execution(said.block, vault, *orders, before=said.before, after=said.before, sent=said.sent)
        on_chain = not said.sent or acted(said)
        if on_chain:
            if not max(acts, newest + 1) <= said.block < parts.row["close_block"]:
                yield f"{path}.execution.block: {said.block}, the answer acts from {acts} on, one after the other"
            newest = said.block
        elif was_carried_out(said):  # there was nothing to do
            if not ask.query.block_number <= said.block < parts.row["close_block"]:
                yield f"{path}.execution.block: {said.block}, the query shows block {ask.query.block_number}"
        else:
            again = replace(again, block=ask.query.block_number + 1)
        if (on_chain and void) or (
            said.sent and said.sent.code == Code.EXECUTION_DRY_RUN
        ):  # whose word the amounts are
            flows = zip(said.before, said.released, said.fees, said.paid, strict=True)
            after = tuple(had + out + fee - paid for had, out, fee, paid in flows)
            again = replace(again, **{name: getattr(said, name) for name in (*FLOWS, "minted")}, after=after)
        elif on_chain:
            while events and events[0].block < said.block:
                tape.feed([events.popleft()])
            before, own = tape.idle, []
            while events and events[0].block == said.block:
                own.append(events.popleft())
            tape.feed(own)
            released, fees, paid, minted = sums_of(own_events(tape, own).get(said.block, ()))
            minted = said.minted if sorted(said.minted) == sorted(minted) else minted
            amounts = {"before": before, "released": released, "fees": fees, "paid": paid, "after": tape.idle}
            again = replace(again, **amounts, minted=minted)
        yield from differences(f"{path}.execution", stored["execution"], to_json(again))
        if said.sent:
            yield from _check_sent(f"{path}.execution.sent", said.sent, on_chain, transactions)


def _check_sent(path: str, sent: Sent, on_chain: bool, transactions: set[str]) -> Iterator[str]:
    """What a chain's validator says of sending fits together; `web3market.audit_chain` holds it against the chain."""
    named = _HASH.fullmatch(sent.transaction) if on_chain else sent.transaction == ""
    if not named or sent.transaction in transactions:
        what = "is none, or there twice" if on_chain else "did nothing"
        yield f"{path}.transaction: {quoted(sent.transaction)} {what}"
    transactions |= {sent.transaction} - {""}
    gas = sent.gas_used, sent.gas_wei, sent.gas0, sent.gas1
    paid = (sent.gas0, sent.gas1) in ((0, 0), (sent.gas_wei, 0), (0, sent.gas_wei))
    if min(gas) < 0 or not paid or (sent.gas_wei and not sent.gas_used):
        used, wei, gas0, gas1 = map(quoted, gas)
        yield f"{path}.gas0, gas1: {gas0} and {gas1}, gas_used {used}, gas_wei {wei}"


def _check_result(parts: _Parts) -> Iterator[str]:
    """Play the round again and compare how it ended and every line."""
    if not parts.played:
        return
    row, settings, close = parts.row, parts.settings, parts.row["close_block"]
    if parts.live:
        hotkey = parts.asks[0].hotkey if parts.asks else ""
        executions = tuple(parts.executions)
        result = play_live(LiveInputs(settings, parts.snapshot, close, parts.events, hotkey, executions))
        on_a_chain = all(execution.sent for execution in executions)
        if on_a_chain and result.code is Code.SCORED and row["code"] == Code.LIVE_FOREIGN_TRANSFER:
            result = RoundResult(Code.LIVE_FOREIGN_TRANSFER, row["detail"])  # which only the chain's close shows
    else:
        entrants = tuple(
            Entrant(e["hotkey"], e["registered_block"], Decimal(e["combined"])) for e in parts.evidence["entrants"]
        )
        result = play(RoundInputs(settings, parts.snapshot, close, parts.events, entrants, parts.decisions))
    ended = {
        "code": str(result.code),
        "detail": result.detail,
        "winner": result.lines[0].name if result.lines else None,
        "asked": sum(ask.first for ask in parts.asks),
        "swaps": result.swaps,
    }
    yield from differences("round", {name: row[name] for name in ended}, ended)
    scores = [
        {"hotkey": line.name, "rank": line.rank, "score": str(line.score), "line": to_json(line)}
        for line in result.lines
    ]
    yield from differences("scores", parts.evidence["scores"], scores)
    baselines = {name: to_json(line) for name in ("keep", "hold", "best") if (line := getattr(result, name))}
    yield from differences("baselines", parts.evidence["baselines"], baselines)


CHECKS = (_check_round, _check_asks, _check_queries, _check_shown, _check_executions, _check_result)  # after the seal's
