"""Pictures of a detector's predictions beside the ground truth, for every engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks, make_grid

from transfer.scenes import CLASSES, PALETTE, Scene

SIDE = 480  # least length of the longer side of a panel, pixels
TITLE = 30
VISIBLE = 0.05  # keypoints below this score or visibility are not drawn
SKELETON = [  # of COCO's 17 keypoints
    (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13),
    (13, 15), (12, 14), (14, 16),
]  # fmt: skip


@dataclass(frozen=True)
class Objects:
    """The annotated or predicted objects of an image.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels.
        classes: (N,) class indices; they choose the colour.
        names: N texts.
        masks: (N, H, W) bool, None for a task without masks.
        keypoints: (N, 17, 3) x, y and visibility or score, None for a task without keypoints.
    """

    boxes: Tensor
    classes: Tensor
    names: list[str]
    masks: Tensor | None = None
    keypoints: Tensor | None = None


def side_by_side(image: np.ndarray, truth: Objects, predicted: Objects) -> np.ndarray:
    """Draw the truth and the predictions of an (H, W, 3) uint8 RGB image side by side, enlarged where it is small."""
    panels = {"truth": truth, "predicted": predicted}.items()
    return np.hstack([_titled(f"{title}: {len(found.names)}", draw_objects(image, found)) for title, found in panels])


def draw_objects(image: np.ndarray, found: Objects, side: int = SIDE) -> np.ndarray:
    """Draw objects into an (H, W, 3) uint8 RGB image, enlarged so that its longer side has at least `side` pixels."""
    zoom = max(1, math.ceil(side / max(image.shape[:2])))
    large = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR_EXACT)
    picture = torch.from_numpy(large).permute(2, 0, 1).contiguous()
    if not found.names:
        return large
    colours = [tuple(PALETTE[i % len(PALETTE)].tolist()) for i in found.classes.tolist()]
    if found.masks is not None:
        masks = found.masks.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
        picture = draw_segmentation_masks(picture, masks, alpha=0.5, colors=colours)
    if found.keypoints is not None:
        points, visible = zoom * found.keypoints[:, :, :2], found.keypoints[:, :, 2] > VISIBLE
        picture = draw_keypoints(picture, points, SKELETON, colors="white", visibility=visible)
    picture = draw_bounding_boxes(picture, zoom * found.boxes, found.names, colours, width=2, fill_labels=True)
    return picture.permute(1, 2, 0).numpy()


def contact_sheet(scenes: list[Scene], classes: Sequence[str] = CLASSES) -> np.ndarray:
    """Return scenes with their annotations in a grid of six columns, (H, W, 3) uint8 RGB."""
    tiles = []
    for scene in scenes:
        labels = [garment.label for garment in scene.garments]
        masks = torch.from_numpy(np.stack([garment.visible for garment in scene.garments]))
        boxes = masks_to_boxes(masks)
        boxes[:, 2:] += 1  # right and bottom of the last pixel
        objects = Objects(boxes, torch.tensor(labels), [classes[i] for i in labels], masks)
        tiles.append(torch.from_numpy(draw_objects(scene.image, objects, 224)).permute(2, 0, 1))
    return make_grid(tiles, 6, padding=3, pad_value=255).permute(1, 2, 0).numpy()


def _titled(title: str, panel: np.ndarray) -> np.ndarray:
    framed = cv2.copyMakeBorder(panel, TITLE, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.putText(framed, title, (6, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
