"""Who may manage the vault, and when: seventeen market days of a whole validator, gaps, and a hotkey that changes.

The clock is the market's, so days take seconds; all else is as in any run: miners on loopback, signed answers, rounds
of the market model. `expected` says what must come of each live round, from the script of who was there and the rule in
the README alone. Run: `python -m pytest tests/test_eligibility.py`. Read next: `test_validator.py`.
"""

from __future__ import annotations

import pytest
from subnets import a_job, hotkey_of, play_subnet, rows, standings, stored_standings, write_meanwhile
from test_validator import all_in

from chain.local import LocalChain
from markets.model import FIRST_TIME
from protocol import RebalanceQuery
from spine import schedule
from wire.signing import local_keypair

DAY, LENGTH, DAYS = 86_400, 43_200, 17  # a round every twelve hours
STARTS = range(FIRST_TIME + LENGTH, FIRST_TIME + DAYS * DAY, LENGTH)
AWAY = {*range(5, 9), *range(12, 16)}  # the days on which rounds of `gaps` would have ended, had it been there


def ends_on(start: int) -> int:
    """The day a round ends on, counted from the market's first."""
    return (start + LENGTH - FIRST_TIME) // DAY


def expected(start: int) -> tuple[str, str]:
    """(code, detail) of a live round: its winner is of the newest round over when the ask leaves, the last but one."""
    over = [begun for begun in STARTS if begun + LENGTH <= start - 75]
    if not over:
        return "live_no_winner", "no evaluation has finished with a winner yet"
    name = "steady" if ends_on(over[-1]) in AWAY else "gaps"
    days = {ends_on(begun) for begun in over if name == "steady" or ends_on(begun) not in AWAY}
    today = (start - 75 - FIRST_TIME) // DAY
    count = sum(today - day < 14 for day in days)
    if count < 7:
        return "live_not_eligible", f"{hotkey_of(name)} was ranked on {count} of the last 14 days, 7 are needed"
    if name == "gaps" and ends_on(start) in AWAY:
        return "live_winner_gone", f"{hotkey_of(name)} is not registered or has no endpoint"
    return "scored", ""


@pytest.fixture(scope="module")
def seventeen_days(tmp_path_factory):
    """`gaps` wins whenever it is there, `steady` is there every day; no address, no miner."""
    folder, ledger_address = tmp_path_factory.mktemp("days"), {}

    async def steady(query: RebalanceQuery) -> list:
        if query.round_type == "evaluation" and query.block_time > query.window_start_time:  # nobody is asked first now
            there = ends_on(query.window_start_time + LENGTH) not in AWAY
            sql = "UPDATE neurons SET address = ? WHERE hotkey = ?"
            address = ledger_address["gaps"] if there else None
            await write_meanwhile(folder / "chain.sqlite3", sql, address, hotkey_of("gaps"))
        return []  # all tokens idle: no fees, so whoever does anything wins

    async def prepare(subnet, *_) -> None:
        sql = "SELECT address FROM neurons WHERE hotkey = ?"
        ((ledger_address["gaps"],),) = rows(folder / "chain.sqlite3", sql, hotkey_of("gaps"))

    job = a_job(target="MaxFees", live=True, round_seconds=LENGTH, checkpoint_blocks=LENGTH // 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "SUPERVISE_SECONDS", 3600)  # looking every market minute would take most of the time
        miners = {"gaps": lambda query: all_in(query, 400), "steady": steady}
        return play_subnet(folder, miners, [job], prepare=prepare, rounds=None, days=DAYS)


def live_rounds(subnet) -> dict[int, tuple[str, str]]:
    sql = "SELECT start_time, code, detail FROM rounds WHERE round_type = 'live' ORDER BY start_time"
    return {start: tuple(ended) for start, *ended in subnet.rows(sql)}


def test_every_live_round_of_seventeen_days_is_played_or_skipped_with_its_reason_as_documented(seventeen_days):
    assert seventeen_days.codes() == ["scored"] * len(STARTS)
    assert live_rounds(seventeen_days) == {start: expected(start) for start in STARTS}
    codes = set(seventeen_days.codes("live"))
    assert codes == {"live_no_winner", "live_not_eligible", "scored", "live_winner_gone"}


def test_on_the_sixth_day_the_live_round_is_skipped_and_on_the_seventh_it_runs_and_is_scored(seventeen_days):
    """`steady` was ranked on each day from 1 on; it is the winner while `gaps` is away, from day 5 to 8."""
    found, noon = live_rounds(seventeen_days), LENGTH
    sixth, seventh = (FIRST_TIME + day * DAY + noon for day in (6, 7))
    reason = f"{hotkey_of('steady')} was ranked on 6 of the last 14 days, 7 are needed"
    assert found[sixth] == found[sixth + noon] == ("live_not_eligible", reason)
    assert found[seventh] == ("scored", "")
    ((winner, lives_played),) = seventeen_days.rows(
        "SELECT winner, lives FROM rounds JOIN miner_scores ON hotkey = winner WHERE start_time = ? AND code = 'scored'"
        " AND round_type = 'live'",
        seventh,
    )
    assert winner == hotkey_of("steady") and lives_played >= 3


def test_days_missed_are_days_that_do_not_count_and_the_others_stay_for_fourteen(seventeen_days):
    """`gaps` was ranked on days 1 to 4, 9 to 11 and 16."""
    ranked = "SELECT day - ? FROM miner_participation WHERE hotkey = ? ORDER BY day"
    days = [day for (day,) in seventeen_days.rows(ranked, FIRST_TIME // DAY, hotkey_of("gaps"))]
    assert days == [1, 2, 3, 4, 9, 10, 11, 16, 17]  # the last round ends with day 16, at the first second of the next
    found = live_rounds(seventeen_days)
    for day, count in ((10, 6), (16, 6)):  # a gap of four days resets nothing; on day 16 the first two are too old
        said = f"{hotkey_of('gaps')} was ranked on {count} of the last 14 days, 7 are needed"
        assert found[FIRST_TIME + day * DAY + LENGTH] == ("live_not_eligible", said)
    assert found[FIRST_TIME + 11 * DAY + LENGTH][0] == "live_winner_gone"  # it had seven days again, and went away


def test_no_other_miner_takes_the_place_of_a_winner_that_is_gone_or_not_eligible(seventeen_days):
    played = seventeen_days.rows("SELECT round_id, winner FROM rounds WHERE round_type = 'live' AND winner IS NOT NULL")
    asked = seventeen_days.rows(
        "SELECT DISTINCT round_id, hotkey FROM predictions JOIN rounds USING (round_id) WHERE round_type = 'live'"
    )
    assert sorted(asked) == sorted(played) and len(played) < len(STARTS) // 2


def test_a_new_hotkey_on_the_same_uid_starts_from_nothing_and_the_old_ones_record_stays_with_it(tmp_path):
    """The uid of `old` goes to `new`, the same miner by another key, and later back."""
    chain: list[LocalChain] = []
    starts = [FIRST_TIME + 900 * n for n in range(1, 11)]
    ledger, address, seen = tmp_path / "chain.sqlite3", {}, {}
    find = "SELECT uid, address FROM neurons WHERE hotkey = ?"

    async def recycle(gone: str, name: str) -> None:
        """Register `name` in a full subnet, where `gone` has earned least."""
        await write_meanwhile(ledger, "UPDATE neurons SET emission_rao = (hotkey != ?)", hotkey_of(gone))
        wallet = (local_keypair(f"{name}-{kind}").ss58_address for kind in ("hotkey", "coldkey"))
        ((uid, _),) = rows(ledger, find, hotkey_of(gone))
        assert await chain[0].register(*wallet) == uid and not rows(ledger, find, hotkey_of(gone))
        await write_meanwhile(ledger, "UPDATE neurons SET address = ? WHERE uid = ?", address[name], uid)
        sql = "SELECT evaluations, lives FROM miner_scores WHERE hotkey = ?"
        seen[name] = rows(tmp_path / "validator.sqlite3", sql, hotkey_of(name))

    async def steady(query: RebalanceQuery) -> list:
        if query.round_type == "evaluation" and query.block_time > query.window_start_time:
            if query.window_start_time == starts[2] and "new" not in seen:
                await recycle("old", "new")
            if query.window_start_time == starts[6] and len(seen) == 1:
                await recycle("new", "old")
        return []

    async def prepare(subnet, store, own, market) -> None:
        chain.append(own)
        for name in ("old", "new"):
            ((_, address[name]),) = rows(ledger, find, hotkey_of(name))
        await write_meanwhile(ledger, "DELETE FROM neurons WHERE hotkey = ?", hotkey_of("new"))
        await own.set_hyperparameters(max_uids=len(rows(ledger, "SELECT uid FROM neurons")), immunity_blocks=0)
        for name in ("old", "steady"):
            for n in range(1, 7):
                row = ("job", hotkey_of(name), FIRST_TIME // DAY - n)
                await write_meanwhile(subnet.path, "INSERT INTO miner_participation VALUES (?, ?, ?, 0)", *row)

    def narrow(query: RebalanceQuery) -> list:
        return all_in(query, 400)

    job = a_job(target="MaxFees", live=True)
    miners = {"old": narrow, "steady": steady, "new": narrow}
    subnet = play_subnet(tmp_path, miners, [job], prepare=prepare, rounds=len(starts))
    found, one = live_rounds(subnet), f"{hotkey_of('new')} was ranked on 1 of the last 14 days, 7 are needed"
    gone = "live_winner_gone", f"{hotkey_of('old')} is not registered or has no endpoint"
    assert [found[start] for start in starts[2:]] == [
        ("scored", ""),
        *[gone] * 2,
        *[("live_not_eligible", one)] * 4,  # to the last of its rounds, although it is gone again by then
        ("scored", ""),
    ]
    assert seen == {"new": [], "old": [(3, 1)]}  # what each had when it got the uid
    sql = "SELECT hotkey, evaluations, lives FROM miner_scores"
    ended = {hotkey: counts for hotkey, *counts in subnet.rows(sql)}
    assert ended == {hotkey_of("old"): [6, 2], hotkey_of("steady"): [10, 0], hotkey_of("new"): [4, 0]}
    assert standings(subnet.path) == stored_standings(subnet.path)  # by the published formulas, each key from 0
