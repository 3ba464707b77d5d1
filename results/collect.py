"""Copy what the report shows of a run into results/.

python -m results.collect --run RUN --name NAME               training curve of a pre-training -> curves/NAME.jsonl
python -m results.collect --run RUN --name NAME --task TASK   first picture of a benchmark -> pictures/NAME_TASK.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
from jsonargparse import auto_cli

from common.cli import run_cli
from common.files import write_atomically

RESULTS = Path(__file__).resolve().parent
WIDTH = 960  # pixels, of a copied picture at most


def collect(run: Path, name: str, task: str | None = None, results: Path = RESULTS) -> Path:
    """Copy the curve of a finished pre-training or, with `task`, a benchmark's first picture; return the copy.

    Raises:
        ValueError: the run has not finished, or has no readable pictures.
    """
    if task is None:
        target, curve = results / "curves" / f"{name}.jsonl", run / "metrics.jsonl"
        if not (curve.is_file() and (run / "summary.json").is_file()):
            raise ValueError(f"{run}: expected a finished pre-training with metrics.jsonl and summary.json")
        content = curve.read_bytes()
    else:
        target = results / "pictures" / f"{name}_{task}.jpg"
        source = min((run / "vis").glob("*.png"), default=None)
        picture = None if source is None else cv2.imread(str(source))
        if picture is None:
            raise ValueError(f"{run}: expected readable pictures vis/*.png")
        scale = min(1.0, WIDTH / picture.shape[1])
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    write_atomically(target, lambda part: part.write_bytes(content))
    return target


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 2 where there is nothing to copy."""
    return run_cli("collect", lambda: print(auto_cli(collect, as_positional=False, args=arguments)), resumable=False)


if __name__ == "__main__":
    sys.exit(main())
