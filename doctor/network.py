"""The doctor on the subnet: wallet, registration, what the chain says. Read next: `pool.py`."""

from __future__ import annotations

import argparse
import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

from doctor.finding import FAIL, OK, WARN, Finding
from runtime.options import is_local, masked_url
from runtime.passwords import read_password
from runtime.process import UserError

CHAIN_SECONDS = 90  # for all that is asked of it; dialing a public endpoint takes several
GOOD_BALANCE_RAO = 10_000_000  # free TAO that pays the fees of some hundred writes
RAO = 10**9


def check_subnet(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether the wallet can be used, and what the named subnet's chain says of it; nothing where none is named.

    Args:
        options: with the settings of `add_chain_options`, resolved.
    """
    if is_local(options):
        yield Finding(OK, "no subnet is named (--netuid): everything stays on this machine")
        return
    try:
        from chain.base import ChainError
        from chain.opening import network
        from chain.wallets import load_wallet
    except (ImportError, SyntaxError, TypeError) as error:
        yield Finding(WARN, f"wallet and chain are not checked: {error}", "mend the lines above first")
        return
    folder = Path(options.wallet_path).expanduser() / options.wallet
    try:
        password = read_password(options)
        unlock = password is not None and (folder / "coldkey").exists()
        wallet = load_wallet(options.wallet, options.wallet_hotkey, str(folder.parent), password, unlock)
    except (UserError, ChainError) as error:
        fix = "name it with --wallet, --wallet-hotkey, --wallet-path, or create it: btcli wallet create"
        yield Finding(FAIL, f"wallet {options.wallet}, hotkey {options.wallet_hotkey}: {error}", fix)
        return
    what = f"wallet {options.wallet}: hotkey {wallet.hotkey.ss58_address}, coldkey {wallet.coldkey_address}"
    yield Finding(OK, what + (", the password opens it" if unlock else ""))
    yield from check_key_files(folder / "coldkey", folder / "hotkeys" / options.wallet_hotkey)
    place = options.network or masked_url(options.chain_endpoint)

    async def ask() -> list[Finding]:
        async with asyncio.timeout(CHAIN_SECONDS):
            async with network(options, wallet) as (subnet, _):
                return await check_chain(subnet, place)

    try:
        yield from asyncio.run(ask())
    except (ChainError, TimeoutError) as error:
        reason = str(error) or f"no answer within {CHAIN_SECONDS} s"
        fix = "look at the connection, --network and --netuid, or name another node with --chain-endpoint"
        yield Finding(FAIL, f"chain {place}: {reason}", fix)


def check_key_files(*paths: Path) -> Iterator[Finding]:
    """Whether others on this machine can read what signs."""
    for path in paths:
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding(WARN, f"key file {path} can be read by others", f"chmod 600 {path}")


async def check_chain(chain, place: str) -> list[Finding]:
    """What a chain says of the wallet it was opened with: registration, permit, stake, and free TAO for fees.

    Args:
        chain: a `chain.Chain`.
        place: its name in the lines.

    Raises:
        ChainError: it does not answer.
    """
    graph = await chain.metagraph()
    me, balance = graph.by_hotkey(chain.hotkey), await chain.free_balance()
    subnet = f"netuid {graph.netuid}"
    found = [Finding(OK, f"chain {place} answers: block {graph.block}, {subnet} has {len(graph.neurons)} neurons")]
    if me is None:
        fix = f"btcli subnets register --netuid {graph.netuid} with this wallet"
        found.append(Finding(FAIL, f"hotkey {chain.hotkey} is not registered on {subnet}", fix))
    else:
        found.append(Finding(OK, f"registered on {subnet}: uid {me.uid} since block {me.registered_block}"))
        if me.coldkey != chain.coldkey:
            fix = "stake moves and fees need the owner; right if somebody else owns the hotkey"
            found.append(Finding(WARN, f"the hotkey belongs to coldkey {me.coldkey}, the wallet's is another", fix))
        if me.permit:
            found.append(Finding(OK, f"validator permit on {subnet}"))
        else:
            fix = "a miner needs none; a validator needs more stake than the others without one"
            found.append(Finding(WARN, f"no validator permit on {subnet}: weights of this hotkey are not taken", fix))
        fix = "" if me.stake_rao else "a miner needs none; a validator stakes with btcli stake add"
        found.append(Finding(OK if me.stake_rao else WARN, f"stake {me.stake_rao / RAO:.4f} alpha on the hotkey", fix))
    if balance is not None:
        fix = "" if balance >= GOOD_BALANCE_RAO else f"keep {GOOD_BALANCE_RAO / RAO} TAO there, fees are taken from it"
        found.append(Finding(WARN if fix else OK, f"free balance of the coldkey: {balance / RAO:.4f} TAO", fix))
    return found
