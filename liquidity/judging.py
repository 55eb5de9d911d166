"""What an answer's bytes amount to: a code, its detail, and the answer if it is one.

Pure. Read next: `rounds.py`.
"""

from __future__ import annotations

from protocol import (
    MAX_ANSWER_BYTES,
    MAX_TEXT_CHARS,
    Code,
    ProtocolError,
    RebalanceAnswer,
    RebalanceQuery,
    check_answer,
)
from wire.codec import decode


def kept(code: Code, detail: str) -> tuple[Code, str]:
    """Once a miner takes part, an answer that is not accepted means *keep*; the detail begins with the code of why."""
    return (code, detail) if code is Code.ACCEPTED else (Code.KEPT, f"{code}: {detail}")


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
