"""Command-line options that the benchmarks share, and what they mean."""

from __future__ import annotations

import importlib.metadata
import platform
from argparse import ArgumentTypeError
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from tabulate import tabulate

from common.cli import CommandParser
from common.distributed import has_gpu
from common.extras import how_to_install
from common.run_folder import PACKAGES, version
from common.surroundings import cores
from converters.options import add_reading_options
from transfer.benchmark import RECORDS
from transfer.changes import differences, flat
from transfer.tasks import Tasks


def seed(text: str | int) -> int:
    """Return a seed: a plain int, as frameworks and files want it; raise an error for what is none."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise ArgumentTypeError(f"{value}: a seed must lie between 0 and 2**32 - 1")
    return value


def add_options(parser: ArgumentParser) -> None:
    """Add the options of every benchmark."""
    parser.add_argument(
        "--ckpt", type=str,
        help="a checkpoint in any format that converters reads, random, random:ARCH, torchvision:NAME or timm:NAME",
    )  # fmt: skip
    add_reading_options(parser)
    parser.add_argument("--label", help="name of the checkpoint in tables; default: what it says of itself")
    parser.add_argument(
        "--seeds", type=seed, nargs="+", default=[0],
        help="seeds of the benchmark, one run each; they also initialise random weights that name no seed",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), help="folder of the run folders")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records, one JSON file each")
    parser.add_argument("--receipt", type=Path, help="file to write on success: a JSON list of the record files")
    parser.add_argument("--force", action="store_true", help="measure again what is on record")
    parser.add_argument("--dry-run", action="store_true", help="print as JSON what would be recorded; measure nothing")
    parser.add_argument("--check-data", action="store_true", help="check all the data that a run reads, and stop")
    parser.add_argument("--skip-check", action="store_true", help="do not check the data; the record says so")


def training_parser(prog: str, description: str | None, tasks: Tasks, data_root: str) -> CommandParser:
    """Return a parser with the options of benchmarks that train in a framework.

    Args:
        prog: the command.
        description: of the command.
        tasks: listed at the end of --help.
        data_root: describes the default of --data-root.
    """
    listed = "\n".join(f"  {task:24} {tasks.describe(task)}" for task in tasks.names())
    parser = CommandParser(prog, description, epilog=f"tasks:\n{listed}")
    add_options(parser)
    parser.add_argument("--task", type=str, help="what to measure; see below")
    parser.add_argument("--data-root", type=str, help=f"folder of the data sets; default: {data_root}")
    parser.add_argument("--batch", type=int, help="images per iteration over all devices; the schedule is scaled to it")
    parser.add_argument("--no-scale", action="store_true", help="keep the published schedule whatever the devices")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the model in the run folder again")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
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


def device_kind(device: str) -> str:
    """Return "cuda" or "cpu" for --device; auto is cuda where there is a GPU.

    Raises:
        ValueError: another value.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device}: use auto, cpu or cuda (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    return ("cuda" if has_gpu() else "cpu") if device == "auto" else device


def should_resume(
    folder: Path, has_checkpoint: bool, config: Mapping[str, Any], options: Namespace, trained: str,
    ignore: Collection[str] = (),
) -> bool:  # fmt: skip
    """Return True to resume or evaluate the run in a folder, False to start fresh.

    Args:
        folder: of the run.
        has_checkpoint: whether it holds one.
        config: what the run's config.yaml must hold.
        options: holds `resume`, `eval_only`, `force` and `records`.
        trained: what a checkpoint holds, e.g. "detector".
        ignore: settings that may differ, by dotted key.

    Raises:
        ValueError: there is nothing to evaluate, the run was started with other settings, or no option decides what to
            do with it.
    """
    if not has_checkpoint:
        if options.eval_only:
            raise ValueError(f"--eval-only: {folder} holds no trained {trained}; leave the option out")
        return False
    wanted: bool = options.resume or options.eval_only
    if wanted or not options.force:
        # First: a run with other settings may well be on record.
        differ = differences(flat(yaml.safe_load((folder / "config.yaml").read_bytes())), flat(config), ignore)
        if differ:
            listed = ", ".join(f"{key} {old} → {new}" for key, (old, new) in [*differ.items()][:4])
            raise ValueError(
                f"{folder} was started with other settings ({listed}): restore them, name another --out, or replace "
                "it with --force"
            )
    if not wanted and not options.force:
        raise ValueError(
            f"{folder} holds a run that is not on record in {options.records}: --resume continues it, "
            "--force starts afresh"
        )
    return wanted


def machine(packages: Sequence[str]) -> str:
    """Return a table of this machine for --check: versions of the usual packages and of `packages`, and its devices."""
    rows = [["python", platform.python_version()], ["platform", platform.platform()]]
    for name in (*PACKAGES, *packages):
        try:
            rows.append([name, version(name)])
        except importlib.metadata.PackageNotFoundError:
            rows.append([name, f"not installed: {how_to_install(name)}"])
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(["CUDA of torch", torch.version.cuda or "none"])
    rows.append(["devices", ", ".join(devices) or f"CPU, {cores()} cores, no GPU"])
    return str(tabulate(rows, disable_numparse=True, tablefmt="plain"))
