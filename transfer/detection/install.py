"""Add detectron2 to this environment: `python -m transfer.detection.install`, or `unimoco-install-detectron2`.

Its wheel is tagged for Python 3.10 and pip refuses it elsewhere, though its Python part runs on 3.11 to 3.13 and its
compiled part is not used. What it needs comes with the extra `detectron2`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements-detectron2.txt"


def command() -> list[str]:
    """Return the command of pip, or of uv where the environment has no pip.

    Raises:
        ValueError: there is neither.
    """
    if importlib.util.find_spec("pip"):
        tool = [sys.executable, "-m", "pip", "install"]
    elif uv := shutil.which("uv"):
        tool = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise ValueError(f"{sys.executable} has no pip, and there is no uv: python -m ensurepip brings pip")
    where = ["--target", sysconfig.get_paths()["purelib"], "--upgrade"]
    # A wheel of Python 3.10, by its hash, without what it asks for.
    return [*tool, "--quiet", "--no-deps", *where, "--python-version", "3.10", "--only-binary", ":all:",
            "--require-hashes", "-r", str(REQUIREMENTS)]  # fmt: skip


def main() -> int:
    """Install detectron2; return the status of pip or uv, or 2 where there is neither."""
    try:
        return subprocess.run(command(), check=False).returncode
    except ValueError as error:
        print(f"unimoco-install-detectron2: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
