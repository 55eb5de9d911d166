"""A development chain on the loopback interface, with Uniswap V3's own contracts on it, and somebody to trade there.

    with Chain() as chain:                      # anvil, a free port, ends with the block
        pool = Uniswap(chain)                   # factory, pool, position manager, two ERC-20 tokens
        pool.mint(chain.accounts[1], -600, 600, 10**18, 10**18)
        pool.swap(True, 10**15)
        chain.mine()

Nothing is mined before `mine()`, so that a test decides what comes into one block, and in which order. The contracts
are those of npm's `@uniswap/v3-core`, `@uniswap/v3-periphery` and `@openzeppelin/contracts`; only the trader, which
pays when the pool calls back, is assembled here: npm has none. Used by `test_evm_market.py`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import urllib.request
from functools import cache
from pathlib import Path
from threading import Thread

from bench.evm import assemble
from evm.abi import Function
from evm.market import Web3Market
from evm.pool import COLLECT, read_vault
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, Q96

ROOT = Path(__file__).resolve().parent.parent
NODE_MODULES = Path(os.environ.get("ALM_NODE_MODULES") or ROOT / "node_modules")
PERIPHERY = "@uniswap/v3-periphery/artifacts/contracts"
ARTIFACTS = {
    "factory": "@uniswap/v3-core/artifacts/contracts/UniswapV3Factory.sol/UniswapV3Factory.json",
    "manager": f"{PERIPHERY}/NonfungiblePositionManager.sol/NonfungiblePositionManager.json",
    "token": "@openzeppelin/contracts/build/contracts/ERC20PresetFixedSupply.json",
}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64", "AMD64": "amd64"}
SUPPLY = 1 << 110
DEADLINE = 1 << 60
START_SECONDS = 60
GAS, BLOCK_GAS = 10_000_000, 1 << 40


def binary() -> Path:
    """Where npm puts the program for this machine: its package has it, no install script needs to run."""
    system = platform.system().lower()
    return NODE_MODULES / f"@foundry-rs/anvil-{system}-{MACHINES.get(platform.machine(), '')}/bin/anvil"


def missing() -> str:
    """What has to be installed, as one line with the fix; empty if nothing."""
    for path in (binary(), *(NODE_MODULES / name for name in ARTIFACTS.values())):
        if not path.exists():
            return f"{path} does not exist: npm ci"
    return ""


@cache
def bytecode(name: str) -> str:
    return json.loads((NODE_MODULES / ARTIFACTS[name]).read_text())["bytecode"]


class Chain:
    """Anvil; `accounts` hold ether and need no signatures."""

    def __init__(self, *options: str):
        self._options = options

    def __enter__(self) -> Chain:
        command = [str(binary()), "--port", "0", "--no-mining", "--order", "fifo", "--accounts", "6"]
        command += ["--gas-limit", str(BLOCK_GAS), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self._process.stdout:
            if found := re.search(r"Listening on 127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise RuntimeError(f"{command}: ended with {self._process.wait()}")
        self._drain = Thread(target=self._process.stdout.read)  # else a full pipe would stop it
        self._drain.start()
        self.url = f"http://127.0.0.1:{found[1]}"
        self.accounts = self.rpc("eth_accounts")
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._drain.join()
        self._process.stdout.close()
        self._process.wait()

    def rpc(self, method: str, *parameters):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_SECONDS) as reply:
            answer = json.load(reply)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    @property
    def height(self) -> int:
        return int(self.rpc("eth_blockNumber"), 16)

    def mine(self, blocks: int = 1, seconds: int = 2) -> int:
        """Mine what waits into the first of so many blocks; returns the height."""
        self.rpc("anvil_mine", hex(blocks), hex(seconds))
        return self.height

    def send(self, sender: str, to: str | None, data: str) -> str:
        """Put a transaction into the pool; returns its hash."""
        transaction = {"from": sender, "data": data, "gas": hex(GAS)}
        return self.rpc("eth_sendTransaction", transaction | ({"to": to} if to else {}))

    def receipt(self, transaction: str) -> dict:
        """Of a mined transaction. Raises `RuntimeError` if it was reverted."""
        receipt = self.rpc("eth_getTransactionReceipt", transaction)
        if not receipt or receipt["status"] != "0x1":
            raise RuntimeError(f"transaction {transaction}: {receipt and 'reverted'}")
        return receipt

    def deploy(self, code: str) -> str:
        transaction = self.send(self.accounts[0], None, code)
        self.mine()
        return self.receipt(transaction)["contractAddress"]

    def call(self, to: str, function: Function, *arguments, sender: str | None = None) -> tuple:
        _, (transaction, _) = function.call(to, "", *arguments, sender=sender)
        return function.read(self.rpc("eth_call", transaction, "latest"))


def encoded(signature: str, *arguments) -> str:
    return Function(signature).call("", "", *arguments)[1][0]["data"]


def string(text: str) -> str:
    """A short string as the last constructor argument has it: length and bytes."""
    return f"{len(text):064x}" + text.encode().hex().ljust(64, "0")


def trader_code(pool: str, token0: str, token1: str) -> str:
    """Creation code of a contract that passes a user's calls on to the pool, and pays when the pool calls back.

    Only positive amounts are asked for. For a flash the bytes say what else to pay of each token: loan and tip.
    """

    def pay(token: str, amount_at: int, extra_at: int) -> str:
        return f"""
            {amount_at:x} CALLDATALOAD DUP1 0 SLT MUL   ; amount > 0 ? amount : 0
            {extra_at:x} CALLDATALOAD ADD               ; zero beyond the end of the call data
            DUP1 ISZERO @paid{token} JUMPI
            a9059cbb 0 MSTORE  CALLER 20 MSTORE         ; transfer(the caller, amount): call data from 0x1c on
            40 MSTORE
            0 0 44 1c 0 {token[2:]} GAS CALL
            :paid{token}
        """

    runtime = assemble(f"""
        ORIGIN CALLER EQ @pass_on JUMPI
        {pay(token0, 0x04, 0x84)}
        {pay(token1, 0x24, 0xA4)}
        0 0 RETURN
        :pass_on
        CALLDATASIZE 0 0 CALLDATACOPY
        0 0 CALLDATASIZE 0 0 {pool[2:]} GAS CALL
        RETURNDATASIZE 0 0 RETURNDATACOPY
        @success JUMPI
        RETURNDATASIZE 0 REVERT
        :success RETURNDATASIZE 0 RETURN
    """)
    padded = runtime.ljust(-(-len(runtime) // 32) * 32, b"\0")
    words = [padded[at : at + 32].hex() for at in range(0, len(padded), 32)]
    stores = " ".join(f"{word} {at * 32:x} MSTORE" for at, word in enumerate(words))
    return "0x" + assemble(f"{stores} {len(runtime):x} 0 RETURN").hex()


BEHIND = "0x" + "1d" * 20  # where the code of a token that was made odd then stands
_FEW = f"""  ; totalSupply() fits what an allowance can be
        0 CALLDATALOAD e0 SHR 18160ddd EQ ISZERO @more JUMPI {2**90:x} 0 MSTORE 20 0 RETURN :more"""
ODD_TOKENS = {  # what runs before the token's own code, which it may never reach
    "through_zero": f"""  ; as USDT: an allowance that is not 0 can be changed to 0 alone
        0 CALLDATALOAD e0 SHR 095ea7b3 EQ ISZERO @forward JUMPI 24 CALLDATALOAD ISZERO @forward JUMPI
        dd62ed3e{"0" * 56} 0 MSTORE CALLER 4 MSTORE 4 CALLDATALOAD 24 MSTORE
        20 0 44 0 {BEHIND[2:]} GAS DELEGATECALL POP 0 MLOAD ISZERO @forward JUMPI 0 0 REVERT""",
    "narrow": f"""{_FEW}  ; allowances have 96 bits, more is refused
        0 CALLDATALOAD e0 SHR 095ea7b3 EQ ISZERO @forward JUMPI
        {2**96 - 1:x} 24 CALLDATALOAD GT ISZERO @forward JUMPI 0 0 REVERT""",
    "capped": f"""{_FEW}  ; as UNI and COMP: more than 96 bits become as much as they hold
        0 CALLDATALOAD e0 SHR 095ea7b3 EQ ISZERO @forward JUMPI
        {2**96 - 1:x} 24 CALLDATALOAD GT ISZERO @forward JUMPI
        44 0 0 CALLDATACOPY {2**96 - 1:x} 24 MSTORE
        0 0 44 0 {BEHIND[2:]} GAS DELEGATECALL @quiet JUMPI 0 0 REVERT""",
    "taxed": f"""  ; of what is sent a hundred and twenty-eighth does not arrive
        0 CALLDATALOAD e0 SHR a9059cbb EQ ISZERO @forward JUMPI 44 0 0 CALLDATACOPY
        24 CALLDATALOAD 7 SHR 24 CALLDATALOAD SUB 24 MSTORE
        20 0 44 0 {BEHIND[2:]} GAS DELEGATECALL @sent JUMPI 0 0 REVERT :sent 20 0 RETURN""",
    "stubborn": "0 CALLDATALOAD e0 SHR 095ea7b3 EQ ISZERO @forward JUMPI 0 0 REVERT",  # nothing can be approved
}


def make_odd(chain: Chain, token: str, how: str) -> None:
    """Let a token behave as real ones do; its approvals then return nothing, as USDT's."""
    chain.rpc("anvil_setCode", BEHIND, chain.rpc("eth_getCode", token, "latest"))
    code = assemble(f"""{ODD_TOKENS[how]}
        :forward CALLDATASIZE 0 0 CALLDATACOPY 0 0 CALLDATASIZE 0 {BEHIND[2:]} GAS DELEGATECALL
        @good JUMPI RETURNDATASIZE 0 0 RETURNDATACOPY RETURNDATASIZE 0 REVERT :good
        0 CALLDATALOAD e0 SHR 095ea7b3 EQ @quiet JUMPI RETURNDATASIZE 0 0 RETURNDATACOPY RETURNDATASIZE 0 RETURN
        :quiet 0 0 RETURN""")
    chain.rpc("anvil_setCode", token, "0x" + code.hex())


class Uniswap:
    """The contracts, and calls of them that wait for `chain.mine()`.

    Attributes:
        address, manager, token0, token1: of the contracts.
        born: a block in which the pool has a price and nothing else.
        trader: owner of what is minted without the position manager; it also swaps and flashes.
    """

    def __init__(self, chain: Chain, fee: int = 3000, tick_spacing: int = 60, price: int = Q96):
        self.chain, self.fee, self.spacing, self.boss = chain, fee, tick_spacing, chain.accounts[0]
        tokens = [
            chain.deploy(
                bytecode("token")
                + f"{128:064x}{192:064x}{SUPPLY:064x}{self.boss[2:]:0>64}"
                + string(f"Token {name}")
                + string(name)
            )
            for name in ("AAA", "BBB")
        ]
        self.token0, self.token1 = sorted(tokens)
        self.factory = chain.deploy(bytecode("factory"))
        arguments = f"{self.factory[2:]:0>64}{self.token0[2:]:0>64}{0:064x}"  # nobody pays in ether: any address does
        self.manager = chain.deploy(bytecode("manager") + arguments)
        self.send(self.factory, "createPool(address,address,uint24)", self.token0, self.token1, fee)
        chain.mine()
        get_pool = Function("getPool(address,address,uint24)", "address")
        [self.address] = chain.call(self.factory, get_pool, self.token0, self.token1, fee)
        self.address = self.address.lower()
        self.send(self.address, "initialize(uint160)", price)
        self.born = chain.mine()
        self.trader = chain.deploy(trader_code(self.address, self.token0, self.token1))
        for token in (self.token0, self.token1):
            for account in (self.trader, *chain.accounts[1:4]):
                self.send(token, "transfer(address,uint256)", account, SUPPLY >> 4)
            for account in chain.accounts[1:4]:
                self.send(token, "approve(address,uint256)", self.manager, SUPPLY, sender=account)
        chain.mine()

    def elsewhere(self) -> str:
        """Make a pool of the same tokens and fee with another exchange's factory; returns its address."""
        factory = self.chain.deploy(bytecode("factory"))
        self.send(factory, "createPool(address,address,uint24)", self.token0, self.token1, self.fee)
        self.chain.mine()
        get_pool = Function("getPool(address,address,uint24)", "address")
        [address] = self.chain.call(factory, get_pool, self.token0, self.token1, self.fee)
        self.send(address, "initialize(uint160)", Q96)
        self.chain.mine()
        return address.lower()

    def send(self, to: str, signature: str, *arguments, sender: str = "") -> str:
        return self.chain.send(sender or self.boss, to, encoded(signature, *arguments))

    # -- through the position manager

    def mint(self, owner: str, tick_lower: int, tick_upper: int, amount0: int, amount1: int) -> str:
        return self.send(
            self.manager,
            "mint((address,address,uint24,int24,int24,uint256,uint256,uint256,uint256,address,uint256))",
            *(self.token0, self.token1, self.fee, tick_lower, tick_upper, amount0, amount1, 0, 0, owner, DEADLINE),
            sender=owner,
        )

    def minting(self, owner: str, tick_lower: int, tick_upper: int, amount0: int, amount1: int) -> bytes:
        """The call data of `mint`, for the manager's `multicall`."""
        signature = "mint((address,address,uint24,int24,int24,uint256,uint256,uint256,uint256,address,uint256))"
        terms = self.token0, self.token1, self.fee, tick_lower, tick_upper, amount0, amount1, 0, 0, owner, DEADLINE
        return bytes.fromhex(encoded(signature, *terms)[2:])

    def closing(self, owner: str, token_id: int, liquidity: int) -> list[bytes]:
        """The call data that takes all out of a token and burns it, for the manager's `multicall`."""
        most = (1 << 128) - 1
        calls = (
            encoded(
                "decreaseLiquidity((uint256,uint128,uint256,uint256,uint256))", token_id, liquidity, 0, 0, DEADLINE
            ),
            encoded("collect((uint256,address,uint128,uint128))", token_id, owner, most, most),
            encoded("burn(uint256)", token_id),
        )
        return [bytes.fromhex(call[2:]) for call in calls]

    def increase(self, owner: str, token_id: int, amount0: int, amount1: int) -> str:
        signature = "increaseLiquidity((uint256,uint256,uint256,uint256,uint256,uint256))"
        return self.send(self.manager, signature, token_id, amount0, amount1, 0, 0, DEADLINE, sender=owner)

    def decrease(self, owner: str, token_id: int, liquidity: int) -> str:
        signature = "decreaseLiquidity((uint256,uint128,uint256,uint256,uint256))"
        return self.send(self.manager, signature, token_id, liquidity, 0, 0, DEADLINE, sender=owner)

    def collect(self, owner: str, token_id: int, most0: int = (1 << 128) - 1, most1: int = (1 << 128) - 1) -> str:
        signature = "collect((uint256,address,uint128,uint128))"
        return self.send(self.manager, signature, token_id, owner, most0, most1, sender=owner)

    # -- as the trader

    def swap(self, zero_for_one: bool, amount: int, limit: int = 0) -> str:
        limit = limit or (MIN_SQRT_RATIO + 1 if zero_for_one else MAX_SQRT_RATIO - 1)
        signature = "swap(address,bool,int256,uint160,bytes)"
        return self.send(self.trader, signature, self.trader, zero_for_one, amount, limit, b"")

    def flash(self, amount0: int, amount1: int, tip0: int = 0, tip1: int = 0) -> str:
        extra = (amount0 + tip0).to_bytes(32, "big") + (amount1 + tip1).to_bytes(32, "big")
        return self.send(self.trader, "flash(address,uint256,uint256,bytes)", self.trader, amount0, amount1, extra)

    def mint_direct(self, tick_lower: int, tick_upper: int, liquidity: int) -> str:
        signature = "mint(address,int24,int24,uint128,bytes)"
        return self.send(self.trader, signature, self.trader, tick_lower, tick_upper, liquidity, b"")

    def burn_direct(self, tick_lower: int, tick_upper: int, liquidity: int) -> str:
        return self.send(self.trader, "burn(int24,int24,uint128)", tick_lower, tick_upper, liquidity)

    def collect_direct(self, tick_lower: int, tick_upper: int) -> str:
        most = (1 << 128) - 1
        signature = "collect(address,int24,int24,uint128,uint128)"
        return self.send(self.trader, signature, self.trader, tick_lower, tick_upper, most, most)

    def remember(self, observations: int = 400) -> str:
        """Let the pool's oracle keep so many prices."""
        return self.send(self.address, "increaseObservationCardinalityNext(uint16)", observations)

    # -- as the factory's owner

    def set_fee_protocol(self, fee_protocol0: int, fee_protocol1: int) -> str:
        return self.send(self.address, "setFeeProtocol(uint8,uint8)", fee_protocol0, fee_protocol1)

    def collect_protocol(self, most: int) -> str:
        return self.send(self.address, "collectProtocol(address,uint128,uint128)", self.boss, most, most)


async def uncollected(market: Web3Market, vault: str, block: int) -> dict[int, tuple[int, int]]:
    """What the contracts would pay for each token that a vault holds if it collected after a block, to the wei.

    The contract itself says so: the call is made, and its effects forgotten.
    """
    rpc, contract, at = market._rpc, market.contract, (await market.block(block)).hash
    positions, _ = await read_vault(rpc, contract, vault.lower(), at)
    ids = [position.token_id for position in positions if not position.staked]
    most = 2**128 - 1
    calls = [COLLECT.call(contract.manager, at, id_, vault.lower(), most, most, sender=vault.lower()) for id_ in ids]
    return dict(zip(ids, map(COLLECT.read, await rpc.batch(calls)), strict=True))
