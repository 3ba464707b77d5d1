"""Detection and instance segmentation: from a checkpoint to the metrics of COCO, LVIS, VOC or Cityscapes.

python transfer/detect.py --ckpt runs/fashion/last.pth --task fashion-fpn            # minutes on two CPU cores
python transfer/detect.py --ckpt moco_v2.pth --task coco-c4-1x --data-root /data     # all GPUs of this machine
python transfer/detect.py --ckpt X --task voc-c4-24k --seeds 0 1 2 3 4 TEST.EVAL_PERIOD 4000    # detectron2's settings
python transfer/detect.py --ckpt X --task coco-c4-1x --device cuda --num-gpus 8 --dry-run       # needs no GPU
python transfer/detect.py --ckpt X --data DIR       your own boxes or masks in COCO's, YOLO's or VOC's layout
python transfer/detect.py --ckpt X --task coco-fpn-1x --engine mmdet --data-root /data          # the same with mmdet
torchrun --nproc-per-node 8 transfer/detect.py --ckpt X --task coco-fpn-1x --engine mmdet --data-root /data
python transfer/detect.py --check
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

if not __package__:  # run as a script: find the packages beside this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common  # noqa: F401  says what is to be done where the environment is not active

from jsonargparse import Namespace

from common.cli import CommandParser
from common.extras import require
from results.record import Record
from transfer.options import add_openmmlab_options, require_checkpoint, run_benchmark, training_parser
from transfer.own_data.options import add_detection, names_detection
from transfer.own_data.protocols import PROTOCOLS
from transfer.tasks import DETECTION, MMDET

ENGINES = ("detectron2", "mmdet")

SETTING = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+")  # a key of detectron2's configuration


def parser() -> CommandParser:
    """Return the parser of the options."""
    data_root = "data for fashion tasks, else $DETECTRON2_DATASETS"
    p = training_parser("transfer/detect.py", __doc__, DETECTION, data_root, ("DETECTRON2_DATASETS",))
    add_detection(p)
    p.add_argument("--protocol", choices=[*PROTOCOLS], default="fpn", help="detector for your own data")
    p.add_argument("--epochs", type=float, help="schedule for your own data; default: by its number of images")
    listed = "\n".join(f"  {task:24} {MMDET.describe(task)}" for task in MMDET.names())
    p.epilog = f"{p.epilog}\ntasks of --engine mmdet, or a config of mmdet (.py):\n{listed}"
    p.add_argument("--engine", choices=ENGINES, default="detectron2", help="the framework that trains")
    add_openmmlab_options(p)  # of mmdet
    p.add_argument("--num-gpus", type=int, help="processes on this machine; default: one per GPU")
    p.add_argument("--num-machines", type=int, default=1, help="number of machines that work together")
    p.add_argument("--machine-rank", type=int, default=0, help="rank of this machine")
    p.add_argument("--dist-url", default="auto", help="meeting point of several machines, e.g. tcp://host0:29500")
    p.add_argument("settings", nargs="*", default=[], help="KEY VALUE ...: detectron2's settings, after the options")
    return p


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the options and the KEY VALUE pairs: the words from the first that looks like a key to the next option."""
    start = next((i for i, word in enumerate(arguments) if SETTING.fullmatch(word)), len(arguments))
    stop = next((i for i in range(start, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    return arguments[:start] + arguments[stop:], arguments[start:stop]


def data_root(options: Namespace) -> Path:
    """Return --data-root or its default."""
    fashion = (options.task or "").startswith("fashion")
    default = "data" if fashion else os.environ.get("DETECTRON2_DATASETS", "datasets")
    return Path(os.path.expanduser(options.data_root or default))


def check_options(options: Namespace) -> None:
    """Check that the task and the options are the engine's.

    Raises:
        ValueError: names the option and what takes its place.
    """
    tasks = MMDET if options.engine == "mmdet" else DETECTION
    if not names_detection(options):
        tasks.find(options.task)
    elif options.task:
        raise ValueError(f"--task {options.task}: your own data has --protocol in its place")
    if options.engine == "mmdet":
        if options.settings:
            raise ValueError(f"{options.settings[0]}: detectron2's; --engine mmdet has --cfg-options KEY=VALUE")
        if options.num_gpus is not None or options.num_machines > 1:
            raise ValueError(
                "--num-gpus, --num-machines: detectron2's; for mmdet start the processes yourself: torchrun "
                "--nproc-per-node N transfer/detect.py --engine mmdet ..."
            )
        if options.resume and options.force:
            raise ValueError("--resume continues a run, --force replaces it: leave one of them out")
        return
    given = {
        "--cfg-options": options.cfg_options, "--amp": options.amp, "--accumulate": options.accumulate != 1,
        "--launcher": options.launcher != "auto",
    }  # fmt: skip
    if named := [name for name, value in given.items() if value]:
        raise ValueError(f"{', '.join(named)}: for --engine mmdet; detectron2 takes KEY VALUE pairs after the options")


def run(arguments: list[str] | None = None) -> list[Record]:
    """Do what the command line says and return the records."""
    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # when detectron2 is imported
    given, settings = split(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse(given)
    options.settings = [*options.settings, *settings]
    if not options.check:
        check_options(options)
        require_checkpoint(options.ckpt)
    if options.dry_run and os.environ.get("RANK", "0") != "0":
        return []
    require(options.engine)
    from transfer.detection import command  # here: torch takes a second, and --help does without

    if not options.check:
        return command.detect(options, data_root(options))
    print(command.report(options, data_root(options)))
    return []


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 0, or 2 for a user's mistake."""
    return run_benchmark("detect", run, arguments)


if __name__ == "__main__":
    sys.exit(main())
