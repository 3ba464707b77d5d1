"""Brings what the report shows of run folders into the repository.

python -m results.collect 'runs/desk_*'                       course of a pre-training -> results/curves/NAME.jsonl
python -m results.collect 'runs/transfer/*/fashion-*/seed0'   first of its pictures -> results/pictures/NAME_TASK.jpg
"""

from __future__ import annotations

import argparse
import glob
import shutil
import sys
from pathlib import Path

import cv2

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

RESULTS = Path(__file__).resolve().parent
WIDTH = 960  # pixels of a picture, at most


def collect(run: Path, results: Path = RESULTS) -> Path:
    """Copies what a run folder has for the report; returns the copy.

    Args:
        run: of a pre-training, or OUT/CHECKPOINT-HASH/TASK/seedN of a benchmark.
        results: folder that holds curves/ and pictures/.

    Raises:
        ValueError: the folder holds neither a finished pre-training nor pictures.
    """
    pictures, metrics = sorted((run / "vis").glob("*.png")), run / "metrics.jsonl"
    if pictures:
        *_, checkpoint, task, _seed = run.resolve().parts
        target = results / "pictures" / f"{checkpoint.rpartition('-')[0] or checkpoint}_{task}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        _shrink(pictures[0], target)
    elif metrics.is_file() and (run / "summary.json").is_file():
        target = results / "curves" / f"{run.resolve().name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(metrics, target)
    else:
        raise ValueError(f"{run}: neither a finished pre-training nor a run with pictures, vis/*.png")
    return target


def _shrink(source: Path, target: Path) -> None:
    """Writes a picture as JPEG, `WIDTH` wide at most."""
    picture = cv2.imread(str(source))
    if picture is None:
        raise ValueError(f"{source}: no picture")
    height, width = picture.shape[:2]
    scale = min(1.0, WIDTH / width)
    small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(target), small, [cv2.IMWRITE_JPEG_QUALITY, 85])


def main(arguments: list[str] | None = None) -> int:
    """Copies; 2 where a folder that is named has nothing to copy. Those that a pattern finds are passed over then."""
    parser = argparse.ArgumentParser(prog="results/collect.py", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", help="run folders, or patterns of them in quotes")
    status = 0
    for name in parser.parse_args(arguments).runs:
        pattern = glob.has_magic(name)
        # The newest last: of two runs that are named alike it is the one to keep.
        found = sorted(map(Path, glob.glob(name)), key=lambda run: run.stat().st_mtime) if pattern else [Path(name)]
        if not found:
            print(f"{name}: matches no folder here")
        for run in found:
            try:
                print(collect(run))
            except ValueError as error:
                print(f"passed over: {error}" if pattern else f"collect: error: {error}", file=sys.stderr)
                status = status if pattern else 2
    return status


if __name__ == "__main__":
    sys.exit(main())
