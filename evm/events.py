"""From a pool's logs to its events: whose positions they change, what they mean, and the call behind each swap.

Of a Slipstream pool no log tells the fees. A swap's is found with its call. What the gauge takes of unstaked fees is
asked at a chunk's end: its place is found as the one that makes the contract's state.
Read first: `pool.py`. Read next: `event_file.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import add
from typing import NamedTuple

from evm.abi import NULL_ADDRESS, Log, Malformed
from evm.pool import Contract, State
from liquidity.calls import with_call
from liquidity.events import Event, ReplayError
from liquidity.replay import apply_event
from sim import Pool, PoolError

Place = tuple[int, int]  # block and log index
_AMOUNTS_AT = {  # a pool's log: its event's kind, and from which value on its amounts stand
    "Swap": ("swap", 2),
    "Mint": ("mint", 4),
    "Burn": ("burn", 3),
    "Collect": ("collect", 4),
    "Flash": ("flash", 2),
    "SetFeeProtocol": ("set_fee_protocol", 2),
    "CollectProtocol": ("collect_protocol", 2),
    "CollectFees": ("collect_fees", 1),
}


class NamedToken(NamedTuple):
    """A vault's token of the position manager: whose position it is in the events."""

    owner: str
    tick_lower: int
    tick_upper: int

    @property
    def vault(self) -> str:
        return self.owner.partition("#")[0]

    @classmethod
    def of(cls, vault: str, token_id: int, ticks: tuple[int, int], others: Mapping[int, NamedToken]) -> NamedToken:
        """The vault's plain name, or one with the token's number where another in the same range has that."""
        taken = cls(vault, *ticks) in others.values()
        return cls(f"{vault}#{token_id}" if taken else vault, *ticks)


STRANGE = NamedToken("#", 0, 0)  # of tokens that strangers minted, whoever has them


class Named(NamedTuple):
    """What the position manager's logs say of whose positions are whose.

    Attributes:
        owners: of the pool's logs, by place.
        moved: what tokens that changed hands were called before and after, by place of the transfer.
        short: by place of the pool's collects that paid less than the manager asked for, and wrote off: its own log's
            index, and what it asked for.
        rows: of the table `tokens`.
    """

    owners: dict[Place, str]
    moved: dict[Place, tuple[NamedToken, NamedToken]]
    short: dict[Place, tuple[int, ...]]
    rows: list[tuple]


def name_tokens(
    logs: Sequence[Log],
    contract: Contract,
    vaults: Iterable[str],
    tokens: dict[int, NamedToken],
    strange: Collection[str] = (),
) -> Named:
    """Whose positions the position manager changed: in the pool's own logs it is the owner of them all.

    The manager logs what it did for a token after the pool logged the same, in one transaction.

    Args:
        logs: in order, the pool's and the manager's.
        vaults: whose tokens get names.
        tokens: those known; new ones are added, and those that nobody has who is followed left out.
        strange: transactions of strangers, whose mints are no vault's.
    """
    names, moved, short, rows = found = Named({}, {}, {}, [])
    arriving: dict[int, str] = {}
    unclaimed: dict[str, list[Log]] = {}
    for one in logs:
        mine = unclaimed.setdefault(one.transaction, [])
        if one.address != contract.manager:
            if one.name in ("Mint", "Burn", "Collect") and one.values[0] == contract.manager:
                mine.append(one)
            elif one.name in ("Deposit", "Withdraw") and one.values[1] in tokens:
                names[one[:2]] = tokens[one.values[1]].owner
            continue
        if one.name == "Transfer":
            sender, to, token_id = one.values
            if sender == NULL_ADDRESS and to in vaults and one.transaction in strange:
                rows.append((str(token_id), *STRANGE, one.block))
            elif sender == NULL_ADDRESS and to in vaults:
                arriving[token_id] = to
            elif token_id in tokens and contract.gauge not in (sender, to):  # who stakes it has it all the same
                old = tokens.pop(token_id)
                if to in vaults:
                    tokens[token_id] = NamedToken.of(to, token_id, old[1:], tokens)
                moved[one[:2]] = old, tokens.get(token_id, old._replace(owner=contract.manager))
                rows.append((str(token_id), *tokens.get(token_id, old._replace(owner="")), one.block))
            continue
        token_id, *amounts = one.values
        if token_id not in tokens and token_id not in arriving:
            continue
        kind = {"IncreaseLiquidity": "Mint", "DecreaseLiquidity": "Burn", "Collect": "Collect"}[one.name]
        for log_ in reversed(mine):
            same_amounts = list(log_.values[-3:]) == amounts
            if kind == "Collect":  # the pool pays at most what the manager asks for
                same_amounts = all(paid <= asked for paid, asked in zip(log_.values[-2:], amounts[-2:], strict=True))
            ticks = log_.values[1:3]
            if log_.name == kind and same_amounts and (token_id in arriving or tokens[token_id][1:] == ticks):
                break
        else:
            continue  # a position in another pool
        if token_id in arriving:
            tokens[token_id] = NamedToken.of(arriving.pop(token_id), token_id, ticks, tokens)
            rows.append((str(token_id), *tokens[token_id], one.block))
        mine.remove(log_)
        names[log_[:2]] = tokens[token_id].owner
        if kind == "Collect" and list(log_.values[-2:]) != amounts[-2:]:
            short[log_[:2]] = one.index, *amounts[-2:]
        if kind == "Collect":  # before it the manager lets the pool settle fees, by burning nothing
            for log_ in reversed(mine):
                if log_.name == "Burn" and log_.values[1:3] == ticks and not log_.values[3]:
                    mine.remove(log_)
                    names[log_[:2]] = tokens[token_id].owner
                    break
    return found


def to_events(
    logs: Iterable[Log],
    contract: Contract,
    times: Mapping[int, int],
    named: Named,
    released: dict[tuple, tuple[int, int]],
) -> tuple[list[Event], list[tuple]]:
    """The pool's logs as events; a collect is what it pays beyond what burns released before.

    A pool owes the manager one sum for all tokens in a range, each part rounded down when any of them was touched: it
    may pay some wei less than a token is owed by the manager's books, and the manager forgets the rest.

    Slipstream's gauge tells of a token that it staked or gave back; its ticks are those of the collect that the gauge
    makes before, in the same transaction. A stake follows that collect at once, and its log comes at once too. When a
    token goes back the receiver is called before the log is written, and may trade: the event stands where the collect
    stood, which pays nothing to a gauge.

    Args:
        logs: the pool's and its gauge's, in order, and the transfers of tokens that changed hands.
        times: of their blocks, unix seconds.
        named: whose they are where they are not whose the log says; see `name_tokens`.
        released: by position, before the first log; brought up to date.

    Returns:
        The events, swaps without their call, and the new rows of the table `released`.

    Raises:
        Malformed: a log that the pool cannot have made.
    """
    (names, moved, short, _), events, rows, collects = named, [], [], {}
    for one in logs:
        if one[:2] in moved:
            before, after = moved[one[:2]]
            if any(left := released.pop(before, (0, 0))):
                left = released[after] = tuple(map(add, left, released.get(after, (0, 0))))
                rows += [(*one[:2], *before, "0", "0"), (*one[:2], *after, *map(str, left))]
            continue
        index, owner = one.index, names.get(one[:2], one.values[0])
        if contract.slipstream and one.name == "Collect":
            collects[one.transaction, one.values[0]] = one
            if one.values[0] == contract.gauge:
                continue
        if one.name in ("Deposit", "Withdraw"):
            kind, by = ("stake", contract.manager) if one.name == "Deposit" else ("unstake", contract.gauge)
            if not (collect := collects.get((one.transaction, by))):
                raise Malformed(f"block {one.block} log {index}: {one.name} without the collect before it")
            if not one.values[2]:
                continue  # a token without liquidity
            args = (names.get(one[:2], contract.manager), *collect.values[1:3], one.values[2])
            index = index if kind == "stake" else collect.index
        else:
            kind, args = _kind_and_args(one, owner, contract)
        if kind in ("burn", "collect") and owner != contract.gauge and (any(args[-2:]) or one[:2] in short):
            key, amounts = args[:3], args[-2:]
            held = released.get(key, (0, 0))
            if kind == "burn":
                left = held[0] + amounts[0], held[1] + amounts[1]
            else:
                at, *asked = short.get(one[:2], (index, *amounts))
                left, fees = _beyond(held, asked), _beyond(amounts, held)
                if at != index:
                    lost = _beyond(_beyond(asked, held), fees)
                    rest = _beyond(_beyond(asked, amounts), lost)
                    events.append(Event(one.block, at, times[one.block], "write_off", (*key, *lost, *rest)))
                args = (*key, *fees)
            if left != held:
                released[key] = left
                rows.append((*one[:2], *key, *map(str, left)))
        if kind != "collect" or any(args[-2:]):
            events.append(Event(one.block, index, times[one.block], kind, args))
    return sorted(events, key=lambda event: event[:2]), rows


def _beyond(amounts: Iterable[int], others: Iterable[int]) -> tuple[int, ...]:
    return tuple(max(0, amount - other) for amount, other in zip(amounts, others, strict=True))


def _kind_and_args(one: Log, owner: str, contract: Contract) -> tuple[str, tuple]:
    """A pool's own log as an event; a swap without its call."""
    if one.name not in _AMOUNTS_AT:
        raise Malformed(f"block {one.block} log {one.index}: {one.name} in a pool that has a price")
    kind, first = _AMOUNTS_AT[one.name]
    amounts = one.values[first:]
    if kind == "swap":
        return kind, ("", *amounts)
    if kind not in ("mint", "burn", "collect"):
        return kind, amounts
    if kind == "mint" and contract.slipstream and owner == contract.gauge and one.values[3] != contract.manager:
        owner = f"{owner}#"  # somebody's gift to the gauge, which nobody stakes
    return kind, (owner, *one.values[1:3], *amounts)


def follow(pool: Pool, events: Iterable[Event], likely_fees: Iterable[int] = ()) -> list[Event]:
    """Make the events' calls again on a pool that knows no positions; returns them with every swap's call.

    On Slipstream also with every swap's fee, and with what the gauge takes of unstaked fees: the pool's `unstaked_fee`.
    Raises `ReplayError` and `PoolError`: they are not this pool's, or some are missing.
    """
    done = []
    for event in events:
        done.append(with_call(pool, event, likely_fees))
        apply_event(pool, done[-1], ())
    return done


def follow_to(pool: Pool, events: Sequence[Event], state: State | None) -> tuple[Pool, list[Event]]:
    """As `follow`, up to the contract's state where it is known: the pool in it, which may be another, and the events.

    On Slipstream the factory may have changed what the gauge takes of unstaked fees. No log tells: it is tried before
    each event. Raises as `follow` where no state is known or on Uniswap, else `Malformed`: the contract's is another.
    """
    if state is None or state.unstaked_fee is None:
        done = follow(pool, events)
        if state and (differences := State.of(pool).differences(state)):
            raise Malformed(f"the logs and the contract differ: {differences}")
        return pool, done
    differences, turns = "", len(events) + 1 if state.unstaked_fee != pool.unstaked_fee else 1
    for turn in range(turns):
        trial = pool.copy()
        try:
            done = follow(trial, events[:turn], (state.fee,))
            trial.set_fees(trial.fee, state.unstaked_fee)
            done += follow(trial, events[turn:], (state.fee,))
        except (ReplayError, PoolError) as error:  # not here
            differences = str(error)
            continue
        if not (differences := State.of(trial).differences(state)):
            trial.set_fees(state.fee, state.unstaked_fee)
            return trial, done
    raise Malformed(f"the logs and the contract differ: {differences}")
