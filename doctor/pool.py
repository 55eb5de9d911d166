"""The doctor on a real market: whether nodes, pool and vault can be used, and the executor bot asked.

Needs only the standard library to say what is missing. Read next: `nodes.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from doctor.finding import FAIL, OK, WARN, Finding
from runtime.options import masked_url
from runtime.passwords import read_executor_key
from runtime.process import UserError

BOT_SECONDS = 10  # for one question to an executor bot
MAX_HEALTH_BYTES = 64 << 10


def check_market(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether a real market could be opened: its nodes, pool and vault, and the executor bot.

    Args:
        options: with the settings of `options.add_market_options`, resolved.
    """
    if not options.rpc:
        yield Finding(OK, "no node of a pool's chain is named (--rpc): the market is a model or a recording")
        return
    try:
        from doctor.nodes import check_chain_side  # it needs aiohttp and web3
    except (ImportError, SyntaxError, TypeError) as error:
        yield Finding(WARN, f"nodes, pool and executor are not checked: {error}", "mend the lines above first")
        return
    logging.getLogger("rpc").addHandler(logging.NullHandler())  # what it has to say is in the findings
    yield from asyncio.run(check_chain_side(options))
    if options.executor_url:
        yield from check_executor_key(options)
        yield from asyncio.run(check_executor(options))
    else:
        yield Finding(OK, "no executor bot is named (--executor-url): evaluation only, no live rounds")


def check_executor_key(options: argparse.Namespace) -> Iterator[Finding]:
    """Whether there is a key for the executor bot that nobody else can read, here or on its way."""
    if _in_the_clear(options.executor_url):
        fix = "use https, or an SSH or VPN tunnel that ends on loopback"
        yield Finding(WARN, f"the executor's key travels in the clear to {masked_url(options.executor_url)}", fix)
    try:
        key = read_executor_key(options)
    except UserError as error:
        yield Finding(FAIL, f"the executor's key: {error}")
        return
    if key is None:
        fix = "name its file with --executor-key-file, or set EXECUTOR_API_KEY"
        yield Finding(FAIL, "the executor's key is not given", fix)
    else:
        name = "executor_key" if options.executor_key else "executor_key_file"
        yield Finding(OK, f"the executor's key is given ({options.sources[name].name})")


def _in_the_clear(url: str) -> bool:
    """Whether others may read what is sent there."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "http" and not ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return parts.hostname != "localhost"


async def check_executor(options: argparse.Namespace) -> list[Finding]:
    """Whether the executor bot answers, is of the same pool and vault, takes the key, and will send.

    The key is shown to a bot of this pool and vault alone, as the validator will do, and never in the clear.
    """
    import aiohttp

    url = options.executor_url
    name, fix = f"executor {masked_url(url)}", "start it (python -m executor serve), or correct --executor-url"
    try:
        status, raw = await _get(f"{url}/health")
        said = json.loads(raw)
        if status != 200 or not isinstance(said, dict):
            raise ValueError
        found = [
            Finding(FAIL, f"{name}: it is of {what} {str(said.get(what))[:60]!r}, not {wanted}", "name the right bot")
            for what, wanted in (("pool", options.pool), ("vault", options.vault))
            if wanted and said.get(what) != wanted
        ]
        if said.get("live") is not True:
            found.append(Finding(WARN, f"{name}: a dry run, it carries nothing out", "start it with --live"))
        if said.get("paused"):
            found.append(Finding(WARN, f"{name}: paused, it carries nothing out", "python -m executor resume"))
        if not _in_the_clear(url) and FAIL not in [finding.level for finding in found]:
            with suppress(UserError):  # told by check_executor_key
                if key := read_executor_key(options):
                    status, _ = await _get(f"{url}/orders/doctor", {"Authorization": f"Bearer {key.reveal()}"})
                    if status != 404:
                        what = f"{name}: it does not take the key, HTTP {status}"
                        found.append(Finding(FAIL, what, "give both the same, the first line of --executor-key-file"))
    except TimeoutError:
        return [Finding(FAIL, f"{name}: no answer within {BOT_SECONDS} s", fix)]
    except (ValueError, RecursionError):
        return [Finding(FAIL, f"{name}/health: HTTP {status}, {raw[:60]!r}", fix)]
    except (aiohttp.ClientError, OSError) as error:
        return [Finding(FAIL, f"{name}: {getattr(error, 'strerror', None) or error}", fix)]
    return found or [Finding(OK, f"{name} answers, is live, and is of this pool and vault")]


async def _get(url: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and the beginning of the body."""
    import aiohttp

    async with (
        asyncio.timeout(BOT_SECONDS),
        aiohttp.ClientSession(trust_env=False) as session,
        session.get(url, headers=headers, allow_redirects=False) as reply,
    ):
        return reply.status, await reply.content.read(MAX_HEALTH_BYTES)
