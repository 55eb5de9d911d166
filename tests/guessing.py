"""A mechanism in one file: miners guess a number that a later block decides. Read first: `spine/mechanism.py`."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, make_dataclass
from decimal import Decimal

from protocol import Code, ProtocolError, RoundResult
from spine.mechanism import Line, Rules
from wire.codec import decode, digest
from wire.text import differences

LIMIT = 1000


@dataclass(frozen=True, slots=True)
class State:
    block: int
    block_time: int
    block_hash: str
    hotkeys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    round_id: str
    block_number: int
    block_hash: str


Guess = make_dataclass("Guess", [("number", int)], frozen=True)
Decision = namedtuple("Decision", "hotkey block number")


class Game:
    def __init__(self, rules, state):
        self.state, self.guesses, self.number = state, {}, 0

    def query(self, moment, hotkey=None):
        return Question(moment.round_id, moment.head.number, moment.head.hash)

    def decide(self, decision):
        self.guesses[decision.hotkey] = decision.number

    def settle(self, settlement):
        self.number = int(settlement["hash"], 16) % LIMIT

    def finish(self, close_block, entrants):
        guesses = self.guesses or {hotkey: int(digest(hotkey.encode()), 16) % LIMIT for hotkey in self.state.hotkeys}
        away = sorted((abs(guess - self.number), hotkey) for hotkey, guess in guesses.items())
        lines = (Line(hotkey, Decimal(LIMIT - n), place, {"distance": n}) for place, (n, hotkey) in enumerate(away, 1))
        return RoundResult(Code.SCORED if away else Code.NOBODY_RANKED, "", tuple(lines))


@dataclass(frozen=True)
class Guessing:
    name: str = "guessing"
    settle_seconds: int = 0
    query: type | None = Question
    path, rules_version, live, showing, checks = "/guess", 1, False, None, ()
    settings, state, answer, game = Rules, State, Guess, Game

    def interval_blocks(self, settings):
        return 0

    async def observe(self, world, job, block):
        hotkeys = sorted(neuron.hotkey for neuron in (await world.chain.metagraph()).neurons)
        return State(block.number, block.time, block.hash, tuple(hotkeys))

    async def events(self, world, first, last):
        return None

    async def settle(self, world, job, block):
        return {"hash": block.hash}

    def judge(self, body, query):
        try:
            guess = decode(Guess, body, 100)
        except ProtocolError as error:
            return error.code, error.detail, None
        return (Code.ACCEPTED, "", guess) if 0 <= guess.number < LIMIT else (Code.AMOUNT_RANGE, "", None)

    def decision(self, hotkey, block, query, answer):
        return Decision(hotkey, block, answer.number)

    def play(self, settings, state, close_block, events, entrants, decisions, settlement=None):
        game = Game(settings, state)
        for decision in decisions:
            game.decide(decision)
        game.settle(settlement)
        return game.finish(close_block, entrants)

    def line_problems(self, said):
        line = said["line"]
        yield from differences("line.score", line["score"], str(LIMIT - int(line["terms"]["distance"])))


MECHANISM = Guessing()
