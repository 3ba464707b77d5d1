"""Linear SVMs on frozen features, one per class: VOC07 as published, and low-shot with few positives per class.

python transfer/svm.py --ckpt X --data voc07:/data/VOCdevkit/VOC2007 --task voc07-svm
python transfer/svm.py --ckpt X --data voc07:/data/VOCdevkit/VOC2007 --task voc07-lowshot
python transfer/svm.py --ckpt X --task lowshot                        other images, one label each: svm, lowshot

Protocol (Goyal et al., arXiv 1905.01235; facebookresearch/fair_self_supervision_benchmark@275d104, tools/svm): pooled
features, L2-normalised; scikit-learn's LinearSVC, squared hinge, L2, dual, at most 2,000 iterations, positives weigh
double. The cost of each class is chosen by 3-fold cross-validation on train. In VOC07 an image that is difficult for a
class is one of its negatives in training and left out in the test. Costs of voc07-svm are OpenSelfSup's
(WXinlong/DenseCL@b64bbb6, benchmarks/svm_tools), whose results are cited. Low-shot: k positives per class, five
samples, their mean, difficult images left out; the published results take the cost that is best on test, ours is fixed
by --cost. Metrics: AP of each class on test, and their mean, mAP.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from jsonargparse import Namespace

from common.cli import CommandParser
from results.record import Record
from transfer.classification.data import VOC, is_voc
from transfer.classification.options import COSTS, check, classification_parser, costs_of, require_data
from transfer.options import run_benchmark

TASKS = ("voc07-svm", "voc07-lowshot", "svm", "lowshot")


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = classification_parser("svm", __doc__)
    p.add_argument("--task", choices=TASKS, default="svm", help="all training images, or k positives per class")
    p.add_argument(
        "--costs", type=list[float] | None,
        help=f"C to choose from for each class; default: {COSTS}, of voc07-svm 1, 10, 100 and 0.5^4 ... 0.5^19",
    )  # fmt: skip
    p.add_argument("--k", type=list[int], default=[1, 2, 4, 8, 16, 32, 64, 96], help="low-shot: positives per class")
    p.add_argument("--samples", type=int, default=5, help="low-shot: samples for each k")
    p.add_argument("--cost", type=float, default=1.0, help="low-shot: C")
    return p


def check_options(options: Namespace) -> None:
    """Raise a ValueError for options with which no SVM can be trained."""
    require_data(options)
    costs = costs_of(options)
    if not costs or min(costs) <= 0:
        raise ValueError(f"--costs {costs}: one or more numbers, and each must be above 0")
    if not options.cost > 0:
        raise ValueError(f"--cost {options.cost}: must be above 0")
    if not options.k or min(options.k) < 1:
        raise ValueError(f"--k {options.k}: one or more numbers of positives, 1 or above")
    if options.samples < 1:
        raise ValueError(f"--samples {options.samples}: must be 1 or more")
    if options.task.startswith("voc07") != is_voc(options.data):
        raise ValueError(
            f"--task {options.task} with --data {options.data}: "
            f"voc07-svm and voc07-lowshot go with voc07:FOLDER alone, so --data {VOC}FOLDER, VOCdevkit's VOC2007"
        )
    check(options)


def run(arguments: list[str] | None = None) -> list[Record]:
    """Measure, print the result and return the records."""
    options = parser().parse(arguments)
    check_options(options)
    from transfer.classification import command, svms  # here: torch takes a second, and --help does without

    return command.evaluate_seeds(options, svms.plan, svms.load, svms.evaluate, "one")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    return run_benchmark("svm", run, arguments, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
