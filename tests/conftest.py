"""What several test files need: where recordings are, and how a test says that something is missing.

Recordings are public chain facts kept outside the repository: `ALM_RECORDINGS` names their folder, else it is
`../shared/data` beside the repository. What is missing skips a test on a developer's machine and fails with `CI=true`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

os.environ["NETUID"] = os.environ["ALM_RPC_URLS"] = ""  # a developer's .env leads no test to a real network or chain

RECORDINGS = Path(os.environ.get("ALM_RECORDINGS") or Path(__file__).resolve().parents[1] / "../shared/data")


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
