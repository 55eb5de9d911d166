"""Peak memory of the validator process, in rounds on the model and on a recording; its miners are other processes.

python bench/memory.py [RECORDING]       about half a minute; `--rounds 1` for a quick look
                                         default: the Arbitrum recording in ../shared/data, if it is there
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORDING = (
    Path(os.environ.get("ALM_RECORDINGS") or ROOT / "../shared/data") / "arbitrum_weth_usdt_500_2025-06-27_07-01"
)
TARGET_MB = 150


def peak_mb(*arguments: str) -> float:
    """Run the validator to its end; its own peak resident memory in MB (10**6 bytes), as the system accounts it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "validator.py"), "--dir", folder, *arguments]
        silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        _, status, usage = os.wait4(os.posix_spawn(sys.executable, command, os.environ, file_actions=silent), 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of the validator process.")
    parser.add_argument("recording", nargs="?", default=RECORDING)
    parser.add_argument("--rounds", default="12", help="of each job; 12")
    options = parser.parse_args()
    recording, rounds = options.recording, ("--rounds", options.rounds)
    print(f"peak memory of the validator process, {options.rounds} rounds of two jobs; target {TARGET_MB} MB")
    print(f"model:     {peak_mb(*rounds):.0f} MB")
    if Path(f"{recording}.json").exists():
        print(f"recording: {peak_mb(*rounds, '--events', str(recording)):.0f} MB")
    else:
        print(f"recording: {recording} is missing; name one, or set ALM_RECORDINGS")


if __name__ == "__main__":
    main()
