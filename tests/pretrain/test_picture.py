"""The contact sheet shows the very pixels that the network gets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from common.images import load_images, save_png
from common.labels import LabelConfig, keep_labels
from common.loaders import TwoViews
from common.transforms import ViewConfig, evaluation_view
from pretrain.picture import GAP, TEXT, TILE, views_sheet

ROOT = Path(__file__).parents[2]


def test_each_column_is_an_image_and_its_two_views(tmp_path: Path) -> None:
    images = load_images(["fashion:test"], root=str(ROOT / "data"))
    dataset = TwoViews(images, keep_labels(images, LabelConfig(ratio=0.5)).labels, ViewConfig(size=TILE), seed=0)
    save_png(views_sheet(dataset, columns=3), tmp_path / "views.png")
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "views.png")), cv2.COLOR_BGR2RGB)
    number = int(np.random.default_rng(0).permutation(len(images))[1])
    batch = dataset.__getitems__([(0, number)])
    shown = [evaluation_view(images.read(number), TILE), batch.q[0].numpy(), batch.k[0].numpy()]
    left = TILE + GAP
    for row, view in enumerate(shown):
        top = TEXT + row * (TILE + GAP)
        assert np.array_equal(sheet[top : top + TILE, left : left + TILE], view)
