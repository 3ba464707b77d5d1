"""The work of transfer/segment.py, once its options are checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jsonargparse import Namespace

from common.distributed import on_first_rank, rank
from common.run_folder import exclusive
from common.seen import find_seen
from results.record import Record
from transfer.benchmark import Measurement, measure, summary
from transfer.openmmlab.devices import choose_devices
from transfer.own_data import segmentation as own
from transfer.own_data.options import names_segmentation
from transfer.segmentation.run import SegmentationRun, check_run, measure_run, plan_run, register

MOST_ROWS = 30  # of the table on the screen


def own_task(options: Namespace) -> tuple[str, list[Path]]:
    """Return the task that is made for the user's images and the test images, after printing what was found."""
    data = on_first_rank(lambda: own.load(options))
    path, said = on_first_rank(lambda: own.write_task(data, options.epochs))
    if rank() == 0:
        print("\n".join(said), file=sys.stderr if options.dry_run else sys.stdout, flush=True)
    return str(path), [data.images / image for image, _ in data.val]


def segment(options: Namespace) -> list[Record]:
    """Measure every seed that is not on record, print the result and return the records."""
    device, processes = choose_devices(options)
    tests: list[Path] = []  # test images of the user
    if names_segmentation(options):
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
