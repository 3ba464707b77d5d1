"""The training step and the loop around it. Nothing inside a step waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from common.cli import StopRequest
from common.distributed import all_gather, all_mean_, any_rank, rank, world_size
from common.features import network_input
from common.loaders import Batch
from common.precision import autocast_dtype
from pretrain.batch_norm import deal, exchange, inverse, running_statistics, set_groups
from pretrain.config import Config, OptimConfig
from pretrain.monitor import Monitor
from pretrain.supervised import Classifier
from pretrain.unimoco import UniMoCo


@dataclass
class Training:
    """Everything that a step changes."""

    config: Config
    model: UniMoCo | Classifier
    device: torch.device
    steps_per_epoch: int
    step: int = 0
    dtype: torch.dtype | None = None
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    encode_q: nn.Module = field(init=False)
    encode_k: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        c = self.config.optim
        self.model.to(self.device).to(memory_format=torch.channels_last)
        groups = local_groups(self.config.model.bn_groups, c)
        set_groups(self.model, groups, c.accumulate)
        self.dtype = autocast_dtype(c.precision, self.device)
        self.optimizer = torch.optim.SGD(
            self.model.encoder_q.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.encode_q = self.model.encoder_q
        self.encode_k = self.model.encoder_k if isinstance(self.model, UniMoCo) else nn.Identity()  # never called
        if c.compile:
            self.encode_q, self.encode_k = torch.compile(self.encode_q), torch.compile(self.encode_k)  # type: ignore[assignment]
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Running statistics are averaged when they are needed, not at every step.
            self.encode_q = DistributedDataParallel(
                self.encode_q, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True
            )

    @property
    def epoch(self) -> float:
        """Epochs done so far."""
        return self.step / self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, round(self.config.optim.epochs * self.steps_per_epoch))

    def average_statistics(self) -> None:
        """Gives every rank the running statistics of all groups."""
        all_mean_(running_statistics(self.model))


def local_groups(groups: int, config: OptimConfig) -> int:
    """Batch-norm groups in one micro-batch of one rank.

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
    """Learning rate at a (fractional) epoch."""
    if epoch < config.warmup:
        return config.lr * epoch / config.warmup
    moment = math.floor(epoch) if config.lr_update == "epoch" else epoch
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(moment >= m for m in config.milestones)
    return config.lr * 0.5 * (1 + math.cos(math.pi * moment / config.epochs))


def training_step(t: Training, batch: Batch, measure: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """One step on this rank's part of the global batch.

    Keys of the whole batch come first: dealt out to other normalisation groups (and ranks), encoded, gathered.
    Then queries, in micro-batches, against their own keys and the queue as it was before this batch.

    Returns:
        Mean loss of this rank (on the device), and with `measure` the statistics of this step.
    """
    c, model, n = t.config, t.model, len(batch.labels)
    if isinstance(model, Classifier):
        return supervised_step(t, model, batch, measure)
    labels, index = (x.to(t.device, non_blocking=True) for x in (batch.labels, batch.index))
    model.update_key_encoder()
    all_keys = encode_keys(t, batch.k)
    k = all_keys[rank() * n : (rank() + 1) * n]
    loss_sum, queries = torch.zeros((), device=t.device), []
    micro = n // c.optim.accumulate
    for start in range(0, n, micro):
        part = slice(start, start + micro)
        last = start + micro >= n
        with nullcontext() if last or world_size() == 1 else t.encode_q.no_sync():  # type: ignore[operator]
            q = embed(t, t.encode_q, batch.q[part])
            loss = model.loss(q, k[part], labels[part], index[part]) / c.optim.accumulate
            t.scaler.scale(loss).backward()
        loss_sum += loss.detach()
        queries.append(q.detach())
    statistics = model.statistics(torch.cat(queries), k, labels, index) if measure else {}
    statistics |= update_weights(t, measure)
    who = all_gather(torch.stack([labels, index], dim=1))
    model.enqueue(all_keys, who[:, 0], who[:, 1])
    return loss_sum, statistics


def supervised_step(t: Training, model: Classifier, batch: Batch, measure: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The step of the supervised baseline, on the query views; returns what `training_step` does."""
    n, micro = len(batch.labels), len(batch.labels) // t.config.optim.accumulate
    labels = batch.labels.to(t.device, non_blocking=True)
    loss_sum, outputs = torch.zeros((), device=t.device), []
    for start in range(0, n, micro):
        part = slice(start, start + micro)
        with nullcontext() if start + micro >= n or world_size() == 1 else t.encode_q.no_sync():  # type: ignore[operator]
            logits = encode(t, t.encode_q, batch.q[part])
            loss = model.loss(logits, labels[part]) / t.config.optim.accumulate
            t.scaler.scale(loss).backward()
        loss_sum += loss.detach()
        outputs.append(logits.detach())
    statistics = model.statistics(torch.cat(outputs), labels) if measure else {}
    return loss_sum, statistics | update_weights(t, measure)


def update_weights(t: Training, measure: bool) -> dict[str, Tensor]:
    """The optimiser's step on the gathered gradients; with `measure` it returns their norm."""
    t.scaler.unscale_(t.optimizer)
    norm = {}
    if measure:
        grads = [p.grad for p in t.model.encoder_q.parameters() if p.grad is not None]
        norm["grad_norm"] = torch.nn.utils.get_total_norm(grads)
    t.scaler.step(t.optimizer)
    t.scaler.update()
    t.optimizer.zero_grad(set_to_none=world_size() == 1)
    return norm


@torch.no_grad()
def encode_keys(t: Training, views: Tensor) -> Tensor:
    """(n, S, S, 3) uint8 key views of this rank -> (world * n, C) keys of the global batch, in its order."""
    c = t.config
    total = len(views) * world_size()
    order = deal(total, c.model.bn_groups, (c.seed, t.step))
    dealt = exchange(views.to(t.device, non_blocking=True), order)
    keys = torch.cat([embed(t, t.encode_k, part) for part in dealt.chunk(c.optim.accumulate)])
    return all_gather(keys)[inverse(order).to(t.device)]


def embed(t: Training, encoder: nn.Module, views: Tensor) -> Tensor:
    """(n, S, S, 3) uint8 -> (n, C) fp32, L2-normalised."""
    return F.normalize(encode(t, encoder, views).float(), dim=1)


def encode(t: Training, encoder: nn.Module, views: Tensor) -> Tensor:
    """(n, S, S, 3) uint8 -> what the encoder and its head make of it, (n, C), in the precision of the run."""
    with torch.autocast(t.device.type, t.dtype, enabled=t.dtype is not None):
        out: Tensor = encoder(network_input(views, t.device))
    return out


def fit(
    t: Training,
    batches: Iterable[Batch],
    monitor: Monitor,
    stop: StopRequest,
    save: Callable[[], Any],
    after_epoch: Callable[[], None],
    images: int,
) -> bool:
    """Trains from t.step to the end.

    Args:
        t: the training.
        batches: this rank's batches from t.step on.
        monitor: takes what is measured.
        stop: when it holds a signal, the state is saved and the loop left.
        save: writes the state.
        after_epoch: called after the last step of each epoch.
        images: size of the training set.

    Returns:
        True when all steps are done, False when stopped.
    """
    c = t.config
    last_every = c.checkpoint.last_every or t.steps_per_epoch
    waiting_since = time.perf_counter()
    for batch in batches:
        waited = time.perf_counter() - waiting_since
        lr = learning_rate(c.optim, t.epoch)
        for group in t.optimizer.param_groups:
            group["lr"] = lr
        due = monitor.due(t.step + 1)
        loss, statistics = training_step(t, batch, measure=due)
        t.step += 1
        monitor.observe(t.step, loss, waited)
        monitor.add_corrupt(batch.corrupt, images, c.data.max_corrupt)
        if due:
            monitor.report(t.step, t.epoch, lr, statistics)
        # Ranks may see a signal at different steps; they agree where they meet anyway.
        asked = any_rank(stop.signal is not None, t.device) if due or world_size() == 1 else False
        epoch_ends = t.step % t.steps_per_epoch == 0
        save_due = asked or t.step % last_every == 0 or t.step == t.steps
        if epoch_ends or save_due:
            monitor.check_finite(t.step, lr)
        if epoch_ends:
            after_epoch()
        if save_due:
            save()
        if asked and t.step < t.steps:
            return False
        waiting_since = time.perf_counter()
    return True
