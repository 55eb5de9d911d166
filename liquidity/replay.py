"""A pool's life again: snapshots, and events applied to an exact pool with every digit held against them.

    pool = snapshot.open()
    apply_event(pool, event)                            # ReplayError: the first digit that differs

An event tells what happened, not what was asked for. `apply_event` makes the call again, so a missing, doubled or
foreign event is found where it matters. Pure. Read first: `events.py`. Read next: `tape.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields
from functools import cache

from liquidity.events import Event, ReplayError, swap_call
from liquidity.fast import FastPool
from liquidity.slipstream import SlipstreamPool
from protocol import LEFT_OUT, Amount, SqrtPrice, Word
from sim import MAX_SQRT_RATIO, MAX_TICK, MIN_SQRT_RATIO, PIPS, Pool, PositionState


def apply_event(pool: Pool, event: Event, accounts: Collection[tuple] | None = None) -> None:
    """Advance a pool by one event and hold every digit of the result against it.

    Args:
        accounts: the positions (owner, tick_lower, tick_upper) that the pool knows; None for all. Of others only the
            liquidity is followed: a snapshot of a chain has every tick but not every position.

    Raises:
        ReplayError: the first thing that differs.
        PoolError: the contract would have refused the call.
    """
    kind, args = event.kind, event.args
    if kind == "swap":
        how, amount0, amount1, sqrt_price_x96, liquidity, tick = args[:6]
        if len(args) > 6:
            _set_fees(pool, event, *args[6:])
        if how == "?":
            pool.jump(sqrt_price_x96, tick, liquidity)
            return
        if not how:
            raise ReplayError(event, "call", "one this program knows", "not known yet: complete the events first")
        if how == "in" and amount0 > 0:  # most are of this kind, and need not look for the direction
            found = pool.swap(True, amount0, MIN_SQRT_RATIO + 1)
        elif how == "in":
            found = pool.swap(False, amount1, MAX_SQRT_RATIO - 1)
        else:
            found = pool.swap(*swap_call(event, how, pool.sqrt_price_x96))
        if pool.sqrt_price_x96 != sqrt_price_x96:
            raise ReplayError(event, "sqrt_price_x96", sqrt_price_x96, pool.sqrt_price_x96)
        if found != (amount0, amount1):
            raise ReplayError(event, "amounts", (amount0, amount1), found)
        if pool.liquidity != liquidity:
            raise ReplayError(event, "liquidity", liquidity, pool.liquidity)
        if not pool.stands_at(tick):
            raise ReplayError(event, "tick", tick, pool.tick)
    elif kind == "mint" or kind == "burn":
        _change_liquidity(pool, event, accounts)
    elif kind == "flash":
        amount0, amount1, paid0, paid1, *unstaked_fee = args
        fee = pool.fee
        if isinstance(pool, SlipstreamPool):  # which part of what was paid is the fee changes nothing
            _set_fees(pool, event, 0, *(unstaked_fee or [pool.unstaked_fee]))
        fee0, fee1 = (-(-amount * pool.fee // PIPS) for amount in (amount0, amount1))
        pool.flash(amount0, amount1, paid0 - fee0, paid1 - fee1)
        if isinstance(pool, SlipstreamPool):
            pool.set_fees(fee, pool.unstaked_fee)
    elif kind == "set_fee_protocol":
        pool.set_fee_protocol(*args)
    elif kind == "collect_protocol":
        if (found := pool.collect_protocol(*args)) != args:
            raise ReplayError(event, "amounts", args, found)
    elif kind in ("collect", "write_off"):
        if (accounts is None or args[:3] in accounts) and (found := pool.collect(*args[:5])) != args[3:5]:
            raise ReplayError(event, "amounts", args[3:5], found)
    elif isinstance(pool, SlipstreamPool) and kind in ("stake", "unstake", "collect_fees"):
        _gauge(pool, event, accounts)
    else:
        raise ReplayError(event, "kind", "one this program knows", kind)


def _change_liquidity(pool: Pool, event: Event, accounts: Collection[tuple] | None) -> None:
    owner, tick_lower, tick_upper, amount, amount0, amount1 = event.args
    minted = event.kind == "mint"
    if accounts is None or event.args[:3] in accounts:
        found = (pool.mint if minted else pool.burn)(owner, tick_lower, tick_upper, amount)
    elif minted:
        found = pool.change_liquidity(tick_lower, tick_upper, amount)
    else:
        released0, released1 = pool.change_liquidity(tick_lower, tick_upper, -amount) if amount else (0, 0)
        found = (-released0, -released1)
    if found != (amount0, amount1):
        raise ReplayError(event, "amounts", (amount0, amount1), found)
    if isinstance(pool, SlipstreamPool) and owner == pool.gauge and amount:
        pool.stake(amount if minted else -amount, tick_lower, tick_upper, False)


def _gauge(pool: SlipstreamPool, event: Event, accounts: Collection[tuple] | None) -> None:
    """What the gauge did: stakes and what it was paid."""
    if event.kind == "collect_fees":
        found = pool.collect_fees()
        if any(paid != told and (paid, told) != (1, 0) for paid, told in zip(found, event.args, strict=True)):
            raise ReplayError(event, "amounts", event.args, found)  # some versions tell of a lone unit, which stays
        return
    _, tick_lower, tick_upper, amount = event.args
    pool.stake(amount if event.kind == "stake" else -amount, tick_lower, tick_upper, accounts is None)


def _set_fees(pool: Pool, event: Event, fee: int, unstaked_fee: int) -> None:
    """What Slipstream's factory answered at an event."""
    if not (isinstance(pool, SlipstreamPool) and 0 <= fee < PIPS and 0 <= unstaked_fee <= PIPS):
        raise ReplayError(event, "fees", (fee, unstaked_fee), "none that this pool can have")
    if (pool.fee, pool.unstaked_fee) != (fee, unstaked_fee):
        pool.set_fees(fee, unstaked_fee)


# ---------------------------------------------------------------------------------------------------------------------
# Snapshots


@dataclass(frozen=True, slots=True)
class TickState:
    """One initialised tick; see `sim.Tick`, and for `staked_liquidity_net` `SlipstreamTick`."""

    index: int
    liquidity_gross: Amount
    liquidity_net: str  # signed, decimal
    fee_growth_outside0_x128: Word
    fee_growth_outside1_x128: Word
    staked_liquidity_net: str | None = field(default=None, metadata=LEFT_OUT)  # signed, decimal


@dataclass(frozen=True, slots=True)
class VaultPosition:
    """One of the vault's positions in the pool; see `sim.PositionState`.

    Attributes:
        staked: True where Slipstream's gauge holds it, whose positions earn no fees; else None.
    """

    owner: str
    tick_lower: int
    tick_upper: int
    liquidity: Amount
    fee_growth_inside0_last_x128: Word
    fee_growth_inside1_last_x128: Word
    tokens_owed0: Amount
    tokens_owed1: Amount
    staked: bool | None = field(default=None, metadata=LEFT_OUT)

    @property
    def key(self) -> tuple[str, int, int]:
        return self.owner, self.tick_lower, self.tick_upper


@dataclass(frozen=True, slots=True)
class SlipstreamState:
    """What a Slipstream pool has besides; see `SlipstreamPool`. Rewards are not scored, and not here.

    Attributes:
        manager, gauge: the owners of those positions that have tokens, and of those that are staked.
        unstaked_fee: pips, as the factory answers at the snapshot.
    """

    manager: str
    gauge: str
    unstaked_fee: int
    staked_liquidity: Amount
    gauge_fees0: Amount
    gauge_fees1: Amount


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool and a vault before the first event of a block: all that a round starts from.

    Attributes:
        block, block_time, block_hash: the block that comes next; the hash is synthetic for recordings.
        vault: the vault's positions, in the order in which miners are shown them.
        idle0, idle1: the vault's tokens outside the pool, base units.
        vault_owner: whose positions are the vault's, also those opened later; empty if only the listed ones are.
        slipstream: what a Slipstream pool has besides; None for Uniswap's. Its `fee` is what the factory answers at the
            snapshot; each swap says its own.
    """

    block: int
    block_time: int
    block_hash: str
    fee: int
    tick_spacing: int
    fee_protocol0: int
    fee_protocol1: int
    sqrt_price_x96: SqrtPrice
    tick: int
    liquidity: Amount
    fee_growth_global0_x128: Word
    fee_growth_global1_x128: Word
    ticks: tuple[TickState, ...]
    vault: tuple[VaultPosition, ...]
    idle0: Amount
    idle1: Amount
    vault_owner: str = ""
    slipstream: SlipstreamState | None = field(default=None, metadata=LEFT_OUT)

    def __post_init__(self):
        """Raises `ValueError` for a fee or a spacing that no pool has: with these a swap would not end."""
        if not (0 <= self.fee < PIPS and 0 < self.tick_spacing <= MAX_TICK):
            raise ValueError(f"snapshot.fee, tick_spacing: {self.fee}, {self.tick_spacing} are no pool's")

    @classmethod
    def of(
        cls,
        pool: Pool,
        vault_keys: Iterable,
        idle: tuple,
        block: int,
        block_time: int,
        block_hash: str,
        owner: str = "",
    ) -> Snapshot:
        """Take a pool's state; `vault_keys` are the vault's positions in it, those without liquidity are left out."""
        gauge, ticks, vault = None, [], []
        if slipstream := isinstance(pool, SlipstreamPool):
            gauge = _same(SlipstreamState, pool, manager=str(pool.nft), gauge=str(pool.gauge))
        for index in sorted(pool.ticks):
            mark = pool.ticks[index]
            staked = str(mark.staked_liquidity_net) if slipstream else None
            ticks.append(_same(TickState, mark, liquidity_net=str(mark.liquidity_net), staked_liquidity_net=staked))
        for who, lower, upper in vault_keys:
            if (state := pool.position(who, lower, upper)).liquidity:
                held = _same(VaultPosition, state, owner=str(who), tick_lower=lower, tick_upper=upper, staked=None)
                vault.append(held)
        at = {"block": block, "block_time": block_time, "block_hash": block_hash}
        cuts = {"fee_protocol0": pool.fee_protocol[0], "fee_protocol1": pool.fee_protocol[1]}
        whose = {"vault": tuple(vault), "idle0": idle[0], "idle1": idle[1], "vault_owner": owner}
        return _same(cls, pool, **at, **cuts, **whose, ticks=tuple(ticks), slipstream=gauge)

    def is_vaults(self, owner: str) -> bool:
        """Whether positions of this owner are the vault's: on a chain `VAULT#TOKEN` is its second one in a range."""
        return bool(self.vault_owner) and owner.partition("#")[0] == self.vault_owner

    def open(self) -> Pool:
        """A pool in this state, which knows the vault's positions and no others."""
        known, pool = self.slipstream, FastPool(self.fee, self.tick_spacing)
        if known:
            pool = SlipstreamPool(self.fee, self.tick_spacing, known.unstaked_fee, known.manager, known.gauge)
            pool.staked_liquidity = known.staked_liquidity
            pool.gauge_fees0, pool.gauge_fees1 = known.gauge_fees0, known.gauge_fees1
        pool.initialize(self.sqrt_price_x96)
        if self.fee_protocol0 or self.fee_protocol1:
            pool.set_fee_protocol(self.fee_protocol0, self.fee_protocol1)
        marks = []
        for tick in self.ticks:
            outside = tick.fee_growth_outside0_x128, tick.fee_growth_outside1_x128
            marks.append(pool.tick_class(tick.index, tick.liquidity_gross, int(tick.liquidity_net), *outside))
            if known:
                marks[-1].staked_liquidity_net = int(tick.staked_liquidity_net)
        growth = self.fee_growth_global0_x128, self.fee_growth_global1_x128
        pool.load(self.tick, self.liquidity, *growth, marks)
        pool.positions = {position.key: _same(PositionState, position) for position in self.vault}
        return pool


def _same(kind: type, source, **others):
    """A dataclass `kind` of these values, and of the source's under the same names."""
    return kind(**others, **{name: getattr(source, name) for name in _names(kind) if name not in others})


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))
