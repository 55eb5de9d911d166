"""Receipts: what a validator signs about a miner's own score, so that the miner can prove it to anyone.

    python miner.py receipts                        fetch what is missing, verify all, print the newest: exit 0 or 1
    python miner.py receipts --export ROUND         one receipt as JSON, to hand to somebody else
    python -m audit verify FILE [--evidence ROUND.json] verify receipts offline, also against the round's evidence

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
from collections.abc import Iterator
from dataclasses import fields
from decimal import Decimal
from typing import Any

from audit.shape import Maybe, check_shape, each
from protocol import Code, JobSettings, ProtocolError
from scoring import RULES_VERSION, Outcome, Terms, gas_cost, score_outcome
from wire.codec import canonical, digest, from_plain, to_json
from wire.signing import sign_statement, verify_statement

FORMAT = SCHEME = "alm-receipt/1"

MAX_PAGE_BYTES = 2**20  # of a page of receipts, or one long receipt alone; nothing longer is taken
MAX_DIGITS = 100  # before the point, of a score: more are no score, and hard to print
BASELINES = ("keep", "hold", "best")
ROUND = {
    **each("text", "round_id", "job_id", "round_type", "code", "detail"),
    **each("number", "start_time", "end_time", "asked"),
    **{"opening_block": "number?", "close_block": "number?", "opening_hash": "text?", "settings": "object"},
}
ENTRANT = {"registered_block": "number", "combined": "text"}
ASK = each("text", "nonce", "code", "detail", "response_seconds") | {
    "due_block": "number",
    "effective_block": "number?",
}
LINE = {
    **each("text", "name", "score", "rank", "copy_of"),
    **{name: each("text", *(f.name for f in fields(cls))) for name, cls in (("outcome", Outcome), ("terms", Terms))},
    **{"range_": "null", "gas?": ["text"]},
}
STATEMENT = {
    **each("text", "format", "market", "pool", "validator", "hotkey", "seal"),
    **each("number", "rules_version", "ranked"),
    **{"round": ROUND, "entrant": Maybe(ENTRANT), "line": Maybe(LINE), "baselines": each("text?", *BASELINES)},
    "asks": [ASK | each("text", "query", "answer")],
}


def seal_digest(evidence: dict[str, Any]) -> str:
    """What a statement names as its round's seal: sha256 of the sealed digests' canonical JSON."""
    return digest(canonical(evidence["seal"]["digests"]))


def statement(evidence: dict[str, Any], hotkey: str, seal: str) -> dict[str, Any]:
    """What the validator says about one miner in one round; the same evidence gives the same statement.

    Args:
        evidence: of the round, see `evidence.py`; what is read of it is `market`, `pool`, `validator`, `rules_version`,
            `round`, `baselines`, and of `asks`, `entrants` and `scores` the miner's own and the number of scores.
        hotkey: of a miner that was asked.
        seal: `seal_digest` of the evidence.
    """
    row, baselines = evidence["round"], evidence["baselines"]
    entrant = next((e for e in evidence["entrants"] if e["hotkey"] == hotkey), None)
    return {
        "format": FORMAT,
        **{name: evidence[name] for name in ("rules_version", "market", "pool", "validator")},
        "hotkey": hotkey,
        "round": {name: row[name] for name in ROUND},
        "entrant": entrant and {name: entrant[name] for name in ENTRANT},
        "ranked": len(evidence["scores"]),
        "line": next((score["line"] for score in evidence["scores"] if score["hotkey"] == hotkey), None),
        "baselines": {name: baselines[name]["score"] if name in baselines else None for name in BASELINES},
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

    What it says may still be wrong: that is `problems`, and then the signature is what proves it.

    Raises:
        ProtocolError: `MALFORMED`, or `RECEIPT_SIGNATURE` when it is not signed by the validator it names.
    """
    check_shape(receipt, {"statement": STATEMENT, "signature": "text"}, "receipt")
    said = receipt["statement"]
    from_plain(JobSettings, said["round"]["settings"], "receipt.statement.round.settings")
    if said["format"] != FORMAT:
        raise ProtocolError(Code.MALFORMED, f"format {said['format']!r}, this program reads {FORMAT}")
    if not verify_statement(said["validator"], SCHEME, canonical(said), receipt["signature"]):
        raise ProtocolError(Code.RECEIPT_SIGNATURE, f"not signed by {said['validator']}")
    return said


def problems(said: dict[str, Any], evidence: dict[str, Any] | None = None) -> Iterator[str]:
    """What a statement of the right shape gets wrong, by itself and against the round's evidence.

    Scores of other rules than this program's are not computed again.
    """
    line, asks, row = said["line"], said["asks"], said["round"]
    dues = [asked["due_block"] for asked in asks]
    if not asks or dues != sorted(set(dues)):
        yield "asks: none, or not one for each due block in order"
        return
    for n, asked in enumerate(asks):
        accepted = asked["code"] == Code.ACCEPTED
        if accepted != (asked["effective_block"] is not None) or (accepted and not asked["answer"]):
            yield f"asks[{n}]: {asked['code']}, but an answer acts if and only if it came and was accepted"
    entered = asks[0]["code"] == Code.ACCEPTED
    if (line is not None) != (entered and row["code"] in (Code.SCORED, Code.NOBODY_RANKED)):
        yield (
            f"line: {'none' if line is None else 'a score'} in a round that ended with {row['code']},"
            f" the first answer being {asks[0]['code']}"
        )
    if (said["entrant"] is not None) != (entered and row["round_type"] == "evaluation"):
        yield f"entrant: {said['entrant']}, the first answer being {asks[0]['code']}"
    try:
        for text in (*said["baselines"].values(), line and line["score"]):
            if text is not None and not (Decimal(text).is_finite() and Decimal(text).adjusted() < MAX_DIGITS):
                yield f"a score is {text[:50]}"
        if line is not None and said["rules_version"] == RULES_VERSION:
            yield from _wrong_digits(said)
    except (ValueError, ArithmeticError, TypeError) as error:  # TypeError: there is a line, and no score of keep
        yield f"line: cannot be computed: {type(error).__name__}: {error}"
    if evidence is not None:
        try:
            again = statement(evidence, said["hotkey"], seal_digest(evidence))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            yield f"evidence: malformed, {type(error).__name__}: {error}"
        else:
            yield from (f"{name}: is not what the evidence says" for name in again if again[name] != said[name])


def _wrong_digits(said: dict[str, Any]) -> Iterator[str]:
    """What of a line does not follow from its amounts by the rules of `scoring.py`."""
    line, settings = said["line"], from_plain(JobSettings, said["round"]["settings"])
    plain = line["outcome"]
    outcome = Outcome(**{name: Decimal(text) if name == "in_range" else int(text) for name, text in plain.items()})
    gas0, gas1 = map(int, line.get("gas", (0, 0)))
    if "gas" in line and (min(gas0, gas1) < 0 or said["round"]["round_type"] != "live"):
        yield f"line.gas: {gas0} and {gas1} in a round of type {said['round']['round_type']}"
    gas = gas_cost(gas0, gas1, outcome.sqrt_price_end_x96)
    terms = score_outcome(outcome, settings.target, settings.rebalance_cost, gas)
    for name, computed in to_json(terms).items():
        if line["terms"][name] != computed:
            yield f"line.terms.{name}: {line['terms'][name]}, its amounts give {computed}"
    capped = bool(line["copy_of"]) or terms.in_range < settings.min_in_range
    counts = min(terms.score, Decimal(said["baselines"]["keep"])) if capped else terms.score
    if Decimal(line["score"]) != counts:
        yield f"line.score: {line['score']}, the rules give {counts}"
    if line["name"] != said["hotkey"] or not 1 <= int(line["rank"]) <= said["ranked"] <= said["round"]["asked"]:
        yield f"line: rank {line['rank']} of {said['ranked']} for {line['name']}"
