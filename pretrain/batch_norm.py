"""Shuffled batch normalisation: a query and its positive key share no statistics (arXiv 1911.05722, section 3.3).

Where a query and its key are normalised with the statistics of the same images, the network exploits them. MoCo
normalises per GPU and shuffles the keys over the GPUs. Here the global batch has `groups` normalisation groups on any
number of devices: a rank holds groups / world_size of them (split BN), and the keys are shuffled so that every key
group has equally many images of every query group. One process with 8 groups computes what 8 GPUs compute.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.distributed import rank, to_device, world_size


class SplitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that normalises `groups` equal, consecutive parts of a batch, each with its own statistics.

    In training, the running statistics take the mean of the groups' statistics, so they do not depend on the number
    of devices. In evaluation, and with groups = 1, it is BatchNorm2d. Parameters and buffers have its names.
    """

    groups: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, c, h, w); in training n must be a multiple of `groups`."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        if x.shape[0] % self.groups:
            raise ValueError(f"a batch of {x.shape[0]} images does not divide into {self.groups} groups")
        if torch.compiler.is_compiling():
            return self._fused(x)
        parts = [
            torch.native_batch_norm(part, self.weight, self.bias, None, None, True, 0.0, self.eps)
            for part in x.chunk(self.groups)
        ]
        self._update(torch.stack([p[1] for p in parts]), torch.stack([p[2] for p in parts]), x)
        return torch.cat([p[0] for p in parts])

    def _fused(self, x: Tensor) -> Tensor:
        """Normalise all groups in a few operations, which torch.compile fuses; eager, they would copy x four times."""
        parts = x.unflatten(0, (self.groups, -1)).float()  # (groups, n / groups, c, h, w)
        variances, means = torch.var_mean(parts, dim=(1, 3, 4), correction=0, keepdim=True)
        inverse_stds = torch.rsqrt(variances + self.eps)
        self._update(means.flatten(1), inverse_stds.flatten(1), x)
        shape = (1, 1, -1, 1, 1)
        y = (parts - means) * (inverse_stds * self.weight.view(shape)) + self.bias.view(shape)
        return y.flatten(0, 1).to(x.dtype)

    @torch.no_grad()
    def _update(self, means: Tensor, inverse_stds: Tensor, x: Tensor) -> None:
        """Update the running statistics from (groups, c) means and 1 / sqrt(variance + eps)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = x.numel() // x.shape[1] // self.groups
        variances = (inverse_stds.pow(-2) - self.eps) * (count / max(count - 1, 1))
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(means.mean(0).to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variances.mean(0).to(self.running_var.dtype), momentum)
        self.num_batches_tracked.add_(1)


def split_batch_norm(model: nn.Module) -> nn.Module:
    """Turn every BatchNorm2d of a model into a SplitBatchNorm2d of one group, in place.

    Raises:
        ValueError: the model has batch normalisation of another kind.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SplitBatchNorm2d
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, SplitBatchNorm2d):
            raise ValueError(f"{type(module).__name__}: only BatchNorm2d encoders can be pre-trained")
    return model


def set_groups(model: nn.Module, groups: int, micro_batches: int = 1) -> None:
    """Set the number of normalisation groups of a batch.

    With several micro-batches per step, each gets the momentum 1 - 0.9 ** (1 / micro_batches), so that a step keeps as
    much of the old running statistics as with one.
    """
    for module in model.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.groups = groups
            module.momentum = 1 - 0.9 ** (1 / micro_batches)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return running means and variances; they are linear, so their mean over ranks is that of all groups."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, SplitBatchNorm2d)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]


def shuffle(n: int, groups: int, seed: tuple[int, ...]) -> Tensor:
    """Draw an order of n images in which every new group has equally many images of every old group.

    Within each old group the images are permuted, then assigned to the new groups in turn. So the groups of a query
    and its key have n / groups**2 images (rounded) in common, the minimum.

    Args:
        n: images in the global batch, a multiple of `groups`.
        groups: normalisation groups in the global batch.
        seed: of the permutation; the same on every rank.

    Returns:
        (n,) int64 on the CPU: order[i] is the image at position i of the new batch.
    """
    generator = torch.Generator().manual_seed(hash(seed) % 2**63)
    size = n // groups
    shuffled = torch.stack([torch.randperm(size, generator=generator) + g * size for g in range(groups)])
    turn = (torch.arange(size)[None] + torch.arange(groups)[:, None]) % groups  # (old group, j) -> new group
    by_group = torch.argsort(turn.reshape(-1), stable=True)
    return shuffled.reshape(-1)[by_group]


def all_to_all(x: Tensor, order: Tensor) -> Tensor:
    """Exchange images between ranks: each is sent to the one rank that needs it.

    Args:
        x: (n, ...) this rank's part of the global batch.
        order: (world * n,) int64 on the CPU, the same on every rank (see `shuffle`).

    Returns:
        (n, ...): this rank's part of the global batch in the new order.
    """
    n, world, me = x.shape[0], world_size(), rank()
    if world == 1:
        return x[to_device(order, x.device)]
    images = np.array(order.tolist()).reshape(world, n)  # [rank that gets it, position there] -> image
    owner = images // n  # the rank that has it
    send, send_counts = images[owner == me] - me * n, (owner == me).sum(1).tolist()
    receive_counts = np.bincount(owner[me], minlength=world).tolist()
    positions = np.argsort(owner[me], kind="stable")  # received rows are sorted by sender
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    outgoing = x[to_device(torch.from_numpy(send), x.device)].contiguous()
    dist.all_to_all_single(received, outgoing, receive_counts, send_counts)
    out = torch.empty_like(received)
    out[to_device(torch.from_numpy(positions), x.device)] = received
    return out
