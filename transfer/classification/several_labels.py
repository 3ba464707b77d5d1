"""Linear classification of images with several labels: one logistic regression per class, judged by average precision.

Shapes: N images, D feature width, C classes. Targets are 1 (present), 0 (absent) or -1 (unknown: the image counts
neither in training nor in the test of the class). On features standardised to mean 0 and standard deviation 1 it
minimises, for each class, sum over its known images of the cross-entropy / N + penalty / 2 * sum of squared weights, as
scikit-learn's LogisticRegression does with C = 1 / (penalty * N).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jsonargparse import Namespace
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common.files import write_atomically
from transfer.benchmark import Measurement, Metrics, Run
from transfer.classification import logistic
from transfer.classification.command import feature_cache, run_folder
from transfer.classification.data import HELD_OUT, source_names
from transfer.classification.heads import save_head
from transfer.classification.schedules import CACHED
from transfer.classification.voc import ABSENT, DIFFICULT, PRESENT, MultiLabel, average_precision, load_multilabel
from transfer.own_data.options import hold_out


class Binary(logistic.Problem):
    """The problem of all classes at once; its labels are targets, (N, C) int64."""

    def terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each image (n,) and its gradient by the logits (n, C)."""
        known, target = (labels != DIFFICULT).float(), (labels == PRESENT).float()
        loss = F.binary_cross_entropy_with_logits(logits, target, known, reduction="none")
        return loss.sum(1), (logits.sigmoid() - target) * known


def load(run: Run, options: Namespace) -> MultiLabel:
    """Read the lists of images.

    Raises:
        ValueError: see `load_multilabel`; the mode trains on one label per image; a class has no AP, or nothing to
            learn; or there are too few images to choose a penalty on.
    """
    if options.mode != CACHED:
        raise ValueError(f"--mode {options.mode}: one label per image; several labels go with --mode {CACHED}")
    data = load_multilabel(options)
    for name, y, y_test in zip(data.classes, data.targets.T, data.test_targets.T, strict=True):
        for labels, what in ((y, "training"), (y_test, "test")):
            if not {PRESENT, ABSENT} <= {*labels.tolist()}:
                raise ValueError(
                    f"class {name!r} is shown by none or by all of the {what} images of which it is known: leave out "
                    "its column, or add images"
                )
    if len(options.penalties) > 1:
        held_out(data, run.seed)
    return data


def held_out(data: MultiLabel, seed: int) -> np.ndarray:
    """Return the indices of the tenth of the training images that the penalty is chosen on; see `hold_out`.

    Raises:
        ValueError: they are none, or no class has an AP on them.
    """
    shown = [{name for name, y in zip(data.classes, row, strict=True) if y == PRESENT} for row in data.targets]
    numbers = [str(i) for i in range(len(shown))]
    count = round(HELD_OUT * len(shown))
    held = np.array(sorted(map(int, hold_out(numbers, HELD_OUT, seed, shown)))) if count else np.arange(0)
    if not any({PRESENT, ABSENT} <= {*y.tolist()} for y in data.targets[held].T):
        raise ValueError(
            f"{len(shown)} training images are too few to hold out {HELD_OUT:.0%} of them for choosing the penalty; "
            "give one, as --penalties [0.001]"
        )
    return held


def evaluate(run: Run, options: Namespace, device: torch.device) -> Measurement:
    """Fit and test the heads; write them and the AP of each class into the run folder."""
    data = load(run, options)
    network = run.backbone.build().to(device).to(memory_format=torch.channels_last)
    extract, folder = feature_cache(run, options, device), run_folder(run, options.mode)
    features, test_features = (
        extract(run.backbone, network, images, name)
        for images, name in zip((data.train, data.test), source_names(options), strict=True)
    )
    held = held_out(data, run.seed) if len(options.penalties) > 1 else np.arange(0)
    targets = torch.from_numpy(data.targets)
    classes, indices = len(data.classes), torch.from_numpy(held)

    def score(head: nn.Linear) -> float:
        return mean(aps(head, features[indices], data.targets[held], data.classes))

    head, penalty, tried = logistic.fit(
        features, targets, classes, indices, device, options.penalties, tqdm.write, Binary, score
    )
    compared = run.backbone.compare(network.state_dict())
    print(f"the backbone is unchanged: {compared} tensors equal those of the checkpoint")
    save_head(folder / "head.pth", head, data.classes, run.backbone)
    each = aps(head, test_features, data.test_targets, data.classes)
    table = pd.Series(each, name="AP").rename_axis("class")
    write_atomically(folder / "per_class.csv", table.to_csv)
    cost = {"images": float(len(features) + len(test_features)), "penalty": penalty}
    cost |= {"held_out_mAP": tried[penalty]} if tried else {}
    return Measurement({"mAP": mean(each), **{f"AP {name}": value for name, value in each.items()}}, cost)


def aps(head: nn.Linear, features: Tensor, targets: np.ndarray, classes: list[str]) -> Metrics:
    """Return the AP of each class that some of the images with known targets (n, C) show, and some do not."""
    with torch.no_grad():
        scores = torch.cat([head(part.to(head.weight)).cpu() for part in features.split(4096)]).double().numpy()
    found = {}
    for c, name in enumerate(classes):
        known = targets[:, c] != DIFFICULT
        if {PRESENT, ABSENT} <= {*targets[known, c].tolist()}:
            found[name] = average_precision(targets[known, c], scores[known, c])
    return found


def mean(values: Metrics) -> float:
    """Return the mean over classes, 0 without any."""
    return float(np.mean([*values.values()])) if values else 0.0
