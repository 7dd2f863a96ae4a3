"""The main job again and again in one process: does anything grow? Not a test that pytest collects: it takes as long as one asks for.

    python tests/soak.py --minutes 30                              # train.py with its defaults -> results/soak.json
    python tests/soak.py --minutes 0 -- --backbone DIR --steps 2   # two rounds; what follows -- is handed to train.py

After each round: resident memory and threads of the process, its open files, the room left on the disk. Rounds differ in
nothing, so that whatever grows from the third on (allocators and caches fill in the first two) is a leak. The verdict: the
slope of a line through the rounds, times their number, is less than ALLOWED.
"""
import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train
from files import command, write_json
from record import about_run

FIRST = 2  # rounds that are not judged
ALLOWED = {"resident_mb": 100, "open_files": 0.5, "threads": 0.5, "used_mb": 20}  # growth over all judged rounds


def state(folder):
    """What a process holds now: MB, counts, and MB of the disk that other rounds could not use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"resident_mb": round(pages * resource.getpagesize() / 2**20, 1), "open_files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")), "used_mb": round(size(folder) / 2**20, 3),
            "free_mb": shutil.disk_usage(folder).free >> 20}


def size(folder):
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def growth(values):
    """How much a line through the values rises from the first to the last.

    >>> growth([1.0, 2.0, 3.0]), growth([5.0, 5.0, 5.0]), growth([5.0])
    (2.0, 0.0, 0.0)
    """
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1)


def verdict(rounds):
    """{what: growth over the judged rounds}, and what of it is more than ALLOWED."""
    judged = rounds[FIRST:]
    found = {name: round(growth([r[name] for r in judged]), 3) for name in ALLOWED}
    return found, [name for name, value in found.items() if value > ALLOWED[name]]


def soak(flags, minutes, folder):
    """Rounds of train.main(flags) until the time is over, two at least -> their states, and each round's training loss."""
    start, rounds = time.monotonic(), []
    while len(rounds) < 2 or time.monotonic() - start < 60 * minutes:
        with contextlib.redirect_stdout(io.StringIO()):
            train.main([*flags, "--out", str(folder)])
        curve = json.loads((folder / "result.json").read_text())["curve"]
        rounds.append({"minutes": round((time.monotonic() - start) / 60, 2), **state(folder), "loss": curve[-1]["loss"]})
        print(f"round {len(rounds)}:", ", ".join(f"{name} {value}" for name, value in rounds[-1].items()), flush=True)
    return rounds


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    own, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", default=str(ROOT / "results" / "soak.json"))
    args = parser.parse_args(own)
    with tempfile.TemporaryDirectory() as folder:
        rounds = soak(flags, args.minutes, Path(folder) / "run")
    found, grown = verdict(rounds)
    same = len({r["loss"] for r in rounds}) == 1
    write_json(args.out, {"rounds": rounds, "growth": found, "allowed": ALLOWED, "grown": grown, "same loss in every round": same,
                          **about_run("tests/soak.py", argv)})
    print(f"{len(rounds)} rounds; growth after the first {FIRST}: {found}; "
          + (f"too much: {', '.join(grown)}" if grown else "flat") + ("" if same else "; the rounds' losses differ"))
    return not grown and same


if __name__ == "__main__":
    command(lambda: sys.exit(not main()))
