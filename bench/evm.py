"""The real Uniswap V3 pool, main-net's own bytecode, inside a Rust EVM: the ruler that `sim.py` is measured by.

    pip install pyrevm==0.3.7                wheels for Python 3.11 and 3.12
    npm ci       the bytecode; ALM_NODE_MODULES names the folder, default ./node_modules

`RealPool` has the names of `sim.Pool`, so that the same lines drive both: `bench/sim.py` for speed, `tests/test_evm.py`
for equality. Read next: `bench/sim.py`.
"""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

from sim import Q256, PoolError

ROOT = Path(__file__).resolve().parent.parent
ARTIFACT = (
    Path(os.environ.get("ALM_NODE_MODULES") or ROOT / "node_modules")
    / "@uniswap/v3-core/artifacts/contracts/UniswapV3Pool.sol/UniswapV3Pool.json"
)
INIT_CODE_HASH = "e34f199b19b2b4f47f68442619d555527d244f78a3297ea89325f843f87b8b54"  # v3-periphery PoolAddress
POOL_BALANCE = 1 << 250  # of both tokens, from the start: no transfer out of the pool fails


def missing() -> str:
    """What has to be installed before `RealPool` works, as one line with the fix; empty if nothing."""
    if not find_spec("pyrevm"):
        return "pyrevm is not installed: pip install pyrevm==0.3.7 (Python 3.11 or 3.12)"
    return "" if ARTIFACT.exists() else f"{ARTIFACT} does not exist: npm ci"


# ---------------------------------------------------------------------------------------------------------------------
# The accounts around the pool: a user without code, and small contracts

USER, DEPLOYER, FACTORY, TOKEN0, TOKEN1, FIRST_OWNER = (n << 100 for n in range(1, 7))
_USER = f"0x{USER:040x}"

_OPCODES = {
    **{"ADD": 0x01, "MUL": 0x02, "SUB": 0x03, "SLT": 0x12, "EQ": 0x14, "ISZERO": 0x15},
    **{"ORIGIN": 0x32, "CALLER": 0x33, "CALLDATALOAD": 0x35, "CALLDATASIZE": 0x36, "CALLDATACOPY": 0x37},
    **{"RETURNDATASIZE": 0x3D, "RETURNDATACOPY": 0x3E, "MSTORE": 0x52, "SLOAD": 0x54, "SSTORE": 0x55},
    **{"SHR": 0x1C, "GT": 0x11, "MLOAD": 0x51, "POP": 0x50, "DELEGATECALL": 0xF4, "STATICCALL": 0xFA},
    **{"JUMPI": 0x57, "GAS": 0x5A, "DUP1": 0x80, "CREATE": 0xF0, "CALL": 0xF1, "RETURN": 0xF3, "REVERT": 0xFD},
}
_JUMPDEST, _PUSH1 = 0x5B, 0x60


def assemble(source: str) -> bytes:
    """Bytecode of a listing: opcodes, numbers to push (hexadecimal), `@label` to push and `:label` to jump to."""
    code, labels, uses = bytearray(), {}, {}
    for word in re.sub(r";.*", "", source).split():
        if word in _OPCODES:
            code.append(_OPCODES[word])
        elif word.startswith(":"):
            labels[word[1:]] = len(code)
            code.append(_JUMPDEST)
        elif word.startswith("@"):
            uses[len(code) + 1] = word[1:]
            code += bytes([_PUSH1, 0])
        else:
            number = bytes.fromhex(word.zfill(len(word) + len(word) % 2))
            code += bytes([_PUSH1 + len(number) - 1]) + number
    for at, label in uses.items():
        code[at] = labels[label]
    return bytes(code)


def deployer_code(fee: int, tick_spacing: int) -> bytes:
    """Creates the contract a user sends it; answers its constructor's `parameters()`."""
    return assemble(f"""
        ORIGIN CALLER EQ @create JUMPI
        {FACTORY:x} 0 MSTORE  {TOKEN0:x} 20 MSTORE  {TOKEN1:x} 40 MSTORE  {fee:x} 60 MSTORE  {tick_spacing:x} 80 MSTORE
        a0 0 RETURN
        :create
        CALLDATASIZE 0 0 CALLDATACOPY
        CALLDATASIZE 0 0 CREATE 0 MSTORE  20 0 RETURN
    """)


FACTORY_CODE = assemble(f"{FIRST_OWNER:x} 0 MSTORE 20 0 RETURN")  # answers `owner()`, all that a pool asks of it

TOKEN_CODE = assemble("""                               ; slot 0 is the pool's balance; nobody else's is kept
    CALLDATASIZE 24 EQ @balance JUMPI                   ; balanceOf(address) has 0x24 bytes of call data
    24 CALLDATALOAD 0 SLOAD SUB 0 SSTORE                ; transfer(address, amount): out of the pool; in if negative
    1 0 MSTORE 20 0 RETURN
    :balance 0 SLOAD 0 MSTORE 20 0 RETURN
""")


def owner_code(pool: int) -> bytes:
    """Passes a user's calls on to the pool; pays when the pool calls back, with (amount0, amount1, bytes).

    Only positive amounts are asked for. For a flash the bytes say what else to pay of each token: loan and tip.
    """

    def pay(token: int, amount_at: int, extra_at: int) -> str:
        return f"""
            {amount_at:x} CALLDATALOAD DUP1 0 SLT MUL   ; amount > 0 ? amount : 0
            {extra_at:x} CALLDATALOAD ADD               ; zero beyond the end of the call data
            DUP1 ISZERO @paid{token:x} JUMPI
            0 SUB 24 MSTORE                             ; transfer(..., -amount)
            0 0 44 0 0 {token:x} GAS CALL
            :paid{token:x}
        """

    return assemble(f"""
        ORIGIN CALLER EQ @pass_on JUMPI
        {pay(TOKEN0, 0x04, 0x84)}
        {pay(TOKEN1, 0x24, 0xA4)}
        0 0 RETURN
        :pass_on
        CALLDATASIZE 0 0 CALLDATACOPY
        0 0 CALLDATASIZE 0 0 {pool:x} GAS CALL
        RETURNDATASIZE 0 0 RETURNDATACOPY
        @success JUMPI
        RETURNDATASIZE 0 REVERT
        :success RETURNDATASIZE 0 RETURN
    """)


# ---------------------------------------------------------------------------------------------------------------------
# The pool


def _words(*values: int) -> bytes:
    return b"".join((value % Q256).to_bytes(32, "big") for value in values)


def _integers(words: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(words[at : at + 32], "big") for at in range(0, len(words), 32))


def _signed(word: int) -> int:
    return word - Q256 if word >> 255 else word


class RealPool:
    """The contract, with `sim.Pool`'s names, arguments, results and errors. Owners of positions are integers from 0.

    Every attribute read is a call. Source: the artifact of npm @uniswap/v3-core 1.0.1, whose hash is checked.
    """

    def __init__(self, fee: int, tick_spacing: int):
        from eth_hash.auto import keccak
        from pyrevm import EVM, AccountInfo

        code = bytes.fromhex(json.loads(ARTIFACT.read_text())["bytecode"].removeprefix("0x"))
        if keccak(code).hex() != INIT_CODE_HASH:
            raise RuntimeError(f"{ARTIFACT} is not main-net's pool: npm ci")
        self._keccak, self._account_info, self._evm = keccak, AccountInfo, EVM()
        self._selectors: dict[str, bytes] = {}
        self._owners: dict[int, str] = {}
        deployer = self._place(DEPLOYER, deployer_code(fee, tick_spacing))
        self._place(FACTORY, FACTORY_CODE)
        for token in (TOKEN0, TOKEN1):
            self._evm.insert_account_storage(self._place(token, TOKEN_CODE), 0, POOL_BALANCE)
        self._pool = int.from_bytes(self._evm.message_call(_USER, deployer, code), "big")

    def _place(self, account: int, code: bytes) -> str:
        address = f"0x{account:040x}"
        self._evm.insert_account_info(address, self._account_info(code=code))
        return address

    def call(self, owner: int, signature: str, *arguments: int) -> tuple[int, ...]:
        """Call the contract as an owner; words in, unsigned words out.

        Raises:
            PoolError: the contract reverted, with its reason.
        """
        if signature not in self._selectors:
            self._selectors[signature] = self._keccak(signature.encode())[:4]
        if owner not in self._owners:
            self._owners[owner] = self._place(FIRST_OWNER + owner, owner_code(self._pool))
        data = self._selectors[signature] + _words(*arguments)
        try:
            answer = self._evm.message_call(_USER, self._owners[owner], data)
        except RuntimeError as error:  # "Revert { gas_used: 21839, output: 0x08c379a0... }", else the EVM's own failure
            output = re.fullmatch(r"Revert \{.* output: 0x([0-9a-f]*) \}", str(error))
            if not output:
                raise
            offset_size_text = bytes.fromhex(output[1])[4:]
            size = int.from_bytes(offset_size_text[32:64], "big")
            raise PoolError(offset_size_text[64 : 64 + size].decode()) from None
        return _integers(answer)

    def initialize(self, sqrt_price_x96: int) -> None:
        self.call(0, "initialize(uint160)", sqrt_price_x96)

    def mint(self, owner: int, tick_lower: int, tick_upper: int, amount: int) -> tuple[int, int]:
        arguments = (FIRST_OWNER + owner, tick_lower, tick_upper, amount, 160, 0)  # 160: where the (empty) bytes begin
        return self.call(owner, "mint(address,int24,int24,uint128,bytes)", *arguments)

    def burn(self, owner: int, tick_lower: int, tick_upper: int, amount: int) -> tuple[int, int]:
        return self.call(owner, "burn(int24,int24,uint128)", tick_lower, tick_upper, amount)

    def collect(
        self, owner: int, tick_lower: int, tick_upper: int, amount0_requested: int, amount1_requested: int
    ) -> tuple[int, int]:
        arguments = (USER, tick_lower, tick_upper, amount0_requested, amount1_requested)
        return self.call(owner, "collect(address,int24,int24,uint128,uint128)", *arguments)

    def swap(self, zero_for_one: bool, amount_specified: int, sqrt_price_limit_x96: int) -> tuple[int, int]:
        arguments = (USER, zero_for_one, amount_specified, sqrt_price_limit_x96, 160, 0)
        amount0, amount1 = self.call(0, "swap(address,bool,int256,uint160,bytes)", *arguments)
        return _signed(amount0), _signed(amount1)

    def flash(self, amount0: int, amount1: int, tip0: int = 0, tip1: int = 0) -> tuple[int, int]:
        arguments = (USER, amount0, amount1, 128, 64, amount0 + tip0, amount1 + tip1)  # the bytes: 64 of them
        self.call(0, "flash(address,uint256,uint256,bytes)", *arguments)
        _, event = self._evm.result.logs[-1].data  # Flash: amount0, amount1, paid0, paid1
        return _integers(event)[2:]

    def set_fee_protocol(self, fee_protocol0: int, fee_protocol1: int) -> None:
        self.call(0, "setFeeProtocol(uint8,uint8)", fee_protocol0, fee_protocol1)

    def collect_protocol(self, amount0_requested: int, amount1_requested: int) -> tuple[int, int]:
        return self.call(0, "collectProtocol(address,uint128,uint128)", USER, amount0_requested, amount1_requested)

    sqrt_price_x96 = property(lambda self: self.call(0, "slot0()")[0])
    tick = property(lambda self: _signed(self.call(0, "slot0()")[1]))
    liquidity = property(lambda self: self.call(0, "liquidity()")[0])
    fee_growth_global0_x128 = property(lambda self: self.call(0, "feeGrowthGlobal0X128()")[0])
    fee_growth_global1_x128 = property(lambda self: self.call(0, "feeGrowthGlobal1X128()")[0])
    protocol_fees = property(lambda self: self.call(0, "protocolFees()"))

    def tick_state(self, index: int) -> tuple[int, int, int, int]:
        """(liquidity_gross, liquidity_net, fee_growth_outside0_x128, fee_growth_outside1_x128)."""
        gross, net, outside0, outside1, *_ = self.call(0, "ticks(int24)", index)
        return gross, _signed(net), outside0, outside1

    def position_state(self, owner: int, tick_lower: int, tick_upper: int) -> tuple[int, int, int, int, int]:
        """(liquidity, fee_growth_inside0_last_x128, fee_growth_inside1_last_x128, tokens_owed0, tokens_owed1)."""
        packed = (FIRST_OWNER + owner).to_bytes(20, "big")
        packed += b"".join(index.to_bytes(3, "big", signed=True) for index in (tick_lower, tick_upper))
        return self.call(0, "positions(bytes32)", int.from_bytes(self._keccak(packed), "big"))
