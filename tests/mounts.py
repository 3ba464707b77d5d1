"""Small or read-only file systems for one command, in a mount namespace of its own. They need root on Linux."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

SCRIPT = 'mount -t tmpfs -o "size=$1" none "$2" && shift 2 && exec "$@"'


def small(folder: Path | str, size: str) -> list[str]:
    """Return the beginning of a command line whose command sees an empty file system of that size in a folder."""
    if not _allowed():
        pytest.skip("mounting a file system is not allowed here")
    return ["unshare", "--mount", "bash", "-c", SCRIPT, "bash", size, str(folder)]


@cache
def _allowed() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )
