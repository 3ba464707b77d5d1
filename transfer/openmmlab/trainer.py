"""mmengine's runner without its output on the screen, and bfloat16 autocast on the CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from common.files import write_atomically
from common.workers import protect
from transfer.benchmark import Run


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Training under bfloat16 autocast, which mmengine lacks on the CPU; its range needs no loss scaling."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast, and the context of gradient accumulation."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's Runner that logs to its file; the screen shows errors and the progress bar."""

    def build_logger(self, *args: Any, **kwargs: Any) -> Any:
        """Build the logger and raise the level of the screen."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        return logger

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Build a loader whose processes leave a stop to the run."""
        return protect(Runner.build_dataloader(*args, **kwargs))

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save the state atomically, on rank 0."""
        save = super().save_checkpoint
        if self.rank == 0:
            write_atomically(Path(out_dir, filename), lambda part: save(out_dir, part.name, *args, **kwargs))


def build_runner(cfg: Config, run: Run, checkpoint: Path | None) -> Runner:
    """Build the runner of a config, all of its parts included.

    Args:
        cfg: with its data found.
        run: gives folder and seed.
        checkpoint: to resume from, or None.

    Raises:
        ValueError: the framework cannot build a part.
    """
    settings = {
        **cfg.to_dict(),
        "runner_type": "QuietRunner",
        "work_dir": str(run.folder),
        "experiment_name": f"{run.task}-{run.seed}-{time.time_ns()}",  # unique: mmengine keeps state by this name
        "randomness": {**cfg.get("randomness", {}), "seed": run.seed},
        "visualizer": {"type": "Visualizer", "vis_backends": []},  # MetricsHook writes instead
        "launcher": "pytorch" if dist.is_initialized() else "none",
        "load_from": checkpoint and str(checkpoint),
        "resume": checkpoint is not None,
    }
    if get_device() == "cpu":  # mmengine would name a GPU
        settings["model_wrapper_cfg"] = {"type": "MMDistributedDataParallel", "device_ids": None}
    try:
        runner = RUNNERS.build(Config(settings, filename=cfg.filename))
        # Built here, so that a mistake is found before anything is trained or replaced.
        _ = runner.train_loop, runner.val_loop
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        raise ValueError(f"{cfg.filename}: {cfg.default_scope} cannot build it: {error}") from error
    return runner
