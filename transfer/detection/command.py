"""The work of transfer/detect.py, once its options are checked."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from pathlib import Path

from jsonargparse import Namespace

from common.distributed import on_first_rank, rank
from common.run_folder import exclusive
from common.seen import find_seen
from results.record import Record
from transfer.benchmark import Measurement, Run, measure, on_record, summary
from transfer.detection.engine import Engine
from transfer.openmmlab.quiet import quiet
from transfer.own_data import detection as own
from transfer.own_data.detection_task import write_task
from transfer.own_data.options import names_detection


def own_task(options: Namespace) -> tuple[str, list[Path]]:
    """Return the task that is made for the user's data set and its test images, after printing what was found."""

    def make() -> tuple[str, list[Path]]:
        data = own.load(options)
        path, said = write_task(data, options.protocol, options.epochs, options.engine)
        print("\n".join(said), file=sys.stderr if options.dry_run else sys.stdout, flush=True)
        return str(path), data.tests

    return on_first_rank(make)


def start_engine(options: Namespace, root: Path) -> Engine:
    """Import the engine of --engine and return it, ready to measure."""
    with quiet(prints=False):  # OpenMMLab's packages print when they are imported
        run = importlib.import_module(f"transfer.detection.{options.engine}_engine.run")
    started: Engine = run.start(options, root)
    return started


def report(options: Namespace, root: Path) -> str:
    """Return what --check prints: versions, and what works on this machine."""
    with quiet(prints=False):
        check = importlib.import_module(f"transfer.detection.{options.engine}_engine.check")
    return str(check.report(root))


def detect(options: Namespace, root: Path) -> list[Record]:
    """Measure every seed that is not on record, print the result and return the records.

    Args:
        options: of the command, checked; the task of the user's own data is still to be made.
        root: folder of the data sets.
    """
    engine = start_engine(options, root)
    tests: list[Path] = []  # test images of the user
    if names_detection(options):
        options.task, tests = own_task(options)
    runs = map(engine.plan, options.seeds)

    def work(run: Run) -> Measurement:
        # The first machine locks the folder for all.
        with nullcontext() if options.machine_rank else exclusive(run.folder, "wait for it, or give another --out"):
            seen = find_seen(Path(run.backbone.source.path), tests, options.allow_overlap)
            return engine.measure(run).about(pretraining_overlap=seen)

    def check(run: Run) -> str:
        find_seen(Path(run.backbone.source.path), tests, options.allow_overlap)
        return engine.check(run)

    if options.machine_rank:  # the first machine writes the records
        for run in runs:
            if options.force or on_record(run, options.records) is None:
                work(run)
        return []
    records = measure(runs, work, options, engine.device, check)
    if records and rank() == 0:
        names = [name for name in records[0].metrics if "AP-" not in name]
        print(summary(records, names))
    return records
