"""Linear classification on the frozen backbone of a checkpoint.

python transfer/linear.py --ckpt runs/fashion/last.pth                   minutes: features once, then L-BFGS
python transfer/linear.py --ckpt X --data /data/imagenet --mode moco     the papers' protocol
python transfer/linear.py --ckpt X --recipe fashion_linear_moco          a recipe; options override it

Modes: `cached`: logistic regression on features that are computed once, the penalty chosen on a held-out tenth of
train. `moco`: SGD on random crops, base learning rate 30 per 256 images, 100 epochs. (30 is no slip: pooled features
are not normalised, MoCo's are small, and so are the gradients of its head; larger features need less.) `lars`:
SimSiam's, for batches of thousands. `sweep`: many heads with different rates and weight decays on one pass of the
backbone, chosen on a held-out tenth of train. Metrics are of the last epoch on the test images; afterwards every tensor
of the backbone is compared with the checkpoint. A CSV file with a column per class, as for svm.py, gets one logistic
regression per class, and mAP.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from jsonargparse import Namespace

from common.cli import CommandParser
from results.record import Record
from transfer.classification.options import PENALTIES, VIEW, check, classification_parser, resolve_linear
from transfer.classification.schedules import CACHED, MODES, CropConfig, HeadOptim
from transfer.options import run_benchmark


def parser(mode: str = "moco") -> CommandParser:
    """Return the parser of the command line; the defaults of --optim are the mode's."""
    p = classification_parser("linear", __doc__)
    p.add_argument("--mode", choices=[CACHED, *MODES], default=CACHED, help="how the head is trained")
    p.add_class_arguments(HeadOptim, "optim", default=asdict(MODES.get(mode, HeadOptim())))
    p.add_class_arguments(CropConfig, "crop")
    p.add_argument("--penalties", type=list[float], default=list(PENALTIES), help="mode cached: to try")
    p.add_argument("--head", type=Path | None, help="a head.pth to start from (all modes but `cached`)")
    p.add_argument("--resume", action="store_true", help="continue after the last complete epoch of the run")
    return p


def parse(arguments: list[str] | None) -> Namespace:
    """Parse a command line: it overrides the recipe, which overrides the mode's defaults."""
    return parser(parser().parse(arguments).mode).parse(arguments)


def run(arguments: list[str] | None = None) -> list[Record]:
    """Measure, print the result and return the records."""
    options = parse(arguments)
    check(options)
    resolve_linear(options, options.size or VIEW)
    from transfer.classification import command, linear_probe, several_labels  # here: torch, and --help does without
    from transfer.own_data.multilabel import is_table

    processes: command.Processes = "one" if options.mode == CACHED else "many"
    probe = several_labels if is_table(options.data) else linear_probe
    return command.evaluate_seeds(options, linear_probe.plan, probe.load, probe.evaluate, processes)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    return run_benchmark("linear", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
