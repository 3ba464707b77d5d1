"""Semantic segmentation with mmsegmentation, from a checkpoint to mIoU.

python transfer/segment.py --ckpt runs/fashion/last.pth --task fashion-fcn           # minutes on two CPU cores
python transfer/segment.py --ckpt X --task voc12aug-fcn-20k --data-root /data --seeds 0 1 2 3 4
torchrun --nproc-per-node 4 transfer/segment.py --ckpt X --task cityscapes-fcn-40k --data-root /data
python transfer/segment.py --check

Figures go to results/records/segmentation.jsonl; pictures, curve, log and checkpoints to a folder below --out.
"""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser

from transfer.benchmark import run_benchmark
from transfer.options import Formatter, add_options, add_training_options, machine, require
from transfer.segmentation import PACKAGES, headline, quiet, task_names


def parser() -> ArgumentParser:
    """The options."""
    tasks = "\n".join(f"  {task:24} {headline(task)}" for task in task_names())
    p = ArgumentParser(
        prog="transfer/segment.py", description=__doc__, epilog=f"tasks:\n{tasks}", formatter_class=Formatter
    )
    add_options(p)
    add_training_options(p, "data")
    p.add_argument("--accumulate", type=int, default=1, help="add up the gradients of so many batches to one step")
    p.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on the CPU")
    p.add_argument(
        "--cfg-options", type=str, nargs="*", default=[], metavar="KEY=VALUE",
        help="change the task's config, e.g. model.test_cfg.mode=slide "
        "model.test_cfg.crop_size=512,512 model.test_cfg.stride=341,341; comes last and is taken as it is",
    )  # fmt: skip
    p.add_argument(
        "--launcher", default="auto", help="none, pytorch (torchrun), slurm (srun), or auto: finds out which"
    )
    return p


def main(arguments: list[str] | None = None) -> int:
    """Trains, evaluates and says the result; 0, or 2 for a mistake in the input."""
    options = parser().parse_args(arguments)

    def work() -> None:
        if options.check:
            print(machine(PACKAGES))
        require("mmseg")
        with quiet(prints=False):  # here, so that --help does not wait for it
            from transfer.segmentation import session

        session.check() if options.check else session.measure_all(options)

    return run_benchmark("segment", work)


if __name__ == "__main__":
    sys.exit(main())
