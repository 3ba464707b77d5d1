"""detectron2's trainer with our data order, progress bar, metrics and an error where the loss is not finite.

All randomness of an iteration is a function of (seed, iteration, rank): on the CPU a run that was killed and resumed
ends bit-identical to an uninterrupted one. On a GPU some backward passes of detectron2 sum in any order: there, solver
state and data order are identical and the last digits are not.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.cli import StopRequest
from common.distributed import stop_agreed
from common.files import write_tensors, write_text
from common.run_folder import RunFolder
from common.workers import protect
from converters import Backbone
from transfer.detection.detectron2_engine.data import Mapper, training_loader
from transfer.detection.detectron2_engine.evaluation import Results, build_evaluator
from transfer.detection.detectron2_engine.weights import load_backbone

WRITE_EVERY = 10  # iterations


class Trainer(DefaultTrainer):
    """Trains a detector from a backbone.

    Args:
        cfg: resolved (config.py).
        backbone: initial weights.
        folder: run folder.
        packages: distributions whose versions are saved.

    Attributes:
        compared: number of tensors of the built model that were verified to equal the backbone's.
        clock: seconds of training, over all starts of the run.
    """

    def __init__(self, cfg: CfgNode, backbone: Backbone, folder: Path, packages: Sequence[str] = ()) -> None:
        self.folder, self.packages, self.clock, self.stop = RunFolder(folder), packages, Clock(), StopRequest()
        super().__init__(cfg)
        self.compared = load_backbone(self.network, backbone)
        if cfg.TASK.PRECISION == "bf16":
            train_in_bf16(self.network, cfg.MODEL.DEVICE)

    @property
    def network(self) -> nn.Module:
        """The model, without DistributedDataParallel."""
        return getattr(self.checkpointer.model, "module", self.checkpointer.model)

    def resume(self) -> int:
        """Load the run folder's newest checkpoint, if there is one; return the number of iterations done."""
        self.resume_or_load(resume=True)
        self.data_loader.batch_sampler.start = self.start_iter
        return self.start_iter

    def train(self) -> Results:
        """Train to the last iteration; return the results of the last evaluation.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        self.folder.start(
            yaml.safe_load(self.cfg.dump()), torch.device(self.cfg.MODEL.DEVICE), self.start_iter,
            packages=self.packages,
        )  # fmt: skip
        try:
            with self.stop:
                super().train()
            if self.stop.signal is not None:  # in the last evaluation
                self.stop.end()
        except FloatingPointError as error:
            raise ValueError(
                f"iteration {self.iter}: the loss is not finite at learning rate "
                f"{self.optimizer.param_groups[0]['lr']:g} ({' '.join(str(error).split())}); lower SOLVER.BASE_LR"
            ) from error
        finally:
            self.folder.close()
        return self._last_eval_results

    def build_hooks(self) -> list[HookBase | None]:
        """Return detectron2's hooks with our checkpoints, writer, seeds, clock, stop and progress bar."""
        network = self.checkpointer.model
        self.checkpointer: Any = _Checkpointer(network, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        built = super().build_hooks()
        mine: list[HookBase | None] = [_Seeds(self.cfg.SEED), self.clock]
        for hook in built:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook = hooks.PeriodicCheckpointer(
                    self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.max_iter, max_to_keep=2
                )
            elif isinstance(hook, hooks.PeriodicWriter):
                hook = hooks.PeriodicWriter(self.build_writers(), WRITE_EVERY)
            mine.append(hook)
        return [*mine, _Progress(), _Stop(self.stop)] if comm.is_main_process() else [*mine, _Stop(self.stop)]

    def build_writers(self) -> list[EventWriter]:
        """Return one writer: metrics.jsonl and TensorBoard."""
        images = len(self.data_loader.dataset.rows)
        return [_ToFolder(self.folder, self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH / images)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Return batches that are a function of seed and iteration."""
        return training_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Return detectron2's loader, whose processes leave a stop to the run."""
        return protect(build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False)))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Return the evaluator of a data set."""
        return build_evaluator(cfg, dataset_name, Path(cfg.OUTPUT_DIR))


def train_in_bf16(model: nn.Module, device: str) -> None:
    """Run a model's forward pass under bf16 autocast in training; it is evaluated in fp32."""
    forward = model.forward

    def mixed(batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=model.training):
            return forward(batch)

    model.forward = mixed


class _Checkpointer(DetectionCheckpointer):
    """Writes each file atomically."""

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        write_tensors(Path(self.save_dir, f"{name}.pth"), {"model": self.model.state_dict(), **parts, **kwargs})
        write_text(Path(self.save_dir, "last_checkpoint"), f"{name}.pth")


class _Stop(HookBase):
    """Saves the state after the iteration in which a signal asked to stop, and ends the training."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def after_step(self) -> None:
        trainer = self.trainer
        if stop_agreed(self.stop.signal is not None, trainer.iter + 1, torch.device(trainer.cfg.MODEL.DEVICE)):
            trainer.checkpointer.save("model_stopped", iteration=trainer.iter)
            self.stop.end()


class _Seeds(HookBase):
    """Seeds torch in each iteration, so that resuming does not change which regions are sampled."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        entropy = (self.seed, self.trainer.iter, comm.get_rank())
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


class Clock(HookBase):
    """Saves the seconds of training with each checkpoint, over all starts of a run.

    Attributes:
        earlier: seconds that the resumed checkpoint had taken; 0 for a fresh run.
    """

    def __init__(self) -> None:
        self.earlier, self.began = 0.0, time.time()

    def state_dict(self) -> dict[str, float]:
        """Return the seconds so far."""
        return {"seconds": self.earlier + time.time() - self.began}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from the seconds of a checkpoint."""
        self.earlier = state["seconds"]


class _Progress(HookBase):
    """A progress bar with loss, learning rate and remaining time."""

    def before_train(self) -> None:
        trainer = self.trainer
        self.bar = tqdm(total=trainer.max_iter, initial=trainer.start_iter, unit="it", desc="train", mininterval=1)

    def after_step(self) -> None:
        self.bar.update()
        if (self.trainer.iter + 1) % WRITE_EVERY == 0:
            found = get_event_storage().latest()
            self.bar.set_postfix_str(f"loss {found['total_loss'][0]:.3f}, lr {found['lr'][0]:.2g}", refresh=False)

    def after_train(self) -> None:
        self.bar.close()


class _ToFolder(EventWriter):
    """Writes the newest values to metrics.jsonl and TensorBoard."""

    def __init__(self, folder: RunFolder, iterations: int, epochs: float) -> None:
        self.folder, self.iterations, self.epochs = folder, iterations, epochs  # epochs per iteration

    def write(self) -> None:
        storage = get_event_storage()
        step = min(storage.iter + 1, self.iterations)
        newest = storage.latest_with_smoothing_hint(WRITE_EVERY)
        values = {name: float(value) for name, (value, at) in newest.items() if at == storage.iter}
        if values:
            self.folder.add_metrics(step, step * self.epochs, values)
