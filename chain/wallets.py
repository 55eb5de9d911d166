"""Wallets: a coldkey's address and an unlocked hotkey, and SS58 addresses checked.

Read next: `subtensor.py`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import bittensor as bt
from bittensor.keyfiles import Keyfile
from bittensor.sp_core import CRYPTO_SR25519, KeyfileError, WrongPasswordError, ss58_decode, ss58_encode

from chain.base import ChainError, ChainMistake
from runtime.hidden import hide
from runtime.passwords import unseen

MAX_LOGGED_CHARS = 300

log = logging.getLogger("chain")


@dataclass(frozen=True, slots=True)
class Wallet:
    """A participant's keys, unlocked."""

    hotkey: Any = field(repr=False)  # sr25519 `Keypair`; signs requests, answers, weights and serving
    coldkey_address: str  # ss58
    coldkey: Any = field(default=None, repr=False)  # `Keypair` that moves stake; None unless it was asked for


def load_wallet(name: str, hotkey: str, path: str, password: str | None = None, need_coldkey: bool = False) -> Wallet:
    """Read a wallet of the usual layout (`PATH/NAME/hotkeys/HOTKEY`); never asks at the terminal.

    Decrypting takes a second or more for each key, by design: call it before the event loop's work begins.

    Args:
        name, hotkey: as `btcli wallet list` shows them.
        path: the folder of all wallets.
        password: for those of the needed keys that are encrypted.
        need_coldkey: unlock the coldkey too; without it only its public file is read.

    Raises:
        ChainMistake: a file is missing or broken, or the password is missing or wrong. It never shows the password.
    """
    try:
        wallet = bt.Wallet(name, hotkey, path)
    except ValueError as error:
        raise ChainMistake(f"wallet {name}: {error}") from None
    hot = _keypair(wallet.hotkey_file, password)
    if hot.crypto_type != CRYPTO_SR25519:
        raise ChainMistake(f"{wallet.hotkey_file.path}: not an sr25519 key; create the hotkey with btcli's defaults")
    if need_coldkey:
        cold = _keypair(wallet.coldkey_file, password)
        return Wallet(hot, cold.ss58_address, cold)
    return Wallet(hot, _keypair(wallet.coldkeypub_file, None).ss58_address)


def _keypair(file: Keyfile, password: str | None) -> Any:
    try:
        if file.is_encrypted() and not password:  # the SDK would ask at the terminal
            raise ChainMistake(f"{file.path} is encrypted; give its password (environment variable, file or command)")
        return file.get_keypair(password)
    except FileNotFoundError:
        raise ChainMistake(
            f"no key file {file.path}; name the wallet, its hotkey and their folder as they are"
        ) from None
    except WrongPasswordError:
        raise ChainMistake(f"wrong password for {file.path}{unseen(password)}") from None
    except (OSError, KeyfileError, ValueError) as error:
        raise ChainMistake(f"{file.path}: it cannot be used ({type(error).__name__})") from None


def check_address(text: str) -> str:
    """The text itself if it is an ss58 address of Bittensor's (format 42, right checksum); else `ChainMistake`."""
    try:
        if not re.fullmatch("[1-9A-HJ-NP-Za-km-z]{48}", text):  # decoding longer ones costs time squared
            raise ValueError("48 characters of base 58 are expected")
        if ss58_encode(ss58_decode(text), 42) != text:
            raise ValueError("the address is another network's")
    except ValueError as error:
        raise ChainMistake(f"{text[:64]!r} is no ss58 address: {error}") from None
    return text


def cause(error: Exception) -> str:
    """What may be said of an error anywhere: our own words, of a library's its kind alone; the log has those."""
    if isinstance(error, ChainError):
        return str(error)
    log.warning("%s: %.*s", type(error).__name__, MAX_LOGGED_CHARS, hide(" ".join(str(error).split())))
    unread = isinstance(error, (ValueError, TypeError, LookupError, AttributeError))
    fix = "the SDK may be older than the chain's runtime: update bittensor; " if unread else ""
    return f"{type(error).__name__}; {fix}the log says more"
