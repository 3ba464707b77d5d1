"""Weighted kNN on the frozen features of a checkpoint (Wu et al., arXiv 1805.01978, section 3.4).

python transfer/knn.py --ckpt runs/fashion/last.pth
python transfer/knn.py --ckpt random:resnet18 --seeds 0 1
python transfer/knn.py --ckpt X --data /data/imagenet --store fp16 --temperature '[0.07, 0.1]'
torchrun --nproc-per-node 8 -m transfer.knn --ckpt X --data /data/imagenet     each GPU holds an eighth of the bank

The training images are the bank; a neighbour's score is exp(cosine similarity / T). All k and T are answered in one
pass, which reads the bank in blocks: beside the features of the test images it takes as much memory for a million
images as for a thousand, and prints how much. Where --test names the training images, no image is its own neighbour.
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
from transfer.classification.options import check, classification_parser, listed
from transfer.options import run_benchmark

TEMPERATURE = 0.07  # Wu et al., section 3.4


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = classification_parser("knn", __doc__)
    p.add_argument("--k", type=int | list[int], default=[10, 20, 100, 200], help="numbers of neighbours")
    p.add_argument("--temperature", type=float | list[float], default=TEMPERATURE, help="T of the scores")
    return p


def check_options(options: Namespace) -> None:
    """Raise a ValueError for options without a result, or with one several times."""
    check(options)
    temperatures = listed(options.temperature)
    for name, values in (("k", listed(options.k)), ("temperature", temperatures)):
        if not values:
            raise ValueError(f"--{name} []: give one or more numbers")
    if min(temperatures) <= 0:
        raise ValueError(f"--temperature {min(temperatures)}: must be above 0")
    seeded = str(options.ckpt).partition(":")[0] == "random" and "seed=" not in str(options.ckpt)
    if len(options.seeds) > 1 and not seeded:
        raise ValueError(
            f"--seeds {' '.join(map(str, options.seeds))}: kNN draws nothing at random, so {options.ckpt} gives one "
            "result whatever the seed; give one seed, or checkpoints of several pre-trainings"
        )


def run(arguments: list[str] | None = None) -> list[Record]:
    """Measure, print the result and return the records."""
    options = parser().parse(arguments)
    check_options(options)
    from transfer.classification import command, neighbours  # here: torch takes a second, and --help does without

    return command.evaluate_seeds(options, neighbours.plan, neighbours.load, neighbours.evaluate)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    return run_benchmark("knn", run, arguments, resumable=False)


if __name__ == "__main__":
    sys.exit(main())
