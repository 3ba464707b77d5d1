"""Fine-tuning of all layers on few labels, or all: semi-supervised classification.

python transfer/finetune.py --ckpt runs/fashion/last.pth --recipe fashion_finetune
python transfer/finetune.py --ckpt X --recipe imagenet_finetune_10percent --labels.list 10percent.txt
python transfer/finetune.py --ckpt X --data /data/birds --labels.ratio 0.1 --head runs/transfer/.../head.pth

--labels.ratio with a seed, or --labels.list (SimCLR's lists work as they are), says which labels are used, by the code
of pre-training. Backbone and head have a learning rate each; of several pairs one is chosen on a held-out tenth of the
labelled images, then training is repeated on all of them. Metrics are of the last epoch on the test images.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active


from common.cli import CommandParser
from results.record import Record
from transfer.classification.options import VIEW, check, classification_parser, resolve_tuning
from transfer.classification.schedules import CropConfig, TuneOptim
from transfer.options import run_benchmark


def parser() -> CommandParser:
    """Return the parser of the command line."""
    p = classification_parser("finetune", __doc__, precision="auto")
    p.add_class_arguments(TuneOptim, "optim")
    p.add_class_arguments(CropConfig, "crop")
    p.add_argument("--head", type=Path | None, help="a head.pth of linear.py to start from, in place of a random one")
    p.add_argument("--resume", action="store_true", help="continue after the last complete epoch of the run")
    return p


def run(arguments: list[str] | None = None) -> list[Record]:
    """Measure, print the result and return the records."""
    options = parser().parse(arguments)
    check(options)
    resolve_tuning(options, options.size or VIEW)
    from transfer.classification import command, tuning  # here: torch takes a second, and --help does without

    return command.evaluate_seeds(options, tuning.plan, tuning.load, tuning.evaluate, "many on GPUs")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the result; return 0, or 2 for a user's mistake."""
    return run_benchmark("finetune", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
