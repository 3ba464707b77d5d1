"""Plan and measure one run with mmsegmentation: a task, a backbone and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from mmseg.utils import register_all_modules

from transfer.benchmark import Measurement, read_backbone
from transfer.learning_curve import save_learning_curve
from transfer.openmmlab.config import LOADERS, own_facts
from transfer.openmmlab.hooks import SampleHook
from transfer.openmmlab.quiet import quiet
from transfer.openmmlab.run import ResolvedRun, announce, train, with_data, with_data_on_all
from transfer.segmentation import evaluation, pictures, plan
from transfer.segmentation.config import read_task, resolve
from transfer.segmentation.data import count_images, find_data, list_parts
from transfer.segmentation.data_check import check_data
from transfer.tasks import SEGMENTATION

HEADLINE = "mIoU"  # main metric of every task
PACKAGES = ("onedl-mmcv", "onedl-mmengine", "onedl-mmsegmentation")  # whose versions are recorded


@dataclass(frozen=True, kw_only=True)
class SegmentationRun(ResolvedRun):
    """A run and its resolved task."""

    def takes(self) -> dict[str, Any]:
        """Return what training takes."""
        return plan.takes(self.resolved.cfg)


def register() -> None:
    """Register mmseg's parts with mmengine; this project's are registered by their import."""
    assert evaluation
    with quiet(prints=False):
        register_all_modules()


def plan_run(options: Namespace, kind: str, processes: int, seed: int) -> SegmentationRun:
    """Resolve the task of --task for the backbone of --ckpt and a seed. Needs no data set."""
    backbone = read_backbone(options, seed, read_task(options.task).get("arch", "resnet50"))
    task = resolve(options, backbone, kind, processes)
    return SegmentationRun(
        backbone, SEGMENTATION.find(options.task).stem, task.title, seed, task.config, HEADLINE, options.out, PACKAGES,
        resolved=task,
    )  # fmt: skip


def check_run(run: SegmentationRun, root: Path) -> str:
    """Check all the data of a run; return what was checked, in words.

    Raises:
        ValueError: names the file that is wrong, and the fix.
    """
    return check_data(with_data(run, find_data, root))


def measure_run(run: SegmentationRun, root: Path, options: Namespace) -> Measurement:
    """Train and evaluate, or only evaluate; leave the checkpoints and metrics in the run folder.

    Args:
        run: planned.
        root: folder of the data sets.
        options: holds `resume`, `eval_only`, `force` and `records`.

    Raises:
        ValueError: a user's mistake.
    """
    cfg = with_data_on_all(run, find_data, root)
    images, tested = count_images(cfg, *(list_parts(cfg, name) for name in LOADERS[:2]))
    announce(run, images, tested)
    shown = SampleHook(take_sample)
    runner, metrics, cost = train(run, cfg, images, options, [shown])
    metainfo = runner.val_dataloader.dataset.metainfo
    return Measurement(
        metrics, cost, draw=lambda: draw_pictures(run.folder, shown, metainfo), data=own_facts(cfg)
    )  # fmt: skip


def take_sample(sample: Any) -> tuple[str, np.ndarray, np.ndarray]:
    """Return an image's path, truth and prediction, each (H, W) class indices."""
    truth, found = (part.data[0].cpu().numpy() for part in (sample.gt_sem_seg, sample.pred_sem_seg))
    return sample.img_path, truth, found


def draw_pictures(folder: Path, shown: SampleHook, metainfo: dict[str, Any]) -> list[Path]:
    """Write vis/predictions.png, a picture of each sample, and curve.png; return the first and the last."""
    classes, palette = metainfo["classes"], metainfo["palette"]
    together, curve = folder / "vis" / "predictions.png", folder / "curve.png"
    pictures.predictions(shown.samples, classes, palette, together)
    for sample in shown.samples:
        pictures.predictions([sample], classes, palette, folder / "vis" / f"{Path(sample[0]).stem}.png")
    save_learning_curve(folder / "metrics.jsonl", curve, f"val/{HEADLINE}", 0.01)
    return [together, curve]
