"""The contracts' words: calls and logs, encoded and read strictly, with web3's ABI codec.

Whatever does not decode, or is not of its type, is `Malformed`: the endpoint's fault. Read next: `pool.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import attrgetter
from typing import Any, NamedTuple

from web3 import Web3

from evm.rpc import Endpoint, Refusal, RpcError
from markets.base import MarketError
from protocol import Block

NULL_ADDRESS = "0x" + "0" * 40
ADDRESS = re.compile(r"0x[0-9a-f]{40}", re.ASCII)
HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
QUANTITY = re.compile("0x[0-9a-fA-F]{1,64}")
MAX_NUMBER = 2**48  # of a block, of unix seconds, of a place within a block
SPARE_BYTES = 16 << 10  # that an answer may have beside its types' words: lists, and what no type names

_codec = Web3().codec


class Malformed(RpcError):
    """An answer that no contract or node could have given. `endpoints`: where it came from, as far as known."""

    def __init__(self, what: str, endpoints: Iterable[Endpoint] = ()):
        super().__init__(what)
        self.endpoints = set(endpoints)


def address(text: str, what: str) -> str:
    """An address in lower case. Raises `MarketError` for what is none."""
    if not ADDRESS.fullmatch(text.lower()):
        raise MarketError(f"{what} {text[:60]!r}: 0x and 40 hexadecimal digits are expected")
    return text.lower()


def integer(answer: Any) -> int:
    """A quantity of JSON-RPC, 0 to 2**256 - 1. Raises `Malformed`."""
    if not isinstance(answer, str) or not QUANTITY.fullmatch(answer):
        raise Malformed("an answer that is no number")
    return int(answer, 16)


def number(answer: Any) -> int:
    """A quantity that counts blocks, seconds, logs or transactions. Raises `Malformed`."""
    if (value := integer(answer)) >= MAX_NUMBER:
        raise Malformed("a number that is too large")
    return value


def _decode(types: Sequence[str], data: bytes) -> tuple:
    """Strict: numbers within their types, no dirt in the padding. Raises `Malformed`."""
    try:
        return _codec.decode(types, data)
    except Exception as error:  # the codec's errors are of a package that web3 brings along
        raise Malformed(f"{len(data)} bytes are not {', '.join(types)} ({type(error).__name__})") from error


class Function:
    """A contract's view function: its signature, and the types of what it returns."""

    def __init__(self, signature: str, *returns: str):
        self.name, _, takes = signature.partition("(")
        self.takes = [kind for kind in re.sub(r"[()]", "", takes).split(",") if kind]  # a static tuple is its members
        self.selector, self.returns = Web3.keccak(text=signature)[:4], returns

    def call(self, to: str, block_hash: str, *arguments: Any, sender: str | None = None) -> tuple[str, list]:
        """For `Rpc.batch`: the call, in the state after this block."""
        data = "0x" + (self.selector + _codec.encode(self.takes, arguments)).hex()
        transaction = {"to": to, "data": data} | ({"from": sender} if sender else {})
        return "eth_call", [transaction, {"blockHash": block_hash, "requireCanonical": True}]

    def read(self, result: Any, spare_bytes: int = SPARE_BYTES) -> tuple | None:
        """What it returned; None where the contract has no such function.

        Raises:
            Malformed: it is of other types, or has more than `spare_bytes` beside a word for each; it is not decoded
                then, as pointers into one blob can make hundreds of times its size of it.
        """
        if isinstance(result, Refusal) or result == "0x":
            return None
        try:
            if len(result) > 2 + 2 * (32 * len(self.returns) + spare_bytes):
                raise Malformed(f"{len(result) // 2} bytes are more than can be meant")
            return _decode(self.returns, bytes.fromhex(result.removeprefix("0x")))
        except (TypeError, ValueError, AttributeError, Malformed) as error:
            why = error if isinstance(error, Malformed) else type(error).__name__
            raise Malformed(f"{self.name}() returned what it cannot: {why}") from error


class LogType:
    """An event of a contract: its signature, with `*` before each indexed type."""

    def __init__(self, signature: str):
        self.name, _, takes = signature.removesuffix(")").partition("(")
        kinds = takes.split(",")
        self.indexed = [kind[1:] for kind in kinds if kind[0] == "*"]
        self.data = [kind for kind in kinds if kind[0] != "*"]
        self.topic = "0x" + Web3.keccak(text=signature.replace("*", "")).hex().removeprefix("0x")

    def read(self, topics: Sequence[str], data: str) -> tuple:
        """The indexed values, then the others."""
        if len(topics) != len(self.indexed) + 1:
            raise Malformed(f"{self.name} has {len(topics)} topics")
        words = b"".join(bytes.fromhex(topic[2:]) for topic in topics[1:])
        return *_decode(self.indexed, words), *_decode(self.data, bytes.fromhex(data[2:]))


POOL_LOGS = [
    LogType("Initialize(uint160,int24)"),
    LogType("Swap(*address,*address,int256,int256,uint160,uint128,int24)"),
    LogType("Mint(address,*address,*int24,*int24,uint128,uint256,uint256)"),
    LogType("Burn(*address,*int24,*int24,uint128,uint256,uint256)"),
    LogType("Collect(*address,address,*int24,*int24,uint128,uint128)"),
    LogType("Flash(*address,*address,uint256,uint256,uint256,uint256)"),
    LogType("SetFeeProtocol(uint8,uint8,uint8,uint8)"),
    LogType("CollectProtocol(*address,*address,uint128,uint128)"),
]
CL_LOGS = [  # of a Slipstream pool besides, and of its gauge: user, token id, liquidity
    LogType("CollectFees(*address,uint128,uint128)"),
    LogType("Deposit(*address,*uint256,*uint128)"),
    LogType("Withdraw(*address,*uint256,*uint128)"),
]
TRANSFER = LogType("Transfer(*address,*address,*uint256)")
MANAGER_LOGS = [
    LogType("IncreaseLiquidity(*uint256,uint128,uint256,uint256)"),
    LogType("DecreaseLiquidity(*uint256,uint128,uint256,uint256)"),
    LogType("Collect(*uint256,address,uint256,uint256)"),
]
_LOG_TYPES = {kind.topic: kind for kind in (*POOL_LOGS, *CL_LOGS, TRANSFER, *MANAGER_LOGS)}


class Log(NamedTuple):
    """A contract's event as a node returns it; `values`: first those that are indexed."""

    block: int
    index: int
    block_hash: str
    transaction: str
    address: str
    name: str
    values: tuple
    order: int = 0  # of the transaction in the block


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever goes wrong while an answer is read is who gave it: it becomes `Malformed`."""
    try:
        yield
    except Exception as error:  # whatever it was: no node should have said it
        why = error if isinstance(error, Malformed) else type(error).__name__  # of others the words may be the node's
        raise Malformed(f"a {what} that cannot be: {why}") from error


def _log(raw: Any) -> Log:
    kind, hashes = _LOG_TYPES[raw["topics"][0]], (raw["blockHash"], raw["transactionHash"])
    if not all(map(HASH.fullmatch, hashes)):
        raise Malformed("its hashes are none")
    place, order = (number(raw["blockNumber"]), number(raw["logIndex"])), number(raw.get("transactionIndex", "0x0"))
    values = kind.read(raw["topics"], raw["data"])
    return Log(*place, *hashes, raw["address"].lower(), kind.name, values, order)


@reading("log")
def read_logs(*answers: list) -> list[Log]:
    """The logs of answers in the chain's order, each once, without those that are said to be removed.

    Some nodes count a log's index anew in each transaction: in their blocks it is counted on, by the order of
    transactions. Raises `Malformed`: one cannot be, or two that differ are in one place.
    """
    told = {_log(raw) for answer in answers for raw in answer if raw.get("removed") in (None, False)}
    logs = sorted(told, key=attrgetter("block", "order", "index"))
    anew = {a.block for a, b in pairwise(logs) if a.block == b.block and a.order < b.order and a.index >= b.index}
    logs = [one._replace(index=one.order << 20 | one.index) if one.block in anew else one for one in logs]
    if len({one[:2] for one in logs}) < len(logs):
        raise Malformed("one is told twice")
    return logs


class Header(NamedTuple):
    number: int
    time: int
    hash: str
    parent: str

    @property
    def block(self) -> Block:
        return Block(self.number, self.time, self.hash)


@reading("block")
def read_header(raw: Any) -> Header:
    """Check one block of an answer. Raises `Malformed`."""
    header = Header(number(raw["number"]), number(raw["timestamp"]), raw["hash"], raw["parentHash"])
    if not (HASH.fullmatch(header.hash) and HASH.fullmatch(header.parent)):
        raise Malformed("its hash is none")
    return header


class Receipt(NamedTuple):
    """What became of a transaction."""

    block: int
    success: bool
    sender: str
    gas_used: int
    gas_wei: int  # what it cost, a layer 2's fees for data and to its operator included
    places: frozenset[tuple[int, int]]  # (block, log index) of its logs


@reading("receipt")
def read_receipt(raw: Any) -> Receipt:
    """Check one receipt of an answer. Raises `Malformed`."""
    block, gas_used = number(raw["blockNumber"]), number(raw["gasUsed"])
    data_fee, scalar, constant = (
        integer(raw.get(name) or "0x0") for name in ("l1Fee", "operatorFeeScalar", "operatorFeeConstant")
    )
    jovian = raw.get("daFootprintGasScalar") is not None  # since that release of the OP stack
    operator_fee = (gas_used * scalar * 100 if jovian else gas_used * scalar // 10**6) + constant
    gas_wei = gas_used * integer(raw["effectiveGasPrice"]) + data_fee + operator_fee
    if gas_wei >> 128:
        raise ValueError("its gas costs more than there is")
    places = frozenset((block, number(log["logIndex"])) for log in raw["logs"])
    return Receipt(block, integer(raw["status"]) == 1, raw["from"].lower(), gas_used, gas_wei, places)


def header_call(number: int | str) -> tuple[str, list]:
    """For `Rpc.batch`: a block's header."""
    return "eth_getBlockByNumber", [hex(number) if isinstance(number, int) else number, False]
