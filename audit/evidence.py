"""Evidence: everything a round's scores depend on, in one canonical JSON object, and the audit that recomputes it.

    python -m audit export ROUND > round.json       # write a stored round down
    python validator.py audit round.json            # recompute it anywhere: exit 0 only if every digit agrees
    python validator.py audit ROUND                 # the same from the database; `audit all` takes every stored round

The object is canonical JSON (`wire.codec.canonical`: sorted keys, no spaces, ASCII) and a final newline. Format
`alm-round/1`; `checks.SHAPE` says of which type each part is, integers that may be large are decimal strings:

    format, rules_version, validator     what this is, by which rules, whose (hotkey)
    market, pool                         as the validator's database names them
    round                                the row: id, job, type, times, settings, code, detail, winner, blocks, swaps
    snapshot                             replay.Snapshot before the opening's first event; null if it did not open
    events                               [block, log_index, time, kind, [args]] from the opening to before the close
    asks                                 by due block and hotkey: query and raw answer (base64), the miner's signature
                                         over both, nonce, code, detail, the block at which it acted
    entrants                             who accepted, with registration block and reputation before the round
    executions                           what became of each live answer that changes something, by the block from which
                                         it acts: executions.Execution
    scores, baselines                    rounds.Line of every miner by rank, and of keep, hold and best
    seal                                 the sha256 of each part, signed by the validator

The audit names a part by its path, as `scores[0].line.terms.fees`. First it looks at shape and seal: whatever was
changed after the validator signed is named by its part. Then it believes nothing of the seal: it verifies every miner's
signature, judges each answer again, rebuilds every book and what each query must have shown, plays the round, and
compares all lines. So a validator that seals a falsehood of its own is caught too, as far as this table says
(`tests/test_evidence.py` holds every field against it, both ways):

    a falsehood in                                     sealed by the validator itself is
    format, rules_version                              refused by name; attributable where the same digits are of
                                                         older rules, too
    round, scores, baselines, executions               always caught in a round that came to its close
    an answered ask, but for its response_seconds      always caught: the miner has signed query and answer
    the query of an ask without an answer              caught wherever it says what follows from the round, from the
                                                       miner's book, or what another query of that block says too
    snapshot, events, effective_block, entrants'       caught if a digit of a score, a query or the replay depends on
      registered_block and combined; leaving out         it. Snapshot and events are the chain's: any node has them
      an answered ask
    market, response_seconds, nonce and detail of      attributable: the seal proves who said so
      an ask without an answer
    `sent` of an execution on a chain: why a           attributable, but for a code that the vault's events contradict;
      decision was not carried out, its transaction    `python validator.py audit --rpc` holds it against the chain
      and gas; amounts that a dry run foresaw
    a live round void by live_foreign_transfer:        recomputed where the vault's own events differ from what the
      its detail, and the amounts of its executions    executions say, attributable where the chain shows fewer tokens
                                                       or less liquidity at the close; `audit --rpc` looks there itself
    what its detail says that others gave the vault    the same; no query and no execution may show more than that
    why and when a round was skipped, void or          attributable, unless it is a swap of unknown call, an empty
      interrupted; its pool and settings if nobody       vault, or the live miner's own first answer: these are
      was asked                                          recomputed

What is not there cannot be seen: who was never asked, and an answer that the validator says never came.
Read next: `checks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol import ProtocolError
from wire.codec import canonical, digest, parse_json
from wire.signing import sign_statement

FORMAT = "alm-round/1"
SEAL_SCHEME = "alm-seal/1"
MAX_EVIDENCE_BYTES = 512 << 20  # 256 miners, 24 checkpoints, the longest answers
MAX_EVIDENCE_VALUES = 10_000_000  # as many take 1 GB; of half a million events six million


class EvidenceError(Exception):
    """This is not evidence that can be audited here; the message says why, in one line."""


def seal(evidence: dict[str, Any], keypair: Any) -> dict[str, Any]:
    """The evidence with the validator's seal: a digest of each part, and a signature over all digests."""
    digests = dict(digests_of(evidence))
    signature = sign_statement(keypair, SEAL_SCHEME, canonical(digests))
    return evidence | {"seal": {"digests": digests, "signature": signature}}


def digests_of(evidence: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(path, sha256) of every part: list items and object members each on their own, so that a change has a name."""
    for name, part in evidence.items():
        if name == "seal":
            continue
        members = {}
        if isinstance(part, dict):
            members = {f"{name}.{key}": member for key, member in part.items()}
        elif isinstance(part, list):
            members = {f"{name}[{n}]": member for n, member in enumerate(part)}
        yield name, digest(canonical(len(members) if members else part))
        for path, member in members.items():
            yield path, digest(canonical(member))


def read(path: Path) -> Any:
    """An exported round: strict JSON, of limited size; what it says is for `audit` to check. Raises `EvidenceError`."""
    try:
        size = path.stat().st_size
        if size > MAX_EVIDENCE_BYTES:
            raise EvidenceError(f"{size} bytes, at most {MAX_EVIDENCE_BYTES}")
        with path.open("rb") as file:
            data = file.read(MAX_EVIDENCE_BYTES + 1)
        if not data.isascii():  # which would take four times the memory
            raise EvidenceError("not ASCII; is it what `python -m audit export ROUND` wrote?")
        if (values := sum(map(data.count, (b"[", b"{", b",")))) > MAX_EVIDENCE_VALUES:
            raise EvidenceError(f"{values} values, at most {MAX_EVIDENCE_VALUES}")
        return parse_json(data, MAX_EVIDENCE_BYTES)
    except ProtocolError as error:
        raise EvidenceError(f"{error.detail}; is it what `python -m audit export ROUND` wrote?") from error
    except OSError as error:
        raise EvidenceError(f"{error.strerror}; name a file that can be read") from error
