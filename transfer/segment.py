"""Semantic segmentation: from a checkpoint to mIoU.

python transfer/segment.py --ckpt runs/fashion/last.pth --task fashion-fcn           # minutes on two CPU cores
python transfer/segment.py --ckpt X --task voc12aug-fcn-20k --data-root /data --seeds 0 1 2 3 4
torchrun --nproc-per-node 4 transfer/segment.py --ckpt X --task cityscapes-fcn-40k --data-root /data
WORLD_SIZE=4 python transfer/segment.py --ckpt X --task cityscapes-fcn-40k --device cuda --dry-run    # needs no GPU
python transfer/segment.py --ckpt X --images DIR --masks DIR --classes FILE          your own images and masks
python transfer/segment.py --check
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from jsonargparse import Namespace

from common.cli import CommandParser
from common.extras import require
from results.record import Record
from transfer.openmmlab.quiet import quiet
from transfer.options import add_openmmlab_options, require_checkpoint, run_benchmark, training_parser
from transfer.own_data.options import add_segmentation, names_segmentation
from transfer.tasks import SEGMENTATION


def parser() -> CommandParser:
    """Return the parser of the options."""
    p = training_parser("transfer/segment.py", __doc__, SEGMENTATION, "data")
    add_segmentation(p)
    add_openmmlab_options(p)
    return p


def check_options(options: Namespace) -> None:
    """Raise a ValueError for options that contradict each other, or name what does not exist."""
    mine = names_segmentation(options)
    if mine and options.task:
        raise ValueError(f"--task {options.task}: your own data makes its own; leave one of them out")
    if not mine:
        SEGMENTATION.find(options.task)
    if options.resume and options.force:
        raise ValueError("--resume continues a run, --force replaces it: leave one of them out")
    require_checkpoint(options.ckpt)


def run(arguments: list[str] | None = None) -> list[Record]:
    """Do what the command line says and return the records."""
    options = parser().parse(arguments)
    if not options.check:
        check_options(options)
    if options.dry_run and os.environ.get("RANK", "0") != "0":
        return []
    require("mmseg")
    with quiet(prints=False):  # here: --help does without torch, and OpenMMLab's packages print when they are imported
        from transfer.segmentation import check, command

    if not options.check:
        return command.segment(options)
    command.register()
    print(check.report())
    return []


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 for a user's mistake."""
    return run_benchmark("segment", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
