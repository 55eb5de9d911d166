"""The audit: a round recomputed from its evidence, every part that differs named by its path.

    problems = audit(evidence)                          # empty: every digit agrees

Read first: `evidence.py`, whose top says what it can and cannot find.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice
from operator import ge
from typing import Any

from audit.evidence import FORMAT, SEAL_SCHEME, EvidenceError, digests_of
from audit.shape import each, misshapen
from liquidity.events import Event, ReplayError, event_args
from liquidity.executions import Execution, execution_of
from liquidity.live import gifts_of, words_of
from protocol import MAX_ANSWER_BYTES, MAX_QUERY_BYTES, ROUND_TYPES, Code, Entrant, ProtocolError, RoundResult
from sim import PoolError
from spine.asking import judged, kept
from spine.mechanism import Mechanism, by_rules, load
from wire.codec import canonical, decode, digest, from_plain, to_json, to_plain
from wire.signing import verify_answer, verify_statement
from wire.text import differences, ordered, quoted, quoted_name

MAX_MALFORMED = 100  # so many malformed parts are named; the rest adds nothing
BROKEN = (Code.VOID_INTERRUPTED, Code.VOID_CONTRADICTION, Code.VOID_GAP)  # a round that may have no close
PLAYED = (  # these ends are recomputed, the last one as far as the table of `evidence.py` says
    *(Code.SCORED, Code.NOBODY_RANKED, Code.VOID_UNKNOWN_SWAP, Code.EMPTY_VAULT, Code.LIVE_FOREIGN_TRANSFER),
)
SKIPPED = (Code.LIVE_NO_WINNER, Code.LIVE_NOT_ELIGIBLE, Code.LIVE_WINNER_GONE, Code.LIVE_READ_ONLY_MARKET)
SILENT = (  # what an ask without an answer may have ended with; of a committed miner it is KEPT for one of these
    *(Code.TIMEOUT, Code.UNREACHABLE, Code.NO_ENDPOINT, Code.ADDRESS_REFUSED, Code.HTTP_STATUS, Code.REDIRECT),
    *(Code.CONTENT_TYPE, Code.REPLY_TOO_LARGE, Code.REPLY_SIGNATURE),
)

SHAPE = {
    **each("text", "format", "validator", "market", "pool"),
    "rules_version": "number",
    "round": {
        **each("text", "round_id", "job_id", "round_type", "code", "detail"),
        **each("number", "start_time", "end_time", "asked", "swaps"),
        **each("number?", "opening_block", "close_block"),
        **each("text?", "opening_hash", "winner"),
        "settings": "object",
        "mechanism?": "text",  # of others than the first
    },
    "snapshot": "object?",
    "events": [("digits", "digits", "digits", "text", ["text"])],
    "asks": [
        {
            **each("text", "round_id", "hotkey", "signature", "code", "detail"),
            **each("base64", "query", "answer"),
            **{"due_block": "number", "effective_block": "number?", "nonce": "digits", "response_seconds": "seconds"},
        }
    ],
    "entrants": [{**each("text", "round_id", "hotkey"), "registered_block": "number", "combined": "decimal"}],
    "executions": [{"block": "number", "vault": "text", "execution": "object"}],
    "scores": "list",
    "baselines": "object",
    "settlement?": "any",
    "seal": {"digests": "object", "signature": "text"},
}

MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, RecursionError, ReplayError, PoolError)


@dataclass(frozen=True, slots=True)
class Ask:
    """One ask."""

    path: str  # names it in messages
    stored: dict[str, Any]
    first: bool  # whether it came before the opening
    query: Any
    body: bytes
    answer: Any  # that was accepted

    @property
    def hotkey(self) -> str:
        return self.stored["hotkey"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Evidence of the right shape, as objects."""

    evidence: dict[str, Any]
    mechanism: Mechanism
    row: dict[str, Any]
    settings: Any
    snapshot: Any
    events: tuple[Event, ...]
    asks: list[Ask]
    executions: list[Execution]

    @property
    def live(self) -> bool:
        return self.row["round_type"] == "live"

    @property
    def played(self) -> bool:
        """Whether it came to its close, so that there is something to compute."""
        return self.row["close_block"] is not None

    @property
    def decisions(self) -> tuple[Any, ...]:
        read, answered = self.mechanism.decision, (ask for ask in self.asks if ask.answer)
        return tuple(read(ask.hotkey, ask.stored["effective_block"], ask.query, ask.answer) for ask in answered)


def parts_of(evidence: dict[str, Any], mechanism: Mechanism) -> Parts:
    """Raises one of `MALFORMED`, naming the part."""
    snapshot, events, asks, opening = None, [], [], evidence["round"]["opening_block"]
    if evidence["snapshot"] is None and evidence["round"]["close_block"] is not None:
        raise ValueError("snapshot: null, and the round has a close_block")
    if evidence["snapshot"] is not None:
        snapshot = from_plain(mechanism.state, evidence["snapshot"], "snapshot")
    for n, (block, log_index, time, kind, args) in enumerate(evidence["events"]):
        with _named(f"events[{n}]"):
            events.append(Event(int(block), int(log_index), int(time), kind, event_args(kind, args)))
    for n, ask in enumerate(evidence["asks"]):
        body, answer = base64.b64decode(ask["answer"]), None
        with _named(f"asks[{n}].query"):
            query = decode(mechanism.query, base64.b64decode(ask["query"]), MAX_QUERY_BYTES)
        if ask["effective_block"] is not None:
            with _named(f"asks[{n}].answer"):
                answer = decode(mechanism.answer, body, MAX_ANSWER_BYTES)
        first = opening is None or query.block_number < opening
        asks.append(Ask(f"asks[{n}]", ask, first, query, body, answer))
    executions = []
    for n, stored in enumerate(evidence["executions"]):
        with _named(f"executions[{n}].execution"):
            executions.append(execution_of(stored["execution"]))
    settings = from_plain(mechanism.settings, evidence["round"]["settings"], "round.settings")
    return Parts(evidence, mechanism, evidence["round"], settings, snapshot, tuple(events), asks, executions)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors inside begin with the path."""
    try:
        yield
    except MALFORMED as error:
        raise ValueError(f"{path}: {said(error)}") from error


def said(error: Exception) -> str:
    """An error as part of a message."""
    return error.detail if isinstance(error, ProtocolError) else f"{quoted(str(error) or type(error).__name__)}"


def audit(evidence: Any, mechanisms: Mapping[str, Mechanism] | None = None) -> list[str]:
    """Recompute a round from its evidence, parsed JSON from anywhere; what differs, each as `path: what`.

    Empty: everything agrees to the last digit. Raises `EvidenceError` for another format, or rules or mechanisms that
    this program does not have.
    """
    if not isinstance(evidence, dict):
        raise EvidenceError(f"not an object, this program audits {FORMAT}")
    if evidence.get("format") != FORMAT:
        raise EvidenceError(f"format {quoted(evidence.get('format'))}, this program audits {FORMAT}")
    mechanism = _mechanism_of(evidence, mechanisms or load())
    version, newest = evidence.get("rules_version"), mechanism.rules_version
    if not (mechanism := by_rules(mechanism, version)):
        raise EvidenceError(
            f"rules version {quoted(version)}, this program has {newest}: use the release that has them"
        )
    if problems := list(islice(misshapen(evidence, SHAPE, ""), MAX_MALFORMED)):
        return problems
    problems = []
    try:
        problems.extend(_check_seal(evidence))
        parts = parts_of(evidence, mechanism)
    except MALFORMED as error:
        return [*problems, said(error)]
    for check in checks_of(mechanism):
        try:
            for problem in check(parts):  # one by one: what was found before it broke stays
                problems.append(problem)
        except MALFORMED as error:
            problems.append(f"{check.__name__.removeprefix('check_')}: cannot be recomputed: {said(error)}")
    return problems


def checks_of(mechanism: Mechanism) -> tuple[Callable[[Parts], Iterator[str]], ...]:
    """What a round is held against once its shape and its seal are right, in this order."""
    return check_round, check_asks, *mechanism.checks, check_result


def _mechanism_of(evidence: dict[str, Any], mechanisms: Mapping[str, Mechanism]) -> Mechanism:
    """Whose round it is; a round that does not say is of the first one, as before there were others."""
    row = evidence.get("round")
    name = row.get("mechanism", "liquidity") if isinstance(row, dict) else "liquidity"
    if not isinstance(name, str) or name not in mechanisms:
        has = ", ".join(mechanisms)
        raise EvidenceError(f"mechanism {quoted(name)}, this program has {has}; name its module with --mechanism")
    return mechanisms[name]


def _check_seal(evidence: dict[str, Any]) -> Iterator[str]:
    found, sealed = dict(digests_of(evidence)), evidence["seal"]["digests"]
    if not verify_statement(evidence["validator"], SEAL_SCHEME, canonical(sealed), evidence["seal"]["signature"]):
        yield "seal.signature: not the validator's over these digests"
    for path in found | sealed:
        if found.get(path) != sealed.get(path):
            yield f"{quoted_name(path)}: is not what the validator sealed"


def check_round(parts: Parts) -> Iterator[str]:
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
        if not start <= snapshot.block_time < end:
            yield f"snapshot.block_time: {snapshot.block_time}, the round is from {start} to {end}"
        if parts.played and not opening < close:
            yield f"round.close_block: {close}, it opened at {opening}"


def _check_end(parts: Parts) -> Iterator[str]:
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


def check_asks(parts: Parts) -> Iterator[str]:
    """Each answer is the miner's, its code follows from its bytes, and it was asked for when it was due."""
    evidence, opening, asks = parts.evidence, parts.row["opening_block"], parts.asks
    entered = {entrant["hotkey"] for entrant in evidence["entrants"]}
    for ask in asks:
        path, code, due, acts = ask.path, *(ask.stored[name] for name in ("code", "due_block", "effective_block"))
        head = ask.query.block_number
        yield from _check_answer(parts, ask)
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
        since, interval = due - opening if opening is not None else 0, parts.mechanism.interval_blocks(parts.settings)
        if since if ask.first else not (interval and 0 < since <= head - opening) or since % interval:
            yield f"{path}.due_block: {due}, the round opened at {opening}, the query shows block {head}"
    accepted = set() if parts.live else {ask.hotkey for ask in asks if ask.first and ask.answer}
    for n, entrant in enumerate(evidence["entrants"]):
        if entrant["hotkey"] not in accepted:
            yield f"entrants[{n}].hotkey: {quoted(entrant['hotkey'])} did not accept a first ask"
    for hotkey in sorted(accepted - entered):
        yield f"entrants: {quoted(hotkey)} accepted the first ask and is not among them"


def _check_answer(parts: Parts, ask: Ask) -> Iterator[str]:
    path, stored, body = ask.path, ask.stored, ask.body
    if not body and not stored["signature"]:
        why = stored["code"] if ask.first else stored["detail"].partition(":")[0]
        if stored["code"] not in (*SILENT, Code.KEPT) or why not in SILENT:
            yield f"{path}.code: {quoted(stored['code'])}, {quoted(stored['detail'])} without an answer"
        return
    signed = verify_answer(
        request_digest=digest(base64.b64decode(stored["query"])),
        nonce=int(stored["nonce"]),
        validator_hotkey=parts.evidence["validator"],
        miner_hotkey=ask.hotkey,
        body=body,
        signature=stored["signature"],
    )
    if not signed:
        yield f"{path}.signature: not {quoted(ask.hotkey)}'s over this answer to this query"
    code, detail, _ = judged(parts.mechanism, body, ask.query)
    code, detail = (code, detail) if ask.first else kept(code, detail)
    if stored["code"] != code:
        yield f"{path}.code: {quoted(stored['code'])}, the answer's bytes say {code}"
    if stored["detail"] != detail:
        yield f"{path}.detail: {quoted(stored['detail'])}, the answer's bytes say {quoted(detail)}"


def check_result(parts: Parts) -> Iterator[str]:
    """Play the round again and compare how it ended and every line."""
    if not parts.played:
        return
    row, settings, close = parts.row, parts.settings, parts.row["close_block"]
    played = settings, parts.snapshot, close, parts.events
    if parts.live:
        hotkey = parts.asks[0].hotkey if parts.asks else ""
        result = parts.mechanism.play_live(*played, hotkey, parts.executions, None)
        on_a_chain = all(execution.sent for execution in parts.executions)
        if on_a_chain and result.code is Code.SCORED:  # what only the chain's close shows
            gifts, used = gifts_of(row["detail"]), gifts_of(result.detail)
            if row["code"] == Code.LIVE_FOREIGN_TRANSFER:
                result = RoundResult(Code.LIVE_FOREIGN_TRANSFER, row["detail"])
            elif all(map(ge, gifts, used)):
                result = replace(result, detail=words_of(gifts))
    else:
        taking_part = parts.evidence["entrants"]
        entrants = [Entrant(e["hotkey"], e["registered_block"], Decimal(e["combined"])) for e in taking_part]
        result = parts.mechanism.play(*played, entrants, parts.decisions, parts.evidence.get("settlement"))
    ended = {
        "code": str(result.code),
        "detail": result.detail,
        "winner": result.lines[0].name if result.lines else None,
        "asked": sum(ask.first for ask in parts.asks),
        "swaps": result.swaps,
    }
    yield from differences("round", {name: row[name] for name in ended}, ended)
    scores = [{"hotkey": o.name, "rank": o.rank, "score": str(o.score), "line": to_json(o)} for o in result.lines]
    yield from differences("scores", parts.evidence["scores"], scores)
    baselines = {name: to_json(line) for name, line in result.baselines.items()}
    yield from differences("baselines", parts.evidence["baselines"], baselines)
