"""mIoU, mAcc, aAcc and the IoU of each class, unrounded."""

from __future__ import annotations

import numpy as np
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's IoUMetric with shares between 0 and 1 and the classes beside their mean.

    Pixels whose label is `ignore_index` count for nothing. A class of which neither prediction nor truth has a pixel
    has no IoU, one without a pixel of truth no accuracy; both are left out of the means, as in mmseg.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the figures of all images.

        Args:
            results: for each image the areas of intersection, union, prediction and truth, each (classes,) pixels.
        """
        # mmseg adds float32, which is not exact above 2 ** 24 pixels.
        areas = np.stack([[part.numpy() for part in image] for image in results]).sum(axis=0, dtype=np.float64)
        intersection, union, _, truth = areas
        with np.errstate(invalid="ignore"):
            iou, accuracy = intersection / union, intersection / truth
        figures = {"mIoU": np.nanmean(iou), "mAcc": np.nanmean(accuracy), "aAcc": intersection.sum() / truth.sum()}
        figures |= {f"IoU/{name}": value for name, value in zip(self.dataset_meta["classes"], iou, strict=True)}
        return {name: float(value) for name, value in figures.items() if np.isfinite(value)}
