"""The documents say what is so: every example, command and answer in docs/ is run, and compared with what is printed.

Each document has a folder of its own with a copy of the programs, as after a clone. A `sh` block is run line by line,
one for a second terminal is left running, a `python` block becomes the function `propose` of `my_miner.py`, and each
line of a `text` block must stand, in this order, in what the block before printed (`...` is any text, spaces do not
count).
Run: `python -m pytest tests/test_docs.py`. Read next: `docs/tour.md`.
"""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from conftest import RECORDINGS
from subnets import ROOT, command, start
from test_house import ROOMS

from evm.market import REPORT_SECONDS, Web3Market
from liquidity.executions import EXECUTION_SECONDS
from protocol import FIRST_ASK_DEADLINE_SECONDS, FIRST_ASK_LEAD_SECONDS, Code
from scoring import LIVE_MIN_DAYS, LIVE_WINDOW_DAYS

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)( second terminal)?\n(.*?)^```$", re.M | re.S)
RECORDING = "polygon_usdc_weth_500_2022-01-05"
COMMAND_SECONDS = 300


class Reader:
    """Somebody who does what a document says, in a folder of its own."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder, self.stack, self.said = folder, stack, ""
        for file in (*ROOT.glob("*.py"), ROOT / "requirements.txt", ROOT / "Makefile"):
            shutil.copy(file, folder)
        for room in ROOMS:
            shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))

    def follow(self, text: str) -> int:
        """Do and check every block; returns how many lines of output were compared."""
        compared = 0
        for kind, aside, body in BLOCK.findall(text):
            if kind == "sh" and aside:
                self.leave_running(body.strip())
            elif kind == "sh":
                self.said = "".join(map(self.run, filter(None, body.splitlines())))
            elif kind == "python":
                self.write(body)
            else:
                assert kind == "text", kind
                compared += self.compare(body.splitlines())
        return compared

    def run(self, line: str) -> str:
        program, *words = shlex.split(line, comments=True)
        if program == "cp":
            shutil.copy(self.folder / words[0], self.folder / words[1])
            return ""
        if program == "sqlite3":  # whether or not its shell is installed
            with closing(sqlite3.connect(self.folder / words[0])) as db:
                return "".join("|".join(map(str, row)) + "\n" for row in db.execute(words[1]))
        assert program == "python", line
        words, _, target = " ".join(words).partition(" > ") if ">" in words else (shlex.join(words), "", "")
        words = [word.replace("../shared/data", str(RECORDINGS)) for word in shlex.split(words)]
        ended = command(*words, cwd=self.folder, timeout=COMMAND_SECONDS)
        assert "Traceback" not in ended.stderr and ended.returncode == 0, (
            line,
            ended.stdout[-3000:],
            ended.stderr[-3000:],
        )
        if target:
            (self.folder / target).write_text(ended.stdout)
            return ""
        return ended.stdout

    def leave_running(self, line: str) -> None:
        program, *words = shlex.split(line, comments=True)
        assert program == "python"
        words[0], place = str(self.folder / words[0]), self.folder / "terminal"
        process = self.stack.enter_context(start(*words, "--dir", self.folder / "local", folder=place))
        out, until = place / f"{Path(words[0]).stem}.out", time.monotonic() + 60
        while not (said := out.read_text()).count("\n"):
            assert process.poll() is None and time.monotonic() < until, (line, (out.with_suffix(".err")).read_text())
            time.sleep(0.05)
        self.said = said

    def write(self, strategy: str) -> None:
        path = self.folder / "my_miner.py"
        text = path.read_text()
        begin = text.index("def propose(")
        path.write_text(text[:begin] + strategy + text[text.index("\n\n# ====", begin) :])

    def compare(self, lines: list[str]) -> int:
        printed = iter([" ".join(line.split()) for line in self.said.splitlines()])
        for line in filter(None, (" ".join(line.split()) for line in lines)):
            if line != "...":
                wanted = re.compile(".*".join(map(re.escape, line.split("..."))))
                assert any(wanted.fullmatch(found) for found in printed), f"not printed: {line}\n\n{self.said[-6000:]}"
        return len(lines)


@pytest.fixture
def reader(tmp_path) -> Iterator[Reader]:
    with ExitStack() as stack:
        yield Reader(tmp_path, stack)


def test_the_reader_sees_a_line_that_is_missing_out_of_order_or_different(reader):
    reader.said = "one  1.5\ntwo\nthree\n"
    assert reader.compare(["one 1.5", "...", "t...e"]) == 3
    for wrong in (["one 1.6"], ["two", "one ..."], ["thre"]):
        with pytest.raises(AssertionError, match="not printed"):
            reader.compare(wrong)
    with pytest.raises(AssertionError):
        reader.run("python miner.py --no-such-option")


def test_every_example_of_the_scoring_rule_gives_the_digits_that_are_printed():
    found = doctest.testfile(str(DOCS / "scoring.md"), module_relative=False)
    assert found.failed == 0 and found.attempted >= 35


def test_the_four_examples_of_the_seed_are_among_them():
    text = (DOCS / "scoring.md").read_text()
    assert all(f"'{score}'\n" in text for score in ("2,200.00", "1,397.94", "-2,718.28", "33.69"))


def test_ten_questions_are_each_answered_by_what_a_command_prints(reader):
    text = (DOCS / "questions.md").read_text()
    assert re.findall(r"^## (\d+)\. .*\?$", text, re.M) == [str(n) for n in range(1, 11)]
    sections = text.split("\n## ")[1:]
    assert len(sections) == 10 and all("```sh\n" in section and "```text\n" in section for section in sections)
    assert reader.follow(text) >= 20


def test_the_pages_that_the_questions_name_are_the_status_servers():
    named = re.findall(r"^Page: `(/[a-z]+)/", (DOCS / "questions.md").read_text(), re.M)
    text = (ROOT / "status/validator.py").read_text()
    assert len(named) >= 4 and all(f'"{page}/{{' in text for page in named)


def test_the_tour_can_be_taken_as_it_is_written(reader, recording_path):
    recording_path(RECORDING)
    text = (DOCS / "tour.md").read_text()
    assert RECORDING in text and reader.follow(text) >= 35


def test_the_tour_starts_with_what_make_demo_runs():
    (line,) = re.findall(r"^python (validator.py --fresh .*) --rounds 3$", (DOCS / "tour.md").read_text(), re.M)
    words, recipe = line.split(), (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n")[1]
    assert all(word in re.split(r"[ ,()]+", recipe) for word in words), (words, recipe)


def test_every_test_and_code_that_the_life_of_a_live_decision_names_exists():
    text = (DOCS / "live.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.endswith("| test |")]
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(p.read_text() for p in ROOT.glob("tests/test_*.py")), re.M))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.rsplit("|", 2)[1])
        assert named and set(named) <= defined, row
    live = text.split("## How a live round ends")[1]
    codes = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", live)) & set(Code)
    after = list(Code)[list(Code).index(Code.LIVE_NO_WINNER) : list(Code).index(Code.WEIGHTS_SET)]
    assert codes >= set(after) and len(rows) >= 24


def test_the_life_of_a_live_decision_has_the_constants_of_the_programs():
    text = (DOCS / "live.md").read_text()
    last = FIRST_ASK_LEAD_SECONDS + Web3Market.settle_seconds
    for said in (
        f"`t0 - {FIRST_ASK_LEAD_SECONDS} s`",
        f"`t0 - {FIRST_ASK_DEADLINE_SECONDS} s`",
        f"The deadline is {EXECUTION_SECONDS} seconds after",
        f"until {last} seconds before the end",
        f"{REPORT_SECONDS:g} seconds past the deadline nobody says",
        f"on {LIVE_MIN_DAYS} of the last {LIVE_WINDOW_DAYS} UTC days",
    ):
        assert said in text, said


def test_every_new_name_in_the_table_of_names_can_be_imported():
    """Who moves one writes its new home there, for those whose scripts import it."""
    rows = re.findall(r"^\| `\w+` \| (.+) \|$", (DOCS / "names.md").read_text().split("\n## Names\n")[1], re.M)
    homes = [part for row in rows for part in row.split("; ")]
    missing = []
    for home in homes:
        module, *names = re.findall(r"`([\w.]+)`", home)
        found = importlib.import_module(module)
        missing += [f"{module}.{name}" for name in names if not hasattr(found, name)]
    assert len(homes) > 50 and not missing, f"docs/names.md, not there: {missing}"
