"""Detection and instance segmentation with detectron2: a checkpoint in, COCO or VOC figures out.

python transfer/detect.py --ckpt runs/fashion/last.pth --task fashion-fpn            # minutes on two CPU cores
python transfer/detect.py --ckpt moco_v2.pth --task coco-c4-1x --data-root /data     # all GPUs of this machine
python transfer/detect.py --ckpt X --task voc-c4-24k --seeds 0 1 2 3 4 TEST.EVAL_PERIOD 4000    # detectron2's settings
python transfer/detect.py --check
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from transfer.benchmark import Measurement, Run, measure, on_record, read_checkpoint, run_benchmark, summary
from transfer.detection.devices import choose
from transfer.detection.tasks import TASKS, headline
from transfer.options import Formatter, add_options, add_training_options, require, should_resume

HEADLINES = {"coco-keypoint-2x": "keypoints/AP", "cityscapes-instance": "segm/AP"}  # of other tasks: bbox/AP
SETTING = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")  # a key of detectron2's configuration


def parser() -> ArgumentParser:
    """The options."""
    tasks = "\n".join(f"  {task:20} {headline(task)}" for task in TASKS)
    p = ArgumentParser(
        prog="transfer/detect.py", description=__doc__, epilog=f"tasks:\n{tasks}", formatter_class=Formatter
    )
    add_options(p)
    add_training_options(p, "data for fashion, else $DETECTRON2_DATASETS")
    p.add_argument("--num-gpus", type=int, help="on this machine; default: all")
    p.add_argument("--num-machines", type=int, default=1, help="that work together")
    p.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    p.add_argument("--dist-url", default="auto", help="where several machines meet, e.g. tcp://host0:29500")
    p.add_argument("settings", nargs="*", default=[], help="KEY VALUE …: detectron2's settings, at the end of the line")
    return p


def detect(options: Namespace) -> None:
    """Plans a run for each seed, does those that are not on record, and says the result."""
    if not options.task:
        raise ValueError(f"--task is missing: one of {', '.join(TASKS)}")
    require("detectron2")
    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # detectron2's own, on import
    from transfer.detection import config, data, run

    devices = choose(options.device, options.num_gpus, options.num_machines, options.machine_rank, options.dist_url)
    root = data_root(options)
    depth = config.read_task(options.task).MODEL.RESNETS.DEPTH
    jobs: dict[Path, run.Job] = {}

    def plan(seed: int) -> Run:
        backbone = read_checkpoint(options.ckpt, seed, f"resnet{depth}")
        cfg, changes = config.resolve(
            options.task, backbone, devices, seed, options.settings, options.batch, not options.no_scale
        )
        planned = Run(
            backbone,
            options.task,
            cfg.TASK.PROTOCOL,
            seed,
            config.for_record(cfg),
            HEADLINES.get(options.task, "bbox/AP"),
            options.out,
            config.packages(),
        )
        data.register(cfg, root)
        cfg = config.with_output(cfg, planned.folder)
        jobs[planned.folder] = run.Job(cfg, backbone, root, options.eval_only, config.packages(), changes)
        print(f"{options.task} seed {seed}: {planned.folder}" + f"\n{changes}" * bool(changes), flush=True)
        return planned

    def do(planned: Run) -> Measurement:
        job = jobs[planned.folder]
        prepare_folder(planned.folder, options, job.cfg)
        run.launch(job, devices, options.machine_rank, options.dist_url)
        metrics, cost = run.read_results(planned.folder)
        images = float(job.cfg.SOLVER.IMS_PER_BATCH * job.cfg.SOLVER.MAX_ITER)
        return Measurement(metrics, cost | {"images": images})

    if options.machine_rank:  # the first machine keeps the records
        for planned in map(plan, options.seeds):
            if options.force or on_record(planned, options.records) is None:
                do(planned)
        return
    records = measure(map(plan, options.seeds), do, options, torch.device(devices.kind))
    if not records:
        return
    print(summary(records, [name for name in records[0].metrics if "AP-" not in name]))
    print("\n".join(f"pictures: {folder / 'vis'}, curve: {folder / 'curve.png'}" for folder in jobs))


def data_root(options: Namespace) -> Path:
    """--data-root, or the usual place."""
    usual = "data" if options.task.startswith("fashion") else os.environ.get("DETECTRON2_DATASETS", "datasets")
    return Path(options.data_root or usual).expanduser()


def prepare_folder(folder: Path, options: Namespace, cfg: Any) -> None:
    """Makes the run folder, or checks that the one there is may be gone on with.

    Raises:
        ValueError: it holds a run and no option says what to do with it, or there is none to evaluate.
    """
    from transfer.detection.run import begun, check_same

    there = begun(folder)
    if not should_resume(folder, there, lambda: check_same(cfg, folder), options, "detector") and there:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options, and the KEY VALUE pairs behind them: from the first word that looks like a key."""
    for place, word in enumerate(arguments):
        if "." in word and SETTING.fullmatch(word):
            return arguments[:place], arguments[place:]
    return arguments, []


def main(arguments: list[str] | None = None) -> int:
    """Measures and says the result; 0, or 2 for a mistake in the input."""
    given, settings = split(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    options.settings = [*options.settings, *settings]

    def work() -> None:
        if options.check:
            from transfer.detection.check import report

            print(report(data_root(options) if options.task else Path(options.data_root or "datasets")))
        else:
            detect(options)

    return run_benchmark("detect", work)


if __name__ == "__main__":
    sys.exit(main())
