"""Run the tests of a file that must stay in a process of its own; the page of faults counts them nevertheless."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability import INSIDE

ROOT = Path(__file__).parents[1]


def run_inside(file: Path, request: pytest.FixtureRequest, folder: Path) -> None:
    """Run the tests of a file, and fail where one of them does.

    Args:
        file: of the tests.
        request: of the test that runs them; it carries their faults and outcomes.
        folder: for a file of these.
    """
    outcomes = folder / "outcomes.json"
    profile = request.config.getoption("--hypothesis-profile", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider", f"--reliability={outcomes}",
         *([f"--hypothesis-profile={profile}"] if profile else []),
         *(["--nightly"] if request.config.getoption("--nightly") else [])],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    if outcomes.exists():
        request.node.user_properties.append((INSIDE, json.loads(outcomes.read_text(encoding="utf-8"))))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
