"""The tables of docs/install.md: what was installed and tried."""

from __future__ import annotations

import json
from pathlib import Path

from results.grid import MISSING, Entry, Grid


def installs(path: Path) -> Grid:
    """Return what was installed and tried, from the newest records of tests/benchmarks/try_install.py."""
    header = ["Python", "extras", "seconds", "GB", "modules", "quick tests", "tests of frameworks"]
    latest: dict[tuple[str, str], list[Entry | str]] = {}
    loads = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        tests = [_outcomes(row.get(name, {})) for name in ("quick", "frameworks")]
        numbers = [f"{row['seconds']:.0f}", f"{row['bytes'] / 1e9:.1f}", str(row["imported"])]
        latest[row["python"], row["extras"]] = [row["python"], row["extras"], *numbers, *tests]
        loads.append(row["load"])
    grid = Grid("install", "Installation", header, [latest[key] for key in sorted(latest)])
    grid.notes = [
        "A new environment, torch with CUDA; under a minute where uv had the packages in its cache. Measured on two "
        f"cores with other work, a load of {min(loads):.0f} to {max(loads):.0f}: idle ones are faster. Each was also "
        "used to pre-train 10 steps, measure kNN and convert to timm. Modules: of the project, imported."
    ]
    return grid


def readme_runs(path: Path) -> Grid:
    """Return how README's two commands ended, from the newest records of tests/benchmarks/try_readme.py."""
    header = ["Python", "exit statuses", "set-up, s", "pre-training, s", "kNN before", "kNN after", "tests", "tests, s"]
    latest: dict[str, list[Entry | str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        seconds = [f"{row[name]:.0f}" for name in ("setup_seconds", "pretraining_seconds", "tests_seconds")]
        scores = [f"{row[name]:.1f} %" for name in ("knn_before", "knn_after")]
        ended = f"{row['status']}, {row['tests_status']}"
        latest[row["python"]] = [row["python"], ended, *seconds[:2], *scores, _outcomes(row["tests"]), seconds[2]]
    grid = Grid("readme", "README's two commands", header, [latest[key] for key in sorted(latest)])
    grid.notes = [
        "A fresh clone, and nothing on the path but this Python with pip and the system's programs. The second command "
        "ran a part of the tests. Measured on busy cores; the pre-training had one of them."
    ]
    return grid


def _outcomes(tests: dict[str, int]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in tests.items() if number) or MISSING
