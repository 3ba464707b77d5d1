"""Small or read-only file systems for one command, in a mount namespace of its own. They need root on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
mount -t tmpfs -o "size=$1" none "$2" || exit 99
[ -z "$3" ] || mount -o "remount,$3" "$2"
folder=$2; shift 3
"$@"; status=$?
(cd "$folder" && find . -type f -printf 'left: %P\\n')
exit $status
"""


def small(folder: Path | str, size: str, options: str = "") -> list[str]:
    """Return the beginning of a command line whose command sees an empty file system of that size in a folder.

    Afterwards a line "left: FILE" on stdout names each file that is left in it.
    """
    if not _allowed():
        pytest.skip("mounting a file system is not allowed here")
    return ["unshare", "--mount", "bash", "-c", SCRIPT, "bash", size, str(folder), options]


@cache
def _allowed() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True, check=False).returncode


def run_small(
    command: Sequence[str], folder: Path, size: str, options: str = ""
) -> tuple[int, str, set[str], subprocess.CompletedProcess[str]]:
    """Run a Python command where a folder is a small file system.

    Returns:
        Its exit status, the line of its error, the files left in the folder, and all else.
    """
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*small(folder, size, options), sys.executable, *command], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line.rpartition("\r")[2] for line in done.stderr.splitlines()]
    errors = [line for line in lines if ": error: " in line]
    assert len(errors) == 1, done.stderr
    left = {line.removeprefix("left: ") for line in done.stdout.splitlines() if line.startswith("left: ")}
    return done.returncode, errors[0], left, done
