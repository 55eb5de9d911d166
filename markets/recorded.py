"""A recording as a market: one recorded position is the vault, block times are interpolated.

Read first: `memory.py`. Read next: `completing.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from markets.base import MarketEnded, MarketError
from markets.memory import InMemoryMarket, Purse, place_of
from markets.recordings import BACKGROUND, Recording
from protocol import Pair, Token
from sim import Pool, PoolError, amounts_of, sqrt_ratio_at_tick

UNCHANGED = 0.8  # part of a recording for which the default vault's position must stay as it is
CHAIN_IDS = {"ethereum": 1, "polygon": 137, "base": 8453, "arbitrum": 42161}  # by a recording's `chain`; others 0


class RecordedMarket(InMemoryMarket):
    """A recording, block by block.

    It has no vault and no block hashes of its own. A vault is one recorded position, named `OWNER:LOWER:UPPER`; what a
    recorded burn of it releases goes to idle, a recorded mint is paid from there as far as it reaches. Block times are
    interpolated between the blocks that have events, rounded down.

    Args:
        recording: with the call of every swap.
        vault: the name of a vault; None for the most valuable position that is in range at the start and unchanged for
            at least `UNCHANGED` of the recording's time.
        idle: every vault's tokens outside the pool at the start, base units.
        head, pace, clock: see `InMemoryMarket`.

    Attributes:
        vault: the name of the vault. Others may be asked for as well.

    Raises:
        MarketError: the replay contradicts the events or the final state, a swap's call is not known, or there is no
            such vault.
    """

    def __init__(
        self,
        recording: Recording,
        vault: str | None = None,
        idle: tuple[int, int] = (0, 0),
        **options,
    ):
        if min(idle) < 0:
            raise MarketError(f"idle {idle[0]},{idle[1]}: token amounts in base units, 0 or more")
        for event in recording.events:
            if event.kind == "swap" and not event.args[0]:
                fix = "complete the recording: python -m markets import PATH --out FOLDER"
                raise MarketError(f"{place_of(event)}: the call of this swap is not known; {fix}")
        self._recording, self._idle = recording, idle
        self._blocks, self._times = block_times(recording)
        token0, token1 = (Token("", *token) for token in (recording.token0, recording.token1))
        chain_id = CHAIN_IDS.get(recording.chain, 0)
        super().__init__(
            label=f"recording {recording.name} ({recording.chain}); its block hashes are synthetic",
            pair=Pair(chain_id, recording.pool_address, token0, token1, recording.fee, recording.tick_spacing),
            pool=open_pool(recording),
            first=recording.start_block,
            last=self._blocks[-1],
            hash_key=recording.digest,
            **options,
        )
        for event in recording.events:
            self._history.append(event)
        check_final(recording, self._history.pool_before(len(recording.events)))
        self.vault = vault or self._choose_vault()
        self._purse(self.vault)

    def time_of(self, number: int) -> int:
        at = bisect_right(self._blocks, number) - 1
        block, time_ = self._blocks[at], self._times[at]
        if number == block:
            return time_
        return time_ + (number - block) * (self._times[at + 1] - time_) // (self._blocks[at + 1] - block)

    def number_at(self, time_seconds: int) -> int:
        if time_seconds > self._times[-1]:
            raise MarketEnded(f"time {time_seconds}: {self.label} ends at {self._times[-1]}")
        return self.first + bisect_left(range(self.first, self.last + 1), time_seconds, key=self.time_of)

    def _grow(self, last: int) -> None:
        """All events are there from the start."""

    def _new_purse(self, vault: str) -> Purse:
        try:
            owner, lower, upper = vault.rsplit(":", 2)
            key = owner, int(lower), int(upper)
        except ValueError:
            raise MarketError(f"vault {vault!r}: OWNER:LOWER:UPPER is expected, like 0:-199760:-196890") from None
        known = {position[:3] for position in self._recording.positions}
        known |= {event.args[:3] for event in self._recording.events if event.kind == "mint"}
        if key not in known or owner == BACKGROUND:
            raise MarketError(
                f"vault {vault!r}: recording {self._recording.name} shows no such position; leave the vault out for the"
                " default, or record from before it was minted"
            )
        return Purse(lambda args: args == key, self._idle)

    def _choose_vault(self) -> str:
        recording, pool = self._recording, open_pool(self._recording)
        until = recording.start_time + UNCHANGED * (self._times[-1] - recording.start_time)
        changed = {
            event.args[:3]
            for event in recording.events
            if event.kind in ("mint", "burn") and event.args[3] and event.time < until
        }

        def value(key: tuple) -> int:
            bounds = (sqrt_ratio_at_tick(tick) for tick in key[1:])
            amount0, amount1 = amounts_of(pool.positions[key].liquidity, pool.sqrt_price_x96, *bounds, round_up=False)
            return amount0 * pool.sqrt_price_x96**2 + (amount1 << 192)

        fit = [k for k in pool.positions if k[0] != BACKGROUND and k not in changed and k[1] <= pool.tick < k[2]]
        if not fit:
            raise MarketError(
                f"recording {recording.name}: no position in it is in range and stays; name one that comes later with"
                " --vault OWNER:LOWER:UPPER, or record a longer stretch"
            )
        return ":".join(map(str, max(fit, key=value)))


def block_times(recording: Recording) -> tuple[list[int], list[int]]:
    """The blocks whose times a recording knows, and those times; both ascending.

    Raises:
        MarketError: time runs backwards, or one block has two times.
    """
    blocks, times = [recording.start_block], [recording.start_time]
    for event in recording.events:
        if (
            event.block < blocks[-1]
            or event.time < times[-1]
            or (event.block == blocks[-1] and event.time != times[-1])
        ):
            before = f"block {blocks[-1]} was at time {times[-1]}"
            raise MarketError(f"{place_of(event)}: time {event.time}, but {before}; fetch the recording again")
        if event.block > blocks[-1]:
            blocks.append(event.block)
            times.append(event.time)
    return blocks, times


def open_pool(recording: Recording) -> Pool:
    """`Recording.open_pool`; raises `MarketError` where the contract would have refused its start."""
    try:
        return recording.open_pool()
    except PoolError as error:
        raise MarketError(f"the start of recording {recording.name}: {error}; fetch the recording again") from error


def check_final(recording: Recording, pool: Pool) -> None:
    """Raises `MarketError` where the pool after the last event is not what the recording says."""
    for name, expected in recording.final.items():
        if (found := getattr(pool, name)) != expected:
            where = f"after block {recording.events[-1].block}" if recording.events else "without events"
            raise MarketError(f"{where}: final {name} is {found}, the recording says {expected}; fetch it again")
