"""A run of mmengine: find its data, train and evaluate it, or resume it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jsonargparse import Namespace
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import nn

from common.cli import StopRequest
from common.distributed import barrier, on_first_rank, rank
from common.files import write_text
from common.run_folder import RunFolder
from transfer.benchmark import Metrics, Run
from transfer.changes import should_resume
from transfer.openmmlab.hooks import BackboneHook, MetricsHook, ResumeHook, StopHook
from transfer.openmmlab.quiet import quiet
from transfer.openmmlab.resolve import Resolved
from transfer.openmmlab.trainer import build_runner

POINTER = "last_checkpoint"  # mmengine writes the newest checkpoint's path to it once that is complete


Find = Callable[[Config, Path], None]  # sets the folders of a config's data, below --data-root


@dataclass(frozen=True, kw_only=True)
class ResolvedRun(Run):
    """A run and its resolved task."""

    resolved: Resolved


def with_data(run: ResolvedRun, find: Find, root: Path) -> Config:
    """Return a copy of a run's config with its data found, in one process.

    Raises:
        ValueError: names what is missing and where to get it.
    """
    cfg = copy.deepcopy(run.resolved.cfg)
    find(cfg, root)
    return cfg


def with_data_on_all(run: ResolvedRun, find: Find, root: Path) -> Config:
    """Return a copy of a run's config with its data found, on every rank; the first goes ahead: it may make the scenes.

    Raises:
        ValueError: names what is missing and where to get it.
    """
    cfg = copy.deepcopy(run.resolved.cfg)
    on_first_rank(partial(find, cfg, root))
    if rank():
        find(cfg, root)
    return cfg


def announce(run: ResolvedRun, images: int, tested: int) -> None:
    """Print what is trained, what was changed in the task and the numbers of images, on the first rank."""
    if rank() == 0:
        print("\n".join([f"{run.task} seed {run.seed}: {run.title}", *run.resolved.changes]))
        print(f"{images} training images, {tested} test images", flush=True)


def train(
    run: ResolvedRun, cfg: Config, images: int, options: Namespace, hooks: Sequence[Hook] = (),
    check_model: Callable[[nn.Module], None] | None = None,
) -> tuple[Runner, Metrics, dict[str, float]]:  # fmt: skip
    """Train and evaluate a run, or only evaluate; leave its checkpoints and metrics in the run folder.

    Args:
        run: planned.
        cfg: of the run, with its data found.
        images: number of training images.
        options: holds `resume`, `eval_only`, `force` and `records`.
        hooks: of the framework, besides the shared ones.
        check_model: raises a ValueError where the built model cannot be trained.

    Returns:
        The runner, the metrics of the last evaluation, and the cost.

    Raises:
        ValueError: a user's mistake.
    """
    checkpoint = newest_checkpoint(run.folder)
    if not should_resume(run.folder, checkpoint is not None, run.config, options, "model"):
        checkpoint = None
    (done, earlier), folder = read_progress(checkpoint), RunFolder(run.folder)
    with quiet(prints=False):  # pycocotools prints
        runner = build_runner(cfg, run, checkpoint)
    with quiet():
        if check_model is not None:
            check_model(runner.model)
        if options.eval_only and done < runner.max_iters:
            raise ValueError(
                f"--eval-only: {run.folder} is at iteration {done} of {runner.max_iters}; --resume finishes it"
            )
        if checkpoint is None:
            clear_folder(run)
        batch = cfg.train_dataloader.batch_size * runner.world_size
        written = MetricsHook(folder, cfg.default_hooks.logger.interval, done, batch / images, run.headline)
        for hook in (BackboneHook(run.resolved.weights), ResumeHook(earlier), written, *hooks):
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
    return runner, written.metrics, {**speed(runner), **cost}


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
