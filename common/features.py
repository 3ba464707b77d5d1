"""Frozen features of a backbone: network input, pooled features, and their extraction over images and ranks.

Shapes: n images of a batch, S side of a view in pixels, N images in all, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from common.distributed import all_gather, rank, world_size
from common.images import ImageSet
from common.loaders import default_workers, evaluation_loader
from common.transforms import MEAN, STD

# On a CPU a core takes views of so many pixels at a time, so that activations stay in its cache: a ResNet-50 takes a
# quarter less time than with half of a batch of 256, for the same features to the bit. And of so many views at least.
PIXELS, LEAST = 2**18, 8


def network_input(images: Tensor, device: torch.device) -> Tensor:
    """Normalise views with ImageNet's mean and std: (n, S, S, 3) uint8 -> (n, 3, S, S) float32, channels_last."""
    mean, std = _mean_and_std(device)
    return (images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() - mean) / std


@cache  # a copy to the device at each call would make the host wait for it
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return mean, std


def pooled_features(encoder: nn.Module, x: Tensor) -> Tensor:
    """Return (n, D) for (n, 3, S, S): the pooled features of a timm ResNet, the output of any other network."""
    if isinstance(encoder, ResNet):
        pooled: Tensor = encoder.forward_head(encoder.forward_features(x), pre_logits=True)
        return pooled
    output: Tensor = encoder(x)
    return output


class Cores:
    """Map work on a device over a pool of single-threaded workers, one per CPU core, inside `with`.

    Operations on small tensors gain little from being split over cores, and wait long on a busy machine; a part of the
    data per core is faster. On a GPU, and with one core, parts are processed one after the other.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = torch.get_num_threads() if device.type == "cpu" else 1

    def __enter__(self) -> Cores:
        if self.count > 1:
            torch.set_num_threads(1)
            self.pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self.count > 1:
            self.pool.shutdown()
            torch.set_num_threads(self.count)

    def map(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> list[Any]:
        """Return work(part) for each part, in order. `work` must switch gradients off: new threads have them on."""
        return list(self.pool.map(work, parts) if self.count > 1 else map(work, parts))


class FeatureExtractor:
    """Run an encoder in evaluation mode without gradients, inside `with`; on a CPU each core takes a part of a batch.

    Args:
        encoder: see `pooled_features`; afterwards every module is back in the mode that it was in.
        device: where the encoder is.
        dtype: autocast type; None = fp32.
    """

    def __init__(self, encoder: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.encoder, self.device, self.dtype, self.cores = encoder, device, dtype, Cores(device)

    def __enter__(self) -> FeatureExtractor:
        self.training = {module: module.training for module in self.encoder.modules()}
        self.encoder.eval()
        self.cores.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores.__exit__()
        for module, mode in self.training.items():
            module.training = mode

    def __call__(self, images: Tensor) -> Tensor:
        """Return the pooled features (n, D), float32 on the device, of views (n, S, S, 3) uint8."""
        part = -(-len(images) // self.cores.count)
        if self.device.type == "cpu":
            part = min(part, max(LEAST, PIXELS // images.shape[1] ** 2))
        return torch.cat(self.cores.map(self._run, images.split(part)))

    @torch.no_grad()
    def _run(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return pooled_features(self.encoder, network_input(images, self.device)).float()


def raw_features(
    encoder: nn.Module,
    images: ImageSet,
    size: int,
    device: torch.device,
    batch: int = 256,
    workers: int | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[Tensor]:
    """Yield the pooled features of images, batch by batch and in order: (n, D) float32 on the device.

    Args:
        encoder: see `FeatureExtractor`.
        images: all of them are processed here, whatever the number of ranks.
        size: side S of the evaluation view, in pixels.
        device: where to compute.
        batch: images per forward pass, n.
        workers: loader processes; default: see `default_workers`.
        dtype: autocast type; None = fp32.
    """
    if workers is None:
        workers = default_workers(device, images.in_memory)
    with FeatureExtractor(encoder, device, dtype) as run:
        for views in evaluation_loader(images, size, device, batch, workers):
            yield run(views)


@torch.no_grad()
def extract_features(
    encoder: nn.Module, images: ImageSet, size: int, device: torch.device, batch: int = 256, workers: int | None = None
) -> Tensor:
    """Return the L2-normalised features of all images, (N, D) float32 on the device; each rank computes a part.

    Arguments as in `raw_features`.
    """

    def compute(part: ImageSet) -> Tensor:
        return torch.cat([F.normalize(x, dim=1) for x in raw_features(encoder, part, size, device, batch, workers)])

    return over_ranks(images, compute, device)


def over_ranks(images: ImageSet, compute: Callable[[ImageSet], Tensor], device: torch.device) -> Tensor:
    """Return compute(images), one row per image, (N, ...).

    Several ranks compute a part each, and have all of it on their device.
    """
    world = world_size()
    if world == 1:
        return compute(images)
    each = -(-len(images) // world)  # the last images of some ranks are repetitions: a collective needs equal parts
    mine = (np.arange(each) * world + rank()) % len(images)
    gathered = all_gather(compute(images.subset(mine)).to(device))
    return gathered.unflatten(0, (world, each)).transpose(0, 1).flatten(0, 1)[: len(images)]
