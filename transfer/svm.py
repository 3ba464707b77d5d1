"""Linear SVMs on frozen features, one a class: VOC07 as published, and low-shot with few positives a class.

python transfer/svm.py --ckpt X --data voc07:/data/VOCdevkit/VOC2007 --task voc07-svm
python transfer/svm.py --ckpt X --data voc07:/data/VOCdevkit/VOC2007 --task voc07-lowshot
python transfer/svm.py --ckpt X --task lowshot                        any other images with one label each: svm, lowshot

Protocol (Goyal et al., arXiv 1905.01235; facebookresearch/fair_self_supervision_benchmark@275d104, tools/svm): pooled
features, L2-normalised; scikit-learn's LinearSVC, squared hinge, L2, dual, at most 2,000 iterations, positives weigh
double. The cost of each class is chosen by 3-fold cross-validation on train. In VOC07 an image that is difficult for a
class is one of its negatives in training and left out in the test. Costs of voc07-svm are OpenSelfSup's
(WXinlong/DenseCL@b64bbb6, benchmarks/svm_tools), whose figures are cited. Low-shot: k positives a class, five samples,
their mean, difficult images left out; there the published figures take the cost that is best on test, ours is fixed by
--cost.
Figures: AP of each class on test, and mAP, its mean.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from torch.nn import functional as F
from tqdm import tqdm

from common.distributed import start, world_size
from common.features import Cores
from common.precision import autocast_dtype
from transfer.benchmark import Measurement, Metrics, Run, measure, read_checkpoint, run_benchmark, summary
from transfer.classification import options
from transfer.classification.data import source_names
from transfer.classification.features import Extraction
from transfer.classification.multilabel import (
    ABSENT,
    DIFFICULT,
    PRESENT,
    MultiLabel,
    average_precision,
    load_multilabel,
    low_shot_sample,
    voc_sources,
)

TASKS = ("voc07-svm", "voc07-lowshot", "svm", "lowshot")
COSTS = [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0]
VOC_COSTS = [1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20))]
FOLDS, SAMPLES = 3, 5


def parser() -> ArgumentParser:
    """The options."""
    p = options.classification_parser("svm", __doc__)
    p.set_defaults({"precision": "fp32"})
    p.add_argument("--task", choices=TASKS, default="svm", help="all training images, or k positives a class")
    p.add_argument(
        "--costs", type=list[float] | None,
        help=f"C of the SVMs, chosen for each class; default: {COSTS}, of voc07-svm 1, 10, 100 and 0.5^4 ... 0.5^19",
    )  # fmt: skip
    p.add_argument("--k", type=list[int], default=[1, 2, 4, 8, 16, 32, 64, 96], help="low-shot: positives a class")
    p.add_argument("--samples", type=int, default=SAMPLES, help="low-shot: samples of each k")
    p.add_argument("--cost", type=float, default=1.0, help="low-shot: C")
    return p


def plan(o: Namespace, seed: int, device: torch.device) -> Run:
    """What is measured for a seed, before anything is computed."""
    check(o)
    if o.task.startswith("voc07") != (voc_sources(o.data) is not None):
        raise ValueError(
            f"--task {o.task} with --data {o.data}: voc07-svm and voc07-lowshot go with voc07:FOLDER alone"
        )
    backbone = read_checkpoint(o.ckpt, seed)
    size, dtype = options.view_size(o, backbone), autocast_dtype(o.precision, device)
    train, test = voc_sources(o.data) or source_names(o)
    config = {"data": train, "test": test, "size": size, "precision": str(dtype or torch.float32), "store": o.store}
    config |= options.label_options(o)
    how = "linear SVMs, squared hinge, positives weigh 2, features L2-normalised"
    if low_shot(o):
        config |= {"k": o.k, "samples": o.samples, "cost": o.cost}
        how += f", k positives and (classes - 1) k negatives a class, mean of {o.samples} samples, C {o.cost:g}"
    else:
        config["costs"] = costs_of(o)
        how += f", C of each class chosen by {FOLDS}-fold cross-validation on train"
    headline = f"mAP_k{o.k[0]}" if low_shot(o) else "mAP"
    labels = options.labels_in_words(o)
    how += f", {labels}" * bool(labels)
    return Run(
        backbone,
        o.task,
        f"{how}; {options.fine_print(o, size, dtype)}",
        seed,
        config,
        headline,
        o.out,
        ("scikit-learn",),
    )


def check(o: Namespace) -> None:
    """Raises a ValueError for numbers that no SVM can be trained with."""
    costs = costs_of(o)
    if not costs or min(costs) <= 0:
        raise ValueError(f"--costs {costs}: one or more numbers, and each must be above 0")
    if not o.cost > 0:
        raise ValueError(f"--cost {o.cost}: must be above 0")
    if not o.k or min(o.k) < 1:
        raise ValueError(f"--k {o.k}: one or more numbers of positives, 1 or above")
    if o.samples < 1:
        raise ValueError(f"--samples {o.samples}: must be 1 or more")


def costs_of(o: Namespace) -> list[float]:
    """The costs to choose from: as given, else those of the task."""
    given: list[float] | None = o.costs
    return (VOC_COSTS if o.task == "voc07-svm" else COSTS) if given is None else given


def low_shot(o: Namespace) -> bool:
    """Whether a few positives a class are drawn."""
    return str(o.task).endswith("lowshot")


def evaluate(o: Namespace) -> None:
    """Measures all seeds and says the result."""
    options.require_data(o)
    device = start(o.device)
    if world_size() > 1:
        raise ValueError("svm.py runs in one process")

    def do(run: Run) -> Measurement:
        data = load_multilabel(o)
        untested = [name for name, y in zip(data.classes, data.test_targets.T, strict=True) if not (y == PRESENT).any()]
        if untested:
            raise ValueError(f"no test image shows class {', '.join(map(repr, untested[:5]))}: it has no AP")
        network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
        extract = Extraction(run.config["size"], device, o.precision, options.STORES[o.store], o.cache, o.workers)
        x, x_test = (
            F.normalize(extract(run.backbone, network, images, name).float(), dim=1).numpy()
            for images, name in zip((data.train, data.test), voc_sources(o.data) or source_names(o), strict=True)
        )
        cost = {"images": float(len(x) + len(x_test))}
        if low_shot(o):
            return Measurement(few(x, x_test, data, o, run.seed), cost)
        return Measurement(every(x, x_test, data, costs_of(o), run.seed), cost)

    records = measure((plan(o, seed, device) for seed in o.seeds), do, o, device)
    if records:
        print(records[0].title)
        print(summary(records))


def every(x: np.ndarray, x_test: np.ndarray, data: MultiLabel, costs: list[float], seed: int) -> Metrics:
    """AP of each class, and their mean, with all training images; difficult ones count as absent, as in the papers."""

    def one(c: int) -> float:
        y = np.where(data.targets[:, c] == PRESENT, PRESENT, ABSENT)
        cost = costs[0]
        if len(costs) > 1:
            cost = max(costs, key=lambda value: cross_validated(x, y, value, seed, data.classes[c]))
        return ap_of_class(x, y, x_test, data.test_targets[:, c], cost, seed)

    values = in_parallel(one, range(len(data.classes)))
    named = {f"AP {name}": value for name, value in zip(data.classes, values, strict=True)}
    return {"mAP": float(np.mean(values)), **named}


def few(x: np.ndarray, x_test: np.ndarray, data: MultiLabel, o: Namespace, seed: int) -> Metrics:
    """mAP for each k, the mean over samples of k positives a class."""
    metrics = {}
    for k in o.k:
        rngs = [np.random.default_rng((seed, k, number)) for number in range(o.samples)]
        drawn = [low_shot_sample(data.targets, k, rng) for rng in rngs]
        jobs = [(targets[:, c], data.test_targets[:, c]) for targets in drawn for c in range(len(data.classes))]
        values = in_parallel(lambda job: ap_of_class(x, job[0], x_test, job[1], o.cost, seed), jobs)
        metrics[f"mAP_k{k}"] = float(np.mean(values))
        tqdm.write(f"k = {k}: mAP {metrics[f'mAP_k{k}']:.2%}, mean of {o.samples} samples")
    return metrics


def ap_of_class(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, cost: float, seed: int) -> float:
    """AP on test of an SVM trained on features (N, D) with targets (N,); what is DIFFICULT counts in neither."""
    rows, rows_test = y != DIFFICULT, y_test != DIFFICULT
    scores = fitted(x[rows], y[rows], cost, seed).decision_function(x_test[rows_test])
    return average_precision(y_test[rows_test], scores)


def cross_validated(x: np.ndarray, y: np.ndarray, cost: float, seed: int, name: str) -> float:
    """Mean AP over the folds of targets (N,) PRESENT or ABSENT.

    Raises:
        ValueError: fewer positives or negatives than folds.
    """
    if min((y == PRESENT).sum(), (y == ABSENT).sum()) < FOLDS:
        raise ValueError(f"class {name} has fewer than {FOLDS} positives or negatives to choose C on; give one --costs")
    folds = StratifiedKFold(FOLDS).split(x, y)
    return float(
        np.mean([
            average_precision(y[held], fitted(x[fit], y[fit], cost, seed).decision_function(x[held]))
            for fit, held in folds
        ])
    )  # fmt: skip


def fitted(x: np.ndarray, y: np.ndarray, cost: float, seed: int) -> LinearSVC:
    """The published SVM, trained."""
    svm = LinearSVC(
        C=cost, class_weight={PRESENT: 2, ABSENT: 1}, penalty="l2", loss="squared_hinge", tol=1e-4, dual=True,
        max_iter=2000, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 2,000 iterations are the protocol
        return svm.fit(x, y)


def in_parallel(work: Callable[[Any], float], parts: Sequence[Any]) -> list[float]:
    """work(part) of each part, on all cores: the solver leaves Python alone, so threads share the features."""
    with Cores(torch.device("cpu")) as cores, tqdm(total=len(parts), unit="SVM", leave=False) as bar:

        def counted(part: Any) -> float:
            value = work(part)
            bar.update()
            return value

        return cores.map(counted, parts)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_benchmark("svm", lambda: evaluate(options.parse(parser(), given)), resumable=False)


if __name__ == "__main__":
    sys.exit(main())
