"""detectron2's trainer with our data order, progress, measurements and a stop where the loss is not finite.

What is random in an iteration is a function of (seed, iteration, rank): a run that was killed and resumed on the CPU
ends in the bits of an uninterrupted one. On a GPU some of detectron2's backward passes add in any order: there, solver
position and data order are the same and the last digits are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.run_folder import RunFolder
from converters import Backbone
from transfer.detection.data import training_loader
from transfer.detection.evaluation import Results, build_evaluator
from transfer.detection.weights import load_backbone

WRITE_EVERY = 10  # iterations


class Trainer(DefaultTrainer):
    """Trains a detector from a backbone; `results` are its figures afterwards.

    Args:
        cfg: resolved (transfer/detection/config.py).
        backbone: to start from.
        folder: run folder.
        packages: distributions whose versions are written down.
    """

    def __init__(self, cfg: CfgNode, backbone: Backbone, folder: Path, packages: tuple[str, ...] = ()) -> None:
        self.folder, self.packages = RunFolder(folder), packages
        super().__init__(cfg)
        self.compared = load_backbone(self.network, backbone)
        if cfg.TASK.PRECISION == "bf16":
            train_in_bf16(self.network, cfg.MODEL.DEVICE)

    @property
    def network(self) -> nn.Module:
        """The model itself, without what distributes it."""
        return getattr(self.checkpointer.model, "module", self.checkpointer.model)

    @property
    def results(self) -> Results:
        """Figures of the last evaluation."""
        return self._last_eval_results

    def resume(self) -> int:
        """Goes on from the run folder's newest checkpoint, if there is one; returns the iterations done."""
        self.resume_or_load(resume=True)
        self.data_loader.batch_sampler.start = self.start_iter
        return self.start_iter

    def train(self) -> None:
        """Trains to the last iteration and evaluates."""
        self.folder.start(
            yaml.safe_load(self.cfg.dump()), torch.device(self.cfg.MODEL.DEVICE), self.start_iter,
            packages=self.packages,
        )  # fmt: skip
        try:
            super().train()
        except FloatingPointError as error:
            raise ValueError(
                f"iteration {self.iter}: the loss is not finite at learning rate "
                f"{self.optimizer.param_groups[0]['lr']:g} ({' '.join(str(error).split())}); lower SOLVER.BASE_LR"
            ) from error
        finally:
            self.folder.close()

    def build_hooks(self) -> list[HookBase | None]:
        """detectron2's hooks, with our checkpoints, progress and writer in the place of its own."""
        built = super().build_hooks()
        mine: list[HookBase | None] = [_Seeds(self.cfg.SEED)]
        for hook in built:
            if isinstance(hook, hooks.PeriodicCheckpointer):
                hook = hooks.PeriodicCheckpointer(
                    self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, self.max_iter, max_to_keep=2
                )
            elif isinstance(hook, hooks.PeriodicWriter):
                hook = hooks.PeriodicWriter(self.build_writers(), WRITE_EVERY)
            mine.append(hook)
        return [*mine, _Progress()] if comm.is_main_process() else mine

    def build_writers(self) -> list[EventWriter]:
        """One writer: metrics.jsonl and TensorBoard."""
        images = len(self.data_loader.dataset.rows)
        return [_ToFolder(self.folder, self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH / images)]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, without a print-out of it."""
        from detectron2.modeling import build_model

        return build_model(cfg)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Batches that are a function of seed and iteration."""
        return training_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """The data set's own figures."""
        return build_evaluator(cfg, dataset_name, Path(cfg.OUTPUT_DIR))


def train_in_bf16(model: nn.Module, device: str) -> None:
    """Lets a model compute under bf16 autocast while it trains; it is evaluated in fp32."""
    forward = model.forward

    def mixed(batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=model.training):
            return forward(batch)

    model.forward = mixed


class _Seeds(HookBase):
    """Seeds torch anew in each iteration: which regions are sampled does not depend on where a run began."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        entropy = (self.seed, self.trainer.iter, comm.get_rank())
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


class _Progress(HookBase):
    """A bar with loss, learning rate and the time that is left."""

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
    """The newest measurements as a line of metrics.jsonl and in TensorBoard."""

    def __init__(self, folder: RunFolder, iterations: int, epochs: float) -> None:
        self.folder, self.iterations, self.epochs = folder, iterations, epochs  # epochs in an iteration

    def write(self) -> None:
        storage = get_event_storage()
        step = min(storage.iter + 1, self.iterations)
        newest = storage.latest_with_smoothing_hint(WRITE_EVERY)
        values = {name: float(value) for name, (value, at) in newest.items() if at == storage.iter}
        if values:
            self.folder.add_metrics(step, step * self.epochs, values)
