"""Plan and measure one run with mmdet: a task, a backbone and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from mmdet.utils import register_all_modules

from common.openmmlab import check_operations
from transfer.benchmark import Measurement, read_backbone
from transfer.detection.engine import Engine
from transfer.detection.mmdet_engine import cityscapes, evaluation, heads, plan
from transfer.detection.mmdet_engine.config import read_task, resolve
from transfer.detection.mmdet_engine.data import count_images, find_data, list_parts
from transfer.detection.mmdet_engine.data_check import check_data
from transfer.detection.mmdet_engine.pictures import draw_pictures, take_sample
from transfer.openmmlab.config import LOADERS, own_facts
from transfer.openmmlab.devices import choose_devices
from transfer.openmmlab.hooks import SampleHook
from transfer.openmmlab.quiet import quiet
from transfer.openmmlab.run import ResolvedRun, announce, train, with_data, with_data_on_all
from transfer.tasks import MMDET

PACKAGES = ("mmdet", "onedl-mmcv", "onedl-mmengine", "faster-coco-eval", "pycocotools")  # whose versions are recorded


@dataclass(frozen=True, kw_only=True)
class MmdetRun(ResolvedRun):
    """A run and its resolved task."""

    def takes(self) -> dict[str, Any]:
        """Return what training takes."""
        return plan.takes(self.resolved.cfg)


def register() -> None:
    """Register mmdet's parts with mmengine; this project's are registered by their import."""
    assert all((cityscapes, evaluation, heads))
    with quiet(prints=False):
        register_all_modules()


def plan_run(options: Namespace, kind: str, processes: int, seed: int) -> MmdetRun:
    """Resolve the task of --task for the backbone of --ckpt and a seed. Needs no data set."""
    cfg = read_task(options.task)
    backbone = read_backbone(options, seed, cfg.get("arch", "resnet50"))
    task = resolve(options, backbone, kind, processes)
    return MmdetRun(
        backbone, f"{MMDET.find(options.task).stem}-mmdet", task.title, seed, task.config,
        cfg.get("headline", "bbox/AP"), options.out, PACKAGES, resolved=task,
    )  # fmt: skip


def check_run(run: MmdetRun, root: Path) -> str:
    """Check all the data of a run; return what was checked, in words.

    Raises:
        ValueError: names the file that is wrong, and the fix.
    """
    return check_data(with_data(run, find_data, root))


def measure_run(run: MmdetRun, root: Path, options: Namespace) -> Measurement:
    """Train and evaluate, or only evaluate; leave the checkpoints, metrics and pictures in the run folder.

    Args:
        run: planned.
        root: folder of the data sets.
        options: holds `resume`, `eval_only`, `force` and `records`.

    Raises:
        ValueError: a user's mistake.
    """
    cfg = with_data_on_all(run, find_data, root)
    parts = [list_parts(cfg, name) for name in LOADERS[:2]]
    images, tested = count_images(cfg, *parts)
    announce(run, images, tested)
    shown = SampleHook(take_sample)
    _, metrics, cost = train(run, cfg, images, options, [shown], check_operations)
    classes = parts[1][0].classes
    draw = partial(draw_pictures, run.folder, shown.samples, classes, run.headline)
    return Measurement(metrics, cost, draw=draw, data=own_facts(cfg))


def start(options: Namespace, root: Path) -> Engine:
    """Join the other processes, if torchrun or srun started any, and return the engine."""
    device, processes = choose_devices(options)
    register()
    return Engine(
        device, partial(plan_run, options, device.type, processes), partial(check_run, root=root),
        partial(measure_run, root=root, options=options),
    )  # fmt: skip
