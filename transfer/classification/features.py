"""Features of the frozen trunk, computed once and kept in files.

A file holds the pooled features of one list of images, (B, D) raw numbers in order. Its name is a hash of what they
depend on: checkpoint, images, view, precision; a .json of the same name says it in words.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.distributed import rank
from common.features import raw_features
from common.files import write_atomically
from common.images import CorruptImageError, ImageSet
from common.precision import autocast_dtype
from converters import Backbone

BATCH = 256


@dataclass(frozen=True)
class Extraction:
    """How features are computed and kept.

    Args:
        size: side of the evaluation view, pixels.
        device: where to compute.
        precision: of the trunk's arithmetic: "fp32", "bf16", "fp16", or "auto", bf16 where the device is fast at it.
        store: type in which they are kept.
        cache: folder of the files; None keeps them in memory only.
        workers: loader processes.
    """

    size: int
    device: torch.device
    precision: str = "fp32"
    store: torch.dtype = torch.float32
    cache: Path | None = None
    workers: int | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """Autocast type; None = fp32."""
        return autocast_dtype(self.precision, self.device)

    def describe(self, backbone: Backbone, images: ImageSet) -> dict[str, str | int]:
        """Everything that the features depend on."""
        return {
            "checkpoint": backbone.source.sha256,
            "arch": backbone.arch,
            "images": len(images),
            "data": fingerprint(images),
            "view": f"short side {self.size} * 256 / 224, centre {self.size}",
            "layer": "average pool",
            "arithmetic": str(self.dtype or torch.float32),
            "store": str(self.store),
        }

    def __call__(self, backbone: Backbone, network: nn.Module, images: ImageSet, what: str) -> Tensor:
        """Pooled, un-normalised features of all images: (B, D) in the stored type, in memory or mapped from a file.

        Every process computes what it is asked for; see transfer/knn.py for parts.

        Args:
            backbone: whose they are.
            network: the backbone, built, on the device.
            images: B of them.
            what: their name, for the screen.
        """
        shape = (len(images), backbone.feature_dim)
        if self.cache is None:
            features = torch.empty(shape, dtype=self.store)
            self._fill(features, network, images, what)
            return features
        content = self.describe(backbone, images)
        name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
        path = self.cache / f"{name}.features"
        size = shape[0] * shape[1] * self.store.itemsize
        began, reused = time.time(), path.exists() and path.stat().st_size == size
        if not reused:
            self.cache.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"what": what, "path": backbone.source.path, **content}, indent=2) + "\n"
            write_atomically(path.with_suffix(".json"), lambda part: part.write_text(text))
            write_atomically(
                path, lambda part: self._fill(_mapped(part, shape, self.store, size), network, images, what)
            )
        if rank() == 0:
            how = "reused" if reused else f"{time.time() - began:.0f} s"
            tqdm.write(f"features of {what}: {shape[0]} x {shape[1]}, {size / 2**20:.0f} MiB, {path} ({how})")
        return _mapped(path, shape, self.store)

    def _fill(self, features: Tensor, network: nn.Module, images: ImageSet, what: str) -> None:
        """Writes the features of all images into (B, D)."""
        start = 0
        parts = raw_features(network, images, self.size, self.device, BATCH, self.workers, self.dtype)
        with tqdm(total=len(images), desc=f"features of {what}", unit="img", disable=rank() != 0, leave=False) as bar:
            for part in parts:
                rows = features[start : start + len(part)].copy_(part)
                if not bool(torch.isfinite(rows).all()):
                    raise ValueError(
                        f"features of {what} are not finite in {rows.dtype}: the checkpoint is damaged, or needs "
                        "--precision fp32 --store fp32"
                    )
                start += len(part)
                bar.update(len(part))


def _mapped(path: Path, shape: tuple[int, int], dtype: torch.dtype, create: int = 0) -> Tensor:
    """The file as a tensor; with `create` it is made first, that many bytes long."""
    if create:
        with open(path, "wb") as file:
            os.truncate(file.fileno(), create)
    flat = torch.from_file(str(path), shared=create > 0, size=shape[0] * shape[1], dtype=dtype)
    return flat.view(shape)


def fingerprint(images: ImageSet) -> str:
    """Hash of the images: of file names, sizes and times of change, or of the pixels where they are in memory."""
    digest = hashlib.sha256()
    for number, path in enumerate(images.paths or [None] * len(images)):
        if path is None:
            pixels = images.read(number)
            digest.update(f"{pixels.shape}\n".encode() + pixels.tobytes())
            continue
        try:
            status = path.stat()
        except OSError as error:
            raise CorruptImageError(f"{path}: {error.strerror}") from error
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
