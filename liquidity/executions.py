"""A live decision on its way: what is asked of a vault, how it was sent, and what became of it.

Plain values that market, store, executor and audit all see. Pure. Read next: `live.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from protocol import Amount, Code, Inventory, Position, SqrtPrice
from wire.codec import to_json


@dataclass(frozen=True, slots=True)
class Sent:
    """How a plan was carried out on a chain, or why it was not.

    Attributes:
        code: `EXECUTED`, or why nothing of the plan is on the chain; `EXECUTION_UNKNOWN` if nobody said in time.
        transaction: hash of the one that did it; empty if there is none.
        gas_used: of all transactions that were mined for it, also reverted ones.
        gas_wei: paid for that in the chain's native token, a layer 2's own fees included.
        gas0, gas1: the same where token0 or token1 is the wrapped native one, else 0: what a live score deducts.
    """

    code: Code
    detail: str
    transaction: str
    gas_used: int
    gas_wei: int
    gas0: int
    gas1: int


@dataclass(frozen=True, slots=True)
class Execution:
    """What was asked of a vault, and what became of it; amounts are (token0, token1) in base units.

    Always `before + released + fees - paid == after`. The first five fields are enough to repeat it on the model.

    Attributes:
        block: the plan acted before this block's other events.
        keep, close: ranges (tick_lower, tick_upper) left untouched, and closed.
        mint: (tick_lower, tick_upper, amount0_max, amount1_max) as asked for.
        before, after: idle tokens.
        released, fees: what closing gave back, and paid in fees.
        paid: what the new positions took.
        minted: (tick_lower, tick_upper, liquidity) of the new positions; what would get no liquidity is left out.
        sent: on a chain; None on the model, where every plan acts at once.
    """

    block: int
    vault: str
    keep: tuple[tuple[int, int], ...]
    close: tuple[tuple[int, int], ...]
    mint: tuple[tuple[int, int, int, int], ...]
    before: tuple[int, int] = (0, 0)
    released: tuple[int, int] = (0, 0)
    fees: tuple[int, int] = (0, 0)
    paid: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    minted: tuple[tuple[int, int, int], ...] = ()
    sent: Sent | None = None


def execution_of(plain: dict) -> Execution:
    """The inverse of `to_json`. Raises `ValueError` for what it does not write."""
    try:
        if sent := plain.get("sent"):
            said = Code(sent["code"]), str(sent["detail"]), str(sent["transaction"])
            sent = Sent(*said, *(int(sent[name]) for name in ("gas_used", "gas_wei", "gas0", "gas1")))
        names = [field.name for field in fields(Execution) if field.name not in ("vault", "sent")]
        members = {name: _integers(plain[name]) for name in names}
        execution = Execution(vault=str(plain["vault"]), sent=sent, **members)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not an execution: {type(error).__name__} {error}") from error
    if to_json(execution) != plain:
        raise ValueError("not spelt as executions are")
    return execution


def _integers(plain):
    return tuple(map(_integers, plain)) if isinstance(plain, list) else int(plain)


NOTHING = Inventory(0, 0)
EXECUTION_SECONDS = 120  # chain time: from a live answer's deadline until its transaction must be in a block


@dataclass(frozen=True, slots=True)
class Order:
    """A decision to carry out on a vault.

    Attributes:
        decision: its name; what was carried out under a name is never carried out again.
        pool, vault: addresses in lower case.
        shown, desired: the vault's positions as the miner was shown them, and those that it wants; see `rounds.plan`.
        block_number, sqrt_price_x96, tick: the block that the miner was shown, and the pool's state after it.
        deadline: unix seconds of chain time; nothing happens in a later block.
    """

    decision: str
    chain_id: int
    pool: str
    vault: str
    shown: tuple[Position, ...]
    desired: tuple[Position, ...]
    block_number: int
    sqrt_price_x96: SqrtPrice
    tick: int
    deadline: int


@dataclass(frozen=True, slots=True)
class Minted:
    """Liquidity that was added in a range."""

    tick_lower: int
    tick_upper: int
    liquidity: Amount


@dataclass(frozen=True, slots=True)
class Report:
    """What became of an order.

    Attributes:
        code: `EXECUTED`, `EXECUTION_PENDING` while it is on its way, or why nothing was or will be done.
        block, transaction: where it was done, and by which; 0 and empty if it was not.

    The others are as of `Sent` and `Execution`; before and after are those of the transaction.
    """

    decision: str
    code: str
    detail: str
    block: int = 0
    transaction: str = ""
    gas_used: int = 0
    gas_wei: Amount = 0
    gas0: Amount = 0
    gas1: Amount = 0
    before: Inventory = NOTHING
    after: Inventory = NOTHING
    released: Inventory = NOTHING
    fees: Inventory = NOTHING
    paid: Inventory = NOTHING
    minted: tuple[Minted, ...] = ()
