"""Fashion-MNIST (Xiao et al., arXiv 1708.07747): 70,000 pictures of garments in ten classes, fetched at first use."""

from __future__ import annotations

import gzip
import shutil
import sys
import tempfile
from pathlib import Path

from torchvision.datasets import FashionMNIST

from common.files import write_atomically

FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


def load(root: str | Path, split: str) -> FashionMNIST:
    """Return the training or the test images; fetch them first where ROOT/FashionMNIST/raw lacks a file.

    Raises:
        ValueError: another split; the images are not there and cannot be had.
    """
    if split not in ("train", "test"):
        raise ValueError(f"fashion:{split}: use fashion:train or fashion:test")
    fetch(root)
    return FashionMNIST(root, train=split == "train")


def fetch(root: str | Path) -> None:
    """Complete the files in ROOT/FashionMNIST/raw: packed ones there, then those of Debian's package, then a download.

    Raises:
        ValueError: neither ROOT nor its parent exists; or the download failed: it says where files are to be
            put by hand.
    """
    raw = Path(root, "FashionMNIST", "raw")
    if not Path(root).absolute().parent.is_dir():
        raise ValueError(f"no Fashion-MNIST in {root}: there is no such folder")
    for name in _missing(raw):
        packed = next((p for p in (raw / f"{name}.gz", DEBIAN / f"{name}.gz") if p.is_file()), None)
        if packed is None:
            _download(raw)
            return
        write_atomically(raw / name, lambda part, packed=packed: _unpack(packed, part))  # type: ignore[misc]


def _missing(raw: Path) -> list[str]:
    return [name for name in FILES if not (raw / name).is_file() or not (raw / name).stat().st_size]


def _unpack(packed: Path, part: Path) -> None:
    with gzip.open(packed) as source, open(part, "wb") as target:
        shutil.copyfileobj(source, target)


def _download(raw: Path) -> None:
    """Download into a folder beside, so that an interrupted download, or two at once, leave no half of a file."""
    print(f"Fashion-MNIST: downloading 30 MB into {raw}", file=sys.stderr)
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw) as folder:
        try:
            FashionMNIST(folder, download=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"no Fashion-MNIST in {raw}, and its download failed ({error}): put {', '.join(FILES)} there, as they "
                "are or as .gz (github.com/zalandoresearch/fashion-mnist, data/fashion; Debian: apt-get install "
                "dataset-fashion-mnist)"
            ) from error
        for name in _missing(raw):
            Path(folder, "FashionMNIST", "raw", name).replace(raw / name)
