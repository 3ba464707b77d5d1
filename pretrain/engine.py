"""The training step: micro-batches, precision, processes, optimiser. Nothing inside a step waits for the device."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.distributed import all_mean_, world_size
from common.features import network_input
from common.loaders import Batch
from common.precision import autocast_dtype, use_exact_fp32
from pretrain.batch_norm import running_statistics, set_groups
from pretrain.compilation import compile_encoders, keeps_gradients
from pretrain.config import Config, OptimConfig
from pretrain.sgd import HostSGD

# The option of DistributedDataParallel that sends buffers at every step; before torch 2.13 it has another name.
SENDS_BUFFERS = "forward_sync_buffers"
if SENDS_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    SENDS_BUFFERS = "broadcast_buffers"


class Model(nn.Module):
    """A method of pre-training. `encoder_q`, a backbone with a head as its `fc`, is what the optimiser updates."""

    encoder_q: ResNet

    def training_step(self, t: Training, batch: Batch, measure: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the gradients of this rank's part of the global batch in the precision of the run.

        Returns:
            The mean loss and, with `measure`, statistics of this step, which change nothing; scalars on the device.
        """
        raise NotImplementedError  # each method has its own


class Training:
    """Everything that a step changes; `step` counts the steps done so far.

    Attributes:
        earlier_schedules: of a run that was continued with another one: the step, and what changed.

    Args:
        config: of the run.
        model: what is trained; moved to the device.
        device: of this process.
        steps_per_epoch: full batches in the training set.
    """

    def __init__(self, config: Config, model: Model, device: torch.device, steps_per_epoch: int) -> None:
        self.config, self.model, self.device, self.steps_per_epoch = config, model, device, steps_per_epoch
        self.step, self.averaged_at, c = 0, -1, config.optim
        self.earlier_schedules: list[dict[str, Any]] = []
        self.model.to(self.device).to(memory_format=torch.channels_last)
        set_groups(self.model, local_groups(self.config.model.bn_groups, c), c.accumulate)
        self.dtype = autocast_dtype(c.precision, self.device, config.views.size)
        use_exact_fp32()
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
        sgd = HostSGD if self.device.type == "cpu" else torch.optim.SGD
        self.optimizer = sgd(
            self.model.encoder_q.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if self.scaler.is_enabled() or self.device.type == "cpu":
            # A fused SGD leaves the momentum uninitialised where its first step is skipped on overflow.
            for p in self.model.encoder_q.parameters():
                self.optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.compiled = ""
        compile_encoders(self)
        self.encode_q = self.wrap()

    def wrap(self) -> nn.Module:
        """Return the query encoder, with its gradients exchanged between processes where there are several."""
        if world_size() == 1:
            return self.model.encoder_q
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Running statistics are averaged when they are needed, not at every step.
        settings: dict[str, Any] = {SENDS_BUFFERS: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(self.model.encoder_q, device_ids=ids, **settings)

    @property
    def epoch(self) -> float:
        """Epochs done so far."""
        return self.step / self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, round(self.config.optim.epochs * self.steps_per_epoch))

    @property
    def steps_left_in_epoch(self) -> int:
        """Steps until the end of the current epoch, or of the run where that comes first."""
        return min(self.steps_per_epoch - self.step % self.steps_per_epoch, self.steps - self.step)

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last of an epoch, or of the run."""
        return self.step % self.steps_per_epoch == 0 or self.step == self.steps

    def epochs_passed(self, every: float) -> bool:
        """Return whether the whole epoch that just ended passed a multiple of `every` epochs; 0 = never."""
        whole = self.step % self.steps_per_epoch == 0
        return whole and every > 0 and int(self.epoch / every) > int((self.epoch - 1) / every)

    def set_learning_rate(self) -> float:
        """Set the learning rate of the next step and return it."""
        lr = learning_rate(self.config.optim, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def encode(self, encoder: nn.Module, views: Tensor) -> Tensor:
        """Return an encoder's output (n, C) for views (n, S, S, 3) uint8, in the precision of the run."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            output: Tensor = encoder(network_input(views, self.device))
        return output

    def micro_batches(self, views: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield each micro-batch of query views and its encoding, to be followed by `backward` before the next.

        Gradients are exchanged between processes during the last one.
        """
        n = len(views)
        size = n // self.config.optim.accumulate
        for start in range(0, n, size):
            last = start + size >= n
            part = slice(start, start + size)
            with nullcontext() if last or world_size() == 1 else self.encode_q.no_sync():  # type: ignore[operator]
                yield part, self.encode(self.encode_q, views[part])

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradients of a micro-batch's mean loss; return its part of the batch's mean loss."""
        loss = loss / self.config.optim.accumulate
        self.scaler.scale(loss).backward()
        return loss.detach()

    def update_weights(self, measure: bool) -> dict[str, Tensor]:
        """Let the optimiser use the gradients; with `measure`, return their norm and the state of the loss scale.

        In fp16 a step whose gradients overflow is skipped and counted, and the loss scale is halved.
        """
        self.scaler.unscale_(self.optimizer)
        statistics = {}
        if measure:
            grads = [p.grad for p in self.model.encoder_q.parameters() if p.grad is not None]
            statistics["grad_norm"] = torch.nn.utils.get_total_norm(grads)
        # Updated in place; get_scale() would wait for the device.
        scale = self.scaler._scale if self.scaler.is_enabled() else None
        before = None if scale is None else scale.clone()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if scale is not None and before is not None:
            self.skipped_steps += scale < before
            if measure:
                statistics |= {"loss_scale": scale.clone(), "skipped_steps": self.skipped_steps.double()}
        self.optimizer.zero_grad(set_to_none=not keeps_gradients(self))
        return statistics

    def average_statistics(self) -> None:
        """Give every rank the running statistics of all batch-norm groups, once after a step.

        Their last digits depend on the steps after which it is called, so a stop must not add one.
        """
        if self.averaged_at != self.step:
            all_mean_(running_statistics(self.model))
            self.averaged_at = self.step


def training_step(t: Training, batch: Batch, measure: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Do one step on this rank's part of the global batch.

    Returns:
        Mean loss of this rank, and with `measure` the statistics of this step; scalars on the device.
    """
    loss, statistics = t.model.training_step(t, batch, measure)
    return loss, statistics | t.update_weights(measure)


def local_groups(groups: int, config: OptimConfig) -> int:
    """Return the batch-norm groups in one micro-batch of one rank.

    Raises:
        ValueError: groups, batch, micro-batches and processes do not divide.
    """
    world, micro = world_size(), config.accumulate
    if groups % (world * micro):
        raise ValueError(
            f"model.bn_groups={groups} does not divide over {world} processes x {micro} micro-batches; "
            f"use a multiple of {world * micro}"
        )
    if config.batch % groups or config.batch // groups < 2:
        raise ValueError(
            f"optim.batch={config.batch} does not make {groups} batch-norm groups of 2 images or more; "
            "change --optim.batch or --model.bn_groups"
        )
    return groups // (world * micro)


def learning_rate(config: OptimConfig, epoch: float) -> float:
    """Return the learning rate at a (fractional) epoch."""
    if epoch < config.warmup:
        return config.lr * epoch / config.warmup
    moment = math.floor(epoch) if config.lr_update == "epoch" else epoch
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(moment >= m for m in config.milestones)
    return config.lr * 0.5 * (1 + math.cos(math.pi * moment / config.epochs))
