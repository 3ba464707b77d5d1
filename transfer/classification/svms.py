"""Linear SVMs on frozen features, one per class, judged by average precision (AP).

Shapes: N training images, M test images, D feature width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from torch.nn import functional as F
from tqdm import tqdm

from common.features import Cores
from transfer.benchmark import Measurement, Metrics, Run, read_backbone
from transfer.classification.command import base_config, feature_cache
from transfer.classification.data import source_names
from transfer.classification.options import FOLDS, costs_of
from transfer.classification.voc import (
    ABSENT,
    DIFFICULT,
    PRESENT,
    MultiLabel,
    average_precision,
    load_multilabel,
    low_shot_sample,
)


def plan(options: Namespace, seed: int, device: torch.device) -> Run:
    """Return what is measured for a seed; nothing is computed yet."""
    backbone = read_backbone(options, seed)
    base, fine_print = base_config(options, backbone, device)
    config = base | {"store": options.store}
    title = "linear SVMs, squared hinge, positives weigh 2, features L2-normalised"
    if options.task.endswith("lowshot"):
        config |= {"k": options.k, "samples": options.samples, "cost": options.cost}
        title += ", k positives and (classes - 1) k negatives a class, "
        title += f"mean of {options.samples} samples, C {options.cost:g}"
        headline = f"mAP_k{options.k[0]}"
    else:
        config["costs"], headline = costs_of(options), "mAP"
        title += f", C of each class chosen by {FOLDS}-fold cross-validation on train"
    return Run(backbone, options.task, title + fine_print, seed, config, headline, options.out, ("scikit-learn",))


def load(run: Run, options: Namespace) -> MultiLabel:
    """Read the lists of images.

    Raises:
        ValueError: see `load_multilabel`; or a class has too few images for its SVMs or its AP.
    """
    data = load_multilabel(options)
    untested = [name for name, y in zip(data.classes, data.test_targets.T, strict=True) if not (y == PRESENT).any()]
    if untested:
        raise ValueError(f"no test image shows class {', '.join(map(repr, untested[:5]))}: it has no AP")
    for name, y, y_test in zip(data.classes, data.targets.T, data.test_targets.T, strict=True):
        if not (y_test == ABSENT).any():
            raise ValueError(f"every test image shows class {name!r}: its AP is 100 % whatever the scores")
        if not 0 < (y == PRESENT).sum() < len(y):
            raise ValueError(f"class {name!r} is shown by none or by all of the {len(y)} training images")
        if len(run.config.get("costs", ())) > 1:
            check_folds(y, name)
    for k in run.config.get("k", ()):
        low_shot_sample(data.targets, k, np.random.default_rng(0))
    return data


def evaluate(run: Run, options: Namespace, device: torch.device) -> Measurement:
    """Measure the AP of all classes, with all training images or with k positives per class."""
    data = load(run, options)
    network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
    extract = feature_cache(run, options, device)
    x, x_test = (
        F.normalize(extract(run.backbone, network, images, name).float(), dim=1).numpy()
        for images, name in zip((data.train, data.test), source_names(options), strict=True)
    )
    config, cost = run.config, {"images": float(len(x) + len(x_test))}
    if "k" in config:
        return Measurement(few_shot_ap(x, x_test, data, config["k"], config["samples"], config["cost"], run.seed), cost)
    return Measurement(full_ap(x, x_test, data, config["costs"], run.seed), cost)


def full_ap(x: np.ndarray, x_test: np.ndarray, data: MultiLabel, costs: list[float], seed: int) -> Metrics:
    """Return the AP of each class with all training images, and their mean.

    DIFFICULT training images count as absent, as in the papers' code.

    Args:
        x: (N, D) features of the training images.
        x_test: (M, D) features of the test images.
        data: the targets.
        costs: C of the SVMs; of several, one is chosen per class by cross-validation on train.
        seed: of the solver.
    """

    def ap_of(c: int) -> float:
        y = np.where(data.targets[:, c] == PRESENT, PRESENT, ABSENT)
        cost = costs[0]
        if len(costs) > 1:
            cost = max(costs, key=lambda value: cross_validate(x, y, value, seed, data.classes[c]))
        return class_ap(x, y, x_test, data.test_targets[:, c], cost, seed)

    values = map_in_parallel(ap_of, range(len(data.classes)))
    named = {f"AP {name}": value for name, value in zip(data.classes, values, strict=True)}
    return {"mAP": float(np.mean(values)), **named}


def few_shot_ap(
    x: np.ndarray, x_test: np.ndarray, data: MultiLabel, ks: list[int], samples: int, cost: float, seed: int
) -> Metrics:
    """Return the mAP for each k, the mean over samples of k positives per class; other arguments as in `full_ap`."""
    metrics = {}
    for k in ks:
        drawn = [low_shot_sample(data.targets, k, np.random.default_rng((seed, k, i))) for i in range(samples)]
        jobs = [(targets[:, c], data.test_targets[:, c]) for targets in drawn for c in range(len(data.classes))]
        values = map_in_parallel(lambda job: class_ap(x, job[0], x_test, job[1], cost, seed), jobs)
        metrics[f"mAP_k{k}"] = float(np.mean(values))
        tqdm.write(f"k = {k}: mAP {metrics[f'mAP_k{k}']:.2%}, mean of {samples} samples")
    return metrics


def class_ap(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, cost: float, seed: int) -> float:
    """Return the test AP of an SVM trained on x (N, D), y (N,); DIFFICULT images are left out of both."""
    rows, rows_test = y != DIFFICULT, y_test != DIFFICULT
    scores = fit_svm(x[rows], y[rows], cost, seed).decision_function(x_test[rows_test])
    return average_precision(y_test[rows_test], scores)


def cross_validate(x: np.ndarray, y: np.ndarray, cost: float, seed: int, name: str) -> float:
    """Return the mean AP over the folds of targets (N,) PRESENT or ABSENT.

    Raises:
        ValueError: fewer positives or negatives than folds.
    """
    check_folds(y, name)
    aps = [
        average_precision(y[held], fit_svm(x[fit], y[fit], cost, seed).decision_function(x[held]))
        for fit, held in StratifiedKFold(FOLDS).split(x, y)
    ]
    return float(np.mean(aps))


def check_folds(y: np.ndarray, name: str) -> None:
    """Raise a ValueError where targets (N,) have fewer positives, or fewer others, than there are folds."""
    positives = int((y == PRESENT).sum())
    if min(positives, len(y) - positives) < FOLDS:
        raise ValueError(f"class {name} has fewer than {FOLDS} positives or negatives to choose C on; give one --costs")


def fit_svm(x: np.ndarray, y: np.ndarray, cost: float, seed: int) -> LinearSVC:
    """Fit the published SVM."""
    svm = LinearSVC(
        C=cost, class_weight={PRESENT: 2, ABSENT: 1}, penalty="l2", loss="squared_hinge", tol=1e-4, dual=True,
        max_iter=2000, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 2,000 iterations are the protocol
        return svm.fit(x, y)


def map_in_parallel(work: Callable[[Any], float], parts: Sequence[Any]) -> list[float]:
    """Return work(part) for each part, on all cores: the solver releases the GIL, so threads share the features."""
    with Cores(torch.device("cpu")) as cores, tqdm(total=len(parts), unit="SVM", leave=False) as bar:

        def counted(part: Any) -> float:
            value = work(part)
            bar.update()
            return value

        return cores.map(counted, parts)
