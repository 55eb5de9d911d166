"""Signatures: a miner's over its answer, a validator's over what it states, and keys made for this machine.

Read next: `client.py`, `server.py`.
"""

from __future__ import annotations

import re
from typing import Any

from bittensor.keyfiles import Keypair
from bittensor.sp_core import CRYPTO_SR25519, verify

from wire.codec import digest

ANSWER_SCHEME = "alm-answer/1"
ANSWER_HEADER = "X-Alm-Answer"
MAX_AGE_SECONDS = 10.0  # btauth's default: how old a nonce may be
MAX_SKEW_SECONDS = 5.0  # and how far ahead; btauth's 2 s would cost a server whose clock is 3 s slow every round

HOTKEY_TEXT = re.compile(r"[1-9A-HJ-NP-Za-km-z]{48}")  # ss58 of format 42; decoding longer ones costs time squared
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class WireError(Exception):
    """The server cannot listen; the message says where, why, and what to do, in one line."""


def local_keypair(name: str) -> Any:
    """An sr25519 development key for local mode. Anyone can derive it from its name: never give it anything real."""
    return Keypair.create_from_uri(f"//alm-local//{name}")


def answer_payload(request_digest: str, nonce: int, validator_hotkey: str, miner_hotkey: str, body: bytes) -> bytes:
    """The bytes a miner signs (sr25519) with its answer, six lines: scheme, both hotkeys, nonce, both sha256.

    Args:
        request_digest: sha256 of the request's body, lower-case hex.
        nonce: of the request's btauth signature, unix nanoseconds; with the validator's hotkey it names the request.
        validator_hotkey, miner_hotkey: ss58, who asked and who answers.
        body: of the answer, raw.
    """
    lines = (ANSWER_SCHEME, validator_hotkey, miner_hotkey, str(nonce), request_digest, digest(body))
    return "\n".join(lines).encode()


def verify_answer(
    *, request_digest: str, nonce: int, validator_hotkey: str, miner_hotkey: str, body: bytes, signature: str
) -> bool:
    """Did this miner give exactly this answer to exactly this request? For anyone who holds the stored data.

    Args: as `answer_payload`; `signature` is 128 lower-case hex digits. Text of another shape is False, never an error.
    """
    hotkeys = HOTKEY_TEXT.fullmatch(validator_hotkey) and HOTKEY_TEXT.fullmatch(miner_hotkey)
    if not (hotkeys and _DIGEST.fullmatch(request_digest) and _SIGNATURE.fullmatch(signature)):
        return False
    payload = answer_payload(request_digest, nonce, validator_hotkey, miner_hotkey, body)
    return _verify(payload, signature, miner_hotkey)


def sign_statement(keypair: Any, scheme: str, data: bytes) -> str:
    """An sr25519 signature over a statement, for anyone to keep: the scheme, the signer, and the sha256 of the data.

    Returns:
        128 lower-case hex digits.
    """
    return keypair.sign(_statement(scheme, keypair.ss58_address, data)).hex()


def verify_statement(hotkey: str, scheme: str, data: bytes, signature: str) -> bool:
    """Did this hotkey sign this statement? Text of another shape is False, never an error."""
    if not (HOTKEY_TEXT.fullmatch(hotkey) and _SIGNATURE.fullmatch(signature)):
        return False
    return _verify(_statement(scheme, hotkey, data), signature, hotkey)


def is_wrapped(payload: bytes, signature: bytes, hotkey: str) -> bool:
    """Is the signature, which the SDK takes, over <Bytes>payload</Bytes>, as wallets sign texts?

    It counts nowhere here: nobody shall obtain a message by having a hotkey's owner "sign a text".
    """
    return verify(b"<Bytes>" + payload + b"</Bytes>", signature, hotkey, CRYPTO_SR25519)


def _verify(payload: bytes, signature: str, hotkey: str) -> bool:
    signed = bytes.fromhex(signature)
    try:
        return verify(payload, signed, hotkey, CRYPTO_SR25519) and not is_wrapped(payload, signed, hotkey)
    except ValueError:  # not an ss58 address
        return False


def _statement(scheme: str, hotkey: str, data: bytes) -> bytes:
    return "\n".join((scheme, hotkey, digest(data))).encode()
