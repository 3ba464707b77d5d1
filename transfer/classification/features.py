"""Features of the frozen backbone, computed once and kept in files.

A file holds the pooled features of one list of images, (B, D) raw numbers in order. Its name is a hash of all that they
depend on (checkpoint, images, view, precision), which a .json file beside it spells out.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.distributed import rank
from common.features import raw_features
from common.files import write_atomically, write_text
from common.folders import escaped
from common.images import CorruptImageError, ImageSet
from converters import Backbone

BATCH = 256
CONSTANT = 1e-6  # features that differ by less, relative to the largest, are the same but for rounding


@dataclass(frozen=True)
class FeatureCache:
    """Compute features, or read them from their file.

    Args:
        size: side of the evaluation view in pixels.
        device: where to compute.
        dtype: autocast type of the backbone; None = fp32.
        store: type in which they are kept.
        folder: of the files; None keeps them in memory only.
        workers: loader processes.
    """

    size: int
    device: torch.device
    dtype: torch.dtype | None = None
    store: torch.dtype = torch.float32
    folder: Path | None = None
    workers: int | None = None

    def describe(self, backbone: Backbone, images: ImageSet) -> dict[str, str | int]:
        """Return all that the features depend on."""
        return {
            "checkpoint": backbone.source.content_id,
            "arch": backbone.arch,
            "images": len(images),
            "data": fingerprint(images),
            "view": f"short side {self.size} * 256 / 224, centre {self.size}",
            "layer": "average pool",
            "arithmetic": str(self.dtype or torch.float32),
            "store": str(self.store),
        }

    def __call__(self, backbone: Backbone, network: nn.Module, images: ImageSet, name: str) -> Tensor:
        """Return pooled, un-normalised features (B, D) in the stored type, in memory or mapped from their file.

        Every process computes the features of the images that it asks for.

        Args:
            backbone: whose features.
            network: the backbone, built, on the device.
            images: B of them.
            name: of the images, for the screen.

        Raises:
            ValueError: features are not finite, or the same for all images.
        """
        shape = (len(images), backbone.feature_dim)
        if self.folder is None:
            features = torch.empty(shape, dtype=self.store)
            for start, rows in self._rows(network, images, name):
                features[start : start + len(rows)] = rows
            return features
        if (found := self._chosen(backbone, images)) is not None:
            return found
        content, path = self._place(backbone, images)
        size, began = shape[0] * shape[1] * self.store.itemsize, time.time()
        if not (reused := _holds(path, size)):
            about = {"what": name, "path": backbone.source.path, **content}
            write_atomically(path, partial(self._write, shape, network, images, name))
            write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
        if rank() == 0:
            how = "reused" if reused else f"{time.time() - began:.0f} s"
            tqdm.write(f"features of {name}: {shape[0]} x {shape[1]}, {size / 2**20:.0f} MiB, {path} ({how})")
        return torch.from_file(str(path), size=shape[0] * shape[1], dtype=self.store).view(shape)

    def _place(self, backbone: Backbone, images: ImageSet) -> tuple[dict[str, str | int], Path]:
        """Return all that the features depend on, and their file."""
        assert self.folder is not None
        content = self.describe(backbone, images)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
        return content, self.folder / f"{digest}.features"

    def _chosen(self, backbone: Backbone, images: ImageSet) -> Tensor | None:
        """Return the features of images from the file of a set that they were chosen from, where there is one."""
        rows, width = np.arange(len(images)), backbone.feature_dim
        while images.whole is not None:
            images, chosen = images.whole
            rows = chosen[rows]
            _, path = self._place(backbone, images)
            if len(images) > len(rows) and _holds(path, len(images) * width * self.store.itemsize):
                features = torch.from_file(str(path), size=len(images) * width, dtype=self.store)
                return features.view(-1, width)[torch.from_numpy(rows)]
        return None

    def _write(self, shape: tuple[int, int], network: nn.Module, images: ImageSet, name: str, path: Path) -> None:
        """Write the features of all images; on a full disk fail before they are computed."""
        with path.open("wb") as file:  # writing to a mapped file would end in SIGBUS where the disk fails
            os.posix_fallocate(file.fileno(), 0, shape[0] * shape[1] * self.store.itemsize)
            for _, rows in self._rows(network, images, name):
                file.write(rows.view(torch.uint8).numpy().data)

    def _rows(self, network: nn.Module, images: ImageSet, name: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the index of the first image and the features (n, D) of each batch, on the CPU in the stored type."""
        start, spread, first = 0, 0.0, torch.zeros(0)
        parts = raw_features(network, images, self.size, self.device, BATCH, self.workers, self.dtype)
        with tqdm(total=len(images), desc=f"features of {name}", unit="img", disable=rank() != 0, leave=False) as bar:
            for part in parts:
                rows = part.to("cpu", self.store).contiguous()
                if not bool(torch.isfinite(rows).all()):
                    raise ValueError(
                        f"features of {name} are not finite in {rows.dtype}: the checkpoint is damaged, or needs "
                        "--precision fp32 --store fp32"
                    )
                first = first if start else rows[:1].float()
                spread = max(spread, float((rows.float() - first).abs().max()))
                yield start, rows
                start += len(rows)
                bar.update(len(rows))
        if start > 1 and spread <= CONSTANT * float(first.abs().max()):
            raise ValueError(
                f"features of {name} are the same for all {start} images, so that no metric of them means "
                "anything: the checkpoint has collapsed, or the images are all the same"
            )


def _holds(path: Path, size: int) -> bool:
    """Return whether a file of features exists and has its size in bytes."""
    return path.is_file() and path.stat().st_size == size


def fingerprint(images: ImageSet) -> str:
    """Return a hash of the images: of names, sizes and times of change of files, or of the pixels in memory."""
    digest = hashlib.sha256()
    for i, path in enumerate(images.paths or [None] * len(images)):
        if path is None:
            pixels = images.read(i)
            digest.update(f"{pixels.shape}\n".encode() + pixels.tobytes())
            continue
        try:
            status = path.stat()
        except OSError as error:
            raise CorruptImageError(f"{escaped(str(path))}: {error.strerror}") from error
        digest.update(os.fsencode(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()
