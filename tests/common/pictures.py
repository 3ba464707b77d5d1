"""Image files for tests, and how pictures differ."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image as Pil

from common.transforms import Image

PIXELS = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def write(path: Path, value: int = 0) -> Path:
    """A PNG whose pixels are PIXELS + value, RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(PIXELS + np.uint8(value), cv2.COLOR_RGB2BGR))
    return path


def difference(ours: Image, theirs: Pil.Image | np.ndarray) -> np.ndarray:
    """Absolute difference of two uint8 images."""
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
