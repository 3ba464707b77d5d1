"""Test images that are training images: files of equal content, and images that look the same.

Two images look the same where their 64-bit difference hashes differ in few bits and their thumbnails correlate. The
first finds candidates among any number of images, the second confirms them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.files import short_hash
from common.folders import escaped
from common.images import CorruptImageError, decode
from common.scan import scan_files

BITS = 3  # of 64 in which the hashes of two images that look the same may differ
CORRELATION = 0.99  # of their thumbnails, at least; of two dresses of Fashion-MNIST it is up to 0.988
MARGIN = 4.0  # of 255, by which a pixel must be brighter than its neighbour: plain parts have noise
THUMBNAIL = 32  # pixels, both sides
FLAT = 3.0  # standard deviation, of 255, below which an image looks like any other


@dataclass(frozen=True)
class Overlap:
    """Test images that are among the training images.

    Attributes:
        tested: number of test images.
        pairs: (test image, training image, whether their files are equal), the first such training image of each.
    """

    tested: int
    pairs: list[tuple[Path, Path, bool]]

    def __str__(self) -> str:
        equal = sum(same for _, _, same in self.pairs)
        test, train, _ = self.pairs[0]
        kinds = [f"{equal} have the same bytes"] * (equal > 0)
        kinds += [f"{len(self.pairs) - equal} look the same"] * (equal < len(self.pairs))
        return (
            f"{len(self.pairs)} of {self.tested} test images are training images ({', '.join(kinds)}), e.g. "
            f"{escaped(str(test))} and {escaped(str(train))}"
        )


def fingerprint(path: Path) -> list[str]:
    """Return a hash of the file's content and the image's difference hash, in hexadecimal; "" for a flat image.

    Bit i of the difference hash says whether the right neighbour of pixel i of a 9 x 8 thumbnail is brighter.

    Raises:
        CorruptImageError: it cannot be decoded.
    """
    data = path.read_bytes()
    small = thumbnail(path, data)
    seen = ""
    if small.std() >= FLAT:
        tiny = cv2.resize(small, (9, 8), interpolation=cv2.INTER_AREA)
        seen = np.packbits(tiny[:, 1:] > tiny[:, :-1] + MARGIN).tobytes().hex()
    return [short_hash(data), seen]


def thumbnail(path: Path, data: bytes) -> np.ndarray:
    """Return an image as (32, 32) float32 gray."""
    try:
        gray = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
    except cv2.error:
        gray = None
    if gray is None:
        decode(path)  # says what is wrong
        raise CorruptImageError(f"{escaped(str(path))}: cannot be decoded in gray")
    return cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)


def find_overlap(train: Sequence[Path], test: Sequence[Path], allow: bool = False) -> tuple[str, list[str]]:
    """Return in words which test images are training images, "" where there are none, and hashes of all files' content.

    Args:
        train: N files.
        test: M files.
        allow: accept such images.

    Returns:
        The words; the hashes, those of the training images first.

    Raises:
        ValueError: there are such images, and they are not accepted.
    """
    train_prints, test_prints = (
        scan_files(paths, fingerprint, title) for paths, title in ((train, "training images"), (test, "test images"))
    )
    content = {print_[0]: path for path, print_ in zip(reversed(train), reversed(train_prints), strict=True)}
    pairs = [
        (path, content[print_[0]], True) for path, print_ in zip(test, test_prints, strict=True) if print_[0] in content
    ]
    equal = {path for path, _, _ in pairs}
    for path, other in _look_alike(train, [p[1] for p in train_prints], test, [p[1] for p in test_prints]):
        if path not in equal:
            equal.add(path)
            pairs.append((path, other, False))
    said = str(Overlap(len(test), pairs)) if pairs else ""
    if said and not allow:
        raise ValueError(f"{said}: remove them from one part, or add --allow-overlap, which the record will say")
    return said, [print_[0] for prints in (train_prints, test_prints) for print_ in prints]


def _look_alike(
    train: Sequence[Path], train_hashes: Sequence[str], test: Sequence[Path], test_hashes: Sequence[str]
) -> list[tuple[Path, Path]]:
    """Return (test image, training image) of those that look the same.

    Hashes of 64 bits that differ in at most three have one of their four parts of 16 bits in common.
    """
    known, asked = ([i for i, seen in enumerate(hashes) if seen] for hashes in (train_hashes, test_hashes))
    one = np.array([int(train_hashes[i], 16) for i in known], dtype=np.uint64)
    two = np.array([int(test_hashes[i], 16) for i in asked], dtype=np.uint64)
    found = dict[int, int]()
    thumbnails = dict[Path, np.ndarray]()
    for shift in range(0, 64, 16):
        parts = (one >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(parts, kind="stable")
        wanted = (two >> np.uint64(shift)) & np.uint64(0xFFFF)
        first, last = (np.searchsorted(parts[order], wanted, side) for side in ("left", "right"))
        for k in np.flatnonzero((last > first) & ~np.isin(np.arange(len(two)), list(found))).tolist():
            near = order[first[k] : last[k]]
            for j in near[np.bitwise_count(one[near] ^ two[k]) <= BITS].tolist():
                if _correlate(test[asked[k]], train[known[j]], thumbnails):
                    found[k] = j
                    break
    return [(test[asked[k]], train[known[j]]) for k, j in sorted(found.items())]


def _correlate(first: Path, second: Path, thumbnails: dict[Path, np.ndarray]) -> bool:
    for path in (first, second):
        if path not in thumbnails:
            small = thumbnail(path, path.read_bytes())
            thumbnails[path] = (small - small.mean()) / (np.linalg.norm(small - small.mean()) + 1e-6)
    return float((thumbnails[first] * thumbnails[second]).sum()) >= CORRELATION
