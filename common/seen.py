"""Which images a pre-training has seen: hashes in its checkpoint, and the test images that are among them.

A checkpoint holds the smallest 65,536 hashes of its images' files: all of them, of most data sets; of larger ones a
sample that is uniform whatever the images are, since hashes are. So it grows by 512 KiB at most, and of ImageNet each
image in twenty is known, which finds an overlap of 60 images in 95 of 100 cases. They lie in the checkpoint itself,
since files beside it are lost when it is moved.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from common.folders import escaped
from common.image_check import inspect_image
from common.scan import scan_files

MOST = 2**16
KEY = "image_hashes"  # in a checkpoint


def sample_hashes(hashes: Iterable[str]) -> torch.Tensor:
    """Return the smallest hashes, sorted, at most 65,536 of them: int64, the bits of the unsigned hashes.

    Args:
        hashes: of `image_check.inspect_image`; "" for an image without a file.
    """
    values = np.unique(np.array([int(text, 16) for text in hashes if text], dtype=np.uint64))
    return torch.from_numpy(values[:MOST].view(np.int64).copy())


def read_hashes(path: Path) -> np.ndarray | None:
    """Return the hashes in a checkpoint of this project, (n,) uint64 sorted; None where there are none."""
    if not path.is_file():  # random:ARCH, timm:NAME
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None  # in another format
    hashes = content.get(KEY) if isinstance(content, dict) else None
    return hashes.numpy().view(np.uint64) if isinstance(hashes, torch.Tensor) and len(hashes) else None


def find_seen(checkpoint: Path, tests: Sequence[Path], allow: bool = False) -> str:
    """Return in words which test images a pre-training has seen, by their files; "" where it has seen none.

    Args:
        checkpoint: any; only those of this project say what they have seen.
        tests: files of the test images.
        allow: accept such images.

    Raises:
        ValueError: there are such images, and they are not accepted.
    """
    seen = read_hashes(checkpoint) if tests else None
    if seen is None:
        return ""
    hashes = np.array([int(text, 16) for text in scan_files(tests, inspect_image, "test images")], dtype=np.uint64)
    found = np.flatnonzero(np.isin(hashes, seen))
    if not found.size:
        return ""
    sampled = len(seen) == MOST
    about = ""
    if sampled:  # the hashes below the largest of the sample are all known
        share = float(seen[-1]) / 2**64
        about = f", so about {min(len(tests), round(found.size / share))} in all (a sample of its images is known)"
    said = (
        f"{found.size} of {len(tests)} test images were in the pre-training of {escaped(str(checkpoint))}, e.g. "
        f"{escaped(str(tests[found[0]]))}{about}"
    )
    if not allow:
        raise ValueError(f"{said}: test on others, or add --allow-overlap, which the record will say")
    return said
