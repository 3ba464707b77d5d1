"""A look at what the network sees: images beside their two views."""

from __future__ import annotations

import cv2
import numpy as np

from common.images import UNLABELLED
from common.loaders import TwoViews
from common.transforms import Image, evaluation_view

CELL, GAP, TEXT = 112, 6, 18


def views_sheet(dataset: TwoViews, columns: int = 12) -> Image:
    """A column an image: the image as it is evaluated, its query view, its key view; above it the label it keeps."""
    numbers = np.random.default_rng(dataset.seed).permutation(len(dataset))[:columns]
    batch = dataset.__getitems__([(0, int(i)) for i in numbers])
    height, width = TEXT + 3 * (CELL + GAP), len(numbers) * (CELL + GAP)
    sheet = np.full((height, width, 3), 255, np.uint8)
    size = dataset.make_view.config.size
    for column, number in enumerate(batch.index.tolist()):
        left = column * (CELL + GAP)
        original = evaluation_view(dataset.images.read(number), size)
        for row, view in enumerate((original, batch.q[column].numpy(), batch.k[column].numpy())):
            top = TEXT + row * (CELL + GAP)
            cell = cv2.resize(view, (CELL, CELL), interpolation=cv2.INTER_NEAREST if size < CELL else cv2.INTER_AREA)
            sheet[top : top + CELL, left : left + CELL] = cell
        label = int(dataset.labels[number])
        text = "-" if label == UNLABELLED else dataset.images.classes[label]
        cv2.putText(sheet, text[:16], (left + 1, TEXT - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet
