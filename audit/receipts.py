"""Receipts: what a validator signs about a miner's own score, so that the miner can prove it to anyone.

    python miner.py receipts                             fetch, verify and show a miner's own
    python -m audit verify FILE [--evidence ROUND.json]  verify receipts offline, also against the round's evidence

A receipt is `{"statement": {...}, "signature": ...}`: the validator's sr25519 signature over the statement's canonical
JSON (`wire.signing.sign_statement`). Every miner that was asked in a round gets one, ranked or not, of void rounds too:

    format, rules_version, market, pool  `alm-receipt/1`; by which rules, on what
    validator, hotkey                    who says it, about whom
    round                                id, times, opening, close, settings, code and detail
    entrant                              registration block and reputation before the round, null if not accepted
    ranked, line                         how many were ranked; the miner's `rounds.Line` with rank, score and all its
                                         terms, and a live round's gas, null if it was not ranked
    baselines                            scores of keep, hold and best
    asks                                 each ask of this miner: sha256 of query and answer, nonce, code, when it acted
    seal                                 sha256 of the digests that seal the round's evidence

It follows from the round's evidence alone, so a validator that ever signs two different statements about one miner and
round has proved its own fault. Offline anyone can check the signature, that score and terms follow from the line's
amounts, and that who accepted was ranked; the miner also that its answers are quoted as it gave them; and who has the
evidence, everything else (`validator.py audit`).
Read next: `evidence.py` (what the statement is taken from), `issuer.py` (how it travels).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from audit.shape import Maybe, check_shape, each, is_shown
from protocol import Code, ProtocolError
from scoring import Outcome, Terms
from spine.mechanism import Mechanism, by_rules, load
from wire.codec import canonical, digest, from_plain
from wire.signing import sign_statement, verify_statement

FORMAT = SCHEME = "alm-receipt/1"

MAX_PAGE_BYTES = 2**20  # of a page of receipts, or one long receipt alone; nothing longer is taken
BASELINES = ("keep", "hold", "best")
ROUND = {
    **each("text", "round_id", "job_id", "round_type", "code", "detail"),
    **each("number", "start_time", "end_time", "asked"),
    **{"opening_block": "number?", "close_block": "number?", "opening_hash": "text?", "settings": "object"},
}
ENTRANT = {"registered_block": "number", "combined": "decimal"}
ASK = each("text", "code", "detail") | {"nonce": "digits", "response_seconds": "seconds"}
ASK |= {"due_block": "number", "effective_block": "number?"}
LINE = {
    **each("text", "name", "copy_of"),
    **{"score": "decimal", "rank": "digits"},
    **{name: each("decimal", *(f.name for f in fields(cls))) for name, cls in (("outcome", Outcome), ("terms", Terms))},
    **{"range_": "null", "gas?": ["digits"]},
}
OTHER_LINE = {name: LINE[name] for name in ("name", "copy_of", "score", "rank")}  # of other mechanisms
OTHER_LINE |= {"terms": "object"}
STATEMENT = {
    **each("text", "format", "market", "pool", "validator", "hotkey", "seal"),
    **each("number", "rules_version", "ranked"),
    **{"round": ROUND, "entrant": Maybe(ENTRANT), "line": Maybe(LINE), "baselines": each("decimal?", *BASELINES)},
    "asks": [ASK | each("text", "query", "answer")],
}
OTHER_STATEMENT = STATEMENT | {  # of other mechanisms than the first: they say which
    "round": ROUND | {"mechanism": "text"},
    "line": Maybe(OTHER_LINE),
    "baselines": "object",
}


def seal_digest(evidence: dict[str, Any]) -> str:
    """What a statement names as its round's seal: sha256 of the sealed digests' canonical JSON."""
    return digest(canonical(evidence["seal"]["digests"]))


def statement(evidence: dict[str, Any], hotkey: str, seal: str) -> dict[str, Any]:
    """What the validator says about one miner that was asked; the same evidence gives the same statement.

    Args:
        evidence: the round's, or as `stored.evidence_about` gives it: of others' scores only their number is read.
        seal: `seal_digest` of the evidence.
    """
    row, baselines = evidence["round"], evidence["baselines"]
    entrant = next((e for e in evidence["entrants"] if e["hotkey"] == hotkey), None)
    return {
        "format": FORMAT,
        **{name: evidence[name] for name in ("rules_version", "market", "pool", "validator")},
        "hotkey": hotkey,
        "round": {name: row[name] for name in (*ROUND, "mechanism") if name in row},
        "entrant": entrant and {name: entrant[name] for name in ENTRANT},
        "ranked": len(evidence["scores"]),
        "line": next((score["line"] for score in evidence["scores"] if score["hotkey"] == hotkey), None),
        "baselines": {
            name: baselines[name]["score"] if name in baselines else None
            for name in (sorted(baselines) if "mechanism" in row else BASELINES)
        },
        "asks": [
            {name: asked[name] for name in ASK}
            | {name: digest(data) if (data := base64.b64decode(asked[name])) else "" for name in ("query", "answer")}
            for asked in evidence["asks"]
            if asked["hotkey"] == hotkey
        ],
        "seal": seal,
    }


def issue(evidence: dict[str, Any], hotkey: str, seal: str, keypair: Any) -> dict[str, Any]:
    """The signed statement; arguments as for `statement`, and the validator's `Keypair`."""
    said = statement(evidence, hotkey, seal)
    return {"statement": said, "signature": sign_statement(keypair, SCHEME, canonical(said))}


def read(receipt: Any) -> dict[str, Any]:
    """The statement of a receipt from anywhere, once its shape and its signature are right.

    What it says may still be wrong: that is `problems`, and then the signature is what proves it. Raises
    `ProtocolError`: `MALFORMED`, or `RECEIPT_SIGNATURE` when it is not signed by the validator it names.
    """
    check_shape(receipt, {"statement": "object", "signature": "text"}, "receipt")
    said = receipt["statement"]
    named = isinstance(row := said.get("round"), dict) and "mechanism" in row
    check_shape(said, OTHER_STATEMENT if named else STATEMENT, "receipt.statement")
    if mechanism := load().get(_mechanism_of(said)):
        from_plain(mechanism.settings, row["settings"], "receipt.statement.round.settings")
    if said["format"] != FORMAT:
        raise ProtocolError(Code.MALFORMED, f"format {said['format']!r}, this program reads {FORMAT}")
    if not verify_statement(said["validator"], SCHEME, canonical(said), receipt["signature"]):
        raise ProtocolError(Code.RECEIPT_SIGNATURE, f"not signed by {said['validator']}")
    return said


def _mechanism_of(said: dict[str, Any]) -> str:
    """Whose round a statement is about; one that does not say is of the first, as before there were others."""
    return said["round"].get("mechanism", "liquidity")


def rules_of(said: dict[str, Any], mechanisms: Mapping[str, Mechanism] | None = None) -> Mechanism | None:
    """By whose rules a statement's scores can be computed again; None if this program does not have them."""
    mechanism = (mechanisms or load()).get(_mechanism_of(said))
    return mechanism and by_rules(mechanism, said["rules_version"])


def problems(
    said: dict[str, Any], evidence: dict[str, Any] | None = None, mechanisms: Mapping[str, Mechanism] | None = None
) -> Iterator[str]:
    """What a statement of the right shape gets wrong, by itself and against the round's evidence.

    Scores of other rules or mechanisms than this program's are not computed again.
    """
    line, asks, row = said["line"], said["asks"], said["round"]
    dues = [asked["due_block"] for asked in asks]
    nobody_asked = not asks and line is not None and row["asked"] == 0  # as some mechanisms do
    if dues != sorted(set(dues)) or not (asks or nobody_asked):
        yield "asks: none, or not one for each due block in order"
        return
    for n, asked in enumerate(asks):
        accepted = asked["code"] == Code.ACCEPTED
        if accepted != (asked["effective_block"] is not None) or (accepted and not asked["answer"]):
            yield f"asks[{n}]: {asked['code']}, but an answer acts if and only if it came and was accepted"
    entered = nobody_asked or asks[0]["code"] == Code.ACCEPTED
    if (line is not None) != (entered and row["code"] in (Code.SCORED, Code.NOBODY_RANKED)):
        what = f"{'none' if line is None else 'a score'} in a round that ended with {row['code']}"
        yield f"line: {what}, the first answer being {asks[0]['code']}"
    if (said["entrant"] is not None) != (entered and bool(asks) and row["round_type"] == "evaluation"):
        yield f"entrant: {said['entrant']}, the first answer being {asks[0]['code']}"
    try:
        for text in (*said["baselines"].values(), line and line["score"]):
            if text is not None and not is_shown(text):
                yield f"a score is {text[:50]}"
        if line is not None and (mechanism := rules_of(said, mechanisms)):
            yield from mechanism.line_problems(said)
    except (ValueError, ArithmeticError, TypeError) as error:  # TypeError: there is a line, and no score of keep
        yield f"line: cannot be computed: {type(error).__name__}: {error}"
    if evidence is not None:
        try:
            again = statement(evidence, said["hotkey"], seal_digest(evidence))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            yield f"evidence: malformed, {type(error).__name__}: {error}"
        else:
            yield from (f"{name}: is not what the evidence says" for name in again if again[name] != said[name])
