"""What only the audit of liquidity can see: pools that fit together, books as they were shown, decisions carried out.

    for check in CHECKS:
        for problem in check(parts): ...                # each as `path: what`

`audit/checks.py` calls them with a round's evidence as objects (`audit.checks.Parts`). Pure.
Read first: `rounds.py`, `live.py`. Read next: `mechanism.py`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple, replace
from decimal import Decimal
from operator import add
from typing import Any

from liquidity.events import Event, ReplayError
from liquidity.executions import Execution, Sent
from liquidity.live import FLOWS, acted, gifts_of, given_mints, own_events, sums_of, was_carried_out
from liquidity.rounds import Round, plan
from liquidity.tape import Holding, Tape
from protocol import (
    ASK_SECONDS,
    FIRST_ASK_DEADLINE_SECONDS,
    PROTOCOL_VERSION,
    Code,
    Inventory,
    JobSettings,
    Position,
    RebalanceQuery,
    human_price,
)
from scoring import Outcome, gas_cost, score_outcome
from sim import MAX_TICK, MIN_TICK, PIPS, PoolError, sqrt_ratio_at_tick
from wire.codec import from_plain, to_json, to_plain
from wire.text import differences, integer, ordered, quoted

BROKEN = (Code.VOID_INTERRUPTED, Code.VOID_CONTRADICTION, Code.VOID_GAP)  # a round that may have no close
_HASH = re.compile(r"0x[0-9a-f]{64}", re.ASCII)


def check_pool(parts: Any) -> Iterator[str]:
    """Price, tick, liquidity and the initialised ticks are those of one pool."""
    if not (snapshot := parts.snapshot):
        return
    price, tick, liquidity, sum_of_nets = snapshot.sqrt_price_x96, snapshot.tick, 0, 0
    if not (MIN_TICK <= tick < MAX_TICK and sqrt_ratio_at_tick(tick) <= price <= sqrt_ratio_at_tick(tick + 1)):
        yield f"snapshot.tick: {tick} is not at sqrt_price_x96 {price}"
    yield from ordered("snapshot.ticks", [mark.index for mark in snapshot.ticks])
    known, staked = snapshot.slipstream, 0
    for n, mark in enumerate(snapshot.ticks):
        if (mark.staked_liquidity_net is None) != (known is None):
            yield f"snapshot.ticks[{n}].staked_liquidity_net: {quoted(mark.staked_liquidity_net)} in such a pool"
        elif known and mark.index <= tick:
            staked += integer(mark.staked_liquidity_net)
        net = integer(mark.liquidity_net)
        sum_of_nets += net
        liquidity += net if mark.index <= tick else 0
        if mark.index % snapshot.tick_spacing or not MIN_TICK <= mark.index <= MAX_TICK:
            yield f"snapshot.ticks[{n}].index: {mark.index} cannot be initialised"
        if mark.liquidity_gross < abs(net) or (mark.liquidity_gross - net) % 2:
            yield f"snapshot.ticks[{n}].liquidity_gross: {mark.liquidity_gross} with a net of {net}"
    if sum_of_nets or liquidity != snapshot.liquidity:
        yield f"snapshot.liquidity: {snapshot.liquidity}, the ticks give {liquidity} and leave {sum_of_nets} at the end"
    if known and staked != known.staked_liquidity:
        yield f"snapshot.slipstream.staked_liquidity: {known.staked_liquidity}, the ticks give {staked}"
    if known and not 0 <= known.unstaked_fee <= PIPS:
        yield f"snapshot.slipstream.unstaked_fee: {known.unstaked_fee} is no fee"


def check_events(parts: Any) -> Iterator[str]:
    """In order, and of the round's blocks and time."""
    snapshot, events, last = parts.snapshot, parts.events, None
    if not snapshot:
        return
    yield from ordered("events", [(event.block, event.log_index) for event in events])
    for n, event in enumerate(events):
        if not snapshot.block <= event.block < parts.row["close_block"]:
            yield f"events[{n}]: block {event.block} is not of the round"
        block, time = (last.block, last.time) if last else (snapshot.block, snapshot.block_time)
        if not time <= event.time < parts.row["end_time"] or (event.block == block and event.time != time):
            yield f"events[{n}]: time {event.time} in block {event.block}, block {block} was at {time}"
        last = event


def check_queries(parts: Any) -> Iterator[str]:
    """Every query is of this round, and says what the others of the round, and of its block, say."""
    row, at_head = parts.row, {}
    of_round = "sn_liquidity_manager_address", "chain_id", "token0", "token1", "tick_spacing"
    of_head = "block_hash", "block_time", "window_start_block", "window_end_block"
    for ask in parts.asks:
        query, other = ask.query, parts.asks[0].query
        same = at_head.setdefault(query.block_number, query)
        if ask.first and query != same:  # one for all; the market before the opening is not in the evidence
            yield from differences(f"{ask.path}.query", to_plain(query), to_plain(same))
        deadline = query.block_time + ASK_SECONDS
        again = replace(
            query,
            **{name: row[name] for name in ("job_id", "round_id", "round_type")},
            **{name: getattr(other, name) for name in of_round},
            **{name: getattr(same, name) for name in of_head},
            pair_address=parts.evidence["pool"],
            window_start_time=row["start_time"],
            window_end_time=row["end_time"],
            deadline=min(deadline, row["start_time"] - FIRST_ASK_DEADLINE_SECONDS) if ask.first else deadline,
            current_price=human_price(query.sqrt_price_x96, other.token0.decimals, other.token1.decimals),
            rebalances_so_far=0 if ask.first else query.rebalances_so_far,
            settings=parts.settings,
            version=PROTOCOL_VERSION,
        )
        if again != query:
            yield from differences(f"{ask.path}.query", to_plain(query), to_plain(again))
    if len({ask.query.block_number for ask in parts.asks if ask.first}) > 1:
        yield "asks: the first asks show different blocks"


def check_shown(parts: Any) -> Iterator[str]:
    """Every later query showed the market, and the miner its own book, as they then stood: advance from ask to ask."""
    if not parts.played:
        return
    game, events = Round(parts.settings, parts.snapshot, given=_given(parts)), deque(parts.events)
    for entrant in parts.evidence["entrants"]:
        game.enter(entrant["hotkey"])
    waiting = deque(sorted((d for d in parts.decisions if d.hotkey in game.books), key=lambda decision: decision.block))
    for ask in sorted((ask for ask in parts.asks if not ask.first), key=lambda ask: ask.query.block_number):
        query, head = ask.query, ask.query.block_number
        try:
            while events and events[0].block <= head:
                game.feed([events.popleft()])
        except (ReplayError, PoolError):
            return  # then the round is void, which is looked at with its result
        while waiting and waiting[0].block <= head:
            game.decide(waiting.popleft())
        pool, price = game.tape.pool, game.tape.price_before(head + 1)
        again = replace(query, sqrt_price_x96=price, tick=pool.tick, liquidity=pool.liquidity, fee=pool.fee)
        if parts.live:
            done = sum(acted(execution) and execution.block <= head for execution in parts.executions)
            untouched = not game.tape.unknown_swaps and parts.row["code"] != Code.LIVE_FOREIGN_TRANSFER
            vault = _vault_shown(parts, game.tape, query) if untouched else {}
            again = replace(again, **vault, rebalances_so_far=done)
        elif ask.hotkey in game.books:
            book = game.books[ask.hotkey].at(head + 1)
            own = {"current_positions": tuple(book.shown(price)), "uncollected_fees": Inventory(*book.fees())}
            idle = Inventory(book.idle0, book.idle1)
            again = replace(again, **own, inventory_remaining=idle, rebalances_so_far=book.changes)
        if again != query:
            yield from differences(f"{ask.path}.query", to_plain(query), to_plain(again))


def _vault_shown(parts: Any, tape: Tape, query: RebalanceQuery) -> dict[str, Any]:
    """What a live query shows of the vault, as its own events left it; in which order positions are listed is free."""
    said = query.inventory_remaining.amount0, query.inventory_remaining.amount1
    held = [Holding(*key[1:], tape.pool.position(*key).liquidity) for key in tape.vault_keys - tape.staked]
    price = tape.pool.sqrt_price_x96
    shown = tuple(Position(h.tick_lower, h.tick_upper, *h.amounts(price)) for h in held if h.liquidity)
    if sorted(map(astuple, shown)) == sorted(map(astuple, query.current_positions)):
        shown = query.current_positions
    idle, fees = Inventory(*_with_gifts(parts, tape.idle, said)), Inventory(*tape.vault_holds()[1])
    return {"current_positions": shown, "inventory_remaining": idle, "uncollected_fees": fees}


def check_executions(parts: Any) -> Iterator[str]:
    """Each answer of a live round that changes something was acted on, and the vault's own events say the same."""
    stored_ones, void = parts.evidence["executions"], parts.row["code"] == Code.LIVE_FOREIGN_TRANSFER
    if not (parts.live and parts.played):
        if stored_ones and not (parts.live and parts.row["code"] in BROKEN):
            yield f"executions: {len(stored_ones)} in a round that has none"
        return
    if parts.row["code"] == Code.VOID_CONTRADICTION:
        return  # the events say nothing for certain
    asks = [ask for ask in parts.asks if ask.answer]
    plans = [(ask, *plan(ask.query.current_positions, ask.answer.desired_positions)) for ask in asks]
    plans = [found for found in plans if found[2] or found[3]]
    if len(plans) != len(stored_ones):
        yield f"executions: {len(stored_ones)} items, {len(plans)} answers change something"
    tape, events, newest, transactions = Tape(parts.snapshot, given=_given(parts)), deque(parts.events), 0, set()
    for n, ((ask, *orders), stored, said) in enumerate(zip(plans, stored_ones, parts.executions, strict=False)):
        path, acts, vault = f"executions[{n}]", ask.stored["effective_block"], ask.query.sn_liquidity_manager_address
        yield from differences(f"{path}.vault", stored["vault"], vault)
        if stored["block"] not in ((acts,) if said.sent else (acts, said.block)):  # once it was where the model acted
            yield f"{path}.block: {stored['block']}, the answer acts from {acts} on"
        again = Execution(said.block, vault, *orders, before=said.before, after=said.before, sent=said.sent)
        on_chain = not said.sent or acted(said)
        if on_chain:
            if not max(acts, newest + 1) <= said.block < parts.row["close_block"]:
                yield f"{path}.execution.block: {said.block}, the answer acts from {acts} on, one after the other"
            newest = said.block
        elif was_carried_out(said):  # there was nothing to do
            if not ask.query.block_number <= said.block < parts.row["close_block"]:
                yield f"{path}.execution.block: {said.block}, the query shows block {ask.query.block_number}"
        else:
            again = replace(again, block=ask.query.block_number + 1)
        dry_run = said.sent and said.sent.code == Code.EXECUTION_DRY_RUN
        if dry_run or (on_chain and void):  # whose word the amounts are
            flows = zip(said.before, said.released, said.fees, said.paid, strict=True)
            after = tuple(had + out + fee - paid for had, out, fee, paid in flows)
            again = replace(again, **{name: getattr(said, name) for name in (*FLOWS, "minted")}, after=after)
        elif on_chain:
            again = replace(again, **_amounts_of(parts, said, tape, events))
        yield from differences(f"{path}.execution", stored["execution"], to_json(again))
        if said.sent:
            yield from _check_sent(f"{path}.execution.sent", said.sent, on_chain, transactions)


def _given(parts: Any) -> Collection[tuple[int, int]]:
    return given_mints(parts.snapshot, parts.events, parts.executions) if parts.live else ()


def _with_gifts(parts: Any, idle: tuple[int, int], said: tuple[int, int]) -> tuple[int, ...]:
    """The vault's idle tokens, or what is said of them where they are more by what others gave it in the round."""
    most = map(add, idle, gifts_of(parts.row["detail"]))
    return tuple(max(have, min(told, limit)) for have, told, limit in zip(idle, said, most, strict=True))


def _amounts_of(parts: Any, said: Execution, tape: Tape, events: deque[Event]) -> dict[str, Any]:
    """What the vault's own events say of an execution; takes `tape` to the end of its block."""
    while events and events[0].block < said.block:
        tape.feed([events.popleft()])
    own = []
    while events and events[0].block == said.block:
        own.append(events.popleft())
    tape.feed(own)
    released, fees, paid, minted = sums_of(own_events(tape, own).get(said.block, ()))
    minted = said.minted if sorted(said.minted) == sorted(minted) else minted
    after = _with_gifts(parts, tape.idle, said.after)
    before = tuple(had - out - fee + took for had, out, fee, took in zip(after, released, fees, paid, strict=True))
    amounts = {"before": before, "released": released, "fees": fees, "paid": paid, "after": after}
    return amounts | {"minted": minted}


def _check_sent(path: str, sent: Sent, on_chain: bool, transactions: set[str]) -> Iterator[str]:
    """What a chain's validator says of sending fits together; `evm.audit` holds it against the chain."""
    named = _HASH.fullmatch(sent.transaction) if on_chain else sent.transaction == ""
    if not named or sent.transaction in transactions:
        what = "is none, or there twice" if on_chain else "did nothing"
        yield f"{path}.transaction: {quoted(sent.transaction)} {what}"
    transactions |= {sent.transaction} - {""}
    gas = sent.gas_used, sent.gas_wei, sent.gas0, sent.gas1
    paid = (sent.gas0, sent.gas1) in ((0, 0), (sent.gas_wei, 0), (0, sent.gas_wei))
    if min(gas) < 0 or not paid or (sent.gas_wei and not sent.gas_used):
        used, wei, gas0, gas1 = map(quoted, gas)
        yield f"{path}.gas0, gas1: {gas0} and {gas1}, gas_used {used}, gas_wei {wei}"


CHECKS = (check_pool, check_events, check_queries, check_shown, check_executions)


def line_problems(said: Mapping[str, Any]) -> Iterator[str]:
    """What of a line does not follow from its amounts by the rules of `scoring.py`."""
    line, settings = said["line"], from_plain(JobSettings, said["round"]["settings"])
    plain = line["outcome"]
    outcome = Outcome(**{name: Decimal(text) if name == "in_range" else int(text) for name, text in plain.items()})
    gas0, gas1 = map(int, line.get("gas", (0, 0)))
    if "gas" in line and (min(gas0, gas1) < 0 or said["round"]["round_type"] != "live"):
        yield f"line.gas: {gas0} and {gas1} in a round of type {said['round']['round_type']}"
    gas = gas_cost(gas0, gas1, outcome.sqrt_price_end_x96)
    terms = score_outcome(outcome, settings.target, settings.rebalance_cost, gas)
    for name, computed in to_json(terms).items():
        if line["terms"][name] != computed:
            yield f"line.terms.{name}: {line['terms'][name]}, its amounts give {computed}"
    capped = bool(line["copy_of"]) or terms.in_range < settings.min_in_range
    counts = min(terms.score, Decimal(said["baselines"]["keep"])) if capped else terms.score
    if Decimal(line["score"]) != counts:
        yield f"line.score: {line['score']}, the rules give {counts}"
    if line["name"] != said["hotkey"] or not 1 <= int(line["rank"]) <= said["ranked"] <= said["round"]["asked"]:
        yield f"line: rank {line['rank']} of {said['ranked']} for {line['name']}"
