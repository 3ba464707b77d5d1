"""One run: mmengine's Runner with our backbone, figures and pictures, from a config to metrics."""

from __future__ import annotations

import logging
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_torch_safe_globals

from common.distributed import barrier, rank
from common.files import write_text
from common.run_folder import RunFolder
from transfer.benchmark import Metrics, Run
from transfer.options import should_resume
from transfer.segmentation import pictures, quiet
from transfer.segmentation.hooks import ClockHook, FiguresHook, PicturesHook, RandomStateHook, TrunkHook
from transfer.segmentation.trunk import Trunk

POINTER = "last_checkpoint"  # mmengine writes the newest checkpoint's path there once it is complete
HASH = "config_hash.txt"


@dataclass(frozen=True)
class Plan:
    """A task resolved for a backbone, the options and the processes.

    Attributes:
        cfg: mmengine's config, its data not yet found.
        trunk: the backbone as mmseg takes it.
        batch: images of an optimiser step, over all processes.
        notes: what was changed, for the screen.
        config: what the figures depend on, for the record.
        protocol: the settings in words, for the record.
    """

    cfg: Config
    trunk: Trunk
    batch: int
    notes: tuple[str, ...]
    config: dict[str, Any]
    protocol: str


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's Runner, whose log goes to its file; the screen gets errors and our progress bar."""

    def build_logger(self, *args: Any, **kwargs: Any) -> Any:
        """Build the logger and raise the screen's level."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return logger


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run folder, None where there is none."""
    pointer = folder / POINTER
    if not pointer.is_file():
        return None
    path = folder / Path(pointer.read_text().strip()).name  # by name: the folder may have been moved
    return path if path.is_file() else None


def find_checkpoint(run: Run, options: Any) -> Path | None:
    """Return the checkpoint of the run to go on from, or None for a fresh start.

    Args:
        run: whose folder to look into.
        options: holds `resume`, `eval_only`, `force` and `records`.

    Raises:
        ValueError: there is nothing to evaluate, what is there was begun with other options, or no option says what
            to do with it.
    """
    checkpoint, told = newest_checkpoint(run.folder), run.folder / HASH

    def check_same() -> None:
        if not told.is_file() or told.read_text().strip() != config_hash(run):
            raise ValueError(
                f"{run.folder} holds a run that was begun with other options: set them as they were, name another "
                "--out, or replace it with --force"
            )

    return checkpoint if should_resume(run.folder, checkpoint is not None, check_same, options, "model") else None


def config_hash(run: Run) -> str:
    """Return the hash that the run's record will have."""
    return run.config_hash


def start_anew(run: Run) -> None:
    """Take what an earlier run left out of the folder."""
    barrier()
    if rank() == 0:
        for old in (*run.folder.glob("*.pth"), run.folder / POINTER, run.folder / "metrics.jsonl"):
            old.unlink(missing_ok=True)
        write_text(run.folder / HASH, config_hash(run) + "\n")
    barrier()


def progress(checkpoint: Path | None) -> tuple[int, float]:
    """Return iterations and seconds that a checkpoint stands for.

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
        raise ValueError(f"{checkpoint}: no checkpoint of this command: {error}") from error


def build(cfg: Config, run: Run, checkpoint: Path | None) -> Runner:
    """Build the runner; a config that mmseg refuses is a ValueError."""
    settings = {
        **cfg.to_dict(),
        "runner_type": "QuietRunner",
        "work_dir": str(run.folder),
        "experiment_name": f"{run.task}-{run.seed}-{time.time_ns()}",  # two runs of a process share nothing
        "randomness": {**cfg.get("randomness", {}), "seed": run.seed},
        "visualizer": {"type": "Visualizer", "vis_backends": []},  # FiguresHook writes instead
        "launcher": "pytorch" if dist.is_initialized() else "none",
        "load_from": checkpoint and str(checkpoint),
        "resume": checkpoint is not None,
    }
    if get_device() == "cpu":  # mmengine would name a GPU
        settings["model_wrapper_cfg"] = {"type": "MMDistributedDataParallel", "device_ids": None}
    try:
        runner = RUNNERS.build(Config(settings, filename=cfg.filename))
        # Now, so that a mistake in any part is told before anything is trained or replaced.
        _ = runner.train_loop, runner.val_loop  # properties that build
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ValueError(f"{cfg.filename}: mmseg cannot build it: {error}") from error
    return runner


def measure_one(plan: Plan, run: Run, images: int, options: Any) -> tuple[Metrics, dict[str, float]]:
    """Train and evaluate, or only evaluate; leave figures, curve and pictures in the run's folder.

    Args:
        plan: what to do, its data found.
        run: where, and with which seed.
        images: number of images to train on.
        options: holds `resume`, `eval_only` and `force`.

    Returns:
        Metrics of the last iteration, and what they cost.
    """
    cfg, checkpoint = plan.cfg, find_checkpoint(run, options)
    (done, earlier), folder = progress(checkpoint), RunFolder(run.folder)
    clock = ClockHook(earlier)
    with quiet():
        runner = build(cfg, run, checkpoint)
        if options.eval_only and done < runner.max_iters:
            raise ValueError(
                f"--eval-only: {run.folder} is at iteration {done} of {runner.max_iters}; --resume finishes it"
            )
        if checkpoint is None:
            start_anew(run)
        batch = cfg.train_dataloader.batch_size * runner.world_size
        seen = FiguresHook(folder, cfg.default_hooks.logger.interval, done, batch / images)
        shown = PicturesHook()
        for hook in (TrunkHook(plan.trunk), RandomStateHook(), clock, seen, shown):
            runner.register_hook(hook)
        if rank() == 0:
            write_text(run.folder / "changes.txt", "\n".join(plan.notes) + "\n")
        folder.start(run.config, next(runner.model.parameters()).device, done, packages=run.packages)
        try:
            if options.eval_only or done >= runner.max_iters:
                runner.load_checkpoint(str(checkpoint), strict=True)
                runner.val()
            else:
                runner.train()
        finally:
            folder.close()
    if rank() == 0:
        leave_pictures(run.folder, shown, runner.val_dataloader.dataset.metainfo)
    whole = {"images": float(batch * runner.max_iters)}  # of a resumed run too
    return seen.metrics, {**cost(runner), **whole, **({"seconds_before_resuming": earlier} if earlier else {})}


def leave_pictures(folder: Path, shown: PicturesHook, metainfo: dict[str, Any]) -> None:
    """Write vis/predictions.png, a picture for each sample, and curve.png."""
    classes, palette = metainfo["classes"], metainfo["palette"]
    pictures.predictions(shown.samples, classes, palette, folder / "vis" / "predictions.png")
    for sample in shown.samples:
        pictures.predictions([sample], classes, palette, folder / "vis" / f"{Path(sample[0]).stem}.png")
    pictures.learning_curve(folder / "metrics.jsonl", folder / "curve.png")
    print(f"pictures: {folder / 'vis' / 'predictions.png'}, {folder / 'curve.png'}", flush=True)


def cost(runner: Runner) -> dict[str, float]:
    """Return seconds an iteration, and the share of them spent waiting for images; nothing where none was trained."""
    scalars = runner.message_hub.log_scalars
    if "train/time" not in scalars:
        return {}
    seconds, waiting = (float(scalars[f"train/{name}"].mean()) for name in ("time", "data_time"))
    return {"seconds_per_iteration": seconds, "data_share": waiting / seconds}
