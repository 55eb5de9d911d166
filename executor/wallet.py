"""A vault's key and its side of the chain: the latest block, nonce, gas and allowances; signing and sending.

    wallet = Wallet(rpc, contract, vault, account, max_gas_wei, folder / "executor.pause")
    fees = await wallet.fees(await wallet.tip(), None)

Read next: `execution.py`, which writes down what is signed before it is sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median_high
from typing import Any, NamedTuple

from web3 import Account

from evm.abi import Function, Malformed, header_call, integer, number, read_header, reading
from evm.pool import Contract
from evm.rpc import Refusal, Rpc, RpcError
from executor import plan
from executor.journal import PLAN, Attempt
from executor.readback import Tip, one
from markets.base import MarketError
from protocol import Code, ProtocolError
from runtime.hidden import conceal
from runtime.passwords import read_private, unseen
from runtime.process import UserError

POLL_SECONDS = 1.0
GAS_MARGIN_PERCENT = 25  # above the estimate
APPROVE_SECONDS = 180
GWEI = 10**9
HISTORY_BLOCKS = 20  # whose tips are looked at where no node says what is usual
STILL_SECONDS, BEHIND_BLOCKS = 120, 20  # a node whose head stands still, or is so far behind, is not asked
UNLIMITED = 2**256 - 1

ALLOWANCE = Function("allowance(address,address)", "uint256")
TOTAL_SUPPLY = Function("totalSupply()", "uint256")
APPROVE = Function("approve(address,uint256)", "bool")
WETH9 = Function("WETH9()", "address")
GAS_ORACLE = "0x420000000000000000000000000000000000000f"  # a contract of the OP stack
L1_FEE, OPERATOR_FEE = Function("getL1Fee(bytes)", "uint256"), Function("getOperatorFee(uint256)", "uint256")
ENVELOPE_BYTES = 200  # that a transaction has beside its data, at most

log = logging.getLogger("execution")


_UNTAKEN = (  # what nodes say of a transaction that they do not take, and what that means; no meaning: they have it
    (r"already (known|imported|exists)|known transaction|nonce.* (too low|lower|already)|same hash", ""),
    (r"insufficient (funds|balance)|not enough (funds|balance)", "the vault has too little for gas"),
    (
        r"underpriced|(fee|price)\W*too ?low|tip (cap|needed)|priority fee|gas ?price|fee per ?gas|minimum|pool.* full",
        _CHEAP := "it offers too little for gas",
    ),
)
_LEAST = re.compile(r"(?:needed|minimum|at least|<|below)\D{0,30}?([0-9]{1,30})(?:\.[0-9]+)?( ?gwei)?", re.IGNORECASE)


class Untaken(NamedTuple):
    """No node that was asked takes a transaction: why, in our words, and whether more gas money may mend it."""

    why: str
    cheap: bool


class Later(Exception):
    """Nothing is wrong with the order; look again at the next block."""


class Fees(NamedTuple):
    """What is offered for a unit of gas, in all and of it to whoever makes the block; wei."""

    most: int
    priority: int


class Wallet:
    """One vault's.

    Args:
        contract: the pool, with its position manager.
        vault: its address, in lower case.
        account: with its key; None for a dry run.
        max_gas_wei: the most that a unit of gas may cost, priority fee included.
        pause_file: while it is there, nothing is sent.
    """

    def __init__(self, rpc: Rpc, contract: Contract, vault: str, account: Any, max_gas_wei: int, pause_file: Path):
        self.rpc, self.contract, self.vault, self._account = rpc, contract, vault, account
        self.max_gas_wei, self.pause_file = max_gas_wei, pause_file
        self.tokens = contract.pair.token0.address.lower(), contract.pair.token1.address.lower()
        self._native: str | None = None
        self._least_tip = 0  # what nodes said that the chain wants at least, wei
        self._head = 0, time.monotonic()  # the highest block seen, and when it came

    @property
    def paused(self) -> bool:
        return self.pause_file.exists()

    # -- what the chain says

    async def ask(self, method: str, *parameters: Any, refusable: bool = False) -> Any:
        """The answer to one call."""
        [answer] = await self.rpc.batch([(method, list(parameters))], refusable=refusable)
        return answer

    async def tip(self) -> Tip:
        """The latest block. Raises `RpcError` of a node that is behind: the next one is asked another time."""
        [raw] = answers = await self.rpc.batch([header_call("latest")], usable=read_header)
        header, (seen, since) = read_header(raw), self._head
        if header.number > seen:
            self._head = header.number, time.monotonic()
        elif header.number < seen - BEHIND_BLOCKS or time.monotonic() - since > STILL_SECONDS:
            said = f"its head is block {header.number}, {seen} was seen {time.monotonic() - since:.0f} s ago"
            self.rpc.distrust(answers.endpoints, said)
            raise RpcError(f"a node is behind: {said}")
        if "baseFeePerGas" not in raw:
            raise MarketError(f"chain {self.contract.pair.chain_id} has no base fee (EIP-1559): it is not supported")
        return Tip(header.number, header.time, header.hash, integer(raw["baseFeePerGas"]))

    async def count(self) -> int:
        """How many of the vault's transactions are in the chain: the next nonce."""
        return number(await self.ask("eth_getTransactionCount", self.vault, "latest"))

    async def balance_wei(self) -> int:
        """What there is to pay gas from."""
        return integer(await self.ask("eth_getBalance", self.vault, "latest"))

    async def layer2_fees(self, data: str, gas: int, tip: Tip) -> int:
        """What an OP stack chain takes besides, for a transaction's data and for its operator, wei; elsewhere 0."""
        envelope = bytes.fromhex(data[2:]) + bytes(ENVELOPE_BYTES)
        calls = (L1_FEE.call(GAS_ORACLE, tip.hash, envelope), OPERATOR_FEE.call(GAS_ORACLE, tip.hash, gas))
        answers = await self.rpc.batch(calls)
        found = (function.read(answer) for function, answer in zip((L1_FEE, OPERATOR_FEE), answers, strict=True))
        return sum(fee for (fee,) in filter(None, found))

    async def native_token(self) -> str:
        """The token that gas can be counted in: the manager's wrapped native one; asked once."""
        if self._native is None:
            [answer] = await self.rpc.batch([WETH9.call(self.contract.manager, (await self.tip()).hash)])
            self._native = one(WETH9.read(answer)).lower()
        return self._native

    async def allowances(self, block_hash: str) -> list[int]:
        """How much of each token the position manager may take from the vault; `UNLIMITED` for all that there is."""
        calls = [ALLOWANCE.call(token, block_hash, self.vault, self.contract.manager) for token in self.tokens]
        answers = await self.rpc.batch(calls + [TOTAL_SUPPLY.call(token, block_hash) for token in self.tokens])
        allowed, there = ([one(ALLOWANCE.read(answer)) for answer in part] for part in (answers[:2], answers[2:]))
        enough = (min(max(supply, 1), UNLIMITED // 2) for supply in there)
        return [UNLIMITED if amount >= all_ else amount for amount, all_ in zip(allowed, enough, strict=True)]

    async def simulate(self, calls: Sequence[bytes], tip: Tip) -> Sequence[bytes]:
        """What the manager's calls would return in the state after a block. Raises `ProtocolError` if they fail."""
        transaction = {"from": self.vault, "to": self.contract.manager, "data": plan.multicall(calls)}
        answer = await self.ask("eth_call", transaction, {"blockHash": tip.hash, "requireCanonical": True})
        found = plan.MULTICALL.read(answer, len(calls) * plan.MOST_RESULT_BYTES)
        if found is None:
            log.warning("the contracts would refuse it: %s", getattr(answer, "message", "they are not there"))
            raise ProtocolError(Code.EXECUTION_REVERTED, f"the contracts would refuse it: {answer}")
        if len(found[0]) != len(calls):
            raise Malformed(f"multicall() of {len(calls)} returned {len(found[0])}")
        return found[0]

    async def estimate(self, to: str, data: str) -> int:
        """Gas to offer. Raises `Later` where it cannot be estimated."""
        transaction = {"from": self.vault, "to": to, "data": data}
        answer = await self.ask("eth_estimateGas", transaction, "latest", refusable=True)
        if isinstance(answer, Refusal):
            raise Later(f"gas cannot be estimated: {answer}")
        return integer(answer) * (100 + GAS_MARGIN_PERCENT) // 100

    async def usual_tip(self) -> int:
        """What who makes a block is paid: as a node says, else as was paid lately. Raises `Later`: nobody knows."""
        answers = await self.rpc.second([("eth_maxPriorityFeePerGas", [])], set())  # once: not all have it
        if answers and not isinstance(answers[0], Refusal):
            return integer(answers[0])
        history = await self.ask("eth_feeHistory", hex(HISTORY_BLOCKS), "latest", [50], refusable=True)
        if isinstance(history, Refusal):
            raise Later(f"no node says what tip is usual: {history}")
        with reading("fee history"):
            return median_high(integer(tip) for (tip,) in history["reward"])

    async def fees(self, tip: Tip, over: Attempt | None, cheap: bool = False) -> Fees:
        """What to offer; an eighth more than what it shall replace, as nodes demand.

        Of what was too `cheap` twice as much, where nobody said how much is wanted. Raises `ProtocolError`, `Later`.
        """
        priority = max(await self.usual_tip(), self._least_tip)
        most, least = 2 * tip.base_fee_wei + priority, max(tip.base_fee_wei, self._least_tip)
        if over:
            more, priority_more = (fee * 9 // 8 + 1 for fee in (over.max_fee_wei, over.priority_fee_wei))
            least = max(least, more, priority_more)
            if cheap and self._least_tip <= over.priority_fee_wei:
                more, priority_more = 2 * over.max_fee_wei, max(2 * over.priority_fee_wei, over.max_fee_wei // 16)
            most, priority = max(most, more), max(priority, priority_more)
        if least > self.max_gas_wei:
            raise ProtocolError(Code.GAS_PRICE_LIMIT, f"gas would cost {most} wei, at most {self.max_gas_wei}")
        return Fees(min(most, self.max_gas_wei), min(priority, self.max_gas_wei))

    # -- sending

    def sign(self, nonce: int, to: str, data: str, gas: int, fees: Fees) -> tuple[str, str]:
        """A signed transaction and its hash."""
        what = {"type": 2, "chainId": self.contract.pair.chain_id, "nonce": nonce, "to": bytes.fromhex(to[2:])}
        costs = {"gas": gas, "maxFeePerGas": fees.most, "maxPriorityFeePerGas": fees.priority}
        signed = self._account.sign_transaction({**what, "value": 0, "data": data, **costs})
        return f"0x{bytes(signed.raw_transaction).hex()}", f"0x{bytes(signed.hash).hex()}"

    async def broadcast(self, attempt: Attempt) -> Untaken | None:
        """Why it is not taken, if so. Whether it arrived the next look at the chain says."""
        if self.paused:
            log.warning("paused: %s is not sent", attempt.hash)
            return None
        answers = await self.rpc.batch(calls := [("eth_sendRawTransaction", [attempt.raw])], refusable=True)
        if isinstance(answers[0], Refusal):
            answers = await self.rpc.second(calls, answers.endpoints) or answers
        if not isinstance(said := answers[0], Refusal):
            return None
        log.warning("%s: the node says %s", attempt.hash, said.message)
        unknown = f"a node refuses it, {said}; its log has the words"
        why = next((why for words, why in _UNTAKEN if re.search(words, said.message, re.IGNORECASE)), unknown)
        if why == _CHEAP:
            wanted = (int(amount) * (GWEI if unit else 1) for amount, unit in _LEAST.findall(said.message))
            wanted = [one for one in wanted if attempt.priority_fee_wei < one <= self.max_gas_wei]
            self._least_tip = max(wanted, default=self._least_tip)
        return Untaken(why, why == _CHEAP) if why else None

    async def approve(self, token: str, allowed: int) -> list[str]:
        """Let the position manager take all of a token; returns the transactions. Raises `UserError` if that fails.

        Some tokens change no allowance but from or to 0, and some count in 96 bits.
        """
        sent = []
        if not (amount := await self._most(token)) and allowed:
            sent.append(await self._let(token, 0))
            amount = await self._most(token)
        return [*sent, await self._let(token, amount or UNLIMITED)]

    async def _most(self, token: str) -> int:
        """The largest allowance that a token takes now; 0 if none."""
        for amount in (UNLIMITED, 2**96 - 1):
            with suppress(Later):
                await self.estimate(token, self._approval(amount))
                return amount
        return 0

    def _approval(self, amount: int) -> str:
        return "0x" + plan.data_of(APPROVE, self.contract.manager, amount).hex()

    async def _let(self, token: str, amount: int) -> str:
        tip, data, sent, untaken = await self.tip(), self._approval(amount), None, None
        try:
            if self.paused:
                raise Later("paused; python -m executor resume ends that")
            gas, nonce = await self.estimate(token, data), await self.count()
            while not sent or (untaken and untaken.cheap):
                fees = await self.fees(tip, sent, cheap=True)
                raw, hash_ = self.sign(nonce, token, data, gas, fees)
                sent = Attempt(nonce, PLAN, hash_, raw, *fees, tip.number, 0)
                untaken = await self.broadcast(sent)
            if untaken:
                raise Later(untaken.why)
        except (ProtocolError, Later) as error:
            raise UserError(f"{token} cannot be approved: {error}") from None
        log.info("sent as %s", hash_)
        until = time.monotonic() + APPROVE_SECONDS
        while time.monotonic() < until:
            if receipt := await self.ask("eth_getTransactionReceipt", hash_):
                if receipt["status"] != "0x1":
                    raise UserError(f"{token} cannot be approved: {hash_} was mined and did nothing")
                return hash_
            await asyncio.sleep(POLL_SECONDS)
        raise UserError(f"{hash_} is not mined after {APPROVE_SECONDS} s; look whether it is, before you try again")


def load_account(path: Path, password: str | None) -> Any:
    """The vault's key: 64 hexadecimal digits, or a keystore's JSON with its password.

    Decrypting a keystore takes a second or more, by design. Raises `UserError`, which contains nothing of it.
    """
    text = read_private(path, "key file").decode("utf-8-sig", "replace").strip()
    encrypted = text.startswith("{")
    if encrypted and password is None:
        raise UserError(f"key file {path} is encrypted; name its password with --password-file FILE")
    try:
        key = Account.decrypt(json.loads(text), password) if encrypted else bytes.fromhex(text.removeprefix("0x"))
        conceal(bytes(key).hex())
        return Account.from_key(key)
    except Exception:  # the packages' errors may quote the key
        fix = "is its password right?" if encrypted else "64 hexadecimal digits or a keystore are expected"
        fix += unseen(password if encrypted else text)
        raise UserError(f"key file {path} holds no key that can be used: {fix}") from None
