"""mmengine hooks of a run: load the backbone, write metrics, show progress, resume exactly, keep samples."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from tqdm import tqdm

from common.cli import StopRequest
from common.distributed import rank, stop_agreed
from common.run_folder import RunFolder
from transfer.openmmlab.weights import ModelBackbone


class BackboneHook(Hook):
    """Loads the backbone into the model before training and compares every tensor.

    It runs after `init_weights`, and does nothing where a run is resumed.
    """

    def __init__(self, weights: ModelBackbone) -> None:
        self.weights = weights

    def before_train(self, runner: Runner) -> None:
        """Load, compare, and print how many tensors are equal."""
        if runner.iter:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        count, wanted = self.weights.load(model), len(self.weights.backbone.tensors)
        if rank() == 0:
            print(f"backbone: {count} of {wanted} tensors in the built model equal those of the checkpoint", flush=True)


class MetricsHook(Hook):
    """Writes metrics to the run folder and shows progress; stops where the loss is not finite.

    Args:
        folder: gets metrics.jsonl and TensorBoard's events.
        every: iterations between two lines of training metrics.
        step: iterations done so far.
        epochs: epochs per iteration.
        headline: metric that the progress bar shows.

    Attributes:
        metrics: of the last evaluation.
    """

    def __init__(self, folder: RunFolder, every: int, step: int, epochs: float, headline: str) -> None:
        self.folder, self.every, self.step, self.epochs, self.headline = folder, every, step, epochs, headline
        self.metrics: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Open the progress bar at the iterations done so far."""
        self.bar = _bar("train", runner.max_iters, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the loss; every `every` iterations write it with learning rate and seconds."""
        self.step, hub = runner.iter + 1, runner.message_hub
        loss = hub.get_scalar("train/loss").current()
        lr = hub.get_scalar("train/lr").current()
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at iteration {self.step} (lr {lr:g}); a lower lr may help")
        self.bar.update()
        if self.step % self.every and self.step != runner.max_iters:
            return
        mean = {name: hub.get_scalar(f"train/{name}").mean(self.every) for name in ("loss", "time", "data_time")}
        shown = self.headline in self.metrics
        latest = {self.headline: f"{100 * self.metrics[self.headline]:.1f}"} if shown else {}
        self.bar.set_postfix({"loss": f"{mean['loss']:.3f}", "lr": f"{lr:.2g}", **latest})
        values = {"loss": mean["loss"], "lr": lr, "seconds": mean["time"], "data_seconds": mean["data_time"]}
        self.folder.add_metrics(self.step, self.step * self.epochs, values)

    def before_val_epoch(self, runner: Runner) -> None:
        """Open the bar of the evaluation."""
        self.val_bar = _bar("evaluate", len(runner.val_loop.dataloader), leave=False)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Advance the bar of the evaluation."""
        self.val_bar.update()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the metrics of an evaluation."""
        self.val_bar.close()
        self.metrics = dict(metrics or {})
        values = {f"val/{name}": value for name, value in self.metrics.items()}
        self.folder.add_metrics(self.step, self.step * self.epochs, values)

    def after_train(self, runner: Runner) -> None:
        """Close the progress bar."""
        self.bar.close()


def _bar(what: str, total: int, done: int = 0, leave: bool = True) -> tqdm[Any]:
    return tqdm(desc=what, total=total, initial=done, leave=leave, unit="it", disable=rank() > 0, file=sys.stderr)


class ResumeHook(Hook):
    """Saves the random generators and the seconds so far with each checkpoint; a resumed run continues from them.

    mmengine itself resumes model, optimiser, schedule and order of the images. With this hook one process without data
    workers resumes bit-identically. Workers and further processes seed themselves at every start, so their augmentation
    and dropout differ from those of an uninterrupted run.

    Args:
        earlier: seconds that the resumed checkpoint had taken; 0 for a fresh run.
    """

    def __init__(self, earlier: float) -> None:
        self.began = time.time() - earlier
        self.saved: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the states to the checkpoint, as builtins and tensors, and the seconds."""
        checkpoint["seconds"] = time.time() - self.began
        kind, keys, *rest = np.random.get_state(legacy=True)
        checkpoint["random_state"] = {
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(),
            "numpy": [kind, np.asarray(keys).tolist(), *rest], "python": random.getstate(),
        }  # fmt: skip

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Restore the generators that augmentation draws from."""
        self.saved = checkpoint["random_state"]
        kind, keys, *rest = self.saved["numpy"]
        np.random.set_state((kind, np.array(keys, np.uint32), *rest))
        version, state, gauss = self.saved["python"]
        random.setstate((version, tuple(state), gauss))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Restore torch's generator: a new data loader has drawn from it since the checkpoint was loaded."""
        if self.saved is None:
            return
        torch.set_rng_state(self.saved["torch"].cpu())
        if len(self.saved["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self.saved["cuda"]])
        self.saved = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Save torch's generator: an evaluation must not change what training draws."""
        self.kept = torch.get_rng_state()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore it."""
        torch.set_rng_state(self.kept)


class StopHook(Hook):
    """Saves the state after the iteration in which a signal asked to stop, and ends the training.

    Raises:
        Stopped: in `after_train_iter`.
    """

    priority = "LOWEST"  # after the metrics and the schedule of the iteration

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where mmengine's own hook would, so that it removes older checkpoints, and end."""
        device = next(runner.model.parameters()).device
        if stop_agreed(self.stop.signal is not None, runner.iter + 1, device):
            (saver,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
            saver._save_checkpoint(runner)
            self.stop.end()


class SampleHook(Hook):
    """Keeps some predictions of the last evaluation, for pictures.

    Attributes:
        samples: what `take` returned.
    """

    def __init__(self, take: Callable[[Any], Any], count: int = 8) -> None:
        """Set what is kept.

        Args:
            take: returns what is kept of a data sample of the framework.
            count: number of samples.
        """
        self.take, self.count = take, count
        self.samples: list[Any] = []

    def before_val_epoch(self, runner: Runner) -> None:
        """Choose batches spread evenly over the set."""
        batches = len(runner.val_loop.dataloader)
        self.chosen = set(np.linspace(0, batches - 1, min(self.count, batches)).round().astype(int).tolist())
        self.samples = []

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep the first image of a chosen batch."""
        if batch_idx in self.chosen and outputs:
            self.samples.append(self.take(outputs[0]))
