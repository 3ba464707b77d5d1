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
from common.distributed import on_first_rank, rank
from common.extras import require
from common.run_folder import exclusive
from common.seen import find_seen
from results.record import Record
from transfer.benchmark import Measurement, measure, run_benchmark, summary
from transfer.openmmlab.quiet import quiet
from transfer.options import add_openmmlab_options, training_parser
from transfer.own_data import segmentation as own
from transfer.tasks import SEGMENTATION

MOST_ROWS = 30  # of the table on the screen


def parser() -> CommandParser:
    """Return the parser of the options."""
    p = training_parser("transfer/segment.py", __doc__, SEGMENTATION, "data")
    own.add_options(p)
    add_openmmlab_options(p)
    return p


def own_task(options: Namespace) -> tuple[str, list[Path]]:
    """Return the task that is made for the user's images and the test images, after printing what was found."""
    data = on_first_rank(lambda: own.load(options))
    path, said = on_first_rank(lambda: own.write_task(data, options.epochs))
    if rank() == 0:
        print("\n".join(said), file=sys.stderr if options.dry_run else sys.stdout, flush=True)
    return str(path), [data.images / image for image, _ in data.val]


def segment(options: Namespace) -> list[Record]:
    """Measure every seed that is not on record, print the result and return the records."""
    mine = own.names_data(options)
    if mine and options.task:
        raise ValueError(f"--task {options.task}: your own data makes its own; leave one of them out")
    if not mine:
        SEGMENTATION.find(options.task)
    if options.resume and options.force:
        raise ValueError("--resume continues a run, --force replaces it: leave one of them out")
    if options.dry_run and os.environ.get("RANK", "0") != "0":
        return []
    with quiet(prints=False):  # here: --help must not wait for mmseg
        from transfer.openmmlab.devices import choose_devices
        from transfer.segmentation.run import SegmentationRun, check_run, measure_run, plan_run, register

    device, processes = choose_devices(options)
    tests: list[Path] = []  # test images of the user
    if mine:
        options.task, tests = own_task(options)
    root = Path(os.path.expanduser(options.data_root or "data"))
    register()
    runs = (plan_run(options, device.type, processes, seed) for seed in options.seeds)

    def seen(run: SegmentationRun) -> str:
        return on_first_rank(lambda: find_seen(Path(run.backbone.source.path), tests, options.allow_overlap))

    def work(run: SegmentationRun) -> Measurement:
        with exclusive(run.folder, "wait for it, or give another --out"):
            said = seen(run)  # first: it may refuse
            return measure_run(run, root, options).about(pretraining_overlap=said)

    def check(run: SegmentationRun) -> str:
        find_seen(Path(run.backbone.source.path), tests, options.allow_overlap)
        return check_run(run, root)

    records = measure(runs, work, options, device, check)
    if records and rank() == 0:
        few = len(records[0].metrics) <= MOST_ROWS  # the IoU of ADE20K's 150 classes is only in the record
        print(summary(records, None if few else ("mIoU", "mAcc", "aAcc")))
    return records


def run(arguments: list[str] | None = None) -> list[Record]:
    """Do what the command line says and return the records."""
    options = parser().parse(arguments)
    require("mmseg")
    if not options.check:
        return segment(options)
    with quiet(prints=False):
        from transfer.segmentation.check import report
        from transfer.segmentation.run import register

    register()
    print(report())
    return []


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 for a user's mistake."""
    return run_benchmark("segment", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
