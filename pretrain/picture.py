"""A contact sheet of images and their two views, as the network gets them."""

from __future__ import annotations

import cv2
import numpy as np

from common.images import UNLABELLED
from common.loaders import TwoViews
from common.transforms import Image, evaluation_view

TILE, GAP, TEXT = 112, 6, 18


def views_sheet(dataset: TwoViews, columns: int = 12) -> Image:
    """Return a sheet with one column per image: its label, the evaluation view, the query view and the key view."""
    indices = np.random.default_rng(dataset.seed).permutation(len(dataset))[:columns]
    batch = dataset.__getitems__([(0, int(i)) for i in indices])
    height, width = TEXT + 3 * (TILE + GAP), len(indices) * (TILE + GAP)
    sheet = np.full((height, width, 3), 255, np.uint8)
    size = dataset.make_view.config.size
    for column, index in enumerate(batch.index.tolist()):
        left = column * (TILE + GAP)
        original = evaluation_view(dataset.images.read(index), size)
        for row, view in enumerate((original, batch.q[column].numpy(), batch.k[column].numpy())):
            top = TEXT + row * (TILE + GAP)
            tile = cv2.resize(view, (TILE, TILE), interpolation=cv2.INTER_NEAREST if size < TILE else cv2.INTER_AREA)
            sheet[top : top + TILE, left : left + TILE] = tile
        label = int(dataset.labels[index])
        text = "-" if label == UNLABELLED else dataset.images.classes[label]
        cv2.putText(sheet, text[:16], (left + 1, TEXT - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet
