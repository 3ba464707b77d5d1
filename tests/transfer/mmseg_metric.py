"""Segmentation metrics against numpy. Run by test_segment.py in a process of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric

from transfer.segmentation.evaluation import ClassIoU

IGNORED = 255
MMLogger.get_instance("test", log_level="ERROR")


def reference(truth: np.ndarray, found: np.ndarray, classes: int) -> dict[str, float]:
    """Return the metrics of all pixels at once, from the confusion matrix."""
    known = truth != IGNORED
    matrix = np.bincount(truth[known].astype(int) * classes + found[known], minlength=classes**2).reshape(classes, -1)
    hit, rows, columns = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = hit / (rows + columns - hit), hit / rows
    metrics = {"mIoU": np.nanmean(iou), "mAcc": np.nanmean(accuracy), "aAcc": hit.sum() / matrix.sum()}
    return metrics | {f"IoU/{i}": value for i, value in enumerate(iou) if not np.isnan(value)}


def evaluate(metric: IoUMetric, truth: np.ndarray, found: np.ndarray, classes: int) -> dict[str, float]:
    """Return mmseg's metrics, computed image by image."""
    metric.dataset_meta = {"classes": [str(i) for i in range(classes)]}
    for one, other in zip(torch.from_numpy(truth), torch.from_numpy(found), strict=True):
        metric.process({}, [{"pred_sem_seg": {"data": other[None]}, "gt_sem_seg": {"data": one[None]}}])
    return metric.evaluate(len(truth))


@settings(deadline=None, max_examples=60)
@given(classes=st.integers(2, 7), images=st.integers(1, 3), side=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_metrics_equal_those_of_the_confusion_matrix(classes: int, images: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = rng.integers(1, classes + 1)  # some classes have no pixel of truth, some none at all
    truth = rng.integers(0, present, (images, side, side))
    truth[rng.random(truth.shape) < 0.3] = IGNORED
    truth[0, 0, 0] = 0
    found = rng.integers(0, rng.integers(1, classes + 1), truth.shape)
    metrics = evaluate(ClassIoU(), truth, found, classes)
    assert metrics == pytest.approx(reference(truth, found, classes), abs=1e-12)
    stock = evaluate(IoUMetric(), truth, found, classes)
    for name in ("mIoU", "mAcc", "aAcc"):
        assert 100 * metrics[name] == pytest.approx(stock[name], abs=0.0051)  # mmseg rounds to 0.01 %


def test_areas_above_the_precision_of_float32_are_exact() -> None:
    metric, many = ClassIoU(), 2**24
    metric.dataset_meta = {"classes": ["a", "b"]}
    areas = tuple(torch.tensor([float(n), 1.0]) for n in (many, many, many, many))
    metric.results = [areas, tuple(torch.tensor([1.0, 0.0]) for _ in range(4))] * 2
    assert metric.compute_metrics(metric.results)["aAcc"] == 1.0
    metric.results = [areas, (torch.zeros(2), torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([1.0, 0.0]))]
    assert metric.compute_metrics(metric.results)["IoU/a"] == many / (many + 1)
