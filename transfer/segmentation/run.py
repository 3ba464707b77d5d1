"""Plan and measure one run with mmsegmentation: a task, a backbone and a seed."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_torch_safe_globals
from mmseg.utils import register_all_modules

from common.cli import StopRequest
from common.distributed import barrier, on_first_rank, rank
from common.files import write_text
from common.run_folder import RunFolder
from transfer.benchmark import Measurement, Run, read_backbone
from transfer.learning_curve import save_learning_curve
from transfer.options import should_resume
from transfer.segmentation import evaluation, pictures, plan
from transfer.segmentation.config import LOADERS, Resolved, read_task, resolve
from transfer.segmentation.data import count_images, find_data, list_parts
from transfer.segmentation.data_check import check_data
from transfer.segmentation.hooks import BackboneHook, MetricsHook, PicturesHook, ResumeHook, StopHook
from transfer.segmentation.quiet import quiet
from transfer.segmentation.trainer import build_runner
from transfer.tasks import SEGMENTATION

POINTER = "last_checkpoint"  # mmengine writes the newest checkpoint's path to it once that is complete
HEADLINE = "mIoU"  # main metric of every task
DATA_FACTS = {"data": "name", "data_identity": "identity", "overlap": "overlap"}  # in records -> in `own`
PACKAGES = ("onedl-mmcv", "onedl-mmengine", "onedl-mmsegmentation")  # whose versions are recorded


@dataclass(frozen=True, kw_only=True)
class SegmentationRun(Run):
    """A run and its resolved task."""

    resolved: Resolved

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
    cfg = copy.deepcopy(run.resolved.cfg)
    find_data(cfg, root)
    return check_data(cfg)


def measure_run(run: SegmentationRun, root: Path, options: Namespace) -> Measurement:
    """Train and evaluate, or only evaluate; leave the checkpoints and metrics in the run folder.

    Args:
        run: planned.
        root: folder of the data sets.
        options: holds `resume`, `eval_only`, `force` and `records`.

    Raises:
        ValueError: a user's mistake.
    """
    cfg = copy.deepcopy(run.resolved.cfg)
    on_first_rank(partial(find_data, cfg, root))  # alone, because it may make the scenes
    if rank():
        find_data(cfg, root)
    images, tested = count_images(cfg, *(list_parts(cfg, name) for name in LOADERS[:2]))
    if rank() == 0:
        print("\n".join([f"{run.task} seed {run.seed}: {run.title}", *run.resolved.changes]))
        print(f"{images} training images, {tested} test images", flush=True)
    checkpoint = newest_checkpoint(run.folder)
    if not should_resume(run.folder, checkpoint is not None, run.config, options, "model"):
        checkpoint = None
    (done, earlier), folder = read_progress(checkpoint), RunFolder(run.folder)
    with quiet():
        runner = build_runner(cfg, run, checkpoint)
        if options.eval_only and done < runner.max_iters:
            raise ValueError(
                f"--eval-only: {run.folder} is at iteration {done} of {runner.max_iters}; --resume finishes it"
            )
        if checkpoint is None:
            clear_folder(run)
        batch = cfg.train_dataloader.batch_size * runner.world_size
        written, shown = MetricsHook(folder, cfg.default_hooks.logger.interval, done, batch / images), PicturesHook()
        for hook in (BackboneHook(run.resolved.weights), ResumeHook(earlier), written, shown):
            runner.register_hook(hook)
        if rank() == 0:
            write_text(run.folder / "changes.txt", "\n".join(run.resolved.changes) + "\n")
        folder.start(run.config, next(runner.model.parameters()).device, done, packages=run.packages)
        try:
            if options.eval_only or done >= runner.max_iters:
                runner.load_checkpoint(str(checkpoint), strict=True)
                runner.val()
            else:
                with StopRequest() as stop:
                    runner.register_hook(StopHook(stop))
                    runner.train()
                if stop.signal is not None:  # in the last evaluation
                    stop.end()
        finally:
            folder.close()
    # As `images` counts all starts of a resumed run, so must the seconds.
    cost = {"images": float(batch * runner.max_iters), **({"seconds_before_resuming": earlier} if earlier else {})}
    metainfo, own = runner.val_dataloader.dataset.metainfo, cfg.get("own") or {}
    return Measurement(
        written.metrics, {**speed(runner), **cost}, draw=lambda: draw_pictures(run.folder, shown, metainfo),
        data={name: own[key] for name, key in DATA_FACTS.items() if own.get(key)},
    )  # fmt: skip


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, None where there is none."""
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    path = folder / Path(pointer.read_text(encoding="utf-8").strip()).name  # by name: the folder may have been moved
    return path if path.is_file() else None


def clear_folder(run: Run) -> None:
    """Remove an earlier run from the folder."""
    barrier()
    if rank() == 0:
        for old in (*run.folder.glob("*.pth"), run.folder / POINTER):
            old.unlink(missing_ok=True)
    barrier()


def read_progress(checkpoint: Path | None) -> tuple[int, float]:
    """Return the iterations and seconds that a checkpoint has taken.

    Raises:
        ValueError: it holds more than tensors and what mmengine writes.
    """
    if checkpoint is None:
        return 0, 0.0
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return int(saved["meta"]["iter"]), float(saved.get("seconds", 0))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{checkpoint}: not a checkpoint of this command: {error}") from error


def speed(runner: Runner) -> dict[str, float]:
    """Return seconds per iteration, and the fraction spent waiting for images; nothing where none was trained."""
    scalars = runner.message_hub.log_scalars
    if "train/time" not in scalars:
        return {}
    seconds, waiting = (float(scalars[f"train/{name}"].mean()) for name in ("time", "data_time"))
    return {"seconds_per_iteration": seconds, "data_share": waiting / seconds}


def draw_pictures(folder: Path, shown: PicturesHook, metainfo: dict[str, Any]) -> list[Path]:
    """Write vis/predictions.png, a picture of each sample, and curve.png; return the first and the last."""
    classes, palette = metainfo["classes"], metainfo["palette"]
    together, curve = folder / "vis" / "predictions.png", folder / "curve.png"
    pictures.predictions(shown.samples, classes, palette, together)
    for sample in shown.samples:
        pictures.predictions([sample], classes, palette, folder / "vis" / f"{Path(sample[0]).stem}.png")
    save_learning_curve(folder / "metrics.jsonl", curve, f"val/{HEADLINE}", 0.01)
    return [together, curve]
