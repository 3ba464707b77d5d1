"""Install the project from nothing for each Python and extra, and try it: the record of a table in docs/install.md.

    python tests/benchmarks/try_install.py --pythons python3.11 python3.12 python3.13
    python tests/benchmarks/try_install.py --pythons python3.13 --extras all,dev

For each pair: seconds and size of setup.sh, every module imported, 10 steps of pre-training, kNN and a conversion to
timm. With dev also the quick tests, and a task of each framework that is installed. An environment is removed when it
has been tried; logs stay. It needs some 10 GB of disk and several minutes an environment.
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

ROOT = Path(__file__).parents[2]
EXTRAS = ("core", "detectron2", "mmseg", "mmdet", "study", "all,dev")
QUICK = ("tests/common", "tests/converters", "tests/pretrain/test_losses.py", "tests/pretrain/test_unimoco.py")
QUICK += ("tests/results/test_stats.py", "tests/results/test_record.py", "tests/test_environment.py")
FRAMEWORKS = (  # runs of a task of detectron2 and of mmdet, of one of mmseg, and what stands in for mmcv's operations
    "tests/transfer/test_detect.py::test_inside_an_engine[detectron2_runs]",
    "tests/transfer/test_detect.py::test_inside_an_engine[mmdet_runs]",
    "tests/transfer/test_segment.py::test_a_killed_run_resumes_bit_identically",
    "tests/common/test_openmmlab.py",
)
# Imports the modules of mmdet's engine (argument: mmdet) or all others, since detectron2 must be in another process.
# Those of an extra that is not installed are counted apart.
IMPORTS = """
import collections, importlib, pkgutil, sys
from common.extras import EXTRAS
count = collections.Counter()
for room in ("common", "pretrain", "converters", "results", "transfer"):
    for module in pkgutil.walk_packages([room], f"{room}.", lambda _: None):
        if (sys.argv[1] == "mmdet") != ("mmdet_engine" in module.name):
            continue
        try:
            importlib.import_module(module.name)
            count["imported"] += 1
        except ModuleNotFoundError as error:
            assert (error.name or "").partition(".")[0] in {*EXTRAS, "fvcore", "iopath", "mmengine"}, error
            count["of other extras"] += 1
        except ValueError as error:  # of common.extras.require
            assert "is not installed" in str(error), error
            count["of other extras"] += 1
print(count["imported"], count["of other extras"])
"""


def run(folder: Path, name: str, *command: str, **variables: str) -> str:
    """Run a command in the checkout, with its output in a log; return what it printed."""
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            check=False,
        )
        log.write(done.stdout)
    if done.returncode and not (done.returncode == 1 and "pytest" in command):  # failed tests are counted
        raise SystemExit(f"{name}: status {done.returncode}, see {log.name}")
    return done.stdout


def smoke(folder: Path, python: str) -> None:
    """Pre-train 10 steps, measure kNN, convert to timm; any failure ends the script."""
    checkpoint = str(folder / folder.name / "last.pth")
    recipe = ("--recipe", "fashion", "--data.train", "fashion:test", "--runs", str(folder), "--name", folder.name)
    short = ("--optim.epochs", "0.25", "--optim.warmup", "0", "--monitor.knn_every", "0", "--data.workers", "0")
    images = ("--data", "fashion:test", "--test", "fashion:test", "--cache", "null")
    out = ("--records", str(folder / "records"), "--out", str(folder / "out"))
    run(folder, "pretrain", python, "-m", "pretrain.train", *recipe, *short)
    run(folder, "knn", python, "-m", "transfer.knn", "--ckpt", checkpoint, *images, *out)
    run(folder, "convert", python, "-m", "converters.convert", checkpoint, "--to", "timm")


def outcomes(printed: str) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped, from pytest's last line."""
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", printed.splitlines()[-1])}
    return {kind: counts.get(kind, 0) for kind in ("passed", "failed", "skipped", "error")}


def attempt(python: str, extras: str, folder: Path) -> dict[str, Any]:
    """Install and try one environment below `folder`; return its row."""
    place = folder / "environment"
    variables = {"UNIMOCO_ENV": str(place), "UNIMOCO_EXTRAS": extras, "PYTHON": python}
    began = time.perf_counter()
    run(folder, "setup", "bash", "setup.sh", **variables)
    seconds = time.perf_counter() - began
    size = int(subprocess.run(["du", "-sk", place], capture_output=True, check=True).stdout.split()[0]) * 1024
    inside = str(place / "bin" / "python")
    version = run(folder, "version", inside, "-c", "import platform; print(platform.python_version())").strip()
    counts = [run(folder, f"imports-{part}", inside, "-c", IMPORTS, part) for part in ("mmdet", "others")]
    # The last line: packages print, too.
    pairs = [[int(number) for number in printed.splitlines()[-1].split()] for printed in counts]
    imported, others = (sum(column) for column in zip(*pairs, strict=True))
    row = {"python": version, "extras": extras, "seconds": seconds, "bytes": size, "imported": imported,
           "of_other_extras": others}  # fmt: skip
    smoke(folder, inside)
    if "dev" in extras:
        pytest = ("-m", "pytest", "-n", "1", "--dist", "loadfile", "-p", "no:cacheprovider")
        path = {"UNIMOCO_ENV": str(place), "PATH": f"{place}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        row["quick"] = outcomes(run(folder, "quick", inside, *pytest, *QUICK, **path))
        row["frameworks"] = outcomes(run(folder, "frameworks", inside, *pytest, *FRAMEWORKS, **path))
    return row


def main() -> None:
    """Try every pair and append a line each to the record."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pythons", nargs="+", default=["python3.11", "python3.12", "python3.13"])
    p.add_argument("--extras", nargs="+", default=list(EXTRAS))
    p.add_argument("--logs", type=Path, default=Path("runs/install"), help="folder of the logs")
    p.add_argument("--record", type=Path, default=Path("results/benchmarks/install.jsonl"), help="JSON lines to add to")
    options = p.parse_args()
    for number, python in enumerate(options.pythons):
        for extras in options.extras:
            folder = (options.logs / f"{number}-{extras.replace(',', '-')}").absolute()
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                row = attempt(python, extras, folder)
            finally:
                shutil.rmtree(folder / "environment", ignore_errors=True)
            row |= {"cpu": processor(), "load": os.getloadavg()[0], "uv": bool(shutil.which("uv"))}
            append_text(options.record, json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
