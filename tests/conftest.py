"""What several test files need: where recordings are, and how a test says that something is missing.

Recordings are public chain facts kept outside the repository: `ALM_RECORDINGS` names their folder, else it is
`../shared/data` beside the repository. What is missing skips a test on a developer's machine and fails with `CI=true`.

`make test` spreads the tests over all cores; the tests of a file stay together, because they share what is costly.
With `--one-of-each` only the first test of each costly kind runs: on a second Python the others say nothing new.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from runtime import hidden

os.environ["NETUID"] = os.environ["ALM_RPC_URLS"] = ""  # a developer's .env leads no test to a real network or chain

RECORDINGS = Path(os.environ.get("ALM_RECORDINGS") or Path(__file__).resolve().parents[1] / "../shared/data")


left_out: list[str] = []  # node ids; those of all processes in the one that reports


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-of-each", action="store_true", help="of the tests marked costly the first of each kind only"
    )


LONGEST = ("test_live_faults", "test_live", "test_docs", "test_evidence", "test_stake", "test_validator", "test_resume")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Costly tests may be left out; the longest files come first, so that no process waits for another at the end."""
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    seen = set()
    for item in items[:]:
        kind = costly(item) if config.getoption("--one-of-each") else None
        if kind in seen:
            items.remove(item)
            left_out.append(item.nodeid)
        elif kind:
            seen.add(kind)


def costly(item: pytest.Item) -> str | None:
    """Of which costly kind a test is: by a mark of its own, or by its file's mark, of those that use one fixture."""
    for mark in item.iter_markers("costly"):
        if "fixture" not in mark.kwargs or mark.kwargs["fixture"] in item.fixturenames:
            return mark.args[0]
    return None


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = left_out


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    left_out[:] = getattr(node, "workeroutput", {}).get("left_out", left_out)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} costly tests left out, one of each kind run (--one-of-each)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a test printed goes from one process to another as UTF-8, which has no place for half a surrogate pair."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Call it with the reason: skips the test, or fails it with CI=true, where nothing is skipped silently."""

    def missing(reason: str) -> NoReturn:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI=true: nothing is skipped)")
        pytest.skip(reason)

    return missing


@pytest.fixture(scope="session")
def recording_path(missing: Callable[[str], NoReturn]) -> Callable[[str], Path]:
    """The path of a recording by its name, as `recording.read_recording` takes it."""

    def recording_path(name: str) -> Path:
        if not (RECORDINGS / f"{name}.json").exists():
            missing(f"recording {name} is not in {RECORDINGS}; set ALM_RECORDINGS to the folder that has it")
        return RECORDINGS / name

    return recording_path


@pytest.fixture(autouse=True)
def no_secret_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test configured as a secret is an ordinary word in the next."""
    monkeypatch.setattr(hidden, "_known", set())
    monkeypatch.setattr(hidden, "_forms", [])
