"""Brings what the report shows of run folders into the repository.

python -m results.collect runs/desk_r0_s0 ...              course of a pre-training -> results/curves/NAME.jsonl
python -m results.collect runs/transfer/NAME/TASK/seed0 …  its vis/*.png -> results/pictures/NAME_TASK_*.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

RESULTS = Path(__file__).resolve().parent


def collect(run: Path, results: Path = RESULTS) -> list[Path]:
    """Copies what a run folder has for the report; returns the copies.

    Raises:
        ValueError: the folder holds neither metrics of a pre-training nor pictures.
    """
    pictures, metrics = sorted((run / "vis").glob("*.png")), run / "metrics.jsonl"
    if pictures:
        label = "_".join(run.resolve().parts[-3:-1])
        wanted = {results / "pictures" / f"{label}_{path.stem}.png": path for path in pictures}
    elif metrics.is_file():
        wanted = {results / "curves" / f"{run.resolve().name}.jsonl": metrics}
    else:
        raise ValueError(f"{run}: has neither vis/*.png nor metrics.jsonl; give a run folder")
    for target, source in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return list(wanted)


def main(arguments: list[str] | None = None) -> int:
    """Copies; 0, or 2 where a folder has nothing to copy."""
    parser = argparse.ArgumentParser(prog="results/collect.py", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    try:
        for run in parser.parse_args(arguments).runs:
            for path in collect(run):
                print(path)
    except ValueError as error:
        print(f"collect: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
