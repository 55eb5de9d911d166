"""`markets/recordings.py`: real recordings replay to the last digit, and a recording with one wrong digit does not.

The recordings are not in the repository; `tests/conftest.py` says where they are looked for.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import tracemalloc
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from liquidity.calls import find_call
from liquidity.events import Event, ReplayError
from liquidity.replay import apply_event
from markets.__main__ import main
from markets.recordings import BACKGROUND, MAX_DESCRIPTION_BYTES, read_recording, replay
from sim import MAX_SQRT_RATIO, MIN_SQRT_RATIO, Q96, Q256, Pool, PoolError, sqrt_ratio_at_tick

ARBITRUM = "arbitrum_weth_usdt_500_2025-06-27_07-01"
ETHEREUM = "ethereum_usdc_weth_500_2024-01-05"
POLYGON = "polygon_usdc_weth_500_2022-01-05"
ROOT = Path(__file__).resolve().parents[1]
read = cache(read_recording)


# ---------------------------------------------------------------------------------------------------------------------
# Real recordings


@pytest.mark.parametrize(
    ("name", "swaps", "unknown", "changes"),
    [(ARBITRUM, 93_142, 0, 17_559), (ETHEREUM, 6_045, 10, 123), (POLYGON, 3_971, 2, 126)],
)
def test_a_recording_replays_to_its_final_state(recording_path, name, swaps, unknown, changes):
    recording = read(recording_path(name))
    kinds = [event.kind for event in recording.events]
    assert (kinds.count("swap"), kinds.count("mint") + kinds.count("burn")) == (swaps, changes)
    assert sum(event.args[0] == "?" for event in recording.events if event.kind == "swap") == unknown
    pool = replay(recording)
    assert len(recording.final) == 5
    assert {key: getattr(pool, key) for key in recording.final} == recording.final


def test_the_start_of_a_recording_is_the_stated_one(recording_path):
    for name in (ARBITRUM, ETHEREUM, POLYGON):
        path = recording_path(name)
        start = json.loads(Path(f"{path}.json").read_bytes())["start"]
        recording = read(path)
        pool = recording.open_pool()
        assert (pool.sqrt_price_x96, pool.tick) == (start["sqrtPriceX96"], start["tick"])
        assert pool.liquidity == start["liquidity"]
        assert (recording.start_block, recording.start_time) == (start["block"], start["time"])
        assert recording.events[0].block >= start["block"]
        assert (pool.fee_growth_global0_x128, pool.fee_growth_global1_x128) == (0, 0)


def test_the_arbitrum_pool_passes_through_its_hourly_states_on_chain(recording_path):
    """Price, tick and liquidity in all 118 hours; fee growth from hour to hour in the 113 of 117 without a flash loan.

    The others grew more on chain: the source of the recording lacks flash loans. The description says which they are.
    """
    path = recording_path(ARBITRUM)
    hours = json.loads(Path(f"{path}.json").read_bytes())["hourly_states"]
    recording = read(path)
    pool, events, growth = recording.open_pool(), iter(recording.events), []
    event = next(events)
    for block, _, sqrt_price_x96, tick, liquidity, *_ in hours:
        while event and event.block <= block:
            apply_event(pool, event)
            event = next(events, None)
        assert (pool.sqrt_price_x96, pool.tick, pool.liquidity) == (sqrt_price_x96, tick, liquidity), block
        growth.append((pool.fee_growth_global0_x128, pool.fee_growth_global1_x128))
    equal = []
    for (one, two), (before, after) in zip(pairwise(hours), pairwise(growth), strict=True):
        on_chain = [(two[column] - one[column]) % Q256 for column in (5, 6)]
        replayed = [late - early for early, late in zip(before, after, strict=True)]
        assert all(chain >= ours for chain, ours in zip(on_chain, replayed, strict=True)), two[0]
        equal.append(on_chain == replayed)
    assert equal == [row[7] == 1 for row in hours[1:]]
    assert (len(equal), sum(equal)) == (117, 113)


@pytest.mark.parametrize(("name", "every"), [(ARBITRUM, 900), (ETHEREUM, 40), (POLYGON, 25)])
def test_find_call_finds_the_recorded_call_and_leaves_the_pool_alone(recording_path, name, every):
    recording = read(recording_path(name))
    pool, found = recording.open_pool(), set()
    for number, event in enumerate(recording.events):
        if number % every == 0 and event.kind == "swap" and event.args[0] != "?":
            found.add(event.args[0])
            assert find_call(pool, event._replace(args=("", *event.args[1:]))) == event.args[0], event
        apply_event(pool, event)
    assert found == {"in", "out", "limit"}
    assert {key: getattr(pool, key) for key in recording.final} == recording.final


def test_find_call_refuses_what_no_call_explains(recording_path):
    recording = read(recording_path(POLYGON))
    pool, event = recording.open_pool(), recording.events[0]
    for place in range(1, 6):
        args = [*event.args]
        args[place] += 1
        with pytest.raises(ReplayError, match=f"block {event.block} log {event.log_index}: swap "):
            find_call(pool, event._replace(args=tuple(args)))
    nothing = event._replace(args=("", 0, 0, *event.args[3:]))
    with pytest.raises(ReplayError):
        find_call(pool, nothing)


# ---------------------------------------------------------------------------------------------------------------------
# A small recording made here: what each kind of damage does


class Market:
    """A pool whose calls are written down as a chain would record them."""

    def __init__(self):
        self.pool, self.lines, self.events = Pool(500, 10), [], []
        self.pool.initialize(Q96)
        self.background = [[-1000, 1000, 10**18], [-200, 0, 10**17]]
        self.preexisting = [[4, -300, 300, 10**16]]
        for lower, upper, liquidity in self.background:
            self.pool.mint(BACKGROUND, lower, upper, liquidity)
        for owner, *position in self.preexisting:
            self.pool.mint(str(owner), *position)

    def write(self, kind: str, *args) -> None:
        number = len(self.events)
        self.events.append(Event(100 + number // 2, number, 1_700_000_000 + 12 * (number // 2), kind, args))

    def swap(self, how: str, zero_for_one: bool, amount: int, limit: int | None = None) -> None:
        limit = limit or (MIN_SQRT_RATIO + 1 if zero_for_one else MAX_SQRT_RATIO - 1)
        amounts = self.pool.swap(zero_for_one, amount, limit)
        self.write("swap", how, *amounts, self.pool.sqrt_price_x96, self.pool.liquidity, self.pool.tick)

    def change(self, kind: str, *args) -> None:
        self.write(kind, *args, *getattr(self.pool, kind)(*args))

    def files(self, folder: Path) -> Path:
        """Write both files as an external tool would; the path of the recording."""
        pool = self.pool
        description = {
            "chain": "test",
            "pool": "0x0",
            "token0": "AAA (18)",
            "token1": "BBB (6)",
            "fee": 500,
            "tickSpacing": 10,
            "start": {"sqrtPriceX96": Q96, "tick": 0, "liquidity": 0, "block": 99, "log": 0, "time": 1_699_999_988},
            "background": self.background,
            "preexisting": self.preexisting,
            "final": {
                "sqrtPriceX96": pool.sqrt_price_x96,
                "tick": pool.tick,
                "liquidity": pool.liquidity,
                "feeGrowth0_since_start": pool.fee_growth_global0_x128,
                "feeGrowth1_since_start": pool.fee_growth_global1_x128,
            },
        }
        (folder / "small.json").write_text(json.dumps(description))
        rows = [",".join(map(str, (*event[:4], *event.args))) for event in self.events]
        (folder / "small.events.csv").write_text("\n".join(["header", *rows]) + "\n")
        return folder / "small"


@pytest.fixture
def small(tmp_path) -> Path:
    market = Market()
    market.swap("in", True, 10**16)
    market.change("mint", "1", -100, 100, 10**17)
    market.swap("limit", False, 10**18, sqrt_ratio_at_tick(55) + 12345)
    market.swap("out", True, -(10**15))
    market.change("burn", "1", -100, 100, 10**16)
    market.swap("in", False, 10**16)
    market.change("burn", "4", -300, 300, 10**16)
    market.swap("in", True, 3 * 10**16)
    return market.files(tmp_path)


def damage(path: Path, line: int, column: int, by: int = 1) -> None:
    """Add to one number of the table; lines and columns count from 0, without the header."""
    table = Path(f"{path}.events.csv")
    rows = [row.split(",") for row in table.read_text().splitlines()]
    rows[line + 1][column] = str(int(rows[line + 1][column]) + by)
    table.write_text("\n".join(map(",".join, rows)) + "\n")


def edit(path: Path, change) -> None:
    """Apply a function to the table's lines below the header."""
    table = Path(f"{path}.events.csv")
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *change(lines)]) + "\n")


def test_an_intact_recording_exits_0_and_says_what_was_compared(small, capsys):
    assert main(["replay", str(small)]) == 0
    said = capsys.readouterr()
    assert "5 swaps (0 of unknown call, taken over), 1 mints, 2 burns" in said.out
    assert not said.err


@pytest.mark.parametrize("ending", ["", ".json", ".events.csv", ".events.csv.xz"])
def test_a_recording_is_found_by_any_of_its_names_packed_or_not(small, ending):
    if ending.endswith("xz"):
        table = Path(f"{small}.events.csv")
        Path(f"{table}.xz").write_bytes(lzma.compress(table.read_bytes()))
        table.unlink()
    assert main(["replay", f"{small}{ending}"]) == 0


SWAP_COLUMNS = {"amount0": 5, "amount1": 6, "price": 7, "liquidity": 8, "tick": 9}


def first_block_named(said: str) -> int:
    """The block that a message of `main` names; what only the final state tells comes after all blocks."""
    return 999 if "final" in said else int(said.split("block ")[1].split()[0])


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("what", SWAP_COLUMNS)
@pytest.mark.parametrize("line", [0, 2, 3, 5, 7])
def test_one_changed_digit_of_a_swap_exits_1_and_names_the_first_block_to_disagree(small, capsys, line, what, by):
    """Mostly its own. One unit more of input may be one unit more of fee, and a limit one unit off a limit kept: then
    the event agrees with itself, and a later one or the final state does not.
    """
    damage(small, line, SWAP_COLUMNS[what], by)
    assert main(["replay", str(small)]) == 1
    said = capsys.readouterr()
    assert not said.out
    agrees_with_itself = (line, what) in {(0, "amount0"), (5, "amount1"), (7, "amount0"), (2, "price")}
    if agrees_with_itself:
        assert first_block_named(said.err) >= 100 + line // 2
    else:
        assert said.err.startswith(f"small: block {100 + line // 2} log {line}: swap ") and said.err.count("\n") == 1


@pytest.mark.parametrize("what", ["liquidity", "amount0", "amount1"])
@pytest.mark.parametrize("line", [1, 4])
def test_one_changed_digit_of_a_mint_or_burn_exits_1_and_names_the_first_block_to_disagree(small, capsys, line, what):
    """One unit of liquidity may be worth no token unit: then a later swap or the final state disagrees."""
    damage(small, line, {"liquidity": 7, "amount0": 8, "amount1": 9}[what])
    assert main(["replay", str(small)]) == 1
    named, own = first_block_named(capsys.readouterr().err), 100 + line // 2
    assert named >= own if what == "liquidity" else named == own


@pytest.mark.parametrize("missing", range(8))
def test_a_missing_event_exits_1_and_the_block_named_is_the_first_that_disagrees(small, capsys, missing):
    edit(small, lambda lines: lines[:missing] + lines[missing + 1 :])
    assert main(["replay", str(small)]) == 1
    said = capsys.readouterr().err
    assert first_block_named(said) >= 100 + missing // 2
    assert ("final" in said) == (missing == 7)  # nothing comes after the last but the stated end


@pytest.mark.parametrize("doubled", range(8))
def test_an_event_that_happens_twice_exits_1_and_names_a_block(small, capsys, doubled):
    """The second time with log indices of its own, so that only the digits tell."""

    def twice(lines: list[str]) -> list[str]:
        lines = lines[: doubled + 1] + lines[doubled:]
        return [",".join(["200", str(number), *line.split(",")[2:]]) for number, line in enumerate(lines)]

    edit(small, twice)
    assert main(["replay", str(small)]) == 1
    said = capsys.readouterr().err
    assert "block 200 log" in said


@pytest.mark.parametrize("doubled", range(8))
def test_a_doubled_line_is_refused_with_its_block(small, capsys, doubled):
    edit(small, lambda lines: lines[: doubled + 1] + lines[doubled:])
    assert main(["replay", str(small)]) == 2
    assert f"line {doubled + 3}: block {100 + doubled // 2} log {doubled} is out of order" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["sqrtPriceX96", "tick", "liquidity", "feeGrowth0_since_start"])
def test_a_final_state_that_is_not_reached_exits_1(small, capsys, key):
    description = Path(f"{small}.json")
    meta = json.loads(description.read_text())
    meta["final"][key] += 1
    description.write_text(json.dumps(meta))
    assert main(["replay", str(small)]) == 1
    assert "the recording says" in capsys.readouterr().err


@pytest.mark.parametrize(
    "table",
    [
        b"\xff\xfe\x00",
        b"header\nnonsense\n",
        b"header\n100,0,1700000000,swap,in,1,2\n",
        b"header\n100,0,1700000000,swap,in,1,2,3,4,5,6\n",
        b"header\n100,0,1700000000,swap,in,1,2,3,4,five\n",
        b"header\n100,0,1700000000,swap,sideways,1,-1,3,4,5\n",
        b"header\n100,0,1700000000,upgrade,1,2,3,4,5,6\n",
        b"header\n100,zero,1700000000,mint,1,2,3,4,5,6\n",
    ],
)
def test_a_table_that_is_not_one_exits_2_with_one_line(small, capsys, table):
    Path(f"{small}.events.csv").write_bytes(table)
    assert main(["replay", str(small)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("recording small") and said.count("\n") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"fee": "much"},
        {"fee": 1_000_000},
        {"fee": -1},
        {"tickSpacing": 0},
        {"token0": 5},
        {"token0": "AAA"},
        {"start": []},
        {"background": [[1, 2]]},
        {"background": 7},
        {"preexisting": [["1", -10, 10, "much"]]},
        {"final": 3},
        {"pool": None, "start": None},
    ],
    ids=str,
)
def test_a_description_that_is_not_one_exits_2_with_one_line(small, capsys, change):
    description = Path(f"{small}.json")
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    assert main(["replay", str(small)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("recording small") and said.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xff", b'{"start": {}}'])
def test_a_description_of_garbage_exits_2_with_one_line(small, capsys, content):
    Path(f"{small}.json").write_bytes(content)
    assert main(["replay", str(small)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("line", [bytes(10**8), b"1,0,1,flash,1,1,1,1\n" * 5 * 10**6], ids=["one line", "many lines"])
def test_a_table_that_grows_beyond_any_real_one_when_unpacked_exits_2_with_one_line(small, capsys, line):
    Path(f"{small}.events.csv.xz").write_bytes(lzma.compress(b"head\n" + line, preset=0))
    tracemalloc.start()
    try:
        assert main(["replay", str(small)]) == 2
        assert tracemalloc.get_traced_memory()[1] < 64 * 10**6
    finally:
        tracemalloc.stop()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("longer than 1024 bytes" in said or "longer than any real ones" in said)


@pytest.mark.parametrize("description", [b"[" * 10**5, b" " * (MAX_DESCRIPTION_BYTES + 1)])
def test_a_description_that_is_too_deep_or_too_long_exits_2_with_one_line(small, capsys, description):
    Path(f"{small}.json").write_bytes(description)
    assert main(["replay", str(small)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_that_are_missing_or_cut_short_exit_2_and_say_what_to_do(small, tmp_path, capsys):
    assert main(["replay", str(tmp_path / "other")]) == 2
    assert "does not exist" in capsys.readouterr().err
    table = Path(f"{small}.events.csv")
    packed = lzma.compress(table.read_bytes())
    for bad in (packed[:-10], b"", packed[:50] + b"x" + packed[51:]):
        Path(f"{table}.xz").write_bytes(bad)
        assert main(["replay", str(small)]) == 2
        assert "fetch the file again" in capsys.readouterr().err
    assert main(["replay", str(tmp_path)]) == 2


def test_the_command_line_is_sim_py_replay(small):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "markets", *arguments], cwd=ROOT, capture_output=True, text=True)

    done = run("replay", str(small))
    assert (done.returncode, done.stderr) == (0, "")
    damage(small, 3, SWAP_COLUMNS["tick"])
    done = run("replay", str(small))
    assert (done.returncode, done.stdout) == (1, "")
    assert "small: block 101 log 3: swap tick is" in done.stderr
    assert run("replay", "nowhere").returncode == 2
    assert run().returncode == 2


# ---------------------------------------------------------------------------------------------------------------------
# Events of other kinds, and swaps of unknown call


def test_every_kind_of_event_is_held_against_the_pool():
    pool, market = Market().pool, Market()
    market.pool.set_fee_protocol(4, 10)
    market.write("set_fee_protocol", 4, 10)
    market.swap("in", True, 10**15)
    market.change("mint", "1", -100, 100, 10**17)
    market.write("flash", 10**9, 10**6, *market.pool.flash(10**9, 10**6, 5, 0))
    market.swap("in", False, 10**15)
    market.write("collect_protocol", *market.pool.collect_protocol(10**12, 1 << 100))
    market.change("burn", "1", -100, 100, 10**17)
    market.write("collect", "1", -100, 100, *market.pool.collect("1", -100, 100, 10**15, 10**15))
    for event in market.events:
        if event.kind != "swap":
            for place in range(len(event.args)):
                if isinstance(event.args[place], int) and event.kind not in ("flash", "set_fee_protocol"):
                    wrong = list(event.args)
                    wrong[place] += 1 << 90
                    with pytest.raises((ReplayError, PoolError)):
                        apply_event(pool.copy(), event._replace(args=tuple(wrong)))
        apply_event(pool, event)
    for name in ("sqrt_price_x96", "tick", "liquidity", "fee_growth_global0_x128", "protocol_fees"):
        assert getattr(pool, name) == getattr(market.pool, name)
    with pytest.raises(ReplayError, match="kind"):
        apply_event(pool, market.events[0]._replace(kind="upgrade"))
    short = market.events[3]._replace(args=(10**9, 10**6, 0, 10**3))  # repaid without the fee
    with pytest.raises(PoolError, match="F0"):
        apply_event(pool, short)


def test_a_swap_of_unknown_call_takes_the_recorded_state_over(small):
    recording = read_recording(small)
    events = list(recording.events)
    events[5] = events[5]._replace(args=("?", 1, 1, *events[5].args[3:]))  # the amounts are not looked at
    pool = recording.open_pool()
    for event in events[:6]:
        apply_event(pool, event)
    assert (pool.sqrt_price_x96, pool.liquidity, pool.tick) == events[5].args[3:]
    for event in events[6:]:
        apply_event(pool, event)
    assert (pool.sqrt_price_x96, pool.liquidity) == events[-1].args[3:5]
    assert pool.fee_growth_global1_x128 < recording.final["fee_growth_global1_x128"]  # its fees are unknown


def test_the_digest_tells_recordings_apart(small):
    before = read_recording(small).digest
    assert read_recording(small).digest == before
    damage(small, 0, 2)
    assert read_recording(small).digest != before


def test_the_replay_shows_how_far_it_is_on_a_terminal(small, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["replay", str(small)]) == 0
    assert capsys.readouterr().err.endswith("100 %, 8 of 8 events\n")
    damage(small, 3, SWAP_COLUMNS["tick"], 1)
    assert main(["replay", str(small)]) == 1
    assert "3 of 8 events\r\x1b[Ksmall: block 101 log 3: swap " in capsys.readouterr().err  # its line makes way
