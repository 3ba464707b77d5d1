"""Seconds of CPU that `--help` of each command takes, of this checkout and of an earlier commit.

    python tests/benchmarks/bench_help.py --before 5196dae~1

The least of three runs after a first one, which fills caches. A line of the record has both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.files import append_text
from tests.benchmarks.bench_check import processor

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "benchmarks" / "help.jsonl"
COMMANDS = (
    "pretrain/train", "converters/convert", "transfer/knn", "transfer/linear", "transfer/finetune", "transfer/svm",
    "transfer/detect", "transfer/segment", "transfer/scenes", "results/tables", "results/study",
)  # fmt: skip
RUNS = 4


def cpu_seconds(command: str, root: Path) -> float:
    """Return the CPU seconds of one process that prints the help of a command."""

    def used() -> float:
        times = resource.getrusage(resource.RUSAGE_CHILDREN)
        return times.ru_utime + times.ru_stime

    began = used()
    given = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, f"{command}.py", "--help"]
    subprocess.run(words, cwd=root, env=given, stdout=subprocess.DEVNULL, check=True)
    return used() - began


def measure(root: Path) -> dict[str, float]:
    """Return the CPU seconds of every command of a checkout."""
    return {command: round(min([cpu_seconds(command, root) for _ in range(RUNS)][1:]), 2) for command in COMMANDS}


def main() -> None:
    """Measure both and append a line to the record."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--before", default="5196dae~1", help="the earlier commit; default: all commands loaded torch first")
    options = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder, "earlier")
        subprocess.run(["git", "worktree", "add", "--detach", earlier, options.before], cwd=ROOT, check=True)
        try:
            before = measure(earlier)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], cwd=ROOT, check=True)
    row = {"before": before, "now": measure(ROOT), "cpu": processor()}
    append_text(RECORD, json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
