"""Plan and measure one run with detectron2: a task, a backbone and a seed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import statistics
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import detectron2.engine
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from jsonargparse import Namespace
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

import transfer.detection.detectron2_engine.head  # noqa: F401  registers the C4 head
from common.cli import StopRequest
from common.files import write_text
from transfer.benchmark import Measurement, Run, read_backbone
from transfer.changes import should_resume
from transfer.detection.detectron2_engine import config, plan
from transfer.detection.detectron2_engine.data import register
from transfer.detection.detectron2_engine.data_check import check_data
from transfer.detection.detectron2_engine.pictures import save_predictions
from transfer.detection.detectron2_engine.title import compose_title
from transfer.detection.detectron2_engine.trainer import Trainer
from transfer.detection.devices import Devices, choose_devices
from transfer.detection.engine import Engine
from transfer.detection.evaluation import fractions
from transfer.learning_curve import save_learning_curve
from transfer.tasks import DETECTION

RESULTS = "results.json"
DATA_FACTS = {"data": "NAME", "data_identity": "IDENTITY", "overlap": "OVERLAP"}  # in records -> in TASK


@dataclass(frozen=True, kw_only=True)
class DetectionRun(Run):
    """A run and what its processes need.

    Attributes:
        cfg: detectron2's configuration, resolved but for the run folder.
        changes: what differs from the task as published, for the screen and changes.txt.
    """

    cfg: CfgNode
    changes: str

    def takes(self) -> dict[str, Any]:
        """Return what training takes."""
        return plan.takes(self.cfg)


def start(options: Namespace, root: Path) -> Engine:
    """Choose the devices and return the engine; every run starts processes of its own."""
    devices = choose_devices(options)
    return Engine(
        torch.device(devices.kind), partial(plan_run, options, devices), lambda run: check_data(run.cfg, root),
        partial(measure_run, root=root, devices=devices, options=options),
    )  # fmt: skip


def plan_run(options: Namespace, devices: Devices, seed: int) -> DetectionRun:
    """Resolve the task of --task for the backbone of --ckpt and a seed. Needs no data set."""
    depth = config.read_task(options.task).MODEL.RESNETS.DEPTH
    backbone = read_backbone(options, seed, f"resnet{depth}")
    cfg, changes = config.resolve(
        options.task, backbone, devices, seed, options.settings, options.batch, not options.no_scale
    )
    return DetectionRun(
        backbone, DETECTION.find(options.task).stem, compose_title(options.task, cfg), seed, config.for_record(cfg),
        cfg.TASK.HEADLINE, options.out, config.packages(), cfg=cfg, changes=changes,
    )  # fmt: skip


def measure_run(run: DetectionRun, root: Path, devices: Devices, options: Namespace) -> Measurement:
    """Train and evaluate, or only evaluate; leave curve and pictures in the run folder.

    Args:
        run: planned.
        root: folder of the data sets.
        devices: of all machines.
        options: holds `resume`, `eval_only`, `force`, `records`, `machine_rank` and `dist_url`.

    Raises:
        ValueError: a user's mistake, also where a training process finds it.
    """
    print(f"{run.task} seed {run.seed}: {run.title}\nrun folder: {run.folder}\n{run.changes}".strip(), flush=True)
    register(run.cfg, root)  # here, so that mistakes in the data are found before processes start
    cfg = config.with_output(run.cfg, run.folder)
    has_checkpoint = (run.folder / "last_checkpoint").is_file()
    resume = should_resume(run.folder, has_checkpoint, cfg, options, "detector", config.NOT_RECORDED)
    if has_checkpoint and not resume:
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    launch(run, cfg, root, devices, options)
    return read_results(run, cfg)


def launch(run: DetectionRun, cfg: CfgNode, root: Path, devices: Devices, options: Namespace) -> None:
    """Call `work` in this process, or in one process per GPU.

    Raises:
        ValueError: re-raised from a process, without its traceback.
        Stopped: a signal asked for it; the state is saved.
    """
    arguments = (run, cfg, root, options.eval_only)
    several = devices.gpus * devices.machines > 1
    with _PassOn() if several else nullcontext() as stop:
        try:
            detectron2.engine.launch(
                work, max(1, devices.gpus), devices.machines, options.machine_rank, options.dist_url, arguments
            )
        except (ProcessRaisedException, ProcessExitedException) as error:
            if stop and stop.signal is not None:  # before the training, which saves its state
                stop.end()
            last = str(error).strip().splitlines()[-1]
            if last.startswith("ValueError: "):
                raise ValueError(last.removeprefix("ValueError: ")) from error
            raise
    if stop and stop.signal is not None:
        stop.end()


class _PassOn(StopRequest):
    """Passes a stop on to the training processes, which save the state."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        for process in multiprocessing.active_children():
            process.terminate()


def work(run: DetectionRun, cfg: CfgNode, root: Path, eval_only: bool) -> None:
    """Train what is left to train, evaluate, and write results.json and pictures to the run folder.

    Runs in every process.
    """
    log_to_file(run.folder)
    register(cfg, root)
    seed_all_rng(cfg.SEED + comm.get_rank())
    trainer = Trainer(cfg, run.backbone, run.folder, run.packages)
    if comm.is_main_process():
        write_text(run.folder / "changes.txt", run.changes + "\n")
        print(f"backbone: {trainer.compared} tensors of the built model equal {run.backbone.source.path}", flush=True)
    trainer.resume()
    results = Trainer.test(cfg, trainer.model) if eval_only else trainer.train()
    if comm.is_main_process():
        memory = torch.cuda.max_memory_allocated() if cfg.MODEL.DEVICE == "cuda" else 0
        cost = {"gpu_memory_bytes": float(memory), "seconds_before_resuming": trainer.clock.earlier}
        content = {"metrics": fractions(results), "cost": {name: value for name, value in cost.items() if value}}
        write_text(run.folder / RESULTS, json.dumps(content, indent=1) + "\n")
        save_predictions(cfg, trainer.network, run.folder)
        save_learning_curve(run.folder / "metrics.jsonl", run.folder / "curve.png", run.headline, 1)
    comm.synchronize()


def read_results(run: DetectionRun, cfg: CfgNode) -> Measurement:
    """Return what `work` left in the run folder; `images` counts all starts of a resumed run."""
    found = json.loads((run.folder / RESULTS).read_bytes())
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [row["time"] for row in rows if "time" in row]
    cost = found["cost"] | {"images": float(cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.MAX_ITER)}
    if times:
        cost["seconds_per_iteration"] = statistics.median(times)
    about = {name: cfg.TASK[key] for name, key in DATA_FACTS.items() if cfg.TASK[key]}
    return Measurement(found["metrics"], cost, draw=lambda: [run.folder / "vis", run.folder / "curve.png"], data=about)


def log_to_file(folder: Path) -> None:
    """Send detectron2's log to log.txt in the run folder; the screen is for the progress bar."""
    for name in ("detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in [*logger.handlers]:
            logger.removeHandler(handler)
            handler.close()
        if comm.is_main_process():
            handler = logging.FileHandler(folder / "log.txt", delay=True)
            handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
            logger.addHandler(handler)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a deprecation in torch
    for module in ("torch.functional", "torch.jit", "detectron2.data", "fvcore"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*(torch.jit|meshgrid|__array__ implementation).*")
