"""The evaluation view against torchvision's resize and centre crop."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pil
from torchvision.transforms import functional as TF

from common.transforms import Image, evaluation_view
from tests.common.pictures import difference


@pytest.mark.parametrize("size", [224, 64, 96, 33])
@pytest.mark.parametrize("crop", [(427, 640), (427, 300), (401, 401)])
def test_evaluation_view_is_torchvisions_resize_and_centre_crop(photo: Image, size: int, crop: tuple[int, int]) -> None:
    image = np.ascontiguousarray(photo[: crop[0], : crop[1]])
    theirs = TF.center_crop(TF.resize(Pil.fromarray(image), round(size * 256 / 224)), size)
    assert difference(evaluation_view(image, size), theirs).max() <= 1


@pytest.mark.parametrize("size", [32, 64, 224])
def test_evaluation_view_of_a_garment_is_the_whole_of_it(size: int) -> None:
    image = np.zeros((28, 28, 3), np.uint8)
    image[[0, 0, -1, -1], [0, -1, 0, -1]] = 255  # its corners
    theirs = TF.resize(Pil.fromarray(image), [size, size])
    view = evaluation_view(image, size)
    assert difference(view, theirs).max() <= 1
    assert view[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 200


def test_evaluation_view_at_a_garments_own_size(china: Image) -> None:
    image = np.ascontiguousarray(china[:28, :28])
    theirs = TF.center_crop(TF.resize(Pil.fromarray(image), 32), 28)
    assert difference(evaluation_view(image, 28), theirs).max() <= 1


@pytest.mark.parametrize("shape", [(20, 300), (300, 20), (1, 1), (31, 33)])
def test_evaluation_view_of_odd_shapes_has_the_size(china: Image, shape: tuple[int, int]) -> None:
    assert evaluation_view(china[: shape[0], : shape[1]], 32).shape == (32, 32, 3)
