"""The README and `docs/` say only what is so: commands, options, files, sizes and tests exist. No file names a machine.

Run: `python -m pytest tests/test_readme.py`. `tests/test_docs.py` plays the commands of the guided pages.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from subnets import called
from test_house import ORDER, TREES, imports, root

import miner
import validator
from executor import __main__ as executor_main
from executor import door
from runtime import options as options_module
from spine import ground

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {f"docs/{path.name}": path.read_text() for path in (ROOT / "docs").glob("*.md")}
PAGES["docs/names.md"] = re.sub(r"^\| `[^|]*\|", "", PAGES["docs/names.md"], flags=re.M)  # not what was before
TEXT = "\n".join(PAGES.values())
MAX_WORDS, MAX_PICTURE_BYTES = 2_000, 200_000


def table(page: str, heading: str) -> list[list[str]]:
    """Rows of the table under a heading, without its head."""
    section = re.split(rf"^##? {heading}\n", PAGES[page], maxsplit=1, flags=re.M)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def commands() -> list[list[str]]:
    """Every command in a fenced block, and every one in running text that begins with python or make."""
    fenced = re.findall(r"^```(.*?)\n(.*?)^```$", TEXT, re.M | re.S)
    blocks = [body for kind, body in fenced if not kind]  # the others are played by `tests/test_docs.py`
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    for text in PAGES.values():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S).replace("\n", " ")
        lines += re.findall(r"(?<!`)`((?:python|make) [^`]+)`", prose)
    return [words for line in lines if (words := shlex.split(line))]


def help_of(*words: str) -> str:
    ended = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, (words, ended.stderr)
    return ended.stdout


def program_of(words: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """What is run, a file or a room, and the rest of the words: `python -m audit export` is (("-m", "audit"), ...)."""
    count = 2 if words[1] == "-m" else 1
    return tuple(words[1 : 1 + count]), words[1 + count :]


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, ...], str]:
    """What `--help` prints for every program that a page calls, and for its verbs that are called."""
    found = {}
    for program, rest in (program_of(words) for words in commands() if words[0] == "python"):
        if program[0].startswith("bench/"):  # they take no options
            found[program] = ""
        elif program not in found:
            found[program] = help_of(*program)
        verb = rest[0] if rest and not rest[0].startswith("-") else ""
        if verb and (*program, verb) not in found and re.search(rf"[{{,]{verb}[,}}]|^ +{verb} ", found[program], re.M):
            found[*program, verb] = help_of(*program, verb)
        if (
            verb
            and (below := re.match(r"[a-z]+", " ".join(rest[1:])))
            and f" {below[0]} " in found.get((*program, verb), "")
        ):
            found[*program, verb] += help_of(*program, verb, below[0])  # a verb's own verbs
    return found


def test_every_command_on_a_page_exists_with_every_option_it_is_given(helps):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert len(commands()) > 5
    for words in commands():
        assert words[0] in ("python", "make"), words
        if words[0] == "make":
            for word in words[1:]:
                name, assigned, _ = word.partition("=")
                known = f"$({name})" in (ROOT / "Makefile").read_text() if assigned else name in targets
                assert known, f"make has no {name}"
            continue
        program, rest = program_of(words)
        assert program[0] == "-m" or (ROOT / program[0]).is_file(), program
        known = helps[program] + helps.get((*program, *rest[:1]), "")
        for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), (words, option)


def test_every_option_that_a_page_names_exists(helps):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - {"--help"}
    known = " ".join(helps.values())
    assert named and not [option for option in named if not re.search(rf"{option}(?![\w-])", known)]


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser] + [inner for action in below for child in action.choices.values() for inner in parsers(child)]


def real_pool_commands() -> list[tuple[argparse.ArgumentParser, list[str]]]:
    """Each command with a real pool, what stands for something filled in, beside the parser that will read it."""
    stand = {"URL": "http://127.0.0.1:9", "0x1234": "0x" + "12" * 20, "0x5678": "0x" + "56" * 20, "N": "98"}
    found = []
    for words in (words for words in commands() if "--rpc" in words and words[0] == "python"):
        program, rest = called(words[1:])
        found.append((program.build_parser(), [stand.get(word, word) for word in rest]))
    return found


def test_every_command_with_a_real_pool_is_accepted_as_it_stands():
    assert len(real_pool_commands()) >= PAGES["docs/real-pool.md"].count("--rpc URL") >= 6
    for parser, rest in real_pool_commands():
        parser.parse_args(rest)  # else it exits, and says why


def test_what_the_validators_command_with_a_real_pool_names_is_enough(tmp_path, monkeypatch):
    """Its bot is the one that listens by default, and the key is what the bot would take."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "api.key").write_text("k" * door.MIN_API_KEY_CHARS)
    (tmp_path / "api.key").chmod(0o600)
    found = []
    for parser, rest in real_pool_commands():
        if "--executor-url" in rest:
            options = parser.parse_args(rest)
            options_module.resolve(options, {}, tmp_path / "no.env")
            found.append(options_module.real_market(options))
    assert len(found) == 2 and all(real.executor_url == f"http://127.0.0.1:{executor_main.PORT}" for real in found)
    assert all(real.executor_key.reveal() == "k" * door.MIN_API_KEY_CHARS for real in found)


@pytest.mark.parametrize("program", [validator, miner])
def test_help_explains_every_option_of_the_two_programs(program):
    for parser in parsers(program.build_parser()):
        assert parser.description or parser is not program.build_parser()
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help and len(action.help) > 5, (parser.prog, action.option_strings)
        for name in (name for action in parser._actions for name in action.option_strings):
            assert name in parser.format_help()


def test_the_table_of_files_and_rooms_is_the_order_of_the_house():
    listed = [name for row in table("README.md", "Reading order") for name in re.findall(r"`(\w+)(?:\.py|/)`", row[0])]
    assert listed[:-3] == list(ORDER[:-3]) and set(listed) == set(ORDER)


def packages_of(name: str) -> set[str]:
    """What a file or room imports that is neither ours nor Python's own."""
    found = {root(module) for each, tree in TREES.items() if root(each) == name for module, _ in imports(tree)}
    return found - {*ORDER, *sys.stdlib_module_names}


def test_what_the_table_says_of_packages_is_so():
    for names, _, _, claim in table("README.md", "Reading order"):
        (name,) = re.findall(r"`(\w+)(?:\.py|/)`", names)
        assert packages_of(name) == set(re.findall(r"[a-z_0-9]+", claim)), f"README, packages of {name}"


def test_every_test_that_the_table_of_differences_names_exists():
    rows = table("docs/differences.md", "Where this differs from the seeds")
    assert len(rows) >= 10
    for row in rows:
        assert len(row) == 4 and all(row), row
        named = re.findall(r"`(test_\w+\.py)`", row[3])
        assert named and all((ROOT / "tests" / name).is_file() for name in named), row


def test_every_package_in_the_table_of_dependencies_is_required_and_imported():
    required = (ROOT / "requirements.txt").read_text()
    everywhere = set().union(*map(packages_of, ORDER))
    for row in table("docs/dependencies.md", "Dependencies"):
        package = row[0].split()[0]
        assert re.search(rf"^{package}\b", required, re.M) and package in everywhere


def test_every_file_and_path_that_a_page_names_exists():
    written = {"my_miner.py", "stake-allow.txt"}  # by who follows the page
    missing = [
        (page, name)
        for page, text in PAGES.items()
        for name in re.findall(r"[`(]([\w./-]+\.(?:py|txt|md|toml|yml|env|png))[`)]", text)
        if name not in written and not (ROOT / name).is_file() and not (ROOT / "tests" / name).is_file()
    ]
    assert not missing


def test_the_readme_is_short_and_leads_to_every_page():
    count = len(README.split())
    assert count <= MAX_WORDS, f"{count} words: move what a newcomer can do without to docs/"
    assert not [page for page in PAGES if page != "README.md" and f"`{page}`" not in README]


def test_the_readme_shows_the_page_in_one_picture_as_wide_as_a_desktop():
    (name,) = re.findall(r"!\[[^\]]{20,}\]\((\S+)\)", README)
    picture = (ROOT / name).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) <= MAX_PICTURE_BYTES
    assert int.from_bytes(picture[16:20], "big") >= 1_200


def test_the_lines_that_the_reading_order_says_are_those_of_the_files():
    """Files to tens, rooms to hundreds; one such step beside the truth is near enough."""
    wrong = []
    for name, said, *_ in table("README.md", "Reading order"):
        path = ROOT / name.strip("`")
        files, step = (path.rglob("*.py"), 100) if path.is_dir() else ([path], 10)
        count = sum(len(file.read_text().splitlines()) for file in files)
        if abs(count - int(said)) > step:
            wrong.append(f"{name} has {count} lines: write {round(count / step) * step} instead of {said}")
    assert not wrong, "README, Reading order: " + "; ".join(wrong)


def test_each_mechanism_of_the_table_has_its_room():
    rows = table("README.md", "Mechanisms")
    assert rows and all((ROOT / row[0].strip("`")).is_dir() and row[2] == f"`{row[0].strip('`')}/`" for row in rows)


def test_reason_codes_targets_and_strategies_that_a_page_names_exist():
    for listed in re.findall(r"--strategy ([\w|]+)", TEXT):
        assert set(listed.split("|")) <= set(miner.STRATEGIES)
    assert set(ground.REFERENCE_STRATEGIES) <= set(miner.STRATEGIES)


def test_no_tracked_file_names_a_machine_its_folders_or_a_registry():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    places = r"(?<![\w.~$])/(?:work|root|home|tmp|mnt|Users)/"
    hosts = r"pypi\.org|pythonhosted|npmjs\.|proxy\.golang|index[-_]url|localhost:\d{4}.*simple"
    wrong = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1):
            if re.search(f"{places}|{hosts}", line):
                wrong.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not wrong


def test_each_module_can_be_imported_without_doing_anything(capsys):
    for name in TREES:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    assert capsys.readouterr() == ("", "")
