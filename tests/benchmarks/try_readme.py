"""Run README's two commands where there is nothing but Python and pip: the record of a line in docs/install.md.

    python tests/benchmarks/try_readme.py --pythons ~/.pyenv/versions/{3.12.1,3.13.0}/bin/python

For each Python: a clone of the last commit in another folder, an empty home, and a PATH with that Python, its pip and
the programs of the system, without other Pythons, uv and conda. The first command runs as it stands in README. The
second gets the names of some tests, since all of them take long. A clone is removed when it has been tried; logs stay.
It needs 10 GB of disk and some twenty minutes a Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common.files import append_text
from tests.benchmarks.bench_check import processor
from tests.benchmarks.try_install import outcomes

ROOT = Path(__file__).parents[2]
TESTS = tuple(f"tests/common/test_{name}.py" for name in ("cli", "files", "images", "knn", "labels", "transforms"))
TESTS += ("tests/pretrain/test_losses.py", "tests/converters/test_arch.py", "tests/test_environment.py")
HIDDEN = re.compile(r"(python|pip|pydoc|uv|conda|mamba|poetry)[\w.-]*")  # programs of other Pythons
CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT")  # some networks need their own


def commands() -> tuple[str, str]:
    """Return the two commands of README."""
    first, second = re.findall(r"^(bash \S+)  +#", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return first, second


def bare(python: Path, folder: Path) -> dict[str, str]:
    """Return the variables of a machine that has only this Python and pip."""
    tools, home = folder / "tools", folder / "home"
    for made in (tools, home):
        made.mkdir()
    for program in (program for place in ("/usr/bin", "/bin", "/usr/sbin") for program in Path(place).iterdir()):
        if not HIDDEN.fullmatch(program.name) and not (tools / program.name).is_symlink():
            (tools / program.name).symlink_to(program)
    return {
        "HOME": str(home),
        "PATH": f"{python.parent}:{tools}",
        **{name: os.environ[name] for name in CERTIFICATES if name in os.environ},
    }


def run(folder: Path, name: str, command: str, variables: dict[str, str]) -> tuple[int, float, str]:
    """Run a command in the clone; return its status, its seconds and its output, which a log has, too."""
    began = time.perf_counter()
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        words = ["bash", "-c", command]
        done = subprocess.run(
            words, cwd=folder / "suite", env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False
        )
    return done.returncode, time.perf_counter() - began, (folder / f"{name}.log").read_text(encoding="utf-8")


def attempt(python: Path, folder: Path) -> dict[str, Any]:
    """Run both commands in a clone below `folder`; return the row."""
    variables = bare(python, folder)
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "suite"], check=True)
    first, second = commands()
    status, seconds, printed = run(folder, "first", first, variables)
    row: dict[str, Any] = {"first": first, "status": status}
    if set_up := re.search(r"\[setup\] done in (\d+) s", printed):
        row |= {"setup_seconds": int(set_up[1]), "pretraining_seconds": seconds - int(set_up[1])}
    if knn := re.search(r"kNN on held-out images: ([\d.]+)% before, ([\d.]+)% after", printed):
        row |= {"knn_before": float(knn[1]), "knn_after": float(knn[2])}
    status, seconds, printed = run(folder, "second", f"{second} {' '.join(TESTS)}", variables)
    row |= {"second": second, "tests_status": status, "tests_seconds": seconds, "tests": outcomes(printed)}
    inside = folder / "suite" / ".venv" / "bin" / "python"
    version = (inside, "-c", "import platform; print(platform.python_version())")
    return {"python": subprocess.check_output(version, encoding="utf-8").strip(), **row}


def main() -> None:
    """Try each Python and append a line each to the record."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pythons", nargs="+", type=Path, required=True)
    p.add_argument("--logs", type=Path, default=Path("runs/readme"), help="folder of the clones and the logs")
    p.add_argument("--record", type=Path, default=Path("results/benchmarks/readme.jsonl"), help="JSON lines to add to")
    options = p.parse_args()
    for number, python in enumerate(options.pythons):
        folder = (options.logs / str(number)).absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            row = attempt(python.absolute(), folder)
        finally:
            for large in ("suite", "home", "tools"):
                shutil.rmtree(folder / large, ignore_errors=True)
        row |= {"cpu": processor(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
        append_text(options.record, json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
