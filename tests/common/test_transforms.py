"""Each operation against torchvision's on PIL images, and whole views against MoCo's pipelines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image as Pil
from PIL import ImageFilter
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp
from torchvision import transforms as tv
from torchvision.transforms import functional as TF

from common import transforms
from common.transforms import Image, ViewConfig, ViewMaker, crop_box
from tests.common.pictures import difference

# ViewConfig that only crops and resizes.
PLAIN = ViewConfig(size=56, flip=0, jitter=0, grayscale_prob=0, blur=0)
# Where two samples of one distribution differ this much, it is by a chance of one in a thousand; the seeds are fixed.
ALIKE = 1e-3


# Single operations. PIL cuts decimals off where OpenCV rounds: hence at most 1, and about 0.5 on the average.


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.83, 1.0, 1.21, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors(photo: Image, name: str, factor: float) -> None:
    theirs = getattr(TF, f"adjust_{name}")(Pil.fromarray(photo), factor)
    off = difference(getattr(transforms, name)(photo, factor), theirs)
    assert off.max() <= 1
    assert off.mean() < 0.55


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factor_1_changes_nothing(photo: Image, name: str) -> None:
    np.testing.assert_array_equal(getattr(transforms, name)(photo, 1.0), photo)


def exact_hue(photo: Image, shift: float) -> np.ndarray:
    """The colour circle turned in floating point."""
    hsv = rgb_to_hsv(photo / 255.0)
    hsv[..., 0] = (hsv[..., 0] + shift) % 1
    return hsv_to_rgb(hsv) * 255


@pytest.mark.parametrize("shift", [-0.5, -0.1, -0.033, 0.0, 0.047, 0.1, 0.25, 0.5])
def test_hue(photo: Image, shift: float) -> None:
    theirs, ours = np.asarray(TF.adjust_hue(Pil.fromarray(photo), shift)), transforms.hue(photo, shift)
    # Both go through 8-bit hue, saturation and value, each with its own rounding: pixels differ by a few values.
    off = difference(ours, theirs)
    assert off.mean() < 0.6
    assert np.quantile(off, 0.999) <= 6
    assert off.max() <= 12
    # The same rounding keeps torchvision at a mean of 0.9 from the exact result on these photos.
    assert np.abs(ours - exact_hue(photo, shift)).mean() < 0.9


def test_hue_rotates_in_the_right_direction() -> None:
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert difference(transforms.hue(red, 1 / 3), np.full((4, 4, 3), (0, 255, 0))).max() <= 6
    assert difference(transforms.hue(red, -1 / 3), np.full((4, 4, 3), (0, 0, 255))).max() <= 6


def test_grey(photo: Image) -> None:
    off = difference(transforms.to_grayscale(photo), TF.to_grayscale(Pil.fromarray(photo), 3))
    assert off.max() <= 1
    assert off.mean() < 0.01


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
def test_blur_is_gaussian(photo: Image, sigma: float) -> None:
    theirs = TF.gaussian_blur(Pil.fromarray(photo), [23, 23], [sigma, sigma])
    # torchvision mirrors at the border; PIL, and so MoCo, repeats it, as we do.
    inner = (slice(12, -12), slice(12, -12))
    off = difference(transforms.blur(photo, sigma)[inner], np.asarray(theirs)[inner])
    assert off.max() <= 2
    assert off.mean() < 0.1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_repeats_the_border(china: Image, sigma: float) -> None:
    exact = gaussian_filter(china.astype(np.float64), (sigma, sigma, 0), mode="nearest", truncate=6)
    # OpenCV's kernel ends at three sigma, which leaves out 0.3 % of the weight.
    assert np.abs(transforms.blur(china, sigma) - exact).max() < 2


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 2.0])
def test_blur_is_near_the_filter_of_moco(photo: Image, sigma: float) -> None:
    # PIL approaches the Gaussian by three box filters; below sigma 0.5 that is no longer near.
    off = difference(transforms.blur(photo, sigma), Pil.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
    assert off.mean() < 0.6
    assert np.quantile(off, 0.999) <= 4


@pytest.mark.parametrize(
    "size", [(224, 224), (100, 150), (64, 64), (500, 300), (300, 800), (427, 320), (640, 800), (427, 640)]
)
def test_resize_down_up_and_both(photo: Image, size: tuple[int, int]) -> None:
    off = difference(transforms.resize(photo, *size), TF.resize(Pil.fromarray(photo), list(size)))
    assert off.max() <= 1
    assert off.mean() < 0.25


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (14, 14), (64, 20)])
def test_resize_of_a_tiny_crop(photo: Image, size: tuple[int, int]) -> None:
    crop = photo[100:119, 200:223]  # not contiguous, as in a view
    assert difference(transforms.resize(crop, *size), TF.resize(Pil.fromarray(crop.copy()), list(size))).max() <= 1


@pytest.mark.parametrize("degrees", [-30, 10, 90])
def test_rotation(photo: Image, degrees: float) -> None:
    theirs = TF.rotate(Pil.fromarray(photo), degrees, interpolation=tv.InterpolationMode.BILINEAR)
    inner = (slice(110, -110), slice(220, -220))  # out of reach of the corners, which are black there
    assert difference(transforms.rotate(photo, degrees)[inner], np.asarray(theirs)[inner]).max() <= 1


def test_rotation_leaves_no_black_corner() -> None:
    assert transforms.rotate(np.full((20, 30, 3), 200, np.uint8), 30).min() == 200


def test_erase_puts_noise_into_one_rectangle_of_the_stated_size(china: Image) -> None:
    shares = []
    for seed in range(100):
        changed = (transforms.erase(china, np.random.default_rng(seed)) != china).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.mean() > 0.999  # noise may meet a pixel's own colour
        shares.append(box.size / changed.size)
    assert 0.019 < min(shares) < 0.05
    assert 0.2 < max(shares) < 0.251


# The crop


BOX_PARAMETERS = [
    ((427, 640), (0.2, 1.0), (3 / 4, 4 / 3)),
    ((28, 28), (0.6, 1.0), (3 / 4, 4 / 3)),
    ((100, 500), (0.2, 1.0), (3 / 4, 4 / 3)),
]


@pytest.mark.parametrize(("shape", "scale", "ratio"), BOX_PARAMETERS)
def test_crop_boxes_are_distributed_as_torchvisions(
    shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    rng, image = np.random.default_rng(0), torch.empty(3, *shape)
    ours = np.array([crop_box(*shape, scale, ratio, rng) for _ in range(3000)], dtype=float)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = tv.RandomResizedCrop.get_params
        theirs = np.array([params(image, list(scale), list(ratio)) for _ in range(3000)], dtype=float)

    def features(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, h, w = boxes.T
        centre_y, centre_x = top + h / 2, left + w / 2
        return {"area": h * w, "aspect": w / h, "top": top, "left": left, "y": centre_y, "x": centre_x}

    for (name, a), b in zip(features(ours).items(), features(theirs).values(), strict=True):
        assert ks_2samp(a, b).pvalue > ALIKE, name


@pytest.mark.parametrize("shape", [(427, 640), (28, 28), (1, 1), (1, 300), (300, 1), (7, 2000)])
def test_crop_boxes_lie_inside_the_image(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, h, w = crop_box(*shape, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= top < top + h <= shape[0]
        assert 0 <= left < left + w <= shape[1]


@pytest.mark.parametrize("shape", [(100, 1000), (1000, 100)])
def test_where_no_crop_fits_the_centre_is_taken(shape: tuple[int, int]) -> None:
    args = (1.0, 1.0), (3 / 4, 4 / 3)
    theirs = tv.RandomResizedCrop.get_params(torch.empty(3, *shape), *map(list, args))
    assert crop_box(*shape, *args, np.random.default_rng(0)) == theirs


# Whole views


def moco(version: int, size: int) -> Callable[[Pil.Image], Pil.Image]:
    """The published pipelines of MoCo v1 and v2 before ToTensor, put together from torchvision and PIL.

    Probabilities and strengths: main_moco.py of facebookresearch/moco at 5a429c0.
    """
    blur = tv.Lambda(lambda x: x.filter(ImageFilter.GaussianBlur(float(torch.empty(1).uniform_(0.1, 2.0)))))
    crop = tv.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True)
    flip = tv.RandomHorizontalFlip()
    if version == 1:
        return tv.Compose([crop, tv.RandomGrayscale(p=0.2), tv.ColorJitter(0.4, 0.4, 0.4, 0.4), flip])
    jitter = tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return tv.Compose([crop, jitter, tv.RandomGrayscale(p=0.2), tv.RandomApply([blur], p=0.5), flip])


MOCO_V1 = ViewConfig(size=56, jitter=1.0, hue=0.4, grayscale_first=True, blur=0.0)
MOCO_V2 = ViewConfig(size=56)


def measures(view: np.ndarray) -> dict[str, float]:
    """What a view looks like, in numbers."""
    pixels = view.astype(np.float32)
    grey = pixels.mean(-1)
    spread = pixels.max(-1) - pixels.min(-1)
    return {
        "red": pixels[..., 0].mean(),
        "green": pixels[..., 1].mean(),
        "blue": pixels[..., 2].mean(),
        "red minus blue": (pixels[..., 0] - pixels[..., 2]).mean(),
        "red minus green": (pixels[..., 0] - pixels[..., 1]).mean(),
        "contrast": grey.std(),
        "colour": spread.mean(),
        "sharpness": float(np.log(1 + cv2.Laplacian(grey, cv2.CV_32F).var())),
        "left minus right": grey[:, :28].mean() - grey[:, 28:].mean(),
        "darkest": grey.min(),
        "brightest": grey.max(),
    }


@pytest.mark.parametrize(("version", "config"), [(1, MOCO_V1), (2, MOCO_V2)])
def test_whole_views_are_distributed_as_mocos(photo: Image, version: int, config: ViewConfig) -> None:
    small, count, rng = cv2.resize(photo, (160, 107), interpolation=cv2.INTER_AREA), 600, np.random.default_rng(1)
    make, pipeline, image = ViewMaker(config), moco(version, config.size), Pil.fromarray(small)
    ours = [measures(make(small, rng)) for _ in range(count)]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = [measures(np.asarray(pipeline(image))) for _ in range(count)]
    for name in ours[0]:
        a, b = np.array([m[name] for m in ours]), np.array([m[name] for m in theirs])
        assert ks_2samp(a, b).pvalue > ALIKE, name


@pytest.mark.parametrize(
    "change",
    [{"hue": 0.3}, {"grayscale_prob": 0.5}, {"blur": 0.0}, {"scale": (0.5, 1.0)}, {"brightness": 0.8}, {"flip": 0.0}],
)
def test_the_comparison_of_views_notices_a_changed_option(china: Image, change: dict[str, float]) -> None:
    """The measures above would tell apart pipelines that differ in a single option."""
    small, rng = cv2.resize(china, (160, 107), interpolation=cv2.INTER_AREA), np.random.default_rng(1)
    samples = [
        [measures(ViewMaker(config)(small, rng)) for _ in range(600)]
        for config in (MOCO_V2, dataclasses.replace(MOCO_V2, **change))
    ]
    values = [
        (np.array([m[name] for m in samples[0]]), np.array([m[name] for m in samples[1]])) for name in samples[0][0]
    ]
    assert min(ks_2samp(a, b).pvalue for a, b in values) < ALIKE


def is_grey(view: Image) -> bool:
    """Whether the three channels agree, up to the rounding of a hue shift."""
    return bool((view.max(-1).astype(int) - view.min(-1) <= 2).all())


def test_colours_dropped_before_the_jitter_stay_dropped(china: Image) -> None:
    views = [
        ViewMaker(dataclasses.replace(MOCO_V1, grayscale_prob=1))(china, np.random.default_rng(i)) for i in range(20)
    ]
    assert all(is_grey(view) for view in views)
    assert len({int(view.mean()) for view in views}) > 5  # brightness still varies


def test_order_of_grey_and_jitter() -> None:
    """With full grey, jitter before it still changes the grey value by way of the colours; after it, hue cannot."""
    red = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    only_hue = ViewConfig(size=8, jitter=1, brightness=0, contrast=0, saturation=0, hue=0.5, grayscale_prob=1, blur=0)
    after = {int(ViewMaker(only_hue)(red, np.random.default_rng(i))[0, 0, 0]) for i in range(20)}
    first = dataclasses.replace(only_hue, grayscale_first=True)
    before = {int(ViewMaker(first)(red, np.random.default_rng(i))[0, 0, 0]) for i in range(20)}
    assert len(after) > 5
    assert len(before) == 1


def test_a_view_is_a_function_of_image_and_generator_state(china: Image) -> None:
    make = ViewMaker(dataclasses.replace(MOCO_V2, rotate=10, erase=0.5))
    for seed in range(10):
        np.testing.assert_array_equal(
            make(china, np.random.default_rng(seed)), make(china, np.random.default_rng(seed))
        )
    rng = np.random.default_rng(0)
    assert not np.array_equal(make(china, rng), make(china, rng))


def test_views_use_no_global_random_state(china: Image) -> None:
    make, states = ViewMaker(MOCO_V2), []
    for _ in range(2):
        cv2.setRNGSeed(0)
        torch.manual_seed(0)
        make(china, np.random.default_rng(0))
        states.append((torch.rand(1).item(), cv2.randu(np.empty(1), 0, 1)[0]))
        make(china, np.random.default_rng(1))
    assert states[0] == states[1]


def test_a_view_leaves_the_image_as_it_was(china: Image) -> None:
    before = china.copy()
    make = ViewMaker(ViewConfig(size=640, scale=(1, 1), ratio=(1.4, 1.6), jitter=1, grayscale_prob=0, blur=1, erase=1))
    for seed in range(5):
        make(china, np.random.default_rng(seed))
    np.testing.assert_array_equal(china, before)


@pytest.mark.parametrize(
    ("option", "operation"),
    [
        ({"flip": 1}, lambda x: cv2.flip(x, 1)),
        ({"grayscale_prob": 1}, transforms.to_grayscale),
        ({"grayscale_prob": 1, "grayscale_first": True}, transforms.to_grayscale),
        ({"blur": 1, "sigma": (1.5, 1.5)}, lambda x: transforms.blur(x, 1.5)),
        ({}, lambda x: x),
    ],
)
def test_probability_1_does_exactly_the_operation_and_0_none(
    china: Image, option: dict[str, float], operation: Callable[[Image], Image]
) -> None:
    square = np.ascontiguousarray(china[:56, :56])
    make = ViewMaker(dataclasses.replace(PLAIN, scale=(1, 1), ratio=(1, 1), **option))
    for seed in range(5):
        np.testing.assert_array_equal(make(square, np.random.default_rng(seed)), operation(square))


@pytest.mark.parametrize("name", ["flip", "grayscale_prob", "jitter", "blur", "erase"])
def test_probabilities_are_kept(china: Image, name: str) -> None:
    square = np.ascontiguousarray(china[150:206, 150:206])
    config = dataclasses.replace(PLAIN, scale=(1, 1), ratio=(1, 1), sigma=(1.0, 2.0), **{name: 0.3})
    views = [ViewMaker(config)(square, np.random.default_rng(seed)) for seed in range(1000)]
    changed = sum(not np.array_equal(view, square) for view in views)
    assert abs(changed - 300) < 58  # four standard deviations


def test_the_parts_of_the_jitter_come_in_every_order(china: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        real = getattr(transforms, name)
        monkeypatch.setattr(
            transforms, name, lambda x, value, name=name, real=real: (calls.append(name), real(x, value))[1]
        )
    make, square = ViewMaker(dataclasses.replace(PLAIN, jitter=1)), china[:56, :56]
    for seed in range(300):
        make(square, np.random.default_rng(seed))
    orders = [tuple(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert len(orders) == 300
    assert len(set(orders)) == 24


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation", "hue"])
def test_a_strength_of_0_leaves_that_part_of_the_jitter_out(china: Image, strength: str) -> None:
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    square = np.ascontiguousarray(china[:56, :56])
    base = dataclasses.replace(PLAIN, scale=(1, 1), ratio=(1, 1), jitter=1)
    still = ViewMaker(dataclasses.replace(base, **off))
    moved = ViewMaker(dataclasses.replace(base, **(off | {strength: 0.4})))
    np.testing.assert_array_equal(still(square, np.random.default_rng(0)), square)
    assert difference(moved(square, np.random.default_rng(0)), square).mean() > 0.5


@pytest.mark.parametrize("shape", [(427, 640), (28, 28), (9, 300), (1, 1)])
def test_every_image_size_gives_the_view_size(china: Image, shape: tuple[int, int]) -> None:
    make = ViewMaker(dataclasses.replace(MOCO_V2, size=32, rotate=15, erase=1))
    for seed in range(20):
        view = make(china[: shape[0], : shape[1]], np.random.default_rng(seed))
        assert view.shape == (32, 32, 3)
        assert view.dtype == np.uint8


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"size": 0}, r"views\.size=0"),
        ({"flip": 1.1}, r"views\.flip=1\.1: must lie between"),
        ({"jitter": -0.1}, r"views\.jitter=-0\.1"),
        ({"grayscale_prob": 2}, r"views\.grayscale_prob=2"),
        ({"blur": float("nan")}, r"views\.blur=nan"),
        ({"erase": -1}, r"views\.erase=-1"),
        ({"scale": (0.0, 1.0)}, r"views\.scale=\(0\.0, 1\.0\)"),
        ({"scale": (0.8, 0.2)}, r"views\.scale"),
        ({"scale": (0.2, 1.5)}, r"views\.scale"),
        ({"ratio": (2.0, 1.0)}, r"views\.ratio"),
        ({"ratio": (0.0, 1.0)}, r"views\.ratio"),
        ({"sigma": (0.0, 2.0)}, r"views\.sigma"),
        ({"hue": 0.6}, r"views\.hue=0\.6: must lie between 0 and 0\.5"),
        ({"brightness": -0.4}, r"views\.brightness=-0\.4"),
        ({"contrast": -1}, r"views\.contrast=-1"),
        ({"saturation": -1}, r"views\.saturation=-1"),
        ({"rotate": -5}, r"views\.rotate=-5"),
    ],
)
def test_options_out_of_range_are_errors_that_name_them(option: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ViewConfig(**option)
