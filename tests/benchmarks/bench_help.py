"""Seconds of CPU that `--help` of each command takes: a table in docs/install.md.

    python tests/benchmarks/bench_help.py

The least of three runs after a first one, which fills caches.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
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


def cpu_seconds(command: str) -> float:
    """Return the CPU seconds of one process that prints the help of a command."""

    def used() -> float:
        times = resource.getrusage(resource.RUSAGE_CHILDREN)
        return times.ru_utime + times.ru_stime

    began, given = used(), os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, f"{command}.py", "--help"]
    subprocess.run(words, cwd=ROOT, env=given, stdout=subprocess.DEVNULL, check=True)
    return used() - began


def main() -> None:
    """Measure every command and append a line to the record."""
    seconds = {name: round(min([cpu_seconds(name) for _ in range(RUNS)][1:]), 2) for name in COMMANDS}
    row = {"seconds": seconds, "cpu": processor()}
    append_text(RECORD, json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
