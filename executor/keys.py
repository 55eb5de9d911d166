"""The two secrets of the bot, each in a file that nobody else may read: the vault's key, and the key to its door.

Read next: `wallet.py`, `door.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from web3 import Account

from runtime.passwords import read_private
from runtime.process import UserError

MIN_API_KEY_CHARS = 16


def load_account(path: Path, password: str | None) -> Any:
    """The vault's key: 64 hexadecimal digits, or a keystore's JSON with its password.

    Decrypting a keystore takes a second or more, by design.

    Raises:
        UserError: there is none; contains nothing of it.
    """
    text = _text(read_private(path, "key file"), path).strip()
    try:
        if not text.startswith("{"):
            return Account.from_key(bytes.fromhex(text.removeprefix("0x")))
        if password is None:
            raise UserError(f"key file {path} is encrypted; name its password with --password-file FILE")
        return Account.from_key(Account.decrypt(json.loads(text), password))
    except UserError:
        raise
    except Exception:  # the packages' errors may quote the key
        fix = "is its password right?" if text.startswith("{") else "64 hexadecimal digits or a keystore are expected"
        raise UserError(f"key file {path} holds no key that can be used: {fix}") from None


def read_api_key(path: Path) -> str:
    """The first line of a file that nobody else may read. Raises `UserError`."""
    key = _text(read_private(path, "API key file"), path).partition("\n")[0].strip()
    if len(key) < MIN_API_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise UserError(f"API key file {path}: its first line must be a key of at least {MIN_API_KEY_CHARS} characters")
    return key


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8") from None
