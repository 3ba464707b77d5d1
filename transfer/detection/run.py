"""One run in one process: register, build, train, evaluate, draw. detectron2's launch starts it once a GPU."""

from __future__ import annotations

import json
import logging
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2.engine
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.multiprocessing.spawn import ProcessRaisedException

import transfer.detection.head  # noqa: F401  registers the C4 head
from common.files import write_text
from converters import Backbone
from transfer.benchmark import Metrics
from transfer.detection.config import ASIDE, flat
from transfer.detection.data import register
from transfer.detection.devices import Devices
from transfer.detection.evaluation import shares
from transfer.detection.pictures import save_curve, save_predictions
from transfer.detection.trainer import Trainer

RESULTS = "results.json"


@dataclass(frozen=True)
class Job:
    """What a process is told.

    Attributes:
        cfg: resolved; OUTPUT_DIR is the run folder.
        backbone: to start from.
        root: --data-root.
        evaluate_only: whether to evaluate the run folder's detector again.
        packages: distributions whose versions are written down.
        changes: what differs from the task as published, e.g. the schedule before and after; kept in changes.txt.
    """

    cfg: CfgNode
    backbone: Backbone
    root: Path
    evaluate_only: bool = False
    packages: tuple[str, ...] = ()
    changes: str = ""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.cfg.OUTPUT_DIR)


def work(job: Job) -> None:
    """Trains where there is something left to train, evaluates, and leaves results.json in the run folder."""
    quiet(job.folder)
    register(job.cfg, job.root)
    seed_all_rng(job.cfg.SEED + comm.get_rank())
    trainer = Trainer(job.cfg, job.backbone, job.folder, job.packages)
    if comm.is_main_process():
        write_text(job.folder / "changes.txt", job.changes + "\n")
        print(f"{trainer.compared} tensors of the built model are those of {job.backbone.source.path}", flush=True)
    trainer.resume()
    if not job.evaluate_only:
        trainer.train()
    results = Trainer.test(job.cfg, trainer.model) if job.evaluate_only else trainer.results
    if comm.is_main_process():
        save_predictions(job.cfg, trainer.network, job.folder)
        save_curve(job.folder)
        memory = torch.cuda.max_memory_allocated() if job.cfg.MODEL.DEVICE == "cuda" else 0
        told = {"metrics": shares(results), "gpu_memory_bytes": memory}
        write_text(job.folder / RESULTS, json.dumps(told, indent=1) + "\n")
    comm.synchronize()


def launch(job: Job, devices: Devices, machine: int, url: str) -> None:
    """Starts `work` in this process, or in one a GPU where there are several.

    Args:
        job: what to do.
        devices: of all machines.
        machine: number of this one.
        url: where several machines meet; "auto" for one.

    Raises:
        ValueError: what a process has raised, without the way it came.
    """
    try:
        detectron2.engine.launch(work, max(1, devices.gpus), devices.machines, machine, url, args=(job,))
    except ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]
        if last.startswith("ValueError: "):
            raise ValueError(last.removeprefix("ValueError: ")) from error
        raise


def read_results(folder: Path) -> tuple[Metrics, dict[str, float]]:
    """What `work` left in a run folder: metrics as shares; cost, of all pieces of a run that was resumed."""
    told = json.loads((folder / RESULTS).read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [row["time"] for row in rows if "time" in row]
    cost = {"seconds_per_iteration": statistics.median(times)} if times else {}
    if told["gpu_memory_bytes"]:
        cost["gpu_memory_bytes"] = float(told["gpu_memory_bytes"])
    return told["metrics"], cost


def begun(folder: Path) -> bool:
    """Whether a run folder holds a checkpoint to go on from."""
    return (folder / "last_checkpoint").is_file()


def check_same(cfg: CfgNode, folder: Path) -> None:
    """Checks that a run goes on under the settings that it began with.

    Raises:
        ValueError: names the settings that differ.
    """
    before: dict[str, Any] = flat(yaml.safe_load((folder / "config.yaml").read_text()))
    now = flat(yaml.safe_load(cfg.dump()))
    differ = [key for key in sorted(now | before) if key not in ASIDE and now.get(key) != before.get(key)]
    if differ:
        told = ", ".join(f"{key} {before.get(key)} → {now.get(key)}" for key in differ[:4])
        raise ValueError(f"{folder} was begun with other settings ({told}): set them as they were, or use --force")


def quiet(folder: Path) -> None:
    """Sends detectron2's log to log.txt in the run folder; the screen is for the bar and for us."""
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
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # that a name of torch's will change
    for module in ("torch.functional", "torch.jit", "detectron2.data", "fvcore"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message=".*(torch.jit|meshgrid|__array__ implementation).*")
