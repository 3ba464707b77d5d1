"""mIoU, mAcc, aAcc and the IoU of each class, unrounded."""

from __future__ import annotations

import numpy as np
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoU(IoUMetric):
    """mmseg's IoUMetric with fractions between 0 and 1, and the IoU of each class.

    Pixels labelled `ignore_index` are ignored. A class without a pixel in prediction and truth has no IoU, one without
    a pixel in the truth no accuracy; both are left out of the means, as in mmseg.
    """

    default_prefix = ""  # of the names; None has mmengine print a warning

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the metrics from each image's areas of intersection, union, prediction and truth, in pixels."""
        # mmseg sums in float32, which is not exact above 2 ** 24 pixels.
        areas = np.stack([[part.numpy() for part in image] for image in results]).sum(axis=0, dtype=np.float64)
        intersection, union, _, truth = areas
        with np.errstate(invalid="ignore"):
            iou, accuracy = intersection / union, intersection / truth
        metrics = {"mIoU": np.nanmean(iou), "mAcc": np.nanmean(accuracy), "aAcc": intersection.sum() / truth.sum()}
        metrics |= {f"IoU/{name}": value for name, value in zip(self.dataset_meta["classes"], iou, strict=True)}
        return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
