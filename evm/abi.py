"""The contracts' words: calls and logs, encoded and read strictly, with web3's ABI codec.

Whatever does not decode, or is not of its type, is `Malformed`: the endpoint's fault. Read next: `pool.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from web3 import Web3

from evm.rpc import Endpoint, Refusal, RpcError
from markets.base import MarketError
from protocol import Block

NULL_ADDRESS = "0x" + "0" * 40
ADDRESS = re.compile(r"0x[0-9a-f]{40}", re.ASCII)
HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)
QUANTITY = re.compile("0x[0-9a-fA-F]{1,64}")

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
        raise Malformed(f"{str(answer)[:60]!r} is no number")
    return int(answer, 16)


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

    def read(self, result: Any) -> tuple | None:
        """What it returned; None where the contract has no such function. Raises `Malformed`."""
        if isinstance(result, Refusal) or result == "0x":
            return None
        try:
            return _decode(self.returns, bytes.fromhex(result.removeprefix("0x")))
        except (ValueError, AttributeError, Malformed) as error:
            raise Malformed(f"{self.name}() returned {str(result)[:80]!r}: {error}") from error


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
            raise ValueError(f"{self.name} has {len(topics)} topics")
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


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, Malformed) as error:
        raise Malformed(f"a {what} that cannot be: {type(error).__name__} {error}"[:160]) from error


@_reading("log")
def read_logs(raws: list) -> list[Log]:
    """Check the logs of an answer. Raises `Malformed`."""
    return [_log(raw) for raw in raws]


def _log(raw: Any) -> Log:
    kind, block_hash = _LOG_TYPES[raw["topics"][0]], raw["blockHash"]
    if raw.get("removed") or not HASH.fullmatch(block_hash):
        raise ValueError("it is not in the chain")
    place, values = (integer(raw["blockNumber"]), integer(raw["logIndex"])), kind.read(raw["topics"], raw["data"])
    return Log(*place, block_hash, raw["transactionHash"], raw["address"].lower(), kind.name, values)


class Header(NamedTuple):
    number: int
    time: int
    hash: str
    parent: str

    @property
    def block(self) -> Block:
        return Block(self.number, self.time, self.hash)


@_reading("block")
def read_header(raw: Any) -> Header:
    """Check one block of an answer. Raises `Malformed`."""
    header = Header(integer(raw["number"]), integer(raw["timestamp"]), raw["hash"], raw["parentHash"])
    if not (HASH.fullmatch(header.hash) and HASH.fullmatch(header.parent)):
        raise ValueError("its hash is none")
    return header


class Receipt(NamedTuple):
    """What became of a transaction."""

    block: int
    success: bool
    sender: str
    gas_used: int
    gas_wei: int  # what it cost, a layer 2's fee for data included
    places: frozenset[tuple[int, int]]  # (block, log index) of its logs


@_reading("receipt")
def read_receipt(raw: Any) -> Receipt:
    """Check one receipt of an answer. Raises `Malformed`."""
    block, gas_used = integer(raw["blockNumber"]), integer(raw["gasUsed"])
    gas_wei = gas_used * integer(raw["effectiveGasPrice"]) + integer(raw.get("l1Fee") or "0x0")
    places = frozenset((block, integer(log["logIndex"])) for log in raw["logs"])
    return Receipt(block, integer(raw["status"]) == 1, raw["from"].lower(), gas_used, gas_wei, places)


def header_call(number: int | str) -> tuple[str, list]:
    """For `Rpc.batch`: a block's header."""
    return "eth_getBlockByNumber", [hex(number) if isinstance(number, int) else number, False]
