"""What several test files need: where recordings are, and how a test says that something is missing.

Recordings are public chain facts kept outside the repository: `ALM_RECORDINGS` names their folder, else it is
`../shared/data` beside the repository. What is missing skips a test on a developer's machine and fails with `CI=true`.

`make test` spreads the tests over all cores; the tests of a file stay together, because they share what is costly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

os.environ["NETUID"] = os.environ["ALM_RPC_URLS"] = ""  # a developer's .env leads no test to a real network or chain

RECORDINGS = Path(os.environ.get("ALM_RECORDINGS") or Path(__file__).resolve().parents[1] / "../shared/data")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each file is a group of its own, which one process of `pytest-xdist --dist loadgroup` runs."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))


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
