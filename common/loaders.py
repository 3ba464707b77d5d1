"""Batches of two views, each a function of (seed, epoch, image index) alone.

So a run does not depend on the number of workers and processes, and a resumed run is exact: no random state is
carried from one batch to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from common.distributed import rank, ranks_on_cores, world_size
from common.images import CorruptImageError, ImageSet
from common.surroundings import cores
from common.transforms import Image, ViewConfig, ViewMaker, evaluation_view
from common.workers import protect, require_shared_memory

MAX_REPLACEMENTS = 20


@dataclass
class Batch:
    """One rank's part of a batch of n images.

    Args:
        q: (n, S, S, 3) uint8, the views for the query encoder.
        k: (n, S, S, 3) uint8, the views for the key encoder.
        labels: (n,) int64, -1 = unlabelled.
        index: (n,) int64, indices of the images in the training set.
        corrupt: index of each image that could not be read and was replaced -> reason.
    """

    q: Tensor
    k: Tensor
    labels: Tensor
    index: Tensor
    corrupt: dict[int, str]

    def pin_memory(self) -> Batch:
        """Pin the tensors, so that copies to the GPU do not block; called by DataLoader."""
        for name in ("q", "k", "labels", "index"):
            setattr(self, name, getattr(self, name).pin_memory())
        return self


class TwoViews(Dataset[Batch]):
    """Two random views of each image; indexed by (epoch, image index)."""

    views_per_image = 2

    def __init__(self, images: ImageSet, labels: np.ndarray, views: ViewConfig, seed: int) -> None:
        self.images, self.labels, self.make_view, self.seed = images, labels, ViewMaker(views), seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """Return a whole batch; DataLoader calls this in place of __getitem__ per image."""
        size = self.make_view.config.size
        views = np.empty((self.views_per_image, len(keys), size, size, 3), np.uint8)
        index = np.empty(len(keys), np.int64)
        corrupt: dict[int, str] = {}
        for row, (epoch, wanted) in enumerate(keys):
            rng = np.random.default_rng((self.seed, epoch, wanted))
            image, index[row] = self._read(wanted, rng, corrupt)
            for view in views:
                view[row] = self.make_view(image, rng)
        q, k = torch.from_numpy(views[0]), torch.from_numpy(views[-1])
        return Batch(q, k, torch.from_numpy(self.labels[index]), torch.from_numpy(index), corrupt)

    def _read(self, index: int, rng: np.random.Generator, corrupt: dict[int, str]) -> tuple[Image, int]:
        """Return the image and its index, or a random other image where it cannot be read."""
        for _ in range(MAX_REPLACEMENTS):
            try:
                return self.images.read(index), index
            except CorruptImageError as error:
                corrupt[index] = str(error)
                index = int(rng.integers(len(self.images)))
        raise CorruptImageError(f"{MAX_REPLACEMENTS} images in a row cannot be read, the last: {corrupt.popitem()[1]}")


class OneView(TwoViews):
    """One random view of each image, which is both views of a batch."""

    views_per_image = 1


class GlobalBatches(Sampler[list[tuple[int, int]]]):
    """This rank's part of every global batch, from step `start` to step `stop`, across epochs.

    An epoch is a permutation drawn from (seed, epoch), the same on every rank; an incomplete last batch is dropped.
    Global batch b of an epoch is elements b * batch ... (b + 1) * batch of it; rank r has the r-th part.

    Raises:
        ValueError: the batch does not divide over the ranks, or exceeds the number of images.
    """

    def __init__(self, images: int, batch: int, seed: int, start: int, stop: int) -> None:
        if batch % world_size():
            raise ValueError(f"optim.batch={batch} does not divide by {world_size()} processes")
        if images < batch:
            raise ValueError(f"{images} training images do not fill a batch; use --optim.batch {images} or less")
        self.images, self.batch, self.seed, self.start, self.stop = images, batch, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch, per_rank = self.images // self.batch, self.batch // world_size()
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.images)
            first = step % per_epoch * self.batch + rank() * per_rank
            yield [(epoch, int(i)) for i in order[first : first + per_rank]]


def add_corrupt(seen: dict[int, str], found: dict[int, str], images: int, allowed: float, limit: str) -> None:
    """Add unreadable images, index -> reason, to those seen; print a warning for each new one.

    Raises:
        CorruptImageError: there are more of them than the fraction `allowed` of all `images`; `limit` names it.
    """
    for index, reason in found.items():
        if index not in seen:
            seen[index] = reason
            tqdm.write(f"warning: image skipped: {reason}")
    if len(seen) > math.ceil(allowed * images):
        last = list(seen.values())[-1]
        raise CorruptImageError(
            f"{len(seen)} of {images} images cannot be read, more than {limit} allows; the last: {last}"
        )


class EvaluationViews(Dataset[Tensor]):
    """The evaluation view of each image, (size, size, 3) uint8. An unreadable image raises CorruptImageError."""

    def __init__(self, images: ImageSet, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(evaluation_view(self.images.read(index), self.size))


def default_workers(device: torch.device, in_memory: bool = False) -> int:
    """Return the loader processes for one rank: the cores of this process minus one, over the ranks that share them.

    On a CPU the network itself needs the cores, so there is one loader, and none for images `in_memory`.
    """
    if in_memory and device.type == "cpu":
        return 0
    return 1 if device.type == "cpu" else max(1, (cores() - 1) // ranks_on_cores())


def one_thread(_worker: int = 0) -> None:
    """Limit a loader process to one core; called at its start."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def train_loader(
    dataset: TwoViews, batches: GlobalBatches, workers: int | None, device: torch.device
) -> DataLoader[Batch]:
    """Return a loader of this rank's batches, in order, ahead of the training.

    Raises:
        ValueError: /dev/shm is too small.
    """
    workers = default_workers(device) if workers is None else workers
    side = dataset.make_view.config.size
    require_shared_memory(workers, batches.batch // world_size() * dataset.views_per_image * side * side * 3)
    return protect(
        DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=lambda batch: batch,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=one_thread,
        )
    )


def evaluation_loader(
    images: ImageSet, size: int, device: torch.device, batch: int, workers: int
) -> DataLoader[Tensor]:
    """Return a loader of the evaluation views of all images in order, (batch, size, size, 3) uint8.

    Raises:
        ValueError: /dev/shm is too small.
    """
    require_shared_memory(workers, min(batch, len(images)) * size * size * 3)
    return protect(
        DataLoader(
            EvaluationViews(images, size),
            batch_size=batch,
            num_workers=workers,
            worker_init_fn=one_thread,
            pin_memory=device.type == "cuda",
        )
    )
