"""The seam for mechanisms: what one must be, so that everything else need not know which it serves.

    mechanisms = load(["my_mechanism"])                 # python validator.py --mechanism my_mechanism

A mechanism is one object, `MECHANISM` of its module. Shared by all, and ignorant of which: scheduling, asking,
evidence, seals, audit, receipts, resume, reputation, shares, weights, board, page, report, pruning.
Read next: `liquidity/mechanism.py` (the first one), `tests/test_mechanism.py` (a small one).
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Protocol

from chain.base import Chain
from liquidity.events import Event
from markets.base import Market
from protocol import Block, Code, Entrant, Job, Moment, RoundResult
from runtime.process import UserError

MECHANISMS = ("liquidity.mechanism",)  # that come with the program


@dataclass(frozen=True, slots=True)
class World:
    """What a mechanism may look at: the market, the subnet's chain, and a way to ask anybody who signs."""

    market: Market
    chain: Chain
    ask: Callable[[str, str, bytes, float], Awaitable[Any]]  # (hotkey, url, body, seconds) to `wire.client.Reply`


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings of every job have; a mechanism without more takes these."""

    weight: Decimal = Decimal(1)  # the job's part of its mechanism's weights, relative to the other jobs
    shares: tuple[Decimal, ...] = (Decimal(1),)  # of the job's weight by place; they sum to at most 1, the rest burns
    reputation: str = "seed"  # what ranks the miners: the plain score, or its `excess` over the benchmark


@dataclass(frozen=True, slots=True)
class Line:
    """One miner's result, where a mechanism has no more to say of it: `terms` are named scalars."""

    name: str
    score: Decimal
    rank: int
    terms: Mapping[str, Any]
    copy_of: str = ""


class Game(Protocol):
    """A round in play. Pure: what is not in the opening state, the events, the decisions and the settlement is not
    there."""

    def feed(self, events: Iterable[Event]) -> None:
        """What happened next, where `Mechanism.events` gives any; `ReplayError`, `PoolError` for what cannot have."""

    def query(self, moment: Moment, hotkey: str | None = None) -> Any:
        """The message that asks a miner, at the moment's head; None: one that does not take part yet."""

    def decide(self, decision: Any) -> Any:
        """Let a decision act; everything before its block has been fed. With its first one a miner takes part."""

    def settle(self, settlement: Any) -> None:
        """What `Mechanism.settle` found; not called where that is None."""

    def finish(self, close_block: int, entrants: Iterable[Entrant]) -> RoundResult:
        """Score and rank."""


class Mechanism(Protocol):
    """One way to earn. Its types are dataclasses that the codec reads."""

    name: str  # of its jobs and rounds
    rules_version: int  # of what can change a digit of its scores
    earlier: tuple[Mechanism, ...]  # the same by rules of before, for their rounds' audit; may be left out
    settings: type  # a job's rules, with `weight`, `shares` and `reputation`
    state: type  # what `observe` returns, with `block` and `block_hash`
    query: type | None  # with `block_number` and `block_hash` of what it shows; None where nobody is asked
    answer: type | None
    path: str  # of a miner's server, where it is asked; empty where nobody is
    settle_seconds: int  # of market time after a round's end at which its outcome is known
    live: bool  # whether its proven winner manages the real thing, see `spine/live.py`
    showing: Any  # what leaderboards and pages say of its rounds (`status.board.Showing`); None: every term as it is
    # what only this mechanism's audit can see: of a round's evidence (`audit.checks.Parts`) what is wrong, `path: what`
    checks: tuple[Callable[[Any], Iterator[str]], ...]

    def interval_blocks(self, settings: Any) -> int:
        """Blocks between two asks of a round; 0 if there is only the first."""

    async def observe(self, world: World, job: Job, block: Block) -> Any:
        """What is asked about: plain data, pinned to the state before this block's first event."""

    async def events(self, world: World, first: int, last: int) -> Sequence[Event] | None:
        """What happened to the market's pool in blocks `first` to `last`, both included; None if it does not matter."""

    async def settle(self, world: World, job: Job, block: Block) -> Any:
        """What decides a round besides, as plain JSON, read at the first block `settle_seconds` after its end; None."""

    def game(self, settings: Any, state: Any) -> Game: ...

    def judge(self, body: bytes, query: Any) -> tuple[Code, str, Any]:
        """What an answer's bytes amount to: (code, detail, the answer if it is an accepted and valid one)."""

    def decision(self, hotkey: str, block: int, query: Any, answer: Any) -> Any:
        """What an accepted answer decides, and that it acts before this block's first event; has `hotkey`, `block`."""

    def play(
        self,
        settings: Any,
        state: Any,
        close_block: int,
        events: Iterable[Event],
        entrants: Iterable[Entrant],
        decisions: Iterable[Any],
        settlement: Any = None,
    ) -> RoundResult:
        """A whole round as a pure function of what it is stored as; the same as a `Game` that was fed all of it."""

    def line_problems(self, said: Mapping[str, Any]) -> Iterator[str]:
        """What of a receipt's line does not follow from its own amounts."""


def load(modules: Iterable[str] = ()) -> Mapping[str, Mechanism]:
    """The mechanisms that come with the program, and those of these modules, by name. Raises `UserError`."""
    found: dict[str, Mechanism] = {}
    for module in (*MECHANISMS, *modules):
        try:
            mechanism = importlib.import_module(module).MECHANISM
        except (ImportError, AttributeError) as error:
            raise UserError(f"--mechanism {module}: {error}; name a module that has MECHANISM") from error
        if mechanism.name in found:
            raise UserError(f"--mechanism {module}: {mechanism.name} is there twice")
        found[mechanism.name] = mechanism
    return MappingProxyType(found)


def by_rules(mechanism: Mechanism, version: Any) -> Mechanism | None:
    """The mechanism with rules of this version; None if they are not known any more, or not yet."""
    known = {one.rules_version: one for one in (mechanism, *getattr(mechanism, "earlier", ()))}
    return known.get(version) if type(version) is int else None


def showings(mechanisms: Mapping[str, Mechanism]) -> list[Any]:
    """What those that have something to say of their rounds' terms say."""
    return [mechanism.showing for mechanism in mechanisms.values() if mechanism.showing]


def settings_of(mechanisms: Mapping[str, Mechanism]) -> dict[str, type]:
    """What each one's jobs are set up with, as `Store.open` takes it."""
    return {name: mechanism.settings for name, mechanism in mechanisms.items()}
