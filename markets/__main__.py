"""The commands of recordings: replay one to the last digit, and complete one.

    python -m markets replay PATH                  exit code 0 when every digit agrees, 1 when one does not
    python -m markets import PATH --out FOLDER     find the call behind each swap that lacks it, and check every digit

Exit code 2 when the recording cannot be read. Read next: `recordings.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from liquidity.events import ReplayError
from markets.base import MarketError
from markets.recordings import CALLS, RecordingError, complete, read_recording, replay, write_recording
from runtime.options import file_path
from runtime.process import Parser, clear_progress, progress
from sim import PoolError


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m markets", description="Recorded markets.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    helps = {
        "replay": "exit 0 when every digit of the recording agrees, else 1 with the first that does not",
        "import": "find the call behind each swap that lacks it, and check every digit",
    }
    for name, text in helps.items():
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("path", type=file_path, help="path of a recording, without its endings")
    verb.add_argument(
        "-o", "--out", required=True, type=file_path, metavar="FOLDER", help="where the completed one goes"
    )
    return parser


def replay_command(options: argparse.Namespace) -> int:
    """Replay a recording and compare how it ends."""
    recording = read_recording(options.path)
    try:
        pool = replay(recording, progress)
    except (ReplayError, PoolError) as error:
        clear_progress()
        print(f"{recording.name}: {error}", file=sys.stderr)
        return 1
    wrong = {name: value for name, value in recording.final.items() if getattr(pool, name) != value}
    for name, value in wrong.items():
        print(f"{recording.name}: final {name} is {getattr(pool, name)}, the recording says {value}", file=sys.stderr)
    if wrong:
        return 1
    kinds = Counter(event.kind for event in recording.events)
    unknown = sum(event.kind == "swap" and event.args[0] == "?" for event in recording.events)
    swaps = f"{kinds['swap']} swaps ({unknown} of unknown call, taken over)"
    print(f"{recording.name}: {swaps}, {kinds['mint']} mints, {kinds['burn']} burns")
    final = ", ".join(f"{name} {value}" for name, value in recording.final.items())
    print(f"every price, tick, liquidity and amount equals the recorded one; final state: {final}")
    return 0


def import_command(options: argparse.Namespace) -> int:
    """Complete a recording; 1: it contradicts itself."""
    events, recording = [], read_recording(options.path)
    out = Path(options.out)
    source, target = Path(options.path).parent / recording.name, out / recording.name
    if not out.is_dir():
        raise RecordingError(f"--out {options.out}: no such folder; create it or choose another")
    if source.parent.resolve() == out.resolve():
        raise RecordingError(f"--out {options.out}: the recording itself is there; choose another folder")
    try:
        for event in complete(recording):
            events.append(event)
            progress(len(events), len(recording.events), "events")
        write_recording(target, Path(f"{source}.json").read_bytes(), events)
    except MarketError as error:
        clear_progress()
        print(f"{recording.name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{target}: {error.strerror}; choose another --out", file=sys.stderr)
        return 2
    calls = Counter(event.args[0] for event in events if event.kind == "swap")
    found = sum(event.kind == "swap" and not event.args[0] for event in recording.events)
    print(f"{recording.name}: {calls.total()} swaps, {len(events) - calls.total()} other events, every digit agrees")
    print(f"calls: {', '.join(f'{how} {calls[how]}' for how in CALLS)}; {found} of them found now")
    print(f"written to {target}.json and {target}.events.csv.xz")
    return 0


def main(argv: list[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    try:
        return (replay_command if options.verb == "replay" else import_command)(options)
    except RecordingError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
