"""The figures that the README quotes are what the benchmarks print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_quotes_how_far_drift_exceeds_skill_as_the_benchmark_prints_it():
    printed = subprocess.run(
        [sys.executable, "bench/drift.py"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert printed.startswith("MODEL")
    measured = next(line.split()[-1] for line in printed.splitlines() if line.startswith("PoL"))
    quoted = re.search(r"median drift of a round is (\d+) times", (ROOT / "README.md").read_text())
    assert quoted and quoted[1] == measured
