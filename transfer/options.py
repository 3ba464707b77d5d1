"""Command-line options that the benchmarks share, and the mistakes in them; without the packages that compute."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from common.cli import CommandParser, complete, run_cli
from common.surroundings import DEVICES, WEIGHTS, leave_process_group
from converters.errors import VerificationError
from converters.options import add_reading_options, require_source
from results.record import Record
from transfer.tasks import Tasks

RECORDS = Path("runs/records")  # of users; results/records is written by the study alone


def seed(text: str | int) -> int:
    """Return a seed: a plain int, as frameworks and files want it; raise an error for what is none."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value}: a seed must lie between 0 and 2**32 - 1")
    return value


class Distinct(argparse.Action):
    """Stores several values, none of them twice."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Store the values; raise a ValueError where one comes twice."""
        if len({*values}) < len(values):
            raise ValueError(f"{option} {' '.join(map(str, values))}: one of them is given twice")
        setattr(namespace, self.dest, values)


def add_options(parser: ArgumentParser) -> None:
    """Add the options of every benchmark."""
    parser.add_argument(
        "--ckpt", type=str,
        help="a checkpoint in any format that converters reads, random, random:ARCH, torchvision:NAME or timm:NAME",
    )  # fmt: skip
    add_reading_options(parser)
    parser.add_argument("--label", help="name of the checkpoint in tables; default: what it says of itself")
    parser.add_argument(
        "--seeds", type=seed, nargs="+", default=[0], action=Distinct,
        help="seeds of the benchmark, one run each; they also initialise random weights that name no seed",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="folder of the run folders")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records, one JSON file each")
    parser.add_argument("--receipt", type=Path, help="file to write on success: a JSON list of the record files")
    parser.add_argument("--force", action="store_true", help="measure again what is on record")
    parser.add_argument("--dry-run", action="store_true", help="print as JSON what would be recorded; measure nothing")
    parser.add_argument("--check-data", action="store_true", help="check all the data that a run reads, and stop")
    parser.add_argument("--skip-check", action="store_true", help="do not check the data; the record says so")


def training_parser(
    prog: str, description: str | None, tasks: Tasks, data_root: str, variables: tuple[str, ...] = ()
) -> CommandParser:
    """Return a parser with the options of benchmarks that train in a framework.

    Args:
        prog: the command.
        description: of the command.
        tasks: listed at the end of --help.
        data_root: describes the default of --data-root.
        variables: environment variables of this command alone.
    """
    listed = "\n".join(f"  {task:24} {tasks.describe(task)}" for task in tasks.names())
    parser = CommandParser(prog, description, variables=(*variables, *DEVICES, *WEIGHTS), epilog=f"tasks:\n{listed}")
    add_options(parser)
    complete(parser.add_argument("--task", type=str, help="what to measure; see below"), tasks.names())
    parser.add_argument("--data-root", type=str, help=f"folder of the data sets; default: {data_root}")
    parser.add_argument("--batch", type=int, help="images per iteration over all devices; the schedule is scaled to it")
    parser.add_argument("--no-scale", action="store_true", help="keep the published schedule whatever the devices")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the model in the run folder again")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs")
    parser.add_argument("--check", action="store_true", help="print versions and what works on this machine")
    return parser


def add_openmmlab_options(parser: ArgumentParser) -> None:
    """Add the options of benchmarks that train with mmengine."""
    parser.add_argument("--accumulate", type=int, default=1, help="batches whose gradients are accumulated per step")
    parser.add_argument("--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on the CPU")
    parser.add_argument(
        "--cfg-options", type=str, nargs="*", default=[], metavar="KEY=VALUE",
        help="change the task's config, e.g. model.test_cfg.mode=slide "
        "model.test_cfg.crop_size=512,512 model.test_cfg.stride=341,341; applied last and unscaled",
    )  # fmt: skip
    parser.add_argument("--launcher", default="auto", help="none, pytorch (torchrun), slurm (srun), or auto: detect it")


def require_checkpoint(name: str | None) -> str:
    """Return --ckpt; raise a ValueError where it is missing, or neither a file nor a named network."""
    if not name:
        raise ValueError("--ckpt is missing: a checkpoint file, random, torchvision:NAME or timm:NAME")
    if name != "random":
        require_source(name)
    return name


def next_step(program: str, records: Sequence[Record], words: Sequence[str]) -> str:
    """Return the line that names what to do after measuring on a user's data set; "" for the project's.

    Args:
        program: name of the command.
        records: of what was measured.
        words: of the command line.
    """
    if not records or "data" not in records[0].environment:
        return ""
    first = records[0]
    other = "CHECKPOINT" if first.backbone_id.startswith("random:") else f"random:{first.backbone['arch']}"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--ckpt", "--label", "--weights", "--arch"):  # another checkpoint has other values of these
        parser.add_argument(option)
    parser.add_argument("--force", action="store_true")
    again = parser.parse_known_args(words)[1]
    parser.add_argument("--records", default=str(RECORDS))
    parser.add_argument("--size")
    given = parser.parse_known_args(words)[0]
    if given.size is None and "size" in first.config:  # its default depends on the checkpoint
        again += ["--size", str(first.config["size"])]
    folder = shlex.quote(given.records)
    tables = f"python results/tables.py --records {folder} --out runs/tables"
    return f"next: python transfer/{program}.py --ckpt {other} {shlex.join(again)}; then {tables}"


def run_benchmark(
    program: str, run: Callable[[list[str] | None], list[Record]], arguments: list[str] | None, resumable: bool = True
) -> int:
    """Run a benchmark's command and print what to do next; return the status.

    User errors and a model that is not the checkpoint are one line.
    """

    def work() -> None:
        records = run(arguments)
        line = next_step(program, records, sys.argv[1:] if arguments is None else arguments)
        if line and os.environ.get("RANK", "0") == "0":
            print(line)

    try:
        return run_cli(program, work, resumable, also=(VerificationError,))
    finally:
        leave_process_group()
