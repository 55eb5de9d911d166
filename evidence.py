"""Evidence: everything a round's scores depend on, in one canonical JSON object, and the audit that recomputes it.

    python store.py export ROUND > round.json       # write a stored round down
    python validator.py audit round.json            # recompute it anywhere: exit 0 only if every digit agrees
    python validator.py audit ROUND                 # the same from the database; `audit all` takes every stored round

The object (format `alm-round/1`; integers that may be large are decimal strings):

    format, rules_version, validator     what this is, by which rules, whose
    market, pool                         as the validator's database names them
    round                                the row: id, job, type, times, settings, code, detail, winner, blocks
    snapshot                             recording.Snapshot before the opening's first event
    events                               [block, log_index, time, kind, [args]] to the close
    asks                                 each ask: query and raw answer (base64), the miner's signature over both,
                                         nonce, code, detail, the block at which it acted
    entrants                             who accepted, with registration block and reputation before the round
    scores, baselines                    rounds.Line of every miner, and of keep, hold and best
    seal                                 the sha256 of each part, signed by the validator

The audit verifies the seal and every miner's signature, decodes and checks each answer again, rebuilds every book and
what each query must have shown, plays the round, and compares all lines. What it must take on the validator's word,
which the seal makes attributable: that the snapshot and events are the chain's, who was asked, when answers arrived,
and the entrants' registration blocks and reputations.
Read next: `rounds.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from protocol import (
    MAX_ANSWER_BYTES,
    MAX_QUERY_BYTES,
    MAX_TEXT_CHARS,
    Code,
    Inventory,
    JobSettings,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    canonical,
    check_answer,
    decode,
    digest,
    from_plain,
)
from recording import Event, ReplayError, Snapshot
from rounds import Decision, Entrant, LiveInputs, Round, RoundInputs, RoundResult, play, play_live
from scoring import RULES_VERSION
from sim import PoolError
from store import to_json
from wire import sign_statement, verify_answer, verify_statement

FORMAT = "alm-round/1"
SEAL_SCHEME = "alm-seal/1"
SCORED_CODES = (Code.SCORED, Code.NOBODY_RANKED)


class EvidenceError(Exception):
    """This is not evidence that can be audited here; the message says why, in one line."""


def seal(evidence: dict[str, Any], keypair: Any) -> dict[str, Any]:
    """The evidence with the validator's seal: a digest of each part, and a signature over all digests."""
    digests = dict(_digests(evidence))
    signature = sign_statement(keypair, SEAL_SCHEME, canonical(digests))
    return evidence | {"seal": {"digests": digests, "signature": signature}}


def _digests(evidence: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, sha256) of every part: list items and object members each on their own, so that a change has a name."""
    for name, part in evidence.items():
        if name == "seal":
            continue
        members = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        yield name, digest(canonical(part if not members else len(part)))
        for key, member in members:
            yield f"{name}[{key}]", digest(canonical(member))


def audit(evidence: dict[str, Any]) -> list[str]:
    """Recompute a round from its evidence.

    Args:
        evidence: parsed JSON of the format above, from anywhere.

    Returns:
        What differs, each named; empty when everything agrees to the last digit.

    Raises:
        EvidenceError: another format, or rules that this version does not have.
    """
    if evidence.get("format") != FORMAT:
        raise EvidenceError(f"format {evidence.get('format')!r}, this program audits {FORMAT}")
    if evidence.get("rules_version") != RULES_VERSION:
        found = evidence.get("rules_version")
        raise EvidenceError(f"rules version {found!r}, this program has {RULES_VERSION}: use the release that has them")
    try:
        return list(_check_seal(evidence)) + list(_check_asks(evidence)) + list(_check_scores(evidence))
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        return [f"malformed: {type(error).__name__}: {error}"]


def _check_seal(evidence: dict[str, Any]) -> Iterator[str]:
    found, sealed = dict(_digests(evidence)), evidence["seal"]["digests"]
    if not verify_statement(evidence["validator"], SEAL_SCHEME, canonical(sealed), evidence["seal"]["signature"]):
        yield "seal.signature: not the validator's over these digests"
    for path in sorted(found.keys() | sealed.keys()):
        if found.get(path) != sealed.get(path):
            yield f"{path}: is not what the validator sealed"


def _check_asks(evidence: dict[str, Any]) -> Iterator[str]:
    """Each answer is the miner's, and its code follows from its bytes."""
    for n, ask in enumerate(evidence["asks"]):
        query, answer = (base64.b64decode(ask[name], validate=True) for name in ("query", "answer"))
        if not answer:
            if ask["code"] in (Code.ACCEPTED, Code.REFUSED):
                yield f"asks[{n}]: {ask['code']} without an answer"
            continue
        signed = verify_answer(
            request_digest=digest(query),
            nonce=int(ask["nonce"]),
            validator_hotkey=evidence["validator"],
            miner_hotkey=ask["hotkey"],
            body=answer,
            signature=ask["signature"],
        )
        if not signed:
            yield f"asks[{n}].signature: not {ask['hotkey']}'s over this answer to this query"
        asked = decode(RebalanceQuery, query, MAX_QUERY_BYTES)
        code, detail, _ = judge(answer, asked)
        acts = ask["effective_block"]
        if (ask["code"] == Code.ACCEPTED) != (acts is not None):
            yield f"asks[{n}].effective_block: {acts}, an answer acts if and only if it is accepted"
        elif acts is not None and not (asked.block_time < asked.window_start_time or acts > asked.block_number):
            yield f"asks[{n}].effective_block: {acts} is not after block {asked.block_number}, which the query shows"
        if ask["code"] not in (code, Code.KEPT) or (ask["code"] == Code.KEPT and code is Code.ACCEPTED):
            yield f"asks[{n}].code: {ask['code']}, the answer's bytes say {code}"
        if ask["detail"] != detail:
            yield f"asks[{n}].detail: {ask['detail']!r}, the answer's bytes say {detail!r}"


def judge(body: bytes, query: RebalanceQuery) -> tuple[Code, str, RebalanceAnswer | None]:
    """What an answer's bytes amount to: (code, detail, the answer if it is an accepted and valid one)."""
    try:
        answer = decode(RebalanceAnswer, body, MAX_ANSWER_BYTES)
        check_answer(answer, query)
    except ProtocolError as error:
        return error.code, error.detail, None
    if not answer.accepted:
        return Code.REFUSED, ascii(answer.refusal_reason or "")[1:-1][:MAX_TEXT_CHARS], None  # for terminals and logs
    return Code.ACCEPTED, "", answer


def _check_scores(evidence: dict[str, Any]) -> Iterator[str]:
    """Play the round again and compare every line; a void or skipped round must have no scores."""
    row = evidence["round"]
    if row["code"] not in (*SCORED_CODES, Code.VOID_CONTRADICTION, Code.VOID_UNKNOWN_SWAP, Code.EMPTY_VAULT):
        if evidence["scores"] or evidence["baselines"]:
            yield f"scores: a round that ended with {row['code']} has none"
        return
    if row["close_block"] is None:  # it broke off: there is nothing to compute, and nothing may have come of it
        if evidence["scores"] or evidence["baselines"]:
            yield f"scores: a round that broke off with {row['code']} has none"
        return
    settings = from_plain(JobSettings, row["settings"])
    snapshot = from_plain(Snapshot, evidence["snapshot"])
    events = tuple(Event(*map(int, e[:3]), e[3], event_args(e[3], e[4])) for e in evidence["events"])
    decisions, queries = [], []
    for ask in evidence["asks"]:
        if ask["effective_block"] is None:
            continue
        query = decode(RebalanceQuery, base64.b64decode(ask["query"]), MAX_QUERY_BYTES)
        answer = decode(RebalanceAnswer, base64.b64decode(ask["answer"]), MAX_ANSWER_BYTES)
        queries.append(query)
        decisions.append(
            Decision(ask["hotkey"], int(ask["effective_block"]), query.current_positions, answer.desired_positions)
        )
    close_block = int(row["close_block"])
    if row["round_type"] == "live":
        result = play_live(LiveInputs(settings, snapshot, close_block, events, row["winner"], tuple(decisions)))
    else:
        entrants = tuple(
            Entrant(e["hotkey"], int(e["registered_block"]), Decimal(e["combined"])) for e in evidence["entrants"]
        )
        accepted = {d.hotkey for d in decisions if d.block == snapshot.block}
        if accepted != {entrant.hotkey for entrant in entrants}:
            yield "entrants: not those whose first answer was accepted"
        inputs = RoundInputs(settings, snapshot, close_block, events, entrants, tuple(decisions))
        result = play(inputs)
        yield from _check_queries(evidence, inputs)
    yield from _compare(evidence, result)


def _compare(evidence: dict[str, Any], result: RoundResult) -> Iterator[str]:
    row = evidence["round"]
    if row["code"] != result.code:
        yield f"round[code]: {row['code']}, recomputed {result.code} {result.detail}"
    if row["winner"] != (result.lines[0].name if result.lines else None):
        yield f"round[winner]: {row['winner']}, recomputed {result.lines[0].name if result.lines else None}"
    for score in evidence["scores"]:
        for name in ("rank", "score"):
            if str(score[name]) != score["line"][name]:
                yield f"scores of {score['hotkey']}: {name} is {score[name]}, the line says {score['line'][name]}"
    found = {score["hotkey"]: score["line"] for score in evidence["scores"]} | evidence["baselines"]
    lines = {line.name: line for line in result.lines}
    again = lines | {name: line for name in ("keep", "hold", "best") if (line := getattr(result, name))}
    for name in sorted(found.keys() | again.keys()):
        stored, recomputed = found.get(name), to_json(again[name]) if name in again else None
        if stored != recomputed:
            yield f"scores of {name}: " + "; ".join(_differences(stored, recomputed, ""))


def _differences(stored: Any, recomputed: Any, path: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        for key in sorted(stored.keys() | recomputed.keys()):
            yield from _differences(stored.get(key), recomputed.get(key), f"{path}.{key}" if path else key)
    elif stored != recomputed:
        yield f"{path or 'line'} is {stored}, recomputed {recomputed}"


def _check_queries(evidence: dict[str, Any], inputs: RoundInputs) -> Iterator[str]:
    """Every later query showed the miner its own book, as it then stood."""
    game = Round(inputs.settings, inputs.snapshot)
    try:
        game.feed(inputs.events)
    except (ReplayError, PoolError):
        return
    for entrant in inputs.entrants:
        game.enter(entrant.hotkey)
    asked: dict[str, list[tuple[int, RebalanceQuery]]] = {}
    for n, ask in enumerate(evidence["asks"]):
        query = decode(RebalanceQuery, base64.b64decode(ask["query"]), MAX_QUERY_BYTES)
        if ask["hotkey"] in game.books and query.block_number >= inputs.snapshot.block:
            asked.setdefault(ask["hotkey"], []).append((n, query))
    for hotkey, queries in asked.items():
        waiting = sorted((d for d in inputs.decisions if d.hotkey == hotkey), key=lambda decision: decision.block)
        for n, query in sorted(queries, key=lambda pair: pair[1].block_number):
            head = query.block_number
            while waiting and waiting[0].block <= head:
                game.decide(waiting.pop(0))
            book, price = game.books[hotkey].at(head + 1), game.tape.price_before(head + 1)
            shown = query.current_positions, query.inventory_remaining, query.uncollected_fees, query.sqrt_price_x96
            again = tuple(book.shown(price)), Inventory(book.idle0, book.idle1), Inventory(*book.fees()), price
            if shown != again or query.rebalances_so_far != book.changes:
                yield f"asks[{n}].query: {hotkey} was not shown its own book after block {head}"


def event_args(kind: str, args: list[str]) -> tuple:
    """Event arguments from their decimal strings; calls and owners stay text."""
    textual = kind in ("swap", "mint", "burn", "collect")
    return tuple(arg if textual and n == 0 else int(arg) for n, arg in enumerate(args))
