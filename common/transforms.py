"""The two training views of an image, as in MoCo v1 and v2, and the evaluation view; on OpenCV.

Images are uint8 RGB arrays of shape (H, W, 3). Every operation takes its parameters explicitly, and a test compares it
with torchvision's; `ViewMaker` draws the parameters. All randomness comes from the generator that is passed in, so a
view is a function of (image, generator state) alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Weights of R, G, B in a gray value (ITU-R 601), as in PIL and torchvision.
GRAY = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class ViewConfig:
    """Parameters of a training view. Defaults: MoCo v2 (arXiv 2003.04297), which UniMoCo shares.

    Args:
        size: side of the square view, in pixels.
        scale: smallest and largest fraction of the image's area that a crop covers.
        ratio: smallest and largest width / height of a crop.
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter.
        brightness: factor drawn from 1 - x ... 1 + x.
        contrast: factor drawn from 1 - x ... 1 + x.
        saturation: factor drawn from 1 - x ... 1 + x.
        hue: shift drawn from -x ... x, as a fraction of the colour circle (at most 0.5).
        grayscale_prob: probability of conversion to grayscale.
        grayscale_first: convert before the colour jitter, as MoCo v1 does, not after it.
        blur: probability of a Gaussian blur.
        sigma: smallest and largest standard deviation of the blur, in pixels.
        rotate: largest rotation in either direction, in degrees (0 in MoCo).
        erase: probability of replacing a random rectangle by noise (0 in MoCo).
    """

    size: int = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale_prob: float = 0.2
    grayscale_first: bool = False
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    rotate: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"views.size={self.size}: must be a positive number of pixels")
        for name in ("flip", "jitter", "grayscale_prob", "blur", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"views.{name}={getattr(self, name)}: must lie between 0 and 1")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"views.scale={self.scale}: needs two ascending fractions of the area, above 0, at most 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"views.ratio={self.ratio}: needs two ascending numbers above 0")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"views.sigma={self.sigma}: needs two ascending numbers of pixels above 0")
        for name in ("brightness", "contrast", "saturation", "rotate"):
            if getattr(self, name) < 0:
                raise ValueError(f"views.{name}={getattr(self, name)}: must be 0 (off) or more")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"views.hue={self.hue}: must lie between 0 and 0.5")

    @property
    def summary(self) -> str:
        """The parameters in one line."""
        chances = (("flip", self.flip), ("colour jitter", self.jitter), ("grayscale", self.grayscale_prob),
                   ("blur", self.blur), ("erase", self.erase))  # fmt: skip
        return (
            f"views of {self.size} px: crops of {self.scale[0]:.0%} to {self.scale[1]:.0%} of the area, "
            + ", ".join(f"{name} {chance:.0%}" for name, chance in chances if chance)
            + f", rotation up to {self.rotate:g}°" * bool(self.rotate)
        )


def crop_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box (top, left, height, width) with its fraction of the area in `scale`, its aspect ratio in `ratio`.

    As RandomResizedCrop (Szegedy et al. 2014): ten tries, then the largest central crop of an allowed aspect.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Image, height: int, width: int) -> Image:
    """Resize bilinearly, anti-aliased where the image shrinks: PIL's filter up to rounding."""
    if image.shape[:2] == (height, width):
        return image
    if image.shape[0] <= height and image.shape[1] <= width:
        out: Image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return out
    import torch  # here: it takes a second, and options are parsed without
    from torch.nn.functional import interpolate

    # OpenCV's own anti-aliased mode (INTER_AREA) is a box filter and slower than torch's.
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    small = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def brightness(image: Image, factor: float) -> Image:
    """Scale every value: factor 0 gives black, 1 the image itself."""
    return cv2.convertScaleAbs(image, alpha=factor)


def contrast(image: Image, factor: float) -> Image:
    """Blend with the image's mean gray value: factor 0 gives uniform gray."""
    mean = int(float(np.dot(cv2.mean(image)[:3], GRAY)) + 0.5)
    table = np.clip(np.arange(256, dtype=np.float32) * factor + mean * (1 - factor), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)


def saturation(image: Image, factor: float) -> Image:
    """Blend with the grayscale image: factor 0 gives no colours."""
    return cv2.addWeighted(image, factor, to_grayscale(image), 1 - factor, 0)


def hue(image: Image, shift: float) -> Image:
    """Rotate the hue by `shift` of the colour circle (-0.5 ... 0.5)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)  # modulo 256, a whole turn
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def to_grayscale(image: Image) -> Image:
    """Convert to grayscale; keeps three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(image: Image, sigma: float) -> Image:
    """Blur with a Gaussian of standard deviation `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def rotate(image: Image, degrees: float) -> Image:
    """Rotate counter-clockwise about the centre; the corners repeat the border."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)


def erase(image: Image, rng: np.random.Generator) -> Image:
    """Replace a rectangle of 2 to 25 % of the area by noise (random erasing, arXiv 1708.04896)."""
    top, left, h, w = crop_box(image.shape[0], image.shape[1], (0.02, 0.25), (0.5, 2.0), rng)
    out = image.copy()
    out[top : top + h, left : left + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    return out


class ViewMaker:
    """Draws random training views of an image."""

    def __init__(self, config: ViewConfig) -> None:
        self.config = config

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return a view (size, size, 3) uint8 of an image (H, W, 3) uint8."""
        c = self.config
        top, left, h, w = crop_box(image.shape[0], image.shape[1], c.scale, c.ratio, rng)
        view = resize(image[top : top + h, left : left + w], c.size, c.size)
        if c.rotate:
            view = rotate(view, rng.uniform(-c.rotate, c.rotate))
        if c.grayscale_first and rng.random() < c.grayscale_prob:
            view = to_grayscale(view)
        if rng.random() < c.jitter:
            view = self._jitter(view, rng)
        if not c.grayscale_first and rng.random() < c.grayscale_prob:
            view = to_grayscale(view)
        if rng.random() < c.blur:
            view = blur(view, rng.uniform(*c.sigma))
        if rng.random() < c.flip:
            view = cv2.flip(view, 1)
        if rng.random() < c.erase:
            view = erase(view, rng)
        return np.ascontiguousarray(view)

    def _jitter(self, view: Image, rng: np.random.Generator) -> Image:
        """Change brightness, contrast, saturation and hue in random order, each where its strength is not 0."""
        c = self.config
        strengths = (c.brightness, c.contrast, c.saturation)
        for i in rng.permutation(4):
            if i == 3:
                if c.hue:
                    view = hue(view, rng.uniform(-c.hue, c.hue))
            elif strengths[i]:
                factor = rng.uniform(max(0.0, 1 - strengths[i]), 1 + strengths[i])
                view = (brightness, contrast, saturation)[i](view, factor)
        return view


def evaluation_view(image: Image, size: int) -> Image:
    """Return the view (size, size, 3) that features are computed from, equal to torchvision's to the pixel.

    The short side is resized to size * 256 / 224 and the centre cropped. Images whose short side is below `size`
    (Fashion-MNIST) are resized to the crop itself, so that nothing is cut off.
    """
    height, width = image.shape[:2]
    short = size if min(height, width) < size else round(size * 256 / 224)
    image = resize(image, short * height // min(height, width), short * width // min(height, width))
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])
